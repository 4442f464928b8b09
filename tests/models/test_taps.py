"""Which stages are read, and how one output of each layout is pooled."""

from __future__ import annotations

import pytest
import torch

from unfreeze.core.errors import RecipeError
from unfreeze.core.recipe import Recipe
from unfreeze.models.pooling import FeatureSpec, feature_module, pool_stage
from unfreeze.models.stages import Stage


@pytest.mark.parametrize(("text", "last"), [("last", 1), ("last:1", 1), ("last:5", 5), ("last:05", 5), ("last:12", 12)])
def test_stages_are_parsed(text, last):
    assert FeatureSpec.parse(text, 3) == FeatureSpec(last, 3)


@pytest.mark.parametrize(("stages", "read"), [(9, 5), (5, 5), (4, 4), (3, 3), (1, 1)])
def test_the_default_reads_five_stages_or_all_of_fewer(stages, read):
    names = [f"stage{i}" for i in range(stages)]
    assert FeatureSpec.of(Recipe().probe.stages, 3, "timm/x", names) == FeatureSpec(read, 3)


def test_only_a_number_that_the_recipe_names_can_be_too_large():
    assert FeatureSpec.of("last:3", 2, "timm/x", ["a", "b", "c"]) == FeatureSpec(3, 2)
    assert FeatureSpec.of("last", 2, "timm/x", ["a"]) == FeatureSpec(1, 2)
    said = r"probe.stages = 'last:4': timm/x has 3 stages, a, b, c; write last:3, or auto for up to 5"
    with pytest.raises(RecipeError, match=said):
        FeatureSpec.of("last:4", 2, "timm/x", ["a", "b", "c"])


@pytest.mark.parametrize("text", ["last:0", "last:00", "last:", "last:-1", "first:2", "", "last:2 ", "5", "last:٣"])
def test_other_stages_are_refused(text):
    with pytest.raises(RecipeError, match=r"write auto, last, or last:N"):
        FeatureSpec.parse(text, 1)


def stage(layout, channels=2, side=4, **more):
    return Stage("s", (), (), "s", channels, layout, side, **more)


def corners(rows):
    """(channels, 4, 4) -> the means of the four quarters: channel, row, column."""
    return torch.stack([rows[:, y : y + 2, x : x + 2].mean((1, 2)) for y in (0, 2) for x in (0, 2)], 1).flatten()


def test_every_layout_gives_the_same_features():
    rows = torch.arange(2 * 4 * 4, dtype=torch.float32).view(2, 4, 4) ** 2
    expected = corners(rows)[None]
    tokens = rows.flatten(1).T[None]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    place = tuple(int(i) for i in order.argsort())
    assert torch.equal(pool_stage(rows[None], stage("NCHW"), 2), expected)
    assert torch.equal(pool_stage(rows.permute(1, 2, 0)[None], stage("NHWC"), 2), expected)
    assert torch.equal(pool_stage(tokens, stage("NLC"), 2), expected)
    assert torch.equal(pool_stage(tokens[:, order], stage("NLC", order=place), 2), expected)
    for layout in ("NCHW", "NHWC", "NLC"):
        assert stage(layout).width(2) == expected.shape[1]


def test_class_tokens_are_separate_and_registers_are_left_out():
    tokens = torch.randn(3, 2 + 16, 5)
    read = stage("NLC", 5, prefix=2, classes=1)
    found = pool_stage(tokens, read, 1)
    assert torch.allclose(found[:, :5], tokens[:, 2:].mean(1))
    assert torch.equal(found[:, 5:], tokens[:, 0])
    assert found.shape == (3, read.width(1))


def test_what_is_pooled_already_stays():
    assert torch.equal(pool_stage(torch.ones(2, 3, 1, 1), stage("NC", 3, 1), 4), torch.ones(2, 3))
    assert stage("NC", 3, 1).width(4) == 3


def test_a_relu_that_no_module_does_is_done():
    assert pool_stage(torch.full((1, 1, 4, 4), -1.0), stage("NCHW", 1, relu=True), 1).item() == 0


def test_of_several_outputs_the_map_is_read():
    rows = torch.randn(1, 2, 4, 4)
    assert torch.equal(pool_stage((torch.zeros(1), rows, None), stage("NCHW"), 4), rows.flatten(1))


def test_more_stages_than_there_are():
    network = torch.nn.Sequential()
    with pytest.raises(RecipeError, match=r"last:3'.*has 2 stages"):
        feature_module(network, (stage("NCHW"), stage("NCHW")), FeatureSpec(3, 1))
