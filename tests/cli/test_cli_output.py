"""What commands print and write: JSON alone under --json, plain text off a terminal, narrow terminals, predictions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import unfreeze as uf
from commandline import Answer
from photosets import CLASSES, GROUP_REGEX, class_folders, draw, table
from unfreeze.cli import console

Cli = Callable[..., Answer]


def installed(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "unfreeze.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)


# --- JSON ---------------------------------------------------------------------------------------------------------


def test_json_and_nothing_else(fitted: Path, photos: Path, fit_command: list[str], cli: Cli, fresh_cache: Path) -> None:
    for command in (
        ["check", photos],
        ["scores", fitted],
        ["runs", fitted.parent],
        ["models"],
        ["cache"],
        ["cache", "--clear"],
    ):
        answer = cli(*command, "--json")
        assert answer.code == 0
        json.loads(answer.out)
        assert answer.err == ""


def test_json_of_fit_and_predict(fitted: Path, photos: Path, fit_command: list[str], cli: Cli) -> None:
    answer = cli(*fit_command, "--run", "here", "--random-split-baseline", "--json")
    assert (answer.code, answer.err) == (0, "")
    said = json.loads(answer.out)
    assert said["run"] == "here" and Path(said["report"]).is_file()
    assert said["macro_f1"] == uf.open_run(fitted).scores()["macro_f1"]
    assert {"accuracy", "macro_f1"} <= set(said["random_split"])
    answer = cli("predict", "here", photos, "--json")
    assert (answer.code, answer.err) == (0, "")
    said = json.loads(answer.out)
    assert (said["photos"], said["errors"], said["out"]) == (72, 0, "predictions.csv")
    assert sum(said["labels"].values()) == 72


def test_json_of_names_that_are_not_ascii_on_an_ascii_terminal(tmp_path: Path) -> None:
    class_folders(tmp_path / "Fotos", 2, 1, ("grün", "bläu", "日本"))
    done = installed("check", tmp_path / "Fotos", "--json", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert any("grün" in finding["message"] for finding in json.loads(done.stdout)["findings"])
    assert installed("check", tmp_path / "Fotos", PYTHONIOENCODING="ascii").returncode == 0


# --- the terminal -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["20", "40", "80", "120"])
def test_no_width_breaks_or_cuts(columns: str, fitted: Path, photos: Path, cli: Cli, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for command in (["scores", fitted], ["runs", fitted.parent], ["models"], ["cache"], ["check", photos]):
        answer = cli(*command)
        assert answer.code == 0
        assert "\x1b" not in answer.out + answer.err
        assert "…" not in answer.out
    said = cli("scores", fitted).out
    f1 = uf.open_run(fitted).scores()["macro_f1"]
    assert console.format_estimate(f1) in said
    assert "always" in said and "Next: unfreeze report" in said


def test_a_pipe_is_not_folded_at_80_columns(fitted: Path, tmp_path: Path, cli: Cli, monkeypatch) -> None:
    monkeypatch.delenv("COLUMNS")
    name = "a-run-with-a-name-that-is-as-long-as-names-of-photo-folders-can-become"
    shutil.copytree(fitted, tmp_path / "runs" / name)
    assert str(tmp_path / "runs" / name) in cli("runs", tmp_path / "runs").out


def test_a_pipe_gets_whole_tables(fitted: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    program = (
        "from unfreeze.cli import console\n"
        "console.show('T', ['a', 'b', 'c'], [['x' * 39, 'word ' * 8, '0.558 [0.433, 0.650]']] * 2, ['c'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert sum(line.endswith("0.558 [0.433, 0.650]") and "x" * 39 in line for line in lines) == 2


@pytest.mark.parametrize("narrow", ["40", "100"])
def test_help_is_whole(narrow: str) -> None:
    said = installed("fit", "--help", COLUMNS=narrow)
    assert said.returncode == 0
    assert "…" not in said.stdout
    for word in ("--group-regex", "--random-split-baseline", "(?P<group>", "<source>-<strategy>-<mark>"):
        assert word in "".join(said.stdout.split()).replace("│", "")


def test_plain_text_off_a_terminal(photos: Path, fitted: Path) -> None:
    for environment in ({}, {"NO_COLOR": "1"}):
        done = installed("check", photos, **environment)
        assert "\x1b" not in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"Next: unfreeze fit {photos}"


def test_no_color_on_a_terminal(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pty = pytest.importorskip("pty")
    for colour in (False, True):
        environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
        environment |= {"TERM": "xterm-256color"} | ({} if colour else {"NO_COLOR": "1"})
        parent, child = pty.openpty()
        command = [sys.executable, "-m", "unfreeze.cli.main", "scores", str(fitted)]
        process = subprocess.Popen(command, stdout=child, stderr=child, env=environment)
        os.close(child)
        said = b""
        while True:
            try:
                piece = os.read(parent, 65536)
            except OSError:
                break
            if not piece:
                break
            said += piece
        os.close(parent)
        assert process.wait() == 0
        assert b"macro F1" in said
        # Bold and dim are no colors; a color would be 30-37, 38, 90-97.
        assert not any(f"\x1b[{code}m".encode() in said for code in (*range(30, 39), *range(90, 98))) or colour


def test_a_reader_that_leaves_early(fitted: Path) -> None:
    command = f"'{sys.executable}' -m unfreeze.cli.main scores '{fitted}' --json | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "{"
    assert "Traceback" not in done.stderr


def test_a_name_cannot_drive_the_terminal(tmp_path: Path, cli: Cli) -> None:
    class_folders(tmp_path / "p", 4, 1, ("red", "gr\x1b[31meen\x07", "[bold]blue"))
    answer = cli("check", tmp_path / "p")
    assert answer.code == 0
    assert "\x1b" not in answer.out + answer.err and "\x07" not in answer.out
    assert "[bold]blue" in answer.out


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version").out == f"unfreeze {uf.__version__}\n"
    assert cli("--help").code == 0
    bare = cli()
    assert (bare.code, bare.err) == (2, "") and "Usage" in bare.out


def test_check_names_the_fit_that_reads_alike(tmp_path: Path, cli: Cli) -> None:
    source = table(tmp_path / "a b")
    answer = cli("check", source, "--label", "colour", "--group", "plant", "--split", "none")
    last = answer.out.splitlines()[-1]
    assert last == f"Next: unfreeze fit '{source}' --label colour --group plant --split none"


def test_check_fails_on_what_was_asked(photos: Path, tmp_path: Path, cli: Cli) -> None:
    class_folders(tmp_path / "p", 1, 1)
    assert cli("check", tmp_path / "p", "--fail-on", "error").code == 1
    assert cli("check", tmp_path / "p").code == 0
    assert cli("check", photos, "--fail-on", "error").code == 0
    assert cli("check", photos, "--fail-on", "warning").code == 1  # the color of the border tells the class
    for number, name in enumerate(("one", "two")):  # nothing tells these apart
        (tmp_path / "alike" / name).mkdir(parents=True)
        for photo in range(12):
            draw(0, photo, 0, seed=number + 1).save(tmp_path / "alike" / name / f"{photo}.jpg", quality=90)
    assert cli("check", tmp_path / "alike", "--fail-on", "info").code == 0


# --- photos that cannot be read -----------------------------------------------------------------------------------


def test_a_corrupt_photo_is_a_finding_in_fit_and_a_row_in_predict(tmp_path: Path, cli: Cli) -> None:
    root = class_folders(tmp_path / "p", 6, 2)
    whole = (root / "red" / "g000_0.jpg").read_bytes()
    (root / "red" / "g077_0.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "red" / "g078_0.jpg").write_bytes(b"")
    words = ("--strategy", "probe", "--quality", "fast")
    answer = cli("fit", root, "--group-regex", GROUP_REGEX, *words, "--folds", "2", "--run", "r")
    assert answer.code == 0
    assert "g077_0.jpg" in answer.err
    findings = pd.read_json("r/findings.json")
    assert {"red/g077_0.jpg", "red/g078_0.jpg"} <= set(findings["path"])
    assert len(pd.read_parquet("r/oof.parquet")) == 36
    answer = cli("predict", "r", root)
    assert answer.code == 0
    assert "Not predicted: red/g077_0.jpg: " in answer.out
    predicted = pd.read_csv("predictions.csv").set_index("path")
    assert len(predicted) == 38
    bad = predicted.loc[["red/g077_0.jpg", "red/g078_0.jpg"]]
    assert bad["error"].notna().all() and bad["label"].isna().all() and bad["p_red"].isna().all()
    assert predicted["error"].isna().sum() == 36


# --- predictions --------------------------------------------------------------------------------------------------


def test_parquet_equals_csv(fitted: Path, photos: Path, cli: Cli) -> None:
    assert cli("predict", fitted, photos, "--out", "p.parquet").code == 0
    assert cli("predict", fitted, photos, "--out", "p.csv").code == 0
    parquet, csv = pd.read_parquet("p.parquet"), pd.read_csv("p.csv", keep_default_na=False)
    assert list(parquet.columns) == ["path", "label", *(f"p_{name}" for name in sorted(CLASSES)), "error"]
    pd.testing.assert_frame_equal(parquet, csv, check_exact=False, rtol=1e-12)
    probabilities = parquet.filter(like="p_").to_numpy()
    np.testing.assert_allclose(probabilities.sum(1), 1)
    pd.testing.assert_frame_equal(parquet, uf.load(fitted).predict(photos), check_dtype=False)


def test_views_change_probabilities_and_a_wrong_one_is_reported(fitted: Path, photos: Path, cli: Cli) -> None:
    assert cli("predict", fitted, photos, "--tta", "flip", "--out", "f.csv").code == 0
    answer = cli("predict", fitted, photos, "--tta", "flop", "--out", "g.csv")
    assert answer.code == 2 and "--tta flop" in answer.complaint
    assert not Path("g.csv").exists()


def test_predict_a_table_in_its_order(fitted: Path, photos: Path, cli: Cli) -> None:
    names = ["red/g003_1.jpg", "blue/g205_0.jpg", "green/g101_0.jpg", "gone.jpg"]
    Path("new.csv").write_text("which,photo\n" + "".join(f"{i},{n}\n" for i, n in enumerate(names)))
    assert cli("predict", fitted, "new.csv", "--path", "photo", "--root", photos).code == 0
    predicted = pd.read_csv("predictions.csv")
    assert predicted["path"].tolist() == names
    assert predicted["error"].notna().tolist() == [False, False, False, True]


def test_formula_like_names_are_no_formulas_and_come_back_where_they_must(fitted: Path, cli: Cli) -> None:
    """In a CSV for people an apostrophe stands before them; Parquet and a submission have them to the letter."""
    Path("new").mkdir()
    names = ["+a.jpg", "-b.jpg", "=1+1.jpg", "@c.jpg", '"q,uote.jpg', "\ttab.jpg"]
    for i, name in enumerate(names):
        draw(0, i, 0).save(Path("new") / name)
    assert cli("predict", fitted, "new").code == 0
    told = pd.read_csv("predictions.csv")["path"].tolist()
    assert told == [name if name[0] == '"' else f"'{name}" for name in sorted(names)]
    assert cli("predict", fitted, "new", "--out", "predictions.parquet").code == 0
    assert pd.read_parquet("predictions.parquet")["path"].tolist() == sorted(names)
    Path("t.csv").write_text("id,label\n" + "".join('"{}",\n'.format(n.replace('"', '""')) for n in names))
    assert cli("predict", fitted, "new", "--template", "t.csv").code == 0
    submission = pd.read_csv("submission.csv")
    assert submission["id"].tolist() == names
    assert set(submission["label"]) <= set(CLASSES)


# --- the competition ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def competition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The competition's layout by hand: 36 people (three each gender and age, twice) of 7 small photos; 9 to submit."""
    root = tmp_path_factory.mktemp("competition")
    rows = ["id,gender,race,age,path"]
    number = 0
    for gender in ("male", "female"):
        for age in (20, 40, 60):
            for _ in range(3):
                person = f"{number:06d}_{gender}_Asian_{age}"
                folder = root / "train" / "images" / person
                folder.mkdir(parents=True)
                for k, name in enumerate(("mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal")):
                    draw(max(0, k - 4), number, k, seed=age).save(folder / f"{name}.{'jpg' if k % 2 else 'png'}")
                (folder / "._mask1.jpg").write_bytes(b"\x00")
                rows.append(f"{number:06d},{gender},Asian,{age},{person}")
                number += 1
    (root / "train" / "train.csv").write_text("\n".join(rows) + "\n")
    (root / "eval" / "images").mkdir(parents=True)
    ids = [f"{k * 7919:040x}.jpg" for k in (5, 3, 9, 1, 7, 2, 8, 4, 6)]
    for k, name in enumerate(ids):
        draw(k % 3, 100 + k, 0, seed=20).save(root / "eval" / "images" / name)
    (root / "eval" / "info.csv").write_text("ImageID,ans\n" + "".join(f"{name},0\n" for name in ids))
    return root


