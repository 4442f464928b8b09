"""What a run leaves behind: its heads blended, the same preprocessing, predictions for new photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.errors import BackboneError, DetectorError, RunError, SourceError, listed
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run, open_run
from unfreeze.core.tables import Photos, probability_columns
from unfreeze.data.listing import list_images
from unfreeze.data.looks import look
from unfreeze.learn.probe.features import compute_features
from unfreeze.learn.probe.heads import LinearHead, predict_folds
from unfreeze.learn.probe.inputs import JoinedFeatures
from unfreeze.learn.sight import face_mark, squares_of
from unfreeze.model.backbones import find_backbone
from unfreeze.model.graphs import Graph
from unfreeze.model.taps import Taps

if TYPE_CHECKING:
    from unfreeze.learn.train.tuned_models import TunedModels

TTA = {"plain": ("plain",), "flip": ("plain", "flip")}


@dataclass(frozen=True)
class Classifier:
    """A finished run, ready to predict. Class order and preprocessing are the run's; nothing is chosen anew.

    heard: how often each of `tuned` counts where a head counts once; once each if empty.
    """

    run: Run
    heads: tuple[LinearHead, ...]
    graphs: tuple[Graph, ...]
    tuned: tuple[TunedModels, ...] = ()
    heard: tuple[int, ...] = ()

    @classmethod
    def load(cls, run: str | Path | Run) -> Classifier:
        """From a run or its folder. RunError if it is unfinished, damaged, or its parts do not fit together."""
        run = run if isinstance(run, Run) else open_run(run)
        members = run.members
        tuned: list[TunedModels] = []
        asked: list[int] = []  # folds whose heads answer, alone or beside their network
        apart: list[int] = []  # those whose parts' heads answer beside
        lone: list[int] = []  # those for which a head alone speaks
        for member in members:
            if member.recipe.strategy == "probe":
                asked += member.folds
                both = member.recipe.labels.model == "both"
                apart += member.folds if both else ()
                lone += () if both else member.folds
                continue
            from unfreeze.learn.train.tuned_models import TunedModels

            tuned.append(TunedModels.load(run, member))
            if tuned[-1].settings.ensemble:
                asked += member.folds
        # A fold counts once, whoever speaks for it: where some have two voices, a lone one is heard twice.
        pairs = bool(apart) or any(t.settings.ensemble for t in tuned)
        asked += lone if pairs else ()
        heard = tuple(2 if pairs and not t.settings.ensemble else 1 for t in tuned)
        if not asked:
            return cls(run, (), (), tuple(tuned), heard)
        graphs, widths = _graphs(run)
        heads = []
        files = run.head_files()
        beside = [files[k].with_name("parts.safetensors") for k in sorted(apart)]
        for path in (*(files[k] for k in sorted(asked)), *beside):
            head, about = LinearHead.load(path)
            if about["classes"] != run.classes:
                raise RunError(
                    f"{path}: its classes ({listed(about['classes'])}) are not, or not in the order of, those in "
                    f"run.json ({listed(run.classes)}); fit the run again with --force."
                )
            known = all(0 <= i < len(widths) for i in head.inputs)
            width = sum(widths[i] for i in head.inputs) if known else -1
            if head.weight.shape != (width, len(run.classes)) or head.bias.shape != (len(run.classes),):
                raise RunError(
                    f"{path}: a head for {head.weight.shape[0]} features and {head.weight.shape[-1]} classes does not "
                    f"fit this run of {width} and {len(run.classes)}; fit the run again with --force."
                )
            heads.append(head)
        # Inputs that lost the race in every fold need not be computed for a prediction.
        used = sorted({i for head in heads for i in head.inputs})
        renumbered = tuple(replace(head, inputs=tuple(used.index(i) for i in head.inputs)) for head in heads)
        return cls(run, renumbered, tuple(graphs[i] for i in used), tuple(tuned), heard)

    def predict(
        self,
        images: str | Path | Sequence[str | Path] | pd.DataFrame,
        *,
        tta: str | None = None,
        reporter: Reporter | None = None,
    ) -> pd.DataFrame:
        """Predictions, one row an image in the order given: path, label, p_<class> (the folds' mean), error.

        images: a folder (all its photos, sorted), one file, a list of files, or a table with a `path` column.
        tta: 'plain' or 'flip' (mean over the photo and its mirror image); by default the views of training.
        A photo that cannot be read is a row with `error` set, label None and probabilities NaN; it is never dropped.
        """
        reporter = reporter or Reporter()
        if tta is not None and tta not in TTA:
            raise SourceError(f"--tta {tta}: known are {', '.join(TTA)}.")
        root, given = _listed(images)
        paths = list(dict.fromkeys(given))  # a photo that is named twice is two rows, computed once
        table = pd.DataFrame({"path": paths, "label": self.run.classes[0], "group": paths, "split": "test"})
        photos = Photos(table, root, self.run.classes, tuple(self.run.info["answers"]), (), "images", "")
        limit = int(self.run.recipe.image.max_megapixels * 1e6)
        looks = look(photos, limit, reporter)
        views = TTA[tta] if tta else self.run.recipe.probe.views
        files, readable = photos.files(), looks.readable.copy()
        squares = self.squares(files, looks.keys, readable, reporter)
        problems, answers = dict(enumerate(looks.problem)), list[NDArray[np.float64]]()
        shares: list[int] = []  # voices that speak through an answer
        if self.heads:
            wish = self.run.recipe.engine
            parts = [
                compute_features(files, looks.keys, readable, graph, views, wish, limit, reporter, squares)
                for graph in self.graphs
            ]
            features = JoinedFeatures(tuple(parts))
            problems |= features.failed
            readable[list(features.failed)] = False
            answers.append(np.full((len(paths), len(self.run.classes)), np.nan))
            shares.append(len(self.heads))
            if readable.any():
                rows = np.flatnonzero(readable)
                answers[0][rows] = predict_folds(features, list(self.heads), rows)
        for tuned, times in zip(self.tuned, self.heard or (1,) * len(self.tuned), strict=True):
            own, failed = tuned.probabilities(files, looks.keys, readable, views, limit, reporter, squares)
            problems |= failed
            answers.append(own)
            shares.append(times * len(tuned.files))
        probabilities: NDArray[np.float64] = np.average(answers, axis=0, weights=shares)
        best = [self.run.classes[i] for i in np.nan_to_num(probabilities, nan=-1).argmax(1)]
        head = pd.DataFrame({"path": paths, "label": [None if problems[i] else best[i] for i in range(len(paths))]})
        columns = pd.DataFrame(probabilities, columns=probability_columns(self.run.classes))
        errors = pd.Series([problems[i] for i in range(len(paths))], name="error", dtype=object)
        place = {path: i for i, path in enumerate(paths)}
        order = [place[path] for path in given]
        return pd.concat([head, columns, errors], axis=1).iloc[order].reset_index(drop=True)

    @property
    def sees_faces(self) -> bool:
        """Whether any of its networks is shown the square around the face, and not the photo's centre."""
        shown = [graph.preprocessing for graph in self.graphs]
        return any(p.face for p in (*shown, *(tuned.setting.preprocessing for tuned in self.tuned)))

    def squares(
        self, files: list[Path], keys: NDArray[np.uint64], readable: NDArray[np.bool_], reporter: Reporter
    ) -> NDArray[np.float64] | None:
        """What is cut from each photo, float64 (n, 4) as of `compute_features`; None where that is the centre of all.

        files, keys, readable: (n,), from the first look. Found as in training; photos without a face are counted aloud.
        """
        found = squares_of(self.run.recipe, files, keys, readable, reporter) if self.sees_faces else None
        if found is None:
            return None
        if found.faceless.any():
            reporter.say(f"Faces: {found.told()}, as in training.")
        return found.cut


def _graphs(run: Run) -> tuple[list[Graph], list[int]]:
    """The networks that the run's inputs were read by, and the number of features of each."""
    graphs, widths = [], []
    for written in run.info.get("inputs", []):
        try:
            same = written["backbone"] == find_backbone(run.recipe.backbone).name
            backbone = find_backbone(written["backbone"], run.recipe.weights if same else "", run.recipe.seed)
            face = face_mark(run.recipe.image) if written.get("face") else ""
            preprocessing = backbone.preprocessing.resolved(written["size"], written["crop"], written["squash"], face)
            graph = Graph(backbone, preprocessing, Taps.parse(written["stages"], written["grid"]))
            width = int(written["features"])
        except (BackboneError, DetectorError) as error:
            what = "backbone" if isinstance(error, BackboneError) else "face detector"
            raise RunError(f"{run.path}: its {what} cannot be used here: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{run.path}: run.json is damaged (inputs: {error}); fit the run again.") from None
        if {**graph.described(), "features": width} != written:
            raise RunError(
                f"{run.path}: was fitted on other weights or preprocessing of '{backbone.name}' than this "
                "version has; fit the run again with --force."
            )
        graphs.append(graph)
        widths.append(width)
    return graphs, widths


def load(run: str | Path | Run) -> Classifier:
    """The classifier that a finished run left behind."""
    return Classifier.load(run)


def _listed(images: str | Path | Sequence[str | Path] | pd.DataFrame) -> tuple[Path, list[str]]:
    """Root and relative paths of what is to be predicted."""
    if isinstance(images, pd.DataFrame):
        if "path" not in images.columns:
            raise SourceError(
                f"the table to predict has no column 'path'; it has {', '.join(map(str, images.columns))}."
            )
        images = images["path"].astype(str).tolist()
    if isinstance(images, str | Path):
        return list_images(Path(images))
    return Path(), [str(path) for path in images]
