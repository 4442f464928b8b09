"""HTML page of explained predictions: each image with its heat maps and nearest training images.

Heat maps are drawn over the image as inline SVG: blue is evidence for the predicted class, orange for the runner-up.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from unfreeze.core.errors import PhotoError
from unfreeze.core.files import atomic_write
from unfreeze.core.format import clipped, format_difference, format_probability, pluralize
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.data.decode import decode_sized, read_bytes, to_grayscale
from unfreeze.data.list_images import Images, Listing, collected
from unfreeze.explanation.explain import NEIGHBOURS, Explained, Explanation, explain_images
from unfreeze.explanation.heatmap import HeatMap
from unfreeze.explanation.method_text import WORDS, format_margin, strongest
from unfreeze.inference.ensemble import Ensemble, load
from unfreeze.inference.predictor import Classifier
from unfreeze.reports.html import stylesheet, templates
from unfreeze.reports.thumbnails import thumbnails

SIDE = 360
FOR, AGAINST = (0, 114, 178), (213, 94, 0)  # the stylesheet's --for and --compare-to
_FAINT = 0.05  # cells below this share of the strongest have no label
_MOST = 0.62  # opacity of the strongest cell


def picture(path: str, limit: int, gray: bool, side: int = SIDE) -> tuple[str, tuple[int, int]]:
    """Encode an image as a JPEG data URI.

    Args:
        path: Path of the image.
        limit: Images with more pixels are not decoded.
        gray: Convert to grayscale, as the network saw it.
        side: Longer side of the result in pixels.

    Returns:
        The data URI and its size (width, height); an empty URI if the image can no longer be read.
    """
    from PIL import Image

    try:
        pixels, _ = decode_sized(read_bytes(Path(path)), side, limit, path)
    except PhotoError:
        return "", (side, side)
    image = Image.fromarray(to_grayscale(pixels) if gray else pixels)
    scale = side / max(image.size)
    image = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC
    )
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return _uri(buffer, "jpeg"), image.size


def overlay(source: str, size: tuple[int, int], heat: HeatMap, scale: float, label: str) -> Markup:
    """SVG of an image with a heat map on top.

    'cells' maps are drawn as rectangles with their values; other maps are interpolated.

    Args:
        source: Data URI, from `picture`.
        size: Width and height, from `picture`.
        heat: The heat map.
        scale: Value that is drawn at full opacity.
        label: Name of the predicted class.
    """
    width, height = size
    left, top = heat.box[0] * width, heat.box[1] * height
    wide, high = heat.box[2] * width - left, heat.box[3] * height - top
    whole = f'width="{width}" height="{height}"'
    outside = f"M0 0H{width}V{height}H0Z M{left:.1f} {top:.1f}h{wide:.1f}v{high:.1f}h{-wide:.1f}Z"
    said = escape(_said(heat, label))
    body = [
        f'<svg class="overlay" viewBox="0 0 {width} {height}" {whole} role="img" aria-label="{said}">',
        f'<image href="{source}" {whole}/>' if source else "",
        f'<path class="unread" fill-rule="evenodd" d="{outside}"/>',
    ]
    if heat.method == "cells":
        body += _cells(heat.values, scale, (left, top, wide, high))
    else:
        at = f'x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{high:.1f}"'
        body.append(f'<image {at} preserveAspectRatio="none" href="{_soft(heat, scale)}"/>')
    return Markup("".join(body) + "</svg>")


def _said(heat: HeatMap, label: str) -> str:
    rows, columns = heat.values.shape
    said = f"Photo with a map of {rows} by {columns} cells, {WORDS[heat.method].name}"
    return said + (
        f"; the sum is {format_difference(float(heat.values.sum()), 1)} for {label}"
        if heat.method == "cells"
        else f", for {label}"
    )


def _cells(cells: NDArray[np.float64], scale: float, box: tuple[float, float, float, float]) -> list[str]:
    left, top, wide, high = box
    across, down, body = wide / cells.shape[1], high / len(cells), []
    for (row, column), value in np.ndenumerate(cells):
        share = min(abs(value) / max(scale, 1e-12), 1.0)
        x, y = left + column * across, top + row * down
        tone, area = "for" if value >= 0 else "against", f'width="{across:.1f}" height="{down:.1f}"'
        body.append(f'<rect class="{tone}" x="{x:.1f}" y="{y:.1f}" {area} fill-opacity="{_MOST * share:.2f}"/>')
        if share >= _FAINT and across >= 32:
            body.append(
                f'<text x="{x + across / 2:.1f}" y="{y + down / 2 + 5:.1f}">{format_difference(value, 1)}</text>'
            )
    return body


def _soft(heat: HeatMap, scale: float) -> str:
    """The interpolated map as a PNG data URI with an alpha channel."""
    from PIL import Image

    values = heat.values - heat.values.min() if heat.method == "rollout" else heat.values
    scale = float(values.max()) if heat.method == "rollout" else scale
    shares = Image.fromarray((values / max(scale, 1e-12)).clip(-1, 1).astype(np.float32))
    rows, columns = values.shape
    grown = np.asarray(shares.resize((max(48, 2 * columns), max(48, 2 * rows)), Image.Resampling.BICUBIC))
    pixels = np.empty((*grown.shape, 4), np.uint8)
    pixels[..., :3] = np.where(grown[..., None] >= 0, FOR, AGAINST)
    pixels[..., 3] = np.round(255 * (_MOST + 0.1) * np.abs(grown).clip(0, 1))
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, "PNG", optimize=True)
    return _uri(buffer, "png")


def _uri(buffer: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def explain(
    run: str | Path | Run | Sequence[str | Path | Run] | Classifier | Ensemble,
    images: Images | Listing,
    out: str | Path | None = None,
    *,
    method: str = "auto",
    neighbours: int = NEIGHBOURS,
    reporter: Reporter | None = None,
) -> Explanation:
    """Explain the predictions of a run; with `out`, also write an HTML page.

    Args:
        run: As in `explain_images`.
        images: As in `explain_images`.
        out: Target path of the page.
        method: As in `explain_images`.
        neighbours: As in `explain_images`.
        reporter: Receives progress.

    Returns:
        The explanations, as `explain_images`.

    Raises:
        SourceError: As `explain_images`.
        RunError: As `explain_images`.
        StorageError: The page cannot be written.
    """
    source = run if isinstance(run, Classifier | Ensemble) else load(run)
    with collected(images) as listing:
        found = explain_images(source, listing, method=method, neighbours=neighbours, reporter=reporter)
        if out is not None:
            write_page(found, Path(out))
    return found


def write_page(found: Explanation, out: Path) -> Path:
    """Write the page atomically and return its path."""
    page = render(found).encode("utf-8", "replace")
    return atomic_write(out, lambda temporary: temporary.write_bytes(page))


def render(found: Explanation) -> str:
    """Render the page's HTML."""
    environment = templates()
    near = [(n.path, photo) for photo in found.photos for n in photo.neighbours]
    good = [photo for photo in found.photos if not photo.error]
    names = _short_names([photo.path for photo in found.photos])
    return environment.get_template("explain.html").render(
        found=found,
        run=" + ".join(run.path.resolve().name for run in found.runs),
        by=_by(found),
        words=[WORDS[method] for method in found.methods],
        views=list(found.run.recipe.probe.views),
        counted=f"{pluralize(len(good), 'photo')} explained"
        + (f", {len(found.photos) - len(good)} unreadable" * (len(good) < len(found.photos))),
        photos=[{"name": names[p.path], **_photo(p, found)} for p in good],
        bad=[{"name": names[p.path], "error": p.error} for p in found.photos if p.error],
        thumbs=thumbnails(Path(found.lead.info["root"]), [path for path, _ in near]),
        css=stylesheet(),
    )


