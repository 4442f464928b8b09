"""Explanations are held against the run's own predictions; the page is whole, escaped and loads nothing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetuning import fit_here
from photosets import draw
from unfreeze.core.errors import SourceError
from unfreeze.core.runs import Run
from unfreeze.explanation import explain as module
from unfreeze.explanation.explain import BY_TRAINED
from unfreeze.explanation.heatmap import PreparedImages
from unfreeze.explanation.method_text import WORDS
from unfreeze.explanation.networks import active_members
from unfreeze.inference.ensemble import Ensemble
from unfreeze.inference.predictor import Classifier
from unfreeze.reports.explanation_page import explain

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
    # Colors are the classes here: the most alike must mostly share the prediction.
    assert sum(n.label == found.photos[0].label for n in found.photos[0].neighbours) >= 4


def test_logits_are_the_folds_mean(probe_run: Run, new_photos: list[Path]) -> None:
    (photo,) = explain(probe_run, new_photos[0]).photos
    classifier = Classifier.load(probe_run)
    features = PreparedImages.of(classifier, [str(new_photos[0])]).features(classifier, classifier.graphs)
    rooted = features.rooted(np.array([0]))
    want = np.mean([head.rooted_logits(rooted)[0] for head in classifier.heads], axis=0)
    assert photo.logits is not None
    np.testing.assert_allclose(list(photo.logits.values()), want, atol=1e-4)


def test_a_training_photo_is_marked_and_is_not_its_own_neighbor(probe_run: Run, probe_photos: Path) -> None:
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


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny networks: threads would wait for each other longer than they work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(probe_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Of the same photos as `probe_run`: trained partial, from scratch and without colors, and a vision
    transformer.
    """
    home = tmp_path_factory.mktemp("trained")
    vit = {"backbone": "timm/test_vit", "train__micro_batch": 8}
    made = {
        "partial": ("partial", {}),
        "full": ("full", {"image__color": "gray"}),
        "scratch": ("scratch", {}),
        "vit": ("full", vit),
    }
    return {
        name: fit_here(probe_photos, home / name, strategy, **{"train__epochs": 1, **changes})
        for name, (strategy, changes) in made.items()
    }


@pytest.mark.parametrize(
    ("name", "method", "used"),
    [
        ("partial", "auto", "grad-cam"),
        ("full", "auto", "grad-cam"),
        ("scratch", "auto", "grad-cam"),
        ("vit", "auto", "rollout"),
        ("vit", "grad-cam", "grad-cam"),
        ("partial", "occlusion", "occlusion"),
    ],
)
def test_trained_runs_have_their_own_maps(
    name: str, method: str, used: str, trained: dict[str, Run], new_photos: list[Path], tmp_path: Path
) -> None:
    run = trained[name]
    found = explain(run, new_photos, tmp_path / "why.html", method=method)
    table = Classifier.load(run).predict(new_photos)
    assert found.methods == (used,) and found.photos[2].error and found.gray is (name == "full")
    for photo, row in zip(found.photos[:2], table.to_dict("records")[:2], strict=True):
        (heat,) = photo.heat
        assert photo.label == row["label"] and run.classes[heat.label] == photo.label and not photo.maps
        assert run.classes[heat.runner_up] == photo.runner_up and heat.method == used
        assert len(photo.neighbours) == 6 and not photo.trained_on
    assert found.alike == BY_TRAINED
    page = (tmp_path / "why.html").read_text()
    assert page.count('<svg class="overlay"') == 2 and "&lt;img src=x" in page and "<img src=x" not in page
    assert WORDS[used].paper in page and WORDS[used].name in page
    assert ('class="small keys"' in page) is (used != "rollout"), "attention is of no class"
    assert "What each block adds" not in page and not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
    told = json.loads(json.dumps(found.described(), allow_nan=False))
    assert told["photos"][0]["heat"][0]["label"] == found.photos[0].label and told["methods"] == [used]


def test_a_blend_is_covered_and_shows_the_photos_of_its_heavier_run(
    probe_run: Run, trained: dict[str, Run], new_photos: list[Path], tmp_path: Path
) -> None:
    made = Ensemble.load([probe_run, trained["partial"]])
    blend = Ensemble(made.classifiers, np.array([0.3, 0.7]), made.out_of_fold)
    found = explain(blend, new_photos[0], tmp_path / "why.html")
    (photo,) = found.photos
    assert found.methods == ("occlusion",) and found.lead.path == trained["partial"].path and found.alike == BY_TRAINED
    assert photo.heat[0].source == "all that answers (6 of the folds' models together)" and len(photo.neighbours) == 6
    assert photo.label == blend.predict([new_photos[0]])["label"][0]
    assert photo.heat[0].margin == pytest.approx(
        photo.probabilities[photo.label] - photo.probabilities[photo.runner_up],  # type: ignore[index]
        abs=1e-3,
    )
    page = (tmp_path / "why.html").read_text()
    assert "by 2 runs that answer together" in page and "the run of the greatest weight" in page
    only = Ensemble(made.classifiers, np.array([0.0, 1.0]), made.out_of_fold)
    assert active_members(only) == made.classifiers[1:], "a run without weight answers nothing"


def test_by_its_name_a_blend_is_loaded(probe_run: Run, trained: dict[str, Run], new_photos: list[Path]) -> None:
    found = explain(f"{probe_run.path}+{trained['partial'].path}", new_photos[0])
    assert found.methods == ("occlusion",) and 1 <= len(found.runs) <= 2


@pytest.mark.parametrize(
    ("name", "method", "said"),
    [
        ("probe", "grad-cam", r"method='grad-cam': not for \S+ \(probe\); it has cells or occlusion"),
        ("partial", "cells", r"\(partial\); it has grad-cam or occlusion"),
        ("partial", "rollout", r"\(partial\); it has grad-cam or occlusion"),
        ("probe", "gradcam", r"known are auto, .* Did you mean 'grad-cam'\?"),
        ("blend", "cells", r"\(a blend\); it has occlusion"),
    ],
)
def test_a_method_that_a_run_has_not_is_refused_before_any_work(
    name: str, method: str, said: str, probe_run: Run, trained: dict[str, Run], new_photos: list[Path], tmp_path: Path
) -> None:
    made = Ensemble.load([probe_run, trained["partial"]])
    blend = Ensemble(made.classifiers, np.array([0.5, 0.5]), made.out_of_fold)
    run = {"probe": probe_run, "blend": blend, **trained}[name]
    with pytest.raises(SourceError, match=said):
        explain(run, new_photos, tmp_path / "why.html", method=method)
    assert not list(tmp_path.iterdir())


def test_training_photos_that_are_gone_are_said(trained: dict[str, Run], new_photos: list[Path]) -> None:
    run = trained["scratch"]
    moved = replace(run, info={**run.info, "root": "/nowhere"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unfreeze.explanation.neighbors.cache_root", lambda: new_photos[0].parent / "cache")
        found = explain(moved, new_photos[0])
    assert found.photos[0].neighbours == () and "cannot be read (missing" in found.note and found.photos[0].heat


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
