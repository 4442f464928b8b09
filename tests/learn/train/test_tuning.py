"""Choices that a recipe left open, stages by name, views of activations, and what a set of photos is fed as."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch

import unfreeze as uf
from finetuning import Says, colours, make_recipe
from unfreeze.core.cache import RowStore, cache_root
from unfreeze.core.errors import BackboneError, CacheError, RecipeError, StorageError
from unfreeze.core.recipe_sections import Train
from unfreeze.data.looks import look
from unfreeze.learn.train import activations
from unfreeze.learn.train.activations import affordable, augmented_pixels, training_views
from unfreeze.learn.train.augment import AUGMENTS
from unfreeze.learn.train.strategy_photos import photos_of, prepare_photos
from unfreeze.learn.train.tuned_folds import check_training
from unfreeze.learn.train.tuning import Setting, auxiliary_weight, seconds_of, settle


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 0), ("90s", 90), ("90", 90), ("10m", 600), ("1h30m", 5400), (" 1.5H ", 5400)]
)
def test_budget_in_words(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["10x", "-3m", "0", "0s", "1h30", "m", "1,5h", "nan", "9" * 400 + "s"])
def test_a_bad_budget_is_said_in_one_line(text):
    with pytest.raises(RecipeError, match="write it as 90s, 10m or 1h30m"):
        seconds_of(text)


@pytest.mark.parametrize("strategy", ["late", "full", "scratch"])
@pytest.mark.parametrize("head", ["blocks", "classifier"])
def test_nothing_is_left_to_choose(strategy, head):
    settled = settle(make_recipe(strategy, train__head=head, train__epochs=0), 100)
    left = {k: v for k, v in settled.model_dump().items() if isinstance(v, float | int) and v < 0}
    assert set(left) <= {"auxiliary"}  # the network knows its paper's weight
    assert settled.epochs > 0 and settled.batch > 0 and settled.rate > 0 and settled.unfreeze + strategy != ""
    assert settled.relative in ("on", "off")


def test_what_the_recipe_names_is_kept():
    wish = {"train__weight_decay": 0.3, "train__keep": 0.5, "train__batch": 7, "train__rate": 0.1, "train__epochs": 9}
    settled = settle(make_recipe("full", train__head_rate=2.0, train__layer_decay=0.5, **wish), 1000)
    assert (settled.weight_decay, settled.keep, settled.batch, settled.rate, settled.epochs) == (0.3, 0.5, 7, 0.1, 9)
    assert settled.head_rate == 2 and settled.layer_decay == 0.5


def test_a_head_at_random_is_no_place_to_go_back_to():
    assert settle(make_recipe("full"), 100).keep < 1
    assert settle(make_recipe("full", train__start="random"), 100).keep == 1


def test_the_head_alone_can_train_and_nothing_cannot():
    assert settle(make_recipe("full", train__unfreeze="head"), 100).head_rate == 1
    assert settle(make_recipe("full"), 100).head_rate == 0
    with pytest.raises(RecipeError, match="trains nothing here"):
        settle(make_recipe("full", train__unfreeze="none"), 100)
    with pytest.raises(RecipeError, match="trains nothing here"):
        settle(make_recipe("full", train__unfreeze="head", train__head_rate=0.0), 100)


@pytest.mark.parametrize(
    ("strategy", "changes", "word"),
    [
        ("late", {"train__cutmix": 1.0}, "use train.mixup"),
        ("late", {"train__progressive": True}, "needs pixels"),
        ("late", {"train__unfreeze": "all"}, "use strategy full"),
        ("late", {"train__unfreeze": "head"}, "that is strategy probe"),
        ("late", {"train__unfreeze": "layr4-"}, "Did you mean 'layer4'.*stem, layer1, layer2, layer3, layer4"),
        ("full", {"train__unfreeze": "last:9"}, "The stages are stem"),
        ("full", {"train__budget": "soon"}, "write it as"),
        ("late", {"probe__race": [{"size": 64}]}, "leave --quality best out"),
        ("full", {"backbone": "timm/test_vit", "train__progressive": True}, "photos of 64 px only"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(strategy, changes, word):
    with pytest.raises(RecipeError, match=word):
        check_training(make_recipe(strategy, **changes))


def test_a_network_that_cannot_be_cut_is_said_before_any_work():
    recipe = make_recipe("late", backbone="timm/hrnet_w18_small", train__unfreeze="stage4-")
    with pytest.raises(BackboneError, match=r"cannot be cut after stage3.*use strategy full"):
        check_training(recipe)


def test_training_views():
    assert training_views("standard", 1, 0) == ("plain",)
    assert training_views("standard", 4, 7) == ("plain", "flip", "standard-2@7", "standard-3@7")
    assert training_views("off", 4, 0) == ("plain",)
    assert training_views("flip", 8, 0) == ("plain", "flip")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Files, keys, readable of a few photos."""
    source = colours(tmp_path_factory.mktemp("photos") / "colours", groups=3, each=1)
    photos = uf.read(source, make_recipe("late", source).source)
    looks = look(photos, 10**8, Says())
    return photos.files(), looks.keys, looks.readable


