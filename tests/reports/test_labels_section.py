"""The report's section on labels: what it says, and that it stands in the page only where there is something to say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unfreeze.reports.section_labels import labels, read_label_issues
from wronglabels import wrong_run, wrong_set

SUSPECTS = {
    "table": [
        {"path": "a.jpg", "label": "cat", "suggested": "dog", "score": 0.91, "reason": "models say dog"},
        {"path": "b.jpg", "label": "dog", "suggested": "cat", "score": 0.31, "reason": "models say cat"},
    ],
    "photos": 400,
    "wrong": {"value": 7.6, "low": 3.2, "high": 12.4},
    "looked": "two looks",
    "attributes": {"kind": True},
    "truth": {"planted": 8, "found_at_k": 7, "precision_at_k": 0.875, "found_at_2k": 8, "recall_at_2k": 1.0},
}
SCORE = {"macro_f1": {"value": 0.8, "low": 0.7, "high": 0.9}}
CORRECTIONS = {
    "file": "v.csv",
    "keep": 1,
    "relabel": 2,
    "exclude": 1,
    "moves": [{"given": "cat", "label": "dog", "photos": 2}],
    "before": {**SCORE, "accuracy": SCORE["macro_f1"], "log_loss": SCORE["macro_f1"]},
    "after": {**SCORE, "accuracy": SCORE["macro_f1"], "log_loss": SCORE["macro_f1"]},
    "given": {**SCORE, "accuracy": SCORE["macro_f1"], "log_loss": SCORE["macro_f1"]},
    "corrected": {**SCORE, "accuracy": SCORE["macro_f1"], "log_loss": SCORE["macro_f1"]},
    "nested": True,
    "optimism": {"value": 0.03, "low": 0.01, "high": 0.05},
    "applied": 2.0,
    "corrections": 3,
    "photos": 400,
    "groups": 99,
}


def test_suspects_are_counted_and_the_first_is_named() -> None:
    section, paths = labels(SUSPECTS, None)
    assert section is not None and paths == ["a.jpg", "b.jpg"]
    assert section["finding"].startswith("About 8 of 400 labels are likely wrong (95% interval [3, 12])")
    assert "labeled “cat” and looks like “dog”" in section["finding"]
    assert "7 are (0.88); the first 16 hold 8 of them" in section["truth"] and section["grouped"] == "kind"


def test_no_number_is_named_where_its_interval_holds_none() -> None:
    section, _ = labels({**SUSPECTS, "wrong": {"value": 1.2, "low": 0.0, "high": 6.0}}, None)
    assert section is not None
    assert section["finding"].startswith("No wrong labels detected among 400 labels")
    assert "About" not in section["finding"] and "interval [0, 6]" in section["finding"]


@pytest.mark.parametrize(("low", "chance"), [(-0.01, True), (0.01, False)])
def test_what_corrections_did_comes_first_with_its_interval(low: float, chance: bool) -> None:
    section, _ = labels(SUSPECTS, CORRECTIONS | {"gain": {"value": 0.02, "low": low, "high": 0.05}})
    assert section is not None
    assert section["finding"].startswith(
        "Corrections relabeled 2 photos and excluded 1. Macro F1, by the labels as given: 0.800 without the corrections"
    )
    assert "those found without the scored fold (2 of 3)" in section["finding"]
    assert ("not significant" in section["finding"]) == chance
    assert [row["name"] for row in section["rows"]][1:] == ["this run, labels as given", "this run, corrected labels"]
    assert section["also"].startswith("About 8")


def test_nothing_to_report() -> None:
    assert labels(None, None) == (None, [])
    section, _ = labels({**SUSPECTS, "table": []}, None)
    assert section is not None and section["finding"] == "Nothing contradicts the label of any of 400 photos."
    section, _ = labels(None, {k: v for k, v in CORRECTIONS.items() if k not in ("before", "after")})
    assert section is not None and "was not measured" in section["finding"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"table": 3, "photos": 1, "wrong": 1}'])
def test_a_damaged_file_is_no_section(tmp_path: Path, text: str) -> None:
    (tmp_path / "label_issues.json").write_text(text)
    assert read_label_issues(tmp_path) is None


def test_the_report_has_the_section_and_escapes_it(tmp_path: Path) -> None:
    from unfreeze.reports.run_report import write_report

    run = wrong_run(wrong_set(tmp_path / "photos")[0], tmp_path / "run").path
    assert 'id="labels"' not in write_report(run).read_text()
    evil = {**SUSPECTS, "table": [{**SUSPECTS["table"][0], "reason": "<b>dog</b>"}]}  # type: ignore[index,dict-item]
    (run / "label_issues.json").write_text(json.dumps(evil))
    scores = json.loads((run / "scores.json").read_text())
    gain = {"gain": {"value": 0.02, "low": -0.01, "high": 0.05}}
    (run / "scores.json").write_text(json.dumps(scores | {"corrections": CORRECTIONS | gain}))
    page = write_report(run).read_text()
    assert '<section id="labels">' in page and "&lt;b&gt;dog" in page and "<b>dog" not in page
    assert "What was relabeled" in page and "no longer there" in page
