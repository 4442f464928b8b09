"""Response models of the prediction API, and the conversion of outcomes to responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from unfreeze.core.errors import PhotoError
from unfreeze.data.decode_process import CostError
from unfreeze.data.image_formats import UNKNOWN, format_of_refusal
from unfreeze.inference.confidence import ConfidenceTable
from unfreeze.server.serve.batching import Outcome
from unfreeze.server.serve.limits import RefusedError


class Confidence(BaseModel):
    """Confidence of the prediction, and the accuracy of out-of-fold predictions with a similar confidence."""

    probability: float = Field(description="of the class named in `label`")
    word: str = Field(
        description="very sure, sure, fairly sure, unsure or a guess: by `right`; unknown where no out-of-fold "
        "prediction was this uncertain"
    )
    right: float | None = Field(
        description="share of right predictions among out-of-fold photos it was about as sure of; null where `word` is "
        "unknown, as are `low` and `high`"
    )
    low: float | None = Field(description="lower end of its 95% interval, by resampling groups")
    high: float | None = Field(description="upper end of it")
    photos: int = Field(description="how many photos that share is of; 0 where `word` is unknown")
    meaning: str = Field(description="the same in words")


class Prediction(BaseModel):
    """Result for one image: a prediction or an `error`."""

    name: str
    label: str | None = Field(description="the most probable class; null where there is an error")
    probabilities: dict[str, float] | None = Field(description="of every class, in the run's order; they sum to 1")
    certainty: Confidence | None
    error: str | None = Field(description="why there is no prediction")


class Predictions(BaseModel):
    """One entry per file, in the order sent."""

    photos: list[Prediction]


class HeatMap(BaseModel):
    """Evidence for `label` (positive) against `runner_up` (negative) by cell, row 0 at the top."""

    method: str = Field(description="cells, grad-cam, rollout or occlusion")
    title: str = Field(description="what was looked into")
    unit: str = Field(description="logits, probability or share")
    square: tuple[float, float, float, float] = Field(
        description="left, top, right, bottom of what the map lies on, as shares of the upright photo"
    )
    cells: list[list[float]]
    margin: float | None = Field(description="how far the two classes are apart, in the unit; null for rollout")
    meaning: str = Field(description="what such a map says, and what it does not")


class Explanation(BaseModel):
    """Heat maps of one image; several if several kinds of networks are combined."""

    name: str
    label: str
    runner_up: str
    maps: list[HeatMap]


class Error(BaseModel):
    """Why the request has no result."""

    error: str
    kind: str


def kind_of(outcome: Outcome) -> str:
    """Kind of an image's error, a key of KINDS."""
    if not isinstance(outcome, PhotoError):
        return "failed"
    if isinstance(outcome, CostError):
        return "too_costly"
    reason = outcome.reason
    if reason.startswith(UNKNOWN) or format_of_refusal(reason):
        return "not_an_image"
    if reason == "the file is empty":
        return "empty"
    return "too_many_pixels" if "pixels" in reason and ("limit" in reason or "bomb" in reason) else "damaged"


def predicted(name: str, outcome: Outcome, classes: Sequence[str], certainty: ConfidenceTable) -> dict[str, Any]:
    """An outcome as a JSON-serializable `Prediction`."""
    if isinstance(outcome, Exception):
        # Messages of other errors may contain local paths.
        reason = outcome.reason if isinstance(outcome, PhotoError) else "the prediction failed"
        return {"name": name, "label": None, "probabilities": None, "certainty": None, "error": reason}
    best = int(outcome.argmax())
    top = float(outcome[best])
    step = certainty.meaning(top)
    return {
        "name": name,
        "label": classes[best],
        "probabilities": dict(zip(classes, outcome.tolist(), strict=True)),
        "certainty": {
            "probability": top,
            "word": step.word,
            "right": step.right,
            "low": step.least,
            "high": step.most,
            "photos": step.of,
            "meaning": step.describe(),
        },
        "error": None,
    }


def status_of(outcomes: Sequence[Outcome]) -> int:
    """200 if any image has a prediction; otherwise the status of the first error."""
    if any(not isinstance(outcome, Exception) for outcome in outcomes):
        return 200
    return RefusedError(kind_of(outcomes[0]), "").status
