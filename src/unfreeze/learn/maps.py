"""Heat maps of one photo, in memory: where it was looked at for the predicted class rather than for the runner-up.

Arrays in, maps out: no files, no cache, no torch. Three ways to a map meet here in one shape, `HeatMap`:
`occlusion_map` for anything that answers with probabilities, `cell_maps` for linear heads on frozen features, and
`learn.train.saliency` for networks that were trained. `learn.maps_networks` turns a run into what these functions ask
for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unfreeze.learn.probe.contributions import Contributions

Photo = NDArray[np.uint8]
F64 = NDArray[np.float64]
# uint8 RGB (n, H, W, 3), n photos of one size -> probabilities float64 (n, C), rows sum to 1.
Predict = Callable[[Photo], F64]
# Left, top, right, bottom as shares of the photo's width and height.
Box = tuple[float, float, float, float]
Method = Literal["cells", "grad-cam", "rollout", "occlusion"]

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
# What of a map's numbers is told: logits add up, probabilities fall, shares sum to 1.
UNITS: dict[str, str] = {"cells": "logits", "grad-cam": "logits", "rollout": "share", "occlusion": "probability"}
CELLS, PATCH, BATCH = 8, 0.25, 16
FILLS = ("gray", "blur")
_GRAY = 124  # the mean of photos that networks are pretrained on: about zero once normalised


@dataclass(frozen=True)
class HeatMap:
    """One map. values: float64 (rows, columns), row 0 on top; above 0 speaks for `label`, below for `runner_up`.

    method: 'cells' (exact terms of linear heads), 'grad-cam', 'rollout' (of attention: never negative, and blind to the
    class) or 'occlusion'. label, runner_up: numbers of the classes. box: what of the photo the map lies on.
    margin: what of the photo the map is about: logit of `label` less that of `runner_up`, or for occlusion the
    difference of their probabilities; NaN where the method has none. source: what was looked into, as a person
    calls it.
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
        """What a number is: 'logits', 'probability' or 'share'."""
        return UNITS[self.method]

    def peak(self) -> tuple[float, float]:
        """Where the strongest cell for the class lies: x and y as shares of the photo's width and height."""
        row, column = np.unravel_index(int(self.values.argmax()), self.values.shape)
        left, top, right, bottom = self.box
        rows, columns = self.values.shape
        return left + (right - left) * (column + 0.5) / columns, top + (bottom - top) * (row + 0.5) / rows

    def described(self) -> dict[str, Any]:
        """The same as JSON; a number that is none is null."""
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


def first_two(probabilities: NDArray[np.floating]) -> tuple[int, int]:
    """The two most probable classes of (C,) probabilities; the first of equals."""
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
    """What covering a patch costs: the margin of the photo as it is, less that with the patch covered, cell by cell.

    Works for anything that answers, whatever is inside: networks of any kind, several runs blended, another program.
    The margin is the probability of `label` less that of `runner_up`, by default the two most probable classes. A value
    above 0 says that the answer leans on what lies there; below 0, that it is surer without it.

    predict: uint8 (n, H, W, 3) -> float64 (n, C); called with at most `batch` photos at once, cells^2 + 1 in all.
    photo: uint8 (H, W, 3), never changed. cells: positions a side. patch: side of the patch as a share of the box, at
    least 1 / cells, so that nothing is passed over; patches overlap where it is larger, and are cut at the box's edge.
    fill: 'gray' (one grey, as in the paper) or 'blur' (the photo blurred beyond the patch: keeps colours and light,
    hides what is drawn). box: the part of the photo that is seen at all, where the cells lie. progress: told how many
    photos were just answered for. Raises ValueError for arguments that make no sense.

    Method: Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks (arXiv 1311.2901), section 4.2.
    A covered photo is no photo that was ever trained on: what the answer does then is a hint of what it leans on, and
    two places that tell the same hide each other, for covering one of them costs nothing.
    """
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
        raise ValueError(f"a photo is uint8 (H, W, 3), not {photo.dtype} {photo.shape}")
    left, top, right, bottom = box
    if not (0 <= left < right <= 1 + 1e-9 and 0 <= top < bottom <= 1 + 1e-9):
        raise ValueError(f"box {box}: is left, top, right, bottom as shares of the photo")
    cover = filling(photo, fill, patch * (right - left))

    def answer(boxes: Sequence[Box | None]) -> F64:
        return predict(np.stack([covered(photo, cover, spot, WHOLE) for spot in boxes]))

    return slid(
        answer, label=label, runner_up=runner_up, cells=cells, patch=patch, box=box, batch=batch, progress=progress
    )


def slid(
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
    """`occlusion_map` for who covers the photo otherwise, as where several networks see different squares of it.

    answer: patches to cover, each a box of the photo or None for the photo as it is -> probabilities float64 (n, C).
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


def filling(photo: Photo, fill: str, radius: float) -> Photo:
    """What patches are covered with: uint8 (H, W, 3), 'gray' or the photo 'blur'red; radius: share of its width."""
    if fill not in FILLS:
        raise ValueError(f"fill '{fill}': known are {', '.join(FILLS)}")
    return np.full_like(photo, _GRAY) if fill == "gray" else blurred(photo, radius * photo.shape[1])


def covered(square: Photo, cover: Photo, patch: Box | None, shows: Box) -> Photo:
    """A copy of `square`, which shows the part `shows` of a photo, with the photo's `patch` taken from `cover`.

    Nothing is covered where the patch lies beyond what the square shows; else at least one pixel is.
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
    """The class asked about, or the most probable; against the one asked for, or the most probable other one."""
    first = first_two(probabilities)[0] if label is None else label
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
    """What each grid cell adds to the logit of `label` less that of `runner_up`, exactly, for linear heads.

    found: of `contributions` or `contributions_of`; row: which of its photos. boxes, titles: what of the photo each
    input sees, and what it is called. Blocks that lie on the same cells of the photo are summed into one map; what has
    no place in the photo (class tokens, pooled stages, the start) is in no map, so that the maps need not sum to
    the margin.
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
    """What `images.square` shows of a photo: its centre square of `crop` times the short side; squashed: of both."""
    wide, high = (crop, crop) if squash else (crop * min(width, height) / width, crop * min(width, height) / height)
    return (1 - wide) / 2, (1 - high) / 2, (1 + wide) / 2, (1 + high) / 2


def around(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds them all."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return max(min(lefts), 0.0), max(min(tops), 0.0), min(max(rights), 1.0), min(max(bottoms), 1.0)


def blurred(photo: Photo, radius: float) -> Photo:
    """The photo, uint8 (H, W, 3), blurred by a Gaussian of `radius` / 2 pixels; by way of a smaller one, for speed."""
    from PIL import Image, ImageFilter

    image = Image.fromarray(photo)
    shrink = max(1, int(radius / 8))
    small = image.reduce(shrink) if shrink > 1 else image
    soft = small.filter(ImageFilter.GaussianBlur(radius / 2 / shrink))
    return np.asarray(soft.resize(image.size, Image.Resampling.BILINEAR))
