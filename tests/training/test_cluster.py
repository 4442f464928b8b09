"""Runs on a cluster, tested in a process of its own: where Ray's core gives up it aborts the process that joined it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("cluster_cases.py")


def test_on_a_cluster_of_two_workers():
    pytest.importorskip("ray")
    soak = "UNFREEZE_SOAK" in os.environ
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(CASES),
        "-v",
        "-p",
        "no:cacheprovider",
        *(["-m", ""] if soak else []),
    ]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        if done.returncode >= 0:  # not aborted by Ray itself
            break
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(rf"^=+ {9 if soak else 7} passed", done.stdout, flags=re.M), done.stdout[-2000:]
