"""Explained photos as one HTML page: each photo with its map, the blocks' parts, and the photos most like it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from unfreeze.core.files import write_whole
from unfreeze.deliver.explain import Explained, Explanation
from unfreeze.deliver.map_words import WORDS, apart, strongest
from unfreeze.deliver.overlays import overlay, picture, signed
from unfreeze.deliver.pages import stylesheet, templates
from unfreeze.deliver.plots import clipped, number
from unfreeze.deliver.thumbnails import thumbnails


def write_page(found: Explanation, out: Path) -> Path:
    """Writes the page whole."""
    page = render(found).encode("utf-8", "replace")
    return write_whole(out, lambda temporary: temporary.write_bytes(page))


def render(found: Explanation) -> str:
    """The page's HTML."""
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
        counted=f"{number(len(good), 'photo')} explained"
        + (f", {len(found.photos) - len(good)} unreadable" * (len(good) < len(found.photos))),
        photos=[{"name": names[p.path], **_photo(p, found)} for p in good],
        bad=[{"name": names[p.path], "error": p.error} for p in found.photos if p.error],
        thumbs=thumbnails(Path(found.lead.info["root"]), [path for path, _ in near]),
        css=stylesheet(),
    )


def _by(found: Explanation) -> str:
    if len(found.runs) > 1:
        return f"by {len(found.runs)} runs that answer together"
    return f"by the mean of {found.run.recipe.folds.count} folds"


def _photo(photo: Explained, found: Explanation) -> dict[str, Any]:
    assert photo.probabilities is not None
    probable, second = photo.probabilities[photo.label], photo.probabilities[photo.runner_up]
    source, size = picture(photo.path, int(found.run.recipe.image.max_megapixels * 1e6), found.gray)
    where = strongest(photo.heat)
    return {
        "photo": photo,
        "finding": f"“{photo.label}”, {_percent(probable)}, "
        f"rather than “{photo.runner_up}”, {_percent(second)}" + (f"; {where}." if where else "."),
        "figures": [
            {
                "svg": overlay(source, size, heat, scale(photo, heat.method), photo.label),
                "name": WORDS[heat.method].name,
                "title": heat.source,
                "total": signed(float(heat.values.sum())) if heat.method == "cells" else "",
                "apart": apart(heat),
            }
            for heat in photo.heat
        ],
        "classless": all(heat.method == "rollout" for heat in photo.heat),
        "bars": _bars(photo, found) if photo.maps else [],
        "placeless": signed(sum(photo.placeless(block) for block in photo.maps)),
        "others": [(n, p) for n, p in sorted(photo.probabilities.items(), key=lambda x: -x[1])[:5]],
    }


def scale(photo: Explained, method: str) -> float:
    """The strongest value of all of a photo's maps of one kind, so that these share one scale."""
    return float(max((np.abs(heat.values).max() for heat in photo.heat if heat.method == method), default=0.0))


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
            "text": signed(value, 2),
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


def _percent(value: float) -> str:
    """`93 %`; what is not quite all or nothing is said so."""
    text = "over 99 %" if 0.995 <= value < 1 else "under 1 %" if 0 < value < 0.005 else f"{100 * value:.0f} %"
    return text.replace(" ", "\u00a0")
