"""Maps are held against a planted truth: what tells the class sits in one corner of every photo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetuning import Says, fit_here
from unfreeze.core.errors import SourceError
from unfreeze.core.runs import Run
from unfreeze.explanation.heatmap import HeatMap, bounding_box, centre_box, occlude, occlusion_map, top2
from unfreeze.explanation.neighbors import TrainingFeatures, TrainingFeaturesByFold, near_by_network, training_table
from unfreeze.explanation.networks import Explainer, FullNetworks
from unfreeze.inference.ensemble import Ensemble
from unfreeze.inference.predictor import Classifier

SIDE = 64
# The blob lies in the upper right; both classes have the same grounds, noise and distractors elsewhere.
BLOB = (slice(6, 26), slice(38, 58))


def planted(red: bool, number: int) -> Image.Image:
    draw = np.random.default_rng([number, red])
    coarse = draw.integers(60, 190, (8, 8, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).copy()
    pixels[BLOB] = (230, 30, 30) if red else (30, 30, 230)
    return Image.fromarray(pixels)


def in_corner(found: HeatMap) -> bool:
    x, y = found.peak()
    return x > 0.5 and y < 0.5


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny networks: threads would wait for each other longer than they work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corner_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    for red, name in ((True, "red"), (False, "blue")):
        (folder / name).mkdir()
        for number in range(24):
            planted(red, number).save(folder / name / f"g{red:d}{number:02d}_0.png")
    return folder


@pytest.fixture(scope="module")
def partial_run(corner_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit_here(corner_photos, tmp_path_factory.mktemp("run") / "partial", "partial", train__epochs=2)


@pytest.fixture(scope="module")
def heads_run(corner_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit_here(corner_photos, tmp_path_factory.mktemp("run") / "probe", "probe", image__crop=1.0)


@pytest.fixture(scope="module")
def full_run(corner_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit_here(
        corner_photos,
        tmp_path_factory.mktemp("run") / "full",
        "scratch",
        train__epochs=24,
        image__crop=1.0,
    )


@pytest.fixture(scope="module")
def new_bytes(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("new")
    out = []
    for number in range(4):
        planted(number % 2 == 0, 100 + number).save(folder / f"{number}.png")
        out.append((folder / f"{number}.png").read_bytes())
    return out


def test_occlusion_finds_what_the_answer_rests_on_and_nothing_else() -> None:
    def predict(photos: np.ndarray) -> np.ndarray:
        assert photos.dtype == np.uint8 and photos.shape[1:] == (40, 60, 3) and len(photos) <= 7
        red = photos[:, 5:10, 45:55, 0].mean((1, 2)) / 255  # only this place counts
        return np.stack([red, 1 - red], 1)

    photo = np.zeros((40, 60, 3), np.uint8)
    photo[5:10, 45:55, 0] = 255
    before, told = photo.copy(), []
    found = occlusion_map(predict, photo, batch=7, progress=told.append)
    assert (photo == before).all() and sum(told) == 64
    assert found.method == "occlusion" and (found.label, found.runner_up) == (0, 1) and found.margin == pytest.approx(1)
    assert found.peak()[0] == pytest.approx(5 / 6, abs=0.1) and found.peak()[1] == pytest.approx(0.19, abs=0.1)
    assert (found.values[4:] == 0).all() and (found.values[:, :4] == 0).all()
    # Whole covered the red falls to gray: the margin goes from 1 to 2 * 124 / 255 - 1.
    assert found.values.max() == pytest.approx(2 - 2 * 124 / 255, abs=1e-6)
    other = occlusion_map(predict, photo, label=1, batch=7)
    np.testing.assert_allclose(other.values, -found.values, atol=1e-12)


@pytest.mark.parametrize(
    "changes", [{"cells": 8, "patch": 0.1}, {"patch": 1.5}, {"fill": "red"}, {"box": (0.5, 0, 0.4, 1)}, {"cells": 0}]
)
def test_occlusion_refuses_what_makes_no_sense(changes: dict) -> None:
    with pytest.raises(ValueError, match=r"patch|fill|box"):
        occlusion_map(lambda photos: np.ones((len(photos), 2)) / 2, np.zeros((8, 8, 3), np.uint8), **changes)
    with pytest.raises(ValueError, match="uint8"):
        occlusion_map(lambda photos: np.ones((len(photos), 2)) / 2, np.zeros((8, 8, 3)))


def test_a_patch_lies_where_the_photo_has_it_whatever_a_square_shows() -> None:
    square, cover = np.zeros((10, 10, 3), np.uint8), np.full((10, 10, 3), 9, np.uint8)
    whole = occlude(square, cover, (0.5, 0.0, 1.0, 0.2), (0, 0, 1, 1))
    assert (whole[:2, 5:] == 9).all() and whole.sum() == 9 * 3 * 10
    part = occlude(square, cover, (0.5, 0.0, 1.0, 0.2), (0.5, 0.0, 1.0, 1.0))  # shows the right half only
    assert (part[:2] == 9).all() and part.sum() == 9 * 3 * 20
    assert not occlude(square, cover, (0.0, 0.0, 0.4, 0.4), (0.5, 0.0, 1.0, 1.0)).any()
    assert not occlude(square, cover, None, (0, 0, 1, 1)).any() and not square.any()


def test_boxes_are_what_is_cut() -> None:
    assert centre_box(200, 100, 0.8) == pytest.approx((0.3, 0.1, 0.7, 0.9))
    assert centre_box(200, 100, 0.8, squash=True) == pytest.approx((0.1, 0.1, 0.9, 0.9))
    assert bounding_box([(0.3, 0.1, 0.7, 0.9), (0.1, 0.2, 0.5, 1.0)]) == (0.1, 0.1, 0.7, 1.0)
    assert top2(np.array([0.2, 0.5, 0.3])) == (1, 2) and top2(np.array([1.0])) == (0, 0)


@pytest.mark.parametrize("method", ["grad-cam", "occlusion"])
@pytest.mark.parametrize("which", ["partial_run", "full_run"])
def test_maps_of_a_trained_network_are_highest_where_the_class_is_visible(
    which: str, method: str, new_bytes: list[bytes], request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(which)
    mapper = Explainer.load(run)
    assert mapper.methods() == ("grad-cam", "occlusion")
    told = [mapper.draw(data, method)[0] for data in new_bytes]
    right = [run.classes[m.label] == ("red" if i % 2 == 0 else "blue") for i, m in enumerate(told)]
    assert all(right)  # else the map need not be there
    assert all(m.method == method and m.margin > 0 for m in told)
    assert sum(map(in_corner, told)) == len(told)


def test_exact_cells_are_highest_where_the_class_is_visible_and_sum_to_the_margin(
    heads_run: Run, new_bytes: list[bytes]
) -> None:
    classifier = Classifier.load(heads_run)
    training = TrainingFeaturesByFold.cached(heads_run, classifier.graphs)
    assert training is not None
    mapper = Explainer(classifier, training.centre())
    assert mapper.methods() == ("cells", "occlusion") and mapper.default() == ("cells",)
    told = [mapper.draw(data)[0] for data in new_bytes]
    assert [heads_run.classes[m.label] for m in told] == ["red", "blue"] * 2
    assert all(m.method == "cells" and in_corner(m) for m in told)
    start = mapper.draw(new_bytes[0])[0]
    # From zero nothing but the bias is outside the map: all blocks lie on cells here.
    whole = Explainer(classifier).draw(new_bytes[0], "cells", start.label, start.runner_up)[0]
    bias = np.mean([head.bias for head in classifier.heads], 0)
    assert whole.values.sum() + bias[start.label] - bias[start.runner_up] == pytest.approx(whole.margin, abs=1e-4)


def test_photos_most_alike_are_of_what_the_folds_model_learnt_from(heads_run: Run) -> None:
    graphs = Classifier.load(heads_run).graphs
    held, every = TrainingFeaturesByFold.cached(heads_run, graphs), TrainingFeatures.cached(heads_run, graphs)
    assert held is not None and every is not None
    table = every.table
    rows, folds = np.arange(len(table)), table["fold"].to_numpy()
    for fold in (0, 1):
        own, learnt = rows[folds == fold][:3], rows[folds != fold]
        rooted = every.features.rooted(rows)
        centre = rooted[learnt].mean(0)
        np.testing.assert_allclose(np.concatenate(held.centre(fold)), centre, atol=1e-5)
        a, b = rooted[own] - centre, rooted[learnt] - centre
        cosines = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
        found = held.near(rooted[own], fold, table["hash"].iloc[own].tolist(), 4)
        for near, cosine in zip(found, cosines, strict=True):
            order = learnt[np.argsort(-cosine, kind="stable")[:4]]
            assert [n.path for n in near] == table["path"].iloc[order].tolist()
            np.testing.assert_allclose([n.cosine for n in near], np.sort(cosine)[::-1][:4], atol=1e-4)


def test_near_by_a_trained_network_is_read_once(full_run: Run, corner_photos: Path) -> None:
    (tuned,) = Classifier.load(full_run).tuned
    table = training_table(full_run)
    files, hashes = [corner_photos / table["path"][0]], [str(table["hash"][0])]
    voice = Says()
    read: list[int] = []

    @contextmanager
    def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
        read.append(total)
        yield lambda steps: None

    voice.bar = bar  # type: ignore[method-assign]
    first = near_by_network(full_run, tuned, files, hashes, 3, voice)
    again = near_by_network(full_run, tuned, files, hashes, 3, voice, without=int(table["fold"][0]))
    assert first is not None and again is not None and read == [len(table), 0]
    ((near, known),) = first
    assert known and table["path"][0] not in [n.path for n in near] and len(near) == 3
    # The network tells red from blue: what is most alike is of the same color.
    assert {n.label for n in near} == {table["label"][0]}
    ((near, known),) = again
    outside = set(table["path"][table["fold"] != table["fold"][0]])
    assert not known and {n.path for n in near} <= outside


def test_the_whole_path_is_the_runs_own_network(partial_run: Run, new_bytes: list[bytes]) -> None:
    classifier, mapper = Classifier.load(partial_run), Explainer.load(partial_run)
    assert classifier.tuned[0].setting.cut  # the run itself starts from activations
    whole = FullNetworks(classifier.tuned[0])
    square = whole.cut(None).of(new_bytes[0], 10**8).pixels
    _, margin = whole.map("grad-cam", square, ("plain",), 1, 0)
    import torch

    with torch.inference_mode():
        logits = [n(whole._images(square[None], n))[0].numpy() for n in whole.networks()]
    proba = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    own = mapper.direct.probabilities([mapper.direct.prepare(new_bytes[0])], ("plain",))[0]
    np.testing.assert_allclose(proba.mean(0), own, atol=2e-3)  # activations are kept as float16
    assert margin == pytest.approx(np.mean([one[1] - one[0] for one in logits]), abs=1e-4)


def test_random_weights_give_another_map(full_run: Run, new_bytes: list[bytes]) -> None:
    """The sanity check of Adebayo et al. 2018: a map that stays when the weights go says nothing of the network."""
    import torch

    whole = FullNetworks(Classifier.load(full_run).tuned[0])
    squares = [whole.cut(None).of(data, 10**8).pixels for data in new_bytes[:3]]
    trained = [whole.map("grad-cam", square, ("plain",), 1, 0)[0] for square in squares]
    alike = []
    for seed in range(4):  # one random network may well look at the blob too, for or against
        torch.manual_seed(seed)
        for network in whole.networks():
            for parameter in network.parameters():
                with torch.no_grad():
                    parameter.copy_(torch.randn_like(parameter) * parameter.std() if parameter.ndim > 1 else parameter)
        drawn = [whole.map("grad-cam", square, ("plain",), 1, 0)[0] for square in squares]
        alike += [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(trained, drawn, strict=True)]
    assert np.mean(alike) < 0.5


def test_blends_have_one_map_over_all_and_say_so(partial_run: Run, full_run: Run, new_bytes: list[bytes]) -> None:
    mapper = Explainer.load(Ensemble.load([partial_run, full_run]))
    assert mapper.methods() == ("occlusion",)
    with pytest.raises(SourceError, match="not for"):
        mapper.draw(new_bytes[0], "grad-cam")
    with pytest.raises(SourceError, match="known are"):
        mapper.draw(new_bytes[0], "gradcam")
    (found,) = mapper.draw(new_bytes[0])
    assert in_corner(found) and found.method == "occlusion"


def test_only_the_fold_that_has_not_seen_a_photo_answers(partial_run: Run, new_bytes: list[bytes]) -> None:
    one, every = Explainer.load(Classifier.load(partial_run, folds=(0,))), Explainer.load(partial_run)
    assert len(list(one._whole[0].networks())) == 1 and len(list(every._whole[0].networks())) == 3
    alone = one.draw(new_bytes[0], "grad-cam", 0, 1)[0]
    mean = every.draw(new_bytes[0], "grad-cam", 0, 1)[0]
    assert not np.allclose(alone.values, mean.values) and alone.source.startswith("1 network (")
