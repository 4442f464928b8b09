"""Each check finds what was planted, and nothing where nothing is wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from unfreeze.core.tables import Photos
from unfreeze.data.checks import CHECKS, check, register


def picture(path, seed: int, side: int = 40, **options) -> None:
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    small.resize((side, side), Image.Resampling.BICUBIC).save(path, **options)


@pytest.fixture
def photos(tmp_path, fresh_cache):
    """Twelve photos of two classes, each its own group; nothing wrong."""
    rows = []
    for i in range(12):
        path = f"{'ab'[i % 2]}/{i}.png"
        picture(tmp_path / "p" / path, i)
        rows.append((path, "ab"[i % 2], path, "train"))
    table = pd.DataFrame(rows, columns=["path", "label", "group", "split"])
    return Photos(table, tmp_path / "p", ("a", "b"), ("a", "b"), ("label",), "class_folders", "")


def changed(photos, **columns) -> Photos:
    return photos.with_table(photos.table.assign(**columns))


def added(photos, *rows) -> Photos:
    extra = pd.DataFrame(rows, columns=["path", "label", "group", "split"])
    return photos.with_table(pd.concat([photos.table, extra], ignore_index=True))


def found(photos) -> dict[str, tuple[str, str]]:
    return {f.check: (f.severity, f.message) for f in check(photos).findings}


def test_nothing_wrong(photos):
    checked = check(photos)
    assert checked.findings == ()
    assert checked.table["unit"].nunique() == 12
    assert list(checked.table.columns) == [*photos.table.columns, "hash", "width", "height", "unit"]


def test_checking_twice_finds_the_same(photos):
    pd.testing.assert_frame_equal(check(photos).table, check(photos).table)


def copy(photos, source: str, target: str) -> None:
    (photos.root / target).write_bytes((photos.root / source).read_bytes())


def test_exact_duplicates_share_a_unit(photos):
    copy(photos, "a/0.png", "a/copy.png")
    checked = check(added(photos, ("a/copy.png", "a", "other", "train")))
    assert [(f.check, f.severity) for f in checked.findings] == [("exact-duplicates", "info")]
    assert "1 exact duplicate pair(s): a/0.png = a/copy.png" in checked.findings[0].message
    unit = checked.table.set_index("path")["unit"]
    assert unit["a/0.png"] == unit["a/copy.png"]
    assert unit.nunique() == 12


def test_near_duplicates_tie_their_groups(photos):
    picture(photos.root / "a/near.jpg", 0, quality=85)
    checked = check(added(photos, ("a/near.jpg", "a", "a/2.png", "train")))
    assert [f.check for f in checked.findings] == ["near-duplicates"]
    unit = checked.table.set_index("path")["unit"]
    assert unit["a/0.png"] == unit["a/near.jpg"] == unit["a/2.png"]


def test_two_labels_for_one_photo(photos):
    copy(photos, "a/0.png", "b/copy.png")
    picture(photos.root / "b/near.jpg", 2, quality=85)
    told = found(added(photos, ("b/copy.png", "b", "x", "train"), ("b/near.jpg", "b", "y", "train")))
    assert told["exact-duplicates-disagree"] == (
        "error",
        "the same photo is labelled 'a' here and 'b' in b/copy.png",
    )
    assert told["near-duplicates-disagree"][0] == "warning"


def test_the_same_photo_in_training_and_test(photos):
    copy(photos, "a/0.png", "a/copy.png")
    severity, message = found(added(photos, ("a/copy.png", "a", "x", "test")))["exact-duplicates-across-splits"]
    assert severity == "warning" and "1 exact duplicate(s) of training photos in the test split" in message


def test_few_groups(photos):
    groups = ["one" if label == "a" else path for label, path in photos.table[["label", "path"]].to_numpy()]
    assert found(changed(photos, group=groups))["few-groups"] == ("error", "class 'a' has 1 group(s) to learn from")
    groups = [g if g != "one" else f"one{i % 4}" for i, g in enumerate(groups)]
    assert found(changed(photos, group=groups))["few-groups"][0] == "warning"


def test_groups_that_cannot_be_read_do_not_count(photos):
    for path in (photos.root / "a").iterdir():
        path.write_bytes(b"x")
    checked = check(photos)
    few = next(f for f in checked.findings if f.check == "few-groups")
    assert (few.severity, few.message) == ("error", "class 'a' has 0 group(s) to learn from that can be read")
    assert len([f for f in checked.findings if f.check == "unreadable"]) == 6


def test_imbalance(photos):
    label = ["a"] * 10 + ["b"] * 2
    assert found(changed(photos, label=label))["imbalance"][1] == "'a' has 10 photos, 'b' 2: 5 times as many"
    assert "imbalance" not in found(changed(photos, label=["a"] * 9 + ["b"] * 3))


def test_small_photos(photos):
    picture(photos.root / "a/0.png", 0, side=31)
    assert found(photos)["small-photos"][1] == "1 photo(s) have a side under 32 pixels: a/0.png"


def test_one_huge_group(photos):
    more = [(f"a/more{i}.png", "a", "huge", "train") for i in range(12)]
    for i, row in enumerate(more):
        picture(photos.root / row[0], 100 + i)
    assert found(added(photos, *more))["huge-group"] == ("warning", "one group holds 12 of 24 photos")


def test_a_check_is_registered_once():
    name = next(iter(CHECKS))
    with pytest.raises(ValueError, match="twice"):
        register(name)(lambda photos, looks: [])
