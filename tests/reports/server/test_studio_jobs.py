"""Jobs of the studio: what a form may ask for, and child processes that start, tell, stop, go on and end with it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import pytest
from starlette.testclient import TestClient

from photosets import GROUP_REGEX, class_folders, table
from unfreeze.core.errors import RecipeError, RunError
from unfreeze.core.recipe_schema import Source
from unfreeze.core.signing import sign
from unfreeze.server.access import AccessPolicy
from unfreeze.server.studio.app import studio_app
from unfreeze.server.studio.job_pages import asked, known_backbone, parse_form
from unfreeze.server.studio.jobs import Job, Jobs
from unfreeze.server.studio.library import Library

GUARD = AccessPolicy("127.0.0.1", 8124)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 photos of 12 groups, 3 classes. Not to be changed."""
    return class_folders(tmp_path_factory.mktemp("jobs") / "colours", groups=4)


@pytest.fixture
def library(photos: Path, tmp_path: Path) -> Library:
    return Library(tmp_path / "runs", [photos, table(tmp_path / "plants")])


@pytest.fixture
def jobs(library: Library) -> Iterator[Jobs]:
    made = Jobs(library.own / "jobs")
    yield made
    made.close()


def form(library: Library, which: int = 0, **fields: str) -> dict[str, list[str]]:
    key = list(library.given)[which]
    return {"kind": ["fit"], "source": [key], **{name: [value] for name, value in fields.items()}}


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_form_becomes_an_argument_list(library: Library, photos: Path) -> None:
    fields = {"group_regex": GROUP_REGEX, "strategy": "probe", "quality": "fast", "folds": "3", "seed": "7"}
    found = asked(form(library, **fields, backbone="tf_efficientnet_lite0", run="mine"), library, known_backbone)
    assert found.arguments == [
        *("fit", str(photos), f"--group-regex={GROUP_REGEX}", "--folds=3", "--seed=7", "--strategy=probe"),
        *("--quality=fast", "--backbone=tf_efficientnet_lite0", f"--run={library.folder / 'mine'}"),
    ]
    of_table = asked(form(library, 1, label="colour", group="plant"), library, known_backbone)
    assert of_table.arguments[2:4] == ["--label=colour", "--group=plant"]
    assert of_table.run == str(library.folder / "photos-auto-1"), "a free name"
    named = asked(form(library, split="train=red+green,test=blue", reader="split_folders"), library, known_backbone)
    assert named.arguments[2:4] == ["--split=train=red+green,test=blue", "--reader=split_folders"]
    part = asked({**form(library, inside="red"), "kind": ["check"]}, library, known_backbone)
    assert part.arguments[:2] == ["check", str(photos / "red")] and part.page in part.arguments[2]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"kind": "demo"}, "kind"),
        ({"kind": "cache"}, "kind"),
        ({"source": "/etc"}, "Photos"),
        ({"inside": "../.."}, "outside"),
        ({"inside": "/etc"}, "folder inside"),
        ({"inside": "~root"}, "folder inside"),
        ({"inside": "red/../../x"}, "outside"),
        ({"inside": "gone"}, "no folder"),
        ({"strategy": "magic"}, "Strategy"),
        ({"strategy": "probe --force"}, "Strategy"),
        ({"quality": "perfect"}, "Quality"),
        ({"backbone": "../weights.pth"}, "Backbone"),
        ({"backbone": "no_such_net"}, "Backbone"),
        ({"backbone": "--force"}, "Backbone"),
        ({"folds": "1"}, "Folds"),
        ({"folds": "³"}, "Folds"),
        ({"folds": "5; rm -rf /"}, "Folds"),
        ({"seed": "-1"}, "Seed"),
        ({"budget": "soon"}, "Time"),
        ({"budget": ""}, ""),
        ({"group_regex": "("}, "Group pattern"),
        ({"group_regex": "a"}, "Group pattern"),
        ({"group": "a", "group_regex": GROUP_REGEX}, "not both"),
        ({"reader": "class_folder"}, "Layout: known are .*Did you mean 'class_folders'"),
        ({"reader": "--force"}, "Layout"),
        ({"split": "\n--force"}, "split"),
        ({"run": "../x"}, "Run"),
        ({"run": "a/b"}, "Run"),
        ({"run": ".studio"}, "Run"),
        ({"run": "-x"}, "Run"),
        ({"label": "\x1b[2J"}, "Label"),
        ({"label": ",".join("abcdefghi")}, "at most"),
    ],
)
def test_what_is_not_on_the_list_is_refused(library: Library, fields: dict[str, str], told: str) -> None:
    if not told:
        asked(form(library, **fields), library, known_backbone)
        return
    with pytest.raises(RecipeError, match=told):
        asked(form(library, **fields), library, known_backbone)


