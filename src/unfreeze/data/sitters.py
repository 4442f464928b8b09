"""One invented person: what stays the same over all photos, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfreeze.data.canvas import Colour, both_sides, hsv, mix, motif

SKINS: tuple[Colour, ...] = (
    (250, 219, 192),
    (241, 200, 165),
    (228, 180, 140),
    (205, 154, 115),
    (172, 122, 88),
)
HAIRS: tuple[Colour, ...] = ((30, 26, 30), (44, 33, 32), (66, 44, 36), (92, 58, 40), (38, 36, 52))
MOTIFS = ("plain", "stripes", "bars", "diagonal", "dots", "checks", "waves", "rings")
MASKS: tuple[tuple[Colour, Colour, str], ...] = (
    ((139, 190, 224), (214, 233, 245), "plain"),
    ((244, 245, 243), (214, 219, 222), "plain"),
    ((48, 49, 55), (84, 86, 94), "plain"),
    ((226, 142, 146), (250, 226, 214), "dots"),
    ((92, 138, 126), (205, 224, 204), "checks"),
    ((82, 96, 148), (222, 196, 140), "diagonal"),
    ((246, 218, 222), (228, 182, 192), "plain"),
    ((150, 204, 196), (226, 243, 238), "plain"),
)


@dataclass(frozen=True)
class Sitter:
    """One invented person. `seed` fixes the looks, `gender` is 0 male or 1 female, `age` is in years."""

    seed: tuple[int, ...]
    gender: int
    age: int


class Looks:
    """What stays the same over a person's photos, drawn once from the sitter's seed.

    Gender and age act only through noisy traits (each is right more often than not), so that no single
    one gives the class away.
    """

    def __init__(self, sitter: Sitter) -> None:
        rng = np.random.default_rng([*sitter.seed, 11])
        man = 1.0 if sitter.gender == 0 else -1.0

        def manly(noise: float = 0.8) -> float:
            return man + rng.normal(0, 0.75 * noise)

        age = sitter.age + rng.normal(0, 3)
        skin_at = rng.uniform(0, len(SKINS) - 1.001)
        self.skin = mix(SKINS[int(skin_at)], SKINS[int(skin_at) + 1], skin_at % 1)
        self.wide = 0.75 + 0.02 * manly() + rng.normal(0, 0.025)
        self.jaw = self.wide * np.clip(0.79 + 0.055 * manly(), 0.66, 0.92)
        self.chin = self.jaw * np.clip(0.5 + 0.05 * manly(), 0.38, 0.64)
        self.eye_x, self.eye_y = rng.uniform(0.30, 0.37), rng.uniform(-0.12, -0.04)
        self.eye = rng.uniform(0.9, 1.15) - 0.05 * manly()
        self.slant, self.crease = rng.uniform(-0.01, 0.035), rng.random() < 0.6
        self.brow = np.clip(0.062 + 0.017 * manly(), 0.03, 0.1)
        self.brow_arch = rng.uniform(0.01, 0.05) - 0.015 * manly()
        self.nose, self.nose_y = rng.uniform(0.10, 0.15) + 0.008 * manly(), rng.uniform(0.27, 0.34)
        self.mouth, self.smile = rng.uniform(0.2, 0.27), rng.uniform(0.0, 0.05)
        self.lashes = manly(0.7) < -0.1
        lip = hsv(rng.uniform(0.95, 1.02), 0.55, 0.82) if manly(0.7) < 0 else mix(self.skin, (170, 70, 70), 0.42)
        self.lip, self.fullness = lip, np.clip(0.055 - 0.012 * manly(), 0.03, 0.09)
        self.beard = rng.choice(["stubble", "moustache", "goatee"]) if man > 0 and rng.random() < 0.45 else ""
        self.blush = np.clip(0.2 - 0.1 * manly(), 0.04, 0.45)

        self.wrinkle = float(np.clip((age - 25) / 34 + rng.normal(0, 0.06), 0, 1.1))
        dyed = rng.random() < (0.06 if man > 0 else 0.14)
        self.grey = float(np.clip((age - 44) / 18 + rng.normal(0, 0.12), 0, 1)) * (0.15 if dyed else 1.0)
        base = HAIRS[rng.integers(len(HAIRS))]
        if age < 31 and rng.random() < 0.55:
            base = hsv(rng.choice([0.04, 0.07, 0.62, 0.92]), 0.55, 0.5)
        self.hair = mix(base, (206, 206, 208), 0.9 * self.grey**1.2)
        long_hair = manly(0.75) < 0
        self.length = str(rng.choice(["long", "bob", "bun", "tail", "long"] if long_hair else ["short"]))
        fronts = ["swept", "centre", "bangs", "back"] if long_hair else ["swept", "back", "spiky", "bangs", "swept"]
        self.front = str(rng.choice(fronts))
        self.recede = max(0.0, (age - 38) / 110 + rng.normal(0, 0.05)) if man > 0 and rng.random() < 0.8 else 0.0
        self.volume = rng.uniform(0.97, 1.07)
        self.part = float(rng.choice([-1, 1]))
        self.glasses = str(rng.choice(["round", "square"])) if rng.random() < 0.05 + 0.012 * max(age - 25, 0) else ""
        self.frame = hsv(rng.random(), rng.uniform(0.1, 0.6), rng.uniform(0.15, 0.45))
        count = rng.poisson(max(age - 45, 0) / 5) + rng.integers(0, 2)
        self.spots = [
            (rng.choice([-1, 1]) * rng.uniform(0.2, 0.6), rng.uniform(-0.5, 0.4), rng.uniform(0.012, 0.03))
            for _ in range(count)
        ]
        self.earring = manly(0.7) < -0.8

        self.shoulder = 1.42 + 0.1 * manly()
        self.neck = 0.38 + 0.04 * manly()
        self.top = str(rng.choice(["tee", "shirt", "vee", "hood", "turtle"]))
        fade = np.clip((age - 20) / 55, 0, 1)  # older people dress quieter
        self.cloth = hsv(rng.random(), rng.uniform(0.25, 0.75) * (1 - 0.6 * fade), rng.uniform(0.45, 0.95) - 0.2 * fade)
        self.trim = mix(self.cloth, (255, 255, 255) if rng.random() < 0.6 else (20, 20, 40), rng.uniform(0.3, 0.7))
        self.cloth_motif = motif(str(rng.choice(MOTIFS[:7])), rng.uniform(0.22, 0.5))
        hue = rng.random()
        self.wall = hsv(hue, rng.uniform(0.18, 0.5), rng.uniform(0.68, 0.97))
        self.wall_trim = hsv(hue + rng.normal(0, 0.12), rng.uniform(0.15, 0.55), rng.uniform(0.6, 1.0))
        self.wall_motif = motif(str(rng.choice(MOTIFS[1:])), rng.uniform(0.4, 1.1))
        self.disc = (rng.uniform(-0.5, 0.5), rng.uniform(-0.6, 0.2), rng.uniform(1.35, 1.7))
        self.light = rng.uniform(-1, 1)
        self.warmth = rng.normal(0, 0.035)
        self.zoom, self.lean = rng.normal(1, 0.05), rng.normal(0, 2.5)
        self.masks = [int(i) for i in rng.permutation(len(MASKS))]
        self.slip = str(rng.choice(["nose", "nose", "chin"]))

        w, j, c = self.wide, self.jaw, self.chin
        self.face = both_sides(
            [
                (0, -1.1),
                (0.5 * w, -1.04),
                (0.87 * w, -0.74),
                (w, -0.25),
                (0.98 * w, 0.15),
                (j, 0.62),
                (c, 0.92),
                (0, 1.0),
            ]
        )
