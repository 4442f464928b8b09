"""One fitted run that many tests look at and none changes, and commands in a folder of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from commandline import Answer, run_cli
from photosets import GROUP_REGEX, class_folders


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Runs commands in an empty working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")
    return run_cli


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 photos, 36 groups, 3 classes. Not to be changed."""
    return class_folders(tmp_path_factory.mktemp("photos") / "colours")


@pytest.fixture(scope="session")
def fit_command(photos: Path) -> list[str]:
    """The command that made `fitted`, without its --run."""
    words = ["--group-regex", GROUP_REGEX, "--strategy", "probe", "--quality", "fast", "--folds", "3"]
    return ["fit", str(photos), *words]


@pytest.fixture(scope="session")
def fitted(fit_command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `photos`. Not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "colours"
    answer = run_cli(*fit_command, "--run", run)
    assert answer.code == 0, answer.err
    return run
