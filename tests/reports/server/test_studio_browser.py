"""The studio in a real browser: a person's clicks and keys, narrow and dark screens, contrast."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_review import CONTRAST

from photosets import GROUP_REGEX, class_folders
from unfreeze.core.runs import Run

WIDE, NARROW = {"width": 1600, "height": 900}, {"width": 360, "height": 740}

UNNAMED = """[...document.querySelectorAll("a, button, input:not([type=hidden]), select")].filter(
  (e) => !(e.innerText || e.ariaLabel || e.labels?.length || e.querySelector("img[alt]"))).length"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("studio") / "colours", groups=4)


@pytest.fixture(scope="module")
def home(
    probe_run: Run, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Iterator[str], Path]]:
    """A studio over two finished runs and given photos: the one-time addresses that it prints, and the runs folder."""
    runs = tmp_path_factory.mktemp("served") / "runs"
    for name in ("alpha", "beta"):
        shutil.copytree(probe_run.path, runs / name)
    command = [sys.executable, "-m", "unfreeze.cli.main", "studio", str(runs), "--data", str(photos), "--no-open"]
    # A cache of its own: with one that other tests have filled, a fit is over before a person can stop it.
    own = {"COLUMNS": "200", "UNFREEZE_CACHE": str(runs.parent / "cache")}
    studio = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **own})
    assert studio.stdout is not None
    yield (m[0] for line in studio.stdout if (m := re.search(r"http://\S+", line))), runs
    studio.terminate()
    studio.wait(40)


def opened(browser: Any, address: str, size: dict[str, int] = WIDE, scheme: str = "light") -> tuple[Any, list[str]]:
    """A page that has entered the studio, and what its console complains of."""
    page, faults = browser.new_page(viewport=size, color_scheme=scheme), list[str]()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda told: faults.append(told.text) if told.type == "error" else None)
    page.goto(address)
    assert page.url.endswith("/") and "token" not in page.url
    return page, faults


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_person_finds_sorts_and_compares_runs_by_keyboard(browser: Any, home: tuple[Iterator[str], Path]) -> None:
    page, faults = opened(browser, next(home[0]))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # home, photos, runs
    page.wait_for_url("**/runs")
    names = page.locator("#runs tbody th a")
    page.locator("#runs thead a", has_text="Run").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**sort=name**")
    page.locator("th[aria-sort=ascending]").wait_for()
    assert names.all_inner_texts() == ["alpha", "beta"]
    page.locator("#runs thead a", has_text="Run").first.press("Enter")
    page.locator("th[aria-sort=descending]").wait_for()
    assert names.all_inner_texts() == ["beta", "alpha"]
    for box in page.locator("#runs input").all():
        box.focus()
        page.keyboard.press("Space")
    page.get_by_role("button", name="Compare the chosen").press("Enter")
    page.wait_for_url("**/compare**")
    assert "predicts the same class as" in page.locator("h2").first.inner_text()
    page.locator("table.compare a").first.click()
    page.locator(".matrix td a").first.click()
    page.locator(".tile img").first.wait_for()
    until(lambda: page.evaluate("document.querySelector('.tile img').naturalWidth > 0"))
    assert not faults


