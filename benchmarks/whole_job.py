"""The whole job by the clock, start-up included: five folds and two views of ours against one split of fastai."""

from __future__ import annotations

import csv
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import child
import image_sets

PHOTOS, FEW, EPOCHS = 2_000, 400, 5
HEADLINE = (
    "ours",
    "photos",
    "first_s",
    "second_s",
    "fastai_s",
    "times_faster",
    "valid_macro_f1",
    "fastai_valid_macro_f1",
)
KINDS = {
    "fast, two views": ("--quality", "fast", "--set", 'probe.views=["plain","flip"]'),
    "good": ("--quality", "good"),
}
_VENV = Path(__file__).parent / ".venv"
PEER = Path(__file__).with_name("fastai_peer.py")
_CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Ours on some 400 photos, interleaved with five epochs of fastai on the same."""
    yield from _compared(data, scratch, FEW, repeats, with_peer=True)


def rows_2000(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Ours on 2,000 photos: first and second run."""
    yield from _compared(data, scratch, PHOTOS, repeats, with_peer=False)


def rows_full(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Ours on 2,000 photos against fastai on the same, once: the peer takes a quarter of an hour on two quiet cores."""
    yield from _compared(data, scratch, PHOTOS, 1, with_peer=True)


def rows_epoch(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Ours on 2,000 photos against a single epoch of fastai: a fifth of what it is to be compared with, and quicker."""
    yield from _compared(data, scratch, PHOTOS, repeats, with_peer=True, epochs=1)


def _compared(
    data: Path | None, scratch: Path, count: int, repeats: int, with_peer: bool, epochs: int = EPOCHS
) -> Iterator[dict[str, Any]]:
    tables = _photos(data, scratch)
    if tables is None:
        return
    table = tables[count]
    ours: dict[str, list[tuple[child.Taken, child.Taken]]] = {kind: [] for kind in KINDS}
    peers: list[child.Taken] = []
    for repeat in range(repeats):
        for kind, words in KINDS.items():
            ours[kind].append(_ours(table, scratch / f"{kind}-{repeat}", words))
        if with_peer:
            peers.append(_peer(table, scratch, epochs))
    for kind, pairs in ours.items():
        yield _row(kind, pairs, peers, table, scratch / f"{kind}-0")


def _ours(table: Path, place: Path, words: tuple[str, ...]) -> tuple[child.Taken, child.Taken]:
    """First run with an empty cache, second with a full one and a new run folder."""
    first, second = (child.fit(table.parent / "photos", place / run, place / "cache", *words) for run in ("1", "2"))
    return first, second


def _peer(table: Path, scratch: Path, epochs: int) -> child.Taken:
    taken = child.run([peer_python(), PEER, "frozen", table, lite0_weights(scratch), epochs])
    print(f"  fastai: {taken.seconds} s, {taken.cpu_seconds} s of CPU, {taken.stdout.strip()}", flush=True)
    return taken


def _row(
    kind: str,
    pairs: list[tuple[child.Taken, child.Taken]],
    peers: list[child.Taken],
    table: Path,
    place: Path,
) -> dict[str, Any]:
    first = median(taken.seconds for taken, _ in pairs)
    found = pairs[0][0].json()
    row: dict[str, Any] = {
        "ours": kind,
        "photos": found["out_of_fold"]["photos"],
        "first_s": first,
        "second_s": median(taken.seconds for _, taken in pairs),
        "second_to_first": round(median(b.seconds / a.seconds for a, b in pairs), 3),
        "first_cpu_s": median(taken.cpu_seconds for taken, _ in pairs),
        "second_cpu_s": median(taken.cpu_seconds for _, taken in pairs),
        "second_to_first_cpu": round(median(b.cpu_seconds / a.cpu_seconds for a, b in pairs), 3),
        "oof_macro_f1": round(found["macro_f1"]["value"], 4),
    }
    if peers:
        # On the peer's own split: trained on its training photos, scored on its validation photos.
        words = (*KINDS[kind], "--split", "split", "--label", "label")
        ours = child.fit(table, place / "split", place / "cache", *words).json()["test"]
        row |= {
            "fastai_s": median(peer.seconds for peer in peers),
            "fastai_cpu_s": median(peer.cpu_seconds for peer in peers),
            "times_faster": round(median(p.seconds / a.seconds for p, (a, _) in zip(peers, pairs, strict=True)), 1),
            "times_less_cpu": round(
                median(p.cpu_seconds / a.cpu_seconds for p, (a, _) in zip(peers, pairs, strict=True)), 1
            ),
            "valid_macro_f1": round(ours["macro_f1"]["value"], 4),
            "fastai_valid_macro_f1": round(median(peer.json()["macro_f1"] for peer in peers), 4),
            "valid_photos": ours["photos"],
        }
    for name, run in (("first", "1"), ("second", "2")):
        row |= {f"{name}_{stage}_s": seconds for stage, seconds in child.stages(place / run).items()}
    return {**row, "repeats": len(pairs), "load": round(median(taken.load for pair in pairs for taken in pair), 2)}


def _photos(data: Path | None, scratch: Path) -> dict[int, Path] | None:
    """384x512 JPEGs in class folders, as two tables with one 80/20 split: all of them, and some of the trash set alone.

    Clothing fills the 2,000; its classes are too small for five folds of a fifth of them.
    """
    if data is None:
        print("whole_job: skipped, the real photos are absent (--data DIR).")
        return None
    trash = [(f, f.parent.name) for f in image_sets.real_photos(data / "trash")]
    of_trash = set(trash)
    clothes = [(f, f.parent.name) for f in image_sets.real_photos(data / "clothing")]
    draws = random.Random(0)
    draws.shuffle(clothes)
    chosen = trash + clothes[: PHOTOS - len(trash)]
    draws.shuffle(chosen)
    tables = {PHOTOS: scratch / "all" / "table.csv", FEW: scratch / "few" / "table.csv"}
    lines: dict[int, list[tuple[str, str, str]]] = {PHOTOS: [], FEW: []}
    seen: dict[str, int] = {}
    for i, (source, label) in enumerate(chosen):
        path = f"photos/{label}/{i:04d}.jpg"
        image_sets.resized(source, scratch / "all" / path)
        at = seen[label] = seen.get(label, -1) + 1
        lines[PHOTOS].append((path, label, "test" if at % 5 == 0 else "train"))
        if (source, label) in of_trash and at // 5 % 3 == 0:  # five in 15 of a class, one of them for validation
            (scratch / "few" / path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / "few" / path).hardlink_to(scratch / "all" / path)
            lines[FEW].append(lines[PHOTOS][-1])
    for count, table in tables.items():
        with table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "label", "split"), *lines[count]])
    return tables


def lite0_weights(scratch: Path) -> Path:
    """Our backbone's weights in a file that both use; not part of any time."""
    file = scratch / "weights.pt"
    if not file.exists():
        code = (
            "import sys, torch; from unfreeze.models.registry import find_backbone; "
            "torch.save(find_backbone('tf_efficientnet_lite0').build().state_dict(), sys.argv[1])"
        )
        subprocess.run([sys.executable, "-c", code, str(file)], check=True)
    return file


def peer_python() -> Path:
    """Python of the peer's virtual environment, made on first use: fastai and the tested versions of the rest."""
    python = _VENV / "bin" / "python"
    if not (_VENV / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", _VENV], check=True)
        wanted = ["fastai>=2.8", "timm", "setuptools"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", _CONSTRAINTS, *wanted], check=True)
        (_VENV / ".installed").touch()
    return python
