"""Faces kept by content: found once, nothing lost by bad photos or interruptions; and the squares round them."""

from __future__ import annotations

import importlib.util
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facesets import scene, wall
from unfreeze.core.cache import KINDS, ArrayStore, cache_table, clear_cache, content_hash
from unfreeze.core.errors import DetectorError, PhotoError
from unfreeze.data import face_boxes as module
from unfreeze.data.decode import load_crop
from unfreeze.data.face_boxes import MOST, FaceBoxes, crop_of, detect_faces_cached
from unfreeze.data.face_detectors import DETECTORS, DetectorEntry

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("retinaface"), reason="the extra faces is not installed")


@pytest.fixture
def files(tmp_path):
    """Six photos; number 4 is a wall."""
    paths = []
    for i in range(6):
        path = tmp_path / "photos" / f"{i}.{'png' if i % 2 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        (wall((320, 240)) if i == 4 else scene((30 * i, 5 * i), person=i)).save(path, quality=92)
        paths.append(path)
    return paths


def keys_of(files):
    return np.array([content_hash(f.read_bytes()) for f in files], np.uint64)


def found_in(files, readable=None, **more):
    return detect_faces_cached(
        files, keys_of(files), np.ones(len(files), bool) if readable is None else readable, **more
    )


def test_faces_in_shares_of_the_photo(fresh_cache, files):
    found = found_in(files)
    assert found.searched.all()
    assert (found.count > 0).tolist() == [True] * 4 + [False, True]
    assert found.width.tolist() == [320] * 6 and found.height.tolist() == [240] * 6
    largest = found.largest
    assert np.isnan(largest[4]).all() and np.isnan(found.scores[4]).all()
    for i in (0, 1, 2, 3, 5):
        left, top, right, bottom = largest[i] * [320, 240, 320, 240]
        assert 30 * i < left < right < 30 * i + 144
        assert 5 * i < top < bottom < 5 * i + 192


def test_a_second_call_searches_nothing_whatever_the_photos_are_called(fresh_cache, files, tmp_path, monkeypatch):
    before = found_in(files)
    moved = [tmp_path / f"renamed-{i}" for i in range(6)]
    for old, new in zip(reversed(files), moved, strict=True):
        shutil.copy(old, new)
    monkeypatch.setitem(
        DETECTORS,
        "retinaface",
        DetectorEntry(DETECTORS["retinaface"].identity, lambda: pytest.fail("loaded although kept")),
    )
    again = found_in(moved)
    np.testing.assert_array_equal(again.boxes, before.boxes[::-1])
    np.testing.assert_array_equal(again.count, before.count[::-1])


def test_the_cache_lists_and_clears_it(fresh_cache, files):
    found_in(files)
    (row,) = [row for row in cache_table() if row["kind"] == "faces"]
    assert row["rows"] == 6 and "retinaface" in row["about"]["what"]
    assert "faces" in KINDS
    assert clear_cache() >= row["bytes"]
    assert not [row for row in cache_table() if row["kind"] == "faces"]


def test_one_content_is_searched_once(fresh_cache, files, tmp_path):
    shutil.copy(files[0], tmp_path / "twin.jpg")
    found = found_in([*files, tmp_path / "twin.jpg"])
    np.testing.assert_array_equal(found.boxes[6], found.boxes[0])
    assert next(row for row in cache_table() if row["kind"] == "faces")["rows"] == 6


def test_bad_photos_are_passed_over(fresh_cache, files):
    """Cut off, gone and changed since the first look: the others are searched."""
    keys = keys_of(files)
    files[0].write_bytes(files[0].read_bytes()[:500])
    keys[0] = content_hash(files[0].read_bytes())
    files[1].unlink()
    scene((5, 5), person=9).save(files[2])
    found = detect_faces_cached(files, keys, np.array([True] * 5 + [False]))
    assert found.searched.tolist() == [False, False, False, True, True, False]
    assert found.count.tolist()[:3] == [0, 0, 0] and found.count[3] > 0
    assert np.isnan(found.squares(0.3)[[0, 1, 2, 4, 5]]).all()


def test_an_interruption_keeps_what_was_found(fresh_cache, files, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 2)
    opened, real = [], DETECTORS["retinaface"]

    class Interrupted:
        identity, side = real.identity, 320

        def __init__(self):
            self.inner, self.seen = real.open(), 0
            opened.append(self)

        def find(self, photos):
            self.seen += len(photos)
            if self.seen > 4 and len(opened) == 1:
                raise KeyboardInterrupt
            return self.inner.find(photos)

    monkeypatch.setitem(DETECTORS, "retinaface", DetectorEntry(real.identity, Interrupted))
    with pytest.raises(KeyboardInterrupt):
        found_in(files)
    assert next(row for row in cache_table() if row["kind"] == "faces")["rows"] == 4
    assert found_in(files).searched.all()
    assert opened[1].seen == 2


