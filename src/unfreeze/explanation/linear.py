"""Exact attribution of the logits of linear heads to feature blocks and grid cells.

A linear head on frozen features computes each logit as a sum over blocks and grid cells, so its map is exact and needs
no further forward pass. This is the idea of class activation maps (Zhou et al. 2016, arXiv:1512.04150), applied to
several blocks on a pooling grid. Nothing is approximated, since the head is a linear map of the signed square roots of
the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.arrays import F32, F64
from unfreeze.features.matrix import FeatureMatrix, JoinedFeatureMatrix, signed_root
from unfreeze.models.feature_extractor import FeatureExtractor
from unfreeze.training.linear_probe.heads import LinearHead
from unfreeze.training.linear_probe.projection import pieces_of


@dataclass(frozen=True)
class BlockMaps:
    """Contribution of one block of one input to each class logit, per grid cell.

    Attributes:
        input: Index of the input.
        block: Name of the block.
        values: float64 (n, C, grid, grid), row 0 at the top of the crop.
        whole: float64 (n, C), contribution of features without a position: class tokens, and stages without a spatial
            map.
    """

    input: int
    block: str
    values: F64
    whole: F64

    @property
    def grid(self) -> int:
        """Number of cells per side."""
        return int(self.values.shape[-1])


@dataclass(frozen=True)
class Contributions:
    """Contributions of all blocks; base, maps and `whole` sum to the logits.

    Attributes:
        blocks: One entry per block.
        base: float64 (C,), value that each logit starts from.
    """

    blocks: tuple[BlockMaps, ...]
    base: F64

    def logits(self) -> F64:
        """Mean of the folds' logits, float64 (n, C)."""
        parts = [block.values.sum((2, 3)) + block.whole for block in self.blocks]
        return np.asarray(self.base + np.sum(parts, axis=0))


def contributions(
    features: JoinedFeatureMatrix,
    rows: NDArray[np.int64],
    heads: Sequence[LinearHead],
    grids: Sequence[int],
    views: Sequence[str],
    reference: Sequence[F32] | None = None,
    placed: Sequence[Sequence[int]] | None = None,
) -> Contributions:
    """Contribution of each cell of each block to the mean logits of the heads.

    The heads read the signed root of the mean over the views. If the horizontal flip is one of the views, a feature's
    contribution is split between the views in proportion to the absolute feature values, and the part of the flipped
    view is flipped back.

    Args:
        features: Features of the images.
        rows: int64, rows of `features` to explain.
        heads: Linear heads of the folds; the logits are the mean of theirs.
        grids: Number of cells per side, for each input.
        views: Views that the features are averaged over.
        reference: Signed-root features (D,) of each input that count as no evidence, such as `mean_features` of the
            training images; by default zeros. Changing it only moves a constant between the maps and the base.
        placed: For each input, the number of leading columns of each block that lie on grid cells (see
            `spatial_columns`); by default all.
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
    """`contributions` for features in memory.

    Args:
        seen: For each input and view, features float32 (n, D) as the engine returns them.
        blocks: For each input, names and widths of its blocks, in column order.
        heads: As in `contributions`.
        grids: As in `contributions`.
        views: As in `contributions`.
        reference: As in `contributions`.
        placed: As in `contributions`.
    """
    weights, bias = mean_head(heads, [sum(width for _, width in own) for own in blocks])
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


def spatial_columns(graph: FeatureExtractor) -> list[int]:
    """Number of leading columns of each block that lie on grid cells.

    Class tokens are the last columns of a block; flat stages have no cells.
    """
    read = graph.backbone.stages[-graph.taps.last :]
    return [0 if stage.flat else stage.channels * graph.taps.grid**2 for stage in read]


def mean_head(heads: Sequence[LinearHead], widths: Sequence[int]) -> tuple[list[F64], F64]:
    """Average the folds' heads into one linear map.

    Args:
        heads: Linear heads of the folds.
        widths: Number of features of each input.

    Returns:
        Weights float64 (D, C) of each input, and the bias float64 (C,).
    """
    classes = len(heads[0].bias)
    weights = [np.zeros((width, classes)) for width in widths]
    for head in heads:
        start = 0
        for i in head.inputs:
            weights[i] += head.weight[start : start + widths[i]] / len(heads)
            start += widths[i]
    return weights, np.mean([head.bias.astype(np.float64) for head in heads], axis=0)


def mean_features(features: JoinedFeatureMatrix, rows: NDArray[np.int64]) -> list[F32]:
    """Mean of the signed-root features of the rows, float32 (D,) for each input."""
    means = []
    for part in features.parts:
        total = np.zeros(part.width)
        for piece in pieces_of(rows):
            total += part.rooted(piece).sum(0, dtype=np.float64)
        means.append((total / max(len(rows), 1)).astype(np.float32))
    return means


def nearest_photos(
    features: JoinedFeatureMatrix,
    rows: NDArray[np.int64],
    queries: JoinedFeatureMatrix,
    asked: NDArray[np.int64],
    centre: list[F32],
) -> F32:
    """Cosine similarities of the centered signed-root features.

    Centering is needed because the common component of all images would make any two of them look similar.

    Args:
        features: Features to search in.
        rows: int64, rows of `features`.
        queries: Features of the query images.
        asked: int64, rows of `queries`.
        centre: Mean signed-root features of each input, from `mean_features`.

    Returns:
        float32 (len(asked), len(rows)); 1 is identical, 0 unrelated.
    """
    middle = np.concatenate(centre)
    wanted = _unit(queries.rooted(asked) - middle)
    found = [wanted @ _unit(features.rooted(piece) - middle).T for piece in pieces_of(rows)]
    features.forget_pages()
    return np.concatenate(found, 1) if found else np.zeros((len(asked), 0), np.float32)


def _unit(x: F32) -> F32:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12), np.float32)


def _by_view(part: FeatureMatrix, rows: NDArray[np.int64]) -> list[F32]:
    """Features of each view, float32 (n, D)."""
    return [store.take(places[rows]).astype(np.float32) for store, places in zip(part.stores, part.places, strict=True)]


def _view_shares(seen: list[F32], columns: slice) -> list[F32]:
    """Split the signed root of the view mean between the views by absolute value; the parts sum to the root."""
    values = [view[:, columns] for view in seen]
    root = signed_root(np.mean(values, axis=0, dtype=np.float32))
    sizes = [np.abs(value) for value in values]
    whole = np.sum(sizes, axis=0)
    return [np.divide(root * size, whole, out=np.zeros_like(root), where=whole > 0) for size in sizes]


def _maps(value: NDArray[np.floating], weight: F64, grid: int) -> F64:
    """Sum over channels: (n, width) and (width, C) -> (n, C, grid, grid). Columns are ordered channel, row, column."""
    n, cells = len(value), grid * grid
    by_cell = value.reshape(n, -1, cells)
    weights = weight.reshape(-1, cells, weight.shape[1])
    return np.einsum("nkg,kgc->ncg", by_cell, weights, optimize=True).reshape(n, weight.shape[1], grid, grid)


def _starts(blocks: Sequence[tuple[str, int]]) -> list[int]:
    return np.cumsum([0, *(width for _, width in blocks)])[:-1].tolist()
