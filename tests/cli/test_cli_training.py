"""The strategies that train, by the command line: what they leave, going on after a kill, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import psutil  # type: ignore[import-untyped]
import pytest
from safetensors.torch import load_file

import unfreeze as uf
from commandline import Answer, leftovers, run_cli
from finetuning import SETTINGS, colours, options
from photosets import table

Cli = Callable[..., Answer]
STRATEGIES = ("partial", "full", "scratch")


def command(strategy: str, source: Path, run: Path | str, *more: str) -> list[str]:
    return ["fit", str(source), "--strategy", strategy, "--run", str(run), *options(SETTINGS), *more]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colours(tmp_path_factory.mktemp("photos") / "colours")


@pytest.fixture(scope="module")
def trained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each strategy. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    for strategy in STRATEGIES:
        answer = run_cli(*command(strategy, source, folder / strategy))
        assert answer.code == 0, answer.err
    return {strategy: folder / strategy for strategy in STRATEGIES}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_a_run_leaves(strategy: str, trained: dict[str, Path], source: Path, cli: Cli) -> None:
    run = trained[strategy]
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [(row["fold"], row["epoch"]) for row in rows] == [(k, e) for k in range(3) for e in (1, 2)]
    assert all((run / f"fold-{k}" / "model.safetensors").is_file() for k in range(3))
    assert (run / "report.html").stat().st_size > 20_000 and not (run / "scratch").exists()
    scores = uf.core.runs.open_run(run).scores()
    assert [fold["epochs"] for fold in scores["folds"]] == [2, 2, 2]
    assert ("components" in scores) == (strategy != "scratch")
    for tta in ("plain", "flip"):
        answer = cli("predict", run, source, "--tta", tta, "--out", f"{tta}.csv")
        assert answer.code == 0, answer.err
    found = pd.read_csv("flip.csv"), uf.load(run).predict(source)
    names = ["p_blue", "p_green", "p_red"]
    assert np.abs(found[0][names].to_numpy() - found[1][names].to_numpy()).max() < 1e-9
    assert not found[0][names].equals(pd.read_csv("plain.csv")[names])
    refused = cli(*command(strategy, source, run))
    assert refused.code == 2 and "holds a finished run; --force overwrites it" in refused.complaint


def test_force_fits_again_to_the_same_bytes(trained: dict[str, Path], source: Path, cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(trained["partial"], run)
    answer = cli(*command("partial", source, run, "--force"))
    assert answer.code == 0, answer.err
    same_run(run, trained["partial"])


def same_run(run: Path, other: Path) -> None:
    """The networks and the out-of-fold predictions are the same to the bit."""
    for k in range(3):
        one, two = (load_file(r / f"fold-{k}" / "model.safetensors") for r in (run, other))
        assert one.keys() == two.keys() and all((one[n] == two[n]).all() for n in one)
    assert (run / "oof.parquet").read_bytes() == (other / "oof.parquet").read_bytes()
    logs = [[json.loads(line) for line in (r / "log.jsonl").read_text().splitlines()] for r in (run, other)]
    assert [(r["fold"], r["epoch"], r["train_loss"]) for r in logs[0]] == [
        (r["fold"], r["epoch"], r["train_loss"]) for r in logs[1]
    ]


def test_a_test_split_is_predicted_by_the_mean_of_the_folds(cli: Cli, tmp_path: Path) -> None:
    source = table(tmp_path / "table")
    more = ["--label", "colour", "--group", "plant", "--split", "split", "--set", "source.group_regex="]
    answer = cli(*command("partial", source, "run", *more))
    assert answer.code == 0, answer.err
    stored = pd.read_parquet("run/test.parquet")
    assert len(stored) == 12
    photos = [source.parent / path for path in stored["path"]]
    found = uf.load("run").predict(photos)
    names = ["p_blue", "p_green", "p_red"]
    assert np.abs(found[names].to_numpy() - stored[names].to_numpy()).max() < 1e-3
    assert "test split" in answer.out


# --- kills -----------------------------------------------------------------------------------------------------------


LONG = ["--set", "train.epochs=24", "--set", "train.batch_size=4"]


def started(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "unfreeze.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background job ignores Ctrl-C, and what it starts inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def workers_of(parent: psutil.Process, below: bool = False) -> list[psutil.Process]:
    """The training processes that a process started; below: and those of its children. Who has just ended is none."""
    found = []
    with contextlib.suppress(psutil.Error):
        for child in parent.children(recursive=below):
            with contextlib.suppress(psutil.Error):
                if "unfreeze.training.fine_tune.worker" in " ".join(child.cmdline()):
                    found.append(child)
    return found


def wait_for(what: Callable[[], object], seconds: float = 90) -> None:
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)


def gone(processes: list[psutil.Process]) -> bool:
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def long(source: Path, tmp_path: Path) -> Iterator[list[str]]:
    """A command of enough epochs to be met in the middle of them."""
    yield command("partial", source, tmp_path / "run", *LONG)
    assert gone(workers_of(psutil.Process(), below=True))


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `long` ends with if nobody disturbs it."""
    run = tmp_path_factory.mktemp("long") / "run"
    answer = run_cli(*command("partial", source, run, *LONG))
    assert answer.code == 0, answer.err
    return run


