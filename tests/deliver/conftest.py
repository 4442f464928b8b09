"""One small finished probe run that tests of what leaves a run share and none changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from photosets import GROUP_REGEX, class_folders
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import Run


@pytest.fixture(scope="session")
def probe_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 photos of 12 groups, 3 classes. Not to be changed."""
    return class_folders(tmp_path_factory.mktemp("probe") / "colours", groups=4)


@pytest.fixture(scope="session")
def probe_run(probe_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of them: 64 px, two blocks of 2 x 2 cells, the photo and its mirror image, three folds."""
    pytest.importorskip("openvino")
    from unfreeze.data.readers import read
    from unfreeze.learn.crossval import fit

    recipe = Recipe().replace(
        **{
            "strategy": "probe",
            "source.group_regex": GROUP_REGEX,
            "image.size": 64,
            "engine": "openvino-f32",
            "folds.count": 3,
            "probe.stages": "last:2",
            "probe.grid": 2,
            "probe.strengths": [1.0, 30.0],
        }
    )
    return fit(read(str(probe_photos), recipe.source), recipe, tmp_path_factory.mktemp("runs") / "colours")
