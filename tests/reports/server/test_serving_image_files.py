"""One decoder: profiles, depth and HEIC give the same answer by predict, over HTTP, in exports and on pages."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import profiles
import unfreeze as uf
from photosets import draw
from servedruns import Here, served
from unfreeze.core.dataset import probability_columns
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.data import image_formats
from unfreeze.data.decode import decode, read_bytes
from unfreeze.data.image_formats import has_heic
from unfreeze.exporters.images import ExportImages
from unfreeze.inference.in_memory import InMemoryPredictor
from unfreeze.inference.predictor import Classifier
from unfreeze.reports.thumbnails import scaled_jpeg, thumbnails

HEIC = b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(90)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A JPEG and a PNG with profiles that change them, gray of 12 bits, and a HEIC where its extra is installed."""
    image = draw(0, 3, 1).resize((320, 240))
    image.save(tmp_path / "swapped.jpg", quality=95, icc_profile=profiles.swapped())
    image.save(tmp_path / "wide.png", icc_profile=profiles.wide())
    Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 16).save(tmp_path / "deep.tif")
    if has_heic():
        image.save(tmp_path / "phone.heic", "HEIF", quality=90, icc_profile=profiles.wide())
    return sorted(tmp_path.iterdir())


def test_over_http_as_by_predict(here: Here, probe_run: Run, files: list[Path]) -> None:
    expected = uf.load(probe_run).predict(files)
    assert (expected["error"] == "").all()
    answer = here.predict(*((file.name, file.read_bytes()) for file in files))
    assert answer.status_code == 200
    found = np.array([list(one["probabilities"].values()) for one in answer.json()["photos"]])
    np.testing.assert_allclose(found, expected[probability_columns(probe_run.classes)], atol=1e-4)
    # The swapped primaries matter: read as they lie, the photo is of another class.
    plain = io.BytesIO()
    with Image.open(next(file for file in files if file.name == "swapped.jpg")) as image:
        image.save(plain, "JPEG", quality=95, icc_profile=None)
    other = here.predict(("plain.jpg", plain.getvalue())).json()["photos"][0]
    swapped = next(one for one in answer.json()["photos"] if one["name"] == "swapped.jpg")
    assert other["label"] != swapped["label"]


def test_what_an_export_is_checked_on(probe_run: Run, files: list[Path]) -> None:
    shown, good = ExportImages.of(Classifier.load(probe_run), files, Reporter())
    assert good.all() and shown.files == files


def test_on_pages(files: list[Path]) -> None:
    for file in files:
        with Image.open(io.BytesIO(scaled_jpeg(file, 120))) as picture:
            whole = decode(read_bytes(file))
            assert np.abs(np.asarray(picture, float).mean((0, 1)) - whole.mean((0, 1))).max() < 3
    made = thumbnails(files[0].parent, [file.name for file in files])
    assert all(one.source and not one.problem for one in made.values())


def test_a_heic_without_the_extra_is_refused_by_name(
    direct: InMemoryPredictor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The decoders are processes of their own: a module of this name on their path stands for the absent extra.
    absent = tmp_path / "absent"
    absent.mkdir()
    (absent / "pillow_heif.py").write_text("raise ImportError('not installed')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(absent), os.environ.get("PYTHONPATH")])))
    monkeypatch.setattr(image_formats, "has_heic", lambda: False)
    with served(direct) as here:
        answer = here.predict(("IMG_1.HEIC", HEIC))
    assert answer.status_code == 415 and "unfreeze[heic]" in answer.json()["photos"][0]["error"]
    (tmp_path / "a.heic").write_bytes(HEIC)
    assert "unfreeze[heic]" in thumbnails(tmp_path, ["a.heic"])["a.heic"].problem
