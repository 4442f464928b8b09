"""Do the photos to learn from look like those to be judged on? One table, one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from unfreeze.core.errors import SourceError, listed
from unfreeze.core.progress import Reporter
from unfreeze.core.qualities import QUALITIES
from unfreeze.core.recipe import Recipe
from unfreeze.core.tables import Finding, Photos
from unfreeze.data.listing import list_images
from unfreeze.data.looks import Looks, look
from unfreeze.judge.shift import FOLDS, ToldApart, told_apart
from unfreeze.learn.probe.inputs import compute_inputs

# Of either set; more of them change the interval little and cost a pass of the network.
MOST = 5000
# AUC below which a difference that is sure is still too small to act on, and from which it is plain.
SLIGHT, PLAIN = 0.6, 0.8
HALVES = 5
_FIX = {
    "info": "none needed",
    "warning": "look at the photos least like the other set: another camera, light, crop or kind of photo; "
    "gather training photos like the test photos, or augment towards them",
}


@dataclass(frozen=True)
class Against:
    """Training photos against test photos.

    result: the AUC, its interval and all probabilities. training, test: tables of path and `probability` of being a
    test photo, out of fold; the least like the other set first. copies: pairs `training`, `test`, `kind` ('exact' or
    'near'), the same photo in both sets. root, test_root: folders that their paths start from. halves: where the
    training photos come in groups and those of the test photos are not known, the AUC of halves of the training
    photos with the groups of one half hidden: what recognising a group again is worth without any shift.
    """

    result: ToldApart
    training: pd.DataFrame
    test: pd.DataFrame
    copies: pd.DataFrame
    root: Path
    test_root: Path
    halves: tuple[float, ...] = ()

    @property
    def apart(self) -> bool:
        """Whether the interval lies above guessing, and above every one of `halves`."""
        return self.result.low > max(0.5, *self.halves, 0.5)

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        r = self.result
        told = f"AUC {r.auc:.2f} ({r.low:.2f} to {r.high:.2f})"
        if self.halves:
            told += f"; halves of the training photos, the groups of one hidden, give {np.mean(self.halves):.2f}"
        if not self.apart:
            return f"A classifier cannot tell the test photos from the training photos: {told}, and .5 is guessing."
        how = "plainly" if r.auc >= PLAIN else "partly" if r.auc >= SLIGHT else "just"
        return f"A classifier can {how} tell the test photos from the training photos: {told}, where .5 is guessing."

    def findings(self) -> list[Finding]:
        """`shift` in any case, and `test-duplicates` where a test photo is among the training photos."""
        severity = "warning" if self.apart and self.result.auc >= SLIGHT else "info"
        found = [Finding("shift", severity, self.sentence.rstrip("."), _FIX[severity])]  # type: ignore[arg-type]
        if len(self.copies):
            named = [f"{c.training} = {c.test}" for c in self.copies.itertuples()]
            found.append(
                Finding(
                    "test-duplicates",
                    "warning",
                    f"{len(named)} test photo(s) are also training photos, exactly or nearly: {listed(named, 3)}",
                    "remove them from one side: the test score is flattered",
                )
            )
        return found

    def json(self, most: int = 20) -> dict[str, Any]:
        """As JSON: the AUC with its interval, the `most` photos least like the other set on both sides, and copies."""
        return {
            "auc": {"value": self.result.auc, "low": self.result.low, "high": self.result.high},
            "halves": list(self.halves),
            "apart": self.apart,
            "training": self.training.head(most).to_dict("records"),
            "test": self.test.head(most).to_dict("records"),
            "copies": self.copies.to_dict("records"),
        }


def against(
    photos: Photos,
    test: Photos | str | Path,
    recipe: Recipe | None = None,
    reporter: Reporter | None = None,
) -> Against:
    """Whether a classifier can tell `test` from the training photos by a frozen backbone's features.

    test: a folder of photos, a table that names them, or Photos (all its rows). recipe: its backbone and seed count;
    the features are those of `--quality fast`, from the cache where they are. Of either set at most MOST photos,
    drawn by the seed. Raises SourceError where a set has too few photos or groups that can be read.
    """
    recipe, reporter = (recipe or Recipe()).replace(**QUALITIES["fast"]), reporter or Reporter()
    limit = int(recipe.image.max_megapixels * 1e6)
    train = photos.with_table(photos.table[photos.table["split"] == "train"].reset_index(drop=True))
    other = test if isinstance(test, Photos) else _listed(Path(test))
    looks = look(train, limit, reporter), look(other, limit, reporter)
    draws = np.random.default_rng(recipe.seed)
    features, rows, groups = [], [], []
    for part, seen in zip((train, other), looks, strict=True):
        usable = _drawn(np.flatnonzero(seen.readable), draws)
        readable = np.zeros(len(part), bool)
        readable[usable] = True
        columns, _ = compute_inputs(part.files(), seen.keys, readable, recipe, reporter)
        kept = usable[~np.isin(usable, list(columns.failed))]
        table = part.table.iloc[kept]
        features.append(columns.read(kept))
        rows.append(table["path"].to_numpy())
        groups.append((table["unit"] if "unit" in table else table["group"]).to_numpy())
    for name, of, seen in zip(("training", "test"), groups, looks, strict=True):
        if len(set(of.tolist())) < 2 * FOLDS:
            raise SourceError(
                f"the {name} photos have {len(set(of.tolist()))} groups that can be read ({int(seen.readable.sum())} "
                f"photos); telling two sets apart needs {2 * FOLDS} of each."
            )
    copies = _copies(train, other, *looks)
    # Names of groups are the source's own: the same name in the other set is another group.
    named = [np.array([f"{side}:{name}" for name in of]) for side, of in enumerate(groups)]
    # The systems are small: more than one thread would mostly wait for another.
    with threadpool_limits(1):
        result = told_apart(features[0], features[1], named[0], named[1], recipe.seed)
        hidden = _hidden(groups[0], groups[1])
        halves = _halves(features[0], groups[0], len(features[1]), draws) if hidden else ()
    return Against(
        result,
        _ranked(rows[0], result.first, ascending=True),
        _ranked(rows[1], result.second, ascending=False),
        copies,
        train.root,
        other.root,
        halves,
    )


def _hidden(mine: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether the training photos come in groups, and the test photos' are not known."""
    return len(set(mine.tolist())) < 0.9 * len(mine) and len(set(theirs.tolist())) == len(theirs)


