"""core/names.py: Unicode forms, look-alikes, numbers, and files whose names come in another form."""

from __future__ import annotations

import os
import unicodedata
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfreeze.core.names import (
    as_number,
    look_alike,
    look_alikes,
    matching,
    nfc,
    number_names,
    on_disk,
    positions,
    visible,
)

APPLE = "사과"
CAFE = "café"


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def test_nfc():
    assert nfc(nfd(APPLE)) == APPLE != nfd(APPLE)
    assert nfc("plain") == "plain"
    assert nfc("\udce9") == "\udce9", "a name that is not UTF-8 stays what it is"


# Which name is meant


def test_positions_take_the_exact_name_first_and_then_the_only_one_equal_in_nfc():
    assert positions([nfd(CAFE), "b", "x"], ["b", CAFE]) == [1, 0, -1]
    assert positions([nfd(CAFE), CAFE], [CAFE, nfd(CAFE)]) == [1, 0]
    mixed = "e\u0301" + "é"
    assert positions([mixed], ["éé", nfd("éé")]) == [-1], "which of the two is meant cannot be told"
    assert positions([CAFE, nfd(CAFE)], [CAFE]) == [0, 0]
    assert positions([CAFE, nfd(CAFE)], [CAFE], one_to_one=True) == [0, -1]
    assert positions([], ["a"]) == []


def test_matching():
    assert matching(nfd(APPLE), ("x", APPLE)) == APPLE
    assert matching("1.0", ("0", "1")) == "1"
    assert matching("1", ("0.0", "1.0")) == "1.0"
    assert matching("01", ("0", "1")) is None
    assert matching("1", ("1.0", "1.00")) is None, "two are the same number"
    assert matching("Cat", ("cat",)) is None


# Numbers


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["0.0", "1.0", "10.0"], ["0", "1", "10"]),
        (["1", "1.00", "", "2"], ["1", "1", "", "2"]),
        (["0.5", "0.50x"], ["0.5", "0.50x"]),
        (["0.50", "-1.0", "-0.0"], ["0.5", "-1", "0"]),
        (["100", "20.0"], ["100", "20"]),
        (["1.1", "1.10", "2.0"], ["1.1", "1.10", "2.0"]),
        (["007", "1.0"], ["007", "1.0"]),
        (["1e5", "1.0"], ["1e5", "1.0"]),
        (["nan", "1.0"], ["nan", "1.0"]),
        (["None", "True", "1.0"], ["None", "True", "1.0"]),
        (["+1", "1.0"], ["+1", "1.0"]),
        ([".5", "1."], [".5", "1."]),
        (["１.0", "2.0"], ["１.0", "2.0"]),
        (["", ""], ["", ""]),
    ],
)
def test_number_names(texts, names):
    assert number_names(texts) == names


@given(st.lists(st.decimals(-1000, 1000, places=3), min_size=1))
def test_numbers_keep_their_value_and_get_one_name_each(values):
    names = number_names([f"{value:.3f}" for value in values])
    if any("." in name and name.endswith("0") for name in names):
        return  # codes
    assert [Decimal(name) for name in names] == values
    assert len(set(names)) == len(set(values))


def test_as_number():
    assert as_number("-2.50") == Decimal("-2.5")
    assert all(as_number(text) is None for text in ("007", "+1", "1e5", "nan", "inf", "", "1,0", "٣", "1\n"))


# Look-alikes


@pytest.mark.parametrize(
    "name",
    [
        "Cat", "CAT", " cat", "cat ", "cat\u00a0", "cat\u200b", "c\u00adat", "\ufeffcat", "cat\ufe0f", "cat\u2060",
        "ｃａｔ", "cat\u200d", "cat\t", "cat\u3000", "ca\u034ft", "cat\u3164", "\u202acat\u202c", "cat\x00", "𝐜𝐚𝐭",
    ],
)  # fmt: skip
def test_names_that_look_like_cat(name):
    assert look_alike(name) == look_alike("cat")
    assert look_alikes(["cat", name, "dog"]) == [sorted(["cat", name])]
    assert visible(name).isascii(), "what cannot be seen or told apart is shown by its escape"


