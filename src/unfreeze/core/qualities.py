"""What one word of quality stands for, as changes to a recipe; `good` is the default recipe."""

from __future__ import annotations

from typing import Any

QUALITIES: dict[str, dict[str, Any]] = {
    "fast": {"probe.stages": "last", "probe.grid": 1, "probe.views": ("plain",)},
    "good": {"probe.stages": "last:5", "probe.grid": 3, "probe.views": ("plain", "flip")},
    "best": {
        "probe.stages": "last:5",
        "probe.grid": 3,
        "probe.views": ("plain", "flip"),
        "probe.race": (
            {"backbone": "tf_efficientnet_lite0", "size": 224, "crop": 0.875},
            {"backbone": "tf_efficientnet_lite0", "size": 320, "crop": 1.0},
            {"backbone": "tf_efficientnet_lite2", "size": 260, "crop": 0.89},
            {"backbone": "tf_efficientnet_lite2", "size": 320, "crop": 1.0},
            {"backbone": "tf_efficientnet_lite0", "size": 288, "crop": 1.0, "squash": True},
            {"backbone": "here"},
        ),
    },
}
