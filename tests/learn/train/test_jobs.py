"""One fold's training: written and read, equal to the probe before its first step, the same after what goes wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import unfreeze as uf
from finetuning import Says, colours, fit_here, make_recipe, no_processes
from unfreeze.core.errors import BackboneError, RecipeError, RunError
from unfreeze.learn.train import jobs, tuned_folds
from unfreeze.learn.train.tuning import Setting, settle


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """36 photos in 18 groups."""
    return colours(tmp_path_factory.mktemp("photos") / "colours")


def tensors(run, fold=0):
    return load_file(run.path / f"fold-{fold}" / "model.safetensors")


def begun(recipe, classes=3, fold=0):
    """The network's tensors before training."""
    torch.manual_seed(recipe.seed * 1000 + fold)
    return Setting.of(recipe, settle(recipe, 24)).network(classes)


def probabilities(run):
    return run.predictions().filter(like="p_").to_numpy()


@pytest.fixture(scope="module")
def probed(source, tmp_path_factory):
    """The probe that training starts from, on the plain view alone."""
    folder = tmp_path_factory.mktemp("runs") / "probe"
    return fit_here(source, folder, "probe", probe__views=["plain"])


@pytest.mark.parametrize("strategy", ["late", "full"])
@pytest.mark.parametrize("backbone", ["timm/test_resnet", "timm/test_vit", "timm/test_convnext"])
def test_a_network_equals_the_probe_before_its_first_step(strategy, backbone, source, tmp_path):
    """Activations are float16: probabilities may differ by 2e-3."""
    changes = {"backbone": backbone, "probe__views": ["plain"]}
    run = fit_here(
        source, tmp_path / "run", strategy, **changes, train__keep=0.0, train__ensemble=False, train__epochs=1
    )
    probe = fit_here(source, tmp_path / "probe", "probe", **changes)
    assert np.abs(probabilities(run) - probabilities(probe)).max() < 2e-3
    assert probabilities(probe).std(0).min() > 0.05  # not all photos alike


def test_training_moves_it(source, probed, tmp_path):
    run = fit_here(source, tmp_path / "run", "late", train__ensemble=False, probe__views=["plain"], train__rate=0.05)
    assert np.abs(probabilities(run) - probabilities(probed)).max() > 1e-3
    beside = run.scores()["beside"]
    assert set(beside) == {"probe", "network alone"}


@pytest.mark.parametrize("batchnorm", ["frozen", "train"])
def test_frozen_stages_are_bitwise_unchanged(batchnorm, source, tmp_path):
    changes = {"train__unfreeze": "last:2", "train__batchnorm": batchnorm, "train__keep": 1.0}
    recipe = make_recipe("full", source, **changes)
    run = fit_here(source, tmp_path / "run", "full", **changes)
    before, after = begun(recipe).state_dict(), tensors(run)
    # What is not written cannot have changed; what is written is of the last two stages and the head.
    assert not any(
        name.startswith(("network.conv1", "network.bn1", "network.layer1", "network.layer2")) for name in after
    )
    assert any(name.startswith("network.layer3") for name in after)
    moved = {n for n in after if after[n].is_floating_point() and not torch.equal(after[n], before[n])}
    statistics = {n for n in after if "running_" in n}
    assert statistics
    assert (statistics & moved == set()) if batchnorm == "frozen" else statistics <= moved
    assert any(name.endswith("conv1.weight") for name in moved)
    # The frozen part in memory too: the model that predicts is built from the pretrained one.
    classifier = uf.load(run)
    (tuned,) = classifier.tuned
    own = tuned.network(tuned.files[0]).state_dict()
    assert all(torch.equal(own[n], before[n]) for n in before if n not in after)


