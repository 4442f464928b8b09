"""A frozen network run by torch itself: the reference of every conversion, and the engine on a GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unfreeze.core.errors import EngineError
from unfreeze.model.cards import Preprocessing

_SAYS_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python could not get memory; the CPU's allocator says it in a RuntimeError's text."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _SAYS_MEMORY)


def eager_run(
    module: nn.Module, preprocessing: Preprocessing, device: str
) -> Callable[[Iterable[NDArray[np.uint8]]], Iterator[NDArray[np.float32]]]:
    """Function: uint8 batches (n, S, S, 3) -> float32 features (n, D), in order, normalised on the device.

    A batch that does not fit the memory goes through in halves; EngineError where a single photo does not fit.
    """
    ready = module.to(device=device, memory_format=torch.channels_last)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) * 255 for v in (preprocessing.mean, preprocessing.std))

    def features(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            pixels = torch.from_numpy(np.ascontiguousarray(batch)).to(device).permute(0, 3, 1, 2)
            found: Any = ready((pixels.float() - mean) / std).float().cpu().numpy()
            return found
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise EngineError(
                    "out of memory with a single photo; choose a smaller image.size or a smaller backbone."
                ) from None
        # Outside of the handler: the error holds the frames, and with them the tensors, that must go first.
        gc.collect()
        if device != "cpu":
            torch.cuda.empty_cache()
        half = len(batch) // 2
        return np.concatenate([features(batch[:half]), features(batch[half:])])

    def run(batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        for batch in batches:
            with torch.inference_mode():
                yield features(batch)

    return run
