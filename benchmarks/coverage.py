"""How often reported intervals contain the truth, in draws of training sets from larger ones.

From each set groups are drawn, the probe is cross-validated on them as `fit --strategy probe` does, and the delivered
model is evaluated on all groups that were not drawn. A statement is covered if its interval contains that score. Where
the groups not drawn are few, the interval is widened by the standard error of their score, which is an estimate too.
Real sets are read with `--quality fast`, so that a draw takes seconds. For reference, the percentile bootstrap of the
out-of-fold score, the earlier method, is evaluated on the same draws.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from unfreeze.core.dataset import ImageDataset
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import PRESETS, Recipe
from unfreeze.data.readers import read
from unfreeze.data.splits import stratified_group_kfold
from unfreeze.features.derived_matrix import SampledFeatureMatrix
from unfreeze.features.inputs import extract_inputs
from unfreeze.metrics.bootstrap import bootstrap_confusions
from unfreeze.metrics.classification import macro_f1, score_predictions
from unfreeze.metrics.intervals import Estimates
from unfreeze.metrics.log_loss import log_losses
from unfreeze.training.context import FitContext, StrategyResult
from unfreeze.training.crossval import prepare
from unfreeze.training.evaluation import evaluate
from unfreeze.training.linear_probe.heads import LinearHead, predict_folds
from unfreeze.training.linear_probe.strategy import Probe, fit_heads

REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "clothing": (
        "clothing/groups.csv",
        {"source.label": ("label",), "source.group": "sender_id", "source.split": "none"},
    ),
    "trash": ("trash", {}),
    "grocery": ("grocery", {"source.split": "none"}),
    "masks": ("masks/faces.csv", {"source.label": ("label",), "source.group": "photo"}),
}
SIZES = {"clothing": (80,), "masks": (300, 500), "trash": (300, 800), "grocery": (300, 500)}
GENERATED = ("uneven groups", "a few large groups", "rare class")
FIELDS = (
    "set", "groups", "images", "statement", "draws", "covered", "above", "below", "width", "old_covered",
    "old_width", "width_ratio", "bias", "approximate", "repeats", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Population:
    """features: float32 (n, D), signed roots. labels, groups: int64 (n,)."""

    name: str
    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    blocks: tuple[tuple[str, int], ...]
    classes: tuple[str, ...]


def real(name: str, data: Path, scratch: Path) -> Population:
    """A set of photos, its features computed or from the cache."""
    source, options = REAL[name]
    path = str(data / source)
    recipe = Recipe().replace(**{"source.path": path, "strategy": "probe", **PRESETS["fast"], **options})
    work = prepare(read(path, recipe.source), recipe, scratch, Reporter())
    found, _ = extract_inputs(work.photos.files(), work.looks.keys, work.looks.readable, recipe, work.reporter)
    inside = np.flatnonzero(work.folds >= 0)
    _, groups = np.unique(work.units[inside], return_inverse=True)
    return Population(name, found.rooted(inside), work.labels[inside], groups, found.blocks, work.photos.classes)


def generated(name: str) -> Population:
    """Gaussian features with effects of groups, and of groups within classes."""
    draw, width = np.random.default_rng(GENERATED.index(name)), 150
    if name == "rare class":
        shares, sizes, effect = [0.5, 0.3, 0.15, 0.05], np.ones(8000, np.int64), 0.0
    else:
        spread = 1.1 if name == "uneven groups" else 1.5
        shares, effect = [0.26, 0.19, 0.15, 0.12, 0.1, 0.1, 0.08], 2.5
        sizes = np.minimum(np.ceil(draw.lognormal(0.9 if spread < 1.5 else 0.4, spread, 3000)), 400).astype(np.int64)
    groups, k = np.repeat(np.arange(len(sizes)), sizes), len(shares)
    own = draw.dirichlet(np.array(shares) * 4, len(sizes)) if effect else np.tile(shares, (len(sizes), 1))
    labels = (own[groups].cumsum(1) > draw.random(len(groups))[:, None]).argmax(1)
    means, scale = draw.normal(0, 4.3, (k, width)), np.sqrt(draw.gamma(1.0, 1.0, width))
    of_group = draw.normal(0, effect, (len(sizes), width))
    of_class = draw.normal(0, effect, (len(sizes) * k, width))
    noise = draw.normal(0, 14, (len(groups), width))
    x = (means[labels] + of_group[groups] + of_class[groups * k + labels] + noise) * scale / np.sqrt(width)
    return Population(name, x.astype(np.float32), labels, groups, (("f", width),), tuple(f"c{i}" for i in range(k)))


def drawn(population: Population, size: int, seed: int) -> NDArray[np.bool_]:
    """Which rows are of `size` groups drawn at random, of which each class has five or more."""
    draw, count = np.random.default_rng([seed, 11]), int(population.groups.max()) + 1
    while True:
        rows = np.isin(population.groups, draw.permutation(count)[:size])
        pairs = pd.DataFrame({"group": population.groups[rows], "label": population.labels[rows]}).drop_duplicates()
        if (np.bincount(pairs["label"], minlength=len(population.classes)) >= 5).all():
            return rows


def fitted(population: Population, rows: NDArray[np.bool_], seed: int, folder: Path) -> tuple[dict[str, Any], Any]:
    """Scores as `fit` reports them, and the delivered model's probabilities of all other rows."""
    labels, groups = population.labels[rows], population.groups[rows]
    folds, _ = stratified_group_kfold(labels, groups, 5, seed, population.classes)
    paths = [str(i) for i in np.flatnonzero(rows)]
    names = [population.classes[c] for c in labels]
    table = pd.DataFrame({"path": paths, "label": names, "group": [f"g{g}" for g in groups], "split": "train"})
    table = table.assign(hash=paths, unit=groups, fold=folds)
    photos = ImageDataset(table, folder, population.classes, population.classes, (), "images", "")
    looks: Any = SimpleNamespace(readable=np.ones(len(table), bool), keys=np.zeros((len(table), 3), np.uint64))
    work = FitContext(photos, looks, labels, groups, folds, Recipe(strategy="probe", seed=seed), folder, Reporter())
    features: Any = SampledFeatureMatrix(population.features[rows], population.blocks, [f"{population.name} {seed}"])
    probe = Probe(features, [], {}, work.identity())
    probe.heads.update(fit_heads(work, probe, groups, folds, work.identity(), inner=True))
    outcome = StrategyResult(probe.out_of_fold(work), np.zeros((0, len(population.classes))), {}, {}, {}, probe.inner)
    outcome, scores = evaluate(work, outcome, probe)
    heads = list(probe.heads.values())
    if outcome.info.get("repeats", 1) > 1:
        heads = [LinearHead.load(folder / f"fold-{k}" / "delivered.safetensors")[0] for k in range(5)]
    rest: Any = SampledFeatureMatrix(population.features[~rows], population.blocks, [""])
    return {**scores, "proba": outcome.proba}, predict_folds(rest, heads, np.arange(int((~rows).sum())))


