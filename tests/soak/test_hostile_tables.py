"""Tables, recipes, weights and run folders that lie: a line that says so, nothing executed, nothing read elsewhere."""

from __future__ import annotations

import csv
import io
import json
import pickle
import re
import shutil
import struct
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commandline import run_cli
from fuzzing import fuzzed
from hostile import CLASSES, NAMES
from photosets import draw, table
from unfreeze.core.corrections import Correction, append_correction, read_corrections
from unfreeze.core.errors import BackboneError, RecipeError, SourceError, UnfreezeError
from unfreeze.core.files import escape_formula, unescape_formula, write_csv
from unfreeze.core.recipe import MOST_SEED, Recipe, parse_overrides, read_recipe
from unfreeze.core.recipe_schema import Source
from unfreeze.core.runs import Run
from unfreeze.data import text_table
from unfreeze.data.list_images import list_images
from unfreeze.data.readers import read
from unfreeze.inference.submission import write_submission


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(b"x")
    return tmp_path


def written(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


# Tables that are read


def test_a_million_columns_are_refused_at_once(folder: Path) -> None:
    many = ",".join(f"c{i}" for i in range(1_000_000))
    source = written(folder, f"file,label,{many}\n0.jpg,a\n1.jpg,b\n")
    began = time.process_time()
    with pytest.raises(SourceError, match="1,000,001 columns exceed the limit"):
        read(source)
    assert time.process_time() - began < 10
    some = [f"c{i}" for i in range(9_000)]
    frame = pd.DataFrame([["0.jpg", "a", *some], ["1.jpg", "b", *some]], columns=["file", "label", *some])
    began = time.process_time()
    assert len(read(frame, Source(root=str(folder), path_column="file"))) == 2
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("file,label\n0.jpg,a\n1.jpg,b\n".encode("utf-16")[:-1], "not UTF-8"),
        ("file,label\n0.jpg,a\n1.jpg,b\n".encode("utf-32-le"), "no column|not UTF-8|no rows|not a valid"),
        (b'file,label\n0.jpg,"a\n1.jpg,b\n' + b"x,y\n" * 9, "not a valid CSV"),
        (b"file;label\n0.jpg,a\n1.jpg,b\n", "no column holds|not a valid CSV|is empty in"),
        (b"file,label\n0.jpg\0,a\n1.jpg,b\n", "no such file"),
        (b"\0" * 500, "no column|not a valid|empty|no rows"),
        (b"file,label\n" + b'"' * 99_999 + b"\n", "not a valid CSV|no column holds"),
    ],
    ids=["utf-16", "utf-32", "open quote", "mixed", "nul", "only nul", "quotes"],
)
def test_tables_that_are_none(folder: Path, content: bytes, said: str) -> None:
    with pytest.raises(SourceError, match=said) as told:
        read(written(folder, content))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "path", ["../../../../etc/passwd", "/etc/passwd", "..\\..\\etc\\passwd", "./../0.jpg", "//etc/x"]
)
def test_no_path_leaves_the_root(folder: Path, path: str) -> None:
    inner = folder / "inner"
    inner.mkdir()
    shutil.copy(folder / "0.jpg", inner)
    with pytest.raises(SourceError, match=r"outside of|no such file"):
        read(written(inner, f"file,label\n0.jpg,a\n{path},b\n"), Source(path_column="file"))
    listed = written(inner, f"file\n0.jpg\n{path}\n")
    for root in ("", str(inner)):
        try:
            base, names = list_images(listed, Source(path_column="file", root=root))
        except SourceError as error:
            assert re.search("outside of|no such file", str(error))
        else:  # a path of no file stays, as an error row of the prediction
            assert not (base / names[1]).exists()


def test_a_parquet_of_many_rows_is_not_unpacked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pd.DataFrame({"file": ["0.jpg"] * 5_000_000, "label": "a"}).to_parquet(folder / "t.parquet")
    assert (folder / "t.parquet").stat().st_size < 1_000_000
    monkeypatch.setattr(text_table, "MAX_ROWS", 4_999_999)
    with pytest.raises(SourceError, match="5,000,000 rows exceed the limit for a table"):
        read(folder / "t.parquet")


@pytest.mark.parametrize("told", ["{}", "[]", '{"index_columns": ["nope"], "columns": []}', "[" * 100_000])
def test_a_parquet_that_lies_about_itself(folder: Path, told: str) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    lying = pa.table({"file": ["0.jpg", "1.jpg"], "label": ["a", "b"]}).replace_schema_metadata({"pandas": told})
    parquet.write_table(lying, folder / "t.parquet")
    with pytest.raises(SourceError, match="not a valid Parquet file"):
        read(folder / "t.parquet")


