"""Does over-sampling help the small classes? A grid of two keys, and the rare class looked at by itself.

Adds: two keys varied at once, and the difference class by class. (uf.compare_balance tries every word of balance.)
Run:  python examples/10_over_sampling.py demo/photos runs/sampling   (`unfreeze demo` draws these people)
      and on a folder of yours, with what a group is: ... photos/ runs/sampling '(?P<group>[^/_]+)_[^/]*$'
"""

import sys

import unfreeze as uf


def main(source: str = "demo/photos", folder: str = "runs/sampling", pattern: str = "") -> None:
    base = uf.Recipe(strategy="probe").replace(
        **{"source.path": source, "source.group_regex": pattern, "balance.loss": "ce"}
    )
    grid = uf.recipe_grid(base, {"balance.sampling": ["none", "over"], "probe.views": [["plain", "flip"], ["plain"]]})

    found = uf.compare(uf.read(source, base.source), grid, folder)
    for one in found.contenders:
        print(f"{one.name:30} macro F1 {one.macro_f1.value:.3f}  {one.sentence}")
    rare = min(found.classes, key=lambda row: row.photos)
    d = rare.difference
    print(f"rarest is '{rare.name}', {rare.photos} photos: F1 {rare.base:.3f}, by {found.best} {rare.best:.3f}")
    print(f"a difference of {d.value:+.3f} (95%: {d.low:+.3f} to {d.high:+.3f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
