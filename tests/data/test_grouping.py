"""Groups at prediction: from a column, from the path, or not at all."""

from __future__ import annotations

import pytest

from unfreeze.core.errors import SourceError
from unfreeze.data.grouping import groups_of


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "new.csv"
    file.write_text("path,person\na/1.jpg,anna\nb/2.jpg,bert\n", encoding="utf-8")
    return file


NAMES = ["a/1.jpg", "b/2.jpg"]


def test_named_by_a_column_or_a_path(table, tmp_path):
    assert groups_of(table, NAMES, "person", None) == ["anna", "bert"]
    assert groups_of(tmp_path, NAMES, None, "^(?P<group>[^/]+)/") == ["a", "b"]
    assert groups_of(tmp_path, NAMES, None, None) is None


@pytest.mark.parametrize(
    ("column", "pattern", "says"),
    [
        ("person", "(?P<group>.)", "Give one of them"),
        ("nobody", None, "nobody"),
        (None, "(.)", "no part is named group"),
        (None, "(?P<group>x)", "no group in 2 of 2 paths"),
    ],
)
def test_what_names_no_group(table, column, pattern, says):
    with pytest.raises(SourceError, match=says.replace("(", "\\(")):
        groups_of(table, NAMES, column, pattern)


def test_a_folder_has_no_columns(tmp_path):
    with pytest.raises(SourceError, match="is no table"):
        groups_of(tmp_path, NAMES, "person", None)


def test_an_empty_cell_is_named(tmp_path):
    file = tmp_path / "new.csv"
    file.write_text("path,person\na/1.jpg,anna\nb/2.jpg,\n", encoding="utf-8")
    with pytest.raises(SourceError, match="'person' is empty"):
        groups_of(file, NAMES, "person", None)
