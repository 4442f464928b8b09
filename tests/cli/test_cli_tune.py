"""The command tune: what it prints and writes, how it goes on, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from commandline import Answer, leftovers
from photosets import GROUP_REGEX
from unfreeze.analysis.tuning import tune as tuning

Cli = Callable[..., Answer]
SETTINGS = {"backbone": "timm/test_resnet", "weights": "none", "engine": "torch", "image.size": 64}
SETTINGS |= {"probe.stages": "last:2", "probe.Cs": "[1.0, 30.0]", "image.color": "gray"}
WORDS = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
OPTIONS = ["--group-regex", GROUP_REGEX, "--folds", "3", *WORDS]
SPACE = ["--space", "image.color=gray,rgb", "--space", "balance.class_weight_power=0.0..1.0"]


def test_it_is_searched_reported_written_and_gone_on_with(cli: Cli, photos: Path) -> None:
    command = ["tune", photos, *OPTIONS, *SPACE]
    answer = cli(*command, "--trials", 4)
    assert answer.code == 0, answer.err
    (place,) = Path("runs").iterdir()
    assert place.name.startswith("tune-colours-") and not leftovers(place)
    shown = {p.name for p in place.iterdir() if not p.name.startswith(".")}
    assert shown - {"nested"} == {"base", "best", "best.toml", "search.db", "tune.html", "tune.json"}
    assert "macro F1 in the search" in answer.out and "none: the recipe given" in answer.out
    assert "searched, evaluated on images not used for it" in answer.out and "the difference, paired" in answer.out
    assert f"Best recipe: {place}/best.toml" in answer.out and f"Page: {place}/tune.html" in answer.out
    assert answer.out.splitlines()[-1] == f"Next: unfreeze report {place}/best"
    assert cli(*answer.out.splitlines()[-1].split()[2:]).code == 0  # the command that it names

    more = cli(*command, "--trials", 5, "--json")
    found = json.loads(more.out)
    assert more.code == 0 and found["folder"] == str(place) and found["page"] == f"{place}/tune.html"
    assert [row["number"] for row in found["searches"]["all"]["trials"]] == [0, 1, 2, 3, 4]
    assert found["changes"]["image.color"] == found["recipe"]["image"]["color"] == "rgb" and found["gain"]["low"] > 0
    assert found["space"] == ["image.color=gray,rgb", "balance.class_weight_power=0.0..1.0"]

    listed = cli("runs")
    assert f"{place}/best" in listed.out and f"{place}/base" in listed.out
    again = cli("fit", photos, "--recipe", place / "best.toml", "--run", "again", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["macro_f1"] == found["shown"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--space", "probe.pool_siz=1,2"], "unknown key 'probe.pool_siz'. Did you mean 'probe.pool_size'"),
        (["--space", "probe.pool_size=2"], "a search needs two values"),
        (["--space", "seed=0,1"], "a search cannot vary it"),
        (["--trials", "1"], "tune.trials = 1: input should be greater than or equal to 2"),
        (["--budget", "soon"], "tune.budget = 'soon'"),
        (["--strategy", "auto"], "set probe, partial, full or scratch"),
        (["--quality", "best"], "use quality fast or good"),
        (["--set", "train.time_budget=5m"], "remove it"),
        (["--recipe", "none.toml"], "no such recipe file"),
    ],
)
def test_it_refuses_before_any_work_in_one_line(cli: Cli, photos: Path, options: list[str], said: str) -> None:
    answer = cli("tune", photos, *options)
    assert answer.code == 2 and said in answer.complaint
    assert "Scanning images" not in answer.err and not Path("runs").exists()


def test_folders_and_a_missing_package_are_reported_in_one_line(cli: Cli, photos: Path, monkeypatch) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep")
    answer = cli("tune", photos, *OPTIONS, *SPACE, "--run", "mine", "--force")
    assert answer.code == 2 and "mine: exists and is not a search" in answer.complaint
    assert [p.name for p in Path("mine").iterdir()] == ["notes.txt"]
    monkeypatch.setattr(tuning, "find_spec", lambda name: None)
    answer = cli("tune", photos, *OPTIONS, *SPACE)
    assert answer.code == 2 and "pip install 'unfreeze[tune]'" in answer.complaint


def test_a_damaged_database_is_reported_in_one_line(cli: Cli, photos: Path) -> None:
    command = ["tune", photos, *OPTIONS, *SPACE, "--trials", 2, "--run", "search"]
    assert cli(*command).code == 0
    Path("search/search.db").write_bytes(b"nothing")
    answer = cli(*command)
    assert answer.code == 2 and "search/search.db: cannot be used" in answer.complaint
    assert cli(*command, "--force").code == 0
