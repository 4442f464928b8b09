"""Checks for single photos: tiny, unlike all others by a measure, stored under a wrong name or turned by a tag."""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.errors import listed
from unfreeze.core.tables import Finding, Photos
from unfreeze.data.looks import Looks
from unfreeze.data.measures import MEASURES
from unfreeze.data.registry import register

SMALL_SIDE = 32
# Robust deviations from the median from which a photo is unlike the others. Iglewicz & Hoaglin (1993) take 3.5 for
# normal data; measures of photos have heavier tails, and a list of hundreds helps nobody.
OUTLIER = 6.0
_LEAST = 20  # photos, below which a median says little
# More than this share far off on one side are no outliers but another kind of photo (PNG among JPEG).
_MANY = 0.05
_ENDINGS = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"},
    "PNG": {".png", ".apng"},
    "BMP": {".bmp", ".dib"},
    "DIB": {".bmp", ".dib"},
    "GIF": {".gif"},
    "TIFF": {".tif", ".tiff"},
    "WEBP": {".webp"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm", ".pfm"},
    "TGA": {".tga", ".icb", ".vda", ".vst"},
    "AVIF": {".avif", ".avifs"},
}


def measures_table(photos: Photos, looks: Looks) -> pd.DataFrame:
    """One row a photo, in the table's order: path, label, MEASURES, format, mode, orientation, border; NaN unread.

    size is the root of width times height in pixels; border is a text `#rrggbb`.
    """
    seen = looks.measures
    table = photos.table[["path", "label"]].copy()
    wide, high = looks.width.astype(float), looks.height.astype(float)
    table["width"], table["height"] = wide, high
    table["size"] = np.sqrt(wide * high)
    table["aspect"] = wide / np.maximum(high, 1)
    for name in ("brightness", "contrast", "sharpness", "colourfulness", "border_spread"):
        table[name] = seen[name].astype(float)
    table["bytes"] = seen["bytes"].astype(float)
    numbers = table.columns[2:]
    table.loc[~looks.readable, numbers] = np.nan
    table["format"] = [bytes(f).decode() for f in seen["format"]]
    table["mode"] = [bytes(m).decode() for m in seen["mode"]]
    table["orientation"] = seen["orientation"].astype(int)
    table["border"] = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in seen["border"].tolist()]
    return table


def robust_z(values: NDArray[np.float64], logarithmic: bool = False) -> NDArray[np.float64]:
    """Deviations from the median in units of 1.4826 MAD, float64 (n,); NaN stays NaN.

    Where more than half of the values are equal the MAD is 0, and 1.2533 times the mean absolute deviation stands in
    for it (Iglewicz & Hoaglin 1993, 3.2). Zeros if all are equal.
    """
    x = np.log1p(np.maximum(values, 0)) if logarithmic else values
    if not np.isfinite(x).any():
        return np.zeros(len(x))
    off = x - np.nanmedian(x)
    scale = 1.4826 * np.nanmedian(np.abs(off)) or 1.2533 * np.nanmean(np.abs(off))
    return off / scale if scale > 0 else np.where(np.isfinite(x), 0.0, np.nan)


def outliers(table: pd.DataFrame, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of a `measures_table` that lie OUTLIER or more below and above the median, the farthest first.

    None on a side where they are more than 5 % of the photos.
    """
    z = np.nan_to_num(robust_z(table[name].to_numpy(float), MEASURES[name].logarithmic))
    low, high = (
        rows[: len(rows) * (len(rows) <= _MANY * len(z))] for rows in map(np.flatnonzero, (z <= -OUTLIER, z >= OUTLIER))
    )
    return low[np.argsort(z[low], kind="stable")], high[np.argsort(-z[high], kind="stable")]


@register("small-photos")
def _small(photos: Photos, looks: Looks) -> list[Finding]:
    short = np.minimum(looks.width, looks.height)
    small = looks.readable & (short < SMALL_SIDE)
    if not small.any():
        return []
    return [
        Finding(
            "small-photos",
            "info",
            f"{int(small.sum()):,} photo(s) have a side under {SMALL_SIDE} pixels: "
            f"{listed(photos.table.loc[small, 'path'], 3)}",
            "look whether they still show what their label says",
        )
    ]


@register("outliers")
def _outliers(photos: Photos, looks: Looks) -> list[Finding]:
    if looks.readable.sum() < _LEAST:
        return []
    table = measures_table(photos, looks)
    findings = []
    for name, measure in MEASURES.items():
        for rows, word in zip(outliers(table, name), (measure.low, measure.high), strict=True):
            if not len(rows):
                continue
            farthest, middle = _told(table[name].iloc[rows[0]]), _told(float(np.nanmedian(table[name])))
            findings.append(
                Finding(
                    f"outliers-{name}",
                    "info",
                    f"{len(rows):,} photo(s) are unusually {word} ({measure.title.lower()} {farthest} against "
                    f"{middle} in the middle): {listed(table['path'].iloc[rows], 3)}",
                    "look whether they show what their label says; nothing is left out for it",
                )
            )
    return findings


def _told(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2g}"


@register("misnamed")
def _misnamed(photos: Photos, looks: Looks) -> list[Finding]:
    wrong = []
    for path, kind in zip(photos.table["path"], looks.measures["format"], strict=True):
        ending, content = PurePosixPath(str(path)).suffix.lower(), bytes(kind).decode()
        if content in _ENDINGS and ending and ending not in _ENDINGS[content]:
            wrong.append(f"{path} is {content}")
    if not wrong:
        return []
    return [
        Finding(
            "misnamed",
            "info",
            f"{len(wrong):,} photo(s) are of another format than their name says: {listed(wrong, 3)}",
            "none needed: the content counts here; other programs may refuse them",
        )
    ]


@register("rotated")
def _rotated(photos: Photos, looks: Looks) -> list[Finding]:
    turned = looks.readable & (looks.measures["orientation"] > 1)
    if not turned.any():
        return []
    return [
        Finding(
            "rotated",
            "info",
            f"{int(turned.sum()):,} photo(s) are turned upright by their EXIF tag: "
            f"{listed(photos.table.loc[turned, 'path'], 3)}",
            "none needed: it is applied here, in training and prediction; other programs may show them turned",
        )
    ]


@register("grey")
def _grey(photos: Photos, looks: Looks) -> list[Finding]:
    grey = looks.readable & ((looks.measures["mode"] == b"grey") | (looks.measures["colourfulness"] < 0.5))
    if not grey.any() or grey[looks.readable].all():
        return []
    return [
        Finding(
            "grey",
            "info",
            f"{int(grey.sum()):,} of {int(looks.readable.sum()):,} photos have no colour: "
            f"{listed(photos.table.loc[grey, 'path'], 3)}",
            "look whether some classes have more of them than others: the model may learn that",
        )
    ]
