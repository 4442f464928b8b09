"""corrections.csv: written at once, read with clear errors, never damaged by a crash or a spreadsheet."""

from __future__ import annotations

import subprocess
import sys
import threading
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfreeze.core.corrections import COLUMNS, Correction, append_correction, read_corrections, withdraw_correction
from unfreeze.core.errors import CorrectionsError, StorageError

A = Correction("a.jpg", "1f", "relabel", "cat, small", "2026-01-01T00:00:00+00:00")
B = Correction('b "x".jpg', "2f", "exclude", "", "2026-01-01T00:00:01+00:00")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run" / "corrections.csv"


def test_what_is_written_is_read(file: Path) -> None:
    append_correction(file, A)
    append_correction(file, B)
    assert read_corrections(file, ["cat, small"]) == ([A, B], [])
    assert tuple(pd.read_csv(file).columns) == COLUMNS
    assert pd.read_csv(file)["path"].tolist() == [A.path, B.path]


@given(path=st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1))
def test_any_name_survives_and_none_is_a_formula(path: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("v") / "corrections.csv"
    append_correction(file, Correction(path, "", "relabel", path, "t"))
    append_correction(file, A)
    found, _ = read_corrections(file)
    label = unicodedata.normalize("NFC", path)  # labels are compared in NFC, paths are kept as they are
    assert found == ([Correction(path, "", "relabel", label, "t"), A] if path != A.path else [A])
    assert not pd.read_csv(file, keep_default_na=False)["path"][0].startswith(("=", "+", "-", "@", "\t", "\r"))


def test_the_last_word_counts_and_that_is_said(file: Path) -> None:
    for correction in (A, B, Correction("a.jpg", "1f", "keep", "", "t")):
        append_correction(file, correction)
    found, findings = read_corrections(file)
    assert [(v.path, v.action) for v in found] == [(B.path, "exclude"), ("a.jpg", "keep")]
    assert [f.check for f in findings] == ["corrections-again"] and "1 correction(s)" in findings[0].message


def test_withdrawing_brings_the_earlier_word_back(file: Path) -> None:
    append_correction(file, A)
    append_correction(file, Correction("a.jpg", "1f", "keep", "", "t"))
    assert withdraw_correction(file, "a.jpg") and read_corrections(file)[0] == [A]
    assert withdraw_correction(file, "a.jpg") and read_corrections(file)[0] == []
    assert not withdraw_correction(file, "a.jpg")


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_torn_last_line_is_passed_over_and_then_cut_away(file: Path, cut: int) -> None:
    append_correction(file, A)
    before = file.read_bytes()
    append_correction(file, B)
    whole = file.read_bytes()
    file.write_bytes(whole[: min(len(before) + cut, len(whole) - 1)])
    found, findings = read_corrections(file)
    if len(found) == 1:  # else all cells were there and only the time was cut
        assert found == [A] and findings[0].check == "corrections-torn"
    append_correction(file, Correction("c.jpg", "", "keep", "", "t"))
    again, findings = read_corrections(file)
    assert [v.path for v in again] == [*(v.path for v in found), "c.jpg"] and not findings


def test_a_header_cut_off_is_written_again(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("path,ha")
    append_correction(file, A)
    assert read_corrections(file)[0] == [A]


def test_what_a_spreadsheet_saves_is_read(file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"\xef\xbb\xbfpath;hash;action;label;timestamp\r\na.jpg;1f;Relabel;cat;x\r\n;;;;\r\nb.jpg;;keep;;")
    found, findings = read_corrections(file, ["cat"])
    assert [(v.path, v.action, v.label) for v in found] == [("a.jpg", "relabel", "cat"), ("b.jpg", "keep", "")]
    assert not findings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "path,hash,action,label,timestamp\na.jpg,,relable,cat,t\n",
            "line 2: correction 'relable' of a.jpg is unknown",
        ),
        ("path,hash,action,label,timestamp\na.jpg,,keep,,t\nb.jpg,,relabel,cot,t\n", "line 3: relabels b.jpg as 'cot'"),
        ("path,hash,action,label,timestamp\na.jpg,,relabel,,t\n", "without a label"),
        ("path,hash,action,label,timestamp\n,,keep,,t\n", "the path is empty"),
        ("path,hash,action,label,timestamp\na.jpg\n", "has 1 cell"),
        ("name,label\na.jpg,cat\n", "no column path, action"),
        ("", "the file is empty"),
    ],
)
def test_errors_name_the_line_and_the_word(file: Path, text: str, said: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(CorrectionsError, match=said.replace("(", r"\(")) as error:
        read_corrections(file, ["cat", "dog"])
    assert str(file) in str(error.value)


def test_a_near_miss_is_suggested_and_absence_is_said(file: Path) -> None:
    with pytest.raises(CorrectionsError, match="no such corrections file; `unfreeze review RUN` writes one"):
        read_corrections(file)
    append_correction(file, Correction("a.jpg", "", "relabel", "dogs", "t"))
    with pytest.raises(CorrectionsError, match="Did you mean 'dog'"):
        read_corrections(file, ["cat", "dog"])


def test_another_file_is_not_written_to(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("file,colour\na.jpg,red\n")
    with pytest.raises(CorrectionsError, match="not a corrections file"):
        append_correction(file, A)
    assert file.read_text() == "file,colour\na.jpg,red\n"


def test_a_folder_in_the_way_is_an_error_of_storage(file: Path) -> None:
    file.mkdir(parents=True)
    with pytest.raises(StorageError, match="folder of this name"):
        append_correction(file, A)


def test_threads_and_processes_lose_nothing(file: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from unfreeze.core.corrections import *\n"
        "for i in range(20): append_correction(Path(sys.argv[1]), Correction(f'p{i}', '', 'keep', '', 't'))"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(file)])

    def some(name: str) -> None:
        for i in range(20):
            append_correction(file, Correction(f"{name}{i}", "", "keep", "", "t"))
            withdraw_correction(file, f"{name}{i - 1}")

    threads = [threading.Thread(target=some, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other.wait(60) == 0
    assert {v.path for v in read_corrections(file)[0]} == {"a19", "b19", *(f"p{i}" for i in range(20))}
