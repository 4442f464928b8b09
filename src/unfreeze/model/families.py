"""What only a family's authors know: torchvision's stages by name, auxiliary heads, and who cannot be supported.

timm's networks tell their stages themselves (`group_matcher`); torchvision's do not, so they stand here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Pattern:
    """Which parameters belong to which stage. stem: matches those of the first stage.

    block: matches those of a numbered stage; its first group is the number. divide: that many consecutive numbers make
    one stage (a downsampling layer and the blocks that follow it). Parameters that neither matches come last.
    """

    stem: str
    block: str
    divide: int = 1

    def number(self, parameter: str) -> int | None:
        """0 for the stem, 1 and more for blocks, None for what comes after them."""
        if re.match(self.stem, parameter):
            return 0
        found = re.match(self.block, parameter)
        return None if found is None else 1 + int(found[1]) // self.divide


@dataclass(frozen=True)
class Listed:
    """A pattern for each stage, stem first; parameters that none matches come last."""

    stages: tuple[str, ...]

    def number(self, parameter: str) -> int | None:
        """The first stage whose pattern matches."""
        return next((n for n, pattern in enumerate(self.stages) if re.match(pattern, parameter)), None)


_FEATURES = Pattern(r"features\.0\.", r"features\.(\d+)\.")
_DOWNSAMPLED = Pattern(r"features\.0\.", r"features\.(\d+)\.", divide=2)

# torchvision's class -> its stages. Networks whose `features` is one long list (VGG, AlexNet, SqueezeNet) are cut
# at their pooling layers instead: see `stages.py`.
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
# Cut at each pooling layer of `features`.
CUT_AT_POOLING = ("VGG", "AlexNet", "SqueezeNet")

# timm's classes whose own `group_matcher` does not follow the order in which the network runs.
TIMM: dict[str, Pattern | Listed] = {
    # The blocks of the class token run after all others, not beside the last of them.
    "Cait": Listed(
        (r"(patch_embed|pos_embed)", *(rf"blocks\.{n}\." for n in range(64)), r"(cls_token|blocks_token_only\.)")
    ),
    # Without parallel blocks (those are refused): each scale's position encodings run inside its blocks.
    "CoaT": Listed(tuple(rf"(patch_embed|cls_token|cpe|crpe|serial_blocks|norm){n}" for n in range(1, 5))),
    # Has no `group_matcher`.
    "PoolingVisionTransformer": Pattern(r"(patch_embed|pos_embed|cls_token)", r"transformers\.(\d+)\."),
    # A transition makes one map more of what a stage put out: it opens the next stage.
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

# For timm's networks without a `group_matcher` of their own.
NUMBERED = Pattern(
    r"(stem|patch_embed|conv_stem|conv1|bn1|cls_token|pos_embed)",
    r"(?:stages|dense_stages|layers|blocks|layer)\.?(\d+)\.",
)

# Auxiliary heads: the module -> the weight of its loss. Inception-v3: .4, as torchvision's own reference training and
# TF-Slim weigh it (arXiv 1512.00567 introduces the head); GoogLeNet: .3 (arXiv 1409.4842, section 5).
AUXILIARY = {"AuxLogits": 0.4, "aux1": 0.3, "aux2": 0.3}
# Keyword arguments that give a network its auxiliary heads.
WITH_AUXILIARY = {"torchvision/inception_v3", "torchvision/googlenet", "timm/inception_v3"}

# Functional activations between the last module and the pooling, which no hook sees.
FINAL_RELU = {"torchvision/DenseNet"}

# What cannot be a classifier's backbone here, and why: pattern of timm's names -> the reason.
REFUSED: dict[str, str] = {
    r"crossvit_": "its two branches run side by side and are joined only in the classifier: it has no stages in order",
    r"coat_(tiny|mini|small)$": "its branches at several scales run side by side: no stages in order",
    r"vit_\w+_sapiens2$": "takes upright photos of 3 to 4 only, not square ones",
    r"naflexvit_": "takes photos of any shape as lists of patches, not square batches",
}


def refusal(name: str) -> str | None:
    """Why a timm network cannot be used, or None. name: with or without a weights tag."""
    plain = name.partition(".")[0]
    return next((why for pattern, why in REFUSED.items() if re.match(pattern, plain)), None)
