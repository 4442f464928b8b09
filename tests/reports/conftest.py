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
    from unfreeze.data.readers import read
    from unfreeze.training.crossval import cross_validate

    recipe = Recipe().replace(
        **{
            "strategy": "probe",
            "source.group_regex": GROUP_REGEX,
            "image.size": 64,
            "engine": "openvino-f32",
            "folds.n_splits": 3,
            "probe.stages": "last:2",
            "probe.pool_size": 2,
            "probe.Cs": [1.0, 30.0],
        }
    )
    return cross_validate(read(str(probe_photos), recipe.source), recipe, tmp_path_factory.mktemp("runs") / "colours")
