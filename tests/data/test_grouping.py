"""Groups at prediction: from a column, from the path, or not at all."""

from __future__ import annotations

import time

import pytest

from unfreeze.core.errors import SourceError
from unfreeze.data.groups import groups_from_table


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "new.csv"
    file.write_text("path,person\na/1.jpg,anna\nb/2.jpg,bert\n", encoding="utf-8")
    return file


NAMES = ["a/1.jpg", "b/2.jpg"]


def test_named_by_a_column_or_a_path(table, tmp_path):
    assert groups_from_table([table], NAMES, "person", None) == ["anna", "bert"]
    assert groups_from_table([tmp_path], NAMES, None, "^(?P<group>[^/]+)/") == ["a", "b"]
    assert groups_from_table([tmp_path], NAMES, None, None) is None


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
        groups_from_table([table], NAMES, column, pattern)


def test_a_folder_has_no_columns(tmp_path):
    with pytest.raises(SourceError, match="is not a table"):
        groups_from_table([tmp_path], NAMES, "person", None)


def test_images_without_a_group_and_an_empty_column(tmp_path):
    file, said = tmp_path / "new.csv", []
    file.write_text("path,person,none\na/1.jpg,anna,\nb/2.jpg, ,\n", encoding="utf-8")
    assert groups_from_table([file], NAMES, "person", None, notice=said.append) == ["anna", "b/2.jpg"]
    assert said == ["1 image of 2 without a group in 'person': each is a group of its own."]
    with pytest.raises(SourceError, match=r"'none' is empty in all rows\. Leave group= out"):
        groups_from_table([file], NAMES, "none", None)


def test_a_table_without_header_or_in_another_encoding(tmp_path):
    file = tmp_path / "new.csv"
    file.write_bytes("a/1.jpg,x,홍길동\nb/2.jpg,x,김철수\n".encode("cp949"))
    assert groups_from_table([file], NAMES, "column_3", None) == ["홍길동", "김철수"]


SLOW = [
    r"(?P<group>(a+)+)$",
    r"(?P<group>(.*a){25})$",
    r"(?P<group>(a+a+)+b)",
    r"(?=(a+)+$)(?P<group>b)",
]


@pytest.mark.parametrize("pattern", SLOW)
def test_a_pattern_that_backtracks_is_stopped(pattern, tmp_path):
    started = time.process_time(), children()
    with pytest.raises(SourceError, match=r"takes more than|no group in"):
        groups_from_table([tmp_path], ["a" * 60 + "!.png", "a" * 70 + "?.png"], None, pattern)
    assert time.process_time() - started[0] + children() - started[1] < 2


def children() -> float:
    """Processor time of the child processes that have ended."""
    resource = pytest.importorskip("resource")
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


@pytest.mark.parametrize("pattern", ["(?P<group>((((a{1000}){1000}){1000}){1000}){1000})", "(?P<group>" + "(" * 5000])
def test_a_pattern_that_needs_too_much_memory_is_an_error(pattern, tmp_path):
    with pytest.raises(SourceError):
        groups_from_table([tmp_path], NAMES, None, pattern)


def test_many_paths_and_names_of_any_kind(tmp_path):
    names = [f"고양이/그룹{i // 7}_{i}.jpg" for i in range(50_000)] + ["\udcff/x_1.jpg", "😀/y_1.jpg"]
    groups = groups_from_table([tmp_path], names, None, r"(?P<group>[^/_]+)_[^/]*$")
    assert groups[:8] == ["그룹0"] * 7 + ["그룹1"] and groups[-2:] == ["x", "y"]
    assert groups_from_table([tmp_path], names[-2:], None, "^(?P<group>[^/]+)/") == ["\udcff", "😀"]


def test_the_child_runs_nothing_from_the_working_folder(tmp_path, monkeypatch):
    for name in ("json", "re", "signal", "resource"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert groups_from_table([tmp_path], NAMES, None, "^(?P<group>[^/]+)/") == ["a", "b"]
    assert not (tmp_path / "ran").exists()
