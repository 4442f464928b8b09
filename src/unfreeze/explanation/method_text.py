"""User-facing texts about the heat map methods: name, meaning and limitations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unfreeze.core.format import format_difference, format_score
from unfreeze.explanation.heatmap import HeatMap


@dataclass(frozen=True)
class MethodText:
    """Texts about one heat map method.

    Attributes:
        name: Display name.
        unit: Unit of the values.
        paper: Reference.
        says: What the map shows.
        says_not: What the map does not show.
        strongest: Sentence part about the position of the peak, with the placeholder `{place}`.
    """

    name: str
    unit: str
    paper: str
    says: str
    says_not: str
    strongest: str


WORDS: dict[str, MethodText] = {
    "cells": MethodText(
        "Cells, exact",
        "logits",
        "after class activation maps, Zhou et al. 2016",
        "what each cell adds to the logit of the first class less that of the other: terms of a plain sum, nothing is "
        "estimated.",
        "It is what the linear heads read there, not what caused the class, and a late block's cell has seen more than "
        "its square.",
        "the strongest sign is at the {place}",
    ),
    "grad-cam": MethodText(
        "Grad-CAM",
        "logits, up to the network's own scale",
        "Selvaraju et al. 2017",
        "where the trained networks' late features speak for the first class (or, in the other color, for the "
        "second), to the first order.",
        "Its numbers do not add up to the logits and are not to be compared between photos; it is as coarse as the "
        "last map with places, and no cause.",
        "the strongest sign is at the {place}",
    ),
    "rollout": MethodText(
        "Attention rollout",
        "share of the attention",
        "Abnar and Zuidema 2020",
        "from which patches information can have reached what is read in the end, block by block.",
        "It does not depend on the class: a marked patch may be evidence for any class, or for none.",
        "most of the attention came from the {place}",
    ),
    "occlusion": MethodText(
        "Occlusion",
        "probability",
        "Zeiler and Fergus 2014",
        "how far the probabilities of the two classes move towards each other when a gray patch covers the place.",
        "Covered images are outside the training distribution, and redundant regions mask each other: covering one "
        "of them changes nothing.",
        "the prediction depends most on the {place}",
    ),
}


def region_name(heat: HeatMap) -> str:
    """Region of the strongest positive cell, for example `upper left`.

    Empty if no cell is positive or the map has a single cell.
    """
    if heat.values.size == 1 or heat.values.max() <= 0:
        return ""
    across, down = (min(int(3 * share), 2) for share in heat.peak())
    name = f"{('upper', 'middle', 'lower')[down]} {('left', 'center', 'right')[across]}"
    return "center" if name == "middle center" else name


def strongest(maps: Sequence[HeatMap]) -> str:
    """Sentence part about the peak of the strongest map among those of the first map's method; may be empty."""
    alike = [heat for heat in maps if heat.method == maps[0].method]
    place = region_name(max(alike, key=lambda heat: float(heat.values.max()))) if alike else ""
    return WORDS[alike[0].method].strongest.format(place=place) if place else ""


def format_margin(heat: HeatMap) -> str:
    """Format the margin as `+1.23 logits` or `0.42 of probability`; empty if the method has none."""
    if heat.margin != heat.margin:
        return ""
    if heat.unit == "probability":
        return f"{format_score(heat.margin, 2)} of probability"
    return f"{format_difference(heat.margin, 2)} logits"