def test_a_person_starts_stops_and_resumes_a_fit(browser: Any, home: tuple[Iterator[str], Path]) -> None:
    page, faults = opened(browser, next(home[0]))
    page.get_by_role("link", name="Fit a model").click()
    page.get_by_label("Or a group pattern").fill("(")
    page.locator("#start").click()
    page.locator("#refused .problem", has_text="Group pattern").wait_for()
    faults.clear()  # the browser itself notes an answer of 422
    page.get_by_label("Or a group pattern").fill(GROUP_REGEX)
    page.get_by_label("Strategy").select_option("probe")
    page.get_by_label("Quality").select_option("fast")
    page.get_by_label("Folds").fill("2")
    page.get_by_label("Name of the run").fill("gamma")
    page.locator("#start").click()
    page.wait_for_url("**/jobs/*")
    assert "--run=" in page.locator(".command code").inner_text()
    page.locator(".output").wait_for(timeout=60_000)  # its first line has come by itself
    until((home[1] / "gamma" / "run.json").exists)
    page.locator("#stop").click()
    page.locator("#live .state.stopped").wait_for(timeout=30_000)
    page.get_by_text("The run is not lost").wait_for()
    page.goto(page.url.partition("/jobs")[0] + "/runs/gamma")
    assert "was interrupted" in page.locator("h2").inner_text()
    page.locator("#resume").click()
    page.wait_for_selector("#live .state.running", timeout=30_000)
    page.goto(page.url.partition("/runs")[0] + "/jobs")
    page.locator("#jobs .state.running").wait_for()
    page.locator("#jobs a").first.click()
    page.locator("#stop").click()
    page.wait_for_selector("#live .state.stopped, #live .state.finished", timeout=30_000)
    assert "Started again." in page.locator(".output").inner_text()
    assert not faults


def test_photos_that_are_chosen_are_predicted(browser: Any, home: tuple[Iterator[str], Path], photos: Path) -> None:
    page, faults = opened(browser, next(home[0]), NARROW, "dark")
    page.goto(page.url + "runs/alpha/predict")
    page.locator("#files").set_input_files([photos / "red" / "g000_0.jpg", photos / "blue" / "g200_0.jpg"])
    page.locator("#answers .first").nth(1).wait_for(timeout=180_000)  # the network is loaded first
    assert page.locator("#answers .path").all_inner_texts() == ["g000_0.jpg", "g200_0.jpg"]
    every = "[...document.querySelectorAll('#answers img')].every((one) => one.naturalWidth > 0)"
    until(lambda: page.evaluate(every))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") and not faults


def test_no_page_scrolls_sideways_moves_or_is_hard_to_read(browser: Any, home: tuple[Iterator[str], Path]) -> None:
    for size, scheme in ((NARROW, "dark"), (WIDE, "light")):
        page, faults = opened(browser, next(home[0]), size, scheme)
        base = page.url.rstrip("/")
        data = page.locator("a[href^='/data/']").first.get_attribute("href")
        paths = ["/", "/data", "/runs", "/jobs", "/jobs/new", "/jobs/new?kind=check", "/compare?run=alpha&run=beta"]
        paths += [data, f"{data}/photos", "/runs/alpha", "/runs/alpha/photos", "/runs/alpha/predict"]
        for path in paths:
            page.goto(base + path)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} at {size['width']} px"
            low = page.evaluate(CONTRAST)
            assert low == [], f"{path}, {scheme}: {low}"
            unnamed = page.evaluate(UNNAMED)
            assert not unnamed, f"{path}: something to press has no name"
        shifts = page.evaluate(
            "new Promise((done) => { let sum = 0; new PerformanceObserver((list) => list.getEntries().forEach("
            "(e) => sum += e.value)).observe({ type: 'layout-shift', buffered: true });"
            "scrollTo(0, 9999); setTimeout(() => done(sum), 150); })"
        )
        assert shifts < 0.01 and not faults
        page.close()


def test_the_page_says_when_the_studio_is_gone(browser: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "unfreeze.cli.main", "studio", str(tmp_path / "none"), "--no-open"]
    studio = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    assert studio.stdout is not None
    address = next(m[0] for line in studio.stdout if (m := re.search(r"http://\S+", line)))
    try:
        page, faults = opened(browser, address, NARROW)
        assert "unfreeze demo" in page.locator("#empty").inner_text() and not faults
        studio.kill()
        studio.wait(10)
        page.evaluate("() => { htmx.ajax('GET', '/runs', '#problem').catch(() => {}); }")
        page.locator("#problem", has_text="The studio does not answer").wait_for()
    finally:
        studio.kill()
