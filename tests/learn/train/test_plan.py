"""The plan: timed once, safe, kept, and no trace of the trials in the network."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from training import Blobs, Net, Told, one_thread, same, settings, weights

from unfreeze.learn.train import plan as planning
from unfreeze.learn.train.losses import make_loss
from unfreeze.learn.train.plan import Plan, make_plan

LOSS = make_loss("ce", [1, 1, 1])


@pytest.fixture(autouse=True)
def _one_thread(fresh_cache):
    with one_thread():
        yield


def planned(model, told=None, key="net", inputs=None, **changes):
    photos = Blobs(8)
    inputs = photos.inputs if inputs is None else inputs
    return make_plan(model, inputs, photos.targets, LOSS, settings(**changes), {"key": key}, reporter=told)


class Slow(Net):
    """Takes longer unless it is run in the one way it likes."""

    def __init__(self, likes, **options):
        super().__init__(**options)
        self.likes = likes

    def forward(self, x):
        bf16 = torch.is_autocast_enabled("cpu")
        last = x.is_contiguous(memory_format=torch.channels_last)
        if self.likes != ("bf16" if bf16 else "f32", "channels_last" if last else "contiguous"):
            time.sleep(0.05)
        return super().forward(x)


@pytest.mark.parametrize("likes", [(p, f) for p in ("f32", "bf16") for f in ("contiguous", "channels_last")], ids=str)
def test_the_fastest_is_chosen_and_the_network_is_untouched(likes):
    model = Slow(likes, norm=True, drop=0.2).train()
    before, state = weights(model), torch.get_rng_state()
    plan = planned(model)
    assert (plan.precision, plan.memory_format) == likes and len(plan.speeds) == 4
    assert same(weights(model), before) and torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.is_contiguous() for p in model.parameters())
    assert plan.micro_batch == 16 and plan.need.photo > 0


def test_the_next_run_takes_the_same_from_the_cache(monkeypatch):
    told = Told()
    first = planned(Net(), told)
    assert "photos at once" in told.lines[0] and "measured once" in told.lines[0]
    monkeypatch.setattr(planning, "_Trials", None)
    assert planned(Net(), told) == first and len(told.lines) == 1
    with pytest.raises(TypeError):
        planned(Net(), key="another network")


def test_a_damaged_plan_is_made_again(fresh_cache):
    planned(Net())
    (path,) = (fresh_cache / "plans").glob("*.json")
    for content in ("{", '{"plan": {"precision": "f8", "need": null}}', '{"plan": {"need": {}}}'):
        path.write_text(content)
        assert planned(Net()).precision in ("f32", "bf16")


class Coarse(nn.Module):
    """Much faster in bf16, where its gradient is wrong."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 8 * 8, 3)

    def forward(self, x):
        if not torch.is_autocast_enabled("cpu"):
            time.sleep(0.05)
            return self.head(x.flatten(1))
        return self.head(-x.flatten(1))


def test_a_precision_that_changes_the_gradient_is_not_used():
    plan = planned(Coarse(), memory_format="contiguous")
    assert plan.precision == "f32" and "unsafe" in plan.speeds["bf16 contiguous"]


def test_the_recipe_s_wishes_are_kept():
    plan = planned(Net(), precision="bf16", memory_format="channels_last", micro_batch=3)
    assert (plan.precision, plan.memory_format, plan.micro_batch, plan.need) == ("bf16", "channels_last", 3, None)
    told = Told()
    assert planned(Net(), told, precision="f16").precision == "f32" and "f16 needs a GPU" in told.lines[0]


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 + 5 + 6, 3)

    def forward(self, inputs):
        picture, tokens, pooled = inputs
        return self.head(torch.cat([self.conv(picture).mean((2, 3)), tokens.mean(1), pooled], 1))


def test_tuples_of_activations_pass():
    photos = (Blobs(8).inputs.half(), torch.randn(8, 7, 5).half(), torch.randn(8, 6))
    plan = planned(Pair(), inputs=photos)
    assert len(plan.speeds) == 4
    placed = Plan(memory_format="channels_last").placed(photos, torch.device("cpu"))
    assert all(one.dtype == torch.float32 for one in placed)
    assert placed[0].is_contiguous(memory_format=torch.channels_last) and placed[1].is_contiguous()


def test_memory_decides_the_micro_batch_and_less_of_it_later_lowers_it(monkeypatch):
    monkeypatch.setattr(planning, "free_memory", lambda device: 10**12)
    assert planned(Net(), batch=64).micro_batch == 64
    path_need = planned(Net(), batch=64).need
    told = Told()
    monkeypatch.setattr(planning, "free_memory", lambda device: path_need.at(20))
    assert planned(Net(), told, batch=64).micro_batch == 16 and "memory is short" in told.lines[0]
    monkeypatch.setattr(planning, "free_memory", lambda device: 0)
    assert planned(Net(), batch=64).micro_batch == 1


def test_trials_survive_running_out_of_memory():
    class Small(Net):
        def forward(self, x):
            if len(x) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(x)

    told = Told()
    assert planned(Small(), told).micro_batch == 16 and any("out of memory" in line for line in told.lines)
