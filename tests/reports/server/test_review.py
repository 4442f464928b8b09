"""The review page: who may talk to it, what it answers, and a person's keys and clicks in a real browser."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from unfreeze.core.corrections import read_corrections
from unfreeze.core.runs import Run
from unfreeze.server import review
from unfreeze.server.access import MAX_BODY, AccessPolicy
from unfreeze.server.app import create_app
from unfreeze.server.review import open_deck
from wronglabels import WRONG, wrong_run, wrong_set

GUARD = AccessPolicy("127.0.0.1", 8123)
HOME = "http://127.0.0.1:8123"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with three wrong labels. Not to be changed, but for label_issues.json."""
    table, _ = wrong_set(tmp_path_factory.mktemp("wrong") / "photos")
    return wrong_run(table, tmp_path_factory.mktemp("runs") / "colours")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "corrections.csv"


@pytest.fixture
def stranger(run: Run, file: Path) -> TestClient:
    """A client without the token."""
    deck = open_deck(run, file, limit=5)
    return TestClient(create_app([review.page(deck, GUARD)], GUARD), base_url=HOME, follow_redirects=False)


@pytest.fixture
def client(stranger: TestClient) -> TestClient:
    """One who opened the printed address."""
    answer = stranger.get(f"/?token={GUARD.ticket()}")
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    stranger.headers["X-Unfreeze-Token"] = GUARD.form_token
    return stranger


def deck_of(client: TestClient) -> dict[str, Any]:
    import html
    import json

    page = client.get("/").text
    return json.loads(html.unescape(re.search(r'id="deck"[^>]*>(.*?)</script>', page, re.S)[1]))  # type: ignore[index]


def test_the_token_becomes_a_strict_cookie_that_scripts_cannot_read(stranger: TestClient) -> None:
    answer = stranger.get(f"/?token={GUARD.ticket()}")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and GUARD.cookie in cookie
    assert stranger.get("/").status_code == 200
    address = GUARD.address()
    assert re.fullmatch(rf"{HOME}/\?token=[\w-]{{43}}", address)
    assert GUARD.token not in repr(GUARD) + address and address[-43:] not in repr(GUARD)


@pytest.mark.parametrize("path", ["/", "/?token=", "/?token=x", "/photos/0/large.jpg", "/static/review.js", "/nothing"])
def test_nothing_without_the_token(stranger: TestClient, path: str) -> None:
    answer = stranger.get(path)
    assert answer.status_code == 403 and "token is missing" in answer.text
    stranger.cookies.set(GUARD.cookie, "wrong")
    assert stranger.get(path).status_code == 403


@pytest.mark.parametrize(
    "host", ["evil.example:8123", "127.0.0.1:9", "127.0.0.1", "localhost.evil.example:8123", "", "["]
)
def test_unknown_hosts_are_refused(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 421
    assert client.get("/", headers={"Host": "localhost:8123"}).status_code in (200, 403)  # known; its cookie is another


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"X-Unfreeze-Token": ""},
        {"X-Unfreeze-Token": GUARD.token},
    ],
)
def test_other_pages_cannot_judge(client: TestClient, file: Path, headers: dict[str, str]) -> None:
    card = deck_of(client)["cards"][0]
    answer = client.post("/corrections", json={"id": card["id"], "action": "exclude"}, headers=headers)
    assert answer.status_code == 403 and not file.exists()


def test_large_requests_are_refused(client: TestClient, file: Path) -> None:
    assert client.post("/corrections", content=b"x" * (MAX_BODY + 1)).status_code == 413
    assert not file.exists()


@pytest.mark.parametrize(
    ("host", "header", "known"),
    [
        ("0.0.0.0", "192.168.1.7:1", True),
        ("0.0.0.0", "evil.example:1", False),
        ("192.168.1.7", "192.168.1.7:1", True),
        ("192.168.1.7", "10.0.0.1:1", False),
        ("::1", "[::1]:1", True),
        ("127.0.0.1", "127.0.0.2:1", False),
    ],
)
def test_hosts_by_where_it_listens(host: str, header: str, known: bool) -> None:
    assert AccessPolicy(host, 1).knows_host(header) is known


