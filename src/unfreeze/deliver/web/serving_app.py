"""The application of a served run: predict, explain, health, metrics, the page and the API's description."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from unfreeze.core.errors import PhotoError
from unfreeze.deliver.pages import WEB
from unfreeze.deliver.web.guard import Guard
from unfreeze.deliver.web.serving_answers import Explained, Predictions, Problem, kind_of, predicted, status_of
from unfreeze.deliver.web.serving_gate import Gate, allows, problem
from unfreeze.deliver.web.serving_limits import Limits, RefusedError
from unfreeze.deliver.web.serving_maps import Maps, described
from unfreeze.deliver.web.serving_metrics import Metrics
from unfreeze.deliver.web.serving_page import about, docs, page
from unfreeze.deliver.web.serving_queue import Batcher, Held
from unfreeze.deliver.web.serving_upload import Upload, gone, photos_in
from unfreeze.learn.certainty import Certainty
from unfreeze.learn.direct import Direct

T = TypeVar("T")
_LOOKS = {None: None, "plain": ("plain",), "flip": ("plain", "flip")}
_TOLD = {
    400: "The form is malformed.",
    401: "The token is missing or wrong.",
    403: "A page of another site asked.",
    408: "The request took too long to arrive.",
    411: "The body's length is not stated.",
    413: "Too large, too many files or too many pixels.",
    415: "No form, or none of the files is an image.",
    421: "The Host header names another machine.",
    422: "No file, an unknown option, or no file can be read.",
    503: "Too much is waiting; `Retry-After` says when to ask again.",
}


def _form(title: str) -> dict[str, Any]:
    """A multipart body as OpenAPI describes it; it is read by hand, so that nothing is spooled to the disk."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "description": title, "minItems": 1}
    schema = {"type": "object", "properties": {"file": files}, "required": ["file"]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "description": _TOLD[status]} for status in statuses}


@dataclass
class Served:
    """One run being served: what holds its networks, its queue and its counters."""

    direct: Direct
    limits: Limits
    metrics: Metrics = field(default_factory=Metrics)
    begun: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.held = Held(self.limits, self.metrics)
        self.batcher = Batcher(self.direct, self.limits, self.metrics)
        self.certainty = Certainty.of(self.direct.source)
        self.maps = Maps(self.direct, self.batcher)

    @contextlib.asynccontextmanager
    async def taking(self, request: Request) -> AsyncIterator[tuple[list[Upload], float]]:
        """A request's photos while they are held, and until when it is to be answered."""
        size = photos = 0
        until = request.scope["state"]["started"] + self.limits.seconds

        def hold(more: int) -> None:
            nonlocal size
            self.held.take(size=more)
            size += more

        try:
            try:
                async with asyncio.timeout(max(0.0, until - time.perf_counter())):
                    found = await photos_in(request.headers, request.receive, self.limits, hold)
            except TimeoutError:
                raise RefusedError("too_slow", f"not all was sent within {self.limits.seconds:g} s.") from None
            squares = sum(3 * sight.size**2 for sight in self.direct.eyes.sights)
            self.held.take(len(found), len(found) * squares)
            photos, size = len(found), size + len(found) * squares
            async with _while_connected(request):
                yield found, until
        finally:
            self.held.give(photos, size)

    async def within(self, until: float, work: Awaitable[T]) -> T:
        """What is awaited, or refused where it comes too late."""
        try:
            async with asyncio.timeout(max(0.0, until - time.perf_counter())):
                return await work
        except TimeoutError:
            raise RefusedError("overdue", f"no answer within {self.limits.seconds:g} s; ask again.") from None


@contextlib.asynccontextmanager
async def _while_connected(request: Request) -> AsyncIterator[None]:
    """Ends what is done for a client that has hung up: RefusedError. The body must have been read."""
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


def create_app(served: Served, guard: Guard, token: str | None = None) -> FastAPI:
    """The application; nothing of it is reached but through its gate. token: None where everybody may ask."""

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
    app.add_middleware(Gate, guard=guard, token=token, limits=served.limits, metrics=served.metrics)
    return app


def _add_predictions(app: FastAPI, served: Served) -> None:
    codes = (400, 401, 403, 408, 411, 413, 415, 421, 422, 503)

    @app.post(
        "/predict",
        response_model=Predictions,
        responses=_responses(*codes),
        openapi_extra=_form("one photo or several; the field's name does not matter"),
        summary="Predict photos",
        response_description="Of each photo, in the order sent, its prediction or why there is none.",
    )
    async def predict(request: Request, tta: Literal["plain", "flip"] | None = None) -> Response:
        """Class probabilities of each photo, and what its certainty is worth.

        A photo that cannot be read has `error`; where that is so of all, the status is 413, 415 or 422.
        `tta`: plain looks at each photo once, flip at its mirror image too; by default as in training.
        """
        async with served.taking(request) as (photos, until):
            data = [photo.data for photo in photos]
            outcomes = await served.within(until, served.batcher.predict(data, _LOOKS[tta]))
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                served.metrics.errors.labels(kind_of(outcome)).inc()
            else:
                served.metrics.photos.inc()
        told = [
            predicted(photo.name, outcome, served.direct.classes, served.certainty)
            for photo, outcome in zip(photos, outcomes, strict=True)
        ]
        return JSONResponse({"photos": told}, status_of(outcomes))

    @app.post(
        "/explain",
        response_model=Explained,
        responses=_responses(*codes),
        openapi_extra=_form("one photo"),
        summary="Explain one photo",
    )
    async def explain(request: Request, method: str = "auto") -> Response:
        """Where the photo was read for its class rather than for the next one.

        `method`: cells, grad-cam, rollout or occlusion, as far as the run has them; auto takes its own. Occlusion asks
        for some 65 predictions, and is cut off where they take too long.
        """
        async with served.taking(request) as (photos, until):
            if len(photos) > 1:
                raise RefusedError("too_many_files", "one photo at a time is explained.")
            try:
                found = await served.within(until, served.maps.draw(bytes(photos[0].data), method, until))
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
        """The run, its networks, the limits and what waits; without the token only whether it lives."""
        well = served.batcher.alive
        told: dict[str, Any] = {"status": "ok" if well else "the worker has ended"}
        if allowed(request):
            told |= {
                **about(served.direct),
                "limits": served.limits.described(),
                "waiting": {"photos": served.held.photos, "bytes": served.held.bytes},
                "up_seconds": round(time.time() - served.begun, 1),
            }
        return JSONResponse(told, 200 if well else 503)

    @app.get(
        "/metrics",
        summary="Counters as Prometheus text",
        response_class=PlainTextResponse,
        response_description="The text.",
        responses=_responses(401, 421),
    )
    async def metrics() -> Response:
        """Requests, refusals by kind, photos, batches, latencies, the queue, and the process."""
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
