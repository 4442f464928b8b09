"""`unfreeze check` on the command line: page, exit codes, JSON, and another set beside it."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from photosets import class_folders


@pytest.fixture
def source(tmp_path):
    """24 photos; one of them twice with two labels, which is an error."""
    root = class_folders(tmp_path / "photos", groups=4)
    (root / "blue" / "copy.jpg").write_bytes((root / "red" / "g000_0.jpg").read_bytes())
    return root


@pytest.mark.parametrize(("severity", "code"), [("error", 1), ("warning", 1), ("info", 1)])
def test_fail_on_what_is_there(cli, source, severity, code):
    assert cli("check", source, "--fail-on", severity).code == code


def test_fail_on_what_is_not_there(cli, tmp_path):
    root = class_folders(tmp_path / "fine", groups=6)
    assert cli("check", root, "--fail-on", "error").code == 0
    answer = cli("check", root, "--fail-on", "grave")
    assert answer.code == 2 and "known are info, warning, error" in answer.complaint


def test_the_page(cli, source, tmp_path):
    answer = cli("check", source, "--report", tmp_path / "eda.html")
    assert answer.code == 0, answer.err
    assert f"Page: {tmp_path / 'eda.html'}" in answer.out
    assert "1 pair of photos are the same" in (tmp_path / "eda.html").read_text("utf-8")
    told = json.loads(cli("check", source, "--report", tmp_path / "eda.html", "--json").out)
    assert told["report"] == str(tmp_path / "eda.html")
    assert "exact-duplicates-disagree" in {f["check"] for f in told["findings"]}


def test_a_page_that_is_no_page(cli, source):
    answer = cli("check", source, "--report", "eda.pdf")
    assert answer.code == 2 and "give a name that ends in .html" in answer.complaint


def test_against(cli, source, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for i, file in enumerate(sorted(source.glob("*/g*.jpg"))[:16]):
        with Image.open(file) as image:
            image.point(lambda value: value // 3).save(other / f"{i}.jpg")
    answer = cli("check", source, "--compare-to", other, "--report", tmp_path / "eda.html", "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)["against"]
    assert told["auc"]["low"] <= told["auc"]["value"] <= told["auc"]["high"]
    assert told["auc"]["value"] > 0.8 and len(told["test"]) == 16
    assert 'id="shift"' in (tmp_path / "eda.html").read_text("utf-8")
    answer = cli("check", source, "--compare-to", tmp_path / "nothing")
    assert answer.code == 2 and "no such file or folder" in answer.complaint


def test_splits_of_folders_are_named_and_kept_in_the_run(cli, tmp_path):
    """A refused layout, the option that the refusal names, the same by the run's recipe, and prediction of all."""
    source = tmp_path / "data"
    class_folders(source / "east", groups=6)
    class_folders(source / "west", groups=2, seed=1)
    refused = cli("check", source)
    assert refused.code == 2 and "--split train=east,test=west" in refused.complaint
    assert len(refused.complaint.splitlines()) == 1
    asked = cli("check", source, "--split", "train=east,test=west")
    assert asked.code == 0 and "east cross-validated, west kept for testing" in asked.out
    assert asked.out.splitlines()[-1] == f"Next: unfreeze fit {source} --split train=east,test=west"
    fit = ("fit", source, "--strategy", "probe", "--quality", "fast", "--folds", "2")
    first = cli(*fit, "--split", "train=east,test=west", "--run", tmp_path / "first", "--json")
    assert first.code == 0, first.err
    again = cli(*fit, "--recipe", tmp_path / "first" / "recipe.toml", "--run", tmp_path / "again", "--json")
    assert json.loads(again.out)["test"] == json.loads(first.out)["test"]
    assert json.loads(first.out)["test"]["photos"] == 12
    out = tmp_path / "p.csv"
    assert cli("predict", tmp_path / "first", source, "--out", out).code == 0
    assert len(out.read_text().splitlines()) == 1 + 36 + 12


def test_labels_that_look_alike_are_a_warning_with_what_cannot_be_seen(cli, tmp_path):
    root = class_folders(tmp_path / "photos", groups=6, classes=("cat", "cat\u200b", "dog"))
    answer = cli("check", root, "--fail-on", "warning")
    assert answer.code == 1
    assert r"labels 'cat' (12 photos) and 'cat\u200b' (12 photos) differ only in" in answer.out
    assert "rename the folders or the values to one spelling" in answer.out
