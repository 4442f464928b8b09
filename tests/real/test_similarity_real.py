"""The axes of recommend on slices of real photos: things lie nearer to the pretraining than drawn letters."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import unfreeze as uf
from unfreeze.analysis.pretraining_similarity import similarity
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_schema import Source
from unfreeze.training.crossval import prepare

TRASH = Path(__file__).parents[3] / "shared" / "data" / "trash"
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(not TRASH.is_dir(), reason="needs the real photo sets, which lie beside the checkout")


def test_things_lie_nearer_than_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import far_sets

    for folder in sorted(p for p in TRASH.iterdir() if p.is_dir())[:4]:
        (tmp_path / "things" / folder.name).mkdir(parents=True)
        for photo in sorted(folder.glob("*.jpg"))[:16]:
            (tmp_path / "things" / folder.name / photo.name).symlink_to(photo)
    far_sets.characters(tmp_path / "letters", count=64, classes=4)
    recipe = Recipe().replace(
        **{"image.size": 128, "engine": "torch", "folds.n_splits": 3, "probe.stages": "last:2", "probe.pool_size": 1}
    )
    found = {}
    for name, source in {
        "things": Source(path=str(tmp_path / "things")),
        "letters": Source(path=str(tmp_path / "letters"), group_regex=far_sets.GROUP),
    }.items():
        work = prepare(uf.read(source.path, source), recipe, tmp_path / "work", Reporter(), {})
        found[name] = similarity(
            work.photos, work.looks, work.labels, work.units, work.folds, recipe, tmp_path / "scratch"
        )
    things, letters = found["things"], found["letters"]
    assert things.low > letters.high
    assert things.measure("separability_pretrained").low > things.measure("separability_untrained").high
    sys.modules.pop("far_sets", None)
