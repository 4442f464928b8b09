"""Registry of image formats, format detection by content, and recommendation for formats that cannot be decoded.

The content of a file determines its format. The suffix only determines whether a file in a folder counts as an image.
Formats that cannot be decoded (HEIC without its extra, JPEG XL, camera RAW, ...) count as images too, so that they are
reported instead of being skipped silently.
"""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass

from unfreeze.data.file_headers import is_camera_raw


@dataclass(frozen=True)
class ImageFormat:
    """An image format.

    Attributes:
        name: Display name.
        suffixes: File name suffixes, lower case and without the dot.
        readers: Names of the Pillow plugins that may open it; empty if the format cannot be decoded.
        remedy: Recommendation for a file that cannot be decoded.
    """

    name: str
    suffixes: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    remedy: str = "convert it to JPEG or PNG"


HEIC_REMEDY = "pip install 'unfreeze[heic]', or convert it to JPEG"
UNKNOWN = "not an image in a known format"

FORMATS: dict[str, ImageFormat] = {
    form.name: form
    for form in (
        ImageFormat("JPEG", ("jpg", "jpeg", "jpe", "jfif", "mpo"), ("JPEG",)),
        ImageFormat("PNG", ("png", "apng"), ("PNG",)),
        ImageFormat("BMP", ("bmp",), ("BMP",)),
        ImageFormat("DIB", ("dib",), ("DIB",)),
        ImageFormat("GIF", ("gif",), ("GIF",)),
        ImageFormat("TIFF", ("tif", "tiff"), ("TIFF",)),
        ImageFormat("WEBP", ("webp",), ("WEBP",)),
        ImageFormat("PPM", ("ppm", "pgm", "pbm", "pnm", "pfm"), ("PPM",)),
        ImageFormat("TGA", ("tga", "icb", "vda", "vst"), ("TGA",)),
        ImageFormat("AVIF", ("avif", "avifs"), ("AVIF",)),
        ImageFormat("HEIC", ("heic", "heif", "heics", "heifs", "hif"), ("HEIF",), HEIC_REMEDY),
        ImageFormat("JPEG XL", ("jxl",)),
        ImageFormat("JPEG 2000", ("jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "jpm")),
        ImageFormat("JPEG XR", ("jxr", "wdp", "hdp")),
        ImageFormat(
            "camera RAW",
            (
                *("dng", "cr2", "cr3", "crw", "nef", "nrw", "arw", "srf", "sr2", "orf", "rw2", "raf", "pef", "srw"),
                *("x3f", "3fr", "iiq", "erf", "mef", "kdc", "dcr", "rwl", "gpr"),
            ),
        ),
        ImageFormat("SVG", ("svg", "svgz"), (), "render it to PNG"),
        ImageFormat("Photoshop", ("psd", "psb"), (), "export it as PNG or TIFF"),
        ImageFormat("OpenEXR", ("exr",), (), "convert it to a float TIFF or to PNG"),
        # No suffix, because .hdr is also used for text headers of other files.
        ImageFormat("Radiance HDR", (), (), "convert it to a float TIFF or to PNG"),
        ImageFormat("DICOM", ("dcm", "dicom"), (), "convert it to a 16-bit TIFF or PNG"),
        ImageFormat("PDF", (), (), "render its pages to PNG"),
        ImageFormat("EPS", (), (), "render it to PNG"),
        ImageFormat("ICO"),
    )
}
"""Formats by name. Those without suffixes are only detected by content: a PDF in a folder is not an image."""

SUFFIXES = {suffix: form.name for form in FORMATS.values() for suffix in form.suffixes}
"""Format name by file name suffix (lower case, without the dot). Files with these suffixes count as images."""

DECODABLE_SUFFIXES = tuple(sorted(s for s, name in SUFFIXES.items() if FORMATS[name].readers and name != "HEIC"))
"""The suffixes that can be decoded without an optional dependency."""

HEAD_BYTES = 4096
"""Number of leading bytes that `format_of` needs, except to distinguish camera RAW from TIFF."""

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\0\0\0\x0cjP\x1a\x1a\r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"IIRO", "camera RAW"),
    (b"IIRS", "camera RAW"),
    (b"MMOR", "camera RAW"),
    (b"IIU\0", "camera RAW"),
    (b"FUJIFILMCCD-RAW", "camera RAW"),
    (b"FOVb", "camera RAW"),
    (b"8BPS", "Photoshop"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"%PDF", "PDF"),
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
)
# In the last two, the byte order contradicts the version number; Pillow reads such files.
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")
# Valid header sizes of a DIB (a BMP without its file header), which are its first four bytes.
_DIB = (12, 40, 52, 56, 64, 108, 124)
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_HEIF = {b"mif1", b"mif2", b"msf1", b"miaf"}
_AVIF = {b"avif", b"avis"}
_SVG = re.compile(rb"<(?:\w+:)?svg[\s>]")
_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s{0,99}(?:<!doctype html|<html|<head|<body)", re.IGNORECASE)


