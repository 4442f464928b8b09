"""What the studio may show: the runs of one folder, and the photos that were given to it or that those runs are of."""

from __future__ import annotations

import contextlib
import os
import threading
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from unfreeze.core.cache import fingerprint
from unfreeze.core.errors import PhotoError, RunError, SourceError, UnfreezeError
from unfreeze.core.files import read_json
from unfreeze.core.recipe import read_recipe
from unfreeze.core.recipe_sections import Source
from unfreeze.core.runs import PLACES, list_runs
from unfreeze.core.tables import Photos
from unfreeze.data.checks import run_checks
from unfreeze.data.readers import read
from unfreeze.data.shards import holder
from unfreeze.deliver.material import Material
from unfreeze.deliver.report import read_run
from unfreeze.deliver.thumbnails import scaled_jpeg

SIDES = {"large": 1024, "small": 240}  # pixels of the longer side
QUESTIONS = {"compare-": "compare.html", "tune-": "tune.html"}  # folders of several runs, and the page that each has
OWN = ".studio"  # the studio's folder among the runs: jobs, and the pages that they wrote
_KEPT = 600  # scaled photos held in memory, 0.1 MB each or less


class MissingError(UnfreezeError):
    """No such page, run, photo or job."""


@dataclass
class DataSource:
    """Photos that may be looked at. key: its name in addresses. options: how they are read. given: by --data."""

    key: str
    path: Path
    options: Source = field(default_factory=Source)
    given: bool = False
    run: str = ""  # the newest finished run of them

    @property
    def name(self) -> str:
        """What people call it."""
        return self.path.name or str(self.path)


