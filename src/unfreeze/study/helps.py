"""Whether blending, further views or a vote of each group help: told out of fold, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.errors import RunError, SourceError
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run, open_run
from unfreeze.core.tables import probability_columns
from unfreeze.judge.by_group import group_scores
from unfreeze.judge.many import macro, many_differences
from unfreeze.judge.metrics import out_of_fold_scores
from unfreeze.judge.selection import nested_blend
from unfreeze.judge.voting import nested_votes
from unfreeze.learn.blend import OutOfFold, named_runs
from unfreeze.learn.classifier import Classifier
from unfreeze.learn.tta import seen_as
from unfreeze.learn.voting import Shared

Proba = NDArray[np.float64]


@dataclass(frozen=True)
class Way:
    """One way to answer. scores: accuracy, macro_f1, log_loss, each {"value", "low", "high"}. difference: in macro F1
    to the way named `against`, with its interval; None for the first, and for single runs beside a blend."""

    name: str
    scores: dict[str, dict[str, float]]
    difference: dict[str, float] | None = None
    against: str = ""

    @property
    def verdict(self) -> str:
        """helps, hurts or cannot be told."""
        if self.difference is None:
            return ""
        if self.difference["low"] > 0:
            return "helps"
        return "hurts" if self.difference["high"] < 0 else "cannot be told"


@dataclass(frozen=True)
class Helps:
    """Ways to answer with finished runs, out of fold. weights: each run's share in the blend, if there is one."""

    ways: tuple[Way, ...]
    photos: int
    groups: int
    weights: dict[str, float]
    sentence: str

    def described(self) -> dict[str, Any]:
        """The same as JSON."""
        rows = [
            {"name": w.name, **w.scores, "difference": w.difference, "against": w.against, "verdict": w.verdict}
            for w in self.ways
        ]
        return {
            "ways": rows,
            "photos": self.photos,
            "groups": self.groups,
            "weights": self.weights,
            "sentence": self.sentence,
        }


def helps(
    run: str | Path | Run | Sequence[str | Path | Run],
    *,
    tta: str | None = None,
    vote: bool = False,
    reporter: Reporter | None = None,
) -> Helps:
    """Scores of a run, or of several that are blended, with what was asked for; nothing is scored on what chose it.

    run: one finished run, several, or "RUN+RUN". Of several, weights are chosen on the other folds for each fold
    (nested), and the blend is held against the best single run chosen in the same way. tta: further views, as of
    `Classifier.predict`; each fold's photos are predicted anew by what was learnt without them. vote: photos of a group
    agree on what groups share. Raises RunError, SourceError.
    """
    reporter = reporter or Reporter()
    named = [run] if isinstance(run, Run) else named_runs(run) if isinstance(run, str | Path) else list(run)
    runs = [r if isinstance(r, Run) else open_run(r) for r in named]
    if len(runs) < 2 and not tta and not vote:
        raise RunError(
            f"{runs[0].path}: nothing to try; name several runs as RUN+RUN, views (--tta) or a vote (--vote)."
        )
    found, first = OutOfFold.of(runs), runs[0]
    shared = Shared.of(first) if vote else None
    folds = found.table["fold"].to_numpy(np.int64)
    ways: dict[str, tuple[Proba, str]] = {}
    base, probas = "as it is", found.probas
    names = _names(runs)
    if len(runs) > 1:
        blend, single = nested_blend(found.truth, found.probas, folds)
        base = "best single run, chosen inside"
        ways |= {base: (single, ""), "blend": (blend, base)}
        ways |= {name: (proba, "") for name, proba in zip(names, found.probas, strict=True)}
    else:
        ways[base] = (found.probas[0], "")
    last = list(ways)[1] if len(runs) > 1 else base
    if tta:
        seen = [seen_as(tta, r.recipe.probe.views) for r in runs]
        if all(s == seen_as(None, r.recipe.probe.views) for s, r in zip(seen, runs, strict=True)):
            raise SourceError(f"--tta {tta}: is how the run predicts already; name further views.")
        again = [_anew(r, found, tta, reporter) for r in runs]
        probas = tuple(np.where(np.isfinite(a), a, p) for a, p in zip(again, found.probas, strict=True))
        proba = nested_blend(found.truth, probas, folds)[0] if len(runs) > 1 else probas[0]
        ways[f"{last}, views {tta}" if len(runs) > 1 else f"views {tta}"] = (proba, last)
        last = list(ways)[-1]
    if shared is not None:
        agreed = nested_votes(found.truth, ways[last][0], shared.of_class, found.groups, folds)
        name = f"vote of each group on {', '.join(shared.names)}"
        ways[name if last == base else f"{last}, {name}"] = (agreed, last)
    judged = _judged(ways, found, first)
    weights = dict(zip(names, found.weights().tolist(), strict=True)) if len(runs) > 1 else {}
    return Helps(judged, len(found.truth), len(np.unique(found.units)), weights, _sentence(judged))


