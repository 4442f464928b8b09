"""Named deterministic views of an image, for extra samples and for test-time augmentation.

A view is named by its transform and amount: `rotate+10`, `brightness-20`, `crop-10`, `flip`. Unlike random
augmentation, a view is always the same, so the outputs of a network for it can be cached. Views are computed from the
cached square, which is slightly wider than the network input; where a rotation needs pixels beyond the square, they are
filled by reflection.

`parse_tta` parses the views that a prediction is averaged over (`--tta`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from unfreeze.core.errors import RecipeError, SourceError, did_you_mean
from unfreeze.core.messages import option

if TYPE_CHECKING:
    import torch

    Images: TypeAlias = torch.Tensor

# Suffix of a view name: the same view flipped horizontally, for heads that average an image with its mirror image.
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


# Name -> (function of uint8 (n, 3, S, S) images and an amount, range of amounts, example).
VIEWS: dict[str, tuple[Callable[[Images, float], Images], tuple[float, float], str]] = {
    "rotate": (_rotate, (-180, 180), "rotate+10"),
    "brightness": (_brightness, (-90, 400), "brightness-20"),
    "crop": (_crop, (-90, -1), "crop-10"),
    "flip": (_flip, (0, 0), "flip"),
}


def check_view(view: str, key: str = "balance.extra_views") -> tuple[str, float]:
    """Parse and validate the name of a view.

    Args:
        view: Name of the view.
        key: Recipe key or option that names it, for error messages.

    Returns:
        Name of the transform and amount: degrees counterclockwise, percent of brightness, percent of the side, or 0.

    Raises:
        RecipeError: If the view is unknown or its amount is out of range.
    """
    found = re.fullmatch(r"([a-z]+)([+-]\d+(?:\.\d+)?)?", view)
    known = ", ".join(example for _, _, example in VIEWS.values())
    if not found or found[1] not in VIEWS:
        hint = did_you_mean(found[1] if found else view, VIEWS)
        raise RecipeError(f"{key}: there is no view '{view}'; known are {known}.{hint}")
    amount, (low, high) = float(found[2] or 0), VIEWS[found[1]][1]
    if (found[2] is None) != (low == high) or not low <= amount <= high or (low != high and not amount):
        allowed = "no amount" if low == high else f"an amount between {low:+g} and {high:+g}, not 0"
        raise RecipeError(f"{key}: view '{view}': {found[1]} takes {allowed}, as in {VIEWS[found[1]][2]}.")
    return found[1], amount


def apply_view(images: Images, view: str) -> Images:
    """Apply the named view, which can end in MIRRORED, to uint8 (n, 3, S, S) images."""
    name, amount = check_view(view.removesuffix(MIRRORED))
    shown = VIEWS[name][0](images, amount)
    return shown.flip(-1) if view.endswith(MIRRORED) else shown


_KNOWN = ", ".join(("plain", "flip", *(example for _, _, example in VIEWS.values() if example != "flip")))
# Names that replace the recipe's `probe.views` for every view.
LOOKS = {"plain": ("plain",), "flip": ("plain", "flip")}
MOST = 16


@dataclass(frozen=True)
class TtaViews:
    """Views that a prediction is averaged over.

    Attributes:
        looks: 'plain', or 'plain' and 'flip': how each view is read, as in training.
        further: Additional views, such as `crop-10`, whose probabilities are averaged with those of the plain image.
    """

    looks: tuple[str, ...]
    further: tuple[str, ...] = ()


def parse_tta(tta: str | None, trained: tuple[str, ...]) -> TtaViews:
    """Parse the value of `--tta`: comma-separated names such as `flip,rotate+5,rotate-5`.

    Args:
        tta: The value; None means the views of training.
        trained: The recipe's `probe.views`. 'plain' or 'flip' in `tta` replaces them.

    Returns:
        The views.

    Raises:
        SourceError: If a name is unknown, no view is named, or there are more than MOST views.
    """
    looks, further = trained, list[str]()
    for name in (part.strip() for part in (tta or "").split(",") if part.strip()):
        if name in LOOKS:
            looks = LOOKS[name]
            continue
        word = re.split(r"[+-]", name)[0]
        if word not in VIEWS:
            raise SourceError(
                f"{option('tta', name)}: known are {_KNOWN}, several with commas between.{did_you_mean(word, VIEWS)}"
            )
        try:
            check_view(name, option("tta"))
        except RecipeError as error:
            raise SourceError(str(error)) from None
        further.append(name)
    further = list(dict.fromkeys(further))
    if tta is not None and not tta.strip(" ,"):
        raise SourceError(f"{option('tta', tta)}: names no view; known are {_KNOWN}, several with commas between.")
    if len(further) > MOST:
        raise SourceError(f"{option('tta')}: {len(further)} views, but at most {MOST} can be averaged; name fewer.")
    return TtaViews(looks, tuple(further))
