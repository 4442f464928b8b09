"""Label review: a web page that shows suspected label errors one by one and saves corrections immediately.

`ReviewQueue` holds the suspects of a run and the corrections; `page` creates the routes.
"""

from __future__ import annotations

import math
import shlex
import threading
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from unfreeze.analysis.label_issues import find_run_label_issues
from unfreeze.core.cache import content_hash
from unfreeze.core.corrections import Correction, append_correction, now, read_corrections, withdraw_correction
from unfreeze.core.dataset import probability_columns
from unfreeze.core.errors import CorrectionsError, PhotoError, UnfreezeError
from unfreeze.core.names import matching, positions
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run, as_run
from unfreeze.data.decode import read_bytes
from unfreeze.reports.html import templates
from unfreeze.reports.thumbnails import scaled_jpeg
from unfreeze.server.access import AccessPolicy
from unfreeze.server.studio.library import inside

MATES = 12  # other images of the group that are shown
LEAST = 20  # default minimum number of images to review
_KEYS = 9  # classes with a digit as keyboard shortcut


@dataclass
class ReviewQueue:
    """Images to review, in order, and the corrections. One per server.

    Attributes:
        run: The run.
        file: File for the corrections.
        cards: What the page shows of each image; `id` is the index of the image in `paths`.
        paths: Paths of all images of the run.
        hashes: Content hashes of all images of the run.
        judged: Number of images with out-of-fold predictions.
        corrections: Corrections by index of the image, oldest first.
        lock: Guards `corrections` and the file.
    """

    run: Run
    file: Path
    cards: list[dict[str, Any]]
    paths: list[str]
    hashes: list[str]
    judged: int
    corrections: dict[int, Correction] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def root(self) -> Path:
        """Folder that the paths are relative to."""
        return Path(self.run.info["root"])

    def judge(self, row: int, correction: str, label: str = "") -> None:
        """Save a correction immediately.

        Args:
            row: Index of the image.
            correction: 'keep', 'relabel' or 'exclude'.
            label: New label, for 'relabel'.

        Raises:
            CorrectionsError: No such image or class.
            StorageError: The file cannot be written.
        """
        self._known(row)
        if correction == "relabel":
            meant = matching(label, self.run.classes)
            if meant is None:
                raise CorrectionsError(f"'{label}' is no class of this run.")
            label = meant
        with self.lock:
            said = Correction(
                self.paths[row], self._hash(row), correction, label if correction == "relabel" else "", now()
            )
            append_correction(self.file, said)
            self.corrections.pop(row, None)
            self.corrections[row] = said

    def undo(self) -> int | None:
        """Withdraw the last correction and return the index of its image; None if there is none."""
        shown = {card["id"] for card in self.cards}
        with self.lock:
            row = next((row for row in reversed(self.corrections) if row in shown), None)
            if row is None:
                return None
            withdraw_correction(self.file, self.corrections[row].path)
            self._load()
            return row

    def state(self) -> dict[str, Any]:
        """Corrections on the cards, and their number by kind."""
        rows = {card["id"] for card in self.cards}
        mine = {row: {"action": v.action, "label": v.label} for row, v in self.corrections.items() if row in rows}
        return {
            "corrections": mine,
            "counts": dict(Counter(v["action"] for v in mine.values())),
            "done": len(mine),
            "of": len(rows),
        }

    def described(self) -> dict[str, Any]:
        """Everything that the page needs, JSON-serializable."""
        return {
            "cards": self.cards,
            "classes": list(self.run.classes),
            "file": str(self.file),
            "next": fit_command(self.run, self.file),
            **self.state(),
        }

    def _known(self, row: int) -> None:
        if row not in {card["id"] for card in self.cards}:
            raise CorrectionsError("that photo is not among those to judge; reload the page.")

    def _hash(self, row: int) -> str:
        """Hash of the current content of the file, since that is what the reviewer sees."""
        try:
            first, second = content_hash(read_bytes(self.root / self.paths[row]))
        except PhotoError:
            return self.hashes[row]
        return f"{first:016x}{second:016x}"

    def _load(self) -> None:
        last: dict[int, Correction] = {}
        if self.file.exists() and self.file.stat().st_size:
            found, _ = read_corrections(self.file, self.run.classes)
            for row, said in zip(positions((v.path for v in found), self.paths), found, strict=True):
                if row >= 0:
                    last.pop(row, None)  # ordered by the latest correction on each image
                    last[row] = said
        self.corrections = last


