"""Shadow: something stands between a surface and the sun; the sky still lights it.

  (1) seen = J (1 - m (1 - k))                       coverage m, what is left in full shadow k, per channel
  (2) k = v a_c,  a_c = f s_c / (f s_c + 1 - f)      f the sky's share of the light, v how much sky the place still sees
  (3) s = black body(T_sky) / black body(T_sun)      the sky is bluer than the sun, so shadows are bluish
  (4) width of the penumbra = apparent size of the light * distance from what casts the shadow

Linear in coverage because an area light is a sum of point lights. The penumbra is sharp at the contact and widens away
from it, as sharp shadows of feet and soft ones of heads show.
"""

import dataclasses
from typing import ClassVar, Self

import cv2
import numpy as np
from jaxtyping import Float32

from uniser_jax.effects import fields, light
from uniser_jax.effects.layer import LinearLayer, Scene

SHAPES = ("blob", "polygon", "person", "leaves", "bars", "window", "edge")
_WEIGHTS = (0.2, 0.15, 0.15, 0.15, 0.1, 0.1, 0.15)


@dataclasses.dataclass(frozen=True)
class ShadowSampling:
    """What draws come from."""


@dataclasses.dataclass(frozen=True)
class Shadow:
    """One shadow.

    Args:
      shape: one of SHAPES.
      sky_share: f of (2), 0.1 under a clear sky, 0.6 under thin cloud.
      sky_seen: v of (2).
      kelvin_sun: colour of the direct light.
      kelvin_sky: colour of the rest; above kelvin_sun outdoors.
      penumbra: width (sigma) at the contact, as a fraction of the image side.
      widening: width at the far end over the width at the contact.
      angle: direction in which the shadow falls, radians.
      size: of the caster, as a fraction of the image side.
      seed: of the caster's form and place.
    """

    effect: ClassVar[str] = "shadow"
    shape: str
    sky_share: float
    sky_seen: float
    kelvin_sun: float
    kelvin_sky: float
    penumbra: float
    widening: float
    angle: float
    size: float
    seed: int

    @classmethod
    def sample(cls, rng: np.random.Generator, scene: Scene, sampling: ShadowSampling = ShadowSampling()) -> Self:
        """Mostly sun and sky, sometimes lamps indoors."""
        indoors = rng.random() < 0.25
        return cls(
            shape=str(rng.choice(SHAPES, p=_WEIGHTS)),
            sky_share=float(rng.uniform(0.25, 0.7) if indoors else rng.uniform(0.1, 0.45)),
            sky_seen=float(rng.uniform(0.6, 1.0)),
            kelvin_sun=float(rng.uniform(2_800, 5_500) if indoors else rng.uniform(4_500, 6_000)),
            kelvin_sky=float(rng.uniform(3_500, 7_000) if indoors else rng.uniform(7_500, 15_000)),
            penumbra=float(np.exp(rng.uniform(np.log(0.0015), np.log(0.03)))),
            widening=float(np.exp(rng.uniform(0, np.log(8)))),
            angle=float(rng.uniform(0, 2 * np.pi)),
            size=float(rng.uniform(0.25, 0.8)),
            seed=int(rng.integers(2**31)),
        )

    def render(self, scene: Scene) -> LinearLayer:
        """The layer on one photograph."""
        coverage = self.coverage(scene.radiance.shape[:2])
        transmission = 1 - coverage[..., None] * (1 - self.remaining_light())
        return LinearLayer("shadow", transmission, np.zeros(3, np.float32))

    def remaining_light(self) -> Float32[np.ndarray, "c"]:
        """k of equation (2), below 1 in every channel."""
        sky = light.black_body(self.kelvin_sky) / light.black_body(self.kelvin_sun)  # (3)
        ambient = self.sky_share * sky / (self.sky_share * sky + 1 - self.sky_share)
        return np.clip(self.sky_seen * ambient, 0.02, 0.95).astype(np.float32)

    def coverage(self, shape: tuple[int, int]) -> Float32[np.ndarray, "h w"]:
        """m of equation (1): the caster's form, softened by (4)."""
        rng = np.random.default_rng(self.seed)
        h, w = shape
        hard = _DRAW[self.shape](rng, shape, self.size, self.angle)
        y, x = np.mgrid[0 : 1 : h * 1j, 0 : 1 : w * 1j].astype(np.float32)
        along = (x - 0.5) * np.cos(self.angle) + (y - 0.5) * np.sin(self.angle) + 0.5
        width = self.penumbra * fields.side(shape) * self.widening ** np.clip(along, 0, 1)
        return np.clip(fields.varying_blur(hard, width.astype(np.float32)), 0, 1)


