"""Predict photos that a person drops on a run's page: limited, held in memory, gone from the disk when predicted."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import secrets
import tempfile
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from unfreeze.core.errors import PhotoError, UnfreezeError
from unfreeze.core.tables import probability_columns
from unfreeze.deliver.thumbnails import scaled_jpeg
from unfreeze.deliver.web.studio_library import MissingError, run_url
from unfreeze.deliver.web.studio_shell import Studio

if TYPE_CHECKING:
    from unfreeze.learn.classifier import Classifier

MOST_PHOTOS = 50
MOST_BYTES = 25 << 20  # of one photo
MOST_UPLOAD = 120 << 20
MOST_PIXELS = 60_000_000
PATIENCE = 120.0  # seconds for an upload
AT_ONCE = 2  # uploads; each is held in memory
UPLOADS = ((r"/runs/[^/]+/predict", MOST_UPLOAD),)
_BATCHES = 4  # whose small photos are kept, in memory only
_HEAD = 64 * 1024
_SHOWN = 3  # classes of a photo
_SIDE = 240


class UploadError(UnfreezeError):
    """What was sent is no upload, or too much."""


@dataclass
class _Kept:
    """Classifiers that were used last, and small photos of the last batches."""

    classifiers: OrderedDict[str, tuple[int, Classifier]] = field(default_factory=OrderedDict)
    batches: OrderedDict[str, list[bytes]] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)


def pages(studio: Studio) -> APIRouter:
    """The routes of prediction."""
    router, library, kept = APIRouter(), studio.library, _Kept()
    door = asyncio.Semaphore(AT_ONCE)

    @router.get("/runs/{name}/predict")
    def show(name: str) -> Response:
        material = library.material(name)
        limits = {"photos": MOST_PHOTOS, "photo": MOST_BYTES, "total": MOST_UPLOAD - _HEAD}
        return studio.page(
            "studio_predict.html", here="runs", name=name, url=run_url(name), classes=material.classes, limits=limits
        )

    @router.post("/runs/{name}/predict")
    async def predict(name: str, request: Request) -> Response:
        path = await run_in_threadpool(library.run, name)
        if door.locked():
            raise UploadError("Other photos are being sent or predicted; try again in a moment.")
        async with door:
            try:
                body = await asyncio.wait_for(request.body(), PATIENCE)
            except TimeoutError:
                raise UploadError(f"The photos took longer than {PATIENCE:.0f} seconds to arrive.") from None
            photos = unpacked(body)
            del body
            context = await run_in_threadpool(_predicted, path, photos, kept)
        return studio.part("studio_predicted.html", url=run_url(name), **context)

    @router.get("/runs/{name}/predict/{batch}/{number}.jpg")
    def small(name: str, batch: str, number: int) -> Response:
        found = kept.batches.get(batch, [])
        if not 0 <= number < len(found) or not found[number]:
            raise MissingError("This photo is not held any more.")
        return Response(found[number], media_type="image/jpeg")

    return router


def unpacked(body: bytes) -> list[tuple[str, bytes]]:
    """Names and bytes of an upload: a line of JSON, `[["name", bytes], ...]`, then the files one after the other.

    UploadError: it is none, is cut off, or is over a limit.
    """
    head, newline, _ = body[:_HEAD].partition(b"\n")
    try:
        listed: Any = json.loads(head) if newline else None
        files = [(str(name), int(size)) for name, size in listed]
    except (ValueError, TypeError, RecursionError):
        raise UploadError("This is no upload of photos.") from None
    if not 1 <= len(files) <= MOST_PHOTOS:
        raise UploadError(f"Send 1 to {MOST_PHOTOS} photos at a time.")
    for name, size in files:
        if not 0 <= size <= MOST_BYTES:
            raise UploadError(f"{name[:80]}: a photo may have {MOST_BYTES >> 20} MB.")
    if len(head) + 1 + sum(size for _, size in files) != len(body):
        raise UploadError("The upload was cut off; send it again.")
    found, at = [], len(head) + 1
    for name, size in files:
        found.append((name, body[at : at + size]))
        at += size
    return found


def _predicted(run: Path, photos: list[tuple[str, bytes]], kept: _Kept) -> dict[str, Any]:
    """Predictions of photos in memory; the folder that they pass through is gone afterwards."""
    with kept.lock, _folder() as folder:
        classifier = _classifier(run, kept)
        files, problems = [], []
        for i, (_, data) in enumerate(photos):
            problems.append(_problem(data))
            if not problems[-1]:
                files.append(folder / f"{i}.img")
                files[-1].write_bytes(data)
        table = classifier.predict(files) if files else None
        shown, rows, columns = [], [], probability_columns(classifier.run.classes)
        told = iter(table.to_dict("records")) if table is not None else iter(())
        for i, ((name, _), problem) in enumerate(zip(photos, problems, strict=True)):
            row: dict[Any, Any] = {} if problem else next(told)
            problem = problem or str(row["error"]).replace(str(folder), "")
            likely: list[tuple[str, float]] = []
            if not problem:
                every = [(c, float(row[column])) for c, column in zip(classifier.run.classes, columns, strict=True)]
                likely = sorted(every, key=lambda pair: -pair[1])[:_SHOWN]
            picture = b""
            if not problem:
                with contextlib.suppress(PhotoError):
                    picture = scaled_jpeg(folder / f"{i}.img", _SIDE)
            shown.append(picture)
            rows.append({"name": name, "problem": problem, "likely": likely, "picture": bool(picture)})
        batch = secrets.token_urlsafe(9)
        kept.batches[batch] = shown
        while len(kept.batches) > _BATCHES:
            kept.batches.popitem(last=False)
    good = sum(1 for row in rows if not row["problem"])
    return {"rows": rows, "batch": batch, "good": good, "bad": len(rows) - good, "classes": len(classifier.run.classes)}


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="unfreeze-studio-") as folder:
        yield Path(folder)


def _classifier(run: Path, kept: _Kept) -> Classifier:
    from unfreeze.learn.classifier import Classifier

    stamp = (run / "run.json").stat().st_mtime_ns
    if kept.classifiers.get(str(run), (0,))[0] != stamp:
        kept.classifiers[str(run)] = (stamp, Classifier.load(run))
    kept.classifiers.move_to_end(str(run))
    while len(kept.classifiers) > 2:
        kept.classifiers.popitem(last=False)
    return kept.classifiers[str(run)][1]


def _problem(data: bytes) -> str:
    """Why a photo is not even tried: its header is read, not its pixels."""
    from PIL import Image

    from unfreeze.data.images import FORMATS

    many = f"it has more than the {MOST_PIXELS // 10**6} million pixels that may be sent"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                width, height = opened.size
    except Image.DecompressionBombError:
        return many
    except Exception:  # as elsewhere: decoders raise nearly anything
        return "not an image in a known format"
    return many if width * height > MOST_PIXELS else ""
