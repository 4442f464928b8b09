"""Every family of backbones with every strategy: a real fit of the default recipe, on a dozen small images."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import record

TESTS = Path(__file__).parents[1] / "tests"
STRATEGIES = ("probe", "partial", "full", "scratch")
HEADLINE = ("backbone", "size", "strategy", "passed", "seconds", "error")
# Two classes of six images, a group each; weights from a seed, two folds and one epoch: what is tried is that it runs.
CLASSES, GROUPS = ("red", "green"), 6
# How fast a network trains is not tried: no timing of precisions and memory formats.
PLAN = {"train.precision": "f32", "train.memory_format": "contiguous", "train.compile": "off"}
CHANGES = {"weights": "none", "folds.n_splits": 2, "train.epochs": 1, **PLAN}


def families() -> dict[str, int]:
    """Full name -> side of the images in pixels, as the tests have them."""
    sys.path.insert(0, str(TESTS))
    from backbonefamilies import ALL

    return ALL


def rows(names: dict[str, int], strategies: tuple[str, ...], scratch: Path) -> Iterator[dict[str, Any]]:
    """A row a fit. A process for each backbone, with an empty cache: what one does cannot help or harm another."""
    for backbone, size in names.items():
        cache = scratch / "cache"
        command = [sys.executable, __file__, backbone, "--size", str(size), "--strategies", ",".join(strategies)]
        environment = {**os.environ, "UNFREEZE_CACHE": str(cache)}
        done = subprocess.run([*command, "--child", str(scratch)], env=environment, capture_output=True, text=True)
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"backbone"')]
        yield from found
        for strategy in strategies[len(found) :]:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            yield row_of(backbone, size, strategy, 0.0, f"exit code {done.returncode}: {last}")
        shutil.rmtree(cache, ignore_errors=True)


def fits(backbone: str, size: int, strategies: tuple[str, ...], scratch: Path) -> Iterator[dict[str, Any]]:
    """A row a fit, in this process. It passes if predictions of its own images are finite too."""
    import unfreeze as uf
    from photosets import GROUP_REGEX, class_folders

    photos = class_folders(scratch / "photos", groups=GROUPS, each=1, classes=CLASSES)
    for strategy in strategies:
        started, run, error = time.perf_counter(), scratch / "run", ""
        changes = {**CHANGES, "strategy": strategy, "backbone": backbone, "image.size": size}
        recipe = uf.Recipe().replace(**changes, **{"source.path": str(photos), "source.group_regex": GROUP_REGEX})
        try:
            uf.fit(uf.read(photos, recipe.source), recipe, run)
            predicted = uf.load(run).predict(photos)
            bad = int((predicted[[f"p_{name}" for name in CLASSES]].isna().any(axis=1)).sum())
            error = f"{bad} predictions are not finite" if bad else ""
        except Exception as failure:  # what comes of it is the result
            error = f"{type(failure).__name__}: {(str(failure).splitlines() or [''])[0]}"
        shutil.rmtree(run, ignore_errors=True)
        yield row_of(backbone, size, strategy, time.perf_counter() - started, error)


def row_of(backbone: str, size: int, strategy: str, seconds: float, error: str) -> dict[str, Any]:
    about = {"backbone": backbone, "size": size, "strategy": strategy}
    return {**about, "passed": int(not error), "seconds": round(seconds, 1), "error": error}


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("names", nargs="*", help="full names; by default every family of the tests")
    asked.add_argument("--strategies", default=",".join(STRATEGIES), help="comma-separated")
    asked.add_argument("--size", type=int, default=0, help="side of the images; 0: that of the tests")
    asked.add_argument("--out", default="backbones", help="name of the CSV in results/")
    asked.add_argument("--child", default="", help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.child:
        sys.path.insert(0, str(TESTS))
        for measured in fits(given.names[0], given.size, tuple(given.strategies.split(",")), Path(given.child)):
            print(json.dumps(measured), flush=True)
        sys.exit()
    known = families()
    chosen = {name: given.size or known[name] for name in given.names or known}
    begun, kept = time.perf_counter(), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="unfreeze-bench-") as folder:
        for measured in rows(chosen, tuple(given.strategies.split(",")), Path(folder)):
            kept.append(measured)
            record.write_rows(given.out, kept)
            print(", ".join(f"{key} {value}" for key, value in measured.items()), flush=True)
    record.write_machine(given.out, time.perf_counter() - begun)
    failed = [row for row in kept if not row["passed"]]
    record.show(given.out, failed or kept[:1], HEADLINE)
    print(f"{len(kept) - len(failed)} of {len(kept)} fits of (backbone, strategy) passed.")
    sys.exit(bool(failed))
