"""Features by content: what hits the cache, what misses, and what an interruption leaves."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from unfreeze.core.cache import ArrayStore, content_hash
from unfreeze.core.errors import PhotoError, StorageError
from unfreeze.data.decode import load_crop
from unfreeze.features import extract as module
from unfreeze.features.extract import compute_features
from unfreeze.features.inputs import feature_extractors
from unfreeze.models.engines import open_engine

BOTH = ("plain", "flip")


@pytest.fixture
def graph(recipe):
    return feature_extractors(recipe)[0]


@pytest.fixture
def files(tmp_path, draw_picture):
    """Twelve photos, tall, wide and square."""
    draw = np.random.default_rng(0)
    paths = [tmp_path / "photos" / f"{i:02d}.jpg" for i in range(12)]
    for i, path in enumerate(paths):
        draw_picture(path, ("blue", "green", "red")[i % 3], draw, ((90, 64), (64, 90), (70, 70))[i % 3])
    return paths


def keys_of(files):
    return np.array([content_hash(f.read_bytes()) for f in files], np.uint64)


def compute(files, graph, views=("plain",), keys=None, readable=None, **options):
    keys = keys_of(files) if keys is None else keys
    readable = np.ones(len(files), bool) if readable is None else np.array(readable)
    return compute_features(files, keys, readable, graph, views, "openvino-f32", **options)


def values(features, rows=None):
    return features.read(np.arange(len(features.places[0])) if rows is None else np.array(rows))


@pytest.fixture
def decoded(monkeypatch):
    """The paths that are decoded from here on."""
    seen = []

    def spy(data, size, crop, max_pixels, path, *more):
        seen.append(path)
        return load_crop(data, size, crop, max_pixels, path, *more)

    monkeypatch.setattr(module, "load_crop", spy)
    return seen


def no_decoding(*_):
    raise AssertionError("decoded although it was in the cache")


def test_features_are_the_networks_own(ready_cache, files, graph):
    """Against the torch module on pixels cut by hand: a tall photo's height and width are not swapped."""
    import torch

    found = values(compute(files, graph))
    p = graph.preprocessing
    pixels = []
    for file in files:
        image = Image.open(file)
        side = min(image.size) * p.crop
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        pixels.append(np.asarray(image.convert("RGB").resize((p.size, p.size), Image.Resampling.BICUBIC, box)))
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        expected = graph.module()((batch - 0.5) / 0.5).numpy()
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.999
    assert found.shape == (12, (320 + 1280) * 4)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_a_hit_decodes_nothing_and_opens_no_engine(ready_cache, files, graph, monkeypatch):
    first = compute(files, graph, BOTH)
    assert first.engine == "openvino-f32"
    monkeypatch.setattr(module, "load_crop", no_decoding)
    monkeypatch.setattr(module, "open_engine", no_decoding)
    second = compute(files, graph, BOTH)
    assert second.engine == "cache"
    assert second.blocks == first.blocks
    assert second.identity == first.identity
    assert np.array_equal(values(first), values(second))


def test_renamed_moved_and_reordered_photos_hit(ready_cache, files, graph, tmp_path, monkeypatch):
    before = values(compute(files, graph))
    moved = [tmp_path / "elsewhere" / f"{f.stem}-renamed.jpeg" for f in reversed(files)]
    moved[0].parent.mkdir()
    for old, new in zip(reversed(files), moved, strict=True):
        shutil.move(old, new)
    monkeypatch.setattr(module, "load_crop", no_decoding)
    assert np.array_equal(values(compute(moved, graph)), before[::-1])


def test_changed_content_misses(ready_cache, files, graph, draw_picture, decoded):
    before = values(compute(files, graph))
    draw_picture(files[5], "red", np.random.default_rng(99))
    decoded.clear()
    after = values(compute(files, graph))
    assert decoded.count(files[5]) >= 1
    changed = (before != after).any(1)
    assert changed.tolist() == [i == 5 for i in range(12)]


