"""Heat maps of the evidence for the predicted class against the runner-up.

All methods return a `HeatMap`: `occlusion_map` for any function that returns probabilities, `cell_maps` for linear
heads on frozen features, and `explanation.saliency` for fine-tuned networks. These functions work on arrays and read no
files; `explanation.networks.Explainer` applies them to a run.

`PreparedImages`, `head_contributions` and `head_maps` compute the exact maps of linear heads for many images at once,
with features from the feature cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.arrays import F64
from unfreeze.core.dataset import ImageDataset
from unfreeze.core.errors import SourceError
from unfreeze.core.progress import Reporter
from unfreeze.data.decode import Box
from unfreeze.data.face_boxes import crop_of
from unfreeze.data.scan import scan_images
from unfreeze.explanation.linear import Contributions, contributions, spatial_columns
from unfreeze.features.extract import compute_features
from unfreeze.features.matrix import JoinedFeatureMatrix
from unfreeze.inference.predictor import Classifier
from unfreeze.models.feature_extractor import FeatureExtractor

Photo = NDArray[np.uint8]
# uint8 RGB (n, H, W, 3) -> probabilities float64 (n, C); rows sum to 1.
Predict = Callable[[Photo], F64]
Method = Literal["cells", "grad-cam", "rollout", "occlusion"]

# A box is (left, top, right, bottom) as shares of the image's width and height.
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
# Unit of the values: terms of the logit margin, drops of the probability margin, or shares that sum to 1.
UNITS: dict[str, str] = {"cells": "logits", "grad-cam": "logits", "rollout": "share", "occlusion": "probability"}
CELLS, PATCH, BATCH = 8, 0.25, 16
FILLS = ("gray", "blur")
_GRAY = 124  # about the ImageNet mean, so about zero after normalization


@dataclass(frozen=True)
class HeatMap:
    """Heat map of one image.

    Attributes:
        method: 'cells' (exact terms of linear heads), 'grad-cam', 'rollout' (attention rollout: nonnegative and
            independent of the class) or 'occlusion'.
        values: float64 (rows, columns), row 0 at the top. Positive values are evidence for `label`, negative values for
            `runner_up`.
        label: Class index.
        runner_up: Class index.
        box: Part of the image that the map covers.
        margin: Logit of `label` minus logit of `runner_up`, or the difference of their probabilities for occlusion; NaN
            if the method has no margin.
        source: Human-readable name of what the map was computed from.
    """

    method: Method
    values: F64
    label: int
    runner_up: int
    box: Box = WHOLE
    margin: float = float("nan")
    source: str = ""

    @property
    def unit(self) -> str:
        """Unit of the values: 'logits', 'probability' or 'share'."""
        return UNITS[self.method]

    def peak(self) -> tuple[float, float]:
        """Center (x, y) of the cell with the largest value, as shares of the image's width and height."""
        row, column = np.unravel_index(int(self.values.argmax()), self.values.shape)
        left, top, right, bottom = self.box
        rows, columns = self.values.shape
        return left + (right - left) * (column + 0.5) / columns, top + (bottom - top) * (row + 0.5) / rows

    def described(self) -> dict[str, Any]:
        """Return a JSON-serializable dict; a NaN margin becomes null."""
        return {
            "method": self.method,
            "unit": self.unit,
            "values": self.values.tolist(),
            "label": self.label,
            "runner_up": self.runner_up,
            "box": list(self.box),
            "margin": None if np.isnan(self.margin) else self.margin,
            "source": self.source,
        }


def top2(probabilities: NDArray[np.floating]) -> tuple[int, int]:
    """Indices of the two most probable classes of probabilities (C,); ties go to the lower index."""
    order = np.argsort(-probabilities, kind="stable")
    return int(order[0]), int(order[min(1, len(order) - 1)])


