"""Values of more than 8 bits: the same picture gives the same pixels whatever its values were scaled to."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from unfreeze.core.dataset import Finding, ImageDataset
from unfreeze.data.checks import run_checks
from unfreeze.data.decode import decode, decode_image
from unfreeze.data.srgb import CT, RANGES, range_of, to_8_bit


def saved(image: Image.Image, kind: str = "TIFF", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gray(seed: int = 0, width: int = 48, height: int = 40) -> NDArray[np.uint8]:
    """A smooth picture of 0 to 255."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6), np.uint8)
    values = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).copy()
    values[0, :2] = 0, 255
    return values


def png(values: NDArray[np.integer], color: int, *chunks: bytes) -> bytes:
    """A PNG of 16 bits a channel. values: (height, width, channels)."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width, _ = values.shape
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))
    more = b"".join(chunk(c[:4], c[4:]) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def patched(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with another value of a tag of one SHORT, which Pillow would set itself."""
    at = data.index(struct.pack("<HHI", tag, 3, 1)) + 8
    return data[:at] + struct.pack("<H", value) + data[at + 2 :]


def near(data: bytes, wanted: NDArray[np.uint8], most: float = 1.0) -> None:
    pixels = decode(data)
    wanted = np.repeat(wanted[..., None], 3, 2) if wanted.ndim == 2 else wanted
    assert pixels.shape == wanted.shape
    assert np.abs(pixels.astype(int) - wanted).max() <= most


@pytest.mark.parametrize("full", [255, 1023, 4095, 16383, 65535])
@pytest.mark.parametrize("kind", ["TIFF", "PNG", "LZW", "int32", "int16", "big-endian"])
def test_gray_of_any_depth_is_the_same_picture(full: int, kind: str) -> None:
    g = gray()
    values = np.rint(g / 255.0 * full)
    image = Image.fromarray(values.astype(np.int32 if kind == "int32" else np.uint16))
    if kind == "int16":
        if full > 32767:
            pytest.skip("not in an int16")
        data = saved(Image.fromarray(values.astype(np.uint16)), tiffinfo={339: 2})
    elif kind == "big-endian":
        data = saved(Image.frombytes("I;16B", (48, 40), values.astype(">u2").tobytes()))
    else:
        data = saved(
            image, "PNG" if kind == "PNG" else "TIFF", **({"compression": "tiff_lzw"} if kind == "LZW" else {})
        )
    near(data, g)


@pytest.mark.parametrize("full", [255, 1023, 4095, 16383, 65535])
def test_color_of_any_depth_is_the_same_picture(full: int) -> None:
    color = np.stack([gray(1), gray(2), gray(3)], -1)
    values = np.rint(color / 255.0 * full).astype(np.uint16)
    near(png(values, 2), color)
    alpha = np.full((*values.shape[:2], 1), full, np.uint16)
    near(png(np.concatenate([values, alpha], -1), 6), color)
    near(png(np.concatenate([values[..., :1], alpha], -1), 4), color[..., 0])
    alpha[:, :20] = 0
    half = color.copy()
    half[:, :20] = 255
    near(png(np.concatenate([values, alpha], -1), 6), half)


