"""Imports between the files of the package: no cycle, and no file that imports itself."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import unfreeze

PACKAGE = Path(unfreeze.__file__).parent


def modules() -> dict[str, Path]:
    """Files by dotted name; packages, whose `__init__` imports nothing, are left out."""
    files = (file for file in PACKAGE.rglob("*.py") if file.name not in ("__init__.py", "__main__.py"))
    return {".".join(("unfreeze", *file.relative_to(PACKAGE).with_suffix("").parts)): file for file in files}


def imported(file: Path, known: dict[str, Path]) -> set[str]:
    """Files that a file imports, also inside functions and for type checking only."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                found |= {name} & known.keys()
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & known.keys()
    return found


def test_files_do_not_import_each_other_in_a_cycle() -> None:
    known = modules()
    graph = {name: imported(file, known) for name, file in known.items()}
    assert len(graph) > 200 and not [name for name, names in graph.items() if name in names]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None
