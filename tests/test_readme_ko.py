"""README.ko.md has the sections, commands, tables and links of README.md, and no measured numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bilingual import FENCE, LETTERS, code_blocks, figures, links, table_rows

ROOT = Path(__file__).parents[1]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
KOREAN = (ROOT / "README.ko.md").read_text(encoding="utf-8")
NAMED = re.compile(
    r"Python 3\.11|\b[A-Za-z]+-\d\.\d|95%|`[^`]*`|\]\([^)]*\)"
)  # versions, licenses, the level of intervals


def sections(page: str) -> list[tuple[int, int, int]]:
    """Of each section: its points, its tables' rows, its code blocks."""
    parts = re.split(r"^## .*$", page, flags=re.M)
    return [(len(re.findall(r"^- ", part, re.M)), len(table_rows(part)), part.count("```") // 2) for part in parts]


def numbers(page: str) -> list[str]:
    """Numbers in prose and tables that may have been measured."""
    text = NAMED.sub("", FENCE.sub("", page))
    return figures(text) + re.findall(r"(?<![\w.])\d+ ?(?:%|배|초|분|GB|MB)", text)


def test_code_is_the_same_but_for_comments() -> None:
    assert code_blocks(KOREAN) == code_blocks(ENGLISH)


def test_sections_points_and_tables_are_the_same() -> None:
    assert sections(KOREAN) == sections(ENGLISH)
    assert len(sections(KOREAN)) >= 7


def test_words_in_code_are_the_same() -> None:
    def words(page: str) -> list[str]:
        bare = FENCE.sub("", page).partition("## Benchmarks" if page is ENGLISH else "## 벤치마크")
        kept = bare[0] + bare[2].partition("\n## ")[2]  # the rows of benchmarks name settings in English only
        return sorted(re.findall(r"`([^`\n]+)`", kept))

    assert words(KOREAN) == words(ENGLISH)


def test_tables_of_tools_and_packages_have_the_same_cells() -> None:
    english, korean = table_rows(ENGLISH), table_rows(KOREAN)
    packages, named = ([row[0].split(",")[0] for row in table if len(row) == 2] for table in (english, korean))
    assert packages[1:] == named[-len(packages[1:]) :]
    assert {"torch", "ray"} <= set(packages)
    tools, ours = ([row for row in table if len(row) == 8] for table in (english, korean))
    meanings = {"지원": "yes", "코드 필요": "code", "없음": "no"}
    assert len(ours) == len(tools) > 10
    for theirs, row in zip(tools, ours, strict=True):
        for cell, said in zip(theirs[1:], row[1:], strict=True):
            assert (cell in meanings.values()) == (said in meanings), f"{cell} | {said}"
            assert cell not in meanings.values() or meanings[said] == cell, f"{cell} | {said}"
            assert LETTERS.search(cell) or said == cell


def test_links_are_the_same() -> None:
    own = {"README.md", "README.ko.md", "docs/ko/tutorial.md", "docs/benchmarks.md#disk-space"}
    assert links(KOREAN) - own == links(ENGLISH) - own
    assert "docs/benchmarks.md" in links(KOREAN)


def test_no_measured_numbers() -> None:
    assert not numbers(KOREAN)
    assert len(numbers(ENGLISH)) > 10, "the search finds those of the English page"


@pytest.mark.parametrize("target", sorted(links(KOREAN)))
def test_links_resolve(target: str) -> None:
    assert "://" in target or (ROOT / target.partition("#")[0]).exists()
