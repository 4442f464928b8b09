"""The contract of a backbone, for every family of torchvision and some fifty of timm: small members, small photos."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from safetensors import torch as safetensors

from backbonefamilies import ALL
from unfreeze.core.errors import BackboneError
from unfreeze.models.architectures import architectures, build, load_tensors, resolve
from unfreeze.models.fine_tune_model import FineTuneModel
from unfreeze.models.freezing import first_stage_at_last_resolution, freeze_before, parse_trainable
from unfreeze.models.model_info import anatomy_of
from unfreeze.models.pooling import AUTO, AUTO_STAGES, FeatureSpec, feature_module
from unfreeze.models.stage_rules import REFUSED
from unfreeze.models.tracing import main_tensor

CLASSES = 3


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def photos(size, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def loss_of(network, images):
    """Cross-entropy, auxiliary logits included."""
    found = network(images)
    outputs = found if isinstance(found, tuple | list) else (found,)
    target = torch.arange(len(images)) % CLASSES
    return sum(torch.nn.functional.cross_entropy(o, target) for o in outputs if o is not None)


def buffers_of(network, stages):
    owned = {module for stage in stages for module in stage.modules}
    return {n: b.clone() for n, b in network.named_buffers() if n.rpartition(".")[0] in owned}


def check_anatomy(network, anatomy):
    """Every parameter of the trunk is in one stage, in the order in which the network runs."""
    inside = [name for stage in anatomy.stages for name in stage.parameters]
    beside = set(anatomy.classifier) | {
        n for n, _ in network.named_parameters() if n.partition(".")[0] in anatomy.auxiliary
    }
    assert len(set(inside)) == len(inside)
    assert set(inside) | beside == {name for name, _ in network.named_parameters()}
    assert not set(inside) & beside
    assert len(anatomy.stages) >= 3
    names = [stage.name for stage in anatomy.stages]
    assert names[0] == "stem"
    assert len(set(names)) == len(names)
    modules = dict(network.named_modules())
    owner = [module for stage in anatomy.stages for module in stage.modules]
    assert len(set(owner)) == len(owner)
    assert all(stage.output in modules and set(stage.modules) <= set(modules) for stage in anatomy.stages)


def check_freezing(network, anatomy, images):
    """From each stage on: what is frozen takes no gradient and is not in training mode; what trains is both."""
    parameters = dict(network.named_parameters())
    for first in range(len(anatomy.stages) + 1):
        freeze_before(network, anatomy, first)
        frozen, trained = anatomy.stages[:first], anatomy.stages[first:]
        assert not any(parameters[n].requires_grad for stage in frozen for n in stage.parameters)
        assert not any(network.get_submodule(m).training for stage in frozen for m in stage.modules)
        assert all(parameters[n].requires_grad for stage in trained for n in stage.parameters)
        assert all(network.get_submodule(m).training for stage in trained for m in stage.modules)
        assert all(parameters[n].requires_grad for n in anatomy.classifier)
    large = images.shape[-1] > 128 or sum(p.numel() for p in parameters.values()) > 2e7
    for first in {len(anatomy.stages) // 2} if large else {len(anatomy.stages) // 2, len(anatomy.stages)}:
        check_frozen(network, anatomy, first, images)


def check_frozen(network, anatomy, first, images):
    """In a step with the stages before `first` frozen: gradients and buffers of frozen and other stages."""
    freeze_before(network, anatomy, first)
    network.zero_grad(set_to_none=True)
    frozen, trained = anatomy.stages[:first], anatomy.stages[first:]
    kept, changing = buffers_of(network, frozen), buffers_of(network, trained)
    loss_of(network, images).backward()
    parameters, after = dict(network.named_parameters()), dict(network.named_buffers())
    assert not any(parameters[n].grad is not None for stage in frozen for n in stage.parameters)
    for stage in trained:
        assert any(parameters[n].grad is not None for n in stage.parameters), stage.name
    assert all(torch.equal(after[n], b) for n, b in kept.items())
    counters = [n for n in changing if n.endswith("num_batches_tracked")]
    # A norm whose output is dropped (of another branch's map) may stand still; most count.
    assert not counters or any(not torch.equal(after[n], changing[n]) for n in counters)


def check_default_head(full, size, anatomy):
    """The head of the default recipe, behind the network as strategy full trains it: shapes, and where gradients go."""
    names = [stage.name for stage in anatomy.stages]
    taps = FeatureSpec.of(AUTO, 3, full, names)
    assert taps == FeatureSpec(min(AUTO_STAGES, len(names)), 3)
    network = FineTuneModel(build(full, CLASSES, size=size, meta=True), anatomy, CLASSES, taps=taps, size=size).to(
        "meta"
    )
    network.prepare(0.0, 0, batchnorm=False)
    logits = network(torch.zeros(2, 3, size, size, device="meta"))
    assert logits.shape == (2, CLASSES)
    logits.sum().backward()
    trained = dict(network.network.named_parameters())
    assert any(trained[name].grad is not None for name in anatomy.stages[0].parameters)
    assert 1 <= first_stage_at_last_resolution(anatomy) < len(names)


def kept_and_read_again(full, size, network):
    """The network from its tensors as a file keeps them."""
    data = safetensors.save({n: t.clone() for n, t in network.state_dict().items()})  # cloned: some are shared
    if sum(p.numel() for p in network.parameters()) > 4e7:  # drawing so many at random takes long
        again = copy.deepcopy(network)
        for tensor in again.state_dict().values():
            tensor.zero_()
    else:
        again = build(full, CLASSES, size=size)
    load_tensors(again, safetensors.load(data))
    return again.eval()


@pytest.mark.parametrize(("full", "size"), ALL.items(), ids=list(ALL))
def test_a_family_trains_freezes_predicts_and_is_read(full, size):
    torch.manual_seed(0)
    assert resolve(full) == full
    anatomy = anatomy_of(full, size)
    network = build(full, CLASSES, size=size)
    images = photos(size)
    check_anatomy(network, anatomy)
    check_default_head(full, size, anatomy)
    check_freezing(network, anatomy, images)

    # Two steps: some classifiers start at zero and hand no gradient on in the first.
    freeze_before(network, anatomy, 0)
    before = {n: p.detach().clone() for n, p in network.named_parameters() if p.numel() < 1e5}
    optimiser = torch.optim.SGD(network.parameters(), 1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        loss = loss_of(network, images)
        loss.backward()
        optimiser.step()
    assert torch.isfinite(loss)
    moved = {n for n, p in network.named_parameters() if n in before and not torch.equal(before[n], p)}
    assert moved & set(anatomy.classifier) or not before.keys() & set(anatomy.classifier)
    assert moved & set(anatomy.stages[0].parameters)

    # Prediction, kept and read again.
    network.eval()
    with torch.inference_mode():
        logits = main_tensor(network(images))
    assert logits.shape == (2, CLASSES)
    assert torch.isfinite(logits).all()
    again = kept_and_read_again(full, size, network)

    # Features: as wide as told, and a photo's own.
    taps = FeatureSpec(len(anatomy.stages), 2)
    module = feature_module(again, anatomy.stages, taps)
    with torch.inference_mode():
        assert torch.equal(main_tensor(again(images)), logits)
        features, alone = module(images), module(images[:1])
    assert features.shape == (2, sum(stage.width(2) for stage in anatomy.stages))
    assert torch.isfinite(features).all()
    # Two photos train a network badly: its activations are large, and their rounding with them.
    assert torch.linalg.norm(alone - features[:1]) < 1e-2 * torch.linalg.norm(features[:1])
    assert not torch.equal(features[0], features[1])


@pytest.mark.parametrize(
    ("full", "heads"),
    [
        ("torchvision/inception_v3", {"AuxLogits": 0.4}),
        ("torchvision/googlenet", {"aux1": 0.3, "aux2": 0.3}),
        ("timm/inception_v3", {"AuxLogits": 0.4}),
    ],
)
def test_auxiliary_heads_train_and_are_left_out_of_predictions(full, heads):
    size = 224 if "googlenet" in full else 299
    anatomy = anatomy_of(full, size, auxiliary=True)
    assert anatomy.auxiliary == heads
    assert anatomy_of(full, size).auxiliary == {}
    network = build(full, CLASSES, auxiliary=True, size=size)
    check_anatomy(network, anatomy)
    freeze_before(network, anatomy, len(anatomy.stages))
    outputs = network(photos(size))
    assert isinstance(outputs, tuple)
    assert [tuple(o.shape) for o in outputs] == [(2, CLASSES)] * (1 + len(heads))
    sum(o.sum() for o in outputs).backward()
    for head in heads:
        assert all(p.grad is not None for p in network.get_submodule(head).parameters())
    with torch.inference_mode():
        found = network.eval()(photos(size))
        assert torch.equal(main_tensor(found), found[0] if isinstance(found, tuple) else found)
    assert not any(
        hasattr(build(full, CLASSES, meta=True), head) and getattr(build(full, meta=True), head) for head in heads
    )


@pytest.mark.parametrize(
    ("full", "size", "auxiliary", "said"),
    [
        ("torchvision/inception_v3", 64, False, r"cannot take images of 64 px; set image.size to 75 or more"),
        ("timm/inception_v3", 64, False, r"cannot take images of 64 px; set image.size to 75 or more"),
        ("torchvision/inception_v3", 224, True, r"cannot take images of 224 px; set image.size to 299 or more"),
        ("torchvision/alexnet", 32, False, r"cannot take images of 32 px; set image.size to 63 or more"),
        (
            "torchvision/vit_b_32",
            70,
            False,
            r"cannot take images of 70 px; set image.size to 96 or 224 \(Input shape indivisible",
        ),
    ],
)
def test_too_small_a_photo_names_the_smallest(full, size, auxiliary, said):
    with pytest.raises(BackboneError, match=said) as caught:
        anatomy_of(full, size, auxiliary)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("full", ["timm/coat_mini", "timm/coat_tiny.in1k", "timm/crossvit_9_240"])
def test_a_family_that_cannot_be_supported_is_refused_with_the_reason(full):
    with pytest.raises(BackboneError, match=rf"{full}: cannot be used here: its .*branches"):
        resolve(full)


def test_each_refusal_is_of_something_that_exists():
    import re

    for pattern in REFUSED:
        assert any(re.match(pattern, name) for name in architectures("timm")), pattern


def by_hand(cells, grid):
    """(B, H, W, C) -> the mean over each cell, from floor(i h / g) to ceil((i + 1) h / g): channel, row, column."""
    height, width = cells.shape[1:3]
    means = []
    for i in range(grid):
        rows = slice(i * height // grid, math.ceil((i + 1) * height / grid))
        for j in range(grid):
            columns = slice(j * width // grid, math.ceil((j + 1) * width / grid))
            means.append(cells[:, rows, columns].mean((1, 2)))
    return torch.stack(means, 2).flatten(1)


def features(full, size, last, grid):
    torch.manual_seed(0)
    network = build(full, CLASSES, size=size).eval()
    anatomy = anatomy_of(full, size)
    with torch.inference_mode():
        return network, anatomy, feature_module(network, anatomy.stages, FeatureSpec(last, grid))(photos(size))


def test_a_map_with_channels_first_is_pooled_as_by_hand():
    network, anatomy, found = features("timm/test_resnet", 96, 2, 2)
    with torch.inference_mode():
        x = network.maxpool(network.act1(network.bn1(network.conv1(photos(96)))))
        x = network.layer3(network.layer2(network.layer1(x)))
        expected = [by_hand(m.permute(0, 2, 3, 1), 2) for m in (x, network.layer4(x))]
    assert [s.layout for s in anatomy.stages[-2:]] == ["NCHW", "NCHW"]
    torch.testing.assert_close(found, torch.cat(expected, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [96, 224])
def test_a_map_with_channels_last_is_pooled_as_by_hand(size):
    """At 96 px the first map of 24 x 24; torchvision's Swin tells its layout by its shapes alone."""
    network, anatomy, found = features("torchvision/swin_t", size, 5, 3)
    with torch.inference_mode():
        x, outputs = photos(size), []
        for number, part in enumerate(network.features):
            x = part(x)
            if number in (0, 1, 3, 5):
                outputs.append(x)
        expected = [by_hand(m, 3) for m in (*outputs, network.norm(x))]
    assert [s.layout for s in anatomy.stages] == ["NHWC"] * 4 + ["NCHW"]  # which it permutes itself, last of all
    torch.testing.assert_close(found, torch.cat(expected, 1), rtol=1e-4, atol=1e-5)


