"""Dirt on the glass, held out of training: wiped smears, fingerprints, and stains of dried liquids.

(1) seen = J (1 - a m) + a b m ((1 - q) E + q S * J)      a film attenuates and scatters (Gu et al. 2009)
(2) S = (G + K) / 2                                     softly forwards (G), and in streaks across the wipe (K)
(3) seen = J (1 - m (1 - t_c)) + m r_c E                stain: dye transmits t, dirt returns r, t + r <= 1
(4) m(u) = body + (1 - body) exp(-(1 - u) / width)      coffee ring (Deegan et al. 1997); u = 1 at the edge
"""

import dataclasses
from typing import ClassVar, Self

import cv2
import numpy as np

from uniser_jax.effects import fields
from uniser_jax.effects.layer import Scene
from uniser_jax.effects.scattering import Blot, Image, Plane, ScatteringLayer, disc_blur, mean_colour

KINDS = ("smear", "fingerprint")
_RIDGES = 13.0  # between the middle of a fingerprint and its side: 0.5 mm each
_TRIES, _SEEN = 8, 0.02  # draws of a stain until it changes the root of light so much: on what is dark few do
_GLARE_SIDE = 160  # pixels at which streaks of light are computed


@dataclasses.dataclass(frozen=True)
class Smudge:
    """Grease on a lens or a pane.

    Args:
      kind: one of KINDS.
      count: of smears or prints.
      size: half the width of one, as a fraction of the image side.
      loss: a of (1).
      returned: b of (1); above 1 where light from outside the frame falls on the glass too.
      directed: q of (1).
      angle: of the wipe, radians.
      reach: of the streaks K, as a fraction of the image side.
      defocus: radius of the blur of m, as a fraction of the image side; 0 is in focus.
      seed: of forms and places.
    """

    effect: ClassVar[str] = "smudge"
    kind: str
    count: int
    size: float
    loss: float
    returned: float
    directed: float
    angle: float
    reach: float
    defocus: float
    seed: int

    @classmethod
    def sample(cls, rng: np.random.Generator, scene: Scene) -> Self:
        """Smears are broad and soft, prints smaller and sharper."""
        kind = str(rng.choice(KINDS))
        smear = kind == "smear"
        return cls(
            kind=kind,
            count=int(rng.integers(2, 6)),
            size=float(rng.uniform(0.15, 0.35) if smear else rng.uniform(0.12, 0.24)),
            loss=float(rng.uniform(0.5, 0.9)),
            returned=float(rng.uniform(1.0, 2.0)),
            directed=float(rng.uniform(0.3, 0.8)),
            angle=float(rng.uniform(0, np.pi)),
            reach=float(rng.uniform(0.05, 0.25)),
            defocus=float(rng.uniform(0.002, 0.015) if smear else rng.choice([0.0, rng.uniform(0, 0.006)])),
            seed=int(rng.integers(2**31)),
        )

    def render(self, scene: Scene) -> ScatteringLayer:
        """The layer on one photograph."""
        shape = scene.radiance.shape[:2]
        film = np.float32(self.loss) * self.film(shape)[..., None]
        sigma = 0.012 * fields.side(shape)
        mean_share, share = np.float32(1 - self.directed), np.float32(self.directed / 2)

        def scatter(radiance: Image) -> Image:
            soft = np.maximum(fields.blur(radiance, sigma), 0)
            around = mean_share * mean_colour(radiance) + share * (soft + self._streaks(radiance))
            return np.float32(self.returned) * film * around

        return ScatteringLayer("smudge", 1 - film, scatter)

    def film(self, shape: tuple[int, int]) -> Plane:
        """m of equation (1), in [0, 1]."""
        rng = np.random.default_rng(self.seed)
        draw = _smear if self.kind == "smear" else _fingerprint
        places, turns = rng.uniform(0.1, 0.9, (self.count, 2)), rng.normal(0, 0.25, self.count)
        film = np.zeros(shape, np.float32)
        for place, turn in zip(places, turns, strict=True):
            x, y = _frame(shape, place, self.angle + turn, self.size)
            film = np.maximum(film, draw(rng, x, y, self.size * fields.side(shape)))
        return np.clip(disc_blur(film, self.defocus * fields.side(shape)), 0, 1)

    def _streaks(self, radiance: Image) -> Image:
        """K of equation (2): an exponential along one line, across the wipe."""
        h, w = radiance.shape[:2]
        scale = min(1.0, _GLARE_SIDE / fields.side((h, w)))
        small = fields.shrink(radiance, (max(2, round(h * scale)), max(2, round(w * scale))))
        length = self.reach * fields.side(small.shape[:2])
        half = int(np.ceil(2 * length)) + 1
        y, x = np.mgrid[-half : half + 1, -half : half + 1]
        along, off = (np.cos(self.angle) * y - np.sin(self.angle) * x, np.cos(self.angle) * x + np.sin(self.angle) * y)
        kernel = np.exp(-np.abs(along) / max(length, 0.5)) * np.clip(1.2 - np.abs(off), 0, 1)
        spread = cv2.filter2D(small, -1, (kernel / kernel.sum()).astype(np.float32), borderType=cv2.BORDER_REFLECT)
        return np.maximum(cv2.resize(spread, (w, h)), 0)  # rounding of the Fourier transform


