"""955 real photos of clothes, split photo by photo although senders sent several: leakage is what is named first."""

from __future__ import annotations

from pathlib import Path

import pytest

import unfreeze as uf
from unfreeze.core.qualities import QUALITIES

CLOTHING = Path(__file__).parents[3] / "shared" / "data" / "clothing"

pytestmark = pytest.mark.skipif(
    not CLOTHING.is_dir(), reason="needs the real photo sets, which lie beside the checkout"
)


def test_the_wrong_split_is_named_and_the_right_one_raises_no_alarm(tmp_path: Path) -> None:
    source = {"path": str(CLOTHING / "groups.csv"), "path_column": "file", "label": ["label"], "group": "sender_id"}
    keys = {f"source.{key}": value for key, value in source.items()}
    recipe = uf.Recipe().replace(strategy="probe", **QUALITIES["fast"], **keys, **{"source.split": "none"})
    photos = uf.read(CLOTHING / "groups.csv", recipe.source)
    wrong = uf.diagnose(uf.fit(photos, recipe.replace(**{"folds.by_group": False}), tmp_path / "wrong"))
    assert wrong.causes[0].name == "leakage: groups across folds" and wrong.causes[0].severity in ("warning", "error")
    assert wrong.causes[0].cost is not None and wrong.causes[0].cost["value"] > 0.015
    right = uf.diagnose(uf.fit(photos, recipe, tmp_path / "right"))
    assert right.first is None, right.table().head(3).to_string()
