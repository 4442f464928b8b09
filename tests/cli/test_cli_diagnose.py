"""unfreeze diagnose: one table, one sentence and a next command; as JSON; and an exported file held against its run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from commandline import Answer
from photosets import class_folders
from unfreeze.analysis.diagnose.exported_file import check_exported


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    """The run as a copy, for a diagnosis is kept in it."""
    return Path(shutil.copytree(fitted, tmp_path / "run"))


@pytest.fixture(scope="session")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 photos of other groups in class folders."""
    return class_folders(tmp_path_factory.mktemp("new") / "photos", groups=5, seed=3)


def test_a_table_a_sentence_and_the_next_command(cli: Callable[..., Answer], run: Path, new: Path) -> None:
    answer = cli("diagnose", run, "--test", new)
    assert answer.code == 0, answer.err
    assert "Possible causes of the gap between validation and test, most severe first" in answer.out
    for family in ("leakage", "overfitting", "shift", "preprocessing", "calibration", "labels"):
        assert f"{family}: " in answer.out
    assert "is measured there" in answer.out  # the folders' names are labels that the run knows
    assert answer.out.strip().splitlines()[-1].startswith("Next: unfreeze ")
    assert 'id="diagnosis"' in (run / "report.html").read_text()
    assert json.loads((run / "diagnosis.json").read_text())["test_photos"] == 30


def test_json_is_the_kept_file(cli: Callable[..., Answer], run: Path) -> None:
    answer = cli("diagnose", run, "--json")
    assert answer.code == 0 and answer.err == ""
    told = json.loads(answer.out)
    kept = json.loads((run / "diagnosis.json").read_text())
    assert told["causes"] == kept["causes"] and told["sentence"].endswith("could not be measured.")
    assert {"name", "severity", "cost", "evidence", "remedy", "command", "measured"} <= set(told["causes"][0])


def test_an_exported_file_that_sees_alike_and_one_that_swaps_colors(
    cli: Callable[..., Answer], run: Path, tmp_path: Path
) -> None:
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    file = tmp_path / "run.xml"
    assert cli("export", run, "--out", file).code == 0
    model = ov.Core().read_model(file)
    prepared = PrePostProcessor(model)
    prepared.input().tensor().set_layout(ov.Layout("NHWC"))
    prepared.input().preprocess().reverse_channels()
    prepared.input().model().set_layout(ov.Layout("NHWC"))
    ov.save_model(prepared.build(), tmp_path / "bgr.xml", compress_to_fp16=False)
    assert cli("export", run, "--to", "torchscript", "--out", tmp_path / "one.pt", "--fold", "1").code == 0
    answer = cli("diagnose", run, "--exported", tmp_path / "bgr.xml", "--json")
    assert answer.code == 0, answer.err
    swapped = json.loads(answer.out)["causes"][0]
    assert swapped["name"] == "preprocessing: the exported file" and swapped["severity"] == "error"
    assert "It agrees if red and blue are swapped (BGR for RGB)" in swapped["evidence"]
    assert str(tmp_path / "bgr.xml") in swapped["command"]
    same = check_exported(run, file)
    assert same.severity == "none" and same.measured and "the run's probabilities" in same.evidence
    # What one fold says is not what all say together: its file is held against it alone, as the JSON beside says.
    alone = check_exported(run, tmp_path / "one.pt")
    assert alone.severity == "none" and "those of fold 1 alone" in alone.evidence
    (tmp_path / "one.pt.json").unlink()
    assert check_exported(run, tmp_path / "one.pt").severity != "none"


def test_what_is_not_there_is_one_line(cli: Callable[..., Answer], run: Path, tmp_path: Path) -> None:
    assert "no such run folder" in cli("diagnose", tmp_path / "absent").complaint
    assert "no such file or folder" in cli("diagnose", run, "--test", tmp_path / "absent").complaint
    assert (
        "no such file, or none of .xml, .onnx, .pt" in cli("diagnose", run, "--exported", tmp_path / "x.xml").complaint
    )