def by_group(run: str | Path | Run) -> pd.DataFrame:
    """The scores of each group of a run, out of fold, the worst first; columns as of `judge.by_group.group_scores`."""
    run = run if isinstance(run, Run) else open_run(run)
    found = OutOfFold.of([run])
    return group_scores(found.truth, found.probas[0], found.groups, run.classes)


def _names(runs: Sequence[Run]) -> list[str]:
    """Names of their folders; whole paths where two are called the same."""
    short = [run.path.name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.path) for run in runs]


def _anew(run: Run, found: OutOfFold, tta: str, reporter: Reporter) -> Proba:
    """(n, C) in the first run's order: each photo by what has not seen it, over further views; NaN if unreadable."""
    root, oof = Path(run.info["root"]), run.predictions().set_index("path")
    paths = found.table["path"]
    own = oof.loc[paths, "fold"].to_numpy(np.int64)
    out = np.full(found.probas[0].shape, np.nan)
    if run.strategies == ("probe",):  # the views of all photos at once: one network is opened, not one a fold
        Classifier.load(run, folds=(int(own[0]),)).predict([root / p for p in paths], tta=tta, reporter=reporter)
        reporter = Reporter()
    for fold in np.unique(own).tolist():
        rows = np.flatnonzero(own == fold)
        classifier = Classifier.load(run, folds=(fold,))
        table = classifier.predict([root / p for p in paths.iloc[rows]], tta=tta, reporter=reporter)
        out[rows] = table[probability_columns(found.classes)].to_numpy(np.float64)
    lost = int((~np.isfinite(out).all(1)).sum())
    if lost == len(out):
        raise SourceError(f"{root}: none of the run's photos can be read any more, so views cannot be tried on them.")
    if lost:
        reporter.say(f"{lost:,} photos can no longer be read; of these the stored prediction counts.")
    return out


def _judged(ways: dict[str, tuple[Proba, str]], found: OutOfFold, run: Run) -> tuple[Way, ...]:
    told = {name: proba.argmax(1) for name, (proba, _) in ways.items()}
    differences: dict[str, dict[str, float]] = {}
    for base in dict.fromkeys(against for _, against in ways.values() if against):
        others = {name: told[name] for name, (_, against) in ways.items() if against == base}
        seed, count = run.recipe.seed, len(run.classes)
        many = many_differences(found.truth, told[base], others, found.units, count, {"macro": macro}, seed=seed)
        differences |= {name: many[name]["macro"]["difference"] for name in others}
    out = []
    for name, (proba, against) in ways.items():
        scores = out_of_fold_scores(found.truth, proba, found.units, run.classes, seed=run.recipe.seed)
        heads = {k: scores[k] for k in ("macro_f1", "accuracy", "log_loss")}
        out.append(Way(name, heads, differences.get(name), against))
    return tuple(out)


def _sentence(ways: tuple[Way, ...]) -> str:
    """`Blend helps: +1.3 points of macro F1 on best single run, chosen inside (95 % between +0.4 and +2.2).`"""
    told = []
    for way in ways:
        if way.difference is None:
            continue
        d = {k: 100 * v for k, v in way.difference.items()}
        sure = {"helps": "helps", "hurts": "hurts", "cannot be told": "may be chance"}[way.verdict]
        told.append(
            f"{way.name[0].upper()}{way.name[1:]}: {d['value']:+.1f} points of macro F1 against '{way.against}' "
            f"(95 % between {d['low']:+.1f} and {d['high']:+.1f}): {sure}."
        )
    return " ".join(told)