def occlusion_map(
    predict: Predict,
    photo: Photo,
    *,
    label: int | None = None,
    runner_up: int | None = None,
    cells: int = CELLS,
    patch: float = PATCH,
    fill: str = "gray",
    box: Box = WHOLE,
    batch: int = BATCH,
    progress: Callable[[int], None] | None = None,
) -> HeatMap:
    """Occlusion sensitivity: the drop of the margin when a patch of the image is covered.

    Works for any function that returns class probabilities: a single network, an ensemble or another program. The
    margin is the probability of `label` minus that of `runner_up`, by default the two most probable classes. A positive
    value means that the prediction relies on the patch; a negative value means that covering it increases the margin.

    A covered image is outside the training distribution, so the map is only a hint. Two regions with the same
    information hide each other: covering one of them changes nothing.

    Args:
        predict: uint8 (n, H, W, 3) -> float64 (n, C). Called with at most `batch` images at once, `cells`^2 + 1 in
            total.
        photo: uint8 (H, W, 3); not modified.
        label: Class index, by default the most probable class.
        runner_up: Class index, by default the most probable class other than `label`.
        cells: Number of patch positions per side.
        patch: Side of the patch as a share of the box, at least 1 / `cells` so that there are no gaps. Larger patches
            overlap. Patches are clipped to the box.
        fill: 'gray' (a constant gray, as in the paper) or 'blur' (the blurred image, which keeps colors and brightness
            but hides shapes).
        box: Part of the image that the model sees; the cells cover it.
        batch: Maximum number of images per call of `predict`.
        progress: Called with the number of images just predicted.

    Raises:
        ValueError: Invalid arguments.

    References:
        Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks (arXiv 1311.2901), section 4.2.
    """
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
        raise ValueError(f"a photo is uint8 (H, W, 3), not {photo.dtype} {photo.shape}")
    left, top, right, bottom = box
    if not (0 <= left < right <= 1 + 1e-9 and 0 <= top < bottom <= 1 + 1e-9):
        raise ValueError(f"box {box}: is left, top, right, bottom as shares of the photo")
    cover = occlusion_fill(photo, fill, patch * (right - left))

    def answer(boxes: Sequence[Box | None]) -> F64:
        return predict(np.stack([occlude(photo, cover, spot, WHOLE) for spot in boxes]))

    return sliding_occlusion_map(
        answer, label=label, runner_up=runner_up, cells=cells, patch=patch, box=box, batch=batch, progress=progress
    )


def sliding_occlusion_map(
    answer: Callable[[Sequence[Box | None]], F64],
    *,
    label: int | None = None,
    runner_up: int | None = None,
    cells: int = CELLS,
    patch: float = PATCH,
    box: Box = WHOLE,
    batch: int = BATCH,
    progress: Callable[[int], None] | None = None,
) -> HeatMap:
    """`occlusion_map` for callers that cover the image themselves.

    Needed if several networks see different crops of the image.

    Args:
        answer: Patches to cover, each a box of the image or None for the uncovered image -> probabilities float64 (n,
            C).
        label: As in `occlusion_map`.
        runner_up: As in `occlusion_map`.
        cells: As in `occlusion_map`.
        patch: As in `occlusion_map`.
        box: As in `occlusion_map`.
        batch: Maximum number of patches per call of `answer`.
        progress: As in `occlusion_map`.

    Raises:
        ValueError: The patches leave gaps or are larger than the box.
    """
    if cells < 1 or not 1 / cells <= patch <= 1:
        raise ValueError(f"a patch of {patch:g} on {cells} cells a side leaves gaps, or is larger than what is seen")
    left, top, right, bottom = box
    wide, high, spots = patch * (right - left) / 2, patch * (bottom - top) / 2, []
    for row, column in np.ndindex(cells, cells):
        x, y = left + (right - left) * (column + 0.5) / cells, top + (bottom - top) * (row + 0.5) / cells
        spots.append((max(x - wide, left), max(y - high, top), min(x + wide, right), min(y + high, bottom)))
    whole = np.asarray(answer([None]), np.float64)[0]
    first, second = _compared(whole, label, runner_up)
    margins = np.empty(len(spots))
    for start in range(0, len(spots), batch):
        some = spots[start : start + batch]
        answers = np.asarray(answer(some), np.float64)
        margins[start : start + len(some)] = answers[:, first] - answers[:, second]
        if progress:
            progress(len(some))
    margin = float(whole[first] - whole[second])
    return HeatMap("occlusion", (margin - margins).reshape(cells, cells), first, second, box, margin)


def occlusion_fill(photo: Photo, fill: str, radius: float) -> Photo:
    """Pixels that replace a covered patch.

    Args:
        photo: uint8 (H, W, 3).
        fill: 'gray' or 'blur'.
        radius: Blur radius as a share of the image width.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: Unknown `fill`.
    """
    if fill not in FILLS:
        raise ValueError(f"fill '{fill}': known are {', '.join(FILLS)}")
    return np.full_like(photo, _GRAY) if fill == "gray" else gaussian_blur(photo, radius * photo.shape[1])


