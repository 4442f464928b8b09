"""Heat maps by a finished run's own networks: the bytes of a photo in, `HeatMap`s out, nothing read or written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import SourceError, listed, nearest
from unfreeze.core.progress import Reporter
from unfreeze.core.runs import Run
from unfreeze.data.images import decode_sized, load_square
from unfreeze.learn.blend import Blend, load
from unfreeze.learn.classifier import Classifier
from unfreeze.learn.direct import Direct
from unfreeze.learn.direct_sight import Face, Prepared, Sight
from unfreeze.learn.maps import PATCH, Box, HeatMap, around, cell_maps, centre_box, covered, filling, first_two, slid
from unfreeze.learn.probe.contributions import contributions_of, placed_columns

if TYPE_CHECKING:
    import torch

    from unfreeze.learn.train.tuned_models import TunedModels
    from unfreeze.model.tuned import Tuned

METHODS = ("auto", "cells", "grad-cam", "rollout", "occlusion")
# Whole networks of all folds stay in memory up to this size; larger ones are read again for every photo.
_HELD_BYTES = 1 << 30


def _at_once(work: Callable[[], Any]) -> Any:
    return work()


class Mapper:
    """Draws heat maps with a run's networks, each loaded when it is first needed. One thread at a time.

    source: the run, or `Direct`, where somebody holds it in memory already. centre: for each input of the linear heads
    the signed roots (D,) that count as no evidence, as of `mean_rooted`; without it, zero. through: calls what it is
    given in the thread that alone may ask the networks of `Direct`, and returns what that returns; pieces are short.
    """

    def __init__(
        self,
        source: Classifier | Blend | Direct,
        centre: Sequence[NDArray[np.float32]] | None = None,
        *,
        through: Callable[[Callable[[], Any]], Any] = _at_once,
        reporter: Reporter | None = None,
    ) -> None:
        self.source: Classifier | Blend = source.source if isinstance(source, Direct) else source
        self.centre, self._through, self._reporter = centre, through, reporter
        if isinstance(source, Direct):
            self.direct = source
        self.classifiers = asked(self.source)
        self._whole: list[WholeNetworks] = []
        self._heads = False
        if isinstance(self.source, Classifier):
            self._whole = [WholeNetworks(tuned) for tuned in self.source.tuned]
            self._heads = bool(self.source.heads)

    @classmethod
    def load(cls, run: str | Path | Run | Classifier | Blend, reporter: Reporter | None = None) -> Mapper:
        """Of what `unfreeze.load` takes or gives. Raises as that does."""
        return cls(run if isinstance(run, Classifier | Blend) else load(run), reporter=reporter)

    @cached_property
    def direct(self) -> Direct:
        """The run in memory. Raises as `Direct.load`."""
        return Direct.load(self.source, max_megapixels=float("inf"), reporter=self._reporter)

    def methods(self) -> tuple[str, ...]:
        """Ways to a map that this run has, the one that 'auto' takes first.

        Several runs blended have only 'occlusion', for their maps have no common measure. Where linear heads and
        trained networks answer together, 'auto' gives the heads' cells and the networks' own map, one beside the other.
        """
        if isinstance(self.source, Blend):
            return ("occlusion",)
        found = ["cells"] if self._heads else []
        own = ("rollout", "grad-cam") if self._whole else ()
        found += [method for method in own if all(whole.able(method) for whole in self._whole)]
        found.append("occlusion")
        first = next(m for m in found if m != "cells") if self._whole else found[0]
        return tuple(dict.fromkeys([first, *found]))

    def default(self) -> tuple[str, ...]:
        """What 'auto' draws: one method, or the heads' beside the networks'."""
        first = self.methods()[0]
        both = self._heads and bool(self._whole) and first != "occlusion"
        return ("cells", first) if both else (first,)

    def check(self, method: str) -> None:
        """SourceError where the run has no such map, or there is no such method."""
        if method not in METHODS:
            raise SourceError(f"--method {method}: known are {', '.join(METHODS)}.{nearest(method, METHODS)}")
        if method not in ("auto", *self.methods()):
            where = "+".join(str(c.run.path) for c in self.classifiers)
            kind = "a blend" if isinstance(self.source, Blend) else listed(self.source.run.strategies)
            has = " or ".join(self.methods())
            raise SourceError(f"--method {method}: not for {where} ({kind}); it has {has}.")

    def draw(
        self,
        data: bytes,
        method: str = "auto",
        label: int | None = None,
        runner_up: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[HeatMap, ...]:
        """Maps of one photo for class `label` rather than `runner_up`, by default its two most probable classes.

        data: an image file's bytes. Each map is the mean over the folds' networks and over the views of training. All
        of 'cells' are exact terms of the logit; what the others are is said in `learn.train.saliency` and
        `occlusion_map`. progress: told how many photos were answered for, of `CELLS`^2 under occlusion.
        Raises PhotoError where the bytes are no photo, SourceError as `check`.
        """
        self.check(method)
        if label is None or runner_up is None:
            first, second = first_two(self._answer([self.direct.prepare(data)])[0])
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
        """Every network's own square is covered at the same place of the photo."""
        eyes, squares = self.direct.eyes, self.direct.prepare(data)
        width, height = _size(data, eyes.max_pixels)
        faces = eyes.boxes(data)
        shows = [_shown(sight, faces[sight.face] if sight.face else None, width, height) for sight in eyes.sights]
        seen = around(shows)
        covers = [
            filling(square, "gray", PATCH * (seen[2] - seen[0]) / (box[2] - box[0]))
            for square, box in zip(squares, shows, strict=True)
        ]

        def answer(patches: Sequence[Box | None]) -> NDArray[np.float64]:
            photos = [
                tuple(covered(one, cover, patch, box) for one, cover, box in zip(squares, covers, shows, strict=True))
                for patch in patches
            ]
            return self._answer(photos)

        found = slid(answer, label=label, runner_up=runner_up, box=seen, progress=progress)
        count = sum(len(c.heads) + sum(len(t.files) for t in c.tuned) for c in self.classifiers)
        return replace(found, source=f"all that answers ({count} of the folds' models together)")

    def _cells(self, data: bytes, label: int, runner_up: int) -> tuple[HeatMap, ...]:
        classifier = self.classifiers[0]
        run, face = classifier.run, Face.of(classifier.run.recipe)
        looks = tuple(run.recipe.probe.views)
        prepared, faces = self.direct.prepare(data), self.direct.eyes.boxes(data)
        width, height = _size(data, self.direct.eyes.max_pixels)
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
            [placed_columns(graph) for graph in graphs],
        )
        return cell_maps(found, 0, label, runner_up, boxes, [graph.title() for graph in graphs])

    def _looked_into(self, whole: WholeNetworks, method: str, data: bytes, label: int, runner_up: int) -> HeatMap:
        run = self.classifiers[0].run
        p = whole.models.setting.preprocessing
        # The run's own limit, where nothing was loaded that has another.
        loaded = "direct" in self.__dict__
        limit = self.direct.eyes.max_pixels if loaded else int(run.recipe.image.max_megapixels * 1e6)
        box = self.direct.eyes.boxes(data)[Face.of(run.recipe)] if p.face else None
        values, margin = whole.map(method, whole.square(data, limit, box), run.recipe.probe.views, label, runner_up)
        width, height = _size(data, limit)
        shows = box or centre_box(width, height, p.crop, p.squash)
        return HeatMap(method, values, label, runner_up, shows, margin, whole.title(method))  # type: ignore[arg-type]


