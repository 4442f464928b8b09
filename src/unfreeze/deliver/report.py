"""A run folder in one HTML file that anyone can open: no network, no program, nothing beside it."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import pandas as pd

from unfreeze.core.errors import RunError, listed
from unfreeze.core.files import write_whole
from unfreeze.core.progress import Reporter
from unfreeze.core.run_files import json_of, scores_of, tables_of
from unfreeze.core.runs import read_log
from unfreeze.core.tables import FINDING_COLUMNS
from unfreeze.deliver import sections
from unfreeze.deliver.advice_section import read_advice
from unfreeze.deliver.diagnosis_section import diagnosis, read_diagnosis
from unfreeze.deliver.labels_section import labels, read_suspects
from unfreeze.deliver.looked_into import LookedInto
from unfreeze.deliver.looked_section import kinds, looked, looked_into
from unfreeze.deliver.material import Context, Material
from unfreeze.deliver.pages import stylesheet, templates
from unfreeze.deliver.parts_section import parts
from unfreeze.deliver.plots import bars, seconds
from unfreeze.deliver.thumbnails import thumbnails
from unfreeze.deliver.training import training

FORMAT = 1


def write_report(run: str | Path, *, explain: bool = False, reporter: Reporter | None = None) -> Path:
    """Write `report.html` into a finished run folder and return its path.

    explain: also the maps of trained networks over the surest mistakes, for which these are loaded and asked; they are
    kept in the run for later reports. Those of linear heads cost little and are always there. The file is complete in
    itself, and it appears whole or not at all. RunError names what the folder lacks, StorageError a folder that cannot
    be written.
    """
    folder = Path(run)
    material = read_run(folder)
    shots = sections.wrong(material)[0]["shots"]
    page = render(material, looked_into(folder, shots, explain, reporter), folder).encode("utf-8", "replace")
    return write_whole(folder / "report.html", lambda temporary: temporary.write_bytes(page))


def read_run(run: Path) -> Material:
    """Everything the report is made of, checked. RunError names the file and what is wrong with it."""
    if not run.is_dir():
        raise RunError(f"{run}: no such run folder.")
    info = _mapping(run / "run.json", "status", "classes", "root")
    if info.get("format", FORMAT) != FORMAT:
        raise RunError(f"{run}: written in run format {info['format']}, this version reads {FORMAT}; update unfreeze.")
    if info["status"] != "finished":
        raise RunError(f"{run}: the run is {info['status']}; finish it with the command that started it, then report.")
    scores = scores_of(run / "scores.json")
    if not scores.get("folds"):
        raise RunError(f"{run / 'scores.json'}: no folds in it; run the fit again.")
    photos, oof = tables_of(run, [str(name) for name in info["classes"]])
    return Material(
        name=Path(info["root"]).name or run.name,
        info=info,
        recipe=_text(run / "recipe.toml"),
        photos=photos,
        oof=oof,
        scores=scores,
        environment=_mapping(run / "environment.json"),
        findings=_findings(run / "findings.json"),
        log=tuple(read_log(run)),
        suspects=read_suspects(run),
        advice=read_advice(run),
        diagnosis=read_diagnosis(run),
    )


def render(material: Material, rows: list[LookedInto], run: Path) -> str:
    """The report's HTML. rows: as of `looked_into`."""
    environment = templates(glued=glued)
    script = environment.get_template("report_script.html").render()
    return environment.get_template("report.html").render(
        **_context(material, rows, run),
        css=stylesheet(),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


def glued(text: str) -> str:
    """The text with each number on the line of the word that it belongs to."""
    words = r"(\b(?:F1|accuracy|interval|macro|and|by|in|of)|[\d%]) (?=[.\d%]|F1|interval|photos?\b|groups?\b)"
    return re.sub(words, "\\1\u00a0", text)


def _context(material: Material, rows: list[LookedInto], run: Path) -> Context:
    data, samples = sections.trained_on(material)
    wrong, mistakes = sections.wrong(material)
    suspected, doubted = labels(material.suspects, material.scores.get("verdicts"))
    seen, near = looked(material, rows, run)
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
        "advice": material.advice,
        "training": training(material.info, material.scores, material.log),
        "parts": parts(material.scores.get("parts"), material.judged),
        "diagnosis": diagnosis(material.diagnosis),
        "per_class": sections.per_class(material),
        "confusion": sections.confusion(material, set(wrong["pairs"])),
        "wrong": wrong,
        "looked": seen,
        "kinds": alike,
        "small": small,
        "labels": suspected,
        "calibration": sections.calibration(material),
        "repeat": _repeat(material),
        "thumbs": thumbnails(material.root, [*samples, *mistakes, *doubted, *near]),
    }


def _ran(m: Material) -> str:
    backbone = m.info.get("backbone_info", {}).get("title") or m.info.get("backbone", "")
    return f"{str(m.info.get('strategy', '')).capitalize()} on {backbone}." if backbone else ""


def _repeat(m: Material) -> Context:
    # What the run cost, and all that is needed to do it again.
    timings = {str(k): float(v) for k, v in m.environment.get("timings", {}).items() if k != "total"}
    total = sum(timings.values())
    finding = "How long the run took was not kept."
    if total > 0:
        longest = max(timings, key=lambda k: timings[k])
        share = 100 * timings[longest] / total
        finding = f"The run took {seconds(total)}, {share:.0f} % of it on {longest}; one command repeats it."
    rows = [(k, v, seconds(v)) for k, v in timings.items()]
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
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunError(f"{file}: missing, so there is nothing to report; run the fit again.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{file}: cannot be read ({error}).") from None


def _mapping(file: Path, *keys: str) -> dict[str, Any]:
    value = json_of(file)
    if not isinstance(value, dict):
        raise RunError(f"{file}: holds no mapping of names to values.")
    missing = [key for key in keys if key not in value]
    if missing:
        raise RunError(f"{file}: lacks {listed(missing)}; it has {listed(value, 20)}.")
    return value


def _findings(file: Path) -> pd.DataFrame:
    rows = json_of(file) if file.exists() else []
    return pd.DataFrame(rows, columns=list(FINDING_COLUMNS)).fillna("")
