"""Disables the telemetry of dependencies before they are imported.

Several packages report their use to a server, or prepare to, as soon as they are imported: OpenVINO (also through
NNCF), ONNX Runtime (in native code, with a device id in the user's cache folder), MLflow, Ray and the Hugging Face Hub.
Each has a documented switch. `disable` sets all of them. It runs when `unfreeze` is imported, so in every process that
uses it, and child processes inherit the environment variables.
"""

from __future__ import annotations

import os
import sys
from typing import Any

# Environment variable -> value that disables telemetry. Values that the user has set are kept.
SWITCHES = {
    "DO_NOT_TRACK": "true",  # MLflow accepts only "true"; the Hugging Face Hub also accepts "1"
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# OpenVINO and NNCF have no variable. Their switch is a file in ~/intel, or the absence of this package, for which they
# have stubs.
_OPENVINO = "openvino_telemetry"


def disable() -> None:
    """Disable the telemetry of every dependency, including those that are already imported."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    modules: dict[str, Any] = sys.modules
    if modules.get(_OPENVINO) is None:
        modules[_OPENVINO] = None  # importing it raises ModuleNotFoundError, as if it were not installed
    elif sender := modules.get(f"{_OPENVINO}.utils.sender"):
        sender.TelemetrySender.send = _drop
    if (runtime := modules.get("onnxruntime")) is not None and hasattr(runtime, "disable_telemetry_events"):
        runtime.disable_telemetry_events()


def _drop(*_args: Any, **_options: Any) -> None:
    """Replaces the method that sends an event."""
