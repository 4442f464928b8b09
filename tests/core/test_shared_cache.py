"""Rows that two machines share through a URL: what one has made the other finds, and nothing half there is read."""

from __future__ import annotations

import fsspec
import numpy as np
import pytest
from test_cache import WIDTH, Heard, keys_of, names, rows_of, stored

from unfreeze.core import remote_cache
from unfreeze.core.cache import ArrayStore, cache_root
from unfreeze.core.errors import MissingExtraError, StorageError


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path, monkeypatch):
    """A place that both machines reach; a bucket in memory, or a folder."""
    found = f"memory://{tmp_path.name}/all" if request.param == "memory" else (tmp_path / "all").as_uri()
    monkeypatch.setenv(remote_cache.SHARED, found)
    return found


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes this process another machine, by its cache."""

    def become(name: str) -> None:
        monkeypatch.setenv("UNFREEZE_CACHE", str(tmp_path / name))

    become("first")
    return become


def store(kind: str = "features", reporter=None) -> ArrayStore:
    return ArrayStore(cache_root() / kind / "abc", np.float32, (WIDTH,), reporter=reporter)


def test_what_one_machine_has_made_the_other_finds(url, machine):
    one = store()
    one.append(keys_of(1, 2), rows_of(1, 2))
    one.append(keys_of(3), rows_of(3))
    machine("second")
    two = store()
    assert two.take(two.find(keys_of(3, 1, 2)))[:, 0].tolist() == [3, 1, 2]
    two.append(keys_of(4), rows_of(4))
    assert stored(one, 4) == [False]
    one.refresh()
    assert stored(one, 1, 2, 3, 4) == [True] * 4
    assert names(one.folder) == names(two.folder)


def test_rows_of_before_there_was_a_shared_cache_go_there(url, machine, monkeypatch):
    monkeypatch.delenv(remote_cache.SHARED)
    store().append(keys_of(1), rows_of(1))
    monkeypatch.setenv(remote_cache.SHARED, url)
    store()
    machine("second")
    assert stored(store(), 1) == [True]


def test_only_what_is_worth_it_is_shared(url, machine):
    store("pixels").append(keys_of(1), rows_of(1))
    machine("second")
    assert stored(store("pixels"), 1) == [False]


def test_a_folder_outside_the_cache_is_not_shared(url, machine, tmp_path):
    ArrayStore(tmp_path / "elsewhere" / "abc", np.float32, (WIDTH,)).append(keys_of(1), rows_of(1))
    system, place = fsspec.core.url_to_fs(url)
    assert not system.exists(place) or system.find(place) == []


def test_names_that_are_no_segment_are_never_fetched(url, machine):
    store().append(keys_of(1), rows_of(1))
    system, place = fsspec.core.url_to_fs(url)
    for name in ("evil.keys.npy", ".half.keys.npy.1a2b3c4d", "0-1.keys.npy", "about.json"):
        system.pipe_file(f"{place}/features/abc/{name}", b"x")
    machine("second")
    assert [name for name in names(store().folder) if not name[:20].isdecimal()] == []


def test_a_damaged_segment_is_said_and_left_out(url, machine):
    store().append(keys_of(1), rows_of(1))
    system, place = fsspec.core.url_to_fs(url)
    (rows,) = (name for name in system.find(place) if name.endswith(".rows.npy"))
    system.pipe_file(rows, b"\x93NUMPY, and then nothing")
    machine("second")
    heard = Heard()
    assert stored(store(reporter=heard), 1) == [False]
    assert len(heard.lines) == 1 and "unreadable" in heard.lines[0]


def test_keys_come_last_and_whole(machine, tmp_path, monkeypatch):
    """A machine that is cut off in the middle leaves rows that nobody reads."""
    monkeypatch.setenv(remote_cache.SHARED, (tmp_path / "all").as_uri())
    system = type(fsspec.core.url_to_fs((tmp_path / "all").as_uri())[0])

    def cut(self, *args, **more):
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(system, "mv", cut)
        with pytest.raises(StorageError, match=r"UNFREEZE_SHARED_CACHE: .*abc: ConnectionError: gone; run the same"):
            store().append(keys_of(1), rows_of(1))
    sending = ArrayStore(cache_root() / "features" / "abc", np.float32, (WIDTH,))  # goes on, and sends it now
    assert stored(sending, 1) == [True]
    machine("second")
    assert stored(store(), 1) == [True]


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        ("nothing-known://bucket/x", StorageError, "Protocol not known"),
        ("s3://bucket/x", MissingExtraError, "s3fs"),
    ],
)
def test_a_url_that_cannot_be_used_is_reported(url, error, says, machine, monkeypatch):
    if error is MissingExtraError:
        from importlib.util import find_spec

        if find_spec("s3fs"):
            pytest.skip("s3fs is here")
    monkeypatch.setenv(remote_cache.SHARED, url)
    with pytest.raises(error, match=rf"^UNFREEZE_SHARED_CACHE: .*{says}"):
        store()


def test_without_a_url_nothing_is_shared(machine, monkeypatch):
    monkeypatch.delenv(remote_cache.SHARED, raising=False)
    assert remote_cache.shared_folder(cache_root() / "features" / "abc", cache_root()) is None
