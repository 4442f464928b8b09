"""What a linear head read where: a logit is a sum over blocks and grid cells, so its map is exact and costs nothing.

The idea is that of class activation maps (Zhou et al. 2016, arXiv:1512.04150), for several blocks on a pooling grid:
nothing is approximated, for behind the frozen blocks there is only a linear map of their signed roots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfreeze.learn.probe.feature_table import Features, signed_root
from unfreeze.learn.probe.heads import LinearHead
from unfreeze.learn.probe.inputs import JoinedFeatures
from unfreeze.learn.probe.rotation import pieces_of
from unfreeze.model.graphs import Graph

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class BlockMaps:
    """What one block of one input adds to each class's logit, cell by cell of the photo's square, row 0 on top.

    values: float64 (n, C, grid, grid). whole: float64 (n, C), what features without a place add: class tokens, and
    stages that leave no map.
    """

    input: int
    block: str
    values: F64
    whole: F64

    @property
    def grid(self) -> int:
        """Cells a side."""
        return int(self.values.shape[-1])


@dataclass(frozen=True)
class Contributions:
    """Maps of all blocks, and `base` (C,): what each logit starts from. Base, maps and `whole` sum to the logits."""

    blocks: tuple[BlockMaps, ...]
    base: F64

    def logits(self) -> F64:
        """float64 (n, C): the mean of the folds' logits."""
        parts = [block.values.sum((2, 3)) + block.whole for block in self.blocks]
        return np.asarray(self.base + np.sum(parts, axis=0))


def contributions(
    features: JoinedFeatures,
    rows: NDArray[np.int64],
    heads: Sequence[LinearHead],
    grids: Sequence[int],
    views: Sequence[str],
    reference: Sequence[F32] | None = None,
    placed: Sequence[Sequence[int]] | None = None,
) -> Contributions:
    """What each cell of each block adds to each class's blended logit, for the photos `rows`.

    heads: the folds'; the blended logit is the mean of theirs. grids: cells a side, for each input. views: those that
    the features are averaged over. reference: signed roots (D,) of each input that count as no evidence, such as
    `mean_rooted` of the training photos; by default zeros. It moves a constant from the maps to the base, no more.
    placed: for each input, how many leading columns of each block lie on grid cells (see `placed_columns`); by
    default all.

    A head reads the root of the views' mean. Where the mirror image is one of them, a feature's part is shared
    between the views by the size of what each saw, and the mirror image's share is laid where it is in the photo.
    """
    names = [part.blocks for part in features.parts]
    seen = [_by_view(part, rows) for part in features.parts]
    return contributions_of(seen, names, heads, grids, views, reference, placed)


def contributions_of(
    seen: Sequence[Sequence[F32]],
    blocks: Sequence[Sequence[tuple[str, int]]],
    heads: Sequence[LinearHead],
    grids: Sequence[int],
    views: Sequence[str],
    reference: Sequence[F32] | None = None,
    placed: Sequence[Sequence[int]] | None = None,
) -> Contributions:
    """As `contributions`, of features in memory: for each input and view float32 (n, D), as the engine gave them.

    blocks: for each input the names and widths of its blocks, in column order.
    """
    weights, bias = blended(heads, [sum(width for _, width in own) for own in blocks])
    base, found = bias.copy(), []
    for i, (values, own, grid, weight) in enumerate(zip(seen, blocks, grids, weights, strict=True)):
        zero = np.zeros(len(weight), np.float32) if reference is None else reference[i]
        base += zero.astype(np.float64) @ weight
        photos = len(values[0])
        for b, ((name, width), start) in enumerate(zip(own, _starts(own), strict=True)):
            count = width if placed is None else placed[i][b]
            block, cells = slice(start, start + width), slice(start, start + count)
            rest = slice(start + count, start + width)
            total = np.zeros((photos, len(bias), grid, grid))
            whole = np.zeros((photos, len(bias)))
            for view, share in zip(views, _view_shares(list(values), block), strict=True):
                value = share - zero[block] / len(views)
                one = _maps(value[:, :count], weight[cells], grid)
                total += one[..., ::-1] if view == "flip" else one
                whole += value[:, count:] @ weight[rest]
            found.append(BlockMaps(i, name, total, whole))
    return Contributions(tuple(found), base)


