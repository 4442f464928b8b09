"""Photos and a converted network that the parts of the suite share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from killing import TOLD
from smallruns import cached_in, fit_words, with_engines

from commandline import run_cli
from finetuning import colours
from hostile import small_run
from unfreeze.core.runs import Run


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 photos of three colors in 18 groups. Not to be changed."""
    return colours(tmp_path_factory.mktemp("photos") / "colours")


@pytest.fixture(scope="session")
def engines(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that knows the network of small probes and no photo, so that they need not import torch."""
    place = tmp_path_factory.mktemp("engines")
    with cached_in(place / "cache"):
        answer = run_cli(*fit_words("probe", photos, place / "run"))
    assert answer.code == 0, answer.err
    for kind in ("looks", "features", "rotations"):
        shutil.rmtree(place / "cache" / kind)
    return place / "cache"


@pytest.fixture(scope="session")
def undisturbed(photos: Path, engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run of that strategy that nothing disturbed, its cache beside it. Not to be changed."""
    done: dict[str, Path] = {}

    def of(strategy: str) -> Path:
        if strategy not in done:
            place = with_engines(tmp_path_factory.mktemp(strategy), engines)
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # as the commands that are disturbed: other numbers change the last bits of sums
            try:
                with cached_in(place / "cache"):
                    answer = run_cli(*fit_words(strategy, photos, place / "run"))
            finally:
                torch.set_num_threads(threads)
            assert answer.code == 0, answer.err
            done[strategy] = place / "run"
        return done[strategy]

    return of


@pytest.fixture(scope="session")
def run_of_24(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The finished run `colours` of 24 photos, alone in its folder `runs`. Not to be changed, but for its report."""
    return small_run(tmp_path_factory.mktemp("small"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many kills there were."""
    if TOLD:
        parts = ", ".join(f"{part} {count}" for part, count in TOLD.items())
        terminalreporter.write_line(f"{sum(TOLD.values())} kills: {parts}")
