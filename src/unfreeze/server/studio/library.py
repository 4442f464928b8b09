"""What the studio may show: the runs of one folder, the data sets given to it, and the data sets of the runs."""

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

from unfreeze.core.cache import stable_hash
from unfreeze.core.dataset import ImageDataset
from unfreeze.core.errors import PhotoError, RunError, SourceError, UnfreezeError
from unfreeze.core.files import read_json
from unfreeze.core.messages import option
from unfreeze.core.names import on_disk
from unfreeze.core.recipe import read_recipe
from unfreeze.core.recipe_schema import Source
from unfreeze.core.runs import PLACES, is_own, list_runs
from unfreeze.data.checks import run_checks
from unfreeze.data.readers import read
from unfreeze.data.tar_index import containing_file
from unfreeze.reports.report_data import ReportData
from unfreeze.reports.run_report import read_run
from unfreeze.reports.thumbnails import scaled_jpeg

SIDES = {"large": 1024, "small": 240}  # pixels of the longer side
QUESTIONS = {"compare-": "compare.html", "tune-": "tune.html"}  # prefix of a folder of several runs -> its page
OWN = ".studio"  # subfolder for jobs and the pages that they wrote
_KEPT = 600  # scaled images cached in memory, at most 0.1 MB each


class MissingError(UnfreezeError):
    """There is no such page, run, image or job."""


@dataclass
class DataSource:
    """A data set that may be shown.

    Attributes:
        key: Identifier in URLs.
        path: Folder or table.
        options: How it is read.
        given: Whether it was given by --data.
        run: Name of its newest finished run, or ''.
    """

    key: str
    path: Path
    options: Source = field(default_factory=Source)
    given: bool = False
    run: str = ""

    @property
    def name(self) -> str:
        """Display name."""
        return self.path.name or str(self.path)