def test_a_correction_is_on_the_disk_when_it_is_answered(client: TestClient, run: Run, file: Path) -> None:
    first, second, *_ = deck_of(client)["cards"]
    hashes = run.photos()["hash"]
    answer = client.post("/corrections", json={"id": first["id"], "action": "relabel", "label": first["suggested"]})
    assert answer.json()["done"] == 1 and answer.json()["counts"] == {"relabel": 1}
    (said,), _ = read_corrections(file, run.classes)
    assert (said.path, said.hash, said.label) == (first["path"], hashes[first["id"]], first["suggested"])
    client.post("/corrections", json={"id": second["id"], "action": "exclude"})
    undone = client.post("/corrections/undo", json={}).json()
    assert undone["id"] == second["id"] and undone["done"] == 1
    assert len(read_corrections(file)[0]) == 1
    assert client.post("/corrections/undo", json={}).json()["id"] == first["id"]
    assert client.post("/corrections/undo", json={}).json()["id"] is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"id": 10**6, "action": "keep"}, 422),
        ({"id": -1, "action": "keep"}, 422),
        ({"id": "../../etc/passwd", "action": "keep"}, 422),
        ({"id": 0, "action": "burn"}, 422),
        ({"action": "keep"}, 422),
        ({"id": 0, "action": "keep", "path": "x"}, 422),
    ],
)
def test_nonsense_is_refused(client: TestClient, file: Path, body: dict[str, Any], code: int) -> None:
    assert client.post("/corrections", json=body).status_code == code and not file.exists()


def test_an_unknown_class_and_a_full_disk_are_said(client: TestClient, file: Path) -> None:
    card = deck_of(client)["cards"][0]
    wrong = client.post("/corrections", json={"id": card["id"], "action": "relabel", "label": "mauve"})
    assert wrong.status_code == 422 and "'mauve' is no class" in wrong.json()["error"]
    file.mkdir()
    answer = client.post("/corrections", json={"id": card["id"], "action": "keep"})
    assert answer.status_code == 500 and answer.json()["error"].startswith("Not saved: ")


def test_photos_are_sent_small_upright_and_only_by_number(client: TestClient, run: Run) -> None:
    answer = client.get("/photos/0/large.jpg")
    assert answer.headers["content-type"] == "image/jpeg" and Image.open(io.BytesIO(answer.content)).size == (48, 64)
    for path in (
        "/photos/0/huge.jpg",
        "/photos/-1/large.jpg",
        "/photos/999/large.jpg",
        "/photos/..%2f..%2fx/large.jpg",
    ):
        assert client.get(path).status_code in (404, 422)
    assert client.get("/static/..%2f..%2fdeck.py").status_code == 404


def test_a_photo_taken_sideways_is_shown_upright(tmp_path: Path) -> None:
    from unfreeze.core.errors import PhotoError
    from unfreeze.reports.thumbnails import scaled_jpeg

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (3000, 2000)).save(tmp_path / "a.jpg", exif=exif)
    assert Image.open(io.BytesIO(scaled_jpeg(tmp_path / "a.jpg", 900))).size == (600, 900)
    (tmp_path / "b.jpg").write_bytes(b"no photo")
    for name, why in (("b.jpg", "not an image"), ("c.jpg", "no such file")):
        with pytest.raises(PhotoError, match=why):
            scaled_jpeg(tmp_path / name, 900)


def test_nothing_is_loaded_from_elsewhere_and_names_are_escaped(run: Run, file: Path) -> None:
    deck = open_deck(run, file, limit=3)
    deck.cards[0]["reason"] = "</script><script>alert(1)</script>"
    deck.cards[0]["path"] = '"><img src=x onerror=alert(1)>.jpg'
    client = TestClient(create_app([review.page(deck, GUARD)], GUARD), base_url=HOME)
    page = client.get(f"/?token={GUARD.ticket()}")
    assert "<script>alert" not in page.text and "<img src=x" not in page.text
    assert not re.findall(r"""(?:src|href)=["'](?!/|#)""", page.text)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert page.headers["cache-control"] == "no-store" and GUARD.token not in page.text


def test_the_empty_state_says_what_to_do(run: Run, file: Path) -> None:
    deck = open_deck(run, file)
    deck.cards.clear()
    client = TestClient(create_app([review.page(deck, GUARD)], GUARD), base_url=HOME)
    page = client.get(f"/?token={GUARD.ticket()}").text
    assert "Nothing to judge." in page and f"unfreeze scores {run.path}" in page


def test_earlier_corrections_are_loaded_and_the_planted_come_first(client: TestClient, run: Run, file: Path) -> None:
    cards = deck_of(client)["cards"]
    assert {card["path"] for card in cards[:3]} == set(WRONG)
    client.post("/corrections", json={"id": cards[1]["id"], "action": "keep"})
    again = open_deck(run, file, limit=5)
    assert again.state()["done"] == 1 and list(again.corrections) == [cards[1]["id"]]


