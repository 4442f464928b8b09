"""Batches: every row as often as promised, the same again after a resume, and plain views as prediction sees them."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from unfreeze.core.cache import ArrayStore
from unfreeze.core.errors import CacheError, RecipeError
from unfreeze.data.pixel_cache import CropSpec, PixelCache
from unfreeze.features.augment import AUGMENTS
from unfreeze.features.stored_activations import Activations
from unfreeze.models.model_info import Preprocessing
from unfreeze.training.fine_tune import batches as module
from unfreeze.training.fine_tune.batches import ActivationBatches, PixelBatches, batch_bounds, sample_epoch

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PREPROCESSING = Preprocessing(28, 0.875, MEAN, STD)
FRAME = CropSpec(28, 0.875)
N, CLASSES = 24, 3


def make_pixels(folder, n=N, frame=FRAME):
    """Stored pixels of n photos, each with its number as a gray level and a texture; photo 3 has none."""
    draw = np.random.default_rng(0)
    base = (10 * np.arange(n) % 200)[:, None, None, None]
    rows = (base + draw.integers(0, 50, (n, frame.side, frame.side, 3))).astype(np.uint8)
    keys = draw.integers(0, 2**63, (n, 2)).astype(np.uint64)
    store = ArrayStore(folder, np.uint8, rows.shape[1:])
    there = np.arange(n) != 3
    for part in np.array_split(np.flatnonzero(there), 3):
        store.append(keys[part], rows[part])
    return PixelCache(store, store.find(keys), keys, frame, {3: "damaged"}), rows


@pytest.fixture
def stored(tmp_path):
    return make_pixels(tmp_path / "pixels")


ROWS = np.array([20, 0, 5, 7, 9, 11, 1, 2, 4, 22, 23, 16, 8])
LABELS = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2])


def batches_of(stored, **options):
    options = {"augment": "standard", "seed": 4, **options}
    return PixelBatches(stored[0], ROWS, LABELS, CLASSES, PREPROCESSING, **options)


def joined(batches):
    found = list(batches)
    if isinstance(found[0].inputs, tuple):
        inputs = tuple(torch.cat(parts) for parts in zip(*(b.inputs for b in found), strict=True))
    else:
        inputs = torch.cat([b.inputs for b in found])
    return inputs, torch.cat([b.targets for b in found]), np.concatenate([b.rows for b in found])


def expected_plain(stored):
    rows, m = stored[1][ROWS], FRAME.margin
    x = torch.from_numpy(rows[:, m : m + 28, m : m + 28]).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def test_plain_is_every_row_in_order_as_prediction_sees_it(stored):
    """Whatever is set for training."""
    data = batches_of(stored, augment="strong", mixup=0.4, cutmix=1.0, sampler="over")
    inputs, targets, rows = joined(data.plain(5))
    assert rows.tolist() == list(range(13))
    assert targets.tolist() == LABELS.tolist()
    assert torch.allclose(inputs, expected_plain(stored), atol=1e-5)
    assert torch.equal(joined(data.plain(5, flip=True))[0], inputs.flip(-1))
    assert [len(b.rows) for b in data.plain(4)] == [4, 4, 4, 1]


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.4, "cutmix": 1.0}])
def test_an_epoch_is_drawn_again_bit_for_bit(stored, augment, mixing):
    """As a resumed run does: from a new object, without the epochs before, whatever the global state is."""
    first = batches_of(stored, augment=augment, **mixing)
    list(first.epoch(0, 4))
    torch.manual_seed(1)
    one = joined(first.epoch(3, 4))
    torch.manual_seed(2)
    two = joined(batches_of(stored, augment=augment, **mixing).epoch(3, 4))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert np.array_equal(one[2], two[2])


def test_epochs_and_seeds_differ_in_order_and_in_photos(stored):
    data, other = batches_of(stored), batches_of(stored, seed=5)
    runs = [joined(run) for run in (data.epoch(0, 13), data.epoch(1, 13), other.epoch(0, 13))]
    orders = {tuple(rows.tolist()) for _, _, rows in runs}
    assert len(orders) == 3
    photos = [inputs[np.argsort(rows)] for inputs, _, rows in runs]
    assert all((photos[0] - photo).abs().amax((1, 2, 3)).min() > 1e-3 for photo in photos[1:])


def test_every_row_once_an_epoch_and_labels_follow(stored):
    data = batches_of(stored, augment="off")
    inputs, targets, rows = joined(data.epoch(7, 4))
    assert sorted(rows.tolist()) == list(range(13))
    assert rows.tolist() != list(range(13))
    assert targets.tolist() == LABELS[rows].tolist()
    assert torch.allclose(inputs, expected_plain(stored)[rows], atol=1e-5)


def test_a_photos_augmentation_depends_on_no_batch(stored):
    """Another batch size, or the views in order that `partial` keeps: the same photo looks the same in an epoch."""
    data = batches_of(stored, augment="standard")
    small, _, rows = joined(data.epoch(2, 3))
    large, _, again = joined(data.epoch(2, 13))
    assert np.array_equal(rows, again)
    assert torch.allclose(small, large, atol=1e-5)
    view, targets, order = joined(data.view(2, 5))
    assert order.tolist() == list(range(13))
    assert targets.tolist() == LABELS.tolist()
    assert torch.allclose(view[rows], small, atol=1e-5)
    assert not torch.allclose(view, joined(data.plain(5))[0], atol=0.1)


def test_chunks_do_not_show(stored, monkeypatch):
    data = batches_of(stored)
    whole = joined(data.epoch(0, 13))[0]
    monkeypatch.setattr(module, "_CHUNK", 4)
    assert torch.allclose(joined(data.epoch(0, 13))[0], whole, atol=1e-5)


@pytest.mark.parametrize(
    ("count", "batch", "sizes"),
    [(13, 4, [4, 4, 5]), (13, 5, [5, 5, 3]), (12, 4, [4, 4, 4]), (1, 4, [1]), (3, 8, [3]), (3, 1, [1, 2])],
)
def test_no_batch_of_one_unless_there_is_but_one(count, batch, sizes):
    assert [end - start for start, end in batch_bounds(count, batch)] == sizes


def test_steps_are_the_batches_that_come(stored):
    for sampler in ("none", "over", "under", "sqrt"):
        data = batches_of(stored, sampler=sampler)
        for batch in (3, 4, 5, 64):
            assert data.steps(batch) == len(list(data.epoch(0, batch)))
        assert data.count == 13


@pytest.mark.parametrize("augment", ["off", "flip", "standard"])
def test_progressive_sizes(stored, augment):
    data = batches_of(stored, augment=augment, cutmix=1.0)
    inputs, _, rows = joined(data.epoch(0, 6, size=20))
    assert inputs.shape == (13, 3, 20, 20)
    # The same photos, only smaller: mean colors stay.
    full = joined(batches_of(stored, augment=augment, cutmix=1.0).epoch(0, 6))
    assert np.array_equal(full[2], rows)
    assert torch.allclose(inputs.mean((2, 3)), full[0].mean((2, 3)), atol=0.15)


def test_oversampling_repeats_rare_classes_each_with_a_look_of_its_own(stored):
    inputs, targets, rows = joined(batches_of(stored, sampler="over").epoch(0, 8))
    assert torch.bincount(targets).tolist() == [7, 7, 7]
    counts = np.bincount(rows, minlength=13)
    assert counts[:7].tolist() == [1] * 7
    assert set(counts[7:11].tolist()) == {1, 2}
    assert sorted(counts[11:].tolist()) == [3, 4]
    seen = inputs[torch.from_numpy(rows == rows[np.argmax(counts[rows])])]
    assert (seen[0] - seen[1]).abs().max() > 1e-3


def test_undersampling_draws_other_rows_each_epoch():
    drawn = [sample_epoch(LABELS, "under", 0, epoch) for epoch in range(30)]
    assert all(np.bincount(LABELS[rows]).tolist() == [2, 2, 2] for rows in drawn)
    assert all(len(set(rows.tolist())) == 6 for rows in drawn)
    assert set(np.concatenate(drawn).tolist()) == set(range(13))


def test_square_root_sampling_draws_about_as_many_rows_shared_by_the_roots():
    labels = np.repeat([0, 1, 2], [100, 25, 4])
    drawn = sample_epoch(labels, "sqrt", 0, 0)
    assert np.bincount(labels[drawn]).tolist() == [76, 38, 15]  # 129 by 10 : 5 : 2
    assert np.bincount(drawn, minlength=129)[125:].tolist().count(4) >= 3


@pytest.mark.parametrize("mixing", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixed_targets_are_soft_and_hold_the_rows_own_class(stored, mixing):
    data = batches_of(stored, augment="off", **mixing)
    for number in range(4):
        for batch in data.epoch(number, 13):
            assert batch.targets.dtype == torch.float32
            assert batch.targets.shape == (13, CLASSES)
            assert torch.allclose(batch.targets.sum(1), torch.ones(13))
    kinds = {len(np.unique(b.targets[:, 0].numpy().round(4))) > 2 for b in data.epoch(0, 13)}
    assert kinds == {True}


def test_mixup_and_cutmix_take_turns(stored):
    """A blend of grays lies between them; a rectangle of another photo leaves the others' pixels as they were."""
    data = batches_of(stored, augment="off", mixup=0.4, cutmix=1.0)
    clean = expected_plain(stored)
    found = [batch for number in range(8) for batch in data.epoch(number, 13)]
    kept = [float(((b.inputs - clean[b.rows]).abs() < 1e-5).float().mean()) for b in found]
    assert min(kept) < 0.25
    assert max(kept) > 0.4


