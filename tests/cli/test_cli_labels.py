"""The commands suspects and review, and fit --corrections: what they print, write and refuse."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from commandline import Answer, leftovers
from unfreeze.core.runs import Run
from wronglabels import RECIPE, WRONG, wrong_run, wrong_set

Cli = Callable[..., Answer]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Run]:
    """The table, the true one, and a run."""
    table, truth = wrong_set(tmp_path_factory.mktemp("wrong") / "photos")
    return table, truth, wrong_run(table, tmp_path_factory.mktemp("runs") / "colours")


def test_suspects_prints_writes_and_reports(cli: Cli, made: tuple[Path, Path, Run]) -> None:
    _, truth, run = made
    answer = cli("label-issues", run.path, "--truth", truth, "--out", "s.csv", "--limit", 2)
    assert answer.code == 0, answer.err
    assert (
        "of 72 labels are contradicted" in answer.out
        and "3 labels are wrong; of the first 3 suspects 3 are" in answer.out
    )
    assert f"Next: unfreeze review {run.path}" in answer.out
    written = pd.read_csv("s.csv")
    assert set(written["path"].head(3)) == set(WRONG) and not leftovers(Path())
    assert '<section id="labels">' in (run.path / "report.html").read_text()
    found = json.loads(cli("label-issues", run.path, "--json").out)
    assert [row["path"] for row in found["table"]] == written["path"].tolist() and found["photos"] == 72


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "s.txt"], "name a file s.csv"),
        (["--truth", "nowhere.csv"], "nowhere.csv: "),
        (["--limit", "0"], "--limit"),
    ],
)
def test_suspects_refuses_in_one_line(cli: Cli, made: tuple[Path, Path, Run], options: list[str], said: str) -> None:
    answer = cli("label-issues", made[2].path, *options)
    assert answer.code == 2 and said in answer.complaint


def test_fit_applies_corrections_and_says_what_they_did(cli: Cli, made: tuple[Path, Path, Run]) -> None:
    table, _, run = made
    lines = ["path,hash,action,label,timestamp", *(f"{p},,relabel,{p.split('/')[0]}," for p in WRONG)]
    Path("v.csv").write_text("\n".join(lines) + "\n")
    words = [f"--set={k}={json.dumps(v)}" for k, v in RECIPE.items()]
    answer = cli("fit", table, *words, "--corrections", "v.csv", "--run", "mended")
    assert answer.code == 0, answer.err
    assert "Corrections: 3 relabeled, 0 excluded, 0 kept. Macro F1, by the labels as given: " in answer.out
    assert "out of fold, labels as given" in answer.out and "out of fold, corrected labels" in answer.out
    page = Path("mended/report.html").read_text().replace("\u00a0", " ")
    scores = json.loads(Path("mended/scores.json").read_text())["corrections"]
    for name, key in (("labels as given", "given"), ("corrected labels", "corrected")):
        value = f"{scores[key]['macro_f1']['value']:.3f}"
        line = next(line for line in answer.out.splitlines() if f"out of fold, {name}" in line)
        assert value in line and f"Macro F1, out of fold, {name}" in page and value[:4] in page
    assert str(Path("v.csv").absolute()) in Path("mended/recipe.toml").read_text()
    assert "relabeled 3 photos and excluded 0" in Path("mended/report.html").read_text().replace("\u00a0", " ")
    same = cli("fit", table, "--recipe", run.path / "recipe.toml", "--corrections", "v.csv", "--run", "again", "--json")
    assert json.loads(same.out)["corrections"]["relabel"] == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such corrections file"),
        ("path,hash,action,label,timestamp\na.jpg,,burn,,\n", "correction 'burn' of a.jpg"),
    ],
)
def test_fit_refuses_corrections_in_one_line(
    cli: Cli, made: tuple[Path, Path, Run], text: str | None, said: str
) -> None:
    if text:
        Path("v.csv").write_text(text)
    answer = cli("fit", made[0], "--group", "group", "--strategy", "probe", "--corrections", "v.csv", "--run", "r")
    assert answer.code == 2 and said in answer.complaint and not Path("r").exists()


def test_review_refuses_a_port_in_use_and_a_file_of_something_else(cli: Cli, made: tuple[Path, Path, Run]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = cli("review", made[2].path, "--port", port, "--no-open")
    assert answer.code == 2 and "--port 0 takes a free one" in answer.complaint
    Path("v.csv").write_text("file,colour\na,b\n")
    answer = cli("review", made[2].path, "--corrections", "v.csv", "--no-open")
    assert answer.code == 2 and "is not a corrections file" in answer.complaint
    assert cli("review", "nowhere").code == 2
