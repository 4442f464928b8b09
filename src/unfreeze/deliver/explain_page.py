"""Explained photos as one HTML page: each photo with its map, the blocks' parts, and the photos most like it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from unfreeze.core.errors import PhotoError
from unfreeze.core.files import write_whole
from unfreeze.data.images import Box, decode_sized, grayed, read_bytes
from unfreeze.deliver.explain import Explained, Explanation
from unfreeze.deliver.pages import stylesheet, templates
from unfreeze.deliver.plots import clipped, number
from unfreeze.deliver.thumbnails import thumbnails

SIDE = 360
# What of a photo a map lies on: a crop (negative: of both sides, where photos are pressed into the square), or a box.
Place = float | Box
# Title, place and cells of a map.
Frame = tuple[str, Place, NDArray[np.float64]]
_FAINT = 0.05  # cells under this share of the strongest carry no number


def write_page(found: Explanation, out: Path) -> Path:
    """Writes the page whole."""
    page = render(found).encode("utf-8", "replace")
    return write_whole(out, lambda temporary: temporary.write_bytes(page))


def render(found: Explanation) -> str:
    """The page's HTML."""
    environment = templates()
    root = Path(found.run.info["root"])
    near = [n.path for photo in found.photos for n in photo.neighbours]
    good = [photo for photo in found.photos if not photo.error]
    names = _short_names([photo.path for photo in found.photos])
    return environment.get_template("explain.html").render(
        found=found,
        run=found.run.path.resolve().name,
        views=list(found.run.recipe.probe.views),
        counted=f"{number(len(good), 'photo')} explained"
        + (f", {len(found.photos) - len(good)} unreadable" * (len(good) < len(found.photos))),
        photos=[{"name": names[p.path], **_photo(p, found)} for p in good],
        bad=[{"name": names[p.path], "error": p.error} for p in found.photos if p.error],
        thumbs=thumbnails(root, near),
        css=stylesheet(),
    )


def _photo(photo: Explained, found: Explanation) -> dict[str, Any]:
    assert photo.probabilities is not None
    frames = _frames(photo, found)
    probable, second = photo.probabilities[photo.label], photo.probabilities[photo.runner_up]
    gray = any(about.get("gray") for about in found.inputs)
    picture, size = _picture(photo.path, int(found.run.recipe.image.max_megapixels * 1e6), gray)
    strongest = float(max((np.abs(cells).max() for _, _, cells in frames), default=0.0))
    return {
        "photo": photo,
        "finding": f"“{photo.label}”, {_percent(probable)}, rather than “{photo.runner_up}”, {_percent(second)}"
        + _where(frames),
        "margin": photo.margin(),
        "start": photo.start(),
        "figures": [
            {"title": title, "total": float(cells.sum()), "svg": _overlay(picture, size, at, cells, strongest, photo)}
            for title, at, cells in frames
        ],
        "bars": _bars(photo, found),
        "placeless": _signed(sum(photo.placeless(block) for block in photo.maps)),
        "others": [(n, p) for n, p in sorted(photo.probabilities.items(), key=lambda x: -x[1])[:5]],
    }


def _frames(photo: Explained, found: Explanation) -> list[Frame]:
    """Title, place and cells of each map: blocks that lie on the same cells of the photo are summed."""
    summed: dict[tuple[Place, int], NDArray[np.float64]] = {}
    titles: dict[tuple[Place, int], list[str]] = {}
    for block in photo.maps:
        about = found.inputs[block["input"]]
        if not any(np.any(cells) for cells in block["classes"].values()):
            continue  # a stage that leaves no map
        crop: Place = float(about["crop"]) * (-1 if about["squash"] else 1)
        place = (photo.square if about["face"] and photo.square else crop, int(block["grid"]))
        summed[place] = summed.get(place, 0) + photo.contrast(block)
        if about["title"] not in titles.setdefault(place, []):
            titles[place].append(about["title"])
    return [(" and ".join(titles[place]), place[0], cells) for place, cells in summed.items()]


