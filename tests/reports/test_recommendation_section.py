"""The section on recommendation: what its sentences say of a race, what is drawn, what may be absent; and the page of
it.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from test_report import a_run

from unfreeze.analysis.learning_curve import ClassCurve, Curve, CurveEstimate, Point, Prediction
from unfreeze.analysis.pretraining_similarity import Measure, Similarity
from unfreeze.analysis.recommendation import CELLS, BackboneRow, Block, StrategyRecommendation, StrategyRow
from unfreeze.core.errors import RunError, StorageError
from unfreeze.reports.run_report import render_recommendation, write_recommendation, write_report
from unfreeze.reports.section_strategy import read_recommendation, strategy_section
from unfreeze.reports.strategy_plots import curve_plot, quadrant_plot, race_plot

EVIL = "<script>alert(1)</script>"


def interval(value: float, half: float = 0.04) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def row(name: str, gain: float, half: float = 0.02, doubt: float = 0.005, **more: Any) -> StrategyRow:
    values = {
        "name": name,
        "changes": {"strategy": name},
        "macro_f1": interval(0.7 + gain),
        "difference": interval(gain, half if name != "probe" else 0.0),
        "expected": gain / 2,
        "doubt": doubt if name != "probe" else 0.0,
        "photos": 300,
        "of": 300,
        "seconds": 61.0,
        "full_seconds": 3700.0,
        "out": "",
    }
    return StrategyRow(**(values | more))


def points(draws: int = 3) -> tuple[Point, ...]:
    return tuple(
        Point(
            share,
            n,
            3 * n,
            tuple(0.6 + 0.05 * i + 0.01 * d for d in range(draws)),
            CurveEstimate(0.61 + 0.05 * i, 0.5, 0.8),
        )
        for i, (share, n) in enumerate([(0.25, 25), (0.5, 50), (1.0, 100)])
    )


CURVE = Curve(
    CurveEstimate(0.3, 0.1, 0.6),
    Prediction(200, CurveEstimate(0.74, 0.70, 0.78), CurveEstimate(0.03, -0.01, 0.07), CurveEstimate(0.03, 0.01, 0.05)),
    Prediction(400, CurveEstimate(0.76, 0.71, 0.81), CurveEstimate(0.05, 0.0, 0.1), CurveEstimate(0.05, 0.02, 0.09)),
    points(),
    (
        ClassCurve("cat", 60, 180, CurveEstimate(0.8, 0.7, 0.9), CurveEstimate(0.01, 0.0, 0.02)),
        ClassCurve(EVIL, 5, 9, CurveEstimate(0.4, 0.1, 0.6), None),
    ),
    (0.1, 1.0, 0.4),
    EVIL,
    f"More photos would help; '{EVIL}' has too few.",
    ("a note",),
    2.0,
)
SIMILAR = Similarity(
    0.9,
    0.8,
    1.0,
    (
        Measure("pretraining_distance", 0.05, 0.04, 0.06, 0.9, "distance, nats"),
        Measure("owed_to_pretraining", None, None, None, None, "a share", "no better than chance"),
    ),
    300,
    100,
    "The photos are much like those of the pretraining.",
    (),
    5.0,
)
RACED = StrategyRecommendation(
    recommended="partial",
    changes={"strategy": "partial"},
    reason="partial reached macro F1 0.740.",
    runner_up="full",
    would_change="full would have to gain 0.005.",
    table=(
        row("partial", 0.04),
        row("full", 0.01, photos=120, out="judged on 120 photos"),
        row("probe", 0.0),
        row("scratch", -0.6, out="significantly behind the probe on 120 photos"),
    ),
    blocks=(Block((), 300, 150, "partial"),),
    backbones=(),
    similar=SIMILAR,
    enough=CURVE,
    left_out=(f"full: {EVIL}",),
    photos=450,
    groups=150,
    seconds=200.0,
)


def section(found: StrategyRecommendation) -> dict[str, Any]:
    return strategy_section(found.to_json())


def with_table(*rows: StrategyRow, **more: Any) -> StrategyRecommendation:
    return replace(RACED, table=rows, recommended=rows[0].name, **more)


def test_the_finding_is_the_recommendation_and_its_reason() -> None:
    assert section(RACED)["finding"] == (
        "Recommended: partial, expected 0.020 above the probe in macro F1 and 0.015 above full, the runner-up."
    )


@pytest.mark.parametrize(("doubt", "chance"), [(0.001, False), (0.02, True)])
def test_a_lead_within_its_doubt_may_be_chance(doubt: float, chance: bool) -> None:
    found = with_table(row("partial", 0.02, doubt=doubt), row("probe", 0.0))
    assert section(found)["finding"].startswith("Recommended: partial, expected 0.010 above the probe")
    assert ("not significant" in section(found)["finding"]) == chance


def test_the_probe_may_win_and_may_be_alone() -> None:
    found = section(with_table(row("probe", 0.0), row("partial", -0.02)))
    assert found["finding"] == "Recommended: probe, expected 0.010 above partial, the runner-up, in macro F1."
    alone = section(with_table(row("probe", 0.0)))
    assert alone["finding"] == "Recommended: probe, and nothing else was tried."
    assert alone["race"] == "" and alone["raced"] == ""


def test_halves_that_agree_or_not_are_reported() -> None:
    agreed = replace(RACED, blocks=(Block((0, 1), 150, 70, "partial"), Block((2, 3, 4), 150, 80, "partial")))
    assert section(agreed)["finding"].startswith(
        "The races chose partial for every fold: expected 0.020 above the probe"
    )
    split = replace(RACED, blocks=(Block((0,), 150, 70, "full"), Block((1, 2), 150, 80, "partial")))
    found = section(split)
    assert found["finding"].startswith(
        "The races chose full for fold 0 and partial for folds 1 and 2; over both of them"
    )
    assert [block["folds"] for block in found["blocks"]] == ["fold 0", "folds 1 and 2"] and found["judged"] == 150


def test_the_table_has_every_candidate_with_its_evidence() -> None:
    partial, full, probe, _ = section(RACED)["rows"]
    assert (partial["difference"], partial["between"], partial["expected"]) == ("+0.040", "[+0.020, +0.060]", "+0.020")
    assert partial["doubt"] == "± 0.010" and partial["full_seconds"] == "1 h 1 min" and not partial["of"]
    assert full["photos"] == 120 and full["of"] == 300 and full["out"] == "judged on 120 photos"
    assert probe["difference"] == probe["expected"] == ""
    assert section(RACED)["unequal"] and not section(with_table(row("probe", 0.0), row("partial", 0.1)))["unequal"]


def test_an_older_file_has_no_total() -> None:
    found = RACED.to_json()
    for one in found["table"]:
        del one["of"]
    assert all(one["of"] == 0 for one in strategy_section(found)["rows"])


def test_what_the_race_shows_in_words() -> None:
    said = section(RACED)["raced"]
    assert (
        said == "On equal photos, each with its own 95% interval: partial scored higher than the probe; full did not "
        "differ significantly from it; scratch scored lower."
    )
    none = section(with_table(row("probe", 0.0), row("partial", 0.01), row("full", -0.01)))["raced"]
    assert none.endswith("95% interval: partial and full did not differ significantly from the probe.")


def test_the_axes_explain_and_do_not_decide() -> None:
    found = section(RACED)
    assert found["place"] == (
        "The rule of thumb for (little, similar), though the interval of “enough” crosses the middle: "
        "freeze the backbone and train the classifier; the race found partial instead."
    )
    sure = replace(CURVE, position=CurveEstimate(0.2, 0.1, 0.3))
    agrees = section(with_table(row("probe", 0.0), row("partial", -0.01), enough=sure))["place"]
    assert agrees.endswith("the race found the same, probe.") and "crosses" not in agrees
    far = section(replace(RACED, similar=replace(SIMILAR, position=0.4, low=0.3, high=0.7)))["place"]
    assert far.startswith(
        "The rule of thumb for (little, different), though both intervals cross the middle: do not use"
    )


@pytest.mark.parametrize("absent", [("similar",), ("enough",), ("similar", "enough")])
def test_axes_that_were_not_measured_are_said(absent: tuple[str, ...]) -> None:
    found = replace(RACED, **dict.fromkeys(absent))
    told = section(found)
    assert told["square"] == "" and told["place"].startswith("Not measured here: ")
    assert ("similarity to the pretraining" in told["place"]) == ("similar" in absent)
    page = render_recommendation(found, "photos")
    assert ('id="recommendation-curve"' in page) == ("enough" not in absent) and 'id="square-title"' not in page


def test_the_square_has_the_words_of_all_cells_and_the_place_within() -> None:
    drawn = str(quadrant_plot("k", CELLS, interval(0.9, 0.3), {"value": 0.0, "low": 0.0, "high": 0.2}, (False, True)))
    words = re.sub(r"<[^>]+>", " ", drawn.split("</desc>")[1])
    for said in {w for text in CELLS.values() for w in text.split()}:
        assert said in words
    wide, tall = map(float, re.findall(r"viewBox=\"0 0 (\d+) (\d+)\"", drawn)[0])
    x, y = map(float, re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)[0])
    assert 0.8 * wide < x < wide and 0.8 * tall < y < tall
    box = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="[\d.]+" class="doubt"', drawn)[0]
    assert float(box[0]) + float(box[1]) <= wide  # cut to the scale's end
    assert drawn.count('class="band"') == 1


def test_more_is_further_up_and_right() -> None:
    def at(similar: float, enough: float) -> tuple[float, float]:
        cell = (enough >= 0.5, similar >= 0.5)
        drawn = str(quadrant_plot("k", CELLS, interval(similar), interval(enough), cell))
        x, y = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)[0]
        return float(x), float(y)

    (x1, y1), (x2, y2) = at(0.2, 0.3), at(0.8, 0.9)
    assert x2 > x1 and y2 < y1


def test_the_race_draws_those_in_the_running_and_points_to_those_far_off() -> None:
    rows = [row for row in RACED.to_json()["table"] if row["name"] != "probe"]
    drawn = str(race_plot("k", rows, "probe"))
    assert drawn.count('class="range accent"') == drawn.count("<circle") == drawn.count('class="tick"') == 2
    assert drawn.count("far to the left") == 1 and "-0.600" in drawn
    assert all(0 <= float(share) <= 100 for share in re.findall(r'="(-?[\d.]+)%"', drawn))
    near = [{**rows[0], "difference": {"value": -0.02, "low": -0.03, "high": -0.01}, "expected": -0.01}]
    assert "far to the left" not in str(race_plot("k", near, "probe"))


def test_the_curve_has_draws_means_the_law_and_what_it_says_of_more() -> None:
    found = CURVE.to_json()
    drawn = str(curve_plot("k", found))
    assert drawn.count('class="draw"') == 9 and drawn.count('class="dot accent"') == 3
    assert 'class="fit ahead"' in drawn and 'class="band"' in drawn
    assert "2×: 0.74" in drawn and "4×: 0.76" in drawn and ">200<" in drawn and ">400<" in drawn
    assert "2 times as many: 0.74 [0.70, 0.78] predicted, +0.03 over the measured score" in drawn
    places = [float(x) for x in re.findall(r'<text x="([\d.]+)"[^>]*>[24]×', drawn)]
    assert places[1] - places[0] >= 60  # side by side, so that neither covers the other
    plain = str(curve_plot("k", {**found, "law": None, "doubled": None, "fourfold": None}))
    assert "polyline" not in plain and "×" not in plain and plain.count('class="dot accent"') == 3
    one = str(curve_plot("k", {**found, "points": found["points"][-1:], "law": None, "doubled": None}))
    assert one.count('class="dot accent"') == 1 and "nan" not in one


def test_a_curve_of_few_sizes_has_no_band() -> None:
    def bare(figure: CurveEstimate) -> CurveEstimate:
        return replace(figure, low=None, high=None)

    more = Prediction(200, *(bare(e) for e in (CURVE.doubled.macro_f1, CURVE.doubled.gain, CURVE.doubled.growth)))
    classes = (
        ClassCurve("cat", 60, 180, CurveEstimate(0.8, 0.7, 0.9), bare(CurveEstimate(0.01, 0, 0))),
        *CURVE.classes[1:],
    )
    few = replace(CURVE, doubled=more, fourfold=more, classes=classes)
    drawn = str(curve_plot("k", few.to_json()))
    assert 'class="band"' not in drawn and "2×: 0.74" in drawn
    found = section(replace(RACED, enough=few))["enough"]
    assert not found["banded"] and found["classes"][1]["gain"] == "+0.01"
    assert "95% interval of the level" not in render_recommendation(replace(RACED, enough=few), "photos")
    assert "95% interval of the level" in render_recommendation(RACED, "photos")


def test_a_curve_without_points_is_its_sentence() -> None:
    none = replace(CURVE, points=(), law=None, doubled=None, fourfold=None, sentence="Too few groups.")
    found = section(replace(RACED, enough=none))
    assert found["enough"]["plot"] == "" and found["enough"]["law"] == []
    assert "Too few groups." in render_recommendation(replace(RACED, enough=none), "photos")


def test_classes_with_too_few_groups_come_first() -> None:
    rows = section(RACED)["enough"]["classes"]
    assert [one["name"] for one in rows] == [EVIL, "cat"]
    assert rows[0]["gain"] == "too few" and rows[1]["gain"] == "+0.01 [0.00, +0.02]"


def test_of_many_classes_those_that_lack_most_are_listed() -> None:
    some = tuple(
        ClassCurve(f"c{i}", 9, 30, CurveEstimate(0.5, 0.4, 0.6), CurveEstimate(i / 1e4, 0.0, 0.1)) for i in range(500)
    )
    found = replace(RACED, enough=replace(CURVE, classes=some))
    listed = section(found)["enough"]
    assert len(listed["classes"]) == 60 and listed["classes"][0]["name"] == "c499" and listed["more"] == 440
    assert "440 more classes" in render_recommendation(found, "photos")


class Tags(HTMLParser):
    """All tags with their attributes, and what no page may have: a tag that is never closed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(page)
    assert not parser.open
    return parser.found


