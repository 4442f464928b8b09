"""Prediction with a finished run: preprocessing of the run, average over the folds' models."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.dataset import ImageDataset, probability_columns
from unfreeze.core.errors import BackboneError, DetectorError, RunError, join_names
from unfreeze.core.messages import Brief, option
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import FoldGroup, Run, as_run
from unfreeze.data.list_images import Images, Listing, collected
from unfreeze.data.scan import scan_images
from unfreeze.features.crops import face_crop_key, face_crops
from unfreeze.features.extract import compute_features
from unfreeze.features.matrix import JoinedFeatureMatrix
from unfreeze.features.views import TtaViews, parse_tta
from unfreeze.metrics.ensembling import require_finite
from unfreeze.models.feature_extractor import FeatureExtractor
from unfreeze.models.pooling import FeatureSpec
from unfreeze.models.registry import find_backbone
from unfreeze.training.linear_probe.heads import LinearHead, predict_folds

if TYPE_CHECKING:
    from unfreeze.inference.networks import FineTunedNetworks


@dataclass(frozen=True, repr=False)
class Classifier(Brief):
    """A finished run, loaded for prediction.

    Attributes:
        run: The run; it defines class order and preprocessing.
        heads: Linear heads of the folds.
        graphs: Frozen networks that the heads read.
        tuned: Fine-tuned networks.
        tuned_weights: Weight of each of `tuned` relative to a head, one each.
    """

    run: Run
    heads: tuple[LinearHead, ...]
    graphs: tuple[FeatureExtractor, ...]
    tuned: tuple[FineTunedNetworks, ...] = ()
    tuned_weights: tuple[int, ...] = ()

    def _brief(self) -> str:
        return repr(self.run)

    @classmethod
    def load(cls, run: str | Path | Run, folds: Collection[int] | None = None) -> Classifier:
        """Load a run.

        Args:
            run: A finished run or its folder.
            folds: Load only the models of these folds, as for out-of-fold prediction; by default all.

        Raises:
            RunError: If the run is unfinished or damaged, or its parts do not fit together.
        """
        run = as_run(run)
        members = tuple(_only(member, folds) for member in run.members)
        members = tuple(member for member in members if member.folds)
        tuned: list[FineTunedNetworks] = []
        asked: list[int] = []  # folds whose heads predict, alone or with a fine-tuned network
        apart: list[int] = []  # folds with an additional head per label column
        lone: list[int] = []  # folds with a single head only
        for member in members:
            if member.recipe.strategy == "probe":
                asked += member.folds
                both = member.recipe.labels.model == "both"
                apart += member.folds if both else ()
                lone += () if both else member.folds
                continue
            from unfreeze.inference.networks import FineTunedNetworks

            tuned.append(FineTunedNetworks.load(run, member))
            if tuned[-1].settings.average_with_probe:
                asked += member.folds
        # Every fold has equal weight: if some folds have two models, the model of a fold with one counts twice.
        pairs = bool(apart) or any(t.settings.average_with_probe for t in tuned)
        asked += lone if pairs else ()
        weights = tuple(2 if pairs and not t.settings.average_with_probe else 1 for t in tuned)
        if not asked:
            return cls(run, (), (), tuple(tuned), weights)
        graphs, widths = _graphs(run)
        heads = []
        files = run.head_files(delivered=folds is None)
        factored_files = [files[k].with_name("parts.safetensors") for k in sorted(apart)]
        for path in (*(files[k] for k in sorted(asked)), *factored_files):
            head, about = LinearHead.load(path)
            if about["classes"] != run.classes:
                raise RunError(
                    f"{path}: its classes ({join_names(about['classes'])}) are not, or not in the order of, those in "
                    f"run.json ({join_names(run.classes)}); fit the run again with {option('force', True)}."
                )
            known = all(0 <= i < len(widths) for i in head.inputs)
            width = sum(widths[i] for i in head.inputs) if known else -1
            if head.weight.shape != (width, len(run.classes)) or head.bias.shape != (len(run.classes),):
                raise RunError(
                    f"{path}: a head for {head.weight.shape[0]} features and {head.weight.shape[-1]} classes does not "
                    f"fit this run of {width} and {len(run.classes)}; fit the run again with {option('force', True)}."
                )
            heads.append(head)
        # Inputs that were not selected in any fold need not be computed.
        used = sorted({i for head in heads for i in head.inputs})
        renumbered = tuple(replace(head, inputs=tuple(used.index(i) for i in head.inputs)) for head in heads)
        return cls(run, renumbered, tuple(graphs[i] for i in used), tuple(tuned), weights)

    def predict(
        self,
        images: Images | Listing,
        *,
        tta: str | None = None,
        groups: Sequence[Any] | None = None,
        reporter: Reporter | None = None,
    ) -> pd.DataFrame:
        """Predict images.

        Args:
            images: A file, a folder (all its images, sorted), the path of a table, or a pattern such as
                `photos/**/*.jpg`; an image in memory: a PIL image, a uint8 array (H, W), (H, W, 3) in RGB or (H, W, 4),
                the bytes of an image file, or a binary file object; a list, tuple or generator of these, also mixed; or
                a DataFrame with a column `path`. The `path` of an image in memory is `<image N>`, with its position N
                from 0.
            tta: Test-time augmentation: "plain" or "flip" (mean over the image and its mirror image), by default the
                views of training, and additional views whose probabilities are averaged, such as
                "flip,rotate+5,crop-10" (see `parse_tta`).
            groups: Group of each image, such as the person shown. Images of a group then vote on the label columns that
                are constant within groups in training (see `metrics.ensembling.apply_group_vote`).
            reporter: Receives progress messages.

        Returns:
            Table with one row per image in the given order: path, label, p_<class> (mean over the folds), error. An
                image that
            cannot be read has `error` set, label None and NaN probabilities; it is never dropped.

        Raises:
            ArgumentTypeError: For other types of `images`; also a TypeError.
            SourceError: If groups are given, but no label column is constant within groups.
        """
        reporter = reporter or Reporter()
        seen = parse_tta(tta, self.run.recipe.probe.views)
        vote = None
        if groups is not None:
            from unfreeze.inference.group_voting import Vote

            vote = Vote.learnt(self.run, self.run.predictions())
        with collected(images) as listing:
            found = self._predict(listing.root, listing.paths, seen, reporter)
        return found if vote is None or groups is None else vote.apply(found, groups)

    def _predict(self, root: Path, given: list[str], seen: TtaViews, reporter: Reporter) -> pd.DataFrame:
        paths = list(dict.fromkeys(given))  # repeated images are computed once
        table = pd.DataFrame({"path": paths, "label": self.run.classes[0], "group": paths, "split": "test"})
        photos = ImageDataset(table, root, self.run.classes, tuple(self.run.info["answers"]), (), "images", "")
        limit = int(self.run.recipe.image.max_megapixels * 1e6)
        looks = scan_images(photos, limit, reporter)
        files, readable = photos.files(), looks.readable.copy()
        squares = self.squares(files, looks.keys, readable, reporter)
        problems, answers = dict(enumerate(looks.problem)), list[NDArray[np.float64]]()
        shares: list[int] = []  # number of models behind each prediction
        if self.heads:
            own, failed = self._heads_say(files, looks.keys, readable, seen, limit, reporter, squares)
            problems |= failed
            readable[list(failed)] = False
            answers.append(own)
            shares.append(len(self.heads))
        for tuned, times in zip(self.tuned, self.tuned_weights, strict=True):
            own, failed = tuned.probabilities(files, looks.keys, readable, seen, limit, reporter, squares)
            problems |= failed
            answers.append(own)
            shares.append(times * len(tuned.files))
        probabilities: NDArray[np.float64] = np.average(answers, axis=0, weights=shares)
        require_finite(probabilities[[not problems[i] for i in range(len(paths))]])
        best = [self.run.classes[i] for i in np.nan_to_num(probabilities, nan=-1).argmax(1)]
        labels = [None if problems[i] else best[i] for i in range(len(paths))]
        # dtype object: the string dtype of pandas would turn None into NaN.
        head = pd.DataFrame({"path": paths, "label": pd.Series(labels, dtype=object)})
        columns = pd.DataFrame(probabilities, columns=probability_columns(self.run.classes))
        errors = pd.Series([problems[i] for i in range(len(paths))], name="error", dtype=object)
        place = {path: i for i, path in enumerate(paths)}
        order = [place[path] for path in given]
        return pd.concat([head, columns, errors], axis=1).iloc[order].reset_index(drop=True)

    def _heads_say(
        self,
        files: list[Path],
        keys: NDArray[np.uint64],
        readable: NDArray[np.bool_],
        seen: TtaViews,
        limit: int,
        reporter: Reporter,
        squares: NDArray[np.float64] | None,
    ) -> tuple[NDArray[np.float64], dict[int, str]]:
        """Predict with the heads, averaged over heads and views.

        Returns:
            Probabilities float64 (n, C) with NaN for images without a prediction, and row -> reason for images that
            failed.
        """
        wish, out = self.run.recipe.engine, np.full((len(files), len(self.run.classes)), np.nan)
        parts = [
            compute_features(files, keys, readable, graph, seen.looks, wish, limit, reporter, squares)
            for graph in self.graphs
        ]
        sets = [JoinedFeatureMatrix(tuple(parts))]
        failed = dict(sets[0].failed)
        good = readable.copy()
        good[list(failed)] = False
        if seen.further and good.any():
            from unfreeze.features.extra_views import tta_features  # deferred: imports torch

            found, lost = tta_features(
                files, keys, good, self.graphs, seen.further, seen.looks, wish, limit, reporter, squares
            )
            failed |= lost
            good[list(lost)] = False
            sets += found
        rows = np.flatnonzero(good)
        if len(rows):
            out[rows] = np.mean([predict_folds(features, list(self.heads), rows) for features in sets], axis=0)
        return out, failed

    @property
    def sees_faces(self) -> bool:
        """Whether any network reads a crop around the face instead of the image center."""
        shown = [graph.preprocessing for graph in self.graphs]
        return any(p.face for p in (*shown, *(tuned.setting.preprocessing for tuned in self.tuned)))

    def squares(
        self, files: list[Path], keys: NDArray[np.uint64], readable: NDArray[np.bool_], reporter: Reporter
    ) -> NDArray[np.float64] | None:
        """Detect the face crops of images as in training, and report the number of images without a face.

        Args:
            files: n image files.
            keys: uint64 (n,), content keys from the scan.
            readable: bool (n,), readable images according to the scan.
            reporter: Receives progress messages.

        Returns:
            float64 (n, 4), crops as for `compute_features`; None if all images are cropped at the center.
        """
        found = face_crops(self.run.recipe, files, keys, readable, reporter) if self.sees_faces else None
        if found is None:
            return None
        if found.faceless.any():
            reporter.say(f"Faces: {found.describe()}, as in training.")
        return found.cut


def _only(member: FoldGroup, folds: Collection[int] | None) -> FoldGroup:
    return member if folds is None else replace(member, folds=tuple(k for k in member.folds if k in folds))


def frozen_backbones(run: Run) -> tuple[FeatureExtractor, ...]:
    """Frozen networks that the heads of a run read, or that its training started from; empty if there are none.

    Raises:
        RunError: If they cannot be used here, or differ from those of the fit.
    """
    return tuple(_graphs(run)[0])


def _graphs(run: Run) -> tuple[list[FeatureExtractor], list[int]]:
    """Networks of the run's inputs, and the number of features of each."""
    graphs, widths = [], []
    for written in run.info.get("inputs", []):
        try:
            same = written["backbone"] == find_backbone(run.recipe.backbone).name
            backbone = find_backbone(written["backbone"], run.recipe.weights if same else "", run.recipe.seed)
            face = face_crop_key(run.recipe.image) if written.get("face") else ""
            shown = (written["size"], written["crop"], written["squash"], face, bool(written.get("gray")))
            preprocessing = backbone.preprocessing.resolved(*shown)
            graph = FeatureExtractor(backbone, preprocessing, FeatureSpec.parse(written["stages"], written["grid"]))
            width = int(written["features"])
        except (BackboneError, DetectorError) as error:
            what = "backbone" if isinstance(error, BackboneError) else "face detector"
            raise RunError(f"{run.path}: its {what} cannot be used here: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{run.path}: run.json is damaged (inputs: {error}); fit the run again.") from None
        if {**graph.described(), "features": width} != written:
            raise RunError(
                f"{run.path}: was fitted on other weights or preprocessing of '{backbone.name}' than this "
                f"version has; fit the run again with {option('force', True)}."
            )
        graphs.append(graph)
        widths.append(width)
    return graphs, widths
