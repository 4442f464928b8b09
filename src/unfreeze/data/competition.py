"""The competition's layout: train/train.csv names person folders in train/images, seven photos in each."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pandas as pd

from unfreeze.core.errors import SourceError, listed
from unfreeze.core.tables import Finding
from unfreeze.data.sheet import Sheet, read_sheet
from unfreeze.data.walk import Draft, counted, skipped, walk

MASKS = ("worn", "incorrect", "normal")
GENDERS = ("male", "female")
AGES = ("<30", "30-59", "60+")
STEMS = {
    **{f"mask{number}": "worn" for number in range(1, 6)},
    "incorrect_mask": "incorrect",
    "normal": "normal",
}
"""A photo's name without suffix -> how the mask is worn."""

CLASSES = tuple(f"{mask}, {gender}, {age}" for mask in MASKS for gender in GENDERS for age in AGES)
"""The 18 classes; a class's place is its number: 6 * mask + 3 * gender + age."""


def train_folder(source: Path) -> Path | None:
    """The folder with train.csv and images/: `source`/train, or `source` itself; None: another layout."""
    for folder in (source / "train", source):
        if (folder / "train.csv").is_file() and (folder / "images").is_dir():
            return folder
    return None


def draft(source: Path) -> Draft:
    """The training photos. SourceError: listed folders that do not exist, unknown genders or ages."""
    folder = train_folder(source)
    if folder is None:
        raise SourceError(f"{source}: no train/train.csv with train/images beside it.")
    sheet = read_sheet(folder / "train.csv")
    people = _people(sheet)
    images = folder / "images"
    found = walk(images)
    missing = sorted(people.keys() - set(found.folders))
    if missing:
        raise SourceError(
            f"{sheet.name}: {counted(len(missing), 'folder')} of its column 'path' not found in {images}: "
            f"{listed(missing)}. Restore them, or remove their rows."
        )
    if not found.photos:
        raise found.no_photos(images)

    prefix = f"{images.relative_to(source).as_posix()}/"
    rows = []
    unlisted, unknown = list[str](), list[str]()
    stems_of: defaultdict[str, list[str]] = defaultdict(list)
    for path in found.photos:
        person, _, name = path.partition("/")
        stem = name.rpartition(".")[0].lower()
        if person not in people:
            unlisted.append(path)
        elif stem not in STEMS:
            unknown.append(path)
        else:
            stems_of[person].append(stem)
            gender, age = people[person]
            rows.append((f"{prefix}{path}", STEMS[stem], gender, age, person))
    if not rows:
        raise SourceError(f"{images}: no photo is named as in the competition ({', '.join(STEMS)}).")

    table = pd.DataFrame(rows, columns=["path", "mask", "gender", "age", "group"])
    table["label"] = [", ".join(row[1:4]) for row in rows]
    table["split"] = "train"
    occurring = set(table["label"])
    numbers = [number for number, name in enumerate(CLASSES) if name in occurring]
    return Draft(
        root=source.resolve(),
        table=table,
        attributes=("mask", "gender", "age"),
        taken=f"competition layout {source.name}: label mask + gender + age",
        grouping="group person folder",
        findings=(
            *found.findings(),
            *_findings(unlisted, unknown, {person: stems_of[person] for person in people}),
        ),
        classes=tuple(CLASSES[number] for number in numbers),
        answers=tuple(numbers),
    )


def _people(sheet: Sheet) -> dict[str, tuple[str, str]]:
    """Person folder -> gender and age class. An id can stand for two folders, so the folder is the person."""
    genders = [gender.lower() for gender in sheet.filled("gender")]
    strange = [i for i, gender in enumerate(genders) if gender not in GENDERS]
    if strange:
        raise SourceError(
            f"{sheet.name}: 'gender' is neither male nor female in {sheet.rows(strange)}, first: "
            f"{genders[strange[0]]!r}. Mend them."
        )
    texts = sheet.filled("age")
    ages = [_age_class(text) for text in texts]
    strange = [i for i, age in enumerate(ages) if not age]
    if strange:
        raise SourceError(
            f"{sheet.name}: 'age' is no number of years in {sheet.rows(strange)}, first: "
            f"{texts[strange[0]]!r}. Mend them."
        )
    people: dict[str, tuple[str, str]] = {}
    torn = []
    for folder, gender, age in zip(sheet.filled("path"), genders, ages, strict=True):
        if people.setdefault(folder, (gender, age)) != (gender, age):
            torn.append(folder)
    if torn:
        raise SourceError(
            f"{sheet.name}: folders with two genders or age classes: {listed(torn)}. Keep one row of each."
        )
    if not people:
        raise SourceError(f"{sheet.name}: no rows. It needs one row a person.")
    return people


def _age_class(text: str) -> str:
    """`<30`, `30-59` or `60+`; empty where `text` is no age."""
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
        message = f"{counted(len(absent), 'photo')} missing: {listed(absent)}"
        findings.append(
            Finding("missing_photos", "warning", message, "Restore them, or go on with those that are there.")
        )
    twice = [f"{person}/{stem}" for person, stems in stems_of.items() for stem in STEMS if stems.count(stem) > 1]
    if twice:
        message = f"{counted(len(twice), 'photo')} there with two suffixes, all kept: {listed(twice)}"
        findings.append(Finding("two_suffixes", "warning", message, "Remove one of each."))
    return [finding for finding in findings if finding is not None]