def test_global_random_state_is_left_alone_by_the_thread_that_reads_ahead(stored):
    torch.manual_seed(0)
    alone = torch.rand(5)
    torch.manual_seed(0)
    among = torch.cat([torch.rand(1) for _ in batches_of(stored, augment="strong", mixup=0.2).epoch(0, 3)])
    assert torch.equal(alone[: len(among)], among)


def test_reading_ahead_is_bounded_and_ends_with_its_reader(stored, monkeypatch):
    made = []
    real = PixelBatches._images
    monkeypatch.setattr(PixelBatches, "_images", lambda self, *a: made.append(len(made)) or real(self, *a))
    before = threading.active_count()
    reader = batches_of(stored).epoch(0, 2)
    next(reader)
    time.sleep(0.2)
    assert len(made) == 2  # the one that came, and one ahead
    reader.close()
    assert threading.active_count() == before


def test_only_the_rows_of_a_batch_are_read_and_pages_are_given_back(stored, monkeypatch):
    asked, forgotten = [], []
    real = PixelCache.read
    monkeypatch.setattr(PixelCache, "read", lambda self, rows: asked.append(rows) or real(self, rows))
    monkeypatch.setattr(PixelCache, "forget_pages", lambda self: forgotten.append(1))
    list(batches_of(stored).epoch(0, 4))
    assert max(len(rows) for rows in asked) <= 5
    assert sorted(np.concatenate(asked).tolist()) == sorted(ROWS.tolist())
    assert len(forgotten) == 3
    assert all(isinstance(rows, np.memmap) for rows in stored[0].store._open.values())


