"""How a recipe wants photos to be seen: the preprocessing of a backbone, and the squares around faces if it asks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfreeze.core.errors import RecipeError
from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.recipe_sections import FACE, Image, Input
from unfreeze.core.tables import Finding
from unfreeze.data.detectors import find_detector
from unfreeze.data.face_boxes import cached_boxes
from unfreeze.model.backbones import Backbone, Preprocessing

# A share of photos without a face above this is a warning: then the crop is mostly something else.
_MANY = 0.2


@dataclass(frozen=True)
class Squares:
    """What is cut from each photo: float64 (n, 4) shares of its width and height, NaN for the centre.

    searched: bool (n,), photos that a detector has looked at. A photo that was searched and has no square has no face.
    """

    cut: NDArray[np.float64]
    searched: NDArray[np.bool_]

    @property
    def faceless(self) -> NDArray[np.bool_]:
        """bool (n,): photos in which no face was found."""
        return self.searched & np.isnan(self.cut[:, 0])

    def told(self) -> str:
        """`no face was found in 3 of 210 photos: of these the whole centre square is seen`."""
        return (
            f"no face was found in {int(self.faceless.sum()):,} of {int(self.searched.sum()):,} photos: of these the "
            "whole centre square is seen"
        )

    def finding(self) -> Finding | None:
        """The same as a finding; None where every photo has a face."""
        if not self.faceless.any():
            return None
        many = self.faceless.sum() > _MANY * self.searched.sum()
        return Finding(
            "no-face",
            "warning" if many else "info",
            self.told(),
            "look with `unfreeze check --faces` which classes lack faces; leave image.crop out where they lack many",
        )


def wants_faces(recipe: Recipe) -> bool:
    """Whether any input of the recipe is cut around faces."""
    return recipe.image.crop == FACE or any(entry.crop == FACE for entry in recipe.probe.race)


def preprocessing_of(backbone: Backbone, recipe: Recipe, entry: Input | None = None) -> Preprocessing:
    """What the backbone sees under recipe.image, or as the input `entry` of a race.

    Raises RecipeError where keys contradict each other, DetectorError for an unknown detector.
    """
    chosen: Image | Input = entry or recipe.image
    gray = recipe.image.color == "gray"
    if chosen.squash and chosen.crop == FACE:
        raise RecipeError("image.squash shows the whole photo and image.crop = 'face' a part of it; leave one out.")
    if chosen.crop == FACE or (recipe.image.crop == FACE and not chosen.squash):
        return backbone.preprocessing.resolved(chosen.size, 1.0, face=face_mark(recipe.image), gray=gray)
    return backbone.preprocessing.resolved(chosen.size, float(chosen.crop), chosen.squash, gray=gray)


def face_mark(image: Image) -> str:
    """Names all that the squares around faces depend on: the detector and the margin."""
    return f"{find_detector(image.detector).identity} margin {image.margin:g}"


def check_detector(recipe: Recipe) -> None:
    """Raises MissingExtraError or DetectorError where faces are asked for and cannot be found here."""
    if wants_faces(recipe):
        find_detector(recipe.image.detector).open()


def squares_of(
    recipe: Recipe,
    files: list[Path],
    keys: NDArray[np.uint64],
    readable: NDArray[np.bool_],
    reporter: Reporter | None = None,
) -> Squares | None:
    """The squares around faces, from the cache or found now; None where the recipe asks for none.

    files, keys, readable: (n,), from the first look. Raises as `cached_boxes`.
    """
    if not wants_faces(recipe):
        return None
    image, limit = recipe.image, int(recipe.image.max_megapixels * 1e6)
    boxes = cached_boxes(files, keys, readable, image.detector, limit, reporter)
    return Squares(boxes.squares(image.margin), boxes.searched)
