"""image.color = gray: no strategy and no view ever sees a color, and what was kept of colored photos stays valid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unfreeze as uf
from finetuning import fit_here, make_recipe
from photosets import class_folders
from unfreeze.core.recipe import Recipe
from unfreeze.features.crops import preprocessing_of
from unfreeze.features.inputs import feature_extractors
from unfreeze.models.registry import find_backbone
from unfreeze.training.fine_tune.settings import TrainSetup, resolve_settings

# 64 x 64 photos in a lossless format are the network's input pixel by pixel.
WHOLE = {"image__crop": 1.0, "image__color": "gray"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("photos") / "colours", groups=6)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three photos, each beside its own luminance."""
    folder, draw = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    files = []
    for i in range(3):
        photo = Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8))
        for name, image in (("colour", photo), ("gray", photo.convert("L"))):
            files.append(folder / f"{i}-{name}.png")
            image.save(files[-1])
    return files


def told(run: Path | uf.Run, files: list[Path]) -> np.ndarray:
    return uf.load(run).predict(files).filter(like="p_").to_numpy().reshape(len(files) // 2, 2, -1)


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("probe", {}),
        ("probe", {"balance__extra_views": "*:1:rotate-10"}),
        ("partial", {"train__epochs": 1, "train__augment": "strong"}),
        ("full", {"train__epochs": 1, "train__augment": "strong"}),
    ],
)
def test_a_photo_and_its_luminance_are_the_same_to_it(source, pairs, tmp_path, strategy, changes):
    run = fit_here(source, tmp_path / "run", strategy, **WHOLE, **changes, folds__n_splits=2)
    both = told(run, pairs)
    assert np.array_equal(both[:, 0], both[:, 1])
    colour = told(
        fit_here(source, tmp_path / "rgb", strategy, **{**WHOLE, "image__color": "rgb"}, folds__n_splits=2), pairs
    )
    assert not np.allclose(colour[:, 0], colour[:, 1])


def test_the_run_says_so_and_is_opened_as_it_was_fitted(source, tmp_path):
    run = fit_here(source, tmp_path / "run", "probe", image__color="gray")
    (written,) = run.info["inputs"]
    assert written["gray"] is True and written["title"].endswith(", gray")
    assert uf.load(run).graphs[0].preprocessing.gray
    plain = fit_here(source, tmp_path / "plain", "probe")
    assert "gray" not in plain.info["inputs"][0] and "gray" not in plain.info["inputs"][0]["title"]
    trained = fit_here(source, tmp_path / "partial", "partial", image__color="gray", train__epochs=1)
    assert trained.info["trained"]["gray"] is True
    assert uf.load(trained).tuned[0].setting.preprocessing.gray


def test_what_names_a_cache_changes_for_gray_only():
    recipe = make_recipe("partial")
    gray = recipe.replace(**{"image.color": "gray"})
    one, other = (feature_extractors(r)[0] for r in (recipe, gray))
    assert one.photos() == {"crop": 0.95, "resample": "bilinear", "squash": False}
    assert other.photos() == {**one.photos(), "gray": True}
    assert one.key() == other.key()  # the converted network is the same
    one, other = (TrainSetup.of(r, resolve_settings(r, 100)) for r in (recipe, gray))
    assert "gray" not in one.frame.about and other.frame.about == {**one.frame.about, "gray": True}
    assert "gray" not in one.front_or_whole() and other.front_or_whole()["gray"] is True


@pytest.mark.parametrize("changes", [{}, {"image.squash": True}, {"image.crop": "face"}])
def test_every_way_to_cut_a_photo_may_be_gray(changes):
    backbone = find_backbone("timm/test_resnet", "none")
    recipe = Recipe().replace(**{"image.color": "gray", **changes})
    assert preprocessing_of(backbone, recipe).gray
    assert not preprocessing_of(backbone, recipe.replace(**{"image.color": "rgb"})).gray
    best = recipe.replace(**{"probe.input_candidates": [{"size": 64}, {"size": 96, "squash": True}]})
    if not changes:
        assert all(preprocessing_of(backbone, best, entry).gray for entry in best.probe.input_candidates)


def test_it_is_read_from_the_command_line_and_another_word_is_refused():
    assert uf.Recipe().image.color == "rgb"
    with pytest.raises(uf.UnfreezeError, match=r"image.color = 'grey': input should be 'rgb' or 'gray'"):
        uf.Recipe().replace(**{"image.color": "grey"})
