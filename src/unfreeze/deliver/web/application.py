"""The one local web application: pages bring their routes, the guard stands before all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse

from unfreeze.deliver.pages import WEB
from unfreeze.deliver.web.guard import Guard, Guarded


def create_app(
    pages: Iterable[APIRouter],
    guard: Guard,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """The application of these pages: nothing of it can be reached but through the guard.

    A page is a router: that of `review.page(...)`, those of the studio. Styles and scripts come from the package;
    nothing is loaded from a network. lifespan: what is done before the first request and after the last.
    """
    app = FastAPI(title="unfreeze", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    for page in pages:
        app.include_router(page)
    app.mount("/static", StaticFiles(directory=WEB / "static"), name="static")
    app.add_exception_handler(ClientDisconnect, _cut_off)
    app.add_exception_handler(RequestValidationError, strange)
    app.add_middleware(Guarded, guard=guard)
    return app


def strange(request: Request, error: Exception) -> JSONResponse:
    """What does not fit the page's own requests is not repeated: `Infinity` in an answer would be no JSON."""
    return JSONResponse({"error": "This is not what the page sends; reload it."}, 422)


def _cut_off(request: Request, error: Exception) -> PlainTextResponse:
    """The guard ends a body that grows past its limit as if its sender had gone; one who is there still is told."""
    return PlainTextResponse("Refused: too large.\n", 413)
