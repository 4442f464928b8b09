"""Random headers of every format: whatever they ask for, decoding ends soon, in pixels or in one line.

UNFREEZE_FUZZ: cases for each format (2,000 in `make soak`, so 16,000 files in all).
"""

from __future__ import annotations

import os
import resource
import struct
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import structures as made
from fuzzing import fuzzed, ours
from hostile import encoded
from photosets import draw
from unfreeze.data.decode import decode, decode_sized

SECONDS, BYTES = 5.0, 1_200_000_000
"""What one file of at most 32 MB may take."""

EXTREME = st.sampled_from(
    [0, 1, 2, 3, 7, 8, 15, 16, 17, 255, 256, 4096, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
)
SIDE = st.one_of(st.integers(1, 64), st.integers(1, 7000), EXTREME)


def costs_little(data: bytes) -> None:
    """Decodes the file whole and small, as `serve` and the first look do."""
    assert len(data) <= 32 << 20
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    limit = 50_000_000 if "UNFREEZE_FUZZ" in os.environ else 4_000_000  # large images take their time, as they may
    pixels = ours(lambda: decode(data, max_pixels=limit, path="a"))
    ours(lambda: decode_sized(data, 128, limit, "a"))
    spent = time.process_time() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert spent < 2 * SECONDS and grown < BYTES, (spent, grown)
    assert pixels is None or (pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size <= 150_000_000)


TAGS = st.sampled_from(
    [*(254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 281, 284, 305, 317, 320, 322, 323, 324, 325, 330),
     *(338, 339, 347, 512, 529, 530, 531, 532, 700, 34665, 34675, 50706)]
)  # fmt: skip
TYPES = st.sampled_from([*range(1, 14), 16, 99])
USUAL = {256: 64, 257: 48, 258: 8, 259: 1, 262: 1, 277: 1, 278: 48, 273: 8, 279: 3072}


@st.composite
def tiffs(cases: st.DrawFn) -> bytes:
    body = cases(st.sampled_from([bytes(4096), zlib.compress(bytes(1 << 20)), b"\xff" * 4096, bytes(range(256)) * 16]))
    tags: dict[int, made.Tag] = {}
    for tag, value in USUAL.items():
        if cases(st.integers(0, 9)):
            tags[tag] = (tag, 4, 1, cases(SIDE) if tag in (256, 257, 278) and cases(st.booleans()) else value)
    if cases(st.booleans()):
        tags[259] = (259, 3, 1, cases(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000, 50001])))
    if cases(st.booleans()):
        for tag in (322, 323):
            tags[tag] = (tag, 4, 1, cases(SIDE))
        count = cases(st.one_of(st.integers(0, 40), st.just(50_000)))
        tags[324], tags[325] = (324, 4, count, bytes(4 * count)), (325, 4, count, struct.pack("<I", 64) * count)
    for _ in range(cases(st.integers(0, 6))):
        tag, count = cases(TAGS), cases(st.one_of(st.integers(0, 9), EXTREME))
        value = cases(st.one_of(EXTREME, st.just(-1), st.binary(max_size=40), st.just(b"\x08\0\0\0" * 30_000)))
        tags[tag] = (tag, cases(TYPES), count, value)
    return made.tiff(list(tags.values()), body, cases(st.sampled_from("<>")))


@st.composite
def pngs(cases: st.DrawFn) -> bytes:
    width, height = cases(SIDE), cases(SIDE)
    depth, color = cases(st.sampled_from([1, 2, 4, 8, 16])), cases(st.sampled_from([0, 2, 3, 4, 6]))
    names = st.sampled_from(
        [b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"sBIT", b"tRNS", b"PLTE", b"eXIf", b"acTL", b"fcTL", b"abCd"]
    )
    bomb = b"a\0\0" + zlib.compress(bytes(1 << 21))
    bodies = st.one_of(
        st.binary(max_size=40), st.just(bomb), st.just(made.overlapping(900, 4000)), st.just(bytes(70_000))
    )
    middle = b"".join(
        made.chunk(cases(names), cases(bodies)) * cases(st.sampled_from([1, 1, 2, 90]))
        for _ in range(cases(st.integers(0, 4)))
    )[: 8 << 20]
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, cases(st.integers(0, 1)))
    pixels = zlib.compress(bytes(cases(st.sampled_from([0, 99, 200_000, 4_000_000]))))
    return (
        b"\x89PNG\r\n\x1a\n"
        + made.chunk(b"IHDR", head)
        + middle
        + made.chunk(b"IDAT", pixels)
        + made.chunk(b"IEND", b"")
    )


@st.composite
def jpegs(cases: st.DrawFn) -> bytes:
    kinds = st.one_of(
        st.sampled_from([0xE0, 0xE1, 0xE2, 0xEE, 0xFE, 0xDB, 0xC4, 0xDD, 0xC0, 0xC2, 0xC8, 0xD0, 0xF0]),
        st.integers(0, 255),
    )
    exif = b"Exif\0\0" + made.overlapping(900, 40_000)
    bodies = st.one_of(
        st.binary(max_size=60), st.just(exif[:65_000]), st.just(b"MPF\0" + made.overlapping(900, 40_000)[:60_000])
    )
    middle = b"".join(
        made.segment(cases(kinds), cases(bodies)) * cases(st.sampled_from([1, 1, 3, 40]))
        + bytes(cases(st.sampled_from([0, 0, 9, 70_000])))
        for _ in range(cases(st.integers(0, 4)))
    )[: 8 << 20]
    data = bytearray(made.jpeg_with(middle))
    if (at := data.find(b"\xff\xc0")) > 0 and cases(st.booleans()):
        data[at + 5 : at + 9] = struct.pack(">HH", cases(SIDE) & 0xFFFF, cases(SIDE) & 0xFFFF)
    return bytes(data)


