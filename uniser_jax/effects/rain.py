"""Rain, held out of training: drops that fall through the air, and drops that stick to the glass.

  (1) seen = V (1 - a) J + (1 - a) (1 - V) A + a L     streaks a over a veil of far rain V = exp(-tau d)
  (2) L = g (G * J + mean J) / 2                        a drop sees 165 degrees of the scene (Garg & Nayar 2007)
  (3) length, width ~ 1 / z,  number ~ z^2              depth layers of equal drops
  (4) seen = (1 - a) J + a F(theta) J(x - f tan(delta) u)          light bent by a drop on the glass
  (5) sin theta = u sin(contact),  delta = asin(n sin theta) - theta      spherical cap, n = 1.33 (Halimeh & Roser 2009)

u of (4), (5) is the place in the drop, 0 in its middle and 1 at its rim. The bent rays cross the axis, so each drop shows a
small picture upside down; towards the rim less light gets out (F, Fresnel), beyond total reflection none.
"""

import dataclasses
from typing import ClassVar, Self

import cv2
import numpy as np
from jaxtyping import Float32

from uniser_jax.effects import depth, fields, light
from uniser_jax.effects.layer import Scene
from uniser_jax.effects.scattering import Blot, Image, Plane, ScatteringLayer, disc_blur

_DISTANCES = (1.0, 1.7, 3.0, 5.0)  # of the depth layers of (3)
_WATER = 1.33
_HORIZON = 0.4  # as a share of the height, where the photograph shows no sky
_PICTURE = 64  # pixels of the side of the picture that drops show: they are small


