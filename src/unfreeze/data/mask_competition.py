"""Reader for the mask competition: `train/train.csv` and person folders in `train/images`.

Each person folder contains seven images: five with a mask, one with an incorrectly worn mask and one without. The
label combines mask status, gender and age range into 18 classes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pandas as pd

from unfreeze.core.dataset import Finding
from unfreeze.core.errors import SourceError, join_names
from unfreeze.core.format import pluralize
from unfreeze.core.names import nfc
from unfreeze.core.recipe_schema import Source
from unfreeze.data.directory_walk import ParsedSource, scan_folder, skipped
from unfreeze.data.text_table import TextTable, read_sheet

MASKS = ("worn", "incorrect", "normal")
GENDERS = ("male", "female")
AGES = ("<30", "30-59", "60+")
STEMS = {
    **{f"mask{number}": "worn" for number in range(1, 6)},
    "incorrect_mask": "incorrect",
    "normal": "normal",
}
"""Image name without suffix -> mask status."""

CLASSES = tuple(f"{mask}, {gender}, {age}" for mask in MASKS for gender in GENDERS for age in AGES)
"""The 18 classes; the index of a class is 6 * mask + 3 * gender + age."""


def train_folder(source: Path) -> Path | None:
    """Find the folder with train.csv and images/.

    Args:
        source: Root of the competition data.

    Returns:
        `source`/train or `source` itself; None if the layout is a different one.
    """
    for folder in (source / "train", source):
        if (folder / "train.csv").is_file() and (folder / "images").is_dir() and _names_people(folder / "train.csv"):
            return folder
    return None


def _names_people(table: Path) -> bool:
    """Whether the header has at least two of the competition's columns.

    Other competitions also have a train.csv next to an images folder.
    """
    try:
        with table.open("rb") as file:
            header = file.read(10_000).decode("utf-8-sig", "replace").partition("\n")[0].lower()
    except OSError:
        return True  # the reader raises a more precise error
    return sum(word in re.split(r"[,;\t|\s\"]+", header) for word in ("gender", "race", "age", "path")) > 1


def parse_competition(source: Path, encoding: str = "") -> ParsedSource:
    """Read the training images.

    Args:
        source: Root of the competition data.
        encoding: Encoding of train.csv; detected if empty.

    Returns:
        The parsed source, with one group per person folder.

    Raises:
        SourceError: If the layout does not match, a listed folder does not exist, or a gender or age is invalid.
    """
    folder = train_folder(source)
    if folder is None:
        raise SourceError(f"{source}: no train/train.csv with train/images next to it.")
    sheet = read_sheet(folder / "train.csv", Source(encoding=encoding, path_column="path"))
    people = _people(sheet)
    images = folder / "images"
    found = scan_folder(images)
    missing = sorted(people.keys() - set(map(nfc, found.folders)))
    if missing:
        raise SourceError(
            f"{sheet.name}: {pluralize(len(missing), 'folder')} of its column 'path' not found in {images}: "
            f"{join_names(missing)}. Restore them, or remove their rows."
        )
    if not found.photos:
        raise found.no_photos(images)

    prefix = f"{images.relative_to(source).as_posix()}/"
    rows = []
    unlisted, unknown = list[str](), list[str]()
    stems_of: defaultdict[str, list[str]] = defaultdict(list)
    for path in found.photos:
        folder_name, _, name = path.partition("/")
        person = nfc(folder_name)
        stem = name.rpartition(".")[0].lower()
        if person not in people:
            unlisted.append(path)
        elif stem not in STEMS:
            unknown.append(path)
        else:
            stems_of[person].append(stem)
            gender, age = people[person]
            rows.append((f"{prefix}{path}", STEMS[stem], gender, age, folder_name))
    if not rows:
        raise SourceError(f"{images}: no photo is named as in the competition ({', '.join(STEMS)}).")

    table = pd.DataFrame(rows, columns=["path", "mask", "gender", "age", "group"])
    table["label"] = [", ".join(row[1:4]) for row in rows]
    table["split"] = "train"
    occurring = set(table["label"])
    numbers = [number for number, name in enumerate(CLASSES) if name in occurring]
    return ParsedSource(
        root=source.resolve(),
        table=table,
        attributes=("mask", "gender", "age"),
        taken=f"competition layout {source.name}{f' ({sheet.note})' if sheet.note else ''}: label mask + gender + age",
        grouping="group person folder",
        findings=(
            *found.findings(),
            *_findings(unlisted, unknown, {person: stems_of[person] for person in people}),
        ),
        classes=tuple(CLASSES[number] for number in numbers),
        answers=tuple(numbers),
    )


def _people(sheet: TextTable) -> dict[str, tuple[str, str]]:
    """Map each person folder to gender and age range.

    The folder identifies the person, because an id can occur in two folders.
    """
    genders = [gender.lower() for gender in sheet.filled("gender")]
    strange = [i for i, gender in enumerate(genders) if gender not in GENDERS]
    if strange:
        raise SourceError(
            f"{sheet.name}: 'gender' is neither male nor female in {sheet.rows(strange)}, first: "
            f"{genders[strange[0]]!r}. Fix them."
        )
    texts = sheet.filled("age")
    ages = [_age_class(text) for text in texts]
    strange = [i for i, age in enumerate(ages) if not age]
    if strange:
        raise SourceError(
            f"{sheet.name}: 'age' is not a number of years in {sheet.rows(strange)}, first: "
            f"{texts[strange[0]]!r}. Fix them."
        )
    people: dict[str, tuple[str, str]] = {}
    torn = []
    for folder, gender, age in zip(sheet.filled("path"), genders, ages, strict=True):
        if people.setdefault(folder, (gender, age)) != (gender, age):
            torn.append(folder)
    if torn:
        raise SourceError(
            f"{sheet.name}: folders with two genders or age classes: {join_names(torn)}. Keep one row of each."
        )
    if not people:
        raise SourceError(f"{sheet.name}: no rows. It needs one row a person.")
    return people


def _age_class(text: str) -> str:
    """`<30`, `30-59` or `60+`; empty if `text` is not an age."""
    try:
        years = float(text)
    except ValueError:
        return ""
    if not 0 <= years <= 150:
        return ""
    return AGES[0] if years < 30 else AGES[1] if years < 60 else AGES[2]


def _findings(unlisted: list[str], unknown: list[str], stems_of: dict[str, list[str]]) -> list[Finding]:
    findings = [
        skipped(
            "unlisted",
            "warning",
            unlisted,
            "photo in a folder that train.csv does not list",
            "photos in folders that train.csv does not list",
            "Add rows for them.",
        ),
        skipped(
            "unknown_photos",
            "warning",
            unknown,
            "photo with an unknown name",
            "photos with unknown names",
            f"Name them {', '.join(STEMS)}.",
        ),
    ]
    absent = [f"{person}/{stem}" for person, stems in stems_of.items() for stem in STEMS if stem not in stems]
    if absent:
        message = f"{pluralize(len(absent), 'photo')} missing: {join_names(absent)}"
        findings.append(
            Finding("missing_photos", "warning", message, "Restore them, or go on with those that are there.")
        )
    twice = [f"{person}/{stem}" for person, stems in stems_of.items() for stem in STEMS if stems.count(stem) > 1]
    if twice:
        message = f"{pluralize(len(twice), 'photo')} there with two suffixes, all kept: {join_names(twice)}"
        findings.append(Finding("two_suffixes", "warning", message, "Remove one of each."))
    return [finding for finding in findings if finding is not None]
