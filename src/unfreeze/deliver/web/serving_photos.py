"""What a photo from somewhere may cost, told from its head before a pixel of it is unpacked."""

from __future__ import annotations

import contextlib
import ctypes
import io
import re

from PIL import Image

from unfreeze.core.errors import PhotoError
from unfreeze.data.images import FORMATS

# Photos of more pixels are unpacked one at a time, apart from the others: 50 million take a gigabyte for a moment.
LARGE = 16_000_000
# Cameras and encoders write a dozen scans at most. Each is a pass over all pixels, and may be a few bytes of the file.
SCANS = 32
_JPEG, _SCAN, _END = b"\xff\xd8", 0xDA, 0xD9
# A marker inside a scan's data: 0xFF is followed there by 0, by a restart marker, or by padding.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def pixels_of(data: bytes) -> int:
    """Width times height as the file's head states them; 0 where it has none, which its decoder will say better.

    PhotoError for a JPEG of more than SCANS scans: a small file of that kind keeps a decoder busy for minutes.
    """
    if data.startswith(_JPEG) and data.count(b"\xff\xda") > SCANS and scans_of(data) > SCANS:
        raise PhotoError("photo", f"damaged (more than {SCANS} scans)")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height
    except Exception:  # Pillow's readers raise nearly anything on damaged files
        return 0


def scans_of(data: bytes) -> int:
    """Scans of a JPEG's first image (ITU T.81, annex B); what follows its end does not count."""
    place, found = 2, 0
    while place + 4 <= len(data) and data[place] == 0xFF:
        kind = data[place + 1]
        if kind == 0xFF:  # padding
            place += 1
            continue
        if kind == _END:
            break
        if 0xD0 <= kind <= 0xD8 or kind == 1:  # markers without a segment
            place += 2
            continue
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if kind == _SCAN:
            found += 1
            following = _MARKER.search(data, place)
            if following is None:
                break
            place = following.start()
    return found


def give_back_memory() -> None:
    """Hands freed memory to the system: glibc would keep the pixels' gigabyte. No-op on other systems."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
