"""What an installation offers beside the package: the module, completion, the page on the package index."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import unfreeze as uf

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
README = (ROOT / "README.md").read_text("utf-8")
TOOLS = {"test", "dev", "bench"}  # extras of those who work on the package


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unfreeze", *words],
        capture_output=True, text=True, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip


def test_the_module_is_the_command() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"unfreeze {uf.__version__}")
    done = run("predict")
    assert done.returncode == 2 and done.stderr.startswith("unfreeze: ") and "Traceback" not in done.stderr
    assert "--install-completion" in run("--help", COLUMNS="100").stdout


@pytest.mark.parametrize(
    ("shell", "said"), [("bash", "complete -o default -F"), ("zsh", "#compdef"), ("fish", "complete --command")]
)
def test_completion_of_a_shell(shell: str, said: str) -> None:
    done = run("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0 and said in done.stdout and "_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("unfreeze pre", {"predict"}),
        ("unfreeze compare", {"compare"}),
        ("unfreeze predict --gr", {"--group", "--group-regex"}),
    ],
)
def test_words_are_completed(line: str, found: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As the shell's script asks: the command itself, told by its variables what was typed."""
    monkeypatch.setattr(sys, "argv", ["unfreeze"])
    words = {"_UNFREEZE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    code = "import sys; sys.argv = ['unfreeze']; from unfreeze.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ, **words}
    )
    assert done.returncode == 0 and set(done.stdout.split()) == found, done.stderr


@pytest.mark.parametrize("source", ["", "https://example.org/owner/unfreeze", "https://example.org/owner/unfreeze/"])
def test_links_of_the_index_page_lead_somewhere(source: str) -> None:
    page = runpy.run_path(str(ROOT / "setup.py"))["index_page"](README, source)
    targets = re.findall(r"\]\(([^)\s]+)\)", page)
    assert all(re.match(r"https?://|#", target) for target in targets), targets
    assert len(re.findall(r"\]\(([^)\s]+)\)", README)) > 20 and "docs/training.md" in page
    assert (f"{source.rstrip('/')}/blob/main/docs/training.md" in page) == bool(source)
    assert (f"({source.rstrip(chr(47))}/raw/main/docs/images/report.png)" in page) == bool(source) and (
        "![" in page
    ) == bool(source)


def test_the_readme_is_short_and_has_every_dependency() -> None:
    assert len(README.splitlines()) <= 150
    extras = {extra: wanted for extra, wanted in PROJECT["optional-dependencies"].items() if extra not in TOOLS}
    needed = [*PROJECT["dependencies"], *(one for wanted in extras.values() for one in wanted)]
    table = README.partition("## Dependencies")[2].partition("\n## ")[0]
    named = {name for row in re.findall(r"^\| ([^|]+) \|", table, flags=re.M) for name in re.split(r"[,;] ", row)}
    assert {Requirement(one).name for one in needed} <= named
    assert {f"`unfreeze[{extra}]`" for extra in extras} <= named


def test_metadata_says_what_holds() -> None:
    kinds = set(PROJECT["classifiers"])
    assert {"Typing :: Typed", *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13))} <= kinds
    assert sum(kind.startswith("Operating System :: ") for kind in kinds) == 3
    assert (ROOT / "src" / "unfreeze" / "py.typed").is_file() and PROJECT["requires-python"] == ">=3.11"
    trove = pytest.importorskip("trove_classifiers", reason="the list of classifiers is not installed")
    assert kinds <= set(trove.classifiers)


def test_tests_are_skipped_only_where_an_extra_may_be_missing() -> None:
    """A hard dependency is there, or its test fails."""
    hard = {Requirement(one).name.lower() for one in PROJECT["dependencies"]} | {"unfreeze", "huggingface_hub"}
    found = []
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "importorskip":
                name = str(getattr(call.args[0], "value", "")).partition(".")[0]
                found += [f"{file.name}: {name}"] * (name.lower() in hard)
    assert not found