class Library:
    """The runs folder and the data. Nothing outside of them is ever read; both are looked up by name, never joined."""

    def __init__(self, folder: Path, data: Sequence[str | Path] = ()) -> None:
        self.folder = folder.expanduser().absolute()
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{folder}: is a file; give the folder that holds the runs.")
        self.single = (self.folder / "run.json").exists()  # the folder of one run was given instead
        self.given: dict[str, DataSource] = {}
        for one in data:
            path = Path(one).expanduser().absolute()
            if not path.exists():
                raise SourceError(f"--data {one}: no such folder or table.")
            self.given[_key(path)] = DataSource(_key(path), path, given=True)
        self._lock = threading.Lock()
        self._sources: tuple[Any, dict[str, DataSource]] = (None, {})
        self._read: dict[str, tuple[Source, Photos]] = {}
        self._checked: dict[str, Photos] = {}
        self._material = lru_cache(maxsize=8)(lambda path, stamp: _whole(Path(path)))
        self._scaled = lru_cache(maxsize=_KEPT)(lambda file, stamp, side: scaled_jpeg(Path(file), side))

    @property
    def own(self) -> Path:
        """Where the studio keeps what is its own; made when first needed."""
        return (self.folder.parent if self.single else self.folder) / OWN

    # Runs

    def run_names(self) -> dict[str, Path]:
        """Name -> folder of every run; a link that leads out of the runs folder is none.

        A run of a comparison or a search is named after both folders, `compare-photos-1a2b3c:gray`: a name is one part
        of an address.
        """
        if self.single:
            return {self.folder.name: self.folder}
        root, found = self.folder.resolve(), dict[str, Path]()
        for file in (file for at in PLACES[1:] for file in sorted(self.folder.glob(f"{at}run.json"))):
            path = file.parent
            if not path.resolve().is_relative_to(root) or not file.resolve().is_relative_to(root):
                continue
            name = self.name_of(path)
            if name.isprintable() and not name.startswith("."):
                found.setdefault(name, path)
        return found

    def name_of(self, run: Path) -> str:
        """What a run of this folder is called here."""
        return self.folder.name if self.single else ":".join(run.relative_to(self.folder).parts)

    def questions(self) -> dict[str, Path]:
        """Name -> page of the comparisons and searches that left one."""
        if self.single:
            return {}
        found = [
            (file.parent, file) for start, page in QUESTIONS.items() for file in self.folder.glob(f"{start}*/{page}")
        ]
        root = self.folder.resolve()
        return {path.name: file for path, file in sorted(found) if file.resolve().is_relative_to(root)}

    def run(self, name: str) -> Path:
        """The folder of a run. MissingError if there is none of this name."""
        found = self.run_names().get(name)
        if found is None:
            raise MissingError(f"No run '{name}' here.")
        return found

    def rows(self) -> list[dict[str, Any]]:
        """`core.runs.list_runs` of the runs that may be shown, each with its `name`, and `when` it ended or began."""
        names = {str(path): name for name, path in self.run_names().items()}
        rows = [{**row, "name": names[row["run"]]} for row in list_runs(self.folder) if row["run"] in names]
        for row in rows:
            row["when"] = str(row.get("finished") or self._begun(row["name"]))
        return rows

    def _begun(self, name: str) -> str:
        try:
            return str(self.info(name).get("started") or "")
        except UnfreezeError:
            return ""

    def info(self, name: str) -> dict[str, Any]:
        """run.json, of an unfinished run too."""
        path = self.run(name) / "run.json"
        try:
            found = read_json(path)
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: cannot be read ({error}); fit the run again with --force.") from None
        if not isinstance(found, dict):
            raise RunError(f"{path}: is damaged; fit the run again with --force.")
        return found

    def material(self, name: str) -> Material:
        """A finished run, read; kept while its files stay as they are. RunError where it is not whole."""
        path = self.run(name)
        files = [path / file for file in ("run.json", "oof.parquet", "suspects.json")]
        found: Material = self._material(str(path), tuple(map(stamp, files)))
        return found

    # Data

    def sources(self) -> dict[str, DataSource]:
        """Key -> photos: those given, then those that runs are of, the newest run's way of reading them."""
        stamps = [
            (name, stamp(path / "run.json"), stamp(path / "recipe.toml")) for name, path in self.run_names().items()
        ]
        if self._sources[0] != stamps:  # asked for with every photo: recipes are read when a run has changed
            self._sources = (stamps, self._found_sources())
        return {key: one for key, one in self._sources[1].items() if one.given or one.path.exists()}

    def _found_sources(self) -> dict[str, DataSource]:
        found = {key: DataSource(one.key, one.path, one.options, True) for key, one in self.given.items()}
        rows = sorted(self.rows(), key=lambda row: str(row.get("finished") or ""))
        for row in rows:
            try:
                source = read_recipe(Path(row["run"]) / "recipe.toml").source
                path = _source_path(source.path, str(self.info(row["name"]).get("root", "")))
            except UnfreezeError:
                continue
            if path is None:
                continue
            one = found.setdefault(_key(path), DataSource(_key(path), path))
            one.options = source.model_copy(update={"path": "", "verdicts": ""})
            one.run = row["name"] if row["status"] == "finished" else one.run
        return found

    def source(self, key: str) -> DataSource:
        """One of `sources`. MissingError if it is none."""
        found = self.sources().get(key)
        if found is None:
            raise MissingError("These photos are not among those that the studio was given, or that its runs are of.")
        return found

    def photos(self, one: DataSource, again: bool = False) -> Photos:
        """The photos table, read once. SourceError as of `uf.read`."""
        with self._lock:
            known = self._read.get(one.key)
            if again or known is None or known[0] != one.options:
                self._checked.pop(one.key, None)
                self._read[one.key] = (one.options, read(str(one.path), one.options))
            return self._read[one.key][1]

    def findings(self, one: DataSource) -> list[dict[str, Any]] | None:
        """What the checks found: of the newest run, else of a check that was made here; None where there was none."""
        if one.run:
            with contextlib.suppress(RunError):  # a damaged run knows nothing of its photos
                found = self.material(one.run).findings
                return [{str(k): v for k, v in row.items()} for row in found.to_dict("records")]
        if not self.eda(one).exists():
            return None
        photos = self.photos(one)
        with self._lock:  # the check has left its looks in the cache, so that this is quick
            if one.key not in self._checked:
                self._checked[one.key] = run_checks(photos, slow=True)[0]
            checked = self._checked[one.key]
        return [vars(found) for found in checked.findings]

    def eda(self, one: DataSource) -> Path:
        """Where a check of these photos writes its page."""
        return self.own / "eda" / f"{one.key}.html"

    # Photos

    def scaled(self, root: Path, path: str, side: int) -> bytes:
        """A photo as JPEG. PhotoError: not inside the data, gone, damaged."""
        file = inside(root, path, [one.path for one in self.given.values()])
        try:
            stamp = holder(file).stat().st_mtime_ns
        except OSError:
            raise PhotoError(path, "no longer there") from None
        found: bytes = self._scaled(str(file), stamp, side)
        return found


