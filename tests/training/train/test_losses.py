"""Each loss against its formula or another library, with hard and soft targets, and in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from training import one_thread
from unfreeze.core.errors import RecipeError
from unfreeze.core.recipe_schema import Balance
from unfreeze.training.fine_tune.losses import LOSSES, auxiliary_of, logits_of, make_loss

COUNTS = [60, 30, 10]


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


LOGITS = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)) * 2
HARD = torch.arange(20) % 3
SOFT = torch.softmax(torch.randn(20, 3, generator=torch.Generator().manual_seed(2)), 1)


def test_the_words_are_the_recipe_s():
    assert {"", *LOSSES} == set(Balance.model_fields["loss"].annotation.__args__)
    with pytest.raises(RecipeError, match="Did you mean 'focal'"):
        make_loss("focla", COUNTS)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torch_s(smoothing):
    for targets in (HARD, SOFT):
        expected = functional.cross_entropy(LOGITS, targets, label_smoothing=smoothing)
        torch.testing.assert_close(make_loss("ce", COUNTS, smoothing)(LOGITS, targets), expected)


def test_weights_are_scikit_learn_s_balanced_ones():
    labels = np.repeat(np.arange(3), COUNTS)
    weight = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=labels), dtype=torch.float32)
    each = functional.cross_entropy(LOGITS, HARD, weight=weight, reduction="none")
    torch.testing.assert_close(make_loss("weighted", COUNTS)(LOGITS, HARD), each.mean())
    assert (weight[labels]).mean() == pytest.approx(1)


def test_focal_by_hand():
    p = LOGITS.double().softmax(1)[torch.arange(20), HARD]
    expected = (-((1 - p) ** 2) * p.log()).mean().float()
    torch.testing.assert_close(make_loss("focal", COUNTS)(LOGITS, HARD), expected)


def test_logit_adjusted_by_hand():
    prior = torch.tensor(COUNTS) / 100
    expected = functional.cross_entropy(LOGITS + prior.log(), HARD)
    torch.testing.assert_close(make_loss("logit-adjusted", COUNTS)(LOGITS, HARD), expected)


def test_soft_f1_of_certain_answers_is_scikit_learn_s_and_classes_that_do_not_occur_are_left_out():
    sure = functional.one_hot(LOGITS.argmax(1), 3) * 100.0
    expected = 1 - f1_score(HARD, LOGITS.argmax(1), average="macro")
    assert make_loss("soft-f1", COUNTS)(sure, HARD).item() == pytest.approx(expected, abs=1e-5)
    two = functional.one_hot(HARD.clamp_max(1), 3) * 100.0
    assert make_loss("soft-f1", COUNTS)(two, HARD.clamp_max(1)).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_one_hot_targets_are_hard_targets(name):
    loss = make_loss(name, COUNTS, 0.1)
    torch.testing.assert_close(loss(LOGITS, functional.one_hot(HARD, 3).float()), loss(LOGITS, HARD))
    assert torch.isfinite(loss(LOGITS * 100, SOFT))


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"soft-f1"}))
def test_pieces_add_up_to_the_batch(name):
    loss = make_loss(name, COUNTS, 0.1)
    parts = 0.35 * loss(LOGITS[:7], HARD[:7]) + 0.65 * loss(LOGITS[7:], HARD[7:])
    torch.testing.assert_close(parts, loss(LOGITS, HARD))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("soft", [False, True])
def test_each_loss_learns_a_set_that_can_be_distinguished(name, soft):
    draw = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([30, 15, 5]))
    x = functional.one_hot(labels, 3) * 4 + torch.randn(50, 3, generator=draw) * 0.3
    model = torch.nn.Linear(3, 3)
    torch.nn.init.zeros_(model.weight)
    loss, optimiser = make_loss(name, [30, 15, 5], 0.05), torch.optim.Adam(model.parameters(), 0.1)
    targets = functional.one_hot(labels, 3) * 0.9 + 0.1 / 3 if soft else labels
    for _ in range(100):
        optimiser.zero_grad()
        loss(model(x), targets).backward()
        optimiser.step()
    assert f1_score(labels, model(x).argmax(1), average="macro") == 1


def test_a_class_without_photos_is_no_division_by_zero():
    for name in LOSSES:
        assert torch.isfinite(make_loss(name, [10, 10, 0])(LOGITS, HARD)), name


def test_auxiliary_heads_are_weighted_and_summed():
    ce = functional.cross_entropy
    outputs = (LOGITS, LOGITS * 0.5, None, LOGITS * 0.1)
    expected = ce(LOGITS, HARD) + 0.3 * (ce(LOGITS * 0.5, HARD) + ce(LOGITS * 0.1, HARD))
    torch.testing.assert_close(make_loss("ce", COUNTS, auxiliary=0.3)(outputs, HARD), expected)
    torch.testing.assert_close(make_loss("ce", COUNTS)(outputs, HARD), ce(LOGITS, HARD))
    assert logits_of(outputs) is LOGITS and logits_of(LOGITS.bfloat16()).dtype == torch.float32
    assert auxiliary_of(LOGITS) == [] and len(auxiliary_of(outputs)) == 2


def test_torchvision_s_inception_outputs_just_work():
    from torchvision import models

    outputs = models.inception.InceptionOutputs(LOGITS, LOGITS * 0.5)
    expected = functional.cross_entropy(LOGITS, HARD) + 0.4 * functional.cross_entropy(LOGITS * 0.5, HARD)
    torch.testing.assert_close(make_loss("ce", COUNTS, auxiliary=0.4)(outputs, HARD), expected)
