"""A run in memory that tests of serving share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from servedruns import Here, picture, served
from unfreeze.core.runs import Run
from unfreeze.inference.in_memory import InMemoryPredictor


@pytest.fixture(scope="session")
def direct(probe_run: Run) -> InMemoryPredictor:
    """Only one server at a time may ask it."""
    return InMemoryPredictor.load(probe_run)


@pytest.fixture(scope="module")
def here(direct: InMemoryPredictor) -> Iterator[Here]:
    """A server with the usual limits, open to all of this machine."""
    with served(direct) as one:
        yield one


@pytest.fixture(scope="session")
def photo(probe_photos: Path) -> bytes:
    return (probe_photos / "red" / "g000_0.jpg").read_bytes()


@pytest.fixture(scope="session")
def slow_photo() -> bytes:
    """A small file of 15 million pixels: it keeps a decoder busy for a while."""
    return picture((5000, 3000), "PNG")