def placed_columns(graph: Graph) -> list[int]:
    """How many leading columns of each block lie on grid cells: class tokens come last, a flat stage has no cells."""
    read = graph.backbone.stages[-graph.taps.last :]
    return [0 if stage.flat else stage.channels * graph.taps.grid**2 for stage in read]


def blended(heads: Sequence[LinearHead], widths: Sequence[int]) -> tuple[list[F64], F64]:
    """The folds' mean as one linear map: weights float64 (D, C) of each input, bias (C,)."""
    classes = len(heads[0].bias)
    weights = [np.zeros((width, classes)) for width in widths]
    for head in heads:
        start = 0
        for i in head.inputs:
            weights[i] += head.weight[start : start + widths[i]] / len(heads)
            start += widths[i]
    return weights, np.mean([head.bias.astype(np.float64) for head in heads], axis=0)


def mean_rooted(features: JoinedFeatures, rows: NDArray[np.int64]) -> list[F32]:
    """The mean of the signed roots of the photos `rows`: float32 (D,) for each input."""
    means = []
    for part in features.parts:
        total = np.zeros(part.width)
        for piece in pieces_of(rows):
            total += part.rooted(piece).sum(0, dtype=np.float64)
        means.append((total / max(len(rows), 1)).astype(np.float32))
    return means


def nearest_photos(
    features: JoinedFeatures,
    rows: NDArray[np.int64],
    queries: JoinedFeatures,
    asked: NDArray[np.int64],
    centre: list[F32],
) -> F32:
    """Cosines float32 (len(asked), len(rows)) of the signed roots less `centre`: 1 is the same, 0 unrelated.

    Without a centre, what all photos have in common would make any two look alike.
    """
    middle = np.concatenate(centre)
    wanted = _unit(queries.rooted(asked) - middle)
    found = [wanted @ _unit(features.rooted(piece) - middle).T for piece in pieces_of(rows)]
    features.forget_pages()
    return np.concatenate(found, 1) if found else np.zeros((len(asked), 0), np.float32)


def _unit(x: F32) -> F32:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12), np.float32)


def _by_view(part: Features, rows: NDArray[np.int64]) -> list[F32]:
    """Features float32 (n, D) as each view gave them."""
    return [store.take(places[rows]).astype(np.float32) for store, places in zip(part.stores, part.places, strict=True)]


def _view_shares(seen: list[F32], columns: slice) -> list[F32]:
    """The root of the views' mean, shared between the views by size; they sum to the root."""
    values = [view[:, columns] for view in seen]
    root = signed_root(np.mean(values, axis=0, dtype=np.float32))
    sizes = [np.abs(value) for value in values]
    whole = np.sum(sizes, axis=0)
    return [np.divide(root * size, whole, out=np.zeros_like(root), where=whole > 0) for size in sizes]


def _maps(value: NDArray[np.floating], weight: F64, grid: int) -> F64:
    """(n, width) and (width, C) -> (n, C, grid, grid): the sum over channels. Columns go by channel, row, column."""
    n, cells = len(value), grid * grid
    by_cell = value.reshape(n, -1, cells)
    weights = weight.reshape(-1, cells, weight.shape[1])
    return np.einsum("nkg,kgc->ncg", by_cell, weights, optimize=True).reshape(n, weight.shape[1], grid, grid)


def _starts(blocks: Sequence[tuple[str, int]]) -> list[int]:
    return np.cumsum([0, *(width for _, width in blocks)])[:-1].tolist()
