"""The studio: a local web application over a folder of runs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from unfreeze.server.access import AccessPolicy, opened
from unfreeze.server.app import create_app, listening, serve
from unfreeze.server.studio import compare_pages, job_pages, predict_pages, run_pages
from unfreeze.server.studio.jobs import Jobs
from unfreeze.server.studio.layout import Studio, answer_errors
from unfreeze.server.studio.library import Library
from unfreeze.server.studio.predict_pages import Reviews

RECENT = 5


def studio(
    runs: str | Path = "runs",
    data: Sequence[str | Path] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    open_browser: bool = True,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the runs of a folder and their images, and run jobs, until Ctrl-C.

    At the end, running jobs are interrupted as by Ctrl-C; their runs can be resumed.

    Args:
        runs: Folder of the runs; it does not have to exist.
        data: Additional data sets: folders or tables.
        host: Address to listen on.
        port: Port to listen on; 0 for any free port.
        open_browser: Open the home page in the browser.
        ready: Called with a URL when the server is ready. Each URL is valid for one browser; when it is used, `ready`
            is called again with a new one.

    Raises:
        RunError: `runs` is a file, or the server cannot listen on the port.
        SourceError: A data set does not exist.
    """
    library = Library(Path(runs), data)
    with listening(host, port) as listener:
        guard = AccessPolicy(host, listener.getsockname()[1], uploads=predict_pages.UPLOADS)
        jobs = Jobs(library.own / "jobs")
        try:
            app = studio_app(library, jobs, guard)
            if ready:
                ready(guard.address_once(ready))
            with opened(guard, open_browser):
                serve(app, listener, jobs.close)
        finally:
            jobs.close()


def studio_app(library: Library, jobs: Jobs, guard: AccessPolicy) -> FastAPI:
    """Create the application behind the access policy. The jobs are closed when the server stops."""
    shown = Studio(library, jobs, guard)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(jobs.close)

    pages = [_home(shown)]
    pages += [
        run_pages.run_pages(shown),
        compare_pages.compare_pages(shown),
        run_pages.data_pages(shown),
        predict_pages.predict_pages(shown),
        job_pages.job_pages(shown),
    ]
    app = create_app(pages, guard, lifespan)
    app.mount("/runs/{run}/review", Reviews(shown))
    answer_errors(app, shown)
    return app


def _home(studio: Studio) -> APIRouter:
    router, library = APIRouter(), studio.library

    @router.get("/")
    def home() -> Response:
        context = run_pages.runs_table(studio, "when", True)
        jobs = [job_pages.described(studio, job) for job in studio.jobs.all()[:RECENT]]
        done = (
            row for row in context["rows"] if row["status"] == "finished" and row["macro_f1"] and not row["selection"]
        )
        return studio.page(
            "studio_home.html",
            here="home",
            recent=context["rows"][:RECENT],
            count=len(context["rows"]),
            newest=next(done, None),
            sources=list(library.sources().values()),
            jobs=jobs,
            program=shutil.which("unfreeze") is not None,
        )

    return router
