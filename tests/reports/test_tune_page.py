"""The page of a search: the finding first, the figure to believe beside those that are too good, names harmless."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from test_compare_page import Seen

from unfreeze.analysis.splits import SearchSplit
from unfreeze.analysis.tuning.search import Row, Searched
from unfreeze.analysis.tuning.tune import Tuning
from unfreeze.core.recipe import Recipe
from unfreeze.metrics.intervals import Estimate
from unfreeze.reports.tuning_page import history, render, write_tuning

NASTY = "<script>alert(1)</script>"
ROWS = (
    Row(0, "complete", {}, (0.7, 0.72, 0.71), 3.2),
    Row(1, "complete", {"image.size": 320, "image.crop": 1.0}, (0.74, 0.76, 0.78), 8.0),
    Row(2, "pruned", {"probe.pool_size": 1}, (0.52,), 1.0),
    Row(3, "failed", {"balance.loss": "ce"}, (), 0.0, "balance.class_weight_power = 0.2: has no class weights."),
    Row(4, "complete", {"image.size": 320, "image.crop": 1.0}, (0.74, 0.76, 0.78), 0.0),
)


def tuning(folder: Path | str = "runs/tune-x", rows: tuple[Row, ...] = ROWS, **changes: object) -> Tuning:
    """A search of five trials, four of them different."""
    searches = tuple(
        Searched(SearchSplit(n, np.zeros(6, np.int64), f), rows) for n, f in (("all", ()), ("first", (0,)))
    )
    best = searches[0].best.changes
    values = {
        "folder": str(folder),
        "best": Recipe(strategy="probe"),
        "changes": best,
        "base": Estimate(0.71, 0.65, 0.76),
        "nested": Estimate(0.75, 0.70, 0.80),
        "gain": Estimate(0.04, 0.01, 0.07),
        "searched": 0.78,
        "shown": Estimate(0.79, 0.74, 0.83),
        "chosen": (best, {}),
        "searches": searches,
        "importance": {"image.size": 0.7, "image.crop": 0.3},
        "space": ("image.size=224,320", "image.crop=0.875,1.0"),
        "photos": 955,
        "groups": 190,
        "seconds": 12.0,
    }
    return Tuning(**{**values, **changes})  # type: ignore[arg-type]


def test_the_finding_comes_first_and_all_is_there() -> None:
    page = render(tuning(), "unfreeze tune photos")
    seen = Seen(page)
    assert seen.headings[0] == "Which parameters?"
    assert seen.headings[1].replace("\xa0", " ") == tuning().sentence
    text = page.replace("&nbsp;", " ").replace("\xa0", " ")
    for said in (
        "955 photos in 190 groups, 4 recipes",
        "0.780",
        "image.size mattered most",
        "Use the colored line",
    ):
        assert said in text, said
    for code in ("image.size = 320", "runs/tune-x/best.toml", "runs/tune-x/best", "unfreeze tune photos"):
        assert f"<code>{code}</code>" in page, code
    assert "given up after 1" in page and "has no class weights" in page and "The recipe given." in page
    assert {"script", "img", "iframe", "link"}.isdisjoint(seen.tags)
    assert not re.search(r'(?:src|href)="(?!#|data:)', page) and page.count("<svg") == 3
    assert len(re.findall(r'<tr><th scope="row"', page)) == 4  # a recipe that was drawn again stands there once


def test_ids_are_unique_and_anchors_resolve() -> None:
    page = render(tuning())
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_names_are_escaped_everywhere() -> None:
    changes = {NASTY: NASTY}
    rows = (ROWS[0], replace(ROWS[1], changes=changes), replace(ROWS[3], note=NASTY))
    found = tuning(
        f"runs/{NASTY}", rows, changes=changes, importance={NASTY: 1.0}, space=(NASTY,), chosen=(changes, {})
    )
    page = render(found, f"unfreeze tune '{NASTY}'")
    assert "<script" not in page and page.count("&lt;script&gt;") > 6


def test_a_search_of_one_recipe_is_a_page_as_well() -> None:
    found = tuning(rows=ROWS[:1], importance={}, gain=Estimate(0.0, 0.0, 0.0))
    page = render(found)
    assert "Only the recipe given was tried" in page and "Too few recipes" in page
    assert "Nothing was better than the recipe given." in page and "runs/tune-x/base" in page


def test_the_history_shows_each_trial_that_has_a_score_and_the_best_so_far() -> None:
    drawn = str(history(ROWS))
    assert drawn.count("<circle") == 4 and drawn.count("dot hollow") == 1
    ends = r'x1="([\d.]+)%" y1="([\d.]+)" x2="([\d.]+)%" y2="([\d.]+)" class="curve"'
    steps = [tuple(map(float, step)) for step in re.findall(ends, drawn)]
    assert len(steps) == 3 and all(one[2:] == two[:2] for one, two in pairwise(steps))
    assert steps[0][1] > steps[-1][3]  # up is better


def test_it_is_written_whole(tmp_path: Path) -> None:
    page = write_tuning(tuning(tmp_path / "runs"))
    assert page == tmp_path / "runs" / "tune.html" and page.read_text().endswith("</html>")
    assert write_tuning(tuning(), path=tmp_path / "a.html").name == "a.html"
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a.html", "tune.html"]
