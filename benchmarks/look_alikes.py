"""Look-alikes and copies: drawn sets in which all images look alike, with planted copies.

python run.py look_alikes
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checking
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE, IMAGES, PLANTED = 256, 300, 40
HEADLINE = (
    "set",
    "labels",
    "images",
    "planted",
    "largest_before",
    "largest",
    "joined",
    "found",
    "smaller_found",
    "false",
)
Draw = np.random.Generator
Pixels = np.ndarray


def _noisy(pixels: Pixels | Image.Image, draw: Draw, deviation: float) -> Image.Image:
    values = np.asarray(pixels, np.float64)
    return Image.fromarray(np.clip(values + draw.normal(0, deviation, values.shape), 0, 255).astype(np.uint8))


def product(draw: Draw, label: int, share: float = 0.05, ground: int = 250, noise: float = 2) -> Image.Image:
    """A thing of one of four shapes and of any color, with dots, that fills `share` of a plain image."""
    image = Image.new("RGB", (SIDE, SIDE), (ground,) * 3)
    pen, r = ImageDraw.Draw(image), SIDE * np.sqrt(share) / 2
    x, y = SIDE / 2 + draw.normal(0, 4, 2)
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
    return _noisy(image, draw, noise)


def lit_product(draw: Draw, label: int) -> Image.Image:
    """The same under light from a random side, with a soft shadow."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    from_side, there = draw.uniform(0, 2 * np.pi), draw.normal(0, 0.1, 2)
    light = 1 - 0.25 * draw.uniform(0.5, 1.5) * (np.cos(from_side) * x + np.sin(from_side) * y)
    light -= 0.1 * np.exp(-(((x - 0.5 - there[0]) / 0.2) ** 2 + ((y - 0.6 - there[1]) / 0.15) ** 2))
    return _noisy(np.asarray(product(draw, label)) * light[..., None], draw, 0)


def cell(draw: Draw, label: int) -> Image.Image:
    """One cell cut out on black; stains make the class."""
    image = Image.new("RGB", (SIDE, SIDE))
    pen, r, middle = ImageDraw.Draw(image), SIDE * 0.4, SIDE / 2
    around = np.linspace(0, 2 * np.pi, 24)
    edge = r * (1 + draw.normal(0, 0.03, 24))
    color = tuple((np.array([205, 150, 165]) + draw.normal(0, 6, 3)).astype(int).tolist())
    pen.polygon([*zip(middle + edge * np.cos(around), middle + edge * np.sin(around), strict=True)], fill=color)
    for _ in range(draw.integers(1, 3) if label % 2 else 0):
        a, b = middle + draw.uniform(-0.5, 0.5, 2) * r
        pen.ellipse((a - 10, b - 10, a + 10, b + 10), fill=(120, 50, 130))
    return _noisy(image.filter(ImageFilter.GaussianBlur(1)), draw, 3)


def retina(draw: Draw, label: int) -> Image.Image:
    """A disk with the optic disk left or right, the macula, vessels, and lesions by grade."""
    y, x = np.mgrid[:SIDE, :SIDE]
    middle, whole = SIDE / 2 + draw.normal(0, 2, 2), SIDE * 0.46
    r = np.hypot(x - middle[0], y - middle[1])
    inside, side = r < whole, draw.choice([-1, 1])
    spot = middle + np.array([side * SIDE * 0.18, 0]) + draw.normal(0, (3, 4))
    pixels = ((1 - 0.35 * (r / whole) ** 2) * inside)[..., None] * [190, 95, 45]
    for at, wide, color in (
        (spot, 0.045, [60, 90, 60]),
        (middle - np.array([side * SIDE * 0.05, 0]), 0.06, [-35, -25, -10]),
    ):
        glow = np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * (SIDE * wide) ** 2)) * inside
        pixels += glow[..., None] * color
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(8):
        turned = draw.uniform(0, 2 * np.pi) + np.cumsum(draw.normal(0, 0.15, 25))
        path = spot + np.cumsum(6 * np.stack([np.cos(turned), np.sin(turned)], 1), 0)
        path = path[np.hypot(*(path - middle).T) < whole - 3]
        pen.line([tuple(p) for p in path.tolist()], fill=(120, 45, 25), width=2)
    for _ in range(12 * label):
        turned, out, wide = draw.uniform(0, 2 * np.pi), whole * np.sqrt(draw.random()) * 0.9, draw.uniform(1, 4)
        a, b = middle + out * np.array([np.cos(turned), np.sin(turned)])
        color = (110, 30, 20) if draw.random() < 0.6 else (230, 210, 120)
        pen.ellipse((a - wide, b - wide, a + wide, b + wide), fill=color)
    return _noisy(np.asarray(image) * draw.uniform(0.85, 1.15), draw, 3)


