"""What a command need not import it does not: torch takes longer than a whole probe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

WITHOUT_TORCH = """
import sys
sys.argv[0] = "unfreeze"
from unfreeze.cli.main import main
try:
    main()
finally:
    assert not {"torch", "timm", "torchvision"} & set(sys.modules), "torch was imported"
"""


def test_a_probe_of_a_known_network_imports_no_torch(fitted: Path, fit_command: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, *fit_command, "--run", str(tmp_path / "run")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert pd.read_parquet(tmp_path / "run" / "oof.parquet").equals(pd.read_parquet(fitted / "oof.parquet"))
