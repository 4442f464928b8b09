"""Folders that may not be written, photos that vanish, clocks that jump, commands side by side.

Each time: one line that says what to do, nothing lost, and the same command ends as if nothing had been.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from disks import as_owner, forbidden, read_only
from killing import opened_whole, times_of, unfreeze
from smallruns import TRIED, Undisturbed, cached_in, changes_of, fit_words, same_found, with_engines

import unfreeze as uf
from commandline import Answer, leftovers, run_cli
from finetuning import colours, make_recipe
from unfreeze.core.errors import FoldError, UnfreezeError
from unfreeze.core.progress import Advance, Reporter

SLOW = pytest.mark.soak


def test_a_finished_run_without_its_report_is_ended_by_the_same_command(
    photos: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """What a kill, or a full disk, leaves between the last score and the report."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed("probe"), run)
    (run / "report.html").unlink()
    words = fit_words("probe", photos, run)
    other = run_cli(*words, "--seed", 5)
    assert other.code == 2 and "holds a finished run" in other.complaint
    answer = run_cli(*words)
    assert answer.code == 0 and "was finished before; only its report was missing" in answer.err
    same_found(run, undisturbed("probe"))
    assert (run / "report.html").stat().st_size > 20_000
    assert run_cli(*words).code == 2


# --- not to be written -----------------------------------------------------------------------------------------------


WAYS = [
    ("read-only", "run"),
    ("read-only", "cache"),
    ("forbidden", "run"),
    *(pytest.param("read-only", what, marks=SLOW) for what in ("runs", "partial")),
    *(pytest.param("forbidden", what, marks=SLOW) for what in ("runs", "cache", "partial")),
]


@pytest.mark.parametrize(("how", "what"), WAYS)
def test_a_place_that_may_not_be_written(
    how: str, what: str, photos: Path, undisturbed: Undisturbed, engines: Path, tmp_path: Path
) -> None:
    """runs: where the run would go. run: an interrupted one. cache: an empty one. partial: the cache of a training."""
    strategy = "partial" if what == "partial" else "probe"
    run, cache = tmp_path / "runs" / "run", tmp_path / "cache"
    run.parent.mkdir()
    with_engines(tmp_path, engines)
    if what == "run":
        shutil.copytree(undisturbed(strategy), run)
        for name in ("scores.json", "report.html", "fold-2/head.safetensors"):
            (run / name).unlink()
        told = (run / "run.json").read_text()
        (run / "run.json").write_text(told.replace('"finished"', '"running"'))
    place = cache if what in ("cache", "partial") else run if what == "run" else run.parent
    words = fit_words(strategy, photos, run)
    before = sorted(place.rglob("*"))
    with cached_in(cache):
        if how == "read-only":
            with read_only(place):
                answer = run_cli(*words)
        else:
            with forbidden(place):
                ended = subprocess.run(as_owner(unfreeze(*words)), capture_output=True, text=True, check=False)
                answer = Answer(ended.returncode, ended.stdout, ended.stderr)
        reason = "the file system is read-only" if how == "read-only" else "no permission to write there"
        assert answer.code == 2 and reason in answer.complaint and str(tmp_path) in answer.complaint, answer.err
        assert sorted(place.rglob("*")) == before
        kept = times_of(run)
        answer = run_cli(*words)
        assert answer.code == 0, answer.err
        assert kept.items() <= times_of(run).items()
    same_found(run, undisturbed(strategy))


@pytest.mark.parametrize("strategy", TRIED)
def test_a_full_cache_that_may_only_be_read(
    strategy: str, photos: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """A cache that holds all, on a read-only disk: either it will do, or that it will not is said."""
    other, cache = undisturbed(strategy), tmp_path / "cache"
    shutil.copytree(other.parent / "cache", cache)
    with cached_in(cache):
        with read_only(cache):
            answer = run_cli(*fit_words(strategy, photos, tmp_path / "run"))
        if answer.code != 0:
            assert answer.code == 2 and "the file system is read-only" in answer.complaint, answer.err
            answer = run_cli(*fit_words(strategy, photos, tmp_path / "run"))
        assert answer.code == 0, answer.err
    same_found(tmp_path / "run", other)


# --- photos that vanish ----------------------------------------------------------------------------------------------


class Removing(Reporter):
    """Takes photos away when a stage begins."""

    def __init__(self, stage: str, files: list[Path]) -> None:
        self.stage, self.files, self.said = stage, files, list[str]()
        self.removed = False

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Advance]:
        if what.startswith(self.stage) and not self.removed:
            self.removed = True
            for file in self.files:
                file.unlink()
        yield lambda steps: None


STAGES = [
    ("probe", "Scanning images"),
    ("probe", "Computing features"),
    pytest.param("partial", "Decoding photos", marks=SLOW),
    pytest.param("full", "Decoding photos", marks=SLOW),
    pytest.param("scratch", "Training", marks=SLOW),
]


