"""Small files that would cost a decoder minutes or gigabytes are refused at once; what cameras write is not."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import structures as made
from hostile import encoded
from photosets import draw
from spent import costs_of_decoding, in_a_process_of_its_own
from unfreeze.core.errors import PhotoError, RecipeError
from unfreeze.core.recipe import Recipe
from unfreeze.data import image_structure
from unfreeze.data.decode import decode, image_size
from unfreeze.data.image_formats import format_of
from unfreeze.data.image_structure import checked

PROFILE = made.chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 20)))
HOSTILE = {
    "comments.ppm": (b"P3\n64 64\n255\n" + b"#\n" * 200_000 + b"1 " * 12_288, "comments"),
    "header.ppm": (b"P6\n#" + b"x" * 2_000_000 + b"\n8 8\n255\n" + bytes(192), "header"),
    "chunks.png": (made.png_with(made.chunk(b"vpAg", b"") * 250_000), "chunks"),
    "comments.jpg": (made.jpeg_with(b"\xff\xfe\x00\x02" * 50_000), "segments"),
    "padding.jpg": (made.jpeg_with(b"\xff" * 100_000), "segments"),
    "junk.jpg": (made.jpeg_with(made.segment(0xFE, b"") + bytes(100_000)), "between its segments"),
    "comments.gif": (made.gif_with(b"\x21\xfe\x01a\x00" * 20_000), "blocks"),
    "comment.gif": (made.gif_with(b"\x21\xfe" + b"\x01a" * 30_000 + b"\0"), "blocks"),
    "tile.tif": (made.tile(16, 16, 46336, 46336), "tiles of 46336 x 46336"),
    "tile_rgb.tif": (made.tile(16, 16, 8192, 4096), "tiles of 8192 x 4096"),
    "offsets.tif": (made.strips(8, 8, 500_000), "500,000 strips or tiles, 8 expected"),
    "strips.tif": (made.strips(8, 300_000, 300_000), "300,000 strips or tiles"),
    "overlap.tif": (made.strips(64, 2000, 2000, 8, 1, 1 << 20), "overlap"),
    "tags.tif": (
        made.tiff([(256, 4, 1, 8), (257, 4, 1, 8), *[(700 + i, 7, 60_000, -1) for i in range(2000)]], bytes(60_000)),
        "tags",
    ),
    "numbers.tif": (
        made.tiff([(256, 4, 1, 8), (257, 4, 1, 8), (339, 3, 3_000_000, -1)], bytes(6_000_000)),
        "3,000,000 numbers",
    ),
    "rle.bmp": (made.bmp(49_000_000, 1, 1, b"\0\0\0\1"), "run-length"),
    "rle4.bmp": (made.bmp(5000, 5000, 2, b"\xff\0" * 100), "run-length"),
    "items.avif": (
        made.boxed(b"avif", made.box(b"iinf", struct.pack(">H", 60_000) + bytes(90), full=True)),
        "60,000 entries",
    ),
    "extents.avif": (
        made.boxed(b"avif", made.box(b"iloc", struct.pack(">HH", 0, 1) + struct.pack(">HHH", 1, 0, 65535), full=True)),
        "65,535 entries",
    ),
    "large.avif": (
        made.boxed(b"avif", made.box(b"ispe", struct.pack(">II", 60_000, 60_000), full=True)),
        "60000 x 60000",
    ),
    "boxes.avif": (made.boxed(b"avif", made.box(b"free", b"") * 30_000), "boxes"),
    "samples.avif": (
        made.boxed(b"avis") + made.box(b"moov", made.box(b"stsz", struct.pack(">II", 1, 2**31), full=True)),
        "entries",
    ),
    "large.webp": (made.webp((b"VP8X", bytes(4) + b"\xfe\x3f\0\xfe\x3f\0")), "16383 x 16383"),
    "lossless.webp": (made.webp((b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(9))), "16384 x 16384"),
    "chunks.webp": (made.webp((b"VP8X", bytes(10)), *[(b"abcd", b"")] * 120_000), "chunks"),
    "large.gif": (made.gif_with(b"", 60_000, 60_000), "60000 x 60000"),
    "large.ppm": (b"P6 40000 40000 255\n" + bytes(99), "40000 x 40000"),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_file_is_refused_at_once(name: str) -> None:
    data, said = HOSTILE[name]
    began = time.process_time()
    with pytest.raises(PhotoError) as told:
        decode(data, path=name)
    assert said in told.value.reason, told.value.reason
    assert time.process_time() - began < 1.5
    if name != "comments.ppm":  # its header is sound
        with pytest.raises(PhotoError):
            image_size(data)


@pytest.mark.parametrize(
    "data",
    [
        made.png_with(PROFILE * 300),  # each would be unpacked
        made.jpeg_with(made.exif_segments(made.overlapping(3000, 300_000))),  # 900 MB, read once
        b"P3\n700 700\n255\n" + b"1 " * (3 * 490_000),
        b"P6\n700 700\n100\n" + bytes(3 * 490_000),
    ],
    ids=["profiles.png", "exif.jpg", "text.ppm", "maxval.ppm"],
)
def test_what_was_slow_is_read_fast(data: bytes) -> None:
    began = time.process_time()
    assert decode(data).shape[2] == 3
    assert time.process_time() - began < 1.5


def test_the_cost_of_everything_hostile() -> None:
    """In a process of its own: at most 2 s and 300 MB for all of them."""
    seconds, grown = in_a_process_of_its_own(costs_of_decoding, [data for data, _ in HOSTILE.values()])
    assert seconds < 2 and grown < 300e6, (seconds, grown)


# What is not refused


def test_usual_files_pass_untouched() -> None:
    image = draw(0, 0, 0)
    for kind, options in (
        *((kind, {}) for kind in ("PNG", "GIF", "WEBP", "AVIF", "BMP", "PPM", "TIFF")),
        ("JPEG", {"progressive": True}),
        *(("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "jpeg"})),
    ):
        data = encoded(image, kind, **options)
        assert checked(data, format_of(data), 178_000_000) is data


def test_tiles_as_programs_write_them() -> None:
    for wide in (16, 256, 512, 1024):  # a small image in one tile
        assert decode(made.tile(10, 10, wide, wide)).shape == (10, 10, 3)
    with pytest.raises(PhotoError, match="tiles"):
        decode(made.tile(10, 10, 5000, 5000))


def test_one_strip_a_row_and_strips_without_rows() -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 3000), (9, 99, 200)).save(file, "TIFF", tiffinfo={278: 1}, compression="tiff_lzw")
    assert decode(file.getvalue())[1500, 30].tolist() == [9, 99, 200]
    assert decode(made.strips(64, 2000, 1, 1, 2**32 - 1, 64 * 2000) + bytes(64 * 2000)).shape == (2000, 64, 3)


def test_many_small_idat_chunks() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), np.uint8)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in noise))
    pieces = b"".join(made.chunk(b"IDAT", packed[i : i + 16]) for i in range(0, len(packed), 16))
    head = made.chunk(b"IHDR", struct.pack(">IIBBBBB", 256, 256, 8, 0, 0, 0, 0))
    assert (decode(b"\x89PNG\r\n\x1a\n" + head + pieces + made.chunk(b"IEND", b""))[..., 0] == noise).all()


def test_much_metadata() -> None:
    comments = made.segment(0xFE, b"x" * 60_000) * 200
    assert decode(made.jpeg_with(comments)).shape == (16, 16, 3)
    assert decode(made.gif_with(b"\x21\xfe" + (b"\xff" + b"c" * 255) * 4000 + b"\0")).shape == (16, 16, 3)
    assert decode(made.png_with(made.chunk(b"tEXt", b"a\0" + b"x" * 900_000))).shape == (8, 8, 3)


def test_a_run_length_encoded_bmp() -> None:
    body = b"".join(b"\x20\x07\0\0" for _ in range(24)) + b"\0\1"
    assert decode(made.bmp(32, 24, 1, body)).shape == (24, 32, 3)


def test_orientation_survives_usual_exif_and_not_hostile_one() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[271] = 6, "a camera"
    plain = exif.tobytes().removeprefix(b"Exif\0\0")
    wide = encoded(Image.new("RGB", (32, 16)), "JPEG", exif=exif)
    assert decode(wide).shape == (32, 16, 3)
    assert decode(made.jpeg_with(made.segment(0xE1, b"Exif\0\0" + plain))).shape == (16, 16, 3)
    hostile = encoded(Image.new("RGB", (32, 16)), "PNG")
    at = hostile.index(b"IDAT") - 4
    hostile = hostile[:at] + made.chunk(b"eXIf", made.overlapping(3000, 300_000)) + hostile[at:]
    began = time.process_time()
    assert decode(hostile).shape == (16, 32, 3)
    assert time.process_time() - began < 1.5


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"P3\n2 2\n255\n1 2 3 4", "cut off"),
        (b"P3\n2 2\n255\n" + b"1 " * 11 + b"x", "not a number"),
        (b"P2\n2 2\n255\n-1 2 3 4 ", "not a number"),
        (b"P1\n4 2\n0101 012", "not a number"),
        (b"P5\n2 2\n255\n12", "cut off"),
        (b"P6\n2 2\n70000\n" + bytes(99), "header"),
        (b"P6\n0 2\n255\n" + bytes(99), "header"),
        (b"P6\n2", "header"),
    ],
)
def test_damaged_netpbm(data: bytes, said: str) -> None:
    with pytest.raises(PhotoError, match=f"damaged .*{said}"):
        decode(data)


def test_every_kind_of_netpbm() -> None:
    bits = np.array([[1, 0, 1, 1, 0, 0, 1, 0, 1], [0, 0, 0, 1, 1, 1, 0, 1, 0]], np.uint8)
    wanted = np.where(bits, 0, 255)
    packed = np.packbits(bits, 1).tobytes()
    for data in (
        b"P1\n# drawn\n9 2\n101100101\n000111010",
        b"P1 9 2 1 0 1 1 0 0 1 0 1 # half\n 0 0 0 1 1 1 0 1 0",
        b"P4\n9 2\n" + packed,
    ):
        assert (decode(data)[..., 0] == wanted).all()
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    text = b" ".join(b"%d" % v for v in values.ravel())
    for data in (b"P3 7 5 255\n" + text, b"P3\n7\t5\r\n255 " + text + b"\n", b"P6 7 5 255\n" + values.tobytes()):
        assert (decode(data) == values).all()
    floats = (values[..., 0] / 255).astype("<f4")
    assert (decode(b"Pf\n7 5\n-1.0\n" + floats[::-1].tobytes())[..., 0] == values[..., 0]).all()
    color = (values / 255).astype(">f4")
    assert (decode(b"PF\n7 5\n1.0\n" + color[::-1].tobytes()) == values).all()
    long = b"P2 900 900 255\n" + b" ".join([b"7"] * 810_000)  # more than a piece
    assert (decode(long) == 7).all()


def test_scans_inside_a_tiff() -> None:
    scans = encoded(Image.new("L", (64, 64)), "JPEG", progressive=True)
    many = scans[:-2] + scans[scans.rfind(b"\xff\xda") : -2] * 60 + scans[-2:]
    tags: list[made.Tag] = [
        *((256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 7), (262, 3, 1, 1), (277, 3, 1, 1)),
        *((273, 4, 1, -1), (278, 4, 1, 64), (279, 4, 1, len(many))),
    ]
    with pytest.raises(PhotoError, match="scans"):
        decode(made.tiff(tags, many))


def test_the_limit_of_pixels_has_an_upper_bound() -> None:
    with pytest.raises(RecipeError, match=r"image\.max_megapixels"):
        Recipe().replace(**{"image.max_megapixels": 200.0})


def test_limits_are_those_of_the_documents() -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text("utf-8")
    for limit in (
        *(image_structure.MAX_JPEG_SEGMENTS, image_structure.MAX_PNG_CHUNKS, image_structure.MAX_GIF_BLOCKS),
        *(image_structure.MAX_TIFF_PIECES, image_structure.MAX_BOX_ENTRIES, image_structure.MAX_WEBP_CHUNKS),
    ):
        assert f"{limit:,}" in page
