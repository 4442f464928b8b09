"""The review page under a run: the same page as `unfreeze review` shows, its deck made when first asked for."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from starlette.responses import RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from unfreeze.core.errors import RunError, UnfreezeError
from unfreeze.deliver.web import review
from unfreeze.deliver.web.application import strange
from unfreeze.deliver.web.deck import open_deck
from unfreeze.deliver.web.studio_library import MissingError, run_url, stamp
from unfreeze.deliver.web.studio_shell import Studio

SOON = 1.0  # seconds that a page may keep people waiting before it says why


class Reviews:
    """An ASGI application for /runs/RUN/review/..., one review application a run. They stay until the studio ends."""

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
        """The review of a run. TimeoutError: it is being made; the same is waited for by whoever comes meanwhile."""
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
            with self._lock:  # what is mended meanwhile is tried again
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