def inside(root: Path, path: str, also: Iterable[Path] = ()) -> Path:
    """The file of a photo, links resolved: in `root` or in one of `also`, else PhotoError."""
    try:
        file = (root / path).resolve()
        allowed = [folder.resolve() for folder in (root, *also)]
    except (OSError, ValueError, RuntimeError):  # a NUL in the name, a circle of links
        raise PhotoError(path, "no such file") from None
    if not any(file != folder and file.is_relative_to(folder) for folder in allowed):
        raise PhotoError(path, "lies outside of the data folder; start the studio with --data FOLDER to show it")
    return file


def photo_urls(base: str, paths: Iterable[str]) -> list[str]:
    """Addresses of the small photos, in order; they change with the path, since a browser keeps what it has seen."""
    return [f"{base}/{row}/small.jpg?v={zlib.crc32(os.fsencode(path)):x}" for row, path in enumerate(paths)]


def run_url(name: str) -> str:
    """Where a run is shown."""
    return f"/runs/{quote(name, safe='')}"


def predicted(material: Material) -> pd.DataFrame:
    """The out-of-fold predictions with `said`, `sure`, `own` (the label's probability) and the photo's `row`."""
    from unfreeze.core.tables import probability_columns

    oof = material.oof
    told = oof[probability_columns(material.classes)].to_numpy(float)
    place = {name: i for i, name in enumerate(material.classes)}
    rows = {path: i for i, path in enumerate(material.photos["path"])}
    true = [place[label] for label in oof["label"]]
    return pd.DataFrame(
        {
            "path": oof["path"].to_numpy(),
            "row": [rows[path] for path in oof["path"]],
            "label": oof["label"].to_numpy(),
            "said": [material.classes[i] for i in told.argmax(1)],
            "sure": told.max(1),
            "own": told[range(len(true)), true],
        }
    )


def _whole(run: Path) -> Material:
    try:
        return read_run(run)
    except (ValueError, KeyError, TypeError) as error:  # files that can be read, and hold something else
        raise RunError(f"{run}: is damaged ({error}); fit the run again with --force.") from None


def stamp(file: Path) -> int:
    """When a file was written last, 0 if it is not there."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def _key(path: Path) -> str:
    return fingerprint(str(path.resolve()))[:10]


def _source_path(written: str, root: str) -> Path | None:
    """Where a run's photos are: as its recipe says, which may be from another folder; else the root that it found."""
    base = Path(root) if root else None
    for path in (Path(written).expanduser(), base):
        # A relative path counts only if it leads to where the run's photos were: it may be from another folder.
        if path and str(path) and path.exists():
            whole = path.resolve()
            if Path(written).is_absolute() or base is None or _related(whole, base.resolve()):
                return whole
    return None


def _related(path: Path, root: Path) -> bool:
    return path == root or path.is_relative_to(root) or root.is_relative_to(path)
