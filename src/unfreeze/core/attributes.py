"""What a class is made of: the value of each label column, where classes are combinations of several."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.tables import Photos


@dataclass(frozen=True)
class Part:
    """A label column of a combined label.

    values: what it may be, in the order in which the classes name them. of_class: the number of its value in each
    class, in class order.
    """

    name: str
    values: tuple[str, ...]
    of_class: tuple[int, ...]

    def of(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The part's value, int64 (n,), of classes int64 (n,)."""
        return np.array(self.of_class, np.int64)[labels]


def parts_of(photos: Photos) -> tuple[Part, ...]:
    """The parts of the classes, in the order of `Photos.attributes`; none where classes are not combinations.

    Classes are combinations if at least two label columns have at least two values each, every class has one value
    of each, and no two classes have the same. A column with one value is no part: there is nothing to tell.
    """
    names = [name for name in photos.attributes if name != "label"]
    if len(names) < 2:
        return ()
    table = photos.table
    # Verdicts may have given a photo's label and its attributes different pasts: such a photo tells nothing here.
    rows = table[table["verdict"] != "relabel"] if "verdict" in table else table
    values = _values(rows[["label", *names]].drop_duplicates(), photos.classes, names)
    if values is None:
        return ()
    found = []
    for i, name in enumerate(names):
        column = [row[i] for row in values]
        every = tuple(dict.fromkeys(column))
        if len(every) > 1:
            found.append(Part(name, every, tuple(every.index(value) for value in column)))
    return tuple(found) if len(found) > 1 else ()


def _values(distinct: pd.DataFrame, classes: tuple[str, ...], names: list[str]) -> list[tuple[str, ...]] | None:
    """The attributes' values of each class, or None if they are no combinations."""
    if distinct["label"].duplicated().any():
        return None
    known = {row[0]: tuple(map(str, row[1:])) for row in distinct.itertuples(index=False, name=None)}
    # A class without photos is read as the readers write it.
    values = [known.get(label, tuple(label.split(", "))) for label in classes]
    whole = all(len(row) == len(names) for row in values)
    return values if whole and len(set(values)) == len(values) else None
