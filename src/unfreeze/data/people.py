"""Demo photos: invented people in the face-mask competition's layout, so that everything runs without data.

A source is `train/train.csv` with one row a person and seven photos in that person's folder, and
`eval/info.csv` with shuffled photos of other people. What was planted in it (wrong labels, hidden files, the
answers) is in `truth.json`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unfreeze.core.errors import SourceError, StorageError
from unfreeze.data.portraits import draw_portrait
from unfreeze.data.sitters import Sitter

DRAWING = 1  # raise when the drawing changes, so that older demo photos are not taken for the same
GENDERS = ("male", "female")
SHOTS = ("mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal")
STATES = (0, 0, 0, 0, 0, 1, 2)
SUFFIXES = ("jpg", "jpg", "jpg", "jpeg", "png")
SMALLEST = (48, 64)
FEW = 80  # photos; below this, starting processes takes longer than it saves
RESERVED = 2  # index of the person that a hidden file stands beside; keeps its plain id "000003"
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \x00\x02" + bytes(92)


@dataclass(frozen=True)
class Person:
    """One person: who is drawn, and the id and gender that folder and table state."""

    sitter: Sitter
    id: str
    stated_gender: int

    @property
    def folder(self) -> str:
        """Name of the person's folder."""
        return f"{self.id}_{GENDERS[self.stated_gender]}_Asian_{self.sitter.age}"


@dataclass(frozen=True)
class Photo:
    """One file to draw. `path` is relative to the root."""

    path: str
    sitter: Sitter
    state: int
    shot: int


def class_of(state: int, gender: int, age: int) -> int:
    """The class number: `6 * mask + 3 * gender + age band`, with bands below 30, 30 to 59, and from 60."""
    return 6 * state + 3 * gender + (age >= 30) + (age >= 60)


