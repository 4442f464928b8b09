"""Eager torch for frozen networks: the reference of every converted graph, and the engine on a GPU.

A file of its own, so that a probe on a converted graph does not import torch.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unfreeze.core.errors import EngineError
from unfreeze.models.model_info import Preprocessing

_SAYS_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Check whether an exception means that torch or Python ran out of memory.

    The CPU allocator of torch raises a plain RuntimeError, which is recognized by its message.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _SAYS_MEMORY)


def run_eager(
    module: nn.Module, preprocessing: Preprocessing, device: str, least: int = 1
) -> Callable[[Iterable[NDArray[np.uint8]]], Iterator[NDArray[np.float32]]]:
    """Create a function that computes features with eager torch.

    Args:
        module: Module that maps normalized images (n, 3, S, S) to features (n, D).
        preprocessing: Mean and standard deviation for the normalization, which runs on the device.
        device: torch device.
        least: Minimum batch size. Smaller batches are padded with zeros: kernels differ between batch sizes, and the
            features of an image must not depend on the other images in the request.

    Returns:
        Function from an iterable of uint8 batches (n, S, S, 3) to an iterator of float32 features (n, D), in order. A
        batch that does not fit into memory is split in halves; EngineError is raised if a single image does not fit.
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
        # Outside of the handler: the exception holds references to the frames and their tensors, which must be freed
        # first.
        gc.collect()
        if device != "cpu":
            torch.cuda.empty_cache()
        half = len(batch) // 2
        return np.concatenate([features(batch[:half]), features(batch[half:])])

    def run(batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        for batch in batches:
            count = len(batch)
            if count < least:
                batch = np.concatenate([batch, np.zeros((least - count, *batch.shape[1:]), batch.dtype)])
            with torch.inference_mode():
                yield features(batch)[:count]

    return run
