"""The decoder process: the same pixels as in this process, limits that hold, and nothing that outlives its parent."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from PIL import Image

from hostile import odd_photos, unreadable_photos
from servedruns import until
from slow_decoder import LARGE, SLOW, use
from unfreeze.core.errors import EngineError, PhotoError
from unfreeze.data.decode_process import (
    Allowance,
    CostError,
    Cut,
    Decoder,
    DecoderLostError,
    NotQuickError,
    Part,
    Small,
    decode_request,
)

LIMIT = 50_000_000
CUT = Cut(32, 0.9, "bicubic", False, False)
FACE = Cut(16, 1.0, "bicubic", False, False, (0.1, 0.1, 0.4, 0.4))
WANTED = [CUT, Small(40), Cut(20, 1.0, "bilinear", True, True), FACE]
AMPLE, QUICK = Allowance(1_200_000_000, 60), Allowance(400_000_000, 60, quick=True)
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of the system")


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    one = Decoder()
    yield one
    one.close()


@pytest.mark.parametrize("name", sorted(odd_photos(0)))
def test_pixels_are_those_of_this_process(decoder: Decoder, name: str) -> None:
    data = odd_photos(0)[name]
    here, there = decode_request(data, LIMIT, WANTED), decoder.ask(data, LIMIT, WANTED, AMPLE)
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert one.size == other.size
    assert decoder.cpu < 5


@pytest.mark.parametrize("name", sorted(unreadable_photos()))
def test_reasons_are_those_of_this_process(decoder: Decoder, name: str) -> None:
    data = unreadable_photos()[name]
    with pytest.raises(PhotoError) as here:
        decode_request(data, LIMIT, [CUT])
    with pytest.raises((PhotoError, NotQuickError)) as there:
        decoder.ask(data, LIMIT, [CUT], AMPLE)
    assert there.value.reason == here.value.reason  # type: ignore[union-attr]


def test_large_and_unusual_images_are_not_quick(decoder: Decoder) -> None:
    to = io.BytesIO()
    Image.new("L", (4100, 4100)).save(to, "PNG")
    large = to.getvalue()
    Image.new("RGB", (8, 8)).save(unusual := io.BytesIO(), "BMP")
    for data in (large, unusual.getvalue() + bytes(400_000)):
        with pytest.raises(NotQuickError):
            decoder.ask(data, LIMIT, [CUT], QUICK)
    with pytest.raises(PhotoError, match="pixels are more than the limit"):  # refused at once, whoever decodes
        decoder.ask(large, 1_000_000, [CUT], QUICK)
    assert decoder.ask(large, LIMIT, [CUT], AMPLE)[0].pixels.shape == (32, 32, 3)


@linux
@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("WEBP", "RGB"), ("TIFF", "F"), ("GIF", "L")])
def test_memory_is_limited_and_the_next_image_is_decoded(decoder: Decoder, kind: str, mode: str) -> None:
    to = io.BytesIO()
    Image.new(mode, (4600, 4600)).save(to, kind, **({"compression": "tiff_deflate"} if kind == "TIFF" else {}))
    with pytest.raises(PhotoError if kind == "WEBP" else CostError):  # libwebp does not say what it lacks
        decoder.ask(to.getvalue(), LIMIT, [CUT], Allowance(60_000_000, 60))
    assert decoder.ask(to.getvalue(), LIMIT, [CUT], AMPLE)[0].pixels.shape == (32, 32, 3)


@linux
def test_the_system_ends_unsupervised_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch)
    one = Decoder()
    with pytest.raises(CostError):
        one.ask(LARGE, LIMIT, [CUT], Allowance(400_000_000, 60))
    with pytest.raises(NotQuickError):
        one.ask(LARGE, LIMIT, [CUT], Allowance(400_000_000, 60, quick=True))
    with pytest.raises(DecoderLostError):
        one.ask(SLOW, LIMIT, [CUT], Allowance(1_200_000_000, 0.1))
    assert one.process.wait(10) == -signal.SIGXCPU
    one.close()


def test_a_killed_decoder_is_lost_and_an_answer_that_is_none_too(decoder: Decoder) -> None:
    one = Decoder()
    one.wait()
    one.kill()
    with pytest.raises(DecoderLostError):
        one.ask(SLOW, LIMIT, [CUT], AMPLE)
    one.close()
    right = {"cpu": 0.0, "total": 0.0, "parts": [[[32, 32, 3], [0, 0]]]}
    assert decoder._parts(right, bytes(3072), [CUT])[0].size == (0, 0)
    for header, data, wanted in (
        (right, bytes(3000), [CUT]),
        (right, bytes(3072), [CUT, CUT]),
        (right, bytes(3072), [Small(40)]),
        ({**right, "parts": [[[1024, 1, 3], [0, 0]]]}, bytes(3072), [CUT]),
        ({**right, "parts": [[[32, 32, 3]]]}, bytes(3072), [CUT]),
        ({**right, "parts": [[[-32, -32, 3], [0, 0]]]}, bytes(3072), [CUT]),
        ({"parts": []}, b"", [CUT]),
        ({**right, "parts": None}, b"", [CUT]),
    ):
        with pytest.raises((KeyError, TypeError, ValueError)):
            decoder._parts(header, data, wanted)
    assert isinstance(decoder._parts(right, bytes(3072), [CUT])[0], Part)


def test_one_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    monkeypatch.setattr("unfreeze.data.decode_process.python_command", lambda *_: command)
    one = Decoder()
    with pytest.raises(DecoderLostError):
        one.wait()
    one.close()
    command[2] = "import unfreeze.data.decode_process as d; d.load_crop = lambda *a: 1 / 0; d._serve(0)"
    one = Decoder()
    with pytest.raises(EngineError, match="cannot start \\(ZeroDivisionError"):
        one.wait()
    one.close()


def test_it_gets_no_secrets_and_ends_with_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNFREEZE_TOKEN", "a-secret-token")
    code = (
        "import sys; from unfreeze.data.decode_process import Decoder\n"
        "one = Decoder(); one.wait(); print(one.process.pid, flush=True); sys.stdin.read()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    assert "UNFREEZE_TOKEN" not in child.environ() and child.environ()["PYTHONSAFEPATH"] == "1"
    parent.kill()
    parent.communicate()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 10)
