"""Further views by name: parsed, averaged as probabilities, the same for heads and for fine-tuned networks."""

from __future__ import annotations

import numpy as np
import pytest

import unfreeze as uf
from finetuning import Says, colours, fit_here
from unfreeze.core.dataset import probability_columns
from unfreeze.core.errors import SourceError
from unfreeze.features.views import MOST, TtaViews, parse_tta
from unfreeze.inference.predictor import Classifier

TRAINED = ("plain", "flip")


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (None, TtaViews(TRAINED)),
        ("flip", TtaViews(("plain", "flip"))),
        ("plain", TtaViews(("plain",))),
        ("crop-10", TtaViews(TRAINED, ("crop-10",))),
        (" plain , rotate+5,rotate-5,rotate+5", TtaViews(("plain",), ("rotate+5", "rotate-5"))),
    ],
)
def test_names(text, seen):
    assert parse_tta(text, TRAINED) == seen


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rotat+5", "known are plain, flip, rotate+10"),
        ("crop", "crop takes an amount"),
        ("rotate+400", "rotate takes an amount between"),
        (" , ", "names no view"),
        (",".join(f"rotate+{i}" for i in range(1, MOST + 2)), f"at most {MOST} can be averaged"),
    ],
)
def test_what_is_no_view(text, says):
    with pytest.raises(SourceError) as error:
        parse_tta(text, TRAINED)
    assert "tta=" in str(error.value)
    assert says.lower() in str(error.value).lower()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tta")
    source = colours(folder / "colours")
    return {name: fit_here(source, folder / name, name) for name in ("probe", "partial", "full")}, source


@pytest.mark.parametrize("name", ["probe", "partial", "full"])
def test_a_folds_own_models_answer_out_of_fold(name, runs):
    run = runs[0][name]
    oof = run.predictions().set_index("path")
    fold = 1
    rows = oof.index[oof["fold"] == fold]
    found = Classifier.load(run, folds=(fold,)).predict([runs[1] / path for path in rows])
    columns = probability_columns(run.classes)
    assert np.abs(found[columns].to_numpy() - oof.loc[rows, columns].to_numpy()).max() < 1e-3


@pytest.mark.parametrize("name", ["probe", "partial", "full"])
def test_views_are_averaged_with_the_photo(name, runs, monkeypatch):
    """flip as a further view of a plain look is the mean of the photo's and its mirror image's probabilities."""
    run, columns = runs[0][name], probability_columns(runs[0][name].classes)
    photos = sorted(runs[1].rglob("*.jpg"))[:6]
    classifier = uf.load(run)
    # A full turn shows the same photo: averaging with it changes nothing, and half a turn is another view.
    plain = classifier.predict(photos, tta="plain")[columns].to_numpy()
    turned = classifier.predict(photos, tta="plain,rotate+180")[columns].to_numpy()
    twice = classifier.predict(photos, tta="plain,rotate+180,rotate-180")[columns].to_numpy()
    half = 2 * turned - plain  # what the turned photo alone gives
    assert np.abs(half.sum(1) - 1).max() < 1e-6
    assert half.min() > -1e-6
    assert np.allclose(twice, (plain + 2 * half) / 3, atol=1e-4)
    assert np.abs(turned - plain).max() > 1e-6


def test_a_photo_that_cannot_be_read_stays_a_row(runs, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no photo")
    photos = [bad, *sorted(runs[1].rglob("*.jpg"))[:2]]
    table = uf.load(runs[0]["probe"]).predict(photos, tta="crop-10", reporter=Says())
    assert table["error"].ne("").tolist() == [True, False, False]
    assert table["label"].isna().tolist() == [True, False, False]
