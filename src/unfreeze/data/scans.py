"""How often a JPEG makes its decoder pass over all pixels: counted from the file's markers, nothing unpacked."""

from __future__ import annotations

import re

# Cameras and encoders write a dozen scans at most. Each is a pass over all pixels, and may be a few bytes of the file.
SCANS = 32
TOO_MANY = f"damaged (more than {SCANS} scans)"
_JPEG, _SCAN, _END = b"\xff\xd8", 0xDA, 0xD9
# A marker inside a scan's data: 0xFF is followed there by 0, by a restart marker, or by padding.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def too_many_scans(data: bytes) -> bool:
    """Whether this is a JPEG of more than SCANS scans: a small file of that kind keeps a decoder busy for minutes."""
    return data.startswith(_JPEG) and data.count(b"\xff\xda") > SCANS and scans_of(data) > SCANS


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
