"""HEIC with the extra `heic`: the same way to pixels, the same limits as every other format."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import profiles
from profiles import by_cms, far, scene
from unfreeze.core.errors import PhotoError
from unfreeze.data.decode import decode, decode_image, image_size, load_crop
from unfreeze.data.image_formats import unread_format

pillow_heif = pytest.importorskip("pillow_heif")


def heic(image: Image.Image, **options: object) -> bytes:
    """A real HEIC file."""
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=95, **options)
    return file.getvalue()


def test_a_heic_is_decoded() -> None:
    found = decode_image(heic(scene(160, 120)))
    assert found.format == "HEIC" and found.size == (160, 120) and found.mode == "colour"
    assert far(found.pixels, scene(160, 120)) < 4
    assert load_crop(heic(scene(160, 120)), 32, 0.9).shape == (32, 32, 3)


def test_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(heic(scene()))
    assert decode((tmp_path / "a.jpg").read_bytes()).shape == (32, 48, 3)


def test_grids_gray_and_transparency() -> None:
    assert far(decode(heic(scene(300, 200), tile_size=64)), scene(300, 200)) < 4
    gray = scene().convert("L")
    assert far(decode(heic(gray)), gray.convert("RGB")) < 4
    clear = scene().convert("RGBA")
    clear.putalpha(0)
    assert (decode(heic(clear)) > 250).all()


def test_ten_bits() -> None:
    values = np.asarray(scene(), np.uint16) * 257
    file = io.BytesIO()
    deep = pillow_heif.from_bytes("RGB;16", scene().size, values.tobytes())
    deep.save(file, quality=95)
    assert far(decode(file.getvalue()), scene()) < 4


def test_orientation_is_applied_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = scene(160, 96)
    turned = upright.transpose(Image.Transpose.ROTATE_90)  # orientation 6: turn by 90 degrees clockwise to view it
    file = io.BytesIO()
    assert image_size(heic(upright)) == (160, 96)  # makes the format known to Pillow
    turned.info["exif"] = exif.tobytes()
    turned.save(file, "HEIF", quality=95)
    assert b"irot" in file.getvalue(), "a property of the file, as phones write it"
    found = decode_image(file.getvalue())
    assert found.size == (160, 96) and far(found.pixels, upright) < 4


def test_the_profile_of_a_phone_is_converted() -> None:
    image = scene(160, 120)
    image.info["icc_profile"] = profiles.wide()
    assert far(decode(heic(image)), by_cms(scene(160, 120), profiles.wide())) < 4


def test_the_limit_of_pixels() -> None:
    data = heic(scene(160, 120))
    with pytest.raises(PhotoError, match="160 x 120 pixels are more than the limit of 1,000"):
        decode(data, max_pixels=1000)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
def test_cut_off(share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = heic(noise)
    with pytest.raises(PhotoError, match=r"a\.heic: damaged"):
        decode(data[: int(len(data) * share)], path="a.heic")


_THREADS = """
import sys, threading
from pathlib import Path
from unfreeze.data.decode import decode
data = Path(sys.argv[1]).read_bytes()
decode(data)
before = len(list(Path("/proc/self/task").iterdir()))
workers = [threading.Thread(target=decode, args=(data,)) for _ in range(4)]
for one in workers:
    one.start()
for one in workers:
    one.join()
import pillow_heif
assert pillow_heif.options.DECODE_THREADS == 1
print(before, len(list(Path("/proc/self/task").iterdir())))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted where Linux lists them")
def test_few_threads(tmp_path: Path) -> None:
    """Images are decoded in threads already: each of them starts no further ones that stay.

    In a process of its own, since threads of other tests come and go in this one.
    """
    (tmp_path / "a.heic").write_bytes(heic(scene(640, 480)))
    command = [sys.executable, "-c", _THREADS, str(tmp_path / "a.heic")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, after = map(int, answer.split())
    assert after <= before + 1  # the last thread may still be listed for a moment after it is joined


def test_what_is_no_whole_heic_is_named() -> None:
    for data in (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(90), heic(scene())[:900]):
        with pytest.raises(PhotoError) as told:
            decode(data, path="a.jpg")
        assert told.value.reason.startswith("damaged HEIC (") and unread_format(told.value.reason) == "HEIC"
