"""The studio's pages: what they show, whom they answer, and what no address can reach."""

from __future__ import annotations

import io
import json
import re
import shutil
import socket
import threading
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from starlette.testclient import TestClient
from test_studio_jobs import until

from photosets import class_folders, table
from unfreeze.core.errors import PhotoError, RunError, SourceError
from unfreeze.core.runs import Run, open_run
from unfreeze.reports.run_report import write_report
from unfreeze.server.access import MAX_BODY, AccessPolicy
from unfreeze.server.studio.app import studio_app
from unfreeze.server.studio.jobs import Jobs
from unfreeze.server.studio.library import Library, inside
from unfreeze.server.studio.predict_pages import MOST_BYTES, MOST_PHOTOS, MOST_UPLOAD, UPLOADS, UploadError, unpacked

GUARD = AccessPolicy("127.0.0.1", 8123, uploads=UPLOADS)
HOME = "http://127.0.0.1:8123"
EVIL = "<img src=x onerror=alert(1)>"


def open_studio(folder: Path, *data: Path, entered: bool = True) -> TestClient:
    """A client of a studio over `folder`, the token already a cookie if `entered`."""
    library = Library(folder, data)
    app = studio_app(library, Jobs(library.own / "jobs"), GUARD)
    client = TestClient(app, base_url=HOME, follow_redirects=False)
    if entered:
        assert client.get(f"/?token={GUARD.ticket()}").status_code == 303
    return client


