"""What the documents say exists, and what exists is documented.

`python tests/test_docs.py` writes the option tables of docs/commands.md anew from the command line itself.
"""

from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from pydantic import BaseModel

import unfreeze as uf
from unfreeze.cli.main import app

ROOT = Path(__file__).parents[1]
COMMANDS_PAGE = ROOT / "docs" / "commands.md"
RECIPE_PAGE = ROOT / "docs" / "recipe.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
GROUP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = GROUP.commands
TABLE = re.compile(r"<!-- options:begin -->\n.*?<!-- options:end -->\n", re.S)


def options_of(command: Any) -> set[str]:
    """Every spelling of a command's options."""
    return {o for p in command.params if p.param_type_name == "option" for o in (*p.opts, *p.secondary_opts)} | {
        "--help",
        "-h",
    }


def options_table(command: Any) -> str:
    """The table of a command's arguments and options, as it stands in docs/commands.md."""
    rows = ["| argument, option | what it says |", "|---|---|"]
    for p in command.params:
        if p.name == "help":
            continue
        option = p.param_type_name == "option"
        name = ", ".join(p.opts) if option else p.name.upper()
        value = "" if not option or p.is_flag else f" {p.metavar}"
        default = (
            f" Default `{p.default}`." if isinstance(p.default, int | str | Path) and p.default is not False else ""
        )
        shown = p.help.replace("|", "\\|") + default
        rows.append(f"| `{name}{value}` | {shown} |")
    return "<!-- options:begin -->\n" + "\n".join(rows) + "\n<!-- options:end -->\n"


def recipe_table(model: Any, prefix: str = "") -> list[str]:
    """A row for each recipe key: name, default, what it says and which words it knows."""
    rows = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            rows += recipe_table(field.annotation, f"{prefix}{name}.")
            continue
        value = field.default
        shown = json.dumps(value, default=lambda o: o.model_dump()) if not isinstance(value, str) else value or "''"
        words = [w for w in get_args(field.annotation) if isinstance(w, str) and w]
        said = (field.description or "").replace("|", "\\|")
        knows = f"one of {', '.join(words)}" if words else ""
        rows.append(f"| `{prefix}{name}` | `{shown}` | {'; '.join(filter(None, (said, knows)))} |")
    return rows


def recipe_page(page: str) -> str:
    """docs/recipe.md with its table as the code has it."""
    head = ["| key | default | what it says |", "|---|---|---|"]
    table = "\n".join(["<!-- keys:begin -->", *head, *recipe_table(uf.Recipe), "<!-- keys:end -->"])
    return re.sub(r"<!-- keys:begin -->.*?<!-- keys:end -->", lambda _: table, page, flags=re.S)


def sections(page: str) -> dict[str, str]:
    """Text of each `## unfreeze NAME` section."""
    parts = re.split(r"^## unfreeze (\S+)\n", page, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def code_of(page: str) -> list[str]:
    """Lines of code blocks, and spans of inline code."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", page, flags=re.M | re.S)
    rest = re.sub(r"^```[a-z]*\n(.*?)^```", "", page, flags=re.M | re.S)
    return [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", rest)


def typed_commands(page: str) -> list[list[str]]:
    """Each `unfreeze COMMAND ...` of a page, cut into words."""
    found = []
    for line in code_of(page):
        for match in re.finditer(r"(?:^|&& |; )unfreeze (.+?)(?=$| && |;)", line.strip()):
            words = shlex.split(match[1], comments=True)
            if words:
                found.append(words)
    return found


def test_the_recipe_page_has_every_key() -> None:
    page = RECIPE_PAGE.read_text()
    assert recipe_page(page) == page, "run `python tests/test_docs.py`"
    assert not re.findall(r"^\| `[^|]*\|[^|]*\|\s*\|$", page, flags=re.M), "keys without a word of explanation"
    assert page.count("| `train.") == len(uf.Recipe().train.model_dump())


def test_the_commands_page_has_every_command_and_no_other() -> None:
    assert set(sections(COMMANDS_PAGE.read_text())) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented_and_none_is_stale(name: str) -> None:
    section = sections(COMMANDS_PAGE.read_text())[name]
    assert options_table(COMMANDS[name]) in section, "run `python tests/test_docs.py`"
    assert re.search(rf"^unfreeze {name}\b", section, flags=re.M), "a section shows its command"
    assert "In Python: " in section


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_an_example_that_parses(name: str) -> None:
    text = inspect.cleandoc(COMMANDS[name].callback.__doc__)
    example = re.search(r"^Example: `unfreeze (.+)`$", text, flags=re.M)
    assert example, f"{name}: no example"
    words = shlex.split(example[1])
    assert words[0] == name
    COMMANDS[name].make_context(name, words[1:])  # parses; does not run
    assert len(text.splitlines()[0]) <= 120
    for p in COMMANDS[name].params:
        assert getattr(p, "help", None), f"{name} {p.name}: no help"
        assert p.param_type_name != "option" or p.is_flag or p.metavar, f"{name} {p.name}: no metavar"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_only_what_exists(page: Path) -> None:
    text = page.read_text()
    for words in typed_commands(text):
        assert words[0] in COMMANDS or words[0].startswith("--"), f"{page.name}: no command {words[0]}"
        if words[0] in COMMANDS:
            strange = {w.partition("=")[0] for w in words if w.startswith("--")} - options_of(COMMANDS[words[0]])
            assert not strange, f"{page.name}: unfreeze {words[0]} has no {strange}"
    every = set().union(*map(options_of, COMMANDS.values())) | options_of(GROUP)
    for span in code_of(text):
        if span.startswith("--"):
            assert span.split()[0].rstrip(",").partition("=")[0] in every, f"{page.name}: no option {span}"
        for name in re.findall(r"\buf\.([a-zA-Z_]+)", span):
            assert name in uf.__all__, f"{page.name}: no uf.{name}"
        for dotted in re.findall(r"\bunfreeze(?:\.[a-z_]+)+\.[A-Za-z_]+", span):
            module, _, name = dotted.rpartition(".")
            assert hasattr(import_module(module), name), f"{page.name}: no {dotted}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("name", uf.__all__)
def test_public_names_are_explained_and_named_in_the_docs(name: str) -> None:
    assert inspect.getdoc(getattr(uf, name)), f"uf.{name} has no docstring"
    assert name in dir(uf)


def test_public_names_are_those_with_a_home() -> None:
    assert sorted(uf.__all__) == uf.__all__ == sorted(uf._HOMES)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        uf.fitt  # noqa: B018


def test_importing_costs_nothing() -> None:
    code = (
        "import sys, unfreeze, unfreeze.cli.main;"
        "heavy = {'numpy', 'pandas', 'torch', 'timm', 'openvino', 'PIL', 'scipy', 'pyarrow'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"loaded at once: {done.stderr}"


if __name__ == "__main__":
    page = COMMANDS_PAGE.read_text()
    for section_name, section in sections(page).items():
        if section_name in COMMANDS:
            table = options_table(COMMANDS[section_name])
            fresh = TABLE.sub(lambda _, t=table: t, section)
            if fresh == section and table not in section:
                fresh = section.replace("\nIn Python: ", f"\n{table}\nIn Python: ", 1)
            page = page.replace(section, fresh, 1)
    COMMANDS_PAGE.write_text(page)
    RECIPE_PAGE.write_text(recipe_page(RECIPE_PAGE.read_text()))
