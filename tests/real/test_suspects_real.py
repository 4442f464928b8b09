"""3% of the labels of 1,500 real mask photos are changed: the first suspects are mostly those."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import unfreeze as uf
from unfreeze.analysis.label_issues import find_run_label_issues

MASKS = Path(__file__).parents[3] / "shared" / "data" / "masks"

pytestmark = pytest.mark.skipif(not MASKS.is_dir(), reason="needs the real photo sets, which lie beside the checkout")


def test_planted_labels_are_among_the_first(tmp_path: Path) -> None:
    faces = pd.read_csv(MASKS / "faces.csv")
    draw, classes = np.random.default_rng(0), sorted(faces["label"].unique())
    labels = faces["label"].to_numpy(copy=True)
    for i in draw.choice(len(faces), round(0.03 * len(faces)), replace=False):
        labels[i] = draw.choice([c for c in classes if c != labels[i]])
    table = pd.DataFrame({"path": faces["file"], "label": labels, "photo": faces["photo"]})
    table.to_csv(tmp_path / "photos.csv", index=False)
    table.assign(label=faces["label"]).to_csv(tmp_path / "truth.csv", index=False)
    keys = {"source.path": str(tmp_path / "photos.csv"), "source.root": str(MASKS), "source.group": "photo"}
    recipe = uf.Recipe().replace(strategy="probe", **keys)
    run = uf.fit(uf.read(tmp_path / "photos.csv", recipe.source), recipe, tmp_path / "run")
    truth = find_run_label_issues(run, tmp_path / "truth.csv").truth
    assert truth is not None and truth["planted"] == round(0.03 * len(faces))
    assert truth["precision_at_k"] >= 0.75 and truth["recall_at_2k"] >= 0.9
    assert truth["suggested_right"] >= 0.8 * truth["planted"]
