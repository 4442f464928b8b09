"""What nobody should send and somebody will: names, photos and tables, and a small run to try them on."""

from __future__ import annotations

import csv
import functools
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from photosets import GROUP_REGEX, class_folders, draw
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import Run

SMALL = {
    "strategy": "probe",
    "source.group_regex": GROUP_REGEX,
    "image.size": 64,
    "engine": "openvino-f32",
    "folds.n_splits": 3,
    "probe.stages": "last:1",
    "probe.pool_size": 1,
    "probe.views": ["plain"],
    "probe.Cs": [1.0, 30.0],
}
"""The quickest run there is."""


def small_run(folder: Path) -> Run:
    """A finished run `colours` of 24 photos, alone in `folder`/runs."""
    from unfreeze.data.readers import read
    from unfreeze.training.crossval import cross_validate

    recipe = Recipe().replace(**SMALL)
    photos = class_folders(folder / "photos", groups=4)
    return cross_validate(read(str(photos), recipe.source), recipe, folder / "runs" / "colours")


# Photos


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image file's bytes."""
    to = io.BytesIO()
    image.save(to, kind, **options)
    return to.getvalue()


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, pixels: bytes, depth: int = 8, kind: int = 2, *chunks: bytes) -> bytes:
    """A PNG of this size in its header, whatever its compressed `pixels` hold. kind: 0 gray, 2 RGB."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def png_bomb() -> bytes:
    """A whole and true PNG of 30,000 x 30,000 pixels in about 100 kB."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 30_000 // 8)
    return png(30_000, 30_000, b"".join([*(packer.compress(row * 3000) for _ in range(10)), packer.flush()]), 1, 0)


def jpeg_with(segments: list[tuple[int, bytes]], image: Image.Image) -> bytes:
    """A JPEG with further segments of metadata: marker (0xE1 for APP1) and body."""
    whole = encoded(image, "JPEG", quality=90)
    return (
        whole[:2]
        + b"".join(bytes((0xFF, kind)) + struct.pack(">H", len(body) + 2) + body for kind, body in segments)
        + whole[2:]
    )


def many_scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose last scan comes `count` times again."""
    data = encoded(Image.new("RGB", (side, side), (9, 99, 9)), "JPEG", progressive=True)
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * count + data[-2:]


SAVED = {
    "jpg": "JPEG",
    "png": "PNG",
    "bmp": "BMP",
    "gif": "GIF",
    "tif": "TIFF",
    "webp": "WEBP",
    "ppm": "PPM",
    "tga": "TGA",
    "avif": "AVIF",
}


@functools.cache
def unreadable_photos() -> dict[str, bytes]:
    """File names and contents that no decoder should make a photo of."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8))
    found = {f"cut.{suffix}": encoded(noise, kind) for suffix, kind in SAVED.items()}
    found = {name: data[: len(data) * 6 // 10] for name, data in found.items()}
    little = zlib.compress(bytes(99))
    return {
        **found,
        "empty.jpg": b"",
        "text.jpg": b"<html>not found</html>",
        "zip.png": b"PK\x03\x04" + bytes(60),
        "bomb.png": png_bomb(),
        "wide.png": png(2**31 - 1, 1, little),
        "liar.png": png(4000, 4000, little),
        "text_bomb.png": png(4, 4, little, 8, 2, _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000)))),
        "liar.ppm": b"P6 40000 40000 255\n" + bytes(99),
        "liar2.ppm": b"P6 13000 13000 255\n" + bytes(99),
        "liar.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + bytes(20),
        "liar.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 154, 0, 0, 54, 40, 60000, -60000, 1, 24, 0, 0, 0, 0, 0, 0),
        "liar.tga": struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 65535, 65535, 24, 0) + bytes(40),
        "scans.jpg": many_scans(4000, 4000),
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch executed) (w) file\n%%EOF\n",
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch executed) (w) file\n%%EOF\n",
        "script.png": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    }


def _with_profile(data: bytes, profile: bytes) -> bytes:
    """A PNG with a profile chunk behind its header."""
    return data[:33] + _chunk(b"iCCP", b"a\0\0" + zlib.compress(profile)) + data[33:]


