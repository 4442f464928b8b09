"""Random bytes, files and settings against all that reads them: a result, or an error of ours in one line."""

from __future__ import annotations

import io
import json
import os
import shutil
import string
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fuzzing import JSON, damaged, fuzzed, ours
from photosets import draw
from unfreeze.core.corrections import CORRECTIONS, Correction, append_correction, read_corrections, withdraw_correction
from unfreeze.core.errors import PhotoError
from unfreeze.core.recipe import Recipe, parse_overrides, read_recipe
from unfreeze.core.recipe_schema import Source
from unfreeze.core.runs import list_runs, open_run, read_log
from unfreeze.data.decode import decode, decode_sized, load_crop
from unfreeze.data.image_formats import FORMATS
from unfreeze.data.readers import read

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, which the product keeps from its users

# Photos


def _saved(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    to = io.BytesIO()
    picture = draw(0, 1, 2).resize((24, 16))
    if mode == "I;16":
        picture = Image.fromarray(np.arange(384, dtype=np.uint16).reshape(16, 24) * 170)
    else:
        picture = picture.quantize(16) if mode == "P" else picture.convert(mode)
    if options.pop("frames", 0):
        options |= {"save_all": True, "append_images": [picture.rotate(90, expand=False)] * 2}
    picture.save(to, kind, **options)
    return to.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 200
    return exif


SEEDS = {
    "jpeg": _saved("JPEG", exif=_exif()),
    "progressive": _saved("JPEG", progressive=True, icc_profile=b"i" * 300),
    "cmyk": _saved("JPEG", "CMYK"),
    "gray jpeg": _saved("JPEG", "L"),
    "png": _saved("PNG", exif=_exif()),
    "16 bit png": _saved("PNG", "I;16"),
    "palette png": _saved("PNG", "P", transparency=3),
    "animated png": _saved("PNG", "RGBA", frames=3),
    "gif": _saved("GIF", "P", transparency=1, frames=3),
    "bmp": _saved("BMP"),
    "dib": _saved("DIB"),
    "tiff": _saved("TIFF", compression="tiff_lzw", exif=_exif()),
    "16 bit tiff": _saved("TIFF", "I;16"),
    "jpeg in tiff": _saved("TIFF", compression="jpeg"),
    "float tiff": _saved("TIFF", "F"),
    "webp": _saved("WEBP", "RGBA", frames=3),
    "lossless webp": _saved("WEBP", lossless=True, exif=_exif()),
    "ppm": _saved("PPM"),
    "tga": _saved("TGA", "RGBA", compression="tga_rle"),
    "avif": _saved("AVIF"),
}


def test_every_format_is_among_the_photos() -> None:
    assert {Image.open(io.BytesIO(data)).format for data in SEEDS.values()} == {
        reader for form in FORMATS.values() for reader in form.readers
    } - {"HEIF"}


@fuzzed
@given(st.sampled_from(sorted(SEEDS)).flatmap(lambda name: damaged(SEEDS[name])), st.sampled_from([0, 8, 64]))
def test_decoder(data: bytes, short_side: int) -> None:
    try:
        pixels, size = decode_sized(data, short_side, max_pixels=1_000_000, path="a/b.jpg")
    except PhotoError as error:
        assert error.reason and "\n" not in str(error) and str(error).startswith("a/b.jpg: ")
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and min(pixels.shape) > 0
    assert pixels.size <= 3_000_000 and min(size) > 0
    square = load_crop(data, 16, 0.9, max_pixels=1_000_000)
    assert square.shape == (16, 16, 3)
    assert ours(lambda: decode(data, max_pixels=1)) is None or size == (1, 1)


# Sources: folders and tables

NAMES = st.one_of(
    st.sampled_from(
        ["train", "test", "val", "Test", "a", "b", "images", "train.csv", ".git", "__MACOSX", "Thumbs.db", "-x", "=1+1"]
    ),
    st.sampled_from(
        ["0.jpg", "1.JPG", "._0.jpg", "x.png", "no.txt", "a\nb.jpg", "'\".jpg", "\u202egpj.jpg", "CON.jpg"]
    ),
    st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=6),
    st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=4).map(
        lambda stem: stem + ".jpg"
    ),
    st.binary(min_size=1, max_size=4).map(lambda raw: os.fsdecode(raw.translate(None, b"/\0") or b"\xff") + ".jpg"),
)
TREE = st.recursive(
    st.sampled_from(["file", "file", "link", "loop", "gone", "pipe"]),
    lambda inner: st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=14,
)


