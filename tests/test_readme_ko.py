"""README.ko.md says what README.md says: the same figures, the same code, the same links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bilingual import LETTERS, code_blocks, figures, links, table_rows

ROOT = Path(__file__).parents[1]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
KOREAN = (ROOT / "README.ko.md").read_text(encoding="utf-8")


def measured(page: str) -> str:
    """What stands between the marks of the measured part."""
    found = re.search(r"<!-- measured:begin -->(.*)<!-- measured:end -->", page, re.S)
    assert found, "the README has its measured part"
    return found[1]


def test_code_is_the_same_but_for_comments() -> None:
    assert code_blocks(KOREAN) == code_blocks(ENGLISH)


def test_measured_tables_have_the_same_figures_cell_by_cell() -> None:
    english, korean = table_rows(measured(ENGLISH)), table_rows(measured(KOREAN))
    assert len(korean) == len(english) >= 40
    for theirs, ours in zip(english, korean, strict=True):
        assert len(ours) == len(theirs), ours
        for cell, said in zip(theirs, ours, strict=True):
            assert figures(said) == figures(cell), f"{cell} | {said}"
            assert LETTERS.search(cell) or said == cell, f"{cell} | {said}"


def test_measured_sentences_have_the_same_figures() -> None:
    english = [part for part in measured(ENGLISH).split("\n\n") if part.strip()]
    korean = [part for part in measured(KOREAN).split("\n\n") if part.strip()]
    assert len(korean) == len(english)
    for theirs, ours in zip(english, korean, strict=True):
        assert figures(ours) == figures(theirs), ours[:80]


def test_sections_packages_and_links_are_the_same() -> None:
    def heads(page: str) -> int:
        return len(re.findall(r"^## ", page, re.M))

    assert heads(KOREAN) == heads(ENGLISH)
    names = [row[0].split(",")[0] for row in table_rows(ENGLISH.partition("<!-- measured:end -->")[2])[1:]]
    ours = [row[0].split(",")[0] for row in table_rows(KOREAN.partition("<!-- measured:end -->")[2])[1:]]
    assert ours == names
    own = {"README.md", "README.ko.md", "docs/ko/tutorial.md"}
    assert links(KOREAN) - own == links(ENGLISH) - own


@pytest.mark.parametrize("target", sorted(links(KOREAN)))
def test_links_resolve(target: str) -> None:
    assert "://" in target or (ROOT / target.partition("#")[0]).exists()
