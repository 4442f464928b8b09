"""Photos of one person, plant or product must not straddle folds; often only the file name tells which belong together.

Adds: `source.group_regex`, and the score that a split photo by photo would have promised.
Run:  python examples/02_groups_from_file_names.py photos/ runs/grouped '(?P<group>[^/_]+)_[^/]*$'
"""

import sys

import unfreeze as uf


def main(source: str = "photos", folder: str = "runs/grouped", pattern: str = r"(?P<group>[^/_]+)_[^/]*$") -> None:
    recipe = uf.Recipe(strategy="probe").replace(**{"source.path": source, "source.group_regex": pattern})
    photos = uf.read(source, recipe.source)
    print(f"{len(photos)} photos in {photos.table['group'].nunique()} groups")

    scores = uf.fit(photos, recipe, folder, force=True, random_split_baseline=True).scores()
    for name, score in (("groups kept together", scores), ("photo by photo", scores["random_split"])):
        f1 = score["macro_f1"]
        print(f"{name:22} macro F1 {f1['value']:.3f} ({f1['low']:.3f} to {f1['high']:.3f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