@pytest.mark.parametrize(("strategy", "stage"), STAGES)
def test_photos_that_vanish_in_the_middle(
    strategy: str, stage: str, undisturbed: Undisturbed, engines: Path, tmp_path: Path, fresh_cache: Path
) -> None:
    """Some: a finding each, and a run without them. All of them: one line; once they are back, the same call ends."""
    folder, run = colours(tmp_path / "colours"), tmp_path / "run"
    kept = {file: file.read_bytes() for file in sorted(folder.rglob("*.jpg"))}

    def fit(reporter: Reporter, place: Path) -> uf.Run:
        recipe = make_recipe(strategy, folder, **changes_of(strategy))
        return uf.fit(uf.read(folder, recipe.source), recipe, place, reporter=reporter)

    def restore() -> None:
        for file, content in kept.items():
            file.write_bytes(content)

    with_engines(tmp_path, engines)
    everything = Removing(stage, list(kept))
    try:
        fit(everything, run)
    except UnfreezeError as error:
        assert "\n" not in str(error) and isinstance(error, FoldError), repr(error)
    assert everything.removed
    restore()
    if not (run / "scores.json").exists():
        fit(Reporter(), run)
    same_found(run, undisturbed(strategy))

    with cached_in(with_engines(tmp_path, engines, "other cache") / "other cache"):
        two = [file for file in kept if file.name in ("g003_1.jpg", "g104_0.jpg")]
        some = Removing(stage, two)
        done = fit(some, tmp_path / "without")
    assert some.removed and len(two) == 2
    photos, needed = done.photos(), stage not in ("Training",)
    missing = photos.loc[photos["path"].isin([str(file.relative_to(folder)) for file in two]), "fold"]
    assert (missing == -1).all() if needed else (missing >= 0).all()
    if needed:
        told = [f for f in json.loads((done.path / "findings.json").read_text()) if f["severity"] == "warning"]
        assert {f["path"] for f in told} >= {str(file.relative_to(folder)) for file in two}, told


# --- clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("years", [30, -30])
def test_files_of_another_time(years: int, photos: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """The clock was wrong when a run was interrupted, or is now: what is there counts all the same."""
    other = undisturbed("probe")
    shutil.copytree(other, tmp_path / "run")
    shutil.copytree(other.parent / "cache", tmp_path / "cache")
    (tmp_path / "run" / "scores.json").unlink()
    (tmp_path / "run" / "fold-1" / "head.safetensors").unlink()
    told = (tmp_path / "run" / "run.json").read_text()
    (tmp_path / "run" / "run.json").write_text(told.replace('"finished"', '"running"'))
    for path in [*(tmp_path / "run").rglob("*"), *(tmp_path / "cache").rglob("*")]:
        at = path.stat().st_mtime + years * 365 * 86_400
        os.utime(path, (at, at))
    kept = times_of(tmp_path / "run")
    with cached_in(tmp_path / "cache"):
        answer = run_cli(*fit_words("probe", photos, tmp_path / "run"))
    assert answer.code == 0, answer.err
    assert len(kept) == 2 and kept.items() <= times_of(tmp_path / "run").items()
    same_found(tmp_path / "run", other)


# The clock is set while a command runs: what starts after that sees another time.
CLOCK = """
import sys, time
if "unfreeze.training.fine_tune.worker" in sys.orig_argv:
    right = time.time
    time.time = lambda: right() + SHIFT
    time.time_ns = lambda: int(time.time() * 1e9)
"""


@pytest.mark.soak
@pytest.mark.parametrize("shift", [3600, -3600])
def test_a_clock_that_is_set_in_the_middle_of_a_training(shift: int, photos: Path, tmp_path: Path) -> None:
    """A budget is neither an hour longer, nor is less than an epoch trained."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(CLOCK.replace("SHIFT", str(shift)))
    words = fit_words("partial", photos, tmp_path / "run", train__epochs=10_000, train__time_budget="12s")
    ended = subprocess.run(
        unfreeze(*words),
        env={**os.environ, "PYTHONPATH": str(tmp_path / "hook"), "UNFREEZE_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert all(0 < fold["epochs"] < 10_000 for fold in uf.core.runs.open_run(tmp_path / "run").scores()["folds"])


# --- side by side ----------------------------------------------------------------------------------------------------


def together(commands: list[list[str]], cache: Path) -> list[Answer]:
    """Commands that start at the same moment with one cache."""
    environment = {**os.environ, "UNFREEZE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for words in commands
    ]
    told = [one.communicate(timeout=300) for one in started]
    return [Answer(one.returncode, *said) for one, said in zip(started, told, strict=True)]


@pytest.mark.parametrize("strategy", TRIED)
def test_two_runs_at_once_on_one_cache(
    strategy: str, photos: Path, undisturbed: Undisturbed, engines: Path, tmp_path: Path
) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]
    with_engines(tmp_path, engines)
    for answer in together([unfreeze(*fit_words(strategy, photos, run)) for run in runs], tmp_path / "cache"):
        assert answer.code == 0, answer.err
    for run in runs:
        same_found(run, undisturbed(strategy))
    opened_whole(tmp_path / "cache")
    assert not leftovers(tmp_path / "cache")


@pytest.mark.soak
def test_two_first_runs_at_once_convert_one_network(photos: Path, tmp_path: Path) -> None:
    """Both meet the network for the first time: one of the two conversions is kept, and both runs use it."""
    runs = [tmp_path / "a", tmp_path / "b"]
    words = [unfreeze(*fit_words("probe", photos, run)) for run in runs]
    for answer in together(words, tmp_path / "cache"):
        assert answer.code == 0, answer.err
    same_found(*runs)
    assert len(list((tmp_path / "cache" / "engines").iterdir())) == 1


@pytest.mark.parametrize("strategy", TRIED)
def test_two_commands_at_once_on_one_run_folder(
    strategy: str, photos: Path, undisturbed: Undisturbed, engines: Path, tmp_path: Path
) -> None:
    """One does it, the other one says why it does not."""
    run = with_engines(tmp_path, engines) / "run"
    answers = together([unfreeze(*fit_words(strategy, photos, run))] * 2, tmp_path / "cache")
    assert sorted(answer.code for answer in answers) == [0, 2], [answer.err for answer in answers]
    (refused,) = [answer for answer in answers if answer.code]
    assert "another process is writing this run" in refused.complaint or "holds a finished run" in refused.complaint
    same_found(run, undisturbed(strategy))
