"""In memory as by way of files: the same probabilities, whatever a run is made of."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import facesets
import unfreeze as uf
from finetuning import colours, fit_here
from unfreeze.core.errors import PhotoError, RunError
from unfreeze.core.tables import probability_columns
from unfreeze.learn.blend import Blend
from unfreeze.learn.certainty import Certainty
from unfreeze.learn.classifier import Classifier
from unfreeze.learn.direct import Direct
from unfreeze.learn.probe.heads import LinearHead
from unfreeze.learn.probe.inputs import graphs_of

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
    run = replace(probe.run, recipe=probe.run.recipe.replace(**{"probe.race": inputs}))
    plain, squashed, whole = graphs_of(run.recipe)
    graphs = (plain, replace(squashed, preprocessing=replace(squashed.preprocessing, gray=True)), whole)
    draw = np.random.default_rng(0)
    heads = []
    for numbers in ((0,), (1,), (2, 1), (0,)):
        width = sum(graphs[i].width() for i in numbers)
        weight, bias = draw.normal(0, 0.6, (width, 3)), draw.normal(0, 1, 3)
        heads.append(LinearHead(weight.astype(np.float32), bias.astype(np.float32), 1.0, numbers))
    return Classifier(run, tuple(heads), graphs)


@pytest.fixture(scope="module")
def late(home, photos):
    return uf.load(fit_here(photos, home / "late", "late", train__epochs=1))


@pytest.fixture(scope="module")
def full(home, photos):
    return uf.load(fit_here(photos, home / "full", "full", train__epochs=1))


def by_file(classifier, files, tta=None):
    found = classifier.predict(files, tta=tta)
    assert list(found["error"]) == [""] * len(files)
    return found[probability_columns(classifier.run.classes)].to_numpy()


def in_memory(direct, files, looks=None):
    return direct.probabilities([direct.prepare(file.read_bytes()) for file in files], looks)


@pytest.mark.parametrize("name", ["probe", "race", "late", "full"])
def test_probabilities_are_those_of_predict(name, request, new):
    classifier = request.getfixturevalue(name)
    direct = Direct.load(classifier)
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
    assert len(Direct.load(race).readers) == len(Direct.load(race).eyes.sights) == 3
    twice = Blend((probe, race), np.array([0.5, 0.5]), None)
    assert len(Direct.load(twice).readers) == 3, "both read the first input"


def test_a_blend_answers_by_its_weights_and_in_the_first_runs_order(probe, full, late, new):
    blend = Blend.load([probe.run, full.run, late.run])
    turned = replace(full.run, info={**full.run.info, "classes": full.run.info["classes"][::-1]})
    others = (replace(blend.classifiers[1], run=turned), blend.classifiers[2])
    blend = Blend((probe, *others), np.array([0.5, 0.5, 0.0]), blend.out_of_fold)
    direct = Direct.load(blend)
    np.testing.assert_allclose(in_memory(direct, new), by_file(blend, new), atol=NEAR)
    assert len(direct.voices) == 2, "a run without weight is not loaded"


def test_faces_are_cut_as_in_training(tmp_path, home):
    pytest.importorskip("retinaface")
    source = facesets.masks(tmp_path / "masks", people=8, faceless=1)
    run = fit_here(source, tmp_path / "run", "probe", image__crop="face", source__group_regex=r"(?P<group>p\d+)_")
    files = sorted(source.rglob("*.jpg"))
    direct = Direct.load(run)
    assert direct.eyes.sights[0].face
    np.testing.assert_allclose(in_memory(direct, files), by_file(uf.load(run), files), atol=NEAR)
    centred = Direct.load(run).eyes
    found = [centred.boxes(file.read_bytes()) for file in files]
    assert sum(box is None for boxes in found for box in boxes.values()) == 1, "the wall has no face"


def test_a_probe_needs_no_torch(probe, new):
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from unfreeze.learn.direct import Direct;"
        f"d = Direct.load({str(probe.run.path)!r}); d.probabilities([d.prepare(Path({str(new[0])!r}).read_bytes())]);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_nothing_is_written(probe, new, cache_folder):
    direct = Direct.load(probe)

    def there():
        return {p: p.stat().st_mtime_ns for p in (*cache_folder.rglob("*"), *probe.run.path.rglob("*"))}

    before = there()
    in_memory(direct, new)
    assert there() == before


def test_what_is_no_photo_is_refused_with_its_reason(probe):
    direct = Direct.load(probe, max_megapixels=0.01)
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
        Direct.load(probe.run.path / "absent")
    assert direct.probabilities([]).shape == (0, 3)


def test_the_runs_own_limit_holds(probe):
    small = replace(probe.run, recipe=probe.run.recipe.replace(**{"image.max_megapixels": 1.0}))
    assert Direct.load(replace(probe, run=small), max_megapixels=50).eyes.max_pixels == 1_000_000


def test_certainty_is_counted_out_of_fold():
    draw = np.random.default_rng(0)
    top = draw.uniform(0.5, 1, 2000)
    truth = (draw.random(2000) > top).astype(np.int64)  # a perfectly calibrated classifier of two classes
    found = Certainty.learnt(np.stack([top, 1 - top], 1), truth, np.arange(2000) // 4)
    assert sum(step.of for step in found.steps) == 2000
    for step in found.steps:
        assert step.low <= step.high and step.least < step.right < step.most
        assert step.right == pytest.approx((step.low + step.high) / 2, abs=0.08)
    assert found.meaning(0.99).word == "very sure" and found.meaning(0.51).word in ("unsure", "a guess")
    assert found.meaning(0.2) == found.steps[0] and found.meaning(1.0) == found.steps[-1]
    assert found.meaning(0.99).told().startswith("of 200 photos it was this sure of, ")


def test_certainty_of_a_run_and_of_a_blend(probe, late):
    single = Certainty.of(probe)
    assert sum(step.of for step in single.steps) == len(probe.run.predictions())
    both = Certainty.of(Blend.load([probe.run, late.run]))
    assert sum(step.of for step in both.steps) == len(probe.run.predictions())