def occlude(square: Photo, cover: Photo, patch: Box | None, shows: Box) -> Photo:
    """Copy of a crop with a patch of the image replaced by pixels from `cover`.

    Args:
        square: uint8 (S, S, 3), a crop of the image.
        cover: uint8 (S, S, 3), replacement pixels for the crop.
        patch: Box of the image to cover; None covers nothing.
        shows: Box of the image that the crop shows.

    Returns:
        uint8 (S, S, 3). Unchanged if the patch lies outside of the crop; otherwise at least one pixel is covered.
    """
    out = square.copy()
    if patch is None:
        return out
    spans = []
    for low, high, first, last, side in (
        (patch[1], patch[3], shows[1], shows[3], square.shape[0]),
        (patch[0], patch[2], shows[0], shows[2], square.shape[1]),
    ):
        if high <= first or low >= last:
            return out
        scale = side / (last - first)
        start = min(max(round((low - first) * scale), 0), side - 1)
        spans.append(slice(start, min(max(round((high - first) * scale), start + 1), side)))
    out[spans[0], spans[1]] = cover[spans[0], spans[1]]
    return out


def _compared(probabilities: F64, label: int | None, runner_up: int | None) -> tuple[int, int]:
    """Resolve the two class indices: by default the most probable class and the most probable other class."""
    first = top2(probabilities)[0] if label is None else label
    if runner_up is None:
        runner_up = next((c for c in np.argsort(-probabilities, kind="stable").tolist() if c != first), first)
    return first, runner_up


def cell_maps(
    found: Contributions,
    row: int,
    label: int,
    runner_up: int,
    boxes: Sequence[Box],
    titles: Sequence[str],
) -> tuple[HeatMap, ...]:
    """Exact contribution of each grid cell to the logit margin of linear heads.

    Blocks that cover the same cells of the image are summed into one map. Features without a position (class tokens,
    pooled stages, the base) are in no map, so the maps need not sum to the margin.

    Args:
        found: From `contributions` or `contributions_of`.
        row: Index of the image in `found`.
        label: Class index.
        runner_up: Class index.
        boxes: Part of the image that each input sees.
        titles: Name of each input.
    """
    total = found.logits()[row]
    summed: dict[tuple[Box, int], F64] = {}
    named: dict[tuple[Box, int], list[str]] = {}
    for block in found.blocks:
        values = block.values[row]
        if not np.any(values):
            continue  # a stage that leaves no map
        place = (boxes[block.input], block.grid)
        summed[place] = summed.get(place, 0) + (values[label] - values[runner_up])
        if titles[block.input] not in named.setdefault(place, []):
            named[place].append(titles[block.input])
    margin = float(total[label] - total[runner_up])
    return tuple(
        HeatMap("cells", values, label, runner_up, place[0], margin, " and ".join(named[place]))
        for place, values in summed.items()
    )


def centre_box(width: int, height: int, crop: float, squash: bool = False) -> Box:
    """Part of the image that the center crop of `center_crop_resize` shows.

    Args:
        width: Image width in pixels.
        height: Image height in pixels.
        crop: Side of the square as a share of the short side; with `squash`, share of both sides.
        squash: Whether the image is resized to a square regardless of its aspect ratio.
    """
    wide, high = (crop, crop) if squash else (crop * min(width, height) / width, crop * min(width, height) / height)
    return (1 - wide) / 2, (1 - high) / 2, (1 + wide) / 2, (1 + high) / 2


