"""The review page under a run: the same page as `unfreeze review` shows, its deck made when first asked for."""

from __future__ import annotations

import threading

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from unfreeze.core.errors import UnfreezeError
from unfreeze.deliver.web import review
from unfreeze.deliver.web.deck import open_deck
from unfreeze.deliver.web.studio_library import MissingError, run_url
from unfreeze.deliver.web.studio_shell import Studio


class Reviews:
    """An ASGI application for /runs/RUN/review/..., one review application a run. They stay until the studio ends."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._apps: dict[tuple[str, int], FastAPI] = {}
        self._lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"]["run"]
        answer: Response | None = None
        if scope["path"] == scope["root_path"]:
            answer = RedirectResponse(f"{run_url(name)}/review/")
        else:
            try:
                app = await run_in_threadpool(self._app, name)
            except UnfreezeError as error:
                missing = isinstance(error, MissingError)
                status = 404 if missing else 422
                answer = self.studio.page("studio_error.html", status, problem=str(error), missing=missing, here="")
            else:
                await app(scope, receive, send)
                return
        await answer(scope, receive, send)

    def _app(self, name: str) -> FastAPI:
        path = self.studio.library.run(name)
        file = path / "run.json"
        with self._lock:  # the deck of a large run takes seconds: who comes meanwhile waits for the same one
            key = (name, file.stat().st_mtime_ns)
            if key not in self._apps:
                app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
                url = run_url(name)
                app.include_router(review.page(open_deck(path), self.studio.guard, f"{url}/review", url))
                self._apps[key] = app
            return self._apps[key]