@dataclasses.dataclass(frozen=True)
class Rain:
    """Falling rain.

    Args:
      angle: of the fall against the vertical, radians.
      spread: of the single streaks' angles, radians.
      length: of the nearest streaks, as a fraction of the image side.
      width: the same.
      opacity: a of the nearest streaks: the share of the exposure that a drop covers a place.
      count: of streaks.
      brightness: g of (2).
      veil: tau of the farthest place.
      seed: of the streaks' places and of the depth.
    """

    effect: ClassVar[str] = "rain"
    angle: float
    spread: float
    length: float
    width: float
    opacity: float
    count: int
    brightness: float
    veil: float
    seed: int

    @classmethod
    def sample(cls, rng: np.random.Generator, scene: Scene) -> Self:
        """From a drizzle to a downpour."""
        return cls(
            angle=float(rng.uniform(-0.5, 0.5)),
            spread=float(rng.uniform(0.01, 0.06)),
            length=fields.log_uniform(rng, 0.09, 0.25),
            width=fields.log_uniform(rng, 0.0025, 0.005),
            opacity=float(rng.uniform(0.3, 0.8)),
            count=int(fields.log_uniform(rng, 500, 5_000)),
            brightness=float(rng.uniform(1.2, 2.0)),
            veil=float(rng.uniform(0.05, 0.7)),
            seed=int(rng.integers(2**31)),
        )

    def render(self, scene: Scene) -> ScatteringLayer:
        """The layer on one photograph."""
        shape = scene.radiance.shape[:2]
        rng = np.random.default_rng(self.seed)
        a = self.streaks(rng, shape)[..., None]
        distance = scene.depth
        if distance is None:
            small = depth.reduce(scene.radiance, depth.cell(shape))
            distance = depth.follow_light(depth.sketch(rng, small, _HORIZON).depth, small, scene.radiance)
        veil = np.exp(-np.float32(self.veil) * distance)[..., None]
        sigma = 0.15 * fields.side(shape)
        gray = (0.4 * np.eye(3) + 0.6 * light.LUMINANCE).astype(np.float32)  # many drops mix all colours

        def scatter(radiance: Image) -> Image:
            mean = cv2.transform(radiance.mean((0, 1), keepdims=True), gray)
            seen = cv2.transform(np.maximum(fields.blur(radiance, sigma), 0), gray)
            drops = np.float32(self.brightness / 2) * (seen + mean)  # (2)
            return (1 - a) * (1 - veil) * mean + a * drops

        return ScatteringLayer("rain", veil * (1 - a), scatter)

    def streaks(self, rng: np.random.Generator, shape: tuple[int, int]) -> Plane:
        """a of equation (1): the share of the light that comes from drops."""
        through = np.ones(shape, np.float32)
        share = np.square(_DISTANCES) / np.square(_DISTANCES).sum()
        for z, part in zip(_DISTANCES, share, strict=True):
            count = max(1, round(part * self.count))
            through *= 1 - self._layer(rng, shape, z, count)
        return 1 - through

    def _layer(self, rng: np.random.Generator, shape: tuple[int, int], z: float, count: int) -> Plane:
        """Streaks at one distance, drawn larger and averaged; thinner than a pixel, they are fainter instead."""
        h, w = shape
        size = fields.side(shape)
        factor = max(1, round(1024 / size))
        width = self.width / z * size * factor
        drawn = max(1, round(width))
        middle = rng.uniform(-0.1, 1.1, (count, 2)) * (w, h)
        angle = self.angle + rng.normal(0, self.spread, count)
        half = 0.5 * self.length / z * size * rng.uniform(0.6, 1.3, count)
        along = half[:, None] * np.stack([np.sin(angle), np.cos(angle)], -1)
        ends = np.round(16 * factor * np.stack([middle - along, middle + along], 1)).astype(np.int32)
        brightness = rng.integers(1, 4, count)
        canvas = np.zeros((h * factor, w * factor), np.uint8)
        for level in (1, 2, 3):  # the brightest over the others
            value = round(255 * level / 3)
            cv2.polylines(canvas, list(ends[brightness == level]), False, value, drawn, cv2.LINE_AA, shift=4)
        plane = cv2.resize(canvas, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        plane = fields.blur(plane, 0.6 * self.width * size * max(0.0, 1.5 / z - 0.7))  # what is near is out of focus
        return np.clip(plane * np.float32(self.opacity * min(1.0, width / drawn)), 0, 1)


@dataclasses.dataclass(frozen=True)
class Raindrops:
    """Drops on the pane or lens in front of the camera.

    Args:
      count: of drops.
      size: radius of the largest, as a fraction of the image side.
      contact: angle between water and glass at the rim, radians.
      field_of_view: of the photograph, radians.
      defocus: radius of the blur, as a fraction of the image side; 0 is in focus.
      trails: share of the drops that run and leave smaller ones behind.
      seed: of their places and forms.
    """

    effect: ClassVar[str] = "raindrops"
    count: int
    size: float
    contact: float
    field_of_view: float
    defocus: float
    trails: float
    seed: int

    @classmethod
    def sample(cls, rng: np.random.Generator, scene: Scene) -> Self:
        """Half of them in focus."""
        size = fields.log_uniform(rng, 0.03, 0.08)
        return cls(
            count=int(fields.log_uniform(rng, 30, 200)),
            size=size,
            contact=float(rng.uniform(0.6, 1.0)),
            field_of_view=float(rng.uniform(0.7, 1.2)),
            defocus=float(rng.choice([0.0, size * rng.uniform(0.15, 0.8)])),
            trails=float(rng.choice([0.0, rng.uniform(0, 0.3)])),
            seed=int(rng.integers(2**31)),
        )

    def render(self, scene: Scene) -> ScatteringLayer:
        """The layer on one photograph."""
        shape = scene.radiance.shape[:2]
        coverage, passed, x, y = self.drops(shape)
        blur = self.defocus * fields.side(shape)
        transmission = np.clip(1 - disc_blur(coverage, blur), 0, 1)[..., None]
        reduction = max(1.0, fields.side(shape) / _PICTURE)
        size = tuple(max(2, round(n / reduction)) for n in shape[::-1])
        x, y = (x + 0.5) * np.float32(size[0] / shape[1]) - 0.5, (y + 0.5) * np.float32(size[1] / shape[0]) - 0.5
        share = (coverage * passed)[..., None]

        def scatter(radiance: Image) -> Image:
            picture = cv2.resize(radiance, size, interpolation=cv2.INTER_AREA)
            bent = cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            return disc_blur(share * bent, blur)

        return ScatteringLayer("raindrops", transmission, scatter)

    def drops(self, shape: tuple[int, int]) -> tuple[Plane, Plane, Plane, Plane]:
        """Coverage a, Fresnel's F, and the place (x, y) in pixels that each pixel inside a drop shows: (4) and (5)."""
        h, w = shape
        focal = fields.side(shape) / (2 * np.tan(self.field_of_view / 2))
        own = np.mgrid[:h, :w].astype(np.float32)
        y, x = own.copy()
        coverage, passed = np.zeros(shape, np.float32), np.ones(shape, np.float32)
        for blot in self._blots(np.random.default_rng(self.seed), shape):
            window = blot.window(shape)
            u, right, down = blot.polar(*window)
            a = blot.coverage(u)
            theta = np.arcsin(np.minimum(u, 1) * np.float32(np.sin(self.contact)))
            delta = np.arcsin(np.minimum(_WATER * np.sin(theta), 0.999)) - theta
            inside = a >= coverage[window]  # where drops meet, the later one lies on top
            shift = np.float32(focal) * np.tan(delta)
            shown = inside & (a > 0)
            x[window] = np.where(shown, own[1][window] - shift * right, x[window])
            y[window] = np.where(shown, own[0][window] - shift * down, y[window])
            passed[window] = np.where(inside, _fresnel(theta), passed[window])
            coverage[window] = np.maximum(coverage[window], a)
        return coverage, passed, x, y

    def _blots(self, rng: np.random.Generator, shape: tuple[int, int]) -> list[Blot]:
        blots = []
        for _ in range(self.count):
            place, radius = rng.uniform(0, 1, 2), self.size * max(0.12, rng.random() ** 2)
            if rng.random() < self.trails:
                beads = int(rng.integers(3, 9))
                for height in np.cumsum(rng.uniform(1.2, 3, beads)) * radius:
                    above = (float(place[0] + 0.3 * radius * rng.normal()), float(place[1] - height))
                    blots.append(Blot.draw(rng, shape, above, radius * rng.uniform(0.1, 0.4), 0.08))
            blots.append(Blot.draw(rng, shape, (float(place[0]), float(place[1])), radius, 0.09))
        return blots


def _fresnel(theta: Float32[np.ndarray, "h w"]) -> Plane:
    """The share of unpolarised light that leaves water at an angle to its surface; 0 under total reflection."""
    sine = np.minimum(_WATER * np.sin(theta), 1)
    inner, outer = np.cos(theta), np.sqrt(1 - sine**2)
    s = (_WATER * inner - outer) / (_WATER * inner + outer)
    p = (inner - _WATER * outer) / (inner + _WATER * outer)
    return 1 - (s**2 + p**2) / 2