def bounding_box(boxes: Sequence[Box]) -> Box:
    """Smallest box that contains all boxes, clipped to the image."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return max(min(lefts), 0.0), max(min(tops), 0.0), min(max(rights), 1.0), min(max(bottoms), 1.0)


def gaussian_blur(photo: Photo, radius: float) -> Photo:
    """Blur an image with a Gaussian of `radius` / 2 pixels, on a downscaled copy for speed.

    Args:
        photo: uint8 (H, W, 3).
        radius: In pixels.

    Returns:
        uint8 (H, W, 3).
    """
    from PIL import Image, ImageFilter

    image = Image.fromarray(photo)
    shrink = max(1, int(radius / 8))
    small = image.reduce(shrink) if shrink > 1 else image
    soft = small.filter(ImageFilter.GaussianBlur(radius / 2 / shrink))
    return np.asarray(soft.resize(image.size, Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class PreparedImages:
    """Readable images and the crops that a run's networks see.

    Attributes:
        files: Paths.
        keys: uint64 (n, 2), content hashes.
        hashes: The content hashes as hex strings.
        sizes: Width and height of each image after EXIF orientation.
        squares: float64 (n, 4), face crops, NaN if no face was found; None if the networks see no face crops.
    """

    files: list[Path]
    keys: NDArray[np.uint64]
    hashes: list[str]
    sizes: list[tuple[int, int]]
    squares: NDArray[np.float64] | None

    @classmethod
    def of(cls, classifier: Classifier, paths: Sequence[str]) -> PreparedImages:
        """Scan images that were readable a moment ago.

        Raises:
            SourceError: An image is no longer readable.
        """
        run = classifier.run
        table = pd.DataFrame({"path": list(paths), "label": run.classes[0], "group": list(paths), "split": "test"})
        photos = ImageDataset(table, Path(), run.classes, tuple(run.info["answers"]), (), "images", "")
        looks = scan_images(photos, int(run.recipe.image.max_megapixels * 1e6))
        if not looks.readable.all():
            raise SourceError(f"{paths[0]}: the photos changed while they were read; run the same command again.")
        squares = classifier.squares(photos.files(), looks.keys, looks.readable, Reporter())
        sizes = list(zip(looks.width.tolist(), looks.height.tolist(), strict=True))
        return cls(photos.files(), looks.keys, looks.hashes(), sizes, squares)

    def features(self, classifier: Classifier, graphs: Sequence[FeatureExtractor]) -> JoinedFeatureMatrix:
        """Features from frozen networks, read from the cache or computed.

        Raises:
            SourceError: An image is no longer readable.
        """
        run = classifier.run
        limit, there, parts = int(run.recipe.image.max_megapixels * 1e6), np.ones(len(self.files), bool), []
        for graph in graphs:
            views, wish = run.recipe.probe.views, run.recipe.engine
            asked = (self.files, self.keys, there, graph, views, wish, limit, Reporter(), self.squares)
            parts.append(compute_features(*asked))
            if parts[-1].failed:
                raise SourceError(f"{self.files[0]}: the photos changed while they were read; run it again.")
        return JoinedFeatureMatrix(tuple(parts))

    def box(self, graph: FeatureExtractor, row: int) -> Box:
        """Part of the image that a network sees, as shares of its width and height."""
        return visible_box(graph, self.sizes[row], crop_of(self.squares, row))


def visible_box(graph: FeatureExtractor, size: tuple[int, int], face: Box | None) -> Box:
    """Part of an image that a network sees.

    Args:
        graph: The network with its preprocessing.
        size: Width and height of the image in pixels.
        face: Face crop, or None if no face was found.
    """
    p = graph.preprocessing
    return face if p.face and face else centre_box(*size, p.crop, p.squash)


def head_contributions(
    classifier: Classifier, features: JoinedFeatureMatrix, centre: Sequence[NDArray[np.float32]] | None
) -> Contributions:
    """Contribution of each cell to each class logit, for all images in `features`.

    Args:
        classifier: A run with linear heads.
        features: Features of the images.
        centre: Reference point, from `mean_features`; None for zero.
    """
    return contributions(
        features,
        np.arange(len(features.parts[0].places[0])),
        classifier.heads,
        [graph.taps.grid for graph in classifier.graphs],
        classifier.run.recipe.probe.views,
        centre,
        [spatial_columns(graph) for graph in classifier.graphs],
    )


def head_maps(
    classifier: Classifier, found: Contributions, row: int, label: int, runner_up: int, boxes: Sequence[Box]
) -> tuple[HeatMap, ...]:
    """Heat maps of one image from the result of `head_contributions`.

    Args:
        classifier: The run that `found` was computed with.
        found: From `head_contributions`.
        row: Index of the image in `found`.
        label: Class index.
        runner_up: Class index.
        boxes: Part of the image that each network of the classifier sees.
    """
    return cell_maps(found, row, label, runner_up, boxes, [graph.title() for graph in classifier.graphs])
