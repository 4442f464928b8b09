"""Every page of a run whose classes, groups and files are named as scripts, in Chromium: none of them runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from commandline import run_cli
from hostile import SCRIPTS, SMALL, hostile_table

pytestmark = pytest.mark.soak
SET = [
    word for key, value in SMALL.items() if "." in key and "regex" not in key for word in ("--set", f"{key}={value}")
]
SET = [word.replace("['plain']", '["plain"]') for word in SET]
SIZE = {"width": 1280, "height": 900}
PHOTOS = '"><img src=x onerror=window.hit=1>'  # the folder's name
MOST = 60  # pages of one server that are looked at


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the photos, the runs of them, and every page that a command writes."""
    folder = tmp_path_factory.mktemp("pages")
    table = hostile_table(folder / PHOTOS)
    first = next(file for file in table.parent.iterdir() if file.suffix == ".jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit = ["--strategy", "probe", "--set", "engine=openvino-f32", *SET]
        for words in (
            ["check", table, "--report", "eda.html"],
            ["fit", table, *fit, "--run", "runs/one"],
            ["label-issues", "runs/one"],
            ["diagnose", "runs/one", "--test", table],
            ["report", "runs/one", "--explain"],
            ["explain", "runs/one", first, "--out", "explain.html"],
            ["compare", table, *fit, "--grid", "image.color=rgb,gray", "--run", "runs/compare-one"],
            [
                "tune",
                table,
                *fit,
                "--trials",
                "2",
                "--space",
                "balance.class_weight_power=0.0..1.0",
                "--run",
                "runs/tune-one",
            ],
            ["recommend", table, "--report", "recommendation.html", *QUICK],
        ):
            answer = run_cli(*words)
            assert answer.code == 0 and "Traceback" not in answer.err, f"{words[0]}: {answer.err}"
    return folder


QUICK = ["--set", "engine=openvino-f32", "--folds", "3", "--budget", "5s", "--set", 'recommend.candidates=["probe"]']


class Watched:
    """A page, and all that it did which it should not."""

    def __init__(self, browser: Any) -> None:
        self.page = browser.new_page(viewport=SIZE)
        self.deeds: list[str] = []
        self.page.on("dialog", lambda dialog: (self.deeds.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda asked: self.asked(asked.url))
        self.home = ""

    def asked(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and f"{parts.scheme}://{parts.netloc}" != self.home:
            self.deeds.append(f"asked for {url}")

    def see(self, address: str) -> str:
        """The page's text. Fails if a script of a name ran, something was asked from elsewhere, or a dialog came."""
        parts = urlsplit(address)
        self.home = f"{parts.scheme}://{parts.netloc}"
        answer = self.page.goto(address)
        assert answer is None or answer.status < 500, address
        self.page.wait_for_timeout(150)
        for element in self.page.query_selector_all("summary, [tabindex], input, a")[:40]:
            element.evaluate("e => { e.focus(); e.dispatchEvent(new MouseEvent('mouseover', {bubbles: true})) }")
        assert self.page.evaluate("window.hit") is None, f"{address}: a name was run"
        assert not self.deeds, f"{address}: {self.deeds}"
        bad = self.page.evaluate(
            "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes].map(a => [a.name, a.value]))"
            ".filter(([n, v]) => /^on/.test(n) && !/^hx-on/.test(n) || /^(href|src|action)$/.test(n)"
            " && /^\\s*javascript:/i.test(v)).map(String)"
        )
        assert not bad, f"{address}: {bad}"
        return str(self.page.evaluate("document.documentElement.outerHTML"))


WRITTEN = [
    *("eda.html", "explain.html", "recommendation.html", "runs/one/report.html"),
    *("runs/compare-one/compare.html", "runs/tune-one/tune.html"),
]


@pytest.mark.parametrize("name", WRITTEN)
def test_no_page_that_a_command_writes_runs_a_name(name: str, made: Path, browser: Any) -> None:
    file = made / name
    assert file.exists(), sorted(str(p.relative_to(made)) for p in made.rglob("*.html"))
    html = Watched(browser).see(file.as_uri())
    raw = file.read_text("utf-8")
    assert not any(name in raw for name in SCRIPTS)
    assert "window.hit=1" in html, "the names are shown"
    assert "{{7*7}}" in raw or "tune" in name, "and computed by nobody"


@contextmanager
def running(folder: Path, *words: str) -> Iterator[str]:
    """A server of the command line's, and the address it told."""
    command = [sys.executable, "-m", "unfreeze.cli.main", *words]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder, env=os.environ)
    assert server.stdout is not None
    try:
        for line in server.stdout:
            if match := re.search(r"http://\S+", line):
                yield match[0].rstrip(".,")
                break
        else:
            raise AssertionError("the server ended before it told its address")
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def walked(browser: Any, address: str) -> dict[str, str]:
    """The pages that links lead to, from one address on: path -> HTML."""
    watched, todo, seen = Watched(browser), [address], dict[str, str]()
    home = urlsplit(address)
    while todo and len(seen) < MOST:
        here = todo.pop(0)
        path = re.sub(r"\d+", "N", urlsplit(here).path) + ("?" if urlsplit(here).query else "")
        if path in seen:
            continue
        seen[path] = watched.see(here)
        for link in watched.page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href)"):
            parts = urlsplit(link)
            assert parts.scheme == "http" and parts.netloc == home.netloc, f"{here} leads to {link}"
            todo.append(link.partition("#")[0])
    watched.page.close()
    return seen


def test_the_studio_runs_no_name(made: Path, browser: Any) -> None:
    with running(made, "studio", "runs", "--data", f"{PHOTOS}/photos.csv", "--no-open") as address:
        seen = walked(browser, address)
    assert len(seen) > 12, sorted(seen)
    for part in ("/runs/one", "/data", "/runs/one/photos", "/runs/one/report"):
        assert any(path.startswith(part) for path in seen), (part, sorted(seen))
    assert sum("window.hit" in html for html in seen.values()) > 5


def test_the_review_page_runs_no_name(made: Path, browser: Any) -> None:
    with running(
        made, "review", "runs/one", "--no-open", "--corrections", str(made / "v.csv"), "--limit", "5"
    ) as address:
        watched = Watched(browser)
        html = watched.see(address)
        for key in ("ArrowRight", "1", "2", "3", "k", "x", "ArrowLeft"):
            watched.page.keyboard.press(key)
            watched.page.wait_for_timeout(60)
        assert watched.page.evaluate("window.hit") is None and not watched.deeds
        assert "window.hit" in html
        watched.page.close()


def test_the_served_page_runs_no_name(made: Path, browser: Any) -> None:
    photo = next(file for file in (made / PHOTOS).iterdir() if "onerror" in file.name)
    with running(made, "serve", "runs/one", "--port", "0") as address:
        watched = Watched(browser)
        watched.see(address)
        watched.page.set_input_files("input[type=file]", str(photo))
        watched.page.wait_for_function("document.body.innerText.includes('window.hit')", timeout=20_000)
        watched.page.wait_for_timeout(500)
        assert watched.page.evaluate("window.hit") is None and not watched.deeds
        root = address.split("?")[0].rstrip("/")
        assert watched.see(f"{root}/docs")
        watched.page.close()


def test_a_run_that_was_changed_by_hand_runs_nothing(made: Path, browser: Any, tmp_path: Path) -> None:
    """Scripts in every text of its files, also in those that nobody names by hand."""
    copy = Path(shutil.copytree(made / "runs" / "one", tmp_path / "run"))
    script = "</script><script>window.hit=1</script><img src=x onerror=window.hit=1>"

    def tainted(held: Any, key: str = "") -> Any:
        if isinstance(held, dict):
            return {name: tainted(value, name) for name, value in held.items()}
        if isinstance(held, list):
            return [tainted(value, key) for value in held]
        fixed = ("status", "classes", "class", "attributes", "label", "suggested", "path", "severity", "root", "check")
        return f"{held} {script}" if isinstance(held, str) and key not in fixed else held

    for name in ("run.json", "scores.json", "findings.json", "environment.json", "label_issues.json", "diagnosis.json"):
        file = copy / name
        file.write_text(json.dumps(tainted(json.loads(file.read_text()))))
    answer = run_cli("report", copy)
    assert answer.code in (0, 2) and "Traceback" not in answer.err, answer.err
    assert answer.code == 0, answer.err
    html = Watched(browser).see((copy / "report.html").as_uri())
    assert "window.hit" in html and script not in (copy / "report.html").read_text()
