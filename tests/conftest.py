"""What every test needs: a cache of its own, so that none fills the user's; and which tests are left for soaking."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unfreeze.core.messages import command_line

TESTS = Path(__file__).parent
LONG = tuple(line for line in (TESTS / "long.txt").read_text().splitlines() if line and line[0] != "#")
# pytest-xdist tells every worker that it is 80 wide; consoles take that when they are imported.
os.environ.pop("COLUMNS", None)


class TorchBlocker:
    """Import hook under which `import torch` raises ImportError."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        """Raise for torch and the packages that need it; leave all other modules to the other finders."""
        if name in ("torch", "torchvision", "timm"):
            raise ImportError(f"{name} is imported under --no-torch: list this test file as NOT_QUICK in the Makefile")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of this test suite."""
    parser.addoption("--no-torch", action="store_true", help="fail where a test process imports torch (`make quick`)")


def pytest_configure(config: pytest.Config) -> None:
    """Block imports of torch if requested. Also called in each worker of pytest-xdist."""
    if config.getoption("--no-torch"):
        sys.meta_path.insert(0, TorchBlocker)  # type: ignore[arg-type]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what long.txt names, so that `make test` passes it over. A name that no test has is an error."""
    named = set[str]()
    seen = set[str]()
    for item in items:
        name = item.nodeid.removeprefix("tests/")
        seen.add(name.partition("::")[0])
        for line in LONG:
            if name.startswith(line):
                named.add(line)
                item.add_marker(pytest.mark.soak)
    whole = len(seen) > 100  # a part of a file may well lack some
    if whole and (stale := set(LONG) - named):
        raise pytest.UsageError(f"tests/long.txt names what is not there: {', '.join(sorted(stale))}")


@pytest.fixture(autouse=True)
def _wording(request: pytest.FixtureRequest) -> Iterator[None]:
    """Messages name arguments, as in Python; in modules with OPTIONS_IN_MESSAGES, options, as on the command line."""
    with command_line(getattr(request.module, "OPTIONS_IN_MESSAGES", False)):
        yield


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory):
    """The session's cache folder."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(cache_folder):
    """For the whole session, so that wider fixtures and subprocesses see it too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNFREEZE_CACHE", str(cache_folder))
        patch.setenv("XDG_STATE_HOME", str(cache_folder.parent / "state"))
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, where the machine has one. For a module: its loop would be in the way of other tests' loops."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium here")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium)
        yield opened
        opened.close()


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    """An empty cache for one test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("UNFREEZE_CACHE", str(folder))
    return folder
