"""The Python API: what functions accept, how they refuse the rest, and how messages name arguments."""

from __future__ import annotations

import ast
import builtins
import re
from pathlib import Path

import pandas as pd
import pytest

import unfreeze as uf
from commandline import run_cli
from photosets import GROUP_REGEX, class_folders, table

SOURCE = Path(uf.__file__).parent
WORDS = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
QUICK = uf.Recipe(
    strategy="probe",
    folds={"n_splits": 3},
    image={"size": 64},
    probe={"stages": "last:1", "pool_size": 1, "views": ("plain",)},
)
# Whole commands to be typed into a shell, arguments of other programs, and what takes options apart.
COMMANDS = {
    "core/messages.py",
    "data/face_detectors.py",  # pip
    "analysis/diagnose/exported_file.py",
    "reports/section_mistakes.py",
    "server/review.py",
    "server/studio/job_pages.py",
    "training/crossval.py",  # git
    "analysis/diagnose/calibration.py",
    "analysis/diagnose/context.py",
    "analysis/diagnose/leakage.py",
    "analysis/diagnose/overfitting.py",
    "analysis/diagnose/preprocessing.py",
    "analysis/diagnose/shift.py",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("api") / "photos", groups=4, each=2)


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    found = pd.read_csv(table(tmp_path / "table"))
    return found.drop(columns="split")


def test_a_star_import_replaces_no_builtin() -> None:
    assert not set(uf.__all__) & set(dir(builtins))
    assert all(hasattr(uf, name) for name in uf.__all__)
    assert uf.open_run.__module__ == "unfreeze.core.runs" and not hasattr(uf, "open")


def test_read_takes_keywords(frame: pd.DataFrame, folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "table"
    photos = uf.read(frame, label="colour", group="plant", path="file", root=root)
    assert photos.classes == ("blue", "green", "red") and photos.table["group"].nunique() == 18
    assert uf.read(frame, label=["colour"], root=str(root)).classes == photos.classes
    assert len(uf.read(frame, label=("colour", "plant"), root=root).attributes) == 2
    assert uf.read(str(folder), group_regex=GROUP_REGEX).table["group"].nunique() == 12
    assert uf.read(root / "photos.csv", label="colour", split="none").table["split"].eq("train").all()
    assert uf.read(root / "photos.csv", label="colour", reader="table").table["split"].eq("test").any()


def test_functions_take_a_source_as_well_as_photos(frame: pd.DataFrame, folder: Path, tmp_path: Path) -> None:
    read = uf.check(uf.read(folder, group_regex=GROUP_REGEX))
    for given in (folder, str(folder)):
        pd.testing.assert_frame_equal(uf.check(given, group_regex=GROUP_REGEX).table, read.table)
    assert len(uf.check(frame, label="colour", root=tmp_path / "table")) == len(frame)
    run = uf.fit(folder, QUICK, tmp_path / "run", group_regex=GROUP_REGEX)
    assert run.recipe.source.path == str(folder) and run.recipe.source.group_regex == GROUP_REGEX
    again = uf.fit(uf.read(folder, group_regex=GROUP_REGEX), QUICK, tmp_path / "other")
    pd.testing.assert_frame_equal(run.predictions(), again.predictions())
    tabled = uf.fit(frame, QUICK, tmp_path / "frame", label="colour", group="plant", root=tmp_path / "table")
    assert tabled.recipe.source.group == "plant" and not tabled.recipe.source.path
    page = uf.write_data_report(folder, tmp_path / "eda.html", group_regex=GROUP_REGEX)
    assert page.stat().st_size > 10_000
    short = {"Run": run, "ImageDataset": read, "Scores": run.scores(), "Recipe": run.recipe, "Classifier": uf.load(run)}
    for name, one in short.items():
        assert repr(one).startswith(f"{name}(") and len(repr(one)) < 400 and "\n" not in repr(one), name
    assert repr(uf.Recipe()) == "Recipe()" and "macro F1" in repr(run.scores())


WRONG = [
    ("read", (None,), "source: NoneType"),
    ("read", (3,), "a folder or table as a path, or a DataFrame"),
    ("read", (["a.jpg"],), "source: list"),
    ("fit", (3,), "photos: int"),
    ("fit", (["photos"],), "ImageDataset of uf.read"),
    ("fit", ("photos", "probe"), "recipe: str"),
    ("check", (None,), "photos: NoneType"),
    ("check", ({},), "photos: dict"),
    ("recommend", (b"photos",), "photos: bytes"),
    ("recommend", ("photos", {}), "recipe: dict"),
    ("tune", (3,), "photos: int"),
    ("compare", (3,), "what: int"),
    ("compare", ("photos", {"a": "probe"}), "recipe: str"),
    ("compare_balance", (3,), "photos: int"),
    ("compare_labels", (3,), "photos: int"),
    ("compare_datasets", ("photos", 3), "test: int"),
    ("face_stats", (3,), "photos: int"),
    ("write_data_report", (3,), "photos: int"),
    ("recipe_grid", ("probe", {}), "recipe: str"),
    ("open_run", (3,), "run: int"),
    ("load", (None,), "run: NoneType"),
    ("load", ([],), "run: list"),
    ("load", ({"a": 1},), "run: dict"),
    ("compare_variants", (None,), "run: NoneType"),
    ("label_issues", (None,), "run: NoneType"),
    ("diagnose", (None,), "run: NoneType"),
    ("export", (3,), "run: int"),
    ("explain", (3, "a.jpg"), "run: int"),
    ("review", (3,), "run: int"),
    ("serve", (3,), "run: int"),
    ("write_report", (3,), "run: int"),
]


@pytest.mark.parametrize(("name", "arguments", "said"), WRONG)
def test_a_wrong_type_is_refused_by_name(name: str, arguments: tuple[object, ...], said: str) -> None:
    with pytest.raises(TypeError, match=re.escape(said)) as told:
        getattr(uf, name)(*arguments)
    assert isinstance(told.value, uf.UnfreezeError) and "Give" in str(told.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lable": "x"}, "no argument 'lable'. Did you mean 'label'"),
        ({"label": 3}, "label: int"),
        ({"label": ["a", 3]}, "label: list"),
        ({"group": 3}, "group: int"),
        ({"root": b"x"}, "root: bytes"),
    ],
)
def test_a_wrong_keyword_is_refused(folder: Path, given: dict[str, object], said: str) -> None:
    for function in (uf.read, uf.check, uf.fit):
        with pytest.raises(TypeError, match=re.escape(said)):
            function(folder, **given)
    with pytest.raises(uf.UnfreezeError, match="read already"):
        uf.check(uf.read(folder), group_regex=GROUP_REGEX)


