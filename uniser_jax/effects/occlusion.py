"""Occlusion, the auxiliary effect: patches of any form and material, which only the generic task removes.

  (1) seen = J + s a (Q B(J) + P - J)                a: the patch's coverage; strength s as in (3) of `layer`
  (2) opaque: a = 1, Q = 0. semi-transparent: Q = 0. tint: P = 0. veil: Q = 1. film: any Q and P.    B is the identity
  (3) frosted: B a Gaussian blur, Q = 1, P = 0                                                 light is spread, not lost

(2) spans the affine maps of one pixel, (3) adds its neighbours, so that "remove effects" carries over to what was never
rendered. UniSER (arXiv 2511.14183) covers clean photographs with such patches, and gives no parameters.
"""

import dataclasses
from typing import ClassVar, Self

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from uniser_jax.effects import fields, kernels
from uniser_jax.effects.compiled import compiled
from uniser_jax.effects.layer import Affine, Scene, Strength, per_pixel
from uniser_jax.errors import check_weights

Image = Float32[np.ndarray, "h w c"]
Plane = Float32[np.ndarray, "h w"]
Canvas = UInt8[np.ndarray, "h w"]

MATERIALS = ("opaque", "semi-transparent", "tint", "veil", "film", "frosted")
FORMS = ("box", "ellipse", "polygon", "stroke", "blob", "glyphs")
TEXTURES = ("constant", "gradient", "fractal", "photo")
_COARSEST = 8  # pixels along a cell where a blur is wide
_INK = 0.35  # share of a line of glyphs that is ink
_TRIES, _SEEN, _SEEN_AT = 4, 0.015, 64  # draws until the root of light changes so much, looked at with such a side


@dataclasses.dataclass(frozen=True)
class OcclusionSampling:
    """What draws come from.

    Args:
      materials: weights, in the order of MATERIALS.
      forms: weights, in the order of FORMS.
      textures: weights, in the order of TEXTURES.
      most: patches.
      area: least and most share of the frame.
      softness: widest edge, as a fraction of the image side; half of all patches are sharp.

    Raises:
      ValueError: for weights of another number than the names, one below 0 or none above it, or a range out of order.
    """

    materials: tuple[float, ...] = (0.2, 0.25, 0.12, 0.13, 0.1, 0.2)
    forms: tuple[float, ...] = (0.15, 0.15, 0.2, 0.2, 0.2, 0.1)
    textures: tuple[float, ...] = (0.4, 0.2, 0.2, 0.2)
    most: int = 6
    area: tuple[float, float] = (0.02, 0.35)
    softness: float = 0.04

    def __post_init__(self) -> None:
        for name, known in (("materials", MATERIALS), ("forms", FORMS), ("textures", TEXTURES)):
            if len(weights := getattr(self, name)) != len(known):
                raise ValueError(f"occlusion.{name} = {weights}: expected weights of {', '.join(known)}")
            check_weights(f"occlusion.{name}", weights)
        if len(self.area) != 2 or not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"occlusion.area = {self.area}: expected (least, most), 0 < least <= most <= 1")
        if self.most < 1 or not 0 <= self.softness <= 1:
            raise ValueError(f"occlusion.most = {self.most}, softness = {self.softness}: expected >= 1 and in [0, 1]")


@dataclasses.dataclass(frozen=True)
class PatchLayer:
    """Equation (1).

    Args:
      coverage: a.
      filtered: Q, [h w c] or broadcastable.
      added: P, the same.
      sigma: of B, in pixels; 0 is the identity.
      behind: what it was rendered on, for `at`.
    """

    coverage: Plane
    filtered: Float32[np.ndarray, "..."]
    added: Float32[np.ndarray, "..."]
    sigma: float
    behind: Image
    lamp: None = None
    effect: ClassVar[str] = "occlusion"

    def __call__(self, radiance: Image, strength: Strength) -> Image:
        """Equation (1)."""
        shape = radiance.shape
        maps = np.broadcast_to(self.filtered, shape), np.broadcast_to(self.added, shape)
        return _patched(radiance, frost(radiance, self.sigma), self.coverage, *maps, per_pixel(strength))

    def at(self, strength: Strength) -> Affine:
        """(1) as an affine map per pixel; of a frosted patch for the scene that it was rendered on, as B sees neighbours."""
        a = (self.coverage * strength)[..., None]
        if self.sigma == 0:
            return Affine(1 - a * (1 - self.filtered), a * self.added)
        return Affine(1 - a, a * (self.filtered * frost(self.behind, self.sigma) + self.added))


