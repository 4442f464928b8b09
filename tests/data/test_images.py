"""Pixels against Pillow, for every kind of file that people have; errors instead of crashes."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from unfreeze.core.errors import PhotoError
from unfreeze.data.decode import center_crop_resize, decode, decode_sized, load_crop, read_bytes, to_grayscale

draw = np.random.default_rng(0)


def scene(width: int, height: int) -> Image.Image:
    """A smooth picture without symmetry, so that JPEG keeps it and any wrong turn shows."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    bands = [x, y * x, (np.sin(9 * x + 4 * y) + 1) / 2]
    return Image.fromarray((np.stack(bands, 2) * 255).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def difference(a, b) -> float:
    a, b = np.asarray(a, np.int16), np.asarray(b, np.int16)
    assert a.shape == b.shape
    return float(np.abs(a - b).mean())


def oriented(upright: Image.Image, orientation: int, kind: str, **options) -> bytes:
    """A file whose stored pixels need `orientation` to stand upright, made by turning the other way round."""
    back = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    for turn in back.get(orientation, []):
        upright = upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(upright, kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {"quality": 95, "subsampling": 0}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})],
)
def test_all_orientations_are_the_same_upright_picture(orientation, kind, options):
    upright = scene(48, 32)
    data = oriented(upright, orientation, kind, **options)
    assert difference(decode(data), upright) < (2 if kind == "JPEG" else 0.01)
    pixels, size = decode_sized(data, 16)
    assert size == (48, 32)
    assert pixels.shape[1] > pixels.shape[0]
    with Image.open(io.BytesIO(data)) as image:
        assert difference(decode(data), ImageOps.exif_transpose(image).convert("RGB")) < 2


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_orientation_of_other_jpegs(mode):
    upright = scene(48, 32).convert(mode)
    for orientation in (1, 6):
        assert difference(decode(oriented(upright, orientation, "JPEG", quality=95)), upright.convert("RGB")) < 3


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_photo():
    whole = saved(scene(48, 32), "JPEG", quality=95)
    for junk in (b"", b"II*\x00\xff\xff\xff\xff", b"MM\x00*\x00\x00\x00\x08\xff\xff" + b"\xff" * 40, b"x" * 9):
        body = b"Exif\x00\x00" + junk
        data = whole[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + whole[2:]
        assert difference(decode(data), scene(48, 32)) < 3


def test_grayscale_jpeg():
    grey = scene(40, 30).convert("L")
    pixels = decode(saved(grey, "JPEG", quality=95))
    assert difference(pixels, grey.convert("RGB")) < 2
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_cmyk_jpeg():
    data = saved(scene(40, 30).convert("CMYK"), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        assert difference(decode(data), image.convert("RGB")) == 0


def test_palette():
    palette = scene(40, 30).quantize(64)
    for kind in ("PNG", "GIF", "BMP"):
        assert difference(decode(saved(palette, kind)), palette.convert("RGB")) == 0


def test_palette_with_transparency_is_laid_on_white():
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30, 200, 100, 50] + [0] * 759)
    palette.paste(0, (0, 0, 2, 4))
    for kind in ("PNG", "GIF"):
        pixels = decode(saved(palette, kind, transparency=0))
        assert (pixels[:, :2] == 255).all()
        assert (pixels[:, 2:] == [10, 20, 30]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_on_white(mode):
    values = draw.integers(0, 256, (6, 7, len(mode)), np.uint8)
    values[0, :, -1], values[1, :, -1] = 0, 255
    alpha = values[..., -1:] / 255
    expected = values[..., :-1] * alpha + 255 * (1 - alpha)
    pixels = decode(saved(Image.fromarray(values, mode), "PNG"))
    assert np.abs(pixels - expected).max() <= 1
    assert (pixels[0] == 255).all()
    assert (pixels[1] == values[1, :, :-1]).all()


def test_one_transparent_color():
    image = Image.new("RGB", (4, 4), (9, 8, 7))
    image.putpixel((1, 1), (1, 2, 3))
    pixels = decode(saved(image, "PNG", transparency=(9, 8, 7)))
    assert tuple(pixels[1, 1]) == (1, 2, 3)
    assert (pixels[0] == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit(kind):
    values = draw.integers(0, 65536, (8, 9)).astype(np.uint16)
    pixels = decode(saved(Image.fromarray(values), kind))
    assert np.abs(pixels[..., 0] - values / 257.0).max() <= 1
    assert (pixels[..., 0] == pixels[..., 1]).all()


@pytest.mark.parametrize(
    ("values", "full"),
    [
        (np.linspace(0, 1, 64), 1),
        (np.repeat([0.0, 1.0], 32), 1),
        (np.linspace(0, 255, 64), 255),
        (np.linspace(0, 60_000, 64), 65535),
        (np.linspace(0, 1e6, 64), 2**20 - 1),
    ],
)
def test_floats(values, full):
    values = values.reshape(8, 8).astype(np.float32)
    pixels = decode(saved(Image.fromarray(values), "TIFF"))
    assert np.abs(pixels[..., 0] - np.clip(values, 0, None) * (255 / full)).max() <= 1


def test_not_a_number():
    values = np.full((8, 8), np.nan, np.float32)
    values[0] = [0, 0.5, 1, np.inf, -np.inf, 0, 0, 0]
    assert decode(saved(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 128, 255, 0, 0, 0, 0, 0]


def test_32_bit_integers():
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.int32)
    assert np.abs(decode(saved(Image.fromarray(values), "TIFF"))[..., 0] - values / 257.0).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_give_their_first_frame(kind):
    first, second = Image.new("RGB", (20, 10), (200, 0, 0)), Image.new("RGB", (20, 10), (0, 200, 0))
    pixels = decode(saved(first, kind, save_all=True, append_images=[second]))
    assert difference(pixels, first) < 3


def test_one_bit():
    image = scene(40, 30).convert("1")
    assert difference(decode(saved(image, "PNG")), image.convert("RGB")) == 0


def cuts(data: bytes) -> list[bytes]:
    return [data[: int(len(data) * share)] for share in (0.02, 0.3, 0.6, 0.95)]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_cut_off(kind):
    image = Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8))
    for data in cuts(saved(image, kind)):
        for short_side in (0, 16):
            with pytest.raises(PhotoError, match=r"a/b\.jpg: (damaged|not an image)"):
                decode(data, short_side, path="a/b.jpg")


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP"]), st.data())
def test_any_damage_is_a_photo_error_or_pixels(kind, data):
    content = bytearray(saved(scene(24, 16), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode(bytes(content), max_pixels=1_000_000)
    except PhotoError as error:
        assert error.reason and "\n" not in str(error)
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises this size and whose pixels are a few bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(20_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_before_they_are_unpacked(size):
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(PhotoError, match=r"more (than|pixels)"):
        decode(png_of(*size))
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_the_limit_is_ours_to_choose():
    data = saved(scene(40, 30), "JPEG")
    assert decode(data, max_pixels=1200).shape == (30, 40, 3)
    with pytest.raises(PhotoError, match=r"40 x 30 pixels are more than the limit of 1,199"):
        decode(data, max_pixels=1199)


def test_content_not_name_says_what_a_file_is(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(saved(scene(40, 30), "PNG"))
    assert difference(decode(read_bytes(path)), scene(40, 30)) == 0


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'


@pytest.mark.parametrize("data", [EPS, PDF, SVG, b"", b"\0" * 99, b"hello", b"II*\x00", b"\xff\xd8\xff"])
def test_what_is_no_photo(data):
    with pytest.raises(PhotoError):
        decode(data)


def test_reading_files(tmp_path):
    (tmp_path / "empty.jpg").touch()
    for path, reason in (("none.jpg", "no such file"), ("empty.jpg", "the file is empty"), (".", "no such file")):
        with pytest.raises(PhotoError) as caught:
            read_bytes(tmp_path / path)
        assert caught.value.reason == reason
    with pytest.raises(PhotoError):
        read_bytes(Path("/dev/zero"))


def test_a_file_that_is_too_large(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate((1 << 29) + 1)
    with pytest.raises(PhotoError, match="larger than 512 MiB"):
        read_bytes(tmp_path / "a.jpg")


@pytest.mark.parametrize("size", [(1600, 1200), (900, 2000), (1601, 1203)])
@pytest.mark.parametrize("wanted", [64, 160, 224])
def test_scaled_decoding_agrees_with_decoding_whole(size, wanted):
    data = saved(scene(*size), "JPEG", quality=95)
    small = decode(data, wanted)
    assert min(small.shape[:2]) >= wanted
    assert small.size < decode(data).size
    fast, whole = load_crop(data, wanted, 1.0), center_crop_resize(decode(data), wanted, 1.0)
    assert difference(fast, whole) < 1.5


def test_a_small_photo_is_not_blown_up_by_the_decoder():
    data = saved(scene(40, 30), "JPEG")
    assert decode(data, 224).shape == (30, 40, 3)
    assert load_crop(data, 224, 0.875).shape == (224, 224, 3)


@pytest.mark.parametrize("size", [(384, 512), (640, 427), (300, 300), (90, 1500)])
@pytest.mark.parametrize(("side", "crop"), [(224, 0.875), (96, 1.0), (160, 0.95)])
def test_square_is_resize_then_crop(size, side, crop):
    """As timm's evaluation transform does it: the short side to side / crop, then the middle."""
    image = scene(*size)
    scale = round(side / crop) / min(size)
    large = image.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BICUBIC)
    left, top = round((large.width - side) / 2), round((large.height - side) / 2)
    expected = large.crop((left, top, left + side, top + side))
    assert difference(center_crop_resize(np.asarray(image), side, crop), expected) < 2


def test_square_keeps_height_and_width_apart():
    """The baseline swapped them at prediction: a wide photo's middle is not a tall one's."""
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = 255
    assert center_crop_resize(pixels, 50, 1.0)[5:-5, 5:-5].min() == 255
    assert center_crop_resize(np.ascontiguousarray(pixels.transpose(1, 0, 2)), 50, 1.0)[5:-5, 5:-5].min() == 255


def test_the_smallest_photo():
    assert load_crop(saved(Image.new("RGB", (1, 1), (9, 9, 9)), "PNG"), 32, 0.875).tolist() == [[[9] * 3] * 32] * 32


def test_pixels_lie_in_one_piece():
    for kind in ("PNG", "JPEG"):
        pixels = decode(saved(scene(40, 30), kind))
        assert pixels.flags.c_contiguous


@pytest.mark.parametrize("box", [None, (0.1, 0.2, 0.6, 0.7)])
def test_gray_is_pillows_luminance_on_three_channels(box):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    colour = load_crop(stream.getvalue(), 48, 0.9, box=box)
    gray = load_crop(stream.getvalue(), 48, 0.9, box=box, gray=True)
    luminance = np.asarray(Image.fromarray(colour).convert("L"))
    assert gray.shape == (48, 48, 3) and gray.dtype == np.uint8
    assert all(np.array_equal(gray[..., channel], luminance) for channel in range(3))


def test_luminance_is_pillows_for_every_extreme_and_for_many_colors():
    corners = np.array(np.meshgrid(*[[0, 1, 127, 128, 254, 255]] * 3), np.uint8).reshape(3, -1).T[None]
    many = np.random.default_rng(1).integers(0, 256, (400, 400, 3), np.uint8)
    for pixels in (corners, many):
        wanted = np.asarray(Image.fromarray(pixels).convert("L"))
        assert np.array_equal(to_grayscale(pixels), np.repeat(wanted[..., None], 3, axis=2))
    alike = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    assert np.array_equal(to_grayscale(alike), alike)  # what is gray stays as it is
