"""The photos table is checked once, at the border."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from unfreeze.core.dataset import FINDING_COLUMNS, Finding, ImageDataset, findings_frame, probability_columns
from unfreeze.core.errors import SourceError


def photos(**columns) -> ImageDataset:
    table = pd.DataFrame({"path": ["a", "b"], "label": ["x", "y"], "group": ["1", "2"], "split": "train"} | columns)
    return ImageDataset(table, Path("/r"), ("x", "y"), ("x", "y"), ("label",), "table", "")


def test_good_one():
    assert len(photos()) == 2
    assert photos().files() == [Path("/r/a"), Path("/r/b")]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"path": ["a", "a"]}, "a path twice: a"),
        ({"split": "val"}, "holds 'val'"),
        ({"label": ["x", "z"]}, "not listed: z"),
        ({"label": ["x", float("nan")]}, "not listed: nan"),
        ({"label": ["1", 2.0]}, "not listed: 1, 2.0"),
    ],
)
def test_wrong_ones(columns, said):
    with pytest.raises(SourceError, match=said):
        photos(**columns)


def test_missing_columns():
    with pytest.raises(SourceError, match=r"lacks the column\(s\) group"):
        photos().with_table(photos().table.drop(columns="group"))


def test_with_table_appends_findings():
    one, two = Finding("a", "info", "m", "f"), Finding("b", "error", "m", "f")
    first = photos().with_table(photos().table, one)
    assert first.with_table(first.table, two).findings == (one, two)


def test_findings_table():
    kinds = ["info", "error", "warning", "error"]
    table = findings_frame([Finding(str(i), kind, "m", "f") for i, kind in enumerate(kinds)])
    assert list(table.columns) == list(FINDING_COLUMNS)
    assert list(table["check"]) == ["1", "3", "2", "0"]
    assert list(findings_frame([]).columns) == list(FINDING_COLUMNS)


def test_probability_columns():
    assert probability_columns(("a", "b")) == ["p_a", "p_b"]
