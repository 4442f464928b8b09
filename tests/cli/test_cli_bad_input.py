"""Whatever people get wrong ends in one line that names it and says what to do, and leaves nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from commandline import Answer, leftovers
from photosets import CLASSES, class_folders, draw, table

Cli = Callable[..., Answer]


# A source's name -> how it is made below a folder, the options, and the words that the complaint must hold.
def _empty(root: Path) -> tuple[Path, list[str], list[str]]:
    root.mkdir()
    return root, [], ["no photos found", "class folders"]


def _only_hidden(root: Path) -> tuple[Path, list[str], list[str]]:
    (root / "a").mkdir(parents=True)
    (root / "a" / "._x.jpg").write_bytes(b"x")
    return root, [], ["no photos found", "hidden"]


def _one_class(root: Path) -> tuple[Path, list[str], list[str]]:
    return class_folders(root, 3, 2, ("red",)), [], ["needs at least two classes", "'red'"]


def _one_group(root: Path) -> tuple[Path, list[str], list[str]]:
    class_folders(root, 4, 2)
    (root / "white").mkdir()
    draw(0, 99, 0).save(root / "white" / "g999_0.jpg")
    return root, ["--folds", "2"], ["white has only one group", "add photos"]


def _more_folds_than_groups(root: Path) -> tuple[Path, list[str], list[str]]:
    return class_folders(root, 4, 1), ["--folds", "5"], ["5 folds", "--folds 4"]


def _no_column(root: Path) -> tuple[Path, list[str], list[str]]:
    return table(root), ["--label", "color"], ["photos.csv: no column 'color'", "Did you mean 'colour'?"]


def _gone(root: Path) -> tuple[Path, list[str], list[str]]:
    source = table(root)
    source.write_text(source.read_text() + "".join(f"nothing{i}.jpg,red,x,train\n" for i in range(7)))
    return (
        source,
        ["--label", "colour"],
        ["photos.csv", "7 of 43", "nothing0.jpg", "nothing4.jpg and 2 more", "--root DIR"],
    )


def _escaping(root: Path) -> tuple[Path, list[str], list[str]]:
    source = table(root)
    draw(0, 0, 0).save(root.parent / "outside.jpg")
    source.write_text(source.read_text() + "../outside.jpg,red,x,train\n")
    return source, ["--label", "colour"], ["photos.csv", "../outside.jpg", "--root /"]


def _contradicting(root: Path) -> tuple[Path, list[str], list[str]]:
    source = table(root)
    source.write_text(source.read_text() + "red-0-0.jpg,blue,red0,train\n")
    return source, ["--label", "colour"], ["photos.csv", "different labels", "red-0-0.jpg", "Keep one row"]


def _no_file(root: Path) -> tuple[Path, list[str], list[str]]:
    return root / "nowhere", [], ["nowhere: no such folder or file", "spelling"]


def _not_a_table(root: Path) -> tuple[Path, list[str], list[str]]:
    root.mkdir()
    (root / "notes.doc").write_text("x")
    return root / "notes.doc", [], ["notes.doc", "CSV"]


def _binary_csv(root: Path) -> tuple[Path, list[str], list[str]]:
    root.mkdir()
    (root / "photos.csv").write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256)))
    return root / "photos.csv", [], ["photos.csv", "UTF-8"]


def _all_corrupt(root: Path) -> tuple[Path, list[str], list[str]]:
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(4):
            (root / name / f"g{i}.jpg").write_bytes(b"not a photo")
    return root, ["--folds", "2"], ["no training photo can be read", "unfreeze check"]


def _bad_regex(root: Path) -> tuple[Path, list[str], list[str]]:
    return class_folders(root, 3), ["--group-regex", "(?P<group>["], ["--group-regex", "not a valid pattern"]


SOURCES = [
    _empty,
    _only_hidden,
    _one_class,
    _one_group,
    _more_folds_than_groups,
    _no_column,
    _gone,
    _escaping,
    _contradicting,
    _no_file,
    _not_a_table,
    _binary_csv,
    _all_corrupt,
    _bad_regex,
]


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__.strip("_"))
def test_a_bad_source_is_one_line_and_leaves_no_run(make: Callable, tmp_path: Path, cli: Cli) -> None:
    source, options, words = make(tmp_path / "source")
    answer = cli("fit", source, *options, "--quality", "fast", "--run", "runs/here")
    assert (answer.code, answer.out) == (2, "")
    for word in words:
        assert word in answer.complaint
    assert not Path("runs").exists()


OPTIONS = [
    (["--backbone", "tf_efficientnet_lite9"], ["no backbone 'tf_efficientnet_lite9'", "Did you mean", "models"]),
    (["--quality", "fats"], ["--quality fats", "Did you mean 'fast'?"]),
    (["--backend", "dask"], ["--backend dask: known are local, ray"]),
    (["--set", "image.sise=192"], ["unknown key 'image.sise'", "Did you mean 'image.size'?"]),
    (["--set", "image.size"], ["--set image.size", "key=value"]),
    (["--set", "image.size=huge"], ["image.size"]),
    (["--set", "balance.class_weight_power=nan"], ["balance.class_weight_power"]),
    (["--set", "balance.loss=focus"], ["balance.loss", "'focal'"]),
    (
        ["--set", "balance.loss=focal", "--set", "balance.class_weight_power=0.5"],
        ["balance.class_weight_power", "balance.loss=weighted"],
    ),
    (
        ["--strategy", "probe", "--set", "balance.loss=soft-f1"],
        ["balance.loss = 'soft-f1'", "partial, full or scratch"],
    ),
    (["--set", "balance.extra_views=red:flip"], ["balance.extra_views", "LABEL:PHOTOS_A_GROUP:VIEW,VIEW"]),
    (["--set", "balance.extra_views=red:3:rotat+10"], ["there is no view 'rotat+10'", "Did you mean 'rotate'?"]),
    (["--set", "balance.extra_views=red:3:rotate"], ["rotate takes an amount", "rotate+10"]),
    (["--set", "probe.stages=first"], ["first"]),
    (["--seed", "-1"], ["seed"]),
    (["--folds", "1"], ["folds.n_splits"]),
    (["--folds", "many"], ["--folds", "--help"]),
    (["--strategy", "prob"], ["strategy", "'probe'"]),
    (["--reader", "tables"], ["no reader 'tables'", "Did you mean 'table'?"]),
    (["--reader", "competition"], ["competition", "train/train.csv"]),
    (["--group", "person"], ["--group-regex"]),
    (["--recipe", "no.toml"], ["no.toml: no such recipe file"]),
    (["--recipe", "bad.toml"], ["bad.toml: not valid TOML"]),
    (["--recipe", "strange.toml"], ["strange.toml", "unknown key 'folds.cuont'", "Did you mean 'folds.n_splits'?"]),
    (["--recipe", "."], [".: cannot be read"]),
    (["--quallity", "fast"], ["--quallity", "--quality", "unfreeze fit --help"]),
    (["--run", "bad.toml"], ["bad.toml: is a file", "--run"]),
    (["--run", "."], ["not a run", "--run"]),
    (["--run", "bad.toml/x"], ["bad.toml", "choose another folder"]),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS, ids=lambda value: " ".join(value)[:30])
def test_a_bad_option_is_one_line_and_leaves_no_run(
    options: list[str], words: list[str], photos: Path, cli: Cli
) -> None:
    Path("bad.toml").write_text("folds = [")
    Path("strange.toml").write_text("[folds]\ncuont = 3\n")
    answer = cli("fit", photos, "--quality", "fast", *options)
    assert (answer.code, answer.out) == (2, "")
    for word in words:
        assert word in answer.complaint
    assert sorted(p.name for p in Path().iterdir()) == ["bad.toml", "strange.toml"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fti", "x"], ["No such command 'fti'", "fit"]),
        (["fit"], ["Missing argument", "SOURCE", "unfreeze fit --help"]),
        (["scores"], ["Missing argument", "RUN"]),
        (["scores", "nowhere"], ["nowhere: no such run folder"]),
        (["report", "."], ["is not a run"]),
        (["predict", "nowhere", "x"], ["nowhere: no such run folder"]),
        (["predict", "nowhere", "x", "--out", "x.txt"], ["--out x.txt", ".csv or .parquet"]),
        (["predict", "nowhere", "x", "--out", "x.parquet", "--template", "t.csv"], ["--out x.parquet", ".csv"]),
        (["check", "nowhere"], ["nowhere: no such folder or file"]),
        (["check", ".", "--fail-on", "eror"], ["--fail-on eror", "Did you mean 'error'?"]),
        (["demo", "here", "--people", "3"], ["--people", "20"]),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_a_bad_command_is_one_line(arguments: list[str], words: list[str], cli: Cli) -> None:
    answer = cli(*arguments)
    assert (answer.code, answer.out) == (2, "")
    for word in words:
        assert word in answer.complaint
    assert not list(Path().iterdir())


def test_runs_of_a_folder_that_is_not_there(cli: Cli) -> None:
    answer = cli("runs", "nowhere")
    assert answer.code == 2
    assert "nowhere" in answer.complaint


def test_a_finished_run_is_kept_unless_forced(fitted: Path, fit_command: list[str], tmp_path: Path, cli: Cli) -> None:
    run = shutil.copytree(fitted, tmp_path / "run")
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}
    answer = cli(*fit_command, "--run", run)
    assert answer.code == 2
    assert "--force" in answer.complaint and str(run) in answer.complaint
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()} == before
    assert cli(*fit_command, "--run", run, "--force").code == 0


def test_a_run_of_a_newer_version(fitted: Path, photos: Path, tmp_path: Path, cli: Cli) -> None:
    run = shutil.copytree(fitted, tmp_path / "run")
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, "format": 99}))
    for command in (["scores", run], ["report", run], ["predict", run, photos], ["fit", photos, "--run", run]):
        answer = cli(*command)
        assert answer.code == 2
        assert "newer unfreeze" in answer.complaint and "pip install -U unfreeze" in answer.complaint
    assert cli("runs", tmp_path).code == 0


@pytest.mark.parametrize("name", ["run.json", "scores.json", "recipe.toml", "fold-1/head.safetensors"])
def test_a_damaged_run_says_which_file(name: str, fitted: Path, photos: Path, tmp_path: Path, cli: Cli) -> None:
    run = shutil.copytree(fitted, tmp_path / "run")
    (run / name).write_bytes(b"\x00{")
    answer = cli(*(["scores", run] if name == "scores.json" else ["predict", run, photos]))
    assert answer.code == 2
    assert name in answer.complaint
    assert not list(Path().iterdir())


def test_an_unfinished_run_says_how_to_go_on(fitted: Path, tmp_path: Path, cli: Cli) -> None:
    run = shutil.copytree(fitted, tmp_path / "run")
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, "status": "running"}))
    answer = cli("scores", run)
    assert answer.code == 2
    assert "not finished" in answer.complaint and "unfreeze fit" in answer.complaint


# --- the template -------------------------------------------------------------------------------------------------


def _template(path: Path, rows: list[str], header: str = "ImageID,ans") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        (["g000_0.jpg,0", "g000_1.jpg,0", "gone.jpg,0"], "ImageID,ans", ["gone.jpg", "without an image"]),
        (["g000_0.jpg,0"], "ImageID,ans", ["g000_1.jpg", "does not list image(s)"]),
        (["g000_0.jpg,0", "g000_0.jpg,0", "g000_1.jpg,0"], "ImageID,ans", ["repeats", "g000_0.jpg"]),
        (["g000_0.jpg,0,1", "g000_1.jpg,0,1"], "ImageID,ans,more", ["3 columns", "not a class of the run: ans, more"]),
        (["g000_0.jpg,0", "g000_1.jpg,0"], "ImageID,ans", ["expects integers", "red"]),
        (["g000_0.jpg,rot", "g000_1.jpg,red"], "ImageID,ans", ["does not contain", "blue"]),
        ([], "ImageID,ans", ["no rows"]),
    ],
    ids=["missing", "surplus", "repeated", "columns", "numbers", "words", "empty"],
)
def test_a_template_that_does_not_match(
    rows: list[str], header: str, words: list[str], fitted: Path, photos: Path, tmp_path: Path, cli: Cli
) -> None:
    images = tmp_path / "two"
    images.mkdir()
    for name in ("g000_0.jpg", "g000_1.jpg"):
        shutil.copy(photos / "red" / name, images)
    template = _template(tmp_path / "info.csv", rows, header)
    answer = cli("predict", fitted, images, "--template", template, "--out", "sub.csv")
    assert (answer.code, answer.out) == (2, "")
    for word in ["info.csv", *words]:
        assert word in answer.complaint
    assert not list(Path().iterdir())


def test_an_output_never_overwrites_its_input(fitted: Path, photos: Path, cli: Cli) -> None:
    sheet = Path("new.csv")
    sheet.write_text(f"file\n{photos}/red/g000_0.jpg\n")
    for arguments in (["--out", sheet], ["--out", sheet, "--template", sheet]):
        answer = cli("predict", fitted, sheet, "--root", "/", *arguments)
        assert answer.code == 2
        assert "overwrite its own input" in answer.complaint
    assert sheet.read_text().startswith("file\n")


# --- the disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """From now on nothing can be written under names that end like this."""

    def fill(ending: str, number: int = errno.ENOSPC) -> None:
        replace = Path.replace

        def refuse(self: Path, target: os.PathLike[str]) -> Path:
            if str(target).endswith(ending):
                raise OSError(number, os.strerror(number), str(target))
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", refuse)

    return fill


@pytest.mark.parametrize(
    "ending", ["recipe.toml", "run.json", "head.safetensors", "photos.parquet", "oof.parquet", "report.html"]
)
def test_a_full_disk_while_fitting(
    ending: str, full_disk: Callable, fit_command: list[str], fitted: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as inner:
        inner.setattr(Path, "replace", Path.replace)
        full_disk(ending)
        answer = cli(*fit_command, "--run", "here")
    assert answer.code == 2
    assert "the disk is full" in answer.complaint and ending in answer.complaint
    assert not leftovers(Path())
    monkeypatch.undo()


@pytest.mark.parametrize("ending", ["keys.npy", "rows.npy"])
def test_a_full_disk_for_the_cache(
    ending: str, full_disk: Callable, fit_command: list[str], cli: Cli, fresh_cache: Path
) -> None:
    full_disk(ending)
    answer = cli(*fit_command, "--run", "here")
    assert answer.code == 2
    assert "the disk is full" in answer.complaint and str(fresh_cache) in answer.complaint
    assert not Path("here").exists()
    assert not leftovers(fresh_cache)


def test_a_full_disk_while_predicting(full_disk: Callable, fitted: Path, photos: Path, cli: Cli) -> None:
    full_disk("p.csv")
    answer = cli("predict", fitted, photos, "--out", "p.csv")
    assert answer.code == 2
    assert "p.csv: the disk is full" in answer.complaint
    assert not list(Path().iterdir())


def test_a_read_only_folder(fit_command: list[str], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = Path.mkdir

    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        if self.name == "here":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    answer = cli(*fit_command, "--run", "here")
    assert answer.code == 2
    assert "here: the file system is read-only; choose another folder" in answer.complaint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(fit_command: list[str], fitted: Path, photos: Path, cli: Cli) -> None:
    Path("locked").mkdir(mode=0o555)
    for command in ([*fit_command, "--run", "locked/run"], ["predict", fitted, photos, "--out", "locked/p.csv"]):
        answer = cli(*command)
        assert answer.code == 2
        assert "no permission" in answer.complaint


def test_an_unreadable_cache_is_made_again(
    fit_command: list[str], fitted: Path, cache_folder: Path, fresh_cache: Path, cli: Cli
) -> None:
    shutil.copytree(cache_folder, fresh_cache)
    for file in fresh_cache.glob("*/*/*.npy"):
        file.write_bytes(b"damaged")
    answer = cli(*fit_command, "--run", "here")
    assert answer.code == 0
    assert "unreadable" in answer.err and "recomputed" in answer.err
    pd.testing.assert_frame_equal(pd.read_parquet("here/oof.parquet"), pd.read_parquet(fitted / "oof.parquet"))
    assert "unreadable" not in cli(*fit_command, "--run", "there").err


def test_a_cache_that_is_a_file(
    fit_command: list[str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("UNFREEZE_CACHE", str(tmp_path / "file"))
    answer = cli(*fit_command, "--run", "here")
    assert answer.code == 2
    assert str(tmp_path / "file") in answer.complaint
    assert not Path("here").exists()