def _frame(shape: tuple[int, int], place: np.ndarray, angle: float, size: float) -> tuple[Plane, Plane]:
    """Coordinates around a place, x along the angle, in units of `size`."""
    h, w = shape
    unit = size * fields.side(shape)
    y = (np.arange(h, dtype=np.float32)[:, None] + np.float32(0.5 - place[1] * h)) / np.float32(unit)
    x = (np.arange(w, dtype=np.float32)[None] + np.float32(0.5 - place[0] * w)) / np.float32(unit)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cosine * x + sine * y, cosine * y - sine * x


def _smear(rng: np.random.Generator, x: Plane, y: Plane, pixels: float) -> Plane:
    """A wipe along x, bent, of many fine lines that start and end where they like."""
    y = y + np.float32(rng.normal(0, 0.12)) * x * x
    long, lines = np.float32(rng.uniform(1.2, 2.6)), np.zeros_like(y)
    for count, weight in ((7, 0.5), (20, 0.3), (60, 0.2)):  # coarse to fine; a line changes slowly along the wipe
        table = rng.random((count, 6)).astype(np.float32)
        places = (x / long + 1) * 2.5, (y + 1) * np.float32((count - 1) / 2)
        lines = lines + np.float32(weight) * cv2.remap(table, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    ends = rng.uniform(0.6, 1.0, (12, 2)).astype(np.float32)
    rows = (y + 1) * np.float32(5.5)
    left, right = (
        cv2.remap(np.ascontiguousarray(ends[:, k : k + 1]), np.zeros_like(rows), rows, cv2.INTER_LINEAR) for k in (0, 1)
    )
    inside = fields.smoothstep(left + x / long, 0, 0.3) * fields.smoothstep(right - x / long, 0, 0.5)
    return inside * fields.smoothstep(1 - np.abs(y), 0, 0.25) * fields.smoothstep(lines, 0.25, 0.7)


def _fingerprint(rng: np.random.Generator, x: Plane, y: Plane, pixels: float) -> Plane:
    """The ridges of a fingertip, its length along y: a loop, a whorl or an arch."""
    shape = x.shape
    scale = pixels / fields.side(shape)
    warp, patches, pores = (
        fields.fractal_noise(rng, shape, size * scale, octaves) for size, octaves in ((0.35, 3), (0.25, 4), (0.07, 2))
    )
    kind, lean = int(rng.integers(3)), np.float32(rng.uniform(-0.25, 0.25))
    bent = x + lean * np.maximum(y, 0) ** 2
    if kind == 0:  # nested arches over straight legs
        distance = np.hypot(bent, np.minimum(y + 0.2, 0))
    elif kind == 1:
        distance = np.hypot(x, 0.75 * y) + np.arctan2(y, x) * np.float32(1 / (2 * np.pi * _RIDGES))  # a spiral
    else:
        distance = y + 0.6 * np.exp(-2 * bent * bent)
    ridges = 0.5 + 0.5 * np.sin(np.float32(2 * np.pi * _RIDGES) * (distance + np.float32(0.35) * warp))
    touching = fields.smoothstep(ridges + 0.5 * (pores - 0.5), 0.3, 0.8)
    contrast = np.clip((pixels / _RIDGES - 2) / 2, 0, 1)  # ridges finer than pixels are seen as their mean
    touching = np.float32(0.45) + np.float32(contrast) * (touching - np.float32(0.45))
    tip = fields.smoothstep(1 - np.hypot(x, 0.72 * y) + 0.35 * (patches - 0.5), 0, 0.25)
    pressed = fields.smoothstep(patches + 0.3 * pores, 0.3, 0.75)
    return tip * (0.12 + 0.88 * pressed * touching)


@dataclasses.dataclass(frozen=True)
class Stain:
    """Spots that a liquid left as it dried.

    Args:
      count: of spots; each has splashes around it.
      size: radius of the largest, as a fraction of the image side.
      rough: of the outlines, 0 to 0.3.
      transmission: t of (3), linear RGB.
      returned: r of (3), linear RGB.
      body: of (4).
      ring: width of (4).
      defocus: radius of the blur, as a fraction of the image side.
      seed: of forms and places.
    """

    effect: ClassVar[str] = "stain"
    count: int
    size: float
    rough: float
    transmission: tuple[float, float, float]
    returned: tuple[float, float, float]
    body: float
    ring: float
    defocus: float
    seed: int

    @classmethod
    def sample(cls, rng: np.random.Generator, scene: Scene) -> Self:
        """Drawn again where nobody would see it."""
        for _ in range(_TRIES):
            stain = cls._draw(rng)
            if fields.root_change(scene.radiance, stain.render(scene)(scene.radiance, 1.0)) > _SEEN:
                break
        return stain

    @classmethod
    def _draw(cls, rng: np.random.Generator) -> Self:
        """Mostly brown, as coffee, tea and mud are; sometimes any colour."""
        absorption = np.sort(rng.uniform(0.05, 1, 3)) if rng.random() < 0.75 else rng.uniform(0.05, 1, 3)
        t = np.exp(-fields.log_uniform(rng, 2, 6) * absorption)
        r = rng.choice([0.0, rng.uniform(0.2, 0.8)]) * (1 - t) * np.exp(-absorption)
        return cls(
            count=int(rng.integers(2, 8)),
            size=fields.log_uniform(rng, 0.08, 0.3),
            rough=float(rng.uniform(0.04, 0.16)),
            transmission=(float(t[0]), float(t[1]), float(t[2])),
            returned=(float(r[0]), float(r[1]), float(r[2])),
            body=float(rng.uniform(0.3, 0.85)),
            ring=float(rng.uniform(0.02, 0.1)),
            defocus=float(rng.choice([0.0, rng.uniform(0, 0.02)])),
            seed=int(rng.integers(2**31)),
        )

    def render(self, scene: Scene) -> ScatteringLayer:
        """The layer on one photograph."""
        spots = self.spots(scene.radiance.shape[:2])[..., None]
        transmission = 1 - spots * (1 - np.array(self.transmission, np.float32))
        returned = spots * np.array(self.returned, np.float32)
        return ScatteringLayer("stain", transmission, lambda radiance: returned * mean_colour(radiance))

    def spots(self, shape: tuple[int, int]) -> Plane:
        """m of equation (4), in [0, 1]."""
        rng = np.random.default_rng(self.seed)
        spots = np.zeros(shape, np.float32)
        for blot in self._blots(rng, shape):
            window = blot.window(shape)
            u, _, _ = blot.polar(*window)
            profile = self.body + (1 - self.body) * np.exp(-np.maximum(1 - u, 0) / np.float32(self.ring))
            spots[window] = np.maximum(spots[window], profile * blot.coverage(u))
        spots *= 0.5 + 0.5 * fields.smoothstep(fields.fractal_noise(rng, shape, 0.14, 6, 0.65), 0.2, 0.7)
        return np.clip(disc_blur(spots, self.defocus * fields.side(shape)), 0, 1)

    def _blots(self, rng: np.random.Generator, shape: tuple[int, int]) -> list[Blot]:
        aspect = np.sqrt(shape[1] / shape[0])
        blots = []
        for _ in range(self.count):
            x, y, radius = rng.uniform(0.05, 0.95), rng.uniform(0.05, 0.95), self.size * rng.uniform(0.4, 1)
            blots.append(Blot.draw(rng, shape, (x, y), radius, self.rough))
            for _ in range(int(rng.integers(0, 9))):
                far, angle = radius * rng.uniform(1.05, 2), rng.uniform(0, 2 * np.pi)
                place = (x + far * np.cos(angle) / aspect, y + far * np.sin(angle) * aspect)
                blots.append(Blot.draw(rng, shape, place, radius * rng.uniform(0.02, 0.15), 0.5 * self.rough))
        return blots
