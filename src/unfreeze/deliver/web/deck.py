"""What the review page goes through: the suspects of a run with their groups and probabilities, and the verdicts."""

from __future__ import annotations

import math
import shlex
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unfreeze.core.cache import content_key
from unfreeze.core.errors import PhotoError, VerdictsError
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run, open_run
from unfreeze.core.tables import probability_columns
from unfreeze.core.verdicts import Verdict, append_verdict, now, read_verdicts, withdraw_verdict
from unfreeze.data.images import read_bytes
from unfreeze.study.suspects import find_suspects

MATES = 12  # other photos of the group that are shown
LEAST = 20  # photos to judge, if nobody says
_KEYS = 9  # classes that have a digit


@dataclass
class Deck:
    """The photos to judge, in order, and what has been said of them. One deck a server.

    cards: what the page shows of each; `id` is the photo's row in `paths`. file: where verdicts go.
    """

    run: Run
    file: Path
    cards: list[dict[str, Any]]
    paths: list[str]
    hashes: list[str]
    judged: int  # photos that the run has out-of-fold predictions for
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def root(self) -> Path:
        """The folder that the paths start from."""
        return Path(self.run.info["root"])

    def judge(self, row: int, verdict: str, label: str = "") -> None:
        """Writes a verdict down, at once. VerdictsError: no such photo or class; StorageError: cannot be written."""
        self._known(row)
        if verdict == "relabel" and label not in self.run.classes:
            raise VerdictsError(f"'{label}' is no class of this run.")
        with self.lock:
            said = Verdict(self.paths[row], self._hash(row), verdict, label if verdict == "relabel" else "", now())
            append_verdict(self.file, said)
            self.verdicts.pop(row, None)
            self.verdicts[row] = said

    def undo(self) -> int | None:
        """Takes the last verdict back and says about which photo it was; None if there is none."""
        shown = {card["id"] for card in self.cards}
        with self.lock:
            row = next((row for row in reversed(self.verdicts) if row in shown), None)
            if row is None:
                return None
            withdraw_verdict(self.file, self.paths[row])
            self._load()
            return row

    def state(self) -> dict[str, Any]:
        """The verdicts on the cards, and how many of each kind."""
        rows = {card["id"] for card in self.cards}
        mine = {row: {"verdict": v.verdict, "label": v.label} for row, v in self.verdicts.items() if row in rows}
        return {
            "verdicts": mine,
            "counts": dict(Counter(v["verdict"] for v in mine.values())),
            "done": len(mine),
            "of": len(rows),
        }

    def described(self) -> dict[str, Any]:
        """All that the page needs to know."""
        return {
            "cards": self.cards,
            "classes": list(self.run.classes),
            "file": str(self.file),
            "next": fit_command(self.run, self.file),
            **self.state(),
        }

    def _known(self, row: int) -> None:
        if row not in {card["id"] for card in self.cards}:
            raise VerdictsError("that photo is not among those to judge; reload the page.")

    def _hash(self, row: int) -> str:
        """Of what the file holds now: that is what the person sees."""
        try:
            first, second = content_key(read_bytes(self.root / self.paths[row]))
        except PhotoError:
            return self.hashes[row]
        return f"{first:016x}{second:016x}"

    def _load(self) -> None:
        row_of = {path: i for i, path in enumerate(self.paths)}
        if self.file.exists() and self.file.stat().st_size:
            found, _ = read_verdicts(self.file, self.run.classes)
            self.verdicts = {row_of[v.path]: v for v in found if v.path in row_of}
        else:
            self.verdicts = {}


def open_deck(
    run: str | Path | Run, file: Path | None = None, limit: int = 0, reporter: Reporter | None = None
) -> Deck:
    """The deck of a finished run. limit: photos to judge; 0: twice as many as are expected to be wrong, at least 20.

    Verdicts that the file holds already are taken up. Raises RunError, VerdictsError, SourceError.
    """
    run = run if isinstance(run, Run) else open_run(run)
    found = find_suspects(run, None, reporter)
    photos = run.photos()
    count = limit or max(LEAST, math.ceil(2 * found.expected))
    cards = _cards(run, photos, found.table.head(count))
    deck = Deck(
        run,
        (file or run.path / "verdicts.csv").expanduser().absolute(),
        cards,
        photos["path"].tolist(),
        photos["hash"].tolist(),
        found.photos,
    )
    deck._load()
    return deck


def fit_command(run: Run, file: Path) -> str:
    """The fit that obeys the verdicts, everything else as in the run."""
    source = run.recipe.source.path or "SOURCE"
    recipe = str(run.path / "recipe.toml")
    return shlex.join(["unfreeze", "fit", source, "--recipe", recipe, "--verdicts", str(file)])


def _cards(run: Run, photos: pd.DataFrame, table: pd.DataFrame) -> list[dict[str, Any]]:
    row_of = {path: i for i, path in enumerate(photos["path"])}
    oof = run.predictions()
    told_of = dict(zip(oof["path"], oof[probability_columns(run.classes)].to_numpy(float), strict=True))
    members = photos.groupby("unit").indices
    units, labels = photos["unit"].to_numpy(), photos["label"].tolist()
    sizes = photos[["width", "height"]].to_numpy(int) if "width" in photos else np.ones((len(photos), 2), int)
    cards = []
    for number, suspect in enumerate(table.to_dict("records"), start=1):
        path, label, suggested = (str(suspect[key]) for key in ("path", "label", "suggested"))
        row = row_of[path]
        told = dict(zip(run.classes, told_of[path], strict=True))
        likely = sorted(run.classes, key=lambda c: -told[c])
        keys = list(run.classes) if len(run.classes) <= _KEYS else likely[:_KEYS]
        shown = {label, suggested, *likely[:3]}
        mates = [int(i) for i in members[units[row]] if i != row]
        cards.append(
            {
                "id": row,
                "number": number,
                "path": path,
                "label": label,
                "suggested": suggested,
                "score": round(float(suspect["score"]), 4),
                "reason": str(suspect["reason"]),
                "told": [[c, round(told[c], 4)] for c in likely if c in shown],
                "keys": keys,
                "size": [int(v) for v in sizes[row]],
                "mates": [{"id": i, "label": labels[i]} for i in mates[:MATES]],
                "mate_count": len(mates),
            }
        )
    return cards
