"""Sandboxed image decoding in a child process that can be killed and has limits on memory and CPU time.

Image decoders are large libraries. A malicious file can keep them busy for minutes, exhaust the memory or crash them.
Here they run in a child process (`python -P -m unfreeze.data.decode_process`) that receives the bytes of an image and
returns the pixels that the networks need.

Both directions use the same frames: length of a JSON header, length of the data, header, data. Nothing is unpickled,
because the answer of the child is not trusted either.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import math
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unfreeze.core.errors import EngineError, PhotoError
from unfreeze.core.processes import child_environment, python_command
from unfreeze.data.decode import NO_MEMORY, Box, Pixels, decode_sized, image_size, load_crop
from unfreeze.data.face_detectors import resize_long_side
from unfreeze.data.image_formats import format_of

# Images with more pixels are decoded one at a time: 50 million pixels take a gigabyte at peak.
LARGE = 16_000_000
# A file larger than _PLAIN_BYTES + _BYTES_A_PIXEL per pixel is unusual for its number of pixels: the decoder may
# process data other than the pixels.
_PLAIN_BYTES, _BYTES_A_PIXEL = 256 << 10, 16
_ANIMATED = ("GIF", "WEBP", "AVIF")  # further frames take many bytes but are not decoded
_ROOMY = 4_000_000  # pixels up to which every decoder stays below the memory limit of a quick attempt
_OUT_OF_MEMORY = "decoder error -9"  # Pillow's message for some formats
_HEAD = struct.Struct(">IQ")
_UNLIMITED = 1 << 40
_MAX_HEADER = 1 << 16
_PIECE = 1 << 20


@dataclass(frozen=True)
class Cut:
    """Request for a network input as computed by `decode.load_crop`, uint8 (size, size, 3).

    The attributes are the arguments of `load_crop`.
    """

    size: int
    crop: float
    resample: str
    squash: bool
    gray: bool
    box: Box | None = None

    def of(self, data: bytes, max_pixels: int) -> Part:
        """Decode the crop; raises PhotoError as `decode.decode` does."""
        pixels = load_crop(
            data,
            self.size,
            self.crop,
            max_pixels,
            resample=self.resample,
            squash=self.squash,
            box=self.box,
            gray=self.gray,
        )
        return Part(pixels, (0, 0))

    def fits(self, part: Part) -> bool:
        """Whether a result has the requested shape."""
        return part.pixels.shape == (self.size, self.size, 3)


@dataclass(frozen=True)
class Small:
    """Request for the whole image, resized to `side` pixels on its long side for face detectors, and its full size."""

    side: int

    def of(self, data: bytes, max_pixels: int) -> Part:
        """Decode and resize the image; raises PhotoError as `decode.decode` does."""
        pixels, size = decode_sized(data, self.side, max_pixels)
        return Part(resize_long_side(pixels, self.side), size)

    def fits(self, part: Part) -> bool:
        """Whether a result has the requested shape."""
        height, width, _ = part.pixels.shape
        return max(height, width) == self.side and min(part.size) > 0


@dataclass(frozen=True)
class Part:
    """Result of one request.

    Attributes:
        pixels: uint8 (height, width, 3).
        size: Full width and height of the upright image; zeros for a `Cut`.
    """

    pixels: Pixels
    size: tuple[int, int]


Wanted = Cut | Small
# Decoding function: (bytes of the image file, maximum number of pixels, requests) -> results in the order of requests.
Look = Callable[[bytes, int, Sequence[Wanted]], list[Part]]


def decode_request(data: bytes, max_pixels: int, wanted: Sequence[Wanted]) -> list[Part]:
    """Decode an image in the current process.

    Args:
        data: Bytes of the image file.
        max_pixels: Maximum number of pixels.
        wanted: Requests.

    Returns:
        One result per request, in the same order.

    Raises:
        PhotoError: As in `decode.decode`.
    """
    return [one.of(data, max_pixels) for one in wanted]


def pixels_of(data: bytes) -> int:
    """Number of pixels according to the header; 0 if the image is rejected, in which case `decode` gives the reason."""
    return _header(data)[0]


def _header(data: bytes) -> tuple[int, str]:
    """Number of pixels as in `pixels_of`, and the format."""
    try:
        width, height = image_size(data)
    except PhotoError:
        return 0, ""
    return width * height, format_of(data)


def give_back_memory() -> None:
    """Return freed memory to the system, which glibc would otherwise keep. Does nothing on other systems."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class DecoderLostError(Exception):
    """The decoder process ended before it answered because it was killed or an image crashed it."""


class NotQuickError(Exception):
    """The image is too large or needs too much memory for a quick attempt."""