@pytest.fixture(scope="module")
def runs(probe_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run `colours`, its copy `again`, an interrupted one and a damaged one. Not to be changed."""
    folder = tmp_path_factory.mktemp("studio") / "runs"
    shutil.copytree(probe_run.path, folder / "colours")
    shutil.copytree(probe_run.path, folder / "again")
    write_report(folder / "colours")
    (folder / "open").mkdir()
    info = json.loads((probe_run.path / "run.json").read_text()) | {"status": "running", "strategy": "full"}
    (folder / "open" / "run.json").write_text(json.dumps(info))
    rows = [{"fold": f, "epoch": e, "train_loss": 1 / (e + f), "valid_macro_f1": 0.5} for f in (0, 1) for e in (1, 2)]
    (folder / "open" / "log.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"cut')
    (folder / "damaged").mkdir()
    (folder / "damaged" / "run.json").write_text("[")
    return folder


@pytest.fixture(scope="module")
def client(runs: Path) -> TestClient:
    return open_studio(runs)


def key_of(client: TestClient) -> str:
    found = re.search(r'href="/data/([0-9a-f]{10})"', client.get("/data").text)
    assert found
    return found[1]


def test_the_empty_state_says_which_command_and_writes_nothing(tmp_path: Path) -> None:
    client = open_studio(tmp_path / "none")
    page = client.get("/").text
    assert f"unfreeze studio {tmp_path / 'none'} --data PHOTOS" in page and "unfreeze demo" in page
    assert "no run in this folder" in client.get("/runs").text and "No job yet" in client.get("/jobs").text
    assert "no photos to work on" in client.get("/jobs/new").text
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        Library(tmp_path / "file")
    with pytest.raises(SourceError, match="no such folder or table"):
        Library(tmp_path, [tmp_path / "gone"])


@pytest.mark.parametrize("path", ["/", "/runs", "/runs/colours", "/runs/colours/review/", "/static/htmx.min.js", "/x"])
def test_nothing_without_the_token(runs: Path, path: str) -> None:
    answer = open_studio(runs, entered=False).get(path)
    assert answer.status_code == 403 and "token is missing" in answer.text


@pytest.mark.parametrize("path", ["/jobs", "/jobs/0/stop", "/jobs/0/resume", "/runs/colours/predict"])
@pytest.mark.parametrize("headers", [{}, {"X-Unfreeze-Token": "x"}, {"Origin": "http://evil.example"}])
def test_other_pages_can_start_and_send_nothing(client: TestClient, path: str, headers: dict[str, str]) -> None:
    assert client.post(path, content=b"kind=check", headers=headers).status_code == 403


def test_large_bodies_are_refused_but_for_photos(client: TestClient) -> None:
    headers = {"X-Unfreeze-Token": GUARD.form_token}
    assert client.post("/jobs", content=b"x" * (MAX_BODY + 1), headers=headers).status_code == 413
    assert client.post("/runs/colours/predict", content=b"x" * (MAX_BODY + 1), headers=headers).status_code == 422
    for path in ("/runs/colours/predict", "/runs/a/b/predict"):
        long = {**headers, "Content-Length": str(MOST_UPLOAD + 1)}
        assert client.post(path, content=b"", headers=long).status_code == 413


def test_the_policy_is_strict_and_nothing_is_loaded_from_elsewhere(client: TestClient) -> None:
    for path in ("/", "/runs", "/runs/colours", "/jobs/new", f"/data/{key_of(client)}", "/nothing"):
        page = client.get(path)
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "sandbox" not in policy
        assert not re.findall(r"""(?:src|href|action)=["'](?!/|#)""", page.text), path
        assert not re.findall(r"<[^>]+ (?:style|on\w+)=", page.text), f"{path}: the policy would block this"
        assert GUARD.token not in page.text


def test_a_report_is_shown_apart_from_the_studio(client: TestClient) -> None:
    page = client.get("/runs/colours/report")
    policy = page.headers["content-security-policy"]
    assert page.status_code == 200 and policy.startswith("sandbox allow-scripts; default-src 'none'")
    (own,) = re.findall(r"script-src 'sha256-[^']+'", page.text)
    assert own in policy, "the report's own script runs, and no other"
    assert client.get("/runs/again/report").status_code == 404


def test_every_run_is_listed_with_what_became_of_it(client: TestClient) -> None:
    page = client.get("/runs").text
    states = dict(re.findall(r'<a href="/runs/(\w+)">.*?<span class="state (\w+)">', page, re.S))
    assert states == {"colours": "finished", "again": "finished", "open": "interrupted", "damaged": "unreadable"}
    assert page.count('type="checkbox"') == 2, "only finished runs can be compared"


@pytest.mark.parametrize(
    ("sort", "down", "first"), [("name", 0, "again"), ("name", 1, "open"), ("status", 1, "damaged")]
)
def test_the_list_sorts_also_as_a_piece(client: TestClient, sort: str, down: int, first: str) -> None:
    piece = client.get(f"/runs?sort={sort}&down={down}", headers={"HX-Request": "true"}).text
    assert "<html" not in piece and re.findall(r'<th scope="row"><a href="/runs/(\w+)"', piece)[0] == first
    order = "descending" if down else "ascending"
    assert re.search(rf'aria-sort="{order}"><a href="/runs\?sort={sort}&amp;down={1 - down}"', piece)


def test_runs_without_a_score_come_last_both_ways(client: TestClient) -> None:
    for down in (0, 1):
        names = re.findall(
            r'<th scope="row"><a href="/runs/(\w+)"', client.get(f"/runs?sort=macro_f1&down={down}").text
        )
        assert set(names[:2]) == {"colours", "again"}


def test_a_count_of_the_matrix_leads_to_just_those_photos(client: TestClient, probe_run: Run) -> None:
    page = client.get("/runs/colours").text
    cells = re.findall(r'href="(/runs/colours/photos\?true=(\d)&amp;said=(\d))"[^>]*>(\d+)', page)
    oof = probe_run.predictions()
    classes = probe_run.classes
    said = oof[[f"p_{c}" for c in classes]].to_numpy().argmax(1)
    assert sum(int(count) for *_, count in cells) == len(oof)
    for href, true, called, count in cells:
        photos = client.get(href.replace("&amp;", "&")).text
        paths = set(re.findall(r'<p class="path">([^<]+)</p></li>', photos))
        right = oof["path"][(oof["label"] == classes[int(true)]) & (said == int(called))]
        assert paths == set(right) and len(paths) == int(count)


def test_photos_of_a_run_are_those_of_their_number(client: TestClient, probe_run: Run) -> None:
    root = Path(probe_run.info["root"])
    for row in (0, 5):
        sent = Image.open(io.BytesIO(client.get(f"/runs/colours/photo/{row}/large.jpg").content))
        own = Image.open(root / probe_run.photos()["path"][row])
        assert sent.size == own.size
        mine, theirs = (np.asarray(one.resize((1, 1))).astype(int) for one in (sent, own))
        assert np.abs(mine - theirs).max() < 12


@pytest.mark.parametrize(
    "path",
    [
        "/runs/../photos",
        "/runs/..%2f..%2fetc",
        "/runs/%2e%2e",
        "/runs//etc/passwd",
        "/runs/colours%2f..%2fagain",
        "/runs/.studio",
        "/runs/gone",
        "/runs/gone/report",
        "/runs/gone/review/",
        "/runs/..%2fcolours/review/",
        "/runs/colours/photo/-1/small.jpg",
        "/runs/colours/photo/9999/small.jpg",
        "/runs/colours/photo/0/huge.jpg",
        "/runs/colours/photo/..%2f..%2fx/small.jpg",
        "/runs/colours/predict/x/0.jpg",
        "/data/0123456789",
        "/data/..%2f..",
        "/data/%2fetc%2fpasswd/photos",
        "/jobs/..%2f..%2fx",
        "/jobs/000000000000/page",
        "/static/..%2fstudio.py",
        "/static/%2fetc%2fpasswd",
    ],
)
def test_no_address_leads_out(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (404, 422), answer.status_code
    assert "root:" not in answer.text and "Traceback" not in answer.text


def test_a_photo_is_inside_its_folder_or_refused(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (root / "fine.jpg").write_bytes(b"x")
    (root / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "up").symlink_to(tmp_path)
    (root / "round").symlink_to(root / "round")
    assert inside(root, "fine.jpg") == (root / "fine.jpg").resolve()
    for path in ("../secret.jpg", str(tmp_path / "secret.jpg"), "out.jpg", "up/secret.jpg", "", ".", "\0", "a/../../x"):
        with pytest.raises(PhotoError):
            inside(root, path)
    with pytest.raises(PhotoError):
        inside(root, "round/x.jpg")
    assert inside(root, "out.jpg", [tmp_path]) == (tmp_path / "secret.jpg").resolve(), "if that folder was given too"


@pytest.mark.parametrize("root", ["/", "kept"])
def test_a_run_of_somebody_else_shows_no_images_of_this_machine(probe_run: Run, tmp_path: Path, root: str) -> None:
    """Its run.json may name any data folder; only a signed one is shown, or one that --data gives."""
    run = tmp_path / "runs" / "received"
    shutil.copytree(probe_run.path, run)
    info = json.loads((run / "run.json").read_text())
    own = Library(run.parent)
    data, path = Path(info["root"]), str(own.material("received").photos["path"][0])
    assert own.scaled(data, path, 240) and own.sources()
    info |= {"root": "/"} if root == "/" else {"signature": "0" * 64}
    (run / "run.json").write_text(json.dumps(info))
    received = Library(run.parent)
    assert not received.sources()
    with pytest.raises(PhotoError, match="outside of the data folder"):
        received.scaled(data, path, 240)
    with pytest.raises(PhotoError, match="outside of the data folder"):
        received.scaled(Path("/"), str(data / path).lstrip("/"), 240)
    given = Library(run.parent, [data])
    assert given.scaled(data, path, 240)


def test_a_run_whose_paths_lead_outside_is_damaged(probe_run: Run, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "received"
    shutil.copytree(probe_run.path, run)
    photos = pd.read_parquet(run / "photos.parquet")
    for path in ("/etc/secret.jpg", "../secret.jpg", "a/../../secret.jpg", ".."):
        photos.assign(path=[path, *photos["path"][1:]]).to_parquet(run / "photos.parquet")
        with pytest.raises(RunError, match="lead outside"):
            open_run(run).photos()


def test_links_out_of_the_runs_folder_are_no_runs(runs: Path, probe_run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "link").symlink_to(probe_run.path)
    (tmp_path / "runs" / "half").mkdir()
    (tmp_path / "runs" / "half" / "run.json").symlink_to(probe_run.path / "run.json")
    client = open_studio(tmp_path / "runs")
    assert client.get("/runs/link").status_code == 404 and client.get("/runs/half").status_code == 404
    assert "no run in this folder" in client.get("/runs").text


def test_a_run_that_names_photos_elsewhere_shows_none_of_them(probe_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "odd"
    shutil.copytree(probe_run.path, folder)
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    photos = probe_run.photos()
    old = str(photos.loc[0, "path"])
    photos.loc[0, "path"] = str(tmp_path / "private.png")
    photos.to_parquet(folder / "photos.parquet")
    oof = probe_run.predictions()
    oof["path"] = oof["path"].replace(old, str(tmp_path / "private.png"))
    oof.to_parquet(folder / "oof.parquet")
    answer = open_studio(tmp_path / "runs").get("/runs/odd/photo/0/small.jpg")
    assert answer.status_code == 422 and "outside of the data folder" in answer.text


def test_names_are_escaped_wherever_they_stand(tmp_path: Path) -> None:
    photos = class_folders(tmp_path / "photos", groups=2, classes=(EVIL.replace("/", ""), "<script>", "blue"))
    (photos / "blue" / "g200_0.jpg").rename(photos / "blue" / f"{EVIL}.jpg")
    client = open_studio(tmp_path / "runs", photos)
    key = key_of(client)
    for path in ("/", "/data", f"/data/{key}", f"/data/{key}/photos", f"/data/{key}/photos?group={EVIL}", f"/x{EVIL}"):
        page = client.get(path).text
        assert EVIL not in page and "<script>blue" not in page and "<script></" not in page, path
    assert "&lt;img src=x onerror=alert(1)&gt;" in client.get(f"/data/{key}/photos").text


def test_photos_by_class_group_and_finding(client: TestClient, probe_run: Run, tmp_path: Path) -> None:
    plants = table(tmp_path / "plants")
    unread = open_studio(tmp_path / "runs", plants)
    assert "cannot be read as they are" in unread.get(f"/data/{key_of(unread)}").text, "no column is called label"
    plants.write_text(plants.read_text().replace("colour,plant", "label,group", 1))
    given = open_studio(tmp_path / "runs", plants)
    key = key_of(given)
    page = given.get(f"/data/{key}").text
    assert "have not been checked" in page and "36 photos of 3 classes in 18 groups" in page
    one = given.get(f"/data/{key}/photos?group=red0").text
    assert "2 photos of the group “red0”." in one and one.count('class="tile"') == 2
    assert "12 photos of the class" in given.get(f"/data/{key}/photos?label=1").text
    known = client.get(f"/data/{key_of(client)}").text
    assert "24 photos of 3 classes in 12 groups" in known, "photos that a run is of are known, and read as it read them"
    assert "The checks" in known
    assert given.get(f"/data/{key}/photos?label=77").status_code == 422
    assert given.get(f"/data/{key}/photo/3/small.jpg").headers["cache-control"] == "private, max-age=600"


def test_a_group_is_found_in_any_unicode_form(tmp_path: Path) -> None:
    plants, rose = table(tmp_path / "plants"), unicodedata.normalize("NFD", "장미")
    text = (
        plants.read_text()
        .replace("colour,plant", "label,group", 1)
        .replace(",red0", ",장미")
        .replace(",red1", f",{rose}")
    )
    plants.write_text(text)
    client = open_studio(tmp_path / "runs", plants)
    for name in ("장미", rose):
        assert "4 photos of the group" in client.get(f"/data/{key_of(client)}/photos", params={"group": name}).text


def test_pages_of_photos_cover_all_of_them_once(tmp_path: Path) -> None:
    client = open_studio(tmp_path / "runs", class_folders(tmp_path / "photos", groups=13))
    key, seen = key_of(client), []
    address = f"/data/{key}/photos"
    while address:
        page = client.get(address).text
        assert all(
            'loading="lazy"' in tag and "width=" in tag and "height=" in tag for tag in re.findall(r"<img [^>]+>", page)
        )
        seen += re.findall(r'<p class="path">([^<]+)</p></li>', page)
        following = re.search(r'<a href="([^"]+)" rel="next"', page)
        address = following[1] if following else ""
    assert len(seen) == len(set(seen)) == 78
    assert "61–78 of 78" in client.get(f"/data/{key}/photos?page=99").text


def test_an_unfinished_run_shows_its_curves(client: TestClient) -> None:
    page = client.get("/runs/open").text
    assert "was interrupted" in page and "Training loss" in page and page.count("<polyline") == 4
    assert "2 folds so far; fold 1 is at 0.333 after epoch 2." in page


def test_two_runs_are_held_against_each_other(client: TestClient) -> None:
    page = client.get("/compare?run=colours&run=again").text
    assert "predicts the same class as" in page and "unfreeze compare" in page
    for wrong in ("", "?run=colours", "?run=colours&run=open", "?run=colours&run=../x"):
        assert client.get(f"/compare{wrong}").status_code in (404, 422)


def test_the_review_page_works_under_its_run(client: TestClient, runs: Path) -> None:
    first = client.get("/runs/again/review/")
    assert first.status_code == 200 or ("Looking for labels" in first.text and 'http-equiv="refresh"' in first.text)
    until(lambda: client.get("/runs/again/review/").status_code != 202)
    page = client.get("/runs/again/review/")
    assert (
        page.status_code == 200 and 'data-base="/runs/again/review"' in page.text and 'href="/runs/again"' in page.text
    )
    assert client.get("/runs/again/review").status_code == 307
    assert client.get("/runs/again/review/photos/0/small.jpg").headers["content-type"] == "image/jpeg"
    correction = {"id": 0, "action": "keep"}
    assert client.post("/runs/again/review/corrections", json=correction).status_code == 403, (
        "the form token is asked for"
    )
    headers = {"X-Unfreeze-Token": GUARD.form_token}
    assert client.post("/runs/again/review/corrections", json=correction, headers=headers).status_code in (200, 422)
    until(lambda: client.get("/runs/open/review/").status_code == 422)


def upload(*files: tuple[str, bytes]) -> bytes:
    return json.dumps([[n, len(d)] for n, d in files]).encode() + b"\n" + b"".join(d for _, d in files)


def test_dropped_photos_are_predicted_as_the_command_predicts_them(client: TestClient, probe_run: Run) -> None:
    from unfreeze.inference.predictor import Classifier

    root = Path(probe_run.info["root"])
    files = sorted(root.glob("*/*.jpg"))[::5]
    told = Classifier.load(probe_run).predict(files)
    sent = [(f"{EVIL}{i}", f.read_bytes()) for i, f in enumerate(files)] + [("no.jpg", b"text"), ("empty.jpg", b"")]
    headers = {"X-Unfreeze-Token": GUARD.form_token}
    answer = client.post("/runs/colours/predict", content=upload(*sent), headers=headers)
    assert answer.status_code == 200 and EVIL not in answer.text and "&lt;img src=x" in answer.text
    first = re.findall(r'<tr class="first"><th scope="row">(\w+)</th>', answer.text)
    assert first == told["label"].tolist()
    assert answer.text.count("Not predicted: not an image in a known format.") == 2
    small = re.search(r'<img src="(/runs/colours/predict/[^"]+/0\.jpg)"', answer.text)
    assert small and client.get(small[1]).headers["content-type"] == "image/jpeg"


def test_nothing_of_an_upload_stays_on_the_disk(
    client: TestClient, probe_run: Run, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    photo = next(Path(probe_run.info["root"]).glob("*/*.jpg")).read_bytes()
    headers = {"X-Unfreeze-Token": GUARD.form_token}
    assert client.post("/runs/colours/predict", content=upload(("a", photo)), headers=headers).status_code == 200
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "no upload"),
        (b"{}\n", "1 to"),
        (b"[1]\n", "no upload"),
        (b'[["a", 5]]\nabc', "cut off"),
        (b'[["a", -1]]\n', "may have"),
        (json.dumps([["a", MOST_BYTES + 1]]).encode() + b"\n", "may have"),
        (json.dumps([["a", 0]] * (MOST_PHOTOS + 1)).encode() + b"\n", "1 to"),
        (b"[" * 60_000 + b"\n", "no upload"),
    ],
)
def test_uploads_that_are_none_are_refused(body: bytes, told: str) -> None:
    with pytest.raises(UploadError, match=told):
        unpacked(body)


def test_a_photo_of_too_many_pixels_is_refused_unopened(client: TestClient) -> None:
    headers = {"X-Unfreeze-Token": GUARD.form_token}
    for side in (8_000, 20_000):  # Pillow itself refuses the second
        buffer = io.BytesIO()
        Image.new("1", (side, side)).save(buffer, "PNG")
        answer = client.post("/runs/colours/predict", content=upload(("bomb.png", buffer.getvalue())), headers=headers)
        assert "more than the 60 million pixels" in answer.text


def test_a_client_that_stalls_blocks_no_other(runs: Path) -> None:
    import uvicorn

    from unfreeze.server.app import listening

    with listening("127.0.0.1", 0) as listener:
        guard = AccessPolicy("127.0.0.1", listener.getsockname()[1], uploads=UPLOADS)
        library = Library(runs)
        app = studio_app(library, Jobs(library.own / "jobs"), guard)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
        thread.start()
        head = f"Host: 127.0.0.1:{guard.port}\r\nCookie: {guard.cookie}={guard.token}\r\n"
        stalled = [socket.create_connection(("127.0.0.1", guard.port)) for _ in range(60)]
        for i, one in enumerate(stalled):  # some never end their request's head, some its body
            body = f"POST /runs/colours/predict HTTP/1.1\r\n{head}X-Unfreeze-Token: {guard.form_token}\r\n"
            body += "Content-Length: 999\r\n\r\n["
            one.sendall((body if i % 2 else f"GET /runs HTTP/1.1\r\n{head}").encode())
        with socket.create_connection(("127.0.0.1", guard.port), timeout=10) as asking:
            asking.sendall(f"GET /runs HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode())
            answer = b""
            while part := asking.recv(65536):
                answer += part
        assert answer.startswith(b"HTTP/1.1 200") and b"colours" in answer
        for one in stalled:
            one.close()
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
