"""Heat maps of a served run: drawn beside the predictions, in pieces that let these pass, and until a request's end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from unfreeze.deliver.map_words import WORDS
from unfreeze.deliver.web.serving_limits import RefusedError
from unfreeze.deliver.web.serving_queue import Batcher
from unfreeze.learn.classifier import Classifier
from unfreeze.learn.direct import Direct
from unfreeze.learn.maps import HeatMap
from unfreeze.learn.maps_networks import METHODS, Mapper
from unfreeze.learn.maps_training import ByFold


class Maps:
    """Draws one photo's maps at a time, in a thread of its own.

    What predictions ask too (engines, loaded networks) is asked in the batcher's thread, a few photos at once; trained
    networks are loaded a second time, whole, when the first map of them is drawn.
    """

    def __init__(self, direct: Direct, batcher: Batcher) -> None:
        self._direct, self._batcher = direct, batcher
        self._thread = ThreadPoolExecutor(1, "maps")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._until = 0.0

    @cached_property
    def mapper(self) -> Mapper:
        """The run's."""
        source = self._direct.source
        heads = isinstance(source, Classifier) and bool(source.heads)
        training = ByFold.cached(source.run, source.graphs) if isinstance(source, Classifier) and heads else None
        return Mapper(self._direct, training.centre() if training else None, through=self._through)

    @cached_property
    def free(self) -> bool:
        """Whether a map costs little more than a prediction: not where photos have to be covered again and again."""
        # By a mapper of its own, for the other one belongs to the thread that draws.
        source = self._direct.source
        return isinstance(source, Classifier) and Mapper(source).default() != ("occlusion",)

    async def draw(self, data: bytes, method: str, until: float) -> tuple[HeatMap, ...]:
        """Raises PhotoError where the bytes are no photo; RefusedError for a method the run has not, or when late.

        until: of `time.perf_counter`.
        """
        self._loop = asyncio.get_running_loop()
        return await self._loop.run_in_executor(self._thread, self._draw, data, method, until)

    def stop(self) -> None:
        """Ends the thread once what it draws is done or late."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _draw(self, data: bytes, method: str, until: float) -> tuple[HeatMap, ...]:
        self._until = until
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
            raise self._late() from None

    def _passed(self, _: int) -> None:
        self._left()

    def _left(self) -> float:
        left = self._until - time.perf_counter()
        if left <= 0:
            raise self._late()
        return left

    @staticmethod
    def _late() -> RefusedError:
        return RefusedError("overdue", "the map was not drawn in time; ask again, or for another method.")


def described(heat: HeatMap) -> dict[str, Any]:
    """A `Map` as JSON."""
    words = WORDS[heat.method]
    told = heat.described()
    return {
        "method": heat.method,
        "title": heat.source,
        "unit": heat.unit,
        "square": told["box"],
        "cells": told["values"],
        "margin": told["margin"],
        "meaning": f"{words.name}: {words.says} {words.says_not}",
    }