def suffix_of(name: str) -> str:
    """Return the suffix of a file name in lower case without the dot; empty if there is none or only a leading dot."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return suffix.lower() if dot and stem else ""


def format_of(head: bytes) -> str:
    """Detect the format of a file from its content.

    TGA has no signature and is not detected.

    Args:
        head: The first `HEAD_BYTES` bytes of the file or more. Camera RAW in a TIFF container is only distinguished
            from TIFF if its directories lie within `head`.

    Returns:
        A name in `FORMATS`; empty if unknown.
    """
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head.startswith(_TIFF):
        return "camera RAW" if head[8:11] == b"CR\x02" or is_camera_raw(head) else "TIFF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _boxed(head)
    if head[128:132] == b"DICM":
        return "DICOM"
    if re.match(rb"P[1-6fF][\s#]", head):
        return "PPM"
    if head[:4] == b"\0\0\1\0" and 0 < int.from_bytes(head[4:6], "little") < 64 and head[9:10] == b"\0":
        return "ICO"
    if len(head) >= 16 and int.from_bytes(head[:4], "little") in _DIB and _is_dib(head):
        return "DIB"
    text = head[:HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    return "SVG" if text.startswith(b"<") and not _PAGE.match(text) and _SVG.search(text) else ""


def _boxed(head: bytes) -> str:
    """Format of an ISO base media file, from the brands in its `ftyp` box (ISO/IEC 14496-12, 4.3)."""
    length = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[i : i + 4] for i in range(16, length - 3, 4))]
    if brands[0] == b"crx ":
        return "camera RAW"
    for brand in brands:
        if brand in _AVIF:
            return "AVIF"
        if brand in _HEIC:
            return "HEIC"
    # Without a codec-specific brand, the type of an image item identifies the codec.
    if _HEIF.intersection(brands):
        return "AVIF" if b"av01" in head[length : length + 65536] else "HEIC"
    return ""


def is_bitmap(head: bytes) -> bool:
    """Whether a valid bitmap header follows `BM`; text files may start with these two letters too."""
    return len(head) < 18 or int.from_bytes(head[14:18], "little") in (*_DIB, 16)


def _is_dib(head: bytes) -> bool:
    planes, bits = struct.unpack_from("<HH", head, 8 if head[0] == 12 else 12)
    return planes == 1 and bits in (1, 4, 8, 16, 24, 32)


@functools.cache
def has_heic() -> bool:
    """Whether pillow-heif, which decodes HEIC, is installed. The first call registers it with Pillow as format HEIF.

    Each image is decoded by a single thread, since images are already decoded in parallel. Thumbnails and depth maps
    are not read.
    """
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return True


def refusal(name: str) -> str:
    """Return the reason why a format cannot be decoded here; empty if it can.

    Args:
        name: A name in `FORMATS`.
    """
    form = FORMATS[name]
    if form.readers and (name != "HEIC" or has_heic()):
        return ""
    return f"{name} cannot be decoded here: {form.remedy}"


def format_of_refusal(reason: str) -> str:
    """Return the format named in a reason from `refusal`; empty for any other reason."""
    name, found, _ = reason.partition(" cannot be decoded here: ")
    return name if found and name in FORMATS else ""


def damaged(name: str, why: str) -> str:
    """Return the reason for a damaged file. HEIC is named, because such files are more often unusual than damaged.

    Args:
        name: Format of the file; empty if unknown.
        why: Details.
    """
    return f"damaged HEIC ({why})" if name == "HEIC" else f"damaged ({why})"


def unread_format(reason: str) -> str:
    """Return the format to report separately for an unreadable image.

    Args:
        reason: Reason from `refusal` or `damaged`.

    Returns:
        A name in `FORMATS`; empty for common formats.
    """
    return "HEIC" if reason.startswith("damaged HEIC") else format_of_refusal(reason)


def unknown(head: bytes) -> str:
    """Return the reason for content in an unknown format, with a hint for HTML pages, zip archives and videos."""
    if _PAGE.match(head):
        return f"{UNKNOWN}: it is an HTML page, as failed downloads leave"
    if head[:4] == b"PK\x03\x04":
        return f"{UNKNOWN}: it is a zip archive"
    if head[4:8] == b"ftyp":
        return f"{UNKNOWN}: it is a video"
    return UNKNOWN