def late(**changes):
    recipe = make_recipe("late", **changes)
    settings = settle(recipe, 9)
    return Setting.of(recipe, settings), settings


def prepared(seen, setting):
    assert prepare_photos(setting, *seen, 10**8, Says()) == {}
    return photos_of(setting, seen[1], seen[2])


def test_augmented_views_are_what_the_network_would_see(seen):
    setting, settings = late(train__views=4, seed=3)
    assert setting.views == ("plain", "flip", "standard-2@3", "standard-3@3") and setting.drawn == 4
    make = prepared(seen, setting)
    rows = np.arange(9)
    batches = make(rows, np.zeros(9, np.int64), 3, settings, 0, "none")
    kept = batches.whole.activations
    front = setting.front.module()
    from unfreeze.data.pixels import cached_pixels

    pixels = cached_pixels([], seen[1], np.zeros_like(seen[2]), setting.frame)
    p = setting.preprocessing
    found = []
    for number, view in enumerate(setting.views[2:], 2):
        images = augmented_pixels(pixels, rows, view)
        assert images.dtype == np.uint8 and images.shape == (9, 64, 64, 3)
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        x = (x - torch.tensor(p.mean).view(3, 1, 1)) / torch.tensor(p.std).view(3, 1, 1)
        with torch.no_grad():
            expected = front(x).numpy()
        stored = kept.read(rows, np.full(9, number)).astype(np.float32)
        assert np.abs(stored - expected).max() < 2e-3 * np.abs(expected).max()
        found.append(stored)
    assert np.abs(found[0] - found[1]).max() > 0.01 * np.abs(found[0]).max()
    plain = kept.read(rows, np.zeros(9, np.int64))
    assert np.abs(found[0] - plain).max() > 0.01 * np.abs(plain).max()


def test_augmentation_depends_on_seed_view_and_content_alone(seen):
    setting, _ = late(train__views=3)
    prepared(seen, setting)
    from unfreeze.data.pixels import cached_pixels

    pixels = cached_pixels([], seen[1], np.zeros_like(seen[2]), setting.frame)
    rows = np.arange(9)
    one = augmented_pixels(pixels, rows, "standard-2@0")
    assert (augmented_pixels(pixels, rows[::-1].copy(), "standard-2@0")[::-1] == one).all()
    assert (augmented_pixels(pixels, rows[4:5], "standard-2@0") == one[4]).all()
    for other in ("standard-2@1", "standard-3@0", "strong-2@0"):
        assert (augmented_pixels(pixels, rows, other) != one).any()
    assert set(AUGMENTS) >= {"standard", "strong"}


def test_views_are_computed_once_and_damage_is_made_again(seen, fresh_cache, monkeypatch):
    setting, _ = late(train__views=3)
    prepared(seen, setting)
    opened = []
    was = activations.open_engine
    monkeypatch.setattr(activations, "open_engine", lambda *a: (opened.append(a), was(*a))[1])
    prepared(seen, setting)
    assert not opened
    store = activations._stores_of(setting.front, setting.views[2:], setting.engine)[0][0]
    for file in store.folder.glob("*.npy"):
        file.unlink()
    with pytest.raises(CacheError, match="are gone"):
        photos_of(setting, seen[1], seen[2])
    prepared(seen, setting)
    assert len(opened) == 1


def test_pixels_that_are_gone_are_said(seen, fresh_cache):
    recipe = make_recipe("full")
    setting = Setting.of(recipe, settle(recipe, 9))
    with pytest.raises(CacheError, match="are gone"):
        photos_of(setting, seen[1], seen[2])


