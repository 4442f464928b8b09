"""Rows by content: shared without locks, never wrong, never half there."""

from __future__ import annotations

import errno
import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from unfreeze.core import cache
from unfreeze.core.cache import ArrayStore, cache_root, cache_table, clear_cache, content_hash, load_array, stable_hash
from unfreeze.core.errors import CacheError, StorageError
from unfreeze.core.progress import Reporter

WIDTH = 5


class Heard(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def keys_of(*numbers: int) -> np.ndarray:
    """Keys as files would have them."""
    return np.array([content_hash(str(n).encode()) for n in numbers], np.uint64).reshape(-1, 2)


def rows_of(*numbers: int) -> np.ndarray:
    """A row that tells its number."""
    return np.array(numbers, np.float32)[:, None] * np.ones(WIDTH, np.float32)


def store(folder, reporter=None) -> ArrayStore:
    return ArrayStore(folder / "s", np.float32, (WIDTH,), reporter=reporter)


def stored(one: ArrayStore, *numbers: int) -> list[bool]:
    return list(one.find(keys_of(*numbers))[:, 0] >= 0)


def got(one: ArrayStore, *numbers: int) -> list[float]:
    rows = one.take(one.find(keys_of(*numbers)))
    assert rows.shape == (len(numbers), WIDTH)
    return rows[:, 0].tolist()


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_and_read_in_any_order(tmp_path):
    one = store(tmp_path)
    assert stored(one, 1, 2) == [False, False]
    one.append(keys_of(1, 2, 3), rows_of(1, 2, 3))
    one.append(keys_of(4, 5), rows_of(4, 5))
    assert stored(one, 5, 9, 1) == [True, False, True]
    assert got(one, 5, 1, 4, 2, 2, 5, 3) == [5, 1, 4, 2, 2, 5, 3]
    assert got(store(tmp_path), 4, 3) == [4, 3]


def test_nothing(tmp_path):
    one = store(tmp_path)
    one.append(keys_of(), np.zeros((0, WIDTH), np.float32))
    assert names(one.folder) == []
    assert one.find(keys_of()).shape == (0, 2)
    assert one.take(np.zeros((0, 2), np.int64)).shape == (0, WIDTH)


def test_many_against_a_dict(tmp_path):
    draw = np.random.default_rng(0)
    one, truth = store(tmp_path), {}
    for _ in range(20):
        numbers = draw.integers(0, 500, 30).tolist()
        one.append(keys_of(*numbers), rows_of(*numbers))
        truth.update(dict.fromkeys(numbers))
    assert stored(one, *range(500)) == [n in truth for n in range(500)]
    there = draw.permutation(list(truth)).tolist()
    assert got(one, *there) == there


def test_rows_of_other_kinds(tmp_path):
    kind = np.dtype([("a", "<u8", 2), ("b", "S5")])
    one = ArrayStore(tmp_path / "s", kind)
    rows = np.zeros(2, kind)
    rows["b"] = [b"x", b"y"]
    one.append(keys_of(1, 2), rows)
    assert one.take(one.find(keys_of(2, 1)))["b"].tolist() == [b"y", b"x"]


def test_two_stores_share_a_folder(tmp_path):
    one, two = store(tmp_path), store(tmp_path)
    one.append(keys_of(1), rows_of(1))
    assert stored(two, 1) == [False]
    two.append(keys_of(2), rows_of(2))
    for each in (one, two):
        each.refresh()
    assert got(two, 2, 1) == [2, 1]
    assert got(one, 2, 1) == [2, 1]


def test_duplicates_are_harmless(tmp_path):
    one, two = store(tmp_path), store(tmp_path)
    for each in (one, two, one):
        each.append(keys_of(7, 7, 8), rows_of(7, 7, 8))
    assert got(store(tmp_path), 8, 7) == [8, 7]


def damage_cut_rows(folder):
    path = next(folder.glob("*.rows.npy"))
    path.write_bytes(path.read_bytes()[:-4])


def damage_empty_rows(folder):
    next(folder.glob("*.rows.npy")).write_bytes(b"")


def damage_no_rows(folder):
    next(folder.glob("*.rows.npy")).unlink()


def damage_garbage_keys(folder):
    next(folder.glob("*.keys.npy")).write_bytes(b"not an array at all")


def damage_zip_keys(folder):
    next(folder.glob("*.keys.npy")).write_bytes(b"PK\x03\x04 damaged")


def damage_pickled_keys(folder):
    np.save(next(folder.glob("*.keys.npy")), np.array([{}], object))


def damage_scalar_keys(folder):
    np.save(next(folder.glob("*.keys.npy")), np.uint64(3))


def damage_fewer_keys(folder):
    np.save(next(folder.glob("*.keys.npy")), keys_of(1))


def damage_other_width(folder):
    np.save(next(folder.glob("*.rows.npy")), np.zeros((2, WIDTH + 1), np.float32))


def damage_other_type(folder):
    np.save(next(folder.glob("*.rows.npy")), np.zeros((2, WIDTH), np.float64))


@pytest.mark.parametrize("damage", [v for k, v in globals().items() if k.startswith("damage_")])
def test_damage_is_dropped_and_said(tmp_path, damage):
    store(tmp_path).append(keys_of(1, 2), rows_of(1, 2))
    damage(tmp_path / "s")
    heard = Heard()
    one = store(tmp_path, heard)
    assert stored(one, 1, 2) == [False, False]
    assert len(heard.lines) == 1 and "recomputed" in heard.lines[0] and "keys.npy" in heard.lines[0]
    assert names(tmp_path / "s") == []
    one.append(keys_of(1, 2), rows_of(1, 2))
    assert got(store(tmp_path), 2, 1) == [2, 1]


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("part", ["rows", "keys"])
def test_a_flipped_bit_is_never_read_as_a_row(tmp_path, part):
    store(tmp_path).append(keys_of(1, 2), rows_of(1, 2))
    flip_a_byte(next((tmp_path / "s").glob(f"*.{part}.npy")))
    one = store(tmp_path)
    if stored(one, 2)[0]:
        with pytest.raises(CacheError, match="Run the same command again"):
            got(one, 2)
    assert not stored(store(tmp_path), 2)[0]
    again = store(tmp_path)
    again.append(keys_of(1, 2), rows_of(1, 2))
    assert got(store(tmp_path), 2, 1) == [2, 1]


def test_rows_that_were_swapped_or_zeroed_are_damage(tmp_path):
    for change in (lambda rows: rows[::-1].copy(), np.zeros_like, lambda rows: rows * np.nan):
        store(tmp_path).append(keys_of(1, 2), rows_of(1, 2))
        file = next((tmp_path / "s").glob("*.rows.npy"))
        np.save(file, change(np.load(file)))
        with pytest.raises(CacheError):
            got(store(tmp_path), 1, 2)
        assert names(tmp_path / "s") == []


def test_damage_to_one_segment_leaves_the_others(tmp_path):
    one = store(tmp_path)
    one.append(keys_of(1, 2), rows_of(1, 2))
    damage_cut_rows(tmp_path / "s")
    one.append(keys_of(3), rows_of(3))
    assert stored(store(tmp_path), 1, 2, 3) == [False, False, True]


def test_what_the_system_refuses_for_now_is_not_deleted(tmp_path, monkeypatch):
    """Too many open files, say: the segment may be whole."""
    store(tmp_path).append(keys_of(1), rows_of(1))
    before = names(tmp_path / "s")

    def refuse(*args, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(cache.np, "load", refuse)
        heard = Heard()
        assert stored(store(tmp_path, heard), 1) == [False]
        assert "Too many open files" in heard.lines[0]
    assert names(tmp_path / "s") == before
    assert got(store(tmp_path), 1) == [1]


def test_more_segments_than_open_files(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    one = store(tmp_path)
    for n in range(300):
        one.append(keys_of(n), rows_of(n))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(200, hard), hard))
    try:
        heard = Heard()
        again = store(tmp_path, heard)
        assert got(again, *range(300)) == list(range(300))
        again.forget_pages()
        assert got(again, *range(299, -1, -1)) == list(range(299, -1, -1))
        assert heard.lines == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize(
    ("error", "expected"), [(OSError(errno.ENOSPC, "full"), StorageError), (KeyboardInterrupt(),) * 2]
)
def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, which, error, expected):
    """A full disk or an interruption, at the rows (1) or at the keys (2)."""
    one = store(tmp_path)
    one.append(keys_of(1), rows_of(1))
    calls, save = [], np.save

    def failing(path, array):
        calls.append(path)
        save(path, array)
        if len(calls) == which:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(cache.np, "save", failing)
        with pytest.raises(expected if isinstance(expected, type) else type(expected)):
            one.append(keys_of(2), rows_of(2))
    assert not [name for name in names(one.folder) if "tmp" in name]
    assert len([name for name in names(one.folder) if "keys" in name]) == 1
    assert got(one, 1) == [1]
    for each in (one, store(tmp_path)):
        each.refresh()
        assert stored(each, 1, 2) == [True, False]
    one.append(keys_of(2), rows_of(2))
    assert got(one, 2, 1) == [2, 1]