def test_the_largest_come_first_and_a_crowd_is_counted_whole(fresh_cache, files, monkeypatch):
    class Crowd:
        identity, side = "crowd", 320

        def find(self, photos):
            n = 3 * MOST
            corners = np.stack([np.arange(n), np.arange(n)], 1)
            sizes = 1 + (np.arange(n) * 7 % n)[:, None]
            boxes = np.concatenate([corners, corners + sizes], 1).astype(np.float32)
            return [(boxes, np.linspace(1, 0.5, n, dtype=np.float32)) for _ in photos]

    monkeypatch.setitem(DETECTORS, "crowd", DetectorEntry("crowd", Crowd))
    found = found_in(files[:1], detector="crowd")
    assert found.count.tolist() == [3 * MOST]
    sides = (found.boxes[0, :, 2] - found.boxes[0, :, 0]) * 320
    np.testing.assert_allclose(sides, np.arange(3 * MOST, 2 * MOST, -1), atol=1e-3)


def test_detectors_do_not_share_a_cache(fresh_cache, files, monkeypatch):
    class Blind:
        identity, side = "blind", 320

        def find(self, photos):
            return [(np.zeros((0, 4), np.float32), np.zeros(0, np.float32)) for _ in photos]

    monkeypatch.setitem(DETECTORS, "blind", DetectorEntry("blind", Blind))
    assert found_in(files, detector="blind").count.tolist() == [0] * 6
    assert found_in(files).count.sum() >= 5
    with pytest.raises(DetectorError):
        found_in(files, detector="deaf")


def boxes_of(box, size):
    left, top, right, bottom = box
    boxes = np.full((1, MOST, 4), np.nan)
    boxes[0, 0] = np.array([left, top, right, bottom])
    one = np.ones(1, np.int64)
    return FaceBoxes(one > 0, one, boxes, np.full((1, MOST), 0.9), one * size[0], one * size[1])


share = st.floats(0, 1)


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(share, share, share, share),
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.floats(0, 3),
)
def test_a_square_is_square_inside_and_around_the_face(corners, size, margin):
    (a, b, c, d), (width, height) = corners, size
    box = min(a, c), min(b, d), max(a, c), max(b, d)
    left, top, right, bottom = boxes_of(box, size).squares(margin)[0]
    assert -1e-9 <= left <= right <= 1 + 1e-9 and -1e-9 <= top <= bottom <= 1 + 1e-9
    side = (right - left) * width
    assert side == pytest.approx((bottom - top) * height, abs=1e-6)
    longer = max((box[2] - box[0]) * width, (box[3] - box[1]) * height)
    assert side == pytest.approx(min(longer * (1 + 2 * margin), width, height), abs=1e-6)
    if longer < min(width, height):  # then no part of the face is lost
        assert left <= box[0] + 1e-9 and right >= box[2] - 1e-9
        assert top <= box[1] + 1e-9 and bottom >= box[3] - 1e-9


def test_margin_and_moving_at_the_edge():
    found = boxes_of((0.4, 0.4, 0.6, 0.6), (100, 100))
    np.testing.assert_allclose(found.squares(0.0)[0], [0.4, 0.4, 0.6, 0.6])
    np.testing.assert_allclose(found.squares(0.5)[0], [0.3, 0.3, 0.7, 0.7])
    np.testing.assert_allclose(boxes_of((0, 0.8, 0.2, 1), (100, 100)).squares(0.5)[0], [0, 0.6, 0.4, 1], atol=1e-12)
    np.testing.assert_allclose(boxes_of((0.1, 0.2, 0.3, 0.8), (400, 100)).squares(1)[0], [0.075, 0, 0.325, 1])


def test_box_of_is_the_center_without_a_square():
    squares = np.array([[0.1, 0.2, 0.3, 0.4], [np.nan] * 4])
    assert crop_of(squares, 0) == (0.1, 0.2, 0.3, 0.4)
    assert crop_of(squares, 1) is None
    assert crop_of(None, 0) is None


def test_a_box_is_what_is_loaded(tmp_path):
    """A PNG's box is cropped to the pixel; a large JPEG's, decoded small by libjpeg, nearly."""
    photo = scene((100, 20), (640, 480))
    photo.save(tmp_path / "a.png")
    box = (100 / 640, 40 / 480, 196 / 640, 136 / 480)
    seen = load_crop((tmp_path / "a.png").read_bytes(), 96, 0.5, box=box)
    np.testing.assert_array_equal(seen, np.asarray(photo.crop((100, 40, 196, 136))))
    large = photo.resize((2560, 1920))
    large.save(tmp_path / "a.jpg", quality=95)
    seen = load_crop((tmp_path / "a.jpg").read_bytes(), 96, 0.5, box=box).astype(float)
    wanted = np.asarray(large.crop((400, 160, 784, 544)).resize((96, 96), 3)).astype(float)
    assert np.abs(seen - wanted).mean() < 2
    with pytest.raises(PhotoError):
        load_crop(b"no photo", 96, 0.5, box=box)


def test_rows_fit_their_store(fresh_cache, tmp_path):
    assert ArrayStore(tmp_path / "rows", module._DTYPE).dtype.itemsize < 400  # 20,000 photos in 8 MB
