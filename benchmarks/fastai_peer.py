"""The peer's whole job: fastai's frozen body, fit_one_cycle. Run by whole_job.py in a virtual environment of its own.

python fastai_peer.py TABLE WEIGHTS EPOCHS     (TABLE: CSV with path, label, split; WEIGHTS: timm's state dict)
"""

import json
import sys
import time
from pathlib import Path

started = time.perf_counter()

import pandas as pd  # noqa: E402
import torch  # noqa: E402
from fastai.vision.all import (  # noqa: E402
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


def main(table: Path, weights: Path, epochs: int) -> None:
    set_seed(0)
    photos = pd.read_csv(table)
    photos["is_valid"] = photos["split"] == "test"
    # The leanest data that fastai offers at this size: one random crop an epoch, no further augmentation,
    # and otherwise its own defaults: batches of 64, a loader process a core.
    dls = ImageDataLoaders.from_df(
        photos,
        path=table.parent,
        fn_col="path",
        label_col="label",
        valid_col="is_valid",
        item_tfms=Resize(224),
        batch_tfms=Normalize.from_stats((0.5,) * 3, (0.5,) * 3, cuda=False),
    )
    # What vision_learner does for a timm name, but with the weights from a local file.
    model, _ = create_timm_model("tf_efficientnet_lite0", dls.c, pretrained=False)
    missing, surplus = model[0].model.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    assert not missing and set(surplus) <= {"classifier.weight", "classifier.bias"}, (missing, surplus)
    learner = Learner(dls, model, splitter=default_split, metrics=[accuracy, F1Score(average="macro")])
    learner.freeze()
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(epochs)
    train_loss, *_, score, f1 = map(float, learner.recorder.values[-1])
    print(
        json.dumps(
            {
                "import_s": round(imported - started, 2),
                "total_s": round(time.perf_counter() - started, 2),
                "valid_photos": int(photos["is_valid"].sum()),
                "train_loss": train_loss,
                "accuracy": score,
                "macro_f1": f1,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]), int(sys.argv[3]))
