"""The report's maps are of the model that had not learnt from the photo; the report is written whatever is missing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from finetuning import fit_here
from unfreeze.core.dataset import probability_columns
from unfreeze.core.runs import Run, open_run
from unfreeze.explanation.mistakes import UNASKED, explain_mistakes
from unfreeze.explanation.networks import Explainer
from unfreeze.inference.predictor import Classifier
from unfreeze.reports.run_report import write_report

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def partial_run(probe_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit_here(probe_photos, tmp_path_factory.mktemp("partial") / "partial", "partial", train__epochs=1)


def mistaken(run: Run, folder: Path, count: int = 4) -> Run:
    """A copy of a run whose first photos of each fold are said to be of the next class."""
    copy = open_run(shutil.copytree(run.path, folder))
    table = copy.predictions()
    columns = probability_columns(copy.classes)
    for _, own in table.groupby("fold"):
        for row in own.index[:count]:
            proba = np.full(len(columns), 0.02)
            own_class = copy.classes.index(table.loc[row, "label"])
            other = (own_class + 1) % len(columns)
            proba[other] = 1 - 0.02 * (len(columns) - 1)
            table.loc[row, columns] = proba
    table.to_parquet(copy.path / "oof.parquet", index=False)
    scores = json.loads((copy.path / "scores.json").read_text())
    true = table["label"].map(copy.classes.index)
    confusion = pd.crosstab(true, table[columns].to_numpy().argmax(1))
    every = range(len(copy.classes))
    scores["out_of_fold"]["confusion"] = confusion.reindex(index=every, columns=every, fill_value=0).to_numpy().tolist()
    (copy.path / "scores.json").write_text(json.dumps(scores))
    return copy


def asked(run: Run) -> list[tuple[str, str]]:
    """A photo of each fold, and a class that it might have been taken for."""
    table = run.photos().query("fold >= 0").groupby("fold").head(1)
    said = [next(c for c in run.classes if c != label) for label in table["label"]]
    return list(zip(table["path"], said, strict=True))


def test_heads_maps_are_of_the_fold_that_has_not_seen_the_photo(probe_run: Run, probe_photos: Path) -> None:
    rows = explain_mistakes(probe_run, asked(probe_run))
    folds = probe_run.photos().set_index("path")["fold"]
    assert [row.fold for row in rows] == [folds[path] for path, _ in asked(probe_run)] and len(rows) == 3
    for row in rows:
        pair = probe_run.classes.index(row.said), probe_run.classes.index(row.label)
        data = (probe_photos / row.path).read_bytes()
        own = Explainer(Classifier.load(probe_run, folds=(row.fold,))).draw(data, "cells", *pair)[0]
        every = Explainer(Classifier.load(probe_run)).draw(data, "cells", *pair)[0]
        (heat,) = row.maps
        assert (heat.label, heat.runner_up) == pair and not row.why
        assert heat.margin == pytest.approx(own.margin, abs=1e-2)
        assert abs(own.margin - every.margin) > 0.05, "else the ensemble would pass for the fold's model"
        assert row.near and all(folds[near.path] != row.fold for near in row.near)


def test_trained_networks_are_asked_only_if_wished_and_each_for_its_own_fold(
    partial_run: Run, probe_photos: Path
) -> None:
    waiting = explain_mistakes(partial_run, asked(partial_run))
    assert all(row.why == UNASKED and not row.maps and row.near for row in waiting)
    rows = explain_mistakes(partial_run, asked(partial_run), trained=True)
    folds = partial_run.photos().set_index("path")["fold"]
    for row in rows:
        (heat,) = row.maps
        pair = partial_run.classes.index(row.said), partial_run.classes.index(row.label)
        own = Explainer(Classifier.load(partial_run, folds=(row.fold,)))
        (expected,) = own.draw((probe_photos / row.path).read_bytes(), "grad-cam", *pair)
        assert heat.source.startswith("1 network (")
        np.testing.assert_allclose(heat.values, expected.values, atol=1e-6)
        assert all(folds[near.path] != row.fold for near in row.near)


def test_a_fold_whose_model_is_gone_has_no_map_and_the_others_have(probe_run: Run, tmp_path: Path) -> None:
    run = mistaken(probe_run, tmp_path / "run")
    (run.path / "fold-1" / "head.safetensors").unlink()
    rows = explain_mistakes(run, asked(run))
    assert [bool(row.maps) for row in rows] == [row.fold != 1 for row in rows]
    assert all("fold 1 cannot be used" in row.why for row in rows if row.fold == 1)
    page = write_report(run.path).read_text()
    assert "No map: the model of fold 1 cannot be used" in page and '<svg class="overlay"' in page


def test_the_report_shows_maps_neighbors_and_mistakes_of_a_kind(probe_run: Run, tmp_path: Path) -> None:
    run = mistaken(probe_run, tmp_path / "run")
    page = write_report(run.path).read_text()
    part = page[page.index('<h3 id="looked">') : page.index('<section id="reliability">')]
    assert part.count('<svg class="overlay"') == 8 and "Most like it, of what its model learnt from" in part
    assert re.search(r"has the predicted class in\s\d of\s8 sure mistakes", part)
    assert "Zhou et al. 2016" in part and "nothing is estimated" in part
    montage = part[part.index('<h3 id="kinds">') :]
    assert "taken for" in montage and montage.count("<img") >= 6
    assert not re.search(r'<img(?![^>]*loading="lazy")|<img(?![^>]*width=)', part)
    assert not (run.path / "explained.json").exists() and "--explain" not in part


def test_maps_that_were_asked_for_stay_in_later_reports(partial_run: Run, tmp_path: Path) -> None:
    run = mistaken(partial_run, tmp_path / "run")
    page = write_report(run.path).read_text()
    assert f"unfreeze report {run.path} --explain" in page and '<svg class="overlay"' not in page
    asked_for = write_report(run.path, explain=True).read_text()
    assert asked_for.count('<svg class="overlay"') == 8 and "Selvaraju et al. 2017" in asked_for
    assert write_report(run.path).read_text() == asked_for
    (run.path / "explained.json").write_text('{"photos": [{"maps": 3}]}')
    assert f"unfreeze report {run.path} --explain" in write_report(run.path).read_text()


def test_photos_that_are_gone_or_others_now_have_no_map(probe_run: Run, probe_photos: Path, tmp_path: Path) -> None:
    run = mistaken(probe_run, tmp_path / "run")
    moved = shutil.copytree(probe_photos, tmp_path / "photos")
    info = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**info, "root": str(moved)}))
    first, second, third = (moved / path for path, _ in asked(run))
    first.unlink()
    shutil.copy(third, second)
    rows = explain_mistakes(open_run(run.path), asked(run))
    assert rows[0].why.startswith("the photo cannot be read (")
    assert rows[1].why == "the file has changed since the fit" and rows[2].maps
    assert not rows[0].maps and not rows[1].maps and rows[0].near
    shutil.rmtree(moved)
    page = write_report(run.path).read_text()
    assert "No map: the photo cannot be read" in page and '<svg class="overlay"' not in page


def test_without_the_cache_the_report_says_how_to_have_maps(probe_run: Run, tmp_path: Path, fresh_cache: Path) -> None:
    run = mistaken(probe_run, tmp_path / "run")
    assert "the cache no longer holds the features" in write_report(run.path).read_text()
    again = write_report(run.path, explain=True).read_text()
    assert again.count('<svg class="overlay"') == 8


def test_names_are_escaped(probe_run: Run, tmp_path: Path) -> None:
    run = mistaken(probe_run, tmp_path / "run")
    for name in ("photos.parquet", "oof.parquet"):
        table = pd.read_parquet(run.path / name)
        table["label"] = table["label"].replace("red", EVIL)
        table = table.rename(columns={"p_red": f"p_{EVIL}"})
        table.to_parquet(run.path / name, index=False)
    for name in ("run.json", "scores.json"):
        text = (run.path / name).read_text()
        (run.path / name).write_text(text.replace('"red"', json.dumps(EVIL)))
    # The heads' files still name the other class, so that the run refuses them, in one line.
    page = write_report(run.path).read_text()
    assert EVIL not in page and "&lt;img src=x" in page and "No map: the model of fold" in page
