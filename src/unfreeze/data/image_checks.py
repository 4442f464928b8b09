"""Checks of single images and of the way they are stored.

Image checks report very small images, outliers in image statistics such as brightness or sharpness, and grayscale
images among color images. Storage checks report wrong suffixes, EXIF rotation, formats that cannot be decoded here,
images with few gray levels, and inconsistent value ranges of images with more than 8 bits per channel.
"""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.dataset import Finding, ImageDataset
from unfreeze.core.errors import join_names
from unfreeze.core.format import pluralize
from unfreeze.data.check_registry import register
from unfreeze.data.image_formats import FORMATS, refusal, unread_format
from unfreeze.data.scan import MEASURES, ImageScan

SMALL_SIDE = 32
# Robust z-score from which an image is an outlier. Iglewicz & Hoaglin (1993) recommend 3.5 for normal data; image
# statistics have heavier tails, and a list of hundreds of images would not be useful.
OUTLIER = 6.0
_LEAST = 20  # images needed for a meaningful median
# More than this share beyond the threshold on one side are not outliers but another kind of image (PNG among JPEG).
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


def image_stats_table(photos: ImageDataset, looks: ImageScan) -> pd.DataFrame:
    """Build a table of image statistics.

    Args:
        photos: Data set.
        looks: Scan of `photos`.

    Returns:
        One row per image, in the order of the data set, with the columns `path`, `label`, `width`, `height`, the
        statistics in `scan.MEASURES`, `border_spread`, `format`, `mode`, `orientation` and `border`. `size` is the
        square root of width times height in pixels; `border` is the color `#rrggbb`. Numeric statistics are NaN for
        unreadable images.
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
    """Robust z-scores: deviations from the median in units of 1.4826 times the median absolute deviation (MAD).

    If more than half of the values are equal, the MAD is 0, and 1.2533 times the mean absolute deviation is used
    instead.

    Args:
        values: float64 (n,); NaN is ignored.
        logarithmic: Whether to transform the values by log(1 + x) first.

    Returns:
        float64 (n,). NaN stays NaN; zeros if all values are equal or none is finite.

    References:
        Iglewicz and Hoaglin, "How to Detect and Handle Outliers", 1993, section 3.2.
    """
    x = np.log1p(np.maximum(values, 0)) if logarithmic else values
    if not np.isfinite(x).any():
        return np.zeros(len(x))
    off = x - np.nanmedian(x)
    scale = 1.4826 * np.nanmedian(np.abs(off)) or 1.2533 * np.nanmean(np.abs(off))
    return off / scale if scale > 0 else np.where(np.isfinite(x), 0.0, np.nan)


def outliers(table: pd.DataFrame, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the outliers of one image statistic.

    Args:
        table: Result of `image_stats_table`.
        name: Name of the statistic, a key of `scan.MEASURES`.

    Returns:
        Rows with a robust z-score of at most -OUTLIER and of at least OUTLIER, int64 each, the most extreme first. A
        side with more than 5% of the images is empty.
    """
    z = np.nan_to_num(robust_z(table[name].to_numpy(float), MEASURES[name].logarithmic))
    low, high = (
        rows[: len(rows) * (len(rows) <= _MANY * len(z))] for rows in map(np.flatnonzero, (z <= -OUTLIER, z >= OUTLIER))
    )
    return low[np.argsort(z[low], kind="stable")], high[np.argsort(-z[high], kind="stable")]


@register("small-photos")
def _small(photos: ImageDataset, looks: ImageScan) -> list[Finding]:
    short = np.minimum(looks.width, looks.height)
    small = looks.readable & (short < SMALL_SIDE)
    if not small.any():
        return []
    return [
        Finding(
            "small-photos",
            "info",
            f"{int(small.sum()):,} photo(s) have a side under {SMALL_SIDE} pixels: "
            f"{join_names(photos.table.loc[small, 'path'], 3)}",
            "check that their labels are still recognizable",
        )
    ]


@register("outliers")
def _outliers(photos: ImageDataset, looks: ImageScan) -> list[Finding]:
    if looks.readable.sum() < _LEAST:
        return []
    table = image_stats_table(photos, looks)
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
                    f"{middle} in the middle): {join_names(table['path'].iloc[rows], 3)}",
                    "check their labels; none of them is left out",
                )
            )
    return findings


def _told(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2g}"


@register("misnamed")
def _misnamed(photos: ImageDataset, looks: ImageScan) -> list[Finding]:
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
            f"{len(wrong):,} photo(s) are of another format than their name says: {join_names(wrong, 3)}",
            "none needed: the format is detected by content; other programs may reject them",
        )
    ]


@register("rotated")
def _rotated(photos: ImageDataset, looks: ImageScan) -> list[Finding]:
    turned = looks.readable & (looks.measures["orientation"] > 1)
    if not turned.any():
        return []
    return [
        Finding(
            "rotated",
            "info",
            f"{int(turned.sum()):,} photo(s) are turned upright by their EXIF tag: "
            f"{join_names(photos.table.loc[turned, 'path'], 3)}",
            "none needed: it is applied here, in training and prediction; other programs may show them turned",
        )
    ]


