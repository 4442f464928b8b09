"""Would gray photos do worse? One question, two recipes on the same folds, one sentence.

Adds: uf.recipe_grid, which makes a recipe for each value of a key, uf.compare, which holds them against the first,
and a page.
Run:  python examples/07_gray_or_color.py demo/photos runs/gray   (`unfreeze demo` draws these people)
      and on a folder of yours, with what a group is: ... photos/ runs/gray '(?P<group>[^/_]+)_[^/]*$'
"""

import sys

import unfreeze as uf


def main(source: str = "demo/photos", folder: str = "runs/gray", pattern: str = "") -> None:
    base = uf.Recipe(strategy="probe").replace(**{"source.path": source, "source.group_regex": pattern})
    photos = uf.read(source, base.source)

    found = uf.compare(photos, uf.recipe_grid(base, {"image.color": ["rgb", "gray"]}), folder)
    for one in found.contenders:
        f1 = one.macro_f1
        print(f"{one.name:5} macro F1 {f1.value:.3f} ({f1.low:.3f} to {f1.high:.3f})")
    print(found.sentence)
    print(uf.write_comparison(found, f"{folder}/compare.html"))


if __name__ == "__main__":
    main(*sys.argv[1:])
