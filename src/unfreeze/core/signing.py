"""HMAC signatures of values that this user wrote into folders that others can write to as well.

A runs folder may be shared or unpacked from an archive. Values that are acted upon later, such as the command of a
studio job or the data folder of a run, are trusted only with a signature made with a key in the user's state folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from functools import lru_cache
from pathlib import Path
from typing import Any

from unfreeze.core.files import regular_file

_KEY_BYTES = 32


def state_root() -> Path:
    """State folder: `$XDG_STATE_HOME/unfreeze`, else `~/.local/state/unfreeze`."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "unfreeze"


def sign(value: Any) -> str:
    """HMAC-SHA256 of a JSON value with this user's key, as hexadecimal text."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hmac.new(_key(state_root() / "key"), text.encode("ascii"), hashlib.sha256).hexdigest()


def is_signed(value: Any, signature: object) -> bool:
    """Whether `signature` was made for this value by this user on this machine."""
    return isinstance(signature, str) and signature.isascii() and hmac.compare_digest(sign(value), signature)


@lru_cache(maxsize=8)
def _key(file: Path) -> bytes:
    """Key of the user, created on first use. If the state folder cannot be written, a key for this process only."""
    new = secrets.token_bytes(_KEY_BYTES)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Written under another name and linked into place: one of two processes wins, and no partial key is read.
        temporary = file.with_name(f".key.{secrets.token_hex(8)}.tmp")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(new)
            with contextlib.suppress(FileExistsError):
                os.link(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        kept = regular_file(file, _KEY_BYTES).read_bytes()
        if len(kept) == _KEY_BYTES:
            return kept
    return new
