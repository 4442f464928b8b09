"""Photos named by a table that says which of them are for testing: these never train, and are scored apart.

Adds: columns by name (`source.label`, `source.group`, `source.split`), the test score.
Run:  python examples/03_table_with_test_split.py photos.csv runs/table colour plant split
"""

import sys

import unfreeze as uf


def main(
    table: str = "photos.csv",
    folder: str = "runs/table",
    label: str = "label",
    group: str = "group",
    split: str = "split",
) -> None:
    recipe = uf.Recipe(strategy="probe").replace(
        **{
            "source.path": table,
            "source.label": (label,),
            "source.group": group,
            "source.split": split,
            "folds.n_splits": 3,
        }
    )
    run = uf.fit(uf.read(table, recipe.source), recipe, folder, force=True)

    scores = run.scores()
    for name, score in (("out of fold", scores["out_of_fold"]), ("test split", scores["test"])):
        f1, chance = score["macro_f1"], score["chance"]
        print(
            f"{name:12} {score['photos']:4} photos: macro F1 {f1['value']:.3f} ({f1['low']:.3f} to {f1['high']:.3f}); "
            f"chance is {chance['macro_f1']:.3f}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