def _where(frames: list[Frame]) -> str:
    """Where the strongest cell for the class lies, in words; empty if none speaks for it or there is one cell."""
    if not frames:
        return "."
    cells = max((cells for _, _, cells in frames), key=lambda c: c.max())
    if cells.max() <= 0 or len(cells) == 1:
        return "."
    row, column = np.unravel_index(int(cells.argmax()), cells.shape)
    thirds = [min(int(3 * (i + 0.5) / len(cells)), 2) for i in (row, column)]
    name = f"{('upper', 'middle', 'lower')[thirds[0]]} {('left', 'centre', 'right')[thirds[1]]}"
    return f"; the strongest sign is at the {'centre' if name == 'middle centre' else name}."


def _picture(path: str, limit: int, gray: bool) -> tuple[str, tuple[int, int]]:
    """A data URI of the photo, at most SIDE pixels a side, and its size; empty where it is gone meanwhile.

    gray: without its colours, as the network saw it.
    """
    from PIL import Image

    try:
        pixels, _ = decode_sized(read_bytes(Path(path)), SIDE, limit, path)
    except PhotoError:
        return "", (SIDE, SIDE)
    image = Image.fromarray(grayed(pixels) if gray else pixels)
    scale = SIDE / max(image.size)
    image = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC
    )
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), image.size


def _overlay(
    picture: str, size: tuple[int, int], place: Place, cells: NDArray[np.float64], strongest: float, photo: Explained
) -> Markup:
    """The photo under its cells: blue speaks for the predicted class, orange for the runner-up."""
    width, height = size
    if isinstance(place, tuple):
        left, top = place[0] * width, place[1] * height
        wide, high = place[2] * width - left, place[3] * height - top
    else:
        wide, high = (-width * place, -height * place) if place < 0 else (min(width, height) * place,) * 2
        left, top = (width - wide) / 2, (height - high) / 2
    across, down = wide / len(cells), high / len(cells)
    said = f"Photo with a map of {len(cells)} by {len(cells)} cells; the sum is {cells.sum():+.1f} for {photo.label}"
    whole = f'width="{width}" height="{height}"'
    outside = f"M0 0H{width}V{height}H0Z M{left:.1f} {top:.1f}h{wide:.1f}v{high:.1f}h{-wide:.1f}Z"
    body = [
        f'<svg class="overlay" viewBox="0 0 {width} {height}" {whole} role="img" aria-label="{escape(said)}">',
        f'<image href="{picture}" {whole}/>' if picture else "",
        f'<path class="unread" fill-rule="evenodd" d="{outside}"/>',
    ]
    for (row, column), value in np.ndenumerate(cells):
        share = abs(value) / max(strongest, 1e-12)
        x, y = left + column * across, top + row * down
        tone, box = "for" if value >= 0 else "against", f'width="{across:.1f}" height="{down:.1f}"'
        body.append(f'<rect class="{tone}" x="{x:.1f}" y="{y:.1f}" {box} fill-opacity="{0.62 * share:.2f}"/>')
        if share >= _FAINT:
            body.append(f'<text x="{x + across / 2:.1f}" y="{y + down / 2 + 5:.1f}">{_signed(value)}</text>')
    return Markup("".join(body) + "</svg>")


def _bars(photo: Explained, found: Explanation) -> list[dict[str, Any]]:
    """Start, each input (of several) with its blocks, and the sum, as bars about zero: `x` and `width` in per cent."""
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
            "text": _signed(value, 2),
            "tone": "for" if value >= 0 else "against",
            "zero": f"{100 * -low / whole:.2f}",
            "x": f"{100 * (min(value, 0.0) - low) / whole:.2f}",
            "width": f"{100 * abs(value) / whole:.2f}",
        }
        for kind, name, value in rows
    ]


def _short_names(paths: list[str]) -> dict[str, str]:
    """File names, with their folder where two are the same."""
    names = [Path(path).name for path in paths]
    return {
        path: clipped(name if names.count(name) == 1 else f"{Path(path).parent.name}/{name}", 48)
        for path, name in zip(paths, names, strict=True)
    }


def _signed(value: float, digits: int = 1) -> str:
    """`+1.2`, `−0.4`, with the true minus sign."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else text.lstrip("+-")


def _percent(value: float) -> str:
    """`93 %`; what is not quite all or nothing is said so."""
    return "over 99 %" if 0.995 <= value < 1 else "under 1 %" if 0 < value < 0.005 else f"{100 * value:.0f} %"
