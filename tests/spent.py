"""What decoding costs, measured in a process of its own: in pytest's others take and give back memory meanwhile."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import psutil  # type: ignore[import-untyped]
from PIL import Image

from hostile import encoded, unreadable_photos
from unfreeze.core.errors import PhotoError
from unfreeze.core.parallel import Budget
from unfreeze.data import decode as images
from unfreeze.data.decode import decode, load_crop

T = TypeVar("T")


def in_a_process_of_its_own(function: Callable[..., T], *arguments: object) -> T:
    """What a function of a module gives."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def peak_of_decoding(threads: int, budget: int) -> float:
    """Bytes that so many threads need more while each decodes a photo of 40 megapixels, with this budget for all."""
    images._memory = Budget(budget)
    data = encoded(Image.new("L", (8000, 5000)), "PNG")
    highest, done = [0.0], threading.Event()
    before = psutil.Process().memory_info().rss

    def watch() -> None:
        while not done.wait(0.002):
            highest[0] = max(highest[0], psutil.Process().memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    workers = [threading.Thread(target=lambda: load_crop(data, 64, 0.9)) for _ in range(threads)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    done.set()
    watcher.join()
    return highest[0]


def cost_of_refusing() -> tuple[float, float]:
    """CPU seconds and bytes that refusing every unreadable photo takes."""
    photos = unreadable_photos()
    began, before, grown = time.process_time(), psutil.Process().memory_info().rss, 0.0
    for data in photos.values():
        with contextlib.suppress(PhotoError):
            decode(data)
        grown = max(grown, psutil.Process().memory_info().rss - before)
    return time.process_time() - began, grown


def costs_of_decoding(files: list[bytes]) -> tuple[float, float]:
    """CPU seconds of decoding or refusing all of these files, and the bytes by which the memory's peak grew."""
    import resource

    decode(encoded(Image.new("RGB", (8, 8)), "PNG"))
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in files:
        with contextlib.suppress(PhotoError):
            decode(data, max_pixels=50_000_000)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return time.process_time() - began, peak * 1024.0
