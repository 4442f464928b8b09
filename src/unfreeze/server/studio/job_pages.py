"""Pages about jobs: the form that starts one, the list, and the progress of a job.

A browser can start three commands with few options. `asked` validates each field of the form and builds the argument
list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import pandas as pd
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from unfreeze.core.errors import RecipeError, did_you_mean
from unfreeze.core.messages import option
from unfreeze.core.names import nfc
from unfreeze.core.recipe import PRESETS
from unfreeze.core.runs import read_log
from unfreeze.data.groups import PatternError, named_groups
from unfreeze.data.readers import READERS
from unfreeze.server.studio.compare_pages import curves
from unfreeze.server.studio.jobs import Job
from unfreeze.server.studio.layout import Studio, written_page
from unfreeze.server.studio.library import DataSource, Library, MissingError, inside, run_url

KINDS = ("check", "recommend", "fit")
STRATEGIES = ("auto", "probe", "partial", "full", "scratch")
BUDGET = re.compile(r"(?=\d)(\d{1,3}h)?(\d{1,4}m)?(\d{1,6}s)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_READING = ("kind", "source", "inside", "label", "group", "group_regex", "split", "reader")
_FIELDS = frozenset({*_READING, "strategy", "quality", "backbone", "folds", "seed", "budget", "run"})
_LONGEST = 300
_LABELS = 8


@dataclass(frozen=True)
class JobRequest:
    """A validated request for a job.

    Attributes:
        kind: Command, one of KINDS.
        source: The data set.
        arguments: Arguments of `unfreeze`, starting with the command.
        run: Run folder that the job will write, or ''.
        page: HTML page that the job will write, or ''.
    """

    kind: str
    source: DataSource
    arguments: list[str]
    run: str = ""
    page: str = ""


def parse_form(body: bytes) -> dict[str, list[str]]:
    """Parse the fields of a urlencoded form.

    Raises:
        RecipeError: The form is invalid or has unknown fields.
    """
    try:
        found = parse_qs(body.decode("utf-8"), keep_blank_values=True, max_num_fields=64, strict_parsing=False)
    except (UnicodeDecodeError, ValueError):
        raise RecipeError("The form cannot be read; reload the page.") from None
    if strange := sorted(set(found) - _FIELDS):
        raise RecipeError(f"The form has an unknown field '{strange[0]}'.")
    return {name: [value.strip() for value in values] for name, values in found.items()}


def asked(
    form: dict[str, list[str]], library: Library, backbones: Callable[[str], bool], taken: Collection[str] = ()
) -> JobRequest:
    """Validate a form and build the command.

    Args:
        form: Values by field.
        library: Data sets and runs.
        backbones: Whether a backbone of this name exists.
        taken: Run folders that jobs will write.

    Raises:
        RecipeError: A field is invalid; the message names it.
    """

    def one(name: str) -> str:
        values = form.get(name, [])
        if len(values) > 1:
            raise RecipeError(f"{name}: give one.")
        value = values[0] if values else ""
        if len(value) > _LONGEST or not value.isprintable():
            raise RecipeError(f"{name}: is too long, or holds what cannot be printed.")
        return value

    kind = one("kind")
    if kind not in KINDS:
        raise RecipeError(f"kind: known are {', '.join(KINDS)}.")
    known = library.sources()
    source = known.get(one("source"))
    if source is None:
        raise RecipeError(
            f"Photos: choose some of those that the studio knows; others are given with {option('data')}."
        )
    arguments = [kind, str(_place(source, one("inside")))]
    layout = {name: one(name) if name in form else getattr(source.options, name) for name in ("split", "reader")}
    arguments += _reading(form.get("label", []), one("group"), one("group_regex"), layout, source)
    if kind == "check":
        page = library.eda(source)
        return JobRequest(kind, source, [*arguments, f"--report={page}"], page=str(page))
    arguments += _numbers(one("folds"), one("seed"))
    if budget := one("budget"):
        if not BUDGET.fullmatch(budget):
            raise RecipeError("Time: write it as 90s, 10m or 1h30m.")
        arguments.append(f"--budget={budget}")
    if kind == "recommend":
        page = library.own / "recommendation" / f"{source.key}.html"
        return JobRequest(kind, source, [*arguments, f"--report={page}"], page=str(page))
    strategy, quality, backbone = one("strategy"), one("quality"), one("backbone")
    if strategy:
        if strategy not in STRATEGIES:
            raise RecipeError(f"Strategy: known are {', '.join(STRATEGIES)}.")
        arguments.append(f"--strategy={strategy}")
    if quality:
        if quality not in PRESETS:
            raise RecipeError(f"Quality: known are {', '.join(PRESETS)}.")
        arguments.append(f"--quality={quality}")
    if backbone:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?", backbone) or not backbones(backbone):
            raise RecipeError(f"Backbone: no '{backbone}'; `unfreeze models` lists them.")
        arguments.append(f"--backbone={backbone}")
    run = _run(one("run"), library, source, strategy or "auto", taken)
    return JobRequest(kind, source, [*arguments, f"--run={run}"], run=str(run))


def columns_of(source: DataSource) -> list[str]:
    """Columns of a table; empty for folders, whose classes and groups are in the paths."""
    suffix = source.path.suffix.lower()
    try:
        if suffix == ".parquet":
            from pyarrow.parquet import read_schema

            return list(map(str, read_schema(source.path).names))
        if suffix in (".csv", ".tsv", ".txt") and source.path.is_file():
            return list(map(str, pd.read_csv(source.path, nrows=0, sep=None, engine="python").columns))
    except Exception:  # reading the table later gives a better message
        return []
    return []


def known_backbone(name: str) -> bool:
    """Whether a backbone of this name exists, with or without the prefix of its library."""
    from unfreeze.models.registry import BACKBONES, MEET_FIRST

    if name in BACKBONES or name in MEET_FIRST:
        return True
    from unfreeze.models.weight_sources import origins

    known = origins()
    return name in known or any(full.partition("/")[2] == name for full in known)


def backbones_to_meet() -> list[str]:
    """Short list of backbones that the form suggests."""
    from unfreeze.models.registry import BACKBONES, MEET_FIRST

    return [*BACKBONES, *MEET_FIRST]


def free_run(library: Library, source: DataSource, strategy: str, taken: Collection[str] = ()) -> str:
    """An unused run name such as `photos-auto-1`. `taken` holds run folders that do not exist yet."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", source.path.stem if source.path.is_file() else source.name).strip("-._")
    stem = f"{stem[:40] or 'photos'}-{strategy}"
    names = (f"{stem}-{n}" for n in range(1, 10**6))
    return next(n for n in names if not (library.folder / n).exists() and str(library.folder / n) not in taken)


