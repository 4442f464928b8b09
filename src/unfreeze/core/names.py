"""Comparison of names: Unicode normalization, look-alikes, numeric names, and paths in another Unicode form.

Two strings can show the same text and differ in their code points: "é" is one code point in NFC and two in NFD (macOS
writes file names in NFD, Windows and Linux in NFC). Labels, groups, splits and column names are therefore compared in
NFC. Paths are kept as the file system has them, because only that form opens the file.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal
from functools import lru_cache
from pathlib import Path

# Invisible characters: Default_Ignorable_Code_Point of Unicode 15 and the blank braille pattern.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# Numbers that survive a round trip. 007, +1, .5 and 1e5 would be written differently, so they are names.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")
_DIGITS = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
# Maximum number of candidate paths: each component that exists in two forms doubles their number.
_MOST_PLACES = 16


def nfc(text: str) -> str:
    """Normalize text to Unicode normalization form C, in which names are compared and shown."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def positions(names: Iterable[str], known: Sequence[str], one_to_one: bool = False) -> list[int]:
    """Find the index of each of `names` in `known`.

    An exact match takes precedence. Otherwise the only entry that is equal in NFC matches; if `known` has several forms
    of the name, none does.

    Args:
        names: Names to look up.
        known: Known names.
        one_to_one: Match names only exactly if several of `names` are equal in NFC.

    Returns:
        Index into `known` for each name; -1 if there is no match.
    """
    exact = {name: i for i, name in enumerate(known)}
    names = list(names)
    if all(name in exact for name in names):
        return [exact[name] for name in names]
    counts = Counter(map(nfc, exact))
    several = Counter(map(nfc, set(names))) if one_to_one else Counter[str]()
    alike = {nfc(name): i for name, i in exact.items() if counts[nfc(name)] == 1 and several[nfc(name)] < 2}
    return [exact.get(name, alike.get(nfc(name), -1)) for name in names]


def matching(name: str, known: Sequence[str]) -> str | None:
    """Find the entry of `known` that `name` denotes.

    An entry matches if it is the same text, equal in NFC, or the same number (1.0 matches 1).

    Returns:
        The entry, or None if none or several match.
    """
    found = positions([name], known)[0]
    if found < 0 and (number := as_number(nfc(name))) is not None:
        same = [i for i, one in enumerate(known) if as_number(one) == number]
        found = same[0] if len(same) == 1 else -1
    return None if found < 0 else known[found]


def as_number(text: str) -> Decimal | None:
    """Parse a number, or return None. Text with leading zeros, a plus sign or an exponent is a name, not a number."""
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def number_names(texts: list[str]) -> list[str]:
    """Normalize the numbers of a column of labels or groups, by the same rule for all table formats.

    If every non-empty value is a number (see `as_number`), each is written in its shortest form: 1.0 becomes 1, and
    0.50 becomes 0.5. A column with two values that differ only in trailing zeros of the fraction (1.1 and 1.10)
    contains codes and is returned unchanged. So is a column with a value that is not a number.
    """
    distinct = set(texts) - {""}
    if not any("." in text or text == "-0" for text in distinct):
        return texts
    if not all(_NUMBER.fullmatch(text) for text in distinct):
        return texts
    short = {text: _shortest(text) for text in distinct}
    fractions = Counter(name for name in short.values() if "." in name)
    if any(count > 1 for count in fractions.values()):
        return texts
    return [short.get(text, text) for text in texts]


def _shortest(text: str) -> str:
    short = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if short in ("-0", "") else short


def look_alike(name: str) -> str:
    """Key that is equal for names that look alike.

    Such names differ only in case, whitespace, invisible characters, compatibility forms (NFKC) or the notation of a
    number. The key is empty if the name has no visible character.
    """
    if not name.isascii():
        for _ in range(2):  # case folding can produce characters that NFKC decomposes
            name = unicodedata.normalize("NFKC", _INVISIBLE.sub("", name)).casefold()
        name = _INVISIBLE.sub("", name)
    if not name.isprintable():
        name = "".join(c for c in name if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf"))
    key = " ".join(name.casefold().split())
    return _bare(key) if key[-1:].isdigit() and _DIGITS.fullmatch(key) else key


def _bare(digits: str) -> str:
    """Remove the plus sign, leading zeros and trailing zeros of the fraction of a number, without rounding it."""
    whole, _, fraction = digits.lstrip("+-").partition(".")
    text = ".".join(filter(None, (whole.lstrip("0") or "0", fraction.rstrip("0"))))
    return f"-{text}" if digits[0] == "-" and text != "0" else text


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Group the names that share a key of `look_alike`; each group and the list of groups are sorted."""
    found = defaultdict(list)
    for name in dict.fromkeys(names):
        found[look_alike(name)].append(name)
    return sorted(sorted(some) for some in found.values() if len(some) > 1)


def visible(name: str) -> str:
    """Quote a name and escape characters that are invisible or look like another character: 'cat\\u200b'."""
    return "'" + "".join(map(_escaped, name)) + "'"


def _escaped(c: str) -> str:
    if c.isascii() and c.isprintable():
        return c
    plain = c.isprintable() and not _INVISIBLE.match(c) and unicodedata.normalize("NFKC", c) == c
    return c if plain else c.encode("unicode_escape", "backslashreplace").decode("ascii")


def on_disk(path: Path) -> Path:
    """Find the spelling of a path on disk, which may be in another Unicode form.

    Each component is tried as given, in NFC, in NFD, and in any other form that its folder contains.

    Returns:
        The existing path, or `path` if there is none.
    """
    text = os.fspath(path)
    if text.isascii() or os.path.exists(path):  # noqa: PTH110 - a Path raises for some names
        return path
    places = [Path(path.anchor)]
    for part in path.parts[1:] if path.anchor else path.parts:
        places = [place / form for place in places for form in _forms(place, part)][:_MOST_PLACES]
    return next((place for place in places if os.path.exists(place)), path)  # noqa: PTH110


def _forms(folder: Path, name: str) -> list[str]:
    """Spellings of an entry's name that exist in a folder. An ASCII name has only one form."""
    if name.isascii():
        return [name]
    there = _entries(os.fspath(folder)).get(nfc(name), ())
    forms = dict.fromkeys((name, nfc(name), unicodedata.normalize("NFD", name), *there))
    return [form for form in forms if form in there or os.path.lexists(folder / form)]


def _entries(folder: str) -> dict[str, tuple[str, ...]]:
    try:
        return _listed(folder, os.stat(folder).st_mtime_ns)  # noqa: PTH116
    except (OSError, ValueError):  # missing, not readable, or a NUL in the name
        return {}


@lru_cache(maxsize=64)
def _listed(folder: str, changed: int) -> dict[str, tuple[str, ...]]:
    """Non-ASCII entries of a folder by their NFC form. `changed`, the folder's mtime, is part of the cache key."""
    found = defaultdict(list)
    for name in os.listdir(folder):  # noqa: PTH208
        if not name.isascii():
            found[nfc(name)].append(name)
    return {name: tuple(sorted(forms)) for name, forms in found.items()}
