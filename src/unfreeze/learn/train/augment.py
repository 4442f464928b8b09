"""Augmentation by one word, on the whole batch at once: photos of one class made to differ as new photos would.

Every number a photo's augmentation needs is a column of `draws`, uniform in [0, 1) and made from (seed, epoch, photo)
by a counter-based generator (Philox; Salmon et al. 2011). So it does not depend on batch size, order or device, a
resumed run sees the same photos, and no global random state is read or changed: other threads may draw meanwhile.

Crop, flip, rotation and shear are one matrix and ONE resampling; brightness, contrast and saturation are one linear map
of the colours, clamped once at the end (torchvision clamps after each). Both are drawn for each photo.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

# Columns of `draws`. RandAugment has two operations, each with a kind, a magnitude and a sign.
_AREA, _ASPECT, _LEFT, _TOP, _FLIP, _ANGLE, _BRIGHT, _CONTRAST, _SATURATION = range(9)
_ERASE, _ERASE_AREA, _ERASE_ASPECT, _ERASE_LEFT, _ERASE_TOP = range(9, 14)
_KIND, _MAGNITUDE, _SIGN = (14, 17), (15, 18), (16, 19)
_COLUMNS = 20
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as torchvision's saturation

Draws = NDArray[np.float64]


def make_draws(
    seed: int, epoch: int, photos: NDArray[np.uint64] | NDArray[np.int64], repeats: NDArray[np.int64] | None = None
) -> Draws:
    """Uniform numbers (n, 20) in [0, 1), a row a photo, that depend on nothing but the arguments.

    photos: (n,) what tells photos apart (content key or row), not negative. repeats: (n,) how often the photo came
    before in this epoch, so that a photo which is drawn twice does not look the same twice; None: 0.
    """
    key = np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint64)
    out = np.empty((len(photos), _COLUMNS))
    for i, photo in enumerate(photos.tolist()):
        repeat = 0 if repeats is None else int(repeats[i])
        counter = np.array([0, repeat, photo, 0], np.uint64)
        out[i] = np.random.Generator(np.random.Philox(key=key, counter=counter)).random(_COLUMNS)
    return out


@dataclass(frozen=True)
class Augment:
    """How photos are changed. Shares are of the stored square, which may be wider than what evaluation sees.

    area: a random crop keeps at least this share of the area, with an aspect of 3/4 to 4/3 (Szegedy et al. 2014,
    arXiv 1409.4842); 1 is no crop. flip: mirrored left to right with probability 1/2. degrees: rotated by up to this
    much either way; corners are filled by reflection. colour: brightness, contrast and saturation are each times 1 -
    colour to 1 + colour. randaugment: two further operations of 14 are drawn (arXiv 1909.13719), of magnitude up to 9
    of 30. erase: probability that a rectangle of 2 to 20 % of the area is filled with the photo's mean (1708.04896).
    """

    area: float = 1.0
    flip: bool = False
    degrees: float = 0.0
    colour: float = 0.0
    randaugment: bool = False
    erase: float = 0.0

    @property
    def resamples(self) -> bool:
        """Whether photos are cut anew from the stored square; else the evaluation view is used as it is."""
        return self.area < 1 or self.degrees > 0 or self.randaugment

    def describe(self) -> str:
        """In words, for people."""
        parts = []
        if self.area < 1:
            parts.append(f"crops of {self.area:.0%} to 100% of the area")
        if self.flip:
            parts.append("half of the photos mirrored")
        if self.degrees:
            parts.append(f"rotated by up to {self.degrees:g} degrees")
        if self.colour:
            parts.append(f"brightness, contrast and saturation changed by up to {self.colour:.0%}")
        if self.randaugment:
            parts.append("two operations of RandAugment")
        if self.erase:
            parts.append(f"a rectangle erased in {self.erase:.0%} of the photos")
        return ", ".join(parts) or "photos as they are"

    def __call__(self, images: torch.Tensor, size: int, margin: int, draws: Draws) -> torch.Tensor:
        """Augmented photos, float32 (n, 3, size, size) in 0..1, on the device of `images`.

        images: uint8 (n, 3, side, side) stored squares. margin: pixels around the evaluation view in them. size: may
        be smaller than that view, for progressive resizing. draws: from `make_draws`, a row a photo.
        """
        full = images.shape[-1] - 2 * margin
        if not self.resamples:
            images = images[..., margin : margin + full, margin : margin + full]
            if self.flip:
                mirrored = torch.from_numpy(draws[:, _FLIP] < 0.5).to(images.device)
                images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        if size < full:
            # Antialiased first, so that the resampling below, which is bilinear, never skips pixels.
            side = round(images.shape[-1] * size / full)
            images = _shrunk(images, side)
        floats = images.contiguous().float()
        if self.resamples:
            floats = _resampled(floats, self._matrices(draws), size)
        floats = self._coloured(floats, draws) if self.colour else floats.mul_(1 / 255)
        if self.randaugment:
            floats = _randaugmented(floats, draws)
        return self._erased(floats, draws) if self.erase else floats

    def _matrices(self, draws: Draws) -> torch.Tensor:
        """float32 (n, 2, 3): a pixel of the output, in -1..1, to its place in the stored square, in -1..1."""
        area = self.area + (1 - self.area) * draws[:, _AREA]
        aspect = np.exp(math.log(4 / 3) * (2 * draws[:, _ASPECT] - 1)) if self.area < 1 else np.ones(len(draws))
        width, height = np.minimum(1, np.sqrt(area * aspect)), np.minimum(1, np.sqrt(area / aspect))
        x, y = (1 - width) * (2 * draws[:, _LEFT] - 1), (1 - height) * (2 * draws[:, _TOP] - 1)
        angle = np.deg2rad(self.degrees) * (2 * draws[:, _ANGLE] - 1)
        shear = np.zeros((2, len(draws)))
        if self.randaugment:
            more, shear, shift = _geometry(draws)
            angle, x, y = angle + more, x + shift[0], y + shift[1]
        if self.flip:
            width = np.where(draws[:, _FLIP] < 0.5, -width, width)
        cos, sin = np.cos(angle), np.sin(angle)
        # Rotation x shear x scale: the crop is upright in the output and turned in the stored square.
        rows = [
            [(cos - sin * shear[1]) * width, (cos * shear[0] - sin) * height, x],
            [(sin + cos * shear[1]) * width, (sin * shear[0] + cos) * height, y],
        ]
        return torch.from_numpy(np.stack([np.stack(row, 1) for row in rows], 1).astype(np.float32))

    def _coloured(self, floats: torch.Tensor, draws: Draws) -> torch.Tensor:
        """0..255 to 0..1 with brightness, contrast and saturation changed: one 3 x 3 matrix and offset a photo."""
        chosen = 1 + self.colour * (2 * draws[:, [_BRIGHT, _CONTRAST, _SATURATION]] - 1)
        bright, contrast, saturation = torch.from_numpy(chosen.astype(np.float32)).to(floats.device).T[..., None, None]
        grey = floats.new_tensor(_GREY)
        matrix = saturation * torch.eye(3, device=floats.device) + (1 - saturation) * grey.expand(3, 3)
        scale = bright / 255
        mean = (floats.mean((2, 3)) * grey).sum(1)[:, None, None]
        flat = floats.flatten(2)
        offset = ((1 - contrast) * scale * mean).expand(-1, 3, 1)
        return torch.baddbmm(offset, contrast * scale * matrix, flat).clamp_(0, 1).view_as(floats)

    def _erased(self, floats: torch.Tensor, draws: Draws) -> torch.Tensor:
        area = 0.02 + 0.18 * draws[:, _ERASE_AREA]
        aspect = np.exp(math.log(3) * (2 * draws[:, _ERASE_ASPECT] - 1))
        width, height = np.sqrt(area * aspect), np.sqrt(area / aspect)  # at most sqrt(0.2 * 3) = 0.77 of the side
        left, top = (1 - width) * draws[:, _ERASE_LEFT], (1 - height) * draws[:, _ERASE_TOP]
        width = np.where(draws[:, _ERASE] < self.erase, width, 0)
        inside = rectangles(left, top, width, height, floats.shape[-1]).to(floats.device)
        return torch.where(inside[:, None], floats.mean((2, 3), keepdim=True), floats)


AUGMENTS: dict[str, Augment] = {
    "off": Augment(),
    "flip": Augment(flip=True),
    "light": Augment(area=0.7, flip=True),
    "standard": Augment(area=0.5, flip=True, degrees=10, colour=0.2),
    "strong": Augment(area=0.35, flip=True, degrees=15, colour=0.3, randaugment=True, erase=0.25),
}


def rectangles(
    left: NDArray[np.float64],
    top: NDArray[np.float64],
    width: NDArray[np.float64],
    height: NDArray[np.float64],
    size: int,
) -> torch.Tensor:
    """bool (n, size, size): True inside each photo's rectangle. Places and sides are shares of the side, (n,)."""
    middles = (np.arange(size) + 0.5) / size
    across = (middles >= left[:, None]) & (middles < (left + width)[:, None])
    down = (middles >= top[:, None]) & (middles < (top + height)[:, None])
    return torch.from_numpy(down[:, :, None] & across[:, None, :])


