"""The studio: one local web application over a folder of runs."""

from __future__ import annotations

import contextlib
import shutil
import webbrowser
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from unfreeze.deliver.web import studio_compare, studio_data, studio_job_pages, studio_predict, studio_runs
from unfreeze.deliver.web.application import create_app
from unfreeze.deliver.web.guard import Guard
from unfreeze.deliver.web.server import listening, serve
from unfreeze.deliver.web.studio_jobs import Jobs
from unfreeze.deliver.web.studio_library import Library
from unfreeze.deliver.web.studio_review import Reviews
from unfreeze.deliver.web.studio_shell import Studio, answer_errors

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
    """Shows the runs of a folder and their photos in the browser, starts jobs for them, until Ctrl-C.

    runs: the folder that holds the runs; it need not be there yet. data: further photos, folders or tables. host, port:
    where to listen; port 0 is any that is free. ready: called with the address, token included, once it can be opened.
    When it ends, jobs that run are interrupted as Ctrl-C does; their runs can be resumed.
    Raises RunError, SourceError.
    """
    library = Library(Path(runs), data)
    with listening(host, port) as listener:
        guard = Guard(host, listener.getsockname()[1], uploads=studio_predict.UPLOADS)
        jobs = Jobs(library.own / "jobs")
        try:
            app = studio_app(library, jobs, guard)
            if ready:
                ready(guard.address)
            if open_browser:
                webbrowser.open(guard.address)
            serve(app, listener)
        finally:
            jobs.close()


def studio_app(library: Library, jobs: Jobs, guard: Guard) -> FastAPI:
    """The application behind its guard. It closes the jobs when the server ends, by Ctrl-C or by SIGTERM."""
    shown = Studio(library, jobs, guard)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(jobs.close)

    pages = [_home(shown)]
    pages += [one.pages(shown) for one in (studio_runs, studio_compare, studio_data, studio_predict, studio_job_pages)]
    app = create_app(pages, guard, lifespan)
    app.mount("/runs/{run}/review", Reviews(shown))
    answer_errors(app, shown)
    return app


def _home(studio: Studio) -> APIRouter:
    router, library = APIRouter(), studio.library

    @router.get("/")
    def home() -> Response:
        context = studio_runs.runs_table(studio, "when", True)
        jobs = [studio_job_pages.described(studio, job) for job in studio.jobs.all()[:RECENT]]
        done = (row for row in context["rows"] if row["status"] == "finished" and row["macro_f1"])
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
