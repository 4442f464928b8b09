"""Synthetic demo dataset in the layout of the face-mask competition.

The training set is `train/train.csv` with one row per person, and a folder of seven images per person. The test set is
`eval/info.csv` with shuffled images of other people. `truth.json` records the true classes and everything that was
planted: wrong labels and hidden files.
"""

from __future__ import annotations

import csv
import hashlib
import json
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
from unfreeze.core.processes import spawn_context
from unfreeze.demo.drawing import DemoPerson
from unfreeze.demo.portraits import draw_portrait

DRAWING = 1  # version of the drawing code, so that older demo images are not reused
GENDERS = ("male", "female")
SHOTS = ("mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal")
STATES = (0, 0, 0, 0, 0, 1, 2)
SUFFIXES = ("jpg", "jpg", "jpg", "jpeg", "png")
SMALLEST = (48, 64)
FEW = 80  # images; below this, starting processes takes longer than it saves
RESERVED = 2  # index of the person whose folder has a hidden AppleDouble file; keeps the id "000003"
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \x00\x02" + bytes(92)


@dataclass(frozen=True)
class Person:
    """A person of the training set.

    Attributes:
        sitter: Person that is drawn.
        id: Id in the table and in the folder name.
        stated_gender: Index into GENDERS as stated in the table, which may be wrong.
    """

    sitter: DemoPerson
    id: str
    stated_gender: int

    @property
    def folder(self) -> str:
        """Name of the person's folder."""
        return f"{self.id}_{GENDERS[self.stated_gender]}_Asian_{self.sitter.age}"


@dataclass(frozen=True)
class Photo:
    """One image to draw.

    Attributes:
        path: Path relative to the root.
        sitter: Person that is drawn.
        state: 0 mask worn, 1 worn incorrectly, 2 no mask.
        shot: Number of the image among those of the person.
    """

    path: str
    sitter: DemoPerson
    state: int
    shot: int


def class_of(state: int, gender: int, age: int) -> int:
    """Class index `6 * mask + 3 * gender + age band`, with the age bands below 30, 30 to 59, and from 60."""
    return 6 * state + 3 * gender + (age >= 30) + (age >= 60)


def make_demo(
    root: Path,
    people: int = 60,
    test_people: int = 20,
    seed: int = 0,
    wrong_share: float = 0.02,
    size: tuple[int, int] = (384, 512),
    on_photo: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Write a demo dataset atomically to `root`, or reuse one that was made with the same arguments.

    Args:
        root: Folder to create. An existing folder is used only if it was made with the same arguments.
        people: Number of people in the training set, with seven images each.
        test_people: Number of other people in the test set.
        seed: Seed; equal seeds give identical files, whatever `workers` is.
        wrong_share: Approximate share of training images with a wrong label (0 to 0.5).
        size: Width and height of the images in pixels.
        on_photo: Called with (images written, total number of images) after each image.
        workers: Number of processes that draw; None chooses by the number of cores and images.

    Returns:
        Content of `truth.json`: `made_by`, `parameters`, `people` and `eval_people` (as drawn), `eval` (class by
            ImageID),
        `wrong_labels` (path, stated label, true class) and `hidden` (paths relative to `root`).

    Raises:
        SourceError: `root` has other content, or an argument is out of range.
        StorageError: The folder cannot be written.
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
        whole = scratch / "whole"  # a subfolder, since mkdtemp's own folder is private to the user
        truth = {"made_by": "unfreeze demo photos", "parameters": parameters}
        truth |= _build(whole, people, test_people, seed, wrong_share, size, on_photo, workers)
        (whole / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
        if root.exists():  # another process has created it meanwhile
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
    """Content of `truth.json` of `root`, if the dataset was made with these parameters."""
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
    """Write all files except `truth.json` below `root` and return the truth."""
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
    with closing(_drawn(root, photos, size, workers)) as drawn:  # an error stops the processes first
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


def _sitters(count: int, seed: int, part: int) -> list[DemoPerson]:
    """Create people spread evenly over gender and age band, in random order."""
    rng = np.random.default_rng([seed, part])
    sitters = []
    for i, where in enumerate(rng.permutation(count)):
        gender, band = i % 2, i // 2 % 3
        low, high = ((18, 29), (30, 59), (60, 75))[band]
        age = int(rng.integers(low, high + 1))
        if i < 6:  # people 0-5 are at the lower edge of their band, 6-11 at its upper edge
            age = max(low, 30 * band) if band else age
        elif i < 12 and band < 2:
            age = high
        sitters.append((int(where), DemoPerson((seed, part, i), gender, age)))
    return [sitter for _, sitter in sorted(sitters, key=lambda pair: pair[0])]


def _number(sitters: list[DemoPerson], rng: np.random.Generator) -> list[Person]:
    """Assign ids. One has a suffix, and two folders share one, so that an id does not identify a person."""
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
    """Indices of people with swapped files (two wrong labels each) and with a wrong gender (seven wrong labels)."""
    budget = round(wrong_share * len(persons) * len(SHOTS))
    if not budget:
        return set(), set()
    swaps = max(1, round(budget / 4))
    flips = max(0, round((budget - 2 * swaps) / len(SHOTS)))
    ids = [person.id for person in persons]
    order = [int(i) for i in rng.permutation(len(persons))]
    # With a shared id, a flipped gender could give two folders the same name.
    flipped = [i for i in order if ids.count(ids[i]) == 1 and i != RESERVED][:flips]
    return set([i for i in order if i not in flipped][:swaps]), set(flipped)


def _hide(root: Path, persons: list[Person], photos: list[Photo]) -> list[str]:
    """Write AppleDouble files (`._*`), as macOS leaves them next to copied files, and return their paths."""
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
    """Draw and save all images. Yields the path of each image once it is on disk."""
    if workers is None:
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = 1 if len(photos) < FEW else min(usable, 8)
    left = {photo.path: photo for photo in photos}
    if workers > 1:
        # Spawn, because forking a process with threads (a server, a data loader) can deadlock.
        try:
            with spawn_context() as context, ProcessPoolExecutor(workers, mp_context=context) as pool:
                try:
                    for future in as_completed([pool.submit(_save, root, p, size) for p in photos]):
                        left.pop(future.result())
                        yield future.result()
                except BaseException:
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
        except BrokenProcessPool:
            pass  # a script without a main guard cannot spawn; drawing in this process gives the same images
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
