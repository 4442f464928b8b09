"""The sections of a recipe: each choice with its default, its bounds and what it means in one line."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from unfreeze.core.files import is_text

# The crop that is a square around the largest face instead of a share of the photo.
FACE = "face"


def _crop(value: Any) -> Any:
    if value == FACE or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1):
        return value
    raise PydanticCustomError("crop", "write a share from 0 to 1, or 'face'")


Crop = Annotated[float | Literal["face"], BeforeValidator(_crop)]


class Section(BaseModel):
    """A frozen part of a recipe; unknown keys are refused, and so is what no TOML file could hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _writable(cls, value: Any) -> Any:
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, str) and not is_text(one):
                raise PydanticCustomError("text", "the text is not valid UTF-8; rename what it names")
            if isinstance(one, int) and abs(one) >= 1 << 63:
                raise PydanticCustomError("number", "the number is too large for a recipe")
        return value


class Source(Section):
    """Where the photos come from and what their columns mean. Empty text means: find it yourself."""

    path: str = Field(default="", description="the folder, table or competition's root")
    reader: str = Field(default="", description="read it as this kind; '': recognised")
    path_column: str = Field(default="", description="column with the photos' paths")
    label: tuple[str, ...] = Field(default=(), description="label columns; several make a combined label")
    group: str = Field(default="", description="column of what must stay together")
    group_regex: str = Field(default="", description="the group from the path, by `(?P<group>...)`")
    split: str = Field(default="", description="split column; 'none' pools every given split")
    root: str = Field(default="", description="folder that the table's paths start from")
    verdicts: str = Field(default="", description="a file of verdicts on photos that the fit obeys")


class Image(Section):
    """How a photo becomes the network's input. 0 or empty text: what the backbone was trained with."""

    size: int = Field(default=0, ge=0, le=2048, description="side of the square input, pixels")
    crop: Crop = Field(
        default=0.0,
        description="share of the resized short side that is kept; face: the square around the largest face, or the "
        "photo's whole centre square where no face is found",
    )
    squash: bool = Field(default=False, description="press the whole photo into the square instead of cropping it")
    color: Literal["rgb", "gray"] = Field(
        default="rgb",
        description="gray: luminance (ITU-R 601) takes the place of all three channels, in training and prediction",
    )
    margin: float = Field(
        default=0.3, ge=0.0, le=5.0, description="crop face: share of the face's longer side added on each side"
    )
    detector: str = Field(
        default="retinaface", description="crop face: what finds faces, by name, or an .onnx file like RetinaFace's"
    )
    max_megapixels: float = Field(default=178.0, gt=0, description="photos with more pixels are refused as bombs")


class Folds(Section):
    """The outer folds."""

    count: int = Field(default=5, ge=2, le=10_000, description="how many")
    join_duplicates: bool = Field(default=True, description="exact and near duplicates share a group")
    by_group: bool = Field(default=True, description="false: split photo by photo, which flatters the score")


class Input(Section):
    """A candidate input of the race: 0 or empty text as in Image and Recipe; all are cut as image.crop = 'face' says,
    unless squashed.

    backbone 'here': each network of the short list of `unfreeze models` whose weights are on this machine.
    """

    backbone: str = ""
    size: int = Field(default=0, ge=0, le=2048)
    crop: Crop = 0.0
    squash: bool = False


class Probe(Section):
    """The linear head on frozen features."""

    views: tuple[Literal["plain", "flip"], ...] = Field(
        default=("plain", "flip"), min_length=1, max_length=2, description="views of a photo that are averaged"
    )
    stages: str = Field(default="last:5", description="'last': the final pooled layer, or 'last:N': the last N blocks")
    grid: int = Field(default=3, ge=1, le=7, description="each block is averaged over grid x grid cells")
    strengths: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
        min_length=1,
        description="inverse L2 penalties tried (scikit-learn's C, for features of mean square norm 1)",
    )
    max_gigabytes: float = Field(
        default=0.0,
        ge=0,
        description="features may take this much on disk, else the grid shrinks; 0: half of what is free",
    )
    race: tuple[Input, ...] = Field(
        default=(), description="inputs that race inside each training fold, alone and in pairs; none: image.*"
    )
    race_minutes: float = Field(default=3.0, gt=0, description="inputs that would outlast this are left out")


class Added(Section):
    """New rows of a class: chosen photos are learnt from in these views as well. Short: 'LABEL:PER_GROUP:VIEW,VIEW'.

    label: a class, a pattern with *, or 'minority': each class with fewer photos than the median class. per_group: so
    many photos of each group and class are chosen; 0: all.
    """

    label: str = Field(min_length=1)
    per_group: int = Field(default=0, ge=0)
    views: tuple[str, ...] = Field(min_length=1)

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
    """What is done for classes with few photos: the one place for it, whatever trains."""

    sampling: Literal["none", "over", "under", "sqrt"] = Field(
        default="none",
        description="rows that are learnt from: all once; small classes repeated up to the largest; large ones cut to "
        "the smallest; shares by the square root of the count",
    )
    loss: Literal["", "ce", "weighted", "focal", "logit-adjusted", "soft-f1"] = Field(
        default="",
        description="ce is cross entropy without weights; '': weighted by the power .5 in a probe and what starts from "
        "it, if nothing is sampled, else ce",
    )
    power: float = Field(
        default=-1.0,
        ge=-1,
        le=1,
        description="power of the inverse class frequency in `weighted` and ''; -1: 1 in `weighted`, .5 in ''",
    )
    add: tuple[Added, ...] = Field(
        default=(),
        description="new rows, as `incorrect:3:rotate-10,rotate+10`: three photos of each group in that class, turned; "
        "views are rotate, brightness, crop and flip",
    )

    @field_validator("add", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | dict) else value


