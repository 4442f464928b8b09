"""The shortest way: a folder of class folders in, a scored run and a classifier out.

Adds: `read`, `check`, `fit`, `load`, `predict`.
Run:  python examples/01_fit_a_folder.py photos/ runs/first
"""

import sys

import unfreeze as uf


def main(source: str = "photos", folder: str = "runs/first") -> None:
    photos = uf.read(source)
    print(photos.choice)
    for finding in uf.check(photos).findings:
        print(f"{finding.severity}: {finding.message}")

    # A head on the frozen network: minutes at most. Recipe() alone first races it against training.
    run = uf.fit(photos, uf.Recipe(strategy="probe"), folder, force=True)
    score = run.scores()["macro_f1"]
    print(f"macro F1 {score['value']:.3f} (95%: {score['low']:.3f} to {score['high']:.3f}), out of fold")
    print(f"report: {uf.write_report(folder)}")

    table = uf.load(run).predict(source)  # any folder, photo or table; here those that it has learned from
    print(table[["path", "label"]].head().to_string(index=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
