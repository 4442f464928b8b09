"""What classes are made of: from the photos, from a class's name where it has none, and nothing where they are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from unfreeze.core.dataset import ImageDataset, label_columns


def photos(rows, classes=None, attributes=("mask", "age"), **more):
    """Photos of (mask, age) rows."""
    table = pd.DataFrame(rows, columns=list(attributes))
    table["label"] = [", ".join(map(str, row)) for row in rows]
    table = table.assign(path=[f"{i}.jpg" for i in range(len(rows))], group="g", split="train", **more)
    classes = classes or tuple(sorted(set(table["label"])))
    return ImageDataset(table, Path(), classes, classes, attributes, "test", "")


def test_values_stand_in_the_order_of_the_classes():
    classes = ("worn, young", "worn, old", "off, young")
    found = label_columns(photos([("off", "young"), ("worn", "old"), ("worn", "young")] * 2, classes))
    assert [part.name for part in found] == ["mask", "age"]
    assert found[0].values == ("worn", "off") and found[0].of_class == (0, 0, 1)
    assert found[1].values == ("young", "old") and found[1].of_class == (0, 1, 0)
    assert found[1].of(np.array([1, 1, 2])).tolist() == [1, 1, 0]


def test_a_class_without_photos_is_read_by_its_name():
    classes = ("off, old", "off, young", "worn, old", "worn, young")
    found = label_columns(photos([("off", "old"), ("worn", "young"), ("off", "young")], classes))
    assert found[0].of_class == (0, 0, 1, 1) and found[1].of_class == (0, 1, 0, 1)


def test_relabeled_photos_change_nothing():
    rows = [("off", "old"), ("worn", "young"), ("off", "young")]
    mended = photos(rows, action=["", "", "relabel"])
    mended.table.loc[2, "mask"] = "worn"  # its label stayed "off, young"
    assert label_columns(mended)[0].of_class == label_columns(photos(rows))[0].of_class
    assert (
        label_columns(mended.with_table(mended.table.drop(columns="action"))) == ()
    )  # two classes with the same values


def test_labels_that_are_no_combinations_have_no_parts():
    rows = [("off", "old"), ("worn", "young")]
    assert label_columns(photos([("cat",), ("dog",)], attributes=("kind",))) == ()
    assert label_columns(photos([("off", "old"), ("worn", "old")])) == ()  # one value is nothing to tell
    torn = photos([*rows, ("off", "old")])
    torn.table.loc[2, "age"] = "young"
    assert label_columns(torn) == ()  # a class with two ages
    same = photos(rows)
    same.table.loc[:, ["mask", "age"]] = "x"
    assert label_columns(same) == ()
    strange = photos(rows, ("off, old", "worn, young", "something, else"))
    assert len(label_columns(strange)) == 2  # its name reads as two values
    assert label_columns(photos(rows, ("off, old", "worn, young", "other"))) == ()
