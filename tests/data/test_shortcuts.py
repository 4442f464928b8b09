"""A planted shortcut is raised, photos without one raise none, and groups are never on both sides."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from unfreeze.data.scan import DTYPE
from unfreeze.data.shortcuts import shortcuts


def material(n=400, classes=4, each=1, seed=0):
    """Random photos of `each` a group, labels by group, and looks in which nothing tells the class."""
    draws = np.random.default_rng(seed)
    group = np.arange(n) // each
    label = np.array([f"class {c}" for c in draws.integers(0, classes, n // each)])[group]
    table = pd.DataFrame({"path": [f"{i}.jpg" for i in range(n)], "label": label, "group": group, "split": "train"})
    seen = np.zeros(n, DTYPE)
    for name in ("brightness", "contrast", "sharpness", "colourfulness", "border_spread"):
        seen[name] = draws.normal(100, 20, n)
    seen["border"] = draws.integers(0, 256, (n, 3))
    seen["bytes"] = draws.integers(5000, 90000, n)
    seen["format"], seen["mode"], seen["orientation"] = b"JPEG", b"colour", 1
    size = np.full(n, 300, np.uint32)
    looks = SimpleNamespace(measures=seen, width=size, height=size, readable=np.ones(n, bool))
    return SimpleNamespace(table=table), looks


@pytest.mark.parametrize("seed", range(5))
def test_none(seed):
    found = shortcuts(*material(seed=seed))
    assert {s.name for s in found} == {"brightness", "contrast", "sharpness", "colourfulness", "border", "bytes"}
    assert not any(s.raised for s in found)
    assert all(abs(s.accuracy - 0.25) < 0.12 and s.low <= s.accuracy <= s.high for s in found)


def test_a_format_that_two_classes_share():
    photos, looks = material()
    looks.measures["format"][photos.table["label"].isin(["class 0", "class 1"])] = b"PNG"
    best = shortcuts(photos, looks)[0]
    assert (best.name, best.raised, best.severity) == ("format", True, "warning")
    assert best.accuracy == pytest.approx(0.5, abs=0.06) and best.skill == pytest.approx((best.accuracy - 0.25) / 0.75)


def test_one_size_of_many_and_a_darker_class():
    photos, looks = material()
    looks.width = looks.width.copy()
    looks.width[(photos.table["label"] == "class 2").to_numpy()] = 301
    looks.measures["brightness"][photos.table["label"] == "class 3"] -= 60
    by_name = {s.name: s for s in shortcuts(photos, looks)}
    assert by_name["size"].raised and by_name["aspect"].raised
    assert by_name["brightness"].raised and by_name["brightness"].severity == "info"
    assert not by_name["bytes"].raised


def test_what_only_names_the_group_is_no_shortcut():
    """Every person has a camera of their own, by which one could tell the label only if the person were known."""
    photos, looks = material(n=400, each=10)
    looks.measures["bytes"] = 5000 + 800 * photos.table["group"].to_numpy()
    found = {s.name: s for s in shortcuts(photos, looks)}
    assert not found["bytes"].raised and found["bytes"].accuracy < 0.4
    alone = SimpleNamespace(table=photos.table.assign(group=np.arange(400)))
    assert {s.name: s for s in shortcuts(alone, looks)}["bytes"].accuracy > 0.6


def test_test_rows_and_unread_photos_do_not_count():
    photos, looks = material()
    photos.table.loc[:199, "split"] = "test"
    looks.measures["bytes"][:200] = np.unique(photos.table["label"], return_inverse=True)[1][:200]
    assert not any(s.raised for s in shortcuts(photos, looks))
    looks.readable[:390] = False
    assert shortcuts(photos, looks) == []


def test_the_same_every_time():
    assert shortcuts(*material()) == shortcuts(*material())


def test_random_labels_raise_a_shortcut_in_at_most_one_set_in_twenty():
    """Few groups with properties of their own and two classes: what one sample shows by chance is no shortcut."""
    raised = significant = 0
    for seed in range(40):
        photos, looks = material(n=140, classes=2, each=7, seed=seed)
        draws = np.random.default_rng([seed, 1])
        for name in ("brightness", "contrast", "sharpness", "colourfulness", "border_spread"):
            looks.measures[name] = draws.normal(100, 20, 20)[photos.table["group"]] + draws.normal(0, 5, 140)
        found = shortcuts(photos, looks, seed)
        significant += any(s.p_value <= 0.05 for s in found)
        raised += any(s.raised for s in found)
    assert raised <= significant <= 6  # 2 are expected; 7 or more have a probability of 0.3%


def test_labels_that_vary_within_groups_are_permuted_too():
    """Every person without and with a mask, photographed in different light: groups share all labels."""
    photos, looks = material(n=200, classes=2, each=4)
    photos.table["label"] = np.tile(["no mask", "mask"], 100)
    looks.measures["brightness"] += np.tile([0, 60], 100)
    found = {s.name: s for s in shortcuts(photos, looks)}
    assert found["brightness"].raised and found["brightness"].p_value == pytest.approx(1 / 200)
    assert not found["contrast"].raised
