"""In memory as by way of files: the same probabilities, whatever a run is made of."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import facesets
import unfreeze as uf
from finetuning import colours, fit_here
from unfreeze.core.dataset import probability_columns
from unfreeze.core.errors import PhotoError, RunError
from unfreeze.features.inputs import feature_extractors
from unfreeze.inference.confidence import ConfidenceTable
from unfreeze.inference.ensemble import Ensemble
from unfreeze.inference.in_memory import InMemoryPredictor
from unfreeze.inference.predictor import Classifier
from unfreeze.training.linear_probe.heads import LinearHead

NEAR = 1e-3


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("direct")


@pytest.fixture(scope="module")
def photos(home):
    return colours(home / "photos")


@pytest.fixture(scope="module")
def new(home):
    """Photos that no run has seen: tall, wide, turned by EXIF, gray, with transparency, and a large one."""
    folder = home / "new"
    folder.mkdir()
    draw = np.random.default_rng(1)
    for i, size in enumerate([(96, 64), (64, 96), (80, 80), (500, 300), (49, 71)]):
        coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
    one = Image.open(folder / "0.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    one.save(folder / "turned.jpg", exif=exif)
    one.convert("L").save(folder / "gray.png")
    faded = one.convert("RGBA")
    faded.putalpha(120)
    faded.save(folder / "faded.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def probe(home, photos):
    return uf.load(fit_here(photos, home / "probe", "probe", engine="openvino-f32"))


@pytest.fixture(scope="module")
def race(probe):
    """Heads of drawn weights on several inputs: one, another (squashed, gray, larger), and both side by side."""
    inputs = [{"size": 64}, {"size": 96, "squash": True}, {"size": 64, "crop": 1.0}]
    run = replace(probe.run, recipe=probe.run.recipe.replace(**{"probe.input_candidates": inputs}))
    plain, squashed, whole = feature_extractors(run.recipe)
    graphs = (plain, replace(squashed, preprocessing=replace(squashed.preprocessing, gray=True)), whole)
    draw = np.random.default_rng(0)
    heads = []
    for numbers in ((0,), (1,), (2, 1), (0,)):
        width = sum(graphs[i].width() for i in numbers)
        weight, bias = draw.normal(0, 0.6, (width, 3)), draw.normal(0, 1, 3)
        heads.append(LinearHead(weight.astype(np.float32), bias.astype(np.float32), 1.0, numbers))
    return Classifier(run, tuple(heads), graphs)


@pytest.fixture(scope="module")
def partial(home, photos):
    return uf.load(fit_here(photos, home / "partial", "partial", train__epochs=1))


@pytest.fixture(scope="module")
def full(home, photos):
    return uf.load(fit_here(photos, home / "full", "full", train__epochs=1))


def by_file(classifier, files, tta=None):
    found = classifier.predict(files, tta=tta)
    assert list(found["error"]) == [""] * len(files)
    return found[probability_columns(classifier.run.classes)].to_numpy()


def in_memory(direct, files, looks=None):
    return direct.probabilities([direct.prepare(file.read_bytes()) for file in files], looks)


@pytest.mark.parametrize("name", ["probe", "race", "partial", "full"])
def test_probabilities_are_those_of_predict(name, request, new):
    classifier = request.getfixturevalue(name)
    direct = InMemoryPredictor.load(classifier)
    expected, found = by_file(classifier, new), in_memory(direct, new)
    assert direct.classes == classifier.run.classes
    np.testing.assert_allclose(found, expected, atol=NEAR)
    np.testing.assert_allclose(found.sum(1), 1)
    assert np.ptp(expected, axis=0).max() > 10 * NEAR, "photos that are all alike would show nothing"
    for tta, looks in (("plain", ("plain",)), ("flip", ("plain", "flip"))):
        np.testing.assert_allclose(in_memory(direct, new, looks), by_file(classifier, new, tta), atol=NEAR)
    alone = [in_memory(direct, [file])[0] for file in new]
    np.testing.assert_allclose(alone, found, atol=NEAR)


def test_what_two_runs_share_is_there_once(probe, race):
    assert len(InMemoryPredictor.load(race).readers) == len(InMemoryPredictor.load(race).eyes.sights) == 3
    twice = Ensemble((probe, race), np.array([0.5, 0.5]), None)
    assert len(InMemoryPredictor.load(twice).readers) == 3, "both read the first input"


def test_a_blend_answers_by_its_weights_and_in_the_first_runs_order(probe, full, partial, new):
    blend = Ensemble.load([probe.run, full.run, partial.run])
    turned = replace(full.run, info={**full.run.info, "classes": full.run.info["classes"][::-1]})
    others = (replace(blend.classifiers[1], run=turned), blend.classifiers[2])
    blend = Ensemble((probe, *others), np.array([0.5, 0.5, 0.0]), blend.out_of_fold)
    direct = InMemoryPredictor.load(blend)
    np.testing.assert_allclose(in_memory(direct, new), by_file(blend, new), atol=NEAR)
    assert len(direct.members) == 2, "a run without weight is not loaded"


def test_faces_are_cut_as_in_training(tmp_path, home):
    pytest.importorskip("retinaface")
    source = facesets.masks(tmp_path / "masks", people=8, faceless=1)
    run = fit_here(source, tmp_path / "run", "probe", image__crop="face", source__group_regex=r"(?P<group>p\d+)_")
    files = sorted(source.rglob("*.jpg"))
    direct = InMemoryPredictor.load(run)
    assert direct.eyes.sights[0].face
    np.testing.assert_allclose(in_memory(direct, files), by_file(uf.load(run), files), atol=NEAR)
    centred = InMemoryPredictor.load(run).eyes
    found = [centred.boxes(file.read_bytes()) for file in files]
    assert sum(box is None for boxes in found for box in boxes.values()) == 1, "the wall has no face"


def test_a_probe_needs_no_torch(probe, new):
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from unfreeze.inference.in_memory import InMemoryPredictor;"
        f"d = InMemoryPredictor.load({str(probe.run.path)!r});"
        f"d.probabilities([d.prepare(Path({str(new[0])!r}).read_bytes())]);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_nothing_is_written(probe, new, cache_folder):
    direct = InMemoryPredictor.load(probe)

    def there():
        return {p: p.stat().st_mtime_ns for p in (*cache_folder.rglob("*"), *probe.run.path.rglob("*"))}

    before = there()
    in_memory(direct, new)
    assert there() == before


def test_what_is_no_photo_is_refused_with_its_reason(probe):
    direct = InMemoryPredictor.load(probe, max_megapixels=0.01)
    large = io.BytesIO()
    Image.new("RGB", (200, 100)).save(large, "PNG")
    for data, reason in (
        (b"", "empty"),
        (b"no photo", "not an image"),
        (large.getvalue(), "more than the limit of 10,000"),
    ):
        with pytest.raises(PhotoError, match=reason):
            direct.prepare(data)
    with pytest.raises(RunError):
        InMemoryPredictor.load(probe.run.path / "absent")
    assert direct.probabilities([]).shape == (0, 3)


def test_the_runs_own_limit_holds(probe):
    small = replace(probe.run, recipe=probe.run.recipe.replace(**{"image.max_megapixels": 1.0}))
    assert InMemoryPredictor.load(replace(probe, run=small), max_megapixels=50).eyes.max_pixels == 1_000_000


def test_certainty_is_counted_out_of_fold():
    draw = np.random.default_rng(0)
    top = draw.uniform(0.5, 1, 2000)
    truth = (draw.random(2000) > top).astype(np.int64)  # a perfectly calibrated classifier of two classes
    found = ConfidenceTable.learnt(np.stack([top, 1 - top], 1), truth, np.arange(2000) // 4)
    assert sum(step.of for step in found.steps) == 2000
    for step in found.steps:
        assert step.low <= step.high and step.least < step.right < step.most
        assert step.right == pytest.approx((step.low + step.high) / 2, abs=0.08)
    assert found.meaning(0.99).word == "very sure" and found.meaning(0.51).word in ("unsure", "a guess")
    assert (
        found.meaning(found.steps[0].low) == found.steps[0] and found.meaning(found.steps[-1].high) == found.steps[-1]
    )
    assert found.meaning(0.99).describe().startswith("of 200 images with a similar probability, ")


@pytest.mark.parametrize(("photos", "steps"), [(30, 1), (99, 1), (100, 2), (2000, 10)])
def test_a_probability_below_all_out_of_fold_ones_is_unknown(photos: int, steps: int) -> None:
    top = np.linspace(0.9, 0.99, photos)
    found = ConfidenceTable.learnt(np.stack([top, 1 - top], 1), np.zeros(photos, np.int64), np.arange(photos) // 2)
    assert len(found.steps) == steps
    for probability in (0.05, 0.35, 0.5, 0.71, 0.8999):
        meaning = found.meaning(probability)
        assert meaning.word == "unknown" and meaning.of == 0
        assert meaning.right is None and meaning.least is None and meaning.most is None
        assert "no out-of-fold prediction had a probability this low" in meaning.describe()
        assert "%" not in meaning.describe() and "similar" not in meaning.describe() and "0.900" in meaning.describe()
    assert found.meaning(0.9).of > 0 and "%" in found.meaning(0.9).describe()
    above = found.meaning(0.9999)
    assert above.of == found.steps[-1].of and above.describe().startswith(
        "no out-of-fold prediction had a probability this high; of the"
    )


def test_one_step_for_all_photos_does_not_make_a_low_probability_sure() -> None:
    """Of 60 photos from 0.35 to 1 nearly all were right: that is no word for the one of 0.36."""
    top = np.linspace(0.35, 1, 60)
    proba = np.stack([top, (1 - top) / 2, (1 - top) / 2], 1)
    found = ConfidenceTable.learnt(proba, np.zeros(60, np.int64), np.arange(60))
    # No error in 60 groups: at least 0.94 are right (Clopper-Pearson); in 20 groups of three at least 0.83.
    assert found.meaning(0.36).word == "a guess" and found.meaning(0.99).word == "sure"
    by_group = ConfidenceTable.learnt(proba, np.zeros(60, np.int64), np.arange(60) // 3)
    assert by_group.steps[0].least == pytest.approx(0.025 ** (1 / 20)) and by_group.meaning(0.99).word == "fairly sure"
    assert found.meaning(0.36).describe() == "of all 60 images, 100% were correct"


def test_certainty_resamples_the_joined_groups() -> None:
    """Near-duplicates share a unit, whatever the table calls their groups."""
    draw = np.random.default_rng(0)
    paths, classes = [f"{i}.jpg" for i in range(60)], ("a", "b")
    top, right = draw.uniform(0.5, 1, 60), np.repeat(draw.random(6) < 0.6, 10)
    oof = pd.DataFrame({"path": paths, "label": np.where(right, "a", "b"), "p_a": top, "p_b": 1 - top})
    oof.columns = ["path", "label", *probability_columns(classes)]
    photos = pd.DataFrame({"path": paths, "group": paths, "unit": np.arange(60) // 10})
    run = SimpleNamespace(predictions=lambda: oof, photos=lambda: photos, classes=classes)
    (step,) = ConfidenceTable.of(SimpleNamespace(run=run)).steps
    proba, truth = np.stack([top, 1 - top], 1), np.where(right, 0, 1)
    assert step == ConfidenceTable.learnt(proba, truth, np.arange(60) // 10).steps[0]
    assert step.least < ConfidenceTable.learnt(proba, truth, np.arange(60)).steps[0].least


def test_certainty_of_a_run_and_of_a_blend(probe, partial):
    single = ConfidenceTable.of(probe)
    assert sum(step.of for step in single.steps) == len(probe.run.predictions())
    both = ConfidenceTable.of(Ensemble.load([probe.run, partial.run]))
    assert sum(step.of for step in both.steps) == len(probe.run.predictions())
