"""Which backbone? Those whose weights are on this machine, and an untrained one to see what pretraining is worth.

Adds: more than one other, with intervals that hold for all of them at once; what differs class by class.
Run:  python examples/09_which_backbone.py demo/photos runs/backbones   (`unfreeze demo` draws these people)
      and on a folder of yours, with what a group is: ... photos/ runs/backbones '(?P<group>[^/_]+)_[^/]*$' 224
"""

import sys

import unfreeze as uf
from unfreeze.models.registry import find_backbone

WANTED = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")


def main(
    source: str = "demo/photos",
    folder: str = "runs/backbones",
    pattern: str = "",
    size: str = "0",
    engine: str = "auto",
) -> None:
    base = uf.Recipe(strategy="probe").replace(
        **{"source.path": source, "source.group_regex": pattern, "image.size": int(size), "engine": engine}
    )
    here = [name for name in WANTED if find_backbone(name).weights.here()]
    recipes = {name: base.replace(backbone=name) for name in here}
    recipes["resnet18, untrained"] = base.replace(backbone="torchvision/resnet18", weights="none")

    found = uf.compare(uf.read(source, base.source), recipes, folder)
    print(f"{found.base.name}: macro F1 {found.base.macro_f1.value:.3f}")
    for one in found.contenders[1:]:
        print(one.sentence)
    widest = max(found.classes, key=lambda row: abs(row.difference.value))
    print(f"{found.best} differs most in '{widest.name}': F1 {widest.best:.3f} in place of {widest.base:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