def _place(source: DataSource, part: str) -> Path:
    if not part:
        return source.path
    if not source.path.is_dir():
        raise RecipeError("Part: is for folders; these photos are named by a table.")
    if Path(part).is_absolute() or part.startswith("~"):
        raise RecipeError("Part: is a folder inside these photos, as train/images.")
    try:
        place = inside(source.path, part)
    except Exception:
        raise RecipeError("Part: lies outside of these photos.") from None
    if not place.is_dir():
        raise RecipeError(f"Part: no folder '{part}' inside these photos.")
    return place


def _reading(labels: list[str], group: str, pattern: str, layout: dict[str, str], source: DataSource) -> list[str]:
    """Options for reading the images: from the form, otherwise from the run that the data set is known from.

    Args:
        labels: Label columns.
        group: Group column.
        pattern: Regular expression for groups.
        layout: Split and reader.
        source: The data set.
    """
    if layout["reader"] and layout["reader"] not in READERS:
        raise RecipeError(f"Layout: known are {', '.join(READERS)}.{did_you_mean(layout['reader'], READERS)}")
    columns, options, words = columns_of(source), source.options, list[str]()
    names = [name for text in labels for name in (part.strip() for part in text.split(",")) if name]
    if len(names) > _LABELS:
        raise RecipeError(f"Label: at most {_LABELS} columns.")
    for what, name in (*(("Label", n) for n in names), *((("Group", group),) if group else ())):
        if len(name) > _LONGEST or not name.isprintable():
            raise RecipeError(f"{what}: no column has such a name.")
        if columns and nfc(name) not in map(nfc, columns):
            raise RecipeError(f"{what}: no column '{name}'.{did_you_mean(name, columns)}")
    if group and pattern:
        raise RecipeError("Group: a column or a pattern, not both.")
    if pattern:
        try:
            named_groups([], pattern)
        except PatternError as error:
            raise RecipeError(
                f"Group pattern: {str(error).removeprefix(option('group_regex', pattern) + ': ')}"
            ) from None
    # `--name=value`, so that no value can be parsed as an option.
    words += [f"--label={name}" for name in names]
    words += [f"--group={group}"] if group else []
    words += [f"--group-regex={pattern}"] if pattern else []
    kept = {"path": options.path_column, "root": options.root, **layout}
    kept["encoding"] = options.encoding
    return words + [f"--{name}={value}" for name, value in kept.items() if value]