def statements(population: Population, rows: NDArray[np.bool_], seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Each reported interval of a draw beside the truth and its standard error."""
    began = time.perf_counter()
    scores, proba = fitted(population, rows, seed, folder)
    seconds = time.perf_counter() - began
    labels, groups, classes = population.labels[~rows], population.groups[~rows], population.classes
    truth = score_predictions(labels, proba, groups, classes, held_out=True, resamples=2)
    losses = log_losses(labels, proba)
    _, member = np.unique(groups, return_inverse=True)
    of = Estimates.of(labels, proba.argmax(1), losses, member, len(classes), 0.95, 0.0).groups
    old = _percentile(population, rows, scores["proba"])
    told = scores["out_of_fold"]
    common = {"seconds": seconds, "repeats": len(scores["repeats"]), "approximate": bool(told["approximate"])}
    for name in ("accuracy", "macro_f1", "log_loss"):
        error = np.sqrt(getattr(of, name))
        yield {"statement": name, **common, **_judged(scores[name], truth[name]["value"], error, old.get(name))}
    for c, row in enumerate(told["per_class"]):
        error = float(np.sqrt(of.rates["recall"][c]))
        value = truth["per_class"][c]["recall"]["value"]
        yield {"statement": "recall of a class", **common, **_judged(row["recall"], value, error, None)}


def _judged(interval: dict[str, float], truth: float, error: float, old: tuple[float, float] | None) -> dict[str, Any]:
    value, slack = interval["value"], 1.96 * error

    def misses(low: float, high: float) -> tuple[bool, bool]:
        middle = min(max(value, low), high)
        return truth > middle + np.hypot(high - middle, slack), truth < middle - np.hypot(middle - low, slack)

    above, below = misses(interval["low"], interval["high"])
    found = {"above": above, "below": below, "width": interval["high"] - interval["low"], "bias": value - truth}
    if old:
        value = sum(old) / 2
        found |= {"old_missed": any(misses(*old)), "old_width": old[1] - old[0]}
    return found


def _percentile(population: Population, rows: NDArray[np.bool_], proba: NDArray[np.float64]) -> dict[str, Any]:
    labels, groups = population.labels[rows], population.groups[rows]
    tables = bootstrap_confusions(labels, [proba.argmax(1)], groups, len(population.classes), 400, 0)
    every = np.concatenate([t[0] for t in tables])[1:]
    scores = {"accuracy": np.trace(every, axis1=1, axis2=2) / every.sum((1, 2)), "macro_f1": macro_f1(every)}
    return {name: tuple(np.percentile(values, [2.5, 97.5])) for name, values in scores.items()}


def summary(name: str, size: int, images: float, found: list[dict[str, Any]], draws: int) -> Iterator[dict[str, Any]]:
    """A row a statement."""
    by_name = defaultdict(list)
    for one in found:
        by_name[one["statement"]].append(one)
    for statement, some in by_name.items():
        table = pd.DataFrame(some)
        share = {key: round(100 * float(table[key].mean()), 1) for key in ("above", "below")}
        row = {"set": name, "groups": size, "images": round(images), "statement": statement, "draws": draws, **share}
        row["covered"] = round(100 - share["above"] - share["below"], 1)
        row |= {key: round(float(table[key].mean()), 4) for key in ("width", "bias")}
        if "old_width" in table and table["old_width"].notna().any():
            row["old_covered"] = round(100 * (1 - float(table["old_missed"].mean())), 1)
            row["old_width"] = round(float(table["old_width"].mean()), 4)
            row["width_ratio"] = round(row["width"] / row["old_width"], 2)
        row["approximate"] = round(100 * float(table["approximate"].mean()))
        row["repeats"] = round(float(table["repeats"].mean()), 1)
        row["seconds"] = round(float(table["seconds"].median()), 2)
        yield row


def main() -> None:
    """Appends rows to the CSV as they are finished; sets and sizes that are there already are not done again."""
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--data", type=Path, help="folder of the real photos; without it only generated sets")
    ask.add_argument("--draws", type=int, default=100)
    ask.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage.csv")
    given = ask.parse_args()
    plan = [(name, size) for name in GENERATED for size in ((300, 800) if name == "rare class" else (80, 160))]
    plan += [(name, size) for name in REAL for size in SIZES[name]] if given.data else []
    done = pd.read_csv(given.out) if given.out.exists() else pd.DataFrame(columns=list(FIELDS))
    there = set(zip(done["set"], done["groups"], strict=True))
    with TemporaryDirectory() as place, threadpool_limits(1):
        for name, size in plan:
            if (name, size) in there:
                continue
            population = generated(name) if name in GENERATED else real(name, given.data, Path(place) / "look")
            found, images = list[dict[str, Any]](), list[int]()
            for seed in range(given.draws):
                rows = drawn(population, size, seed)
                images.append(int(rows.sum()))
                with TemporaryDirectory(dir=place) as folder:
                    found += statements(population, rows, seed, Path(folder))
            rows_of = list(summary(name, size, float(np.mean(images)), found, given.draws))
            with given.out.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, FIELDS)
                if not file.tell():
                    writer.writeheader()
                writer.writerows(rows_of)
            for row in rows_of:
                print(*(f"{key} {row[key]}" for key in FIELDS if key in row), sep=", ", flush=True)


if __name__ == "__main__":
    main()
