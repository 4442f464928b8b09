"""Faults planted into real photos are named first: clothes split through their senders, groceries in the dark."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageEnhance

import unfreeze as uf
from unfreeze.core.recipe import PRESETS

DATA = Path(__file__).parents[3] / "shared" / "data"
CLOTHING = DATA / "clothing"

pytestmark = pytest.mark.skipif(
    not CLOTHING.is_dir(), reason="needs the real photo sets, which lie beside the checkout"
)


def test_the_wrong_split_is_named_and_the_right_one_raises_no_alarm(tmp_path: Path) -> None:
    source = {"path": str(CLOTHING / "groups.csv"), "path_column": "file", "label": ["label"], "group": "sender_id"}
    keys = {f"source.{key}": value for key, value in source.items()}
    recipe = uf.Recipe().replace(strategy="probe", **PRESETS["fast"], **keys, **{"source.split": "none"})
    photos = uf.read(CLOTHING / "groups.csv", recipe.source)
    wrong = uf.diagnose(uf.fit(photos, recipe.replace(**{"folds.use_groups": False}), tmp_path / "wrong"))
    assert wrong.causes[0].name == "leakage: groups across folds" and wrong.causes[0].severity in ("warning", "error")
    assert wrong.causes[0].cost is not None and wrong.causes[0].cost["value"] > 0.015
    right = uf.diagnose(uf.fit(photos, recipe, tmp_path / "right"))
    assert right.first is None, right.table().head(3).to_string()


def test_test_photos_that_look_different_are_named(tmp_path: Path) -> None:
    """The set's own test split differs, and costs 0.18 of macro F1; in the dark it costs more."""
    photos = uf.read(DATA / "grocery")
    recipe = uf.Recipe().replace(strategy="probe", **PRESETS["fast"], **{"source.path": str(DATA / "grocery")})
    run = uf.fit(photos, recipe, tmp_path / "run")
    table = run.photos()
    for path in table.loc[table["split"] == "test", "path"].iloc[::2]:
        target = tmp_path / "dark" / Path(path).parent.name / Path(path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(DATA / "grocery" / path) as image:
            ImageEnhance.Brightness(image.convert("RGB")).enhance(0.3).save(target, quality=92)
    costs = []
    for found in (uf.diagnose(run), uf.diagnose(run, tmp_path / "dark")):
        first = found.causes[0]
        assert (first.name, first.severity) == ("shift: the test photos look different", "error"), found.sentence
        assert first.cost is not None and first.cost["low"] > 0.05 and found.real is not None
        assert found.real["value"] < found.score["value"] - 0.1
        costs.append(first.cost["value"])
    assert costs[1] > costs[0]
