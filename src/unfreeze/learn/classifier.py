"""What a run leaves behind: its heads blended, the same preprocessing, predictions for new photos."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unfreeze.core.errors import BackboneError, DetectorError, RunError, SourceError, listed
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Member, Run, open_run
from unfreeze.core.tables import Photos, probability_columns
from unfreeze.data.listing import list_images
from unfreeze.data.looks import look
from unfreeze.learn.probe.features import compute_features
from unfreeze.learn.probe.heads import LinearHead, predict_folds
from unfreeze.learn.probe.inputs import JoinedFeatures
from unfreeze.learn.sight import face_mark, squares_of
from unfreeze.learn.tta import Seen, seen_as
from unfreeze.model.backbones import find_backbone
from unfreeze.model.graphs import Graph
from unfreeze.model.taps import Taps

if TYPE_CHECKING:
    from unfreeze.learn.train.tuned_models import TunedModels


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
    def load(cls, run: str | Path | Run, folds: Collection[int] | None = None) -> Classifier:
        """From a run or its folder. RunError if it is unfinished, damaged, or its parts do not fit together.

        folds: only what was learnt for these folds answers, as for photos that it has not seen; None: all of them.
        """
        run = run if isinstance(run, Run) else open_run(run)
        members = tuple(_only(member, folds) for member in run.members)
        members = tuple(member for member in members if member.folds)
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
        groups: Sequence[Any] | None = None,
        reporter: Reporter | None = None,
    ) -> pd.DataFrame:
        """Predictions, one row an image in the order given: path, label, p_<class> (the folds' mean), error.

        images: a folder (all its photos, sorted), one file, a list of files, or a table with a `path` column.
        tta: 'plain' or 'flip' (mean over the photo and its mirror image), by default the views of training; and
        further views, whose probabilities are averaged with the photo's own: 'flip,rotate+5,crop-10' (see `seen_as`).
        groups: the group of each image, as the person it shows: photos of a group then agree on what photos of a
        group share in training (see `judge.voting.voted`). SourceError where they share nothing.
        A photo that cannot be read is a row with `error` set, label None and probabilities NaN; it is never dropped.
        """
        reporter = reporter or Reporter()
        seen = seen_as(tta, self.run.recipe.probe.views)
        vote = None
        if groups is not None:
            from unfreeze.learn.voting import Vote

            vote = Vote.learnt(self.run, self.run.predictions())
        root, given = _listed(images)
        paths = list(dict.fromkeys(given))  # a photo that is named twice is two rows, computed once
        table = pd.DataFrame({"path": paths, "label": self.run.classes[0], "group": paths, "split": "test"})
        photos = Photos(table, root, self.run.classes, tuple(self.run.info["answers"]), (), "images", "")
        limit = int(self.run.recipe.image.max_megapixels * 1e6)
        looks = look(photos, limit, reporter)
        files, readable = photos.files(), looks.readable.copy()
        squares = self.squares(files, looks.keys, readable, reporter)
        problems, answers = dict(enumerate(looks.problem)), list[NDArray[np.float64]]()
        shares: list[int] = []  # voices that speak through an answer
        if self.heads:
            own, failed = self._heads_say(files, looks.keys, readable, seen, limit, reporter, squares)
            problems |= failed
            readable[list(failed)] = False
            answers.append(own)
            shares.append(len(self.heads))
        for tuned, times in zip(self.tuned, self.heard or (1,) * len(self.tuned), strict=True):
            own, failed = tuned.probabilities(files, looks.keys, readable, seen, limit, reporter, squares)
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
        found = pd.concat([head, columns, errors], axis=1).iloc[order].reset_index(drop=True)
        return found if vote is None or groups is None else vote.apply(found, groups)

    def _heads_say(
        self,
        files: list[Path],
        keys: NDArray[np.uint64],
        readable: NDArray[np.bool_],
        seen: Seen,
        limit: int,
        reporter: Reporter,
        squares: NDArray[np.float64] | None,
    ) -> tuple[NDArray[np.float64], dict[int, str]]:
        """float64 (n, C), the mean over heads and views, NaN for photos without; and why photos have none."""
        wish, out = self.run.recipe.engine, np.full((len(files), len(self.run.classes)), np.nan)
        parts = [
            compute_features(files, keys, readable, graph, seen.looks, wish, limit, reporter, squares)
            for graph in self.graphs
        ]
        sets = [JoinedFeatures(tuple(parts))]
        failed = dict(sets[0].failed)
        good = readable.copy()
        good[list(failed)] = False
        if seen.further and good.any():
            from unfreeze.learn.added_views import further_features  # torch, which a probe may do without

            found, lost = further_features(
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


def _only(member: Member, folds: Collection[int] | None) -> Member:
    return member if folds is None else replace(member, folds=tuple(k for k in member.folds if k in folds))


def networks_read(run: Run) -> tuple[Graph, ...]:
    """The frozen networks that a run's heads read, or that its training began from; () if none. Raises as `load`."""
    return tuple(_graphs(run)[0])


def _graphs(run: Run) -> tuple[list[Graph], list[int]]:
    """The networks that the run's inputs were read by, and the number of features of each."""
    graphs, widths = [], []
    for written in run.info.get("inputs", []):
        try:
            same = written["backbone"] == find_backbone(run.recipe.backbone).name
            backbone = find_backbone(written["backbone"], run.recipe.weights if same else "", run.recipe.seed)
            face = face_mark(run.recipe.image) if written.get("face") else ""
            shown = (written["size"], written["crop"], written["squash"], face, bool(written.get("gray")))
            preprocessing = backbone.preprocessing.resolved(*shown)
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