def make_people(
    root: Path,
    people: int = 60,
    test_people: int = 20,
    seed: int = 0,
    wrong_share: float = 0.02,
    size: tuple[int, int] = (384, 512),
    on_photo: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Write demo photos to `root`, whole or not at all, or reuse those of an earlier call alike.

    Args:
        root: folder to make. One that exists is used only if it was made with the same arguments.
        people: people to train on, seven photos each.
        test_people: other people whose photos are to be predicted.
        seed: the same seed gives the same bytes, whatever `workers` is.
        wrong_share: about this share of the training photos gets a wrong label (0 to 0.5).
        size: width and height of the photos in pixels.
        on_photo: called with (photos done, photos in all) as photos are written.
        workers: processes to draw with; None chooses by the processors and the number of photos.

    Returns:
        The content of `truth.json`: `parameters`, `people` and `eval_people` (as drawn), `eval` (class by
        ImageID), `wrong_labels` (path, stated label, true class) and `hidden` (paths relative to `root`).

    Raises:
        SourceError: `root` holds anything else, or an argument is out of range.
        StorageError: the folder cannot be written.
    """
    root = Path(root)
    parameters = {
        "drawing": DRAWING,
        "people": people,
        "test_people": test_people,
        "seed": seed,
        "wrong_share": wrong_share,
        "size": list(size),
    }
    _check(people, test_people, seed, wrong_share, size)
    total = (people + test_people) * len(SHOTS)
    if root.exists() or root.is_symlink():
        truth = _same(root, parameters)
        if on_photo:
            on_photo(total, total)
        return truth
    scratch: Path | None = None
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        whole = scratch / "whole"  # inside, as mkdtemp's own folder is closed to other users
        truth = {"made_by": "unfreeze demo photos", "parameters": parameters}
        truth |= _build(whole, people, test_people, seed, wrong_share, size, on_photo, workers)
        (whole / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
        if root.exists():  # another call was faster
            return _same(root, parameters)
        whole.rename(root)
    except OSError as error:
        raise StorageError(
            f"{root}: the demo photos cannot be written ({error.strerror or error}); "
            "choose a folder that can be written to, with room on its disk."
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return truth


def _check(people: int, test_people: int, seed: int, wrong_share: float, size: tuple[int, int]) -> None:
    if people < 1 or test_people < 0 or seed < 0:
        raise SourceError(
            f"Demo photos need at least 1 person and no negative numbers, "
            f"not people={people}, test_people={test_people}, seed={seed}."
        )
    if not 0 <= wrong_share <= 0.5:
        raise SourceError(f"The share of wrong labels must be 0 to 0.5, not {wrong_share}.")
    if size[0] < SMALLEST[0] or size[1] < SMALLEST[1]:
        raise SourceError(f"Demo photos must be at least {SMALLEST[0]}x{SMALLEST[1]}, not {size[0]}x{size[1]}.")


def _same(root: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """The truth of `root` if it was made with these parameters."""
    try:
        truth = json.loads((root / "truth.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise SourceError(f"{root}: exists already and does not hold demo photos; pick another folder.") from None
    if not isinstance(truth, dict) or truth.get("parameters") != parameters:
        raise SourceError(f"{root}: holds demo photos made with other settings; pick another folder.")
    return truth


def _build(
    root: Path,
    people: int,
    test_people: int,
    seed: int,
    wrong_share: float,
    size: tuple[int, int],
    on_photo: Callable[[int, int], None] | None,
    workers: int | None,
) -> dict[str, Any]:
    """Write everything but `truth.json` below `root`; returns what was planted."""
    rng = np.random.default_rng([seed, 1])
    persons = _number(_sitters(people, seed, 2), rng)
    swapped, flipped = _choose_wrong(persons, wrong_share, rng)
    persons = [
        replace(person, stated_gender=1 - person.sitter.gender) if i in flipped else person
        for i, person in enumerate(persons)
    ]
    photos: list[Photo] = []
    wrong: list[dict[str, Any]] = []
    for i, person in enumerate(persons):
        for shot, (name, stated) in enumerate(zip(SHOTS, STATES, strict=True)):
            shown = 3 - stated if i in swapped and stated else stated
            path = f"train/images/{person.folder}/{name}.{rng.choice(SUFFIXES)}"
            photos.append(Photo(path, person.sitter, shown, shot))
            label = class_of(stated, person.stated_gender, person.sitter.age)
            true = class_of(shown, person.sitter.gender, person.sitter.age)
            if label != true:
                wrong.append({"path": path, "label": label, "true": true})
    strangers = _sitters(test_people, seed, 3)
    names = [hashlib.sha1(f"{seed}:{k}".encode()).hexdigest() for k in range(test_people * len(SHOTS))]
    shuffled = rng.permutation(len(names))
    answers: dict[str, int] = {}
    eval_people: list[dict[str, Any]] = []
    for i, sitter in enumerate(strangers):
        own = []
        for shot, state in enumerate(STATES):
            image_id = names[shuffled[i * len(SHOTS) + shot]] + ".jpg"
            photos.append(Photo(f"eval/images/{image_id}", sitter, state, shot))
            answers[image_id] = class_of(state, sitter.gender, sitter.age)
            own.append(image_id)
        eval_people.append({"gender": GENDERS[sitter.gender], "age": sitter.age, "photos": own})
    for folder in {str(Path(photo.path).parent) for photo in photos} | {"eval/images"}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    listed = [name + ".jpg" for name in names]
    _write_rows(root / "eval/info.csv", ["ImageID", "ans"], [[name, "0"] for name in listed])
    _write_rows(
        root / "train/train.csv",
        ["id", "gender", "race", "age", "path"],
        [[p.id, GENDERS[p.stated_gender], "Asian", str(p.sitter.age), p.folder] for p in persons],
    )
    hidden = _hide(root, persons, photos)
    with closing(_drawn(root, photos, size, workers)) as drawn:  # an error must stop the processes first
        for done, _ in enumerate(drawn, start=1):
            if on_photo:
                on_photo(done, len(photos))
    return {
        "people": [
            {"path": p.folder, "id": p.id, "gender": GENDERS[p.sitter.gender], "age": p.sitter.age} for p in persons
        ],
        "eval_people": eval_people,
        "eval": {name: answers[name] for name in listed},
        "wrong_labels": wrong,
        "hidden": hidden,
    }


def _sitters(count: int, seed: int, part: int) -> list[Sitter]:
    """People spread evenly over gender and age band, in no telling order."""
    rng = np.random.default_rng([seed, part])
    sitters = []
    for i, where in enumerate(rng.permutation(count)):
        gender, band = i % 2, i // 2 % 3
        low, high = ((18, 29), (30, 59), (60, 75))[band]
        age = int(rng.integers(low, high + 1))
        if i < 6:  # the first of each band sits on its lower edge, the second on its upper
            age = max(low, 30 * band) if band else age
        elif i < 12 and band < 2:
            age = high
        sitters.append((int(where), Sitter((seed, part, i), gender, age)))
    return [sitter for _, sitter in sorted(sitters, key=lambda pair: pair[0])]


def _number(sitters: list[Sitter], rng: np.random.Generator) -> list[Person]:
    """Give ids: one with a suffix, and one shared by two folders, so that an id is not yet a person."""
    persons = [Person(sitter, f"{i + 1:06d}", sitter.gender) for i, sitter in enumerate(sitters)]
    free = [int(i) for i in rng.permutation(len(persons)) if i != RESERVED]
    if len(free) > 2:
        first, *others = free
        twin = next((i for i in others if persons[i].folder[6:] != persons[first].folder[6:]), None)
        if twin is not None:
            persons[twin] = replace(persons[twin], id=persons[first].id)
            free = [i for i in others if i != twin]
    if free:
        persons[free[0]] = replace(persons[free[0]], id=persons[free[0]].id + "-1")
    return persons


def _choose_wrong(persons: list[Person], wrong_share: float, rng: np.random.Generator) -> tuple[set[int], set[int]]:
    """Indices of people with swapped files (two wrong photos each) and with a wrong gender (seven each)."""
    budget = round(wrong_share * len(persons) * len(SHOTS))
    if not budget:
        return set(), set()
    swaps = max(1, round(budget / 4))
    flips = max(0, round((budget - 2 * swaps) / len(SHOTS)))
    ids = [person.id for person in persons]
    order = [int(i) for i in rng.permutation(len(persons))]
    # A flipped folder with a shared id could take the other folder's name.
    flipped = [i for i in order if ids.count(ids[i]) == 1 and i != RESERVED][:flips]
    return set([i for i in order if i not in flipped][:swaps]), set(flipped)


def _hide(root: Path, persons: list[Person], photos: list[Photo]) -> list[str]:
    """Write the files that one kind of computer leaves beside copied ones; returns their paths."""
    hidden = [f"train/images/._{persons[min(RESERVED, len(persons) - 1)].folder}"]
    firsts = [Path(photo.path) for photo in photos if photo.path.startswith("train/") and photo.shot in (0, 6)]
    hidden += [(path.parent / f"._{path.name}").as_posix() for path in firsts[:: max(1, len(firsts) // 6)]]
    for path in hidden:
        (root / path).write_bytes(APPLE_DOUBLE)
    return hidden


def _write_rows(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _drawn(root: Path, photos: list[Photo], size: tuple[int, int], workers: int | None) -> Generator[str, None, None]:
    """Draw and save all photos, yielding each one's path once it is on disk."""
    if workers is None:
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = 1 if len(photos) < FEW else min(usable, 8)
    left = {photo.path: photo for photo in photos}
    if workers > 1:
        # Spawn, as a fork of a process that runs threads (a server, a loader) can hang.
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(workers, mp_context=context) as pool:
                try:
                    for future in as_completed([pool.submit(_save, root, p, size) for p in photos]):
                        left.pop(future.result())
                        yield future.result()
                except BaseException:
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
        except BrokenProcessPool:
            pass  # a script without a main guard cannot spawn; drawing here is slower and the same
    for photo in list(left.values()):
        yield _save(root, photo, size)


def _save(root: Path, photo: Photo, size: tuple[int, int]) -> str:
    image = draw_portrait(photo.sitter, photo.state, photo.shot, size)
    path = root / photo.path
    if path.suffix == ".png":
        image.save(path, compress_level=1)
    else:
        image.save(path, format="JPEG", quality=90)
    return photo.path
