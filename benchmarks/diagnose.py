"""Faults planted into real photos, one at a time: where `diagnose` puts each, its size, and the alarms of a clean set.

Two thirds of a set are learnt from, a third is the test set; photos that have copies are left out beforehand, so that
nothing is wrong but what was planted. Clothing comes with its own groups (senders), and with its own labels' doubts.
A row's `rank` is the place of the planted cause among all, 1 the first; of a clean set, `alarms` counts the rows that
are a warning or an error. `true` is what the fault really costs, where that can be known: by the same photos without
it, or by the labels before they were flipped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance
from sklearn.metrics import f1_score

SETS = ("trash", "grocery")
FLIPPED = 0.1
HEADLINE = ("set", "planted", "rank", "severity", "cost", "low", "high", "true", "alarms", "seconds")
SHARES, LOOK = "shift: other class shares in the test photos", "shift: the test photos look different"
TESTED, COPIES = "leakage: training photos in the test set", "leakage: copies across folds"
GROUPS, CLOSE, WRONG = "leakage: groups across folds", "overfitting: learnt too closely", "labels: wrong ones"

Make = Callable[[Image.Image], Image.Image]


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """A row a set and planted fault. repeats does not count: draws are by one seed."""
    if data is None:
        return
    os.environ["UNFREEZE_CACHE"] = str(scratch / "cache")
    for name in SETS:
        yield from _planted(name, data / name, scratch / name)
    yield from _clothing(data / "clothing", scratch / "clothing")


def _planted(name: str, source: Path, place: Path) -> Iterator[dict[str, Any]]:
    place.mkdir(parents=True)
    draws = np.random.default_rng(0)
    train, test = _split(source, place, draws)
    plain = _fit(train, source, place / "plain")
    score = _score(plain, test, source)
    yield _row(name, "", plain, test, source, None)
    for fault, make in _LOOKS.items():
        folder = _copied(test, source, place / fault, make)
        real = _score(plain, test.assign(path=folder["path"]), place / fault)
        yield _row(name, fault, plain, folder, place / fault, LOOK, score - real)
    yield _row(name, "other class shares", plain, _unbalanced(test, draws), source, SHARES)
    known = pd.concat([test, train.sample(len(test) // 4, random_state=0)])
    yield _row(
        name, "training photos in the test set", plain, known, source, TESTED, _score(plain, known, source) - score
    )

    flipped = _flipped(train, draws)
    wrong = _fit(flipped, source, place / "flipped")
    oof = wrong.predictions().merge(train, on="path", suffixes=("", "_true"))
    said = _called(oof, wrong)
    macro = [f1_score(oof[key], said, average="macro") for key in ("label_true", "label")]
    yield _row(name, "10% of the labels flipped", wrong, None, source, WRONG, macro[0] - macro[1])
    close = _fit(train, source, place / "close", **{"probe.Cs": [1e5]})
    gained = plain.scores()["macro_f1"]["value"] - close.scores()["macro_f1"]["value"]
    yield _row(name, "hardly any penalty", close, None, source, CLOSE, gained)
    some = train.sample(len(train) // 4, random_state=1)
    again = _copied(some, source, place / "twice", lambda i: i.resize((int(0.8 * i.width), int(0.8 * i.height))))
    both = pd.concat(
        [train.assign(path=[str(source / p) for p in train["path"]]), again.assign(path=_below(again, place))]
    )
    torn = _fit(both, Path("/"), place / "torn", **{"folds.group_duplicates": False})
    yield _row(name, "copies across folds", torn, None, Path("/"), COPIES)


_LOOKS: dict[str, Make] = {
    "darkened": lambda image: ImageEnhance.Brightness(image).enhance(0.3),
    "stretched": lambda image: image.resize((2 * image.width, image.height)),
    "on their side": lambda image: image.transpose(Image.Transpose.ROTATE_90),
}


def _clothing(source: Path, place: Path) -> Iterator[dict[str, Any]]:
    """Split photo by photo, and as it should be."""
    place.mkdir(parents=True)
    table = pd.read_csv(source / "groups.csv").rename(columns={"file": "path", "sender_id": "group"})
    table = table[table["split"] != "test"][["path", "label", "group"]]
    right = _fit(table, source, place / "right")
    yield _row("clothing", "", right, None, source, None)
    wrong = _fit(table, source, place / "wrong", **{"folds.use_groups": False})
    flattered = wrong.scores()["macro_f1"]["value"] - right.scores()["macro_f1"]["value"]
    yield _row("clothing", "a split through senders", wrong, None, source, GROUPS, flattered)


def _split(source: Path, place: Path, draws: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and test photos of class folders (path below `source`, label); none of them has a copy."""
    inner = [p.relative_to(source).as_posix() for p in sorted(source.rglob("*.jpg"))]
    table = pd.DataFrame({"path": inner, "label": [Path(p).parent.name for p in inner]})
    units = _fit(table, source, place / "all").photos()
    alone = units.loc[~units["unit"].duplicated(keep=False), "path"]
    table = table[table["path"].isin(alone)].reset_index(drop=True)
    order = draws.permutation(len(table))
    cut = 2 * len(table) // 3
    return table.iloc[order[:cut]], table.iloc[order[cut:]]