def _by(found: Explanation) -> str:
    if len(found.runs) > 1:
        return f"by {len(found.runs)} runs that answer together"
    return f"by the mean of {found.run.recipe.folds.n_splits} folds"


def _photo(photo: Explained, found: Explanation) -> dict[str, Any]:
    assert photo.probabilities is not None
    probable, second = photo.probabilities[photo.label], photo.probabilities[photo.runner_up]
    source, size = picture(photo.path, int(found.run.recipe.image.max_megapixels * 1e6), found.gray)
    where = strongest(photo.heat)
    return {
        "photo": photo,
        "finding": f"“{photo.label}”, {format_probability(probable)}, "
        f"rather than “{photo.runner_up}”, {format_probability(second)}" + (f"; {where}." if where else "."),
        "figures": [
            {
                "svg": overlay(source, size, heat, scale(photo, heat.method), photo.label),
                "name": WORDS[heat.method].name,
                "title": heat.source,
                "total": format_difference(float(heat.values.sum()), 1) if heat.method == "cells" else "",
                "apart": format_margin(heat),
            }
            for heat in photo.heat
        ],
        "classless": all(heat.method == "rollout" for heat in photo.heat),
        "bars": _bars(photo, found) if photo.maps else [],
        "placeless": format_difference(sum(photo.placeless(block) for block in photo.maps), 1),
        "others": [(n, p) for n, p in sorted(photo.probabilities.items(), key=lambda x: -x[1])[:5]],
    }


def scale(photo: Explained, method: str) -> float:
    """Largest absolute value of an image's maps of one method; these maps share one scale."""
    return float(max((np.abs(heat.values).max() for heat in photo.heat if heat.method == method), default=0.0))


def _bars(photo: Explained, found: Explanation) -> list[dict[str, Any]]:
    """Bars of base, inputs (if several), blocks and sum about zero; `x` and `width` in percent."""
    rows = [("start", f"start: {found.reference}", photo.start())]
    for i, about in enumerate(found.inputs):
        own = [(b["block"], float(photo.contrast(b).sum()) + photo.placeless(b)) for b in photo.maps if b["input"] == i]
        if len(found.inputs) > 1:
            rows.append(("input", about["title"], sum(value for _, value in own)))
        rows += [("block", name, value) for name, value in own]
    rows.append(("sum", "sum", photo.margin()))
    low = min(0.0, *(value for _, _, value in rows))
    whole = max(max(0.0, *(value for _, _, value in rows)) - low, 1e-9)
    return [
        {
            "kind": kind,
            "name": name,
            "text": format_difference(value, 2),
            "tone": "for" if value >= 0 else "against",
            "zero": f"{100 * -low / whole:.2f}",
            "x": f"{100 * (min(value, 0.0) - low) / whole:.2f}",
            "width": f"{100 * abs(value) / whole:.2f}",
        }
        for kind, name, value in rows
    ]


def _short_names(paths: list[str]) -> dict[str, str]:
    """File names, with the parent folder if a name is not unique."""
    names = [Path(path).name for path in paths]
    return {
        path: clipped(name if names.count(name) == 1 else f"{Path(path).parent.name}/{name}", 48)
        for path, name in zip(paths, names, strict=True)
    }
