"""Engines: the same numbers from each, whatever the batches; the record of what was measured, and its mending."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from unfreeze.core.errors import EngineError
from unfreeze.models import engines as module
from unfreeze.models.engines import BATCH, cpu_name, open_engine, parity, recorded_engine


def batches(pixels, sizes):
    start = 0
    for size in sizes:
        yield pixels[start : start + size]
        start += size


def outputs(engine, pixels, sizes=None):
    sizes = sizes or [BATCH] * (-(-len(pixels) // BATCH))
    return list(engine.run(batches(pixels, sizes)))


@pytest.fixture(scope="session")
def eager(graph, pixels):
    """What eager float32 torch says: normalised by hand."""
    import torch

    p = graph.preprocessing
    values = (pixels.astype(np.float64) / 255 - p.mean) / p.std
    with torch.inference_mode():
        return graph.module()(torch.from_numpy(values.astype(np.float32)).permute(0, 3, 1, 2)).numpy()


def folder_of(engines):
    (folder,) = (f for f in engines.iterdir() if not f.name.startswith("."))
    return folder


def edit(engines, **changes):
    file = folder_of(engines) / "engine.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_openvino_equals_eager_torch(engines, graph, pixels, eager):
    engine = open_engine(graph, "openvino-f32")
    found = np.concatenate(outputs(engine, pixels))
    assert found.dtype == np.float32
    assert engine.precision == "f32"
    assert engine.blocks == (("blocks.6", 320 * 4), ("conv_head", 1280 * 4))
    assert np.abs(found - eager).max() < 1e-4 * np.abs(eager).max()
    assert np.linalg.norm(found - eager) < 1e-4 * np.linalg.norm(eager)


def test_torch_engine_equals_eager_torch(fresh_cache, graph, pixels, eager):
    engine = open_engine(graph, "torch")
    found = np.concatenate(outputs(engine, pixels))
    assert engine.blocks == (("blocks.6", 320 * 4), ("conv_head", 1280 * 4))
    assert np.linalg.norm(found - eager) < 1e-4 * np.linalg.norm(eager)
    assert not (fresh_cache / "engines").exists()


@pytest.mark.parametrize("sizes", [[4, 4, 3], [1] * 11, [3, 4, 1, 2, 1], [2, 0, 4, 4, 1]], ids=str)
def test_batches_of_any_size_keep_their_order(engines, graph, pixels, eager, sizes):
    found = outputs(open_engine(graph, "openvino-f32"), pixels, sizes)
    assert [len(f) for f in found] == sizes
    assert np.linalg.norm(np.concatenate(found) - eager) < 1e-4 * np.linalg.norm(eager)


def test_many_batches_keep_their_order(engines, graph, pixels, eager):
    """More batches than there are requests, so that requests are used again while others are busy."""
    turns = np.random.default_rng(1).integers(0, len(pixels), 203)
    found = np.concatenate(outputs(open_engine(graph, "openvino-f32"), pixels[turns]))
    assert np.linalg.norm(found - eager[turns]) < 1e-4 * np.linalg.norm(eager[turns])


def test_a_mirrored_view_is_read_as_mirrored(engines, graph, pixels):
    """A flipped array has negative strides: it must be copied, not read by its first byte."""
    engine = open_engine(graph, "openvino-f32")
    flipped = pixels[:BATCH, :, ::-1]
    (view,), (copy,) = outputs(engine, flipped), outputs(engine, np.ascontiguousarray(flipped))
    assert np.array_equal(view, copy)
    assert not np.allclose(view, outputs(engine, pixels[:BATCH])[0], rtol=1e-2)


def test_an_engine_can_be_used_again_after_it_was_left_early(engines, graph, pixels, eager):
    """Requests in flight when a run is interrupted must not be left reading, nor block the next run."""
    engine = open_engine(graph, "openvino-f32")

    def interrupted():
        yield from batches(pixels, [4, 4])
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            list(engine.run(interrupted()))
        left = engine.run(batches(pixels, [1] * 11))
        next(left)
        left.close()
    assert np.linalg.norm(np.concatenate(outputs(engine, pixels)) - eager) < 1e-4 * np.linalg.norm(eager)


def test_the_first_conversion_is_kept_and_said(conversion, engines, graph):
    record = json.loads((folder_of(conversion[0]) / "engine.json").read_text())
    before, line = conversion[1]
    assert "converting EfficientNet-Lite0 at 64 px" in before
    assert line.startswith(f"Engine: {record['choice']}, ready in") and "cosine to float32" in line
    assert record["machine"] == cpu_name()
    assert record["parity"]["openvino-f32"] > 0.99999
    assert record["parity"][record["choice"]] >= module.PARITY
    assert recorded_engine(graph, "openvino-f32").blocks == (("blocks.6", 1280), ("conv_head", 5120))
    assert not list(conversion[0].glob(".*"))


def test_a_recorded_engine_is_opened_without_torch(engines, graph, pixels):
    code = (
        "import sys, numpy as np\n"
        "from unfreeze.models.registry import find_backbone\n"
        "from unfreeze.models.engines import open_engine, recorded_engine\n"
        "from unfreeze.models.feature_extractor import FeatureExtractor\n"
        "from unfreeze.models.pooling import FeatureSpec\n"
        "b = find_backbone('tf_efficientnet_lite0')\n"
        "g = FeatureExtractor(b, b.preprocessing.resolved(64, 0), FeatureSpec(2, 2))\n"
        "assert recorded_engine(g)\n"
        "assert 'openvino' not in sys.modules\n"
        "e = open_engine(g, 'openvino-f32')\n"
        "assert next(e.run([np.zeros((4, 64, 64, 3), np.uint8)])).shape == (4, 6400)\n"
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules), 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def cut(folder):
    file = folder / "model.bin"
    file.write_bytes(file.read_bytes()[:-1000])


def flip_one_byte(folder):
    data = bytearray((folder / "model.bin").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (folder / "model.bin").write_bytes(data)


DAMAGES = {
    "no model": lambda f: (f / "model.bin").unlink(),
    "no graph": lambda f: (f / "model.xml").unlink(),
    "cut": cut,
    "one byte": flip_one_byte,
    "record empty": lambda f: (f / "engine.json").write_text(""),
    "record a list": lambda f: (f / "engine.json").write_text("[]"),
    "record half": lambda f: (f / "engine.json").write_text(json.dumps({"machine": cpu_name()})),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_made_again(engines, conversion, graph, pixels, eager, damage, monkeypatch):
    made = []

    def convert(graph, folder, reporter):  # as `_convert`: it finds no folder and leaves a whole one
        made.append(1)
        shutil.copytree(folder_of(conversion[0]), folder)
        return module._read_record(folder)

    monkeypatch.setattr(module, "_convert", convert)
    damage(folder_of(engines))
    for _ in range(2):
        found = np.concatenate(outputs(open_engine(graph, "openvino-f32"), pixels))
        assert np.linalg.norm(found - eager) < 1e-4 * np.linalg.norm(eager)
    assert made == [1]


def test_another_machines_record_is_made_again(engines, graph):
    edit(engines, machine="another processor")
    assert recorded_engine(graph) is None


def test_an_engine_not_offered_here_is_refused(engines, graph, pixels):
    with pytest.raises(
        EngineError, match=r"engine = 'openvino-f64'.*not supported by this processor; available: openvino-f32"
    ):
        open_engine(graph, "openvino-f64")


def test_a_wished_engine_short_of_parity_is_refused(engines, graph, pixels):
    edit(engines, parity={"openvino-f32": 1.0, "openvino-bf16": 0.99}, choice="openvino-f32")
    with pytest.raises(EngineError, match=r"engine = 'openvino-bf16': cosine 0.9900 to float32 is under 0.999"):
        open_engine(graph, "openvino-bf16")


def test_no_engine_that_agrees_is_an_error(engines, pixels, eager):
    with pytest.raises(EngineError, match=r"no OpenVINO engine agrees.*use recipe\.replace\(engine='torch'\)"):
        module._compare(folder_of(engines), (), pixels, -eager)


def test_a_conversion_that_another_run_finished_first_serves_as_well(engines, conversion, graph, pixels, says):
    """The folder is there when ours is renamed: theirs stays, and its record counts."""
    edit(engines, theirs=True)
    record = json.loads((folder_of(engines) / "engine.json").read_text())
    ours = engines / ".ours.tmp"
    shutil.copytree(folder_of(conversion[0]), ours)
    assert module._put(ours, folder_of(engines), {"ours": True}) == record
    shutil.rmtree(ours)
    assert recorded_engine(graph) is not None


@pytest.mark.parametrize(("cosine", "choice"), [(0.9989, "openvino-f32"), (0.9991, "openvino-bf16")])
def test_the_precision_follows_from_the_network_and_the_processor(engines, pixels, eager, monkeypatch, cosine, choice):
    """Cosines are set from outside, that of bfloat16 on either side of the line. No clock is asked."""
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16")
    cosines = iter([1.0, cosine])
    monkeypatch.setattr(module, "parity", lambda *_: next(cosines))
    monkeypatch.setattr(module.time, "perf_counter", lambda: pytest.fail("a clock was asked"))
    assert module._compare(folder_of(engines), (), pixels, eager)["choice"] == choice


def test_reference_images_are_always_the_same():
    images = module.reference_images(64)
    assert images.shape == (16, 64, 64, 3) and np.array_equal(images, module.reference_images(64))
    flat = [bool((image[:4] == image[0, 0]).all()) for image in images]
    assert flat == [True] * 8 + [False] * 8
    assert images[0, 0, 0].tolist() == [0, 0, 0] and images[7, 0, 0].tolist() == [255, 255, 255]
    assert hashlib.sha256(images.tobytes()).hexdigest().startswith("654cfc7041ad")


def test_another_processor_of_the_same_name_is_checked_again(engines, graph):
    """Virtual machines call processors alike that can do different things."""
    edit(engines, features="others")
    assert recorded_engine(graph) is None


def test_without_openvino_a_wish_for_it_says_what_to_install(fresh_cache, graph, pixels, monkeypatch):
    monkeypatch.setattr(module, "_has_openvino", lambda: False)
    with pytest.raises(EngineError, match="pip install openvino"):
        open_engine(graph, "openvino-f32")
    assert open_engine(graph).name == "torch"


def test_graphs_that_differ_have_folders_of_their_own(graph):
    others = [
        replace(graph, taps=replace(graph.taps, grid=1)),
        replace(graph, taps=replace(graph.taps, last=1)),
        replace(graph, preprocessing=replace(graph.preprocessing, size=96)),
        replace(graph, preprocessing=replace(graph.preprocessing, mean=(0.4, 0.5, 0.5))),
        replace(graph, backbone=replace(graph.backbone, weights=replace(graph.backbone.weights, sha256="0"))),
    ]
    folders = {module._folder(g) for g in [graph, *others]}
    assert len(folders) == 6
    # The crop is made before the network: it changes features, not the graph.
    assert module._folder(replace(graph, preprocessing=replace(graph.preprocessing, crop=1.0))) in folders


def test_parity_is_the_worst_photos_cosine():
    a = np.array([[1.0, 0.0], [1.0, 1.0]], np.float32)
    b = np.array([[2.0, 0.0], [1.0, 0.0]], np.float32)
    assert parity(a, b) == pytest.approx(1 / np.sqrt(2))
    assert parity(a, 3 * a) == pytest.approx(1)
