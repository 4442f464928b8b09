"""Stages of a network and the blocks read from them, against computations by hand."""

from __future__ import annotations

import math

import pytest

from unfreeze.core.errors import BackboneError, RecipeError
from unfreeze.model.backbones import find_backbone
from unfreeze.model.stages import Taps, block_widths, pooled_blocks, stage_modules

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def network():
    return find_backbone("tf_efficientnet_lite0").build()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def pooled_by_hand(x, grid):
    """The mean over each cell, cells from floor(i h / g) to ceil((i + 1) h / g), in the order channel, row, column."""
    height, width = x.shape[2:]
    cells = []
    for i in range(grid):
        rows = slice(i * height // grid, math.ceil((i + 1) * height / grid))
        for j in range(grid):
            columns = slice(j * width // grid, math.ceil((j + 1) * width / grid))
            cells.append(x[:, :, rows, columns].mean((2, 3)))
    return torch.stack(cells, 2).reshape(len(x), -1)


@pytest.mark.parametrize(("text", "last"), [("last", 1), ("last:1", 1), ("last:5", 5), ("last:05", 5), ("last:12", 12)])
def test_stages_are_parsed(text, last):
    assert Taps.parse(text, 3) == Taps(last, 3)


@pytest.mark.parametrize("text", ["last:0", "last:00", "last:", "last:-1", "first:2", "", "last:2 ", "5", "last:٣"])
def test_other_stages_are_refused(text):
    with pytest.raises(RecipeError, match=r"write 'last' or 'last:N'"):
        Taps.parse(text, 1)


def test_stages_in_order(network):
    names = [name for name, _ in stage_modules(network)]
    assert names == ["stem", *(f"blocks.{i}" for i in range(7)), "head"]


def test_pooled_blocks_equal_a_computation_by_hand(network, images):
    """Network run by its own modules, without hooks; 96 px leave 3 x 3 and 6 x 6 cells, of which 2 divides not all."""
    taps = Taps(last=3, grid=2)
    with torch.inference_mode():
        x = network.bn1(network.conv_stem(images))
        outputs = []
        for block in network.blocks:
            x = block(x)
            outputs.append(x)
        outputs.append(network.bn2(network.conv_head(x)))
        expected = torch.cat([pooled_by_hand(o, taps.grid) for o in outputs[-3:]], 1)
        found = pooled_blocks(network, taps)(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_last_block_on_one_cell_is_what_the_classifier_sees(network, images):
    with torch.inference_mode():
        found = pooled_blocks(network, Taps(1, 1))(images)
        expected = network.forward_head(network.forward_features(images), pre_logits=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_widths_are_those_of_the_columns(network, images):
    taps = Taps(last=5, grid=3)
    widths = block_widths(network, taps, 96)
    assert widths == [(f"blocks.{i}", c * 9) for i, c in zip(range(3, 7), (80, 112, 192, 320), strict=True)] + [
        ("head", 1280 * 9)
    ]
    with torch.inference_mode():
        found = pooled_blocks(network, taps)(images)
    assert found.shape == (2, sum(width for _, width in widths))


def test_more_stages_than_there_are(network):
    with pytest.raises(RecipeError, match=r"last:10'.*has 9 stages"):
        pooled_blocks(network, Taps(10, 1))


def test_an_unknown_family_is_refused():
    with pytest.raises(BackboneError, match="Sequential: its stages are not known"):
        stage_modules(torch.nn.Sequential(torch.nn.Linear(2, 2)))
