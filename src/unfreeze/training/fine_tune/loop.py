"""Training loop: `fit` trains a network and yields one row of metrics per epoch.

Progress bars, run folders, pruning and trackers consume the rows.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from unfreeze.core.cache import stable_hash
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe_schema import Train
from unfreeze.models.architectures import load_tensors
from unfreeze.training.fine_tune import checkpoints
from unfreeze.training.fine_tune.autotune import Plan
from unfreeze.training.fine_tune.checkpoints import Checkpoint
from unfreeze.training.fine_tune.distributed import ProcessGroup
from unfreeze.training.fine_tune.losses import OF_BATCHES, make_loss
from unfreeze.training.fine_tune.memory import MicroBatch, count_of, trains_batchnorm, tune_malloc
from unfreeze.training.fine_tune.trainer import Budget, Clock, ModelEma, Trainer, make_optimizer, size_at

if TYPE_CHECKING:
    from unfreeze.training.fine_tune.batches import Batches

Row = dict[str, Any]


def fit(
    model: nn.Module,
    train: Batches,
    settings: Train,
    plan: Plan,
    folder: Path,
    *,
    class_counts: Sequence[float],
    loss: str = "ce",
    groups: list[dict[str, Any]] | None = None,
    prepare: Callable[[nn.Module, int], None] | None = None,
    valid: Batches | None = None,
    auxiliary: float = 0.0,
    budget: Budget | None = None,
    size: int = 0,
    seed: int = 0,
    identity: str = "",
    reporter: Reporter | None = None,
    crew: ProcessGroup | None = None,
) -> Iterator[Row]:
    """Train `model` in place and yield a row per epoch. At the end, the model has the best weights.

    If called again with the same arguments after an interruption, training resumes from the checkpoint and the earlier
    rows are yielded first.

    Without `valid`, the last weights are the best ones; they are averaged if `settings.ema` is set. The results depend
    only on seed, plan and machine: each epoch draws its random numbers from (seed, epoch), and a batch that does not
    fit in memory is repeated from the same state in smaller pieces.

    Args:
        model: The network.
        train: Training images in effective batches.
        settings: Training settings with `epochs`, `batch` and `rate` resolved.
        plan: Execution plan.
        folder: Folder for checkpoints.
        class_counts: Number of training images of each class.
        loss: A key of LOSSES.
        groups: Parameter groups {"params", "scale": factor on settings.rate, "weight_decay"}. None means every
            parameter with scale 1.
        prepare: Called with model and epoch (from 0) before each epoch to set modes and freeze parameters. None means
            `model.train()`.
        valid: Validation images.
        auxiliary: Weight of each auxiliary head's loss.
        budget: Time budget.
        size: Image side, if progressive resizing may use smaller images; otherwise 0.
        seed: Random seed.
        identity: Hash of data and model, for checkpoints.
        reporter: Progress reporter.
        crew: Process group that trains this network. All processes call this function alike, and rank 0 writes the
            checkpoints.

    Yields:
        Rows with these keys: epoch (from 1), train_loss, rate (learning rate of scale 1 in the last step), seconds,
        photos_per_second, photos (images used in this epoch), size (image side, 0 means full), micro_batch,
        out_of_memory (number of times in this epoch), trained (number of trainable weights), valid_loss (log loss) and
        valid_macro_f1 (None without `valid`), best (whether it is the best epoch so far).

    Raises:
        RecipeError: If the loss is not finite.
        EngineError: If a single image does not fit in memory.
    """
    reporter, crew = reporter or Reporter(), crew or ProcessGroup()
    tune_malloc()
    fabric = plan.fabric()
    model = plan.arranged(model.to(fabric.device))
    groups = groups or [{"params": list(model.parameters()), "scale": 1.0, "weight_decay": settings.weight_decay}]
    runner = fabric.setup_module(torch.compile(model) if plan.compile else model)
    optimiser = make_optimizer(groups, settings, plan.precision)
    average = ModelEma(model, settings.ema_decay) if settings.ema_decay else None
    of_class = make_loss(loss, class_counts, settings.label_smoothing, auxiliary)
    micro, looking = (MicroBatch(min(plan.micro_batch, settings.batch_size), reporter=reporter) for _ in range(2))
    run = Trainer(
        fabric, model, runner, optimiser, of_class, micro, looking, plan, settings, average, len(class_counts), crew
    )

    counts = [float(count) for count in class_counts]
    identity = stable_hash([identity, settings.model_dump(), loss, counts, plan.identity, seed, size, train.count])
    found = checkpoints.load(folder, identity, reporter)
    crew.wait()  # before rank 0 writes the next one
    done, best_weights, best_digest = Checkpoint(identity, 0, 0.0, micro.size, []), None, ""
    if found:
        done, state = found
        run.load(state)
        # Keep a micro-batch size that was reduced before the interruption; the plan accounts for even less memory.
        micro.size, best_digest = min(micro.size, done.micro_batch), done.digests.get(done.best_file, "")
        best_weights = checkpoints.load_best(folder, done) if done.best else None
        reporter.say(f"Resuming training after epoch {done.epoch} of {settings.epochs}.")
        yield from done.rows
    # Estimate until the end of an epoch has been timed: inference takes about half of a training step.
    ending = 0.5 * valid.count / settings.batch_size if valid is not None else 0.0
    clock = Clock(settings.epochs, budget, done.seconds, ending)
    save_cost, written_at = 0.0, time.perf_counter()

    while not done.finished:
        epoch, started = done.epoch, time.perf_counter()
        halved = len(micro.halved) + len(looking.halved)
        if prepare is None:
            model.train()
        else:
            prepare(model, epoch)
        if epoch == 0 or micro.halved:
            _tell_caveats(settings, loss, micro, model, reporter)
        at = size_at(clock.progress(epoch), size) if settings.progressive_resizing and size else 0
        photos, total = 0, 0.0
        # A sampler can draw more or fewer images than the set has.
        an_epoch = done.rows[-1]["photos"] if done.rows else train.count
        with _seeded(seed, epoch, fabric.device, crew.rank):
            for batch in train.epoch(epoch, settings.batch_size, at):
                step_started, count = time.perf_counter(), count_of(batch.inputs)
                # Evaluated at the middle of the step, so that neither the first nor the last step has a rate of 0.
                progress = clock.progress(epoch + min(1.0, (photos + count / 2) / an_epoch))
                rate = run.set_rate(crew.agreed(progress) if budget else progress)
                total += count * run.step(batch, f"Epoch {epoch + 1}")
                photos += count
                clock.took(step=time.perf_counter() - step_started)
                if crew.agreed(clock.over()) if budget else clock.over():
                    break
        seconds, ended = time.perf_counter() - started, time.perf_counter()
        crew.average_buffers(model)

        row: Row = {
            "epoch": epoch + 1,
            "train_loss": total / max(photos, 1),
            "rate": rate,
            "seconds": seconds,
            "photos_per_second": photos / seconds,
            "photos": photos,
            "size": at,
            "micro_batch": micro.size,
            "out_of_memory": 0,
            "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "valid_loss": None,
            "valid_macro_f1": None,
            "best": True,
        }
        # The EMA weights, if enabled, are evaluated and saved instead of the last ones.
        with run.averaged():
            if valid is not None:
                row["valid_loss"], row["valid_macro_f1"] = run.evaluate(valid, f"Validation of epoch {epoch + 1}")
                row["best"] = not done.best or _merit(row) > _merit(done.rows[done.best - 1])
            last = epoch + 1 == settings.epochs or bool(crew.agreed(clock.over()) if budget else clock.over())
            waited = settings.patience and valid is not None and not row["best"]
            last = last or bool(waited and epoch + 1 - done.best >= settings.patience)
            keep = row["best"] and (valid is not None or last)
            if keep:
                best_weights = checkpoints.weights_of(model)
                if crew.leads:
                    best_digest = checkpoints.save_best(folder, epoch + 1, best_weights)
        row["out_of_memory"] = len(micro.halved) + len(looking.halved) - halved
        done = Checkpoint(
            identity,
            epoch + 1,
            clock.spent,
            micro.size,
            [*done.rows, row],
            epoch + 1 if keep else done.best,
            last,
        )
        # For short epochs, not every checkpoint is written, so that writing takes at most a tenth of the time. If the
        # process is killed, the epochs since the last checkpoint are lost.
        due = last or keep or not save_cost or time.perf_counter() - written_at > 10 * save_cost
        if due and crew.leads:
            save_started = time.perf_counter()
            checkpoints.save(folder, done, run.state(), best_digest)
            written_at = time.perf_counter()
            save_cost = written_at - save_started
        clock.took(pause=time.perf_counter() - ended)
        yield row

    if best_weights is not None:
        load_tensors(model, best_weights)
    model.to(memory_format=torch.contiguous_format)
    model.eval()


def _merit(row: Row) -> tuple[float, float]:
    """Key for selecting the best epoch: macro F1, with ties broken by log loss."""
    return row["valid_macro_f1"], -row["valid_loss"]


@contextlib.contextmanager
def _seeded(seed: int, epoch: int, device: torch.device, rank: int = 0) -> Iterator[None]:
    """Seed the random numbers of an epoch (dropout, stochastic depth), and restore the random state afterwards.

    The seed depends only on (seed, epoch, rank), so checkpoints need not store random states. Each process has its own
    random numbers, since it processes other images.
    """
    entropy = (seed, epoch, rank) if rank else (seed, epoch)
    word = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        torch.manual_seed(word)
        yield


def _tell_caveats(settings: Train, loss: str, micro: MicroBatch, model: nn.Module, reporter: Reporter) -> None:
    """Report if processing a batch in pieces is not equivalent to processing it at once."""
    if micro.size >= settings.batch_size:
        return
    what = []
    if trains_batchnorm(model):
        what.append("BatchNorm statistics are computed per part")
    if loss in OF_BATCHES:
        what.append(f"the loss {loss} is computed per part")
    if what:
        reporter.say(
            f"Micro-batch: images are processed {micro.size} at a time, not {settings.batch_size}: "
            f"{' and '.join(what)}, so results differ slightly from whole batches."
        )
