"""ICC profiles for tests, made from Little CMS's sRGB or written by hand, and what a color-managed viewer shows."""

from __future__ import annotations

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms


def scene(width: int = 48, height: int = 32) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((np.stack([x, y * x, (np.sin(9 * x + 4 * y) + 1) / 2], 2) * 255).astype(np.uint8))


def by_cms(image: Image.Image, profile: bytes) -> NDArray[np.uint8]:
    """What a color-managed viewer shows."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return np.asarray(ImageCms.profileToProfile(image, opened, ImageCms.createProfile("sRGB"), outputMode="RGB"))


def far(a: object, b: object) -> float:
    return float(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).mean())


def srgb() -> bytes:
    """Little CMS's own sRGB profile."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped() -> bytes:
    """An sRGB profile whose red and blue primaries are exchanged; its name still says sRGB."""
    data = bytearray(srgb())
    red, blue = _tag(data, b"rXYZ"), _tag(data, b"bXYZ")
    data[red + 4 : red + 12], data[blue + 4 : blue + 12] = data[blue + 4 : blue + 12], data[red + 4 : red + 12]
    return bytes(data)


def wide() -> bytes:
    """Display P3, the profile of phones: sRGB's curve and other primaries (D50 adapted)."""
    data = bytearray(srgb())
    primaries = {
        b"rXYZ": (0.51512, 0.24119, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    for name, values in primaries.items():
        at = int.from_bytes(data[_tag(data, name) + 4 : _tag(data, name) + 8], "big")
        data[at + 8 : at + 20] = b"".join(struct.pack(">i", round(v * 65536)) for v in values)
    return bytes(data)


def gray(gamma: float) -> bytes:
    """A gray profile of one gamma."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": _white(), b"kTRC": curve})


def cmyk() -> bytes:
    """A printer profile whose table gives Lab for the 16 corners of CMYK, between them linearly: C is pure red here."""
    corners = b""
    for corner in range(16):
        cyan, black = corner >> 3 & 1, corner & 1
        lightness, a, b = (0, 128, 128) if black else (138, 208, 195) if cyan else (255, 128, 128)
        corners += bytes((lightness, a, b))
    ramp = bytes(range(256))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + ramp * 4 + corners + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"wtpt": _white(), b"A2B0": table})


def _white() -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)  # D50


def _tag(data: bytearray, name: bytes) -> int:
    """Where a tag's entry (name, offset, size) lies."""
    count = int.from_bytes(data[128:132], "big")
    return next(132 + 12 * i for i in range(count) if data[132 + 12 * i : 136 + 12 * i] == name)


def _profile(kind: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78), **tags}
    place, entries, body = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        entries += name + struct.pack(">II", place + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", 0, b"lcms", 0x02400000, kind, space, pcs) + bytes(12) + b"acsp"
    head += bytes(28) + struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    whole = head[:128] + struct.pack(">I", len(tags)) + entries + body
    return struct.pack(">I", len(whole)) + whole[4:]
