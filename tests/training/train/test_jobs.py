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
from unfreeze.training.fine_tune import fold_job
from unfreeze.training.fine_tune import strategy as tuned_folds
from unfreeze.training.fine_tune.settings import TrainSetup, resolve_settings


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """36 photos in 18 groups."""
    return colours(tmp_path_factory.mktemp("photos") / "colours")


def tensors(run, fold=0):
    return load_file(run.path / f"fold-{fold}" / "model.safetensors")


def begun(recipe, classes=3, fold=0):
    """The network's tensors before training."""
    torch.manual_seed(recipe.seed * 1000 + fold)
    return TrainSetup.of(recipe, resolve_settings(recipe, 24)).network(classes)


def probabilities(run):
    return run.predictions().filter(like="p_").to_numpy()


@pytest.fixture(scope="module")
def probed(source, tmp_path_factory):
    """The probe that training starts from, on the plain view alone."""
    folder = tmp_path_factory.mktemp("runs") / "probe"
    return fit_here(source, folder, "probe", probe__views=["plain"])


@pytest.mark.parametrize("strategy", ["partial", "full"])
@pytest.mark.parametrize("backbone", ["timm/test_resnet", "timm/test_vit", "timm/test_convnext"])
def test_a_network_equals_the_probe_before_its_first_step(strategy, backbone, source, tmp_path):
    """Activations are float16: probabilities may differ by 2e-3."""
    changes = {"backbone": backbone, "probe__views": ["plain"]}
    run = fit_here(
        source,
        tmp_path / "run",
        strategy,
        **changes,
        train__wise_ft_alpha=0.0,
        train__average_with_probe=False,
        train__epochs=1,
    )
    probe = fit_here(source, tmp_path / "probe", "probe", **changes)
    assert np.abs(probabilities(run) - probabilities(probe)).max() < 2e-3
    assert probabilities(probe).std(0).min() > 0.05  # not all photos alike


def test_training_moves_it(source, probed, tmp_path):
    run = fit_here(
        source, tmp_path / "run", "partial", train__average_with_probe=False, probe__views=["plain"], train__lr=0.05
    )
    assert np.abs(probabilities(run) - probabilities(probed)).max() > 1e-3
    beside = run.scores()["components"]
    assert set(beside) == {"probe", "network alone"}


@pytest.mark.parametrize("batchnorm", ["frozen", "train"])
def test_frozen_stages_are_bitwise_unchanged(batchnorm, source, tmp_path):
    changes = {"train__trainable": "last:2", "train__bn_stats": batchnorm, "train__wise_ft_alpha": 1.0}
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
    was = TrainSetup.network
    monkeypatch.setattr(TrainSetup, "network", lambda self, classes: models.append(was(self, classes)) or models[-1])
    changes = {"train__trainable": "last:2", "train__bn_stats": "train", "train__weight_decay": 0.5}
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
    again = fold_job.FoldJob.read(tmp_path)
    assert again.identity() == job.identity()
    assert (again.start is None) == (strategy == "scratch")
    assert again.recipe == job.recipe and again.settings == job.settings
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(RunError, match="run the same command again"):
        fold_job.FoldJob.read(tmp_path)


def test_identity_names_all_that_counts_and_not_the_clock(source, tmp_path):
    from dataclasses import replace

    job = one_job(source, tmp_path)
    assert replace(job, ends=123.0).identity() == job.identity()
    weight, bias = job.start
    others = [
        replace(job, train=job.train[1:]),
        replace(job, labels=job.labels[::-1].copy()),
        replace(job, settings=job.settings.model_copy(update={"lr": 1.0})),
        replace(job, start=(-weight, bias)),
        replace(job, start=None),
        replace(job, fold=1),
    ]
    assert len({job.identity(), *(other.identity() for other in others)}) == 7


class _Hungry:
    """Wraps a network: out of memory above `most` photos at its forward passes number `first` to `last`."""

    def __init__(self, monkeypatch, first, last, most=5):
        was, self.calls, self.failures = TrainSetup.network, 0, 0

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

        monkeypatch.setattr(TrainSetup, "network", network)


