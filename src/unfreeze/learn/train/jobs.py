"""One fold's training as a job that another process can do: written as plain files, done, answered as plain files."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from safetensors.torch import save as to_bytes

from unfreeze.core.cache import cache_root, fingerprint
from unfreeze.core.errors import RunError, UnfreezeError
from unfreeze.core.files import storage_errors, write_json, write_whole
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe, from_mapping
from unfreeze.core.recipe_sections import Train
from unfreeze.learn.added import AddedRows
from unfreeze.learn.balance import Sampling, settled
from unfreeze.learn.train.batches import Batches, PixelBatches, drawn_rows
from unfreeze.learn.train.loop import fit
from unfreeze.learn.train.losses import make_loss
from unfreeze.learn.train.plan import Plan, make_plan
from unfreeze.learn.train.schedule import Budget
from unfreeze.learn.train.strategy_photos import photos_of
from unfreeze.learn.train.together import Crew
from unfreeze.learn.train.tuning import Setting, auxiliary_weight, predicted, views_seen
from unfreeze.model.freezing import Rates

if TYPE_CHECKING:
    from unfreeze.model.tuned import Tuned

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Job:
    """What a fold's training needs.

    settings: recipe.train with nothing left to choose. train, out: int64 rows of all photos that it learns from, and
    those that it predicts. valid: rows held inside the training part to stop by, none if empty. labels: int64 of all
    photos, and of the added rows behind them, which only `train` names. keys, readable: of all photos. start: the
    probe's linear map (weight (D, C), bias (C,)) or None.
    ends: when the fold must be done, by `time.time()`; 0: when it is. within: seconds that it has at most, whatever
    the clock says meanwhile.
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
    added: AddedRows = field(default_factory=AddedRows)

    def identity(self) -> str:
        """Names all that the result depends on; of a budget the wish, not the time that is left of it."""
        start = None if self.start is None else [fingerprint(a.tolist()) for a in self.start]
        rows = [self.train, self.valid, self.out, self.labels, self.keys, self.added.photo, self.added.view]
        marks = [fingerprint(r.tolist()) for r in rows]
        recipe = self.recipe.model_dump(mode="json", exclude={"source", "folds", "tune"})
        return fingerprint([recipe, self.settings.model_dump(), self.classes, self.fold, marks, start])

    def write(self, folder: Path) -> None:
        """As job.json and arrays.npz."""
        arrays = {n: getattr(self, n) for n in ("train", "valid", "out", "labels", "keys", "readable")}
        arrays |= {"added_photo": self.added.photo, "added_view": self.added.view}
        if self.start is not None:
            arrays |= {"weight": self.start[0], "bias": self.start[1]}
        write_whole(folder / "arrays.npz", lambda p: np.savez(p, **arrays))
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
    def read(cls, folder: Path) -> Job:
        """The reverse of `write`. RunError where the files are damaged."""
        try:
            about = json.loads((folder / "job.json").read_text("utf-8"))
            with np.load(folder / "arrays.npz", allow_pickle=False) as found:
                arrays = dict(found)
            weight, bias = arrays.pop("weight", None), arrays.pop("bias", None)
            added = AddedRows(arrays.pop("added_photo"), arrays.pop("added_view"), tuple(about["views"]))
            return cls(
                recipe=from_mapping(about["recipe"]),
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


def do(
    job: Job,
    folder: Path,
    kept: Path,
    tell: Callable[[dict[str, Any]], None],
    reporter: Reporter,
    crew: Crew | None = None,
) -> None:
    """Trains the fold and leaves probabilities.npy (len(out), C) float64 in `folder`, and the network as `kept`.

    tell: called with each row of the log. Interrupted, it goes on from its last checkpoint. crew: processes that do the
    job together, each calling this; the one that leads writes and tells.
    """
    crew = crew or Crew()
    setting = Setting.of(job.recipe, job.settings)
    seed = job.recipe.seed * 1000 + job.fold
    torch.manual_seed(seed)
    model = setting.network(job.classes)
    if job.start is not None:
        model.start_from(*(torch.from_numpy(a) for a in job.start))
    begun = {name: tensor.clone() for name, tensor in model.trained_state().items()}
    photos = photos_of(setting, job.keys, job.readable, job.added)
    words = settled(job.recipe.balance, job.settings.start == "probe")

    def batches(rows: Rows, sampler: Sampling = "none") -> Batches:
        return photos(rows, job.labels[rows], job.classes, job.settings, seed, sampler)

    train = batches(job.train, words.sampling)
    s, own = job.settings, job.labels[job.train]
    # The loss sees the classes as they are drawn, so that sampling and weights do not correct the same thing twice.
    counts = np.bincount(own[drawn_rows(own, words.sampling, seed, 0)], minlength=job.classes).astype(float)
    if words.loss == "weighted":
        counts = counts**words.power
    auxiliary = auxiliary_weight(model, s)
    loss = make_loss(words.loss, counts.tolist(), s.label_smoothing, auxiliary)
    groups = model.groups(Rates(s.layer_decay, s.head_rate, s.weight_decay, s.relative == "on"))
    model.prepare(0.0, job.settings.epochs, job.settings.batchnorm == "train")
    first = next(iter(train.plain(max(job.settings.batch, 2))))
    key = {**setting.key(), "classes": job.classes, "threads": torch.get_num_threads()}
    ahead = job.settings.epochs * len(job.train)
    # Folds that start side by side must train alike: the first one measures, the others wait and take its plan.
    with ExitStack() as held:
        lock = cache_root() / "plans.lock"
        with storage_errors(lock):
            held.enter_context(FileLock(lock))
        plan = make_plan(model, first.inputs, first.targets, loss, job.settings, key, photos=ahead, reporter=reporter)
    budget = None
    if job.ends:
        # Looking at a photo takes about a third of learning from it.
        looking = len(job.out) * len(views_seen(job.recipe)) / (3 * max(fastest(plan), 1e-3))
        budget = Budget(max(min(job.ends - time.time(), job.within) - looking, 1.0))
        if isinstance(train, PixelBatches) and _short(job, setting, folder, budget.seconds, plan):
            s = s.model_copy(update={"progressive": True})
            reporter.say(f"Budget: it is short for {s.epochs} epochs, so photos are smaller in the first part.")
    rows = fit(
        model,
        train,
        s,
        plan,
        folder / "training",
        class_counts=counts.tolist(),
        loss=words.loss,
        groups=groups,
        prepare=lambda _m, epoch: model.prepare(s.gradual, epoch, s.batchnorm == "train"),
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
    _go_back(model.cpu(), begun, s.keep)
    model.to(device)
    probabilities = predicted(model, batches(job.out), views_seen(job.recipe), s.batch, plan, crew=crew)
    if not crew.leads:
        return
    state = {name: tensor.cpu().contiguous() for name, tensor in model.trained_state().items()}
    content = to_bytes(state, {"identity": job.identity()})
    write_whole(folder / "probabilities.npy", lambda p: np.save(p, probabilities))
    write_whole(kept, lambda p: p.write_bytes(content))
    shutil.rmtree(folder / "training", ignore_errors=True)  # a finished fold needs no checkpoints


def fastest(plan: Plan) -> float:
    """Photos a second of the plan's trials; 0 where none were run."""
    return max((speed for speed in plan.speeds.values() if isinstance(speed, float)), default=0.0)


def _short(job: Job, setting: Setting, folder: Path, seconds: float, plan: Plan) -> bool:
    """Whether smaller photos are to save time: the epochs would outlast it, and the network can take them.

    Decided once and kept: a training that is taken up again has to go on as it began.
    """
    if job.settings.progressive:
        return False
    mark = folder / "smaller.json"
    with contextlib.suppress(OSError, ValueError):
        return bool(json.loads(mark.read_text("utf-8"))["smaller"])
    short = job.settings.epochs * len(job.train) > seconds * fastest(plan) > 0
    if short:
        try:
            setting.check(progressive=True)
        except UnfreezeError:  # built for one size
            short = False
    write_json(mark, {"smaller": short})
    return short


def _go_back(model: Tuned, begun: dict[str, torch.Tensor], keep: float) -> None:
    """Weights between where training began (0) and ended (1): WiSE-FT, Wortsman et al. 2021, arXiv 2109.01903."""
    if keep == 1:
        return
    ended = model.trained_state()
    mixed = {n: torch.lerp(begun[n], t, keep) if t.is_floating_point() else t for n, t in ended.items()}
    model.load_trained(mixed)