class Library:
    """Runs and data sets of the studio.

    No other files are read. Runs and data sets are looked up by name or key; request parameters are never joined to
    paths.
    """

    def __init__(self, folder: Path, data: Sequence[str | Path] = ()) -> None:
        self.folder = folder.expanduser().absolute()
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{folder}: is a file; give the folder that holds the runs.")
        self.single = (self.folder / "run.json").exists()  # `folder` is a single run
        self.given: dict[str, DataSource] = {}
        for one in data:
            path = on_disk(Path(one).expanduser().absolute())
            if not path.exists():
                raise SourceError(f"{option('data', str(one))}: no such folder or table.")
            self.given[_key(path)] = DataSource(_key(path), path, given=True)
        self._lock = threading.Lock()
        self._sources: tuple[Any, dict[str, DataSource], set[Path]] = (None, {}, set())
        self._read: dict[str, tuple[Source, ImageDataset]] = {}
        self._checked: dict[str, ImageDataset] = {}
        self._material = lru_cache(maxsize=8)(lambda path, stamp: _whole(Path(path)))
        self._scaled = lru_cache(maxsize=_KEPT)(lambda file, stamp, side: scaled_jpeg(Path(file), side))

    @property
    def own(self) -> Path:
        """The studio's own folder; created on first use."""
        return (self.folder.parent if self.single else self.folder) / OWN

    # Runs

    def run_names(self) -> dict[str, Path]:
        """Run folders by name, without links that lead out of the folder.

        A run of a comparison or a search is named after both folders, as in `compare-photos-1a2b3c:gray`, since a name
        has to be a single URL segment.
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
        """Name of a run in this folder."""
        return self.folder.name if self.single else ":".join(run.relative_to(self.folder).parts)

    def questions(self) -> dict[str, Path]:
        """HTML pages of comparisons and searches, by name."""
        if self.single:
            return {}
        found = [
            (file.parent, file) for start, page in QUESTIONS.items() for file in self.folder.glob(f"{start}*/{page}")
        ]
        root = self.folder.resolve()
        return {path.name: file for path, file in sorted(found) if file.resolve().is_relative_to(root)}

    def run(self, name: str) -> Path:
        """Folder of a run.

        Raises:
            MissingError: There is no such run.
        """
        found = self.run_names().get(name)
        if found is None:
            raise MissingError(f"No run '{name}' here.")
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Rows of `core.runs.list_runs` for the visible runs, with `name` and `when` (end or start time)."""
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
        """Content of run.json, also of unfinished runs.

        Raises:
            MissingError: There is no such run.
            RunError: The file is damaged.
        """
        path = self.run(name) / "run.json"
        try:
            found = read_json(path)
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path}: cannot be read ({error}); fit the run again with {option('force', True)}."
            ) from None
        if not isinstance(found, dict):
            raise RunError(f"{path}: is damaged; fit the run again with {option('force', True)}.")
        return found

    def material(self, name: str) -> ReportData:
        """Contents of a finished run, cached until its files change.

        Raises:
            RunError: The run is incomplete or damaged.
        """
        path = self.run(name)
        files = [path / file for file in ("run.json", "oof.parquet", "label_issues.json")]
        found: ReportData = self._material(str(path), tuple(map(stamp, files)))
        return found

    # Data

    def sources(self) -> dict[str, DataSource]:
        """Data sets by key: the given ones and those of the runs, read as in the newest run."""
        stamps = [
            (name, stamp(path / "run.json"), stamp(path / "recipe.toml")) for name, path in self.run_names().items()
        ]
        if self._sources[0] != stamps:  # called for every image, so recipes are only read after a change
            self._sources = (stamps, *self._found_sources())
        return {key: one for key, one in self._sources[1].items() if one.given or one.path.exists()}

    def _is_own(self, root: Path) -> bool:
        """Whether images of this folder may be shown: it was given, or this user fitted a run on it on this machine."""
        sources = self.sources().values()
        whole = root.resolve()
        return whole in self._sources[2] or any(_related(one.path.resolve(), whole) for one in sources if one.given)

    def _found_sources(self) -> tuple[dict[str, DataSource], set[Path]]:
        """Data sets by key, and the data folders of this user's own runs."""
        roots: set[Path] = set()
        found = {key: DataSource(one.key, one.path, one.options, True) for key, one in self.given.items()}
        rows = sorted(self.rows(), key=lambda row: str(row.get("finished") or ""))
        for row in rows:
            try:
                info = self.info(row["name"])
                if not is_own(info):  # a run folder from somebody else could name any folder of this machine
                    continue
                roots.add(Path(str(info["root"])).resolve())
                source = read_recipe(Path(row["run"]) / "recipe.toml").source
                path = _source_path(source.path, str(info.get("root", "")))
            except UnfreezeError:
                continue
            if path is None:
                continue
            one = found.setdefault(_key(path), DataSource(_key(path), path))
            one.options = source.model_copy(update={"path": "", "corrections": ""})
            one.run = row["name"] if row["status"] == "finished" else one.run
        return found, roots

    def source(self, key: str) -> DataSource:
        """Look up a data set.

        Raises:
            MissingError: There is no such data set.
        """
        found = self.sources().get(key)
        if found is None:
            raise MissingError("These photos are not among those that the studio was given, or that its runs are of.")
        return found

    def photos(self, one: DataSource, again: bool = False) -> ImageDataset:
        """The image table, cached; read again with `again`.

        Raises:
            SourceError: As `uf.read`.
        """
        with self._lock:
            known = self._read.get(one.key)
            if again or known is None or known[0] != one.options:
                self._checked.pop(one.key, None)
                self._read[one.key] = (one.options, read(str(one.path), one.options))
            return self._read[one.key][1]

    def findings(self, one: DataSource) -> list[dict[str, Any]] | None:
        """Findings of the checks, from the newest run or else from a check in the studio; None without either."""
        if one.run:
            with contextlib.suppress(RunError):  # the run is damaged
                found = self.material(one.run).findings
                return [{str(k): v for k, v in row.items()} for row in found.to_dict("records")]
        if not self.eda(one).exists():
            return None
        photos = self.photos(one)
        with self._lock:  # fast, since the check left its image scan in the cache
            if one.key not in self._checked:
                self._checked[one.key] = run_checks(photos, slow=True)[0]
            checked = self._checked[one.key]
        return [vars(found) for found in checked.findings]

    def eda(self, one: DataSource) -> Path:
        """Path of the page that a check of the data set writes."""
        return self.own / "eda" / f"{one.key}.html"

    # Images

    def scaled(self, root: Path, path: str, side: int) -> bytes:
        """An image as a scaled JPEG.

        Raises:
            PhotoError: The file is outside of the allowed folders, missing or damaged.
        """
        given = [one.path for one in self.given.values()]
        file = inside(root, path, [root, *given] if self._is_own(root) else given)
        try:
            stamp = containing_file(file).stat().st_mtime_ns
        except OSError:
            raise PhotoError(path, "no longer there") from None
        found: bytes = self._scaled(str(file), stamp, side)
        return found


