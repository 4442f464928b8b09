"""Keeps what was measured: a CSV a benchmark, written after every row, and the machine it was measured on."""

from __future__ import annotations

import csv
import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("unfreeze", "numpy", "openvino", "simplejpeg", "pillow", "torch", "torchvision", "timm")


def write_rows(name: str, rows: list[dict[str, Any]]) -> None:
    """results/NAME.csv; columns in the order of their first row."""
    RESULTS.mkdir(exist_ok=True)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with (RESULTS / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_machine(name: str, seconds: float) -> None:
    """The benchmark's entry in results/machine.json."""
    file = RESULTS / "machine.json"
    known = json.loads(file.read_text("utf-8")) if file.exists() else {}
    known[name] = {**machine(), "seconds": round(seconds)}
    file.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", "utf-8")


def machine() -> dict[str, Any]:
    """Cores, processor, memory, versions, load and date."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "system": platform.system(),
        "versions": versions,
        "load": [round(x, 2) for x in os.getloadavg()],
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
    }


def show(name: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """The named columns of the rows as a table on the terminal; the CSV has them all."""
    table = Table(title=f"{name}.csv", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        numeric = all(isinstance(row.get(column, 0), int | float) for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    Console().print(table)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
