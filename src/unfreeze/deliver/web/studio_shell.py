"""What every page of the studio shares: the library, the jobs, the frame around a page, and how errors are shown."""

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
from unfreeze.deliver.pages import templates
from unfreeze.deliver.plots import clipped, seconds
from unfreeze.deliver.web.guard import Guard
from unfreeze.deliver.web.studio_jobs import Job, Jobs
from unfreeze.deliver.web.studio_library import SIDES, Library, MissingError, run_url

PAGE = 60  # photos on a page


@dataclass
class Studio:
    """One studio: what it shows, what it runs, and who may talk to it."""

    library: Library
    jobs: Jobs
    guard: Guard
    environment: Any = field(init=False)

    def __post_init__(self) -> None:
        self.environment = templates(run_url=run_url, quoted=lambda text: quote(text, safe=""), clipped=clipped)
        self.environment.filters.update(seconds=seconds, percent=percent, shell=lambda path: shlex.quote(str(path)))

    def page(self, template: str, status_code: int = 200, **context: Any) -> HTMLResponse:
        """A whole page."""
        found = self.environment.get_template(template).render(
            form_token=self.guard.form_token,
            folder=self.library.folder,
            working=self._working(),
            piece=False,
            **context,
        )
        return HTMLResponse(found.encode("utf-8", "replace"), status_code)

    def part(self, template: str, status_code: int = 200, **context: Any) -> HTMLResponse:
        """A piece of a page, for htmx to put into its place."""
        found = self.environment.get_template(template).render(working=self._working(), piece=True, **context)
        return HTMLResponse(found.encode("utf-8", "replace"), status_code)

    def _working(self) -> int:
        return sum(job.active for job in self.jobs.all())

    def status(self, row: dict[str, Any]) -> str:
        """running, interrupted, failed, finished or unreadable: what run.json says, and who is writing it."""
        if row["status"] != "running":
            return str(row["status"])
        job = self.jobs.of_run(Path(row["run"]))
        if job and job.active:
            return "waiting" if job.state == "waiting" else "running"
        if written(Path(row["run"])):
            return "running"
        return "failed" if job and job.state == "failed" else "interrupted"

    def job_of(self, run: Path) -> Job | None:
        """The newest job for a run."""
        return self.jobs.of_run(run)


def written(run: Path) -> bool:
    """Whether some process holds the lock of a run. Asked of unfinished runs only, and let go at once."""
    try:
        import fcntl
    except ImportError:  # no such locks here: only the studio's own jobs are known to run
        return False
    try:
        with (run / ".lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def answer_errors(app: FastAPI, studio: Studio) -> None:
    """Errors that people can mend become a page, or a line where only a piece of a page was asked for."""

    async def told(request: Request, error: Exception) -> Response:
        if isinstance(error, OSError):  # a run or a photo that went while its page was made
            name = Path(error.filename).name if isinstance(error.filename, str) else "A file"
            error = MissingError(f"{name}: cannot be read ({(error.strerror or 'gone').lower()}); reload the page.")
        elif not isinstance(error, UnfreezeError):  # the framework's own: no route leads there
            error = MissingError("There is no such page.")
        missing = isinstance(error, MissingError)
        text, status = str(error), 404 if missing else 422
        if request.headers.get("hx-request"):
            return studio.part("studio_problem.html", 422, problem=text)
        return studio.page("studio_error.html", status, problem=text, missing=missing, here="")

    for kind in (UnfreezeError, OSError, RequestValidationError, 404):
        app.add_exception_handler(kind, told)


def photo_answer(library: Library, root: Path, paths: Any, row: int, size: str) -> Response:
    """A photo by its number, as a small JPEG; 404 with the reason where there is none."""
    if not 0 <= row < len(paths) or size not in SIDES:
        return Response(status_code=404)
    try:
        content = library.scaled(root, str(paths[row]), SIDES[size])
    except PhotoError as error:
        return Response(error.reason, 404, media_type="text/plain")
    return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=600"})


def written_page(file: Path, environment: Any) -> Response:
    """A page that a command wrote, which is complete in itself: apart from the studio, with the report's own policy.

    `sandbox` makes it a stranger to this server: a page that somebody else wrote cannot ask anything of it.
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
    """Which rows a page holds, and the links to its neighbours."""
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


def percent(share: float) -> str:
    """`97 %`, `> 99 %`, `< 1 %`."""
    return "> 99 %" if share >= 0.995 else "< 1 %" if share < 0.005 else f"{share:.0%}".replace("%", " %")