@st.composite
def webps(cases: st.DrawFn) -> bytes:
    real = encoded(draw(0, 0, 0), "WEBP", lossless=cases(st.booleans()))
    inner = (real[12:16], real[20:])
    wide, high = (cases(SIDE) - 1) & 0xFFFFFF, (cases(SIDE) - 1) & 0xFFFFFF
    extended = bytes((cases(st.integers(0, 255)), 0, 0, 0)) + struct.pack("<I", wide)[:3] + struct.pack("<I", high)[:3]
    frame = bytes(6) + struct.pack("<I", wide)[:3] + struct.pack("<I", high)[:3] + bytes(4) + real[12:]
    choice = st.sampled_from(
        [inner, (b"VP8X", extended), (b"ANIM", bytes(6)), (b"ANMF", frame), (b"ICCP", bytes(99)), (b"EXIF", b"II*\0")]
    )
    chunks = [cases(choice) for _ in range(cases(st.integers(1, 6)))] * cases(st.sampled_from([1, 1, 1, 2000]))
    data = bytearray(made.webp(*chunks))
    if cases(st.booleans()):
        at = cases(st.integers(12, min(len(data) - 1, 60)))
        data[at] = cases(st.integers(0, 255))
    return bytes(data)


@st.composite
def boxes(cases: st.DrawFn, brand: bytes = b"avif") -> bytes:
    """A real AVIF whose box sizes and counts are changed, or boxes made up."""
    if cases(st.booleans()):
        data = bytearray(encoded(draw(0, 0, 0), "AVIF", speed=10))
        for _ in range(cases(st.integers(1, 5))):
            at = cases(st.integers(0, min(len(data) - 4, 400)))
            data[at : at + 4] = (
                struct.pack(">I", cases(EXTREME)) if cases(st.booleans()) else bytes(data[at : at + 3]) + b"\xff"
            )
        return bytes(data)
    names = st.sampled_from(
        [
            b"iinf",
            b"iloc",
            b"ipma",
            b"iref",
            b"ispe",
            b"iprp",
            b"ipco",
            b"pitm",
            b"moov",
            b"stsz",
            b"free",
            b"meta",
            b"idat",
        ]
    )
    bodies = st.one_of(
        st.binary(max_size=60), st.just(b"\xff" * 60), EXTREME.map(lambda n: struct.pack(">III", n, n, n))
    )
    inner = [
        made.box(cases(names), cases(bodies), cases(st.booleans())) * cases(st.sampled_from([1, 1, 50, 9000]))
        for _ in range(cases(st.integers(0, 5)))
    ]
    return made.boxed(brand, *inner)[: 8 << 20]


@st.composite
def gifs(cases: st.DrawFn) -> bytes:
    blocks = st.sampled_from(
        [
            b"\x21\xfe\x01a\0",
            b"\x21\xff\x0bXMP DataXMP" + b"\x05abcde" * 9 + b"\0",
            b"\x21\xf9\x04\0\0\0\0\0",
            b"\0",
            b"\x3b",
            b"\x21",
        ]
    )
    middle = b"".join(cases(blocks) * cases(st.sampled_from([1, 1, 5, 9000])) for _ in range(cases(st.integers(0, 4))))
    data = bytearray(made.gif_with(middle, cases(SIDE) & 0xFFFF, cases(SIDE) & 0xFFFF))
    at = data.rfind(b",")
    if at > 0 and cases(st.booleans()):
        data[at + 1 : at + 9] = struct.pack("<4H", *(cases(SIDE) & 0xFFFF for _ in range(4)))
    return bytes(data)


@st.composite
def netpbms(cases: st.DrawFn) -> bytes:
    kind = cases(st.sampled_from([b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7", b"Pf", b"PF", b"Py"]))
    space = st.sampled_from([b" ", b"\n", b"\t", b"#\n", b" # a comment\n", b"#" * 90, b""])
    fields = [
        cases(st.one_of(SIDE.map(lambda n: b"%d" % n), st.sampled_from([b"-1", b"1e9", b"nan", b"9" * 30])))
        for _ in range(3)
    ]
    head = kind + b"".join(cases(space) + b" " + field for field in fields) + cases(space)
    unit = cases(st.sampled_from([b"1 ", b"255\n", b"#\n", b"\xff\0", b"0", b"9" * 40 + b" ", b"x"]))
    return head + unit * cases(st.sampled_from([0, 12, 5000, 400_000]))


@st.composite
def bitmaps(cases: st.DrawFn) -> bytes:
    width, height = cases(SIDE), cases(SIDE)
    signed = lambda n: n - 2**32 if n >= 2**31 else n  # noqa: E731
    codes = cases(st.sampled_from([b"\x01\0", b"\0\0", b"\0\1", b"\0\2\xff\xff", b"\0\xff" + bytes(256), b"\xff\x07"]))
    body = (codes * cases(st.sampled_from([1, 900, 200_000])))[: 8 << 20]
    return made.bmp(signed(width), signed(height), cases(st.integers(0, 6)), body)


FORMATS = {
    "TIFF": tiffs(),
    "PNG": pngs(),
    "JPEG": jpegs(),
    "WebP": webps(),
    "AVIF": boxes(),
    "GIF": gifs(),
    "PPM": netpbms(),
    "BMP": bitmaps(),
}


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_a_random_header_costs_little(form: str) -> None:
    @fuzzed
    @given(FORMATS[form])
    def run(data: bytes) -> None:
        costs_little(data)

    run()
