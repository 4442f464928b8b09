"""The page about the photos: says what was planted, escapes names, loads nothing and stays small."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import unfreeze as uf
from photosets import class_folders
from unfreeze.core.dataset import ImageDataset
from unfreeze.data.face_stats import FaceStats
from unfreeze.reports.data_report import SAMPLES, render_data_report, write_data_report
from unfreeze.reports.svg import heat_map, histogram, mean_photo

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> ImageDataset:
    """36 photos; one twice under two labels, one unreadable, one class with a script tag for a name. Not changed."""
    root = class_folders(tmp_path_factory.mktemp("eda") / "photos", groups=6)
    (root / "blue" / "copy.jpg").write_bytes((root / "red" / "g000_0.jpg").read_bytes())
    (root / "red" / "broken.jpg").write_bytes(b"no photo")
    (root / "red" / "<b>bold&.jpg").write_bytes((root / "red" / "g001_0.jpg").read_bytes())
    photos = uf.read(str(root))
    table = photos.table.assign(label=photos.table["label"].replace({"green": EVIL}))
    names = tuple(EVIL if name == "green" else name for name in photos.classes)
    return uf.check(ImageDataset(table, photos.root, names, names, photos.attributes, photos.reader, photos.choice))


@pytest.fixture(scope="module")
def page(checked) -> str:
    return render_data_report(checked)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(page)
    return parser.found


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page, flags=re.S)


def test_every_section_opens_with_its_finding(page):
    said = headings(page)
    assert len(said) == 6
    assert "the most severe: 1 of 2 exact duplicate pair(s) have two labels" in said[0]
    assert "38 photos of 3 classes, each its own group" in said[1] or "39 photos of 3 classes" in said[1]
    assert "2 pairs of photos are the same (2 byte for byte): 1 with two labels." in said[4]
    assert all(text.strip().endswith(".") for text in said)


def test_names_are_escaped(page):
    assert EVIL not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<b>bold" not in page and "&lt;b&gt;bold&amp;.jpg" in page
    assert "script" not in {tag for tag, _ in tags(page)}


def test_it_loads_nothing(page):
    for tag, attributes in tags(page):
        for name in ("src", "href"):
            value = attributes.get(name) or ""
            assert value.startswith(("data:image/jpeg;base64,", "#")) or not value, (tag, value)
    assert "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page


def test_every_image_has_a_size_and_words(page):
    images = [attributes for tag, attributes in tags(page) if tag == "img"]
    assert len(images) > 20
    assert all(a.get("alt") and a.get("width") and a.get("height") for a in images)


def test_the_unreadable_one_is_reported(page):
    assert "broken.jpg" in page and "not an image in a known format" in page
    assert "cannot be decoded" in page


def test_shortcuts_are_in_a_table(page):
    assert "Balanced accuracy" in page and "the color of the border" in page


def test_written_whole_and_from_unchecked_photos(checked, tmp_path):
    out = write_data_report(uf.read(str(checked.root)), tmp_path / "new" / "eda.html")
    assert out.read_text("utf-8").endswith("</html>\n") or out.read_text("utf-8").endswith("</html>")
    assert [p.name for p in out.parent.iterdir()] == ["eda.html"]


def test_faces_are_drawn_if_given(checked):
    heat = np.zeros((32, 32))
    heat[10:20, 10:20] = 0.8
    numbers = {"photos": 4, "without": 1, "share": 0.25, "low": 0.05, "high": 0.7, "several": 0}
    numbers |= {"side_median": 0.5, "x_mean": float("nan"), "y_mean": 0.4}
    classes = pd.DataFrame([{"label": EVIL, **numbers}, {"label": "red", **numbers}])
    with_faces = render_data_report(
        checked, faces=FaceStats(pd.DataFrame(), classes, {"label": "", **numbers}, heat, "a detector")
    )
    assert 'id="faces"' in with_faces and "a detector" in with_faces
    assert "25.0% [5.0%, 70.0%]" in with_faces
    assert EVIL not in with_faces


def test_a_large_set_makes_a_small_page(tmp_path, fresh_cache):
    """600 photos of 40 classes: the samples do not grow with them."""
    draws = np.random.default_rng(0)
    rows = []
    for i in range(600):
        path = f"{i:03d}.jpg"
        small = Image.fromarray(draws.integers(0, 256, (6, 8, 3), np.uint8))
        small.resize((64, 48), Image.Resampling.BICUBIC).save(tmp_path / path)
        rows.append((path, f"class {i % 40:02d}", path, "train"))
    table = pd.DataFrame(rows, columns=["path", "label", "group", "split"])
    names = tuple(sorted(set(table["label"])))
    text = render_data_report(uf.check(ImageDataset(table, tmp_path, names, names, ("label",), "table", "")))
    shown = [a for tag, a in tags(text) if tag == "img"]
    assert len(shown) < SAMPLES + 30 + 7 * 12 + 36
    assert len(text) < 700_000
    assert "10 more classes" in text


def test_a_histogram_of_nothing_and_of_one_value():
    assert histogram("k", "t", np.array([np.nan]), False, str) == ""
    one = histogram("k", "t", np.full(5, 3.0), True, lambda v: f"{v:g}")
    assert "5 photos" in one and one.count('class="bar"') == 1
    spread = histogram("k", "<t>", np.arange(1, 101.0), False, lambda v: f"{v:g}")
    assert "&lt;t&gt;" in spread and spread.count('class="bar"') == 32


def test_mean_photo_and_heat_map():
    source, wide, tall = mean_photo(np.full((3, 32, 32), 90, np.uint8), np.full((3, 8, 8, 3), 90, np.uint8), 0.5)
    assert source.startswith("data:image/jpeg;base64,") and tall == 2 * wide
    drawn = heat_map("k", "t", np.zeros((4, 4)))
    assert drawn.count('class="heat"') == 0
    assert heat_map("k", "t", np.eye(4)).count('class="heat"') == 4
