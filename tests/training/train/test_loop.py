"""Training: it learns, repeats itself, survives kills and running out of memory, and keeps to its time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from training import Blobs, Hungry, Net, Told, one_thread, same, settings, weights
from unfreeze.core.errors import EngineError, RecipeError
from unfreeze.training.fine_tune.autotune import Plan
from unfreeze.training.fine_tune.loop import fit
from unfreeze.training.fine_tune.memory import MicroBatch
from unfreeze.training.fine_tune.trainer import Budget, ModelEma, lr_factor, predict, size_at

PLAN = Plan(micro_batch=16)


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def trained(model, folder, train=None, plan=PLAN, **options):
    chosen = options.pop("settings", settings())
    return list(fit(model, train or Blobs(), chosen, plan, folder, class_counts=[16, 16, 16], **options))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "sgd", "lr": 0.1},
        {"ema_decay": 0.9},
        {"label_smoothing": 0.1, "grad_clip": 0},
        {"loss": "focal"},
        {"loss": "soft-f1"},
    ],
    ids=str,
)
def test_it_learns(changes, tmp_path):
    loss = changes.get("loss", "ce")
    chosen = settings(**{"epochs": 8, "lr": 0.03, **{k: v for k, v in changes.items() if k != "loss"}})
    rows = trained(Net(), tmp_path, valid=Blobs(30, 1), settings=chosen, plan=PLAN, loss=loss)
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert rows[-1]["valid_macro_f1"] > 0.9 and rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["photos"] == 48 and rows[-1]["photos_per_second"] > 0
    assert rows[-1]["trained"] == sum(p.numel() for p in Net().parameters())


@pytest.mark.parametrize("plan", [Plan("bf16", micro_batch=16), Plan("f32", "channels_last", micro_batch=16)], ids=str)
def test_it_learns_in_other_precisions_and_formats(plan, tmp_path):
    model = Net(norm=True)
    rows = trained(model, tmp_path, plan=plan, valid=Blobs(30, 1), settings=settings(epochs=8, lr=0.03))
    assert rows[-1]["valid_macro_f1"] > 0.9
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in model.parameters())


def test_the_same_seed_gives_the_same_bits_and_another_one_other_dropout(tmp_path):
    models = [Net(norm=True, drop=0.3) for _ in range(3)]
    for number, (model, seed) in enumerate(zip(models, (7, 7, 8), strict=True)):
        torch.rand(number)  # what was drawn before does not matter
        trained(model, tmp_path / str(number), seed=seed, settings=settings(ema_decay=0.9))
    assert same(weights(models[0]), weights(models[1]))
    assert not same(weights(models[0]), weights(models[2]))


def test_random_numbers_outside_go_on_as_if_nothing_had_been_drawn(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained(Net(drop=0.5), tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_groups_have_their_own_rates_and_prepare_freezes(tmp_path):
    model = Net()
    before = weights(model)
    seen = []

    def prepare(net, epoch):
        seen.append(epoch)
        net.train()
        net.stem.requires_grad_(epoch >= 2)

    groups = [
        {"params": list(model.stem.parameters()), "scale": 0.0, "weight_decay": 0.0},
        {"params": list(model.head.parameters()), "scale": 1.0, "weight_decay": 0.0},
    ]
    rows = trained(model, tmp_path, groups=groups, prepare=prepare)
    assert seen == [0, 1, 2, 3]
    assert [row["trained"] for row in rows] == [27, 27, 251, 251]
    assert torch.equal(model.stem.weight, before["stem.weight"])
    assert not torch.equal(model.head.weight, before["head.weight"])


def test_micro_batches_are_the_batch(tmp_path):
    whole, pieces = Net(), Net()
    trained(whole, tmp_path / "a")
    trained(pieces, tmp_path / "b", plan=Plan(micro_batch=5))
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(pieces)[name], tensor, atol=1e-5, rtol=1e-5)


def test_what_micro_batches_do_to_batchnorm_is_said(tmp_path):
    told = Told()
    trained(Net(norm=True), tmp_path / "a", plan=Plan(micro_batch=4), reporter=told)
    assert [line for line in told.lines if "BatchNorm" in line and "4 at a time, not 16" in line]
    told = Told()
    trained(Net(), tmp_path / "b", plan=Plan(micro_batch=4), reporter=told)
    assert told.lines == []


@pytest.mark.parametrize(
    "hungry",
    [
        {"most": 5},
        {"most": 3, "first": 4},
        {"most": 7, "training": False, "evaluation": True},
        {"most": 5, "error": MemoryError()},
        {"most": 5, "error": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")},
    ],
    ids=["at the first step", "in the middle of epoch 2", "in evaluation", "MemoryError", "the CPU's allocator"],
)
def test_running_out_of_memory_loses_nothing(hungry, tmp_path):
    calm, model, told = Net(), Hungry(**hungry), Told()
    expected = trained(calm, tmp_path / "calm", valid=Blobs(30, 1))
    rows = trained(model, tmp_path / "hungry", valid=Blobs(30, 1), reporter=told)
    for name, tensor in weights(calm).items():
        torch.testing.assert_close(weights(model)[name], tensor, atol=1e-5, rtol=1e-5)
    assert [row["valid_loss"] for row in rows] == pytest.approx([row["valid_loss"] for row in expected], abs=1e-5)
    assert sum(row["out_of_memory"] for row in rows) == len(told.lines) > 0
    assert all("out of memory" in line and "effective batch" in line for line in told.lines)
    assert [row["epoch"] for row in rows if row["out_of_memory"]] == [2 if hungry.get("first") else 1]


def test_a_step_done_again_moves_batchnorm_once_and_draws_the_same_dropout(tmp_path):
    """With pieces as small from the start the run is the same to the last bit: nothing of the failed try is left."""
    calm, model = Net(norm=True, drop=0.3), Hungry(most=8, norm=True, drop=0.3)
    trained(calm, tmp_path / "calm", plan=Plan(micro_batch=8))
    rows = trained(model, tmp_path / "hungry")
    assert rows[0]["out_of_memory"] == 1 and rows[0]["micro_batch"] == 8
    assert same(weights(calm), weights(model))


def test_prediction_survives_too():
    photos, micro = Blobs(30, 1), MicroBatch(16)
    calm, model = Net(), Hungry(most=3, first=-1, evaluation=True)
    expected, targets = predict(calm, calm, photos, 16, PLAN, MicroBatch(16))
    logits, _ = predict(model, model, photos, 16, PLAN, micro)
    torch.testing.assert_close(logits, expected)
    assert micro.size <= 3 and torch.equal(targets, photos.targets)


def test_one_photo_that_does_not_fit_is_an_error_that_says_what_to_change(tmp_path):
    with pytest.raises(EngineError, match=r"Epoch 1: out of memory with 1 photo.*image\.size.*backbone.*strategy"):
        trained(Hungry(most=0), tmp_path)


def test_other_errors_are_not_taken_for_memory(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"):
        trained(Hungry(most=0, error=RuntimeError("shapes do not match")), tmp_path)


def test_a_loss_that_is_no_number_stops_with_recommendation(tmp_path):
    train = Blobs()
    train.inputs[20, 0, 0, 0] = torch.nan
    with pytest.raises(RecipeError, match=r"Epoch 1: .*not a finite number.*lower train.lr than 0.01.*f32.*clip"):
        trained(Net(), tmp_path, train, Plan("bf16", micro_batch=16), settings=settings(grad_clip=0))
    assert not (tmp_path / "checkpoint.json").exists()


def test_it_stops_early_and_keeps_the_best(tmp_path):
    model, valid = Net(), Blobs(30, 1)
    valid.targets[:20] = valid.targets[:20].roll(1)  # what is learnt is mostly wrong there
    rows = trained(model, tmp_path, valid=valid, settings=settings(epochs=30, patience=3))
    best = max(rows, key=lambda row: (row["valid_macro_f1"], -row["valid_loss"]))
    assert best["best"] and not any(row["best"] for row in rows[best["epoch"] :])
    assert len(rows) == best["epoch"] + 3 < 30
    logits, targets = predict(model, model, valid, 16, PLAN, MicroBatch(16))
    assert torch.nn.functional.cross_entropy(logits, targets).item() == pytest.approx(best["valid_loss"], abs=1e-6)


def test_the_average_is_what_stays(tmp_path):
    model = Net()
    plain, averaged = Net(), Net()
    trained(plain, tmp_path / "a")
    trained(averaged, tmp_path / "b", settings=settings(ema_decay=0.9))
    assert not same(weights(plain), weights(averaged))
    average = ModelEma(model, 0.5)
    with torch.no_grad():
        model.head.bias.add_(1.1)
    before = model.head.bias.clone()
    average.update()
    with average.in_place():
        torch.testing.assert_close(model.head.bias, before - 1.1 * 2 / 11)  # (1 + 1) / (10 + 1) at the first step
    assert torch.equal(model.head.bias, before)


def test_rates_rise_and_fall():
    rates = [lr_factor(i / 100, 0.1) for i in range(101)]
    assert rates[5] == pytest.approx(0.5) and rates[10] == 1 and rates[55] == pytest.approx(0.5) and rates[100] < 1e-9
    assert lr_factor(0, 0) == 1


def test_progressive_photos_grow(tmp_path):
    assert [size_at(p, 224) for p in (0, 0.5, 0.7)] == [160, 160, 0]
    assert size_at(0, 32) == 0
    train = Blobs()
    rows = trained(Net(), tmp_path, train, settings=settings(progressive_resizing=True, epochs=5), size=96)
    assert train.sizes == [64, 64, 64, 0, 0] == [row["size"] for row in rows]


def test_it_keeps_to_a_budget_and_the_rate_falls_by_the_end(tmp_path):
    started = time.perf_counter()
    rows = trained(
        Net(), tmp_path, Blobs(pause=0.02), valid=Blobs(12), budget=Budget(2.0), settings=settings(epochs=10_000)
    )
    assert 1.4 < time.perf_counter() - started < 2.2
    assert 2 <= len(rows) < 35 and rows[-1]["rate"] < 0.5 * max(row["rate"] for row in rows)
    with pytest.raises(RecipeError, match="budget"):
        Budget(0)


def test_a_budget_shorter_than_an_epoch_ends_within_it(tmp_path):
    rows = trained(Net(), tmp_path, Blobs(480, pause=0.05), budget=Budget(0.5), settings=settings(epochs=100))
    assert len(rows) == 1 and 16 <= rows[0]["photos"] < 480


SCRIPT = """
import sys
from pathlib import Path
import torch
from training import Blobs, Net, settings
from unfreeze.training.fine_tune.autotune import Plan
from unfreeze.training.fine_tune.loop import fit
torch.set_num_threads(1)
folder = Path(sys.argv[1])
model = Net(norm=True, drop=0.2)
chosen = settings(epochs=12, ema_decay=0.9, lr=0.03)
counts, valid = [16] * 3, Blobs(30, 1)
for row in fit(model, Blobs(pause=0.01), chosen, Plan(micro_batch=8), folder, class_counts=counts, valid=valid):
    print(row["epoch"], flush=True)
