"""Embedded profiles: converted as Pillow's ImageCms converts them, on every way to pixels; damaged ones are ignored."""

from __future__ import annotations

import io
import struct
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import profiles
from hostile import png
from profiles import by_cms, far, scene
from unfreeze.data import srgb
from unfreeze.data.decode import decode, load_crop


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("profile", [profiles.swapped(), profiles.wide()], ids=["swapped", "P3"])
@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_a_profile_is_converted(kind: str, options: dict[str, object], profile: bytes) -> None:
    pixels = decode(saved(scene(), kind, icc_profile=profile, **options))
    assert (pixels == by_cms(scene(), profile)).all()
    assert far(pixels, scene()) > 3, "it changes something"


def test_lossy_formats_too() -> None:
    for kind, options in (("JPEG", {"quality": 98, "subsampling": 0}), ("AVIF", {"quality": 95})):
        data = saved(scene(), kind, icc_profile=profiles.swapped(), **options)
        with Image.open(io.BytesIO(data)) as image:
            assert far(decode(data), by_cms(image.convert("RGB"), profiles.swapped())) < 1


def test_a_jpeg_that_is_decoded_small_is_converted_alike() -> None:
    data = saved(scene(1600, 1200), "JPEG", quality=95, icc_profile=profiles.wide())
    with Image.open(io.BytesIO(data)) as image:
        whole = Image.fromarray(by_cms(image, profiles.wide()))
    assert far(load_crop(data, 64, 1.0), load_crop(saved(whole, "PNG"), 64, 1.0)) < 1.5


def test_srgb_profiles_leave_the_pixels_alone() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        assert (decode(saved(scene(), kind, icc_profile=profiles.srgb())) == decode(saved(scene(), kind))).all()


def test_gray_and_gray_of_16_bits() -> None:
    shown = scene().convert("L")
    profile = profiles.gray(1.4)
    wanted = by_cms(shown, profile)
    assert far(wanted, np.repeat(np.asarray(shown)[..., None], 3, 2)) > 10
    assert (decode(saved(shown, "PNG", icc_profile=profile)) == wanted).all()
    deep = Image.fromarray(np.asarray(shown).astype(np.uint16) * 257)
    assert (decode(saved(deep, "PNG", icc_profile=profile)) == wanted).all()
    assert far(decode(saved(shown, "JPEG", quality=100, icc_profile=profile)), wanted) < 2
    # A gray image may carry an RGB profile.
    wanted = by_cms(shown.convert("RGB"), profiles.wide())
    assert (decode(saved(shown, "PNG", icc_profile=profiles.wide())) == wanted).all()


def test_cmyk_by_its_profile() -> None:
    ink = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    for kind in ("TIFF", "JPEG"):
        options = {"quality": 100} if kind == "JPEG" else {}
        red, green, _ = decode(saved(ink, kind, icc_profile=profiles.cmyk(), **options))[4, 4].tolist()
        assert red > 200 and green < 80, "this profile's first ink is red"
        red, green, _ = decode(saved(ink, kind, **options))[4, 4].tolist()
        assert red < 60 and green > 200, "without a profile it is cyan"


def test_transparency_is_kept() -> None:
    image = scene().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    image.paste(scene().convert("RGBA"), (0, 0), Image.new("L", image.size, 0))
    assert (decode(saved(image, "PNG", icc_profile=profiles.swapped())) == 255).all()
    solid = scene().convert("RGBA")
    assert (decode(saved(solid, "PNG", icc_profile=profiles.swapped())) == by_cms(scene(), profiles.swapped())).all()


def test_palettes_are_converted() -> None:
    image = scene().quantize(32)
    pixels = decode(saved(image, "PNG", icc_profile=profiles.swapped()))
    assert (pixels == by_cms(image.convert("RGB"), profiles.swapped())).all()


def test_orientation_and_profile() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(scene(), "JPEG", quality=95, exif=exif, icc_profile=profiles.swapped())
    with Image.open(io.BytesIO(data)) as image:
        wanted = by_cms(image.transpose(Image.Transpose.ROTATE_270), profiles.swapped())
    assert far(decode(data), wanted) < 1.5


UNUSABLE = {
    "empty": b"",
    "text": b"no profile at all",
    "cut": profiles.swapped()[:300],
    "head only": profiles.swapped()[:132],
    "no signature": profiles.swapped()[:36] + b"xxxx" + profiles.swapped()[40:],
    "of CMYK": profiles.cmyk(),
    "of gray": profiles.gray(1.4),
    "a device link": profiles.swapped()[:12] + b"link" + profiles.swapped()[16:],
    "huge": profiles.swapped() + bytes(srgb.MAX_PROFILE_BYTES),
}


@pytest.mark.parametrize("name", sorted(UNUSABLE))
def test_profiles_that_cannot_be_used_are_ignored(name: str) -> None:
    for kind, options in (("JPEG", {"quality": 90}), ("WEBP", {"lossless": True})):
        data = saved(scene(), kind, **options)
        options = {**options, "icc_profile": UNUSABLE[name]}
        if kind == "JPEG" and len(UNUSABLE[name]) > 1 << 20:
            continue  # Pillow writes no such JPEG
        assert (decode(saved(scene(), kind, **options)) == decode(data)).all()


def test_transforms_are_kept_and_few() -> None:
    srgb._known.clear()
    data = saved(scene(), "PNG", icc_profile=profiles.swapped())
    for _ in range(3):
        decode(data)
    assert len(srgb._known) == 1
    for i in range(srgb._KEPT + 20):
        decode(saved(scene(4, 4), "PNG", icc_profile=profiles.swapped() + bytes(i)))
    assert len(srgb._known) == srgb._KEPT


def test_many_threads_convert_alike() -> None:
    data = saved(scene(640, 480), "PNG", icc_profile=profiles.swapped())
    wanted, found = decode(data), []
    threads = [threading.Thread(target=lambda: found.append((decode(data) == wanted).all())) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == [True] * 8


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_damaged_profiles_never_cost_the_photo(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from([profiles.swapped(), profiles.cmyk(), profiles.gray(2.2)])))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    mode = data.draw(st.sampled_from(["RGB", "L", "RGBA"]))
    pixels = decode(saved(scene(9, 7).convert(mode), "PNG", icc_profile=bytes(whole)))
    assert pixels.shape == (7, 9, 3)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@pytest.mark.parametrize("body", [b"a\0\0" + zlib.compress(b"x" * 99), b"a\0\0not deflate"])
def test_damaged_profile_chunks_of_a_png_are_ignored(body: bytes) -> None:
    raw = b"".join(b"\0" + np.asarray(scene())[y].tobytes() for y in range(32))
    data = png(48, 32, zlib.compress(raw), 8, 2, chunk(b"iCCP", body))
    assert (decode(data) == np.asarray(scene())).all()
