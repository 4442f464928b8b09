"""The command serve: what it says, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from commandline import Answer
from servedruns import head

Cli = Callable[..., Answer]


@contextmanager
def started(*arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`unfreeze serve ARGUMENTS` in a process of its own, on a port that is free."""
    command = [sys.executable, "-m", "unfreeze.cli.main", "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200", **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # some shells ignore it
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def lines_until(process: subprocess.Popen[str], last: str) -> str:
    """Its output up to a line."""
    text = ""
    assert process.stdout is not None
    for line in process.stdout:
        text += line
        if line.rstrip("\n") == last:
            return text
    raise AssertionError(f"it ended: {process.wait()}\n{text}{process.stderr.read() if process.stderr else ''}")


def test_it_says_where_it_is_answers_and_ends_on_ctrl_c(fitted: Path, photos: Path) -> None:
    files = sorted((photos / "red").iterdir())[:2]
    with started(fitted) as process:
        told = lines_until(process, "Ctrl-C ends it.")
        address = re.search(r"Page: (http://127\.0\.0\.1:\d+/)\n", told)
        assert address and "Serves: colours, 3 classes" in told and "64 photos and 32 MB a request" in told
        found = httpx2.post(f"{address[1]}predict", files=[("file", file.read_bytes()) for file in files], timeout=60)
        assert [one["label"] for one in found.json()["photos"]] == ["red", "red"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "", "")


def test_json_a_token_of_the_environment_and_sigterm(fitted: Path) -> None:
    with started(fitted, "--json", "--timeout", 1, UNFREEZE_TOKEN="made-for-this-test") as process:
        told = json.loads(lines_until(process, "}"))
        assert told["token"] == "made-for-this-test" and told["url"].startswith(f"{told['base']}/?token=")
        assert told["limits"]["seconds"] == 1 and [run["name"] for run in told["runs"]] == ["colours"]
        assert httpx2.get(f"{told['base']}/metrics").status_code == 401
        right = {"Authorization": "Bearer made-for-this-test"}
        assert httpx2.get(f"{told['base']}/metrics", headers=right).status_code == 200
        port = int(told["base"].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as slow:  # one that still sends does not hold it up for long
            slow.sendall(head(port, 1000, "Authorization: Bearer made-for-this-test\r\n"))
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (-signal.SIGTERM, "", "")


def test_another_host_needs_a_token(fitted: Path) -> None:
    with started(fitted, "--host", "0.0.0.0", "--json") as process:
        told = json.loads(lines_until(process, "}"))
        assert len(told["token"]) == 32 and told["base"].startswith("http://127.0.0.1:")
        assert httpx2.post(f"{told['base']}/predict").status_code == 401


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "70000"], "--port"),
        (["--host", "192.0.2.1"], "cannot be listened on"),
        (["--token", "short"], "--token: is at least 8 letters, digits"),
        (["--token", "with a space"], "--token: is at least 8 letters, digits"),
        (["--files", "300"], "300 files a request are more than the 256"),
        (["--max-request-mb", "500"], "500 MB is more than the 256 MB of memory"),
        (["--timeout", "0"], "--timeout"),
        (["--connections", "1000000000"], "open files"),
    ],
)
def test_bad_options_are_reported_in_one_line(cli: Cli, fitted: Path, options: list[str], said: str) -> None:
    answer = cli("serve", fitted, *options)
    assert answer.code == 2 and said in answer.complaint


def test_a_port_that_is_taken_and_runs_that_cannot_be_served(cli: Cli, fitted: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = cli("serve", fitted, "--port", port)
        assert answer.code == 2 and f"--port {port}: cannot be listened on" in answer.complaint
    unfinished = shutil.copytree(fitted, tmp_path / "unfinished")
    about = json.loads((unfinished / "run.json").read_text())
    (unfinished / "run.json").write_text(json.dumps({**about, "status": "running"}))
    for run, said in (
        (unfinished, "not finished"),
        (tmp_path / "absent", "absent"),
        (f"{fitted}+{fitted}", "two runs or more, each named once"),
    ):
        answer = cli("serve", run, "--port", 0)
        assert answer.code == 2 and said in answer.complaint
