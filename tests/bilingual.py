"""What a page and its translation must share: code but for comments, figures, links."""

from __future__ import annotations

import re

FENCE = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.M | re.S)
LETTERS = re.compile(r"[A-Za-z가-힣]")


def code_blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of each code block, without comments (`# ...` after two spaces or at a line's start)."""
    return [
        (language, "\n".join(re.sub(r"(?:^|\s{2,})# .*$", "", line) for line in body.splitlines()))
        for language, body in FENCE.findall(page)
    ]


def shell_lines(page: str) -> list[str]:
    """Each `unfreeze ...` line that a page tells to type: in code blocks of no language."""
    return [line for language, body in code_blocks(page) if not language for line in body.splitlines() if line]


def figures(text: str) -> list[str]:
    """Numbers of two digits or more, or with a point, sorted; a single digit may be a word in the other language."""
    found = re.findall(r"(?<![\d.])(?:\d[\d,]*\d|\d)?\.\d+|\d[\d,]*\d", text)
    return sorted(found)


def table_rows(text: str) -> list[list[str]]:
    """Cells of every table row, rules left out."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not re.fullmatch(r"[|:\- ]+", line)]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def links(page: str) -> set[str]:
    """Targets of all links."""
    return set(re.findall(r"\]\(([^)\s]+)\)", page))
