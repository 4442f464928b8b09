"""Row of a diagnosis: a cause with its cost in macro F1, its severity and a remedy."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from unfreeze.core.format import Interval

Severity = Literal["error", "warning", "info", "none"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info", "none")

# Cost in macro F1 from which a cause is an error, a warning or info, provided that its interval lies above 0.
ERROR, WARNING, INFO = 0.05, 0.02, 0.005


@dataclass(frozen=True)
class Cause:
    """A measured cause, or the reason why it could not be measured.

    Attributes:
        name: "family: cause", for example "leakage: copies across folds".
        severity: Severity.
        evidence: One sentence.
        cost: Macro F1 that the cause costs, or by which it inflates the score: {"value", "low", "high"}, 95% interval
            over groups; None if it cannot be expressed in macro F1.
        remedy: What to do; empty if nothing.
        command: Command that does it; empty if there is none.
        measured: Whether the cause was measured.
        details: Underlying figures.
    """

    name: str
    severity: Severity
    evidence: str
    cost: Interval | None = None
    remedy: str = ""
    command: str = ""
    measured: bool = True
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return asdict(self)


def not_measured(name: str, why: str, remedy: str = "", command: str = "") -> Cause:
    """Create a row for a cause that could not be measured."""
    return Cause(name, "none", f"Not measured: {why}.", None, remedy, command, measured=False)


def severity_of(cost: Interval | None, most: Severity = "error") -> Severity:
    """Severity by the thresholds above, at most `most`; none if the interval includes 0."""
    if cost is None or cost["value"] < INFO or cost["low"] <= 0:
        return "none"
    found: Severity = "error" if cost["value"] >= ERROR else "warning" if cost["value"] >= WARNING else "info"
    return min_severity(found, most)


def min_severity(one: Severity, other: Severity) -> Severity:
    """The less severe of two severities."""
    return max(one, other, key=SEVERITIES.index)


def max_severity(one: Severity, other: Severity) -> Severity:
    """The more severe of two severities."""
    return min(one, other, key=SEVERITIES.index)


def in_order(causes: list[Cause]) -> list[Cause]:
    """Sort by severity, then by cost; rows that could not be measured come last."""
    return sorted(
        causes,
        key=lambda c: (not c.measured, SEVERITIES.index(c.severity), -(c.cost["value"] if c.cost else 0.0)),
    )


def zero() -> Interval:
    """A cost of exactly 0."""
    return {"value": 0.0, "low": 0.0, "high": 0.0}
