"""The commands export and explain: what they print, write and refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from commandline import Answer, leftovers
from unfreeze.core.runs import open_run

Cli = Callable[..., Answer]


def test_export_writes_here_and_says_how_near_it_is(cli: Cli, fitted: Path) -> None:
    answer = cli("export", fitted)
    assert answer.code == 0, answer.err
    assert Path("colours.xml").is_file() and Path("colours.bin").is_file() and not leftovers(Path())
    assert "how to fill it: colours.xml.json" in answer.out and "images/s here" in answer.out
    assert "differ from the run's by at most" in answer.out and "(0.001 is allowed)" in answer.out
    again = cli("export", fitted)
    assert again.code == 2 and "--force overwrites it" in again.complaint
    alone = cli("export", fitted, "--to", "torchscript", "--fold", "1", "--json")
    assert alone.code == 0 and json.loads(alone.out)["path"] == "colours-fold-1.pt"
    assert json.loads(alone.out)["fold"] == 1 and Path("colours-fold-1.pt.json").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to", "tflite"], "--to tflite: known are openvino, onnx, torchscript."),
        (["--out", "a.txt"], "name it a.xml"),
        (["--tta", "both"], "--tta both: known are plain, flip."),
        (["--photos", "nowhere"], "nowhere: no such file or folder."),
        (["--fold", "9"], "has the folds 0 to 2."),
        (["--to", "torchscript", "--int8"], "torchscript is written in float32."),
    ],
)
def test_export_refuses_in_one_line(cli: Cli, fitted: Path, options: list[str], said: str) -> None:
    answer = cli("export", fitted, *options)
    assert answer.code == 2 and said in answer.complaint
    assert list(Path().iterdir()) == []


def test_explain_writes_a_page_or_prints_the_numbers(cli: Cli, fitted: Path, photos: Path) -> None:
    photo = next(photos.rglob("*.jpg"))
    answer = cli("explain", fitted, photo)
    assert answer.code == 0, answer.err
    assert Path("explain.html").is_file() and "Page: explain.html" in answer.out
    assert "It is what the linear heads read there, not what caused the class" in answer.out
    Path("explain.html").unlink()
    found = cli("explain", fitted, photo, "--json")
    (explained,) = json.loads(found.out)["photos"]
    assert found.code == 0 and explained["trained_on"] and list(Path().iterdir()) == []
    name = explained["label"]
    cells = sum(sum(map(sum, block["classes"][name])) for block in explained["maps"])
    assert explained["base"][name] + cells == pytest.approx(explained["logits"][name], abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.jpg"], "no such file or folder"),
        (["nowhere.jpg", "--out", "why.pdf"], "name a file why.html"),
        (["PHOTO", "--method", "cell"], "--method cell: known are auto, cells, grad-cam, rollout, occlusion."),
        (["PHOTO", "--method", "rollout"], "(probe); it has cells or occlusion."),
    ],
)
def test_explain_refuses_in_one_line(cli: Cli, fitted: Path, arguments: list[str], said: str) -> None:
    run = open_run(fitted)
    photo = str(Path(run.info["root"]) / run.photos()["path"][0])
    answer = cli("explain", fitted, *(photo if one == "PHOTO" else one for one in arguments))
    assert answer.code == 2 and said in answer.complaint
