"""Suspect labels: probabilities, groups and duplicates, each on arrays whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from unfreeze.metrics.label_issues import (
    SUSPECT_COLUMNS,
    LabelAxis,
    find_label_issues,
    is_constant_within_groups,
    precision_recall_at_k,
    rank_label_issues,
    score_labels,
)


def told(truth: np.ndarray, values: int, strength: float, seed: int = 0) -> np.ndarray:
    """Probabilities of a model that reads the truth through noise: the stronger, the oftener right and the surer."""
    logits = np.random.default_rng(seed).normal(0, 1, (len(truth), values)) + strength * np.eye(values)[truth]
    proba = np.exp(strength * logits)
    return proba / proba.sum(1, keepdims=True)


@pytest.fixture
def flipped() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, labels with every 25th wrong, and probabilities."""
    truth = np.arange(300) % 3
    given = truth.copy()
    given[::25] = (given[::25] + 1) % 3
    return truth, given, told(truth, 3, 3.0)


def table_of(attribute: LabelAxis, groups: np.ndarray, duplicates=None):
    n, classes = len(attribute.given), len(attribute.values)
    return rank_label_issues(
        [f"{i}.jpg" for i in range(n)],
        attribute.given,
        attribute.values,
        [score_labels(attribute, groups)],
        np.arange(classes)[:, None],
        groups,
        duplicates,
    )


def test_flipped_labels_come_first(flipped) -> None:
    truth, given, proba = flipped
    table = table_of(LabelAxis("label", ("a", "b", "c"), given, proba), np.arange(300))
    assert tuple(table.columns) == SUSPECT_COLUMNS
    wrong = {f"{i}.jpg": "abc"[truth[i]] for i in np.flatnonzero(truth != given)}
    found = precision_recall_at_k(table["path"].isin(wrong).to_numpy(), len(wrong))
    assert found["precision_at_k"] >= 0.75 and found["recall_at_2k"] >= 0.9
    assert table["score"].is_monotonic_decreasing and table["score"].between(0, 1).all()
    first = table.iloc[0]
    assert first["suggested"] == wrong[first["path"]] != first["label"]
    assert first["reason"].startswith("out-of-fold models predict ")


def test_right_labels_raise_nothing() -> None:
    truth = np.arange(90) % 3
    proba = np.full((90, 3), 0.01) + 0.97 * np.eye(3)[truth]
    assert table_of(LabelAxis("label", ("a", "b", "c"), truth, proba), np.arange(90)).empty


def test_confident_learning_points_at_the_flipped(flipped) -> None:
    truth, given, proba = flipped
    issues = find_label_issues(given, proba)
    assert issues[truth != given].mean() > 0.8 and issues[truth == given].mean() < 0.1
    assert not find_label_issues(np.zeros(5, np.int64), np.ones((5, 2)) / 2).any()


def test_the_attribute_of_a_group_is_found_from_the_data() -> None:
    groups = np.repeat(np.arange(30), 7)
    gender = np.repeat(np.arange(30) % 2, 7)
    state = np.tile([0, 0, 0, 0, 0, 1, 2], 30)
    assert is_constant_within_groups(gender, groups)
    assert not is_constant_within_groups(state, groups)
    gender[3] ^= 1  # one wrong photo makes its group disagree, and the attribute is still the group's
    assert is_constant_within_groups(gender, groups)
    assert not is_constant_within_groups(gender, np.arange(210)), "no groups at all"
    rare = np.zeros(210, np.int64)
    rare[:2] = 1
    assert not is_constant_within_groups(rare, groups), "constant only because one value is everywhere"


def test_six_photos_say_female_and_one_male() -> None:
    groups = np.repeat(np.arange(30), 7)
    truth = np.repeat(np.arange(30) % 2, 7)
    given = truth.copy()
    given[10] ^= 1
    table = table_of(LabelAxis("gender", ("female", "male"), given, told(truth, 2, 1.0)), groups)
    assert table["path"].iloc[0] == "10.jpg" and table["score"].iloc[0] > 0.9
    assert table["reason"].iloc[0] == "gender: 6 of the 6 other photos of its group say male, this one female"


def test_a_whole_group_labeled_wrong_is_listed_whole() -> None:
    groups = np.repeat(np.arange(40), 7)
    truth = np.repeat(np.arange(40) % 2, 7)
    given = truth.copy()
    given[groups == 5] ^= 1
    table = table_of(LabelAxis("gender", ("female", "male"), given, told(truth, 2, 1.5)), groups)
    assert set(table["path"].head(7)) == {f"{i}.jpg" for i in np.flatnonzero(groups == 5)}
    assert "all 7 photos of its group together look like male" in table["reason"].iloc[0]