def test_frozen_stages_stay_while_it_trains(source, tmp_path, monkeypatch):
    """The network as the loop leaves it, before anything is loaded anew."""
    models = []
    was = Setting.network
    monkeypatch.setattr(Setting, "network", lambda self, classes: models.append(was(self, classes)) or models[-1])
    changes = {"train__unfreeze": "last:2", "train__batchnorm": "train", "train__weight_decay": 0.5}
    fit_here(source, tmp_path / "run", "full", **changes)
    before = begun(make_recipe("full", source, **changes)).state_dict()
    after = models[0].state_dict()
    frozen = [n for n in before if n.startswith(("network.conv1", "network.bn1", "network.layer1", "network.layer2"))]
    assert any("running_mean" in n for n in frozen)
    assert all(torch.equal(before[n], after[n]) for n in frozen)


def one_job(source, tmp_path, strategy="full", **changes):
    """The job of fold 0 without doing it."""
    recipe = make_recipe(strategy, source, **changes)

    class TakenError(Exception):
        pass

    found = []

    def take(todo, *_):
        found.extend(todo)
        raise TakenError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(TakenError):
        patch.setattr(tuned_folds, "train_folds", take)
        uf.fit(uf.read(source, recipe.source), recipe, tmp_path / "unfinished")
    return found[0]


@pytest.mark.parametrize("strategy", ["full", "scratch"])
def test_a_job_is_read_as_it_was_written(strategy, source, tmp_path):
    job = one_job(source, tmp_path, strategy)
    job.write(tmp_path)
    again = jobs.Job.read(tmp_path)
    assert again.identity() == job.identity()
    assert (again.start is None) == (strategy == "scratch")
    assert again.recipe == job.recipe and again.settings == job.settings
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(RunError, match="run the same command again"):
        jobs.Job.read(tmp_path)


def test_identity_names_all_that_counts_and_not_the_clock(source, tmp_path):
    from dataclasses import replace

    job = one_job(source, tmp_path)
    assert replace(job, ends=123.0).identity() == job.identity()
    weight, bias = job.start
    others = [
        replace(job, train=job.train[1:]),
        replace(job, labels=job.labels[::-1].copy()),
        replace(job, settings=job.settings.model_copy(update={"rate": 1.0})),
        replace(job, start=(-weight, bias)),
        replace(job, start=None),
        replace(job, fold=1),
    ]
    assert len({job.identity(), *(other.identity() for other in others)}) == 7


class _Hungry:
    """Wraps a network: out of memory above `most` photos at its forward passes number `first` to `last`."""

    def __init__(self, monkeypatch, first, last, most=5):
        was, self.calls, self.failures = Setting.network, 0, 0

        def network(setting, classes):
            model = was(setting, classes)
            forward = model.forward

            def hungry(inputs):
                self.calls += 1
                out = forward(inputs)  # buffers have moved and random numbers are drawn before it fails
                if first <= self.calls <= last and len(inputs) > most:
                    self.failures += 1
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                return out

            model.forward = hungry
            return model

        monkeypatch.setattr(Setting, "network", network)


@pytest.fixture
def fold(source, tmp_path):
    """Function: name, recipe's changes -> trains fold 0, gives tensors, probabilities, rows and lines."""

    def train(name, **changes):
        job = one_job(source, tmp_path, **changes)
        place, says, rows = tmp_path / name, Says(), []
        with no_processes():
            job.write(place)
            jobs.do(job, place, place / "model.safetensors", rows.append, says)
        return load_file(place / "model.safetensors"), np.load(place / "probabilities.npy"), rows, says.lines

    return train


def passes(monkeypatch, fold, **changes):
    with monkeypatch.context() as patch:
        counted = _Hungry(patch, 10**9, 10**9)
        result = fold("counted", **changes)
    return result, counted.calls


