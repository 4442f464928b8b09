"""Each check finds what was planted, and nothing where nothing is wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from unfreeze.core.dataset import ImageDataset
from unfreeze.data.check_registry import CHECKS, SLOW, register
from unfreeze.data.checks import check, run_checks
from unfreeze.data.image_checks import robust_z


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
    return ImageDataset(table, tmp_path / "p", ("a", "b"), ("a", "b"), ("label",), "class_folders", "")


def changed(photos, **columns) -> ImageDataset:
    return photos.with_table(photos.table.assign(**columns))


def added(photos, *rows) -> ImageDataset:
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
    assert [f.check for f in checked.findings] == ["near-duplicates", "near-duplicates-across-groups"]
    assert "1 of 1 near duplicate pair(s) lie in two groups: a/0.png = a/near.jpg" in checked.findings[1].message
    unit = checked.table.set_index("path")["unit"]
    assert unit["a/0.png"] == unit["a/near.jpg"] == unit["a/2.png"]


def test_two_labels_for_one_photo(photos):
    copy(photos, "a/0.png", "b/copy.png")
    picture(photos.root / "b/near.jpg", 2, quality=85)
    told = found(added(photos, ("b/copy.png", "b", "x", "train"), ("b/near.jpg", "b", "y", "train")))
    assert told["exact-duplicates-disagree"] == (
        "error",
        "1 of 1 exact duplicate pair(s) have two labels: a/0.png ('a') = b/copy.png ('b')",
    )
    assert told["near-duplicates-disagree"][0] == "warning"


def test_many_pairs_with_two_labels_are_one_finding(photos):
    for i in range(6):
        copy(photos, f"{'ab'[i % 2]}/{i}.png", f"{'ba'[i % 2]}/copy{i}.png")
    more = [(f"{'ba'[i % 2]}/copy{i}.png", "ba"[i % 2], f"g{i}", "train") for i in range(6)]
    findings = [f for f in check(added(photos, *more)).findings if f.check == "exact-duplicates-disagree"]
    assert [f.path for f in findings] == ["a/0.png"]
    assert findings[0].message == (
        "6 of 6 exact duplicate pair(s) have two labels: a/0.png ('a') = b/copy0.png ('b'), b/1.png ('b') = "
        "a/copy1.png ('a'), a/2.png ('a') = b/copy2.png ('b') and 3 more"
    )
    assert "12 of 18 images are joined with their copies" in found(added(photos, *more))["exact-duplicates"][1]


def test_a_large_joined_group(photos):
    """Fourteen copies of one photo among 26; not if the given group is as large."""
    more = [(f"a/copy{i}.png", "a", f"g{i}", "train") for i in range(14)]
    for row in more:
        copy(photos, "a/0.png", row[0])
    finding = next(f for f in check(added(photos, *more)).findings if f.check == "large-joined-group")
    assert finding.severity == "warning"
    assert finding.message.startswith("15 of 26 images (58%) are one group, because their copies were joined: a/0.png")
    assert finding.fix.endswith('if not: recipe.replace(**{"folds.group_duplicates": False}).')
    given = [(path, label, "a/0.png", split) for path, label, _, split in more]
    assert "large-joined-group" not in found(added(photos, *given))


def flat(path, seed: int) -> None:
    """A gray thing on white with a dot: by hash and thumbnail all are one image."""
    draw = np.random.default_rng(seed)
    pixels = np.full((96, 96, 3), 250.0)
    pixels[36:60, 36:60] = draw.uniform(40, 220, 3)
    x, y = draw.integers(38, 52, 2)
    pixels[y : y + 6, x : x + 6] = draw.uniform(0, 255, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels + draw.normal(0, 2, pixels.shape)).clip(0, 255).astype(np.uint8)).save(path)


def test_look_alikes_are_reported_in_one_finding(tmp_path, fresh_cache):
    rows = []
    for i in range(60):
        path = f"{'ab'[i % 2]}/{i}.png"
        flat(tmp_path / "p" / path, i)
        rows.append((path, "ab"[i % 2], path, "train"))
    table = pd.DataFrame(rows, columns=["path", "label", "group", "split"])
    photos = ImageDataset(table, tmp_path / "p", ("a", "b"), ("a", "b"), ("label",), "class_folders", "")
    checked = check(photos)
    told = {f.check: f for f in checked.findings}
    assert {"huge-group", "large-joined-group", "near-duplicates-disagree"}.isdisjoint(told)
    finding = told["look-alikes"]
    assert finding.severity == "info" and finding.path in finding.message
    assert finding.message.startswith("60 of 60 images look alike: ")
    assert "and in 50% of any two images; not joined: " in finding.message
    assert "group_regex=PATTERN" in finding.fix
    assert checked.table["unit"].value_counts().max() <= 3


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


def people(photos, groups: int = 30) -> ImageDataset:
    """Three photos a person (worn, worn, normal), nothing wrong; files are there, though all alike is not asked."""
    rows = []
    for g in range(groups):
        for i, mask in enumerate(("worn", "worn", "normal")):
            path = f"{g:02d}/{i}.png"
            picture(photos.root / path, 1000 + 3 * g + i, side=32)
            rows.append((path, f"{mask}, {'fm'[g % 2]}", f"person {g:02d}", "train", mask, "fm"[g % 2]))
    table = pd.DataFrame(rows, columns=["path", "label", "group", "split", "mask", "gender"])
    names = tuple(sorted(set(table["label"])))
    return ImageDataset(table, photos.root, names, names, ("mask", "gender"), "table", "")


def relabelled(photos, row: int, **values) -> ImageDataset:
    table = photos.table.copy()
    for name, value in values.items():
        table.loc[row, name] = value
    table["label"] = table["mask"] + ", " + table["gender"]
    return photos.with_table(table)


def test_people_without_a_mistake(photos):
    assert [f.check for f in check(people(photos)).findings] == []


def test_a_person_of_two_genders(photos):
    findings = check(relabelled(people(photos), 4, gender="f")).findings
    assert [(f.check, f.severity, f.path) for f in findings] == [("group-conflicts", "warning", "01/1.png")]
    assert (
        "group 'person 01' has more than one gender ('m' 2, 'f' 1); 96.7% of the groups have one" in findings[0].message
    )


def test_a_person_with_two_normal_photos(photos):
    (finding,) = (f for f in check(relabelled(people(photos), 0, mask="normal")).findings)
    assert (finding.check, finding.severity, finding.path) == ("group-pattern", "warning", "00/0.png")
    for said in ("2 photo(s) of mask 'normal' instead of 1", "1 photo(s) of mask 'worn' instead of 2"):
        assert said in finding.message


def test_no_rule_without_enough_groups_or_agreement(photos):
    assert "group-conflicts" not in found(relabelled(people(photos, 19), 4, gender="f"))
    many = people(photos)
    for row in range(0, 30, 3):
        many = relabelled(many, row, mask="normal")
    assert "group-pattern" not in found(many)


def test_combinations_without_a_photo(photos):
    table = people(photos).table.query("label != 'normal, f'").reset_index(drop=True)
    names = tuple(sorted(set(table["label"])))
    some = ImageDataset(table, photos.root, names, names, ("mask", "gender"), "table", "")
    severity, message = found(some)["empty-combinations"]
    assert severity == "info" and "1 of 4 combinations of mask, gender have no photo: normal/f" in message


def test_names_that_do_not_fit(photos):
    picture(photos.root / "a/0.png", 0, format="JPEG")
    assert found(photos)["misnamed"] == (
        "info",
        "1 photo(s) are of another format than their name says: a/0.png is JPEG",
    )


def test_turned_by_exif(photos):
    exif = Image.Exif()
    exif[0x0112] = 8
    picture(photos.root / "a/0.png", 0, exif=exif)
    assert found(photos)["rotated"][1] == "1 photo(s) are turned upright by their EXIF tag: a/0.png"


def test_some_are_gray(photos):
    with Image.open(photos.root / "a/0.png") as image:
        image.convert("L").save(photos.root / "a/0.png")
    assert found(photos)["grey"][1] == "1 of 12 photos have no color: a/0.png"


def test_a_dark_photo_among_many(photos):
    more = [(f"a/more{i}.png", "a", f"more{i}", "train") for i in range(28)]
    for i, row in enumerate(more):
        picture(photos.root / row[0], 100 + i)
    Image.new("RGB", (40, 30), (3, 0, 0)).save(photos.root / "a/more3.png")
    told = found(added(photos, *more))
    assert told["outliers-brightness"][0] == "info"
    assert "1 photo(s) are unusually dark (brightness 0.9 against 1" in told["outliers-brightness"][1]
    assert told["outliers-brightness"][1].endswith(": a/more3.png")
    assert "outliers-aspect" in told


def test_robust_z():
    values = np.array([1.0, 2, 3, 4, 100, np.nan])
    z = robust_z(values)
    assert z[2] == 0 and np.isnan(z[5]) and z[4] == pytest.approx(97 / 1.4826)
    assert robust_z(np.array([5.0, 5, 5, 5, 9]))[4] == pytest.approx(4 / (1.2533 * 0.8))
    assert robust_z(np.full(4, 7.0)).tolist() == [0, 0, 0, 0]
    assert robust_z(np.array([np.nan, np.nan])).tolist() == [0, 0]


def test_fit_skips_the_slow_ones(photos, monkeypatch):
    run = []
    monkeypatch.setitem(CHECKS, "shortcuts", lambda photos, looks: run.append(1) or [])
    run_checks(photos)
    assert run == [] and "shortcuts" in SLOW
    check(photos)
    assert run == [1]


def test_a_shortcut_in_the_file(photos):
    rows = []
    for i in range(60):
        path = f"{'ab'[i % 2]}/s{i}.{'png' if i % 2 else 'jpg'}"
        picture(photos.root / path, 300 + i)
        rows.append((path, "ab"[i % 2], path, "train"))
    severity, message = found(added(photos, *rows))["shortcuts"]
    assert severity == "warning"
    assert "alone predicts the class better than chance: balanced accuracy" in message
