"""Whether the intervals of comparisons and recommendations hold what they state, on simulated and on real predictions.

A row is a question and a design. `family-wise error`: equally good predictions, how often any interval excludes 0 (5%
stated). `coverage`: predictions that differ, how often the interval holds the true difference (95% stated). `best of
many`: by how much the score of the chosen one is above its true score, before and after the correction.
`recommendation`: how
often the 95% interval of an expected gain holds the true gain, which is drawn from the prior. `A/A`: probes on the
same features with other seeds of folds and heads, how often two of them differ significantly (5% stated); the pairs
of a subset share their fits, so that they are not independent.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import unfreeze as uf
from unfreeze.analysis.strategy_race import CandidateState, StrategyCandidate, together
from unfreeze.core.progress import Reporter
from unfreeze.data.splits import assign_folds
from unfreeze.features.inputs import extract_inputs
from unfreeze.metrics.bootstrap import effective_groups
from unfreeze.metrics.classification import confusion_matrix, macro_f1
from unfreeze.metrics.differences import (
    class_differences,
    exchange,
    macro,
    macro_figure,
    paired_difference,
    simultaneous,
    simultaneous_differences,
)
from unfreeze.metrics.ensembling import score_of_the_best
from unfreeze.training.class_balance import for_probe
from unfreeze.training.crossval import prepare
from unfreeze.training.linear_probe.heads import fit_folds, predict_folds

Rows = NDArray[np.int64]
CLASSES, SHARES = 4, (0.5, 0.3, 0.15, 0.05)
DRAWS = 500
# Groups, how large they are, and whether all images of a group are of one class.
DESIGNS = (
    (60, "lognormal", False),
    (60, "7 each", True),
    (60, "one giant", False),
    (100, "lognormal", True),
    (200, "lognormal", False),
    (300, "7 each", True),
)
SETS = {1: 800, 5: 600, 20: 400}  # simulated sets by the number of predictions that are compared with the first
SUBSETS = {"clothing": (320, 3), "trash": (350, 3), "masks": (400, 2)}  # images of a subset, and how many
SEEDS = 12

HEADLINE = ("question", "design", "groups", "effective", "compared", "sets", "value", "stated", "se")


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """All rows; those of real predictions where `data` has the photos."""
    for design in DESIGNS:
        for others, sets in SETS.items():
            yield from family_wise(*design, others, sets)
    for groups, sizes in ((60, "7 each"), (60, "lognormal"), (24, "1 each"), (150, "1 each")):
        for effect in (0.0, 0.7, 2.5):
            yield coverage(groups, sizes, effect, 300)
    for groups, sizes, others in ((60, "7 each", 5), (60, "7 each", 20), (190, "lognormal", 20), (300, "1 each", 20)):
        for spread in (0.0, 0.5):
            yield from best_of_many(groups, sizes, others, spread, 30)
    for judged, disagree in ((40, 0.06), (70, 0.06), (96, 0.06), (96, 0.03), (200, 0.05)):
        yield recommended(judged, disagree, 400)
    for name, (images, subsets) in SUBSETS.items() if data else ():
        assert data is not None
        yield from same_recipe(name, data, images, subsets)


def _row(question: str, design: str, groups: float, effective: float, compared: int, sets: int, **found: Any) -> Any:
    return {
        "question": question,
        "design": design,
        "groups": groups,
        "effective": round(effective, 1),
        "compared": compared,
        "sets": sets,
        **found,
    }


def _rate(hits: int, sets: int, stated: float) -> dict[str, float]:
    return {"value": round(hits / sets, 4), "stated": stated, "se": round((stated * (1 - stated) / sets) ** 0.5, 4)}


def simulated(
    draw: np.random.Generator, groups: int, sizes: str, effects: NDArray[np.float64], one_class: bool = False
) -> tuple[Rows, Rows, list[Rows]]:
    """Group, class, and as many predictions as there are effects (in logits), alike in what they find hard."""
    if sizes == "one giant":
        count = np.r_[3 * groups, np.full(groups - 1, 7)]
    elif sizes == "lognormal":
        count = np.maximum(1, draw.lognormal(1.0, 1.2, groups).astype(int))
    else:
        count = np.full(groups, int(sizes.split()[0]))
    member = np.repeat(np.arange(groups), count)
    n = len(member)
    truth = draw.choice(CLASSES, p=SHARES, size=groups)[member] if one_class else draw.choice(CLASSES, p=SHARES, size=n)
    hard = 1.3 + draw.normal(0, 1.0, groups)[member] + draw.normal(0, 1.5, n)
    found = []
    for effect in effects:
        right = hard + effect + draw.normal(0, 0.7, groups)[member] + draw.logistic(0, 0.7, n) > 0
        found.append(np.where(right, truth, (truth + draw.integers(1, CLASSES, n)) % CLASSES))
    return member, truth, found


def _score(truth: Rows, predicted: Rows) -> float:
    return float(macro_f1(confusion_matrix(truth, predicted, CLASSES)))


def _excludes(difference: dict[str, float]) -> bool:
    return difference["low"] > 0 or difference["high"] < 0


def family_wise(groups: int, sizes: str, one_class: bool, others: int, sets: int) -> Iterator[dict[str, Any]]:
    """Equals: macro F1 of all others, and F1 of all classes of all others, one family each."""
    wrong, of_classes, effective = 0, 0, 0.0
    for seed in range(sets):
        draw = np.random.default_rng([seed, groups, others, 7])
        member, truth, (base, *rest) = simulated(draw, groups, sizes, np.zeros(others + 1), one_class)
        named = {str(i): predicted for i, predicted in enumerate(rest)}
        more = simultaneous_differences(truth, base, named, member, CLASSES, {"m": macro}, resamples=DRAWS, seed=seed)
        wrong += any(_excludes(more[name]["m"]["difference"]) for name in named)
        by_class = class_differences(truth, base, named, member, CLASSES, resamples=DRAWS, seed=seed)
        of_classes += any(_excludes(row["difference"]) for table in by_class.values() for row in table)
        effective += effective_groups(member) / sets
    for what, hits in (("macro F1", wrong), ("classes", of_classes)):
        yield _row(f"family-wise error, {what}", sizes, groups, effective, others, sets, **_rate(hits, sets, 0.05))


def coverage(groups: int, sizes: str, effect: float, sets: int) -> dict[str, Any]:
    """Two that differ by an effect in logits."""
    effects = np.array([0.0, effect])
    _, truth, both = simulated(np.random.default_rng(5), 20_000, sizes, effects)
    true, held, effective = _score(truth, both[1]) - _score(truth, both[0]), 0, 0.0
    for seed in range(sets):
        member, truth, both = simulated(np.random.default_rng([seed, groups, 5]), groups, sizes, effects)
        found = exchange(truth, [(both[0], both[1])], member, CLASSES, macro_figure, resamples=DRAWS, seed=seed)
        more = simultaneous([found])[0].at(0)
        held += more["low"] <= true <= more["high"]
        effective += effective_groups(member) / sets
    design = f"{sizes}, true difference {true:.3f}"
    return _row("coverage", design, groups, effective, 1, sets, **_rate(held, sets, 0.95))


def best_of_many(groups: int, sizes: str, count: int, spread: float, sets: int) -> Iterator[dict[str, Any]]:
    """The best of predictions whose effects lie evenly between -spread and spread."""
    effects = np.linspace(-spread, spread, count)
    _, truth, every = simulated(np.random.default_rng(5), 20_000, sizes, effects)
    true, above, effective = [_score(truth, predicted) for predicted in every], [], 0.0
    for seed in range(sets):
        member, truth, every = simulated(np.random.default_rng([seed, groups, count, 3]), groups, sizes, effects)
        scores = [_score(truth, predicted) for predicted in every]
        own = true[int(np.argmax(scores))]
        corrected = score_of_the_best(truth, every, member, CLASSES, resamples=200, seed=seed)
        above.append((max(scores) - own, corrected - own))
        effective += effective_groups(member) / sets
    for what, values in zip(("highest score", "corrected score"), np.array(above).T, strict=True):
        found = {
            "value": round(float(values.mean()), 4),
            "stated": 0.0,
            "se": round(float(values.std()) / sets**0.5, 4),
        }
        design = f"{sizes}, effects to {spread:g}"
        yield _row(f"best of many, {what} less true", design, groups, effective, count, sets, **found)


def recommended(judged: int, disagree: float, sets: int) -> dict[str, Any]:
    """Two halves of so many judged images, strategies that disagree on a share of them, and a gain from the prior."""
    partial, held = StrategyCandidate("partial", "partial", {}, {}, 1.0, 1, 1.0, 1), 0
    for seed in range(sets):
        draw = np.random.default_rng([seed, judged])
        true, both = float(draw.normal(partial.prior.mean, partial.prior.deviation)), []
        gained, lost = max((disagree + true) / 2, 0.0), max((disagree - true) / 2, 0.0)
        for _ in range(2):
            kind = draw.choice(4, judged, p=[0.82 - lost, lost, gained, 0.18 - gained])
            truth = draw.integers(0, 3, judged)
            ours, theirs = (np.eye(3)[np.where(right, truth, (truth + 1) % 3)] for right in (kind % 2 == 0, kind <= 1))
            more = paired_difference(truth, theirs, ours, np.arange(judged), resamples=DRAWS, seed=seed)
            both.append(CandidateState(partial, difference=more))
        _, expected, doubt = together(both, [judged, judged])
        held += abs(true - expected) <= 1.96 * doubt
    design = f"two halves, disagree on {disagree:.0%}"
    return _row(
        "recommendation, interval of the expected gain", design, judged, judged, 1, sets, **_rate(held, sets, 0.95)
    )


def same_recipe(name: str, data: Path, images: int, subsets: int) -> Iterator[dict[str, Any]]:
    """The probe of the default recipe, fitted with other seeds of folds and heads on subsets of a set of photos."""
    source, options = {
        "clothing": ("clothing/groups.csv", {"label": "label", "group": "sender_id", "split": "none"}),
        "trash": ("trash", {}),
        "masks": ("masks/faces.csv", {"label": "label", "group": "photo"}),
    }[name]
    photos, recipe = uf.read(data / source, **options), uf.Recipe(strategy="probe")
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(photos, recipe, Path(folder), Reporter())
        found, _ = extract_inputs(photos.files(), work.looks.keys, work.usable, recipe, Reporter())
        features, classes = found.held(), len(photos.classes)
        for subset in range(subsets):
            units = np.random.default_rng(100 + subset).permutation(np.unique(work.units[work.folds >= 0]))
            count = int(np.searchsorted(np.cumsum(np.bincount(work.units)[units]), images)) + 1
            chosen = np.flatnonzero(np.isin(work.units, units[:count]) & (work.folds >= 0))
            fits = []
            for seed in range(SEEDS):
                folds = np.full(len(work.labels), -1)
                folds[chosen] = assign_folds(work.labels[chosen], work.units[chosen], 5, seed, classes)
                scratch = Path(folder) / f"{subset}-{seed}"
                scratch.mkdir()
                fits.append(np.zeros(len(work.labels), np.int64))
                words, mark = for_probe(recipe.balance), f"{subset}-{seed}"
                given = (features, work.labels, work.units, folds, classes, recipe.probe, seed, mark, scratch)
                for fold, head in fit_folds(*given, words=words):
                    own = np.flatnonzero(folds == fold)
                    fits[-1][own] = predict_folds(features, [head], own).argmax(1)
            yield _same(name, work.labels[chosen], work.units[chosen], [fit[chosen] for fit in fits], classes)


def _same(name: str, truth: Rows, units: Rows, fits: list[Rows], classes: int) -> dict[str, Any]:
    pairs = list(combinations(fits, 2))
    proba = np.eye(classes)
    found = [paired_difference(truth, proba[a], proba[b], units, resamples=DRAWS) for a, b in pairs]
    wrong = sum(_excludes(more) for more in found)
    design = f"{name}, {len(truth)} images, {np.mean([(a != b).mean() for a, b in pairs]):.1%} predicted differently"
    groups = len(np.unique(units))
    return _row(
        "A/A, other seeds", design, groups, effective_groups(units), 1, len(pairs), **_rate(wrong, len(pairs), 0.05)
    )
