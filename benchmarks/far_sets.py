"""Drawn photo sets that are far from ImageNet, in class folders: characters, spectra, and real photos made tiny."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

# The group stands before the first _ of a file's name: `--group-regex`.
GROUP = r"(?P<group>[^/_]+)_[^/]*$"
_SIDE = 64


def characters(target: Path, count: int = 480, classes: int = 24, writers: int = 20, seed: int = 0) -> Path:
    """Letters of an alphabet that nobody knows, each writer with a hand of their own: the group is the writer."""
    draws = np.random.default_rng(seed)
    letters = [[draws.uniform(-1, 1, (4, 2)) for _ in range(draws.integers(2, 4))] for _ in range(classes)]
    hands = [_hand(draws) for _ in range(writers)]
    for i in range(count):
        label, writer = i % classes, (i // classes) % writers
        image = Image.new("L", (_SIDE * 4, _SIDE * 4), 255)
        pen = ImageDraw.Draw(image)
        matrix, width, shake = hands[writer]
        for stroke in letters[label]:
            control = (stroke + draws.normal(0, shake, stroke.shape)) @ matrix.T
            points = (_bezier(control) * 0.38 + 0.5 + draws.normal(0, 0.01, 2)) * _SIDE * 4
            pen.line([tuple(p) for p in points], fill=0, width=width, joint="curve")
        _save(image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), target, f"sign-{label}", f"writer{writer}_{i}")
    return target


def _hand(draws: np.random.Generator) -> tuple[NDArray[np.float64], int, float]:
    angle, slant = draws.normal(0, 0.15), draws.normal(0, 0.25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turn @ np.array([[1, slant], [0, 1]]), int(draws.integers(6, 18)), float(draws.uniform(0.15, 0.35))


def _bezier(control: NDArray[np.float64]) -> NDArray[np.float64]:
    t = np.linspace(0, 1, 24)[:, None]
    a, b, c, d = control
    return (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d


def spectra(target: Path, count: int = 400, classes: int = 8, instruments: int = 20, seed: int = 0) -> Path:
    """Textures like spectrograms: a class is a pattern of lines and drift, an instrument its gain, noise, offset."""
    draws = np.random.default_rng(seed)
    lines = draws.uniform(0.1, 0.9, (classes, 3))
    drift = draws.uniform(-0.25, 0.25, (classes, 3))
    beat = draws.integers(2, 9, classes)
    gains = draws.uniform(0.4, 1.0, instruments)
    noises, offsets = draws.uniform(0.15, 0.5, instruments), draws.normal(0, 0.05, instruments)
    time, pitch = np.meshgrid(np.linspace(0, 1, 96), np.linspace(0, 1, 96))
    for i in range(count):
        label, tool = i % classes, (i // classes) % instruments
        field = np.zeros_like(time)
        for line, slope in zip(lines[label], drift[label], strict=True):
            centre = line + offsets[tool] + slope * (time - 0.5) + draws.normal(0, 0.01)
            field += draws.uniform(0.5, 1) * np.exp(-(((pitch - centre) / 0.02) ** 2))
        field *= 0.6 + 0.4 * np.sin(2 * np.pi * (beat[label] * time + draws.random()))
        noisy = gains[tool] * field + noises[tool] * np.abs(draws.normal(0, 1, field.shape))
        image = Image.fromarray((255 * np.clip(noisy / 1.6, 0, 1)).astype(np.uint8))
        _save(image, target, f"tone-{label}", f"tool{tool}_{i}")
    return target


def tiny(target: Path, source: Path, per_class: int = 70, side: int = 32) -> Path:
    """Photos of a set in class folders, cut to a square and made `side` pixels wide; each is its own group."""
    for folder in sorted(p for p in source.iterdir() if p.is_dir()):
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        for i, file in enumerate(files[:: max(1, len(files) // per_class)][:per_class]):
            with Image.open(file) as image:
                small = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BOX)
            _save(small, target, folder.name, f"{folder.name}-{i}_0")
    return target


def _save(image: Image.Image, target: Path, label: str, name: str) -> None:
    file = target / label / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


FAR: dict[str, Callable[[Path], Path]] = {"characters": characters, "spectra": spectra}
