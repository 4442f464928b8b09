"""Family-specific rules: stages by parameter name, auxiliary heads, and unsupported networks.

Networks of timm define their own stages (`group_matcher`), with a few exceptions that are corrected here. Networks of
torchvision do not, so their stages are defined here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Pattern:
    """Assignment of parameters to numbered stages by regular expressions.

    Parameters that match neither pattern come last.

    Attributes:
        stem: Matches the parameters of the first stage.
        block: Matches the parameters of a numbered stage; the first group is the number.
        divide: Number of consecutive blocks that form one stage (a downsampling layer and the blocks after it).
    """

    stem: str
    block: str
    divide: int = 1

    def number(self, parameter: str) -> int | None:
        """Number of a parameter's stage: 0 for the stem, at least 1 for blocks, None for anything after them."""
        if re.match(self.stem, parameter):
            return 0
        found = re.match(self.block, parameter)
        return None if found is None else 1 + int(found[1]) // self.divide


@dataclass(frozen=True)
class Listed:
    """One pattern for each stage, stem first. Parameters that match none of them come last."""

    stages: tuple[str, ...]

    def number(self, parameter: str) -> int | None:
        """Number of the first stage whose pattern matches, or None."""
        return next((n for n, pattern in enumerate(self.stages) if re.match(pattern, parameter)), None)


_FEATURES = Pattern(r"features\.0\.", r"features\.(\d+)\.")
_DOWNSAMPLED = Pattern(r"features\.0\.", r"features\.(\d+)\.", divide=2)

# Class name in torchvision -> its stages. Networks whose `features` is one flat list (VGG, AlexNet, SqueezeNet) are
# split at their pooling layers instead: see `stages.py`.
TORCHVISION: dict[str, Pattern] = {
    "ResNet": Pattern(r"(conv1|bn1)\.", r"layer(\d+)\."),
    "DenseNet": Pattern(r"features\.(conv0|norm0)\.", r"features\.(?:denseblock|transition)(\d+)\."),
    "Inception3": Pattern(r"Conv2d_", r"Mixed_(\d+)"),
    "GoogLeNet": Pattern(r"conv\d\.", r"inception(\d)"),
    "MobileNetV2": _FEATURES,
    "MobileNetV3": _FEATURES,
    "EfficientNet": _FEATURES,
    "ConvNeXt": _DOWNSAMPLED,
    "SwinTransformer": _DOWNSAMPLED,
    "MNASNet": Pattern(r"layers\.[0-7]\.", r"layers\.(8|9|1[0-3])\."),
    "RegNet": Pattern(r"stem\.", r"trunk_output\.block(\d+)\."),
    "ShuffleNetV2": Pattern(r"conv1\.", r"stage(\d)\."),
    "VisionTransformer": Pattern(
        r"(conv_proj\.|class_token|encoder\.pos_embedding)", r"encoder\.layers\.encoder_layer_(\d+)\."
    ),
    "MaxVit": Pattern(r"stem\.", r"blocks\.(\d+)\."),
}
# Classes that are split at each pooling layer of `features`.
CUT_AT_POOLING = ("VGG", "AlexNet", "SqueezeNet")

# Classes of timm whose `group_matcher` does not follow the order of execution, or is missing.
TIMM: dict[str, Pattern | Listed] = {
    # The blocks of the class token run after all others, not in parallel with the last of them.
    "Cait": Listed(
        (r"(patch_embed|pos_embed)", *(rf"blocks\.{n}\." for n in range(64)), r"(cls_token|blocks_token_only\.)")
    ),
    # Variants without parallel blocks (the others are unsupported): position encodings run inside the blocks of their
    # scale.
    "CoaT": Listed(tuple(rf"(patch_embed|cls_token|cpe|crpe|serial_blocks|norm){n}" for n in range(1, 5))),
    # Has no `group_matcher`.
    "PoolingVisionTransformer": Pattern(r"(patch_embed|pos_embed|cls_token)", r"transformers\.(\d+)\."),
    # A transition adds one more map to the output of a stage: it belongs to the next stage.
    "HighResolutionNet": Listed(
        (
            r"(conv|bn)\d\.",
            r"layer1\.",
            r"(transition1|stage2)\.",
            r"(transition2|stage3)\.",
            r"(transition3|stage4)\.",
        )
    ),
}

# For networks of timm without a `group_matcher`.
NUMBERED = Pattern(
    r"(stem|patch_embed|conv_stem|conv1|bn1|cls_token|pos_embed)",
    r"(?:stages|dense_stages|layers|blocks|layer)\.?(\d+)\.",
)

# Auxiliary heads: module -> weight of its loss. Inception-v3: 0.4, as in torchvision's reference training and TF-Slim
# (the head was introduced in arXiv 1512.00567); GoogLeNet: 0.3 (arXiv 1409.4842, section 5).
AUXILIARY = {"AuxLogits": 0.4, "aux1": 0.3, "aux2": 0.3}
# Networks that can be built with auxiliary heads.
WITH_AUXILIARY = {"torchvision/inception_v3", "torchvision/googlenet", "timm/inception_v3"}

# Networks with a functional activation between the last module and the pooling, which hooks cannot capture.
FINAL_RELU = {"torchvision/DenseNet"}

# Unsupported networks of timm: pattern of the name -> reason.
REFUSED: dict[str, str] = {
    r"crossvit_": "its two branches run side by side and are joined only in the classifier: it has no stages in order",
    r"coat_(tiny|mini|small)$": "its branches at several scales run side by side: no stages in order",
    r"vit_\w+_sapiens2$": "takes upright photos of 3 to 4 only, not square ones",
    r"naflexvit_": "takes photos of any shape as lists of patches, not square batches",
}


def unsupported_reason(name: str) -> str | None:
    """Reason why a timm network is not supported, or None.

    Args:
        name: Name without the library prefix, with or without a weights tag.
    """
    plain = name.partition(".")[0]
    return next((why for pattern, why in REFUSED.items() if re.match(pattern, plain)), None)
