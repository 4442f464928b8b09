"""The studio under strange requests, hurt and vanishing runs, deaf jobs, a second studio: a word, never a trace."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import psutil  # type: ignore[import-untyped]
import pytest
from starlette.testclient import TestClient
from test_studio_jobs import until
from test_studio_pages import GUARD, key_of, open_studio

from photosets import class_folders
from unfreeze.core.errors import RunError
from unfreeze.core.runs import Run
from unfreeze.core.signing import sign
from unfreeze.server.access import MAX_BODY
from unfreeze.server.studio import jobs as studio_jobs
from unfreeze.server.studio.compare_pages import curves
from unfreeze.server.studio.job_pages import free_run
from unfreeze.server.studio.jobs import Job, Jobs
from unfreeze.server.studio.library import Library

SENT = {"X-Unfreeze-Token": GUARD.form_token, "HX-Request": "true"}


@pytest.fixture(scope="module")
def runs(probe_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and two of a comparison, one folder deeper. Not to be changed."""
    folder = tmp_path_factory.mktemp("abuse") / "runs"
    shutil.copytree(probe_run.path, folder / "colours")
    for name in ("rgb", "gray"):
        shutil.copytree(probe_run.path, folder / "compare-colours-1a2b3c" / name)
    (folder / "compare-colours-1a2b3c" / "compare.html").write_text("<p>gray costs 1.3 points</p>")
    return folder


@pytest.fixture(scope="module")
def client(runs: Path) -> TestClient:
    return open_studio(runs)


def reviewed(client: TestClient, run: str) -> int:
    """The status of a review page once it is made."""
    until(lambda: client.get(f"/runs/{run}/review/").status_code != 202)
    return client.get(f"/runs/{run}/review/").status_code


# Requests


def test_many_fields_are_no_entrance(client: TestClient, runs: Path) -> None:
    many = "/?" + "&".join(f"{c}=1" for c in "abcdefghi")
    assert open_studio(runs, entered=False).get(many).status_code == 403
    assert client.get(many).status_code == 200, "who has entered sees the page"