def _fit(table: pd.DataFrame, root: Path, folder: Path, **changes: Any) -> Any:
    import unfreeze as uf
    from unfreeze.core.recipe import PRESETS

    file = folder.with_suffix(".csv")
    table.to_csv(file, index=False)
    keys = {"source.path": str(file), "source.root": str(root)}
    recipe = uf.Recipe().replace(strategy="probe", **PRESETS["fast"], **keys, **changes)
    return uf.fit(uf.read(file, recipe.source), recipe, folder)


def _row(
    name: str,
    planted: str,
    run: Any,
    test: pd.DataFrame | None,
    root: Path,
    cause: str | None,
    true: float | None = None,
) -> dict[str, Any]:
    import unfreeze as uf

    given = None
    if test is not None:
        given = run.path.parent / "test.csv"
        test.to_csv(given, index=False)
    started = time.perf_counter()
    found = uf.diagnose(run, given, root=root if given else "")
    seconds = time.perf_counter() - started
    grave = [c for c in found.causes if c.severity in ("warning", "error")]
    rank, row = next(((i, c) for i, c in enumerate(found.causes, 1) if c.name == cause), (0, None))
    cost = row.cost if row is not None else None
    return {
        "set": name,
        "planted": planted or "nothing",
        "photos": len(run.predictions()),
        "test_photos": found.test_photos,
        "rank": rank or "",
        "severity": row.severity if row is not None else "",
        **{
            key: round(cost[end], 4) if cost else ""
            for key, end in (("cost", "value"), ("low", "low"), ("high", "high"))
        },
        "true": "" if true is None else round(float(true), 4),
        "alarms": len(grave),
        "first": found.causes[0].name,
        "out_of_fold": round(found.score["value"], 4),
        "expected": round(found.expected["value"], 4) if found.expected else "",
        "real": round(found.real["value"], 4) if found.real else "",
        "seconds": round(seconds, 1),
    }


def _score(run: Any, table: pd.DataFrame, root: Path) -> float:
    """Macro F1 of the run on these photos."""
    import unfreeze as uf

    said = uf.load(run).predict([root / p for p in table["path"]])["label"]
    return float(f1_score(table["label"], said, average="macro"))


def _called(table: pd.DataFrame, run: Any) -> list[str]:
    proba = table[[f"p_{name}" for name in run.classes]].to_numpy()
    return [run.classes[i] for i in proba.argmax(1)]


def _copied(table: pd.DataFrame, source: Path, target: Path, make: Make) -> pd.DataFrame:
    """The photos, changed and written anew under `target`, with paths below it."""
    names = [f"{i:04d}.jpg" for i in range(len(table))]
    target.mkdir()
    for path, name in zip(table["path"], names, strict=True):
        with Image.open(source / path) as image:
            make(image.convert("RGB")).save(target / name, quality=92)
    return table.assign(path=names)


def _below(table: pd.DataFrame, place: Path) -> list[str]:
    return [str(place / "twice" / path) for path in table["path"]]


def _unbalanced(table: pd.DataFrame, draws: np.random.Generator) -> pd.DataFrame:
    """All photos of two classes, and one in six of the others."""
    most = table["label"].value_counts().index[:2]
    return table[table["label"].isin(most) | (draws.random(len(table)) < 1 / 6)]


def _flipped(table: pd.DataFrame, draws: np.random.Generator) -> pd.DataFrame:
    """A tenth of the labels replaced by another class, drawn at random."""
    classes = sorted(set(table["label"]))
    labels = table["label"].tolist()
    for i in draws.permutation(len(labels))[: round(FLIPPED * len(labels))]:
        labels[i] = str(draws.choice([c for c in classes if c != labels[i]]))
    return table.assign(label=labels)