@pytest.mark.parametrize("moment", ["step 1", "epoch 2", "evaluation", "prediction"])
def test_out_of_memory_changes_nothing(moment, fold, monkeypatch):
    changes = {"train__patience": 5, "train__batch": 8, "train__micro_batch": 8, "train__weight_decay": 0.0}
    fold("warm", **changes)  # makes the plan, whose trials are passes too
    (weights, out, _, _), calls = passes(monkeypatch, fold, **changes)
    job_steps = 3  # 20 photos or so in batches of 8, then 1 pass of evaluation an epoch
    first = {"step 1": 1, "epoch 2": job_steps + 3, "evaluation": job_steps + 1, "prediction": calls - 3}[moment]
    hungry = _Hungry(monkeypatch, first, first + 1)
    again, out_again, _, lines = fold("hungry", **changes)
    assert hungry.failures, (first, calls)
    assert any("out of memory" in line for line in lines) or moment == "prediction"
    assert weights.keys() == again.keys()
    # Pieces of a batch are summed in another order: the last bits differ.
    for name, tensor in weights.items():
        assert torch.allclose(tensor, again[name], rtol=1e-4, atol=1e-5), name
    assert np.abs(out - out_again).max() < 1e-4


def test_held_groups_are_inside_the_training_part(source, tmp_path):
    recipe = make_recipe("full", source, train__patience=2)
    with no_processes() as done:
        run = uf.fit(uf.read(source, recipe.source), recipe, tmp_path / "run")
    table = run.photos()
    units, folds = table["unit"].to_numpy(), table["fold"].to_numpy()
    for job in done:
        assert len(job.valid) and not set(job.valid) & set(job.train)
        assert (folds[job.valid] != job.fold).all() and (folds[job.train] != job.fold).all()
        assert set(job.valid) | set(job.train) == set(np.flatnonzero(folds != job.fold))
        assert not set(units[job.valid]) & set(units[job.train])
        assert set(job.labels[job.valid]) == {0, 1, 2}
    rows = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert all(row["valid_loss"] is not None for row in rows)
    assert {f["best_epoch"] for f in run.scores()["folds"]} <= {1, 2}


def test_the_head_that_it_starts_from_has_not_seen_the_held_rows(source, tmp_path, monkeypatch):
    """Labels of the held rows are changed: nothing that training starts from may move with them."""
    job = one_job(source, tmp_path, train__patience=2)
    kept = {}
    was = tuned_folds._held_inside

    def planted(work, settings, train, fold):
        valid = was(work, settings, train, fold)
        kept[fold] = valid
        if plant:
            work.labels = work.labels.copy()
            work.labels[valid] = (work.labels[valid] + 1) % 3
        return valid

    monkeypatch.setattr(tuned_folds, "_held_inside", planted)
    plant = False
    plain = one_job(source, tmp_path / "a", train__patience=2)
    plant = True
    other = one_job(source, tmp_path / "b", train__patience=2)
    assert (plain.valid == other.valid).all() and (plain.labels[plain.valid] != other.labels[plain.valid]).all()
    assert (plain.start[0] == other.start[0]).all() and (plain.start[0] == job.start[0]).all()
    # Without the care for it, the fold's head is another one.
    whole = one_job(source, tmp_path / "c", train__patience=0)
    assert not np.array_equal(whole.start[0], plain.start[0])


def test_the_best_weights_are_kept(source, tmp_path, monkeypatch):
    """The second epoch is made the best by planted judgements; a third and fourth follow."""
    from unfreeze.learn.train import steps

    values = iter([0.5, 0.9, 0.4, 0.3] * 3)
    models, at_best = [], []
    was = steps.Steps.evaluate

    def evaluate(self, valid, where):
        found = was(self, valid, where)
        value = next(values)
        if value == 0.9:
            at_best.append({n: t.clone() for n, t in self.model.trained_state().items()})
        models.append(self.model)
        return found[0], value

    monkeypatch.setattr(steps.Steps, "evaluate", evaluate)
    run = fit_here(source, tmp_path / "run", "late", train__patience=2, train__epochs=9, train__keep=1.0)
    assert [f["epochs"] for f in run.scores()["folds"]] == [4, 4, 4]
    assert [f["best_epoch"] for f in run.scores()["folds"]] == [2, 2, 2]
    for k, state in enumerate(at_best):
        kept = tensors(run, k)
        assert all(torch.equal(kept[n], state[n]) for n in state)