def test_the_page_is_whole_escaped_and_loads_nothing(tmp_path: Path) -> None:
    ranked = (BackboneRow(EVIL, interval(0.7), 0.4, 9.0), BackboneRow("b", interval(0.6), 0.4, 9.0))
    found = replace(RACED, backbones=ranked, changes={"strategy": "partial", "backbone": "a b"})
    out = write_recommendation(found, tmp_path / "new" / "recommendation.html", f"{EVIL}/photos {EVIL}")
    assert [p.name for p in out.parent.iterdir()] == ["recommendation.html"]
    page = out.read_text("utf-8")
    seen = tags(page)
    assert "script" not in {tag for tag, _ in seen} and EVIL not in page and "&lt;script&gt;" in page
    assert "default-src 'none'" in page and "url(" not in page and "@import" not in page
    ids = [a["id"] for _, a in seen if "id" in a]
    assert len(ids) == len(set(ids))
    links = [str(a["href"]) for tag, a in seen if tag == "a"]
    assert links and all(link[1:] in ids for link in links)
    assert not any("src" in a for _, a in seen) and sum(tag == "svg" and "role" in a for tag, a in seen) == 3
    assert "--strategy partial --backbone &#39;a b&#39;" in page and "0.600" in page
    assert "the race decides" in page and "so its score is optimistic too" in page


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_recommendation(RACED, tmp_path / "file" / "recommendation.html", "photos")