def _numbers(folds: str, seed: str) -> list[str]:
    words = []
    for name, text, low, high in (("folds", folds, 2, 50), ("seed", seed, 0, 2**31 - 1)):
        if text:
            if not re.fullmatch(r"[0-9]{1,10}", text) or not low <= int(text) <= high:
                raise RecipeError(f"{name.capitalize()}: a whole number from {low} to {high:,}.")
            words.append(f"--{name}={int(text)}")
    return words


def _run(name: str, library: Library, source: DataSource, strategy: str, taken: Collection[str]) -> Path:
    if library.single:
        raise RecipeError("The studio shows one run; start it on the folder that holds the runs to fit more.")
    name = name or free_run(library, source, strategy, taken)
    if not _NAME.fullmatch(name):
        raise RecipeError("Run: letters, digits, dots, dashes and underscores, 64 at most, a letter or digit first.")
    path = library.folder / name
    if path.exists() or path.is_symlink():
        raise RecipeError(f"Run: there is a '{name}' already; choose another name.")
    return path


SHOWN = 100  # jobs in the list, newest first


def job_pages(studio: Studio) -> APIRouter:
    """Create the routes of the jobs."""
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
            kind=kind if kind in KINDS else "fit",
            sources=list(sources.values()),
            source=chosen,
            columns=columns_of(chosen) if chosen else [],
            strategies=STRATEGIES,
            qualities=list(PRESETS),
            backbones=backbones_to_meet(),
            free=free_run(library, chosen, "auto", jobs.writes()) if chosen else "",
        )

    @router.post("/jobs")
    async def start(request: Request) -> Response:
        body = await request.body()

        def act() -> Job:
            job = asked(parse_form(body), library, known_backbone, jobs.writes())
            return jobs.start(job.kind, job.arguments, run=job.run, source=job.source.key, page=job.page)

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
        file = Path(job.page) if job.page and jobs.is_own(job) else None
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
    """Template context of a job. With `full`, it includes the output and the training curves."""
    run = Path(job.run) if job.run else None
    there = run is not None and (run / "run.json").exists()
    source = studio.library.sources().get(job.source)
    own = studio.jobs.is_own(job)
    return {
        "job": job,
        "run_name": run.name if run else "",
        "run_url": run_url(run.name) if run and there else "",
        "source": source,
        "page_there": own and bool(job.page) and job.state == "finished" and Path(job.page).is_file(),
        "resumable": not job.active and job.state != "finished" and own,
        "again": "/jobs/new?" + urlencode({"kind": job.kind, "source": job.source}),
        "lines": studio.jobs.lines(job) if full else [],
        "bar": studio.jobs.progress(job) if full else {},
        "curves": curves(read_log(run), over=job.state == "finished") if full and run and there else [],
    }


def _to(job: Job) -> Response:
    return Response(status_code=204, headers={"HX-Redirect": f"/jobs/{job.id}"})
