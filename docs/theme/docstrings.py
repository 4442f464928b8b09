"""Docstrings as the site shows them.

The package's docstrings name arguments and fields in running text (`folder: where the runs go.`), which Markdown would
join into one paragraph. Here each becomes an item of a list; no other word is changed, and nothing is imported or run.
"""

from __future__ import annotations

import re
from textwrap import dedent

import griffe

SECTION = re.compile(r"^(?P<head>Args|Arguments|Returns|Raises|Errors):\s*\n(?P<body>(?:[ \t]+.*\n?|\s*\n)+)", re.M)
TAG = re.compile(r"(`[^`]*`)|<(?=[a-zA-Z/!])")


def shown(text: str, names: list[str]) -> str:
    """The docstring as Markdown: sections of their own as paragraphs, arguments and fields as lists."""
    text = SECTION.sub(_section, text)
    text = TAG.sub(lambda m: m[1] or "&lt;", text)  # `<source>` in running text is no tag
    return "\n\n".join(_paragraph(part, names) for part in re.split(r"\n\s*\n", text.strip())) + "\n"


def _section(match: re.Match[str]) -> str:
    """`Args:` leaves its items, `Returns:` and `Raises:` begin a paragraph."""
    body = dedent(match["body"]).strip()
    if match["head"].startswith("Arg"):
        return f"\n{body}\n\n"
    if match["head"] == "Returns":
        return f"\nReturns: {' '.join(body.split())}\n\n"
    errors = re.sub(r"^([A-Z]\w+Error): ", r"- `\1`: ", body, flags=re.M)
    return f"\nRaises:\n\n{errors}\n\n" if errors != body else f"\nRaises {' '.join(body.split())}\n\n"


def _paragraph(text: str, names: list[str]) -> str:
    """One paragraph as Markdown; what follows the last item and belongs to the whole is set apart again."""
    if not names:
        return text
    one = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    item = re.compile(rf"(?:^|(?<=[.;] ))((?:{one})(?:, (?:{one}))*): ")
    hanging = re.search(r"^[ \t]+\S", text, re.M)  # items whose next lines are indented end where a line is not
    parts = [("", "")]  # name of the item, or none; its words
    for line in text.splitlines():
        ends = re.match(r"(?:Raises|Returns)\b", line) or (hanging and not line[:1].isspace())
        if ends and parts[-1][0] and not item.match(line):
            parts.append(("", ""))
        lead, *rest = item.split(line)
        parts[-1] = (parts[-1][0], f"{parts[-1][1]}{lead.strip()}\n")
        parts += [(name, said.strip() + "\n") for name, said in zip(rest[::2], rest[1::2], strict=True)]
    blocks = []
    for name, words in parts:
        if not name:
            blocks += [words.strip()] if words.strip() else []
            continue
        said, _, whole = re.sub(r"(?<=\.)\s+(?=(?:Raises|Returns) )", "\0", words.strip()).partition("\0")
        shown = ", ".join(f"`{each}`" for each in name.split(", "))
        blocks.append(f"- {shown}: {' '.join(said.split())}")
        blocks += [whole] if whole else []
    return re.sub(r"^(- .*)\n\n(?=- )", r"\1\n", "\n\n".join(blocks), flags=re.M)


class PlainArguments(griffe.Extension):
    """Applied to every function and class as the package's source is read."""

    def on_function(self, *, func: griffe.Function, **_: object) -> None:
        if func.docstring:
            func.docstring.value = shown(func.docstring.value, [p.name.lstrip("*") for p in func.parameters])

    def on_class(self, *, cls: griffe.Class, **_: object) -> None:
        if cls.docstring:
            cls.docstring.value = shown(cls.docstring.value, [*cls.attributes])