def test_an_attribute_that_is_read_badly_raises_no_false_alarms_over_one_read_well() -> None:
    truth = np.arange(400) % 2
    given = truth.copy()
    given[::50] ^= 1
    noise = np.random.default_rng(1).integers(0, 2, 400)
    bad = np.eye(2)[noise] * 0.98 + 0.01  # sure, and no better than chance
    doubts = [
        score_labels(LabelAxis("state", ("x", "y"), given, told(truth, 2, 4.0)), np.arange(400)),
        score_labels(LabelAxis("age", ("old", "young"), np.arange(400) // 2 % 2, bad), np.arange(400)),
    ]
    values = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    labels = given * 2 + np.arange(400) // 2 % 2
    table = rank_label_issues([str(i) for i in range(400)], labels, "pqrs", doubts, values, np.arange(400))
    assert table["path"].head(6).isin([str(i) for i in range(0, 400, 50)]).all()
    assert set(table["suggested"].head(6)) <= set("pqrs")


@pytest.mark.parametrize("kind", ["the same", "nearly the same"])
def test_a_duplicate_with_another_label_is_named(kind: str) -> None:
    truth = np.arange(60) % 3
    given = truth.copy()
    given[4] = (given[4] + 1) % 3
    proba = told(truth, 3, 3.0)
    proba[[4, 7]] = 1 / 3  # the models cannot tell; the duplicate can
    table = table_of(LabelAxis("label", ("a", "b", "c"), given, proba), np.arange(60), {kind: np.array([[4, 7]])})
    rows = table.set_index("path")
    assert rows.loc["4.jpg", "reason"].startswith(f"{kind} photo as 7.jpg, which is labeled ")
    assert rows.loc["4.jpg", "score"] == pytest.approx(0.5) and rows.loc["4.jpg", "suggested"] == "abc"[given[7]]


@pytest.mark.parametrize(("kind", "suspect"), [("the same", True), ("nearly the same", False)])
def test_near_images_that_models_distinguish_are_hardly_one_image(kind: str, suspect: bool) -> None:
    """Both labels are right as far as models see. Of equal bytes one must be wrong, of look-alikes neither."""
    truth = np.arange(60) % 3
    proba = told(truth, 3, 3.0)
    table = table_of(LabelAxis("label", ("a", "b", "c"), truth, proba), np.arange(60), {kind: np.array([[4, 8]])})
    scores = table.set_index("path")["score"].reindex(["4.jpg", "8.jpg"]).fillna(0)
    assert scores.sum() == pytest.approx(1, abs=0.05) if suspect else (scores < 0.25).all()


def test_of_two_near_images_the_one_that_models_contradict_is_the_suspect() -> None:
    truth = np.arange(60) % 3
    given = truth.copy()
    given[7] = (truth[7] + 1) % 3
    proba = told(truth, 3, 3.0)
    pairs = {"nearly the same": np.array([[4, 7]])}  # both show what 4 is labeled
    rows = table_of(LabelAxis("label", ("a", "b", "c"), given, proba), np.arange(60), pairs).set_index("path")
    assert rows.index[0] == "7.jpg" and rows.loc["7.jpg", "score"] > 0.8
    assert rows.loc["7.jpg", "suggested"] == "abc"[truth[4]]
    assert "4.jpg" not in rows.index or rows.loc["4.jpg", "score"] < 0.1


def test_a_combination_that_no_class_has_is_never_suggested() -> None:
    given = np.zeros(20, np.int64)
    given[10:] = 1
    proba = np.eye(2)[given] * 0.9 + 0.05
    proba[0] = [0.001, 0.999]
    one, two = (score_labels(LabelAxis(name, ("x", "y"), given, proba), np.arange(20)) for name in ("m", "n"))
    values = np.array([[0, 0], [1, 1]])
    table = rank_label_issues(
        [str(i) for i in range(20)], given, ("both-x", "both-y"), [one, two], values, np.arange(20)
    )
    assert table.iloc[0][["path", "suggested"]].tolist() == ["0", "both-y"]


def test_found_at_counts() -> None:
    found = precision_recall_at_k(np.array([True, False, True, True, False]), 2)
    assert (found["precision_at_k"], found["recall_at_2k"], found["listed"]) == (0.5, 1.5, 5)
    assert precision_recall_at_k(np.zeros(0, bool), 0)["precision_at_k"] == 0
