"""Crops of images: backbone preprocessing, face crops, and in-memory cropping.

`preprocessing_of` resolves the preprocessing of a backbone under a recipe, and `face_crops` returns the square crops
around faces for a dataset. `Cropper` cuts all crops that a run needs from one image whose bytes are in memory.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.dataset import Finding
from unfreeze.core.errors import RecipeError
from unfreeze.core.messages import wording
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_schema import FACE, Image, ProbeInput
from unfreeze.data.decode import Box, Pixels
from unfreeze.data.decode_process import Cut, Look, Part, Small, decode_request
from unfreeze.data.face_boxes import MOST, FaceBoxes, crop_of, detect_faces_cached
from unfreeze.data.face_detectors import Detector, find_detector
from unfreeze.data.pixel_cache import CropSpec
from unfreeze.models.model_info import Preprocessing
from unfreeze.models.registry import Backbone

# If more than this fraction of the images has no face, the finding is a warning: these images are not cropped to a
# face.
_MANY = 0.2


@dataclass(frozen=True)
class FaceCrops:
    """Crop boxes for a dataset.

    Attributes:
        cut: float64 (n, 4) boxes as fractions of the image width and height; NaN means the center crop.
        searched: bool (n,), images that the detector has processed. An image that was searched and has no box has no
            face.
    """

    cut: NDArray[np.float64]
    searched: NDArray[np.bool_]

    @property
    def faceless(self) -> NDArray[np.bool_]:
        """bool (n,): images in which no face was found."""
        return self.searched & np.isnan(self.cut[:, 0])

    def describe(self) -> str:
        """Return a sentence that says in how many images no face was found.

        Example: `no face was found in 3 of 210 images; the whole center square is used for them`.
        """
        return (
            f"no face was found in {int(self.faceless.sum()):,} of {int(self.searched.sum()):,} images; "
            "the whole center square is used for them"
        )

    def finding(self) -> Finding | None:
        """Return a finding about images without a face, or None if every image has one."""
        if not self.faceless.any():
            return None
        many = self.faceless.sum() > _MANY * self.searched.sum()
        return Finding(
            "no-face",
            "warning" if many else "info",
            self.describe(),
            f"run {wording('`unfreeze check --faces`', '`uf.face_stats`')} to see which classes lack faces; leave out "
            "image.crop if many are missing",
        )


def needs_faces(recipe: Recipe) -> bool:
    """Return whether any input of the recipe is cropped around faces."""
    return recipe.image.crop == FACE or any(entry.crop == FACE for entry in recipe.probe.input_candidates)


def preprocessing_of(backbone: Backbone, recipe: Recipe, entry: ProbeInput | None = None) -> Preprocessing:
    """Resolve the preprocessing of a backbone.

    Args:
        backbone: The backbone.
        recipe: The recipe; `recipe.image` applies unless `entry` is given.
        entry: Input of a race (`probe.input_candidates`) whose size, crop and squash replace those of `recipe.image`.

    Returns:
        The resolved preprocessing.

    Raises:
        RecipeError: If keys contradict each other.
        DetectorError: If the face detector is unknown.
    """
    chosen: Image | ProbeInput = entry or recipe.image
    gray = recipe.image.color == "gray"
    if chosen.squash and chosen.crop == FACE:
        raise RecipeError("image.squash shows the whole photo and image.crop = 'face' a part of it; leave one out.")
    if chosen.crop == FACE or (recipe.image.crop == FACE and not chosen.squash):
        return backbone.preprocessing.resolved(chosen.size, 1.0, face=face_crop_key(recipe.image), gray=gray)
    return backbone.preprocessing.resolved(chosen.size, float(chosen.crop), chosen.squash, gray=gray)


def face_crop_key(image: Image) -> str:
    """Return a cache key part that covers everything face crops depend on: the detector and the margin."""
    return f"{find_detector(image.face_detector).identity} margin {image.face_margin:g}"


def check_detector(recipe: Recipe) -> None:
    """Check that the face detector of a recipe is available, if the recipe needs one.

    Raises:
        MissingExtraError: If the package of the detector is not installed.
        DetectorError: If the detector is unknown or cannot be opened.
    """
    if needs_faces(recipe):
        find_detector(recipe.image.face_detector).open()


def face_crops(
    recipe: Recipe,
    files: list[Path],
    keys: NDArray[np.uint64],
    readable: NDArray[np.bool_],
    reporter: Reporter | None = None,
) -> FaceCrops | None:
    """Return the crop boxes around faces, from the cache or newly detected.

    Args:
        recipe: The recipe.
        files: n image files.
        keys: uint64 (n, 2) content keys from the scan.
        readable: bool (n,), from the scan.
        reporter: Progress reporter.

    Returns:
        The crop boxes, or None if the recipe does not use face crops.

    Raises:
        DetectorError: If the detector is unknown.
        MissingExtraError: If the package of the detector is not installed.
    """
    if not needs_faces(recipe):
        return None
    image, limit = recipe.image, int(recipe.image.max_megapixels * 1e6)
    boxes = detect_faces_cached(files, keys, readable, image.face_detector, limit, reporter)
    return FaceCrops(boxes.squares(image.face_margin), boxes.searched)


# One image as the networks of a run read it: uint8 (S, S, 3) for each crop specification of the run.
Prepared = tuple[Pixels, ...]


@dataclass(frozen=True)
class FaceCropSpec:
    """Specification of a face crop.

    Attributes:
        detector: Name of the face detector.
        margin: Margin around the face, as a fraction of its longer side.
    """

    detector: str
    margin: float

    @classmethod
    def of(cls, recipe: Recipe) -> FaceCropSpec:
        """Return the face crop specification of a recipe."""
        return cls(recipe.image.face_detector, recipe.image.face_margin)


@dataclass(frozen=True)
class NetworkCrop:
    """Specification of one square crop, as cut by `decode.load_crop`.

    Attributes:
        size: Side of the crop in pixels.
        crop: Fraction of the short side that is shown.
        resample: Interpolation mode.
        squash: Whether to resize the whole image without keeping its aspect ratio.
        gray: Whether to convert to grayscale.
        face: Face crop specification; None means the center crop.
    """

    size: int
    crop: float
    resample: str
    squash: bool
    gray: bool
    face: FaceCropSpec | None

    @classmethod
    def of_network(cls, p: Preprocessing, face: FaceCropSpec) -> NetworkCrop:
        """Return the crop that a frozen network reads."""
        return cls(p.size, p.crop, p.resample, p.squash, p.gray, face if p.face else None)

    @classmethod
    def of_frame(cls, frame: CropSpec, face: FaceCropSpec) -> NetworkCrop:
        """Return the crop that is cached for a network trained on pixels; slightly wider than the network input."""
        own = face if frame.face else None
        return cls(frame.side, frame.share, frame.resample, frame.squash, frame.gray, own)

    def cut(self, box: Box | None) -> Cut:
        """Return the decode request for this crop, around the face box if there is one."""
        return Cut(self.size, self.crop, self.resample, self.squash, self.gray, box)


class Cropper:
    """Cuts all crops that a set of networks needs. Thread-safe.

    Args:
        sights: Crop specifications.
        max_pixels: Maximum number of pixels; larger images are rejected before they are decoded.

    Attributes:
        look: Function that decodes a request; by default, decodes in this process.

    Raises:
        DetectorError: If a face crop is needed and the detector is unknown.
        MissingExtraError: If a face crop is needed and the package of the detector is not installed.
    """

    def __init__(self, sights: Sequence[NetworkCrop], max_pixels: int) -> None:
        self.sights, self.max_pixels = tuple(sights), max_pixels
        self.look: Look = decode_request
        faces = dict.fromkeys(sight.face for sight in self.sights if sight.face)
        found: dict[str, _Finder] = {}
        for face in faces:
            if face.detector not in found:
                found[face.detector] = _Finder(find_detector(face.detector).open())
        self._finders = {face: found[face.detector] for face in faces}

    def through(self, look: Look) -> Cropper:
        """Return a copy that shares the detectors and decodes with `look`."""
        other = copy.copy(self)
        other.look = look
        return other

    def prepare(self, data: bytes) -> Prepared:
        """Decode an image and cut all crops.

        Args:
            data: Bytes of the image file.

        Returns:
            One uint8 (S, S, 3) array per crop specification.

        Raises:
            PhotoError: If the image cannot be decoded (see `decode.decode`).
        """
        boxes = self.boxes(data)
        wanted = [s.cut(boxes[s.face] if s.face else None) for s in self.sights]
        return tuple(part.pixels for part in self.look(data, self.max_pixels, wanted))

    def boxes(self, data: bytes) -> dict[FaceCropSpec | None, Box | None]:
        """Return the crop box for each face specification, as fractions of the upright image; None without a face."""
        found: dict[FaceCropSpec | None, Box | None] = {}
        for face, finder in self._finders.items():
            (part,) = self.look(data, self.max_pixels, [Small(finder.side)])
            found[face] = finder.box(part, face.margin)
        return found

    def square(self, data: bytes, cut: Cut) -> Pixels:
        """Cut one more crop from an image file's bytes.

        Raises:
            PhotoError: If the image cannot be decoded (see `decode.decode`).
        """
        return self.look(data, self.max_pixels, [cut])[0].pixels

    def size(self, data: bytes) -> tuple[int, int]:
        """Return width and height of the upright image.

        Raises:
            PhotoError: If the image cannot be decoded (see `decode.decode`).
        """
        return self.look(data, self.max_pixels, [Small(1)])[0].size


class _Finder:
    """Face detector with a lock: its inference requests cannot be shared between threads."""

    def __init__(self, detector: Detector) -> None:
        self._detector, self._lock = detector, threading.Lock()
        self.side = detector.side

    def box(self, part: Part, margin: float) -> Box | None:
        """Return the crop box around the largest face, computed as in `faces.detect_faces_cached`."""
        small, (width, height) = part.pixels, part.size
        with self._lock:
            found, _ = self._detector.find([small])[0]
        order = np.argsort(-np.prod(found[:, 2:] - found[:, :2], axis=1), kind="stable")[:MOST]
        boxes = np.full((1, MOST, 4), np.nan)
        high, wide = small.shape[:2]
        boxes[0, : len(order)] = (found[order] / np.array([wide, high, wide, high])).astype(np.float32)
        one = FaceBoxes(
            np.ones(1, bool),
            np.array([len(found)]),
            boxes,
            np.full((1, MOST), np.nan),
            np.array([width]),
            np.array([height]),
        )
        return crop_of(one.squares(margin), 0)
