"""Heat maps over HTTP: drawn in pieces by the worker that also predicts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any

from unfreeze.data.decode_process import Part, Wanted
from unfreeze.explanation.heatmap import HeatMap
from unfreeze.explanation.method_text import WORDS
from unfreeze.explanation.neighbors import TrainingFeaturesByFold
from unfreeze.explanation.networks import METHODS, Explainer
from unfreeze.inference.in_memory import InMemoryPredictor
from unfreeze.inference.predictor import Classifier
from unfreeze.server.serve.batching import Batcher
from unfreeze.server.serve.decoders import Account
from unfreeze.server.serve.limits import RefusedError


class Maps:
    """Draws the heat maps of one image at a time, in a separate thread.

    Engines and networks that predictions use as well run in the batcher's thread, a few images at a time. Fine-tuned
    networks are loaded a second time, without a split-off front, when the first of their maps is drawn. Images are
    decoded in the same processes as those of predictions.
    """

    def __init__(self, direct: InMemoryPredictor, batcher: Batcher) -> None:
        self._direct, self._batcher = replace(direct, eyes=direct.eyes.through(self._look)), batcher
        self._account = Account()
        self._thread = ThreadPoolExecutor(1, "maps")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._until = 0.0

    @cached_property
    def mapper(self) -> Explainer:
        """Explainer of the run; only used in the drawing thread."""
        source = self._direct.source
        heads = isinstance(source, Classifier) and bool(source.heads)
        training = (
            TrainingFeaturesByFold.cached(source.run, source.graphs)
            if isinstance(source, Classifier) and heads
            else None
        )
        return Explainer(self._direct, training.centre() if training else None, through=self._through)

    @cached_property
    def free(self) -> bool:
        """Whether a map costs little more than a prediction, which is not the case for occlusion."""
        # Uses a separate explainer, since `mapper` belongs to the drawing thread.
        source = self._direct.source
        return isinstance(source, Classifier) and Explainer(source).default() != ("occlusion",)

    async def draw(self, data: bytes, method: str, until: float, account: Account) -> tuple[HeatMap, ...]:
        """Draw the heat maps of an image.

        Args:
            data: Encoded image.
            method: Heat map method.
            until: Deadline, of `time.perf_counter`.
            account: Decoding account of the request.

        Raises:
            PhotoError: The bytes are not a readable image.
            RefusedError: The run does not support the method, or the deadline has passed.
        """
        self._loop = asyncio.get_running_loop()
        return await self._loop.run_in_executor(self._thread, self._draw, data, method, until, account)

    def stop(self) -> None:
        """Stop the thread after the current map is drawn or partial."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _draw(self, data: bytes, method: str, until: float, account: Account) -> tuple[HeatMap, ...]:
        self._until, self._account = until, account
        self._left()
        has = self.mapper.methods()
        if method not in METHODS or method not in ("auto", *has):
            raise RefusedError("no_map", f"method: this run has auto, {', '.join(has)}.")
        return self.mapper.draw(data, method, progress=self._passed)

    def _through(self, work: Callable[[], Any]) -> Any:
        assert self._loop is not None
        waiting = asyncio.run_coroutine_threadsafe(self._batcher.run(work), self._loop)
        try:
            return waiting.result(self._left())
        except TimeoutError:
            waiting.cancel()
            raise self._partial() from None

    def _look(self, data: bytes, max_pixels: int, wanted: Sequence[Wanted]) -> list[Part]:
        try:
            return self._batcher.decoders.look(self._account, self._left(), data, max_pixels, wanted)
        except TimeoutError:
            raise self._partial() from None

    def _passed(self, _: int) -> None:
        self._left()

    def _left(self) -> float:
        left = self._until - time.perf_counter()
        if left <= 0:
            raise self._partial()
        return left

    @staticmethod
    def _partial() -> RefusedError:
        return RefusedError("overdue", "the map was not drawn in time; ask again, or for another method.")


def described(heat: HeatMap) -> dict[str, Any]:
    """A heat map as the API returns it (`schemas.HeatMap`)."""
    words = WORDS[heat.method]
    content = heat.described()
    return {
        "method": heat.method,
        "title": heat.source,
        "unit": heat.unit,
        "square": content["box"],
        "cells": content["values"],
        "margin": content["margin"],
        "meaning": f"{words.name}: {words.says} {words.says_not}",
    }