class Labels(Section):
    """How labels that combine several attributes are learnt."""

    model: Literal["joint", "parts", "both"] = Field(
        default="joint",
        description="of several label columns: one head over their combinations; a head for each column, whose "
        "probabilities are multiplied; or the average of the two",
    )


class Train(Section):
    """Fine-tuning: strategies late, full and scratch. 0, -1 or empty text: chosen by strategy, data and machine."""

    unfreeze: str = Field(
        default="",
        description="which stages train: head, last:N, NAME- (from that stage on), all, none; '': by strategy",
    )
    gradual: float = Field(
        default=0.0, ge=0, description="epochs between the unfreezing of a stage and of the one before"
    )
    head: Literal["blocks", "classifier"] = Field(
        default="blocks",
        description="blocks: the probe's head on pooled blocks; classifier: the network's own, replaced",
    )
    start: Literal["probe", "random"] = Field(default="probe", description="what the head starts from")
    epochs: int = Field(default=0, ge=0, le=10_000, description="0: by strategy")
    patience: int = Field(
        default=0, ge=0, description="epochs without improvement on inner groups before it stops; 0: off"
    )
    valid: float = Field(default=0.15, gt=0, lt=0.5, description="share of a training fold's groups held for stopping")
    budget: str = Field(
        default="", description="time for all folds, as 90s, 10m or 1h30m; epochs and sizes fit into it"
    )
    batch: int = Field(default=0, ge=0, le=65_536, description="effective batch; 0: by the number of photos")
    micro_batch: int = Field(default=0, ge=0, le=65_536, description="photos at once; 0: by measured memory")
    optimiser: Literal["adamw", "sgd"] = Field(default="adamw", description="sgd has Nesterov's momentum of .9")
    rate: float = Field(default=0.0, ge=0, description="peak learning rate of the last stage; 0: by strategy")
    relative: Literal["auto", "on", "off"] = Field(
        default="auto", description="each tensor's rate is `rate` times the root mean square of its values"
    )
    head_rate: float = Field(
        default=-1.0,
        ge=-1,
        description="the head's rate, times `rate`; 0: it stays; -1: 0 if it starts from a probe, else 1",
    )
    layer_decay: float = Field(
        default=0.0, ge=0, le=1, description="each earlier stage's rate, times the next one's; 0: by strategy"
    )
    weight_decay: float = Field(
        default=-1.0, ge=-1, description="not on norms, biases and other vectors; -1: by strategy"
    )
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the steps over which the rate rises")
    clip: float = Field(default=1.0, ge=0, description="largest norm of the gradient; 0: off")
    ema: float = Field(default=0.0, ge=0, lt=1, description="decay of the average of weights and buffers; 0: off")
    auxiliary: float = Field(default=-1.0, ge=-1, description="weight of auxiliary heads' losses; -1: the paper's")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of a label spread over all classes")
    mixup: float = Field(default=0.0, ge=0, description="alpha of the Beta distribution; 0: off")
    cutmix: float = Field(default=0.0, ge=0, description="alpha of the Beta distribution; 0: off")
    batchnorm: Literal["frozen", "train"] = Field(
        default="frozen", description="frozen: the statistics of pretraining stay, in stages that train too"
    )
    keep: float = Field(
        default=-1.0,
        ge=-1,
        le=1,
        description="share of the way from the start's weights to the end's that is kept; -1: by strategy",
    )
    ensemble: bool = Field(
        default=False, description="probabilities are averaged with those of the probe it starts from"
    )
    augment: Literal["off", "flip", "light", "standard", "strong"] = Field(
        default="standard",
        description="drawn anew each epoch: crop, flip, turn, colour, RandAugment, erasing",
    )
    views: int = Field(
        default=0, ge=0, le=8, description="late: augmented views kept of each photo; 0: by disk and time"
    )
    progressive: bool = Field(default=False, description="smaller photos in the first epochs")
    precision: Literal["auto", "f32", "bf16", "f16"] = Field(default="auto", description="auto: timed and checked")
    memory_format: Literal["auto", "contiguous", "channels_last"] = Field(default="auto", description="auto: timed")
    compile: Literal["auto", "off", "on"] = Field(default="auto", description="auto: on a GPU, if worth it")
    processes: int = Field(
        default=1, ge=1, le=64, description="that train each fold together, a part of every batch each: one a GPU"
    )


class Advise(Section):
    """The race of strategy auto and of `unfreeze advise`."""

    candidates: tuple[Literal["probe", "late", "full", "scratch"], ...] = Field(
        default=("probe", "late", "full", "scratch"), min_length=1, description="strategies that are tried"
    )
    boundaries: tuple[str, ...] = Field(
        default=(),
        max_length=4,
        description="late also races from these stages on, as in train.unfreeze: last:3, blocks.4-",
    )
    budget: str = Field(
        default="", description="time for the race, as 90s or 10m; '': a tenth of a full fit, a minute or two at least"
    )


class Tune(Section):
    """The search of `unfreeze tune`."""

    trials: int = Field(default=30, ge=2, le=10_000, description="recipes that each of the three searches tries")
    budget: str = Field(default="", description="time for the searches, as 90s, 10m or 1h; '': until all are tried")
    parts: int = Field(default=3, ge=3, le=20, description="group-safe parts that a tried recipe is judged on in turn")
    pruner: Literal["median", "hyperband", "none"] = Field(
        default="median", description="what ends a recipe that is behind after some of its parts"
    )
    space: tuple[str, ...] = Field(
        default=(),
        description="what is searched, as `train.rate=1e-3..1e-2 log` or `probe.grid=1,2,3`; none: by strategy",
    )

    @field_validator("space", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value
