"""Errors are one line for people, whatever a file is called."""

from __future__ import annotations

import pickle

import pytest

from unfreeze.core import errors
from unfreeze.core.errors import PhotoError, SourceError, UnfreezeError, did_you_mean, join_names

TREE = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, UnfreezeError)]


@pytest.mark.parametrize("kind", TREE)
def test_every_error_is_documented_and_exits_with_2(kind):
    assert kind.__doc__
    assert kind.exit_code == 2


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\u2028b", "a\x85b", "a\x0bb", "a\tb"])
def test_one_line(name):
    assert str(SourceError(f"{name}: no")) == "a b: no"


def test_no_terminal_commands():
    assert str(SourceError("\x1b[2Jgone")) == "\N{REPLACEMENT CHARACTER}[2Jgone"


def test_a_name_that_is_not_utf8_can_be_printed():
    text = str(PhotoError("caf\udce9.jpg", "empty"))
    assert text == "caf\\udce9.jpg: empty"
    text.encode("utf-8")


def test_other_letters_stay():
    assert str(SourceError("Übung/写真.jpg: no")) == "Übung/写真.jpg: no"


def test_photo_error_survives_another_process():
    back = pickle.loads(pickle.dumps(PhotoError("a.jpg", "cut off")))
    assert (back.path, back.reason, str(back)) == ("a.jpg", "cut off", "a.jpg: cut off")


def test_nearest():
    assert did_you_mean("lable", ["label", "group"]) == " Did you mean 'label'?"
    assert did_you_mean("zzz", ["label"]) == ""
    assert did_you_mean("x", []) == ""


def test_listed():
    assert join_names([]) == ""
    assert join_names("ab") == "a, b"
    assert join_names(range(5)) == "0, 1, 2, 3, 4"
    assert join_names(range(8)) == "0, 1, 2, 3, 4 and 3 more"
    assert join_names(["a\nb"]) == "a\N{REPLACEMENT CHARACTER}b"