torch.save(model.state_dict(), folder / "final.pt")
"""


def start(folder):
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_killed_anywhere_it_ends_with_the_same_bits(tmp_path):
    whole, cut = start(tmp_path / "whole"), start(tmp_path / "cut")
    for epoch, wait in ((2, 0.013), (7, 0.0)):
        for line in cut.stdout:
            if int(line) >= epoch:
                break
        time.sleep(wait)
        cut.send_signal(signal.SIGKILL)
        cut.wait()
        assert not (tmp_path / "cut" / "final.pt").exists()
        cut = start(tmp_path / "cut")
    printed = [int(line) for line in cut.communicate(timeout=60)[0].split()]
    assert printed == list(range(1, 13)) and whole.wait(60) == 0 and cut.returncode == 0
    a, b = (torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("whole", "cut"))
    assert same(a, b)


def test_a_finished_training_is_not_trained_again(tmp_path):
    first, second = Net(), Net()
    rows = trained(first, tmp_path, valid=Blobs(30, 1))
    train = Blobs()
    assert trained(second, tmp_path, train, valid=Blobs(30, 1)) == rows
    assert train.sizes == [] and same(weights(first), weights(second))


def test_an_interrupted_one_keeps_the_micro_batch_that_memory_taught_it(tmp_path):
    rows = fit(Hungry(most=5), Blobs(), settings(), PLAN, tmp_path, class_counts=[16] * 3)
    assert next(rows)["micro_batch"] == 4
    rows.close()
    model = Hungry(most=5)
    again = trained(model, tmp_path)
    assert [row["out_of_memory"] for row in again] == [2, 0, 0, 0] and max(model.largest) == 4


class Versioned(Net):
    """Asks for the version of the state that it loads, as MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version") != 2:
            raise ValueError("version should be set")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def test_a_network_that_asks_for_its_state_s_version_trains_and_goes_on(tmp_path):
    chosen = settings(epochs=2)
    first = next(iter(fit(Versioned(), Blobs(), chosen, PLAN, tmp_path, class_counts=[16, 16, 16], valid=Blobs(30, 1))))
    rows = trained(Versioned(), tmp_path, settings=chosen, valid=Blobs(30, 1))
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[0] == first