def test_a_cube_is_distinguished_from_a_photo_twice_as_wide():
    """96 channels of 96 x 96: no shape tells where the channels are."""
    assert anatomy_of("torchvision/swin_t", 384).stages[0].layout == "NHWC"
    assert anatomy_of("timm/pvt_v2_b0", 128).stages[0].layout == "NHWC"
    assert anatomy_of("timm/pvt_v2_b0", 128).stages[1].layout == "NCHW"
    assert [s.layout for s in anatomy_of("timm/resnet10t", 256).stages] == ["NCHW"] * 5


@pytest.mark.parametrize(("name", "prefix"), [("test_vit", 1), ("deit_tiny_distilled_patch16_224", 2)])
def test_patch_tokens_are_pooled_on_their_grid_and_class_tokens_are_separate(name, prefix):
    network, anatomy, found = features(f"timm/{name}", 96, 1, 2)
    stage = anatomy.stages[-1]
    assert (stage.layout, stage.side, stage.prefix, stage.classes) == ("NLC", 6, prefix, prefix)
    with torch.inference_mode():
        tokens = network.forward_features(photos(96))
        cells = tokens[:, prefix:].reshape(2, 6, 6, -1)
        expected = torch.cat([by_hand(cells, 2), tokens[:, :prefix].flatten(1)], 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_register_tokens_are_no_features():
    stage = anatomy_of("timm/vit_small_patch14_reg4_dinov2", 56).stages[-1]
    assert (stage.side, stage.prefix, stage.classes) == (4, 5, 1)
    assert stage.width(2) == 384 * (4 + 1)


def test_tokens_that_were_unrolled_into_windows_are_laid_back():
    network, anatomy, found = features("timm/hiera_tiny_224", 64, 12, 2)
    with torch.inference_mode():
        maps = network.forward_intermediates(photos(64), intermediates_only=True, output_fmt="NHWC")
    ends = network.stage_ends
    columns = found.split([stage.width(2) for stage in anatomy.stages[1:]], 1)
    for end, expected in zip(ends, maps, strict=True):
        torch.testing.assert_close(columns[end], by_hand(expected, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("full", ["timm/test_resnet", "timm/mobilenetv3_small_050", "timm/levit_128s"])
def test_widths_do_not_depend_on_the_size(full):
    """At 32 px the last maps have one cell; a map that was pooled by the network has one at any size."""
    small, large = ([s.width(2) for s in anatomy_of(full, size).stages] for size in (32, 160))
    assert small == large


def test_stages_are_wished_by_the_names_of_a_family():
    names = tuple(s.name for s in anatomy_of("torchvision/resnet18", 64).stages)
    assert names == ("stem", "layer1", "layer2", "layer3", "layer4")
    assert parse_trainable("layer3-", names) == 3
