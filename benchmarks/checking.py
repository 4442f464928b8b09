"""`unfreeze check`: are near-duplicates found, how fast are 100,000 hashes compared, how long do 20,000 photos take?

python run.py checking --data DIR
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import child
import image_sets
import numpy as np
from PIL import Image, ImageEnhance

PLANTED, AMONG, HASHES, PHOTOS = 200, 5_000, 100_000, 20_000
HEADLINE = ("what", "photos", "planted", "found", "recall", "precision", "seconds", "photos_s", "page_mb", "load")
_SETS = ("masks", "clothing", "trash", "grocery")


def _encoded(image: Image.Image, quality: int = 80) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _cropped(image: Image.Image, share: float) -> Image.Image:
    """`share` of the width and height taken off, evenly from all sides."""
    x, y = image.width * share / 2, image.height * share / 2
    return image.crop((round(x), round(y), round(image.width - x), round(image.height - y)))


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "re-encoded, quality 75": lambda image: _encoded(image, 75),
    "resized to 0.7": lambda image: _encoded(
        image.resize((round(0.7 * image.width), round(0.7 * image.height)), Image.Resampling.BICUBIC)
    ),
    "cropped by 3%": lambda image: _encoded(_cropped(image, 0.03)),
    "cropped by 3% on every side": lambda image: _encoded(_cropped(image, 0.06)),
    "brightness +10%": lambda image: _encoded(ImageEnhance.Brightness(image).enhance(1.1)),
}


def rows(data: Path | None, scratch: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Rows of planted copies, of hashes alone and of the whole command."""
    os.environ["UNFREEZE_CACHE"] = str(scratch / "cache")
    if data is None:
        print("checking: planted copies are skipped, the real photos are absent (--data DIR).")
    else:
        yield from _planted(data, scratch)
    yield _hashes()
    yield _whole(data, scratch)


def _planted(data: Path, scratch: Path) -> Iterator[dict[str, Any]]:
    """Copies of 200 real photos among 5,000. A pair with what the originals already tie to the source is no mistake."""
    from unfreeze.data.crop_duplicates import find_cropped_duplicates
    from unfreeze.data.decode import MAX_PIXELS
    from unfreeze.data.duplicates import connected_groups, near_duplicates
    from unfreeze.data.look_alikes import screened
    from unfreeze.data.scan import _row

    files = [file for name in _SETS for file in image_sets.real_photos(data / name)]
    real = len(files)
    files += image_sets.drawn_set(scratch / "drawn", max(0, AMONG - real), 384, 512, classes=6)
    draws = np.random.default_rng(0)
    picked = draws.choice(real, PLANTED, replace=False)
    with ThreadPoolExecutor() as pool:
        seen = np.concatenate(list(pool.map(lambda file: _row(file.read_bytes(), MAX_PIXELS), files)))
    for what, change in COPIES.items():
        copies = []
        for i in picked.tolist():
            with Image.open(files[i]) as image:
                copies.append(_row(change(image.convert("RGB")), MAX_PIXELS))
        everything = np.concatenate([seen, *copies])
        usable = np.ones(len(everything), bool)
        started = time.perf_counter()
        hashed = near_duplicates(everything["dhash"], everything["thumb"], usable)
        pairs = np.unique(
            np.concatenate([hashed, find_cropped_duplicates(everything["grey"], everything["thumb"], usable)]), axis=0
        )
        pairs, _ = screened(pairs, everything["dhash"], everything["thumb"], everything["grey"], usable)
        seconds = time.perf_counter() - started
        own = pairs[pairs[:, 1] < len(files)]
        tied = connected_groups(np.arange(len(files)), own)
        planted = pairs[(pairs[:, 1] >= len(files)) & (pairs[:, 0] < len(files))]
        source = picked[planted[:, 1] - len(files)]
        hit, relative = planted[:, 0] == source, tied[planted[:, 0]] == tied[source]
        yield {
            "what": what,
            "photos": len(everything),
            "planted": PLANTED,
            "found": len(planted),
            "recall": round(float(hit.sum() / PLANTED), 4),
            "recall_by_hash_alone": round(_recall(hashed, len(files), picked), 4),
            "precision": round(float(hit.sum() / max(len(planted), 1)), 4),
            "precision_with_relatives": round(float(relative.sum() / max(len(planted), 1)), 4),
            "pairs_among_originals": len(own),
            "seconds": round(seconds, 2),
            "load": round(os.getloadavg()[0], 2),
        }


