"""No command reports anything to anybody: with a fresh HOME, and every connection that leaves the machine refused."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from photosets import GROUP_REGEX, class_folders
from unfreeze.core import telemetry

# Imported by every Python process that has it on its path, before anything else.
GUARD = """
import os, sys

def _guard(event, arguments, log=os.environ["TEST_NETWORK_LOG"]):
    if event == "socket.connect" or event == "socket.sendto":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else "unix"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else str(host)
    if host in ("unix", "None", "localhost", "::1", "") or host.startswith("127."):
        return
    with open(log, "a") as file:
        file.write(f"{event} {host} {sys.argv}\\n")
    raise OSError(f"the network is not for tests: {host}")

sys.addaudithook(_guard)
"""

# Command lines of the CLI one after the other, then a served run and the studio, each with one request.
DRIVER = """
import json, re, subprocess, sys, urllib.request
from unfreeze.cli.main import main

def command(*words):
    sys.argv = ["unfreeze", *words]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, (words, ended.code)

commands, pages, file = json.loads(sys.argv[1])
for words in commands:
    command(*words)
for words in pages:
    started = subprocess.Popen([sys.executable, "-m", "unfreeze.cli.main", *words], stdout=subprocess.PIPE, text=True)
    try:
        address = next(found[0] for line in started.stdout if (found := re.search(r"http://127[^ ]+", line))).strip()
        if words[0] == "serve":
            part = b'--b\\r\\nContent-Disposition: form-data; name="file"; filename="a.jpg"\\r\\n\\r\\n'
            body = part + open(file, "rb").read() + b"\\r\\n--b--\\r\\n"
            address = urllib.request.Request(address + "predict", body)
            address.add_header("Content-Type", "multipart/form-data; boundary=b")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor())
        assert opener.open(address, timeout=60).status == 200
    finally:
        started.kill()
        started.wait()
"""


def installed(package):
    """Whether the distribution is there; the import of openvino_telemetry fails in this process, as it has to."""
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


needs_openvino_telemetry = pytest.mark.skipif(not installed("openvino-telemetry"), reason="it is not installed")


@pytest.fixture
def home(tmp_path):
    """A fresh HOME."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def environment(tmp_path, home):
    """Of a user who has never set anything, with the guard in every Python process."""
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD)
    unset = ("XDG_", "HF_", "TORCH_HOME", "UNFREEZE_", "MLFLOW_", "RAY_", "NNCF_", "MPL", "TF_BUILD", "JENKINS", "CI")
    kept = {k: v for k, v in os.environ.items() if k not in telemetry.SWITCHES and not k.startswith(unset)}
    source = str(Path(telemetry.__file__).parents[2])
    log = tmp_path / "network.log"
    own = {"HOME": str(home), "USERPROFILE": str(home), "PYTHONPATH": os.pathsep.join([str(guard), source])}
    return {**kept, **own, "TEST_NETWORK_LOG": str(log)}


