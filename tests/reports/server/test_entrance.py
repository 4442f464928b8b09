"""How a browser gets into the local pages: once for each address, without a secret where others can read it."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from fastapi import APIRouter
from starlette.testclient import TestClient

from servedruns import served, until
from unfreeze.inference.in_memory import InMemoryPredictor
from unfreeze.server.access import AccessPolicy, opened, runtime_folder
from unfreeze.server.app import create_app

posix = pytest.mark.skipif(os.name != "posix", reason="rights of files")


def client_of(guard: AccessPolicy) -> TestClient:
    router = APIRouter()

    @router.get("/")
    def home() -> dict[str, str]:
        return {"page": "home"}

    app = create_app([router], guard)
    return TestClient(app, base_url=guard.base, follow_redirects=False)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "state"


def test_an_address_opens_the_pages_in_one_browser() -> None:
    guard = AccessPolicy("127.0.0.1", 8123)
    address = guard.address()
    first, second = client_of(guard), client_of(guard)
    assert first.head(address).status_code == 403, "a preview does not use it up"
    assert first.get(address).status_code == 303
    assert first.get("/").json() == {"page": "home"}
    again = second.get(address)
    assert again.status_code == 403 and "used already" in again.text and "\n" not in again.text.strip()
    assert second.get("/").status_code == 403
    assert first.get(address).status_code == 303, "a reload of it by the browser that is in"
    assert second.get(guard.address()).status_code == 303, "another address for another browser"
    assert second.get("/").json() == {"page": "home"}


@pytest.mark.parametrize("given", ["{token}", "{form_token}", "", "x", "%00", "a" * 5000])
def test_nothing_else_in_an_address_opens_them(given: str) -> None:
    guard = AccessPolicy("127.0.0.1", 8123)
    guard.ticket()
    text = given.format(token=guard.token, form_token=guard.form_token)
    answer = client_of(guard).get(f"/?token={text}")
    assert answer.status_code == 403 and "set-cookie" not in answer.headers


def test_a_used_address_is_followed_by_another_one() -> None:
    guard, told = AccessPolicy("127.0.0.1", 8123), list[str]()
    addresses = [guard.address_once(told.append)]
    for _ in range(3):
        assert client_of(guard).get(addresses[-1]).status_code == 303
        addresses.append(told[-1])
    assert len(told) == 3 and len(set(addresses)) == 4
    guard.ticket()
    assert len(told) == 3


def test_a_link_on_another_page_enters_by_a_page_of_ours() -> None:
    """Browsers do not send a strict cookie along a redirect that another page began."""
    guard = AccessPolicy("127.0.0.1", 8123)
    one = client_of(guard)
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    answer = one.get(guard.address(), headers=headers)
    assert answer.status_code == 200 and 'content="0; url=/"' in answer.text and "token" not in answer.text
    assert "samesite=strict" in answer.headers["set-cookie"].lower()
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert one.get("/").json() == {"page": "home"}


@posix
def test_the_browser_gets_a_file_that_is_the_users_alone(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard, asked = AccessPolicy("127.0.0.1", 8123), list[str]()
    monkeypatch.setattr(webbrowser, "open", asked.append)
    with opened(guard):
        until(lambda: asked)
        (url,) = asked
        assert url.startswith("file://") and "token" not in url and not any(t in url for t in guard._tickets)
        file = Path(url.removeprefix("file://"))
        assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        address = re.search(r"http://[^\"]+", file.read_text())
        assert address and client_of(guard).get(address[0]).status_code == 303
        assert not file.exists(), "it was used"
    with opened(guard):
        assert len(list(runtime_folder().iterdir())) == 1
    assert not list(runtime_folder().iterdir())
    until(lambda: len(asked) == 2)
    with opened(guard, wanted=False):
        assert not list(runtime_folder().iterdir())


@posix
def test_a_folder_that_is_not_ours_is_not_used(state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = list[str]()
    monkeypatch.setattr(webbrowser, "open", asked.append)
    (state / "unfreeze").mkdir(parents=True)
    (state / "unfreeze" / "runtime").symlink_to(tmp_path)
    with opened(AccessPolicy("127.0.0.1", 8123)):
        assert not list(tmp_path.glob("open-*"))
    (state / "unfreeze" / "runtime").unlink()
    (state / "unfreeze" / "runtime").mkdir(mode=0o777)
    (state / "unfreeze" / "runtime").chmod(0o777)
    assert stat.S_IMODE(runtime_folder().stat().st_mode) == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with opened(AccessPolicy("127.0.0.1", 8123)):
        assert not list((state / "unfreeze" / "runtime").iterdir())
    assert not asked


@pytest.fixture
def studio(tmp_path: Path, state: Path) -> Iterator[subprocess.Popen[str]]:
    """A studio that opens a `browser` which stays."""
    browser = tmp_path / "browser"
    browser.write_text("#!/bin/sh\nsleep 60\n")
    browser.chmod(0o755)
    environment = {**os.environ, "BROWSER": f"{browser} %s", "XDG_STATE_HOME": str(state)}
    command = [sys.executable, "-u", "-m", "unfreeze.cli.main", "studio", str(tmp_path / "runs")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    yield process
    for one in psutil.Process(process.pid).children(recursive=True):
        one.kill()
    process.kill()


@posix
def test_no_process_shows_what_opens_the_pages(studio: subprocess.Popen[str]) -> None:
    assert studio.stdout is not None
    printed = next(m[0] for line in studio.stdout if (m := re.search(r"http://\S+", line)))
    until(lambda: psutil.Process(studio.pid).children(recursive=True))
    shown = [" ".join(one.cmdline()) for one in psutil.Process(studio.pid).children(recursive=True)]
    assert any("file://" in line for line in shown) and not any("token=" in line or "http://" in line for line in shown)
    with httpx2.Client() as one, httpx2.Client() as other:
        assert one.get(printed).status_code == 303
        assert one.get(printed.partition("?")[0]).status_code == 200
        assert other.get(printed).status_code == 403
        studio.stdout.readline()
        line = studio.stdout.readline()
        assert line.startswith("For another browser: http://"), line
        assert other.get(line.split()[-1]).status_code == 303


def test_the_file_leads_a_real_browser_into_the_page(state: Path, browser: Any, direct: InMemoryPredictor) -> None:
    """From a page of another origin, where strict cookies do not follow redirects."""
    with served(direct, token="a-token-of-a-test") as here:
        from unfreeze.server.access import _written

        guard = here.guard
        file = _written(guard.address())
        page = browser.new_page()
        page.goto(file.as_uri())
        page.wait_for_url(f"{guard.base}/")
        assert page.title() and "token" not in page.url
        assert page.evaluate("document.referrer") in ("", f"{guard.base}/")
        page.close()
