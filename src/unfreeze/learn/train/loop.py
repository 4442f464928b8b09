"""Training: `fit` yields a row an epoch. Bars, run folders, pruning and trackers read the rows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from unfreeze.core.cache import fingerprint
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe_sections import Train
from unfreeze.learn.train import checkpoints
from unfreeze.learn.train.averages import WeightAverage
from unfreeze.learn.train.checkpoints import Checkpoint
from unfreeze.learn.train.losses import OF_BATCHES, make_loss
from unfreeze.learn.train.memory import (
    MicroBatch,
    count_of,
    keep_big_blocks,
    trains_batchnorm,
)
from unfreeze.learn.train.plan import Plan
from unfreeze.learn.train.schedule import Budget, Clock, size_at
from unfreeze.learn.train.steps import Steps, make_optimiser
from unfreeze.learn.train.together import Crew

if TYPE_CHECKING:
    from unfreeze.learn.train.batches import Batches

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
    crew: Crew | None = None,
) -> Iterator[Row]:
    """Trains `model` in place and yields a row an epoch; when it ends, the model holds the best weights.

    train, valid: photos as effective batches. settings: epochs, batch and rate are set, nothing is 0 for "choose".
    folder: of checkpoints; called again with the same arguments after an interruption it goes on there, and yields
    the earlier rows first. class_counts: training photos of each class. loss: a word of LOSSES. groups: what is
    trained, as {"params", "scale": rate in multiples of settings.rate, "weight_decay"}; None: every parameter, rate 1.
    prepare: called with model and epoch (from 0) before each one, sets modes and freezes; None: `model.train()`.
    auxiliary: weight of each auxiliary head's loss. size: side of the photos where progressive resizing may ask for
    smaller ones, 0 where they have none. identity: names the data and the model, for checkpoints. crew: the processes
    that train this network together, all of which call this alike; the one that leads writes the checkpoints.

    A row: epoch (from 1), train_loss, rate (of scale 1 in the last step), seconds, photos_per_second, photos
    (trained on in this epoch), size (0: full), micro_batch, out_of_memory (times in this epoch), trained (number of
    weights), valid_loss (log loss) and valid_macro_f1 (None without `valid`), best (whether it is so far).

    Without `valid` the last weights are the best, averaged ones if settings.ema is set. The numbers depend on seed,
    plan and machine only: each epoch draws its random numbers from (seed, epoch), and a batch too large for the
    memory is done again from the same state. Raises RecipeError where the loss is no number, EngineError where a
    single photo does not fit.
    """
    reporter, crew = reporter or Reporter(), crew or Crew()
    keep_big_blocks()
    fabric = plan.fabric()
    model = plan.arranged(model.to(fabric.device))
    groups = groups or [{"params": list(model.parameters()), "scale": 1.0, "weight_decay": settings.weight_decay}]
    runner = fabric.setup_module(torch.compile(model) if plan.compile else model)
    optimiser = make_optimiser(groups, settings, plan.precision)
    average = WeightAverage(model, settings.ema) if settings.ema else None
    of_class = make_loss(loss, class_counts, settings.label_smoothing, auxiliary)
    micro, looking = (MicroBatch(min(plan.micro_batch, settings.batch), reporter=reporter) for _ in range(2))
    run = Steps(
        fabric, model, runner, optimiser, of_class, micro, looking, plan, settings, average, len(class_counts), crew
    )

    counts = [float(count) for count in class_counts]
    identity = fingerprint([identity, settings.model_dump(), loss, counts, plan.identity, seed, size, train.count])
    found = checkpoints.load(folder, identity, reporter)
    crew.wait()  # before the one that leads writes the next one
    done, best_weights, best_digest = Checkpoint(identity, 0, 0.0, micro.size, []), None, ""
    if found:
        done, state = found
        run.load(state)
        # What memory taught before the interruption holds; where there is even less of it now, the plan knows.
        micro.size, best_digest = min(micro.size, done.micro_batch), done.digests.get(done.best_file, "")
        best_weights = checkpoints.load_best(folder, done) if done.best else None
        reporter.say(f"Training goes on after epoch {done.epoch} of {settings.epochs}.")
        yield from done.rows
    # Until an epoch's end has been measured: looking at a photo takes about half of learning from it.
    ending = 0.5 * valid.count / settings.batch if valid is not None else 0.0
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
        at = size_at(clock.progress(epoch), size) if settings.progressive and size else 0
        photos, total = 0, 0.0
        # A sampler may draw more or fewer photos than there are.
        an_epoch = done.rows[-1]["photos"] if done.rows else train.count
        with _seeded(seed, epoch, fabric.device, crew.rank):
            for batch in train.epoch(epoch, settings.batch, at):
                step_started, count = time.perf_counter(), count_of(batch.inputs)
                # By the middle of the step, so that neither the first nor the last one has a rate of 0.
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
        # The averaged weights, where they are kept, are judged and saved in place of the last ones.
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
        # Not each one where epochs are short, so that writing takes a tenth of the time; a kill costs what is not kept.
        due = last or keep or not save_cost or time.perf_counter() - written_at > 10 * save_cost
        if due and crew.leads:
            save_started = time.perf_counter()
            checkpoints.save(folder, done, run.state(), best_digest)
            written_at = time.perf_counter()
            save_cost = written_at - save_started
        clock.took(pause=time.perf_counter() - ended)
        yield row

    if best_weights is not None:
        model.load_state_dict(best_weights)
    model.to(memory_format=torch.contiguous_format)
    model.eval()


def _merit(row: Row) -> tuple[float, float]:
    """What the best epoch is chosen by: macro F1, the log loss where it ties."""
    return row["valid_macro_f1"], -row["valid_loss"]


@contextlib.contextmanager
def _seeded(seed: int, epoch: int, device: torch.device, rank: int = 0) -> Iterator[None]:
    """Random numbers of an epoch (dropout, stochastic depth); outside of it they go on as if nothing had been drawn.

    From (seed, epoch) alone, so that a checkpoint need not hold random states to go on with the same ones; each process
    of a crew draws its own, for its photos are others.
    """
    entropy = (seed, epoch, rank) if rank else (seed, epoch)
    word = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        torch.manual_seed(word)
        yield


def _tell_caveats(settings: Train, loss: str, micro: MicroBatch, model: nn.Module, reporter: Reporter) -> None:
    """Says where pieces of a batch are not the same as the batch."""
    if micro.size >= settings.batch:
        return
    what = []
    if trains_batchnorm(model):
        what.append("BatchNorm takes its statistics from them")
    if loss in OF_BATCHES:
        what.append(f"the loss {loss} is computed on each")
    if what:
        reporter.say(
            f"Photos pass {micro.size} at a time, not {settings.batch}: {' and '.join(what)}, so that results differ "
            "slightly from whole batches."
        )
