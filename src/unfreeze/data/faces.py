"""Faces in a set of photos: in how many of each class none is found, how large they are and where they sit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.errors import printable
from unfreeze.core.progress import Reporter
from unfreeze.core.tables import Photos
from unfreeze.data.detectors import find_detector
from unfreeze.data.face_boxes import FaceBoxes, cached_boxes
from unfreeze.data.images import MAX_PIXELS
from unfreeze.data.looks import Looks, look

# Cells of the heat map, along each side.
CELLS = 32
QUARTILES = {"q25": 0.25, "median": 0.5, "q75": 0.75}
_Z = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True)
class Faces:
    """Where the faces of a set of photos are, as one detector finds them.

    photos: one row a photo, in the order of the set: path, label, group; searched (bool: it could be read); found
        (number of faces, 0 where it was not searched); of the largest face left, top, right, bottom as shares of the
        photo's width and height, its score in 0..1, `area` as share of the photo's area, `side` (its longer side) as
        share of the photo's short side, and its centre `x`, `y` as shares of width and height; NaN without a face.
    classes: one row a class: label, photos (searched), without (no face found), share (without / photos) with its 95 %
        interval low and high, several (photos with more than one face), quartiles area_q25, area_median, area_q75,
        side_q25, side_median, side_q75, and mean and standard deviation of the centre: x_mean, x_sd, y_mean, y_sd.
    total: the same row over all classes; label is empty.
    heat: float64 (32, 32), rows from top to bottom, columns from left to right of the photo, which is stretched to a
        square: the share of the photos with a face whose largest face covers that cell. Zeros where none has one.
    detector: what found them, with all its settings.
    """

    photos: pd.DataFrame
    classes: pd.DataFrame
    total: dict[str, Any]
    heat: NDArray[np.float64]
    detector: str

    def sentence(self) -> str:
        """The finding in one line: in how many photos no face was found, and in which classes most and least often."""
        total = self.total
        if not total["photos"]:
            return "No photo could be searched for faces."
        text = (
            f"No face was found in {total['without']:,} of {total['photos']:,} photos "
            f"({_percent(total['share'])}, 95 % interval {_percent(total['low'])} to {_percent(total['high'])})"
        )
        seen = self.classes[self.classes["photos"] > 0].sort_values("share", kind="stable")
        if len(seen) > 1 and total["without"]:
            most, least = seen.iloc[-1], seen.iloc[0]
            text += (
                f": most often in '{printable(most['label'])}' ({_percent(most['share'])}), least in "
                f"'{printable(least['label'])}' ({_percent(least['share'])})"
            )
            text += ", and their intervals do not overlap" if most["low"] > least["high"] else ""
        return text + "."

    def described(self) -> dict[str, Any]:
        """All of it as JSON; what is not known is null."""
        return {
            "detector": self.detector,
            "sentence": self.sentence(),
            "total": _plain(pd.DataFrame([self.total]))[0],
            "classes": _plain(self.classes),
            "heat": np.round(self.heat, 4).tolist(),
            "photos": _plain(self.photos),
        }


def faces(
    photos: Photos, detector: str = "retinaface", max_pixels: int = MAX_PIXELS, reporter: Reporter | None = None
) -> Faces:
    """Looks for faces in every photo; what was found in a content once is kept in the cache.

    photos: from `uf.read` or `uf.check`. detector: a name of DETECTORS or an .onnx file with RetinaFace's outputs.
    Damaged photos are passed over and counted. Raises DetectorError for an unknown detector, and MissingExtraError
    where its package is not installed.
    """
    find_detector(detector)
    return faces_of(photos, look(photos, max_pixels, reporter), detector, max_pixels, reporter)


def faces_of(
    photos: Photos,
    looks: Looks,
    detector: str = "retinaface",
    max_pixels: int = MAX_PIXELS,
    reporter: Reporter | None = None,
) -> Faces:
    """As `faces`, for photos that had their first look already."""
    found = cached_boxes(photos.files(), looks.keys, looks.readable, detector, max_pixels, reporter)
    table = _photos(photos, found)
    units = photos.table["unit" if "unit" in photos.table else "group"].to_numpy()
    rows = [_row(table, units, (table["label"] == name).to_numpy(), name) for name in photos.classes]
    total = _row(table, units, np.ones(len(table), bool), "")
    return Faces(table, pd.DataFrame(rows), total, heat_map(found.largest), find_detector(detector).identity)


def heat_map(boxes: NDArray[np.float64], cells: int = CELLS) -> NDArray[np.float64]:
    """float64 (cells, cells): the share of the boxes that covers each cell, cells at an edge in part.

    boxes: float64 (n, 4), left, top, right, bottom in 0..1; rows of NaN are left out.
    """
    boxes = boxes[~np.isnan(boxes[:, 0])]
    if not len(boxes):
        return np.zeros((cells, cells))
    edges = np.arange(cells)
    columns, rows = (
        np.clip(np.minimum(high[:, None] * cells, edges + 1) - np.maximum(low[:, None] * cells, edges), 0, 1)
        for low, high in ((boxes[:, 0], boxes[:, 2]), (boxes[:, 1], boxes[:, 3]))
    )
    return rows.T @ columns / len(boxes)


def share_interval(hits: NDArray[np.bool_], units: NDArray[Any]) -> tuple[float, float, float]:
    """A share and its 95 % interval when photos come in groups.

    hits: bool (n,). units: (n,), the group of each. The interval is Wilson's (1927) with n divided by the design effect
    of the groups (Kish 1965; never below 1): seven photos of one person tell less than photos of seven people.
    NaN where there is no photo.
    """
    n = len(hits)
    if not n:
        return np.nan, np.nan, np.nan
    share = float(hits.mean())
    _, member = np.unique(units.astype(str), return_inverse=True)
    groups = int(member.max()) + 1
    effect = 1.0
    if 0 < share < 1 and 1 < groups < n:
        residuals = np.bincount(member, weights=hits - share)
        effect = max(1.0, groups / (groups - 1) * float(residuals @ residuals) / (n * share * (1 - share)))
    elif groups < n:
        effect = n / groups  # all alike: nothing shows how alike a group's photos are, so each group counts once
    size = n / effect
    middle = (share + _Z**2 / (2 * size)) / (1 + _Z**2 / size)
    half = _Z / (1 + _Z**2 / size) * np.sqrt(share * (1 - share) / size + _Z**2 / (4 * size**2))
    return share, max(0.0, float(middle - half)), min(1.0, float(middle + half))


def _photos(photos: Photos, found: FaceBoxes) -> pd.DataFrame:
    left, top, right, bottom = found.largest.T
    wide, high = right - left, bottom - top
    with np.errstate(divide="ignore", invalid="ignore"):
        short = np.minimum(found.width, found.height)
        side = np.maximum(wide * found.width, high * found.height) / short
    columns = {
        "searched": found.searched,
        "found": found.count,
        "left": left,
        "top": top,
        "right": right,
        "bottom": bottom,
        "score": found.scores[:, 0],
        "area": wide * high,
        "side": side,
        "x": (left + right) / 2,
        "y": (top + bottom) / 2,
    }
    return photos.table[["path", "label", "group"]].reset_index(drop=True).assign(**columns)


def _row(table: pd.DataFrame, units: NDArray[Any], inside: NDArray[np.bool_], label: str) -> dict[str, Any]:
    """One row of `Faces.classes`."""
    inside = inside & table["searched"].to_numpy()
    own = table[inside]
    none = (own["found"] == 0).to_numpy()
    share, low, high = share_interval(none, units[inside])
    with_face = own[~none]
    row: dict[str, Any] = {
        "label": label,
        "photos": len(own),
        "without": int(none.sum()),
        "share": share,
        "low": low,
        "high": high,
        "several": int((own["found"] > 1).sum()),
    }
    for what in ("area", "side"):
        row |= {f"{what}_{name}": float(with_face[what].quantile(q)) for name, q in QUARTILES.items()}
    for what in ("x", "y"):
        row |= {f"{what}_mean": float(with_face[what].mean()), f"{what}_sd": float(with_face[what].std(ddof=0))}
    return row


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON knows them: NaN is null."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
