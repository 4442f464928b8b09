"""The backbones that there are: a short list to meet first, and every classifier of both libraries."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from unfreeze.core.cache import cache_root, fingerprint
from unfreeze.core.errors import BackboneError
from unfreeze.core.progress import Reporter
from unfreeze.model import cards
from unfreeze.model.backbones import BACKBONES, find_backbone
from unfreeze.model.families import refusal
from unfreeze.model.origins import Origin, find, not_for_sale, origin, origins

# After those in packages: one of each kind that transfers well today, and four that older work is compared by.
MEET_FIRST = (
    "timm/vit_small_patch14_dinov2",
    "timm/vit_base_patch16_clip_224",
    "timm/vit_base_patch16_siglip_224",
    "timm/convnext_tiny",
    "timm/tf_efficientnetv2_s",
    "torchvision/densenet161",
    "torchvision/inception_v3",
    "torchvision/vgg19",
    "torchvision/wide_resnet50_2",
)
# Making a card takes up to a second: for more networks than this only what is known already is told.
LOOKED_AT = 40


@dataclass(frozen=True)
class Entry:
    """A row of `unfreeze models`. pixels: side of the input. parameters, gmacs: None where not yet worked out.

    available: whether its weights are here; remedy: what to do where they are not. note: why it cannot be used, or ''.
    """

    name: str
    title: str
    library: str
    pixels: int
    parameters: int | None
    gmacs: float | None
    licence: str
    commercial: bool
    source: str
    available: bool
    remedy: str
    note: str = ""


def short_list(reporter: Reporter | None = None) -> list[Entry]:
    """Those to meet first; the first time, torch is imported to look at them."""
    names = [*BACKBONES, *MEET_FIRST]
    return _entries({name: origin(name) for name in names if name not in BACKBONES}, names, reporter, look=True)


def everything(pattern: str = "*", here: bool = False, reporter: Reporter | None = None) -> list[Entry]:
    """Every classifier of both libraries whose full or bare name matches a glob like `*convnext*`, sorted.

    A pattern without a wildcard that is no name is looked for inside the names. here: only those whose weights are
    here. Parameters and GMACs are worked out where there are at most LOOKED_AT; else told as far as they are known.
    """
    told = origins()
    names = sorted({*told, *BACKBONES})
    found = _matching(names, pattern) or ([] if set("*?[") & set(pattern) else _matching(names, f"*{pattern}*"))
    if here:
        found = [n for n in found if (BACKBONES[n].weights.here() if n in BACKBONES else find(told[n]))]
    return _entries(told, found, reporter, look=len(found) <= LOOKED_AT)


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    return [n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n.partition("/")[2], pattern)]


def _entries(told: dict[str, Origin], names: list[str], reporter: Reporter | None, look: bool) -> list[Entry]:
    new = [name for name in names if name not in BACKBONES and not _known(name)] if look else []
    if not new:
        return [_entry(name, told.get(name), look) for name in names]
    with (reporter or Reporter()).bar("networks looked at", len(names)) as advance:
        rows = []
        for name in names:
            rows.append(_entry(name, told.get(name), look))
            advance(1)
    return rows


def _entry(name: str, told: Origin | None, look: bool) -> Entry:
    library, _, bare = name.partition("/")
    if name in BACKBONES:
        known = BACKBONES[name]
        return Entry(
            name=name,
            title=known.title,
            library=library,
            pixels=known.preprocessing.size,
            parameters=known.card.parameters,
            gmacs=known.card.gmacs,
            licence=known.weights.licence,
            commercial=not not_for_sale(known.weights.licence),
            source=known.source,
            available=known.weights.here(),
            remedy=known.weights.remedy,
        )
    assert told is not None  # whatever is no package is a library's
    found, note = None, (refusal(bare) or "") if library == "timm" else ""
    if not note and (look or _known(name)):
        try:
            found = find_backbone(name).card
        except BackboneError as error:
            note = str(error).removeprefix(f"{name}: ")
    return Entry(
        name=name,
        title=name,
        library=library,
        pixels=told.pixels,
        parameters=found.parameters if found else None,
        gmacs=found.gmacs if found else None,
        licence=told.licence or ("see its model card" if told.names else ""),
        commercial=not not_for_sale(told.licence),
        source="pretrained weights of its library" if told.names else "untrained: its library has no weights",
        available=find(told) is not None,
        remedy=told.remedy,
        note=note,
    )


def _known(name: str) -> bool:
    """Whether its card is in the cache, under these versions of the libraries."""
    file = cache_root() / "cards" / f"{fingerprint([cards._FORMAT, name, cards._versions()])}.json"
    try:
        return bool(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError):
        return False
