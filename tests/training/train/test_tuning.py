"""Choices that a recipe left open, stages by name, views of activations, and what a set of photos is fed as."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch

import unfreeze as uf
from finetuning import Says, colours, make_recipe
from unfreeze.core.cache import ArrayStore, cache_root
from unfreeze.core.errors import BackboneError, CacheError, RecipeError, StorageError
from unfreeze.core.recipe_schema import Train
from unfreeze.data.scan import scan_images
from unfreeze.features import activations
from unfreeze.features.activations import augmented_pixels, check_disk, training_views
from unfreeze.features.augment import AUGMENTS
from unfreeze.training.fine_tune.inputs import batch_factory, cache_inputs
from unfreeze.training.fine_tune.settings import TrainSetup, auxiliary_weight, resolve_settings, seconds_of
from unfreeze.training.fine_tune.strategy import check_training


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 0), ("90s", 90), ("90", 90), ("10m", 600), ("1h30m", 5400), (" 1.5H ", 5400)]
)
def test_budget_in_words(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["10x", "-3m", "0", "0s", "1h30", "m", "1,5h", "nan", "9" * 400 + "s"])
def test_a_bad_budget_is_said_in_one_line(text):
    with pytest.raises(RecipeError, match="write it as 90s, 10m or 1h30m"):
        seconds_of(text)


@pytest.mark.parametrize("strategy", ["partial", "full", "scratch"])
@pytest.mark.parametrize("head", ["blocks", "classifier"])
def test_nothing_is_left_to_choose(strategy, head):
    settled = resolve_settings(make_recipe(strategy, train__head=head, train__epochs=0), 100)
    left = {k: v for k, v in settled.model_dump().items() if isinstance(v, float | int) and v < 0}
    assert set(left) <= {"aux_loss_weight"}  # the network knows its paper's weight
    assert settled.epochs > 0 and settled.batch_size > 0 and settled.lr > 0 and settled.trainable + strategy != ""
    assert settled.lr_scaling in ("on", "off")


def test_what_the_recipe_names_is_kept():
    wish = {
        "train__weight_decay": 0.3,
        "train__wise_ft_alpha": 0.5,
        "train__batch_size": 7,
        "train__lr": 0.1,
        "train__epochs": 9,
    }
    settled = resolve_settings(make_recipe("full", train__head_lr_mult=2.0, train__layer_decay=0.5, **wish), 1000)
    assert (settled.weight_decay, settled.wise_ft_alpha, settled.batch_size, settled.lr, settled.epochs) == (
        0.3,
        0.5,
        7,
        0.1,
        9,
    )
    assert settled.head_lr_mult == 2 and settled.layer_decay == 0.5


def test_a_head_at_random_is_no_place_to_go_back_to():
    assert resolve_settings(make_recipe("full"), 100).wise_ft_alpha < 1
    assert resolve_settings(make_recipe("full", train__head_init="random"), 100).wise_ft_alpha == 1


def test_the_head_alone_can_train_and_nothing_cannot():
    assert resolve_settings(make_recipe("full", train__trainable="head"), 100).head_lr_mult == 1
    assert resolve_settings(make_recipe("full"), 100).head_lr_mult == 0
    with pytest.raises(RecipeError, match="trains nothing here"):
        resolve_settings(make_recipe("full", train__trainable="none"), 100)
    with pytest.raises(RecipeError, match="trains nothing here"):
        resolve_settings(make_recipe("full", train__trainable="head", train__head_lr_mult=0.0), 100)


@pytest.mark.parametrize(
    ("strategy", "changes", "word"),
    [
        ("partial", {"train__cutmix_alpha": 1.0}, "use train.mixup_alpha"),
        ("partial", {"train__progressive_resizing": True}, "needs pixels"),
        ("partial", {"train__trainable": "all"}, "use strategy full"),
        ("partial", {"train__trainable": "head"}, "that is strategy probe"),
        ("partial", {"train__trainable": "layr4-"}, "Did you mean 'layer4'.*stem, layer1, layer2, layer3, layer4"),
        ("full", {"train__trainable": "last:9"}, "The stages are stem"),
        ("full", {"train__time_budget": "soon"}, "write it as"),
        ("partial", {"probe__input_candidates": [{"size": 64}]}, "leave it empty"),
        ("full", {"backbone": "timm/test_vit", "train__progressive_resizing": True}, "photos of 64 px only"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(strategy, changes, word):
    with pytest.raises(RecipeError, match=word):
        check_training(make_recipe(strategy, **changes))


# The last maps of timm's test ResNet have one cell at 32 px.
@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("scratch", {}),
        ("full", {"train__bn_stats": "train"}),
        ("partial", {"train__bn_stats": "train"}),
        ("scratch", {"train__batch_size": 3, "train__processes_per_fold": 2}),
        ("scratch", {"image__size": 40, "train__progressive_resizing": True}),  # 32 px at first
    ],
)
def test_batchnorm_on_one_image_with_one_cell_is_refused_before_any_work(strategy, changes):
    changes = {"train__batch_size": 1, "image__size": 32, "backbone": "timm/resnet10t", **changes}
    said = (
        r"^train.batch_size = \d.*BatchNorm needs more than one value.*set train.batch_size to 2 or more, "
        r"a larger image.size"
    )
    with pytest.raises(RecipeError, match=said):
        check_training(make_recipe(strategy, **changes))


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("scratch", {"train__batch_size": 2}),
        ("scratch", {"image__size": 64}),
        ("full", {}),  # its statistics stay as they are
        ("scratch", {"backbone": "timm/test_vit"}),
        ("scratch", {"train__batch_size": 4, "train__processes_per_fold": 2}),
    ],
)
def test_other_small_batches_train(strategy, changes):
    changes = {"train__batch_size": 1, "image__size": 32, "backbone": "timm/resnet10t", **changes}
    check_training(make_recipe(strategy, **changes))


@pytest.mark.parametrize(("size", "progressive", "trains"), [(96, False, 0), (299, False, 1), (299, True, 0)])
def test_auxiliary_heads_stay_off_where_images_are_too_small(size, progressive, trains):
    backbone = "torchvision/inception_v3"
    recipe = make_recipe("scratch", backbone=backbone, image__size=size, train__progressive_resizing=progressive)
    settings = resolve_settings(recipe, 9)
    setting = TrainSetup.of(recipe, settings)
    assert setting.auxiliary is bool(trains)
    notice = setting.notice(settings)
    if trains:
        assert notice == ""
    else:
        shown = 224 if progressive else size
        assert notice == (
            f"The auxiliary heads of {backbone} stay off: they need images of 299 px or more, and training shows "
            f"images of {shown} px."
        )
    check_training(recipe)


def test_there_is_nothing_to_say_where_no_auxiliary_head_would_train():
    for changes in (
        {"backbone": "timm/resnet10t"},
        {"train__aux_loss_weight": 0.0},
        {"backbone": "torchvision/googlenet"},
    ):
        recipe = make_recipe("scratch", **{"backbone": "torchvision/inception_v3", "image__size": 96, **changes})
        settings = resolve_settings(recipe, 9)
        assert TrainSetup.of(recipe, settings).notice(settings) == ""


def test_progressive_resizing_for_a_budget_keeps_auxiliary_heads():
    recipe = make_recipe("scratch", backbone="torchvision/inception_v3", image__size=299)
    setting = TrainSetup.of(recipe, resolve_settings(recipe, 9))
    with pytest.raises(RecipeError, match=r"auxiliary heads of torchvision/inception_v3 cannot take images of 224 px"):
        setting.check(progressive=True)


def test_partial_trains_uncut_where_the_network_cannot_be_cut():
    """The stages of PiT hand on a class token beside the map."""
    recipe = make_recipe("partial", backbone="timm/pit_ti_224")
    settings = resolve_settings(recipe, 9)
    setting = TrainSetup.of(recipe, settings)
    assert (setting.cut, setting.first, setting.views) == (False, 3, ())
    settled = setting.settled(settings)
    assert (settled.trainable, settled.cached_views) == ("transformers.2-", 0)
    assert TrainSetup.of(recipe, settled) == setting
    check_training(recipe)
    with pytest.raises(BackboneError, match="cannot be cut after"):
        check_training(recipe.replace(**{"train.trainable": "transformers.2-"}))


def test_what_partial_has_chosen_is_found_once():
    recipe = make_recipe("partial")
    settings = resolve_settings(recipe, 9)
    setting = TrainSetup.of(recipe, settings)
    assert setting.cut
    settled = setting.settled(settings)
    assert (settled.trainable, settled.cached_views) == ("layer4-", 2)
    assert TrainSetup.of(recipe, settled) == setting
    assert setting.settled(settled) is settled


def test_a_network_that_cannot_be_cut_is_said_before_any_work():
    recipe = make_recipe("partial", backbone="timm/hrnet_w18_small", train__trainable="stage4-")
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
    photos = uf.read(source, make_recipe("partial", source).source)
    looks = scan_images(photos, 10**8, Says())
    return photos.files(), looks.keys, looks.readable


def partial(**changes):
    recipe = make_recipe("partial", **changes)
    settings = resolve_settings(recipe, 9)
    return TrainSetup.of(recipe, settings), settings


def prepared(seen, setting):
    assert cache_inputs(setting, *seen, 10**8, Says()) == {}
    return batch_factory(setting, seen[1], seen[2])


def test_augmented_views_are_what_the_network_would_see(seen):
    setting, settings = partial(train__cached_views=4, seed=3)
    assert setting.views == ("plain", "flip", "standard-2@3", "standard-3@3") and setting.drawn == 4
    make = prepared(seen, setting)
    rows = np.arange(9)
    batches = make(rows, np.zeros(9, np.int64), 3, settings, 0, "none")
    kept = batches.whole.activations
    front = setting.front.module()
    from unfreeze.data.pixel_cache import cache_pixels

    pixels = cache_pixels([], seen[1], np.zeros_like(seen[2]), setting.frame)
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
    setting, _ = partial(train__cached_views=3)
    prepared(seen, setting)
    from unfreeze.data.pixel_cache import cache_pixels

    pixels = cache_pixels([], seen[1], np.zeros_like(seen[2]), setting.frame)
    rows = np.arange(9)
    one = augmented_pixels(pixels, rows, "standard-2@0")
    assert (augmented_pixels(pixels, rows[::-1].copy(), "standard-2@0")[::-1] == one).all()
    assert (augmented_pixels(pixels, rows[4:5], "standard-2@0") == one[4]).all()
    for other in ("standard-2@1", "standard-3@0", "strong-2@0"):
        assert (augmented_pixels(pixels, rows, other) != one).any()
    assert set(AUGMENTS) >= {"standard", "strong"}


def test_views_are_computed_once_and_damage_is_made_again(seen, fresh_cache, monkeypatch):
    setting, _ = partial(train__cached_views=3)
    prepared(seen, setting)
    opened = []
    was = activations.open_engine
    monkeypatch.setattr(activations, "open_engine", lambda *a: (opened.append(a), was(*a))[1])
    prepared(seen, setting)
    assert not opened
    store = activations._stores_of(setting.front, setting.views[2:], setting.engine)[0][0]
    for file in store.folder.glob("*.npy"):
        file.unlink()
    with pytest.raises(CacheError, match="are missing"):
        batch_factory(setting, seen[1], seen[2])
    prepared(seen, setting)
    assert len(opened) == 1


def test_pixels_that_are_gone_are_said(seen, fresh_cache):
    recipe = make_recipe("full")
    setting = TrainSetup.of(recipe, resolve_settings(recipe, 9))
    with pytest.raises(CacheError, match="are missing"):
        batch_factory(setting, seen[1], seen[2])


def test_openvino_and_torch_keep_the_same_activations(seen, tmp_path, monkeypatch):
    found = []
    for engine in ("torch", "openvino-f32"):
        monkeypatch.setenv("UNFREEZE_CACHE", str(tmp_path / engine))  # else the second reads what the first kept
        setting, settings = partial(train__cached_views=3, engine=engine)
        batches = prepared(seen, setting)(np.arange(9), np.zeros(9, np.int64), 3, settings, 0, "none")
        found.append(np.stack([batches.whole.activations.read(np.arange(9), np.full(9, v)) for v in range(3)]))
    assert np.abs(found[0].astype(np.float32) - found[1]).max() < 2e-3 * np.abs(found[0]).max()


@pytest.mark.parametrize(("views", "augment", "drawn"), [(1, "standard", 1), (2, "standard", 2), (3, "off", 1)])
def test_training_draws_from_its_own_views_only(seen, views, augment, drawn):
    setting, settings = partial(train__cached_views=views, train__augment=augment)
    assert setting.views == ("plain", "flip") and setting.drawn == drawn
    batches = prepared(seen, setting)(np.arange(9), np.zeros(9, np.int64), 3, settings, 0, "none")
    plain = next(batches.plain(9)).inputs[0]
    mirrored = next(batches.plain(9, flip=True)).inputs[0]
    assert not torch.equal(plain, mirrored)
    found = [b for epoch in range(8) for b in batches.epoch(epoch, 9)]
    from_plain = [torch.equal(x, plain[row]) for b in found for x, row in zip(b.inputs[0], b.rows, strict=True)]
    assert all(from_plain) if drawn == 1 else 0 < sum(from_plain) < len(from_plain)


def test_prediction_of_the_mirrored_photo_alone(seen):
    setting, settings = partial(probe__views=["flip"])
    prepared(seen, setting)
    only = setting.seeing(("flip",))
    assert only.views == ("plain", "flip")
    batches = batch_factory(only, seen[1], seen[2])(np.arange(9), np.zeros(9, np.int64), 3, settings, 0, "none")
    both = batch_factory(setting, seen[1], seen[2])(np.arange(9), np.zeros(9, np.int64), 3, settings, 0, "none")
    assert torch.equal(next(batches.plain(9, flip=True)).inputs[0], next(both.plain(9, flip=True)).inputs[0])


Disk = namedtuple("Disk", "total used free")


def test_a_full_disk_is_an_error_and_leaves_no_view_out(seen, fresh_cache, monkeypatch):
    setting, _ = partial(train__cached_views=6)
    row, square = 9 * 2 * setting.front.width(), 9 * setting.frame.row_bytes
    cache_root().mkdir(parents=True, exist_ok=True)

    def fits(setting, free):
        with monkeypatch.context() as patch:
            patch.setattr(activations.shutil, "disk_usage", lambda _: Disk(0, 0, free))
            check_disk(setting.front, setting.views, seen[1], seen[2], setting.frame, setting.engine)

    fits(setting, 6 * row + square)
    with pytest.raises(StorageError, match=r"free some space, train from fewer views \(train.cached_views=4\)"):
        fits(setting, 4 * row + square)
    two, _ = partial(train__cached_views=2)
    fits(two, 2 * row)
    with pytest.raises(StorageError, match="free some space, train fewer stages"):
        fits(two, 2 * row - 1)
    prepared(seen, setting)  # what is there already counts as free
    fits(setting, 0)


def test_auxiliary_heads_have_the_papers_weight_or_the_recipes():
    recipe = make_recipe("scratch", backbone="torchvision/googlenet", image__size=96)
    setting = TrainSetup.of(recipe, resolve_settings(recipe, 9))
    assert setting.auxiliary
    model = setting.network(3)
    assert auxiliary_weight(model, Train()) == pytest.approx(0.3)
    assert auxiliary_weight(model, Train(aux_loss_weight=0.1)) == 0.1
    off = make_recipe("scratch", backbone="torchvision/googlenet", image__size=96, train__aux_loss_weight=0.0)
    assert not TrainSetup.of(off, resolve_settings(off, 9)).auxiliary


def test_a_row_store_that_lacks_a_view_is_not_mistaken_for_whole(seen, fresh_cache):
    setting, _ = partial(train__cached_views=2)
    prepared(seen, setting)
    assert isinstance(activations._stores_of(setting.front, ("plain",), "torch")[0][0], ArrayStore)
    more, _ = partial(train__cached_views=3)
    with pytest.raises(CacheError):
        batch_factory(more, seen[1], seen[2])
