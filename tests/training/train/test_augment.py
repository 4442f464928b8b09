"""Augmentation: each word does what it says, for each photo by itself, and always the same for the same draws."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from unfreeze.features.augment import (
    _COLUMNS,
    _FLIP,
    _KIND,
    _SIGN,
    AUGMENTS,
    RANDAUGMENT,
    Augment,
    cutmix,
    make_draws,
    mixup,
    rectangles,
)

SIDE, MARGIN, SIZE = 64, 4, 56


def photos(n=6, side=SIDE, seed=0):
    """Smooth pictures without any symmetry, uint8 (n, 3, side, side)."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (n, 3, 7, 7), generator=draw).float()
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 255).to(torch.uint8)


def ramps(n, side=SIDE):
    """Photos whose red is the place across and whose green is the place down, 0..255 over the stored square."""
    line = (torch.arange(side) + 0.5) / side * 255
    across, down = line.expand(side, side), line[:, None].expand(side, side)
    return torch.stack([across, down, torch.zeros(side, side)]).round().to(torch.uint8).expand(n, -1, -1, -1)


def plain(images):
    return images[..., MARGIN:-MARGIN, MARGIN:-MARGIN].float() / 255


def fixed(n, **columns):
    """Draws that change nothing (half is the middle of every range), with some columns set."""
    draws = np.full((n, _COLUMNS), 0.5)
    for kind in _KIND:
        draws[:, kind] = 0.0
    for name, value in columns.items():
        draws[:, int(name[1:])] = value
    return draws


@pytest.mark.parametrize("word", AUGMENTS)
@pytest.mark.parametrize("size", [SIZE, 40])
def test_every_word_gives_photos_in_range(word, size):
    out = AUGMENTS[word](photos(), size, MARGIN, make_draws(0, 0, np.arange(6)))
    assert out.shape == (6, 3, size, size)
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    assert 0 <= float(out.min()) < float(out.max()) <= 1 + 1e-6


@pytest.mark.parametrize("word", AUGMENTS)
def test_the_same_draws_give_the_same_bits_and_photos_are_alone(word):
    """A photo's look does not depend on who else is in the batch."""
    draws, images = make_draws(3, 1, np.arange(6)), photos()
    before = images.clone()
    whole = AUGMENTS[word](images, SIZE, MARGIN, draws)
    assert torch.equal(whole, AUGMENTS[word](images, SIZE, MARGIN, draws))
    assert torch.equal(images, before)
    single = torch.cat([AUGMENTS[word](images[i : i + 1], SIZE, MARGIN, draws[i : i + 1]) for i in range(6)])
    # Posterize and its like round: a last bit that differs may move a value by a level or a step.
    assert float(((whole - single).abs() < 1e-5).float().mean()) > 0.999


def test_global_random_state_is_left_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    AUGMENTS["strong"](photos(), SIZE, MARGIN, make_draws(0, 0, np.arange(6)))
    draw = np.random.default_rng(0)
    mixup((torch.rand(4, 2, generator=torch.Generator()),), torch.eye(4), 0.4, draw)
    cutmix(plain(photos(4)), torch.eye(4), 1.0, draw)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_draws_depend_on_seed_epoch_photo_and_repeat_only():
    some = make_draws(1, 2, np.array([7, 3, 2**64 - 1], np.uint64))
    assert np.array_equal(some[1], make_draws(1, 2, np.array([3]))[0])
    others = [
        make_draws(0, 2, np.array([3])),
        make_draws(1, 3, np.array([3])),
        make_draws(1, 2, np.array([4])),
        make_draws(1, 2, np.array([3]), np.array([1])),
    ]
    assert all(np.abs(some[1] - other[0]).max() > 0.01 for other in others)
    many = make_draws(0, 0, np.arange(4000))
    assert many.min() >= 0
    assert many.max() < 1
    assert np.abs(many.mean(0) - 0.5).max() < 0.03
    assert np.abs(np.corrcoef(many.T) - np.eye(_COLUMNS)).max() < 0.08


