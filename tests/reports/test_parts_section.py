"""The report's section on combined labels: what it says first, and that names are escaped."""

from __future__ import annotations

from typing import Any

import pytest

from unfreeze.reports.sections import parts
from unfreeze.reports.svg import gain_bars

WHOLE = {"macro_f1": {"value": 0.58, "low": 0.5, "high": 0.6}}


def interval(value: float, spread: float = 0.05) -> dict[str, float]:
    return {"value": value, "low": value - spread, "high": value + spread}


def part(gain: float, spread: float = 0.05, **more_than: float) -> dict[str, Any]:
    return {
        "macro_f1": interval(0.8),
        "accuracy": interval(0.9),
        "classes": ["a", "b"],
        "chance": {"class": "a", "accuracy": 0.6},
        "per_class": [],
        "if_right": {
            "macro_f1": interval(0.58 + gain),
            "gain": interval(gain, spread),
            "more_than": {k: interval(v) for k, v in more_than.items()},
        },
    }


def test_the_costliest_part_is_named_first() -> None:
    section = parts({"mask": part(0.02), "age": part(0.2, mask=0.18, sex=0.03), "sex": part(0.17)}, WHOLE)
    assert section is not None and [row["name"] for row in section["rows"]] == ["age", "sex", "mask"]
    assert section["finding"] == (
        "Errors in “age” cost most: if it were always right, macro F1 of the whole would be 0.780 instead of 0.580; "
        "significantly more than mask, not significantly more than sex."
    )


def test_parts_without_an_error_cost_nothing() -> None:
    section = parts({"mask": part(0.0), "age": part(0.0)}, WHOLE)
    assert section is not None and section["finding"].startswith("Correcting a single part would not change")


@pytest.mark.parametrize("told", [None, {}])
def test_no_parts_no_section(told: Any) -> None:
    assert parts(told, WHOLE) is None


def test_the_plot_escapes_names_and_draws_intervals_from_zero() -> None:
    plot = gain_bars("k", [("<b>", interval(0.2)), ("none", {"value": 0.0, "low": -0.1, "high": 0.1})])
    assert "&lt;b&gt;" in plot and "<b>" not in plot and plot.count('class="whisker"') == 2
    assert "+0.200 [+0.150, +0.250]" in plot and 'x1="24.00%"' in plot  # a negative end is drawn from 0
    assert 'width="-' not in gain_bars("k", [("worse", interval(-0.2))])