def open_deck(
    run: str | Path | Run, file: Path | None = None, limit: int = 0, reporter: Reporter | None = None
) -> ReviewQueue:
    """Create the review queue of a finished run. Corrections that are already in the file are loaded.

    Args:
        run: A finished run.
        file: File for the corrections, by default corrections.csv in the run folder.
        limit: Number of images to review; 0 for twice the expected number of label errors, at least 20.
        reporter: Receives progress.

    Raises:
        RunError: The run cannot be loaded.
        CorrectionsError: The file of corrections is invalid.
        SourceError: The label issues cannot be computed.
    """
    run = as_run(run)
    found = find_run_label_issues(run, None, reporter)
    photos = run.photos()
    count = limit or max(LEAST, math.ceil(2 * found.wrong["value"]))
    cards = _cards(run, photos, found.table.head(count))
    deck = ReviewQueue(
        run,
        (file or run.path / "corrections.csv").expanduser().absolute(),
        cards,
        photos["path"].tolist(),
        photos["hash"].tolist(),
        found.photos,
    )
    deck._load()
    return deck


def fit_command(run: Run, file: Path) -> str:
    """Command that fits a run with the corrections and otherwise the same recipe."""
    source = run.recipe.source.path or "SOURCE"
    recipe = str(run.path / "recipe.toml")
    return shlex.join(["unfreeze", "fit", source, "--recipe", recipe, "--corrections", str(file)])


def _cards(run: Run, photos: pd.DataFrame, table: pd.DataFrame) -> list[dict[str, Any]]:
    row_of = {path: i for i, path in enumerate(photos["path"])}
    oof = run.predictions()
    probabilities_of = dict(zip(oof["path"], oof[probability_columns(run.classes)].to_numpy(float), strict=True))
    members = photos.groupby("unit").indices
    units, labels = photos["unit"].to_numpy(), photos["label"].tolist()
    sizes = photos[["width", "height"]].to_numpy(int) if "width" in photos else np.ones((len(photos), 2), int)
    cards = []
    for number, suspect in enumerate(table.to_dict("records"), start=1):
        path, label, suggested = (str(suspect[key]) for key in ("path", "label", "suggested"))
        row = row_of[path]
        probabilities = dict(zip(run.classes, probabilities_of[path], strict=True))
        likely = sorted(run.classes, key=lambda c: -probabilities[c])
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
                "probabilities": [[c, round(probabilities[c], 4)] for c in likely if c in shown],
                "keys": keys,
                "size": [int(v) for v in sizes[row]],
                "mates": [{"id": i, "label": labels[i]} for i in mates[:MATES]],
                "mate_count": len(mates),
            }
        )
    return cards


SIDES = {"large": 1024, "small": 240}  # pixels of the longer side
_KEPT = 400  # scaled images cached in memory, at most 0.1 MB each


class Decision(BaseModel):
    """A correction sent by the page. `id` is the index of the image; paths are never accepted."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: int = Field(ge=0)
    action: Literal["keep", "relabel", "exclude"]
    label: str = Field(default="", max_length=10_000)


def page(deck: ReviewQueue, guard: AccessPolicy, base: str = "", back: str = "") -> APIRouter:
    """Create the routes of the review page.

    Args:
        deck: The review queue.
        guard: Access policy.
        base: Path that the routes are mounted at, such as `/runs/masks/review`.
        back: Target of the page's back link.
    """
    router = APIRouter()
    environment = templates()

    @lru_cache(maxsize=_KEPT)
    def scaled(row: int, side: int) -> bytes:
        return scaled_jpeg(inside(deck.root, deck.paths[row]), side)

    @router.get("/", response_class=HTMLResponse)
    def show() -> str:
        return environment.get_template("review.html").render(
            name=deck.root.name or deck.run.path.name,
            run=deck.run.path,
            deck=deck.described(),
            judged=deck.judged,
            form_token=guard.form_token,
            base=base,
            back=back,
        )

    @router.get("/photos/{row}/{size}.jpg")
    def photo(row: int, size: str) -> Response:
        if not 0 <= row < len(deck.paths) or size not in SIDES:
            return Response(status_code=404)
        try:
            content = scaled(row, SIDES[size])
        except PhotoError as error:
            return Response(error.reason, 404, media_type="text/plain")
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=600"})

    @router.post("/corrections")
    def judge(decision: Decision) -> JSONResponse:
        return _answered(deck, lambda: deck.judge(decision.id, decision.action, decision.label))

    @router.post("/corrections/undo")
    def undo(request: Request) -> JSONResponse:
        return _answered(deck, deck.undo)

    return router


def _answered(deck: ReviewQueue, act: Any) -> JSONResponse:
    """State of the queue after `act` and its return value; errors become a message for the page."""
    try:
        row = act()
    except CorrectionsError as error:
        return JSONResponse({"error": str(error)}, 422)
    except (UnfreezeError, OSError) as error:
        return JSONResponse({"error": f"Not saved: {error}"}, 500)
    return JSONResponse({"id": row, **deck.state()})
