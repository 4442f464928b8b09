"""A small graph, converted once a session."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from unfreeze.core.progress import Reporter
from unfreeze.models.engines import open_engine, recorded_engine
from unfreeze.models.feature_extractor import FeatureExtractor
from unfreeze.models.pooling import FeatureSpec
from unfreeze.models.registry import find_backbone


@pytest.fixture(scope="session")
def graph():
    """EfficientNet-Lite0 at 64 px, two blocks of 2 x 2 cells."""
    backbone = find_backbone("tf_efficientnet_lite0")
    return FeatureExtractor(backbone, backbone.preprocessing.resolved(64, 0), FeatureSpec(2, 2))


@pytest.fixture(scope="session")
def pixels():
    """Eleven smooth pictures, uint8 (11, 64, 64, 3)."""
    coarse = np.random.default_rng(0).uniform(0, 255, (11, 9, 9, 3))
    fine = np.repeat(np.repeat(coarse, 8, 1), 8, 2)[:, :64, :64]
    return fine.astype(np.uint8)


class Says(Reporter):
    """Keeps what was said."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture
def says():
    return Says()


@pytest.fixture(scope="session")
def conversion(tmp_path_factory, graph):
    """The one real conversion of these tests: its engines folder and what was said."""
    folder, reporter = tmp_path_factory.mktemp("converted"), Says()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNFREEZE_CACHE", str(folder))
        assert recorded_engine(graph) is None
        open_engine(graph, reporter=reporter)
    return folder / "engines", reporter.lines


@pytest.fixture
def engines(fresh_cache, conversion):
    """A cache of one's own that holds the converted graph: its engines folder."""
    shutil.copytree(conversion[0], fresh_cache / "engines")
    return fresh_cache / "engines"