def test_misuse(tmp_path):
    one = store(tmp_path)
    one.append(keys_of(1), rows_of(1))
    with pytest.raises(CacheError, match="do not fit"):
        one.append(keys_of(2), np.zeros((2, WIDTH), np.float32))
    with pytest.raises(ValueError, match="-1"):
        one.take(one.find(keys_of(9)))


def test_a_cache_cleared_under_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_OPEN", 1)
    one = store(tmp_path)
    for n in (1, 2):
        one.append(keys_of(n), rows_of(n))
    places = one.find(keys_of(1, 2))
    for path in one.folder.iterdir():
        path.unlink()
    with pytest.raises(CacheError, match="cleared meanwhile"):
        one.take(places)


def test_searching_while_another_thread_adds(tmp_path):
    """Places must never mix an old index with a new one."""
    one = store(tmp_path)
    one.append(keys_of(0), rows_of(0))
    wrong, stop = [], threading.Event()

    def search():
        while not stop.is_set():
            numbers = np.arange(60)
            places = one.find(keys_of(*numbers))
            there = numbers[places[:, 0] >= 0]
            if one.take(places[places[:, 0] >= 0])[:, 0].tolist() != there.tolist():
                wrong.append(there)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in np.random.default_rng(0).permutation(np.arange(1, 60)).tolist():
        one.append(keys_of(n), rows_of(n))
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "s").touch()
    with pytest.raises(StorageError, match="in the way"):
        store(tmp_path)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("UNFREEZE_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("UNFREEZE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "unfreeze"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "unfreeze"


def test_table_and_clearing(fresh_cache):
    assert cache_table() == []
    assert clear_cache() == 0
    one = ArrayStore(fresh_cache / "features" / "a", np.float32, (WIDTH,), about={"backbone": "x"})
    one.append(keys_of(1, 2), rows_of(1, 2))
    one.append(keys_of(3), rows_of(3))
    (fresh_cache / "features" / "a" / "9.keys.npy").write_bytes(b"PK\x03\x04")  # damage must not hide the rest
    (fresh_cache / "mine.txt").write_text("keep")
    (row,) = cache_table()
    assert (row["kind"], row["name"], row["about"], row["rows"]) == ("features", "a", {"backbone": "x"}, 3)
    assert row["bytes"] == sum(p.stat().st_size for p in one.folder.iterdir())
    assert clear_cache() == row["bytes"]
    assert names(fresh_cache) == ["mine.txt"]


def test_names():
    assert stable_hash({"a": 1, "b": [2]}) == stable_hash({"b": [2], "a": 1})
    assert stable_hash({"a": 1}) != stable_hash({"a": 2})
    assert content_hash(b"a") != content_hash(b"b")
    assert all(0 <= part < 2**64 for part in content_hash(b""))


def test_no_test_touches_the_users_cache(cache_folder):
    assert cache_root() == cache_folder


def test_rotations_are_listed_and_pruned_oldest_first(fresh_cache):
    import os

    from unfreeze.core.cache import cache_root, cache_table, prune

    for age, name in enumerate(("new", "middle", "old")):
        folder = cache_root() / "rotations" / name
        folder.mkdir(parents=True)
        (folder / "coordinates.npy").write_bytes(b"x" * 1000)
        os.utime(folder, (1e9 - age, 1e9 - age))
    (row,) = cache_table()
    assert (row["kind"], row["bytes"]) == ("rotations", 3000)
    prune("rotations", 2500)
    assert sorted(p.name for p in (cache_root() / "rotations").iterdir()) == ["middle", "new"]
    prune("rotations", 0)
    assert not list((cache_root() / "rotations").iterdir())


def test_arrays_are_loaded_by_many_threads_at_once(tmp_path: Path) -> None:
    """CPython 3.11's parser, which numpy reads a header by, fails where a thread takes over in the middle of it.

    That is where the garbage collector calls back into Python, as libraries ask it to; here it often does.
    """
    files = [tmp_path / f"{i}.npy" for i in range(8)]
    for i, file in enumerate(files):
        np.save(file, np.full((3, 2), i))

    def called(phase: str, info: dict[str, int]) -> None:
        sum(range(50))

    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.callbacks.append(called)
    gc.set_threshold(20)
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(load_array, files * 500))
    finally:
        gc.callbacks.remove(called)
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)
    assert [int(one[0, 0]) for one in found] == list(range(8)) * 500


def test_an_index_of_many_segments_stays_short(tmp_path):
    """Rows of all segments are found, and few sorted lists are searched for them, whatever order they came in."""
    many = store(tmp_path)
    for number in range(1, 101):
        many.append(keys_of(number), rows_of(number))
    assert got(many, *range(100, 0, -1)) == list(range(100, 0, -1))
    assert got(store(tmp_path), 57, 1, 100) == [57, 1, 100]
    assert len(many._indices) <= 8
