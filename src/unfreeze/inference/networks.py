"""Fine-tuned networks of a run, one per fold, for batch prediction with optional test-time augmentation.

Inputs come from the pixel cache, or from cached activations of a frozen front.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from unfreeze.core.arrays import Rows
from unfreeze.core.errors import BackboneError, RunError
from unfreeze.core.files import regular_file
from unfreeze.core.messages import option
from unfreeze.core.parallel import cores
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe_schema import Train
from unfreeze.core.runs import FoldGroup, Run
from unfreeze.data.pixel_cache import PixelCache, cache_pixels
from unfreeze.features.activations import load_activations
from unfreeze.features.extra_views import view_keys
from unfreeze.features.stored_activations import Activations
from unfreeze.features.views import TtaViews, apply_view
from unfreeze.models.checkpoints import check_finite
from unfreeze.models.fine_tune_model import FineTuneModel
from unfreeze.training.fine_tune.autotune import Plan, make_fabric
from unfreeze.training.fine_tune.batches import ActivationBatches, Batches, PixelBatches
from unfreeze.training.fine_tune.inputs import batch_factory, cache_inputs
from unfreeze.training.fine_tune.launcher import model_file
from unfreeze.training.fine_tune.settings import TrainSetup, predict_proba


@dataclass(frozen=True)
class ViewedPixels(PixelCache):
    """Cached square crops with a view (test-time augmentation) applied on read."""

    view: str = ""

    def read(self, rows: Rows) -> NDArray[np.uint8]:
        """As `PixelCache.read`, with the view applied."""
        images = torch.from_numpy(super().read(rows)).permute(0, 3, 1, 2)
        return apply_view(images, self.view).permute(0, 2, 3, 1).contiguous().numpy()


def views_to_cache(setting: TrainSetup, further: tuple[str, ...], looks: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the additional views whose activations must be cached; empty for networks that read pixels."""
    return tuple(name for view in further for name in view_keys(view, looks)) if setting.cut else ()


def view_batches(
    setting: TrainSetup, keys: NDArray[np.uint64], rows: Rows, view: str, looks: tuple[str, ...], classes: int, s: Train
) -> Batches:
    """Batches of images in one view, from inputs cached by `cache_inputs`.

    Args:
        setting: Training setup that includes the views of `views_to_cache`.
        keys: uint64 (n,), content keys of all images.
        rows: int64 (m,), rows to predict.
        view: The view.
        looks: ("plain",) or ("plain", "flip").
        classes: Number of classes.
        s: Training settings.
    """
    none, device = np.zeros(len(rows), np.int64), make_fabric("f32").device
    wanted = np.zeros(len(keys), bool)
    wanted[rows] = True
    if setting.cut:
        found = load_activations(keys, wanted, setting.front, view_keys(view, looks), setting.engine)
        pooled_width = sum(width for _, width in found.blocks[:-1])
        mirrored = looks.index("flip") if "flip" in looks else -1
        every = Activations(found.stores, found.places, setting.front.activation(), pooled_width, mirrored)
        return ActivationBatches(every, rows, none, classes, 0.0, "none", 0, device)
    p = cache_pixels([], keys, np.zeros_like(wanted), setting.frame)
    turned = ViewedPixels(p.store, p.places, p.keys, p.frame, p.failed, view)
    return PixelBatches(turned, rows, none, classes, setting.preprocessing, "off", 0.0, 0.0, "none", 0, device)


@dataclass(frozen=True)
class FineTunedNetworks:
    """Fine-tuned networks of some folds.

    Attributes:
        setting: Training setup: backbone, preprocessing and frozen front.
        settings: Training settings.
        files: Weights file of each fold.
        classes: Number of classes.
    """

    setting: TrainSetup
    settings: Train
    files: tuple[Path, ...]
    classes: int

    @classmethod
    def load(cls, run: Run, member: FoldGroup) -> FineTunedNetworks:
        """Open the networks of some folds of a finished run.

        Raises:
            RunError: If parts are missing or damaged, or the installed backbone weights differ from those of the fit.
        """
        written = member.info.get("trained")
        try:
            settings = Train.model_validate(written["settings"])  # type: ignore[index]
            setting = TrainSetup.of(member.recipe, settings)
            recorded = {key: written[key] for key in setting.front_or_whole()}  # type: ignore[index]
        except (KeyError, TypeError, ValidationError) as error:
            raise RunError(f"{run.path}: run.json is damaged (trained: {error}); fit the run again.") from None
        try:
            found = setting.front_or_whole()
        except BackboneError as error:
            raise RunError(f"{run.path}: its backbone cannot be used here: {error}") from None
        if recorded != found:
            raise RunError(
                f"{run.path}: was trained from other weights or preprocessing of '{setting.backbone.name}' than are "
                f"here; fit the run again with {option('force', True)}."
            )
        files = tuple(model_file(run.path, k) for k in member.folds)
        for file in files:
            if not file.is_file():
                raise RunError(f"{file}: is missing; fit the run again with {option('force', True)}.")
        return cls(setting, settings, files, len(run.classes))

    def probabilities(
        self,
        files: list[Path],
        keys: NDArray[np.uint64],
        readable: NDArray[np.bool_],
        seen: TtaViews,
        max_pixels: int,
        reporter: Reporter,
        squares: NDArray[np.float64] | None = None,
    ) -> tuple[NDArray[np.float64], dict[int, str]]:
        """Predict images, averaged over folds and views.

        Args:
            files: n image files.
            keys: uint64 (n,), content keys from the scan.
            readable: bool (n,), readable images according to the scan.
            seen: Views to average over.
            max_pixels: Maximum number of pixels of an image.
            reporter: Receives progress messages.
            squares: float64 (n, 4), crops as for `compute_features`.

        Returns:
            Probabilities float64 (n, C) with NaN for images without a prediction, and row -> reason for images that
            failed.
        """
        views, s = seen.looks, self.settings
        setting = self.setting.seeing((*views, *views_to_cache(self.setting, seen.further, views)))
        failed = cache_inputs(setting, files, keys, readable, max_pixels, reporter, squares)
        good = readable.copy()
        good[list(failed)] = False
        rows = np.flatnonzero(good)
        out = np.full((len(keys), self.classes), np.nan)
        if len(rows):
            none = np.zeros(len(rows), np.int64)
            plain = self.setting.seeing(views)
            sets = [batch_factory(plain, keys, good)(rows, none, self.classes, s, 0, "none")]
            sets += [view_batches(setting, keys, rows, view, views, self.classes, s) for view in seen.further]
            plan = Plan(memory_format="channels_last")
            before = torch.get_num_threads()
            torch.set_num_threads(cores())
            try:
                with reporter.bar("Predicting with each fold's network", len(self.files)) as advance:
                    total = np.zeros((len(rows), self.classes))
                    for file in self.files:
                        model = self.network(file).to(plan.fabric().device)
                        for photos in sets:
                            total += predict_proba(model, photos, views, s.batch_size, plan, reporter) / len(sets)
                        advance(1)
            finally:
                torch.set_num_threads(before)
            out[rows] = total / len(self.files)
        return out, failed

    def network(self, file: Path) -> FineTuneModel:
        """Build the network of one fold and load its weights.

        Args:
            file: One of `files`.

        Raises:
            RunError: If the weights do not fit the network.
        """
        with torch.random.fork_rng(devices=[]):
            model = self.setting.network(self.classes)
        try:
            tensors = load_file(regular_file(file))
            check_finite(file, tensors, RunError)
            model.load_trained(tensors)
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(
                f"{file}: does not fit its network ({reason}); fit the run again with {option('force', True)}."
            ) from None
        return model
