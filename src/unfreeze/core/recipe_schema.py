"""Sections of a recipe: every setting with its default, its bounds and a one-line description."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from unfreeze.core.files import is_valid_utf8
from unfreeze.core.names import nfc

# Value of `crop` for a square around the largest face instead of a share of the image.
FACE = "face"


def _crop(value: Any) -> Any:
    if value == FACE or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1):
        return value
    raise PydanticCustomError("crop", "write a share from 0 to 1, or 'face'")


Crop = Annotated[float | Literal["face"], BeforeValidator(_crop)]


class Section(BaseModel):
    """Immutable section of a recipe.

    Unknown keys are rejected, and so are values that TOML cannot represent: text that is not valid UTF-8, integers
    outside of the signed 64-bit range, and non-finite numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _writable(cls, value: Any) -> Any:
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, str) and not is_valid_utf8(one):
                raise PydanticCustomError("text", "the text is not valid UTF-8; rename what it names")
            if isinstance(one, int) and abs(one) >= 1 << 63:
                raise PydanticCustomError("number", "the number is too large for a recipe")
        return value


class Source(Section):
    """Where the images are, and what their columns mean. Empty text means automatic detection."""

    path: str = Field(default="", description="the folder, table or competition's root")
    reader: str = Field(default="", description="name of the reader; '': detected")
    path_column: str = Field(default="", description="column with the photos' paths")
    label: tuple[str, ...] = Field(default=(), description="label columns; several make a combined label")
    group: str = Field(default="", description="group column; images of a group are never split between folds")
    group_regex: str = Field(
        default="", description="regular expression that extracts the group from the path, with `(?P<group>...)`"
    )
    split: str = Field(
        default="",
        description="split column, or for a folder 'train=FOLDER,test=FOLDER' (several as A+B); 'none' pools every "
        "given split",
    )
    root: str = Field(default="", description="folder that the paths of the table are relative to")
    encoding: str = Field(default="", description="text encoding of a CSV, for example cp949; '': detected")
    corrections: str = Field(
        default="", description="CSV file with corrections of labels, which are applied before the fit"
    )

    @field_validator("path_column", "label", "group", "group_regex", "split")
    @classmethod
    def _names(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """Normalize names to NFC. `path` and `root` keep the form that the file system has."""
        return nfc(value) if isinstance(value, str) else tuple(map(nfc, value))

    @field_validator("split", mode="before")
    @classmethod
    def _named_folders(cls, value: Any) -> Any:
        """Convert {"train": ["a", "b"], "test": "c"} to `train=a,train=b,test=c`, the form that a recipe stores."""
        if not isinstance(value, dict):
            return value
        folders = {split: [one] if isinstance(one, str) else one for split, one in value.items()}
        if not all(
            isinstance(one, list | tuple) and all(isinstance(name, str) for name in one) for one in folders.values()
        ):
            raise PydanticCustomError("split", "write it as {'train': ['FOLDER', ...], 'test': 'FOLDER'}")
        return ",".join(f"{split}={name}" for split, names in folders.items() for name in names)


class Image(Section):
    """Preprocessing of an image for the network. 0 and empty text: as the backbone was trained."""

    size: int = Field(default=0, ge=0, le=2048, description="side of the square input, pixels")
    crop: Crop = Field(
        default=0.0,
        description="share of the resized short side that is kept; face: the square around the largest face, or the "
        "photo's whole center square where no face is found",
    )
    squash: bool = Field(
        default=False,
        description="resize the whole image to the square without keeping its aspect ratio, instead of cropping",
    )
    color: Literal["rgb", "gray"] = Field(
        default="rgb",
        description="gray: all three channels are replaced by the luminance (ITU-R 601), in training and prediction",
    )
    face_margin: float = Field(
        default=0.3, ge=0.0, le=5.0, description="crop face: share of the face's longer side added on each side"
    )
    face_detector: str = Field(
        default="retinaface",
        description="crop face: name of the face detector, or an .onnx file with the outputs of RetinaFace",
    )
    max_megapixels: float = Field(
        default=178.0,
        gt=0,
        le=178,
        description="images with more megapixels are rejected as decompression bombs; at most 178",
    )


class Folds(Section):
    """Outer folds of the cross-validation."""

    n_splits: int = Field(default=5, ge=2, le=10_000, description="number of outer folds")
    repeats: int = Field(
        default=0,
        ge=0,
        le=100,
        description="fold assignments that the probe is cross-validated under; its score is their mean, its model the "
        "average of their heads. 0: automatic, up to 4 for at most 1,000 images",
    )
    group_duplicates: bool = Field(default=True, description="exact and near duplicates share a group")
    use_groups: bool = Field(default=True, description="false: image-level split, whose score is optimistic")


class ProbeInput(Section):
    """Candidate input of the race between probe inputs.

    0 or empty text means the same as in `Image` and `Recipe`. All inputs are cropped as `image.crop = 'face'`
    specifies, unless `squash` is set. The backbone `here` stands for every recommended network of `unfreeze models`
    whose weights are on this machine.
    """

    backbone: str = ""
    size: int = Field(default=0, ge=0, le=2048)
    crop: Crop = 0.0
    squash: bool = False


class Probe(Section):
    """Linear probe: a linear head on features of the frozen backbone."""

    views: tuple[Literal["plain", "flip"], ...] = Field(
        default=("plain", "flip"), min_length=1, max_length=2, description="views of a photo that are averaged"
    )
    stages: str = Field(
        default="auto",
        description="'last': the final pooled layer; 'last:N': the last N blocks; auto: the last five, or all of a "
        "backbone that has fewer",
    )
    pool_size: int = Field(
        default=3, ge=1, le=7, description="each block is average-pooled to pool_size x pool_size cells"
    )
    Cs: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
        min_length=1,
        description="inverse L2 penalties tried (scikit-learn's C, for features of mean square norm 1)",
    )
    max_cache_gb: float = Field(
        default=50.0,
        ge=0,
        description="maximum size of the cached features of an input; above it, pool_size is reduced, "
        "then the number of stages; 0: no limit",
    )
    input_candidates: tuple[ProbeInput, ...] = Field(
        default=(),
        description="candidate inputs, selected inside each training fold, single or in pairs; none: image.*",
    )
    candidate_minutes: float = Field(
        default=3.0,
        gt=0,
        description="time limit of all candidates, estimated at a nominal throughput; those beyond it are skipped",
    )


