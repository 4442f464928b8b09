"""torch as an engine: normalised on the device, and memory that runs out is survived."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from unfreeze.core.errors import EngineError
from unfreeze.models.eager import is_out_of_memory, run_eager
from unfreeze.models.model_info import Preprocessing

SEEN = Preprocessing(8, 1.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
PIXELS = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3)).astype(np.uint8)


class Means(nn.Module):
    """The mean of each channel; out of memory above `most` photos."""

    def __init__(self, most=99, error=None):
        super().__init__()
        self.most, self.error, self.asked = most, error or torch.OutOfMemoryError("CUDA out of memory."), []

    def forward(self, x):
        self.asked.append(len(x))
        if len(x) > self.most:
            raise self.error
        return x.mean((2, 3))


def test_pixels_are_normalised():
    (found,) = run_eager(Means(), SEEN, "cpu")([PIXELS])
    expected = ((PIXELS / 255 - np.array(SEEN.mean)) / np.array(SEEN.std)).mean((1, 2))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "error", [None, MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_a_batch_that_does_not_fit_goes_in_halves(error):
    hungry = Means(3, error)
    found = list(run_eager(hungry, SEEN, "cpu")([PIXELS, PIXELS[:2]]))
    (whole,) = run_eager(Means(), SEEN, "cpu")([PIXELS])
    np.testing.assert_array_equal(found[0], whole)
    np.testing.assert_array_equal(found[1], whole[:2])
    assert max(hungry.asked[1:]) < len(PIXELS)


def test_a_photo_that_does_not_fit_alone_is_said():
    with pytest.raises(EngineError, match=r"single photo; choose a smaller image\.size"):
        list(run_eager(Means(0), SEEN, "cpu")([PIXELS]))


def test_other_errors_are_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        list(run_eager(Means(3, RuntimeError("shapes do not fit")), SEEN, "cpu")([PIXELS]))
    assert not is_out_of_memory(ValueError("out of memory"))
