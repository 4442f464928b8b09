"""What every test needs: a cache of its own, so that none reads or fills the user's."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory):
    """The session's cache folder."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(cache_folder):
    """For the whole session, so that wider fixtures and subprocesses see it too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNFREEZE_CACHE", str(cache_folder))
        yield


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    """An empty cache for one test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("UNFREEZE_CACHE", str(folder))
    return folder
