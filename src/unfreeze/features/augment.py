"""Batched image augmentation: named presets, RandAugment, mixup and CutMix.

Every random number that an image's augmentation needs is a column of `draws`, uniform in [0, 1) and generated from
(seed, epoch, image) by a counter-based generator (Philox; Salmon et al. 2011). The result therefore does not depend on
batch size, order or device, a resumed run sees the same images, and no global random state is read or changed, so other
threads can draw random numbers at the same time.

Crop, flip, rotation and shear are combined into one affine matrix and one resampling step. Brightness, contrast and
saturation are combined into one linear map of the colors, clamped once at the end (torchvision clamps after each step).
Both are drawn per image.

References:
    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

# Columns of `draws`. RandAugment applies two operations, each with a kind, a magnitude and a sign.
_AREA, _ASPECT, _LEFT, _TOP, _FLIP, _ANGLE, _BRIGHT, _CONTRAST, _SATURATION = range(9)
_ERASE, _ERASE_AREA, _ERASE_ASPECT, _ERASE_LEFT, _ERASE_TOP = range(9, 14)
_KIND, _MAGNITUDE, _SIGN = (14, 17), (15, 18), (16, 19)
_COLUMNS = 20
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in torchvision's saturation

Draws = NDArray[np.float64]


def make_draws(
    seed: int, epoch: int, photos: NDArray[np.uint64] | NDArray[np.int64], repeats: NDArray[np.int64] | None = None
) -> Draws:
    """Generate uniform random numbers in [0, 1) that depend only on the arguments.

    Args:
        seed: Random seed.
        epoch: Number of the epoch.
        photos: (n,) non-negative identifiers of the images (content key or row).
        repeats: (n,) number of earlier occurrences of the image in this epoch, so that an image drawn twice is
            augmented differently each time. None means 0 for all.

    Returns:
        float64 (n, 20), one row per image.
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
    """Augmentation preset for batches of images.

    Areas are fractions of the cached square, which can be wider than the evaluation view.

    Attributes:
        area: Minimum fraction of the area that a random crop keeps, with an aspect ratio of 3/4 to 4/3 (Szegedy et al.
            2014, arXiv 1409.4842). 1 disables cropping.
        flip: Whether to flip horizontally with probability 1/2.
        degrees: Maximum rotation in either direction, in degrees. Corners are filled by reflection.
        colour: Brightness, contrast and saturation are each multiplied by a factor in [1 - color, 1 + color].
        randaugment: Whether to apply two more operations out of 14 (RandAugment, arXiv 1909.13719), with a magnitude of
            up to 9 out of 30.
        erase: Probability that a rectangle of 2 to 20% of the area is filled with the mean of the image (random
            erasing, arXiv 1708.04896).
    """

    area: float = 1.0
    flip: bool = False
    degrees: float = 0.0
    colour: float = 0.0
    randaugment: bool = False
    erase: float = 0.0

    @property
    def resamples(self) -> bool:
        """Whether images are resampled from the cached square; otherwise the evaluation view is used unchanged."""
        return self.area < 1 or self.degrees > 0 or self.randaugment

    def describe(self) -> str:
        """Return a human-readable description of the preset."""
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
        """Augment a batch of images.

        Args:
            images: uint8 (n, 3, side, side) cached squares.
            size: Output size in pixels. Can be smaller than the evaluation view, for progressive resizing.
            margin: Width in pixels of the border around the evaluation view in `images`.
            draws: Random numbers from `make_draws`, one row per image.

        Returns:
            float32 (n, 3, size, size) in [0, 1], on the device of `images`.
        """
        full = images.shape[-1] - 2 * margin
        if not self.resamples:
            images = images[..., margin : margin + full, margin : margin + full]
            if self.flip:
                mirrored = torch.from_numpy(draws[:, _FLIP] < 0.5).to(images.device)
                images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        if size < full:
            # Downscale with antialiasing first: the bilinear resampling below would otherwise skip pixels.
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
        """Return float32 (n, 2, 3) affine matrices from output to input coordinates, both in [-1, 1]."""
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
        # Rotation x shear x scale: the crop is upright in the output and rotated in the cached square.
        rows = [
            [(cos - sin * shear[1]) * width, (cos * shear[0] - sin) * height, x],
            [(sin + cos * shear[1]) * width, (sin * shear[0] + cos) * height, y],
        ]
        return torch.from_numpy(np.stack([np.stack(row, 1) for row in rows], 1).astype(np.float32))

    def _coloured(self, floats: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Map [0, 255] to [0, 1] and apply brightness, contrast and saturation.

        The three are combined into one 3 x 3 matrix and one offset per image.
        """
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
    """Rasterize one rectangle per image.

    Args:
        left: (n,) left edges, as fractions of the image side.
        top: (n,) top edges, as fractions of the image side.
        width: (n,) widths, as fractions of the image side.
        height: (n,) heights, as fractions of the image side.
        size: Image side in pixels.

    Returns:
        bool (n, size, size), True inside the rectangle.
    """
    middles = (np.arange(size) + 0.5) / size
    across = (middles >= left[:, None]) & (middles < (left + width)[:, None])
    down = (middles >= top[:, None]) & (middles < (top + height)[:, None])
    return torch.from_numpy(down[:, :, None] & across[:, None, :])


def _shrunk(images: torch.Tensor, side: int) -> torch.Tensor:
    """Downscale uint8 images bilinearly with antialiasing; on an accelerator, via float32."""
    if images.device.type == "cpu":
        return functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
    floats = functional.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
    return floats.round_().clamp_(0, 255).to(torch.uint8)


def _resampled(floats: torch.Tensor, matrices: torch.Tensor, size: int) -> torch.Tensor:
    """Resample bilinearly with reflection padding. Broadcasting builds the grid five times faster than affine_grid."""
    matrices = matrices.to(floats.device)
    line = (torch.arange(size, device=floats.device, dtype=torch.float32) * 2 + 1) / size - 1
    across = line[None, :, None] * matrices[:, None, :, 0]
    down = line[None, :, None] * matrices[:, None, :, 1] + matrices[:, None, :, 2]
    grid = across[:, None] + down[:, :, None]
    return functional.grid_sample(floats, grid, padding_mode="reflection", align_corners=False)


# RandAugment operations (arXiv 1909.13719), with the ranges of torchvision (31 levels), drawn up to level 9.
_GEOMETRIC = ("rotate", "shear-x", "shear-y", "translate-x", "translate-y")
_PIXELWISE = ("brightness", "colour", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize")
RANDAUGMENT = ("identity", *_GEOMETRIC, *_PIXELWISE)
_LEVEL = 9 / 30
_STEPS = 3


def _operations(draws: Draws) -> list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    """Return kind (n,), magnitude step 1..3 (n,) and sign (n,) for each of the two operations.

    Magnitudes are quantized to a few steps so that images with the same magnitude are processed in one call.
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
    """Return the geometric operations, to be merged into the crop matrix.

    Returns:
        Angles in radians (n,), shears (2, n) and translations (2, n) in coordinates of [-1, 1].
    """
    total = dict.fromkeys(_GEOMETRIC, np.zeros(len(draws)))
    largest = dict(zip(_GEOMETRIC, (math.radians(30), 0.3, 0.3, 300 / 331, 300 / 331), strict=True))
    for kind, step, sign in _operations(draws):
        for name in _GEOMETRIC:
            amount = sign * largest[name] * _LEVEL * step / _STEPS
            total[name] = total[name] + np.where(kind == RANDAUGMENT.index(name), amount, 0)
    shears = np.stack([total["shear-x"], total["shear-y"]])
    return total["rotate"], shears, np.stack([total["translate-x"], total["translate-y"]])


def _randaugmented(floats: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Apply the color operations in place to images in [0, 1].

    Images with the same operation and magnitude are processed together.
    """
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
    """Apply mixup: blend each example and its targets with another example of the batch.

    The mixing weight is drawn per example from Beta(alpha, alpha).

    Args:
        tensors: Float tensors with n examples each, all blended with the same weights.
        targets: float32 (n, C), rows sum to 1.
        alpha: Parameter of the Beta distribution.
        draw: Random generator.

    Returns:
        The blended tensors and the blended targets.

    References:
        Zhang et al. 2017, arXiv 1710.09412.
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
    """Apply CutMix: replace a rectangle of each image with that of another image of the batch.

    The kept fraction is drawn per image from Beta(alpha, alpha). Targets are weighted by the area in pixels.

    Args:
        images: float (n, C, S, S).
        targets: float32 (n, C).
        alpha: Parameter of the Beta distribution.
        draw: Random generator.

    Returns:
        The mixed images and targets.

    References:
        Yun et al. 2019, arXiv 1905.04899.
    """
    n, size = len(targets), images.shape[-1]
    side = np.sqrt(1 - draw.beta(alpha, alpha, n))
    # The center of the rectangle lies anywhere in the image, so the border can clip the rectangle, as in the paper.
    left, top = draw.random(n) - side / 2, draw.random(n) - side / 2
    inside = rectangles(left, top, side, side, size).to(images.device)
    other = torch.from_numpy(draw.permutation(n)).to(images.device)
    mixed = torch.where(inside[:, None], images[other], images)
    kept = 1 - inside.float().mean((1, 2))
    return mixed, torch.lerp(targets[other], targets, kept[:, None])