@dataclasses.dataclass(frozen=True)
class Occlusion:
    """A group of patches of one material.

    Args:
      material: one of MATERIALS.
      alpha: a inside a patch.
      texture: one of TEXTURES; `photo` is fractal where the scene has no second photograph.
      first: a colour, linear RGB.
      second: what a gradient or fractal runs to from there.
      filter: Q of a film, linear RGB in [0, 1].
      blur: sigma of a frosted patch, as a fraction of the image side.
      form: one of FORMS.
      count: of patches; a blob breaks up by itself.
      area: all patches together, as a share of the frame, before they overlap or leave it.
      softness: width of the edge, as a fraction of the image side.
      seed: of forms and texture.
    """

    effect: ClassVar[str] = "occlusion"
    material: str
    alpha: float
    texture: str
    first: tuple[float, float, float]
    second: tuple[float, float, float]
    filter: tuple[float, float, float]
    blur: float
    form: str
    count: int
    area: float
    softness: float
    seed: int

    @classmethod
    def sample(cls, rng: np.random.Generator, scene: Scene, sampling: OcclusionSampling = OcclusionSampling()) -> Self:
        """Alpha from 0.2 to 1, blur from 0.6 to 3 % of the side; drawn again, but of its kind, where nobody would see it."""
        material, form, texture = (
            names[fields.pick(rng, weights)]
            for names, weights in (
                (MATERIALS, sampling.materials),
                (FORMS, sampling.forms),
                (TEXTURES, sampling.textures),
            )
        )
        least = {"opaque": 1.0, "frosted": 0.7, "tint": 0.5}.get(material, 0.2)
        n = max(1, round(fields.side(scene.radiance.shape[:2]) / _SEEN_AT))
        small = scene._replace(radiance=np.ascontiguousarray(scene.radiance[::n, ::n]))
        tries: list[tuple[float, Self]] = []
        while len(tries) < _TRIES and (not tries or tries[-1][0] < _SEEN):
            drawn = cls(
                material=material,
                alpha=float(rng.uniform(least, 1.0)),
                texture=texture,
                first=_colour(rng),
                second=_colour(rng),
                filter=_colour(rng),
                blur=fields.log_uniform(rng, 0.006, 0.03),
                form=form,
                count=int(rng.integers(1, sampling.most + 1)),
                area=fields.log_uniform(rng, *sampling.area),
                softness=float(rng.uniform(0, sampling.softness)) * (rng.random() < 0.5),
                seed=int(rng.integers(2**31)),
            )
            seen = drawn.render(small)(small.radiance, 1.0)
            tries.append((fields.root_change(small.radiance, seen), drawn))
        return max(tries, key=lambda each: each[0])[1]

    def render(self, scene: Scene) -> PatchLayer:
        """The layer on one photograph."""
        rng = np.random.default_rng(self.seed)
        shape = scene.radiance.shape[:2]
        coverage = self._coverage(rng, shape)
        nothing, everything = np.zeros(3, np.float32), np.ones(3, np.float32)
        filtered, added, sigma = nothing, nothing, 0.0
        if self.material == "frosted":
            filtered, sigma = everything, max(0.6, self.blur * fields.side(shape))
        elif self.material == "tint":
            filtered = np.minimum(self._textured(rng, scene), 1)
        else:
            filtered = {"veil": everything, "film": np.array(self.filter, np.float32)}.get(self.material, nothing)
            added = self._textured(rng, scene)
        return PatchLayer(coverage, filtered, added, sigma, scene.radiance)

    def _coverage(self, rng: np.random.Generator, shape: tuple[int, int]) -> Plane:
        """a: drawn smaller where its edges are soft, blurred, enlarged."""
        sigma = self.softness * fields.side(shape) / 2.5
        factor = fields.reduction(sigma, shape, _COARSEST)
        size = tuple(-(-n // factor) for n in shape)
        if self.form == "blob":
            drawn = _blob(rng, size, self.area)
        else:
            drawn = np.zeros(size, np.uint8)
            for _ in range(self.count):
                _FORMS[self.form](rng, drawn, self.area / self.count * drawn.size)
        soft = drawn.astype(np.float32) * np.float32(self.alpha / 255)
        soft = fields.blur_reduced(soft, sigma, factor)
        return cv2.resize(soft, shape[::-1]) if factor > 1 else soft

    def _textured(self, rng: np.random.Generator, scene: Scene) -> Float32[np.ndarray, "..."]:
        """P, or Q of a tint: [c] or [h w c]."""
        h, w = scene.radiance.shape[:2]
        first, second = np.array(self.first, np.float32), np.array(self.second, np.float32)
        if self.texture == "constant":
            return first
        if self.texture == "photo" and scene.other is not None:
            return _crop(rng, scene.other, (h, w))
        if self.texture == "gradient":
            y, x = np.mgrid[-1:1:8j, -1:1:8j].astype(np.float32)
            angle = rng.uniform(0, 2 * np.pi)
            share = 0.5 + 0.35 * (np.cos(angle) * x + np.sin(angle) * y)
        else:
            share = fields.fractal_noise(rng, (-(-h // 4), -(-w // 4)), rng.uniform(0.05, 0.3), 5, 0.6)
        mixed = first + np.clip(share, 0, 1).astype(np.float32)[..., None] * (second - first)
        return cv2.resize(mixed, (w, h))


def frost(image: Image, sigma: float) -> Image:
    """B of (3), sigma in pixels: on a reduced image where it is wide. What is constant stays as it is."""
    shape = image.shape[:2]
    factor = fields.reduction(sigma, shape, _COARSEST)
    if factor == 1:
        return fields.blur_reduced(image, sigma, 1)
    small = fields.shrink(image, tuple(max(2, n // factor) for n in shape))
    return cv2.resize(fields.blur_reduced(small, sigma, factor), shape[::-1])


@compiled
def _patched(radiance: Image, spread: Image, coverage: Plane, filtered: Image, added: Image, strength: Plane) -> Image:
    """Equation (1)."""
    out = np.empty(radiance.shape, np.float32)
    for i in range(radiance.shape[0]):
        strengths = kernels.row(strength, i, radiance.shape[1])
        for j in range(radiance.shape[1]):
            a = strengths[j] * coverage[i, j]
            for c in range(3):
                x = radiance[i, j, c]
                out[i, j, c] = x + a * (filtered[i, j, c] * spread[i, j, c] + added[i, j, c] - x)
    return out


def _crop(rng: np.random.Generator, photo: Image, shape: tuple[int, int]) -> Image:
    """Some part of a photograph over the whole frame."""
    size = [max(2, int(n * rng.uniform(0.25, 1))) for n in photo.shape[:2]]
    top, left = (int(rng.uniform(0, n - m + 1)) for n, m in zip(photo.shape[:2], size, strict=True))
    part = photo[top : top + size[0], left : left + size[1]]
    return cv2.resize(part[:, ::-1] if rng.random() < 0.5 else part, shape[::-1])


def _blob(rng: np.random.Generator, size: tuple[int, ...], area: float) -> Canvas:
    """What of a fractal lies above the level that leaves this area."""
    small = max(2, -(-size[0] // 2)), max(2, -(-size[1] // 2))
    noise = fields.fractal_noise(rng, small, rng.uniform(0.15, 0.3), 6, rng.uniform(0.35, 0.6))
    place = int((1 - area) * (noise.size - 1))
    level = np.partition(noise, place, None)[place]
    noise = cv2.resize(noise, size[::-1])
    return cv2.convertScaleAbs(np.clip(noise, level - 0.005, level + 0.005) - (level - 0.005), alpha=25_500)


def _box(rng: np.random.Generator, canvas: Canvas, area: float) -> None:
    tall = np.sqrt(area * np.exp(rng.uniform(-1, 1))) / 2
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (area / tall / 4, tall)
    _fill(canvas, _place(rng, canvas) + corners @ _turn(rng.uniform(0, np.pi) * (rng.random() < 0.5)))


def _ellipse(rng: np.random.Generator, canvas: Canvas, area: float) -> None:
    tall = np.sqrt(area / np.pi * np.exp(rng.uniform(-0.8, 0.8)))
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    outline = np.stack([np.cos(angle) * area / np.pi / tall, np.sin(angle) * tall], -1)
    _fill(canvas, _place(rng, canvas) + outline @ _turn(rng.uniform(0, np.pi)))


def _polygon(rng: np.random.Generator, canvas: Canvas, area: float) -> None:
    """Corners at sorted angles, scaled to the area by the shoelace formula."""
    n = int(rng.integers(3, 9))
    angle = 2 * np.pi * ((np.arange(n) + rng.uniform(-0.35, 0.35, n)) / n + rng.random())
    outline = rng.uniform(0.4, 1, n)[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    x, y = outline.T
    own = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    _fill(canvas, _place(rng, canvas) + outline * np.sqrt(area / own))


def _stroke(rng: np.random.Generator, canvas: Canvas, area: float) -> None:
    """A brush that wanders: its direction drifts, its width stays."""
    steps = int(rng.integers(6, 25))
    length = np.sqrt(area) * rng.uniform(2, 5)
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.35, steps))
    path = np.cumsum(length / steps * np.stack([np.cos(heading), np.sin(heading)], -1), 0)
    _line(canvas, _place(rng, canvas) + path - path.mean(0), area / length)


def _glyphs(rng: np.random.Generator, canvas: Canvas, area: float) -> None:
    """Rows of signs that no language has: a few strokes between points of a lattice each."""
    rows, columns = int(rng.integers(1, 4)), int(rng.integers(3, 10))
    height = np.sqrt(area / _INK / (rows * columns * 0.7))
    turn, corner = _turn(rng.normal(0, 0.25)), _place(rng, canvas)
    for row in range(rows):
        for column in range(columns):
            if rng.random() < 0.12:
                continue  # between words
            points = rng.integers(0, (3, 4), (int(rng.integers(3, 6)), 2)) * (0.22, 0.25)
            points = points + ((column - columns / 2) * 0.7, (row - rows / 2) * 1.3)
            _line(canvas, corner + height * points @ turn, 0.12 * height)


_FORMS = {"box": _box, "ellipse": _ellipse, "polygon": _polygon, "stroke": _stroke, "glyphs": _glyphs}


def _place(rng: np.random.Generator, canvas: Canvas) -> Float64[np.ndarray, "2"]:
    return rng.uniform(0.15, 0.85, 2) * canvas.shape[::-1]


def _turn(angle: float) -> Float64[np.ndarray, "2 2"]:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _fill(canvas: Canvas, points: Float64[np.ndarray, "n 2"]) -> None:
    cv2.fillPoly(canvas, [np.round(points * 16 - 8).astype(np.int32)], 255, cv2.LINE_AA, 4)


def _line(canvas: Canvas, points: Float64[np.ndarray, "n 2"], width: float) -> None:
    cv2.polylines(
        canvas, [np.round(points * 16 - 8).astype(np.int32)], False, 255, max(1, round(width)), cv2.LINE_AA, 4
    )


def _colour(rng: np.random.Generator) -> tuple[float, float, float]:
    """Linear RGB; the square makes the stored values uniform, nearly."""
    red, green, blue = rng.random(3) ** 2
    return float(red), float(green), float(blue)