class CostError(PhotoError):
    """Decoding the image takes more time or memory than allowed."""


@dataclass(frozen=True)
class Allowance:
    """Resource limits for decoding one image.

    Attributes:
        memory: Memory limit of the whole decoder process in bytes.
        seconds: CPU time limit in seconds.
        quick: Whether to raise `NotQuickError` for large or unusual images instead of decoding them.
    """

    memory: int
    seconds: float
    quick: bool = False


class Decoder:
    """A decoder process.

    Only one thread may send requests; `kill` may be called from any thread.

    Args:
        nice: Niceness increment of the child relative to this process.

    Attributes:
        process: The child process.
        cpu: CPU seconds of the last request.
        total: CPU seconds of the child up to its last answer.
    """

    def __init__(self, nice: int = 0) -> None:
        self.process = subprocess.Popen(
            python_command("unfreeze.data.decode_process", str(nice)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # malicious files can control what C libraries print
            bufsize=0,
            env=child_environment({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}),
            start_new_session=True,  # Ctrl-C in the terminal must only reach the server
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._to, self._from = self.process.stdin.fileno(), self.process.stdout.fileno()
        self._grow_pipes()
        self._ready = False
        self.cpu = 0.0
        self.total = 0.0
        self._known: Any = None

    def wait(self) -> None:
        """Wait until the child is ready.

        Raises:
            DecoderLostError: The child ended.
            EngineError: The child cannot start.
        """
        if not self._ready:
            header, _ = self._receive()
            if header.get("failed"):
                raise EngineError(f"the decoder process cannot start ({header['failed']}).")
            self.total = float(header["total"])
            self._ready = True

    def ask(self, data: bytes, max_pixels: int, wanted: Sequence[Wanted], allowance: Allowance) -> list[Part]:
        """Decode an image in the child.

        Args:
            data: Bytes of the image file.
            max_pixels: Maximum number of pixels.
            wanted: Requests.
            allowance: Resource limits.

        Returns:
            One result per request, in the same order.

        Raises:
            PhotoError: The bytes are not an image, are damaged, or have too many pixels.
            CostError: Decoding needs too much memory.
            NotQuickError: The image is large or unusual, and `allowance.quick` is set.
            DecoderLostError: The child ended, or its answer does not match the request.
        """
        self.wait()
        asked = [[type(one).__name__, asdict(one)] for one in wanted]
        self._send({"wanted": asked, "max_pixels": max_pixels, **asdict(allowance)}, data)
        header, found = self._receive()
        try:
            return self._parts(header, found, wanted)
        except (KeyError, TypeError, ValueError) as error:
            self.kill()
            raise DecoderLostError(f"invalid response: {error}") from None

    def _parts(self, header: dict[str, Any], found: bytes, wanted: Sequence[Wanted]) -> list[Part]:
        self.cpu, self.total = float(header["cpu"]), float(header["total"])
        if header.get("not_quick"):
            raise NotQuickError
        if header.get("no_memory"):
            raise CostError("photo", NO_MEMORY)
        if "error" in header:
            raise PhotoError("photo", str(header["error"])[:500])
        parts, at = [], 0
        for shape, size in header["parts"]:
            height, width, channels = map(int, shape)
            count = height * width * channels
            pixels = np.frombuffer(found, np.uint8, count, at).reshape(height, width, channels)
            parts.append(Part(pixels, (int(size[0]), int(size[1]))))
            at += count
        if len(parts) != len(wanted) or not all(one.fits(part) for one, part in zip(wanted, parts, strict=True)):
            raise ValueError("pixels of another size than requested")
        return parts

    def spent(self) -> tuple[float, int]:
        """CPU seconds since the last answer, and resident memory in bytes; zeros if the child has ended."""
        import psutil  # type: ignore[import-untyped]

        try:
            self._known = self._known or psutil.Process(self.process.pid)
            times = self._known.cpu_times()
            return max(0.0, float(times.user + times.system) - self.total), int(self._known.memory_info().rss)
        except psutil.Error:
            return 0.0, 0

    def kill(self) -> None:
        """Kill the child immediately."""
        with contextlib.suppress(OSError):
            self.process.kill()

    def close(self) -> None:
        """Kill the child, wait for it and close its pipes."""
        self.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()

    def _grow_pipes(self) -> None:
        """Enlarge the pipe buffers to reduce context switches for large images; Linux only."""
        with contextlib.suppress(ImportError, AttributeError, OSError):
            import fcntl

            for end in (self._to, self._from):
                fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _PIECE)

    def _send(self, header: dict[str, Any], data: bytes) -> None:
        try:
            _write(self._to, header, data)
        except OSError:
            raise DecoderLostError("it has ended") from None

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        try:
            return _read(self._from)
        except (OSError, EOFError, ValueError) as error:
            self.kill()
            raise DecoderLostError(str(error)) from None


def _write(to: int, header: dict[str, Any], *data: Any) -> None:
    head = json.dumps(header).encode()
    for part in (_HEAD.pack(len(head), sum(len(one) for one in data)) + head, *data):
        view = memoryview(part)
        while view:
            view = view[os.write(to, view[:_PIECE]) :]


def _read(source: int) -> tuple[dict[str, Any], bytes]:
    """Read one frame; EOFError at the end of the stream, ValueError if the frame is invalid."""
    head, length = _HEAD.unpack(_exactly(source, _HEAD.size))
    if head > _MAX_HEADER:
        raise ValueError("the header is too long")
    header = json.loads(_exactly(source, head))
    if not isinstance(header, dict):
        raise ValueError("the header is not an object")
    return header, _exactly(source, length)


def _exactly(source: int, length: int) -> bytes:
    room = bytearray()
    while len(room) < length:
        part = os.read(source, min(_PIECE, length - len(room)))
        if not part:
            raise EOFError("it has ended")
        room += part
    return bytes(room)


# Child process


def _serve(nice: int) -> None:
    """Answer requests until standard input closes."""
    source, to = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for used in (0, 1):  # output of C libraries must not corrupt the frames
        os.dup2(null, used)
    _confine(nice)
    try:
        Image.init()
        for kind in ("PNG", "JPEG", "WEBP"):  # lazy imports would otherwise count toward the first image's CPU time
            room = io.BytesIO()
            Image.new("RGB", (8, 8)).save(room, kind)
            load_crop(room.getvalue(), 4, 1.0)
    except Exception as error:
        _write(to, {"failed": f"{type(error).__name__}: {error}"[:500]})
        return
    _write(to, {"total": time.process_time()})
    while True:
        try:
            header, data = _read(source)
        except EOFError:
            return
        began = time.process_time()
        answer, parts = _answered(header, data)
        _allow(_UNLIMITED, 1e6)  # reading the next frame is not limited
        del data
        pixels = [np.ascontiguousarray(part.pixels).data.cast("B") for part in parts]
        now = time.process_time()
        _write(to, {**answer, "cpu": now - began, "total": now}, *pixels)
        del parts, pixels
        if not header["quick"]:
            give_back_memory()


def _answered(header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], list[Part]]:
    _allow(int(header["memory"]), float(header["seconds"]))
    wanted = [{"Cut": Cut, "Small": Small}[name](**options) for name, options in header["wanted"]]
    limit = int(header["max_pixels"])
    try:
        if header["quick"] and _is_unusual(data, limit):
            return {"not_quick": True}, []
        parts = decode_request(data, limit, wanted)
    except (PhotoError, MemoryError) as error:
        reason = error.reason if isinstance(error, PhotoError) else NO_MEMORY
        lacked = "memory" in reason or _OUT_OF_MEMORY in reason
        # Some libraries report a failed allocation as damage, so a second attempt with more memory is made.
        if header["quick"] and (lacked or (reason.startswith("damaged") and not 0 < pixels_of(data) <= _ROOMY)):
            return {"not_quick": True}, []
        return {"no_memory": True} if lacked else {"error": reason}, []
    return {"parts": [[part.pixels.shape, part.size] for part in parts]}, parts


def _is_unusual(data: bytes, max_pixels: int) -> bool:
    """Whether an image needs the decoder for large images; False for images that are rejected anyway."""
    pixels, kind = _header(data)
    if not 0 < pixels <= max_pixels:
        return False
    many_bytes = len(data) > _PLAIN_BYTES + _BYTES_A_PIXEL * pixels
    return pixels > LARGE or (many_bytes and kind not in _ANIMATED)


def _confine(nice: int) -> None:
    """Lower the priority and forbid core dumps and file writes, where the system supports it."""
    with contextlib.suppress(OSError):  # the OOM killer should prefer this process
        Path("/proc/self/oom_score_adj").write_text("800")
    if nice and hasattr(os, "nice"):
        os.nice(nice)
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _allow(memory: int, seconds: float) -> None:
    """Set memory and CPU limits for the next image.

    The parent enforces limits too; these also apply if the parent is slow or has ended.
    """
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        for kind, value in (
            (resource.RLIMIT_DATA, memory),
            (resource.RLIMIT_CPU, math.ceil(time.process_time() + seconds) + 1),
        ):
            _, hard = resource.getrlimit(kind)
            resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
    os._exit(0)
