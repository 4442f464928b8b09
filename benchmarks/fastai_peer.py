"""The peer: fastai on the same backbone, weights and photos. Run by the benchmarks in a virtual environment of its own.

python fastai_peer.py frozen TABLE WEIGHTS EPOCHS                  whole job: frozen body, fit_one_cycle
python fastai_peer.py epoch TABLE WEIGHTS BACKBONE BATCH THREADS   an unfrozen epoch by the clock
python fastai_peer.py curve TABLE WEIGHTS EPOCHS CPU_S             fine_tune: score and CPU seconds after each epoch

TABLE: CSV with path, label, split (train or test). WEIGHTS: timm's state dict, or `none`. THREADS: 0 for torch's own.
The leanest data that fastai offers at this size: one random crop an epoch, no further augmentation, and otherwise its
own defaults: a loader process a core, mixed precision off.
"""

import json
import os
import sys
import time
from pathlib import Path

started = time.perf_counter()

import pandas as pd  # noqa: E402
import torch  # noqa: E402
from fastai.vision.all import (  # noqa: E402
    Callback,
    CancelFitException,
    CancelValidException,
    F1Score,
    ImageDataLoaders,
    Learner,
    Normalize,
    Resize,
    accuracy,
    default_split,
    set_seed,
)
from fastai.vision.learner import create_timm_model  # noqa: E402

imported = time.perf_counter()
WARM = 1


def learner_of(table: Path, weights: str, backbone: str = "tf_efficientnet_lite0", batch: int = 64) -> Learner:
    """What vision_learner makes of a timm name, but with the weights from a local file."""
    set_seed(0)
    photos = pd.read_csv(table)
    photos["is_valid"] = photos["split"] == "test"
    half = (0.5,) * 3
    dls = ImageDataLoaders.from_df(
        photos,
        path=table.parent,
        fn_col="path",
        label_col="label",
        valid_col="is_valid",
        item_tfms=Resize(224),
        batch_tfms=Normalize.from_stats(half, half, cuda=False),
        bs=batch,
    )
    model, _ = create_timm_model(backbone, dls.c, pretrained=False)
    if weights != "none":
        missing, surplus = model[0].model.load_state_dict(torch.load(weights, weights_only=True), strict=False)
        assert not missing and set(surplus) <= {"classifier.weight", "classifier.bias"}, (missing, surplus)
    return Learner(dls, model, splitter=default_split, metrics=[accuracy, F1Score(average="macro")])


def frozen(table: str, weights: str, epochs: str) -> dict:
    learner = learner_of(Path(table).resolve(), weights)
    learner.freeze()
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(int(epochs))
    train_loss, *_, score, f1 = map(float, learner.recorder.values[-1])
    return {
        "import_s": round(imported - started, 2),
        "total_s": round(time.perf_counter() - started, 2),
        "valid_photos": len(learner.dls.valid_ds),
        "train_loss": train_loss,
        "accuracy": score,
        "macro_f1": f1,
    }


def epoch(table: str, weights: str, backbone: str, batch: str, threads: str) -> dict:
    if int(threads):
        torch.set_num_threads(int(threads))
    learner = learner_of(Path(table).resolve(), weights, backbone, int(batch))
    learner.unfreeze()
    clock = Clock()
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, cbs=clock)
    return {"seconds": clock.seconds, "cpu_s": clock.cpu_seconds, "photos": clock.photos}


def curve(table: str, weights: str, epochs: str, cpu_seconds: str) -> dict:
    learner = learner_of(Path(table).resolve(), weights)
    points = Points(float(cpu_seconds))
    learner.add_cb(points)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(int(epochs))
    return {"points": points.found, "stopped": points.stopped}


class Clock(Callback):
    """Seconds and CPU seconds of the training part after WARM steps, loader processes among them.

    What the loaders have decoded ahead by then, four batches at most, is not in the seconds: in the peer's favour.
    """

    def before_train(self) -> None:
        self.steps, self.photos = 0, 0

    def after_batch(self) -> None:
        if not self.training:
            return
        self.steps += 1
        if self.steps > WARM:
            self.photos += len(self.xb[0])
        elif self.steps == WARM:
            self.began, self.cpu_began = time.perf_counter(), cpu()

    def after_train(self) -> None:
        self.seconds, self.cpu_seconds = time.perf_counter() - self.began, cpu() - self.cpu_began

    def before_validate(self) -> None:
        raise CancelValidException


class Points(Callback):
    """CPU seconds since the start of this process, and the scores, after each epoch."""

    order = 60  # after Recorder

    def __init__(self, most: float) -> None:
        self.most, self.found, self.stopped = most, [], False

    def before_fit(self) -> None:
        if self.stopped:
            raise CancelFitException

    def after_batch(self) -> None:
        if self.training and cpu() > self.most:
            self.stopped = True
            raise CancelFitException

    def after_epoch(self) -> None:
        loss, share, f1 = (float(x) for x in self.recorder.values[-1][-3:])
        point = {"cpu_s": round(cpu(), 1), "seconds": round(time.perf_counter() - started, 1)}
        self.found.append({**point, "log_loss": loss, "accuracy": share, "macro_f1": f1})
        print(f"  fastai after {len(self.found)} epoch(s): {self.found[-1]}", file=sys.stderr, flush=True)


def cpu() -> float:
    """CPU seconds of this process and of its loaders that have ended."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    print(json.dumps({"frozen": frozen, "epoch": epoch, "curve": curve}[sys.argv[1]](*sys.argv[2:])))