def test_the_submission_of_the_competition(competition: Path, cli: Cli) -> None:
    answer = cli("fit", competition, "--strategy", "probe", "--quality", "fast", "--folds", "3", "--run", "r")
    assert answer.code == 0, answer.err
    template = competition / "eval" / "info.csv"
    answer = cli("predict", "r", competition / "eval" / "images", "--template", template)
    assert answer.code == 0, answer.err
    lines = Path("submission.csv").read_text().splitlines()
    assert lines[0] == "ImageID,ans"
    assert [line.split(",")[0] for line in lines] == [line.split(",")[0] for line in template.read_text().splitlines()]
    assert all(line.split(",")[1] in {str(k) for k in range(18)} for line in lines[1:])
    assert cli("predict", "r", competition / "eval" / "images").code == 0
    label = pd.read_csv("predictions.csv").set_index("path")["label"]
    number = dict(zip(uf.open_run("r").classes, range(18), strict=True))
    assert all(int(line.split(",")[1]) == number[label[line.split(",")[0]]] for line in lines[1:])


def test_a_photo_that_cannot_be_read_gets_the_commonest_class(competition: Path, tmp_path: Path, cli: Cli) -> None:
    root = shutil.copytree(competition, tmp_path / "c")
    victim = sorted((root / "eval" / "images").iterdir())[0]
    victim.write_bytes(b"x")
    assert cli("fit", root, "--strategy", "probe", "--quality", "fast", "--folds", "3", "--run", "r").code == 0
    answer = cli("predict", "r", root / "eval" / "images", "--template", root / "eval" / "info.csv", "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["errors"] == 1
    assert "1 photo could not be read" in answer.err and "commonest" in answer.err
    sent = pd.read_csv("submission.csv").set_index("ImageID")["ans"]
    assert sent.loc[victim.name] < 6  # of seven photos of a person, five wear the mask right
    assert pd.api.types.is_integer_dtype(sent)
