"""Depth of a photograph: the one it comes with, or a plausible one. 0 near, 1 far.

(1) d = c / (c + y - y_horizon)                        ground below the horizon, a camera c above it; 1 on the horizon
(2) f = a g + b,  a = cov(g, f) / (var(g) + epsilon)   in each window: f with the edges of a guide g (He, Sun & Tang 2013)
(3) a, b found on a small grid and enlarged            at the price of that grid (He & Sun 2015)

Everything but the last multiplication of (2) happens on a grid of at most `SIDE` squared, whatever the photograph.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64

from uniser_jax.effects import fields, grids, kernels, light
from uniser_jax.effects.compiled import compiled
from uniser_jax.effects.fields import Field, Shape

SIDE = 96  # at most, of the grid of a square photograph; above 48 for all but the smallest

_RED, _GREEN, _BLUE = np.float32(0.2126), np.float32(0.7152), np.float32(0.0722)
_ZERO, _ONE = np.float32(0), np.float32(1)
_PALE = 0.75  # more of a frame is no pale sky
_RADIUS, _EDGELESS = 0.06, np.float32(4e-3)  # of the guided filter: a share of the side; a variance that is no edge yet
_SPAN = np.float32(1e-3)  # of depths; one of less is the same everywhere, as where sky fills the frame


Signs = tuple[Field, Field, Field]  # see `signs`


class Sketch(NamedTuple):
    """A made-up depth.

    Args:
      depth: in [0, 1], on the grid.
      horizon: its row, 0 at the top and 1 at the bottom; infinitely far things at the height of the camera are seen there.
    """

    depth: Field
    horizon: float


def cell(shape: Shape) -> int:
    """Pixels along the side of a cell of the grid: a power of two, so that means over cells are quickly taken."""
    n = 1
    while fields.side(shape) > SIDE * n:
        n *= 2
    return n


def reduce(image: np.ndarray, n: int) -> np.ndarray:
    """An image or a plane on the grid whose cells have n pixels: means over cells, or nearly so where n does not fit."""
    h, w = image.shape[:2]
    if n == 1:
        return image
    if h % n == w % n == 0 and n >= 4 and image.ndim == 3 and image.flags.c_contiguous:
        return _boxes(image, n)
    return fields.shrink(image, (max(2, round(h / n)), max(2, round(w / n))))


@compiled
def _boxes(image: kernels.Image, n: int) -> kernels.Image:
    """Means over squares of n pixels, which divides both sides: rows are added first, in vector code."""
    h, w, channels = image.shape[0] // n, image.shape[1] // n, image.shape[2]
    rows = image.reshape(h * n, w * n * channels)
    out, total = np.empty((h, w, channels), np.float32), np.empty(w * n * channels, np.float32)
    share = np.float32(1 / (n * n))
    for i in range(h):
        total[:] = rows[i * n]
        for k in range(1, n):
            row = rows[i * n + k]
            for j in range(len(total)):
                total[j] += row[j]
        for j in range(w):
            for c in range(channels):
                value = _ZERO
                for k in range(n):
                    value += total[(j * n + k) * channels + c]
                out[i, j, c] = value * share
    return out


def follow_light(
    field: Field,
    small: Float32[np.ndarray, "h w c"],
    radiance: Float32[np.ndarray, "H W c"],
    factor: Field | None = None,
) -> Float32[np.ndarray, "H W"]:
    """Enlarges a field from the grid along the edges of the photograph: equations (2) and (3); never below 0.

    Args:
      field: on the grid; what falls below 0 becomes 0.
      small: the photograph on the grid.
      radiance: the photograph, linear; its guide is the square root of luminance, as bright in steps as an eye would see.
      factor: multiplies the result; on the grid too, and enlarged without regard to edges.
    """
    guide = np.sqrt(np.clip(light.luminance(small), 0, 1))
    slope, start = _fitted(field, guide, max(1, round(_RADIUS * fields.side(field.shape))), _EDGELESS)
    factor = np.ones((1, 1), np.float32) if factor is None else factor
    slope, start, factor = (fields.widen(plane, radiance.shape) for plane in (slope, start, factor))
    return _along_light(slope, start, np.ascontiguousarray(radiance), factor)


@compiled
def _fitted(field: kernels.Plane, guide: kernels.Plane, reach: int, epsilon: np.float32) -> tuple[Field, Field]:
    mean_g, mean_f = grids.box(guide, reach), grids.box(field, reach)
    covariance = grids.box(guide * field, reach) - mean_g * mean_f
    slope = covariance / (grids.box(guide * guide, reach) - mean_g * mean_g + epsilon)
    return grids.box(slope, reach), grids.box(mean_f - slope * mean_g, reach)


@compiled
def _along_light(
    slope: kernels.Plane, start: kernels.Plane, radiance: kernels.Image, factor: kernels.Plane
) -> kernels.Plane:
    h, w = radiance.shape[:2]
    out, guide = np.empty((h, w), np.float32), np.empty(w, np.float32)
    for i in range(h):
        k, below, a = kernels.between_rows(i, h, len(slope))
        m, under, b = kernels.between_rows(i, h, len(factor))
        scene, row = radiance[i].reshape(-1), out[i]  # flat, or it would not become vector code
        for j in range(w):
            y = _RED * scene[3 * j] + _GREEN * scene[3 * j + 1] + _BLUE * scene[3 * j + 2]
            y = y if y > _ZERO else _ZERO  # not max and min: these vectorise
            guide[j] = y if y < _ONE else _ONE
        slope0, slope1, start0, start1 = slope[k], slope[below], start[k], start[below]
        factor0, factor1 = factor[m], factor[under]
        for j in range(w):
            value = (
                (slope0[j] + a * (slope1[j] - slope0[j])) * np.sqrt(guide[j]) + start0[j] + a * (start1[j] - start0[j])
            )
            value = value if value > _ZERO else _ZERO
            row[j] = value * (factor0[j] + b * (factor1[j] - factor0[j]))
    return out


def sketch(
    rng: np.random.Generator, small: Float32[np.ndarray, "h w c"], horizon: float, found: Signs | None = None
) -> Sketch:
    """A plausible depth: ground under a sky, a slope, or an alley; things that stand in it; what the photograph gives away.

    Args:
      rng: source of the scene.
      small: the photograph, linear, on its grid.
      horizon: where the horizon is, if the photograph shows no sky.
      found: the `signs` of it, where they are known already.
    """
    noise = fields.fractal_noise(rng, small.shape[:2], 0.25, 4)
    count = int(rng.integers(0, 5))
    scene, tilt, standing = rng.random(8), 0.05 * rng.standard_normal(), rng.random((count, 4))
    outlines = rng.random((count, 24), np.float32) + 0.5 * rng.random((count, 24), np.float32)
    return Sketch(*_sketched(*(found or signs(small)), noise, scene, tilt, standing, outlines, horizon))


@compiled
def _sketched(
    above: Field,
    pale: Field,
    detail: Field,
    noise: Field,
    scene: Float64[np.ndarray, "8"],
    tilt: float,
    standing: Float64[np.ndarray, "n 4"],
    outlines: Float32[np.ndarray, "n k"],
    horizon: float,
) -> tuple[Field, float]:
    """The scene of `sketch`, made of what the photograph gives away (see `signs`) and of uniform numbers."""
    (h, w), share, d = above.shape, above.mean(), np.empty(above.shape, np.float32)
    seen = scene[0] < 0.7 and share > 0.04
    horizon = min(0.9, share + 0.02) if seen else horizon  # the mean height of the skyline
    kind, camera, angle = scene[1], _between(scene[2], 0.03, 0.3), _between(scene[3], -0.6, 0.6)
    left, top = _between(scene[4], 0.3, 0.7), _between(scene[5], 0.3, 0.7)
    rough, cue = np.float32(_between(scene[6], 0.05, 0.3)), np.float32(0.3 * scene[7])
    for i in range(h):
        y = (i + 0.5) / h
        for j in range(w):
            x = (j + 0.5) / w
            if kind < 0.65 or seen:
                far = camera / (camera + max(y - horizon - tilt * (x - 0.5), 0.0))  # (1)
            elif kind < 0.85:
                far = 1 - y * math.cos(angle) - (x - 0.5) * math.sin(angle)
            else:
                far = 1 - math.sqrt((x - left) ** 2 + (y - top) ** 2)
            d[i, j] = np.float32(far) + rough * (noise[i, j] - np.float32(0.5)) + cue * pale[i, j]
    feet = np.sort(horizon + (1.05 - horizon) * standing[:, 0])  # from far to near
    for k in range(len(feet)):
        _stand(d, detail, feet[k], standing[k, 1:], outlines[k])
    if seen:
        d = np.maximum(d, above * d.max())
    low, high = d.min(), d.max()
    if high - low < _SPAN:
        d[:] = _ONE
        return d, horizon
    return (d - low) / (high - low), horizon


@compiled
def _between(u: float, low: float, high: float) -> float:
    return low + (high - low) * u


@compiled
def _stand(
    d: Field, detail: Field, foot: float, place: Float64[np.ndarray, "3"], outline: Float32[np.ndarray, "k"]
) -> None:
    """Sets columns to the depth at their foot, where there is detail, as trees, houses and people stand on the ground."""
    h, w = d.shape
    top, left, width = 0.9 * place[0] * foot, _between(place[1], -0.1, 0.9), _between(place[2], 0.04, 0.25)
    first, last = max(0, int(left * w)), max(1, min(w, int((left + width) * w) + 1))
    near = d[min(int(foot * h), h - 1), first:last].mean()
    for j in range(first, last):
        k, after, a = kernels.between_rows(j, w, len(outline))
        edge = top + 0.15 * (outline[k] + a * (outline[after] - outline[k]) - 0.75)
        for i in range(h):
            if edge < (i + 0.5) / h < foot:
                d[i, j] -= detail[i, j] * max(d[i, j] - near, _ZERO)


@compiled
def signs(small: Float32[np.ndarray, "h w c"]) -> Signs:
    """What a photograph itself says of depth.

    Args:
      small: linear, on its grid.

    Returns:
      Where sky may be, in [0, 1]: bright and not warm, or deep blue; smooth, and nothing else above it, though what is deep
      blue may reach around things; what is white and fills nearly all of the frame is a wall, or paper. Brightness less
      saturation, in [-1, 1], a weak sign of distance even in clear air (Zhu, Mai & Shao 2015). Where there is detail, in
      [0, 1]: something may stand there.
    """
    h, w = small.shape[:2]
    root = np.empty((3, h, w), np.float32)
    for c in range(3):
        for i in range(h):
            for j in range(w):
                root[c, i, j] = np.sqrt(min(max(small[i, j, c], _ZERO), _ONE))
    reds, greens, blues = grids.box(root[0], 1), grids.box(root[1], 1), grids.box(root[2], 1)
    above, pale, change = np.zeros((h, w), np.float32), np.empty((h, w), np.float32), np.empty((h, w), np.float32)
    value, reached, white = np.empty((h, w), np.float32), np.empty(w, np.bool_), 0
    for i in range(h):
        for j in range(w):
            lowest, value[i, j] = min(reds[i, j], greens[i, j], blues[i, j]), max(reds[i, j], greens[i, j], blues[i, j])
            pale[i, j] = value[i, j] - _ONE + (lowest / max(value[i, j], np.float32(1e-3))) ** 2
        for j in range(w):
            red, green, blue = reds[i, j], greens[i, j], blues[i, j]
            before, after = max(j - 1, 0), min(j + 1, w - 1)
            up = abs(value[i, j] - value[max(i - 1, 0), j])
            sides = abs(value[i, j] - value[i, before]), abs(value[i, j] - value[i, after])
            change[i, j] = up + np.float32(0.5) * (sides[0] + sides[1])
            smooth = up + max(sides[0], sides[1]) < np.float32(0.06)
            pale_sky = value[i, j] > np.float32(0.55) and blue > np.float32(0.9) * red
            deep_sky = blue > max(np.float32(0.18), np.float32(1.4) * red, np.float32(1.06) * green)
            near = above[i - 1, j]  # of what lies above, or, where deep, beside
            if deep_sky:
                near = max(near, above[i - 1, before], above[i - 1, after], above[i, before])
            if (pale_sky or deep_sky) and (i == 0 or (near > 0 and smooth)):
                above[i, j] = _ONE
                white += blue < np.float32(1.05) * red
            reached[j] = deep_sky and smooth
        for j in range(w - 2, -1, -1):  # the same from the right
            if reached[j] and above[i, j + 1] > above[i, j]:
                above[i, j] = _ONE
    if 2 * white > above.sum() and above.mean() > _PALE:
        above[:] = _ZERO
    detail = np.float32(25) * grids.box(change, 4) - np.float32(0.2)
    # Beside what stands in the sky nothing is smooth: it reaches a cell farther.
    sky = np.minimum(np.float32(3) * grids.box(above, 1), _ONE)
    return grids.box(sky, 1), grids.box(pale, 2), np.minimum(np.maximum(detail, _ZERO), _ONE)
