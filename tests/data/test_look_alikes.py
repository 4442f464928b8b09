"""Look-alikes are no copies: drawn sets of products, cells, retinas and chest X-rays, with planted copies."""

from __future__ import annotations

import functools
import io
import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from unfreeze.data import look_alikes
from unfreeze.data.crop_duplicates import aligned_mask, find_cropped_duplicates, residuals
from unfreeze.data.decode import MAX_PIXELS
from unfreeze.data.duplicates import components, connected_groups, near_duplicates, near_mask
from unfreeze.data.look_alikes import LARGE_SHARE, screened
from unfreeze.data.scan import _DTYPE, ImageScan, _row

SIDE, IMAGES, COPIES = 160, 130, 30


def noisy(image, draw, deviation=3.0):
    pixels = np.asarray(image, np.float64)
    return Image.fromarray(np.clip(pixels + draw.normal(0, deviation, pixels.shape), 0, 255).astype(np.uint8))


def product(draw, label):
    """A small thing of one of four shapes and of any color, with dots, on white."""
    image = Image.new("RGB", (SIDE, SIDE), (250, 250, 250))
    pen, r = ImageDraw.Draw(image), SIDE * 0.11
    x, y = SIDE / 2 + draw.normal(0, 3, 2)
    color = tuple(draw.integers(20, 230, 3).tolist())
    if label == 0:
        pen.ellipse((x - r, y - r, x + r, y + r), fill=color)
    elif label == 1:
        pen.rectangle((x - r, y - r, x + r, y + r), fill=color)
    elif label == 2:
        pen.polygon([(x, y - 1.2 * r), (x - r, y + r), (x + r, y + r)], fill=color)
    else:
        pen.rectangle((x - 1.6 * r, y - 0.6 * r, x + 1.6 * r, y + 0.6 * r), fill=color)
    for _ in range(4):
        a, b = draw.uniform(-0.6, 0.6, 2) * r
        dot = (x + a - r / 4, y + b - r / 4, x + a + r / 4, y + b + r / 4)
        pen.ellipse(dot, fill=tuple(draw.integers(0, 255, 3).tolist()))
    return noisy(image, draw, 2)


def cell(draw, label):
    """One cell cut out on black; a stain makes the class."""
    image = Image.new("RGB", (SIDE, SIDE))
    pen, r, middle = ImageDraw.Draw(image), SIDE * 0.4, SIDE / 2
    around = np.linspace(0, 2 * np.pi, 24)
    edge = r * (1 + draw.normal(0, 0.03, 24))
    color = tuple((np.array([205, 150, 165]) + draw.normal(0, 6, 3)).astype(int).tolist())
    pen.polygon([*zip(middle + edge * np.cos(around), middle + edge * np.sin(around), strict=True)], fill=color)
    if label % 2:
        a, b = middle + draw.uniform(-0.5, 0.5, 2) * r
        pen.ellipse((a - 6, b - 6, a + 6, b + 6), fill=(120, 50, 130))
    return noisy(image.filter(ImageFilter.GaussianBlur(1)), draw)


def retina(draw, label):
    """A disk with a bright spot left or right, vessels, and lesions by grade."""
    y, x = np.mgrid[:SIDE, :SIDE]
    middle = SIDE / 2 + draw.normal(0, 1.5, 2)
    r = np.hypot(x - middle[0], y - middle[1])
    whole = SIDE * 0.46
    light = (1 - 0.35 * (r / whole) ** 2) * (r < whole)
    spot = middle + np.array([draw.choice([-1, 1]) * SIDE * 0.18, 0]) + draw.normal(0, 2, 2)
    glow = np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / (2 * (SIDE * 0.045) ** 2)) * (r < whole)
    pixels = light[..., None] * [190, 95, 45] + glow[..., None] * [60, 90, 60]
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(8):
        path = spot + np.cumsum(
            4 * np.stack([f(draw.uniform(0, 6.3) + np.cumsum(draw.normal(0, 0.15, 25))) for f in (np.cos, np.sin)], 1),
            0,
        )
        pen.line([tuple(p) for p in path.tolist()], fill=(120, 45, 25), width=2)
    for _ in range(12 * label):
        a, b = middle + draw.normal(0, 0.35, 2) * whole
        pen.ellipse((a - 2, b - 2, a + 2, b + 2), fill=(110, 30, 20))
    return noisy(Image.fromarray((np.asarray(image) * draw.uniform(0.85, 1)).astype(np.uint8)), draw)


