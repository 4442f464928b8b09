"""Shared parts of the studio's pages: templates, pagination, image responses and error pages."""

from __future__ import annotations

import base64
import hashlib
import math
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response

from unfreeze.core.errors import PhotoError, UnfreezeError
from unfreeze.core.format import clipped, format_probability, format_seconds
from unfreeze.core.processes import is_locked
from unfreeze.reports.html import templates
from unfreeze.server.access import AccessPolicy
from unfreeze.server.studio.jobs import Job, Jobs
from unfreeze.server.studio.library import SIDES, Library, MissingError, run_url

PAGE = 60  # images per page


@dataclass
class Studio:
    """State of a studio.

    Attributes:
        library: Runs and data sets.
        jobs: Job queue.
        guard: Access policy.
        environment: Jinja environment.
    """

    library: Library
    jobs: Jobs
    guard: AccessPolicy
    environment: Any = field(init=False)

    def __post_init__(self) -> None:
        self.environment = templates(run_url=run_url, quoted=lambda text: quote(text, safe=""), clipped=clipped)
        self.environment.filters.update(
            seconds=format_seconds, probability=format_probability, shell=lambda path: shlex.quote(str(path))
        )

    def page(self, template: str, status_code: int = 200, **context: Any) -> HTMLResponse:
        """Render a full page."""
        found = self.environment.get_template(template).render(
            form_token=self.guard.form_token,
            folder=self.library.folder,
            working=self._working(),
            piece=False,
            **context,
        )
        return HTMLResponse(found.encode("utf-8", "replace"), status_code)

    def part(self, template: str, status_code: int = 200, **context: Any) -> HTMLResponse:
        """Render a fragment of a page, for htmx."""
        found = self.environment.get_template(template).render(working=self._working(), piece=True, **context)
        return HTMLResponse(found.encode("utf-8", "replace"), status_code)

    def _working(self) -> int:
        return sum(job.active for job in self.jobs.all())

    def status(self, row: dict[str, Any]) -> str:
        """Status of a run: running, waiting, interrupted, failed, finished or unreadable.

        Combines run.json with the state of the job or process that writes the run.
        """
        if row["status"] != "running":
            return str(row["status"])
        job = self.jobs.of_run(Path(row["run"]))
        if job and job.active:
            return "waiting" if job.state == "waiting" else "running"
        if is_being_written(Path(row["run"])):
            return "running"
        return "failed" if job and job.state == "failed" else "interrupted"

    def job_of(self, run: Path) -> Job | None:
        """The newest job for a run."""
        return self.jobs.of_run(run)


def is_being_written(run: Path) -> bool:
    """Whether a process holds the lock of an unfinished run. The lock is released at once."""
    return is_locked(run / ".lock")


def answer_errors(app: FastAPI, studio: Studio) -> None:
    """Render user-facing errors as a page, or as a fragment for htmx requests."""

    async def answer_error(request: Request, error: Exception) -> Response:
        if isinstance(error, OSError):  # a run or an image was deleted while the page was rendered
            name = Path(error.filename).name if isinstance(error.filename, str) else "A file"
            error = MissingError(f"{name}: cannot be read ({(error.strerror or 'gone').lower()}); reload the page.")
        elif not isinstance(error, UnfreezeError):  # FastAPI's own errors: there is no such route
            error = MissingError("There is no such page.")
        missing = isinstance(error, MissingError)
        text, status = str(error), 404 if missing else 422
        if request.headers.get("hx-request"):
            return studio.part("studio_problem.html", 422, problem=text)
        return studio.page("studio_error.html", status, problem=text, missing=missing, here="")

    for kind in (UnfreezeError, OSError, RequestValidationError, 404):
        app.add_exception_handler(kind, answer_error)


def photo_answer(library: Library, root: Path, paths: Any, row: int, size: str) -> Response:
    """An image by its index, as a scaled JPEG; 404 with the reason if there is none."""
    if not 0 <= row < len(paths) or size not in SIDES:
        return Response(status_code=404)
    try:
        content = library.scaled(root, str(paths[row]), SIDES[size])
    except PhotoError as error:
        return Response(error.reason, 404, media_type="text/plain")
    return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=600"})


def written_page(file: Path, environment: Any) -> Response:
    """Serve a self-contained page that a command wrote, with the report's Content-Security-Policy.

    `sandbox` gives the page an opaque origin, so that a page written by somebody else cannot send requests to the
    studio.
    """
    if not file.is_file() or file.is_symlink():
        raise MissingError(f"{file.name} is not there.")
    script = environment.get_template("report_script.html").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = (
        "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(file.read_bytes(), headers={"Content-Security-Policy": policy})


def paged(total: int, number: int, base: str, **choice: str) -> dict[str, Any]:
    """Rows of a page, and the links to the previous and next page."""
    pages = max(1, math.ceil(total / PAGE))
    number = min(max(number, 1), pages)

    def link(to: int) -> str:
        words = {name: value for name, value in choice.items() if value} | ({"page": str(to)} if to > 1 else {})
        return f"{base}?{urlencode(words)}" if words else base

    return {
        "first": (number - 1) * PAGE,
        "last": min(number * PAGE, total),
        "total": total,
        "number": number,
        "pages": pages,
        "previous": link(number - 1) if number > 1 else "",
        "next": link(number + 1) if number < pages else "",
    }
