"""What each kind of map is called, what it says and what it does not, in words for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unfreeze.deliver.plots import score
from unfreeze.learn.maps import HeatMap


@dataclass(frozen=True)
class Words:
    """A method's name, unit, paper; what its map says, and what it does not. strongest: of the place of its peak."""

    name: str
    unit: str
    paper: str
    says: str
    says_not: str
    strongest: str


WORDS: dict[str, Words] = {
    "cells": Words(
        "Cells, exact",
        "logits",
        "after class activation maps, Zhou et al. 2016",
        "what each cell adds to the logit of the first class less that of the other: terms of a plain sum, nothing is "
        "estimated.",
        "It is what the linear heads read there, not what caused the class, and a late block's cell has seen more than "
        "its square.",
        "the strongest sign is at the {place}",
    ),
    "grad-cam": Words(
        "Grad-CAM",
        "logits, up to the network's own scale",
        "Selvaraju et al. 2017",
        "where the trained networks' late features speak for the first class (or, in the other colour, for the "
        "second), to the first order.",
        "Its numbers do not add up to the logits and are not to be compared between photos; it is as coarse as the "
        "last map with places, and no cause.",
        "the strongest sign is at the {place}",
    ),
    "rollout": Words(
        "Attention rollout",
        "share of the attention",
        "Abnar and Zuidema 2020",
        "from which patches information can have reached what is read in the end, block by block.",
        "It knows nothing of classes: what it marks may have spoken for any of them, or for none.",
        "most of the attention came from the {place}",
    ),
    "occlusion": Words(
        "Occlusion",
        "probability",
        "Zeiler and Fergus 2014",
        "how far the probabilities of the two classes move towards each other when a grey patch covers the place.",
        "A covered photo is none that was trained on, and two places that tell the same hide each other: covering one "
        "of them costs nothing.",
        "the answer leans most on the {place}",
    ),
}


def place_of(heat: HeatMap) -> str:
    """Where the strongest cell for the class lies, as `upper left`; empty if none speaks for it or there is but one."""
    if heat.values.size == 1 or heat.values.max() <= 0:
        return ""
    across, down = (min(int(3 * share), 2) for share in heat.peak())
    name = f"{('upper', 'middle', 'lower')[down]} {('left', 'centre', 'right')[across]}"
    return "centre" if name == "middle centre" else name


def strongest(maps: Sequence[HeatMap]) -> str:
    """The same in a sentence's end, of the map that speaks loudest among the first map's kind."""
    alike = [heat for heat in maps if heat.method == maps[0].method]
    place = place_of(max(alike, key=lambda heat: float(heat.values.max()))) if alike else ""
    return WORDS[alike[0].method].strongest.format(place=place) if place else ""


def apart(heat: HeatMap) -> str:
    """How far the two classes are apart where the map is of that: `+1.23 logits`, `.42 of probability`."""
    if heat.margin != heat.margin:
        return ""
    if heat.unit == "probability":
        return f"{score(heat.margin, 2)} of probability"
    return f"{heat.margin:+.2f}".replace("-", "\N{MINUS SIGN}") + " logits"
