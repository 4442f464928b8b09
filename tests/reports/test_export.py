"""An exported file answers as its run does, says what it is, and appears only if both hold."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from photosets import class_folders
from unfreeze.core.dataset import probability_columns
from unfreeze.core.errors import EngineError, MissingExtraError, RunError, SourceError, StorageError
from unfreeze.core.runs import Run
from unfreeze.data.decode import load_crop
from unfreeze.exporters import export as module
from unfreeze.exporters import formats
from unfreeze.exporters.export import export
from unfreeze.exporters.formats import open_exported
from unfreeze.inference.predictor import Classifier
from unfreeze.training.linear_probe.heads import LinearHead

NEAR = 1e-4


def pixels_of(files: list[Path], size: int, crop: float) -> np.ndarray:
    return np.stack([load_crop(file.read_bytes(), size, crop) for file in files])


@pytest.fixture(scope="module")
def openvino_file(probe_run: Run, tmp_path_factory: pytest.TempPathFactory) -> module.Exported:
    return export(probe_run, "openvino", tmp_path_factory.mktemp("exported") / "colours.xml")


def test_an_openvino_file_answers_as_the_run(openvino_file: module.Exported, probe_run: Run, tmp_path: Path) -> None:
    assert 0 < openvino_file.difference < NEAR
    assert openvino_file.same == openvino_file.photos == 24
    assert sorted(p.name for p in openvino_file.path.parent.iterdir()) == [
        "colours.bin",
        "colours.xml",
        "colours.xml.json",
    ]
    # Photos that neither the run nor the check has seen, in batches of several sizes.
    root = class_folders(tmp_path / "new", groups=1, seed=7)
    files = sorted(root.rglob("*.jpg"))
    classifier = Classifier.load(probe_run)
    want = classifier.predict(files)[probability_columns(probe_run.classes)].to_numpy()
    p = classifier.graphs[0].preprocessing
    _, answer = open_exported(openvino_file.path)
    for n in (1, 3, len(files)):
        got = answer([pixels_of(files[:n], p.size, p.crop)])
        assert got.shape == (n, 3) and got.dtype == np.float32
        np.testing.assert_allclose(got, want[:n], atol=NEAR)
        np.testing.assert_allclose(got.sum(1), 1, atol=1e-5)
    assert np.ptp(want, axis=0).max() > 0.1  # answers that are all alike would agree by chance


def test_the_file_says_what_it_is(openvino_file: module.Exported, probe_run: Run) -> None:
    import openvino as ov

    model = ov.Core().read_model(openvino_file.path)
    about = {
        k: model.get_rt_info(["unfreeze", k]).astype(str) for k in ("classes", "inputs", "licence", "run", "views")
    }
    assert json.loads(about["classes"]) == list(probe_run.classes)
    (given,) = json.loads(about["inputs"])
    assert (given["name"], given["size"], given["crop"], given["layout"]) == ("pixels", 64, 0.875, "NHWC")
    assert "bicubic" in given["resampling"]
    assert "Apache-2.0" in about["licence"]
    assert json.loads(about["run"])["identity"] == probe_run.info["identity"]
    assert str(probe_run.path.parent) not in about["run"]  # a machine's folders are nobody's business
    assert json.loads(about["views"]) == ["plain", "flip"]
    assert model.input(0).get_any_name() == "pixels" and model.output(0).get_any_name() == "probabilities"
    assert model.input(0).get_element_type() == ov.Type.u8 and model.input(0).get_partial_shape()[0].is_dynamic


def test_the_sidecar_says_how_to_feed_it_and_how_it_was_checked(openvino_file: module.Exported, probe_run: Run) -> None:
    text = openvino_file.about.read_text("utf-8")
    sheet = json.loads(text)
    assert sheet["classes"] == list(probe_run.classes) and sheet["file"] == "colours.xml"
    (given,) = sheet["inputs"]
    p = Classifier.load(probe_run).graphs[0].preprocessing
    assert given["normalising"] == [{"mean": list(p.mean), "std": list(p.std)}] and given["resample"] == "bicubic"
    assert sheet["views"] == ["plain", "flip"] and sheet["folds"] == [0, 1, 2] and sheet["opset"] is None
    assert sheet["parity"]["photos"] == 24 and sheet["parity"]["difference"] == openvino_file.difference
    assert 0 < sheet["parity"]["mean_difference"] < sheet["parity"]["difference"] <= sheet["parity"]["tolerance"]
    assert {"openvino", "torch", "unfreeze"} <= set(sheet["versions"])
    assert any("Apache-2.0" in line for line in sheet["licence"])
    assert str(probe_run.path.parent) not in text
    assert sheet["bytes"] == sum(openvino_file.path.with_suffix(s).stat().st_size for s in (".xml", ".bin"))


def test_an_onnx_file_answers_as_the_run_and_one_view_is_enough(probe_run: Run, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    found = export(probe_run, "onnx", tmp_path / "colours.onnx", tta="plain")
    assert 0 < found.difference < NEAR and found.same == 24
    assert sorted(p.name for p in tmp_path.iterdir()) == ["colours.onnx", "colours.onnx.json"]
    written = onnx.load(found.path)
    assert b"chain.py" not in found.path.read_bytes()  # where our source lies is nobody's business
    assert json.loads(found.about.read_text())["opset"] == formats.OPSET == written.opset_import[0].version
    about = {entry.key: entry.value for entry in written.metadata_props}
    assert json.loads(about["classes"]) == list(probe_run.classes)
    assert json.loads(about["views"]) == ["plain"]
    assert [i.name for i in written.graph.input] == ["pixels"]


def test_a_race_takes_an_input_for_each_size(probe_run: Run, tmp_path: Path) -> None:
    base = Classifier.load(probe_run)
    first = base.graphs[0]
    second = replace(first, preprocessing=replace(first.preprocessing, size=48, crop=1.0))
    draw = np.random.default_rng(0)
    width = len(base.heads[0].weight)

    def head(*inputs: int) -> LinearHead:
        weight = draw.normal(0, 0.02, (width * len(inputs), 3)).astype(np.float32)
        return LinearHead(weight, draw.normal(0, 1, 3).astype(np.float32), 1.0, inputs)

    # The reference by torch: another conversion would only take time.
    run = replace(probe_run, recipe=probe_run.recipe.replace(engine="torch"))
    raced = Classifier(run, (head(1, 0), head(0), head(1)), (first, second))
    found = export(raced, "openvino", tmp_path / "raced.xml")
    assert found.inputs == ("pixels_64", "pixels_48")
    assert 0 < found.difference < NEAR and found.same == found.photos


def test_a_file_that_differs_is_refused_and_nothing_is_left(
    probe_run: Run, openvino_file: module.Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(network: object, plan: object, outputs: object, about: object, path: Path) -> None:
        for suffix in (".xml", ".bin"):
            shutil.copy(openvino_file.path.with_suffix(suffix), path.with_suffix(suffix))

    # Converting once more would only take time.
    monkeypatch.setitem(formats.FORMATS, "openvino", replace(formats.FORMATS["openvino"], write=copied))
    monkeypatch.setattr(module, "TOLERANCE", 1e-12)
    before = {tmp_path / "a.xml": b"old", tmp_path / "a.bin": b"older", tmp_path / "a.xml.json": b"{}"}
    for file, content in before.items():
        file.write_bytes(content)
    with pytest.raises(EngineError, match=r"not written.*differ from the run's by up to"):
        export(probe_run, "openvino", tmp_path / "a.xml", force=True)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_what_cannot_be_is_said_before_any_work(
    probe_run: Run, openvino_file: module.Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "build_export_module", None)  # any work would fail on this
    with pytest.raises(SourceError, match=r"to='onx': known are openvino, onnx, torchscript\. Did you mean 'onnx'"):
        export(probe_run, "onx")
    with pytest.raises(SourceError, match="tta='mirror': known are plain, flip"):
        export(probe_run, tta="mirror")
    with pytest.raises(StorageError, match=r"openvino is written as \.xml; name it a\.xml"):
        export(probe_run, out=tmp_path / "a.onnx")
    with pytest.raises(StorageError, match="exists; force=True overwrites it"):
        export(probe_run, out=openvino_file.path)
    with pytest.raises(RunError, match="no such run folder"):
        export(tmp_path / "nowhere")
    moved = Run(probe_run.path, probe_run.recipe, {**probe_run.info, "root": str(tmp_path / "gone")})
    with pytest.raises(SourceError, match="name some with photos="):
        export(replace(Classifier.load(probe_run), run=moved), out=tmp_path / "a.xml")
    with pytest.raises(RunError, match=r"fold=3: .* has the folds 0 to 2"):
        export(probe_run, out=tmp_path / "a.xml", fold=3)
    with pytest.raises(SourceError, match="int8=True: is for openvino, onnx; torchscript is written in float32"):
        export(probe_run, "torchscript", tmp_path / "a.pt", int8=True)
    with pytest.raises(SourceError, match="max_f1_drop=-1: points of macro F1"):
        export(probe_run, out=tmp_path / "a.xml", int8=True, max_f1_drop=-1)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(probe_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "has", lambda package: package not in ("onnxscript", "nncf"))
    with pytest.raises(MissingExtraError, match=r"needs onnxscript: pip install 'unfreeze\[onnx\]'"):
        export(probe_run, "onnx")
    with pytest.raises(MissingExtraError, match=r"int8=True needs nncf: pip install 'unfreeze\[int8\]'"):
        export(probe_run, "openvino", int8=True)
