"""Docstrings as the site shows them.

The package's docstrings name arguments and fields in running text (`folder: where the runs go.`), which Markdown would join
into one paragraph. Here each becomes an item of a list; no other word is changed, and nothing is imported or run.
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
    """One paragraph; what follows the last item and belongs to the whole is set apart again."""
    if not names:
        return text
    one = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    hanging = re.search(r"^[ \t]+\S", text, re.M)  # items whose next lines are indented end where a line is not
    out: list[list[str]] = [["", ""]]  # name, words
    for line in text.splitlines():
        begins = re.match(rf"(?:{one})(?:, (?:{one}))*: ", line)
        if (
            not begins
            and (hanging and not line[:1].isspace() or re.match(r"(?:Raises|Returns)\b", line))
            and out[-1][0]
        ):
            out.append(["", ""])
        for k, piece in enumerate(re.split(rf"(?:^|(?<=[.;] ))((?:{one})(?:, (?:{one}))*): ", line)):
            if k % 2:
                out.append([piece, ""])
            else:
                out[-1][1] += piece.strip() + "\n"
    blocks = []
    for name, words in out:
        words = words.strip()
        if not name and words:
            blocks.append(words)
        elif name:
            before, _, after = re.sub(r"(?<=\.)\s+(?=(?:Raises|Returns) )", "\0", words).partition("\0")
            named = ", ".join(f"`{part}`" for part in name.split(", "))
            blocks.append(f"- {named}: {' '.join(before.split())}")
            blocks += [after] if after else []
    return "\n\n".join(blocks).replace("\n\n- ", "\n- ") if blocks[0].startswith("- ") else "\n\n".join(blocks)


class PlainArguments(griffe.Extension):
    """Applied to every function and class as the package's source is read."""

    def on_function(self, *, func: griffe.Function, **_: object) -> None:
        if func.docstring:
            func.docstring.value = shown(func.docstring.value, [p.name.lstrip("*") for p in func.parameters])

    def on_class(self, *, cls: griffe.Class, **_: object) -> None:
        if cls.docstring:
            cls.docstring.value = shown(cls.docstring.value, [*cls.attributes])
