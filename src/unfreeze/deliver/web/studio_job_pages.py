"""The pages about jobs: the form that starts one, the list, and one job as it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from unfreeze.core.qualities import QUALITIES
from unfreeze.core.runs import read_log
from unfreeze.deliver.web import studio_forms as forms
from unfreeze.deliver.web.studio_curves import curves
from unfreeze.deliver.web.studio_jobs import Job
from unfreeze.deliver.web.studio_library import MissingError, run_url
from unfreeze.deliver.web.studio_shell import Studio, written_page

SHOWN = 100  # jobs in the list, the newest


def pages(studio: Studio) -> APIRouter:
    """The routes of jobs."""
    router, library, jobs = APIRouter(), studio.library, studio.jobs

    @router.get("/jobs")
    def listing(request: Request) -> Response:
        found = [described(studio, job) for job in jobs.all()[:SHOWN]]
        if request.headers.get("hx-request"):
            return studio.part("studio_jobs_table.html", jobs=found)
        return studio.page("studio_jobs.html", here="jobs", jobs=found)

    @router.get("/jobs/new")
    def new(kind: str = "fit", source: str = "", again: str = "") -> Response:
        sources = library.sources()
        chosen = sources.get(source) or next(iter(sources.values()), None)
        return studio.page(
            "studio_job_new.html",
            here="jobs",
            kind=kind if kind in forms.KINDS else "fit",
            sources=list(sources.values()),
            source=chosen,
            columns=forms.columns_of(chosen) if chosen else [],
            strategies=forms.STRATEGIES,
            qualities=list(QUALITIES),
            backbones=forms.backbones_to_meet(),
            free=forms.free_run(library, chosen, "auto", jobs.writes()) if chosen else "",
        )

    @router.post("/jobs")
    async def start(request: Request) -> Response:
        body = await request.body()

        def act() -> Job:
            asked = forms.asked(forms.parse_form(body), library, forms.known_backbone, jobs.writes())
            return jobs.start(asked.kind, asked.arguments, run=asked.run, source=asked.source.key, page=asked.page)

        return _to(await run_in_threadpool(act))

    @router.get("/jobs/{name}")
    def one(name: str) -> Response:
        job = jobs.job(name)
        return studio.page("studio_job.html", here="jobs", **described(studio, job, full=True))

    @router.get("/jobs/{name}/live")
    def live(name: str) -> Response:
        return studio.part("studio_job_live.html", **described(studio, jobs.job(name), full=True))

    @router.get("/jobs/{name}/page")
    def page(name: str) -> Response:
        job = jobs.job(name)
        file = Path(job.page) if job.page else None
        if file is None or not file.resolve().is_relative_to(library.own.resolve()):
            raise MissingError("This job writes no page.")
        return written_page(file, studio.environment)

    @router.post("/jobs/{name}/stop")
    def stop(name: str) -> Response:
        return studio.part("studio_job_live.html", **described(studio, jobs.stop(name), full=True))

    @router.post("/jobs/{name}/resume")
    def resume(name: str) -> Response:
        return studio.part("studio_job_live.html", **described(studio, jobs.resume(name), full=True))

    return router


def described(studio: Studio, job: Job, full: bool = False) -> dict[str, Any]:
    """What the pages show of a job. full: its words and curves too."""
    run = Path(job.run) if job.run else None
    there = run is not None and (run / "run.json").exists()
    source = studio.library.sources().get(job.source)
    return {
        "job": job,
        "run_name": run.name if run else "",
        "run_url": run_url(run.name) if run and there else "",
        "source": source,
        "page_there": bool(job.page) and job.state == "finished" and Path(job.page).is_file(),
        "resumable": not job.active and job.state != "finished",
        "again": "/jobs/new?" + urlencode({"kind": job.kind, "source": job.source}),
        "lines": studio.jobs.lines(job) if full else [],
        "bar": studio.jobs.progress(job) if full else {},
        "curves": curves(read_log(run), over=job.state == "finished") if full and run and there else [],
    }


def _to(job: Job) -> Response:
    return Response(status_code=204, headers={"HX-Redirect": f"/jobs/{job.id}"})
