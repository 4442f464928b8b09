"""Text encodings of tables: read where the content confirms one, else answered with the option to use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from unfreeze.core.errors import SourceError
from unfreeze.core.recipe_schema import Source
from unfreeze.data.encodings import decode
from unfreeze.data.readers import read

OPTIONS_IN_MESSAGES = True

KOREAN = ["사과", "바나나", "체리"]
TABLES = [
    ("utf-8", KOREAN),
    ("cp949", KOREAN),
    ("euc-kr", ["개", "고양이"]),
    ("cp949", ["똠양꿍", "고양이", "호랑이", "펭귄", "곰"]),
    ("cp949", ["호", "하"]),
    ("cp949", ["“사과”", "배·감"]),
    ("cp1252", ["café", "pêche", "mûre", "œuf", "créée"]),
    ("latin-1", ["Äpfel", "Süß", "Öl"]),
    ("latin-1", ["piña", "niño", "mañana"]),
    ("cp1252", ["5 €", "10 €"]),
    ("cp1252", ["naïve", "it’s"]),
    ("shift_jis", ["りんご", "バナナ"]),
    ("cp932", ["①りんご", "②バナナ"]),
    ("shift_jis", ["犬", "ネコ"]),
    ("euc_jp", ["りんご", "バナナ"]),
    ("utf-16", KOREAN),
    ("utf-16-le", KOREAN),
    ("utf-16-be", KOREAN),
    ("utf-32", KOREAN),
    ("utf-8-sig", KOREAN),
]


def rows(labels: list[str], end: str = "\n", header: str = "id,label") -> str:
    return header + end + "".join(f"{i}.jpg,{labels[i % len(labels)]}{end}" for i in range(10))


@pytest.mark.parametrize(("encoding", "labels"), TABLES, ids=[f"{e}-{t[0]}" for e, t in TABLES])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_that_are_certain_are_read(encoding: str, labels: list[str], end: str) -> None:
    text = rows(labels, end)
    assert decode(text.encode(encoding), "t.csv")[0] == text


@pytest.mark.parametrize("header", ["파일,라벨", "id,라벨", "파일,label"])
def test_names_in_the_header_alone(header: str) -> None:
    text = rows(["a", "b"], header=header)
    assert decode(text.encode("cp949"), "t.csv") == (text, "cp949")


@pytest.mark.parametrize(
    ("encoding", "labels", "option"),
    [
        ("cp1251", ["яблоко", "банан"], "cp1251 ('яблоко')"),
        ("gb18030", ["苹果", "香蕉"], "gb18030 ('苹果')"),
        ("big5", ["蘋果", "香蕉"], "big5 ('蘋果')"),
        ("cp932", ["東京", "大阪"], "shift_jis ('東京')"),
        ("cp1250", ["jabłko", "śliwka"], "cp1250 ('ł')"),
    ],
)
def test_what_is_not_certain_is_answered_with_the_option(
    tmp_path: Path, encoding: str, labels: list[str], option: str
) -> None:
    for i in range(10):
        (tmp_path / f"{i}.jpg").write_bytes(b"x")
    (tmp_path / "t.csv").write_bytes(rows(labels).encode(encoding))
    with pytest.raises(SourceError, match=r"not UTF-8: byte 0x.. in line 2\. Give the one whose text is") as error:
        read(tmp_path / "t.csv")
    assert option in str(error.value)
    name = option.partition(" ")[0]
    photos = read(tmp_path / "t.csv", Source(encoding=name))
    assert photos.classes == tuple(sorted(labels))
    assert f"CSV t.csv ({name if name != 'shift_jis' else 'shift_jis'}, " in photos.choice


def test_what_was_read_is_said(tmp_path: Path) -> None:
    for i in range(10):
        (tmp_path / f"{i}.jpg").write_bytes(b"x")
    (tmp_path / "t.csv").write_bytes(rows(KOREAN).encode("cp949"))
    assert read(tmp_path / "t.csv").choice.startswith("CSV t.csv (cp949, '사과'): paths in 'id', label 'label'")
    (tmp_path / "t.csv").write_bytes(rows(KOREAN).encode("utf-8-sig"))
    assert read(tmp_path / "t.csv").choice.startswith("CSV t.csv: paths in 'id'")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("cp994", r"--encoding cp994: no such text encoding\. Did you mean 'cp949'"),
        ("hex", "no such text encoding"),
        ("zip", "no such text encoding"),
        ("x\0y", "no such text encoding"),
        ("utf-8", "is not encoded as utf-8 .* Leave --encoding out"),
        ("ascii", "is not encoded as ascii"),
    ],
)
def test_encodings_that_were_asked_for_in_vain(asked: str, said: str) -> None:
    with pytest.raises(SourceError, match=said) as error:
        decode(rows(KOREAN).encode("cp949"), "t.csv", asked)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"\xff\xd8\xff\xe0" + bytes(range(256)), b"\x89PNG\r\n\x1a\n" + bytes(range(128, 256))]
)
def test_files_that_are_no_text(content: bytes) -> None:
    with pytest.raises(SourceError, match="not UTF-8") as error:
        decode(content, "t.csv")
    assert re.search(r"\.$", str(error.value))
