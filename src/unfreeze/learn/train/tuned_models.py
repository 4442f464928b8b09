"""The networks that a fine-tuned run leaves behind, one a fold, ready to predict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from unfreeze.core.errors import BackboneError, RunError
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe_sections import Train
from unfreeze.core.runs import Member, Run
from unfreeze.core.work import cores
from unfreeze.learn.train.finetune import model_file
from unfreeze.learn.train.plan import Plan
from unfreeze.learn.train.shown import shown, views_to_keep
from unfreeze.learn.train.strategy_photos import photos_of, prepare_photos
from unfreeze.learn.train.tuning import Setting, predicted
from unfreeze.learn.tta import Seen
from unfreeze.model.tuned import Tuned


@dataclass(frozen=True)
class TunedModels:
    """How the networks are fed, and where each fold's weights are."""

    setting: Setting
    settings: Train
    files: tuple[Path, ...]
    classes: int

    @classmethod
    def load(cls, run: Run, member: Member) -> TunedModels:
        """Of some folds of a finished run. RunError where its parts are damaged or of other weights than are here."""
        written = member.info.get("trained")
        try:
            settings = Train.model_validate(written["settings"])  # type: ignore[index]
            setting = Setting.of(member.recipe, settings)
            told = {key: written[key] for key in setting.front_or_whole()}  # type: ignore[index]
        except (KeyError, TypeError, ValidationError) as error:
            raise RunError(f"{run.path}: run.json is damaged (trained: {error}); fit the run again.") from None
        try:
            found = setting.front_or_whole()
        except BackboneError as error:
            raise RunError(f"{run.path}: its backbone cannot be used here: {error}") from None
        if told != found:
            raise RunError(
                f"{run.path}: was trained from other weights or preprocessing of '{setting.backbone.name}' than are "
                "here; fit the run again with --force."
            )
        files = tuple(model_file(run.path, k) for k in member.folds)
        for file in files:
            if not file.is_file():
                raise RunError(f"{file}: is missing; fit the run again with --force.")
        return cls(setting, settings, files, len(run.classes))

    def probabilities(
        self,
        files: list[Path],
        keys: NDArray[np.uint64],
        readable: NDArray[np.bool_],
        seen: Seen,
        max_pixels: int,
        reporter: Reporter,
        squares: NDArray[np.float64] | None = None,
    ) -> tuple[NDArray[np.float64], dict[int, str]]:
        """float64 (n, C), the mean over folds and views, NaN for photos without; and why photos have none.

        files, keys, readable: (n,), from the first look. squares: as of `compute_features`.
        """
        views, s = seen.looks, self.settings
        setting = self.setting.seeing((*views, *views_to_keep(self.setting, seen.further, views)))
        failed = prepare_photos(setting, files, keys, readable, max_pixels, reporter, squares)
        good = readable.copy()
        good[list(failed)] = False
        rows = np.flatnonzero(good)
        out = np.full((len(keys), self.classes), np.nan)
        if len(rows):
            none = np.zeros(len(rows), np.int64)
            plain = self.setting.seeing(views)
            sets = [photos_of(plain, keys, good)(rows, none, self.classes, s, 0, "none")]
            sets += [shown(setting, keys, rows, view, views, self.classes, s) for view in seen.further]
            plan = Plan(memory_format="channels_last")
            before = torch.get_num_threads()
            torch.set_num_threads(cores())
            try:
                with reporter.bar("Predicting with each fold's network", len(self.files)) as advance:
                    total = np.zeros((len(rows), self.classes))
                    for file in self.files:
                        model = self.network(file).to(plan.fabric().device)
                        for photos in sets:
                            total += predicted(model, photos, views, s.batch, plan, reporter) / len(sets)
                        advance(1)
            finally:
                torch.set_num_threads(before)
            out[rows] = total / len(self.files)
        return out, failed

    def network(self, file: Path) -> Tuned:
        """One fold's network with its trained weights, of `files`. RunError where they do not fit."""
        with torch.random.fork_rng(devices=[]):
            model = self.setting.network(self.classes)
        try:
            model.load_trained(load_file(file))
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(f"{file}: does not fit its network ({reason}); fit the run again with --force.") from None
        return model