def test_columns_are_those_of_the_table_and_names_are_free(library: Library) -> None:
    with pytest.raises(RecipeError, match=r"no column 'colur'. Did you mean 'colour'"):
        asked(form(library, 1, label="colur"), library, known_backbone)
    (library.folder / "taken").mkdir(parents=True)
    (library.folder / "dangling").symlink_to("/nowhere")
    for name in ("taken", "dangling"):
        with pytest.raises(RecipeError, match="already"):
            asked(form(library, run=name), library, known_backbone)


def test_splits_of_a_known_run_are_kept_unless_the_form_changes_them(library: Library) -> None:
    source = next(iter(library.given.values()))
    library.given[source.key].options = Source(split="none", reader="split_folders")
    kept = asked(form(library), library, known_backbone).arguments
    assert {"--split=none", "--reader=split_folders"} <= set(kept)
    body = urlencode({"kind": "fit", "source": source.key, "split": "", "reader": "class_folders"}).encode()
    changed = asked(parse_form(body), library, known_backbone).arguments
    assert "--reader=class_folders" in changed and not any(word.startswith("--split") for word in changed)


def test_columns_and_folders_are_found_in_any_unicode_form(photos: Path, tmp_path: Path) -> None:
    table, folder = tmp_path / "t.csv", tmp_path / "사진"
    table.write_text("path,종류\n" + "\n".join(f"{p},x" for p in photos.glob("*/*.jpg")))
    (folder / unicodedata.normalize("NFD", "사과")).mkdir(parents=True)
    library = Library(tmp_path / "runs", [table, tmp_path / unicodedata.normalize("NFD", "사진")])
    found = asked(form(library, label=unicodedata.normalize("NFD", "종류")), library, known_backbone)
    assert any(word.startswith("--label=") for word in found.arguments)
    part = asked(form(library, 1, inside="사과"), library, known_backbone)
    assert Path(part.arguments[1]).is_dir()
    with pytest.raises(RecipeError, match="no column"):
        asked(form(library, label="색"), library, known_backbone)


