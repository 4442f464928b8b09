"""Each measure against pictures whose value is known."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from unfreeze.data.decode import decode_image
from unfreeze.data.scan import SIDE, image_stats, resize_short_side


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def measured(pixels, data: bytes | None = None):
    pixels = np.asarray(pixels, np.uint8)
    data = data or encoded(Image.fromarray(pixels))
    return image_stats(decode_image(data), resize_short_side(pixels), len(data))[0]


def flat(*colour, size=(40, 60)):
    return np.full((*size, 3), colour, np.uint8)


def noise(seed=0, size=(200, 300)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def test_one_color():
    row = measured(flat(255, 0, 0))
    assert row["brightness"] == pytest.approx(0.299 * 255, abs=0.01)
    assert row["contrast"] == pytest.approx(0, abs=1e-3)
    assert row["sharpness"] == pytest.approx(0, abs=1e-3)
    # No spread; rg = 255, yb = 127.5: M3 is .3 of their length.
    assert row["colourfulness"] == pytest.approx(0.3 * np.hypot(255, 127.5), rel=1e-4)
    assert row["border"].tolist() == [255, 0, 0] and row["border_spread"] == 0


def test_two_halves():
    pixels = flat(0, 0, 0)
    pixels[:, 30:] = 200
    row = measured(pixels)
    assert row["brightness"] == pytest.approx(100, abs=0.1) and row["contrast"] == pytest.approx(100, abs=0.1)
    assert row["colourfulness"] == pytest.approx(0, abs=1e-3)
    assert row["border_spread"] > 50


def test_a_frame_is_the_border():
    pixels = noise()
    wide = 2 + round(200 / 16)
    pixels[:wide], pixels[-wide:], pixels[:, :wide], pixels[:, -wide:] = (10,) * 4
    row = measured(pixels)
    assert np.abs(row["border"].astype(int) - 10).max() <= 12 and row["border_spread"] < 12
    assert measured(noise())["border_spread"] > 15


def test_blurred_is_less_sharp_and_size_hardly_matters():
    scene = Image.fromarray(noise(1, (48, 64))).resize((1024, 768), Image.Resampling.BICUBIC)
    sharp, soft = measured(scene), measured(scene.filter(ImageFilter.GaussianBlur(12)))
    assert sharp["sharpness"] > 4 * soft["sharpness"]
    half = measured(scene.resize((512, 384), Image.Resampling.BICUBIC))
    assert half["sharpness"] == pytest.approx(sharp["sharpness"], rel=0.1)
    assert min(resize_short_side(np.asarray(scene)).size) == SIDE


def test_how_it_is_stored():
    image = Image.fromarray(noise(size=(20, 30)))
    exif = Image.Exif()
    exif[0x0112] = 6
    for data, kind, mode, turned in (
        (encoded(image), b"PNG", b"colour", 1),
        (encoded(image, "JPEG", exif=exif), b"JPEG", b"colour", 6),
        (encoded(image.convert("L"), "JPEG"), b"JPEG", b"grey", 1),
        (encoded(image.convert("RGBA")), b"PNG", b"alpha", 1),
        (encoded(image, "WEBP"), b"WEBP", b"colour", 1),
    ):
        row = measured(image, data)
        assert (row["format"], row["mode"], row["orientation"], row["bytes"]) == (kind, mode, turned, len(data))


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 3), (5, 4000)])
def test_shapes_at_the_edge(size):
    row = measured(noise(size=size))
    assert all(np.isfinite(row[name]) for name in ("brightness", "contrast", "sharpness", "colourfulness"))