def test_openvino_and_torch_keep_the_same_activations(seen, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    found = []
    for engine in ("torch", "openvino-f32"):
        monkeypatch.setenv("UNFREEZE_CACHE", str(tmp_path / engine))  # else the second reads what the first kept
        setting, settings = late(train__views=3, engine=engine)
        batches = prepared(seen, setting)(np.arange(9), np.zeros(9, np.int64), 3, settings, 0, "none")
        found.append(np.stack([batches.whole.activations.read(np.arange(9), np.full(9, v)) for v in range(3)]))
    assert np.abs(found[0].astype(np.float32) - found[1]).max() < 2e-3 * np.abs(found[0]).max()


@pytest.mark.parametrize(("views", "augment", "drawn"), [(1, "standard", 1), (2, "standard", 2), (3, "off", 1)])
def test_training_draws_from_its_own_views_only(seen, views, augment, drawn):
    setting, settings = late(train__views=views, train__augment=augment)
    assert setting.views == ("plain", "flip") and setting.drawn == drawn
    batches = prepared(seen, setting)(np.arange(9), np.zeros(9, np.int64), 3, settings, 0, "none")
    plain = next(batches.plain(9)).inputs[0]
    mirrored = next(batches.plain(9, flip=True)).inputs[0]
    assert not torch.equal(plain, mirrored)
    found = [b for epoch in range(8) for b in batches.epoch(epoch, 9)]
    from_plain = [torch.equal(x, plain[row]) for b in found for x, row in zip(b.inputs[0], b.rows, strict=True)]
    assert all(from_plain) if drawn == 1 else 0 < sum(from_plain) < len(from_plain)


def test_prediction_of_the_mirrored_photo_alone(seen):
    setting, settings = late(probe__views=["flip"])
    prepared(seen, setting)
    only = setting.seeing(("flip",))
    assert only.views == ("plain", "flip")
    batches = photos_of(only, seen[1], seen[2])(np.arange(9), np.zeros(9, np.int64), 3, settings, 0, "none")
    both = photos_of(setting, seen[1], seen[2])(np.arange(9), np.zeros(9, np.int64), 3, settings, 0, "none")
    assert torch.equal(next(batches.plain(9, flip=True)).inputs[0], next(both.plain(9, flip=True)).inputs[0])


Disk = namedtuple("Disk", "total used free")


def test_views_fit_half_of_the_free_disk(seen, fresh_cache, monkeypatch):
    setting, _ = late(train__views=6)
    row, square = 9 * 2 * setting.front.width(), 9 * setting.frame.row_bytes
    says = Says()
    cache_root().mkdir(parents=True, exist_ok=True)

    def allowed(free):
        monkeypatch.setattr(activations.shutil, "disk_usage", lambda _: Disk(0, 0, free))
        return affordable(
            setting.front, setting.views, setting.drawn, seen[1], seen[2], setting.frame, setting.engine, says
        )

    assert allowed(2 * (6 * row + square)) == 6 and not says.lines
    assert allowed(2 * (4 * row + square)) == 4
    assert "4 are kept" in says.lines[-1]
    assert allowed(2 * row) == 2
    with pytest.raises(StorageError, match="free some space"):
        allowed(2 * row - 1)


def test_a_run_that_is_taken_up_decides_the_same_number_of_views(seen, fresh_cache, monkeypatch):
    setting, _ = late(train__views=6)
    row, square = 9 * 2 * setting.front.width(), 9 * setting.frame.row_bytes
    whole = 2 * (5 * row + square)
    cache_root().mkdir(parents=True, exist_ok=True)

    def allowed(free):
        monkeypatch.setattr(activations.shutil, "disk_usage", lambda _: Disk(0, 0, free))
        return affordable(
            setting.front, setting.views, setting.drawn, seen[1], seen[2], setting.frame, setting.engine, Says()
        )

    assert allowed(whole) == 5
    fewer, _ = late(train__views=5)
    monkeypatch.undo()
    monkeypatch.setenv("UNFREEZE_CACHE", str(fresh_cache))
    prepared(seen, fewer)
    assert allowed(whole - 5 * row - square) == 5


def test_auxiliary_heads_have_the_papers_weight_or_the_recipes():
    recipe = make_recipe("scratch", backbone="torchvision/googlenet", image__size=96)
    setting = Setting.of(recipe, settle(recipe, 9))
    assert setting.auxiliary
    model = setting.network(3)
    assert auxiliary_weight(model, Train()) == pytest.approx(0.3)
    assert auxiliary_weight(model, Train(auxiliary=0.1)) == 0.1
    off = make_recipe("scratch", backbone="torchvision/googlenet", image__size=96, train__auxiliary=0.0)
    assert not Setting.of(off, settle(off, 9)).auxiliary


def test_a_row_store_that_lacks_a_view_is_not_mistaken_for_whole(seen, fresh_cache):
    setting, _ = late(train__views=2)
    prepared(seen, setting)
    assert isinstance(activations._stores_of(setting.front, ("plain",), "torch")[0][0], RowStore)
    more, _ = late(train__views=3)
    with pytest.raises(CacheError):
        photos_of(more, seen[1], seen[2])
