"""Cropped, brightened and shrunk copies are found; other photos, and the same ones changed in a place, are not."""

from __future__ import annotations

import functools
import io
import time

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from unfreeze.data import crop_duplicates
from unfreeze.data.crop_duplicates import _TILE, find_cropped_duplicates
from unfreeze.data.decode import MAX_PIXELS
from unfreeze.data.scan import _row


def scene(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """Coarse and finer blobs: a picture of its own for each seed."""
    draw = np.random.default_rng(seed)
    image = Image.fromarray(draw.integers(0, 256, (5, 6, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    fine = Image.fromarray(draw.integers(0, 256, (24, 32, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return Image.blend(image, fine, 0.35)


def cropped(image, left=0.0, top=0.0, right=0.0, bottom=0.0):
    w, h = image.size
    return image.crop((round(left * w), round(top * h), round(w - right * w), round(h - bottom * h)))


def repainted(image):
    """Another color in one ninth of it, about as light as before."""
    pixels = np.asarray(image).astype(np.int16)
    h, w = pixels.shape[:2]
    pixels[h // 3 : 2 * h // 3, w // 3 : 2 * w // 3] += np.array([60, -34, 20], np.int16)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


COPIES = {
    "crop": lambda i: cropped(i, 0.03, 0.03, 0.03, 0.03),
    "one side": lambda i: cropped(i, left=0.03),
    "corner": lambda i: cropped(i, left=0.03, top=0.03),
    "brighter": lambda i: ImageEnhance.Brightness(i).enhance(1.1),
    "darker": lambda i: ImageEnhance.Brightness(i).enhance(0.85),
    "smaller": lambda i: i.resize((224, 168), Image.Resampling.BICUBIC),
}
OTHERS = {
    "mirror": lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "half": lambda i: cropped(i, right=0.5),
    "swapped colours": lambda i: Image.fromarray(np.ascontiguousarray(np.asarray(i)[..., ::-1])),
    "repainted": repainted,
    "negative": lambda i: Image.fromarray(255 - np.asarray(i)),
}


def rows(images):
    out = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=85)
        out.append(_row(file.getvalue(), MAX_PIXELS))
    return np.concatenate(out)


def found(images):
    seen = rows(images)
    return find_cropped_duplicates(seen["grey"], seen["thumb"], np.ones(len(seen), bool)).tolist()


@pytest.mark.parametrize("name", COPIES)
def test_copies(name):
    originals = [scene(seed) for seed in range(20)]
    pairs = found([*originals, *(COPIES[name](image) for image in originals)])
    assert [i for i in range(20) if [i, 20 + i] not in pairs] == []
    assert len(pairs) == 20


@pytest.mark.parametrize("name", OTHERS)
def test_others(name):
    originals = [scene(seed) for seed in range(20)]
    assert found([*originals, *(OTHERS[name](image) for image in originals)]) == []


def test_a_thing_put_in_is_another_photo():
    def with_disc(image):
        changed = image.copy()
        ImageDraw.Draw(changed).ellipse((120, 90, 200, 170), fill=(240, 240, 240))
        return changed

    originals = [scene(seed) for seed in range(10)]
    assert found([*originals, *map(with_disc, originals)]) == []


def test_tiles_cover_all_pairs():
    """Copies whose originals lie in another tile, at the tiles' edges too."""
    n = 2 * _TILE + 10
    draws = np.random.default_rng(0)
    grey = np.kron(draws.integers(0, 256, (n, 8, 8)), np.ones((1, 4, 4))).astype(np.uint8)
    thumb = np.zeros((n, 8, 8, 3), np.uint8)
    pairs = [[0, n - 1], [_TILE - 1, _TILE], [5, _TILE + 5], [_TILE + 7, 2 * _TILE + 7]]
    for a, b in pairs:
        grey[b] = grey[a]
    assert find_cropped_duplicates(grey, thumb, np.ones(n, bool)).tolist() == sorted(pairs)
    unusable = np.ones(n, bool)
    unusable[0] = False
    assert find_cropped_duplicates(grey, thumb, unusable).tolist() == sorted(pairs[1:])


def test_flat_and_none():
    grey, thumb = np.full((3, 32, 32), 128, np.uint8), np.zeros((3, 8, 8, 3), np.uint8)
    assert find_cropped_duplicates(grey, thumb, np.ones(3, bool)).shape == (0, 2)
    assert find_cropped_duplicates(grey, thumb, np.zeros(3, bool)).shape == (0, 2)


def test_a_crowd_costs_no_squares():
    """3,000 frames of one scene: 4.5 million pairs, of which only some are laid over each other."""
    draws = np.random.default_rng(0)
    one = np.kron(draws.integers(0, 256, (8, 8)), np.ones((4, 4)))
    grey = np.clip(one + draws.normal(0, 3, (3000, 32, 32)), 0, 255).astype(np.uint8)
    started = time.process_time()
    pairs = find_cropped_duplicates(grey, np.zeros((3000, 8, 8, 3), np.uint8), np.ones(3000, bool))
    assert len(pairs) <= 3000 * 2 * 8
    assert len(np.unique(pairs)) == 3000
    assert time.process_time() - started < 30


def test_trees_find_what_all_tiles_find(monkeypatch):
    """Leaves of 16 of 1,200 photos: as deep a tree as a million photos have; the same pairs each time."""
    originals = [scene(seed, 64, 48) for seed in range(600)]
    seen = rows([*originals, *(cropped(image, 0.03, 0.02, 0.0, 0.03) for image in originals)])
    asked = seen["grey"], seen["thumb"], np.ones(len(seen), bool)
    every = set(map(tuple, find_cropped_duplicates(*asked).tolist()))
    assert len(every) > 500
    monkeypatch.setattr(crop_duplicates, "_ALL", 0)
    monkeypatch.setattr(crop_duplicates, "_tree", functools.partial(crop_duplicates._tree, leaf=16))
    some = [set(map(tuple, find_cropped_duplicates(*asked).tolist())) for _ in range(2)]
    assert some[0] == some[1] <= every
    assert len(some[0]) >= 0.98 * len(every)


def test_leaves_hold_every_photo_once():
    low = np.random.default_rng(0).normal(0, 1, (1000, 64)).astype(np.float32)
    leaves = [here for here, _ in crop_duplicates._tree(low, 0, leaf=30)]
    assert max(map(len, leaves)) <= 30
    assert sorted(np.concatenate(leaves).tolist()) == list(range(1000))
    assert len(list(crop_duplicates._tree(np.ones((100, 64), np.float32), 0, leaf=30))) == 4  # all alike: still halves


@pytest.mark.parametrize("most", [1, 3, 8])
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.6])
def test_the_closest_of_each_row_are_those_that_sorting_finds(most, same, share):
    """share: of the pairs that are near. Ties go to the earlier column."""
    draws = np.random.default_rng(0)
    close = np.where(draws.random((50, 50)) < share, draws.integers(86, 100, (50, 50)) / 100, 0.5).astype(np.float32)
    wanted = set()
    for i, row in enumerate(close):
        near = [j for j in range(i + 1 if same else 0, 50) if row[j] >= crop_duplicates.NEAR_COSINE]
        wanted |= {(i, j) for j in sorted(near, key=lambda j: (-row[j], j))[:most]}
    i, j, cosine = crop_duplicates._closest(close.copy(), most, same)
    assert len(i) == len(wanted) and set(zip(i.tolist(), j.tolist(), strict=True)) == wanted
    np.testing.assert_array_equal(cosine, close[i, j])


def test_the_best_of_each_photo_are_those_that_sorting_finds():
    draws = np.random.default_rng(0)
    photo, close = draws.integers(0, 30, 500), draws.integers(86, 101, 500).astype(np.float32) / 100
    order = np.lexsort((-close, photo))
    wanted = [k for p in range(30) for k in order[photo[order] == p][:4]]
    assert crop_duplicates._best_of_each(photo, close, 4).tolist() == wanted


def test_halving_as_a_product_is_the_mean_of_four():
    draws = np.random.default_rng(0)
    a = draws.uniform(0, 255, (32, 32)).astype(np.float32)
    right, left = crop_duplicates._halving(32)
    across = crop_duplicates._across(32)

    def halved(x):
        return x.reshape(16, 2, 16, 2).mean((1, 3))

    dy, dx = np.gradient(a)
    wide, tall = left[:16] @ (a @ right), left[16:] @ (a @ right[:, :16])
    for got, wanted in zip(
        (*np.split(wide, 3, 1), *np.split(tall, 2)), (a, dx, across * dx, dy, across[:, None] * dy), strict=True
    ):
        np.testing.assert_allclose(got, halved(wanted), atol=1e-3)


def test_colors_are_reported_exactly_whatever_the_gray():
    """A tint that all channels share is none; one of a single channel by 15 leaves 10 in it, -5 in the others."""
    thumb = np.random.default_rng(0).integers(20, 200, (3, 8, 8, 3)).astype(np.uint8)
    thumb[1] = thumb[0] + 30
    thumb[2] = thumb[0] + np.array([15, 0, 0], np.uint8)
    tint = crop_duplicates._tints(thumb, np.arange(3))
    assert np.array_equal(tint[0], tint[1])
    assert np.unique((tint[2] - tint[0]) / crop_duplicates._TINT_UNIT).tolist() == [-5.0, 10.0]
