"""Joint training and a local Ray cluster are reached by this user on this machine only."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from unfreeze.training.fine_tune import launcher

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}

CREW = """
import json, sys
from pathlib import Path
import psutil, torch
from unfreeze.training.fine_tune.distributed import init_process_group
with init_process_group(int(sys.argv[1]), 2, Path(sys.argv[2])) as crew:
    total = crew.total(1.0)
    found = [c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == "LISTEN"]
    crew.wait()
print(json.dumps([total, found]))
"""

CLUSTER = """
import json, os, stat, sys
import psutil
from unfreeze.core.parallel import cluster, use_backend

def task(number):
    import colorsys, imaplib
    return number, colorsys.__file__, imaplib.__file__, os.environ.get("UNFREEZE_CACHE", "")

def look():
    me = psutil.Process()
    for one in (me, *me.children(recursive=True)):
        try:
            for c in one.net_connections("inet"):
                if c.status == "LISTEN":
                    listeners.add(c.laddr.ip)
            folders.update(part for part in one.cmdline() if "uf-ray-" in part)
        except psutil.Error:
            continue

if __name__ == "__main__":
    listeners, folders, answers = set(), set(), []
    for _ in range(2):  # a second cluster in the same process
        with use_backend("ray"):
            answers += cluster().run(task, [1, 2])
            assert os.environ["RAY_AUTH_MODE"] == "token"
            look()
            import glob, tempfile
            modes = {oct(stat.S_IMODE(os.stat(f).st_mode)) for f in glob.glob(tempfile.gettempdir() + "/uf-ray-*")}
    left = glob.glob(tempfile.gettempdir() + "/uf-ray-*")
    print(json.dumps([answers, sorted(listeners), sorted(modes), left]))
"""


def test_processes_that_train_together_listen_on_loopback_only(tmp_path: Path) -> None:
    script = tmp_path / "crew.py"
    script.write_text(CREW)
    crew = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "meeting")], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for process in crew:
        out, _ = process.communicate(timeout=120)
        total, listeners = json.loads(out.splitlines()[-1])
        assert total == 2 and set(listeners) <= LOOPBACK, listeners


def test_the_file_that_they_meet_by_is_the_users_alone_and_gone_afterwards() -> None:
    with launcher._Worker(1, 1) as worker:
        folder = Path(worker._meeting.name)
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


def test_a_local_cluster_is_private_and_runs_nothing_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    (tmp_path / "script").mkdir()
    script, images, mark = tmp_path / "script" / "asked.py", tmp_path / "images", tmp_path / "executed"
    script.write_text(CLUSTER)
    images.mkdir()
    for name in ("colorsys", "imaplib", "random", "numpy", "socket", "typing", "token", "torch", "setproctitle"):
        (images / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write('{name} ')\n")
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", tempfile.mkdtemp(prefix="uf-", dir="/tmp"))  # short: sockets lie below it
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=images, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not mark.exists(), mark.read_text()
    answers, listeners, modes, left = json.loads(done.stdout.splitlines()[-1])
    assert [one[0] for one in answers] == [1, 2, 1, 2]
    assert not any(str(images) in path for one in answers for path in one[1:3])
    assert listeners and set(listeners) <= LOOPBACK, listeners
    assert modes == ["0o700"] and not left
