"""Options and arguments in messages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from unfreeze.core.messages import command_line, from_command_line, option, setting, wording

CASES = [
    (lambda: option("group_regex"), "--group-regex", "group_regex="),
    (lambda: option("root", metavar="DIR"), "--root DIR", "root=DIR"),
    (lambda: option("split", "none"), "--split none", "split='none'"),
    (lambda: option("force", True), "--force", "force=True"),
    (lambda: option("fold", 3), "--fold 3", "fold=3"),
    (lambda: option("out", Path("a.xml")), "--out a.xml", "out='a.xml'"),
    (lambda: option("folder", metavar="DIR", command="run"), "--run DIR", "folder=DIR"),
    (lambda: setting("engine", "torch"), "--set engine=torch", "recipe.replace(engine='torch')"),
    (lambda: setting("folds.n_splits", 3, "folds"), "--folds 3", 'recipe.replace(**{"folds.n_splits": 3})'),
    (
        lambda: setting("a.b", True),
        "--set a.b=true",
        'recipe.replace(**{"a.b": True})',
    ),
    (lambda: wording("typed", "called"), "typed", "called"),
]


@pytest.mark.parametrize(("said", "command", "python"), CASES)
def test_each_caller_gets_its_own_words(said, command: str, python: str) -> None:
    assert said() == python
    with command_line():
        assert said() == command
        with command_line(False):
            assert said() == python
    assert said() == python and not from_command_line()


def test_a_command_that_fails_leaves_the_words_as_they_were() -> None:
    with pytest.raises(RuntimeError), command_line():
        raise RuntimeError
    assert not from_command_line()


def test_a_training_process_words_its_errors_as_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    from unfreeze.training.fine_tune import launcher

    started: list[list[str]] = []

    class ToldError(Exception):
        pass

    def refuse(command: list[str], **_: object) -> None:
        started.append(command)
        raise ToldError

    monkeypatch.setattr(launcher.subprocess, "Popen", refuse)
    for active in (False, True):
        with command_line(active), pytest.raises(ToldError):
            launcher._Worker(1, 2)
    assert [command[0] for command in started] == [sys.executable] * 2
    assert [command[-3:] for command in started] == [["1", "2", "0"], ["1", "2", "1"]]