def _grown(at: Path, tree: Any, outside: Path) -> None:
    if at.name in (".", "..") or len(os.fsencode(at.name)) > 200 or at.exists() or at.is_symlink():
        return
    if isinstance(tree, dict):
        at.mkdir()
        for name, inner in tree.items():
            _grown(at / name, inner, outside)
    elif tree == "file":
        at.write_bytes(b"x")
    elif tree == "link":
        at.symlink_to(outside)
    elif tree == "loop":
        at.symlink_to(at.parent)
    elif tree == "gone":
        at.symlink_to(at / "nowhere")
    else:
        os.mkfifo(at)


@fuzzed
@given(
    tree=st.dictionaries(NAMES, TREE, max_size=5),
    reader=st.sampled_from(["", "", "", "class_folders", "split_folders", "competition", "table"]),
    regex=st.sampled_from(["", "", r"(?P<group>[^/]+)/", "(?P<group>.*)", "("]),
    split=st.sampled_from(["", "none", "part"]),
)
def test_folder_readers(tree: dict[str, Any], reader: str, regex: str, split: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        outside = Path(name) / "outside"
        outside.mkdir()
        (outside / "out.jpg").write_bytes(b"x")
        root = Path(name) / "photos"
        _grown(root, tree, outside)
        photos = ours(lambda: read(root, Source(reader=reader, group_regex=regex, split=split)))
        if photos is not None:
            paths = list(photos.table["path"])
            assert paths == sorted(set(paths)) and all((root / path).is_file() for path in paths)
            assert len(photos.classes) >= 2 and set(photos.classes) >= set(photos.table["label"])
            for found in photos.findings:
                f"{found.message} {found.fix}".encode()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Photos that tables may name: 0.jpg ... 5.jpg."""
    with tempfile.TemporaryDirectory() as name:
        for i in range(6):
            (Path(name) / f"{i}.jpg").write_bytes(b"x")
        yield Path(name)


CELL = st.one_of(
    st.sampled_from([*(f"{i}.jpg" for i in range(6)), "a", "b", "train", "test", "", "../0.jpg", "/etc/passwd"]),
    st.sampled_from(
        ["=1+1", "@SUM(A1)", "a\0b", "\ufeff", '"', "'", "NaN", "1e999", "9" * 40, "-0", "\u2028", "\x1b[31m"]
    ),
    st.text(max_size=5),
)
TABLE = st.tuples(
    st.lists(st.sampled_from(["file", "label", "group", "split", "label", "x", "", '"']), min_size=1, max_size=5),
    st.lists(st.lists(CELL, min_size=1, max_size=6), max_size=8),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "utf-32", "latin-1"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
)


def _csv(table: Any) -> bytes:
    header, rows, separator, mark, encoding, end = table
    text = end.join(separator.join(row) for row in [header, *rows]) + end
    return mark + text.encode(encoding, "replace")


GOOD = b"file,label,group,split\n0.jpg,a,p,train\n1.jpg,b,q,train\n2.jpg,a,r,test\n3.jpg,b,s,train\n"


@fuzzed
@given(
    content=st.one_of(TABLE.map(_csv), damaged(GOOD), st.binary(max_size=200)),
    suffix=st.sampled_from([".csv", ".tsv", ".txt"]),
    options=st.sampled_from([Source(), Source(label=("label", "x")), Source(split="none"), Source(path_column="file")]),
)
def test_tables(folder: Path, content: bytes, suffix: str, options: Source) -> None:
    file = folder / f"t{suffix}"
    file.write_bytes(content)
    photos = ours(lambda: read(file, options))
    if photos is not None:
        assert all((folder / path).is_file() for path in photos.table["path"])
        assert len(photos.classes) >= 2


def _parquet(metadata: bytes | None = None) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_pandas(
        pd.DataFrame({"file": ["0.jpg", "1.jpg", "2.jpg"], "label": ["a", "b", "a"], "n": [1.0, 2.0, None]})
    )
    if metadata is not None:
        table = table.replace_schema_metadata({b"pandas": metadata})
    to = io.BytesIO()
    parquet.write_table(table, to)
    return to.getvalue()


SCHEMA = st.fixed_dictionaries(
    {},
    optional={
        "index_columns": st.one_of(JSON, st.just([]), st.just(["file"])),
        "columns": st.one_of(JSON, st.lists(st.fixed_dictionaries({"name": st.just("label"), "metadata": JSON}))),
        "column_indexes": JSON,
    },
)


@fuzzed
@given(
    st.one_of(
        damaged(_parquet()),
        SCHEMA.map(lambda told: _parquet(json.dumps(told).encode())),
        JSON.map(lambda told: _parquet(json.dumps(told).encode())),
    )
)
def test_parquet(folder: Path, content: bytes) -> None:
    file = folder / "t.parquet"
    file.write_bytes(content)
    photos = ours(lambda: read(file))
    if photos is not None:
        assert all((folder / path).is_file() for path in photos.table["path"])


# Recipes

KEYS = [
    "seed",
    "image.size",
    "image.crop",
    "probe.input_candidates",
    "balance.extra_views",
    "source.label",
    "tune.search_space",
    "train.time_budget",
]
WORDS = st.text(string.ascii_lowercase + "._-[]{}=\"'#,\n\0 0123456789", max_size=12)
VALUE = st.one_of(
    st.sampled_from(
        ["1", "-1", "1e308", "inf", "nan", "true", "''", "[1,2]", "{a=1}", "1979-05-27", "0x1F", '"\\u0000"']
    ),
    st.sampled_from(["[" * 2000, "9" * 5000, "{a=" * 1000, '["minority:1:flip"]', "'x=1..2 log'", "12:00:00"]),
    WORDS,
)
KEY = st.one_of(st.sampled_from(KEYS), WORDS)


@fuzzed
@given(st.lists(st.tuples(KEY, VALUE), max_size=4))
def test_settings(pairs: list[tuple[str, str]]) -> None:
    recipe = ours(lambda: Recipe().replace(**parse_overrides([f"{key}={value}" for key, value in pairs])))
    if recipe is not None:
        recipe.to_toml().encode("utf-8")


@fuzzed
@given(
    st.one_of(
        st.lists(st.tuples(KEY, VALUE), max_size=5).map(lambda p: "\n".join(f"{k} = {v}" for k, v in p).encode()),
        damaged(Recipe().to_toml().encode()),
        st.binary(max_size=100),
    )
)
def test_recipe_files(folder: Path, content: bytes) -> None:
    file = folder / "recipe.toml"
    file.write_bytes(content)
    recipe = ours(lambda: read_recipe(file))
    if recipe is not None:
        file.write_text(recipe.to_toml(), "utf-8")
        assert read_recipe(file) == recipe


# Weights


def _safetensors(header: Any, data: bytes = bytes(64)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "F16", "BF16", "I64", "BOOL", "U16", "F8_E4M3", "F4", "C64", "X", ""]),
        "shape": st.lists(st.sampled_from([0, 1, 2, 4, 16, 2**31, 2**63, -1]), max_size=4),
        "data_offsets": st.tuples(st.sampled_from([0, 1, 32, 2**62]), st.sampled_from([0, 4, 8, 32, 64, 2**63])),
    }
)


def _saved_by_torch(zipped: bool) -> bytes:
    import torch

    to = io.BytesIO()
    torch.save({"a.weight": torch.ones(3, 4), "a.bias": torch.ones(3)}, to, _use_new_zipfile_serialization=zipped)
    return to.getvalue()


def _repacked(whole: bytes, pickled: bytes) -> bytes:
    """A zip of torch's with other bytes for its pickle."""
    to = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(to, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, pickled if entry.filename.endswith("data.pkl") else old.read(entry))
    return to.getvalue()


@pytest.fixture(scope="module")
def weights() -> st.SearchStrategy[tuple[str, bytes]]:
    """File names and contents of weights."""
    from safetensors import numpy as safetensors

    whole = safetensors.save({"a.weight": np.ones((3, 4), np.float32), "a.bias": np.ones(3, np.float32)})
    zipped, plain = _saved_by_torch(True), _saved_by_torch(False)
    with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        pickled = next(archive.read(n) for n in archive.namelist() if n.endswith("data.pkl"))
    headers = st.one_of(st.dictionaries(st.text(max_size=3), st.one_of(TENSOR, JSON), max_size=3), JSON)
    ending = st.sampled_from(["w.pt", "w.pth", "w.bin", "w"])
    return st.one_of(
        st.tuples(
            st.just("w.safetensors"), st.one_of(damaged(whole), headers.map(_safetensors), st.binary(max_size=80))
        ),
        st.tuples(ending, st.one_of(damaged(zipped), damaged(plain), st.binary(max_size=80))),
        st.tuples(ending, damaged(pickled).map(lambda one: _repacked(zipped, one))),
    )


@fuzzed
@given(data=st.data())
def test_weights(folder: Path, weights: st.SearchStrategy[tuple[str, bytes]], data: st.DataObject) -> None:
    from unfreeze.models.checkpoints import read_tensors

    name, content = data.draw(weights)
    file = folder / name
    file.write_bytes(content)
    tensors = ours(lambda: read_tensors(file))
    if tensors is not None:
        assert all(isinstance(key, str) for key in tensors)
        assert sum(t.numel() * t.element_size() for t in tensors.values()) <= 4 * len(content)


# What a person or a run has written

CORRECTION_FILE = (
    b'path,hash,action,label,timestamp\na.jpg,1,keep,,x\n"b,""c.jpg",2,relabel,red,x\n\'=d.jpg,3,exclude,,x\n'
)


@fuzzed
@given(
    content=st.one_of(
        damaged(CORRECTION_FILE),
        st.binary(max_size=120),
        st.lists(st.lists(CELL, max_size=6), max_size=6).map(
            lambda rows: b"path,action,label\n" + "\n".join(",".join(row) for row in rows).encode("utf-8")
        ),
        st.integers(100_000, 300_000).map(lambda n: b"path,action\n" + b"x" * n + b",keep\n"),
    ),
    path=st.text(max_size=6),
    word=st.sampled_from(CORRECTIONS),
)
def test_correction_files(folder: Path, content: bytes, path: str, word: str) -> None:
    file = folder / "corrections.csv"
    file.write_bytes(content)
    before = ours(lambda: read_corrections(file))
    if before is not None:
        assert all(one.path and one.action in CORRECTIONS for one in before[0])
    wish = Correction(f"p{path}", "", word, "red" if word == "relabel" else "")
    added = ours(lambda: append_correction(file, wish) or True)
    if added and before is not None:
        after = read_corrections(file)[0]
        assert after[-1].path == wish.path and after[-1].action == word
        assert [v.path for v in after[:-1]] == [v.path for v in before[0] if v.path != wish.path]
        assert withdraw_correction(file, wish.path)
    if not added:
        assert file.read_bytes() == content, "what is not ours is left as it is"


INFO: dict[str, Any] = {
    "format": 1,
    "status": "finished",
    "root": "/nowhere",
    "classes": ["a", "b"],
    "answers": ["a", "b"],
    "attributes": ["label"],
    "members": [],
}


@fuzzed
@given(
    info=st.one_of(
        st.fixed_dictionaries({}, optional={key: st.one_of(JSON, st.just(value)) for key, value in INFO.items()}).map(
            lambda part: json.dumps({**INFO, **part}).encode()
        ),
        JSON.map(lambda one: json.dumps(one).encode()),
        st.sampled_from([b"[" * 100_000, b'{"format": ' + b"9" * 5000 + b"}", b"\xff", b""]),
    ),
    scores=st.one_of(JSON.map(json.dumps), st.just("[" * 100_000)),
)
def test_run_files(info: bytes, scores: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        run.mkdir()
        (run / "run.json").write_bytes(info)
        (run / "recipe.toml").write_text("")
        (run / "scores.json").write_text(scores)
        (run / "log.jsonl").write_text(scores)
        assert len(list_runs(Path(name))) == 1
        read_log(run)
        found = ours(lambda: open_run(run))
        if found is not None:
            assert len(found.classes) == len(found.info["answers"]) >= 2
            assert all(isinstance(one, str) for one in (*found.classes, *found.info["attributes"], found.info["root"]))
            ours(lambda: found.members)
            ours(found.scores)


@pytest.fixture(scope="module")
def shard() -> bytes:
    """A small archive of photos as WebDataset lays them."""
    to = io.BytesIO()
    with tarfile.open(fileobj=to, mode="w") as archive:
        for i in range(3):
            for name, content in ((f"{i}.jpg", SEEDS["jpeg"]), (f"{i}.cls", str(i % 2).encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return to.getvalue()


@fuzzed
@given(data=st.data())
def test_shards(tmp_path_factory: pytest.TempPathFactory, shard: bytes, data: st.DataObject) -> None:
    from unfreeze.data.decode import read_bytes

    root = tmp_path_factory.getbasetemp() / "shards"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    (root / "a-000.tar").write_bytes(data.draw(damaged(shard)))
    for source in (root, root / "a-000.tar"):
        photos = ours(lambda source=source: read(source))
        if photos is not None:
            for file in photos.files():
                ours(lambda file=file: read_bytes(file))
