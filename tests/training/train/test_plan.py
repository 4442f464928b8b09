"""The plan: the same on an idle and on a busy machine, safe, and kept with its training."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from training import Blobs, Net, Told, one_thread, same, settings, weights
from unfreeze.training.fine_tune import autotune
from unfreeze.training.fine_tune import autotune as planning
from unfreeze.training.fine_tune.autotune import Plan, make_plan
from unfreeze.training.fine_tune.losses import make_loss

LOSS = make_loss("ce", [1, 1, 1])
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture
def bf16(monkeypatch):
    """A processor with bfloat16, whatever this one has."""
    monkeypatch.setattr(autotune, "native_bf16", lambda: True)


def planned(model, told=None, inputs=None, timed=False, share=1, **changes):
    photos = Blobs(8)
    inputs = photos.inputs if inputs is None else inputs
    chosen = settings(**changes)
    return make_plan(model, inputs, photos.targets, LOSS, chosen, timed=timed, share=share, reporter=told)


class Depthwise(Net):
    """A 1x1 convolution, then `layers` depthwise ones as large."""

    def __init__(self, layers=1, groups=8):
        super().__init__()
        self.more = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1, groups=groups) for _ in range(layers)))

    def forward(self, x):
        return self.head(self.more(self.stem(x)).relu().mean((2, 3)))


class Slow(Net):
    """Takes much longer in one way of running it than in the others."""

    def __init__(self, dislikes, **options):
        super().__init__(**options)
        self.dislikes, self.slept = dislikes, 0

    def forward(self, x):
        bf16 = torch.is_autocast_enabled("cpu")
        last = x.is_contiguous(memory_format=torch.channels_last)
        if self.dislikes == ("bf16" if bf16 else "f32", "channels_last" if last else "contiguous"):
            self.slept += 1
            time.sleep(0.05)
        return super().forward(x)


@pytest.mark.parametrize(
    "dislikes", [(p, f) for p in ("f32", "bf16") for f in ("contiguous", "channels_last")], ids=str
)
def test_no_speed_changes_the_plan_and_the_network_is_untouched(dislikes, bf16):
    model = Slow(dislikes, norm=True, drop=0.2).train()
    before, state = weights(model), torch.get_rng_state()
    plan = planned(model)
    assert plan == planned(Net(norm=True, drop=0.2).train())
    assert (plan.precision, plan.memory_format, plan.pace) == ("bf16", "channels_last", 0.0)
    assert same(weights(model), before) and torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.is_contiguous() for p in model.parameters())
    assert plan.micro_batch == 16 and plan.need.photo > 0


@pytest.mark.parametrize(
    ("model", "share", "precision"),
    [
        (Net(), 0.0, "bf16"),
        (Depthwise(1), 72 / (72 + 72 + 3), "f32"),
        (Depthwise(1, groups=4), 0.0, "bf16"),  # grouped, not depthwise
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), 0.0, "bf16"),
    ],
    ids=["dense", "depthwise", "grouped", "linear"],
)
def test_the_share_of_depthwise_outputs_decides_on_the_precision(model, share, precision, bf16, monkeypatch):
    assert autotune.depthwise_share(model, Blobs(8).inputs) == pytest.approx(share)
    assert planned(model).precision == precision
    monkeypatch.setattr(autotune, "native_bf16", lambda: False)
    assert planned(model).precision == "f32"


def test_counting_leaves_no_hook_and_no_statistics():
    model = Depthwise().train()
    model.norm = nn.BatchNorm2d(8)
    before = weights(model)
    autotune.depthwise_share(model, Blobs(8).inputs)
    assert same(weights(model), before)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({}, False),
    ],
)
def test_bf16_is_native_where_the_processor_says_so(capabilities, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert autotune.native_bf16() is native
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert autotune.native_bf16() is False


class Coarse(nn.Module):
    """Its gradient is wrong in bf16."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 8 * 8, 3)

    def forward(self, x):
        return self.head(-x.flatten(1) if torch.is_autocast_enabled("cpu") else x.flatten(1))


class Broken(Coarse):
    """In bf16 its output is no number."""

    def forward(self, x):
        return self.head(x.flatten(1)) * (float("nan") if torch.is_autocast_enabled("cpu") else 1.0)


