"""The default recipe on families of backbones: what each strategy plans, and real steps; whole fits of all in soak.

In `make test` every family is trained, and read by the default recipe's head, by tests/models/test_families.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import unfreeze as uf
from backbonefamilies import ALL
from finetuning import no_processes
from ownnetworks import known, plain
from photosets import GROUP_REGEX, class_folders
from unfreeze.core.errors import BackboneError
from unfreeze.core.recipe import Recipe
from unfreeze.features.inputs import feature_extractors
from unfreeze.models.pooling import AUTO_STAGES
from unfreeze.training.fine_tune.settings import TrainSetup, resolve_settings

STRATEGIES = ("probe", "partial", "full", "scratch")
# A family of each layout and of few stages, whose networks are small.
SMALL = (
    "timm/resnet10t",
    "timm/test_vit",
    "timm/efficientvit_m0",
    "timm/levit_128s",
    "timm/test_mambaout",
    "torchvision/mnasnet0_5",
    "torchvision/squeezenet1_1",
)


def recipe_of(full, size, strategy, **changes):
    """The default recipe, but for what has no default here: the network, its weights and the images' size."""
    about = {"backbone": full, "weights": "none", "image.size": size, "strategy": strategy}
    return Recipe().replace(**{**about, **changes})


def setting_of(full, size, strategy):
    recipe = recipe_of(full, size, strategy)
    settings = resolve_settings(recipe, 12)
    return TrainSetup.of(recipe, settings), settings


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("full", "size"), [pytest.param(n, s, marks=() if n in SMALL else pytest.mark.soak, id=n) for n, s in ALL.items()]
)
def test_every_strategy_of_the_default_recipe_fits_the_network(full, size):
    """Shapes of features, activations, logits and gradients, on torch's meta device."""
    (graph,) = feature_extractors(recipe_of(full, size, "probe"))
    names = [stage.name for stage in graph.backbone.stages]
    assert [name for name, _ in graph.blocks()] == names[-AUTO_STAGES:]

    setting, _ = setting_of(full, size, "partial")
    shape = setting.front.activation()
    assert setting.front.blocks()[-1] == ("activation", math.prod(shape))
    assert 1 <= setting.first < len(names)

    for strategy in ("full", "scratch"):
        setting, settings = setting_of(full, size, strategy)
        network = setting._on_meta()
        network.prepare(0.0, 0, settings.bn_stats == "train")
        assert network.head is None or network.head.in_features == graph.width()
        outputs = network(torch.zeros(2, 3, size, size, device="meta"))
        assert isinstance(outputs, tuple | list) == bool(network.anatomy.auxiliary)
        logits = outputs[0] if isinstance(outputs, tuple | list) else outputs
        assert logits.shape == (2, 2)
        logits.sum().backward()
        trained = [p for name, p in network.named_parameters() if "aux" not in name.lower()]
        assert sum(p.grad is not None for p in trained) > 0.9 * len(trained) - 2


@pytest.mark.parametrize("strategy", ["partial", "full"])
@pytest.mark.parametrize("full", SMALL)
def test_a_step_from_the_head_on_blocks(full, strategy):
    size = ALL[full]
    setting, settings = setting_of(full, size, strategy)
    inputs = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    if setting.cut:
        with torch.no_grad():
            rows = setting.front.module()(inputs)
        assert rows.shape == (2, setting.front.width())
        pooled = setting.front.width() - math.prod(setting.front.activation())
        inputs = rows[:, pooled:].unflatten(1, setting.front.activation()), rows[:, :pooled]
    network = setting.network(2)
    network.prepare(0.0, 0, settings.bn_stats == "train")
    logits = network(inputs)
    assert logits.shape == (2, 2)
    logits.logsumexp(1).sum().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("images"), groups=6, each=1, classes=("red", "green"))


def small_recipe(images, full, size, strategy, **more):
    changes = {"folds.n_splits": 2, "train.epochs": 1, "source.path": str(images), "source.group_regex": GROUP_REGEX}
    # How fast a network trains or is read is not tried.
    changes |= {"engine": "torch", "train.precision": "f32", "train.memory_format": "contiguous"}
    return recipe_of(full, size, strategy, **changes, **more)


def check_predictions(images, run):
    found = uf.load(run).predict(images)
    assert not found.label.isna().any()
    assert np.isfinite(found[["p_red", "p_green"]].to_numpy()).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_network_that_the_user_has_registered_trains_in_this_process(strategy, images, tmp_path, fresh_cache):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with known(plain):
        recipe = small_recipe(images, "own", 32, strategy)
        run = uf.fit(uf.read(images, recipe.source), recipe, tmp_path / "run")
        found = run.predictions()[["p_red", "p_green"]].to_numpy()
        check_predictions(images, tmp_path / "run")
        again = uf.fit(uf.read(images, recipe.source), recipe, tmp_path / "again")
    assert np.array_equal(found, again.predictions()[["p_red", "p_green"]].to_numpy())
    assert torch.equal(torch.get_rng_state(), before)


def test_no_other_process_knows_a_network_that_the_user_has_registered(images, tmp_path, fresh_cache):
    with known(plain):
        recipe = small_recipe(images, "own", 32, "scratch", **{"train.processes_per_fold": 2})
        with pytest.raises(BackboneError, match=r"^own: is registered with timm in this process only"):
            uf.fit(uf.read(images, recipe.source), recipe, tmp_path / "run")


@pytest.mark.soak
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("full", "size"), ALL.items(), ids=list(ALL))
def test_every_backbone_fits_and_predicts_with_every_strategy(full, size, strategy, images, tmp_path):
    """benchmarks/backbones.py does the same with training processes and the fastest engine."""
    recipe = small_recipe(images, full, size, strategy)
    with no_processes():
        uf.fit(uf.read(images, recipe.source), recipe, tmp_path / "run")
    check_predictions(images, tmp_path / "run")