def tiff16(values: NDArray[np.uint16], order: str = "<", deflate: bool = False) -> bytes:
    """An RGB or RGBA TIFF of 16 bits a channel, one strip."""
    height, width, channels = values.shape
    body = values.astype(f"{order}u2").tobytes()
    body = zlib.compress(body) if deflate else body
    mark = b"II" if order == "<" else b"MM"
    tags = [
        (256, 3, [width]),
        (257, 3, [height]),
        (258, 3, [16] * channels),
        (259, 3, [8 if deflate else 1]),
        (262, 3, [2]),
        (273, 4, [0]),
        (277, 3, [channels]),
        (278, 3, [height]),
        (279, 4, [len(body)]),
        *([(338, 3, [2])] if channels == 4 else []),
    ]
    place = 8 + 2 + 12 * len(tags) + 4
    far, entries = b"", b""
    for tag, kind, numbers in tags:
        packed = struct.pack(f"{order}{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if tag == 273:
            packed = struct.pack(f"{order}I", place + 2 * channels)
        if len(packed) > 4:
            entries += struct.pack(f"{order}HHII", tag, kind, len(numbers), place + len(far))
            far += packed
        else:
            entries += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    head = mark + struct.pack(f"{order}HI", 42, 8) + struct.pack(f"{order}H", len(tags))
    return head + entries + bytes(4) + far.ljust(2 * channels, b"\0") + body


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("full", [4095, 65535])
def test_color_tiffs_of_16_bits(order: str, deflate: bool, full: int) -> None:
    color = np.stack([gray(1), gray(2), gray(3)], -1)
    values = np.rint(color / 255.0 * full).astype(np.uint16)
    near(tiff16(values, order, deflate), color)
    alpha = np.full((*values.shape[:2], 1), full, np.uint16)
    near(tiff16(np.concatenate([values, alpha], -1), order, deflate), color)


@pytest.mark.parametrize("maxval", [1, 15, 100, 255, 1000, 1023, 4095, 65535])
def test_a_ppm_says_its_range(maxval: int) -> None:
    g = gray()
    values = np.rint(g / 255.0 * maxval).astype(int) // 2  # a dark picture stays dark
    wanted = np.rint(values * 255.0 / maxval).astype(np.uint8)
    raw = values.astype(">u2" if maxval > 255 else np.uint8).tobytes()
    near(b"P5 48 40 %d\n" % maxval + raw, wanted)
    text = b"P2\n# by hand\n48 40\n%d\n" % maxval + b" ".join(b"%d" % v for v in values.ravel())
    near(text, wanted)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 255), (0, 4095), (-1, 1), (CT[0], CT[1])], ids=["unit", "8", "12", "signed", "CT"]
)
def test_floats_of_usual_ranges(low: float, high: float) -> None:
    near(saved(Image.fromarray((low + gray() / 255.0 * (high - low)).astype(np.float32))), gray())


def test_hounsfield_units() -> None:
    values = (gray().astype(np.float64) * 16 - 1000).round()
    pixels = [
        decode(saved(Image.fromarray(values.astype(kind))))[..., 0].astype(int) for kind in (np.float32, np.int32)
    ]
    assert (pixels[0] == pixels[1]).all() and np.abs(pixels[0] - gray()).max() <= 2
    padded = values.copy()
    padded[:5] = -3024  # outside of the scanner's circle
    found = decode(saved(Image.fromarray(padded.astype(np.int32))))[..., 0]
    assert (found[:5] == 0).all() and (found[5:] == pixels[1][5:]).all(), "padding does not move the rest"


def test_overshoot_does_not_change_the_range() -> None:
    g = gray().astype(np.float32)
    assert range_of(-0.01, 1.01, whole=False) == (0, 1) and range_of(0, 4100, whole=True) == (0, 4095)
    near(saved(Image.fromarray(g / 255 * 1.015 - 0.005)), gray(), 4)
    near(saved(Image.fromarray((gray().astype(np.int32) * 16) + 20)), gray(), 2)


def test_what_is_not_finite_is_black_and_does_not_count() -> None:
    g = gray()
    values = (g / 255).astype(np.float32)
    values[3, :3] = np.nan, np.inf, -np.inf
    pixels = decode(saved(Image.fromarray(values)))[..., 0]
    assert pixels[3, :3].tolist() == [0, 0, 0] and np.abs(pixels[5:].astype(int) - g[5:]).max() <= 1
    for nothing in (np.nan, np.inf):
        assert not decode(saved(Image.fromarray(np.full((8, 8), nothing, np.float32)))).any()


def test_constant_images() -> None:
    for kind, value, wanted in (
        (np.uint16, 0, 0),
        (np.uint16, 65535, 255),
        (np.int32, -1024, 0),
        (np.float32, 1, 255),
        (np.float32, 0.5, 128),
    ):
        assert (decode(saved(Image.fromarray(np.full((8, 8), value, kind)))) == wanted).all()


def test_what_the_file_declares_comes_first() -> None:
    dark = np.rint(gray() / 255.0 * 900).astype(np.uint16)  # by itself it would be taken for 10 bits
    shown = np.rint(dark / 4095.0 * 255).astype(np.uint8)
    near(saved(Image.fromarray(dark), tiffinfo={281: 4095}), shown)
    near(saved(Image.fromarray(dark), tiffinfo={281: 4000}), shown)
    near(png(dark[..., None], 0, b"sBIT\x0c"), shown)
    near(png(np.repeat(dark[..., None], 3, 2), 2, b"sBIT\x0c\x0c\x0c"), shown)
    # A declaration that the values contradict does not count.
    bright = gray().astype(np.uint16) * 257
    near(saved(Image.fromarray(bright), tiffinfo={281: 100}), gray())
    near(png(bright[..., None], 0, b"sBIT\x0c"), gray())


