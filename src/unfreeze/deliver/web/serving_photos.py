"""What a photo from somewhere may cost, told from its head before a pixel of it is unpacked."""

from __future__ import annotations

import contextlib
import ctypes
import io

from PIL import Image

from unfreeze.core.errors import PhotoError
from unfreeze.data.images import FORMATS
from unfreeze.data.scans import TOO_MANY, too_many_scans

# Photos of more pixels are unpacked one at a time, apart from the others: 50 million take a gigabyte for a moment.
LARGE = 16_000_000


def pixels_of(data: bytes) -> int:
    """Width times height as the file's head states them; 0 where it has none, which its decoder will say better.

    PhotoError for a JPEG of too many scans: a small file of that kind keeps a decoder busy for minutes.
    """
    if too_many_scans(data):
        raise PhotoError("photo", TOO_MANY)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height
    except Exception:  # Pillow's readers raise nearly anything on damaged files
        return 0


def give_back_memory() -> None:
    """Hands freed memory to the system: glibc would keep the pixels' gigabyte. No-op on other systems."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