# In a browser


def serve(run: Run, file: Path) -> tuple[subprocess.Popen[str], str]:
    command = [
        sys.executable,
        "-m",
        "unfreeze.cli.main",
        "review",
        str(run.path),
        "--no-open",
        "--corrections",
        str(file),
    ]
    server = subprocess.Popen([*command, "--limit", "3"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    for line in server.stdout:
        if match := re.search(r"http://\S+", line):
            return server, match[0]
    raise AssertionError("the server ended before it told its address")


def test_a_person_judges_and_a_kill_loses_nothing(run: Run, file: Path, browser: Any) -> None:
    server, address = serve(run, file)
    try:
        page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme="dark")
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda told: faults.append(told.text) if told.type == "error" else None)
        page.goto(address)
        progress = page.locator("#progress-text")
        assert page.url.endswith("/") and "token" not in page.url
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
            "nothing to scroll sideways at 360 px"
        )
        page.keyboard.press("r")
        progress.filter(has_text="1 of 3").wait_for()
        page.locator("#keep").click()
        progress.filter(has_text="2 of 3").wait_for()
        page.keyboard.press("x")
        page.locator("#done-title").filter(has_text="All 3 are judged.").wait_for()
        page.keyboard.press("u")
        progress.filter(has_text="2 of 3").wait_for()
        assert page.locator("#place").inner_text() == "Suspect 3 of 3"
        page.keyboard.press("j")
        page.locator("#done-title").filter(has_text="1 of 3 are not judged yet").wait_for()
        page.keyboard.press("ArrowLeft")
        other = page.locator("#digits button:not([disabled])").first
        page.keyboard.press(other.locator("kbd").inner_text())
        progress.filter(has_text="3 of 3").wait_for()
        page.keyboard.press("p")
        page.wait_for_function("document.getElementById('photo').naturalWidth > 0")
        assert not faults
        os.kill(server.pid, signal.SIGKILL)
        server.wait(10)
        page.keyboard.press("k")
        page.locator("#problem").filter(has_text="Not saved").wait_for()
        assert page.locator("#place").inner_text() == "Suspect 3 of 3", "no moving on from what is not saved"
    finally:
        server.kill()
    kept, findings = read_corrections(file, run.classes)
    assert [v.action for v in kept] == ["relabel", "keep", "relabel"] and not findings
    server, address = serve(run, file)
    try:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        page.locator("#done-title").filter(has_text="All 3 are judged.").wait_for()
        assert "2 relabeled, 0 excluded, 1 kept." in page.locator("#done").inner_text()
        assert "--corrections" in page.locator("#done code").last.inner_text()
        page.locator("#back").click()
        page.locator("#keys-on").uncheck()
        page.locator("body").press("k")
        assert page.locator("#correction").inner_text().startswith("relabeled"), "shortcuts can be turned off"
        page.locator("#exclude").focus()
        page.keyboard.press("Enter")
        page.locator("#place").filter(has_text="Suspect 2 of 3").wait_for()
        server.send_signal(signal.SIGINT)
        told, _ = server.communicate(timeout=20)
        assert server.returncode == 0 and "3 correction(s)" in told and "Next: unfreeze fit" in told
        assert {v.action for v in read_corrections(file)[0]} == {"exclude", "keep", "relabel"}
    finally:
        server.kill()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_at_least_that_of_wcag_aa(run: Run, file: Path, browser: Any, scheme: str) -> None:
    server, address = serve(run, file)
    try:
        page = browser.new_page(viewport={"width": 1600, "height": 900}, color_scheme=scheme)
        page.goto(address)
        page.locator("#card").wait_for()
        low = page.evaluate(CONTRAST)
        assert low == []
    finally:
        server.kill()


CONTRAST = """() => {
  const linear = (x) => x <= .04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  const light = (c) => { const v = c.map((x) => linear(x / 255));
    return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
  const parse = (s) => (s.match(/[\\d.]+/g) || []).map(Number);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
  const low = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    const box = e.getBoundingClientRect();
    if (!own || !box.width || e.closest(".hidden, .skip, script, noscript, :disabled")) continue;
    const s = getComputedStyle(e), back = behind(e), alpha = Number(s.opacity);
    const ink = parse(s.color).slice(0, 3).map((x, i) => x * alpha + back[i] * (1 - alpha));
    const [a, b] = [light(ink), light(back)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(`${e.tagName} ${e.textContent.trim().slice(0, 20)}`);
  }
  return low;
}"""
