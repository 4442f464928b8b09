"""Views of a photo by name, for rows that are added: `rotate+10`, `brightness-20`, `crop-10`, `flip`.

Unlike augmentation they are the same at any time, so that what a network makes of them can be kept. A view is made of
the stored square, which is a little wider than what the network sees: a turned photo's corners are photo where the
square reaches, and mirrored beyond.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from unfreeze.core.errors import RecipeError, nearest

if TYPE_CHECKING:
    import torch

    Images: TypeAlias = torch.Tensor

# Appended to a view's name: the same mirrored left to right, for a head that averages a photo with its mirror image.
MIRRORED = "|flip"


def _rotate(images: Images, degrees: float) -> Images:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as v2

    side, turn = images.shape[-1], math.radians(abs(degrees) % 90)
    margin = min(math.ceil(side * (math.cos(turn) + math.sin(turn) - 1) / 2) + 1, side - 1)
    wide = v2.pad(images, [margin], padding_mode="reflect")
    return v2.center_crop(v2.rotate(wide, degrees, InterpolationMode.BILINEAR), [side, side])


def _brightness(images: Images, percent: float) -> Images:
    from torchvision.transforms.v2 import functional as v2

    return v2.adjust_brightness(images, 1 + percent / 100)


def _crop(images: Images, percent: float) -> Images:
    from torchvision.transforms.v2 import functional as v2

    side = images.shape[-1]
    kept = max(1, round(side * (1 + percent / 100)))
    at = (side - kept) // 2
    return v2.resized_crop(images, at, at, kept, kept, [side, side], antialias=True)


def _flip(images: Images, _: float) -> Images:
    return images.flip(-1)


# Name -> function of uint8 (n, 3, S, S) and an amount, the amounts that make sense, and an example.
VIEWS: dict[str, tuple[Callable[[Images, float], Images], tuple[float, float], str]] = {
    "rotate": (_rotate, (-180, 180), "rotate+10"),
    "brightness": (_brightness, (-90, 400), "brightness-20"),
    "crop": (_crop, (-90, -1), "crop-10"),
    "flip": (_flip, (0, 0), "flip"),
}


def check_view(view: str, key: str = "balance.add") -> tuple[str, float]:
    """Name and amount of a view: degrees to the left, per cent brighter, per cent of the side cut off, or 0.

    key: where it was named. RecipeError if there is no such view, or its amount makes no sense.
    """
    found = re.fullmatch(r"([a-z]+)([+-]\d+(?:\.\d+)?)?", view)
    known = ", ".join(example for _, _, example in VIEWS.values())
    if not found or found[1] not in VIEWS:
        hint = nearest(found[1] if found else view, VIEWS)
        raise RecipeError(f"{key}: there is no view '{view}'; known are {known}.{hint}")
    amount, (low, high) = float(found[2] or 0), VIEWS[found[1]][1]
    if (found[2] is None) != (low == high) or not low <= amount <= high or (low != high and not amount):
        allowed = "no amount" if low == high else f"an amount between {low:+g} and {high:+g}, not 0"
        raise RecipeError(f"{key}: view '{view}': {found[1]} takes {allowed}, as in {VIEWS[found[1]][2]}.")
    return found[1], amount


def seen(images: Images, view: str) -> Images:
    """uint8 (n, 3, S, S) squares as the view of that name shows them, which may end in MIRRORED."""
    name, amount = check_view(view.removesuffix(MIRRORED))
    shown = VIEWS[name][0](images, amount)
    return shown.flip(-1) if view.endswith(MIRRORED) else shown
