"""What a run ran on: versions, device, code revision, times. Kept beside its scores."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from unfreeze.core.work import cores
from unfreeze.model.engines import machine

_PACKAGES = (
    "unfreeze",
    "numpy",
    "pandas",
    "pillow",
    "simplejpeg",
    "openvino",
    "torch",
    "torchvision",
    "timm",
)


def environment(seed: int, timings: dict[str, float]) -> dict[str, Any]:
    """environment.json: versions, device, git, seed, created, timings (seconds a stage)."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "versions": versions,
        "device": f"{cores()} cores, {machine()}",
        "system": platform.platform(),
        "git": _revision(),
        "seed": seed,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "timings": timings,
    }


def _revision() -> str | None:
    """The revision of the repository that one stands in, if any: the user's own code belongs to the result."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=2)
        return done.stdout.strip() or None
    return None
