"""Heat maps from the networks of a finished run, for an encoded image in memory.

`Explainer` selects the method and draws the maps; `FullNetworks` holds the fine-tuned networks of the folds without a
frozen front split off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import SourceError, did_you_mean, join_names
from unfreeze.core.messages import option
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.data.decode import Box
from unfreeze.data.decode_process import Cut
from unfreeze.explanation.heatmap import (
    PATCH,
    HeatMap,
    bounding_box,
    cell_maps,
    centre_box,
    occlude,
    occlusion_fill,
    sliding_occlusion_map,
    top2,
)
from unfreeze.explanation.linear import contributions_of, spatial_columns
from unfreeze.features.crops import Cropper, FaceCropSpec, NetworkCrop, Prepared
from unfreeze.inference.ensemble import Ensemble, load
from unfreeze.inference.in_memory import InMemoryPredictor
from unfreeze.inference.predictor import Classifier

if TYPE_CHECKING:
    import torch

    from unfreeze.inference.networks import FineTunedNetworks
    from unfreeze.models.fine_tune_model import FineTuneModel

METHODS = ("auto", "cells", "grad-cam", "rollout", "occlusion")
# The folds' networks stay in memory up to this total size; otherwise they are loaded again for every image.
_HELD_BYTES = 1 << 30


def _at_once(work: Callable[[], Any]) -> Any:
    return work()


class Explainer:
    """Draws heat maps with the networks of a run, which are loaded on first use. Not thread-safe.

    Args:
        source: A run, an ensemble, or an `InMemoryPredictor` that is already loaded.
        centre: For each input of the linear heads, the signed-root features (D,) that count as no evidence, from
            `mean_features`; by default zero.
        through: Runs a function in the only thread that may use the networks of the `InMemoryPredictor`, and returns
            its result. The functions are short.
        reporter: Receives progress.
    """

    def __init__(
        self,
        source: Classifier | Ensemble | InMemoryPredictor,
        centre: Sequence[NDArray[np.float32]] | None = None,
        *,
        through: Callable[[Callable[[], Any]], Any] = _at_once,
        reporter: Reporter | None = None,
    ) -> None:
        self.source: Classifier | Ensemble = source.source if isinstance(source, InMemoryPredictor) else source
        self.centre, self._through, self._reporter = centre, through, reporter
        if isinstance(source, InMemoryPredictor):
            self.direct = source
        self.classifiers = active_members(self.source)
        self._whole: list[FullNetworks] = []
        self._heads = False
        if isinstance(self.source, Classifier):
            self._whole = [FullNetworks(tuned) for tuned in self.source.tuned]
            self._heads = bool(self.source.heads)

    @classmethod
    def load(cls, run: str | Path | Run | Classifier | Ensemble, reporter: Reporter | None = None) -> Explainer:
        """Create an explainer from anything that `unfreeze.load` accepts or returns; raises as `unfreeze.load`."""
        return cls(run if isinstance(run, Classifier | Ensemble) else load(run), reporter=reporter)

    @cached_property
    def direct(self) -> InMemoryPredictor:
        """The run in memory; raises as `InMemoryPredictor.load`."""
        return InMemoryPredictor.load(self.source, max_megapixels=float("inf"), reporter=self._reporter)

    def methods(self) -> tuple[str, ...]:
        """Methods that the run supports, the default of 'auto' first.

        Ensembles of several runs support only 'occlusion', since the maps of different runs have no common scale. If
        linear heads and fine-tuned networks are combined, 'auto' draws the cells of the heads and the map of the
        networks.
        """
        if isinstance(self.source, Ensemble):
            return ("occlusion",)
        found = ["cells"] if self._heads else []
        own = ("rollout", "grad-cam") if self._whole else ()
        found += [method for method in own if all(whole.able(method) for whole in self._whole)]
        found.append("occlusion")
        first = next(m for m in found if m != "cells") if self._whole else found[0]
        return tuple(dict.fromkeys([first, *found]))

    def default(self) -> tuple[str, ...]:
        """Methods that 'auto' draws: one, or both cells and the method of the fine-tuned networks."""
        first = self.methods()[0]
        both = self._heads and bool(self._whole) and first != "occlusion"
        return ("cells", first) if both else (first,)

    def check(self, method: str) -> None:
        """Raise SourceError if the method is unknown or the run does not support it."""
        if method not in METHODS:
            raise SourceError(
                f"{option('method', method)}: known are {', '.join(METHODS)}.{did_you_mean(method, METHODS)}"
            )
        if method not in ("auto", *self.methods()):
            where = "+".join(str(c.run.path) for c in self.classifiers)
            kind = "a blend" if isinstance(self.source, Ensemble) else join_names(self.source.run.strategies)
            has = " or ".join(self.methods())
            raise SourceError(f"{option('method', method)}: not for {where} ({kind}); it has {has}.")

    def draw(
        self,
        data: bytes,
        method: str = "auto",
        label: int | None = None,
        runner_up: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[HeatMap, ...]:
        """Heat maps of one image for class `label` against `runner_up`.

        Each map is the mean over the folds' networks and over the views used in training. 'cells' are exact terms of
        the logit; see `explanation.saliency` and `occlusion_map` for the other methods.

        Args:
            data: Bytes of an image file.
            method: One of METHODS.
            label: Class index, by default the most probable class.
            runner_up: Class index, by default the most probable other class.
            progress: Called with the number of images just predicted, `CELLS`^2 in total for occlusion.

        Raises:
            PhotoError: The bytes are not a readable image.
            SourceError: As `check`.
        """
        self.check(method)
        if label is None or runner_up is None:
            first, second = top2(self._answer([self.direct.prepare(data)])[0])
            label = first if label is None else label
            runner_up = (second if label == first else first) if runner_up is None else runner_up
        found: list[HeatMap] = []
        for one in self.default() if method == "auto" else (method,):
            if one == "occlusion":
                found.append(self._occlusion(data, label, runner_up, progress))
            elif one == "cells":
                found += self._cells(data, label, runner_up)
            else:
                for whole in self._whole:
                    found.append(self._looked_into(whole, one, data, label, runner_up))
        return tuple(found)

    def _answer(self, photos: list[Prepared]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = self._through(lambda: self.direct.probabilities(photos))
        return found

    def _occlusion(self, data: bytes, label: int, runner_up: int, progress: Callable[[int], None] | None) -> HeatMap:
        """Cover the same patch of the image in the crop of every network."""
        eyes, squares = self.direct.eyes, self.direct.prepare(data)
        width, height = eyes.size(data)
        faces = eyes.boxes(data)
        shows = [_shown(sight, faces[sight.face] if sight.face else None, width, height) for sight in eyes.sights]
        seen = bounding_box(shows)
        covers = [
            occlusion_fill(square, "gray", PATCH * (seen[2] - seen[0]) / (box[2] - box[0]))
            for square, box in zip(squares, shows, strict=True)
        ]

        def answer(patches: Sequence[Box | None]) -> NDArray[np.float64]:
            photos = [
                tuple(occlude(one, cover, patch, box) for one, cover, box in zip(squares, covers, shows, strict=True))
                for patch in patches
            ]
            return self._answer(photos)

        found = sliding_occlusion_map(answer, label=label, runner_up=runner_up, box=seen, progress=progress)
        count = sum(len(c.heads) + sum(len(t.files) for t in c.tuned) for c in self.classifiers)
        return replace(found, source=f"all that answers ({count} of the folds' models together)")

    def _cells(self, data: bytes, label: int, runner_up: int) -> tuple[HeatMap, ...]:
        classifier = self.classifiers[0]
        run, face = classifier.run, FaceCropSpec.of(classifier.run.recipe)
        looks = tuple(run.recipe.probe.views)
        prepared, faces = self.direct.prepare(data), self.direct.eyes.boxes(data)
        width, height = self.direct.eyes.size(data)
        seen, boxes = [], []
        for graph in classifier.graphs:
            reader = next(r for r in self.direct.readers if r.graph == graph)
            parts = self._through(partial(reader.read, [prepared], looks))
            seen.append([part.astype(np.float32) for part in parts])
            sight = self.direct.eyes.sights[reader.sight]
            boxes.append(_shown(sight, faces[face] if sight.face else None, width, height))
        graphs = classifier.graphs
        found = contributions_of(
            seen,
            [graph.blocks() for graph in graphs],
            classifier.heads,
            [graph.taps.grid for graph in graphs],
            looks,
            self.centre,
            [spatial_columns(graph) for graph in graphs],
        )
        return cell_maps(found, 0, label, runner_up, boxes, [graph.title() for graph in graphs])

    def _looked_into(self, whole: FullNetworks, method: str, data: bytes, label: int, runner_up: int) -> HeatMap:
        run = self.classifiers[0].run
        p = whole.models.setting.preprocessing
        box = self.direct.eyes.boxes(data)[FaceCropSpec.of(run.recipe)] if p.face else None
        # If the run is not in memory, a cropper without detectors and with the run's own pixel limit is enough.
        loaded = "direct" in self.__dict__
        eyes = self.direct.eyes if loaded else Cropper((), int(run.recipe.image.max_megapixels * 1e6))
        square = eyes.square(data, whole.cut(box))
        values, margin = whole.map(method, square, run.recipe.probe.views, label, runner_up)
        width, height = eyes.size(data)
        shows = box or centre_box(width, height, p.crop, p.squash)
        return HeatMap(method, values, label, runner_up, shows, margin, whole.title(method))  # type: ignore[arg-type]


class FullNetworks:
    """Fine-tuned networks of the folds, each complete from pixels to logits even if its front was frozen.

    In training, the frozen front ran in an engine with float16 activations. Here it runs in float32, so logits differ
    slightly from the run's predictions.
    """

    def __init__(self, models: FineTunedNetworks) -> None:
        self.models = replace(models, setting=replace(models.setting, cut=False, views=()))
        self._held: list[FineTuneModel] = []
        self._held_all = False

    def networks(self) -> Iterator[FineTuneModel]:
        """Iterate over the folds' networks, in eval mode, on the GPU if there is one."""
        from unfreeze.training.fine_tune.autotune import make_fabric

        if self._held_all:
            yield from self._held
            return
        device, size = make_fabric("f32").device, 0
        held: list[FineTuneModel] = []
        for file in self.models.files:
            network = self._held[0] if not held and self._held else self.models.network(file).to(device).eval()
            size += 4 * sum(parameter.numel() for parameter in network.parameters())
            if size <= _HELD_BYTES:
                held.append(network)
            yield network
        self._held, self._held_all = held, len(held) == len(self.models.files)

    def first(self) -> FineTuneModel:
        """The first fold's network."""
        if not self._held:
            self._held = [next(self.networks())]
        return self._held[0]

    def able(self, method: str) -> bool:
        """Whether 'grad-cam' or 'rollout' is valid for these networks."""
        from unfreeze.explanation.saliency import supports_rollout, target_stage

        if method == "rollout":
            return supports_rollout(self.first())
        stage = target_stage(self.first())
        # Other token layouts (windows, merged tokens) have no fixed token positions; occlusion covers them.
        return stage is not None and (stage.layout in ("NCHW", "NHWC") or supports_rollout(self.first()))

    def title(self, method: str) -> str:
        """Description of the networks: `3 networks (EfficientNet-Lite0 at 224 px), after blocks.4`."""
        from unfreeze.explanation.saliency import target_stage

        count, setting = len(self.models.files), self.models.setting
        stage = target_stage(self.first()) if method == "grad-cam" else None
        where = f", after {stage.name}" if stage else ", all blocks"
        many = f"{count} network{'s' if count > 1 else ''}"
        return f"{many} ({setting.backbone.title} at {setting.size} px){where}"

    def cut(self, box: Box | None) -> Cut:
        """The crop of an image that the networks see. `box` is as in `data.decode.load_crop`."""
        p = self.models.setting.preprocessing
        return Cut(p.size, p.crop, p.resample, p.squash, p.gray, box)

    def map(
        self, method: str, square: NDArray[np.uint8], views: Sequence[str], label: int, runner_up: int
    ) -> tuple[NDArray[np.float64], float]:
        """Heat map of one crop, averaged over networks and views.

        Args:
            method: 'grad-cam' or 'rollout'.
            square: uint8 (S, S, 3).
            views: Names of the views.
            label: Class index.
            runner_up: Class index.

        Returns:
            The map float64 (h, w) and the mean margin (NaN for rollout).
        """
        from unfreeze.explanation.saliency import attention_rollout, grad_cam

        total: NDArray[np.float64] | float = 0.0
        margins = []
        for network in self.networks():
            images = self._images(square[None], network)
            for view in views:
                shown = images.flip(-1) if view == "flip" else images
                if method == "rollout":
                    values, margin = attention_rollout(network, shown)[0], float("nan")
                else:
                    found, apart = grad_cam(network, shown, label, runner_up)
                    values, margin = found[0], float(apart[0])
                total = total + (values[:, ::-1] if view == "flip" else values)
                margins.append(margin)
        return np.asarray(total / len(margins)), float(np.mean(margins))

    def features(self, squares: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Last feature map of the first network, averaged over the image.

        Args:
            squares: uint8 (n, S, S, 3).

        Returns:
            float32 (n, D).
        """
        import torch

        from unfreeze.models.pooling import pool_stage

        network = self.first()
        stage = network.anatomy.stages[-1]
        kept: list[torch.Tensor] = []
        module = network.network.get_submodule(stage.output)
        handle = module.register_forward_hook(lambda _m, _i, output: kept.append(pool_stage(output, stage, 1)))
        try:
            with torch.inference_mode():
                network(self._images(squares, network))
        finally:
            handle.remove()
        found: NDArray[np.float32] = kept[-1].float().cpu().numpy()
        return found

    def _images(self, squares: NDArray[np.uint8], network: FineTuneModel) -> torch.Tensor:
        import torch

        p, device = self.models.setting.preprocessing, next(network.parameters()).device
        mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (p.mean, p.std))
        pixels = torch.from_numpy(np.array(squares)).to(device).permute(0, 3, 1, 2)
        return (pixels.float() / 255 - mean) / std


def active_members(source: Classifier | Ensemble) -> tuple[Classifier, ...]:
    """Classifiers that contribute to the prediction: in an ensemble, those with a nonzero weight."""
    if isinstance(source, Classifier):
        return (source,)
    return tuple(c for c, weight in zip(source.classifiers, source.weights, strict=True) if weight)


def _shown(sight: NetworkCrop, face: Box | None, width: int, height: int) -> Box:
    """Part of the image that a crop shows."""
    return face or centre_box(width, height, sight.crop, sight.squash)
