"""Combined labels on the command line: a row for each part, and the whole way to the competition's submission."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import unfreeze as uf
from commandline import Answer


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen people, and two to predict."""
    root = tmp_path_factory.mktemp("photos") / "people"
    uf.make_demo(root, 18, 2, 0, size=(96, 128))
    return root


def test_parts_are_reported_learnt_and_submitted(people: Path, cli: Callable[..., Answer]) -> None:
    words = ["--strategy", "probe", "--quality", "fast", "--folds", "2", "--set", "labels.model=both"]
    answer = cli("fit", people, "--run", "run", *words)
    assert answer.code == 0, answer.err
    for name in ("mask", "gender", "age"):
        assert f"its {name} alone" in answer.out
    table = cli("scores", "run")
    assert table.code == 0 and "macro F1 if correct" in table.out and "gain" in table.out
    scores = json.loads(cli("scores", "run", "--json").out)
    assert set(scores["parts"]) == {"mask", "gender", "age"} and "if_right" in scores["parts"]["age"]
    template = people / "eval" / "info.csv"
    done = cli("predict", "run", people / "eval" / "images", "--template", template, "--out", "submission.csv")
    assert done.code == 0, done.err
    with open("submission.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with template.open(newline="") as file:
        assert [row["ImageID"] for row in rows] == [row["ImageID"] for row in csv.DictReader(file)]
    assert {int(row["ans"]) for row in rows} <= set(range(18))


def test_a_wrong_word_is_reported_with_those_there_are(people: Path, cli: Callable[..., Answer]) -> None:
    answer = cli("fit", people, "--set", "labels.model=apart")
    assert answer.code == 2 and "labels.model = 'apart'" in answer.complaint and "'both'" in answer.complaint
