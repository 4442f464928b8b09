"""Linear heads on frozen features: all folds, and a grid of penalties chosen inside each training fold."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from threadpoolctl import threadpool_limits

from unfreeze.core.errors import RunError
from unfreeze.core.files import write_whole
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe_sections import Probe
from unfreeze.core.work import cores, in_threads
from unfreeze.learn.balance import Settled, log_prior
from unfreeze.learn.probe.feature_table import signed_root
from unfreeze.learn.probe.inputs import AnyFeatures
from unfreeze.learn.probe.rotation import Moments, Rotation, moments, pieces_of, rotate
from unfreeze.learn.probe.softmax import softmax
from unfreeze.learn.probe.strengths import Choice, Data, inner_choice, inner_splits, solve

F32 = NDArray[np.float32]
# Of a head that is kept: its gradient, as `fit_softmax` measures it.
_FINE = 1e-3


@dataclass(frozen=True)
class LinearHead:
    """A fitted head as one linear map on the signed root of the features.

    weight: float32 (D, C). bias: float32 (C,). strength: the chosen inverse penalty. inputs: numbers of the inputs
    whose features it reads, side by side in that order. strengths: those of its parts, if it is made of parts.
    """

    weight: F32
    bias: F32
    strength: float
    inputs: tuple[int, ...] = (0,)
    strengths: tuple[float, ...] = ()

    def logits(self, features: F32) -> F32:
        """float32 (n, C) of float32 (n, D) features, as `Features.read` gives them."""
        return self.rooted_logits(signed_root(features.copy()))

    def rooted_logits(self, rooted: F32) -> F32:
        """The same of signed roots, as `Features.rooted` gives them."""
        return rooted @ self.weight + self.bias

    def save(self, path: Path, identity: str, classes: Sequence[str] = ()) -> None:
        """Writes safetensors whole; `identity` says what it was fitted on, `classes` what its columns are."""
        tensors = {"weight": self.weight, "bias": self.bias}
        about = {"identity": identity, "classes": list(classes), "strength": self.strength, "inputs": self.inputs}
        if self.strengths:
            about["strengths"] = self.strengths
        # One key: safetensors writes several in any order, and equal heads should be equal bytes.
        content = save(tensors, {"head": json.dumps(about)})
        write_whole(path, lambda p: p.write_bytes(content))

    @classmethod
    def load(cls, path: Path) -> tuple[LinearHead, dict[str, Any]]:
        """The head, and its `identity` and `classes`. RunError if the file is absent or damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            tensors = load_file(path)
            with safe_open(path, "numpy") as file:
                written = json.loads((file.metadata() or {})["head"])
            inputs = tuple(int(i) for i in written["inputs"])
            strengths = tuple(float(s) for s in written.get("strengths", ()))
            head = cls(tensors["weight"], tensors["bias"], float(written["strength"]), inputs, strengths)
            about = {"identity": written["identity"], "classes": tuple(written["classes"])}
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
            raise RunError(f"{path}: cannot be read as a head ({error}); fit the run again with --force.") from None
        return head, about


