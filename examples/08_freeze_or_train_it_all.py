"""Freeze the backbone, or train it all? Recipes that differ in more than one key, each with a name of its own.

Adds: named recipes instead of a grid; wins fold by fold, and what the better score costs in seconds.
Run:  python examples/08_freeze_or_train_it_all.py demo/photos runs/freeze   (`unfreeze demo` draws these people)
      and on a folder of yours, with what a group is: ... photos/ runs/freeze '(?P<group>[^/_]+)_[^/]*$' 3 224
"""

import sys

import unfreeze as uf


def main(
    source: str = "demo/photos",
    folder: str = "runs/freeze",
    pattern: str = "",
    epochs: str = "3",
    size: str = "224",
) -> None:
    base = uf.Recipe(strategy="probe").replace(
        **{"source.path": source, "source.group_regex": pattern, "image.size": int(size), "folds.n_splits": 3}
    )
    recipes = {
        "freeze": base,
        "train it all": base.replace(**{"strategy": "full", "train.epochs": int(epochs)}),
    }

    found = uf.compare(uf.read(source, base.source), recipes, folder)
    for one in found.contenders:
        print(f"{one.name:12} macro F1 {one.macro_f1.value:.3f} in {one.seconds:.0f} s")
    trained = found.named("train it all")
    print(f"trained is better in {trained.wins} of {found.folds} folds, worse in {trained.losses}")
    print(found.sentence)


if __name__ == "__main__":
    main(*sys.argv[1:])
