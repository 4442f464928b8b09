"""Strategy partial on 120 real clothing photos: it trains, scores no worse than chance by far, and predicts."""

from __future__ import annotations

from pathlib import Path

import pytest

import unfreeze as uf
from finetuning import Says

CLOTHING = Path(__file__).parents[3] / "shared" / "data" / "clothing"

pytestmark = pytest.mark.skipif(
    not CLOTHING.is_dir(), reason="needs the real photo sets, which lie beside the checkout"
)


def test_partial_on_real_photos(tmp_path: Path) -> None:
    by_class: dict[str, list[Path]] = {}
    for photo in sorted(CLOTHING.rglob("*.jpg")):
        by_class.setdefault(photo.parent.name, []).append(photo)
    for name, photos in sorted(by_class.items(), key=lambda pair: -len(pair[1]))[:4]:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for photo in photos[:30]:
            (tmp_path / "photos" / name / photo.name).symlink_to(photo)
    changes = {
        "strategy": "partial",
        "source.path": str(tmp_path / "photos"),
        "image.size": 128,
        "folds.n_splits": 3,
        "train.epochs": 2,
        "probe.stages": "last:2",
        "probe.pool_size": 2,
    }
    recipe, says = uf.Recipe().replace(**changes), Says()
    photos = uf.read(tmp_path / "photos", recipe.source)
    assert len(photos) == 120
    run = uf.fit(photos, recipe, tmp_path / "run", reporter=says)
    scores = run.scores()
    assert scores["macro_f1"]["value"] > 0.4 > 1.5 * scores["out_of_fold"]["chance"]["macro_f1"]
    # Steps from a good start: the network alone is not far below the probe that it started from.
    beside = scores["components"]
    assert beside["network alone"]["macro_f1"]["value"] > beside["probe"]["macro_f1"]["value"] - 0.1
    assert any(line.startswith("Activations: 2 view(s) of 120 photos") for line in says.lines)
    answer = uf.load(run).predict(photos.files()[:6], tta="flip")
    assert (answer["error"] == "").all()
    # Photos that all three networks but one have learnt from.
    assert (answer["label"].to_numpy() == photos.table["label"].to_numpy()[:6]).mean() > 0.5