def fit_folds(
    features: AnyFeatures,
    labels: NDArray[np.int64],
    units: NDArray[np.int64],
    folds: NDArray[np.int64],
    classes: int,
    probe: Probe,
    seed: int,
    identity: str,
    scratch: Path,
    only: list[int] | None = None,
    reporter: Reporter | None = None,
    words: Settled | None = None,
    photos: int | None = None,
) -> Iterator[tuple[int, LinearHead]]:
    """A head for each fold (or each of `only`), trained on all other folds; yields (fold, head) in order.

    labels: int (n,). units: int (n,), the groups that stay together. folds: int (n,), -1 for rows that take no part.
    The strength of each fold's head is the one with the least log loss on group-safe inner splits of its training
    rows; the outer fold has no part in it. identity: names the rows and folds, for the rotation's cache. words: what is
    done for small classes. photos: rows from this one on are added ones, which are learnt from and never held out.
    """
    data = Data(labels, units, classes, words or Settled(), seed, len(labels) if photos is None else photos)
    count = int(folds.max()) + 1
    todo = list(range(count)) if only is None else only
    if not todo:
        return
    statistics = [moments(features.select((i,)), folds, count) for i in range(features.inputs)]
    # By the number of all folds, not of those left to do: with other BLAS threads the last bits would differ,
    # and a run taken up again must equal one that was never cut off.
    workers = min(cores(), count)

    def one(fold: int) -> tuple[int, LinearHead]:
        return fold, _fit_fold(features, data, folds, fold, probe, identity, scratch, statistics)

    # Folds side by side with one BLAS thread each: an eigendecomposition gains little from threads of its own and
    # crawls when another program holds a core.
    with (
        threadpool_limits(max(1, cores() // workers), user_api="blas"),
        (reporter or Reporter()).bar("Fitting heads", len(todo)) as advance,
    ):
        for result in in_threads(one, todo, workers, ahead=workers):
            advance(1)
            yield result


def _fit_fold(
    features: AnyFeatures,
    data: Data,
    folds: NDArray[np.int64],
    fold: int,
    probe: Probe,
    identity: str,
    scratch: Path,
    statistics: list[Moments],
) -> LinearHead:
    """The head of one fold. Several inputs race: each alone, then the best of them with each other one."""
    splits = inner_splits(np.flatnonzero((folds >= 0) & (folds != fold)), data.units, folds, data.seed)
    splits = [(train, valid[valid < data.photos]) for train, valid in splits]

    def attempt(inputs: tuple[int, ...]) -> _Attempt:
        part, known = features.select(inputs), Moments.joined([statistics[i] for i in inputs])
        place = scratch / f"fold-{fold}-{'-'.join(map(str, inputs))}.npy"
        rotation = rotate(part, known, folds, fold, data.seed, identity, place)
        return _Attempt(inputs, rotation, inner_choice(rotation, splits, data, probe), place)

    winner = attempt((0,))
    try:
        alone = [(i,) for i in range(1, features.inputs)]
        for candidate in alone:
            winner = winner.against(attempt(candidate))
        best_alone = winner.inputs[0]
        for other in range(features.inputs):
            if other != best_alone:
                winner = winner.against(attempt((best_alone, other)))
        train = winner.rotation.train
        weight, bias = solve(winner.rotation, data, train, (winner.choice.strength,), _FINE, winner.choice.start)
        if data.words.loss == "logit-adjusted":
            # Fitted were the logits plus the log prior; the biases, which bear no penalty, give it back exactly.
            bias = bias - log_prior(data.weights(train)[2])
        unfolded = winner.rotation.unfold(features.select(winner.inputs), weight[0], bias[0])
        return LinearHead(*unfolded, strength=winner.choice.strength, inputs=winner.inputs)
    finally:
        winner.clean()


@dataclass(frozen=True)
class _Attempt:
    """Some inputs, tried inside a training fold."""

    inputs: tuple[int, ...]
    rotation: Rotation
    choice: Choice
    place: Path

    def against(self, other: _Attempt) -> _Attempt:
        """The one with the lower loss, ties to the earlier; the loser's file goes."""
        winner, loser = (other, self) if other.choice.loss < self.choice.loss else (self, other)
        loser.clean()
        return winner

    def clean(self) -> None:
        """Takes away the file of a large rotation."""
        with contextlib.suppress(OSError):
            self.place.unlink()


def predict_folds(features: AnyFeatures, heads: list[LinearHead], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Probabilities float64 (len(rows), C): the mean over the heads' probabilities."""
    parts = []
    for piece in pieces_of(rows):
        read = {inputs: features.select(inputs).rooted(piece) for inputs in dict.fromkeys(h.inputs for h in heads)}
        parts.append(np.mean([softmax(head.rooted_logits(read[head.inputs])) for head in heads], axis=0))
    features.forget_pages()
    return np.concatenate(parts) if parts else np.zeros((0, len(heads[0].bias)))
