"""Detection of likely label errors from the out-of-fold predictions, groups and duplicates of a run.

The result is one ranked table, cached as label_issues.json in the run folder, with an estimate of the number of wrong
labels and of their cost in macro F1.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.cache import stable_hash
from unfreeze.core.dataset import ImageDataset, probability_columns
from unfreeze.core.errors import RunError, SourceError, StorageError, join_names
from unfreeze.core.files import read_record, write_json
from unfreeze.core.format import format_interval, pluralize
from unfreeze.core.messages import Brief
from unfreeze.core.names import positions
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run, as_run
from unfreeze.data.scan import scan_images
from unfreeze.data.true_labels import find_truth_file, read_truth
from unfreeze.metrics import label_issues as judging
from unfreeze.metrics.label_issues import SUSPECT_COLUMNS, LabelAxis
from unfreeze.metrics.label_noise import Evidence, estimate_noise
from unfreeze.training.corrections import pairs_among
from unfreeze.training.refit_without_issues import refit_without_issues

VERSION = 3
FILE = "label_issues.json"


@dataclass(frozen=True, repr=False)
class LabelIssues(Brief):
    """Likely label errors of a run.

    Attributes:
        table: Columns `SUSPECT_COLUMNS`, highest score first; with a truth file also `true`.
        photos: Number of images that were checked.
        wrong: Estimated number of wrong labels with its 95% interval: {"value", "low", "high"}.
        cost: Macro F1 that wrong labels cost the run, in the same form.
        on_errors: Estimated share of the run's errors whose label is wrong.
        looked: Basis of the scores, in a few words.
        attributes: Attribute name -> whether it was checked per group instead of per image.
        truth: Precision and recall at k if true labels are known, otherwise None.
    """

    table: pd.DataFrame
    photos: int
    wrong: dict[str, float]
    cost: dict[str, float]
    on_errors: float
    looked: str
    attributes: dict[str, bool]
    truth: dict[str, Any] | None = None

    @property
    def detected(self) -> bool:
        """Whether the interval of the number of wrong labels excludes 0."""
        return self.wrong["low"] > 0

    def _brief(self) -> str:
        return f"{len(self.table):,} photos"

    def described(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {**asdict(self), "table": self.table.to_dict("records")}


def _fits(found: LabelIssues, photos: pd.DataFrame, classes: tuple[str, ...]) -> bool:
    """Validate a cached table against the images and classes of the run; the file may stem from elsewhere."""
    table = found.table
    scores = pd.to_numeric(table["score"], errors="coerce")
    paths = table["path"].map(lambda path: isinstance(path, str))
    return bool(
        all(is_interval(one) for one in (found.wrong, found.cost))
        and isinstance(found.on_errors, int | float)
        and isinstance(found.photos, int)
        and paths.all()
        and not table["path"].duplicated().any()
        and set(table["path"]) <= set(photos.loc[photos["fold"] >= 0, "path"])
        and all(isinstance(label, str) for label in (*table["label"], *table["suggested"], *table["reason"]))
        and set(classes) >= {*table["label"], *table["suggested"]}
        and np.isfinite(scores).all()
    )


def is_interval(found: Any) -> bool:
    """Whether the value has the form {"value", "low", "high"} with numbers. Files in a run folder are not trusted."""
    return isinstance(found, dict) and all(isinstance(found.get(k), int | float) for k in ("value", "low", "high"))


def count_sentence(wrong: dict[str, float], photos: int) -> str:
    """Sentence on the estimated number of wrong labels, shared by the reports and the command line.

    Args:
        wrong: As in `LabelIssues`. If the interval contains 0, no number is stated.
        photos: Number of images that were checked.
    """
    if wrong["low"] <= 0:
        return (
            f"No wrong labels detected among {pluralize(photos, 'label')}: contradictions between labels and "
            "out-of-fold "
            f"predictions are not significantly more frequent than with right labels "
            f"(95% interval [0, {wrong['high']:.0f}])"
        )
    return (
        f"About {wrong['value']:.0f} of {pluralize(photos, 'label')} are likely wrong "
        f"(95% interval {format_interval(wrong, 0)})"
    )


def label_issues(
    run: str | Path | Run, truth: str | Path | None = None, reporter: Reporter | None = None
) -> pd.DataFrame:
    """Find the images of a run whose labels are likely wrong, most suspicious first.

    Args:
        run: A finished run or its folder.
        truth: Table with `path` and the true `label`; the truth file of the demo data is found automatically.
        reporter: Receives progress messages.

    Returns:
        Table with the columns path, label, suggested, score and reason; with a truth file also true. The score in 0..1
        ranks the images and is not a probability.

    Raises:
        RunError: If the run has no out-of-fold predictions.
        SourceError: If the truth file does not match the run.
    """
    return find_run_label_issues(run, truth, reporter).table


def find_run_label_issues(
    run: str | Path | Run, truth: str | Path | None = None, reporter: Reporter | None = None
) -> LabelIssues:
    """Like `label_issues`, with all estimates. Cached in the run folder, so that a second call is immediate."""
    run, reporter = as_run(run), reporter or Reporter()
    photos = run.photos()
    file = Path(truth) if truth else find_truth_file(Path(run.info["root"]))
    known = read_truth(file, run.classes, run.info["answers"]) if file else None
    mark = stable_hash([VERSION, run.info.get("finished"), photos["hash"].tolist(), photos["fold"].tolist()])
    found = _kept(run.path, mark)
    if found is None or not _fits(found, photos, run.classes):
        found = _searched(run, photos, reporter)
        _keep(run.path, mark, found, reporter)
    if known is None:
        return found
    held = _held_against(found, photos[photos["fold"] >= 0], known, file)
    if held.truth != found.truth:  # the report shows the truth as well
        _keep(run.path, mark, replace(found, truth=held.truth), reporter)
    return held


def cached_label_issues(run: Path) -> LabelIssues | None:
    """Load the result of an earlier `find_run_label_issues`; None if it is absent or damaged."""
    return _kept(run, None)


def _searched(run: Run, table: pd.DataFrame, reporter: Reporter) -> LabelIssues:
    names = tuple(str(a) for a in run.info["attributes"]) or ("label",)
    photos = ImageDataset(table, Path(run.info["root"]), run.classes, tuple(run.info["answers"]), names, "", "")
    oof = run.predictions().set_index("path")
    proba = oof[probability_columns(run.classes)].reindex(table["path"]).to_numpy(np.float64)
    rows = np.flatnonzero((table["fold"] >= 0).to_numpy() & np.isfinite(proba).all(1))
    if len(rows) < 2:
        raise RunError(f"{run.path}: has no out-of-fold predictions to compare labels with.")
    looks = scan_images(photos, int(run.recipe.image.max_megapixels * 1e6), reporter).with_labels(table["label"])
    same = np.array(looks.hashes(), object) == table["hash"].to_numpy(object)
    probed = run.recipe.strategy in ("probe", "auto")
    again = probed and bool((same & looks.readable)[rows].all())
    if probed and not again:
        reporter.say("Photos have changed or are gone since the fit: its own predictions are all that is used.")
    inside, units = table.iloc[rows], table["unit"].to_numpy()[rows]
    attributes, firsts, class_values = list[LabelAxis](), list[NDArray[np.float64]](), []
    for name in names:
        values = tuple(sorted(table[name].unique())) if len(names) > 1 else run.classes
        column = table[name] if len(names) > 1 else table["label"]
        given = column.map({v: i for i, v in enumerate(values)}).to_numpy(np.int64)
        of_class = judging.of_classes(column, table["label"], run.classes, values)
        first = judged = judging.marginalize(proba, of_class, len(values))
        if again:
            known = proba if len(names) == 1 else None
            first, judged = refit_without_issues(
                photos, looks, run.recipe, given, values, judging.find_label_issues, reporter, known
            )
        firsts.append(first[rows])
        attributes.append(LabelAxis(name if len(names) > 1 else "label", values, given[rows], judged[rows]))
        class_values.append(of_class)
    doubts = [judging.score_labels(attribute, units) for attribute in attributes]
    labels, of_class = np.array([run.classes.index(name) for name in inside["label"]]), np.stack(class_values, 1)
    ranked = judging.rank_label_issues(
        inside["path"].tolist(), labels, run.classes, doubts, of_class, units, pairs_among(looks, rows)
    )
    # Only the first-pass predictions estimate the number of wrong labels: see training.refit_without_issues.
    axes = [
        Evidence.of(first, d.attribute.given, units if d.by_group else None)
        for first, d in zip(firsts, doubts, strict=True)
    ]
    noise = estimate_noise(axes, of_class, labels, proba[rows].argmax(1), units, run.recipe.seed)
    evidence_text = "two looks at each attribute, out of fold" if again else "the run's out-of-fold predictions"
    by_group = {d.attribute.name: d.by_group for d in doubts}
    return LabelIssues(ranked, len(rows), noise.wrong, noise.cost, noise.on_errors, evidence_text, by_group)


def _held_against(found: LabelIssues, inside: pd.DataFrame, known: dict[str, str], file: Path | None) -> LabelIssues:
    labels = dict(zip(inside["path"], inside["label"], strict=True))
    paths, at = list(labels), positions(known, list(labels))
    if known and max(at) < 0:
        raise SourceError(f"{file}: names none of the run's photos (first: {join_names(sorted(known), 1)}).")
    known = {paths[i]: true for i, true in zip(at, known.values(), strict=True) if i >= 0}  # by the paths of the run
    wrong = {path: true for path, true in known.items() if path in labels and true != labels[path]}
    table = found.table.assign(true=[known.get(p, own) for p, own in found.table[["path", "label"]].to_numpy()])
    hits = found.table["path"].isin(wrong).to_numpy()
    score = judging.precision_recall_at_k(hits, len(wrong))
    twice = Counter(wrong[p] for p in found.table["path"].head(2 * len(wrong)) if p in wrong)
    rows = [{"class": c, "planted": n, "found_at_2k": twice[c]} for c, n in sorted(Counter(wrong.values()).items())]
    right = sum(wrong[p] == s for p, s in found.table[["path", "suggested"]].to_numpy() if p in wrong)
    truth = {**score, "suggested_right": right, "per_class": rows, "file": str(file)}
    return replace(found, table=table, truth=truth)


def _keep(run: Path, mark: str, found: LabelIssues, reporter: Reporter) -> None:
    try:
        write_json(run / FILE, {"mark": mark, **found.described()})
    except StorageError as error:  # a read-only run can still be analyzed
        reporter.say(f"The table is not kept: {error}")


def _kept(run: Path, mark: str | None) -> LabelIssues | None:
    def parse(read: dict[str, Any]) -> LabelIssues | None:
        if mark not in (None, read.pop("mark")):  # of another run: computed again
            return None
        return LabelIssues(**{**read, "table": pd.DataFrame(read["table"], columns=list(SUSPECT_COLUMNS))})

    return read_record(run / FILE, parse)
