"""docs/run-files.md documents every file, key and column of a run folder, and no required one that is not written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from finetuning import fit_here
from photosets import table
from unfreeze.core.runs import Run, read_log

PAGE = (Path(__file__).parents[1] / "docs" / "run-files.md").read_text("utf-8")
READING = {
    "source__label": ("colour",),
    "source__group": "plant",
    "source__group_regex": "",
    "source__split": "split",
    "train__epochs": 1,
}


def documented(section: str) -> dict[str, str]:
    """Names in the first column of a section's table -> its column "written"."""
    match = re.search(rf"^##+ {re.escape(section)}\n(.*?)(?=^##|\Z)", PAGE, flags=re.M | re.S)
    assert match, f"docs/run-files.md has no section '{section}'"
    rows = [line.split(" | ") for line in match[1].splitlines() if line.startswith("| ")]
    found = {name: row[1] for row in rows[1:] for name in re.findall(r"`([^`]+)`", row[0])}
    assert found, f"docs/run-files.md: no table in section '{section}'"
    return found


def compare(section: str, written: Iterable[str]) -> None:
    """Names that are written must be documented, and those documented as "always" must be written."""
    known, names = documented(section), set(written)
    assert not names - known.keys(), f"docs/run-files.md, {section}: add these rows"
    required = {name for name, when in known.items() if when == "always"}
    assert not required - names, f"docs/run-files.md, {section}: not written, so not 'always'"


def read(run: Run, name: str) -> Any:
    return json.loads((run.path / name).read_text("utf-8"))


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A probe with a test split and corrections."""
    folder = tmp_path_factory.mktemp("probe")
    source = table(folder / "photos")
    corrections = folder / "corrections.csv"
    rows = ["red-0-0.jpg,relabel,blue", "green-0-0.jpg,keep,", "blue-0-0.jpg,exclude,"]
    corrections.write_text("\n".join(["path,action,label", *rows]) + "\n", "utf-8")
    changes = {**READING, "source__corrections": str(corrections), "folds__repeats": 2}
    return fit_here(source, folder / "run", "probe", **changes)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A network trained in full, with a test split."""
    folder = tmp_path_factory.mktemp("tuned")
    return fit_here(table(folder / "photos"), folder / "run", "full", **READING)


@pytest.fixture(params=["probe", "tuned"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.getfixturevalue(request.param)


def test_files(run: Run) -> None:
    files = [p.relative_to(run.path).as_posix() for p in run.path.rglob("*") if p.is_file()]
    compare("Files", {re.sub(r"^fold-\d+/", "fold-K/", name) for name in files} | {".lock"})


@pytest.mark.parametrize("name", ["run.json", "scores.json", "environment.json"])
def test_keys(run: Run, name: str) -> None:
    compare(name, read(run, name))


def test_nested_scores(run: Run) -> None:
    scores = read(run, "scores.json")
    compare("Score object", scores["out_of_fold"])
    compare("Score object", scores["test"])
    for row in scores["folds"]:
        compare("Rows of folds", row)
    if "corrections" in scores:
        compare("Corrections", scores["corrections"])


def test_every_optional_key_of_these_runs(probe: Run, tuned: Run) -> None:
    """The conditions in the column "written" hold: each key appears in the run that it is documented for."""
    for section, written in [
        ("run.json", [read(probe, "run.json"), read(tuned, "run.json")]),
        ("scores.json", [read(probe, "scores.json"), read(tuned, "scores.json")]),
        ("Rows of folds", [read(probe, "scores.json")["folds"][0], read(tuned, "scores.json")["folds"][0]]),
    ]:
        for name, when in documented(section).items():
            if when == "always":
                continue
            if "test split" in when:
                assert name in written[0] and name in written[1], f"{section}: {name}"
            if when.startswith("fine-tuning"):
                assert name in written[1] and name not in written[0], f"{section}: {name}"
            if when in ("strategy probe", "`source.corrections`", "repeated cross-validation"):
                assert name in written[0] and name not in written[1], f"{section}: {name}"


def test_tables(run: Run) -> None:
    columns = list(pd.read_parquet(run.path / "photos.parquet").columns)
    attributes = set(read(run, "run.json")["attributes"]) - {"label"}
    assert attributes <= set(columns)
    compare("photos.parquet", set(columns) - attributes)
    for name in ("oof.parquet", "test.parquet"):
        columns = list(pd.read_parquet(run.path / name).columns)
        classes = [f"p_{one}" for one in run.classes]
        assert columns[-len(classes) :] == classes
        compare("oof.parquet", [*columns[: -len(classes)], "p_<class>"])


def test_findings_and_log(run: Run) -> None:
    findings = read(run, "findings.json")
    assert findings
    for row in findings:
        compare("findings.json", row)
    log = read_log(run.path)
    assert len(log) == ("trained" in run.info) * run.recipe.folds.n_splits
    for row in log:
        compare("log.jsonl", row)
