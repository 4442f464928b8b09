"""uf.diagnose: each planted cause is found first, a clean set raises no alarm, and what cannot be measured says why."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance

import unfreeze as uf
from faults import paint, painted, quick_run
from photosets import CLASSES
from unfreeze.analysis.diagnose import calibration, label_noise, leakage, overfitting, preprocessing, shift
from unfreeze.analysis.diagnose.cause import ERROR, WARNING, Cause, in_order, not_measured, severity_of
from unfreeze.analysis.diagnose.context import DiagnosisContext, open_case
from unfreeze.analysis.diagnose.diagnose import FILE, Diagnosis
from unfreeze.core.cache import cache_root
from unfreeze.core.errors import RunError, SourceError
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe_schema import Source
from unfreeze.core.runs import Run, open_run
from unfreeze.data.groups import groups_from_regex

THREE = np.arange(60) % 3


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """120 photos of 60 groups, three colors that are told well. Not to be changed."""
    place = tmp_path_factory.mktemp("plain")
    return quick_run(painted(place / "photos", THREE, signal=60), place / "run")


@pytest.fixture(scope="module")
def clean(plain: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Diagnosis]:
    """Other groups of the same kind with their labels, and the diagnosis of the plain run on them."""
    table = painted(tmp_path_factory.mktemp("other") / "photos", THREE[:45], first=200, signal=60)
    return table, uf.diagnose(plain, table)


def row(found: Diagnosis, name: str) -> Cause:
    (cause,) = (c for c in found.causes if c.name == name)
    return cause


def first(found: Diagnosis, name: str, severity: str) -> Cause:
    """The first row, which must be that cause."""
    assert (found.causes[0].name, found.causes[0].severity) == (name, severity), found.table().head(3).to_string()
    assert name in found.sentence
    return found.causes[0]


def test_a_clean_set_raises_no_alarm_and_every_cause_has_a_row(clean: tuple[Path, Diagnosis]) -> None:
    found = clean[1]
    assert found.first is None and found.sentence.startswith("No problem found")
    assert {c.severity for c in found.causes} <= {"info", "none"}
    assert all(c.measured for c in found.causes)
    families = [c.name.partition(":")[0] for c in found.causes]
    assert set(families) == {
        *("leakage", "overfitting", "shift", "unexplained", "preprocessing", "calibration", "labels"),
    }
    assert len(families) == 14
    assert found.expected is not None and found.real is not None
    assert found.expected["low"] <= found.real["value"] <= found.expected["high"]


def test_it_is_kept_whole_in_the_run_and_is_a_table(clean: tuple[Path, Diagnosis], plain: Run) -> None:
    found = clean[1]
    kept = json.loads((plain.path / FILE).read_text())
    assert [c["name"] for c in kept["causes"]] == [c.name for c in found.causes]
    assert kept["sentence"] == found.sentence and kept["test_photos"] == 90
    table = found.table()
    assert list(table.columns[:5]) == ["cause", "severity", "cost", "low", "high"] and len(table) == 14
    assert plain.path.name == "run" and open_run(plain.path).scores() == plain.scores()  # nothing else was touched


def test_a_split_photo_by_photo_through_groups_is_leakage(tmp_path: Path) -> None:
    """The class has nothing to do with the picture, and each group with its own hue is easily recognised."""
    table = painted(tmp_path / "photos", [0] * 30, each=4, signal=0, spread=150, noise=30, named=np.arange(30) % 3)
    found = uf.diagnose(quick_run(table, tmp_path / "run", folds__use_groups=False))
    cause = first(found, leakage.GROUPS, "error")
    assert cause.cost is not None and cause.cost["low"] > 0.1
    among = re.match(r"(\d+) of 120 images were predicted by a model trained on their group", cause.evidence)
    assert among and int(among[1]) >= 100, cause.evidence
    assert "folds.use_groups=true" in cause.command


def test_groups_that_only_the_file_names_show_are_found(tmp_path: Path) -> None:
    table = painted(tmp_path / "photos", [0] * 30, each=4, signal=0, spread=150, noise=30, named=np.arange(30) % 3)
    pd.read_csv(table).drop(columns="group").to_csv(table, index=False)
    cause = first(uf.diagnose(quick_run(table, tmp_path / "run", source__group="")), leakage.HIDDEN, "error")
    assert "file names without their last number" in cause.evidence
    words = shlex.split(cause.command)
    assert words[:2] == ["unfreeze", "fit"] and words[2] == str(table)
    pattern = words[words.index("--group-regex") + 1]
    named = groups_from_regex(pd.read_csv(table)["path"].tolist(), pattern)
    assert len(set(named)) == 30 and set(named) == {f"g{i:03d}" for i in range(30)}
    assert cause.details["groups"] == 30


def test_copies_across_folds_are_leakage(tmp_path: Path) -> None:
    table = painted(tmp_path / "photos", [0] * 60, each=1, signal=0, spread=150, noise=60, named=THREE)
    rows = pd.read_csv(table)
    again = rows.assign(path=[f"{(i * 7919) % 1000:03d}again.jpg" for i in range(60)])
    again["group"] = again["path"].str[:8]
    for one, other in zip(rows["path"], again["path"], strict=True):
        with Image.open(table.parent / one) as image:
            image.save(table.parent / other, quality=80)
    pd.concat([rows, again]).to_csv(table, index=False)
    cause = first(
        uf.diagnose(quick_run(table, tmp_path / "run", folds__group_duplicates=False)), leakage.COPIES, "error"
    )
    assert cause.cost is not None and cause.cost["low"] > 0.02 and cause.details["photos"] > 60


def test_training_photos_in_the_test_set_are_leakage(plain: Run, tmp_path: Path) -> None:
    table = painted(tmp_path / "photos", THREE[:45], first=200, signal=60)
    source = Path(plain.info["root"])
    rows = pd.read_csv(table)
    for i, path in enumerate(plain.photos()["path"][::6]):
        shutil.copy(source / path, table.parent / f"x{i}.jpg")
        rows.loc[len(rows)] = [f"x{i}.jpg", plain.photos().set_index("path").loc[path, "label"], f"x{i}"]
    rows.to_csv(table, index=False)
    cause = first(uf.diagnose(plain, table), leakage.TESTED, "warning")
    assert cause.evidence.startswith("20 of 110 test photos are copies of training photos")
    assert cause.cost is not None and cause.details["photos"] == 20


@pytest.mark.parametrize(("signal", "strength", "name"), [(25, 1e5, overfitting.LEARNT), (60, 0.3, overfitting.LITTLE)])
def test_a_penalty_that_is_far_off_is_found_in_both_directions(
    tmp_path: Path, signal: int, strength: float, name: str
) -> None:
    table = painted(tmp_path / "photos", THREE, signal=signal)
    cause = first(uf.diagnose(quick_run(table, tmp_path / "run", probe__Cs=[strength])), name, "error")
    assert cause.cost is not None and cause.cost["low"] > 0
    assert cause.details["gap"]["value"] > 0 and "probe.Cs" in cause.command


def test_another_camera_is_a_shift_with_or_without_labels(plain: Run, tmp_path: Path) -> None:
    table = painted(tmp_path / "photos", THREE[:30], first=200, signal=60)
    for file in table.parent.glob("*.jpg"):
        with Image.open(file) as image:
            dark = ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(0.4)).enhance(0.5)
        dark.save(file)
    found = uf.diagnose(plain, table)
    cause = first(found, shift.LOOK, "error")
    assert cause.cost is not None and cause.cost["low"] > 0.05 and cause.details["auc"]["value"] > 0.9
    assert found.real is not None and found.real["value"] < found.score["value"] - 0.1
    shares = row(found, shift.SHARES)
    if shares.severity != "none":  # misled by the look; by their labels the shares are those of training
        assert shares.severity == "info" and abs(shares.cost["value"]) < 0.02  # type: ignore[index]
    assert shares.details["real_distance"] < 0.01
    table.unlink()
    blind = uf.diagnose(plain, table.parent)
    first(blind, shift.LOOK, "error")
    assert blind.real is None and blind.expected is not None and blind.test_photos == 60


def test_other_class_shares_are_distinguished_from_another_look(tmp_path: Path) -> None:
    run = quick_run(painted(tmp_path / "photos", np.arange(180) % 3, signal=40), tmp_path / "run")
    table = painted(tmp_path / "test", [0] * 120 + [1] * 10 + [2] * 10, first=200, signal=40)
    known = first(uf.diagnose(run, table), shift.SHARES, "error")
    assert "by their labels 86%" in known.evidence and known.details["real_shares"][run.classes.index("red")] == 60 / 70
    table.unlink()
    found = uf.diagnose(run, table.parent)
    cause = first(found, shift.SHARES, "error")
    assert "'red' is estimated as " in cause.evidence and cause.cost is not None and cause.cost["low"] > 0.02
    red = cause.details["shares"][run.classes.index("red")]
    assert red["low"] < 60 / 70 < red["high"]
    assert row(found, shift.LOOK).severity == "none"


FAULTY = {
    "red and blue are swapped": lambda p: p[:, :, ::-1],
    "height and width are swapped": lambda p: p.transpose(1, 0, 2),
    "images are upside down": lambda p: p[::-1],
    "nearest pixel": lambda p: p[::8, ::8].repeat(8, 0).repeat(8, 1),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_training_that_saw_photos_otherwise_is_found_and_named(plain: Run, tmp_path: Path, fault: str) -> None:
    """The features of the fit were computed by a program with a fault that prediction does not have (any more)."""
    from unfreeze.features import extract

    table = tmp_path / "photos" / "photos.csv"
    for i in range(60):  # lit from the left above, so that it matters which way up a photo is
        for photo in range(2):
            file = table.parent / f"g{i:03d}_{photo}.png"
            paint(file, i % 3, i, photo, 70)
            with Image.open(file) as image:
                pixels = np.asarray(image).astype(float)
            ramp = np.linspace(1.0, 0.3, 64)[:, None, None] * np.linspace(1.0, 0.7, 48)[None, :, None]
            Image.fromarray((pixels * ramp).astype(np.uint8)).save(file)
    names = sorted(p.name for p in table.parent.glob("*.png"))
    data = {"path": names, "label": [CLASSES[int(n[1:4]) % 3] for n in names], "group": [n[:4] for n in names]}
    pd.DataFrame(data).to_csv(table, index=False)
    right = extract.load_crop

    def wrong(*given: object) -> np.ndarray:
        return np.ascontiguousarray(FAULTY[fault](right(*given)))  # type: ignore[arg-type]

    (tmp_path / "cache").mkdir()
    for name in ("engines", "cards"):  # of networks, which know nothing of photos
        (tmp_path / "cache" / name).symlink_to(cache_root() / name, target_is_directory=True)
    with mock.patch.dict(os.environ, {"UNFREEZE_CACHE": str(tmp_path / "cache")}):
        with mock.patch.object(extract, "load_crop", wrong):
            run = quick_run(table, tmp_path / "run")
        cause = first(uf.diagnose(run), preprocessing.SEEN, "error")
    if fault != "nearest pixel":  # how coarse another method of resizing is may differ
        assert fault in cause.details["fault"] and fault in cause.evidence
    assert cause.details["largest"] > 10 * cause.details["limit"]


def test_probabilities_too_sure_of_themselves_are_found(tmp_path: Path) -> None:
    run = quick_run(painted(tmp_path / "photos", THREE, signal=35), tmp_path / "run", probe__Cs=[1e5])
    cause = first(uf.diagnose(run), calibration.MEANT, "warning")
    assert "overconfident" in cause.evidence and cause.details["temperature"] > 1.5


def test_a_rare_class_that_is_called_too_seldom_is_found(tmp_path: Path) -> None:
    table = painted(tmp_path / "photos", [0] * 160 + [1] * 160 + [2] * 40, signal=25)
    cause = first(
        uf.diagnose(quick_run(table, tmp_path / "run", balance__loss="ce", probe__Cs=[1.0])),
        calibration.CALLED,
        "warning",
    )
    assert "'blue' is predicted too rarely" in cause.evidence and cause.command.startswith("unfreeze compare ")
    assert cause.cost is not None and cause.cost["value"] > 0.05 and cause.cost["low"] > 0


def test_wrong_labels_are_found(tmp_path: Path) -> None:
    table = painted(tmp_path / "photos", THREE, each=3)
    rows = pd.read_csv(table)
    wrong = np.arange(4, 180, 16)
    rows.loc[wrong, "label"] = [CLASSES[(CLASSES.index(name) + 1) % 3] for name in rows.loc[wrong, "label"]]
    rows.to_csv(table, index=False)
    cause = first(uf.diagnose(quick_run(table, tmp_path / "run")), label_noise.WRONG, "error")
    assert cause.details["wrong"]["low"] < len(wrong) < cause.details["wrong"]["high"]
    assert cause.details["wrong"]["value"] > 4 and cause.details["on_errors"] > 0.25
    kept = json.loads((tmp_path / "run" / "label_issues.json").read_text())
    assert kept["wrong"] == cause.details["wrong"], "the report's labels section names the same number"
    assert cause.cost is not None and cause.cost["low"] > 0


def test_files_stored_otherwise_are_said(plain: Run, tmp_path: Path) -> None:
    table = painted(tmp_path / "photos", THREE[:30], first=200, signal=60)
    for file in table.parent.glob("*.jpg"):
        with Image.open(file) as image:
            exif = image.getexif()
            exif[0x0112] = 6
            image.rotate(90, expand=True).save(file, quality=95, exif=exif)
    cause = row(uf.diagnose(plain, table), shift.STORED)
    assert cause.severity == "warning"
    assert "EXIF orientation 6: 0% of the training and 100% of the test photos" in cause.evidence


def test_without_test_photos_their_rows_say_so(plain: Run) -> None:
    found = uf.diagnose(plain.path)
    silent = [c for c in found.causes if not c.measured]
    assert len(silent) == 4 and all("give them with test=" in c.evidence for c in silent)
    assert found.causes[-4:] == tuple(silent) and "4 cause(s) could not be measured" in found.sentence


def test_photos_that_are_gone_or_changed_are_a_clear_line(plain: Run, tmp_path: Path) -> None:
    shutil.copytree(plain.path, tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(info | {"root": str(tmp_path / "nowhere")}))
    found = uf.diagnose(tmp_path / "run")
    assert "120 of 120 photos in" in row(found, preprocessing.SEEN).evidence
    assert "are gone or have changed since the fit" in row(found, overfitting.LEARNT).evidence
    assert row(found, calibration.MEANT).measured and row(found, leakage.COPIES).measured
    # A few changed photos are left out, and the rest is measured.
    shutil.copytree(Path(plain.info["root"]), tmp_path / "nowhere")
    paint(tmp_path / "nowhere" / "g003_1.jpg", 0, 999, 0, 0)
    assert row(uf.diagnose(tmp_path / "run"), preprocessing.SEEN).severity == "none"


def test_bad_test_photos_and_runs_are_refused(plain: Run, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        uf.diagnose(plain, tmp_path / "absent")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"x")
    with pytest.raises(SourceError, match="none of 1 test photos can be read"):
        uf.diagnose(plain, tmp_path / "bad")
    with pytest.raises(RunError, match="no such run folder"):
        uf.diagnose(tmp_path / "absent")


def test_a_table_may_lie_elsewhere_and_labels_that_the_run_does_not_know_are_said(plain: Run, tmp_path: Path) -> None:
    def opened(test: Path, **asked: str) -> DiagnosisContext:
        return open_case(plain, test, Source(**asked), tmp_path, Reporter())

    table = painted(tmp_path / "photos", THREE[:30], first=200, signal=60)
    rows = pd.read_csv(table)
    elsewhere = tmp_path / "lists" / "elsewhere.csv"
    elsewhere.parent.mkdir()
    rows.rename(columns={"path": "file"}).to_csv(elsewhere, index=False)
    with pytest.raises(SourceError, match="root="):
        uf.diagnose(plain, elsewhere)
    found = opened(elsewhere, path_column="file", root=str(table.parent)).test
    assert found is not None and found.labelled and len(found.labels) == 60
    # Paths that start where the run's own do need no option.
    plain.photos().sample(40, random_state=0)[["path", "label"]].to_csv(elsewhere, index=False)
    found = opened(elsewhere).test
    assert found is not None and found.labelled and found.photos.root == Path(plain.info["root"])
    rows["label"] = rows["label"].replace("red", "rouge")
    rows.to_csv(table, index=False)
    case = opened(table)
    assert case.test is not None and not case.test.labelled
    assert case.notes == [f"Labels of {table} are not used, for the run has no class 'rouge'."]


def test_severities_follow_their_thresholds_and_rows_their_order() -> None:
    def cost(value: float, low: float) -> dict[str, float]:
        return {"value": value, "low": low, "high": 2 * value}

    assert severity_of(cost(ERROR, 0.01)) == "error" and severity_of(cost(ERROR, 0.01), "info") == "info"
    assert severity_of(cost(WARNING, 0.01)) == "warning" and severity_of(cost(ERROR, -0.01)) == "none"
    assert severity_of(cost(0.001, 0.0005)) == severity_of(None) == "none"
    rows = [
        not_measured("d", "why"),
        Cause("c", "info", "", cost(0.2, -1)),
        Cause("b", "warning", "", cost(0.02, 0.01)),
        Cause("a", "warning", "", cost(0.03, 0.01)),
    ]
    assert [c.name for c in in_order(rows)] == ["a", "b", "c", "d"]


def test_a_run_of_networks_is_measured_too_and_says_what_stands_in(tmp_path: Path) -> None:
    from finetuning import colours, fit_here

    run = fit_here(colours(tmp_path / "photos"), tmp_path / "run", "full")
    found = uf.diagnose(run, colours(tmp_path / "new", groups=5))
    assert row(found, preprocessing.SEEN).severity == "none" and row(found, preprocessing.SEEN).measured
    learnt = row(found, overfitting.LEARNT)
    assert [told["epoch"] for told in learnt.details["epochs"]] == [1, 2] and "the probe" in learnt.evidence
    assert "measured with a probe on the same photos" in row(found, leakage.GROUPS).evidence
    assert found.real is not None and found.expected is not None