@pytest.mark.parametrize(
    "pair", ["ß ss", "İ i̇", "ﬁ fi", "① 1", "01 1", "1.0 1", "-0 0", "+1 1", "-01.50 -1.5", "Σ ς", "한 한"]
)
def test_further_look_alikes(pair):
    one, other = pair.split(" ")
    assert look_alike(one) == look_alike(other)


@pytest.mark.parametrize(
    "pair",
    [
        "cat|cats",
        "a b|ab",
        "1|-1",
        "1|10",
        "é|e",
        "1.1|1.11",
        "1234567890123456789012345678901|1234567890123456789012345678902",
        "사과|사괴",
        "a_b|a-b",
    ],
)
def test_names_that_do_not_look_alike(pair):
    one, other = pair.split("|")
    assert look_alike(one) != look_alike(other)


def test_a_name_that_shows_nothing():
    assert look_alike("\u200b\u3164 ") == ""


@given(st.text())
def test_a_key_is_its_own_key_and_an_escaped_name_is_one_printable_line(text):
    assert look_alike(look_alike(text)) == look_alike(text)
    assert visible(text).isprintable()


def test_visible():
    assert visible("cat\u200b") == r"'cat\u200b'"
    assert visible("cat\u00a0 사과 é") == r"'cat\xa0 사과 é'"
    assert visible("\udce9") == r"'\udce9'"


# Files


def two_forms(folder: Path) -> bool:
    """Whether the file system keeps both forms of a name apart; macOS and some network drives do not."""
    (folder / CAFE).touch()
    apart = not (folder / nfd(CAFE)).exists()
    (folder / CAFE).unlink()
    return apart


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if not two_forms(tmp_path):
        pytest.skip("this file system takes both forms of a name for one")
    return tmp_path


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(os.fspath(path))
    return path


@pytest.mark.parametrize("folder_form", ["NFC", "NFD"])
@pytest.mark.parametrize("name_form", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_a_file_is_found_whatever_the_form_of_each_part(folder, folder_form, name_form, asked):
    there = put(folder / unicodedata.normalize(folder_form, APPLE) / unicodedata.normalize(name_form, f"{CAFE}.jpg"))
    found = on_disk(folder / unicodedata.normalize(asked, f"{APPLE}/{CAFE}.jpg"))
    assert found == there and found.read_text() == os.fspath(there)


def test_as_given_comes_first_then_nfc_then_nfd(folder):
    composed, decomposed = put(folder / "éé"), put(folder / nfd("éé"))
    assert on_disk(decomposed) == decomposed
    mixed = folder / ("e\u0301" + "é")
    assert on_disk(mixed) == composed
    composed.unlink()
    assert on_disk(mixed) == decomposed
    put(mixed)
    decomposed.unlink()
    assert on_disk(folder / "éé") == mixed, "a form that is neither NFC nor NFD is found by looking into the folder"


def test_a_folder_that_is_there_in_both_forms_is_looked_into_twice(folder):
    put(folder / APPLE / "0.jpg")
    there = put(folder / nfd(APPLE) / "1.jpg")
    assert on_disk(folder / APPLE / "1.jpg") == there


def test_a_file_that_came_later_is_found(folder):
    (folder / "x").mkdir()
    asked = folder / "x" / "é\u0323"  # reordered by NFC and NFD
    assert on_disk(asked) == asked
    there = put(folder / "x" / ("e\u0301\u0323"))
    os.utime(folder / "x", ns=(1, 1))
    assert on_disk(asked) == there


def test_what_is_not_there_stays_as_given(folder, monkeypatch):
    for name in ("no.jpg", f"{CAFE}.jpg", f"{APPLE}/{CAFE}", "\0é", "é" * 5000, "\udce9"):
        assert on_disk(folder / name) == folder / name
    monkeypatch.chdir(folder)
    there = put(Path(nfd(CAFE)))
    assert on_disk(Path(CAFE)) == there, "a relative path stays relative"