@pytest.mark.parametrize("model", [Coarse, Broken])
def test_a_precision_that_changes_the_gradient_is_not_used(model, bf16):
    told = Told()
    assert planned(model(), told).precision == "f32"
    assert "f32, because a gradient in bf16 differs from it too much" in told.lines[0]


def test_the_recipe_s_wishes_are_kept(bf16):
    plan = planned(Depthwise(), precision="bf16", memory_format="contiguous", micro_batch=3)
    assert (plan.precision, plan.memory_format, plan.micro_batch, plan.need) == ("bf16", "contiguous", 3, None)
    told = Told()
    assert planned(Net(), told, precision="f16").precision == "f32" and "f16 needs a GPU" in told.lines[0]


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 + 5 + 6, 3)

    def forward(self, inputs):
        picture, tokens, pooled = inputs
        return self.head(torch.cat([self.conv(picture).mean((2, 3)), tokens.mean(1), pooled], 1))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 3)

    def forward(self, tokens):
        return self.head(tokens.mean(1))


def test_tuples_of_activations_pass(bf16):
    photos = (Blobs(8).inputs.half(), torch.randn(8, 7, 5).half(), torch.randn(8, 6))
    plan = planned(Pair(), inputs=photos)
    assert (plan.precision, plan.memory_format) == ("bf16", "channels_last")
    placed = Plan(memory_format="channels_last").placed(photos, CPU)
    assert all(one.dtype == torch.float32 for one in placed)
    assert placed[0].is_contiguous(memory_format=torch.channels_last) and placed[1].is_contiguous()
    assert planned(Tokens(), inputs=photos[1], memory_format="channels_last").memory_format == "contiguous"


def test_the_machine_s_memory_decides_the_micro_batch_and_too_little_of_it_is_said(monkeypatch):
    monkeypatch.setattr(planning, "free_memory", lambda device: 10**12)
    need = planned(Net(), batch_size=64).need
    for bytes_, micro in ((need.at(64), 64), (need.at(64) - 1, 32), (need.at(20), 16), (0, 1)):
        monkeypatch.setattr(planning, "memory_budget", lambda device, share, bytes_=bytes_: bytes_)
        for free in (bytes_, 10**12):  # more that is free changes nothing
            monkeypatch.setattr(planning, "free_memory", lambda device, free=free: free)
            told = Told()
            assert planned(Net(), told, batch_size=64).micro_batch == micro and len(told.lines) == 1
    told = Told()
    monkeypatch.setattr(planning, "memory_budget", lambda device, share: 10**12)
    monkeypatch.setattr(planning, "free_memory", lambda device: need.at(20))
    assert planned(Net(), told, batch_size=64).micro_batch == 16
    assert "low memory; 16 images at once instead of 64" in told.lines[0]
    assert "train.micro_batch = 16" in told.lines[0]


def test_trainings_side_by_side_plan_with_their_share(monkeypatch):
    asked = []
    monkeypatch.setattr(planning, "memory_budget", lambda device, share: asked.append(share) or 10**12)
    planned(Net(), share=4)
    assert asked == [4]


def test_a_plan_survives_running_out_of_memory(bf16):
    class Small(Net):
        def forward(self, x):
            if len(x) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(x)

    told = Told()
    plan = planned(Small(), told, timed=True)
    assert (plan.micro_batch, plan.precision) == (16, "bf16") and plan.pace > 0
    assert any("out of memory" in line for line in told.lines)


def test_only_a_budget_asks_for_the_pace():
    assert planned(Net()).pace == 0
    assert planned(Net(), timed=True).pace > 0


def test_a_kept_plan_is_that_of_its_training(tmp_path):
    plan = planned(Net())
    plan.write(tmp_path / "plan.json", "this one")
    assert Plan.read(tmp_path / "plan.json", "this one") == Plan.read(tmp_path / "plan.json") == plan
    assert Plan.read(tmp_path / "plan.json", "another") is None
    for content in ("{", "[]", '{"plan": {"precision": "f8", "need": null}}', '{"plan": {"need": {}}}', '{"plan": []}'):
        (tmp_path / "plan.json").write_text(content)
        assert Plan.read(tmp_path / "plan.json") is None
    assert Plan.read(tmp_path / "absent.json") is None
