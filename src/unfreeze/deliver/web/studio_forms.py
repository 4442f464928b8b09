"""What a browser may start: three commands, few options, each checked here; the answer is an argument list."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs

import pandas as pd

from unfreeze.core.errors import RecipeError, nearest
from unfreeze.core.qualities import QUALITIES
from unfreeze.deliver.web.studio_library import DataSource, Library, inside

KINDS = ("check", "advise", "fit")
STRATEGIES = ("auto", "probe", "late", "full", "scratch")
BUDGET = re.compile(r"(?=\d)(\d{1,3}h)?(\d{1,4}m)?(\d{1,6}s)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_READING = ("kind", "source", "inside", "label", "group", "group_regex")
_FIELDS = frozenset({*_READING, "strategy", "quality", "backbone", "folds", "seed", "budget", "run"})
_LONGEST = 300
_LABELS = 8


@dataclass(frozen=True)
class Asked:
    """What a form asks for. arguments: of `unfreeze`, the command first. run, page: what it will write, or ''."""

    kind: str
    source: DataSource
    arguments: list[str]
    run: str = ""
    page: str = ""


def parse_form(body: bytes) -> dict[str, list[str]]:
    """The fields of an urlencoded form. RecipeError: unknown fields, or too many."""
    try:
        found = parse_qs(body.decode("utf-8"), keep_blank_values=False, max_num_fields=64, strict_parsing=False)
    except (UnicodeDecodeError, ValueError):
        raise RecipeError("The form cannot be read; reload the page.") from None
    if strange := sorted(set(found) - _FIELDS):
        raise RecipeError(f"The form has an unknown field '{strange[0]}'.")
    return {name: [value.strip() for value in values] for name, values in found.items()}


def asked(
    form: dict[str, list[str]], library: Library, backbones: Callable[[str], bool], taken: Collection[str] = ()
) -> Asked:
    """The command that a form asks for. RecipeError says which field is wrong.

    backbones: whether there is one of a name. taken: folders of runs that jobs will write.
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
        raise RecipeError("Photos: choose some of those that the studio knows; others are given with --data.")
    arguments = [kind, str(_place(source, one("inside")))]
    arguments += _reading(form.get("label", []), one("group"), one("group_regex"), source)
    if kind == "check":
        page = library.eda(source)
        return Asked(kind, source, [*arguments, f"--report={page}"], page=str(page))
    arguments += _numbers(one("folds"), one("seed"))
    if budget := one("budget"):
        if not BUDGET.fullmatch(budget):
            raise RecipeError("Time: write it as 90s, 10m or 1h30m.")
        arguments.append(f"--budget={budget}")
    if kind == "advise":
        page = library.own / "advice" / f"{source.key}.html"
        return Asked(kind, source, [*arguments, f"--report={page}"], page=str(page))
    strategy, quality, backbone = one("strategy"), one("quality"), one("backbone")
    if strategy:
        if strategy not in STRATEGIES:
            raise RecipeError(f"Strategy: known are {', '.join(STRATEGIES)}.")
        arguments.append(f"--strategy={strategy}")
    if quality:
        if quality not in QUALITIES:
            raise RecipeError(f"Quality: known are {', '.join(QUALITIES)}.")
        arguments.append(f"--quality={quality}")
    if backbone:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?", backbone) or not backbones(backbone):
            raise RecipeError(f"Backbone: no '{backbone}'; `unfreeze models` lists them.")
        arguments.append(f"--backbone={backbone}")
    run = _run(one("run"), library, source, strategy or "auto", taken)
    return Asked(kind, source, [*arguments, f"--run={run}"], run=str(run))


def columns_of(source: DataSource) -> list[str]:
    """The columns that a table has; none of a folder, whose classes and groups are in its paths."""
    suffix = source.path.suffix.lower()
    try:
        if suffix == ".parquet":
            from pyarrow.parquet import read_schema

            return list(map(str, read_schema(source.path).names))
        if suffix in (".csv", ".tsv", ".txt") and source.path.is_file():
            return list(map(str, pd.read_csv(source.path, nrows=0, sep=None, engine="python").columns))
    except Exception:  # what is wrong with the table, reading it says better
        return []
    return []


def known_backbone(name: str) -> bool:
    """Whether a backbone of this name exists, in full or without its library."""
    from unfreeze.model.backbones import BACKBONES
    from unfreeze.model.catalogue import MEET_FIRST

    if name in BACKBONES or name in MEET_FIRST:
        return True
    from unfreeze.model.origins import origins

    told = origins()
    return name in told or any(full.partition("/")[2] == name for full in told)


def backbones_to_meet() -> list[str]:
    """The short list that the form suggests."""
    from unfreeze.model.backbones import BACKBONES
    from unfreeze.model.catalogue import MEET_FIRST

    return [*BACKBONES, *MEET_FIRST]


def free_run(library: Library, source: DataSource, strategy: str, taken: Collection[str] = ()) -> str:
    """A name that no run has: `photos-auto-1`. taken: folders of runs that are not there yet."""
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


def _reading(labels: list[str], group: str, pattern: str, source: DataSource) -> list[str]:
    """How to read the photos: columns by the form, the rest as the run that the photos are known from."""
    columns, options, words = columns_of(source), source.options, list[str]()
    names = [name for text in labels for name in (part.strip() for part in text.split(",")) if name]
    if len(names) > _LABELS:
        raise RecipeError(f"Label: at most {_LABELS} columns.")
    for what, name in (*(("Label", n) for n in names), *((("Group", group),) if group else ())):
        if len(name) > _LONGEST or not name.isprintable():
            raise RecipeError(f"{what}: no column has such a name.")
        if columns and name not in columns:
            raise RecipeError(f"{what}: no column '{name}'.{nearest(name, columns)}")
    if group and pattern:
        raise RecipeError("Group: a column or a pattern, not both.")
    if pattern:
        try:
            fine = "group" in re.compile(pattern).groupindex
        except (re.error, OverflowError, RecursionError) as error:
            raise RecipeError(f"Group pattern: {error}.") from None
        if not fine:
            raise RecipeError("Group pattern: needs (?P<group>...).")
    # `--name=value`, so that no value can be taken for an option.
    words += [f"--label={name}" for name in names]
    words += [f"--group={group}"] if group else []
    words += [f"--group-regex={pattern}"] if pattern else []
    kept = {"path": options.path_column, "root": options.root, "split": options.split, "reader": options.reader}
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
