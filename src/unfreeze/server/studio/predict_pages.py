"""Prediction of uploaded images on a run's page, and the label review of a run.

Uploads are limited in size and number, held in memory, and deleted from the temporary folder after prediction.
`Reviews` serves the review page of `unfreeze review` below each run; its queue is created on first use.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from unfreeze.core.dataset import probability_columns
from unfreeze.core.errors import PhotoError, RunError, UnfreezeError
from unfreeze.reports.thumbnails import scaled_jpeg
from unfreeze.server import review
from unfreeze.server.app import strange
from unfreeze.server.review import open_deck
from unfreeze.server.studio.layout import Studio
from unfreeze.server.studio.library import MissingError, run_url, stamp

if TYPE_CHECKING:
    from unfreeze.inference.predictor import Classifier


MOST_PHOTOS = 50
MOST_BYTES = 25 << 20  # of one image
MOST_UPLOAD = 120 << 20
MOST_PIXELS = 60_000_000
PATIENCE = 120.0  # seconds for an upload
AT_ONCE = 2  # concurrent uploads; each is held in memory
UPLOADS = ((r"/runs/[^/]+/predict", MOST_UPLOAD),)
_BATCHES = 4  # batches whose thumbnails are kept, in memory only
_HEAD = 64 * 1024
_SHOWN = 3  # classes shown per image
_SIDE = 240


class UploadError(UnfreezeError):
    """The upload is invalid or too large."""


@dataclass
class _Kept:
    """Cache of the last classifiers and of the thumbnails of the last batches."""

    classifiers: OrderedDict[str, tuple[int, Classifier]] = field(default_factory=OrderedDict)
    batches: OrderedDict[str, list[bytes]] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)


def predict_pages(studio: Studio) -> APIRouter:
    """Create the routes of the prediction page."""
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
    """Parse an upload: a line of JSON, `[["name", bytes], ...]`, followed by the concatenated files.

    Returns:
        Name and content of each file.

    Raises:
        UploadError: The upload is invalid, incomplete or over a limit.
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
    """Predict images in memory; they pass through a temporary folder that is deleted afterwards."""
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
        records = iter(table.to_dict("records")) if table is not None else iter(())
        for i, ((name, _), problem) in enumerate(zip(photos, problems, strict=True)):
            row: dict[Any, Any] = {} if problem else next(records)
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
    from unfreeze.inference.predictor import Classifier

    stamp = (run / "run.json").stat().st_mtime_ns
    if kept.classifiers.get(str(run), (0,))[0] != stamp:
        kept.classifiers[str(run)] = (stamp, Classifier.load(run))
    kept.classifiers.move_to_end(str(run))
    while len(kept.classifiers) > 2:
        kept.classifiers.popitem(last=False)
    return kept.classifiers[str(run)][1]


def _problem(data: bytes) -> str:
    """Why an image is rejected before decoding, from its header; empty if it is accepted."""
    from unfreeze.data.decode import image_size

    try:
        image_size(data, MOST_PIXELS)
    except PhotoError as error:
        many = f"it has more than the {MOST_PIXELS // 10**6} million pixels that may be sent"
        return many if "pixels" in error.reason else error.reason
    return ""


SOON = 1.0  # seconds until a waiting page is shown


class Reviews:
    """ASGI application for /runs/RUN/review/..., with one review application per run, kept until the studio ends."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._apps: dict[tuple[str, int], Future[FastAPI]] = {}
        self._lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"]["run"]
        answer: Response | None = None
        if scope["path"] == scope["root_path"]:
            answer = RedirectResponse(f"{run_url(name)}/review/")
        else:
            try:
                app = await run_in_threadpool(self._app, name)
            except TimeoutError:
                answer = self.studio.page("studio_wait.html", 202, name=name, url=run_url(name), here="runs")
            except UnfreezeError as error:
                missing = isinstance(error, MissingError)
                status = 404 if missing else 422
                answer = self.studio.page("studio_error.html", status, problem=str(error), missing=missing, here="")
            else:
                await app(scope, receive, send)
                return
        await answer(scope, receive, send)

    def _app(self, name: str) -> FastAPI:
        """The review application of a run, created once in a thread.

        Raises:
            TimeoutError: It is not ready yet.
        """
        path = self.studio.library.run(name)
        key = (name, stamp(path / "run.json"))
        with self._lock:
            if key not in self._apps:
                self._apps[key] = Future()
                threading.Thread(target=self._make, args=(name, path, self._apps[key]), daemon=True).start()
            made = self._apps[key]
        try:
            return made.result(SOON)
        except TimeoutError:
            raise
        except Exception:
            with self._lock:  # try again on the next request
                self._apps.pop(key, None)
            raise

    def _make(self, name: str, path: Path, made: Future[FastAPI]) -> None:
        try:
            app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
            url = run_url(name)
            app.add_exception_handler(RequestValidationError, strange)
            app.include_router(review.page(open_deck(path), self.studio.guard, f"{url}/review", url))
            made.set_result(app)
        except OSError as error:
            made.set_exception(RunError(f"{name}: cannot be read ({(error.strerror or 'gone').lower()})."))
        except Exception as error:
            made.set_exception(error)
