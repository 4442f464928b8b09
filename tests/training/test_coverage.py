"""A small version of benchmarks/coverage.py: intervals cover the delivered model's scores on groups not drawn."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def coverage(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "coverage", raising=False)
    import coverage

    yield coverage
    monkeypatch.delitem(sys.modules, "coverage", raising=False)


def test_scores_of_groups_not_drawn_are_covered(coverage, fresh_cache, tmp_path):
    """Of 24 statements at most 3 miss. Intervals of a third of their width would miss many."""
    population = coverage.generated("uneven groups")
    found = []
    with threadpool_limits(1):
        for seed in range(8):
            rows = coverage.drawn(population, 60, seed)
            found += coverage.statements(population, rows, seed, tmp_path / str(seed))
    headline = [one for one in found if one["statement"] in ("accuracy", "macro_f1", "log_loss")]
    missed = sum(one["above"] or one["below"] for one in headline)
    narrow = sum(abs(one["bias"]) > one["width"] / 6 for one in headline)
    assert len(headline) == 24 and missed <= 3 and narrow >= 4
