"""HTML report of a run, and HTML page of a strategy recommendation.

Both pages are self-contained: they load nothing, so they can be opened anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from unfreeze.core.dataset import FINDING_COLUMNS
from unfreeze.core.errors import RunError, join_names, wrong_type
from unfreeze.core.files import atomic_write, regular_file
from unfreeze.core.format import format_seconds
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import MAX_RECIPE_BYTES
from unfreeze.core.run_validation import read_run_json, read_run_tables, read_scores
from unfreeze.core.runs import Run, read_log, selection_of
from unfreeze.explanation.mistakes import ExplainedMistake
from unfreeze.reports import sections
from unfreeze.reports.html import stylesheet, templates
from unfreeze.reports.report_data import Context, ReportData
from unfreeze.reports.section_diagnosis import diagnosis, read_diagnosis
from unfreeze.reports.section_labels import labels, read_label_issues
from unfreeze.reports.section_mistakes import explained_mistakes, kinds, mistakes_section
from unfreeze.reports.section_strategy import read_recommendation
from unfreeze.reports.section_strategy import strategy_section as section
from unfreeze.reports.section_training import training
from unfreeze.reports.sections import parts
from unfreeze.reports.svg import bars
from unfreeze.reports.thumbnails import thumbnails

if TYPE_CHECKING:
    from unfreeze.analysis.recommendation import StrategyRecommendation


FORMAT = 1


def write_report(run: str | Path | Run, *, explain: bool = False, reporter: Reporter | None = None) -> Path:
    """Write `report.html` into a finished run folder, atomically.

    Args:
        run: A finished run, or the path of its folder.
        explain: Also draw heat maps of fine-tuned networks for the most confident mistakes, and store them in the run
            for later reports. Maps of linear heads are cheap and always included.
        reporter: Receives progress.

    Returns:
        The path of the report.

    Raises:
        RunError: The folder is not a complete finished run; the message names the file.
        StorageError: The folder cannot be written to.
    """
    if not isinstance(run, Run | str | os.PathLike):
        raise wrong_type("run", run, "a finished Run, or the path of its folder")
    folder = run.path if isinstance(run, Run) else Path(run)
    material = read_run(folder)
    shots = sections.wrong(material)[0]["shots"]
    page = render(material, explained_mistakes(folder, shots, explain, reporter), folder).encode("utf-8", "replace")
    return atomic_write(folder / "report.html", lambda temporary: temporary.write_bytes(page))


def read_run(run: Path) -> ReportData:
    """Read and validate everything that the report needs.

    Raises:
        RunError: A file is missing or invalid; the message names it.
    """
    if not run.is_dir():
        raise RunError(f"{run}: no such run folder.")
    info = _mapping(run / "run.json", "status", "classes", "root")
    if info.get("format", FORMAT) != FORMAT:
        raise RunError(f"{run}: written in run format {info['format']}, this version reads {FORMAT}; update unfreeze.")
    if info["status"] != "finished":
        raise RunError(f"{run}: the run is {info['status']}; finish it with the command that started it, then report.")
    scores = read_scores(run / "scores.json")
    if not scores.get("folds"):
        raise RunError(f"{run / 'scores.json'}: no folds in it; run the fit again.")
    photos, oof = read_run_tables(run, [str(name) for name in info["classes"]])
    return ReportData(
        name=Path(info["root"]).name or run.name,
        info=info,
        recipe=_text(run / "recipe.toml"),
        photos=photos,
        oof=oof,
        scores=scores,
        environment=_mapping(run / "environment.json"),
        findings=_findings(run / "findings.json"),
        log=tuple(read_log(run)),
        suspects=read_label_issues(run),
        recommendation=read_recommendation(run),
        diagnosis=read_diagnosis(run),
        selection=selection_of(run),
    )


def render(material: ReportData, rows: list[ExplainedMistake], run: Path) -> str:
    """Render the report's HTML. `rows` are from `explained_mistakes`."""
    environment = templates(glued=no_break)
    script = environment.get_template("report_script.html").render()
    return environment.get_template("report.html").render(
        **_context(material, rows, run),
        css=stylesheet(),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


def no_break(text: str) -> str:
    """Insert no-break spaces between numbers and the words they belong to."""
    words = r"(\b(?:F1|accuracy|interval|macro|and|by|in|of)|[\d%]) (?=[.\d%]|F1|interval|photos?\b|groups?\b)"
    return re.sub(words, "\\1\u00a0", text)


def _context(material: ReportData, rows: list[ExplainedMistake], run: Path) -> Context:
    data, samples = sections.trained_on(material)
    wrong, mistakes = sections.wrong(material)
    suspected, doubted = labels(material.suspects, material.scores.get("corrections"))
    seen, near = mistakes_section(material, rows, run)
    alike, small = kinds(material)
    return {
        "name": material.name,
        "info": material.info,
        "created": str(material.environment.get("created", ""))[:10],
        "ran": _ran(material),
        "unseen": material.unseen,
        "straddling": material.straddling,
        "headline": sections.headline(material),
        "data": data,
        "folds": sections.folds(material),
        "recommendation": material.recommendation,
        "training": training(material.info, material.scores, material.log),
        "parts": parts(material.scores.get("parts"), material.judged),
        "diagnosis": diagnosis(material.diagnosis),
        "per_class": sections.per_class(material),
        "confusion": sections.confusion(material, Counter(wrong["pairs"])),
        "wrong": wrong,
        "looked": seen,
        "kinds": alike,
        "small": small,
        "labels": suspected,
        "calibration": sections.calibration(material),
        "repeat": _repeat(material),
        "thumbs": thumbnails(material.root, [*samples, *mistakes, *doubted, *near]),
    }


def _ran(m: ReportData) -> str:
    backbone = m.info.get("backbone_info", {}).get("title") or m.info.get("backbone", "")
    return f"{str(m.info.get('strategy', '')).capitalize()} on {backbone}." if backbone else ""


def _repeat(m: ReportData) -> Context:
    timings = {str(k): float(v) for k, v in m.environment.get("timings", {}).items() if k != "total"}
    total = sum(timings.values())
    finding = "How long the run took was not kept."
    if total > 0:
        longest = max(timings, key=lambda k: timings[k])
        share = 100 * timings[longest] / total
        finding = f"The run took {format_seconds(total)}, {share:.0f}% of it on {longest}; one command repeats it."
    rows = [(k, v, format_seconds(v)) for k, v in timings.items()]
    backbone = m.info.get("backbone_info", {})
    inputs = [str(i.get("title", "")) for i in m.info.get("inputs", [])]
    facts = [
        ("Strategy", m.info.get("strategy")),
        ("Backbone", backbone.get("title") or m.info.get("backbone")),
        ("Weights from", backbone.get("source")),
        ("Licence of the weights", backbone.get("licence")),
        ("Parameters", f"{backbone['parameters']:,}" if backbone.get("parameters") else None),
        ("Inputs" if len(inputs) > 1 else "Input", "; ".join(inputs)),
        ("Views averaged", ", ".join(m.info.get("views", []))),
        ("Engine", m.info.get("engine")),
        ("Machine", m.environment.get("device")),
        ("Seed", m.environment.get("seed")),
        ("Code", m.environment.get("git")),
        *(m.environment.get("versions") or {}).items(),
    ]
    return {
        "finding": finding,
        "plot": bars("timings", "Seconds spent on each stage", rows) if rows else "",
        "command": m.info.get("command", ""),
        "facts": [(name, value) for name, value in facts if value not in (None, "")],
        "recipe": m.recipe,
    }


def _text(file: Path) -> str:
    try:
        return regular_file(file, MAX_RECIPE_BYTES).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunError(f"{file}: missing, so there is nothing to report; run the fit again.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{file}: cannot be read ({error}).") from None


def _mapping(file: Path, *keys: str) -> dict[str, Any]:
    value = read_run_json(file)
    if not isinstance(value, dict):
        raise RunError(f"{file}: holds no mapping of names to values.")
    missing = [key for key in keys if key not in value]
    if missing:
        raise RunError(f"{file}: lacks {join_names(missing)}; it has {join_names(value, 20)}.")
    return value


def _findings(file: Path) -> pd.DataFrame:
    rows = read_run_json(file) if file.exists() else []
    return pd.DataFrame(rows, columns=list(FINDING_COLUMNS)).fillna("")


def write_recommendation(recommendation: StrategyRecommendation, path: str | Path, source: str) -> Path:
    """Write a strategy recommendation as a self-contained HTML page, atomically.

    Args:
        recommendation: The recommendation.
        path: Target path.
        source: Source of the images, as given by the user.

    Returns:
        The path.

    Raises:
        StorageError: The file cannot be written.
    """
    data = render_recommendation(recommendation, source).encode("utf-8", "replace")
    return atomic_write(Path(path), lambda temporary: temporary.write_bytes(data))


def render_recommendation(recommendation: StrategyRecommendation, source: str) -> str:
    """Render the page's HTML."""
    options = [
        f"--{key} {shlex.quote(str(recommendation.changes[key]))}" for key in _OPTIONS if key in recommendation.changes
    ]
    return (
        templates(glued=no_break)
        .get_template("recommendation.html")
        .render(
            name=Path(source).name or source,
            recommendation=section(recommendation.to_json()),
            command=" ".join(["unfreeze fit", shlex.quote(source), *options]),
            css=stylesheet(),
        )
    )


# Recipe keys that a recommendation can change; `unfreeze fit` has an option for each.
_OPTIONS = ("strategy", "backbone")
