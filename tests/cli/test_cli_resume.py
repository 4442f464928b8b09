"""A run that is stopped at any moment goes on with the same command and ends with the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import unfreeze as uf
from commandline import Answer, leftovers
from unfreeze.training.linear_probe.heads import LinearHead

Cli = Callable[..., Answer]

# Runs the command line in a process that gets a signal the nth time it enters a function.
DRIVER = """
import importlib, os, signal, sys
from unfreeze.features import extract
extract._FLUSH = 16
module, owner, name, nth, number = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
home = importlib.import_module(module)
home = getattr(home, owner) if owner else home
was, calls = getattr(home, name), 0
# A job that a shell runs in the background inherits an ignored SIGINT; a terminal's does not.
signal.signal(signal.SIGINT, signal.default_int_handler)
def wrapped(*args, **kwargs):
    global calls
    calls += 1
    if calls == nth:
        os.kill(os.getpid(), number)
    return was(*args, **kwargs)
setattr(home, name, wrapped)
sys.argv = ["unfreeze", *sys.argv[6:]]
from unfreeze.cli.main import main
main()
"""

MOMENTS = {
    "looks": ("unfreeze.core.cache", "ArrayStore", "append", 1),
    "features": ("unfreeze.core.cache", "ArrayStore", "append", 3),
    "heads": ("unfreeze.training.linear_probe.heads", "LinearHead", "save", 2),
    "end": ("unfreeze.core.runs", "", "finalize_run", 1),
}


def stopped(moment: str, number: int, command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    module, owner, name, nth = MOMENTS[moment]
    arguments = [sys.executable, "-c", DRIVER, module, owner, name, str(nth), str(int(number)), *command]
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=120, env=dict(os.environ))


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed(
    moment: str,
    fitted: Path,
    fit_command: list[str],
    cache_folder: Path,
    fresh_cache: Path,
    tmp_path: Path,
    cli: Cli,
) -> None:
    shutil.copytree(cache_folder / "engines", fresh_cache / "engines")
    command = [*fit_command, "--run", str(tmp_path / "run")]
    ended = stopped(moment, signal.SIGKILL, command, Path())
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (tmp_path / "run" / "scores.json").exists() or moment == "end"
    answer = cli(*command)
    assert answer.code == 0, answer.err
    assert (tmp_path / "run" / "oof.parquet").read_bytes() == (fitted / "oof.parquet").read_bytes()
    for again, once in zip(uf.load(tmp_path / "run").heads, uf.load(fitted).heads, strict=True):
        assert (again.weight == once.weight).all() and (again.bias == once.bias).all()
    assert not leftovers(tmp_path / "run")
    assert not (tmp_path / "run" / "scratch").exists()


def test_interrupted_in_a_terminal(
    fitted: Path, fit_command: list[str], cache_folder: Path, fresh_cache: Path, tmp_path: Path, cli: Cli
) -> None:
    shutil.copytree(cache_folder / "engines", fresh_cache / "engines")
    command = [*fit_command, "--run", str(tmp_path / "run")]
    ended = stopped("features", signal.SIGINT, command, Path())
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("unfreeze: interrupted; the same command goes on")
    assert "Traceback" not in ended.stderr
    assert cli("scores", tmp_path / "run").code == 2
    assert cli(*command).code == 0
    assert (tmp_path / "run" / "oof.parquet").read_bytes() == (fitted / "oof.parquet").read_bytes()


def test_heads_of_an_interrupted_run_are_not_fitted_again(
    fitted: Path, fit_command: list[str], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = LinearHead.save, list[str]()

    def counted(self: LinearHead, path: Path, *args: object, **kwargs: object) -> None:
        if len(saved) == 2 and "stop" not in saved:
            saved.append("stop")
            raise KeyboardInterrupt
        saved.append(path.parent.name)
        save(self, path, *args, **kwargs)

    monkeypatch.setattr(LinearHead, "save", counted)
    answer = cli(*fit_command, "--run", "here")
    assert answer.code == 130 and "interrupted; the same command goes on" in answer.complaint
    assert cli(*fit_command, "--run", "here").code == 0
    assert saved == ["fold-0", "fold-1", "stop", "fold-2"]
    assert Path("here/oof.parquet").read_bytes() == (fitted / "oof.parquet").read_bytes()


def test_another_recipe_does_not_go_on_from_it(
    fit_command: list[str], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LinearHead, "save", stop)
        assert cli(*fit_command, "--run", "here").code == 130
    answer = cli(*fit_command, "--seed", "7", "--run", "here")
    assert answer.code == 2
    assert "another recipe" in answer.complaint
    listing = cli("runs", ".")
    assert listing.code == 0 and "running" in listing.out


_LOST_INTERRUPT = """
import os, signal
from unfreeze.cli import main as cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the shell ignores it
def run(**_):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise RuntimeError("unknown exception") from None
cli.app = run
cli.main()
"""


def test_an_interrupt_that_a_library_turns_into_its_own_error() -> None:
    """As bindings of C++ libraries do where the signal arrives inside one of their callbacks."""
    ended = subprocess.run([sys.executable, "-c", _LOST_INTERRUPT], capture_output=True, text=True, check=False)
    assert ended.returncode == 130 and ended.stderr == "unfreeze: interrupted; the same command goes on from here.\n"
