"""The decoder process with made-up images that cost time or memory, or crash: `python slow_decoder.py NICE`.

Real files of that kind are refused by their structure as soon as one is known; the process must hold without that.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SLOW, LARGE, CRASH = b"SLOW" * 10, b"LARGE" * 10, b"CRASH" * 10


def use(patch: pytest.MonkeyPatch) -> None:
    """Decoders that are started from now on know these images."""
    command = [sys.executable, "-P", str(Path(__file__))]
    patch.setattr("unfreeze.data.decode_process.python_command", lambda _, nice: [*command, nice])


def main() -> None:
    from unfreeze.data import decode_process

    load_square = decode_process.load_crop

    def load(data: bytes, *rest: Any, **options: Any) -> Any:
        if data == SLOW:
            until = time.process_time() + 60
            while time.process_time() < until:
                pass
        if data == LARGE:
            bytearray(b"x" * 800_000_000)
        if data == CRASH:
            os.abort()
        return load_square(data, *rest, **options)

    decode_process.load_crop = load
    decode_process._serve(int(sys.argv[1]))
    os._exit(0)


if __name__ == "__main__":
    main()
