"""What a report is made of: a run folder, read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

Context = dict[str, Any]


@dataclass(frozen=True)
class Material:
    """A run folder, read: what the sections are made of."""

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
    advice: Context | None = None
    diagnosis: dict[str, Any] | None = None

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.info["classes"]]

    @property
    def root(self) -> Path:
        return Path(self.info["root"])

    @property
    def judged(self) -> dict[str, Any]:
        """The out-of-fold scores."""
        return self.scores["out_of_fold"]

    @property
    def trained(self) -> pd.DataFrame:
        """The cross-validated photos."""
        return self.photos[self.photos["fold"] >= 0]

    @property
    def grouped(self) -> bool:
        """Whether photos come in groups at all."""
        return bool(self.trained["unit"].nunique() < len(self.trained))

    @property
    def straddling(self) -> int:
        """Groups that sit in more than one fold; 0 is what makes the score honest."""
        return int((self.trained.groupby("unit")["fold"].nunique() > 1).sum())

    @property
    def unseen(self) -> str:
        """What the out-of-fold predictions are about: groups the model never saw, or only photos."""
        return "groups" if self.grouped and not self.straddling else "photos"
