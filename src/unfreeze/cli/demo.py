"""Command `demo`: synthetic images, then every step of the workflow, each with the equivalent command."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from unfreeze.cli.console import err, out, reporter, say, then
from unfreeze.cli.data import list_findings
from unfreeze.core.format import format_estimate, format_score
from unfreeze.core.recipe import Recipe


def demo(
    folder: Annotated[Path, typer.Argument(help="Where photos, run and submission go.")] = Path("demo"),
    people: Annotated[
        int, typer.Option(min=20, max=5000, help="People to draw for training, 7 photos each.", metavar="N")
    ] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other people.", metavar="N")] = 0,
) -> None:
    """Draw people with masks, then check, fit, predict, submit and report: the main job in one command.

    Example: `unfreeze demo`
    """
    started = time.perf_counter()
    import numpy as np
    import pandas as pd

    from unfreeze.core.dataset import findings_frame
    from unfreeze.data.checks import run_checks
    from unfreeze.data.readers import read
    from unfreeze.demo.dataset import make_demo
    from unfreeze.inference.predictor import Classifier
    from unfreeze.inference.submission import write_submission
    from unfreeze.metrics.classification import confusion_matrix, macro_f1
    from unfreeze.reports.run_report import write_report
    from unfreeze.training.crossval import cross_validate

    progress, photos_folder, run_folder = reporter(), folder / "photos", folder / "run"
    test_people = max(10, people // 3)
    _step(f"Drawing {people} people for training and {test_people} for testing")
    with progress.bar("Drawing", 7 * (people + test_people)) as advance:
        drawn = 0

        def on_photo(done: int, total: int) -> None:
            nonlocal drawn
            advance(done - drawn)
            drawn = done

        truth = make_demo(photos_folder, people, test_people, seed, on_photo=on_photo)

    _step(f"unfreeze check {photos_folder}")
    photos = read(photos_folder)
    say(photos.choice)
    checked, _ = run_checks(photos, reporter=progress)
    list_findings(findings_frame(checked.findings))

    # With few people, a class may have fewer of them than there are folds by default.
    folds = min(Recipe().folds.n_splits, int(checked.table.groupby("label")["unit"].nunique().min()))
    changes = {"source.path": str(photos_folder), "seed": seed, "folds.n_splits": folds}
    recipe = Recipe(strategy="probe").replace(**changes)
    typed = [
        "unfreeze",
        "fit",
        str(photos_folder),
        "--run",
        str(run_folder),
        "--strategy",
        "probe",
        "--random-split-baseline",
    ]
    typed += ["--folds", str(folds)] if folds != Recipe().folds.n_splits else []
    typed += ["--seed", str(seed)] if seed else []
    _step(shlex.join(typed))
    command = shlex.join([*typed, "--force"])
    run = cross_validate(
        photos, recipe, run_folder, force=True, random_split_baseline=True, command=command, reporter=progress
    )
    scores = run.scores()
    random = format_estimate(scores["random_split"]["macro_f1"])
    say(f"  macro F1 of an image-level split: {random}   people are in several folds")
    say(f"  macro F1 on unseen people:        {format_estimate(scores['macro_f1'])}   each person is in one fold")

    eval_images, template, submission = (
        photos_folder / "eval" / "images",
        photos_folder / "eval" / "info.csv",
        folder / "submission.csv",
    )
    _step(f"unfreeze predict {run_folder} {eval_images} --template {template} --out {submission}")
    classifier = Classifier.load(run)
    table = classifier.predict(eval_images, reporter=progress)
    answers = tuple(run.info["answers"])
    common = str(photos.table["label"].value_counts().index[0])
    write_submission(table, template, submission, run.classes, answers, common)
    page = write_report(run.path)

    sent = pd.read_csv(submission, dtype={"ImageID": str})
    true = np.array([truth["eval"][name] for name in sent["ImageID"]])
    confusion = confusion_matrix(true, sent["ans"].to_numpy(), 18)
    _step("Evaluation on the true labels of the test images")
    accuracy, f1 = format_score(np.trace(confusion) / len(true)), format_score(float(macro_f1(confusion)))
    say(f"  accuracy {accuracy}, macro F1 {f1} on {len(true)} photos of {test_people} other people")
    say(f"  Submission: {submission}")
    say(f"  Report:     {page}")
    say(f"  {time.perf_counter() - started:.0f} s in all")
    then(f"unfreeze scores {shlex.quote(str(run_folder))}")


def _step(text: str) -> None:
    err.file.flush()
    out.print()
    out.print(Text(text, style="bold"), soft_wrap=True)
