"""int8 is calibrated and judged on photos that were held out, and kept only if it costs no more than is allowed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetuning import Says, colours, fit_here
from unfreeze.core.errors import EngineError
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.exporters import quantize
from unfreeze.exporters.export import export
from unfreeze.exporters.images import ExportImages
from unfreeze.inference.predictor import Classifier
from unfreeze.metrics.classification import confusion_matrix, macro_f1


@pytest.fixture(autouse=True)
def _timed_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images per second are no question here."""
    monkeypatch.setattr("unfreeze.exporters.export._SPEED_SECONDS", 0.01)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A probe of the tiny network: 36 photos of 18 groups, three folds."""
    folder = tmp_path_factory.mktemp("int8")
    return fit_here(colours(folder / "colours"), folder / "run", "probe")


@pytest.mark.parametrize(("to", "suffix", "needs"), [("openvino", ".xml", "nncf"), ("onnx", ".onnx", "onnxscript")])
def test_int8_is_smaller_and_says_what_it_costs(to: str, suffix: str, needs: str, run: Run, tmp_path: Path) -> None:
    pytest.importorskip(needs)
    says = Says()
    found = export(run, to, tmp_path / f"small{suffix}", int8=True, max_f1_drop=50, reporter=says)
    assert not [p for p in tmp_path.iterdir() if not p.name.startswith("small.")]
    cost = found.int8["macro_f1"]
    assert found.int8["photos"] == 36 and found.int8["groups"] == 18 and found.int8["folds"] == [0, 1, 2]
    # The float32 side of the comparison is the run's own out-of-fold score.
    oof = run.predictions()
    truth = np.array([run.classes.index(label) for label in oof["label"]])
    said = oof[[f"p_{c}" for c in run.classes]].to_numpy().argmax(1)
    assert cost["float32"] == pytest.approx(float(macro_f1(confusion_matrix(truth, said, 3))), abs=0.06)
    difference = cost["difference"]
    assert difference["value"] == pytest.approx(cost["int8"] - cost["float32"])
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert found.int8["bytes"]["int8"] == found.bytes < 0.7 * found.int8["bytes"]["float32"]
    assert set(found.int8["images_per_second"]) == {"float32", "int8"}
    assert found.difference > 1e-6  # it is another network: rounded
    sheet = json.loads(found.about.read_text())
    assert sheet["precision"] == "int8" and sheet["int8"]["macro_f1"] == cost
    assert sheet["parity"]["difference"] < 1e-3 < sheet["int8"]["allowed"]
    assert any("points of macro F1" in line and "out-of-fold photos" in line for line in says.lines)


def test_gray_is_not_rounded_to_8_bits(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    grey = fit_here(Path(run.info["root"]), tmp_path / "run", "probe", image__color="gray")
    found = export(grey, "openvino", tmp_path / "a.xml", int8=True, max_f1_drop=100)
    assert 1e-6 < found.mean_difference < 0.02  # 0.05 and more, were the luminance rounded


def test_calibration_never_sees_the_fold_that_is_judged(run: Run) -> None:
    photos = quantize.Calibration(Classifier.load(run), Reporter())
    for fold in range(3):
        held = {photos.shown.files[i] for i in photos.held_out(fold, 1.0)}
        assert held and not held & set(photos.learnt_from(fold).files)
    assert len(photos.learnt_from(None).files) == 36


def test_int8_that_costs_too_much_is_refused_with_the_figures(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf")
    black = tmp_path / "black.png"
    Image.new("RGB", (64, 64)).save(black)

    def blind(self: quantize.Calibration, without: int | None) -> ExportImages:
        return ExportImages([black] * 4, None, 10**8)

    # Ranges taken from black photos clip all others: a network that has really been spoilt.
    monkeypatch.setattr(quantize.Calibration, "learnt_from", blind)
    target = tmp_path / "out" / "a.xml"
    said = r"a\.xml: not written, for int8 costs \d+\.\d+ points of macro F1 \(95% .* on 36 out-of-fold photos\)"
    with pytest.raises(EngineError, match=said + r", and 0\.5 is allowed; .*max_f1_drop=\d"):
        export(run, "openvino", target, int8=True)
    assert list(target.parent.iterdir()) == []