@pytest.mark.parametrize("victim", ["all", "parent", "worker", "interrupt"])
def test_killed_while_training_and_resumed(
    victim: str, long: list[str], undisturbed: Path, tmp_path: Path, cli: Cli
) -> None:
    run, process = tmp_path / "run", started(long)
    log = run / "log.jsonl"
    if victim == "all":  # the first fold is finished, the last one is not
        wait_for(lambda: list(run.glob("fold-*/model.safetensors")))
    else:  # a row is told after its checkpoint was written, or would have been
        wait_for(lambda: log.exists() and log.read_text().count("\n") > random.Random(victim).randint(2, 15))
    workers: list[psutil.Process] = []
    # Between two folds there may be none for a moment.
    wait_for(lambda: workers.extend(workers_of(psutil.Process(process.pid))) or workers, 20)
    if victim == "all":
        os.killpg(process.pid, signal.SIGKILL)
    elif victim == "parent":
        process.kill()
    elif victim == "worker":
        workers[0].kill()
    else:
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    wait_for(lambda: gone(workers), 10)
    assert "Traceback" not in said
    if victim == "worker":
        assert process.returncode == 2
        assert (
            "its training process ended (killed by SIGKILL, most often because memory ran out)" in said.splitlines()[-1]
        )
    elif victim == "interrupt":
        assert process.returncode == 130
        assert said.splitlines()[-1] == "unfreeze: interrupted; the same command goes on from here."
    assert not (run / "scores.json").exists()
    finished = {f: f.stat().st_mtime_ns for f in run.glob("fold-*/model.safetensors")}
    assert len(finished) < 3 and (finished or victim != "all")
    answer = cli(*long)
    assert answer.code == 0, answer.err
    assert "Resuming training after epoch" in answer.err or victim == "all"
    assert all(f.stat().st_mtime_ns == at for f, at in finished.items())  # not trained anew
    same_run(run, undisturbed)
    assert not leftovers(run)


def test_a_worker_that_fails_says_why_and_keeps_checkpoints(source: Path, cli: Cli, tmp_path: Path) -> None:
    """A loss that is no number in the first step of a run from nothing: one line; the run folder goes again."""
    answer = cli(*command("scratch", source, "run", "--set", "train.lr=1e30", "--set", "train.grad_clip=0.0"))
    assert answer.code == 2 and "not a finite number" in answer.complaint
    assert not Path("run/scores.json").exists()


@pytest.mark.parametrize(
    ("strategy", "more", "said"),
    [
        ("full", ["--budget", "10x"], "train.time_budget = '10x': write it as 90s, 10m or 1h30m"),
        ("full", ["--budget=-3m"], "train.time_budget = '-3m'"),
        ("full", ["--set", "train.trainable=lyer4-"], "Did you mean 'layer4'? The stages are stem, layer1"),
        ("partial", ["--set", "train.trainable=all"], "use strategy full"),
        ("partial", ["--set", "train.cutmix_alpha=1.0"], "use train.mixup_alpha"),
        ("partial", ["--quality", "best"], "leave --quality best out"),
    ],
)
def test_refused_in_one_line(strategy: str, more: list[str], said: str, source: Path, cli: Cli) -> None:
    answer = cli(*command(strategy, source, "run", *more))
    assert answer.code == 2 and said in answer.complaint
    assert not Path("run").exists()


def test_a_budget_is_kept_and_reported(source: Path, cli: Cli) -> None:
    """Start-up of a process that imports torch counts; 10 s are allowed for it on a busy machine."""
    began = time.perf_counter()
    answer = cli(*command("partial", source, "run", "--set", "train.epochs=10000", "--budget", "15s"))
    took = time.perf_counter() - began
    assert answer.code == 0, answer.err
    assert "Budget of 15s: the folds took" in answer.err and "of 10000 epochs" in answer.err
    assert 5 < took < 15 * 1.1 + 10
    assert all(0 < fold["epochs"] < 10_000 for fold in uf.core.runs.open_run("run").scores()["folds"])


def test_random_split_baseline_is_for_probes(source: Path, cli: Cli) -> None:
    answer = cli(
        *command("partial", source, "run", "--random-split-baseline", "--set", "train.epochs=1", "--folds", "2")
    )
    assert answer.code == 0, answer.err
    assert "computed only if all folds are linear probes" in answer.err
