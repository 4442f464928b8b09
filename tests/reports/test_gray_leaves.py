"""What leaves a run that sees gray photos: exported files take colors and turn them gray, pages show what was seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from photosets import class_folders
from unfreeze.core.dataset import probability_columns
from unfreeze.core.runs import Run
from unfreeze.data.decode import load_crop, to_grayscale
from unfreeze.exporters.export import export
from unfreeze.exporters.formats import open_exported
from unfreeze.inference.predictor import Classifier
from unfreeze.reports.explanation_page import explain


@pytest.fixture(scope="module")
def gray_run(probe_photos: Path, probe_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """As `probe_run`, gray."""
    from unfreeze.data.readers import read
    from unfreeze.training.crossval import cross_validate

    recipe = probe_run.recipe.replace(**{"image.color": "gray"})
    return cross_validate(read(str(probe_photos), recipe.source), recipe, tmp_path_factory.mktemp("runs") / "gray")


def test_an_exported_file_takes_colors_and_answers_as_the_run(gray_run: Run, tmp_path: Path) -> None:
    found = export(gray_run, "openvino", tmp_path / "gray.xml")
    assert found.difference < 1e-4 and found.same == found.photos == 24
    files = sorted(class_folders(tmp_path / "new", groups=1, seed=7).rglob("*.jpg"))
    classifier = Classifier.load(gray_run)
    want = classifier.predict(files)[probability_columns(gray_run.classes)].to_numpy()
    p = classifier.graphs[0].preprocessing
    pixels = np.stack([load_crop(file.read_bytes(), p.size, p.crop) for file in files])
    _, answer = open_exported(found.path)
    assert np.ptp(pixels, axis=3).max() > 50  # colored
    np.testing.assert_allclose(answer([pixels]), want, atol=1e-4)
    np.testing.assert_array_equal(answer([pixels]), answer([to_grayscale(pixels)]))

    import openvino as ov

    model = ov.Core().read_model(found.path)
    (about,) = json.loads(model.get_rt_info(["unfreeze", "inputs"]).astype(str))
    assert about["colours"] == "RGB" and "gray" in about["inside"] and about["read_by"][0].endswith(", gray")


def test_onnx_turns_gray_inside_too(gray_run: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    found = export(gray_run, "onnx", tmp_path / "gray.onnx")
    assert found.difference < 1e-4 and found.same == found.photos


def test_explain_says_it_and_shows_the_photo_as_it_was_seen(gray_run: Run, probe_run: Run, tmp_path: Path) -> None:
    import base64
    import io
    import re

    from PIL import Image

    photo = sorted(Path(gray_run.info["root"]).rglob("*.jpg"))[0]
    spread = {}
    for name, run in (("gray", gray_run), ("rgb", probe_run)):
        found = explain(run, photo, tmp_path / f"{name}.html")
        assert found.inputs[0]["gray"] is (name == "gray")
        page = (tmp_path / f"{name}.html").read_text()
        overlay = page[page.index('class="overlay') :]
        data = re.search(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", overlay)
        assert data
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))).convert("RGB")).astype(int)
        spread[name] = np.ptp(shown, axis=2).max()
    assert spread["gray"] == 0 and spread["rgb"] > 20
