"""What a served run answers, as /openapi.json describes it, and how an outcome becomes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from unfreeze.core.errors import PhotoError
from unfreeze.deliver.web.serving_limits import RefusedError
from unfreeze.deliver.web.serving_queue import Outcome
from unfreeze.learn.certainty import Certainty


class Sure(BaseModel):
    """How sure it is, and what that was worth on photos it had not learnt from."""

    probability: float = Field(description="of the class named in `label`")
    word: str = Field(description="very sure, sure, fairly sure, unsure or a guess: by `right`")
    right: float = Field(description="share of right predictions among out-of-fold photos it was about as sure of")
    low: float = Field(description="lower end of its 95 % interval, by resampling groups")
    high: float = Field(description="upper end of it")
    photos: int = Field(description="how many photos that share is of")
    meaning: str = Field(description="the same in words")


class Predicted(BaseModel):
    """One photo: either a prediction, or `error`."""

    name: str
    label: str | None = Field(description="the most probable class; null where there is an error")
    probabilities: dict[str, float] | None = Field(description="of every class, in the run's order; they sum to 1")
    certainty: Sure | None
    error: str | None = Field(description="why there is no prediction")


class Predictions(BaseModel):
    """One entry a file, in the order sent."""

    photos: list[Predicted]


class Map(BaseModel):
    """Where the photo was read for `label` (above 0) rather than for `runner_up` (below), row 0 on top."""

    method: str = Field(description="cells, grad-cam, rollout or occlusion")
    title: str = Field(description="what was looked into")
    unit: str = Field(description="logits, probability or share")
    square: tuple[float, float, float, float] = Field(
        description="left, top, right, bottom of what the map lies on, as shares of the upright photo"
    )
    cells: list[list[float]]
    margin: float | None = Field(description="how far the two classes are apart, in the unit; null for rollout")
    meaning: str = Field(description="what such a map says, and what it does not")


class Explained(BaseModel):
    """Why one class and not the next: several maps where several kinds of networks answer together."""

    name: str
    label: str
    runner_up: str
    maps: list[Map]


class Problem(BaseModel):
    """Why there is no prediction at all."""

    error: str
    kind: str


def kind_of(outcome: Outcome) -> str:
    """One of KINDS for what went wrong with a photo."""
    if not isinstance(outcome, PhotoError):
        return "failed"
    reason = outcome.reason
    if reason == "not an image in a known format":
        return "not_an_image"
    if reason == "the file is empty":
        return "empty"
    return "too_many_pixels" if "pixels" in reason and ("limit" in reason or "bomb" in reason) else "damaged"


def predicted(name: str, outcome: Outcome, classes: Sequence[str], certainty: Certainty) -> dict[str, Any]:
    """A `Predicted` as JSON."""
    if isinstance(outcome, Exception):
        # Other errors than a photo's own may hold paths of this machine.
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
            "meaning": step.told(),
        },
        "error": None,
    }


def status_of(outcomes: Sequence[Outcome]) -> int:
    """200 where any photo has a prediction; else what is wrong with the first."""
    if any(not isinstance(outcome, Exception) for outcome in outcomes):
        return 200
    return RefusedError(kind_of(outcomes[0]), "").status
