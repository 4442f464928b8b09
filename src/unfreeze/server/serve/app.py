"""The prediction API: an HTTP server for a finished run or ensemble, with a web page.

`create_app` creates the application with the endpoints predict, explain, health, metrics and API documentation. `serve`
loads the networks into memory and runs the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from unfreeze.core.errors import PhotoError
from unfreeze.inference.confidence import ConfidenceTable
from unfreeze.inference.in_memory import InMemoryPredictor
from unfreeze.reports.html import WEB
from unfreeze.server.access import AccessPolicy
from unfreeze.server.serve.batching import Batcher, Quota
from unfreeze.server.serve.decoders import Account
from unfreeze.server.serve.gate import RequestGate, allows, problem
from unfreeze.server.serve.heatmaps import Maps, described
from unfreeze.server.serve.limits import Limits, RefusedError
from unfreeze.server.serve.metrics import Metrics
from unfreeze.server.serve.pages import about, docs, page
from unfreeze.server.serve.schemas import Error, Explanation, Predictions, kind_of, predicted, status_of
from unfreeze.server.serve.upload import Upload, gone, photos_in

if TYPE_CHECKING:
    pass


T = TypeVar("T")
_LOOKS = {None: None, "plain": ("plain",), "flip": ("plain", "flip")}
_DESCRIPTIONS = {
    400: "The form is malformed.",
    401: "The token is missing or wrong.",
    403: "The request comes from another site.",
    408: "The request took too long to arrive.",
    411: "The body's length is not stated.",
    413: "Too large, too many files or too many pixels.",
    415: "No form, or none of the files is an image.",
    421: "The Host header names another machine.",
    422: "No file, an unknown option, or no file can be read.",
    431: "The request head is too large.",
    503: "Too much is waiting; `Retry-After` says when to ask again.",
}


def _form(title: str) -> dict[str, Any]:
    """OpenAPI description of a multipart body. The body is parsed manually, so that nothing is written to disk."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "description": title, "minItems": 1}
    schema = {"type": "object", "properties": {"file": files}, "required": ["file"]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Error, "description": _DESCRIPTIONS[status]} for status in statuses}


@dataclass
class Served:
    """A run being served: networks, queue and metrics.

    Attributes:
        direct: The run in memory.
        limits: Limits of the server.
        metrics: Metrics of the server.
        begun: Start time, Unix seconds.
    """

    direct: InMemoryPredictor
    limits: Limits
    metrics: Metrics = field(default_factory=Metrics)
    begun: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.held = Quota(self.limits, self.metrics)
        self.batcher = Batcher(self.direct, self.limits, self.metrics)
        self.certainty = ConfidenceTable.of(self.direct.source)
        self.maps = Maps(self.direct, self.batcher)

    @contextlib.asynccontextmanager
    async def taking(self, request: Request) -> AsyncIterator[tuple[list[Upload], float, Account]]:
        """Receive a request's images and hold them while the block runs.

        Yields:
            The images, the deadline (of `time.perf_counter`) and the account for decoding time.

        Raises:
            RefusedError: The request is invalid, too large or too slow, or the queue is full.
        """
        account = Account(tuple(request.client or ()))
        size = photos = 0
        until = request.scope["state"]["started"] + self.limits.seconds

        def hold(more: int) -> None:
            nonlocal size
            self.held.take(size=more, own=size)
            size += more

        try:
            try:
                async with asyncio.timeout(max(0.0, until - time.perf_counter())):
                    found = await photos_in(request.headers, request.receive, self.limits, hold)
            except TimeoutError:
                raise RefusedError("too_slow", f"not all was sent within {self.limits.seconds:g} s.") from None
            squares = sum(3 * sight.size**2 for sight in self.direct.eyes.sights)
            self.held.take(len(found), len(found) * squares, size)
            photos, size = len(found), size + len(found) * squares
            async with _while_connected(request):
                yield found, until, account
        finally:
            self.batcher.decoders.leave(account)
            self.held.give(photos, size)

    async def within(self, until: float, work: Awaitable[T]) -> T:
        """Await `work` until the deadline.

        Raises:
            RefusedError: The deadline has passed.
        """
        try:
            async with asyncio.timeout(max(0.0, until - time.perf_counter())):
                return await work
        except TimeoutError:
            raise RefusedError("overdue", f"no answer within {self.limits.seconds:g} s; ask again.") from None


@contextlib.asynccontextmanager
async def _while_connected(request: Request) -> AsyncIterator[None]:
    """Cancel the block with RefusedError if the client disconnects. The body must have been read before."""
    task, hung_up = asyncio.current_task(), False
    assert task is not None

    async def watch() -> None:
        nonlocal hung_up
        while (await request.receive())["type"] != "http.disconnect":
            pass
        hung_up = True
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not hung_up:
            raise
        task.uncancel()
        raise gone() from None
    finally:
        watching.cancel()