# Tables that are written: what is right for each


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_bytes().decode("utf-8"), newline="")))


@fuzzed
@given(
    st.lists(
        st.tuples(st.text(max_size=8), st.sampled_from([*NAMES, "-1", "+2.5e3", "''", "'=", "-", "=1"])), min_size=1
    )
)
def test_a_table_for_people_holds_no_formula_and_loses_no_name(cells: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        frame = pd.DataFrame(cells, columns=["a", "b"]).assign(n=-1.5)
        frame = frame[~frame.map(lambda one: isinstance(one, str) and "\0" in one).any(axis=1)]
        found = rows_of(write_csv(Path(name) / "t.csv", frame))
        assert [(unescape_formula(row["a"]), unescape_formula(row["b"]), row["n"]) for row in found] == [
            (a, b, "-1.5") for a, b in zip(frame["a"], frame["b"], strict=True)
        ]
        for row in found:
            for cell in (row["a"], row["b"]):
                assert not cell.startswith(("=", "@", "\t", "\r")) and (
                    cell[:1] not in "+-" or not cell or _number(cell)
                )
        exact = rows_of(write_csv(Path(name) / "e.csv", frame, exact=True))
        assert [(row["a"], row["b"]) for row in exact] == list(zip(frame["a"], frame["b"], strict=True))


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def test_guarding_is_undone() -> None:
    for text in ("=1", "'=1", "''", "'", "-1", "-1a", "+", "a", "", "\ta", "@x", "=cmd|' /C calc'!A0"):
        assert unescape_formula(escape_formula(text)) == text
    assert (escape_formula("-1"), escape_formula("-1+1"), escape_formula("1")) == ("'-1", "'-1+1", "1")


def test_a_plain_number_in_a_table_stays_one(tmp_path: Path) -> None:
    """Classes may be called -1 and +1.5; a sum of them is a formula."""
    told = write_csv(tmp_path / "t.csv", pd.DataFrame({"label": ["-1", "+1.5", "-1+1", "1"]})).read_text()
    assert told.split() == ["label", "-1", "+1.5", "'-1+1", "1"]


def test_a_submission_holds_the_templates_ids_to_the_letter(tmp_path: Path) -> None:
    ids = ["=1+1.jpg", "+cmd.jpg", "-rf.jpg", "@SUM(A1).jpg", "return\rand.jpg", 'a,"b".jpg']
    with (tmp_path / "info.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["ImageID", "ans"], *((i, "") for i in ids)])
    predictions = pd.DataFrame({"path": ids, "label": ["=a", "-1"] * 3})
    write_submission(predictions, tmp_path / "info.csv", tmp_path / "out.csv", ("=a", "-1"), ("=a", "-1"))
    assert [(row["ImageID"], row["ans"]) for row in rows_of(tmp_path / "out.csv")] == list(
        zip(ids, ["=a", "-1"] * 3, strict=True)
    )


@pytest.fixture(scope="module")
def run(run_of_24: Run) -> Run:
    return run_of_24


def test_predictions_are_safe_as_csv_and_exact_as_parquet(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    names = sorted(name for name in NAMES if not name.startswith("."))
    (tmp_path / "new").mkdir()
    for name in names:
        draw(0, 1, 1).save(tmp_path / "new" / name, "JPEG")
    for out in ("p.csv", "p.parquet"):
        assert run_cli("predict", run.path, "new", "--out", out).code == 0
    found = [row["path"] for row in rows_of(tmp_path / "p.csv")]
    assert [unescape_formula(path) for path in found] == names == list(pd.read_parquet("p.parquet")["path"])
    assert {"'=1+1.jpg", "'+cmd.jpg", "'-rf.jpg", "'@SUM(A1).jpg"} <= set(found)
    assert run_cli("label-issues", run.path, "--out", "s.csv").code == 0


# Corrections, by the header that a person wrote


@pytest.mark.parametrize("header", ["path,action", "action;path;label", "timestamp\tlabel\taction\tpath\tnote"])
def test_a_correction_goes_under_the_columns_that_are_there(header: str, tmp_path: Path) -> None:
    """It used to go in our order and with commas, after which the file could not be read any more."""
    file = tmp_path / "mine.csv"
    file.write_text(header + "\n")
    append_correction(file, Correction("=a.jpg", "1", "keep"))
    append_correction(file, Correction("b,c;d.jpg", "2", "exclude"))
    assert [(v.path, v.action) for v in read_corrections(file)[0]] == [("=a.jpg", "keep"), ("b,c;d.jpg", "exclude")]
    if "label" not in header:
        before = file.read_bytes()
        with pytest.raises(UnfreezeError, match="no column 'label'"):
            append_correction(file, Correction("e.jpg", "3", "relabel", "red"))
        assert file.read_bytes() == before


# Recipes


def test_recipes_that_are_bombs(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    for text in ("a=" + "[" * 100_000, "a=" + "{a=" * 50_000, "seed = " + "9" * 5000, "seed = 0x" + "f" * 9000):
        file.write_text(text)
        with pytest.raises(RecipeError) as told:
            read_recipe(file)
        assert len(str(told.value)) < 500 and "\n" not in str(told.value)
    file.write_text('backbone = "' + "x" * 900_000 + '"\nseed = -1\n')
    with pytest.raises(RecipeError, match="seed = -1"):
        read_recipe(file)
    with pytest.raises(RecipeError) as told:
        Recipe().replace(**parse_overrides(["image.size=" + "[" * 50_000]))
    assert len(str(told.value)) < 500
    with pytest.raises(RecipeError, match=r"source\.path.*not valid UTF-8"):
        Recipe().replace(**{"source.path": "\udcff"})
    with pytest.raises(RecipeError, match=r"train\.patience"):
        Recipe().replace(**{"train.patience": 1 << 70})


def test_the_largest_seed_is_one_that_everything_takes() -> None:
    import torch
    from sklearn.utils import check_random_state

    torch.Generator().manual_seed(MOST_SEED)
    check_random_state(MOST_SEED)
    np.random.default_rng([MOST_SEED, 1])
    assert Recipe().replace(seed=MOST_SEED).seed == MOST_SEED
    with pytest.raises(RecipeError, match="seed"):
        Recipe().replace(seed=MOST_SEED + 1)


# Weights


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def _npy(path: Path, evil: Evil) -> None:
    np.save(path, np.array([evil], object), allow_pickle=True)


def _joblib(path: Path, evil: Evil) -> None:
    pytest.importorskip("joblib").dump({"w": evil}, path)


def _zipped(path: Path, evil: Evil) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"w": evil}, 2))
        file.writestr("archive/version", "3")


def _torchscript(path: Path, evil: Evil) -> None:
    """As a scripted module is stored: code beside the pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", pickle.dumps({"w": evil}, 2))
        file.writestr("m/constants.pkl", pickle.dumps((evil,), 2))
        file.writestr("m/code/__torch__.py", "import os\nos.mknod('executed')\n")
        file.writestr("m/version", "3")


HEADER = json.dumps({"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [9**9], "data_offsets": [0, 8]}})
WEIGHTS: dict[str, Callable[[Path, Evil], object]] = {
    "w.pt": lambda path, evil: path.write_bytes(pickle.dumps(evil)),
    "w.pth": _zipped,
    "w.bin": lambda path, evil: path.write_bytes(pickle.dumps({"state_dict": {"w": evil}})),
    "w.ckpt": _torchscript,
    "w.npy": _npy,
    "w.joblib": _joblib,
    "w.safetensors": lambda path, evil: path.write_bytes(pickle.dumps(evil)),
    "v.safetensors": lambda path, evil: path.write_bytes(struct.pack("<Q", len(HEADER)) + HEADER.encode() + bytes(8)),
    "x.safetensors": lambda path, evil: path.write_bytes(struct.pack("<Q", 2**63) + b"{}"),
}


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_weights_are_refused_and_nothing_in_them_runs(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    from unfreeze.models.checkpoints import read_tensors

    monkeypatch.chdir(tmp_path)
    WEIGHTS[name](tmp_path / name, Evil(tmp_path / "executed"))
    with pytest.raises(BackboneError) as told:
        read_tensors(tmp_path / name)
    assert name in str(told.value) and "\n" not in str(told.value)
    answer = run_cli("inspect", "test_resnet", "--weights", name)
    assert answer.code == 2 and name in answer.complaint
    assert not (tmp_path / "executed").exists()
    evil = pickle.dumps(Evil(tmp_path / "made"))
    pickle.loads(evil)
    assert (tmp_path / "made").exists(), "unpickled, it would have run"


@pytest.mark.parametrize(
    "name", ["hf-hub:evil/model", "local-dir:/tmp/x", "../../etc/passwd", "timm/hf-hub:evil/model"]
)
def test_a_backbone_is_a_name_of_a_list_and_no_address(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    answer = run_cli("inspect", name)
    assert answer.code == 2 and "backbone" in answer.complaint
    assert not list(tmp_path.iterdir())


# A run folder that somebody has changed


SCRIPT = "<script>window.hit=1</script>"
CHANGES: dict[str, list[Any]] = {
    "root": [None, 5, ["/"], "\ud800"],
    "classes": [None, "red", ["red"], ["red", "red", "blue"], [1, 2, 3], {}],
    "answers": [None, [], ["a"], [None, None, None]],
    "attributes": [None, "label", [1]],
    "status": [None, 5, []],
    "format": [None, "1", 99, 1.5],
}


@pytest.mark.soak
@pytest.mark.parametrize("key", sorted(CHANGES))
def test_a_changed_run_json_is_reported_in_a_line(key: str, run: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    for value in CHANGES[key]:
        (copy / "run.json").write_text(json.dumps({**run.info, key: value}))
        for words in (["scores", copy], ["report", copy], ["predict", copy, run.info["root"]], ["label-issues", copy]):
            answer = run_cli(*words)
            assert answer.code == 2 and "run" in answer.complaint, (key, value, words)
        assert run_cli("runs", tmp_path).code == 0


ONE = {"value": 1.0, "low": 0.0, "high": 1.0}


def _without(name: str) -> Callable[[Any], Any]:
    return lambda held: {key: value for key, value in held.items() if key != name}


@pytest.mark.soak
@pytest.mark.parametrize(
    "change",
    [
        *(lambda held, value=value: value for value in (None, [], {}, "x", 5, {"out_of_fold": []})),
        _without("out_of_fold"),
        *(
            lambda held, name=name: {**held, "out_of_fold": _without(name)(held["out_of_fold"])}
            for name in ("accuracy", "macro_f1", "log_loss", "ece", "chance", "per_class", "photos")
        ),
        lambda held: {
            **held,
            "out_of_fold": {**held["out_of_fold"], "accuracy": {"value": SCRIPT, "low": 0, "high": 1}},
        },
        lambda held: {**held, "test": {}},
    ],
)
def test_changed_scores_are_reported_in_a_line(change: Callable[[Any], Any], run: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    (copy / "scores.json").write_text(json.dumps(change(json.loads((copy / "scores.json").read_text()))))
    answer = run_cli("scores", copy)
    assert answer.code == 2 and "scores.json" in answer.complaint
    assert run_cli("runs", tmp_path).code == 0


@pytest.mark.soak
@pytest.mark.parametrize("name", ["oof.parquet", "photos.parquet"])
@pytest.mark.parametrize("column", ["path", "label", "fold", "p_red"])
def test_changed_tables_are_reported_in_a_line(name: str, column: str, run: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    whole = pd.read_parquet(copy / name)
    if column not in whole:
        pytest.skip("not a column of this table")
    changed = [whole.drop(columns=column), whole.iloc[:0], whole.assign(**{column: [[1]] * len(whole)})]
    changed += [whole.assign(**{column: SCRIPT})] if column != "path" else []
    for frame in changed:
        frame.to_parquet(copy / name)
        for words in (["report", copy], ["label-issues", copy], ["scores", copy, "--by-group"], ["diagnose", copy]):
            answer = run_cli(*words)
            assert answer.code in (0, 2) and "Traceback" not in answer.err, (column, words)
            if answer.code == 2:
                assert answer.complaint
        if (copy / "report.html").exists():
            assert SCRIPT not in (copy / "report.html").read_text()
            (copy / "report.html").unlink()


@pytest.mark.soak
def test_a_table_may_name_a_label_as_the_run_names_its_own_columns(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    source = table(tmp_path / "plants")
    text = source.read_text()
    for name in ("hash", "unit", "width", "fold", "p_red", "error", CLASSES[0].replace(",", "")):
        source.write_text(text.replace("colour", name, 1).replace("plant", "group", 1))
        words = ["--strategy", "probe", "--quality", "fast", "--folds", "2", "--set", "engine=openvino-f32"]
        answer = run_cli("fit", source, "--label", name, *words, "--run", "run", "--force")
        assert answer.code == 0 and "Traceback" not in answer.err, answer.err
        photos = pd.read_parquet("run/photos.parquet")
        assert set(photos["label"]) == {"red", "green", "blue"} and photos["hash"].str.fullmatch("[0-9a-f]{8,}").all()
        assert photos["width"].eq(48).all()


def test_a_parquet_whose_text_is_not_utf8_is_reported_at_once(folder: Path) -> None:
    pd.DataFrame({"file": ["0.jpg", "1.jpg"], "label": ["aaaa", "bbbb"]}).to_parquet(
        folder / "t.parquet", compression=None
    )
    whole = (folder / "t.parquet").read_bytes()
    (folder / "t.parquet").write_bytes(whole.replace(b"aaaa", b"\xff\xfe\x80a"))
    with pytest.raises(SourceError, match="not a valid Parquet file"):
        read(folder / "t.parquet", Source(path_column="file"))
