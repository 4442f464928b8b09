"""New photos in, a submission out that matches the competition's template row by row.

Adds: `write_submission`, and what becomes of photos that cannot be read.
Run:  python examples/04_predict_and_submit.py runs/first new_photos/ template.csv submission.csv
"""

import sys

import unfreeze as uf


def main(
    run: str = "runs/first", images: str = "new_photos", template: str = "template.csv", out: str = "submission.csv"
) -> None:
    classifier = uf.load(run)
    table = classifier.predict(images)  # path, label, p_<class>, error: a photo that cannot be read is a row, too
    unread = table[table["error"] != ""]
    print(f"{len(table)} photos, {len(unread)} of them could not be read")

    commonest = classifier.run.photos()["label"].mode()[0]
    answers = tuple(classifier.run.info["answers"])  # what is written for each class
    sent = uf.write_submission(table, template, out, classifier.run.classes, answers, fallback=commonest)
    print(sent.head().to_string(index=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
