"""The page of a served run in a real browser: a photo goes in, its class comes out, on any screen."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_review import CONTRAST

from servedruns import Here, picture, served
from unfreeze.inference.in_memory import InMemoryPredictor
from unfreeze.server.serve.limits import Limits

TOKEN = "a-token-of-a-test"
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 740}
# A file let fall on the page, as a hand would do it.
DROP = """([name, data]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0)), carried = new DataTransfer();
  carried.items.add(new File([bytes], name, { type: "image/jpeg" }));
  for (const kind of ["dragenter", "dragover", "drop"])
    document.getElementById("drop").dispatchEvent(
      new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true }));
}"""
UNNAMED = """[...document.querySelectorAll("a, button, input")].filter(
  (e) => e.offsetParent && !(e.innerText || e.ariaLabel || e.labels?.length)).length"""
SIDEWAYS = "document.documentElement.scrollWidth > innerWidth"


@pytest.fixture(scope="module")
def guarded(direct: InMemoryPredictor) -> Iterator[Here]:
    """A server that wants a token."""
    with served(direct, Limits(body_mb=2), token=TOKEN) as one:
        yield one


def opened(
    browser: Any, guarded: Here, size: dict[str, int] = WIDE, scheme: str = "light", path: str = ""
) -> tuple[Any, list[str]]:
    """The page, entered by the address that the terminal shows; and what its console complains of."""
    page, faults = browser.new_page(viewport=size, color_scheme=scheme), list[str]()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda told: faults.append(told.text) if told.type == "error" else None)
    page.goto(f"http://127.0.0.1:{guarded.port}/?token={TOKEN}")
    assert "token" not in page.url
    if path:
        page.goto(f"http://127.0.0.1:{guarded.port}{path}")
    return page, faults


def drop(page: Any, name: str, data: bytes) -> None:
    page.evaluate(DROP, [name, base64.b64encode(data).decode()])


def test_a_photo_that_is_dropped_is_predicted(
    browser: Any, guarded: Here, direct: InMemoryPredictor, photo: bytes, probe_photos: Path
) -> None:
    truth = direct.probabilities([direct.prepare(photo)])[0]  # before the server, which alone may ask it then
    page, faults = opened(browser, guarded)
    assert page.locator("#answer").inner_text() == "No photo yet."
    assert "It knows 3 classes and is right in" in page.locator("#meaning").inner_text()
    drop(page, "first.jpg", photo)
    page.locator("#answer", has_text="red, ").wait_for()
    assert page.locator("#answer").inner_text() == f"red, {100 * truth.max():.0f}%"
    assert re.search(r"were correct|no out-of-fold prediction", page.locator("#meaning").inner_text())
    assert page.locator("#bars th").all_inner_texts() == [direct.classes[i] for i in (-truth).argsort()]
    assert page.locator("#caption").inner_text() == "first.jpg" and page.locator("#canvas").is_visible()
    assert page.locator("#said").inner_text().startswith("red, "), "told to those who do not see it"
    drop(page, "second.jpg", (probe_photos / "blue" / "g200_0.jpg").read_bytes())
    page.locator("#answer", has_text="blue, ").wait_for()
    assert not faults


def test_what_is_no_photo_is_reported_and_the_next_one_works(browser: Any, guarded: Here, photo: bytes) -> None:
    page, faults = opened(browser, guarded)
    problem = page.locator("#problem")
    drop(page, "<b>notes.jpg", b"no photo")
    problem.filter(has_text="<b>notes.jpg: not an image").wait_for()
    assert page.locator("#answer").inner_text() == "No prediction."
    drop(page, "large.jpg", bytes(2_100_000))
    problem.filter(has_text="larger than the server takes").wait_for()
    drop(page, "huge.png", picture((8000, 8000), "PNG"))
    problem.filter(has_text="more than the limit").wait_for()
    faults.clear()  # the browser itself notes an answer of 4xx
    drop(page, "a.jpg", photo)
    page.locator("#answer", has_text="red, ").wait_for()
    assert problem.is_hidden() and not faults


def test_by_keyboard_alone(browser: Any, guarded: Here, probe_photos: Path) -> None:
    page, faults = opened(browser, guarded)
    page.on("filechooser", lambda _: None)  # reported from now on: asked for at the key, it may be too late
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file", "the next stop behind the skip"
    with page.expect_file_chooser() as asked:
        page.keyboard.press("Space")
    asked.value.set_files(probe_photos / "green" / "g100_0.jpg")
    page.locator("#answer", has_text="green, ").wait_for()
    assert page.evaluate("getComputedStyle(document.querySelector('#file + span')).outlineStyle") == "solid"
    assert not faults


def test_every_screen(browser: Any, guarded: Here, photo: bytes) -> None:
    for size, scheme in ((NARROW, "dark"), (NARROW, "light"), (WIDE, "dark"), (WIDE, "light")):
        for path in ("", "/docs"):
            page, faults = opened(browser, guarded, size, scheme, path)
            where = f"{path or '/'} at {size['width']} px, {scheme}"
            for _ in range(2 if not path else 1):
                assert not page.evaluate(SIDEWAYS), where
                assert page.evaluate(CONTRAST) == [], where
                assert not page.evaluate(UNNAMED), f"{where}: something to press has no name"
                if not path:
                    drop(page, "a_name_that_is_longer_than_the_screen_is_wide_" * 3 + ".jpg", photo)
                    page.locator("#answer", has_text="red, ").wait_for()
            assert not faults, where
            page.close()


def test_the_page_says_when_the_server_is_gone(browser: Any, direct: InMemoryPredictor, photo: bytes) -> None:
    with served(direct, token=TOKEN) as here:
        page, _ = opened(browser, here)
    drop(page, "a.jpg", photo)
    page.locator("#problem", has_text="The server does not answer").wait_for()