def test_off_is_the_evaluation_view_and_flip_its_mirror():
    images, draws = photos(40), make_draws(0, 0, np.arange(40))
    assert torch.equal(AUGMENTS["off"](images, SIZE, MARGIN, draws), plain(images).mul(255).mul(1 / 255))
    out = AUGMENTS["flip"](images, SIZE, MARGIN, draws)
    mirrored = (out - plain(images).flip(-1)).abs().amax((1, 2, 3)) < 1e-6
    same = (out - plain(images)).abs().amax((1, 2, 3)) < 1e-6
    assert (mirrored ^ same).all()
    assert mirrored.tolist() == (draws[:, _FLIP] < 0.5).tolist()
    assert 10 < int(mirrored.sum()) < 30


def test_a_resampled_flip_is_the_mirror_of_the_unflipped():
    images, augment = photos(), AUGMENTS["light"]
    draws = make_draws(0, 0, np.arange(6))
    draws[:, _FLIP] = 0.9
    upright = augment(images, SIZE, MARGIN, draws)
    draws[:, _FLIP] = 0.1
    assert torch.allclose(augment(images, SIZE, MARGIN, draws).flip(-1), upright, atol=2e-4)


def test_crops_lie_inside_and_keep_the_area_and_aspect_that_were_promised():
    """Ramps tell where each output pixel came from."""
    augment, n = Augment(area=0.5), 300
    out = augment(ramps(n), SIZE, MARGIN, make_draws(0, 0, np.arange(n)))
    left, right = out[:, 0, :, 0].mean(1), out[:, 0, :, -1].mean(1)
    top, bottom = out[:, 1, 0].mean(1), out[:, 1, -1].mean(1)
    width, height = ((b - a) * SIZE / (SIZE - 1) for a, b in ((left, right), (top, bottom)))
    area = width * height
    # A crop longer than the square is cut at its border, so that a few lie a little below half.
    assert 0.43 < float(area.min()) < 0.52
    assert 0.9 < float(area.max()) < 1.02
    assert float((width / height).max()) < 4 / 3 + 0.05
    assert float((width / height).min()) > 3 / 4 - 0.05
    half = width / SIZE / 2
    assert float((left - half).min()) > -0.015
    assert float((right + half).max()) < 1.015
    assert 0.4 < float(((left + right) / 2).mean()) < 0.6
    assert float(((left + right) / 2).std()) > 0.05


def test_no_change_is_drawn_as_the_stored_square_itself():
    """All parameters at their middle: the whole square, resampled onto itself."""
    images = photos()
    out = Augment(degrees=10, colour=0.2)(images, SIDE, 0, fixed(6))
    assert torch.allclose(out, images.float() / 255, atol=1e-4)


def test_rotation_turns_about_the_middle_by_at_most_what_is_said():
    augment = Augment(degrees=10)
    draws = fixed(3, _5=np.array([0.0, 0.5, 1 - 1e-9]))
    out = augment(ramps(3, 128), 128, 0, draws) * 2 - 1
    middle = out[:, :, 44:84, 44:84]
    # Red is the place across: its rise to the right and downwards is the turn's cosine and sine.
    right = (middle[:, 0, :, -1] - middle[:, 0, :, 0]).mean(1) / 39 * 64
    down = (middle[:, 0, -1] - middle[:, 0, 0]).mean(1) / 39 * 64
    angles = torch.rad2deg(torch.atan2(down, right))
    assert torch.allclose(angles, torch.tensor([10.0, 0.0, -10.0]), atol=0.3)
    assert float(middle[:, :2].mean((2, 3)).abs().max()) < 0.01
    assert float(out[:, 2].max()) == -1  # corners by reflection: no black, no color that is not there