@pytest.fixture
def fold(source, tmp_path):
    """Function: name, recipe's changes -> trains fold 0, gives tensors, probabilities, rows and lines."""

    def train(name, **changes):
        job = one_job(source, tmp_path, **changes)
        place, says, rows = tmp_path / name, Says(), []
        with no_processes():
            job.write(place)
            fold_job.run_fold_job(job, place, place / "model.safetensors", rows.append, says)
        return load_file(place / "model.safetensors"), np.load(place / "probabilities.npy"), rows, says.lines

    return train


def passes(monkeypatch, fold, **changes):
    with monkeypatch.context() as patch:
        counted = _Hungry(patch, 10**9, 10**9)
        result = fold("counted", **changes)
    return result, counted.calls


@pytest.mark.parametrize("moment", ["step 1", "epoch 2", "evaluation", "prediction"])
def test_out_of_memory_changes_nothing(moment, fold, monkeypatch):
    changes = {"train__patience": 5, "train__batch_size": 8, "train__micro_batch": 8, "train__weight_decay": 0.0}
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
    from unfreeze.training.fine_tune import trainer

    values = iter([0.5, 0.9, 0.4, 0.3] * 3)
    models, at_best = [], []
    was = trainer.Trainer.evaluate

    def evaluate(self, valid, where):
        found = was(self, valid, where)
        value = next(values)
        if value == 0.9:
            at_best.append({n: t.clone() for n, t in self.model.trained_state().items()})
        models.append(self.model)
        return found[0], value

    monkeypatch.setattr(trainer.Trainer, "evaluate", evaluate)
    run = fit_here(source, tmp_path / "run", "partial", train__patience=2, train__epochs=9, train__wise_ft_alpha=1.0)
    assert [f["epochs"] for f in run.scores()["folds"]] == [4, 4, 4]
    assert [f["best_epoch"] for f in run.scores()["folds"]] == [2, 2, 2]
    for k, state in enumerate(at_best):
        kept = tensors(run, k)
        assert all(torch.equal(kept[n], state[n]) for n in state)


def test_stopping_with_too_few_groups_is_said(tmp_path):
    few = colours(tmp_path / "few", groups=2)
    with pytest.raises(RecipeError, match=r"train.patience"):
        fit_here(few, tmp_path / "run", "partial", train__patience=1, folds__n_splits=2)