class ExtraViews(Section):
    """Additional training rows of a class: augmented views of selected images. Short form: `LABEL:PER_GROUP:VIEW,VIEW`.

    Attributes:
        label: A class, a pattern with *, or `minority` for every class with fewer images than the median class.
        per_group: Number of images selected per group and class; 0 selects all.
        views: Views that are added.
    """

    label: str = Field(min_length=1)
    per_group: int = Field(default=0, ge=0)
    views: tuple[str, ...] = Field(min_length=1)

    @field_validator("label")
    @classmethod
    def _name(cls, value: str) -> str:
        return nfc(value)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        parts = value.rsplit(":", 2)  # a class may have a colon in its name
        if len(parts) < 3 or not parts[1].strip().isdecimal():
            raise ValueError("write it as LABEL:PHOTOS_A_GROUP:VIEW,VIEW, as in incorrect:3:rotate-10,rotate+10")
        return {"label": parts[0], "per_group": int(parts[1]), "views": [v.strip() for v in parts[2].split(",")]}


class Balance(Section):
    """Handling of class imbalance, for all strategies."""

    sampling: Literal["none", "over", "under", "sqrt"] = Field(
        default="none",
        description="sampling of training rows; over: small classes are repeated up to the size of the largest; under: "
        "large classes are reduced to the smallest; sqrt: class shares by the square root of the count",
    )
    loss: Literal["", "ce", "weighted", "focal", "logit-adjusted", "soft-f1"] = Field(
        default="",
        description="ce is cross entropy without weights; '': weighted by the power 0.5 in a probe and what starts "
        "from it, if nothing is sampled, else ce",
    )
    class_weight_power: float = Field(
        default=-1.0,
        ge=-1,
        le=1,
        description="power of the inverse class frequency in `weighted` and ''; -1: 1 in `weighted`, 0.5 in ''",
    )
    extra_views: tuple[ExtraViews, ...] = Field(
        default=(),
        description="additional training rows, for example `incorrect:3:rotate-10,rotate+10`: three images of each "
        "group in that class, rotated; views are rotate, brightness, crop and flip",
    )

    @field_validator("extra_views", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | dict) else value


class Labels(Section):
    """Models for labels that combine several attributes."""

    model: Literal["joint", "parts", "both"] = Field(
        default="joint",
        description="of several label columns: one head over their combinations; a head for each column, whose "
        "probabilities are multiplied; or the average of the two",
    )