def test_color_agrees_with_torchvision_where_nothing_is_clamped():
    from torchvision.transforms.v2 import functional as v2

    images = (photos() // 3) + 60
    draws = fixed(6)
    chosen = np.random.default_rng(0).random((6, 3))
    draws[:, 6:9] = chosen
    out = Augment(colour=0.2)(images, SIZE, MARGIN, draws)
    for i, (bright, contrast, saturation) in enumerate(0.8 + 0.4 * chosen):
        expected = v2.adjust_saturation(v2.adjust_brightness(plain(images)[i], bright), saturation)
        assert torch.allclose(out[i], v2.adjust_contrast(expected, contrast), atol=2e-3)


def test_erasing_fills_one_rectangle_of_promised_area_in_the_promised_share():
    n = 400
    images = photos(4).repeat(100, 1, 1, 1)
    out = Augment(erase=0.25)(images, SIZE, MARGIN, make_draws(0, 0, np.arange(n)))
    changed = (out != plain(images).mul(255).mul(1 / 255)).any(1)
    share = changed.float().mean((1, 2))
    assert 0.17 < float((share > 0).float().mean()) < 0.33
    erased = share[share > 0]
    assert float(erased.min()) > 0.01
    assert 0.12 < float(erased.max()) < 0.21
    i = int(share.argmax())
    inside = out[i][:, changed[i]]
    assert float(inside.std(1).max()) < 1e-5
    assert torch.allclose(inside[:, 0], plain(images)[i].mean((1, 2)), atol=1e-4)


@pytest.mark.parametrize("name", RANDAUGMENT)
def test_each_operation_of_randaugment_changes_photos_and_identity_does_not(name):
    # Bright enough for solarize, off the ends for autocontrast, with a grain for sharpness.
    grain = torch.randint(0, 30, (2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    images = photos(2) // 2 + 90 + grain.to(torch.uint8)
    augment = Augment(randaugment=True)
    draws = fixed(2, _14=(RANDAUGMENT.index(name) + 0.5) / len(RANDAUGMENT), _15=0.99)
    draws[:, _SIGN[0]] = (0.1, 0.9)
    out = augment(images, SIDE, 0, draws)
    difference = (out - images.float() / 255).abs().amax((1, 2, 3))
    assert (difference < 1e-4).all() if name == "identity" else (difference > 0.005).all()
    if name in ("rotate", "shear-x", "shear-y", "translate-x", "translate-y", "brightness", "colour", "contrast"):
        assert not torch.allclose(out[0], augment(images[:1], SIDE, 0, draws[1:])[0], atol=1e-3)


def test_mixup_blends_inputs_and_targets_alike():
    n = 64
    x, y = torch.arange(n).float()[:, None].repeat(1, 3), torch.eye(n)
    (a, b), targets = mixup((x, x[:, None] * 2), y, 0.4, np.random.default_rng(0))
    assert targets.dtype == torch.float32
    assert torch.allclose(targets.sum(1), torch.ones(n))
    assert torch.allclose(targets @ x, a, atol=1e-4)
    assert torch.allclose(b[:, 0], 2 * a, atol=1e-4)
    top = targets.amax(1)
    assert float(top.std()) > 0.05  # shares differ from photo to photo
    again = mixup((x,), y, 0.4, np.random.default_rng(0))
    assert torch.equal(again[1], targets)


def test_cutmix_targets_are_the_area_that_each_photo_has():
    n, size = 32, 20
    images = torch.arange(n).float()[:, None, None, None].expand(n, 3, size, size)
    mixed, targets = cutmix(images, torch.eye(n), 1.0, np.random.default_rng(0))
    assert torch.allclose(targets.sum(1), torch.ones(n))
    for i in range(n):
        area = torch.bincount(mixed[i, 0].flatten().long(), minlength=n) / size**2
        assert torch.allclose(area, targets[i], atol=1e-6)
    assert float((targets.amax(1) < 1).float().mean()) > 0.1


def test_rectangles_are_cut_at_the_border():
    inside = rectangles(*(np.array([v]) for v in (-0.25, 0.5, 0.5, 0.25)), 4)
    assert inside[0].int().tolist() == [[0] * 4, [0] * 4, [1, 0, 0, 0], [0] * 4]


def test_words_are_described():
    assert AUGMENTS["off"].describe() == "photos as they are"
    assert "10 degrees" in AUGMENTS["standard"].describe()
    assert len({augment.describe() for augment in AUGMENTS.values()}) == len(AUGMENTS)


def test_pace_is_printed(capsys):
    images = photos(8, 256)
    for word, augment in AUGMENTS.items():
        started = time.perf_counter()
        augment(images, 224, 16, make_draws(0, 0, np.arange(8)))
        print(f"{word}: {8 / (time.perf_counter() - started):.0f} photos/s at 224 px")
    assert capsys.readouterr().out.count("photos/s") == len(AUGMENTS)
