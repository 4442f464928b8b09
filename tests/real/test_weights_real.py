"""The pretrained network on real photos of a thing that ImageNet knows; skipped where they are absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unfreeze.data.decode import load_crop
from unfreeze.models.registry import BACKBONES

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "grocery" / "train" / "Granny-Smith"
pytestmark = pytest.mark.skipif(not PHOTOS.is_dir(), reason="the real photos (shared/data) are not here")
GRANNY_SMITH = 948  # in ImageNet-1k


def test_granny_smith_apples_are_granny_smith_apples():
    import torch

    backbone = BACKBONES["timm/tf_efficientnet_lite0"]
    prepared, model = backbone.preprocessing, backbone.build()
    files = sorted(PHOTOS.glob("*.jpg"))[:20]
    pixels = np.stack([load_crop(f.read_bytes(), prepared.size, prepared.crop, path=f) for f in files])
    values = (pixels.astype(np.float32) / 255 - np.float32(prepared.mean)) / np.float32(prepared.std)
    with torch.inference_mode():
        found = model(torch.from_numpy(values).permute(0, 3, 1, 2)).argmax(1).numpy()
    assert len(files) == 20
    assert (found == GRANNY_SMITH).sum() >= 15
