"""Tar headers: the same entries as tarfile on real archives, and an error within a second on crafted ones."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfreeze.core.errors import SourceError
from unfreeze.data.tar_index import BLOCK, TarHeaderError, tar_entries, tar_index

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=120)


def written(path: Path, entries: list[tuple[str, bytes]], form: int) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in entries:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def by_tarfile(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path, "r:") as archive:
        plain = [m for m in archive if m.isreg() and not m.issparse()]
        return [(m.name.removeprefix("./"), m.offset_data, m.size) for m in plain]


@settings(max_examples=80, deadline=None)
@given(
    entries=st.lists(st.tuples(NAMES, st.binary(max_size=1200)), min_size=1, max_size=6),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_the_same_entries_as_tarfile(entries, form, tmp_path_factory):
    entries = [(name, data) for name, data in entries if not name.endswith("/") and "\r" not in name]
    if not entries:
        return
    path = written(tmp_path_factory.mktemp("tar") / "a.tar", entries, form)
    assert [tuple(entry) for entry in tar_entries(path)] == by_tarfile(path)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_hangul_names_and_entries_that_are_no_files(tmp_path, form):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as archive:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.LNKTYPE):
            member = tarfile.TarInfo(f"x{kind.decode()}")
            member.type, member.linkname = kind, "y"
            archive.addfile(member)
        for name in ("./고양이/1.jpg", f"{'d' * 90}/{'e' * 60}.jpg", f"{'긴' * 20}/{'이름' * 15}.jpg"[:99]):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    entries = [tuple(entry) for entry in tar_entries(path)]
    assert entries == by_tarfile(path) and len(entries) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="GNU tar")
def test_what_gnu_tar_writes(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "plain.jpg").write_bytes(b"x" * 700)
    with (tmp_path / "in" / "holes.jpg").open("wb") as file:  # more holes than fit in one header
        for part in range(30):
            file.seek(part << 16)
            file.write(b"x" * 4096)
    for form in ("gnu", "posix", "ustar", "v7"):
        path = tmp_path / f"{form}.tar"
        sparse = ["--sparse"] if form in ("gnu", "posix") else []
        subprocess.run(["tar", f"--format={form}", *sparse, "-cf", path, "in"], cwd=tmp_path, check=True)
        assert sorted(map(tuple, tar_entries(path))) == sorted(by_tarfile(path)), form


def header(name: bytes = b"a.jpg", kind: bytes = b"0", size: bytes = b"0" * 11, pad: bytes = b"") -> bytes:
    """One header with a valid checksum; `size` as it is written."""
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[345 : 345 + len(pad)] = pad
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(content: bytes) -> bytes:
    return header(b"pax", b"x", b"%011o" % len(content)) + content + bytes(-len(content) % BLOCK)


NEGATIVE = b"\xff" * 8 + (-1024).to_bytes(4, "big", signed=True)
CRAFTED = {
    "a negative size (CVE-2025-8194)": header(size=NEGATIVE) + header(),
    "a negative size of a link": header(kind=b"2", size=NEGATIVE),
    "a negative size of a long name": header(kind=b"L", size=NEGATIVE),
    "a size of 2^87": header(size=b"\x80" + b"\xff" * 11),
    "a size that is no number": header(size=b"12345689999"),
    "pax records without an end (CVE-2024-6232)": pax(b"1" * 60_000),
    "pax lengths of 0": pax(b"0 a=b\n" * 9000),
    "pax lengths that lead beyond": pax(b"999999 path=b\n"),
    "a pax header of 100 MB": header(kind=b"x", size=b"%011o" % 100_000_000) + bytes(BLOCK),
    "a negative size in pax": pax(b"17 size=-1024000\n") + header(),
    "a long name of 8 GB": header(kind=b"L", size=b"7" * 11),
    "long names without end": (header(kind=b"L", size=b"%011o" % 5) + b"abcd\0" + bytes(BLOCK - 5)) * 2000,
    "pax headers without end": pax(b"6 a=b\n") * 2000,
    "an extended header at the end": pax(b"6 a=b\n"),
    "a damaged second header": header() + bytes(range(256)) * 2,
    "a checksum that is none": header()[:148] + b"99999999" + header()[156:],
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_headers_are_an_error_within_a_second(tmp_path, name):
    path = tmp_path / "a.tar"
    path.write_bytes(CRAFTED[name] + bytes(2 * BLOCK))
    started = time.process_time()
    with pytest.raises(TarHeaderError):
        list(tar_entries(path))
    with pytest.raises(SourceError, match="not a whole, uncompressed tar file"):
        tar_index(path)
    assert time.process_time() - started < 1


def test_an_archive_without_its_end_blocks_is_read(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(header(size=b"%011o" % 3) + b"abc" + bytes(BLOCK - 3))
    assert [entry.size for entry in tar_entries(path)] == [3]
    path.write_bytes(path.read_bytes()[: BLOCK + 2])
    with pytest.raises(TarHeaderError, match="cut off"):
        list(tar_entries(path))
