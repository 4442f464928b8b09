"""What networks see of a photo whose bytes are in memory: the squares to cut, and the face that they are cut round."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfreeze.core.recipe import Recipe
from unfreeze.data.detectors import Detector, find_detector, shrunk
from unfreeze.data.face_boxes import MOST, FaceBoxes, box_of
from unfreeze.data.images import Box, Pixels, decode_sized, load_square
from unfreeze.data.pixels import Frame
from unfreeze.model.cards import Preprocessing

# One photo as the networks of a run read it: uint8 (S, S, 3) for each of the run's sights.
Prepared = tuple[Pixels, ...]


@dataclass(frozen=True)
class Face:
    """Which face a square is cut round: the detector, and the margin around its box."""

    detector: str
    margin: float

    @classmethod
    def of(cls, recipe: Recipe) -> Face:
        """That of a recipe."""
        return cls(recipe.image.detector, recipe.image.margin)


@dataclass(frozen=True)
class Sight:
    """One square of pixels, as `images.load_square` cuts it. crop: a share; face: None for the centre."""

    size: int
    crop: float
    resample: str
    squash: bool
    gray: bool
    face: Face | None

    @classmethod
    def of_network(cls, p: Preprocessing, face: Face) -> Sight:
        """What a frozen network reads."""
        return cls(p.size, p.crop, p.resample, p.squash, p.gray, face if p.face else None)

    @classmethod
    def of_frame(cls, frame: Frame, face: Face) -> Sight:
        """What is kept of a photo for a network that trains on pixels: a little more than it reads."""
        own = face if frame.face else None
        return cls(frame.side, frame.share, frame.resample, frame.squash, frame.gray, own)


class Eyes:
    """Cuts all the squares that some networks need; safe to call from several threads.

    max_pixels: a photo with more is refused before it is unpacked. Raises DetectorError or MissingExtraError where a
    square is cut round a face and none can be found here.
    """

    def __init__(self, sights: Sequence[Sight], max_pixels: int) -> None:
        self.sights, self.max_pixels = tuple(sights), max_pixels
        faces = dict.fromkeys(sight.face for sight in self.sights if sight.face)
        found: dict[str, _Finder] = {}
        for face in faces:
            if face.detector not in found:
                found[face.detector] = _Finder(find_detector(face.detector).open())
        self._finders = {face: found[face.detector] for face in faces}

    def prepare(self, data: bytes) -> Prepared:
        """The squares of an image file's bytes, one for each sight. PhotoError as `images.decode`."""
        boxes = self.boxes(data)
        return tuple(
            load_square(
                data,
                s.size,
                s.crop,
                self.max_pixels,
                resample=s.resample,
                squash=s.squash,
                box=boxes[s.face] if s.face else None,
                gray=s.gray,
            )
            for s in self.sights
        )

    def boxes(self, data: bytes) -> dict[Face | None, Box | None]:
        """What is cut round each kind of face, as shares of the upright photo; None: no face was found."""
        return {face: finder.box(data, face.margin, self.max_pixels) for face, finder in self._finders.items()}


class _Finder:
    """A detector, one photo at a time: its requests are its own, and threads would share them."""

    def __init__(self, detector: Detector) -> None:
        self._detector, self._lock = detector, threading.Lock()

    def box(self, data: bytes, margin: float, max_pixels: int) -> Box | None:
        """The square round the largest face, found and cut as `face_boxes.cached_boxes` does."""
        pixels, (width, height) = decode_sized(data, self._detector.side, max_pixels)
        small = shrunk(pixels, self._detector.side)
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
        return box_of(one.squares(margin), 0)
