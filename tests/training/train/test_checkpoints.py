"""Checkpoints: whole or not at all; damage is said."""

from __future__ import annotations

import json

import pytest
import torch

from training import Blobs, Net, Told, same, settings, weights
from unfreeze.core.progress import Reporter
from unfreeze.training.fine_tune import checkpoints
from unfreeze.training.fine_tune.autotune import Plan
from unfreeze.training.fine_tune.checkpoints import Checkpoint, load, load_best, save, save_best, weights_of
from unfreeze.training.fine_tune.loop import fit


def written(folder, epoch=3, best=2):
    model = Net(norm=True)
    digest = save_best(folder, best, weights_of(model))
    done = Checkpoint("id", epoch, 1.5, 8, [{"epoch": n + 1} for n in range(epoch)], best)
    save(folder, done, {"model": model.state_dict(), "average": {}}, digest)
    return model, done


def test_what_is_written_comes_back_and_only_the_last_and_the_best_stay(tmp_path):
    written(tmp_path, 1, 1)
    model, done = written(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best-2.safetensors", "checkpoint.json", "last-3.pt"]
    found, state = load(tmp_path, "id", Reporter())
    assert (found.epoch, found.micro_batch, found.rows) == (3, 8, done.rows)
    assert same(state["model"], weights(model)) and same(load_best(tmp_path, found), weights(model))


def test_weights_that_share_memory_can_be_kept(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)).to(memory_format=torch.channels_last)
    model[1].weight = model[0].weight
    save_best(tmp_path, 1, weights_of(model))
    found = load_best(tmp_path, Checkpoint("id", 1, 0.0, 1, [], 1))
    assert torch.equal(found["0.weight"], found["1.weight"])


def test_nothing_there_is_nothing_to_say(tmp_path):
    told = Told()
    assert load(tmp_path / "none", "id", told) is None and told.lines == []


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / "last-3.pt"),
        lambda folder: flip(folder / "best-2.safetensors"),
        lambda folder: (folder / "last-3.pt").write_bytes(b""),
        lambda folder: (folder / "last-3.pt").unlink(),
        lambda folder: (folder / "checkpoint.json").write_text("{"),
        lambda folder: (folder / "checkpoint.json").write_text("[]"),
        lambda folder: (folder / "checkpoint.json").write_text(json.dumps({"version": 1, "epoch": 3})),
    ],
    ids=["a bit of the state", "a bit of the best", "emptied", "gone", "torn mark", "a list", "keys gone"],
)
def test_damage_is_said_and_training_starts_over(damage, tmp_path):
    written(tmp_path)
    damage(tmp_path)
    told = Told()
    assert load(tmp_path, "id", told) is None
    assert len(told.lines) == 1 and "damaged" in told.lines[0] and "starts over" in told.lines[0]


def test_another_recipe_or_version_starts_over(tmp_path, monkeypatch):
    written(tmp_path)
    told = Told()
    assert load(tmp_path, "other", told) is None and "another recipe" in told.lines[0]
    monkeypatch.setattr(checkpoints, "_VERSION", 2)
    assert load(tmp_path, "id", told) is None and "version" in told.lines[1]


def test_training_over_a_damaged_checkpoint_equals_a_fresh_one(tmp_path):
    first, second = Net(), Net()
    for model in (first, second):
        told = Told()
        run = fit(
            model, Blobs(), settings(epochs=2), Plan(micro_batch=16), tmp_path, class_counts=[16] * 3, reporter=told
        )
        assert [row["epoch"] for row in run] == [1, 2]
        flip(tmp_path / "last-2.pt")
    assert "damaged" in told.lines[0] and same(weights(first), weights(second))