class WholeNetworks:
    """The trained networks of some folds, each whole, from the pixels to the logits, though its front was frozen.

    What the front was in training (an engine's float16 activations) it is here in float32: logits differ a little from
    the run's predictions.
    """

    def __init__(self, models: TunedModels) -> None:
        self.models = replace(models, setting=replace(models.setting, cut=False, views=()))
        self._held: list[Tuned] = []
        self._held_all = False

    def networks(self) -> Iterator[Tuned]:
        """Each fold's network, in eval mode, on the GPU where there is one."""
        from unfreeze.learn.train.plan import make_fabric

        if self._held_all:
            yield from self._held
            return
        device, size = make_fabric("f32").device, 0
        held: list[Tuned] = []
        for file in self.models.files:
            network = self._held[0] if not held and self._held else self.models.network(file).to(device).eval()
            size += 4 * sum(parameter.numel() for parameter in network.parameters())
            if size <= _HELD_BYTES:
                held.append(network)
            yield network
        self._held, self._held_all = held, len(held) == len(self.models.files)

    def first(self) -> Tuned:
        """The first fold's."""
        if not self._held:
            self._held = [next(self.networks())]
        return self._held[0]

    def able(self, method: str) -> bool:
        """Whether 'grad-cam' or 'rollout' is sound for these networks."""
        from unfreeze.learn.train.saliency import can_roll, stage_of

        if method == "rollout":
            return can_roll(self.first())
        stage = stage_of(self.first())
        # Tokens without a class of their own place (windows, merged tokens) are left to occlusion.
        return stage is not None and (stage.layout in ("NCHW", "NHWC") or can_roll(self.first()))

    def title(self, method: str) -> str:
        """What was looked into: `3 networks (EfficientNet-Lite0 at 224 px), after blocks.4`."""
        from unfreeze.learn.train.saliency import stage_of

        count, setting = len(self.models.files), self.models.setting
        stage = stage_of(self.first()) if method == "grad-cam" else None
        where = f", after {stage.name}" if stage else ", all blocks"
        many = f"{count} network{'s' if count > 1 else ''}"
        return f"{many} ({setting.backbone.title} at {setting.size} px){where}"

    def square(self, data: bytes, max_pixels: int, box: Box | None) -> NDArray[np.uint8]:
        """What the networks see of an image file's bytes: uint8 (S, S, 3). box: as of `images.load_square`."""
        p = self.models.setting.preprocessing
        shown = (p.size, p.crop, max_pixels, "photo", p.resample, p.squash, box, p.gray)
        return load_square(data, *shown)

    def map(
        self, method: str, square: NDArray[np.uint8], views: Sequence[str], label: int, runner_up: int
    ) -> tuple[NDArray[np.float64], float]:
        """One square's map float64 (h, w), the mean over networks and views; and the margin (rollout: NaN)."""
        from unfreeze.learn.train.saliency import attention_rollout, grad_cam

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
        """float32 (n, D): the first network's last map averaged over the photo, of uint8 (n, S, S, 3)."""
        import torch

        from unfreeze.model.taps import pooled

        network = self.first()
        stage = network.anatomy.stages[-1]
        kept: list[torch.Tensor] = []
        module = network.network.get_submodule(stage.output)
        handle = module.register_forward_hook(lambda _m, _i, output: kept.append(pooled(output, stage, 1)))
        try:
            with torch.inference_mode():
                network(self._images(squares, network))
        finally:
            handle.remove()
        found: NDArray[np.float32] = kept[-1].float().cpu().numpy()
        return found

    def _images(self, squares: NDArray[np.uint8], network: Tuned) -> torch.Tensor:
        import torch

        p, device = self.models.setting.preprocessing, next(network.parameters()).device
        mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (p.mean, p.std))
        pixels = torch.from_numpy(np.array(squares)).to(device).permute(0, 3, 1, 2)
        return (pixels.float() / 255 - mean) / std


def asked(source: Classifier | Blend) -> tuple[Classifier, ...]:
    """The runs that answer: of a blend those that have a weight."""
    if isinstance(source, Classifier):
        return (source,)
    return tuple(c for c, weight in zip(source.classifiers, source.weights, strict=True) if weight)


def _shown(sight: Sight, face: Box | None, width: int, height: int) -> Box:
    """What of a photo a square shows."""
    return face or centre_box(width, height, sight.crop, sight.squash)


def _size(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Width and height of the upright photo."""
    return decode_sized(data, 1, max_pixels)[1]
