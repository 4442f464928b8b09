"""Child processes execute no module and no program of the working directory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from photosets import class_folders
from unfreeze.core import processes
from unfreeze.core.processes import child_environment, program, python_command, safe_programs, search_path

SHADOWS = (
    "random", "socket", "torch", "token", "typing", "numpy", "PIL", "string", "queue", "secrets", "sitecustomize",
    "usercustomize", "ctypes", "_strptime", "shutil", "unfreeze", "simplejpeg",
)  # fmt: skip


@pytest.fixture
def shadows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory of modules and programs that leave a mark. The mark must be absent at the end."""
    folder, mark = tmp_path / "images", tmp_path / "executed"
    folder.mkdir()
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write('{name} ')\n")
    for name in ("git", "xdg-open", "firefox"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> '{mark}'\n")
        (folder / name).chmod(0o755)
    monkeypatch.chdir(folder)
    yield folder
    assert not mark.exists(), f"executed: {mark.read_text()}"


def test_the_shadows_are_executed_without_protection(shadows: Path, tmp_path: Path) -> None:
    """Otherwise the tests below could not fail."""
    subprocess.run([sys.executable, "-c", "import random"], check=False, capture_output=True)
    assert "random" in (tmp_path / "executed").read_text()
    (tmp_path / "executed").unlink()


@pytest.mark.parametrize("python_path", [None, "", os.pathsep, f"{os.pathsep}/nowhere", f"/nowhere{os.pathsep}"])
def test_a_python_command_ignores_the_working_directory(
    shadows: Path, monkeypatch: pytest.MonkeyPatch, python_path: str | None
) -> None:
    sources = str(Path(processes.__file__).parents[2])
    if python_path is None:
        monkeypatch.setenv("PYTHONPATH", sources)
    else:
        monkeypatch.setenv("PYTHONPATH", f"{sources}{os.pathsep}{python_path}")
    done = subprocess.run(
        python_command("unfreeze.cli.main", "--help"), env=child_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    grandchild = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import random, socket'], check=True)"
    subprocess.run([sys.executable, "-P", "-c", grandchild], env=child_environment(), check=True)


def test_spawned_workers_ignore_it_and_the_environment_is_restored(shadows: Path, tmp_path: Path) -> None:
    """`unfreeze demo` in a process of its own: the resource tracker starts once in a process."""
    code = (
        "import os, sys; sys.path = [p for p in sys.path if p]\n"
        "from pathlib import Path; from unfreeze.demo import dataset as people\n"
        "if __name__ == '__main__':\n"
        "    people.FEW = 0\n"
        f"    people.make_demo(Path({str(tmp_path / 'demo')!r}), people=4, workers=2)\n"
        "    assert 'PYTHONSAFEPATH' not in os.environ\n"
    )
    script = tmp_path / "script" / "draw.py"
    script.parent.mkdir()
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "demo").rglob("*.jpg"))


def test_training_workers_and_jobs_ignore_it(shadows: Path, tmp_path: Path) -> None:
    from unfreeze.server.studio.jobs import Jobs
    from unfreeze.training.fine_tune.launcher import _Worker

    with _Worker(1, 1) as worker:
        worker.process.stdin.close()  # type: ignore[union-attr]
        assert worker.process.wait(60) == 0
    jobs = Jobs(tmp_path / "runs" / ".studio" / "jobs")
    try:
        job = jobs.start("check", ["check", str(class_folders(tmp_path / "photos", groups=2))])
        jobs._processes[job.id].wait(60)
    finally:
        jobs.close()
    assert "photos" in "\n".join(jobs.lines(job)), jobs.lines(job)


@pytest.mark.parametrize("entry", ["", ".", "{here}", "./", "../images", "{here}/."])
def test_programs_are_not_looked_up_in_it(shadows: Path, monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    import webbrowser

    from unfreeze.training.crossval import environment

    real = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{entry.format(here=shadows)}{os.pathsep}{real}")
    assert program("git") == next((str(f) for d in real.split(os.pathsep) if (f := Path(d) / "git").is_file()), None)
    assert program("xdg-open") != str(shadows / "xdg-open")
    environment(0, {})
    with safe_programs():
        assert os.environ["PATH"] == search_path()
        monkeypatch.setattr(webbrowser, "_tryorder", None)  # browsers are found anew
        monkeypatch.setattr(webbrowser, "_browsers", {})
        webbrowser.open("file:///nowhere") if os.environ.get("DISPLAY") else webbrowser.register_standard_browsers()
        assert not [name for name in webbrowser._browsers if str(shadows) in name]  # type: ignore[attr-defined]
    assert os.environ["PATH"].startswith(entry.format(here=shadows))


def test_an_absent_program_is_none_and_secrets_stay_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert program("no-such-program-anywhere") is None
    monkeypatch.delenv("PATH")
    assert search_path(), "the system's default"
    monkeypatch.setenv("PATH", "")
    assert search_path() == "" and program("git") is None
    monkeypatch.setenv("UNFREEZE_TOKEN", "secret-token")
    assert "UNFREEZE_TOKEN" not in child_environment() and os.environ["UNFREEZE_TOKEN"]
    assert child_environment({"A": "b"})["A"] == "b" and child_environment()["PYTHONSAFEPATH"] == "1"


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert search_path() and program("sh")