def inside(root: Path, path: str, allowed: Iterable[Path] | None = None) -> Path:
    """Resolve the file of an image, including links.

    Args:
        root: Folder that `path` is relative to.
        path: Path of the image.
        allowed: Folders that the file may be in, by default only `root`.

    Raises:
        PhotoError: The file is not inside of an allowed folder.
    """
    try:
        file = on_disk(root / path).resolve()
        folders = [on_disk(folder).resolve() for folder in ((root,) if allowed is None else allowed)]
    except (OSError, ValueError, RuntimeError):  # a NUL in the name, a loop of links
        raise PhotoError(path, "no such file") from None
    if not any(file != folder and file.is_relative_to(folder) for folder in folders):
        raise PhotoError(
            path,
            f"lies outside of the data folder; start the studio with {option('data', metavar='FOLDER')} to show it",
        )
    return file


def photo_urls(base: str, paths: Iterable[str]) -> list[str]:
    """URLs of the thumbnails, in order. They contain a checksum of the path, since browsers cache the images."""
    return [f"{base}/{row}/small.jpg?v={zlib.crc32(os.fsencode(path)):x}" for row, path in enumerate(paths)]


def run_url(name: str) -> str:
    """URL of a run's page."""
    return f"/runs/{quote(name, safe='')}"


def predicted(material: ReportData) -> pd.DataFrame:
    """Out-of-fold predictions as a table.

    Returns:
        Columns path, row (index in the image table), label, said (predicted class), sure (its probability) and own
        (probability of the label).
    """
    from unfreeze.core.dataset import probability_columns

    oof = material.oof
    proba = oof[probability_columns(material.classes)].to_numpy(float)
    place = {name: i for i, name in enumerate(material.classes)}
    rows = {path: i for i, path in enumerate(material.photos["path"])}
    true = [place[label] for label in oof["label"]]
    return pd.DataFrame(
        {
            "path": oof["path"].to_numpy(),
            "row": [rows[path] for path in oof["path"]],
            "label": oof["label"].to_numpy(),
            "said": [material.classes[i] for i in proba.argmax(1)],
            "sure": proba.max(1),
            "own": proba[range(len(true)), true],
        }
    )


def _whole(run: Path) -> ReportData:
    try:
        return read_run(run)
    except (ValueError, KeyError, TypeError) as error:  # readable files with unexpected content
        raise RunError(f"{run}: is damaged ({error}); fit the run again with {option('force', True)}.") from None


def stamp(file: Path) -> int:
    """Modification time of a file in nanoseconds, 0 if it does not exist."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def _key(path: Path) -> str:
    return stable_hash(str(path.resolve()))[:10]


def _source_path(written: str, root: str) -> Path | None:
    """Path of a run's data set: the one in its recipe if it is valid, otherwise the recorded root folder."""
    base = Path(root) if root else None
    for path in (on_disk(Path(written).expanduser()), on_disk(base) if base else None):
        # A relative path may refer to another working directory; it must agree with the recorded root.
        if path and str(path) and path.exists():
            whole = path.resolve()
            if Path(written).is_absolute() or base is None or _related(whole, base.resolve()):
                return whole
    return None


def _related(path: Path, root: Path) -> bool:
    return path == root or path.is_relative_to(root) or root.is_relative_to(path)