def test_stopping_with_too_few_groups_is_said(tmp_path):
    few = colours(tmp_path / "few", groups=2)
    with pytest.raises(RecipeError, match=r"train.patience"):
        fit_here(few, tmp_path / "run", "late", train__patience=1, folds__count=2)


# Each word is tried somewhere; what does not touch each other stands together.
VARIANTS = {
    "weighted over": ("late", {"balance__loss": "weighted", "balance__sampling": "over", "train__ema": 0.9}),
    "focal cutmix": ("full", {"balance__loss": "focal", "train__cutmix": 1.0, "train__optimiser": "sgd"}),
    "adjusted mixup": ("late", {"balance__loss": "logit-adjusted", "train__mixup": 0.4, "train__views": 3}),
    "soft-f1 under": ("late", {"balance__loss": "soft-f1", "balance__sampling": "under"}),
    "progressive": ("full", {"train__progressive": True, "train__epochs": 3}),
    "gradual": ("full", {"train__gradual": 1.0, "train__augment": "strong"}),
    "head": ("full", {"train__unfreeze": "head"}),
    "random start": ("full", {"train__start": "random"}),
    "classifier late": ("late", {"train__head": "classifier"}),
    "classifier full": ("full", {"train__head": "classifier"}),
    "smoothing": ("scratch", {"train__label_smoothing": 0.1}),
    "openvino": ("late", {"engine": "openvino-f32"}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name, source, tmp_path):
    strategy, changes = VARIANTS[name]
    if "engine" in changes:
        pytest.importorskip("openvino")
    run = fit_here(source, tmp_path / "run", strategy, folds__count=2, **changes)
    rows = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    epochs = range(1, 1 + changes.get("train__epochs", 2))
    assert [(row["fold"], row["epoch"]) for row in rows] == [(k, e) for k in range(2) for e in epochs]
    assert np.isfinite([row["train_loss"] for row in rows]).all()
    assert np.abs(probabilities(run).sum(1) - 1).max() < 1e-9
    if name == "progressive":
        assert [row["size"] for row in rows] == [32, 32, 0] * 2
    if name == "gradual":
        assert rows[0]["trained"] < rows[1]["trained"]
    assert uf.load(run).predict([source / "red" / "g000_0.jpg"])["error"].tolist() == [""]


def test_auxiliary_heads(tmp_path):
    few = colours(tmp_path / "few", groups=2, each=1)
    changes = {"backbone": "torchvision/googlenet", "image__size": 32, "folds__count": 2, "train__epochs": 1}
    run = fit_here(few, tmp_path / "run", "scratch", **changes)
    assert any(".aux1." in name for name in tensors(run))
    assert (uf.load(run).predict(few)["error"] == "").all()


def test_auxiliary_heads_that_cannot_train_on_small_photos_are_said_at_once(source, tmp_path):
    with pytest.raises(BackboneError, match=r"set image.size to"):
        fit_here(source, tmp_path / "run", "scratch", backbone="torchvision/inception_v3", image__size=75)
    assert not (tmp_path / "run").exists()


def test_photos_shrink_where_the_budget_is_short_and_it_stays_decided(source, tmp_path):
    from unfreeze.learn.train.plan import Plan
    from unfreeze.learn.train.tuning import Setting

    job = one_job(source, tmp_path)
    setting = Setting.of(job.recipe, job.settings)
    need = job.settings.epochs * len(job.train)
    slow = Plan(speeds={"f32 contiguous": need / 10, "bf16 contiguous": "unsafe"})
    for name, seconds, short in (("a", 5.0, True), ("b", 20.0, False)):
        assert jobs._short(job, setting, tmp_path / name, seconds, slow) is short
        # Taken up again with less or more time left it goes on as it began.
        assert jobs._short(job, setting, tmp_path / name, 25.0 - seconds, slow) is short
    assert not jobs._short(job, setting, tmp_path / "c", 5.0, Plan())  # never timed
    fixed = one_job(source, tmp_path / "vit", backbone="timm/test_vit", image__size=160)
    assert not jobs._short(fixed, Setting.of(fixed.recipe, fixed.settings), tmp_path / "d", 5.0, slow)
