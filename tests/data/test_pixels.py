"""Stored pixels: equal to what the probe sees, decoded once, and nothing lost by bad photos or interruptions."""

from __future__ import annotations

import shutil
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

from unfreeze.core.cache import ArrayStore, content_hash
from unfreeze.core.errors import StorageError
from unfreeze.core.progress import Reporter
from unfreeze.data import pixel_cache as module
from unfreeze.data.decode import MAX_PIXELS, load_crop, to_grayscale
from unfreeze.data.pixel_cache import CropSpec, cache_pixels

FRAME = CropSpec(56, 0.875)


def textured(height, width, seed):
    """A photo with smooth and sharp parts."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (9, 7, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return np.clip(np.asarray(coarse) + draw.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


@pytest.fixture
def files(tmp_path):
    """Nine photos: wide, tall, square; JPEG (large enough for libjpeg's scaled decode) and PNG."""
    paths = []
    for i in range(9):
        path = tmp_path / "photos" / f"{i}.{'png' if i % 2 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(textured(*((301, 400), (160, 97), (64, 64))[i % 3], i)).save(path, quality=92)
        paths.append(path)
    return paths


def keys_of(files):
    return np.array([content_hash(f.read_bytes()) for f in files], np.uint64)


def kept(files, frame=FRAME, keys=None, readable=None, reporter=None):
    keys = keys_of(files) if keys is None else keys
    readable = np.ones(len(files), bool) if readable is None else readable
    return cache_pixels(files, keys, readable, frame, reporter=reporter)


@pytest.mark.parametrize("options", [(), ("bilinear", False), ("bicubic", True)])
@pytest.mark.parametrize(("size", "crop"), [(224, 0.875), (56, 0.875), (240, 0.882), (260, 0.89), (64, 1.0), (65, 0.5)])
def test_the_middle_is_the_probes_input(fresh_cache, files, size, crop, options):
    """Same scale, same decode: equal but for Pillow's rounding of the box, which moves rare values by one level."""
    frame = CropSpec(size, crop, *options)
    pixels = kept(files, frame)
    m = frame.margin
    middle = pixels.read(np.arange(9))[:, m : m + size, m : m + size].astype(int)
    expected = np.stack([load_crop(f.read_bytes(), size, crop, MAX_PIXELS, f, *options) for f in files]).astype(int)
    assert np.abs(middle - expected).max() <= 1
    assert np.abs(middle - expected).mean() < 0.02
    assert frame.share <= 1
    assert frame.side + 2 > size / crop  # as wide as there is photo


def test_a_margin_shows_more_than_the_evaluation_view(fresh_cache, tmp_path):
    """The frame around the evaluation view holds the photo's border, not a repeat of its inside."""
    photo = np.full((64, 64, 3), 50, np.uint8)
    photo[:3], photo[-3:], photo[:, :3], photo[:, -3:] = 200, 200, 200, 200
    Image.fromarray(photo).save(tmp_path / "a.png")
    stored = kept([tmp_path / "a.png"]).read(np.array([0]))[0]
    assert stored.shape == (64, 64, 3)
    assert stored[0].min() > 190
    assert stored[4:-4, 4:-4].max() < 60


def test_squash_keeps_the_whole_width(fresh_cache, tmp_path):
    """A wide photo's left and right ends are in the squashed square and not in the center square."""
    photo = np.zeros((100, 300, 3), np.uint8)
    photo[:, :90, 0], photo[:, 210:, 1] = 255, 255
    Image.fromarray(photo).save(tmp_path / "wide.png")
    centre = kept([tmp_path / "wide.png"], CropSpec(64, 1.0)).read(np.array([0]))[0]
    squashed = kept([tmp_path / "wide.png"], CropSpec(64, 1.0, squash=True)).read(np.array([0]))[0]
    assert centre.max() < 40
    assert squashed[:, :15, 0].min() > 240
    assert squashed[:, -15:, 1].min() > 240


def test_a_second_call_decodes_nothing_whatever_the_photos_are_called(fresh_cache, files, tmp_path, monkeypatch):
    before = kept(files).read(np.arange(9))
    moved = [tmp_path / f"renamed-{i}" for i in range(9)]
    for old, new in zip(reversed(files), moved, strict=True):
        shutil.copy(old, new)
    monkeypatch.setattr(module, "_load", lambda *_: pytest.fail("decoded although it was kept"))
    assert np.array_equal(kept(moved).read(np.arange(9)), before[::-1])


def test_one_content_is_decoded_once_and_another_frame_again(fresh_cache, files, tmp_path):
    twin = tmp_path / "twin.jpg"
    shutil.copy(files[0], twin)
    pixels = kept([*files, twin])
    assert np.array_equal(pixels.places[9], pixels.places[0])
    assert len(np.unique(pixels.places, axis=0)) == 9
    assert kept(files, CropSpec(40, 0.9)).store.folder != pixels.store.folder


def test_bad_photos_are_reported_and_the_rest_is_kept(fresh_cache, files):
    keys = keys_of(files)
    readable = np.arange(9) != 8
    files[2].write_bytes(b"no image")
    keys[2] = content_hash(b"no image")
    files[4].write_bytes(files[0].read_bytes())  # changed since the first look
    files[6].unlink()
    pixels = kept(files, keys=keys, readable=readable)
    assert pixels.failed == {
        2: "not an image in a known format",
        4: "its content changed while it was read",
        6: "no such file",
    }
    good = np.array([0, 1, 3, 5, 7])
    assert pixels.read(good).any((1, 2, 3)).all()
    assert (pixels.places[[2, 4, 6, 8], 0] == -1).all()
    with pytest.raises(ValueError, match="missing"):
        pixels.read(np.array([2]))


def test_an_interruption_keeps_what_was_decoded(fresh_cache, files, monkeypatch):
    real = module._load

    def stops(file, *rest):
        if file == files[5]:
            raise KeyboardInterrupt
        return real(file, *rest)

    monkeypatch.setattr(module, "_load", stops)
    with pytest.raises(KeyboardInterrupt):
        kept(files)
    decoded = []
    monkeypatch.setattr(module, "_load", lambda file, *rest: decoded.append(file) or real(file, *rest))
    assert not kept(files).failed
    assert decoded == files[5:]


def test_rows_are_written_in_segments_and_read_in_any_order(fresh_cache, files, monkeypatch):
    whole = kept(files).read(np.arange(9))
    shutil.rmtree(fresh_cache)
    monkeypatch.setattr(module, "_FLUSH_BYTES", 2 * FRAME.row_bytes)
    pixels = kept(files)
    assert pixels.places[:, 0].max() == 4  # five files of two
    order = np.array([8, 0, 5, 5, 2])
    assert np.array_equal(pixels.read(order), whole[order])
    assert pixels.read(order).dtype == np.uint8


def test_reading_maps_the_disk_and_copies_only_what_is_asked(fresh_cache, files):
    pixels = kept(files)
    pixels.read(np.array([3]))
    assert all(isinstance(rows, np.memmap) for rows in pixels.store._open.values())
    pixels.forget_pages()
    assert pixels.read(np.array([3])).any()


class Said(Reporter):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def test_bytes_are_reported_before_and_a_small_disk_is_refused(fresh_cache, files, monkeypatch):
    said = Said()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(1, 1, 9 * FRAME.row_bytes - 1))
    monkeypatch.setattr(module, "_load", lambda *_: pytest.fail("decoded although there is no room"))
    with pytest.raises(StorageError, match=r"9 photos take 0\.0 GB"):
        kept(files, reporter=said)
    monkeypatch.undo()
    monkeypatch.setenv("UNFREEZE_CACHE", str(fresh_cache))
    kept(files, reporter=said)
    assert said.lines == [f"Pixels of 9 photos are kept on disk: 0.00 GB in {kept(files).store.folder}."]
    kept(files, reporter=said)
    assert len(said.lines) == 1


def test_a_full_disk_is_one_line(fresh_cache, files, monkeypatch):
    def full(self, keys, rows):
        raise StorageError("the disk is full")

    monkeypatch.setattr(ArrayStore, "append", full)
    with pytest.raises(StorageError, match="full"):
        kept(files)


def test_gray_pixels_have_a_store_of_their_own_and_colored_ones_keep_theirs(fresh_cache, files):
    colour, gray = kept(files), kept(files, CropSpec(56, 0.875, gray=True))
    assert FRAME.about == {"size": 56, "crop": 0.875, "resample": "bicubic", "squash": False}
    assert gray.store.folder != colour.store.folder
    assert np.array_equal(gray.read(np.arange(9)), to_grayscale(colour.read(np.arange(9))))