def test_another_view_size_crop_or_stage_misses(ready_cache, files, graph, monkeypatch):
    """None of them may be served from the others' rows. Engines are stand-ins: only the store is asked here."""
    base = compute(files, graph)
    others = {
        "flip": (graph, ("flip",)),
        "size": (replace(graph, preprocessing=replace(graph.preprocessing, size=96)), ("plain",)),
        "crop": (replace(graph, preprocessing=replace(graph.preprocessing, crop=1.0)), ("plain",)),
        "grid": (replace(graph, taps=replace(graph.taps, grid=1)), ("plain",)),
        "stages": (replace(graph, taps=replace(graph.taps, last=1)), ("plain",)),
    }
    identities = {str(base.identity)}
    for name, (other, views) in others.items():
        stores = module.stores_of(other, views, "f32", base.blocks, module.Reporter())
        assert (stores[0].find(keys_of(files)) == -1).all(), name
        identities.add(str([s.folder.name for s in stores]))
    bf16 = module.stores_of(graph, ("plain",), "bf16", base.blocks, module.Reporter())
    identities.add(str([s.folder.name for s in bf16]))
    assert len(identities) == 7


def test_another_crop_is_computed_again(ready_cache, files, graph):
    """Same network, same engine: the difference is in the pixels."""
    cropped = values(compute(files, graph))
    whole = values(compute(files, replace(graph, preprocessing=replace(graph.preprocessing, crop=1.0))))
    assert (np.abs(cropped - whole).max(1) > 0.01).all()


def test_the_flipped_view_is_the_mirror_image(ready_cache, files, graph, tmp_path, *more):
    flipped = values(compute(files, graph, ("flip",)))
    mirrored = []
    for i, file in enumerate(files):
        square = load_crop(file.read_bytes(), 64, graph.preprocessing.crop)
        mirrored.append(tmp_path / f"m{i}.png")
        Image.fromarray(np.ascontiguousarray(square[:, ::-1])).save(mirrored[-1])
    whole = replace(graph, preprocessing=replace(graph.preprocessing, crop=1.0))
    assert np.array_equal(values(compute(mirrored, whole)), flipped)
    assert not np.allclose(values(compute(files, graph)), flipped, rtol=1e-2)


def test_views_are_averaged(ready_cache, files, graph):
    both = values(compute(files, graph, BOTH))
    single = [values(compute(files, graph, (view,))) for view in BOTH]
    np.testing.assert_allclose(both, np.mean(single, axis=0), rtol=1e-6)


def test_a_photo_that_fails_in_the_middle_is_named_and_the_rest_go_on(ready_cache, files, graph, monkeypatch):
    """Its first look was fine, its full decode is not: files change, and not all damage shows at an eighth."""
    expected = values(compute(files, graph))
    shutil.rmtree(ready_cache / "features")

    def load(data, size, crop, max_pixels, path, *more):
        if path in (files[1], files[6]):
            raise PhotoError(path, "damaged (cut off)")
        return load_crop(data, size, crop, max_pixels, path, *more)

    monkeypatch.setattr(module, "load_crop", load)
    features = compute(files, graph, BOTH)
    assert features.failed == {1: "damaged (cut off)", 6: "damaged (cut off)"}
    rest = [i for i in range(12) if i not in (1, 6)]
    monkeypatch.setattr(module, "load_crop", load_crop)
    assert np.array_equal(values(features, rest), values(compute([files[i] for i in rest], graph, BOTH)))
    assert np.array_equal(values(compute(files, graph)), expected)


def test_a_photo_that_changes_after_its_first_look_fails_and_is_not_stored(ready_cache, files, graph, draw_picture):
    keys = keys_of(files)
    draw_picture(files[3], "red", np.random.default_rng(5))
    files[4].unlink()
    features = compute(files, graph, keys=keys)
    assert features.failed == {3: "its content changed while it was read", 4: "no such file"}
    assert (features.stores[0].find(keys[[3, 4]]) == -1).all()


def test_unreadable_photos_are_left_alone(ready_cache, files, graph, decoded):
    files[2].write_bytes(b"not a photo")
    features = compute(files, graph, readable=[i != 2 for i in range(12)])
    assert features.failed == {}
    assert files[2] not in decoded