def odd_photos(colour: int) -> dict[str, bytes]:
    """File names and contents that are photos of a class, however odd."""
    plain = draw(colour, 90, 0)
    frames = [plain.rotate(turn) for turn in (90, 180, 270)]
    deep = Image.fromarray((np.asarray(plain.convert("L"), np.uint16) << 8) | 7)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(500_000)
    return {
        "one_pixel.png": encoded(plain.resize((1, 1)), "PNG"),
        "thread.png": encoded(plain.resize((1, 900)), "PNG"),
        "ribbon.jpg": encoded(plain.resize((2000, 2)), "JPEG"),
        "cmyk.jpg": encoded(plain.convert("CMYK"), "JPEG"),
        "deep.png": encoded(deep, "PNG"),
        "deep.tif": encoded(deep, "TIFF"),
        "palette.png": encoded(plain.quantize(32), "PNG", transparency=3),
        "alpha.webp": encoded(plain.convert("RGBA"), "WEBP", lossless=True),
        "animated.gif": encoded(plain, "GIF", save_all=True, append_images=frames * 50),
        "animated.webp": encoded(plain, "WEBP", save_all=True, append_images=frames),
        "progressive.jpg": encoded(plain, "JPEG", progressive=True),
        "exif.jpg": jpeg_with([(0xE1, b"Exif\0\0II*\0" + bytes(65_000))] * 60, plain),
        "profile_bomb.png": _with_profile(encoded(plain, "PNG"), bytes(80_000_000)),
        "profile.jpg": encoded(plain, "JPEG", icc_profile=profile),
        "comments.jpg": jpeg_with([(0xFE, b"x" * 65_000)] * 100, plain),
        "wrong_name.jpg": encoded(plain, "PNG"),
    }


# Names

NAMES = (
    "line\nbreak.jpg",
    "return\rand\ttab.jpg",
    "\"double\" 'single' `back`.jpg",
    "-rf.jpg",
    "--force.jpg",
    "..jpg.jpg",
    "...dots.jpg",
    "con.jpg",
    "NUL.png.jpg",
    "aux .jpg",
    " leading.jpg",
    "trailing .jpg",
    "right\u202egpj.exe.jpg",
    "zero\u200bwidth.jpg",
    "x" * 251 + ".jpg",
    "가" * 83 + ".jpg",
    "$(touch executed).jpg",
    ";touch executed;.jpg",
    "%s%n%d{0}{{7*7}}.jpg",
    "=1+1.jpg",
    "+cmd.jpg",
    "@SUM(A1).jpg",
    "a,b;c|d.jpg",
    "a\\b.jpg",
    "\x1b[31mred\x07.jpg",
    "\u2028line.jpg",
    "[red]markup[bold].jpg",
    "<script>window.hit=1<\u2215script>.jpg",
    '"><img src=x onerror=window.hit=1>.jpg',
    "'onmouseover='window.hit=1.jpg",
    "javascript:window.hit=1.jpg",
    "&lt;&amp;&#0;.jpg",
    "?a=b#c.jpg",
    "%2e%2e%2f.jpg",
)
"""Names of photos, each of at most 255 bytes; the folder that holds them is named by the class."""

CLASSES = ("<script>window.hit=1<\u2215script>", '"><img src=x onerror=window.hit=1>', "=cmd|' C'!A0 {{7*7}}\n-x")
"""Names of three classes."""


def hostile_photos(root: Path, groups: int = 6) -> Path:
    """Class folders of CLASSES: good photos, photos of NAMES, odd and unreadable ones, links and pipes."""
    class_folders(root, groups, 2, CLASSES)
    for i, name in enumerate(NAMES):
        draw(i % 3, 30 + i, 0).save(root / CLASSES[i % 3] / name, "JPEG", quality=90)
    for colour, label in enumerate(CLASSES):
        for name, data in odd_photos(colour).items():
            (root / label / name).write_bytes(data)
    folder = root / CLASSES[0]
    for name, data in unreadable_photos().items():
        (folder / f"bad_{name}").write_bytes(data)
    (folder / os.fsdecode(b"\xff\xfe.jpg")).write_bytes(encoded(draw(0, 99, 0), "JPEG"))
    (folder / "loop").symlink_to(folder)
    (folder / "itself.jpg").symlink_to(folder / "itself.jpg")
    (folder / "up").symlink_to(root.parent)
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "passwd.jpg").symlink_to("/etc/passwd")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    return root


# Words that pages show

SCRIPTS = (
    "<script>window.hit=1</script>",
    '"><img src=x onerror=window.hit=1> {{7*7}}${7*7}',
    "</title></style></svg></textarea></script><svg onload=window.hit=1>'onfocus='window.hit=1",
)
"""Classes; each would set `window.hit` in a page that does not escape it."""


def hostile_table(root: Path, groups: int = 8) -> Path:
    """`photos.csv` of two photos a group: classes of SCRIPTS, groups and file names of their kind."""
    root.mkdir(parents=True)
    short = [name for name in NAMES if len(os.fsencode(name)) < 200 and not name.startswith(".")]
    short.sort(key=lambda name: "window" not in name)
    rows = [("file", "label", "group")]
    for colour, label in enumerate(SCRIPTS):
        for group in range(groups):
            name = short[(colour * groups + group) % len(short)].strip()
            for photo in range(2):
                file = f"{colour}{group}{photo}{name}"
                draw(colour, group, photo).save(root / file, "JPEG", quality=90)
                rows.append((file, label, f"javascript:window.hit=1//{colour}{group}<img src=x onerror=window.hit=1>"))
    with (root / "photos.csv").open("w", newline="", encoding="utf-8") as file_:
        csv.writer(file_, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    return root / "photos.csv"
