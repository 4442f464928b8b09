"""Memory: what fits is measured, limits are read, and failures are told from other errors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from training import Net, Told
from unfreeze.core.errors import EngineError
from unfreeze.models.eager import is_out_of_memory
from unfreeze.training.fine_tune import memory
from unfreeze.training.fine_tune.memory import (
    MicroBatch,
    StepMemory,
    TrainingSnapshot,
    cgroup_limit,
    cgroup_room,
    map_micro_batches,
    measure_need,
)

CPU = torch.device("cpu")


def test_pieces_are_even_and_complete():
    for size, least in ((4, 1), (4, 2), (1, 2), (100, 1)):
        for count in range(1, 40):
            pieces = MicroBatch(size, least).pieces(count)
            assert [i for piece in pieces for i in range(piece.start, piece.stop)] == list(range(count))
            lengths = {piece.stop - piece.start for piece in pieces}
            assert max(lengths) - min(lengths) <= 1 and min(lengths) >= min(least, count)
            assert max(lengths) <= max(size, 2 * least - 1)


@pytest.mark.parametrize("least", [1, 2])
@pytest.mark.parametrize("count", [1, 3, 17])
def test_shrinking_ends(count, least):
    micro, told = MicroBatch(64, least, Told()), []
    with pytest.raises(EngineError, match=r"image\.size"):
        for _ in range(20):
            told.append(max(p.stop - p.start for p in micro.pieces(count)))
            micro.shrink(count, "A test")
    assert told == sorted(set(told), reverse=True) and told[-1] <= max(least + 1, 1)


def test_what_says_memory():
    for error in (torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory")):
        assert is_out_of_memory(error)
    for error in (RuntimeError("shape mismatch"), ValueError("out of memory"), KeyboardInterrupt()):
        assert not is_out_of_memory(error)


def test_a_real_allocation_that_cannot_be_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55)
    assert is_out_of_memory(caught.value)


def test_pieces_done_are_kept_when_memory_runs_out():
    x, seen, micro = torch.arange(20.0)[:, None], [], MicroBatch(8)

    def double(inputs):
        if inputs[0][0, 0] >= 6 and len(inputs[0]) > 2:
            raise MemoryError
        seen.append(len(inputs[0]))
        return inputs[0] * 2 + inputs[1]

    torch.testing.assert_close(map_micro_batches(double, (x, x), micro), x * 3)
    assert seen[0] == 6 and max(seen[1:]) <= 2 and len(micro.halved) == 2


def test_the_largest_half_that_fits():
    need = StepMemory(fixed=1000, photo=100)
    assert need.at(8) == 1.25 * 1800
    assert [need.fitting(64, free) for free in (10**6, 9249, 5249, 0)] == [64, 32, 16, 1]
    assert need.fitting(24, need.at(6)) == 6


def test_a_moment_comes_back():
    model = Net(norm=True).train()
    before = {name: b.clone() for name, b in model.named_buffers()}
    moment = TrainingSnapshot(model)
    drawn = torch.rand(2)
    model(torch.randn(4, 3, 8, 8))
    assert model.norm.num_batches_tracked == 1
    moment.restore()
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    assert torch.equal(torch.rand(2), drawn)


def test_what_autograd_keeps_is_counted_by_hand():
    """Linear keeps its input and ReLU its output, both float32; ReLU's output is the next one's input: once."""
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    need = measure_need(model, lambda n: model(torch.randn(n, 10)).sum().backward(), (2, 6), CPU, copies=3)
    weights = 4 * sum(p.numel() for p in model.parameters())
    assert need.photo == 4 * (10 + 20) and need.fixed == 4 * weights
    assert all(p.grad is None for p in model.parameters())
    model[0].requires_grad_(False)
    frozen = measure_need(model, lambda n: model(torch.randn(n, 10)).sum().backward(), (2, 6), CPU, copies=3)
    assert frozen.photo == 4 * 20 and frozen.fixed == 4 * 4 * 105


@pytest.fixture
def groups(tmp_path):
    """Function: (folder, limit, used, cached) -> writes a control group; and the tree's two paths."""
    own = tmp_path / "own"

    def write(folder, names, limit, used, stat):
        place = tmp_path / "cgroup" / folder
        place.mkdir(parents=True, exist_ok=True)
        for name, value in zip((*names, "memory.stat"), (limit, used, stat), strict=True):
            (place / name).write_text(f"{value}\n")

    return tmp_path / "cgroup", own, write


def test_limits_of_control_groups(groups):
    root, own, write = groups
    v2 = ("memory.max", "memory.current")
    own.write_text("0::/job/step\n")
    assert cgroup_room(root, own) == sys.maxsize
    write("job/step", v2, "max", 500, "inactive_file 100")
    assert cgroup_room(root, own) == sys.maxsize
    write("job", v2, 1000, 700, "anon 600\ninactive_file 100")
    assert cgroup_room(root, own) == 400
    assert cgroup_limit(root, own) == 1000
    own.write_text("5:cpu:/a\n4:memory:/docker/absent\n")
    v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    write("memory", v1, 2000, 2100, "total_inactive_file 50")
    assert cgroup_room(root, own) == 0
    assert cgroup_limit(root, own) == 2000
    assert cgroup_room(root, root / "absent") == sys.maxsize


def test_the_budget_is_a_share_of_all_memory_whatever_is_free(monkeypatch):
    monkeypatch.setattr(memory, "cgroup_limit", lambda: 8000)
    for free in (10, 10**12):
        monkeypatch.setattr(memory, "cgroup_room", lambda free=free: free)
        assert memory.memory_budget(CPU, 1) == 4000
        assert memory.memory_budget(CPU, 4) == 1000


def test_free_memory_is_lowered_by_the_group_s_limit(monkeypatch):
    free = memory.free_memory(CPU)
    assert 0 < free < 1 << 50
    monkeypatch.setattr(memory, "cgroup_room", lambda: 12345)
    assert memory.free_memory(CPU) == 12345


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_big_blocks_are_kept():
    """A freed block of 48 MiB comes back without fresh pages: page faults tell."""
    script = """
import resource, sys, numpy as np
from unfreeze.training.fine_tune.memory import _glibc, tune_malloc
if len(sys.argv) > 1: assert tune_malloc() == (_glibc() is not None)
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use(): np.ones(48 << 20, np.uint8)
use()
before = faults()
for _ in range(4): use()
print(faults() - before if _glibc() is not None else -1)
"""
    counts = [int(subprocess.check_output([sys.executable, "-c", script, *more])) for more in ([], ["keep"])]
    if counts[1] >= 0:
        assert counts[1] < 100 < counts[0] or counts[1] < counts[0] / 4
