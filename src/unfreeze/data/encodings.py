"""Text encoding of a table: UTF-8, a byte order mark, or an older encoding that the content confirms."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable

from unfreeze.core.errors import SourceError, did_you_mean, join_names
from unfreeze.core.messages import option

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose BOM is a prefix of it
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


_NO_ASCII = re.compile(r"[^\x00-\x7f]+")
_HANGUL = re.compile(r"[\uac00-\ud7a3]")
_KANA = re.compile(r"[\u3041-\u30fc]")
_EAST_ASIAN_MARKS = r"\u3000-\u303f\uff01-\uff5e\u2018\u2019\u201c\u201d\u2026\u00b7\u25a0-\u25ff\u2460-\u2473"
_KOREAN = re.compile(rf"[\uac00-\ud7a3{_EAST_ASIAN_MARKS}]+")
_JAPANESE = re.compile(rf"[\u3041-\u30ff\u4e00-\u9fff{_EAST_ASIAN_MARKS}]+")
_LATIN_LETTER = "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff\u0152\u0153\u0160\u0161\u0178\u017d\u017e"
_LATIN_MARKS = (
    "\u00a0\u00a1\u00ab\u00b0\u00b2\u00b3\u00b5\u00b7\u00bb\u00bf\u2013\u2014\u2018\u2019\u201c\u201d\u2026\u20ac"
)


_LATIN = re.compile(rf"[{_LATIN_LETTER}{_LATIN_MARKS}]+")
# Latin words have at most two consecutive accented letters ("créée"). Misdecoded text of other scripts has more.
_NO_LATIN_WORD = re.compile(rf"(?:(?![A-Za-z])[{_LATIN_LETTER}]){{3}}|[a-z][{_LATIN_MARKS}](?<![\u2019\u00b7])[a-z]")


def _is_korean(text: str, parts: set[str]) -> bool:
    """Whether the text is Hangul and at least 90% of it are the 2,350 common syllables of EUC-KR."""
    syllables = _HANGUL.findall(text)
    if not syllables or not all(map(_KOREAN.fullmatch, parts)):
        return False
    usual = sum(len(one.encode("euc_kr", "ignore")) == 2 for one in syllables)
    return usual >= 0.9 * len(syllables)


def _is_japanese(text: str, parts: set[str]) -> bool:
    return bool(_KANA.search(text)) and all(map(_JAPANESE.fullmatch, parts))


def _is_latin(text: str, parts: set[str]) -> bool:
    return all(map(_LATIN.fullmatch, parts)) and not _NO_LATIN_WORD.search(text)


# Order matters: bytes that decode to Hangul or kana rarely decode to plausible Latin words as well.
_CANDIDATES: tuple[tuple[str, Callable[[str, set[str]], bool]], ...] = (
    ("cp949", _is_korean),
    ("shift_jis", _is_japanese),
    ("cp932", _is_japanese),  # Windows extension of Shift JIS
    ("euc_jp", _is_japanese),
    ("cp1252", _is_latin),
)


# Suggestions in the error message if no candidate is confirmed.
_OFFERED = ("cp949", "shift_jis", "gb18030", "big5", "cp1251", "cp1250", "cp1252")


def decode(content: bytes, name: str, asked: str = "") -> tuple[str, str]:
    """Decode the bytes of a table.

    Args:
        content: Content of the file.
        name: File name, for messages.
        asked: Encoding given by the user; detected if empty.

    Returns:
        The text without a byte order mark, and the name of the encoding; empty for UTF-8.

    Raises:
        SourceError: If the given encoding is unknown or wrong, or no encoding is certain.
    """
    if asked:
        return _asked(content, name, asked)
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            try:
                text = content.decode(encoding).removeprefix("\ufeff")
            except UnicodeDecodeError:
                break  # a binary file can start with the same bytes
            return text, "" if encoding == "utf-8" else encoding
    unmarked = _unmarked_utf16(content)
    if unmarked:
        return content.decode(unmarked), unmarked
    try:
        return content.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        start = error.start
    for encoding, is_plausible in _CANDIDATES:
        text = _decoded(content, encoding)
        if text and "\0" not in text and is_plausible(text, {found[0] for found in _NO_ASCII.finditer(text)}):
            return text, encoding
    raise _uncertain(content, name, start)


def _asked(content: bytes, name: str, asked: str) -> tuple[str, str]:
    try:
        known = codecs.lookup(asked).name
        # Bytes-to-bytes codecs such as hex and zip also support decoding, but do not return text.
        is_text = isinstance(b"a".decode(known, "ignore"), str)
    except (LookupError, ValueError, TypeError, UnicodeError):
        is_text = False
    if not is_text:
        raise SourceError(
            f"{option('encoding', asked)}: no such text encoding.{did_you_mean(asked, ('utf-8', 'utf-16', *_OFFERED))} "
            f"Usual ones are utf-8, utf-16, {', '.join(_OFFERED)}."
        )
    try:
        text = content.decode(known).removeprefix("\ufeff")
    except UnicodeError as error:
        raise SourceError(
            f"{name}: is not encoded as {asked} ({error}). Leave {option('encoding')} out to detect it."
        ) from None
    return text, "" if known == "utf-8" else known


def first_word(text: str) -> str:
    """First run of non-ASCII characters, up to 12, to show the effect of an encoding; empty if there is none."""
    found = _NO_ASCII.search(text)
    return found[0][:12] if found else ""


def _decoded(content: bytes, encoding: str) -> str:
    """Decoded text; empty if the bytes are invalid in this encoding."""
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return ""


def _unmarked_utf16(content: bytes) -> str:
    """Detect UTF-16 without a byte order mark by the NUL bytes of its ASCII characters; empty if it is not UTF-16."""
    head = content[:4096]
    if len(content) % 2 or b"\0" not in head:
        return ""
    for encoding, nul, letter in (("utf-16-le", head[1::2], head[0::2]), ("utf-16-be", head[0::2], head[1::2])):
        if nul.count(0) * 4 >= len(nul) and letter.count(0) * 8 <= nul.count(0):
            text = _decoded(content, encoding)
            return encoding if text.isprintable() or "\n" in text or "\r" in text else ""
    return ""


def _uncertain(content: bytes, name: str, start: int) -> SourceError:
    line = content.count(b"\n", 0, start) + 1
    where = f"{name}: not UTF-8: byte 0x{content[start]:02x} in line {line}"
    head = content[:100_000]  # enough to show a word; binary files decode to nothing useful
    head = head[: head.rfind(b"\n") + 1] or content
    if b"\0" not in content:
        shown = []
        for encoding in _OFFERED:
            word = first_word(_decoded(head, encoding))
            if word and word.isprintable():
                shown.append(f"{encoding} ('{word}')")
        if shown:
            return SourceError(
                f"{where}. Give the one whose text is correct: "
                f"{option('encoding').rstrip('=')} {join_names(shown, 7)}; or save it as UTF-8."
            )
    return SourceError(f"{where}. Save it as UTF-8 (in Excel: 'CSV UTF-8').")