def test_a_cache_that_is_cleared_meanwhile_is_reported(stored):
    for file in stored[0].store.folder.glob("*.npy"):
        file.unlink()
    with pytest.raises(CacheError, match="disappeared"):
        list(batches_of(stored).epoch(0, 4))


def test_wrong_arguments_are_refused(stored):
    with pytest.raises(RecipeError, match="Did you mean 'strong'"):
        batches_of(stored, augment="stron")
    with pytest.raises(ValueError, match="have no pixels"):
        PixelBatches(stored[0], np.array([2, 3]), np.array([0, 1]), 2, PREPROCESSING)
    with pytest.raises(ValueError, match="2 rows and 1 labels"):
        PixelBatches(stored[0], np.array([1, 2]), np.array([0]), 2, PREPROCESSING)
    for other in (Preprocessing(28, 1.0, MEAN, STD), Preprocessing(28, 0.875, MEAN, STD, "bilinear")):
        with pytest.raises(ValueError, match="do not match"):
            PixelBatches(stored[0], np.array([1]), np.array([0]), 2, other)


SHAPE, POOLED, VIEWS = (2, 3, 3), 5, 4


@pytest.fixture
def activations(tmp_path):
    """Four views of N photos: pooled features say the photo, the activation says photo and view. View 1 is mirrored."""
    keys = np.stack([np.arange(N), np.arange(N)], 1).astype(np.uint64)
    stores = []
    for view in range(VIEWS):
        store = ArrayStore(tmp_path / f"view-{view}", np.float16, (POOLED + 18,))
        photo = np.arange(N, dtype=np.float16)[:, None]
        flat = np.concatenate([photo.repeat(POOLED, 1), photo + 100 * view + np.arange(18) / 64], 1)
        there = np.arange(N) != 3
        store.append(keys[there], flat[there].astype(np.float16))
        stores.append(store)
    return Activations(tuple(stores), tuple(store.find(keys) for store in stores), SHAPE, POOLED, mirrored=1)