def test_a_value_is_never_taken_for_an_option(photos: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.csv"
    odd.write_text("path,--force\n" + "\n".join(f"{p},x" for p in photos.glob("*/*.jpg")))
    library = Library(tmp_path / "runs", [odd])
    found = asked(form(library, label="--force"), library, known_backbone)
    assert "--force" not in found.arguments and "--label=--force" in found.arguments


@pytest.mark.parametrize("body", [b"kind=fit&force=1", b"\xff\xfe=1", "&".join(["kind=fit"] * 99).encode()])
def test_strange_forms_are_refused(body: bytes) -> None:
    with pytest.raises(RecipeError):
        parse_form(body)


def test_a_job_runs_and_reports_and_one_waits_for_the_other(jobs: Jobs, photos: Path, tmp_path: Path) -> None:
    page = tmp_path / "eda.html"
    first = jobs.start("check", ["check", str(photos), f"--report={page}"], page=str(page))
    second = jobs.start("check", ["check", str(tmp_path / "gone")])
    third = jobs.start("check", ["check", str(photos)])
    assert (first.state, second.state, third.state) == ("running", "waiting", "waiting")
    jobs.stop(third.id)
    until(lambda: not second.active)
    assert (first.state, first.code, third.state, third.times) == ("finished", 0, "stopped", 0)
    assert page.exists() and any("24 photos" in line for line in jobs.lines(first))
    assert (second.state, second.code) == ("failed", 2), "what a command says of bad input is a failure"
    assert "no such" in jobs.lines(second)[-1]
    jobs.close()
    kept = Jobs(jobs.folder)
    assert [(j.id, j.state) for j in kept.all()] == [(j.id, j.state) for j in jobs.all()], "a later studio knows them"
    kept.close()


def test_a_fit_is_stopped_and_goes_on_where_it_was(jobs: Jobs, library: Library) -> None:
    quick = {"group_regex": GROUP_REGEX, "strategy": "probe", "quality": "fast", "folds": "2", "run": "mine"}
    wish = asked(form(library, **quick), library, known_backbone)
    small = [*wish.arguments, "--set=image.size=64", "--set=engine=openvino-f32"]  # not on the form: saves a minute
    job = jobs.start(wish.kind, small, run=wish.run)
    run = Path(wish.run)
    until((run / "run.json").exists)
    with pytest.raises(RunError, match="not over"):
        jobs.start(wish.kind, small, run=wish.run)
    jobs.stop(job.id)
    until(lambda: not job.active)
    assert job.state == "stopped" and job.code in (130, -signal.SIGINT)
    assert json.loads((run / "run.json").read_text())["status"] == "running", "unfinished, and whole"
    jobs.resume(job.id)
    until(lambda: not job.active)
    assert (job.state, job.times) == ("finished", 2)
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert "Started again." in jobs.lines(job)


def test_jobs_of_a_studio_that_was_killed_are_known_again(tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    alive = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # where a shell ignores it, from the first moment
    )
    signing = Jobs(folder)
    try:
        import psutil

        born = psutil.Process(alive.pid).create_time()
        one = Job("a" * 12, "fit", ["fit"], state="running", pid=alive.pid, born=born, started=time.time(), times=1)
        gone = Job("b" * 12, "fit", ["fit"], state="running", pid=alive.pid, born=born - 99, started=1.0, times=1)
        waited = Job("c" * 12, "fit", ["fit"], state="waiting")
        for job in (one, gone, waited):
            job.signature = sign(signing._signed_part(job))
            (folder / job.id).mkdir(parents=True)
            (folder / job.id / "job.json").write_text(json.dumps(vars(job)))
        signing.close()
        (folder / "broken").mkdir()
        (folder / "broken" / "job.json").write_text("{")
        jobs = Jobs(folder)
        assert {j.id[0]: j.state for j in jobs.all()} == {"a": "running", "b": "stopped", "c": "stopped"}
        jobs.stop(gone.id)
        assert alive.poll() is None, "another process that has the number by now is left alone"
        jobs.stop(one.id)
        alive.wait(10)
        until(lambda: jobs.job(one.id).state == "stopped")
    finally:
        alive.kill()


def test_a_job_that_somebody_else_wrote_is_shown_and_never_run(tmp_path: Path) -> None:
    folder, page = tmp_path / "runs" / ".studio" / "jobs", tmp_path / "elsewhere.html"
    page.write_text("<p>secret")
    own = Jobs(folder)
    good = own.start("check", ["check", "nowhere"])
    until(lambda: not good.active)
    own.close()
    forged = Job("0" * 12, "check", ["check", "x", "--report", str(page)], page=str(page), state="stopped", times=1)
    moved = replace(good, id="1" * 12)  # a true signature, of another job
    changed = replace(good, id="2" * 12, arguments=["check", "x", "--report", str(page)])
    running = replace(forged, id="3" * 12, state="running", pid=os.getpid(), born=1.0)
    for job in (forged, moved, changed, running):
        (folder / job.id).mkdir(parents=True)
        (folder / job.id / "job.json").write_text(json.dumps(vars(job)))
    jobs = Jobs(folder)
    for job in (forged, moved, changed, running):
        assert not jobs.job(job.id).active
        with pytest.raises(RunError, match="not started by a studio of yours"):
            jobs.resume(job.id)
    client = TestClient(studio_app(Library(folder.parent.parent), jobs, GUARD), base_url="http://127.0.0.1:8124")
    client.get(f"/?token={GUARD.ticket()}")
    assert client.get(f"/jobs/{forged.id}").status_code == 200 and "resume" not in client.get(f"/jobs/{forged.id}").text
    assert client.get(f"/jobs/{forged.id}/page").status_code == 404
    assert jobs.resume(good.id).active
    jobs.close()


def test_the_form_starts_a_job_and_says_what_is_wrong(library: Library, jobs: Jobs) -> None:
    client = TestClient(studio_app(library, jobs, GUARD), base_url="http://127.0.0.1:8124", follow_redirects=False)
    client.get(f"/?token={GUARD.ticket()}")
    headers = {"X-Unfreeze-Token": GUARD.form_token, "HX-Request": "true"}
    key = next(iter(library.given))
    wrong = client.post("/jobs", content=urlencode({"kind": "fit", "source": key, "folds": "x<b>"}), headers=headers)
    assert wrong.status_code == 422 and "Folds: a whole number" in wrong.text and not jobs.all()
    answer = client.post("/jobs", content=urlencode({"kind": "check", "source": key}), headers=headers)
    assert answer.status_code == 204 and re.fullmatch(r"/jobs/[0-9a-f]{12}", answer.headers["hx-redirect"])
    job = jobs.all()[0]
    page = client.get(f"/jobs/{job.id}").text
    assert job.command.replace("'", "&#39;") in page and 'hx-trigger="every 1s"' in page
    until(lambda: not job.active)
    live = client.get(f"/jobs/{job.id}/live").text
    assert "every 1s" not in live and "Open the page it wrote" in live and "24 photos" in live
    policy = client.get(f"/jobs/{job.id}/page").headers["content-security-policy"]
    assert policy.startswith("sandbox")
    assert client.get(f"/data/{key}/eda").status_code == 200
    data = client.get(f"/data/{key}").text
    assert "have not been checked" not in data and "Check again" in data


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_closing_the_studio_interrupts_its_jobs(photos: Path, tmp_path: Path, number: int) -> None:
    runs = tmp_path / "runs"
    command = [sys.executable, "-m", "unfreeze.cli.main", "studio", str(runs), "--data", str(photos), "--no-open"]
    studio = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert studio.stdout is not None
        address = next(m[0] for line in studio.stdout if (m := re.search(r"http://\S+", line)))
        job = post_job(address, photos)
        file = runs / ".studio" / "jobs" / job / "job.json"
        until(lambda: json.loads(file.read_text())["state"] == "running")
        pid = json.loads(file.read_text())["pid"]
        studio.send_signal(number)
        studio.wait(30)
        kept = json.loads(file.read_text())
        assert kept["state"] == "stopped" and kept["ended"] > 0
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    finally:
        studio.kill()


def post_job(address: str, photos: Path) -> str:
    """Starts a fit as the page does: the token becomes a cookie, the form's token goes with it."""
    import http.cookiejar
    import urllib.request

    home = address.partition("?")[0]
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
    page = opener.open(address).read().decode()
    token = re.search(r"X-Unfreeze-Token&#34;: &#34;([^&]+)|X-Unfreeze-Token\": \"([^\"]+)", page)
    assert token
    key = re.search(r'href="/data/([0-9a-f]{10})"', page)
    assert key
    body = urlencode({"kind": "fit", "source": key[1], "strategy": "full", "group_regex": GROUP_REGEX}).encode()
    request = urllib.request.Request(home + "jobs", body, {"X-Unfreeze-Token": token[1] or token[2]})
    return opener.open(request).headers["HX-Redirect"].rpartition("/")[2]


def test_a_job_reports_how_far_it_is(
    library: Library, jobs: Jobs, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from unfreeze.core.progress import PROGRESS_FILE_ENV, ConsoleReporter

    job = jobs.start("check", ["check", str(photos)])
    until(lambda: not job.active)
    assert jobs.progress(job) == {}, "it is over, and its file is gone"
    file = jobs.folder / job.id / "progress.json"
    monkeypatch.setenv(PROGRESS_FILE_ENV, str(file))
    job.state = "running"
    with ConsoleReporter(Console(quiet=True)).bar("Scanning images", 40) as advance:
        first = jobs.progress(job)
        assert (first["what"], first["done"], first["total"], first["left"]) == ("Scanning images", 0, 40, None)
        time.sleep(0.4)
        advance(10)
        later = jobs.progress(job)
        assert later["done"] == 10 and later["left"] > 0.5
        client = TestClient(studio_app(library, jobs, GUARD), base_url="http://127.0.0.1:8124")
        client.get(f"/?token={GUARD.ticket()}")
        page = client.get(f"/jobs/{job.id}/live").text
        assert "Scanning images: 10 of 40, about" in page and '<progress max="40" value="10"' in page
    job.state = "finished"
    assert not file.exists()