def test_duplicates_are_computed_once(ready_cache, files, graph, tmp_path, decoded):
    copies = [*files]
    for i in (0, 0, 7):
        copies.append(tmp_path / f"copy-{len(copies)}.jpg")
        shutil.copy(files[i], copies[-1])
    compute(files[:1], graph)  # the engine is measured on other photos' decoding
    decoded.clear()
    features = compute(copies, graph)
    found = values(features)
    assert np.array_equal(found[12], found[0])
    assert np.array_equal(found[14], found[7])
    assert sum(len(np.load(f)) for f in features.stores[0].folder.glob("*.keys.npy")) == 12


def test_an_interruption_keeps_what_is_done(ready_cache, files, graph, monkeypatch):
    """The second call computes the rest only, and the result is that of one go."""
    monkeypatch.setattr(module, "_FLUSH", 4)
    whole = values(compute(files, graph, BOTH))
    shutil.rmtree(ready_cache / "features")
    real = open_engine

    def stops_after(batches):
        def opened(*args):
            engine = real(*args)

            def run(stream):
                for number, out in enumerate(engine.run(stream)):
                    if number == batches:
                        raise KeyboardInterrupt
                    yield out

            return replace(engine, run=run)

        return opened

    # Seven batches of two views each: three and a half groups of four photos; the half view is worth nothing.
    monkeypatch.setattr(module, "open_engine", stops_after(5))
    with pytest.raises(KeyboardInterrupt):
        compute(files, graph, BOTH)
    stores = module.stores_of(graph, BOTH, "f32", (("blocks.6", 1280), ("head", 5120)), module.Reporter())
    assert [int((s.find(keys_of(files))[:, 0] >= 0).sum()) for s in stores] == [8, 8]

    ran = []
    run_rest = module._run
    monkeypatch.setattr(module, "open_engine", real)
    monkeypatch.setattr(module, "_run", lambda *a: ran.append(a[2].tolist()) or run_rest(*a))
    assert np.array_equal(values(compute(files, graph, BOTH)), whole)
    assert ran == [[8, 9, 10, 11]]


def test_an_interruption_before_the_first_flush_keeps_whole_batches(ready_cache, files, graph, monkeypatch):
    def load(data, size, crop, max_pixels, path, *more):
        if path == files[9]:
            raise KeyboardInterrupt
        return load_crop(data, size, crop, max_pixels, path, *more)

    monkeypatch.setattr(module, "load_crop", load)
    with pytest.raises(KeyboardInterrupt):
        compute(files, graph)
    monkeypatch.setattr(module, "load_crop", load_crop)
    features = compute(files, graph)
    assert features.failed == {}
    assert len(values(features)) == 12


@pytest.mark.parametrize("store", [0, 1])
def test_a_full_disk_is_said_as_such(ready_cache, files, graph, monkeypatch, store):
    """Whichever view's rows meet it: the StorageError comes through, nothing of our own in front of it."""
    written = []
    append = ArrayStore.append

    def full(self, keys, rows):
        if len(written) >= store:
            raise StorageError(f"{self.folder}: the disk is full")
        written.append(1)
        append(self, keys, rows)

    monkeypatch.setattr(ArrayStore, "append", full)
    with pytest.raises(StorageError, match="the disk is full"):
        compute(files, graph, BOTH)
    monkeypatch.setattr(ArrayStore, "append", append)
    assert compute(files, graph, BOTH).failed == {}


def test_memory_is_read_in_the_order_asked(ready_cache, files, graph, monkeypatch):
    """Rows over several segments, any order, twice the same."""
    monkeypatch.setattr(module, "_FLUSH", 4)
    features = compute(files, graph)
    assert len(list(features.stores[0].folder.glob("*.keys.npy"))) == 3
    found = values(features)
    rows = [11, 0, 5, 5, 3]
    assert np.array_equal(values(features, rows), found[rows])


def test_rows_beyond_float16_are_clipped_not_infinite(ready_cache, files, graph, monkeypatch):
    real = open_engine

    def huge(*args):
        engine = real(*args)
        return replace(engine, run=lambda stream: (out * 1e9 for out in engine.run(stream)))

    monkeypatch.setattr(module, "open_engine", huge)
    assert np.isfinite(values(compute(files, graph))).all()


def test_no_photos_at_all(ready_cache, graph):
    features = compute([], graph, keys=np.zeros((0, 2), np.uint64))
    assert features.read(np.zeros(0, np.int64)).shape == (0, 6400)