def partial(activations, **options):
    return ActivationBatches(activations, ROWS, LABELS, CLASSES, **{"seed": 4, **options})


def views_of(inputs):
    return ((inputs[0][:, 0, 0, 0] - inputs[1][:, 0]) / 100).round().int().numpy()


@pytest.mark.parametrize("memory", [0, 1e9])
def test_activations_are_taken_apart_and_follow_their_rows(activations, memory):
    held = activations.held(memory)
    assert (held.kept is None) == (memory == 0)
    (activation, pooled), targets, rows = joined(partial(held).epoch(0, 4))
    assert activation.shape == (13, *SHAPE)
    assert pooled.shape == (13, POOLED)
    assert activation.dtype == pooled.dtype == torch.float32
    assert sorted(rows.tolist()) == list(range(13))
    assert targets.tolist() == LABELS[rows].tolist()
    assert pooled[:, 0].tolist() == ROWS[rows].tolist()
    first = activation[0].flatten()
    assert torch.allclose(first - first[0], torch.arange(18) / 64, atol=0.3)  # float16 near 300
    assert (np.diff(first) >= 0).all()


def test_memory_and_disk_give_the_same_bits(activations):
    one, two = (joined(partial(held, mixup=0.3).epoch(2, 4)) for held in (activations, activations.held(1e9)))
    assert all(torch.equal(a, b) for a, b in zip(one[0], two[0], strict=True))
    assert torch.equal(one[1], two[1])
    assert activations.held(2 * VIEWS * N * 23 - 1).kept is None
    assert activations.held(2 * VIEWS * N * 23).kept is not None


def test_each_epoch_draws_a_view_for_each_photo_and_plain_the_plain_one(activations):
    data = partial(activations)
    drawn = []
    for number in range(40):
        inputs, _, rows = joined(data.epoch(number, 4))
        drawn.append(views_of(inputs)[np.argsort(rows)])
    counts = np.bincount(np.concatenate(drawn), minlength=VIEWS)
    assert counts.min() > 0.8 * 40 * 13 / VIEWS
    assert len({tuple(views.tolist()) for views in drawn}) == 40
    again = joined(partial(activations).epoch(7, 4))
    assert np.array_equal(views_of(again[0])[np.argsort(again[2])], drawn[7])
    inputs, targets, rows = joined(data.plain(4))
    assert set(views_of(inputs).tolist()) == {0}
    assert rows.tolist() == list(range(13))
    assert targets.tolist() == LABELS.tolist()
    assert set(views_of(joined(data.plain(4, flip=True))[0]).tolist()) == {1}


def test_mixup_of_activations_blends_both_tensors_and_targets(activations):
    (_, pooled), targets, rows = joined(partial(activations, mixup=0.5).epoch(0, 13))
    assert torch.allclose(targets.sum(1), torch.ones(13))
    assert not np.allclose(pooled[:, 0].numpy(), ROWS[rows])
    assert float(pooled.min()) >= 0
    assert float(pooled.max()) <= ROWS.max()


def test_wrong_requests_of_activations_are_refused(activations):
    with pytest.raises(ValueError, match="one size"):
        partial(activations).epoch(0, 4, size=96)
    bare = Activations(activations.stores, activations.places, SHAPE, POOLED)
    with pytest.raises(ValueError, match="mirrored"):
        partial(bare).plain(4, flip=True)
    with pytest.raises(ValueError, match="no activations"):
        ActivationBatches(activations, np.array([2, 3]), np.array([0, 1]), 2)


def test_pace_is_printed(tmp_path, capsys):
    frame = CropSpec(224, 0.875)
    stored = make_pixels(tmp_path / "large", 17, frame)[0]
    rows = np.setdiff1d(np.arange(17), [3])
    data = PixelBatches(stored, rows, rows % 3, 3, Preprocessing(224, 0.875, MEAN, STD))
    started = time.perf_counter()
    list(data.epoch(0, 32))
    with capsys.disabled():
        print(f" standard, from disk: {16 / (time.perf_counter() - started):.0f} photos/s at 224 px ", end="")
    assert stored.side == 256
