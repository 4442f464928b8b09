"""The main job on a slice of each real set: read, check, fold, fit, judge, report, predict."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import unfreeze as uf
from unfreeze.core.recipe import PRESETS

DATA = Path(__file__).parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="needs the real photo sets, which lie beside the checkout")

# set -> group of a photo from its path, and the macro F1 that a slice of 30 photos a class must reach
SETS = {
    "masks": (r"/(?P<group>[^/]+)_\d+\.jpg$", 0.55),
    "clothing": ("", 0.45),
    "trash": ("", 0.6),
    "grocery": ("", 0.75),
}


def slice_of(name: str, folder: Path) -> Path:
    """Links to up to 30 photos of each class, in class folders."""
    if not (DATA / name).is_dir():
        pytest.skip(f"no folder {name} among the real photo sets")
    taken: dict[str, int] = {}
    for photo in sorted((DATA / name).rglob("*.jpg")):
        label = photo.parent.name
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= 30:
            target = folder / label / photo.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(photo)
    return folder


@pytest.mark.parametrize("name", list(SETS))
def test_the_main_job(name: str, tmp_path: Path) -> None:
    regex, least = SETS[name]
    source = slice_of(name, tmp_path / "photos")
    changes = {"source.path": str(source), "source.group_regex": regex, "folds.n_splits": 3, **PRESETS["fast"]}
    recipe = uf.Recipe(strategy="probe").replace(**changes)
    photos = uf.read(source, recipe.source)
    run = uf.fit(photos, recipe, tmp_path / "run")
    scores = run.scores()["out_of_fold"]
    assert scores["photos"] == len(photos)
    assert scores["macro_f1"]["low"] < scores["macro_f1"]["value"] < scores["macro_f1"]["high"]
    assert scores["macro_f1"]["value"] > least > 1.2 * scores["chance"]["macro_f1"]
    table = run.photos()
    assert (table.groupby("unit")["fold"].nunique() == 1).all()
    assert uf.write_report(run.path).stat().st_size > 50_000

    some = pd.DataFrame({"path": [str(p) for p in photos.files()[:8]]})
    predicted = uf.load(run).predict(some)
    assert list(predicted["path"]) == list(some["path"])
    assert (predicted["error"] == "").all()
    assert (predicted.filter(like="p_").sum(axis=1) - 1).abs().max() < 1e-9