def test_unsigned_32_bits_and_white_is_zero() -> None:
    values = (gray().astype(np.uint64) << 24).astype(np.uint32)
    near(patched(saved(Image.fromarray(values.view(np.int32))), 339, 1), gray(), 2)
    inverted = 65535 - gray().astype(np.uint16) * 257
    near(patched(saved(Image.fromarray(inverted)), 262, 0), gray())


def test_one_transparent_value_of_16_bits() -> None:
    values = gray().astype(np.uint16) * 257
    pixels = decode(png(values[..., None], 0, b"tRNS" + struct.pack(">H", int(values[9, 9]))))
    assert (pixels[9, 9] == 255).all() and (
        pixels[values != values[9, 9]][:, 0] == gray()[values != values[9, 9]]
    ).all()


@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12), st.booleans(), st.floats(0, 1e6))
def test_every_range_holds_its_values(a: float, b: float, whole: bool, declared: float) -> None:
    low, high = sorted((round(a), round(b)) if whole else (a, b))
    shown = range_of(low, high, whole, declared)
    assert shown[0] < shown[1] or low == high
    found = to_8_bit(np.array([low, high]), shown)
    assert found[0] <= found[1]


def test_ranges_are_steps_of_two_bits() -> None:
    assert RANGES[:5] == (255, 1023, 4095, 16383, 65535) and RANGES[-1] == 2**32 - 1
    assert decode_image(saved(Image.fromarray(gray().astype(np.uint16) * 16))).value_range == (0, 4095)
    assert decode_image(saved(Image.fromarray(gray()))).value_range is None


# What the checks say


def found(folder: Path, name: str) -> list[Finding]:
    paths = sorted(p.name for p in folder.iterdir())
    table = pd.DataFrame({"path": paths, "label": ["a", "b"] * (len(paths) // 2) + ["a"] * (len(paths) % 2)})
    table["group"], table["split"] = table["path"], "train"
    photos = ImageDataset(table, folder, ("a", "b"), ("a", "b"), ("label",), "class_folders", "")
    return [finding for finding in run_checks(photos)[0].findings if finding.check == name]


def test_images_of_few_levels_are_a_finding(tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / f"{i}.tif").write_bytes(
            saved(Image.fromarray((gray(i) // 20).astype(np.uint16)), tiffinfo={281: 65535})
        )
    (finding,) = found(tmp_path, "few-levels")
    assert finding.severity == "warning" and "6 of 6 images of more than 8 bits" in finding.message
    assert "nearly black" in finding.message and "0 to 65,535" in finding.message and finding.fix
    assert not found(tmp_path, "value-range")


def test_usual_images_and_drawings_are_distinguished(tmp_path: Path) -> None:
    for i in range(6):
        Image.fromarray(gray(i)).save(tmp_path / f"{i}.png")
    assert not found(tmp_path, "few-levels")
    for i in range(6):
        Image.fromarray(gray(i)).convert("1").save(tmp_path / f"{i}.png")
    (finding,) = found(tmp_path, "few-levels")
    assert finding.severity == "info"
    for i in range(6):  # label maps: values of 0 to 12 in 8 bits
        Image.fromarray(gray(i) // 20).save(tmp_path / f"{i}.png")
    (finding,) = found(tmp_path, "few-levels")
    assert finding.severity == "warning" and "nearly black" in finding.message


def test_different_ranges_in_one_set_are_a_finding(tmp_path: Path) -> None:
    for i in range(6):
        Image.fromarray(gray(i).astype(np.uint16) * 16).save(tmp_path / f"{i}.tif")
    assert not found(tmp_path, "value-range") and not found(tmp_path, "few-levels")
    Image.fromarray(gray(9).astype(np.uint16) * 3).save(tmp_path / "dark.tif")
    (finding,) = found(tmp_path, "value-range")
    assert finding.severity == "warning" and "dark.tif" in finding.message
    assert "0 to 4,095 in 6 images" in finding.message and "0 to 1,023 in 1 image" in finding.message
