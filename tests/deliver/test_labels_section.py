"""The report's section on labels: what it says, and that it stands in the page only where there is something to say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unfreeze.deliver.labels_section import labels, read_suspects
from wronglabels import wrong_run, wrong_set

SUSPECTS = {
    "table": [
        {"path": "a.jpg", "label": "cat", "suggested": "dog", "score": 0.91, "reason": "models say dog"},
        {"path": "b.jpg", "label": "dog", "suggested": "cat", "score": 0.31, "reason": "models say cat"},
    ],
    "photos": 400,
    "expected": 7.6,
    "looked": "two looks",
    "attributes": {"kind": True},
    "truth": {"planted": 8, "found_at_k": 7, "precision_at_k": 0.875, "found_at_2k": 8, "recall_at_2k": 1.0},
}
SCORE = {"macro_f1": {"value": 0.8, "low": 0.7, "high": 0.9}}
VERDICTS = {
    "file": "v.csv",
    "keep": 1,
    "relabel": 2,
    "exclude": 1,
    "moves": [{"given": "cat", "label": "dog", "photos": 2}],
    "before": {**SCORE, "accuracy": SCORE["macro_f1"], "log_loss": SCORE["macro_f1"]},
    "after": {**SCORE, "accuracy": SCORE["macro_f1"], "log_loss": SCORE["macro_f1"]},
    "photos": 397,
    "groups": 99,
}


def test_suspects_are_counted_and_the_first_is_named() -> None:
    section, paths = labels(SUSPECTS, None)
    assert section is not None and paths == ["a.jpg", "b.jpg"]
    assert section["finding"].startswith("About 8 of 400 labels are likely wrong")
    assert "labelled “cat” and looks like “dog”" in section["finding"]
    assert "7 are (.88); the first 16 hold 8 of them" in section["truth"] and section["grouped"] == "kind"


@pytest.mark.parametrize(("low", "chance"), [(-0.01, True), (0.01, False)])
def test_what_verdicts_did_comes_first_with_its_interval(low: float, chance: bool) -> None:
    section, _ = labels(SUSPECTS, VERDICTS | {"gain": {"value": 0.02, "low": low, "high": 0.05}})
    assert section is not None
    assert section["finding"].startswith(
        "Verdicts relabelled 2 photos and excluded 1: macro F1 on the unchanged photos"
    )
    assert ("which may be chance" in section["finding"]) == chance
    assert len(section["rows"]) == 2 and section["also"].startswith("About 8")


def test_nothing_to_tell() -> None:
    assert labels(None, None) == (None, [])
    section, _ = labels({**SUSPECTS, "table": []}, None)
    assert section is not None and section["finding"] == "Nothing speaks against the label of any of 400 photos."
    section, _ = labels(None, {k: v for k, v in VERDICTS.items() if k not in ("before", "after")})
    assert section is not None and "was not measured" in section["finding"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"table": 3, "photos": 1, "expected": 1}'])
def test_a_damaged_file_is_no_section(tmp_path: Path, text: str) -> None:
    (tmp_path / "suspects.json").write_text(text)
    assert read_suspects(tmp_path) is None


def test_the_report_has_the_section_and_escapes_it(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from unfreeze.deliver.report import write_report

    run = wrong_run(wrong_set(tmp_path / "photos")[0], tmp_path / "run").path
    assert 'id="labels"' not in write_report(run).read_text()
    evil = {**SUSPECTS, "table": [{**SUSPECTS["table"][0], "reason": "<b>dog</b>"}]}  # type: ignore[index,dict-item]
    (run / "suspects.json").write_text(json.dumps(evil))
    scores = json.loads((run / "scores.json").read_text())
    gain = {"gain": {"value": 0.02, "low": -0.01, "high": 0.05}}
    (run / "scores.json").write_text(json.dumps(scores | {"verdicts": VERDICTS | gain}))
    page = write_report(run).read_text()
    assert '<section id="labels">' in page and "&lt;b&gt;dog" in page and "<b>dog" not in page
    assert "What was relabelled" in page and "no longer there" in page