def _halves(features: np.ndarray, groups: np.ndarray, size: int, draws: np.random.Generator) -> tuple[float, ...]:
    """AUC of some of the groups against the others, each photo of the former told to be its own group."""
    names = np.unique(groups)
    wanted = min(size, len(groups) // 2)
    found = []
    for _ in range(HALVES):
        order = draws.permutation(names)
        sizes = np.cumsum([(groups == name).sum() for name in order])
        second = np.isin(groups, order[: max(1, int(np.searchsorted(sizes, wanted)))])
        if len(np.unique(groups[~second])) < 2 * FOLDS or second.sum() < 2 * FOLDS:
            return ()
        one, two = np.flatnonzero(~second), np.flatnonzero(second)
        hidden = np.array([f"hidden:{i}" for i in two])
        named = np.array([f"known:{name}" for name in groups[one]])
        found.append(told_apart(features[one], features[two], named, hidden, resamples=0).auc)
    return tuple(found)


def _listed(path: Path) -> Photos:
    root, names = list_images(path)
    table = pd.DataFrame({"path": names, "label": "", "group": names, "split": "test"}).drop_duplicates("path")
    return Photos(table.reset_index(drop=True), root, ("",), ("",), (), "list", f"{len(table):,} photos of {path}")


def _drawn(rows: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= MOST else np.sort(draws.choice(rows, MOST, replace=False))


def _ranked(paths: np.ndarray, probability: np.ndarray, ascending: bool) -> pd.DataFrame:
    table = pd.DataFrame({"path": paths, "probability": probability})
    return table.sort_values("probability", ascending=ascending, kind="stable", ignore_index=True)


def _copies(train: Photos, test: Photos, seen: Looks, other: Looks) -> pd.DataFrame:
    """Pairs of one photo in both sets."""
    both, n = seen.beside(other), len(train)
    found = []
    for kind, pairs in zip(("exact", "near"), both.duplicates, strict=True):
        across = pairs[(pairs[:, 0] < n) & (pairs[:, 1] >= n)]
        found.append(
            pd.DataFrame(
                {
                    "training": train.table["path"].to_numpy()[across[:, 0]],
                    "test": test.table["path"].to_numpy()[across[:, 1] - n],
                    "kind": kind,
                }
            )
        )
    return pd.concat(found, ignore_index=True)
