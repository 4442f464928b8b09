"""The command compare: recipes that it fits, finished runs, what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from commandline import Answer, leftovers
from photosets import GROUP_REGEX

Cli = Callable[..., Answer]
SETTINGS = {"backbone": "timm/test_resnet", "weights": "none", "engine": "torch", "image.size": 64}
SETTINGS |= {"probe.stages": "last:2", "probe.pool_size": 2, "probe.Cs": "[1.0, 30.0]"}
WORDS = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
OPTIONS = ["--group-regex", GROUP_REGEX, "--folds", "3", *WORDS]


def test_a_key_is_varied_reported_written_and_resumed(cli: Cli, photos: Path) -> None:
    command = ["compare", photos, *OPTIONS, "--grid", "image.color=rgb,gray"]
    answer = cli(*command)
    assert answer.code == 0, answer.err
    assert (
        " points lower than rgb (95% interval" in answer.out
        and "against rgb" in answer.out
        and "72 photos, 36 groups" in answer.out
    )
    (place,) = Path("runs").iterdir()
    assert place.name.startswith("compare-colours-")
    assert sorted(p.name for p in place.iterdir()) == ["compare.html", "gray", "rgb"] and not leftovers(place)
    assert f"Page: {place}/compare.html" in answer.out
    assert answer.out.splitlines()[-1] == f"Next: unfreeze report {place}/rgb"
    again = cli(*command, "--json")
    found = json.loads(again.out)
    assert "Computing" not in again.err and found["page"] == str(place / "compare.html")
    rgb, gray = found["contenders"]
    assert gray["difference"]["high"] < 0 and gray["changes"] == {"image.color": "gray"} and rgb["sentence"] == ""
    assert found["folds"] == 3 and found["chance"]["accuracy"] == pytest.approx(1 / 3)

    listed = cli("runs")
    assert f"{place}/gray" in listed.out and f"{place}/rgb" in listed.out
    assert cli(*answer.out.splitlines()[-1].split()[2:]).code == 0  # the command that it names

    runs = cli("compare", place / "rgb", place / "gray", "--out", "two.html", "--json")
    assert json.loads(runs.out)["contenders"][1]["difference"] == gray["difference"]
    assert "points lower than rgb" in Path("two.html").read_text()
    plain = cli("compare", place / "rgb", place / "gray")
    assert plain.code == 0 and "Page:" not in plain.out


def test_named_recipes_and_a_grid(cli: Cli, photos: Path) -> None:
    Path("r.toml").write_text('[plain]\nprobe.views = ["plain"]\n[both]\nprobe.views = ["plain", "flip"]\n')
    answer = cli("compare", photos, *OPTIONS, "--recipes", "r.toml", "--run", "named", "--out", "named.html")
    assert answer.code == 0, answer.err
    assert Path("named/plain/run.json").is_file() and Path("named.html").is_file()
    assert not Path("named/compare.html").exists() and not Path("runs").exists()
    grid = cli("compare", photos, *OPTIONS, "--grid", "probe.pool_size=1,2", "--grid", "image.color=rgb,gray", "--json")
    names = [one["name"] for one in json.loads(grid.out)["contenders"]]
    assert names == [
        "pool_size=1 color=rgb",
        "pool_size=1 color=gray",
        "pool_size=2 color=rgb",
        "pool_size=2 color=gray",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--grid", "image.colour=rgb,gray"], "unknown key 'image.colour'. Did you mean 'image.color'"),
        (["--grid", "image.color=rgb,grey"], "image.color = 'grey': input should be 'rgb' or 'gray'"),
        (["--grid", "image.color=gray"], "at least two values are required"),
        (["--grid", "seed=" + ",".join(map(str, range(25)))], "25 recipes are more than 24"),
        (["--grid", "image.color=rgb,gray", "--recipes", "r.toml"], "give one of the two"),
        (["--grid", "image.color=rgb,gray", "--preset", "balance"], "--preset and --grid cannot be combined"),
        (["--preset", "balanse"], "known are balance, labels. Did you mean 'balance'?"),
        (["--preset", "labels", "--out", "a.html"], "--out is not for --preset"),
        (["--preset", "balance", "--force"], "--force is not for --preset"),
        (["--recipes", "r.toml"], "no such file of recipes"),
        (["--grid", "backbone=timm/test_resnet,timm/test_resnot"], "test_resnot"),
        ([], "a comparison needs two or more runs"),
        (["--grid", "image.color=rgb,gray", "--set", "fold.count=3"], "unknown key 'fold.count'"),
    ],
)
def test_it_refuses_before_any_work_in_one_line(cli: Cli, photos: Path, options: list[str], said: str) -> None:
    answer = cli("compare", photos, *options)
    assert answer.code == 2 and said in answer.complaint
    assert "Scanning images" not in answer.err and not Path("runs").exists()


def test_one_run_alone_is_distinguished_from_photos(cli: Cli, fitted: Path) -> None:
    answer = cli("compare", fitted)
    assert answer.code == 2 and "a comparison needs two or more runs" in answer.complaint


def test_runs_and_options_of_a_fit_do_not_go_together(cli: Cli, photos: Path, fitted: Path) -> None:
    for more in (["--strategy", "partial"], ["--set", "seed=1"], ["--force"]):
        answer = cli("compare", fitted, fitted, *more)
        assert answer.code == 2 and "finished runs are compared as they are" in answer.complaint
    assert "is given twice" in cli("compare", fitted, fitted).complaint
    assert "no such run folder" in cli("compare", fitted, "nowhere").complaint
    answer = cli("compare", photos, fitted, "--grid", "image.color=rgb,gray")
    assert answer.code == 2 and "compared on one SOURCE" in answer.complaint


def test_a_narrow_terminal_and_a_page_that_cannot_be_written(cli: Cli, fitted: Path, photos: Path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    command = ["compare", photos, *OPTIONS, "--grid", "image.color=rgb,gray"]
    answer = cli(*command)
    assert answer.code == 0 and "folds won: " in answer.out
    Path("here").write_text("")
    answer = cli(*command, "--out", "here/page.html")
    assert answer.code == 2 and "here" in answer.complaint
