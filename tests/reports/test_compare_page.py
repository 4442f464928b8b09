"""The page of a comparison: the finding first, every difference drawn, hostile names harmless."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from comparedruns import table_of, told, write_run
from unfreeze.analysis.compare import Comparison, compare
from unfreeze.reports.comparison_page import render, write_comparison
from unfreeze.reports.svg import difference_rows

NASTY = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """One plainly worse, one alike, one of other folds."""
    place, table = tmp_path_factory.mktemp("runs"), table_of()
    other = table.assign(fold=(table["unit"] + 1) // 2 % 5)
    runs = [
        write_run(place / "first", table, told(table, 0.9, 1)),
        write_run(place / "worse", table, told(table, 0.4, 2), image__color="gray"),
        write_run(place / "alike", other, told(other, 0.9, 3), probe__pool_size=1),
    ]
    return compare(runs)


class Seen(HTMLParser):
    """Tags, headings and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.headings: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data


def test_the_finding_comes_first_and_all_is_there(found: Comparison) -> None:
    page = render(found, "unfreeze compare a b")
    seen = Seen(page)
    assert seen.headings[0] == "first or worse or alike"
    heading = seen.headings[1].replace("\N{NO-BREAK SPACE}", " ")
    assert heading and found.sentence.startswith(heading) and found.sentence.removeprefix(heading).strip() in page
    assert page.count('<svg class="plot"') == 2 and "unfreeze compare a b" in page
    for one in found.contenders:
        assert f'<th scope="row">{one.name}</th>' in page and one.run in page
    assert "image.color = &#34;gray&#34;" in page and "probe.pool_size = 1" in page
    worse = found.named("worse").difference
    assert f"{100 * worse.value:+.1f}" in page
    assert "was fitted on other folds" in page and "Folds won" not in page
    assert "max-t" in page and "Chance: macro F1" in page
    assert "script" not in seen.tags and "http" not in re.sub(r"<meta http-equiv", "", page)


def test_two_that_differ_in_little(found: Comparison, tmp_path: Path) -> None:
    table = table_of()
    runs = [write_run(tmp_path / name, table, told(table, 0.8, i)) for i, name in enumerate(("one", "two"))]
    page = render(compare(runs))
    assert "Folds won" in page and "at once" not in page.partition('id="scores"')[0] and "How to repeat it" not in page


def test_names_are_escaped_wherever_they_stand(tmp_path: Path) -> None:
    table = table_of()
    classes = ("blue", "green", NASTY)
    table["label"] = table["label"].replace("red", NASTY)
    runs = [
        write_run(tmp_path / str(i) / name, table, told(table, 0.8, i, classes), classes)
        for i, name in enumerate(("<b>one", "a & 'two'"))
    ]
    page = write_comparison(compare(runs), tmp_path / "page.html", f"unfreeze compare {NASTY}").read_text()
    assert NASTY not in page and "<b>one" not in page
    assert "&lt;script&gt;" in page and "&lt;b&gt;one" in page and "a &amp; &#39;two&#39;" in page
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


def test_the_plot_reaches_as_far_as_the_intervals_and_marks_what_is_significant() -> None:
    rows = [
        ("sure", {"value": -0.03, "low": -0.05, "high": -0.01}),
        ("not", {"value": 0.0, "low": -0.02, "high": 0.02}),
    ]
    plot = str(difference_rows("d", "base", rows))
    places = [float(x) for x in re.findall(r'x[12]="([\d.]+)%"', plot)]
    assert min(places) >= 0 and max(places) <= 100
    assert 'class="range accent"' in plot and 'class="range quiet"' in plot
    assert "sure: -3.0 points [-5.0, -1.0]" in plot and "not: 0.0 points [-2.0, +2.0]" in plot
    alone = str(difference_rows("d", "base", [("same", {"value": 0.0, "low": 0.0, "high": 0.0})]))
    assert "same: 0.0 points [0.0, 0.0]" in alone
    # Long names differ only at their ends: they have a line of their own, and are whole.
    names = ["color=gray sampling=none", "color=gray sampling=over"]
    long = str(difference_rows("d", "base", [(name, rows[0][1]) for name in names]))
    assert all(f">{name}</text>" in long for name in names)