def chest(draw: Draw, label: int) -> Image.Image:
    """Two dark lungs, spine, heart and ribs, each a little elsewhere, and soft structure."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    some = draw.normal(0, 0.012, 8)
    light = np.full((SIDE, SIDE), 150.0)
    for side in (0.3 + some[0], 0.7 + some[1]):
        light -= 110 * np.exp(-(((x - side) / (0.13 + some[2])) ** 2 + ((y - 0.45 - some[3]) / (0.25 + some[4])) ** 2))
    light += 50 * np.exp(-(((x - 0.5) / 0.06) ** 2))
    light += 45 * np.exp(-(((x - 0.55 - some[5]) / 0.12) ** 2 + ((y - 0.65) / 0.13) ** 2))
    light += 54 * np.cos(2 * np.pi * (y * 9 + 0.7 * np.abs(x - 0.5) + some[6]))
    soft = Image.fromarray((draw.normal(0, 42, (16, 16)) + 128).clip(0, 255).astype(np.uint8))
    light += np.asarray(soft.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255 * 24 - 12
    return _noisy(np.repeat((light * draw.uniform(0.9, 1.1))[..., None], 3, 2), draw, 4)


SETS: dict[str, Callable[[Draw, int], Image.Image]] = {
    **{
        f"products, {share:.0%} of the image": lambda draw, label, share=share: product(draw, label, share)
        for share in (0.02, 0.05, 0.1, 0.25)
    },
    "products, 5%, gray ground, noise": lambda draw, label: product(draw, label, 0.05, 205, 10),
    "products, 5%, uneven light": lit_product,
    "cells": cell,
    "retinas": retina,
    "chest X-rays": chest,
}


def _smaller(image: Image.Image, draw: Draw) -> bytes:
    side = int(SIDE * draw.uniform(0.5, 0.9))
    return checking._encoded(image.resize((side, side), Image.Resampling.LANCZOS), int(draw.integers(50, 85)))


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A row a set, without labels and with random ones: groups by the absolute tests alone, and as they are joined."""
    for name, make in SETS.items():
        draw = np.random.default_rng(3)
        labels = draw.integers(0, 4, IMAGES)
        images = [make(draw, label) for label in labels.tolist()]
        for planted in (0, PLANTED):
            yield from _row_of(name, images, labels, planted, draw)


def _row_of(
    name: str, images: list[Image.Image], labels: np.ndarray, planted: int, draw: Draw
) -> Iterator[dict[str, Any]]:
    from unfreeze.data.crop_duplicates import find_cropped_duplicates
    from unfreeze.data.decode import MAX_PIXELS
    from unfreeze.data.duplicates import components, near_duplicates
    from unfreeze.data.look_alikes import screened
    from unfreeze.data.scan import _row

    seen = [_row(checking._encoded(image, 90), MAX_PIXELS) for image in images]
    kinds: list[Callable[[Image.Image], bytes]] = [lambda image: _smaller(image, draw)]
    kinds += [change for what, change in checking.COPIES.items() if what != "resized to 0.7"]
    source = np.arange(planted * len(kinds))
    seen += [_row(kinds[i // planted](images[i]), MAX_PIXELS) for i in source.tolist()]
    every = np.concatenate(seen)
    count, usable = len(every), np.ones(len(every), bool)
    near = near_duplicates(every["dhash"], every["thumb"], usable)
    first = np.zeros(count, bool)
    first[np.unique(components(count, near), return_index=True)[1]] = True
    near = np.unique(np.concatenate([near, find_cropped_duplicates(every["grey"], every["thumb"], first)]), axis=0)
    for labelled in (False, True):
        started = time.process_time()
        given = np.r_[labels, labels[source]] if labelled else None
        pairs, _ = screened(near, every["dhash"], every["thumb"], every["grey"], usable, given)
        seconds = time.process_time() - started
        group = components(count, pairs)
        size = np.bincount(group)
        true, true_before = ((some[:, 1] >= IMAGES) & (some[:, 0] == some[:, 1] - IMAGES) for some in (pairs, near))
        yield {
            "set": name,
            "labels": "yes" if labelled else "no",
            "images": count,
            "planted": len(source),
            "pairs_before": len(near),
            "found_before": int(true_before.sum()),
            "largest_before": round(float(np.bincount(components(count, near)).max() / count), 3),
            "largest": round(float(size.max() / count), 3),
            "joined": round(float((size[group] > 1).mean()), 3),
            "found": int(true.sum()),
            "smaller_found": int((true & (pairs[:, 1] < IMAGES + planted)).sum()),
            "false": int((~true).sum()),
            "cpu_s": round(seconds, 2),
        }
