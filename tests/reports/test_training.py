"""The report's section on training: what it says of a gain, a loss and of chance, and that a probe has none."""

from __future__ import annotations

import pytest

from unfreeze.reports.section_training import training


def row(fold, epoch, loss, best=True, valid=None):
    return {
        "fold": fold,
        "epoch": epoch,
        "train_loss": loss,
        "seconds": 2.0,
        "photos": 100,
        "micro_batch": 16,
        "out_of_memory": int(fold == 1 and epoch == 2),
        "best": best,
        "valid_macro_f1": valid,
    }


def interval(value):
    return {"value": value, "low": value - 0.03, "high": value + 0.03}


def scored(value):
    return {name: interval(value) for name in ("macro_f1", "accuracy", "log_loss")}


INFO = {"strategy": "partial", "trained": {"settings": {"keep": 0.75}}}
LOG = [row(fold, epoch, 0.4 / epoch + 0.01 * fold) for fold in (0, 1) for epoch in (1, 2, 3)]


def scores(gain=None, beside=None):
    found = {"out_of_fold": scored(0.86), "components": beside or {}}
    return found | ({"gain": {"value": gain[0], "low": gain[1], "high": gain[2]}} if gain else {})


def test_a_probe_has_no_such_section():
    assert training({"strategy": "probe"}, scores(), LOG) is None
    assert training(INFO, scores(), []) is None


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (
            (0.025, 0.010, 0.043),
            "won 0.025 of macro F1 against the probe it started from (95% interval [+0.010, +0.043])",
        ),
        ((0.006, -0.004, 0.018), "won 0.006 of macro F1"),
        (
            (-0.02, -0.03, -0.01),
            "lost 0.020 of macro F1 against the probe it started from (95% interval [-0.030, -0.010])",
        ),
    ],
)
def test_the_finding_says_gain_interval_and_chance(gain, said):
    found = training(INFO, scores(gain), LOG)["finding"]
    assert said in found and "its last stages" in found
    assert ("which may be chance" in found) == (gain[1] <= 0 <= gain[2])
    assert "12.0 s of steps" in found


def test_without_a_probe_only_the_time_is_reported():
    found = training(INFO | {"strategy": "scratch"}, scores(), LOG)
    assert found["finding"] == "Training the network from nothing took 12.0 s of steps over all folds."
    assert len(found["against"]) == 1


def test_each_fold_is_a_row_and_a_line():
    found = training(INFO, scores(), LOG)
    assert [r["fold"] for r in found["folds"]] == [0, 1]
    assert (
        found["folds"][1] | {"fold": 1, "epochs": 3, "first": "0.410", "memory": 1, "speed": "50"} == found["folds"][1]
    )
    assert str(found["plot"]).count("<polyline") == 2
    assert "fold 0: 0.400 to 0.133 in 3 epochs" in str(found["plot"])
    assert not found["checked"] and "75%" in found["kept"]


def test_one_epoch_is_a_dot_and_the_held_groups_are_reported():
    log = [row(0, 1, 0.5, True, 0.71), row(0, 2, 0.3, True, 0.74), row(0, 3, 0.1, False, 0.70)]
    found = training(INFO | {"trained": {"settings": {"keep": 1}}}, scores(), log)
    assert found["folds"][0]["valid"] == "0.740 after epoch 2" and found["checked"] and found["kept"] == ""
    assert "<circle" in str(training(INFO, scores(), log[:1])["plot"])


def test_other_scores_are_named_and_doubles_left_out():
    beside = {"probe": scored(0.84), "network alone": scored(0.86)}
    names = [r["name"] for r in training(INFO, scores(beside=beside), LOG)["against"]]
    assert names == ["this run", "the probe alone"]
    beside["network alone"] = scored(0.85)
    names = [r["name"] for r in training(INFO, scores(beside=beside), LOG)["against"]]
    assert names == ["this run", "the probe alone", "the trained network alone"]
