"""The views that a prediction averages over: those of training, and further ones by name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from unfreeze.core.errors import RecipeError, SourceError, nearest
from unfreeze.learn.views import VIEWS, check_view

_KNOWN = ", ".join(("plain", "flip", *(example for _, _, example in VIEWS.values() if example != "flip")))
# Words that say how every view is looked at, in place of the recipe's `probe.views`.
LOOKS = {"plain": ("plain",), "flip": ("plain", "flip")}
MOST = 16


@dataclass(frozen=True)
class Seen:
    """What is averaged. looks: plain, or plain and flip: how each view is looked at, as in training.

    further: views beside the photo as it is, as `crop-10`: their probabilities are averaged with the photo's own.
    """

    looks: tuple[str, ...]
    further: tuple[str, ...] = ()


def seen_as(tta: str | None, trained: tuple[str, ...]) -> Seen:
    """The views of `--tta`: names with commas between, as `flip,rotate+5,rotate-5`; None: as in training.

    trained: the recipe's probe.views. plain or flip: each view is looked at so, instead of as in training. Raises
    SourceError for a name that is none, or too many of them.
    """
    looks, further = trained, list[str]()
    for name in (part.strip() for part in (tta or "").split(",") if part.strip()):
        if name in LOOKS:
            looks = LOOKS[name]
            continue
        word = re.split(r"[+-]", name)[0]
        if word not in VIEWS:
            raise SourceError(f"--tta {name}: known are {_KNOWN}, several with commas between.{nearest(word, VIEWS)}")
        try:
            check_view(name, "--tta")
        except RecipeError as error:
            raise SourceError(str(error)) from None
        further.append(name)
    further = list(dict.fromkeys(further))
    if tta is not None and not tta.strip(" ,"):
        raise SourceError(f"--tta '{tta}': names no view; known are {_KNOWN}, several with commas between.")
    if len(further) > MOST:
        raise SourceError(f"--tta: {len(further)} views are more than are averaged ({MOST}); name fewer.")
    return Seen(looks, tuple(further))
