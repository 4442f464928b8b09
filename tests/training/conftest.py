"""Synthetic features in stores, generated photos, and a small engine converted once a session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from unfreeze.core.cache import ArrayStore
from unfreeze.core.dataset import ImageDataset
from unfreeze.core.recipe import Recipe
from unfreeze.features.matrix import FeatureMatrix

CLASSES = ("blue", "green", "red")
COLOURS = {"blue": (40, 60, 200), "green": (50, 170, 60), "red": (200, 50, 40)}


def stored(x, folder, blocks=None) -> FeatureMatrix:
    """Features of one view that hold `x` (n, D), in a store below `folder`."""
    x = np.asarray(x, np.float32)
    store = ArrayStore(Path(folder), np.float16, x.shape[1:])
    keys = np.stack([np.arange(len(x)), np.arange(len(x))], 1).astype(np.uint64)
    store.append(keys, x.astype(np.float16))
    return FeatureMatrix((store,), (store.find(keys),), blocks or (("all", x.shape[1]),), {}, "cache")


def picture(path, label, draw, size=(72, 64)):
    """A small photo in its class's color, with a blob and a texture of its own."""
    height, width = size
    colour = np.array(COLOURS[label]) + draw.normal(0, 12, 3)
    coarse = draw.normal(0, 30, (8, 8, 1)) + draw.normal(0, 10, (8, 8, 3))
    small = Image.fromarray(np.clip(coarse + 128, 0, 255).astype(np.uint8))
    grown = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    pixels = colour + (grown - 128.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=92)


def make_photos(root, n=36, tests=6, seed=0) -> ImageDataset:
    """n training photos of three colors in groups of two, and test photos, as JPEG files and their table."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(n + tests):
        label = CLASSES[(i // 2) % 3]
        path = f"{'train' if i < n else 'test'}/{i:03d}.jpg"
        picture(Path(root) / path, label, draw)
        rows.append({"path": path, "label": label, "group": f"g{i // 2}", "split": "train" if i < n else "test"})
    return ImageDataset(pd.DataFrame(rows), Path(root), CLASSES, CLASSES, (), "test", "made by a test")


RECIPE = Recipe().replace(
    **{
        "strategy": "probe",
        "image.size": 64,
        "engine": "openvino-f32",
        "folds.n_splits": 3,
        "probe.stages": "last:2",
        "probe.pool_size": 2,
        "probe.Cs": [1.0, 30.0],
    }
)


@pytest.fixture
def store_features(tmp_path):
    """Function: array (n, D) -> Features."""
    count = iter(range(100))
    return lambda x, blocks=None: stored(x, tmp_path / f"store-{next(count)}", blocks)


@pytest.fixture(scope="session")
def recipe():
    """A quick recipe: 64 px, two blocks of 2 x 2 cells, three folds."""
    return RECIPE


@pytest.fixture(scope="session")
def photos_in():
    """Function: folder -> Photos of generated pictures."""
    return make_photos


@pytest.fixture
def draw_picture():
    return picture


@pytest.fixture(scope="session")
def _engines(cache_folder):
    """The session's engines folder, with the recipe's network converted."""
    from unfreeze.features.inputs import feature_extractors
    from unfreeze.models.engines import open_engine

    open_engine(feature_extractors(RECIPE)[0], "openvino-f32")
    return cache_folder / "engines"


@pytest.fixture
def ready_cache(fresh_cache, _engines):
    """A cache of one's own that has the converted network and nothing else."""
    fresh_cache.mkdir()
    (fresh_cache / "engines").symlink_to(_engines)
    return fresh_cache