def ran(code, environment, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def attempts(environment):
    log = Path(environment["TEST_NETWORK_LOG"])
    return log.read_text().splitlines() if log.exists() else []


def files(home):
    return sorted(str(file.relative_to(home)) for file in home.rglob("*") if file.is_file())


@needs_openvino_telemetry
def test_the_guard_sees_what_openvino_does_by_itself(environment, home):
    """So that the test below can fail."""
    ran("import openvino.tools.ovc, time; time.sleep(1)", environment)
    assert (home / "intel").exists()
    assert any("google-analytics" in line for line in attempts(environment))


def unobserved(environment, home, commands, pages=(), file=""):
    """Runs them, and fails for an attempt to connect or a file outside of the cache."""
    ran(DRIVER, environment, json.dumps([commands, pages, file]))
    assert attempts(environment) == []
    own = (".cache/unfreeze/", ".local/state/unfreeze/")
    outside = [name for name in files(home) if not name.startswith(own)]
    assert outside == [] and not (home / "intel").exists()


NETWORK = ["--folds", "2", "--group-regex", GROUP_REGEX, "--set", "backbone=timm/test_resnet", "--set", "weights=none"]
NETWORK += ["--set", "image.size=64", "--set", "probe.stages=last", "--set", "probe.pool_size=1"]


def test_no_command_connects_to_anything_or_writes_outside_the_cache(environment, home, tmp_path):
    photos = class_folders(tmp_path / "photos", groups=6)
    probe, full, one = str(tmp_path / "probe"), str(tmp_path / "full"), str(photos / "red" / "g000_0.jpg")
    commands = [
        ["check", str(photos)],
        ["fit", str(photos), *NETWORK, "--strategy", "probe", "--run", probe],
        ["fit", str(photos), *NETWORK, "--strategy", "full", "--set", "train.epochs=1", "--run", full],
        ["predict", full, one],
        ["export", probe, "--to", "openvino", "--out", str(tmp_path / "p.xml")],
        ["recommend", str(photos), *NETWORK, "--set", 'recommend.candidates=["probe", "partial"]', "--budget", "1s"],
    ]
    pages = [["serve", probe, "--port", "0"], ["studio", str(tmp_path), "--data", str(photos), "--no-open"]]
    unobserved(environment, home, commands, pages, one)


def test_no_kind_of_file_is_written_with_a_word_to_anybody(environment, home, tmp_path):
    """ONNX Runtime and NNCF come into play."""
    for package in ("onnxruntime", "onnxscript", "nncf"):
        pytest.importorskip(package)
    photos, probe = class_folders(tmp_path / "photos", groups=6), str(tmp_path / "probe")
    commands = [["fit", str(photos), *NETWORK, "--strategy", "probe", "--run", probe]]
    commands += [
        ["export", probe, "--to", to, *more, "--max-f1-drop", "100", "--out", str(tmp_path / name)]
        for to, more, name in (
            ("onnx", [], "p.onnx"),
            ("torchscript", [], "p.pt"),
            ("openvino", ["--int8"], "q.xml"),
            ("onnx", ["--int8"], "q.onnx"),
        )
    ]
    unobserved(environment, home, commands)


@pytest.mark.parametrize("package", ["mlflow", "ray", "huggingface_hub", "onnxruntime"])
def test_every_package_with_a_switch_takes_it(package, environment, home):
    pytest.importorskip(package)
    asked = {
        "mlflow": "from mlflow.telemetry.utils import is_telemetry_disabled as off; assert off()",
        "ray": "from ray._common.usage import usage_lib; assert not usage_lib.usage_stats_enabled()",
        "huggingface_hub": "from huggingface_hub import constants; assert constants.HF_HUB_DISABLE_TELEMETRY",
        "onnxruntime": "import onnxruntime as o, sys; o.InferenceSession(open(sys.argv[1], 'rb').read())",
    }[package]
    arguments = []
    if package == "onnxruntime":  # its telemetry is native code, which leaves a device id in the cache folder
        onnx = pytest.importorskip("onnx")
        value = onnx.helper.make_tensor_value_info
        node, ends = onnx.helper.make_node("Relu", ["x"], ["y"]), [value("x", 1, [1]), value("y", 1, [1])]
        graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, home.parent / "relu.onnx")
        arguments = [str(home.parent / "relu.onnx")]
    ran(f"import unfreeze; {asked}", environment, *arguments)
    assert files(home) == [] and attempts(environment) == []


def test_a_switch_that_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    telemetry.disable()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1" and os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


@needs_openvino_telemetry
def test_openvino_that_was_imported_before_sends_nothing_more(environment):
    code = """
import openvino.tools.ovc as ovc, os, time
time.sleep(1)
log = os.environ["TEST_NETWORK_LOG"]
before = os.path.getsize(log)
import unfreeze
ovc.telemetry.send_event("ov", "test", "test", force_send=True)
time.sleep(1)
assert os.path.getsize(log) == before > 0
"""
    ran(code, environment)


def test_telemetry_costs_no_time_and_imports_nothing(environment):
    code = (
        "import sys, unfreeze; print(sorted({'openvino', 'torch', 'onnxruntime', 'ray', 'mlflow'} & set(sys.modules)))"
    )
    assert ran(code, environment).strip() == "[]"


def test_ray_workers_get_the_switches():
    from unfreeze.core.parallel import _variables

    assert {name: _variables()[name] for name in telemetry.SWITCHES} == {n: os.environ[n] for n in telemetry.SWITCHES}
