"""The same training gives the same numbers: with an empty cache each time, and next to busy processes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest

from photosets import GROUP_REGEX, class_folders

BUSY = "while True: sum(i * i for i in range(100_000))"


@contextmanager
def busy(count):
    """So many processes that use a core each."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def fitted(photos, run, number, strategy):
    """A fit in a process of its own, with its own cache and order of sets."""
    command = [sys.executable, "-m", "unfreeze.cli.main", "fit", str(photos), "--run", str(run), "--strategy", strategy]
    command += ["--backbone", "timm/test_resnet", "--weights", "none", "--folds", "2", "--group-regex", GROUP_REGEX]
    command += ["--set", "image.size=64", "--set", "probe.stages=last:2", "--set", "probe.pool_size=2"]
    command += ["--set", "train.epochs=2"] if strategy != "probe" else []
    own = {"UNFREEZE_CACHE": str(run.with_name(f"cache-{number}")), "PYTHONHASHSEED": str(number)}
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return hashlib.sha256((run / "oof.parquet").read_bytes()).hexdigest()


@pytest.mark.parametrize("strategy", ["partial", "full", "probe"])
def test_three_empty_caches_and_a_busy_machine_give_one_result(strategy, tmp_path):
    photos = class_folders(tmp_path / "photos", groups=6)
    hashes = []
    for number in range(3):
        with ExitStack() as stack:
            if number == 2:
                stack.enter_context(busy(2))
            hashes.append(fitted(photos, tmp_path / f"run-{number}", number, strategy))
    assert len(set(hashes)) == 1
    if strategy == "probe":
        return
    plans = [json.loads((tmp_path / f"run-{n}" / "run.json").read_text())["trained"]["plans"] for n in range(3)]
    assert plans[0] == plans[1] == plans[2] and set(plans[0]) == {"0", "1"}
    assert set(plans[0]["0"]) == {"precision", "memory_format", "compile", "micro_batch"}