def _fill(shape: tuple[int, int], polygons: list[np.ndarray]) -> Float32[np.ndarray, "h w"]:
    """Fills polygons, each [n 2] of (x, y) in pixels. Drawn larger and averaged: OpenCV's own antialiasing fattens them."""
    factor = 4 if max(shape) < 256 else 2
    mask = np.zeros((shape[0] * factor, shape[1] * factor), np.uint8)
    for points in polygons:
        sixteenths = np.round(
            16 * (points * factor - 0.5)
        )  # OpenCV counts from the centre of a pixel, we from its corner
        cv2.fillPoly(mask, [np.clip(sixteenths, -(2**20), 2**20).astype(np.int32)], 255, shift=4)
    return cv2.resize(mask, shape[::-1], interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _place(points: np.ndarray, shape: tuple[int, int], centre: np.ndarray, size: float, angle: float) -> np.ndarray:
    """Unit coordinates (x across, y along the shadow) to pixels; along the shadow they spread, as on level ground."""
    c, s = np.cos(angle - np.pi / 2), np.sin(angle - np.pi / 2)
    spread = points * np.stack([1 + 0.35 * points[:, 1], np.ones(len(points))], -1)
    rotated = spread @ np.array([[c, s], [-s, c]])
    return (centre + size * rotated * [np.sqrt(shape[0] / shape[1]), np.sqrt(shape[1] / shape[0])]) * [
        shape[1],
        shape[0],
    ]


def _blob(rng: np.random.Generator, shape: tuple[int, int], size: float, angle: float) -> np.ndarray:
    noise = fields.fractal_noise(rng, shape, 0.25 + size, 5, rng.uniform(0.3, 0.6))
    share = np.quantile(noise[::4, ::4], 1 - rng.uniform(0.2, 0.55))
    return fields.smoothstep(noise, share - 0.004, share + 0.004)


def _polygon(rng: np.random.Generator, shape: tuple[int, int], size: float, angle: float) -> np.ndarray:
    corners = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
    points = np.stack([np.cos(corners), np.sin(corners)], -1) * rng.uniform(0.4, 1, (len(corners), 1))
    return _fill(shape, [_place(points, shape, rng.uniform(0.2, 0.8, 2), size * 0.8, angle)])


def _person(rng: np.random.Generator, shape: tuple[int, int], size: float, angle: float) -> np.ndarray:
    """A standing figure from its feet: legs, body, arms, head, as the photographer's own shadow often is."""
    lean, stride, arm = rng.normal(0, 0.06), rng.uniform(0.03, 0.2), rng.uniform(0.05, 0.35, 2)
    hip, neck = np.array([lean * 0.5, -0.55]), np.array([lean, -1.0])

    def limb(a: np.ndarray, b: np.ndarray, wide: float, narrow: float) -> np.ndarray:
        across = np.array([b[1] - a[1], a[0] - b[0]]) / max(float(np.hypot(*(b - a))), 1e-6)
        turn = np.linspace(0, np.pi, 8)
        forward = (b - a) / max(float(np.hypot(*(b - a))), 1e-6)
        end = [b + narrow * (np.cos(u) * across + np.sin(u) * forward) for u in turn]
        start = [a - wide * (np.cos(u) * across + np.sin(u) * forward) for u in turn]
        return np.array(end + start)

    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    head = neck + [0, -0.14] + np.stack([0.085 * np.cos(turn), 0.11 * np.sin(turn)], -1)
    parts = [
        limb(hip + [0.05, 0], np.array([stride, 0]), 0.075, 0.04),
        limb(hip - [0.05, 0], np.array([-stride, 0]), 0.075, 0.04),
        limb(hip, neck + [0, 0.1], 0.12, 0.15),
        limb(neck + [0.13, 0.07], neck + [0.13 + arm[0], 0.5], 0.05, 0.03),
        limb(neck - [0.13, -0.07], neck + [-0.13 - arm[1], 0.5], 0.05, 0.03),
        limb(neck, neck + [0, -0.08], 0.05, 0.05),
        head,
    ]
    foot = np.array([0.5, 0.5]) - 0.35 * size * np.array([np.cos(angle), np.sin(angle)]) + rng.normal(0, 0.15, 2)
    return _fill(shape, [_place(part * [1, -1], shape, foot, size * 0.8, angle) for part in parts])


def _leaves(rng: np.random.Generator, shape: tuple[int, int], size: float, angle: float) -> np.ndarray:
    """A canopy: many leaves on a few twigs; what light passes falls in dapples."""
    count = int(rng.integers(80, 260))
    twigs = rng.uniform(-0.1, 1.1, (int(rng.integers(5, 14)), 2))
    centres = twigs[rng.integers(0, len(twigs), count)] + rng.normal(0, 0.06 + 0.18 * size, (count, 2))
    lengths, directions = rng.uniform(0.01, 0.055, count) * (0.6 + size), rng.uniform(0, np.pi, count)
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    outline = np.stack([np.cos(turn), 0.45 * np.sin(turn) * (1 - 0.3 * np.cos(turn))], -1)
    polygons = []
    for centre, length, direction in zip(centres, lengths, directions, strict=True):
        c, s = np.cos(direction), np.sin(direction)
        polygons.append(centre * shape[::-1] + length * fields.side(shape) * (outline @ np.array([[c, s], [-s, c]])))
    return _fill(shape, polygons)


def _bars(rng: np.random.Generator, shape: tuple[int, int], size: float, angle: float) -> np.ndarray:
    """Railings and blinds: parallel bars that converge, as in perspective."""
    count, duty, fan = int(rng.integers(4, 14)), rng.uniform(0.25, 0.65), rng.normal(0, 0.35)
    polygons = []
    for index in range(count):
        left = (index / count - 0.5) * 2.2
        right = left + duty * 2.2 / count
        corners = np.array([[left, -1], [right, -1], [right * (1 + fan), 1], [left * (1 + fan), 1]])
        polygons.append(_place(corners, shape, np.array([0.5, 0.5]), 0.4 + size * 0.6, angle))
    return _fill(shape, polygons)


def _window(rng: np.random.Generator, shape: tuple[int, int], size: float, angle: float) -> np.ndarray:
    """Sun through a window: everything is in shadow but the panes."""
    columns, rows = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    shear, centre = rng.normal(0, 0.3), rng.uniform(0.3, 0.7, 2)
    panes = []
    for i in range(columns):
        for j in range(rows):
            x0, x1 = (np.array([i + 0.06, i + 0.94]) / columns - 0.5) * 1.4
            y0, y1 = (np.array([j + 0.06, j + 0.94]) / rows - 0.5) * 1.4
            corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
            corners[:, 0] += shear * corners[:, 1]
            panes.append(_place(corners, shape, centre, 0.3 + 0.5 * size, angle))
    return 1 - _fill(shape, panes)


def _edge(rng: np.random.Generator, shape: tuple[int, int], size: float, angle: float) -> np.ndarray:
    """A wall's shadow that enters from outside the frame, its edge straight with a few steps."""
    across = np.linspace(-2, 2, int(rng.integers(2, 7)))
    line = np.repeat(rng.uniform(-0.25, 0.25) + rng.normal(0, 0.12, len(across)), 2)
    points = np.stack([np.repeat(across, 2)[1:-1], line[:-2]], -1)
    outline = np.concatenate([points, [[2.5, points[-1, 1]], [2.5, 3], [-2.5, 3], [-2.5, points[0, 1]]]])
    return _fill(shape, [_place(outline, shape, np.array([0.5, 0.5]), 0.8, angle)])


_DRAW = dict(zip(SHAPES, (_blob, _polygon, _person, _leaves, _bars, _window, _edge), strict=True))