@register("grey")
def _grey(photos: ImageDataset, looks: ImageScan) -> list[Finding]:
    grey = looks.readable & ((looks.measures["mode"] == b"grey") | (looks.measures["colourfulness"] < 0.5))
    if not grey.any() or grey[looks.readable].all():
        return []
    return [
        Finding(
            "grey",
            "info",
            f"{int(grey.sum()):,} of {int(looks.readable.sum()):,} photos have no color: "
            f"{join_names(photos.table.loc[grey, 'path'], 3)}",
            "check whether some classes have more of them than others: the model may learn that",
        )
    ]


FEW_LEVELS = 32
"""Images with fewer distinct gray levels (of 256) count as having few levels."""

# Smaller images naturally have few levels.
_LEAST_PIXELS = 1024
# Share of the images that must have few levels; single blank images are not reported.
_NEARLY_ALL = 0.9
# Images with a lower mean luma are nearly black.
_DARK = 32


@register("formats")
def _formats(photos: ImageDataset, looks: ImageScan) -> list[Finding]:
    """Report each format that cannot be decoded here, and the classes that have no other images.

    HEIC files that the decoder rejects are included.
    """
    labels = photos.table["label"].to_numpy()
    forms = np.array([unread_format(problem) for problem in looks.problem], object)
    findings = []
    for form in sorted(set(forms) - {""}):
        rows = np.flatnonzero(forms == form)
        where = "in a format that cannot be decoded here" if refusal(form) else "cannot be decoded"
        message = f"{pluralize(len(rows), 'image')} {where}, {form}: "
        message += join_names(photos.table["path"].iloc[rows], 3)
        whole = sorted(name for name in set(labels[rows]) if (forms[labels == name] == form).all())
        if whole:
            message += f"; all images of {'class' if len(whole) == 1 else 'the classes'} {join_names(map(repr, whole))}"
        remedy = FORMATS[form].remedy if refusal(form) else "convert them to JPEG, or copy them again"
        findings.append(Finding("formats", "warning", message, f"{remedy}; until then they are left out of training"))
    return findings


@register("few-levels")
def _few_levels(photos: ImageDataset, looks: ImageScan) -> list[Finding]:
    """Report nearly constant images, such as 12-bit values that were interpreted as 16-bit values."""
    large = looks.readable & (looks.width.astype(np.int64) * looks.height >= _LEAST_PIXELS)
    few = looks.measures["levels"] < FEW_LEVELS
    deep = _deep(looks)
    findings = []
    kinds = ((large & deep, "of more than 8 bits a channel"), (large & ~deep, "of 8 bits a channel or fewer"))
    for rows, kind in kinds:
        found = rows & few
        if not rows.any() or found.sum() < _NEARLY_ALL * rows.sum():
            continue
        dark = bool((looks.measures["brightness"][found] < _DARK).mean() >= _NEARLY_ALL)
        message = f"{found.sum():,} of {pluralize(int(rows.sum()), 'image')} {kind} show fewer than {FEW_LEVELS}"
        message += " gray levels"
        message += " and are nearly black" if dark else ""
        if deep[rows].any():
            message += f"; values {_said(looks.measures['range'][found][0])} became 0 to 255 in the first"
        message += f": {join_names(photos.table['path'][found], 3)}"
        harmless = not dark and not deep[rows].any()  # drawings and one-bit scans
        fix = (
            "none needed if they are drawings or masks; else scale their values to 0 to 255 and save them as 8-bit PNG"
            if harmless
            else "scale their values to the range that they use and save them as 8-bit PNG, all images alike"
        )
        findings.append(Finding("few-levels", "info" if harmless else "warning", message, fix))
    return findings


@register("value-range")
def _value_range(photos: ImageDataset, looks: ImageScan) -> list[Finding]:
    """Report images that were scaled from different value ranges, so that their brightness is not comparable."""
    rows = np.flatnonzero(looks.readable & _deep(looks))
    ranges = [tuple(pair) for pair in looks.measures["range"][rows].tolist()]
    kinds = Counter(ranges).most_common()
    if len(kinds) < 2:
        return []
    said = join_names([f"{_said(pair)} in {pluralize(count, 'image')}" for pair, count in kinds], 4)
    odd = [photos.table["path"].iloc[row] for row, pair in zip(rows, ranges, strict=True) if pair != kinds[0][0]]
    return [
        Finding(
            "value-range",
            "warning",
            f"images of more than 8 bits a channel are scaled by different ranges, so that their brightness cannot be "
            f"compared: {said}; of another range than most: {join_names(odd, 3)}",
            "convert all of them to 8 bits by one range, or write the range into the files (TIFF MaxSampleValue)",
        )
    ]


def _deep(looks: ImageScan) -> NDArray[np.bool_]:
    shown = looks.measures["range"]
    return np.asarray(shown[:, 1] > shown[:, 0])


def _said(pair: tuple[float, float]) -> str:
    return f"{pair[0]:,.6g} to {pair[1]:,.6g}"