def test_a_recipe_is_refused_as_our_own_error() -> None:
    for given, said in (
        ({"epochs": 3}, r"unknown key 'epochs'\. Did you mean 'train\.epochs'"),
        ({"strategy": "prob"}, "strategy = 'prob'"),
        ({"image": {"sise": 64}}, r"unknown key 'image\.sise'\. Did you mean 'image\.size'"),
        ({"folds": 3}, "folds = 3"),
    ):
        with pytest.raises(uf.UnfreezeError, match=said) as told:
            uf.Recipe(**given)
        assert type(told.value).__name__ == "RecipeError" and "\n" not in str(told.value)


BOTH = [
    (["--label", "x"], {"label": "x"}, "--label", "label="),
    (["--path", "x"], {"path": "x"}, "--path", "path="),
    (["--group", "x"], {"group": "x"}, "--group-regex", "group_regex="),
    (["--group-regex", "("], {"group_regex": "("}, "--group-regex (:", "group_regex='(':"),
    (["--root", "x"], {"root": "x"}, "--root", "root="),
    (["--group", "x", "--group-regex", "y"], {"group": "x", "group_regex": "y"}, "--group and", "group= and"),
]


@pytest.mark.parametrize(("options", "given", "command", "python"), BOTH)
def test_messages_name_what_the_caller_typed(
    folder: Path, options: list[str], given: dict[str, str], command: str, python: str
) -> None:
    said = run_cli("check", folder, *options).complaint
    assert command in said
    with pytest.raises(uf.UnfreezeError) as told:
        uf.check(folder, **given)
    assert python in str(told.value) and not WORDS.search(str(told.value))


def test_no_message_names_an_option_by_itself() -> None:
    """Outside of the command line, an option stands in a text only through `core.interface`."""
    found = []
    for file in sorted(SOURCE.rglob("*.py")):
        name = file.relative_to(SOURCE).as_posix()
        text = file.read_text("utf-8")
        if name.startswith("cli/") or name in COMMANDS or not WORDS.search(text):
            continue
        tree = ast.parse(text)
        told = {id(one) for call in ast.walk(tree) if _is_wording(call) for one in ast.walk(call)}
        told |= {id(node.body[0].value) for node in ast.walk(tree) if _is_documented(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
                found += [f"{name}:{node.lineno}: {word}" for word in WORDS.findall(node.value)]
    assert not found, "\n".join(found)


def _is_wording(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "wording"


def _is_documented(node: ast.AST) -> bool:
    body = getattr(node, "body", None)
    return bool(
        isinstance(body, list)
        and body
        and isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
        and isinstance(body[0].value.value, str)
    )