def create_app(served: Served, guard: AccessPolicy, token: str | None = None) -> FastAPI:
    """Create the application behind its `RequestGate`.

    Args:
        served: The run.
        guard: Access policy.
        token: Required token; None if none is required.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        served.batcher.start()
        try:
            yield
        finally:
            served.maps.stop()
            await asyncio.to_thread(served.batcher.stop)

    name = served.direct.source.run.path.resolve().name
    app = FastAPI(
        title=f"unfreeze: {name}",
        description=f"Predictions of the run {name}. Classes: {'; '.join(served.direct.classes)}.",
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        openapi_url="/openapi.json",
    )
    _add_errors(app, served)
    _add_predictions(app, served)
    _add_pages(app, served, lambda request: allows(request.headers, guard, token))
    app.mount("/static", StaticFiles(directory=WEB / "static"), name="static")
    app.add_middleware(RequestGate, guard=guard, token=token, limits=served.limits, metrics=served.metrics)
    return app


def _add_predictions(app: FastAPI, served: Served) -> None:
    codes = (400, 401, 403, 408, 411, 413, 415, 421, 422, 431, 503)

    @app.post(
        "/predict",
        response_model=Predictions,
        responses=_responses(*codes),
        openapi_extra=_form("one photo or several; the field's name does not matter"),
        summary="Predict photos",
        response_description="Of each photo, in the order sent, its prediction or why there is none.",
    )
    async def predict(request: Request, tta: Literal["plain", "flip"] | None = None) -> Response:
        """Predict the class probabilities of each image, with the out-of-fold accuracy at this confidence.

        An image that cannot be read has `error`; if this is the case for all images, the status is 413, 415 or 422.
        `tta`: `plain` predicts each image as it is, `flip` averages over the image and its horizontal flip; by default
        as in training.
        """
        async with served.taking(request) as (photos, until, account):
            data = [photo.data for photo in photos]
            outcomes = await served.within(until, served.batcher.predict(data, _LOOKS[tta], account))
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                served.metrics.errors.labels(kind_of(outcome)).inc()
            else:
                served.metrics.photos.inc()
        answers = [
            predicted(photo.name, outcome, served.direct.classes, served.certainty)
            for photo, outcome in zip(photos, outcomes, strict=True)
        ]
        return JSONResponse({"photos": answers}, status_of(outcomes))

    @app.post(
        "/explain",
        response_model=Explanation,
        responses=_responses(*codes),
        openapi_extra=_form("one photo"),
        summary="Explain one photo",
    )
    async def explain(request: Request, method: str = "auto") -> Response:
        """Heat maps of the evidence for the predicted class against the second most probable class.

        `method`: cells, grad-cam, rollout or occlusion, if the run supports it; auto selects one. Occlusion needs about
        65 predictions and ends with an error if they take too long.
        """
        async with served.taking(request) as (photos, until, account):
            if len(photos) > 1:
                raise RefusedError("too_many_files", "one photo at a time is explained.")
            try:
                found = await served.within(until, served.maps.draw(bytes(photos[0].data), method, until, account))
            except PhotoError as error:
                raise RefusedError(kind_of(error), error.reason) from None
        first = found[0]
        return JSONResponse(
            {
                "name": photos[0].name,
                "label": served.direct.classes[first.label],
                "runner_up": served.direct.classes[first.runner_up],
                "maps": [described(heat) for heat in found],
            }
        )


def _add_pages(app: FastAPI, served: Served, allowed: Callable[[Request], bool]) -> None:
    @app.get("/", include_in_schema=False, response_class=HTMLResponse)
    def show() -> str:
        return page(served.direct, served.limits, served.maps.free)

    @app.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    def api(request: Request) -> str:
        return docs(app.openapi(), str(request.base_url))

    @app.get("/healthz", summary="Whether it lives", response_description="It does.", responses=_responses(421, 503))
    async def healthz(request: Request) -> JSONResponse:
        """The run, its networks, the limits and the queue; without the token only the status."""
        trouble = served.batcher.trouble()
        health: dict[str, Any] = {"status": trouble or "ok"}
        if allowed(request):
            health |= {
                **about(served.direct),
                "limits": served.limits.described(),
                "waiting": {"photos": served.held.photos, "bytes": served.held.bytes},
                "decoders": {"waiting": served.batcher.decoders.waiting},
                "up_seconds": round(time.time() - served.begun, 1),
            }
        return JSONResponse(health, 503 if trouble else 200)

    @app.get(
        "/metrics",
        summary="Counters as Prometheus text",
        response_class=PlainTextResponse,
        response_description="The text.",
        responses=_responses(401, 421),
    )
    async def metrics() -> Response:
        """Requests, refusals by kind, images, batches, latencies, the queue and the process."""
        return PlainTextResponse(served.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_errors(app: FastAPI, served: Served) -> None:
    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return problem(error, served.metrics)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        where = ", ".join(str(e["loc"][-1]) for e in error.errors())
        return problem(RefusedError("wrong_option", f"{where}: plain or flip, or leave it out."), served.metrics)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> JSONResponse:
        kind = {404: "not_found", 405: "wrong_method"}.get(error.status_code, "malformed")
        answer = problem(RefusedError(kind, str(error.detail)), served.metrics)
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> JSONResponse:
        return problem(RefusedError("failed", "the prediction failed; the server's log says why."), served.metrics)
