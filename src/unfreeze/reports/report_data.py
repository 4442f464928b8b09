"""Contents of a run folder as the report's sections read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from unfreeze.core.messages import unseen

Context = dict[str, Any]


@dataclass(frozen=True)
class ReportData:
    """Contents of a finished run folder.

    Attributes:
        name: Name of the data folder, or of the run.
        info: Content of run.json.
        recipe: Text of recipe.toml.
        photos: The image table.
        oof: Out-of-fold predictions.
        scores: Content of scores.json.
        environment: Content of environment.json.
        findings: Findings of the data checks.
        log: Rows of log.jsonl.
        suspects: Result of `unfreeze label-issues`, if there is one.
        recommendation: Context of the recommendation section, if there is one.
        diagnosis: Result of `unfreeze diagnose`, if there is one.
        selection: The search that selected the run, if there is one.
    """

    name: str
    info: dict[str, Any]
    recipe: str
    photos: pd.DataFrame
    oof: pd.DataFrame
    scores: dict[str, Any]
    environment: dict[str, Any]
    findings: pd.DataFrame
    log: tuple[dict[str, Any], ...] = ()
    suspects: dict[str, Any] | None = None
    recommendation: Context | None = None
    diagnosis: dict[str, Any] | None = None
    selection: dict[str, Any] | None = None

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.info["classes"]]

    @property
    def root(self) -> Path:
        return Path(self.info["root"])

    @property
    def judged(self) -> dict[str, Any]:
        """Out-of-fold scores."""
        return self.scores["out_of_fold"]

    @property
    def trained(self) -> pd.DataFrame:
        """Cross-validated images."""
        return self.photos[self.photos["fold"] >= 0]

    @property
    def grouped(self) -> bool:
        """Whether any group has more than one image."""
        return bool(self.trained["unit"].nunique() < len(self.trained))

    @property
    def straddling(self) -> int:
        """Number of groups that are split over several folds; the score is only group-safe if this is 0."""
        return int((self.trained.groupby("unit")["fold"].nunique() > 1).sum())

    @property
    def unseen(self) -> str:
        """Unit that the score generalizes to: unseen groups, or only unseen images."""
        return "images" if self.straddling else unseen(self.scores)
