"""The report's section on a diagnosis: what it says first, names escaped, damaged files passed over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from unfreeze.core.runs import Run
from unfreeze.reports.run_report import write_report
from unfreeze.reports.section_diagnosis import FILE, diagnosis, read_diagnosis

EVIL = "<script>alert(1)</script>"


def figure(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.02}


def cause(name: str, severity: str = "none", cost: float | None = None, measured: bool = True) -> dict[str, Any]:
    return {
        "name": name,
        "severity": severity,
        "cost": None if cost is None else figure(cost),
        "evidence": f"{name}, measured.",
        "remedy": "Mend it.",
        "command": "unfreeze check photos",
        "measured": measured,
        "details": {},
    }


def kept(*causes: dict[str, Any], test: str = "new") -> dict[str, Any]:
    return {
        "version": 1,
        "sentence": "x",
        "score": figure(0.8),
        "expected": figure(0.7) if test else None,
        "real": None,
        "test": test,
        "causes": list(causes),
        "notes": [],
    }


def test_the_gravest_comes_first_and_the_rest_is_folded_away() -> None:
    section = diagnosis(kept(cause("leakage: a", "error", 0.1), cause("labels: b", "warning"), cause("shift: c")))
    assert section is not None
    assert section["finding"] == "First look at leakage: a, at +0.100 [+0.090, +0.120] of macro F1; 1 more to check."
    assert [c["name"] for c in section["grave"]] == ["leakage: a", "labels: b"]
    assert [c["name"] for c in section["others"]] == ["shift: c"]
    assert section["plot"].count("<rect") == 1 and ">+0.100 [+0.090, +0.120]<" in section["plot"]
    assert [row["name"] for row in section["scores"]] == ["out of fold", "to expect of new"]


def test_nothing_found_is_said_and_what_was_not_measured_too() -> None:
    section = diagnosis(kept(cause("leakage: a"), cause("shift: b", measured=False), test=""))
    assert section is not None and section["finding"] == "No problem found."
    assert [c["word"] for c in section["others"]] == ["nothing found", "not measured"]
    assert section["plot"] == ""


def test_figures_in_sentences_are_set_as_elsewhere_on_the_page() -> None:
    told = cause("leakage: a") | {"evidence": "Lower by -0.011 [-0.020, +0.002], of 0.5 and 0.770 [0.741, 0.796]; a-1."}
    section = diagnosis(kept(told))
    assert section is not None
    assert section["others"][0]["evidence"] == "Lower by -0.011 [-0.020, +0.002], of 0.5 and 0.770 [0.741, 0.796]; a-1."


def test_no_file_no_section() -> None:
    assert diagnosis(None) is None and diagnosis(kept()) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"causes": 3}', '{"causes": [{"name": 1}]}', json.dumps({"causes": []})])
def test_a_damaged_file_is_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    assert read_diagnosis(tmp_path) is None
    assert read_diagnosis(tmp_path / "absent") is None


def test_the_report_shows_it_escaped_and_is_fine_without(probe_run: Run, tmp_path: Path) -> None:
    run = Path(shutil.copytree(probe_run.path, tmp_path / "run"))
    assert 'id="diagnosis"' not in write_report(run).read_text()
    (run / FILE).write_text(json.dumps(kept(cause(f"leakage: {EVIL}", "error", 0.1), test=EVIL)))
    page = write_report(run).read_text()
    assert 'id="diagnosis"' in page and 'href="#diagnosis"' in page
    assert EVIL not in page and "&lt;script&gt;alert(1)" in page
    (run / FILE).write_text("{")
    assert 'id="diagnosis"' not in write_report(run).read_text()
