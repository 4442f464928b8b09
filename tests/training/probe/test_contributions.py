"""Maps that add up to the logits, and lie where the photo's cells are."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.explanation.linear import contributions, mean_features, nearest_photos
from unfreeze.features.matrix import FeatureMatrix, JoinedFeatureMatrix
from unfreeze.training.linear_probe.heads import LinearHead

VIEWS = ("plain", "flip")


def two_views(stored, plain, flip, blocks) -> FeatureMatrix:
    """Features of a photo and of its mirror image."""
    parts = [stored(plain, blocks), stored(flip, blocks)]
    return FeatureMatrix(tuple(p.stores[0] for p in parts), tuple(p.places[0] for p in parts), blocks, {}, "cache")


def head(draw, width, inputs=(0,), classes=4) -> LinearHead:
    weight = draw.normal(size=(width, classes)).astype(np.float32)
    return LinearHead(weight, draw.normal(size=classes).astype(np.float32), 1.0, inputs)


@pytest.fixture
def raced(store_features):
    """Two inputs: grids 2 and 3, two blocks and one, signed features of two views; three heads."""
    draw = np.random.default_rng(0)
    first, second = (("a", 12), ("b", 8)), (("c", 18),)
    parts = (
        two_views(store_features, draw.normal(size=(7, 20)), draw.normal(size=(7, 20)), first),
        two_views(store_features, draw.normal(size=(7, 18)), draw.normal(size=(7, 18)), second),
    )
    heads = (head(draw, 38, (0, 1)), head(draw, 18, (1,)), head(draw, 38, (1, 0)))
    return JoinedFeatureMatrix(parts), heads


def test_maps_and_base_add_up_to_the_blended_logits(raced) -> None:
    features, heads = raced
    rows = np.array([5, 0, 3])
    want = np.mean([h.rooted_logits(features.select(h.inputs).rooted(rows)) for h in heads], axis=0)
    mean = mean_features(features, np.arange(7))
    for reference in (None, mean):
        found = contributions(features, rows, heads, (2, 3), VIEWS, reference)
        np.testing.assert_allclose(found.logits(), want, atol=1e-4)
        assert [(b.input, b.block, b.values.shape) for b in found.blocks] == [
            (0, "a", (3, 4, 2, 2)),
            (0, "b", (3, 4, 2, 2)),
            (1, "c", (3, 4, 3, 3)),
        ]


def test_the_reference_photo_itself_has_nothing_in_its_maps(raced) -> None:
    features, heads = raced
    one = np.array([2])
    found = contributions(features, one, heads, (2, 3), VIEWS, mean_features(features, one))
    want = np.mean([h.rooted_logits(features.select(h.inputs).rooted(one)) for h in heads], axis=0)
    np.testing.assert_allclose(found.base, want[0], atol=1e-4)
    for block in found.blocks:
        np.testing.assert_allclose(block.values.sum((2, 3)), 0, atol=1e-4)


def test_a_cell_holds_what_its_channels_add(store_features) -> None:
    # Two channels on 2 x 2 cells, one view: cell (1, 0) has 4 in channel 0 and -9 in channel 1.
    x = np.zeros((1, 8), np.float32)
    x[0, 2], x[0, 6] = 4, -9
    weight = np.zeros((8, 2), np.float32)
    weight[2], weight[6] = (1, 0), (0, 1)
    features = JoinedFeatureMatrix((store_features(x, (("a", 8),)),))
    found = contributions(
        features, np.array([0]), [LinearHead(weight, np.array([5, 7], np.float32), 1)], (2,), ("plain",)
    )
    np.testing.assert_allclose(found.blocks[0].values[0], [[[0, 0], [2, 0]], [[0, 0], [-3, 0]]], atol=1e-6)
    np.testing.assert_allclose(found.base, [5, 7])


def test_what_the_mirror_image_shows_is_laid_where_it_is_in_the_photo(store_features) -> None:
    # Something in the photo's left column only; the mirror image has it in the right one.
    plain, flip = np.array([[8, 0, 2, 0]], np.float32), np.array([[0, 8, 0, 2]], np.float32)
    features = JoinedFeatureMatrix((two_views(store_features, plain, flip, (("a", 4),)),))
    one = LinearHead(np.ones((4, 1), np.float32), np.zeros(1, np.float32), 1)
    cells = contributions(features, np.array([0]), [one], (2,), VIEWS).blocks[0].values[0, 0]
    np.testing.assert_allclose(cells, [[4, 0], [2, 0]], atol=1e-5)


def test_views_that_cancel_out_add_nothing(store_features) -> None:
    features = JoinedFeatureMatrix((two_views(store_features, [[3, 0]], [[-3, 0]], (("a", 2),)),))
    one = LinearHead(np.ones((2, 1), np.float32), np.zeros(1, np.float32), 1)
    assert contributions(features, np.array([0]), [one], (1,), VIEWS).blocks[0].values.tolist() == [[[[0.0]]]]


def test_the_nearest_are_those_that_point_the_same_way(store_features) -> None:
    x = np.array([[4, 0], [16, 1], [0, 4], [9, 9]], np.float32)
    features = JoinedFeatureMatrix((store_features(x),))
    cosines = nearest_photos(features, np.arange(4), features, np.array([0]), [np.zeros(2, np.float32)])
    np.testing.assert_allclose(cosines, [[1, 4 / np.sqrt(17), 0, np.sqrt(0.5)]], atol=1e-3)
    centred = nearest_photos(features, np.arange(4), features, np.array([0]), mean_features(features, np.arange(4)))
    assert centred[0, 0] == pytest.approx(1, abs=1e-3) and centred[0, 2] < 0


def test_features_without_a_place_are_added_next_to_the_map(store_features) -> None:
    # Four cells of one channel, then a class token of two; and a stage that leaves no map.
    x = np.array([[4, 0, 0, 1, 9, 16, 25]], np.float32)
    features = JoinedFeatureMatrix((store_features(x, (("tokens", 6), ("head", 1))),))
    one = LinearHead(np.ones((7, 1), np.float32), np.zeros(1, np.float32), 1)
    tokens, flat = contributions(features, np.array([0]), [one], (2,), ("plain",), placed=[[4, 0]]).blocks
    np.testing.assert_allclose(tokens.values[0, 0], [[2, 0], [0, 1]], atol=1e-6)
    assert tokens.whole[0, 0] == pytest.approx(7) and flat.whole[0, 0] == pytest.approx(5)
    assert not flat.values.any()