def _shrunk(images: torch.Tensor, side: int) -> torch.Tensor:
    """uint8 to a smaller side, bilinear with antialiasing; on an accelerator by way of floats."""
    if images.device.type == "cpu":
        return functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
    floats = functional.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
    return floats.round_().clamp_(0, 255).to(torch.uint8)


def _resampled(floats: torch.Tensor, matrices: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear, corners by reflection. The grid is made by broadcasting: affine_grid takes five times as long."""
    matrices = matrices.to(floats.device)
    line = (torch.arange(size, device=floats.device, dtype=torch.float32) * 2 + 1) / size - 1
    across = line[None, :, None] * matrices[:, None, :, 0]
    down = line[None, :, None] * matrices[:, None, :, 1] + matrices[:, None, :, 2]
    grid = across[:, None] + down[:, :, None]
    return functional.grid_sample(floats, grid, padding_mode="reflection", align_corners=False)


# RandAugment's operations (arXiv 1909.13719, ranges as torchvision's, 31 levels, drawn up to level 9).
_GEOMETRIC = ("rotate", "shear-x", "shear-y", "translate-x", "translate-y")
_PIXELWISE = ("brightness", "colour", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize")
RANDAUGMENT = ("identity", *_GEOMETRIC, *_PIXELWISE)
_LEVEL = 9 / 30
_STEPS = 3


def _operations(draws: Draws) -> list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    """For each of the two operations: kind (n,), step 1..3 of its magnitude (n,), and sign (n,).

    Magnitudes have a few steps only, so that photos which share one are changed in one call.
    """
    return [
        (
            (draws[:, kind] * len(RANDAUGMENT)).astype(np.int64),
            1 + (draws[:, magnitude] * _STEPS).astype(np.int64),
            np.where(draws[:, sign] < 0.5, -1.0, 1.0),
        )
        for kind, magnitude, sign in zip(_KIND, _MAGNITUDE, _SIGN, strict=True)
    ]


def _geometry(draws: Draws) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The geometric operations, to be joined to the crop's matrix: radians (n,), shears (2, n), shifts (2, n) of 2."""
    total = dict.fromkeys(_GEOMETRIC, np.zeros(len(draws)))
    largest = dict(zip(_GEOMETRIC, (math.radians(30), 0.3, 0.3, 300 / 331, 300 / 331), strict=True))
    for kind, step, sign in _operations(draws):
        for name in _GEOMETRIC:
            amount = sign * largest[name] * _LEVEL * step / _STEPS
            total[name] = total[name] + np.where(kind == RANDAUGMENT.index(name), amount, 0)
    shears = np.stack([total["shear-x"], total["shear-y"]])
    return total["rotate"], shears, np.stack([total["translate-x"], total["translate-y"]])


def _randaugmented(floats: torch.Tensor, draws: Draws) -> torch.Tensor:
    """The operations on colours, in 0..1, in place. Photos with the same operation and magnitude go together."""
    from torchvision.transforms.v2 import functional as v2

    for kind, step, sign in _operations(draws):
        for name in _PIXELWISE:
            alike = kind == RANDAUGMENT.index(name)
            for signed in np.unique((step * sign)[alike]):
                rows = torch.from_numpy(np.flatnonzero(alike & (step * sign == signed))).to(floats.device)
                level = float(signed) / _STEPS * _LEVEL
                factor = 1 + 0.9 * level
                images = floats[rows]
                if name == "brightness":
                    images = v2.adjust_brightness(images, factor)
                elif name == "colour":
                    images = v2.adjust_saturation(images, factor)
                elif name == "contrast":
                    images = v2.adjust_contrast(images, factor)
                elif name == "sharpness":
                    images = v2.adjust_sharpness(images, factor)
                elif name == "posterize":
                    images = v2.posterize(images, 8 - round(4 * abs(level)))
                elif name == "solarize":
                    images = v2.solarize(images, 1 - abs(level))
                elif name == "autocontrast":
                    images = v2.autocontrast(images)
                else:
                    images = v2.equalize(images)
                floats[rows] = images
    return floats


def mixup(
    tensors: tuple[torch.Tensor, ...], targets: torch.Tensor, alpha: float, draw: np.random.Generator
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """mixup (arXiv 1710.09412): each example becomes a blend with another of the batch, and so do its targets.

    tensors: float, n examples each, blended alike. targets: float32 (n, C), rows sum to 1. The share is drawn for each
    example from Beta(alpha, alpha).
    """
    n = len(targets)
    share = torch.from_numpy(draw.beta(alpha, alpha, n).astype(np.float32)).to(targets.device)
    other = torch.from_numpy(draw.permutation(n)).to(targets.device)

    def blend(x: torch.Tensor) -> torch.Tensor:
        return torch.lerp(x[other], x, share.view(-1, *[1] * (x.ndim - 1)))

    return tuple(blend(x) for x in tensors), blend(targets)


def cutmix(
    images: torch.Tensor, targets: torch.Tensor, alpha: float, draw: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """CutMix (arXiv 1905.04899): a rectangle of each photo is another photo's; targets follow the area in pixels.

    images: float (n, C, S, S). targets: float32 (n, C). The kept share is drawn for each photo from Beta(alpha, alpha).
    """
    n, size = len(targets), images.shape[-1]
    side = np.sqrt(1 - draw.beta(alpha, alpha, n))
    # The rectangle's middle lies anywhere, so that it may be cut off at the border, as in the paper.
    left, top = draw.random(n) - side / 2, draw.random(n) - side / 2
    inside = rectangles(left, top, side, side, size).to(images.device)
    other = torch.from_numpy(draw.permutation(n)).to(images.device)
    mixed = torch.where(inside[:, None], images[other], images)
    kept = 1 - inside.float().mean((1, 2))
    return mixed, torch.lerp(targets[other], targets, kept[:, None])
