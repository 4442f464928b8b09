"""Repeated cross-validation: its score is the mean, its model the average of all heads, and it resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import unfreeze as uf
from unfreeze.core.errors import RunError
from unfreeze.core.progress import Reporter
from unfreeze.metrics.classification import Tally
from unfreeze.training.crossval import cross_validate
from unfreeze.training.linear_probe import repeats as module
from unfreeze.training.linear_probe.heads import LinearHead
from unfreeze.training.linear_probe.repeats import wanted
from unfreeze.training.linear_probe.strategy import Probe


@pytest.fixture
def photos(ready_cache, photos_in, tmp_path):
    return photos_in(tmp_path / "photos")


def heads(run, delivered):
    return [LinearHead.load(file)[0] for file in run.head_files(delivered)]


def test_the_score_is_the_mean_and_the_model_the_average(photos, recipe, tmp_path):
    once = cross_validate(photos, recipe.replace(**{"folds.repeats": 1}), tmp_path / "once")
    run = cross_validate(photos, recipe.replace(**{"folds.repeats": 3}), tmp_path / "run")
    scores, before = run.scores(), once.scores()
    assert len(before["repeats"]) == 1 and len(scores["repeats"]) == 3 and run.info["repeats"] == 3
    assert scores["repeats"][0] == before["repeats"][0] and scores["out_of_fold"] == before["out_of_fold"]
    mean = np.mean([one["log_loss"] for one in scores["repeats"]])
    assert scores["log_loss"]["value"] == pytest.approx(mean * (1 - scores["averaging"]["log_loss"]))
    assert len({one["log_loss"] for one in scores["repeats"]}) == 3
    for own, first, delivered in zip(heads(run, False), heads(once, True), heads(run, True), strict=True):
        assert np.array_equal(own.weight, first.weight) and not np.array_equal(own.weight, delivered.weight)
    # New images are predicted by the averaged heads, images of a fold by its own head.
    loaded, fold = uf.load(run), uf.load(run).load(run, folds=[0])
    assert [np.array_equal(a.weight, b.weight) for a, b in zip(loaded.heads, heads(run, True), strict=True)] == [
        True
    ] * 3
    assert np.array_equal(fold.heads[0].weight, heads(run, False)[0].weight)
    assert not (run.path / "scratch").exists()
    test = run.path / "test.parquet"
    assert test.read_bytes() != (once.path / "test.parquet").read_bytes()
    again = cross_validate(photos, recipe.replace(**{"folds.repeats": 3}), tmp_path / "again")
    assert test.read_bytes() == (again.path / "test.parquet").read_bytes()
    for one, other in zip(run.head_files(True), again.head_files(True), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_an_interrupted_repeat_goes_on(photos, recipe, tmp_path, monkeypatch):
    three = recipe.replace(**{"folds.repeats": 3})
    whole = cross_validate(photos, three, tmp_path / "whole")
    save, saved = LinearHead.save, list[str]()

    def counted(self, path: Path, *args, **kwargs):
        if path.parent.name == "repeat-2" and "stopped" not in saved:
            saved.append("stopped")
            raise KeyboardInterrupt
        saved.append(f"{path.parent.name}/{path.name}")
        save(self, path, *args, **kwargs)

    monkeypatch.setattr(LinearHead, "save", counted)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(photos, three, tmp_path / "run")
    run = cross_validate(photos, three, tmp_path / "run")
    assert saved.count("repeat-1/0.safetensors") == 1
    assert run.scores() == whole.scores()
    for one, other in zip(run.head_files(True), whole.head_files(True), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_a_missing_delivered_head_is_an_error(photos, recipe, tmp_path):
    run = cross_validate(photos, recipe.replace(**{"folds.repeats": 2}), tmp_path / "run")
    run.head_files(True)[1].unlink()
    with pytest.raises(RunError, match=r"delivered\.safetensors"):
        uf.load(run.path)


def test_repeats_that_cannot_be_are_said(photos, recipe, tmp_path):
    class Says(Reporter):
        def __init__(self):
            super().__init__()
            self.lines = []

        def say(self, text):
            self.lines.append(text)

    says = Says()
    trained = recipe.replace(**{"folds.repeats": 3, "labels.model": "joint", "strategy": "partial", "train.epochs": 1})
    run = cross_validate(photos, trained, tmp_path / "run", reporter=says)
    assert any(line.startswith("folds.repeats = 3: not repeated") for line in says.lines)
    assert len(run.scores()["repeats"]) == 1


def tally(draw, n, noise):
    """Of a fold whose inner models agree, or differ by chance in a share `noise` of the images."""
    truth = draw.integers(0, 2, n)
    called = [np.where(draw.random(n) < noise, 1 - truth, truth) for _ in range(4)]
    return Tally.of(truth, [np.eye(2)[one] * 0.8 + 0.1 for one in called])


def test_how_many_repeats(fresh_cache, work_of_probe):
    work, fitted = work_of_probe
    draw = np.random.default_rng(0)

    def of(noise):
        inner = {k: replace(head, inner=tally(draw, 40, noise)) for k, head in fitted.heads.items()}
        return replace(fitted, heads=inner)

    assert wanted(work, of(0.0), 0.05) == 1
    assert wanted(work, of(0.3), 0.01) == 4
    assert 1 < wanted(work, of(0.3), 0.08) <= 4
    assert wanted(work, of(0.3), 0.0) == 1
    asked = replace(work, recipe=work.recipe.replace(**{"folds.repeats": 7}))
    assert wanted(asked, of(0.0), 0.05) == 7
    raced = of(0.3)
    raced.heads[0] = replace(raced.heads[0], inputs=(0, 1))
    assert wanted(asked, raced, 0.01) == 1, "heads that read different inputs have no common average"
    many = replace(work, folds=np.zeros(module._MOST_IMAGES + 1, np.int64))
    assert wanted(many, of(0.3), 0.01) == 1


@pytest.fixture
def work_of_probe(photos, recipe, tmp_path):
    from unfreeze.training.crossval import prepare
    from unfreeze.training.linear_probe.strategy import fit_probe

    work = prepare(photos, recipe, tmp_path / "work", Reporter())
    fitted = fit_probe(work)
    assert isinstance(fitted, Probe)
    return work, fitted
