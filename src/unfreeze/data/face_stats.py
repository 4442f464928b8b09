"""Face statistics of a data set: per class the share of images without a face, face size and face position."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.dataset import ImageDataset
from unfreeze.core.errors import sanitize
from unfreeze.core.format import format_percent
from unfreeze.core.messages import Brief
from unfreeze.core.progress import Reporter
from unfreeze.data.decode import MAX_PIXELS
from unfreeze.data.face_boxes import FaceBoxes, detect_faces_cached
from unfreeze.data.face_detectors import find_detector
from unfreeze.data.readers import ReadOptions, photos_of
from unfreeze.data.scan import ImageScan, scan_images

# Number of cells along each side of the heat map.
CELLS = 32
QUARTILES = {"q25": 0.25, "median": 0.5, "q75": 0.75}
_Z = 1.959963984540054  # 97.5th percentile of the standard normal distribution


@dataclass(frozen=True, repr=False)
class FaceStats(Brief):
    """Face statistics of a data set from one detector.

    Attributes:
        photos: One row per image, in the order of the data set, with the columns

            - `path`, `label`, `group`;
            - `searched`: bool, whether the image could be read;
            - `found`: number of faces, 0 if the image was not searched;
            - `left`, `top`, `right`, `bottom`: box of the largest face as fractions of image width and height;
            - `score`: score of the largest face in 0..1;
            - `area`: area of the largest face as a fraction of the image area;
            - `side`: its longer side as a fraction of the short side of the image;
            - `x`, `y`: its center as fractions of width and height.

            The columns of the largest face are NaN for images without a face.
        classes: One row per class, with the columns

            - `label`;
            - `photos`: number of searched images;
            - `without`: number of images without a face;
            - `share`: `without / photos`, with the 95% confidence interval `low` to `high`;
            - `several`: number of images with more than one face;
            - `area_q25`, `area_median`, `area_q75`, `side_q25`, `side_median`, `side_q75`: quartiles;
            - `x_mean`, `x_sd`, `y_mean`, `y_sd`: mean and standard deviation of the center.
        total: The same row over all classes, with an empty label.
        heat: float64 (32, 32), rows from top to bottom and columns from left to right of the image, which is stretched
            to a square. Each cell holds the share of images with a face whose largest face covers the cell. Zeros if no
            image has a face.
        detector: Identity of the detector, including all its settings.
    """

    photos: pd.DataFrame
    classes: pd.DataFrame
    total: dict[str, Any]
    heat: NDArray[np.float64]
    detector: str

    def sentence(self) -> str:
        """Summarize in one line how many images have no face, and the classes with the largest and smallest share."""
        total = self.total
        if not total["photos"]:
            return "No photo could be searched for faces."
        text = (
            f"No face was found in {total['without']:,} of {total['photos']:,} photos "
            f"({format_percent(total['share'], 1)}, 95% interval "
            f"[{format_percent(total['low'], 1)}, {format_percent(total['high'], 1)}])"
        )
        seen = self.classes[self.classes["photos"] > 0].sort_values("share", kind="stable")
        if len(seen) > 1 and total["without"]:
            most, least = seen.iloc[-1], seen.iloc[0]
            text += (
                f": most often in '{sanitize(most['label'])}' ({format_percent(most['share'], 1)}), least in "
                f"'{sanitize(least['label'])}' ({format_percent(least['share'], 1)})"
            )
            text += ", and their intervals do not overlap" if most["low"] > least["high"] else ""
        return text + "."

    def described(self) -> dict[str, Any]:
        """Return everything as JSON-compatible values; NaN becomes None."""
        return {
            "detector": self.detector,
            "sentence": self.sentence(),
            "total": _plain(pd.DataFrame([self.total]))[0],
            "classes": _plain(self.classes),
            "heat": np.round(self.heat, 4).tolist(),
            "photos": _plain(self.photos),
        }


def face_stats(
    photos: ImageDataset | str | Path | pd.DataFrame,
    detector: str = "retinaface",
    max_pixels: int = MAX_PIXELS,
    reporter: Reporter | None = None,
    **given: Unpack[ReadOptions],
) -> FaceStats:
    """Detect faces in every image and summarize them per class.

    Detections are cached by image content. Damaged images are skipped and counted.

    Args:
        photos: Result of `uf.read` or `uf.check`, or a source that `uf.read` accepts.
        detector: A name in `faces.DETECTORS`, or the path of an .onnx file with the outputs of RetinaFace.
        max_pixels: Images with more pixels are not decoded.
        reporter: Receives progress and messages.
        **given: Keyword arguments of `uf.read`; only allowed if `photos` is a source.

    Returns:
        The face statistics.

    Raises:
        DetectorError: The detector is unknown or cannot be loaded.
        MissingExtraError: The package of the detector is not installed.
    """
    photos, _ = photos_of("face_stats", photos, None, given)
    find_detector(detector)
    return faces_of(photos, scan_images(photos, max_pixels, reporter), detector, max_pixels, reporter)


def faces_of(
    photos: ImageDataset,
    looks: ImageScan,
    detector: str = "retinaface",
    max_pixels: int = MAX_PIXELS,
    reporter: Reporter | None = None,
) -> FaceStats:
    """Compute face statistics as `face_stats` does, for a data set that is already scanned.

    Args:
        photos: Data set.
        looks: Scan of `photos`.
        detector: As in `face_stats`.
        max_pixels: As in `face_stats`.
        reporter: Receives progress and messages.
    """
    found = detect_faces_cached(photos.files(), looks.keys, looks.readable, detector, max_pixels, reporter)
    table = _photos(photos, found)
    units = photos.table["unit" if "unit" in photos.table else "group"].to_numpy()
    rows = [_row(table, units, (table["label"] == name).to_numpy(), name) for name in photos.classes]
    total = _row(table, units, np.ones(len(table), bool), "")
    return FaceStats(table, pd.DataFrame(rows), total, heat_map(found.largest), find_detector(detector).identity)


def heat_map(boxes: NDArray[np.float64], cells: int = CELLS) -> NDArray[np.float64]:
    """Share of the boxes that cover each cell of a grid. Partially covered cells count in part.

    Args:
        boxes: float64 (n, 4), left, top, right, bottom in 0..1; rows of NaN are ignored.
        cells: Number of cells along each side.

    Returns:
        float64 (cells, cells), rows from top to bottom; zeros if there is no box.
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


