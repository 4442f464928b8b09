"""Small searches: probes on a tiny untrained network, over photos of which color alone tells the class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import unfreeze as uf
from finetuning import make_recipe
from unfreeze.analysis.splits import SearchSplit, search_splits
from unfreeze.analysis.tuning.folder import open_folder, search_key
from unfreeze.analysis.tuning.search import Search
from unfreeze.analysis.tuning.space import space_of
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.training.context import FitContext
from unfreeze.training.crossval import prepare

# Gray is the worse of the two where color alone tells: `rgb` is what has to be found.
PLANTED = ("image.color=gray,rgb", "balance.class_weight_power=0.0..1.0")


def tinted(folder: Path, groups: int = 12, each: int = 2, classes: tuple[str, ...] = ("warm", "cold")) -> Path:
    """`folder/warm/g003_1.png`: two classes of one luminance (ITU-R 601), one with more red and one with less."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for group in range(groups):
            for photo in range(each):
                draw = np.random.default_rng([label, group, photo])
                gray = draw.integers(80, 170, (16, 16, 1))
                tint = np.array([60, -60 * 0.299 / 0.587, 0]) * (1 if label == 0 else -1)
                pixels = Image.fromarray(np.round(gray + tint).astype(np.uint8))
                pixels.resize((64, 64), Image.Resampling.NEAREST).save(
                    folder / name / f"g{label}{group:02d}_{photo}.png"
                )
    return folder


def search_recipe(source: Path | str, *space: str, trials: int = 4, **changes: Any) -> Recipe:
    """A probe on the tiny network; photos are gray, and whether they had better be colored may be searched."""
    wish = {"tune__trials": trials, "tune__search_space": list(space or PLANTED)}
    return make_recipe("probe", source, **{"probe__Cs": [1.0], "image__color": "gray", **wish, **changes})


def work_of(recipe: Recipe, folder: Path) -> FitContext:
    """The recipe's photos with their folds."""
    return prepare(uf.read(recipe.source.path, recipe.source), recipe, folder, Reporter())


def opened(work: FitContext, folder: Path, sides: tuple[SearchSplit, ...] = ()) -> Search:
    """A search in that folder, of all sides or these."""
    space = space_of(work.recipe, work.photos)
    open_folder(folder, search_key(work, space), force=False)
    return Search(work, sides or search_splits(work, work.recipe.tune.n_splits), space, folder)


def rows_of(search: Search) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that was tried but for the seconds, by side."""
    return {
        one.side.name: [(r.number, r.state, tuple(r.changes.items()), r.scores, r.note) for r in one.rows]
        for one in search.found()
    }