def _recall(pairs: np.ndarray, originals: int, picked: np.ndarray) -> float:
    own = pairs[(pairs[:, 1] >= originals) & (pairs[:, 0] < originals)]
    return float((own[:, 0] == picked[own[:, 1] - originals]).sum() / len(picked))


def _hashes() -> dict[str, Any]:
    """100,000 smooth random photos, one in 100 a changed copy: everything but decoding."""
    from unfreeze.data.crop_duplicates import find_cropped_duplicates
    from unfreeze.data.duplicates import near_duplicates
    from unfreeze.data.look_alikes import screened

    draws = np.random.default_rng(0)
    small = draws.normal(128, 45, (HASHES, 8, 8)).astype(np.float32)
    copies = HASHES // 100
    small[-copies:] = small[:copies] + draws.normal(0, 2, (copies, 8, 8))
    grey = np.clip(np.kron(small, np.ones((1, 4, 4), np.float32)), 0, 255).astype(np.uint8)
    thumb = np.repeat(np.clip(small, 0, 255).astype(np.uint8)[..., None], 3, axis=3)
    rows = np.clip(np.kron(small, np.ones((1, 2, 3), np.float32)), 0, 255)[:, :, :17].astype(np.int16)
    dhash = np.packbits((rows[:, :, 1:] > rows[:, :, :-1] + 1).reshape(HASHES, -1), axis=1).view("<u8")
    usable = np.ones(HASHES, bool)
    started, busy = time.perf_counter(), time.process_time()
    hashed = near_duplicates(dhash, thumb, usable)
    seconds = time.perf_counter() - started
    pairs = np.unique(np.concatenate([hashed, find_cropped_duplicates(grey, thumb, usable)]), axis=0)
    pairs, _ = screened(pairs, dhash, thumb, grey, usable)
    whole = time.perf_counter() - started
    right = (pairs[:, 1] - pairs[:, 0]) == HASHES - copies
    return {
        "what": "hashes compared",
        "photos": HASHES,
        "planted": copies,
        "found": len(pairs),
        "recall": round(float(right.sum() / copies), 4),
        "precision": round(float(right.mean()) if len(pairs) else 0.0, 4),
        "seconds": round(whole, 1),
        "cpu_s": round(time.process_time() - busy, 1),
        "seconds_by_hash_alone": round(seconds, 1),
        "load": round(os.getloadavg()[0], 2),
    }


def _whole(data: Path | None, scratch: Path) -> dict[str, Any]:
    """`unfreeze check --report` of 20,000 distinct JPEGs of 384x512: real photos, each encoded anew several times."""
    folder = scratch / "many"
    sources = [file for name in _SETS for file in image_sets.real_photos(data / name)] if data else []
    if sources:
        _fill(folder, sources)
    else:
        image_sets.drawn_set(folder, PHOTOS, 384, 512, classes=6)
    page = scratch / "eda.html"
    command = [sys.executable, "-m", "unfreeze.cli.main", "check", str(folder), "--report", str(page), "--json"]
    taken = child.run(command)
    seconds = taken.seconds
    return {
        "what": "check --report",
        "photos": PHOTOS,
        "seconds": round(seconds, 1),
        "cpu_s": taken.cpu_seconds,
        "peak_mb": taken.peak_mb,
        "photos_s": round(PHOTOS / seconds),
        "page_mb": round(page.stat().st_size / 1e6, 2),
        "load": taken.load,
    }


def _fill(folder: Path, sources: list[Path]) -> None:
    """PHOTOS files in class folders, each a different cut of a real photo."""

    def one(i: int) -> None:
        source = sources[i % len(sources)]
        draws = np.random.default_rng(i)
        target = folder / source.parent.name / f"{i:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(source) as opened:
            image = opened.convert("RGB")
        wide, tall = image.width * draws.uniform(0.6, 1), image.height * draws.uniform(0.6, 1)
        left, top = draws.uniform(0, image.width - wide), draws.uniform(0, image.height - tall)
        box = (left, top, left + wide, top + tall)
        image.resize((384, 512), Image.Resampling.BILINEAR, box=box).save(target, quality=90)

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, range(PHOTOS)))
