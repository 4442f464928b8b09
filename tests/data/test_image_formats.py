"""What a file is, by its name and by its content, and what is said of formats that cannot be decoded here."""

from __future__ import annotations

import io
import struct

import pytest
from PIL import Image

from unfreeze.core.errors import PhotoError
from unfreeze.data import image_formats
from unfreeze.data.decode import decode
from unfreeze.data.directory_walk import image_format
from unfreeze.data.image_formats import FORMATS, SUFFIXES, format_of, format_of_refusal, refusal, suffix_of


def encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 60)).save(file, kind, **options)
    return file.getvalue()


def boxed(*brands: bytes, rest: bytes = bytes(60)) -> bytes:
    """A file whose first box is `ftyp` of these brands, the first of them the major one."""
    body = brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I", len(body) + 8) + b"ftyp" + body + rest


def tiff(*entries: tuple[int, int, int], more: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory: (tag, type, value) each."""
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, kind, 1, v) for tag, kind, v in entries)
    return b"II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", 0) + more


UNDECODABLE = {
    "JPEG XL": [b"\xff\x0a" + bytes(40), b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40)],
    "JPEG 2000": [b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), b"\xff\x4f\xff\x51" + bytes(40)],
    "JPEG XR": [b"II\xbc\x01" + bytes(40)],
    "camera RAW": [
        tiff((256, 4, 160), (257, 4, 120), (50706, 1, 1)),  # DNG: a thumbnail comes first
        tiff((256, 4, 4000), (262, 3, 32803)),  # a color filter array, as NEF, ARW and PEF
        tiff((256, 4, 4000), (259, 3, 32767)),  # Sony's compression
        # Nikon: the first directory is a thumbnail, the sensor's data are in a directory below.
        tiff((256, 4, 160), (330, 4, 38), more=struct.pack("<HHHIII", 1, 262, 3, 1, 32803, 0)),
        b"II*\0\x10\0\0\0CR\x02\0" + bytes(40),
        boxed(b"crx ", b"isom"),
        b"IIRO\x08\0\0\0" + bytes(40),
        b"IIU\0\x18\0\0\0" + bytes(40),
        b"FUJIFILMCCD-RAW 0201" + bytes(40),
    ],
    "SVG": [
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- drawn -->\n<svg:svg width="9"/>',
    ],
    "Photoshop": [b"8BPS\0\x01" + bytes(40)],
    "OpenEXR": [b"\x76\x2f\x31\x01" + bytes(40)],
    "Radiance HDR": [b"#?RADIANCE\n" + bytes(40)],
    "DICOM": [bytes(128) + b"DICM" + bytes(40)],
    "PDF": [b"%PDF-1.4\n" + bytes(40)],
    "EPS": [b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(40)],
}
HEIC = [
    *(boxed(brand, b"mif1") for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")),
    boxed(b"mif1", b"mif1", b"heic"),
    boxed(b"msf1", b"hevc"),
    boxed(b"mif1", b"miaf"),
]


@pytest.mark.parametrize("form", sorted(UNDECODABLE))
def test_formats_that_cannot_be_decoded_are_named_with_a_remedy(form: str) -> None:
    for data in UNDECODABLE[form]:
        assert format_of(data) == form
        with pytest.raises(PhotoError) as told:
            decode(data, path="a.jpg")
        assert told.value.reason == refusal(form) and FORMATS[form].remedy in told.value.reason
        assert format_of_refusal(told.value.reason) == form
        assert len(told.value.reason.encode()) <= 120, "the cache keeps this many bytes of a reason"


def test_heic_without_its_extra_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_formats, "has_heic", lambda: False)
    for data in HEIC:
        assert format_of(data) == "HEIC"
        with pytest.raises(PhotoError, match=r"HEIC cannot be decoded here: pip install 'unfreeze\[heic\]'"):
            decode(data, path="IMG_1.jpg")


def test_avif_and_heic_share_their_boxes() -> None:
    assert format_of(encoded("AVIF")) == "AVIF"
    assert format_of(boxed(b"mif1", b"avif")) == "AVIF"
    assert format_of(boxed(b"mif1", b"miaf", rest=b"..meta..infe..av01.." + bytes(40))) == "AVIF"
    assert format_of(boxed(b"isom", b"mp42")) == ""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "AVIF"])
def test_every_decodable_format_is_recognized(kind: str) -> None:
    data = encoded(kind)
    assert format_of(data) == kind and not refusal(kind)
    assert decode(data).shape == (30, 40, 3)


def test_tga_has_no_signature_and_is_decoded() -> None:
    assert format_of(encoded("TGA")) == "" and decode(encoded("TGA")).shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<!DOCTYPE html><html>404</html>", "HTML page"),
        (b"<html><svg></svg></html>", "HTML page"),
        (b"PK\x03\x04" + bytes(60), "zip archive"),
        (boxed(b"isom", b"mp42"), "video"),
        (b"hello", "known format"),
    ],
)
def test_other_content_is_said(data: bytes, said: str) -> None:
    with pytest.raises(PhotoError, match=f"not an image in a known format.*{said}|{said}"):
        decode(data)


def test_ordinary_tiffs_are_no_camera_raw() -> None:
    for options in ({}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"save_all": True}):
        assert format_of(encoded("TIFF", **options)) == "TIFF"
    exif = Image.Exif()
    exif[0x0112], exif[271] = 6, "NIKON CORPORATION"
    assert format_of(encoded("TIFF", exif=exif)) == "TIFF"


def test_suffixes() -> None:
    assert SUFFIXES["heic"] == "HEIC" and SUFFIXES["dng"] == SUFFIXES["nef"] == "camera RAW"
    assert suffix_of("a/b.JPG") == "jpg" and suffix_of("a.b/c") == suffix_of("a/.jpg") == suffix_of("c.") == ""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"])
def test_images_by_content(kind: str) -> None:
    assert image_format(encoded(kind)) == kind


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"BM", b"BMW and other cars\n" * 9, b"P1 is a name\n" * 9, b"%PDF-1.4\n" + bytes(99), b"II*\0"[:3]),
        *(b"GIF", b"\0\0\1\0\1\0" + bytes(60), b"<html>" + bytes(99), b"\x28\0\0\0" + bytes(99), bytes(range(99))),
    ],
)
def test_other_files_are_no_images_by_content(data: bytes) -> None:
    assert image_format(data) == ""
