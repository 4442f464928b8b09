"""A row of a diagnosis: a cause, what it costs, how sure that is, and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "info", "none"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info", "none")
Figure = dict[str, float]

# Macro F1 from which a cost is an error, a warning, worth a word; the first two only if its interval leaves 0 out.
ERROR, WARNING, INFO = 0.05, 0.02, 0.005


@dataclass(frozen=True)
class Cause:
    """One cause, measured, or why it could not be.

    name: `family: what`, as `leakage: copies across folds`. cost: macro F1 that it costs or flatters by, {"value",
    "low", "high"} (95 % over groups), None where it has no size in these units. evidence: one sentence. remedy: what to
    do, '' where nothing is to be done; command: the command that does it, if there is one. details: figures behind it.
    """

    name: str
    severity: Severity
    evidence: str
    cost: Figure | None = None
    remedy: str = ""
    command: str = ""
    measured: bool = True
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self)


def not_measured(name: str, why: str, remedy: str = "", command: str = "") -> Cause:
    """A row that says why there is no figure."""
    return Cause(name, "none", f"Not measured: {why}.", None, remedy, command, measured=False)


def severity_of(cost: Figure | None, most: Severity = "error") -> Severity:
    """By the thresholds above, and at most `most`."""
    if cost is None or cost["value"] < INFO:
        return "none"
    found: Severity = "info"
    if cost["low"] > 0:
        found = "error" if cost["value"] >= ERROR else "warning" if cost["value"] >= WARNING else "info"
    return milder(found, most)


def milder(one: Severity, other: Severity) -> Severity:
    """The milder of two severities."""
    return max(one, other, key=SEVERITIES.index)


def graver(one: Severity, other: Severity) -> Severity:
    """The graver of two severities."""
    return min(one, other, key=SEVERITIES.index)


def in_order(causes: list[Cause]) -> list[Cause]:
    """The gravest first, of these the most costly; what could not be measured last."""
    return sorted(
        causes,
        key=lambda c: (not c.measured, SEVERITIES.index(c.severity), -(c.cost["value"] if c.cost else 0.0)),
    )


def told(figure: Figure, sign: bool = False) -> str:
    """`.770 (.741 to .796)`; with its sign `+0.023 (-0.004 to +0.050)`."""
    value, low, high = (f"{figure[end]:+.3f}" if sign else plain(figure[end]) for end in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def plain(value: float) -> str:
    """A score: `.770`."""
    text = f"{value:.3f}"
    return text.removeprefix("0") if 0 <= value < 1 else text


def zero() -> Figure:
    """The cost of what is surely not there."""
    return {"value": 0.0, "low": 0.0, "high": 0.0}