class Train(Section):
    """Fine-tuning (strategies partial, full and scratch). 0, -1 and empty text: by strategy, data and machine."""

    trainable: str = Field(
        default="",
        description="which stages train: head, last:N, NAME- (from that stage on), all, none; '': by strategy",
    )
    gradual_unfreeze_epochs: float = Field(
        default=0.0, ge=0, description="epochs between the unfreezing of a stage and of the one before"
    )
    head: Literal["blocks", "classifier"] = Field(
        default="blocks",
        description="blocks: the probe's head on pooled blocks; classifier: the network's own, replaced",
    )
    head_init: Literal["probe", "random"] = Field(default="probe", description="initial weights of the head")
    epochs: int = Field(default=0, ge=0, le=10_000, description="number of epochs; 0: by strategy")
    patience: int = Field(
        default=0,
        ge=0,
        description="epochs without improvement on the inner validation groups before early stopping; 0: off",
    )
    val_fraction: float = Field(
        default=0.15,
        gt=0,
        lt=0.5,
        description="share of the groups of a training fold that are held out for early stopping",
    )
    time_budget: str = Field(
        default="",
        description="time for all folds, for example 90s, 10m or 1h30m; epochs and image sizes are chosen to fit",
    )
    batch_size: int = Field(default=0, ge=0, le=65_536, description="effective batch; 0: by the number of photos")
    micro_batch: int = Field(
        default=0, ge=0, le=65_536, description="images per forward pass; 0: by the available memory"
    )
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="sgd has Nesterov's momentum of 0.9")
    lr: float = Field(default=0.0, ge=0, description="peak learning rate of the last stage; 0: by strategy")
    lr_scaling: Literal["auto", "on", "off"] = Field(
        default="auto", description="the learning rate of each tensor is `lr` times the root mean square of its values"
    )
    head_lr_mult: float = Field(
        default=-1.0,
        ge=-1,
        description="learning rate of the head, relative to `lr`; 0: frozen; -1: 0 if it starts from a probe, else 1",
    )
    layer_decay: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="learning rate of each stage, relative to the next stage; 0: by strategy",
    )
    weight_decay: float = Field(
        default=-1.0, ge=-1, description="weight decay, not applied to norms, biases and other vectors; -1: by strategy"
    )
    warmup_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="share of the steps in which the learning rate increases to its peak"
    )
    grad_clip: float = Field(default=1.0, ge=0, description="maximum norm of the gradient; 0: off")
    ema_decay: float = Field(
        default=0.0, ge=0, lt=1, description="decay of the exponential moving average of weights and buffers; 0: off"
    )
    aux_loss_weight: float = Field(
        default=-1.0,
        ge=-1,
        description="weight of the losses of auxiliary heads; -1: as in the paper; off if images are too small",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="label smoothing: share of each label that is distributed over all classes"
    )
    mixup_alpha: float = Field(default=0.0, ge=0, description="alpha of the Beta distribution; 0: off")
    cutmix_alpha: float = Field(default=0.0, ge=0, description="alpha of the Beta distribution; 0: off")
    bn_stats: Literal["frozen", "train"] = Field(
        default="frozen", description="BatchNorm statistics; frozen: those of pretraining, also in stages that train"
    )
    wise_ft_alpha: float = Field(
        default=-1.0,
        ge=-1,
        le=1,
        description="interpolation between the initial (0) and the trained weights (1); -1: by strategy",
    )
    average_with_probe: bool = Field(
        default=False, description="average the probabilities with those of the probe that training starts from"
    )
    augment: Literal["off", "flip", "light", "standard", "strong"] = Field(
        default="standard",
        description="random augmentation in each epoch: crop, flip, rotation, color, RandAugment, erasing",
    )
    cached_views: int = Field(
        default=0, ge=0, le=8, description="partial: augmented views kept of each photo; 0: by strategy"
    )
    progressive_resizing: bool = Field(default=False, description="smaller images in the first epochs")
    precision: Literal["auto", "f32", "bf16", "f16"] = Field(
        default="auto", description="auto: by network and processor"
    )
    memory_format: Literal["auto", "contiguous", "channels_last"] = Field(
        default="auto", description="auto: channels_last where inputs are images or maps"
    )
    compile: Literal["auto", "off", "on"] = Field(
        default="auto", description="auto: on a GPU, from a million training photos on, all epochs together"
    )
    processes_per_fold: int = Field(
        default=1, ge=1, le=64, description="processes that train a fold together on parts of each batch: one per GPU"
    )


class Recommend(Section):
    """Race between strategies, in strategy auto and in `unfreeze recommend`."""

    candidates: tuple[Literal["probe", "partial", "full", "scratch"], ...] = Field(
        default=("probe", "partial", "full", "scratch"), min_length=1, description="strategies that are compared"
    )
    unfreeze_from: tuple[str, ...] = Field(
        default=(),
        max_length=4,
        description="further candidates for partial: first trained stage, as in train.trainable: last:3, blocks.4-",
    )
    budget: str = Field(
        default="",
        description="time limit, for example 90s or 10m; '': a tenth of a full fit, at least a minute or two",
    )


class Tune(Section):
    """Hyperparameter search of `unfreeze tune`."""

    trials: int = Field(default=30, ge=2, le=10_000, description="recipes that each of the three searches tries")
    budget: str = Field(
        default="", description="time for the searches, for example 90s, 10m or 1h; '': until all are tried"
    )
    n_splits: int = Field(default=3, ge=3, le=20, description="folds on which each recipe is evaluated, split by group")
    pruner: Literal["median", "hyperband", "none"] = Field(
        default="median", description="rule that stops a recipe whose score is behind after some of the folds"
    )
    search_space: tuple[str, ...] = Field(
        default=(),
        description="search space, for example `train.lr=1e-3..1e-2 log` or `probe.pool_size=1,2,3`; none: by strategy",
    )

    @field_validator("search_space", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value
