"""The report's part on where models looked in their surest mistakes, and the mistakes of a kind side by side."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from unfreeze.core.errors import UnfreezeError
from unfreeze.core.files import read_json, write_json
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import open_run
from unfreeze.core.tables import probability_columns
from unfreeze.deliver.looked_into import UNASKED, LookedInto, look_into
from unfreeze.deliver.map_words import WORDS, strongest
from unfreeze.deliver.material import Context, Material
from unfreeze.deliver.overlays import overlay, picture
from unfreeze.deliver.plots import number, score
from unfreeze.deliver.sections import confused_pairs
from unfreeze.deliver.thumbnails import thumbnails
from unfreeze.learn.maps import HeatMap
from unfreeze.learn.maps_training import Neighbour

FILE = "explained.json"
MAX_BYTES = 20_000_000
LOOKED, LOOKED_ALIKE = 8, 3  # photos with a map; of one pair of classes, while other pairs remain
KINDS, OF_A_KIND = 6, 12
SIDE, SMALL = 280, 96


def looked_into(run: Path, shots: list[Context], trained: bool, reporter: Reporter | None = None) -> list[LookedInto]:
    """The surest mistakes looked into; never raises for a run that cannot be.

    shots: as of `sections.wrong`. trained: also where the maps of trained networks have to be drawn, which is then kept
    in the run's explained.json for later reports.
    """
    alike: Counter[Any] = Counter()
    first: list[tuple[str, str]] = []
    rest: list[tuple[str, str]] = []
    for shot in shots:
        alike[shot["pair"]] += 1
        (first if alike[shot["pair"]] <= LOOKED_ALIKE else rest).append((shot["path"], shot["said"]))
    wanted = [*first, *rest][:LOOKED]
    kept = [] if trained else _kept(run)
    if kept and [(row.path, row.said) for row in kept] == wanted:
        return kept
    try:
        found = look_into(open_run(run), wanted, trained=trained, reporter=reporter)
    except UnfreezeError as error:
        labels = {shot["path"]: shot["true"] for shot in shots}
        return [
            LookedInto(path, -1, labels[path], said, why=f"the run cannot be asked ({error})") for path, said in wanted
        ]
    if trained:
        write_json(run / FILE, {"format": 1, "photos": [row.described() for row in found]})
    return found


def _kept(run: Path) -> list[LookedInto]:
    """What `unfreeze report --explain` left in the run folder; empty if it left nothing whole."""
    try:
        if (run / FILE).stat().st_size > MAX_BYTES:
            return []
        return [_row(one) for one in read_json(run / FILE)["photos"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _row(read: dict[str, Any]) -> LookedInto:
    maps = []
    for one in read["maps"]:
        values, box = np.array(one["values"], np.float64), tuple(float(side) for side in one["box"])
        if values.ndim != 2 or not values.size or len(box) != 4 or one["method"] not in WORDS:
            raise ValueError("no map")
        margin = float("nan") if one["margin"] is None else float(one["margin"])
        pair = int(one["label"]), int(one["runner_up"])
        maps.append(HeatMap(one["method"], values, *pair, box, margin, str(one["source"])))
    near = [Neighbour(str(n["path"]), str(n["label"]), str(n["group"]), float(n["cosine"])) for n in read["near"]]
    texts = (str(read[key]) for key in ("path", "fold", "label", "said"))
    path, fold, label, said = texts
    return LookedInto(path, int(fold), label, said, tuple(maps), tuple(near), str(read["why"]))


def looked(m: Material, rows: list[LookedInto], run: Path) -> tuple[Context | None, list[str]]:
    """The context of what was looked into, and the paths of the training photos it shows; None if nothing is wrong."""
    if not rows:
        return None, []
    image = tomllib.loads(m.recipe).get("image", {})
    limit, gray = int(image.get("max_megapixels", 178) * 1e6), image.get("color") == "gray"
    told = []
    for row in rows:
        source, size = picture(str(m.root / row.path), limit, gray, SIDE) if row.maps else ("", (SIDE, SIDE))
        figures = [
            {"svg": overlay(source, size, heat, _scale(row, heat), row.said), "name": WORDS[heat.method].name}
            for heat in row.maps
            if source
        ]
        why = row.why or ("" if source or not row.maps else "the photo is no longer there")
        told.append(
            {
                "row": row,
                "figures": figures,
                "classless": all(heat.method == "rollout" for heat in row.maps),
                "where": strongest(row.maps) if figures else "",
                "why": "" if why == UNASKED else why,
                "asked": row.why != UNASKED,
            }
        )
    unasked = sum(not one["asked"] for one in told)
    context = {
        "finding": _finding(rows),
        "rows": told,
        "drawn": sum(bool(one["figures"]) for one in told),
        "unasked": unasked,
        "words": [WORDS[name] for name in dict.fromkeys(heat.method for row in rows for heat in row.maps)],
        "command": f"unfreeze report {run} --explain" if unasked else "",
    }
    return context, [near.path for row in rows for near in row.near]


def _scale(row: LookedInto, heat: HeatMap) -> float:
    return float(max(np.abs(other.values).max() for other in row.maps if other.method == heat.method))


def _finding(rows: list[LookedInto]) -> str:
    """What the nearest training photos say of the mistakes."""
    near = [row for row in rows if row.near]
    if not near:
        return f"Where the model looked in its {number(len(rows), 'surest mistake')}."
    said = sum(row.near[0].label == row.said for row in near)
    own = sum(row.near[0].label == row.label for row in near)
    return (
        f"The training photo most like it has the class that was said in {said} of {number(len(near), 'sure mistake')} "
        f"and the label's own in {own}."
    )


def kinds(m: Material) -> tuple[list[Context], Any]:
    """Mistakes of a kind: for each of the gravest confusions its surest photos; and their small pictures."""
    probabilities = m.oof[probability_columns(m.classes)].to_numpy(np.float64)
    true = m.oof["label"].map({name: i for i, name in enumerate(m.classes)}).to_numpy()
    said, sure = probabilities.argmax(1), probabilities.max(1)
    support = np.asarray(m.judged["confusion"]).sum(1)
    found: list[Context] = []
    wanted: list[str] = []
    for i, j in confused_pairs(np.asarray(m.judged["confusion"])):
        own = np.flatnonzero((true == i) & (said == j))
        if len(own) < 2 or len(found) == KINDS:
            continue
        picked = own[np.argsort(-sure[own], kind="stable")][:OF_A_KIND]
        shots = [{"path": str(m.oof["path"].iloc[r]), "sure": score(sure[r], 2)} for r in picked]
        wanted += [shot["path"] for shot in shots]
        kind = {"true": m.classes[i], "said": m.classes[j], "count": len(own), "support": int(support[i])}
        found.append({**kind, "shots": shots, "rest": len(own) - len(shots)})
    return found, thumbnails(m.root, wanted, side=SMALL)
