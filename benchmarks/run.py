"""`make bench`: runs every benchmark, or those named, and keeps their rows in benchmarks/results.

python benchmarks/run.py feature_pass sets --data ../shared/data
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import balance
import checking
import comparison_statistics
import curve
import curve_statistics
import diagnose
import feature_pass
import hostile_clients
import label_statistics
import labels
import look_alikes
import memory
import partial
import precision
import recommendation
import record
import rows as many_rows
import scale
import serving
import sets
import similarity
import suspects
import tuned
import tuning
import whole_job

import training

Rows = Iterator[dict[str, Any]]
# name -> what measures: (real photos or None, empty scratch folder, repeats) -> rows; and the columns to show
BENCHMARKS: dict[str, tuple[Callable[[Path | None, Path, int], Rows], tuple[str, ...]]] = {
    "feature_pass": (feature_pass.rows, feature_pass.HEADLINE),
    "checking": (checking.rows, checking.HEADLINE),
    "look_alikes": (look_alikes.rows, look_alikes.HEADLINE),
    "recommendation": (recommendation.rows, recommendation.HEADLINE),
    "sets": (sets.rows, sets.HEADLINE),
    "memory": (memory.rows, memory.HEADLINE),
    "suspects": (suspects.rows, suspects.HEADLINE),
    "label_statistics": (label_statistics.rows, label_statistics.HEADLINE),
    "precision": (precision.rows, precision.HEADLINE),
    "training": (training.rows, training.HEADLINE),
    "partial": (partial.rows, partial.HEADLINE),
    "tuned": (tuned.rows, tuned.HEADLINE),
    "tuning": (tuning.rows, tuning.HEADLINE),
    "balance": (balance.rows, balance.HEADLINE),
    "labels": (labels.rows, labels.HEADLINE),
    "comparison_statistics": (comparison_statistics.rows, comparison_statistics.HEADLINE),
    "curve": (curve.rows, curve.HEADLINE),
    "curve_statistics": (curve_statistics.rows, curve_statistics.HEADLINE),
    "diagnose": (diagnose.rows, diagnose.HEADLINE),
    "rows": (many_rows.rows, many_rows.HEADLINE),
    "scale": (scale.rows, scale.HEADLINE),
    "similarity": (similarity.rows, similarity.HEADLINE),
    "serving": (serving.rows, serving.HEADLINE),
    "hostile": (hostile_clients.rows, hostile_clients.HEADLINE),
    "whole_job": (whole_job.rows, whole_job.HEADLINE),
    "whole_job_2000": (whole_job.rows_2000, whole_job.HEADLINE),
    "whole_job_epoch": (whole_job.rows_epoch, whole_job.HEADLINE),
    "whole_job_full": (whole_job.rows_full, whole_job.HEADLINE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data", metavar="DIR")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    asked = parser.parse_args()
    unknown = sorted(set(asked.names) - BENCHMARKS.keys())
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; known are {', '.join(BENCHMARKS)}")
    data = asked.data.resolve() if asked.data.is_dir() else None
    if data is None:
        print(f"{asked.data}: no such folder; benchmarks use generated photos or are skipped.")
    for name in asked.names or BENCHMARKS:
        measure, headline = BENCHMARKS[name]
        started = time.perf_counter()
        rows: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory(prefix="unfreeze-bench-") as scratch:
            for row in measure(data, Path(scratch), asked.repeats):
                rows.append(row)
                record.write_rows(name, rows)  # after every row: what is measured stays if the rest is interrupted
                print(f"{name}: " + ", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
        if rows:
            record.write_machine(name, time.perf_counter() - started)
            record.show(name, rows, headline)


if __name__ == "__main__":
    main()
