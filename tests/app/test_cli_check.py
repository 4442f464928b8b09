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
    pytest.importorskip("openvino")
    other = tmp_path / "other"
    other.mkdir()
    for i, file in enumerate(sorted(source.glob("*/g*.jpg"))[:16]):
        with Image.open(file) as image:
            image.point(lambda value: value // 3).save(other / f"{i}.jpg")
    answer = cli("check", source, "--against", other, "--report", tmp_path / "eda.html", "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)["against"]
    assert told["auc"]["low"] <= told["auc"]["value"] <= told["auc"]["high"]
    assert told["auc"]["value"] > 0.8 and len(told["test"]) == 16
    assert 'id="shift"' in (tmp_path / "eda.html").read_text("utf-8")
    answer = cli("check", source, "--against", tmp_path / "nothing")
    assert answer.code == 2 and "no such file or folder" in answer.complaint