@pytest.mark.parametrize("path", ["/jobs", "/jobs/0/stop"])
def test_a_body_that_does_not_say_its_length_is_cut_off(client: TestClient, path: str) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(MAX_BODY // 1024 + 2):
            yield b"x" * 1024

    answer = client.post(path, content=endless(), headers=SENT)
    assert answer.status_code in (404, 413, 422) and "Traceback" not in answer.text
    if path == "/jobs":
        assert answer.status_code == 413 and "too large" in answer.text


@pytest.mark.parametrize("path", ["photos?page=x", "photo/x/small.jpg", "photo/0/huge.jpg", "photo/-1/small.jpg"])
def test_numbers_that_are_none_lead_nowhere(client: TestClient, path: str) -> None:
    answer = client.get(f"/runs/colours/{path}")
    assert answer.status_code == 404 and not answer.text.startswith("{")
    assert client.get("/runs?down=perhaps").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        *("/runs/..%2f..%2fetc", "/runs/%2Fetc", "/runs/.studio", "/runs/colours%00", "/questions/..%2fcolours"),
        *("/static/..%2fstudio.py", "/data/%2fetc/photos", "/jobs/..%2f/page", "/runs/compare-colours-1a2b3c"),
    ],
)
def test_no_address_leads_out_of_the_lists(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_a_pattern_that_python_cannot_hold_is_refused(tmp_path: Path) -> None:
    client = open_studio(tmp_path / "runs", class_folders(tmp_path / "photos", groups=2))
    wish = {"kind": "fit", "source": key_of(client), "group_regex": "(?P<group>a{99999999999999999999})"}
    answer = client.post("/jobs", content=urlencode(wish), headers=SENT)
    assert answer.status_code == 422 and "Group pattern" in answer.text


# Runs


def test_runs_of_a_comparison_are_shown_and_compared(client: TestClient) -> None:
    page = client.get("/runs").text
    assert "3 runs, 3 finished" in page and 'href="/questions/compare-colours-1a2b3c"' in page
    for name in ("rgb", "gray"):
        assert f'href="/runs/compare-colours-1a2b3c%3A{name}"' in page
        assert client.get(f"/runs/compare-colours-1a2b3c%3A{name}/photos").status_code == 200
    told = client.get("/compare?run=compare-colours-1a2b3c:rgb&run=colours").text
    assert 'href="/runs/compare-colours-1a2b3c%3Argb"' in told and 'href="/runs/colours"' in told
    written = client.get("/questions/compare-colours-1a2b3c")
    assert "gray costs" in written.text and written.headers["content-security-policy"].startswith("sandbox")


def test_a_run_that_is_deleted_while_its_page_is_open(probe_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(probe_run.path, folder / "mine")
    client = open_studio(folder)
    assert client.get("/runs/mine").status_code == 200 and reviewed(client, "mine") == 200
    shutil.rmtree(folder / "mine")
    live = client.get("/runs/mine/live", headers={"HX-Request": "true"})
    assert live.status_code == 422 and "No run" in live.text and "every" not in live.text
    for path in ("", "/photos", "/photo/0/small.jpg", "/review/", "/review/photos/0/small.jpg", "/predict", "/report"):
        assert client.get(f"/runs/mine{path}").status_code == 404, path
    assert client.post("/runs/mine/predict", content=b"[]", headers=SENT).status_code == 422
    assert "no run in this folder" in client.get("/").text.lower()


FILES = ("run.json", "recipe.toml", "scores.json", "oof.parquet", "photos.parquet", "findings.json")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("content", [None, b"", b"\x00\xffgarbage", b"[1]"])
def test_a_damaged_run_hides_nothing_but_itself(
    probe_run: Run, tmp_path: Path, file: str, content: bytes | None
) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(probe_run.path, folder / "hurt", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(folder / "hurt", folder / "well")
    (folder / "hurt" / file).unlink()
    if content is not None:
        (folder / "hurt" / file).write_bytes(content)
    client = open_studio(folder)
    for path in ("/", "/runs", "/data", f"/data/{key_of(client)}", "/jobs/new", "/runs/well", "/runs/well/photos"):
        assert client.get(path).status_code == 200, path
    for path in ("", "/photos", "/live", "/predict", "/photo/0/small.jpg"):
        assert client.get(f"/runs/hurt{path}").status_code in (200, 204, 404, 422), path
    assert client.get("/compare?run=hurt&run=well").status_code in (200, 404, 422)


def test_the_newest_run_is_named_not_the_best_of_other_photos(client: TestClient) -> None:
    page = client.get("/").text
    assert "the newest that is finished" in page and "best" not in page


def test_a_command_to_copy_holds_in_a_shell(tmp_path: Path) -> None:
    client = open_studio(tmp_path / "my runs; ls")
    for path in ("/", "/data", "/jobs/new"):
        assert "my runs; ls&#39; --data PHOTOS" in client.get(path).text, path


def test_curves_have_round_axes_and_stand_infinite_losses() -> None:
    rows = [
        {"fold": f, "epoch": e, "train_loss": loss} for f, e, loss in ((0, 1, 0.0106), (0, 2, 0.004), (1, 1, 0.009))
    ]
    (found,) = curves(rows)
    assert found["said"] == "2 folds so far; fold 1 is at 0.009 after epoch 1." and ">0.02</text>" in found["plot"]
    assert curves(rows, over=True)[0]["said"] == "At the end 0.004 to 0.009 over 2 folds."
    assert curves([{"fold": 0, "epoch": 1, "train_loss": float("inf")}]) == []
    assert ">1</text>" in curves([{"fold": 0, "epoch": 1, "train_loss": 0.0}])[0]["plot"]


# Jobs


def test_a_second_studio_on_the_same_runs_is_refused(tmp_path: Path) -> None:
    first = Jobs(tmp_path / "runs" / ".studio" / "jobs")
    first.start("check", ["check", str(tmp_path / "gone")])
    with pytest.raises(RunError, match="another studio is open on these runs"):
        Jobs(tmp_path / "runs" / ".studio" / "jobs")
    first.close()
    Jobs(tmp_path / "runs" / ".studio" / "jobs").close()


def test_a_second_fit_does_not_take_the_name_of_one_that_waits(tmp_path: Path) -> None:
    library = Library(tmp_path / "runs", [class_folders(tmp_path / "colours", groups=2)])
    source = next(iter(library.given.values()))
    first = free_run(library, source, "auto")
    assert (first, free_run(library, source, "auto", {str(library.folder / first)})) == (
        "colours-auto-1",
        "colours-auto-2",
    )


def test_a_job_that_does_not_listen_is_ended_on_the_second_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "jobs"
    code = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    deaf = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    try:
        assert deaf.stdout is not None and deaf.stdout.readline() == b"deaf\n"
        born = psutil.Process(deaf.pid).create_time()
        one = Job("a" * 12, "fit", ["fit"], state="running", pid=deaf.pid, born=born, started=time.time(), times=1)
        one.signature = sign(Jobs(folder)._signed_part(one))
        (folder / one.id).mkdir(parents=True)
        (folder / one.id / "job.json").write_text(json.dumps(vars(one)))
        jobs = Jobs(folder)
        jobs.stop(one.id)
        jobs.stop(one.id)
        assert jobs.job(one.id).state == "stopping" and deaf.poll() is None, "told twice at once, it is left to stop"
        monkeypatch.setattr(studio_jobs, "_PATIENCE", 0.0)
        assert jobs.job(one.id).deaf
        jobs.stop(one.id)
        deaf.wait(10)
        until(lambda: jobs.job(one.id).state == "stopped")
        jobs.close()
    finally:
        deaf.kill()
