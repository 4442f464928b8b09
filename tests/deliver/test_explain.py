"""Explanations are held against the run's own predictions; the page is whole, escaped and loads nothing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from photosets import draw
from unfreeze.core.errors import SourceError
from unfreeze.core.runs import Run
from unfreeze.deliver import explain as module
from unfreeze.deliver.explain import explain
from unfreeze.learn.classifier import Classifier
from unfreeze.learn.maps_heads import SeenPhotos

EVIL = "<img src=x onerror=alert(1)>.jpg"


@pytest.fixture(scope="module")
def new_photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A photo of a new group, one with a hostile name, and one that is no photo."""
    folder = tmp_path_factory.mktemp("new")
    draw(0, 90, 0).save(folder / "plain.jpg")
    draw(2, 91, 0).save(folder / EVIL, "JPEG")
    (folder / "broken.jpg").write_bytes(b"not a photo")
    return [folder / "plain.jpg", folder / EVIL, folder / "broken.jpg"]


def test_the_numbers_are_the_runs(probe_run: Run, new_photos: list[Path]) -> None:
    found = explain(probe_run, new_photos)
    assert [p.path for p in found.photos] == [str(p) for p in new_photos]
    table = Classifier.load(probe_run).predict(new_photos)
    assert found.photos[2].error and not found.photos[2].maps
    for photo, row in zip(found.photos[:2], table.to_dict("records")[:2], strict=True):
        assert photo.label == row["label"] and photo.probabilities is not None
        for name in probe_run.classes:
            assert photo.probabilities[name] == pytest.approx(row[f"p_{name}"], abs=1e-6)
            maps = sum(np.sum(block["classes"][name]) + block["whole"][name] for block in photo.maps)
            assert photo.logits is not None and photo.base is not None
            assert photo.base[name] + maps == pytest.approx(photo.logits[name], abs=1e-4)
        assert sorted(photo.probabilities.values())[-2] == photo.probabilities[photo.runner_up]
        assert len(photo.maps) == 2 and not photo.trained_on
        sizes = [n.cosine for n in photo.neighbours]
        assert len(sizes) == 6 and sizes == sorted(sizes, reverse=True)
    assert found.reference == "the mean training photo" and not found.note and found.methods == ("cells",)
    # Colours are the classes here: the most alike must mostly share the prediction.
    assert sum(n.label == found.photos[0].label for n in found.photos[0].neighbours) >= 4


def test_logits_are_the_folds_mean(probe_run: Run, new_photos: list[Path]) -> None:
    (photo,) = explain(probe_run, new_photos[0]).photos
    classifier = Classifier.load(probe_run)
    features = SeenPhotos.of(classifier, [str(new_photos[0])]).features(classifier, classifier.graphs)
    rooted = features.rooted(np.array([0]))
    want = np.mean([head.rooted_logits(rooted)[0] for head in classifier.heads], axis=0)
    assert photo.logits is not None
    np.testing.assert_allclose(list(photo.logits.values()), want, atol=1e-4)


def test_a_training_photo_is_marked_and_is_not_its_own_neighbour(probe_run: Run, probe_photos: Path) -> None:
    path = probe_run.photos()["path"].iloc[0]
    (photo,) = explain(probe_run, probe_photos / path).photos
    assert photo.trained_on
    assert path not in [n.path for n in photo.neighbours]


def test_the_page_is_whole_escaped_and_loads_nothing(probe_run: Run, new_photos: list[Path], tmp_path: Path) -> None:
    explain(probe_run, new_photos, tmp_path / "why.html")
    page = (tmp_path / "why.html").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["why.html"]
    assert page.startswith("<!doctype html>")
    assert "<img src=x" not in page and "&lt;img src=x" in page
    assert "<script" not in page and not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "not a photo" not in page and "broken.jpg" in page
    assert page.count('<svg class="overlay"') == 2 and page.count('<ul class="shots near">') == 2
    assert "default-src 'none'" in page


def test_without_the_training_features_the_rest_is_there(
    probe_run: Run, new_photos: list[Path], tmp_path: Path, fresh_cache: Path, cache_folder: Path
) -> None:
    fresh_cache.mkdir()
    shutil.copytree(cache_folder / "engines", fresh_cache / "engines")
    found = explain(probe_run, new_photos[0], tmp_path / "why.html")
    assert found.reference == "zero" and found.photos[0].neighbours == ()
    assert "no longer holds the training photos" in (tmp_path / "why.html").read_text()
    assert found.photos[0].base == pytest.approx(
        dict(zip(probe_run.classes, np.mean([h.bias for h in Classifier.load(probe_run).heads], 0), strict=True)),
        abs=1e-6,
    )


def test_bad_input_is_one_sentence(
    probe_run: Run, new_photos: list[Path], probe_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        explain(probe_run, "nowhere.jpg")
    with pytest.raises(SourceError, match="none of the 1 photo"):
        explain(probe_run, new_photos[2])
    monkeypatch.setattr(module, "PHOTOS", 5)
    with pytest.raises(SourceError, match="more than a page explains"):
        explain(probe_run, probe_photos)
