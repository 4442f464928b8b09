"""The tutorial, in both languages: what it tells to type exists, and both tell the same."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from bilingual import code_blocks, links, shell_lines
from unfreeze.cli.main import app

DOCS = Path(__file__).parents[1] / "docs"
ENGLISH = (DOCS / "tutorial.md").read_text(encoding="utf-8")
KOREAN = (DOCS / "ko" / "tutorial.md").read_text(encoding="utf-8")
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
TYPED = sorted({*shell_lines(ENGLISH), *shell_lines(KOREAN)})


@pytest.mark.parametrize("line", TYPED)
def test_the_command_line_takes_every_line(line: str) -> None:
    program, name, *words = shlex.split(line)
    assert program == "unfreeze"
    assert name in COMMANDS, f"no command {name}"
    COMMANDS[name].make_context(name, words)  # parses; does not run


def test_a_line_that_does_not_exist_would_be_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        COMMANDS["fit"].make_context("fit", ["photos", "--no-such-option", "1"])


def test_most_commands_are_met() -> None:
    met = {shlex.split(line)[1] for line in TYPED}
    usual = {
        "demo",
        "check",
        "fit",
        "recommend",
        "scores",
        "label-issues",
        "review",
        "tune",
        "explain",
        "predict",
        "export",
    }
    assert usual <= met


def test_both_languages_show_the_same_code_and_output() -> None:
    assert code_blocks(KOREAN) == code_blocks(ENGLISH)


def test_both_languages_have_the_same_chapters_and_links() -> None:
    def chapters(page: str) -> int:
        return len(re.findall(r"^## ", page, re.M))

    assert chapters(KOREAN) == chapters(ENGLISH)
    assert {target.removeprefix("../") for target in links(KOREAN)} == links(ENGLISH)
    assert KOREAN.count("**배울 점.**") == ENGLISH.count("**To take away.**")


@pytest.mark.parametrize("page", ["index.md", "ko/index.md"])
def test_first_pages_show_the_same_code(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert code_blocks(text) == code_blocks((DOCS / "index.md").read_text(encoding="utf-8"))


def test_python_of_the_tutorial_is_python() -> None:
    blocks = [body for language, body in code_blocks(ENGLISH) if language == "python"]
    assert len(blocks) > 10
    for body in blocks:
        ast.parse(body)
