"""Report section on mistakes: heat maps of the most confident ones, and image grids of frequent confusions."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from unfreeze.core.dataset import probability_columns
from unfreeze.core.errors import UnfreezeError
from unfreeze.core.files import read_record, write_json
from unfreeze.core.format import format_score, pluralize
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import open_run
from unfreeze.explanation.heatmap import HeatMap
from unfreeze.explanation.method_text import WORDS, strongest
from unfreeze.explanation.mistakes import UNASKED, ExplainedMistake, explain_mistakes
from unfreeze.explanation.neighbors import Neighbor
from unfreeze.reports.explanation_page import overlay, picture
from unfreeze.reports.report_data import Context, ReportData
from unfreeze.reports.sections import confused_pairs
from unfreeze.reports.thumbnails import thumbnails

FILE = "explained.json"
MAX_BYTES = 20_000_000
LOOKED, LOOKED_ALIKE = 8, 3  # images with a map; maximum per pair of classes, unless too few pairs are left
KINDS, OF_A_KIND = 6, 12
SIDE, SMALL = 280, 96


def explained_mistakes(
    run: Path, shots: list[Context], trained: bool, reporter: Reporter | None = None
) -> list[ExplainedMistake]:
    """Explain the most confident mistakes; never raises if the run cannot be loaded.

    Args:
        run: Run folder.
        shots: From `sections.wrong`.
        trained: Also draw the maps of fine-tuned networks, and store the result in the run's explained.json for later
            reports.
        reporter: Receives progress.
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
        found = explain_mistakes(open_run(run), wanted, trained=trained, reporter=reporter)
    except UnfreezeError as error:
        labels = {shot["path"]: shot["true"] for shot in shots}
        return [
            ExplainedMistake(path, -1, labels[path], said, why=f"the run cannot be used ({error})")
            for path, said in wanted
        ]
    if trained:
        write_json(run / FILE, {"format": 1, "photos": [row.described() for row in found]})
    return found


def _kept(run: Path) -> list[ExplainedMistake]:
    """Read the stored result of `unfreeze report --explain`; empty if there is none or it is invalid."""
    return read_record(run / FILE, lambda read: [_row(one) for one in read["photos"]], MAX_BYTES) or []


def _row(read: dict[str, Any]) -> ExplainedMistake:
    maps = []
    for one in read["maps"]:
        values, box = np.array(one["values"], np.float64), tuple(float(side) for side in one["box"])
        if values.ndim != 2 or not values.size or len(box) != 4 or one["method"] not in WORDS:
            raise ValueError("no map")
        margin = float("nan") if one["margin"] is None else float(one["margin"])
        pair = int(one["label"]), int(one["runner_up"])
        maps.append(HeatMap(one["method"], values, *pair, box, margin, str(one["source"])))
    near = [Neighbor(str(n["path"]), str(n["label"]), str(n["group"]), float(n["cosine"])) for n in read["near"]]
    texts = (str(read[key]) for key in ("path", "fold", "label", "said"))
    path, fold, label, said = texts
    return ExplainedMistake(path, int(fold), label, said, tuple(maps), tuple(near), str(read["why"]))


def mistakes_section(m: ReportData, rows: list[ExplainedMistake], run: Path) -> tuple[Context | None, list[str]]:
    """Template context of the explained mistakes, and the paths of the training images shown; None without mistakes."""
    if not rows:
        return None, []
    image = tomllib.loads(m.recipe).get("image", {})
    limit, gray = int(image.get("max_megapixels", 178) * 1e6), image.get("color") == "gray"
    shown = []
    for row in rows:
        source, size = picture(str(m.root / row.path), limit, gray, SIDE) if row.maps else ("", (SIDE, SIDE))
        figures = [
            {"svg": overlay(source, size, heat, _scale(row, heat), row.said), "name": WORDS[heat.method].name}
            for heat in row.maps
            if source
        ]
        why = row.why or ("" if source or not row.maps else "the file no longer exists")
        shown.append(
            {
                "row": row,
                "figures": figures,
                "classless": all(heat.method == "rollout" for heat in row.maps),
                "where": strongest(row.maps) if figures else "",
                "why": "" if why == UNASKED else why,
                "asked": row.why != UNASKED,
            }
        )
    unasked = sum(not one["asked"] for one in shown)
    context = {
        "finding": _finding(rows),
        "rows": shown,
        "drawn": sum(bool(one["figures"]) for one in shown),
        "unasked": unasked,
        "words": [WORDS[name] for name in dict.fromkeys(heat.method for row in rows for heat in row.maps)],
        "command": f"unfreeze report {run} --explain" if unasked else "",
    }
    return context, [near.path for row in rows for near in row.near]


def _scale(row: ExplainedMistake, heat: HeatMap) -> float:
    return float(max(np.abs(other.values).max() for other in row.maps if other.method == heat.method))


def _finding(rows: list[ExplainedMistake]) -> str:
    """Sentence about the labels of the nearest training images."""
    near = [row for row in rows if row.near]
    if not near:
        return f"Where the model looked in its {pluralize(len(rows), 'surest mistake')}."
    said = sum(row.near[0].label == row.said for row in near)
    own = sum(row.near[0].label == row.label for row in near)
    return (
        f"The nearest training image has the predicted class in {said} of {pluralize(len(near), 'sure mistake')} "
        f"and the label's class in {own}."
    )


def kinds(m: ReportData) -> tuple[list[Context], Any]:
    """Most confident mistakes of each of the worst confusions, and their thumbnails."""
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
        shots = [{"path": str(m.oof["path"].iloc[r]), "sure": format_score(sure[r], 2)} for r in picked]
        wanted += [shot["path"] for shot in shots]
        kind = {"true": m.classes[i], "said": m.classes[j], "count": len(own), "support": int(support[i])}
        found.append({**kind, "shots": shots, "rest": len(own) - len(shots)})
    return found, thumbnails(m.root, wanted, side=SMALL)