# Each word is tried somewhere; what does not touch each other stands together.
VARIANTS = {
    "weighted over": ("partial", {"balance__loss": "weighted", "balance__sampling": "over", "train__ema_decay": 0.9}),
    "focal cutmix": ("full", {"balance__loss": "focal", "train__cutmix_alpha": 1.0, "train__optimizer": "sgd"}),
    "adjusted mixup": (
        "partial",
        {"balance__loss": "logit-adjusted", "train__mixup_alpha": 0.4, "train__cached_views": 3},
    ),
    "soft-f1 under": ("partial", {"balance__loss": "soft-f1", "balance__sampling": "under"}),
    "progressive": ("full", {"train__progressive_resizing": True, "train__epochs": 3}),
    "gradual": ("full", {"train__gradual_unfreeze_epochs": 1.0, "train__augment": "strong"}),
    "head": ("full", {"train__trainable": "head"}),
    "random start": ("full", {"train__head_init": "random"}),
    "classifier partial": ("partial", {"train__head": "classifier"}),
    "classifier full": ("full", {"train__head": "classifier"}),
    "smoothing": ("scratch", {"train__label_smoothing": 0.1}),
    "openvino": ("partial", {"engine": "openvino-f32"}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name, source, tmp_path):
    strategy, changes = VARIANTS[name]
    run = fit_here(source, tmp_path / "run", strategy, folds__n_splits=2, **changes)
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
    changes = {"backbone": "torchvision/googlenet", "image__size": 32, "folds__n_splits": 2, "train__epochs": 1}
    run = fit_here(few, tmp_path / "run", "scratch", **changes)
    assert any(".aux1." in name for name in tensors(run))
    assert (uf.load(run).predict(few)["error"] == "").all()


def test_an_auxiliary_head_that_stays_off_is_said_before_training(tmp_path, monkeypatch):
    def stop(*_):
        raise RecipeError("here training begins")

    monkeypatch.setattr("unfreeze.training.fine_tune.strategy.train_folds", stop)
    few = colours(tmp_path / "few", groups=2, each=1)
    recipe = make_recipe("scratch", few, backbone="torchvision/inception_v3", image__size=96, folds__n_splits=2)
    says = Says()
    with pytest.raises(RecipeError, match="here training begins"):
        uf.fit(uf.read(few, recipe.source), recipe, tmp_path / "run", reporter=says)
    assert sum("auxiliary heads of torchvision/inception_v3 stay off" in line for line in says.lines) == 1


@pytest.mark.soak
def test_inception_trains_on_small_images_without_its_auxiliary_head(tmp_path):
    few = colours(tmp_path / "few", groups=3, each=1)
    says, changes = Says(), {"backbone": "torchvision/inception_v3", "image__size": 75, "folds__n_splits": 2}
    run = fit_here(few, tmp_path / "run", "scratch", says, **changes, train__epochs=1)
    assert sum("auxiliary heads of torchvision/inception_v3 stay off" in line for line in says.lines) == 1
    assert run.info["trained"]["auxiliary"] is False
    found = uf.load(run).predict(few)
    assert np.isfinite(found.filter(like="p_").to_numpy()).all()


def test_an_image_size_that_a_network_cannot_take_is_refused_before_anything_is_written(source, tmp_path):
    with pytest.raises(BackboneError, match=r"cannot take images of 74 px; set image.size to 75 or more"):
        fit_here(source, tmp_path / "run", "scratch", backbone="torchvision/inception_v3", image__size=74)
    assert not (tmp_path / "run").exists()


def test_tensors_that_a_network_has_under_two_names_are_kept(tmp_path):
    """The position encodings of CoaT are modules of several blocks."""
    few = colours(tmp_path / "few", groups=3, each=1)
    changes = {"backbone": "timm/coat_lite_tiny", "image__size": 32, "folds__n_splits": 2, "train__epochs": 1}
    run = fit_here(few, tmp_path / "run", "scratch", **changes)
    assert np.isfinite(uf.load(run).predict(few).filter(like="p_").to_numpy()).all()


def test_photos_shrink_where_the_budget_is_short_and_it_stays_decided(source, tmp_path):
    from unfreeze.training.fine_tune.autotune import Plan
    from unfreeze.training.fine_tune.settings import TrainSetup

    job = one_job(source, tmp_path)
    setting = TrainSetup.of(job.recipe, job.settings)
    need = job.settings.epochs * len(job.train)
    slow = Plan(pace=need / 10)
    for name, seconds, short in (("a", 5.0, True), ("b", 20.0, False)):
        assert fold_job._short(job, setting, tmp_path / name, seconds, slow) is short
        # Taken up again with less or more time left it goes on as it began.
        assert fold_job._short(job, setting, tmp_path / name, 25.0 - seconds, slow) is short
    assert not fold_job._short(job, setting, tmp_path / "c", 5.0, Plan())  # never timed
    fixed = one_job(source, tmp_path / "vit", backbone="timm/test_vit", image__size=160)
    assert not fold_job._short(fixed, TrainSetup.of(fixed.recipe, fixed.settings), tmp_path / "d", 5.0, slow)


def test_a_fold_that_is_resumed_keeps_its_plan(source, tmp_path, monkeypatch):
    """With less memory than at the start, what has begun goes on with the photos at once that it began with."""
    from training import one_thread
    from unfreeze.core.parallel import cores
    from unfreeze.training.fine_tune import autotune as planning

    job = one_job(source, tmp_path, train__micro_batch=0, train__precision="auto", train__epochs=1)
    asked, real = [], planning.memory_budget

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    def done(rows, says):
        with one_thread():
            fold_job.run_fold_job(job, tmp_path / "fold", tmp_path / "model.safetensors", rows.append, says)

    monkeypatch.setattr(planning, "memory_budget", lambda device, share: asked.append(share) or real(device, share))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fold_job, "fit", interrupted)
        done([], Says())
    kept = (tmp_path / "fold" / "plan.json").read_text()
    assert asked == [min(cores(), job.recipe.folds.n_splits)]  # however many folds are left to train
    monkeypatch.setattr(planning, "free_memory", lambda device: 0)
    rows, says = [], Says()
    done(rows, says)
    assert (tmp_path / "fold" / "plan.json").read_text() == kept and not any("memory" in line for line in says.lines)
    assert {row["micro_batch"] for row in rows} == {json.loads(kept)["plan"]["micro_batch"]}