def chest(draw, label):
    """Two dark lungs, a spine and a heart, each a little elsewhere, and soft structure."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    some = draw.normal(0, 0.012, 8)
    light = np.full((SIDE, SIDE), 150.0)
    for side in (0.3 + some[0], 0.7 + some[1]):
        light -= 110 * np.exp(-(((x - side) / (0.13 + some[2])) ** 2 + ((y - 0.45 - some[3]) / (0.25 + some[4])) ** 2))
    light += 50 * np.exp(-(((x - 0.5) / 0.06) ** 2))
    light += 45 * np.exp(-(((x - 0.55 - some[5]) / 0.12) ** 2 + ((y - 0.65) / 0.13) ** 2))
    soft = Image.fromarray((draw.normal(0, 42, (16, 16)) + 128).clip(0, 255).astype(np.uint8))
    light += np.asarray(soft.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255 * 24 - 12
    return noisy(np.repeat((light * draw.uniform(0.9, 1.1))[..., None], 3, 2), draw, 4)


def scene(draw, label):
    coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), np.uint8))
    return coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


SETS = {"products": product, "cells": cell, "retinas": retina, "chests": chest}


def seen(image, quality=90):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return _row(file.getvalue(), MAX_PIXELS)[0]


def smaller(image, draw):
    side = int(SIDE * draw.uniform(0.5, 0.9))
    return image.resize((side, side), Image.Resampling.LANCZOS)


def looks_of(rows, labels=None, name=7) -> ImageScan:
    rows = np.array(rows, _DTYPE)
    keys = np.stack([np.arange(len(rows)) + 1, np.full(len(rows), name)], 1).astype(np.uint64)
    names = ("dhash", "thumb", "grey", "measures", "width", "height")
    return ImageScan(keys, *(rows[name] for name in names), problem=[""] * len(rows), labels=labels)


@functools.cache
def drawn(kind: str, images: int = IMAGES, copies: int = COPIES) -> tuple[ImageScan, np.ndarray]:
    """The first look at a set, its first images once more at the end, smaller and encoded anew; and the labels."""
    draw = np.random.default_rng(3)
    labels = draw.integers(0, 4, images)
    made = [SETS[kind](draw, label) for label in labels.tolist()]
    rows = [*map(seen, made), *(seen(smaller(image, draw), int(draw.integers(50, 85))) for image in made[:copies])]
    return looks_of(rows), np.r_[labels, labels[:copies]]


def largest(looks: ImageScan) -> int:
    return int(np.bincount(components(len(looks.keys), looks.copies.near)).max())


@pytest.mark.parametrize(("kind", "labelled"), [*((kind, True) for kind in SETS), ("cells", False), ("chests", False)])
def test_planted_copies_are_found_and_look_alikes_are_not_joined(kind, labelled):
    looks, labels = drawn(kind)
    assert np.bincount(components(len(labels), *quick(looks))).max() > 0.3 * len(labels)  # what the test is there for
    looks = replace(looks, labels=labels if labelled else None)
    near = set(map(tuple, looks.copies.near.tolist()))
    planted = {(i, IMAGES + i) for i in range(COPIES)}
    assert len(near & planted) >= 0.95 * COPIES
    assert len(near - planted) <= 0.2 * len(labels)
    assert largest(looks) <= LARGE_SHARE * len(labels)
    (found,) = looks.copies.look_alikes
    assert len(found.images) > 0.3 * len(labels) and found.kept <= found.pairs
    assert found.example not in near


def quick(looks: ImageScan) -> list[np.ndarray]:
    """Pairs of the absolute tests alone."""
    every = np.ones(len(looks.keys), bool)
    return [near_duplicates(looks.dhash, looks.thumb, every), find_cropped_duplicates(looks.grey, looks.thumb, every)]


@pytest.mark.parametrize("kind", ["products", "chests"])
def test_a_set_without_copies(kind):
    looks, labels = drawn(kind)
    inside = np.arange(IMAGES)
    names = ("keys", "dhash", "thumb", "grey", "measures", "width", "height")
    alone = ImageScan(
        **{name: getattr(looks, name)[inside] for name in names}, problem=[""] * IMAGES, labels=labels[inside]
    )
    joined = components(IMAGES, alone.copies.near)
    assert (np.bincount(joined)[joined] > 1).mean() <= 0.15
    assert largest(alone) <= LARGE_SHARE * IMAGES


def test_scenes_are_not_examined():
    """Where no large group is, pairs are those of the absolute tests, to the bit."""
    draw = np.random.default_rng(0)
    made = [scene(draw, 0) for _ in range(40)]
    looks = looks_of([*map(seen, made), *(seen(smaller(image, draw)) for image in made[:30])])
    assert looks.copies.look_alikes == ()
    assert looks.copies.near.tolist() == [[i, 40 + i] for i in range(30)]


def test_products_among_scenes():
    """Look-alikes that are a 45% of the images: their copies and those of the scenes are found."""
    looks, _ = drawn("products")
    draw = np.random.default_rng(1)
    made = [scene(draw, 0) for _ in range(200)]
    scenes = looks_of([*map(seen, made), *(seen(smaller(image, draw)) for image in made[:20])], name=8)
    both = looks.concat(scenes)
    near = set(map(tuple, both.copies.near.tolist()))
    n = IMAGES + COPIES
    assert len(near & {(i, IMAGES + i) for i in range(COPIES)}) >= 0.9 * COPIES
    assert {(n + i, n + 200 + i) for i in range(20)} <= near
    assert largest(both) <= LARGE_SHARE * len(both.keys)


def burst(frames=30, cameras=4):
    """Frames of some scenes that nothing moves in."""
    draw = np.random.default_rng(5)
    rows = []
    for _ in range(cameras):
        behind = scene(draw, 0)
        rows += [seen(noisy(behind, draw)) for _ in range(frames)]
    return looks_of(rows), np.repeat(np.arange(cameras), frames)


def test_a_burst_stays_together_unless_its_labels_differ_as_by_chance():
    looks, camera = burst()
    for labels in (None, camera):
        kept = replace(looks, labels=labels)
        assert len(np.unique(np.stack([components(len(camera), kept.copies.near), camera]), axis=1).T) == 4
        assert kept.copies.look_alikes == ()
    mixed = replace(looks, labels=np.random.default_rng(0).integers(0, 3, len(camera)))
    assert len(mixed.copies.near) <= 0.1 * len(camera) and len(mixed.copies.look_alikes) == 4
    assert mixed.copies.look_alikes[0].disagree == pytest.approx(2 / 3, abs=0.1)


def test_copies_in_several_class_folders_are_joined():
    """Each image with two labels, always: more than by chance, and no image looks like another."""
    draw = np.random.default_rng(0)
    made = [scene(draw, 0) for _ in range(40)]
    labels = np.r_[np.arange(40) % 2, 1 - np.arange(40) % 2]
    looks = looks_of([*map(seen, made), *(seen(smaller(image, draw)) for image in made)], labels)
    assert looks.copies.near.tolist() == [[i, 40 + i] for i in range(40)]


def test_a_chain_is_cut():
    """Scenes that turn into each other: each is near the next ones, the ends are not near."""
    draw = np.random.default_rng(2)
    ends = [scene(draw, 0) for _ in range(9)]
    rows = [seen(Image.blend(one, other, step / 40)) for one, other in itertools.pairwise(ends) for step in range(40)]
    looks = looks_of(rows, np.repeat(np.arange(8), 40))
    every = np.ones(len(rows), bool)
    near = near_duplicates(looks.dhash, looks.thumb, every)
    assert np.bincount(components(len(rows), near)).max() > 0.3 * len(rows)
    left, _ = screened(near, looks.dhash, looks.thumb, looks.grey, every, looks.labels)
    group = components(len(rows), left)
    assert np.bincount(group).max() <= 0.1 * len(rows)
    for one in range(group.max() + 1):  # each group has one that all others are near to
        inside = np.flatnonzero(group == one)
        pairs = np.stack(np.meshgrid(inside, inside), -1)
        tried = pairs.reshape(-1, 2)
        same = near_mask(tried, looks.dhash, looks.thumb) | aligned_mask(tried, looks.grey, looks.thumb)
        assert same.reshape(pairs.shape[:2]).all(1).any()


def test_unreadable_images_are_not_compared():
    looks, labels = drawn("products")
    problem = [*looks.problem]
    rows = {
        name: getattr(looks, name).copy() for name in ("keys", "dhash", "thumb", "grey", "measures", "width", "height")
    }
    for i in range(20, 40):
        problem[i] = "damaged"
        for name in ("dhash", "thumb", "grey"):
            rows[name][i] = 0
    near = ImageScan(**rows, problem=problem, labels=labels).copies.near
    assert len(near) and not np.isin(near, np.arange(20, 40)).any()


def test_masks_and_residuals_agree_with_the_search():
    looks, _ = drawn("retinas")
    every = np.ones(len(looks.keys), bool)
    found = find_cropped_duplicates(looks.grey, looks.thumb, every)
    assert aligned_mask(found, looks.grey, looks.thumb).all()
    assert (residuals(found, looks.grey)[:, 0] <= 6).all()
    hashed = near_duplicates(looks.dhash, looks.thumb, every)
    assert near_mask(hashed, looks.dhash, looks.thumb).all()
    strangers = np.stack([np.arange(0, 65), np.arange(65, 130)], 1)
    planted = np.stack([np.arange(COPIES), IMAGES + np.arange(COPIES)], 1)
    assert (residuals(strangers, looks.grey).min(0) > residuals(planted, looks.grey).max(0)).all()
    assert aligned_mask(np.zeros((0, 2), np.int64), looks.grey, looks.thumb).shape == (0,)


def test_color_separates_what_gray_does_not():
    thumb = np.full((3, 8, 8, 3), 250, np.uint8)
    thumb[0, 3:5, 3:5] = [200, 60, 60]
    thumb[1, 3:5, 3:5] = [195, 62, 58]
    thumb[2, 3:5, 3:5] = [60, 60, 200]
    near, far = look_alikes._color_residuals(np.array([[0, 1], [0, 2]]), thumb)
    assert near < 2 < 10 < far


def test_the_threshold_is_where_chance_expects_as_many():
    """A power law with 40 copies before it: within the threshold lie about as many pairs as are wanted."""
    draw = np.random.default_rng(0)
    for power in (4.0, 12.0):
        distances = np.sort(np.r_[draw.uniform(0.1, 0.3, 40), 10 * draw.random(20_000) ** (1 / power)])[:400]
        for wanted in (2.0, 10.0):
            found = look_alikes._tail(distances, 80, wanted)
            assert 0.3 * wanted <= 20_000 * (found / 10) ** power <= 3 * wanted


def test_many_look_alikes_cost_no_squares():
    """3,000 flat images of one kind: every two are near by the absolute test."""
    draw = np.random.default_rng(0)
    n = 3000
    small = np.full((n, 8, 8), 250.0)
    small[:, 3:5, 3:5] = draw.uniform(235, 250, (n, 2, 2))
    grey = np.kron(small, np.ones((1, 4, 4))).astype(np.uint8)
    thumb = np.repeat(small[..., None], 3, 3).astype(np.uint8)
    dhash = np.zeros((n, 4), np.uint64)
    every = np.ones(n, bool)
    pairs = near_duplicates(dhash, thumb, every)
    assert len(set(connected_groups(np.arange(n), pairs))) == 1
    started = time.process_time()
    left, (found,) = screened(pairs, dhash, thumb, grey, every)
    assert time.process_time() - started < 20
    assert np.bincount(components(n, left)).max() <= LARGE_SHARE * n and len(found.images) == n