def test_the_report_of_a_run_of_auto_has_the_section(tmp_path: Path) -> None:
    run = a_run(tmp_path, ["cat", "dog", EVIL])
    assert 'id="recommendation"' not in write_report(run).read_text("utf-8")
    chosen = {"identity": "x", "chosen": [{"strategy": "partial"}] * 3}
    (run / "recommendation.json").write_text(json.dumps({**chosen, "recommendation": None, "left_out": []}))
    assert 'id="recommendation"' not in write_report(run).read_text("utf-8")
    found = replace(RACED, blocks=(Block((0,), 150, 70, "partial"), Block((1, 2), 150, 80, "partial")))
    (run / "recommendation.json").write_text(json.dumps({**chosen, "recommendation": found.to_json()}))
    page = write_report(run).read_text("utf-8")
    tags(page)
    assert '<section id="recommendation">' in page and '<a href="#recommendation">' in page
    assert "The races chose partial for every fold" in page and "The outer folds were halved" in page
    assert EVIL not in page


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"recommendation": 3}', '{"recommendation": {"table": []}}', "[" * 100_000]
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    assert read_recommendation(tmp_path) is None
    (tmp_path / "recommendation.json").write_text(text)
    with pytest.raises(RunError, match=r"recommendation\.json: not recommendation as a run writes it"):
        read_recommendation(tmp_path)
