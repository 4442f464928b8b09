"""Plain statistics of colour and texture: what can be told from photos without any network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import PhotoError
from unfreeze.core.work import in_threads
from unfreeze.data.images import Pixels, load_square, read_bytes
from unfreeze.learn.probe.thinned import ThinnedFeatures

# The centre square that is looked at, and how finely: cells a side, directions of an edge, shades of a colour.
_SIDE, _CELLS, _DIRECTIONS, _SHADES = 48, 3, 8, 4


def plain_features(
    files: list[Path], rows: NDArray[np.int64], max_pixels: int, gray: bool = False
) -> tuple[ThinnedFeatures, list[int]]:
    """Features of the photos `rows` (others hold zeros), and which of them could not be read.

    gray: as of `images.load_square`.
    """

    def load(i: int) -> Pixels | None:
        try:
            return load_square(read_bytes(files[i]), _SIDE, 1.0, max_pixels, files[i], gray=gray)
        except PhotoError:
            return None

    loaded = dict(zip(rows.tolist(), in_threads(load, rows.tolist()), strict=True))
    there = [i for i, pixels in loaded.items() if pixels is not None]
    pixels = (
        np.stack([p for p in loaded.values() if p is not None]) if there else np.zeros((0, _SIDE, _SIDE, 3), np.uint8)
    )
    parts = plain_statistics(pixels)
    found = np.concatenate(list(parts.values()), 1)
    kept = np.zeros((len(files), found.shape[1]), np.float32)
    kept[there] = np.copysign(np.sqrt(np.abs(found)), found)
    blocks = tuple((name, part.shape[1]) for name, part in parts.items())
    name = "plain statistics 1" + " gray" * gray
    return ThinnedFeatures(kept, blocks, [name]), [i for i, p in loaded.items() if p is None]


def plain_statistics(pixels: Pixels) -> dict[str, NDArray[np.float32]]:
    """Colours, edges and moments of uint8 (n, S, S, 3), S a multiple of 3: float32 (n, width) each.

    colours: shares of 64 colours (histogram of 4 x 4 x 4). edges: in 3 x 3 cells, the mean strength of edges in each of
    8 directions (as in Dalal & Triggs 2005). moments: mean and deviation of each channel, mean, deviation and skew of
    lightness and strength of edges.
    """
    n, side = pixels.shape[:2]
    shade = pixels.astype(np.int64) * _SHADES // 256
    codes = (shade[..., 0] * _SHADES + shade[..., 1]) * _SHADES + shade[..., 2]
    codes = codes.reshape(n, -1) + np.arange(n)[:, None] * _SHADES**3
    colours = np.bincount(codes.ravel(), minlength=n * _SHADES**3).reshape(n, -1) / side**2

    x = pixels.astype(np.float32) / 255
    light = x @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    down, right = np.zeros_like(light), np.zeros_like(light)
    down[:, 1:-1] = light[:, 2:] - light[:, :-2]
    right[:, :, 1:-1] = light[:, :, 2:] - light[:, :, :-2]
    strength = np.hypot(down, right)
    turn = np.minimum((np.arctan2(down, right) % np.pi / np.pi * _DIRECTIONS).astype(np.int64), _DIRECTIONS - 1)
    cell = side // _CELLS
    edges = []
    for direction in range(_DIRECTIONS):
        own = np.where(turn == direction, strength, 0).reshape(n, _CELLS, cell, _CELLS, cell)
        edges.append(own.mean((2, 4)).reshape(n, -1))
    moments = [x.mean((1, 2)), x.std((1, 2))]
    for values in (light, strength):
        middle, spread = values.mean((1, 2)), values.std((1, 2))
        skew = ((values - middle[:, None, None]) ** 3).mean((1, 2)) / np.maximum(spread, 1e-3) ** 3
        moments.append(np.stack([middle, spread, skew / 10], 1))
    return {
        "colours": colours.astype(np.float32),
        "edges": np.concatenate(edges, 1).astype(np.float32),
        "moments": np.concatenate(moments, 1).astype(np.float32),
    }
