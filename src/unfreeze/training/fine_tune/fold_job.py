"""Training of one fold as a self-contained job for another process.

A job and its result are stored as plain files (JSON, npz, npy and safetensors).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as to_bytes

from unfreeze.core.arrays import Rows
from unfreeze.core.cache import stable_hash
from unfreeze.core.errors import RunError, UnfreezeError
from unfreeze.core.files import atomic_write, json_memo, read_json, regular_file, write_json
from unfreeze.core.parallel import cores
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe, from_dict
from unfreeze.core.recipe_schema import Train
from unfreeze.features.extra_samples import ExtraSamples
from unfreeze.models.freezing import LrScaling
from unfreeze.training.class_balance import Sampling, resolve_balance
from unfreeze.training.fine_tune.autotune import Plan, make_plan
from unfreeze.training.fine_tune.batches import Batches, PixelBatches, sample_epoch
from unfreeze.training.fine_tune.distributed import ProcessGroup
from unfreeze.training.fine_tune.inputs import batch_factory
from unfreeze.training.fine_tune.loop import fit
from unfreeze.training.fine_tune.losses import make_loss
from unfreeze.training.fine_tune.settings import TrainSetup, auxiliary_weight, predict_proba, views_seen
from unfreeze.training.fine_tune.trainer import Budget

if TYPE_CHECKING:
    from unfreeze.models.fine_tune_model import FineTuneModel

# File name of the execution plan in the folder of a fold.
PLAN = "plan.json"


@dataclass(frozen=True)
class FoldJob:
    """Everything that the training of a fold needs.

    Attributes:
        recipe: The recipe.
        settings: Resolved `recipe.train`.
        classes: Number of classes.
        fold: Number of the fold.
        train: int64, rows to train on. Rows beyond the images are extra samples.
        valid: int64, rows held out of the training part for early stopping; empty if there are none.
        out: int64, rows to predict.
        labels: int64, classes of all images, followed by those of the extra samples.
        keys: uint64 (n, 2), content keys of all images.
        readable: bool (n,), of all images.
        start: Linear map of the probe (weight (D, C), bias (C,)), or None.
        ends: Time, as from `time.time()`, by which the fold must be finished; 0 means no limit.
        within: Maximum duration in seconds, regardless of clock changes.
        added: Extra samples.
    """

    recipe: Recipe
    settings: Train
    classes: int
    fold: int
    train: Rows
    valid: Rows
    out: Rows
    labels: Rows
    keys: NDArray[np.uint64]
    readable: NDArray[np.bool_]
    start: tuple[NDArray[np.float32], NDArray[np.float32]] | None
    ends: float = 0.0
    within: float = 0.0
    added: ExtraSamples = field(default_factory=ExtraSamples)

    def identity(self) -> str:
        """Return a hash of everything that the result depends on.

        For a time budget, this includes the requested duration and not the remaining time.
        """
        start = None if self.start is None else [stable_hash(a.tolist()) for a in self.start]
        rows = [self.train, self.valid, self.out, self.labels, self.keys, self.added.photo, self.added.view]
        marks = [stable_hash(r.tolist()) for r in rows]
        recipe = self.recipe.model_dump(mode="json", exclude={"source", "folds", "tune"})
        return stable_hash([recipe, self.settings.model_dump(), self.classes, self.fold, marks, start])

    def write(self, folder: Path) -> None:
        """Write the job as job.json and arrays.npz."""
        arrays = {n: getattr(self, n) for n in ("train", "valid", "out", "labels", "keys", "readable")}
        arrays |= {"added_photo": self.added.photo, "added_view": self.added.view}
        if self.start is not None:
            arrays |= {"weight": self.start[0], "bias": self.start[1]}
        atomic_write(folder / "arrays.npz", lambda p: np.savez(p, **arrays))
        about = {
            "recipe": self.recipe.model_dump(mode="json"),
            "settings": self.settings.model_dump(mode="json"),
            "classes": self.classes,
            "fold": self.fold,
            "ends": self.ends,
            "within": self.within,
            "views": self.added.views,
        }
        write_json(folder / "job.json", about)

    @classmethod
    def read(cls, folder: Path) -> FoldJob:
        """Load a job that `write` has written.

        Raises:
            RunError: If the files are damaged.
        """
        try:
            about = read_json(folder / "job.json")
            with np.load(regular_file(folder / "arrays.npz"), allow_pickle=False) as found:
                arrays = dict(found)
            weight, bias = arrays.pop("weight", None), arrays.pop("bias", None)
            added = ExtraSamples(arrays.pop("added_photo"), arrays.pop("added_view"), tuple(about["views"]))
            return cls(
                recipe=from_dict(about["recipe"]),
                settings=Train.model_validate(about["settings"]),
                classes=int(about["classes"]),
                fold=int(about["fold"]),
                ends=float(about["ends"]),
                within=float(about["within"]),
                start=None if weight is None or bias is None else (weight, bias),
                added=added,
                **arrays,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{folder}: the job of a fold cannot be read ({error}); run the same command again."
            ) from None


def run_fold_job(
    job: FoldJob,
    folder: Path,
    kept: Path,
    tell: Callable[[dict[str, Any]], None],
    reporter: Reporter,
    crew: ProcessGroup | None = None,
) -> None:
    """Train a fold, write its predictions to probabilities.npy in `folder`, and save the network.

    If interrupted, it resumes from the last checkpoint.

    Args:
        job: The job.
        folder: Folder of the job. The predictions are float64 (len(out), C).
        kept: File for the network.
        tell: Called with each row of the log.
        reporter: Progress reporter.
        crew: Process group; each of its processes calls this function. Rank 0 writes and reports.
    """
    crew = crew or ProcessGroup()
    setting = TrainSetup.of(job.recipe, job.settings)
    seed = job.recipe.seed * 1000 + job.fold
    torch.manual_seed(seed)
    model = setting.network(job.classes)
    if job.start is not None:
        model.start_from(*(torch.from_numpy(a) for a in job.start))
    begun = {name: tensor.clone() for name, tensor in model.trained_state().items()}
    photos = batch_factory(setting, job.keys, job.readable, job.added)
    words = resolve_balance(job.recipe.balance, job.settings.head_init == "probe")

    def batches(rows: Rows, sampler: Sampling = "none") -> Batches:
        return photos(rows, job.labels[rows], job.classes, job.settings, seed, sampler)

    train = batches(job.train, words.sampling)
    s, own = job.settings, job.labels[job.train]
    # Class counts are taken after resampling, so that sampling and class weights do not correct the same imbalance
    # twice.
    counts = np.bincount(own[sample_epoch(own, words.sampling, seed, 0)], minlength=job.classes).astype(float)
    if words.loss == "weighted":
        counts = counts**words.power
    auxiliary = auxiliary_weight(model, s)
    loss = make_loss(words.loss, counts.tolist(), s.label_smoothing, auxiliary)
    groups = model.groups(LrScaling(s.layer_decay, s.head_lr_mult, s.weight_decay, s.lr_scaling == "on"))
    model.prepare(0.0, job.settings.epochs, job.settings.bn_stats == "train")
    first = next(iter(train.plain(max(job.settings.batch_size, 2))))
    # A resumed training uses the plan that it started with.
    plan = Plan.read(folder / PLAN, job.identity())
    if plan is None or (job.ends and not plan.pace):
        plan = make_plan(
            model,
            first.inputs,
            first.targets,
            loss,
            job.settings,
            photos=job.settings.epochs * len(job.train),
            share=_side_by_side(job),
            timed=bool(job.ends),
            reporter=reporter,
        )
        if crew.leads:
            plan.write(folder / PLAN, job.identity())
    budget = None
    if job.ends:
        # Inference takes about a third of the time of a training step per image.
        looking = len(job.out) * len(views_seen(job.recipe)) / (3 * max(plan.pace, 1e-3))
        budget = Budget(max(min(job.ends - time.time(), job.within) - looking, 1.0))
        if isinstance(train, PixelBatches) and _short(job, setting, folder, budget.seconds, plan):
            s = s.model_copy(update={"progressive_resizing": True})
            reporter.say(f"Budget: too short for {s.epochs} epochs at full size; the first epochs use smaller images.")
    rows = fit(
        model,
        train,
        s,
        plan,
        folder / "training",
        class_counts=counts.tolist(),
        loss=words.loss,
        groups=groups,
        prepare=lambda _m, epoch: model.prepare(s.gradual_unfreeze_epochs, epoch, s.bn_stats == "train"),
        valid=batches(job.valid) if len(job.valid) else None,
        auxiliary=auxiliary,
        budget=budget,
        size=setting.size if isinstance(train, PixelBatches) else 0,
        seed=seed,
        identity=job.identity(),
        reporter=reporter,
        crew=crew,
    )
    for row in rows:
        if crew.leads:
            tell(row)
    device = next(model.parameters()).device
    _go_back(model.cpu(), begun, s.wise_ft_alpha)
    model.to(device)
    probabilities = predict_proba(model, batches(job.out), views_seen(job.recipe), s.batch_size, plan, crew=crew)
    if not crew.leads:
        return
    state: dict[str, torch.Tensor] = {}
    seen = set[int]()
    for name, tensor in model.trained_state().items():
        one = tensor.cpu().contiguous()
        # A module that a network uses twice is one tensor under two names, which safetensors rejects.
        place = one.untyped_storage().data_ptr()
        state[name] = one.clone() if place in seen else one
        seen.add(place)
    content = to_bytes(state, {"identity": job.identity()})
    atomic_write(folder / "probabilities.npy", lambda p: np.save(p, probabilities))
    atomic_write(kept, lambda p: p.write_bytes(content))
    shutil.rmtree(folder / "training", ignore_errors=True)  # a finished fold needs no checkpoints


def _side_by_side(job: FoldJob) -> int:
    """Return the number of processes that train in parallel when all folds are trained.

    A resumed run has fewer folds left, but must plan with the same memory.
    """
    processes = job.settings.processes_per_fold
    return max(1, min(cores() // processes, job.recipe.folds.n_splits)) * processes


def _short(job: FoldJob, setting: TrainSetup, folder: Path, seconds: float, plan: Plan) -> bool:
    """Return whether to train on smaller images because the epochs would exceed the budget.

    Decided once and saved: a resumed training must continue as it started.
    """
    if job.settings.progressive_resizing:
        return False

    def compute() -> dict[str, bool]:
        short = job.settings.epochs * len(job.train) > seconds * plan.pace > 0
        if short:
            try:
                setting.check(progressive=True)
            except UnfreezeError:  # fixed input size
                short = False
        return {"smaller": short}

    return json_memo(folder / "smaller.json", compute, lambda found: bool(found["smaller"]))


def _go_back(model: FineTuneModel, begun: dict[str, torch.Tensor], keep: float) -> None:
    """Interpolate the weights between start (0) and end (1) of training (WiSE-FT).

    References:
        Wortsman et al. 2021, arXiv 2109.01903.
    """
    if keep == 1:
        return
    ended = model.trained_state()
    mixed = {n: torch.lerp(begun[n], t, keep) if t.is_floating_point() else t for n, t in ended.items()}
    model.load_trained(mixed)