def clustered_proportion_ci(hits: NDArray[np.bool_], units: NDArray[Any]) -> tuple[float, float, float]:
    """Proportion and its 95% confidence interval for clustered observations.

    The interval is the Wilson score interval with n divided by the design effect of the groups (at least 1), since
    several images of one person carry less information than images of different people. If all hits are equal or there
    is only one group, the design effect cannot be estimated, and each group counts as one observation.

    Args:
        hits: bool (n,).
        units: Group of each observation, (n,).

    Returns:
        Proportion, lower bound and upper bound; NaN if n is 0.

    References:
        Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
        Kish, "Survey Sampling", Wiley 1965.
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
        effect = n / groups  # the design effect cannot be estimated
    size = n / effect
    middle = (share + _Z**2 / (2 * size)) / (1 + _Z**2 / size)
    half = _Z / (1 + _Z**2 / size) * np.sqrt(share * (1 - share) / size + _Z**2 / (4 * size**2))
    return share, max(0.0, float(middle - half)), min(1.0, float(middle + half))


def _photos(photos: ImageDataset, found: FaceBoxes) -> pd.DataFrame:
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
    """One row of `FaceStats.classes`; inside: bool (n,), rows of `table` to summarize."""
    inside = inside & table["searched"].to_numpy()
    own = table[inside]
    none = (own["found"] == 0).to_numpy()
    share, low, high = clustered_proportion_ci(none, units[inside])
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
    """Rows as dictionaries with None for NaN."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]
