"""The first look: every photo once, whatever is wrong with it, and never twice."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from unfreeze.core.cache import ArrayStore, cache_root
from unfreeze.core.dataset import ImageDataset
from unfreeze.data import decode, scan
from unfreeze.data.scan import add_scan_columns, scan_images


def scene(seed: int, width=60, height=40) -> Image.Image:
    """A picture of its own for each seed, smooth enough for JPEG."""
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def photos_of(root) -> ImageDataset:
    paths = sorted(p.name for p in root.iterdir() if p.is_file())
    table = pd.DataFrame({"path": paths, "label": "x", "group": paths, "split": "train"})
    return ImageDataset(table, root, ("x",), ("x",), ("label",), "class_folders", "")


@pytest.fixture
def folder(tmp_path, fresh_cache):
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(5):
        scene(i).save(root / f"{i}.png")
    return root


def test_sizes_and_hashes(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(9).save(folder / "turned.jpg", exif=exif)
    scene(9).save(folder / "turned.tif", exif=exif)
    scene(9, 2000, 1500).save(folder / "wide.jpg")
    (folder / "again.png").write_bytes((folder / "0.png").read_bytes())
    photos = photos_of(folder)
    seen = scan_images(photos)
    sizes = dict(zip(photos.table["path"], zip(seen.width.tolist(), seen.height.tolist(), strict=True), strict=True))
    assert sizes["0.png"] == (60, 40)
    assert sizes["turned.jpg"] == sizes["turned.tif"] == (40, 60)
    assert sizes["wide.jpg"] == (2000, 1500)
    assert seen.problem == [""] * 9
    hashes = dict(zip(photos.table["path"], seen.hashes(), strict=True))
    assert hashes["0.png"] == hashes["again.png"]
    assert len(set(hashes.values())) == 8
    assert all(len(h) == 32 for h in hashes.values())


def test_unreadable_photos_have_a_reason(folder):
    (folder / "junk.jpg").write_bytes(b"not a photo")
    (folder / "empty.jpg").touch()
    photos = photos_of(folder)
    (folder / "4.png").unlink()
    seen = scan_images(photos)
    assert seen.readable.tolist() == [True] * 4 + [False] * 3
    assert seen.problem[4:] == ["no such file", "the file is empty", "not an image in a known format"]
    assert seen.hashes()[4] == seen.hashes()[5] == "" != seen.hashes()[6]
    told = add_scan_columns(photos, seen)
    assert [(f.path, f.message) for f in told.findings] == list(
        zip(["4.png", "empty.jpg", "junk.jpg"], seen.problem[4:], strict=True)
    )
    assert list(told.table["hash"]) == seen.hashes()
    assert scan_images(photos).problem == seen.problem  # the second time from the cache


def test_all_unreadable(folder):
    for path in folder.iterdir():
        path.write_bytes(b"x")
    seen = scan_images(photos_of(folder))
    assert not seen.readable.any()
    assert [pairs.shape for pairs in seen.duplicates] == [(0, 2), (0, 2)]


def same(a, b) -> bool:
    return a.problem == b.problem and all(
        np.array_equal(getattr(a, k), getattr(b, k)) for k in ("keys", "dhash", "thumb", "width", "height")
    )


def test_a_second_look_decodes_nothing(folder, monkeypatch):
    photos = photos_of(folder)
    first = scan_images(photos)
    monkeypatch.setattr(scan, "decode_image", lambda *_: pytest.fail("decoded again"))
    assert same(scan_images(photos), first)
    (folder / "0.png").rename(folder / "z.png")  # known by content
    assert scan_images(photos_of(folder)).hashes() == first.hashes()[1:] + first.hashes()[:1]


def test_copies_of_one_content_are_decoded_once(folder, monkeypatch, fresh_cache):
    for name in ("copy1.png", "copy2.png"):
        shutil.copy(folder / "0.png", folder / name)
    decoded = []
    monkeypatch.setattr(scan, "decode_image", lambda *a: decoded.append(1) or decode.decode_image(*a))
    photos = photos_of(folder)
    seen = scan_images(photos)
    assert len(decoded) == len(photos) - 2
    assert seen.hashes()[-2:] == seen.hashes()[:1] * 2 and (seen.dhash[-2:] == seen.dhash[0]).all()
    assert seen.width[-1] == seen.width[0] > 0 and same(scan_images(photos), seen)


def test_written_in_parts(folder, monkeypatch):
    photos = photos_of(folder)
    whole = scan_images(photos)
    monkeypatch.setenv("UNFREEZE_CACHE", str(folder.parent / "other"))
    monkeypatch.setattr(scan, "_FLUSH", 2)
    assert same(scan_images(photos), whole)
    assert len(list(cache_root().glob("looks/*/*.keys.npy"))) == 3
    assert same(scan_images(photos), whole)


def test_want_of_memory_is_not_remembered(folder, monkeypatch):
    photos = photos_of(folder)

    def starved(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(decode, "rgb_pixels", starved)
        assert scan_images(photos).problem == ["not enough memory to decode it"] * 5
    assert scan_images(photos).readable.all()


def test_another_limit_is_another_look(folder):
    photos = photos_of(folder)
    assert scan_images(photos).readable.all()
    assert "more than the limit of 2,399" in scan_images(photos, max_pixels=2399).problem[0]


def test_a_damaged_cache_is_made_again(folder):
    photos = photos_of(folder)
    first = scan_images(photos)
    for path in cache_root().glob("looks/*/*.rows.npy"):
        path.write_bytes(b"damaged")
    assert same(scan_images(photos), first)
    (store,) = cache_root().glob("looks/*")
    assert len(ArrayStore(store, scan._DTYPE).find(first.keys)) == 5


def test_the_hash_knows_a_photo_again(tmp_path, fresh_cache):
    """Encoded anew and made smaller it is the same photo; another picture, or the same in other colors, is not."""
    root = tmp_path / "photos"
    root.mkdir()
    picture = scene(1, 640, 480)
    picture.save(root / "a.png")
    picture.save(root / "b.jpg", quality=60)
    picture.resize((320, 240), Image.Resampling.BICUBIC).save(root / "c.jpg", quality=85)
    scene(2, 640, 480).save(root / "d.png")
    Image.fromarray(np.asarray(picture)[..., ::-1]).save(root / "e.png")
    seen = scan_images(photos_of(root))
    exact, near = seen.duplicates
    assert exact.tolist() == []
    assert near.tolist() == [[0, 1], [0, 2], [1, 2]]


def test_a_cut_jpeg_is_found_though_it_is_read_small(tmp_path, fresh_cache):
    root = tmp_path / "photos"
    root.mkdir()
    file = io.BytesIO()
    scene(1, 1600, 1200).save(file, "JPEG")
    (root / "a.jpg").write_bytes(file.getvalue()[:-2000])
    assert scan_images(photos_of(root)).problem[0].startswith("damaged (")
