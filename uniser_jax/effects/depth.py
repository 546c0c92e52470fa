"""Depth of a photograph: the one it comes with, or a plausible one. 0 near, 1 far.

(1) d = c / (c + y - y_horizon)                        ground below the horizon, a camera c above it; 1 on the horizon
(2) f = a g + b,  a = cov(g, f) / (var(g) + epsilon)   in each window: f with the edges of a guide g (He, Sun & Tang 2013)
(3) a, b found on a small grid and enlarged            at the price of that grid (He & Sun 2015)

Everything but the last multiplication of (2) happens on a grid of at most `SIDE` squared, whatever the photograph.
"""

import math
from typing import NamedTuple

import cv2
import numba
import numpy as np
from jaxtyping import Float32

from uniser_jax.effects import fields, kernels, light
from uniser_jax.effects.fields import Field, Shape

SIDE = 96  # at most, of the grid of a square photograph; above 48 for all but the smallest

_RED, _GREEN, _BLUE = np.float32(0.2126), np.float32(0.7152), np.float32(0.0722)
_ZERO, _ONE = np.float32(0), np.float32(1)
_compiled = numba.njit(nogil=True, cache=True, error_model="numpy")


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
    if h % n == w % n == 0 and n >= 8 and image.ndim == 3 and image.flags.c_contiguous:
        return _boxes(image, n)
    return cv2.resize(image, (max(2, round(w / n)), max(2, round(h / n))), interpolation=cv2.INTER_AREA)


@_compiled
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
      field: on the grid, not negative.
      small: the photograph on the grid.
      radiance: the photograph, linear; its guide is the square root of luminance, as bright in steps as an eye would see.
      factor: multiplies the result; on the grid too, and enlarged without regard to edges.
    """
    slope, start = _lines(field, np.sqrt(np.clip(light.luminance(small), 0, 1)), 0.06, 4e-3)
    factor = np.ones((1, 1), np.float32) if factor is None else factor
    slope, start, factor = (fields.widen(plane, radiance.shape) for plane in (slope, start, factor))
    return _along_light(slope, start, radiance, factor)


def follow_depth(field: Field, small: Field, depth: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """The same along the edges of a given depth, of which the field is a smooth function: nearly exact."""
    slope, start = _lines(field, small, 0.02, 1e-5)
    return _along_depth(fields.widen(slope, depth.shape), fields.widen(start, depth.shape), depth)


def _lines(field: Field, guide: Field, radius: float, epsilon: float) -> tuple[Field, Field]:
    """a and b of (2): radius as a fraction of the image side, epsilon the variance below which the guide has no edge."""
    size = (2 * max(1, round(radius * fields.side(field.shape))) + 1,) * 2
    mean_g, mean_f = cv2.blur(guide, size), cv2.blur(field, size)
    slope = (cv2.blur(guide * field, size) - mean_g * mean_f) / (cv2.blur(guide * guide, size) - mean_g**2 + epsilon)
    return cv2.blur(slope, size), cv2.blur(mean_f - slope * mean_g, size)


@_compiled
def _along_light(
    slope: kernels.Plane, start: kernels.Plane, radiance: kernels.Image, factor: kernels.Plane
) -> kernels.Plane:
    h, w = radiance.shape[:2]
    out, guide = np.empty((h, w), np.float32), np.empty(w, np.float32)
    for i in range(h):
        k, below, a = kernels.between_rows(i, h, len(slope))
        m, under, b = kernels.between_rows(i, h, len(factor))
        scene, row = radiance[i], out[i]
        for j in range(w):
            y = _RED * scene[j, 0] + _GREEN * scene[j, 1] + _BLUE * scene[j, 2]
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


@_compiled
def _along_depth(slope: kernels.Plane, start: kernels.Plane, depth: kernels.Plane) -> kernels.Plane:
    h, w = depth.shape
    out = np.empty((h, w), np.float32)
    for i in range(h):
        k, below, a = kernels.between_rows(i, h, len(slope))
        slope0, slope1, start0, start1 = slope[k], slope[below], start[k], start[below]
        for j in range(w):
            value = (slope0[j] + a * (slope1[j] - slope0[j])) * depth[i, j] + start0[j] + a * (start1[j] - start0[j])
            out[i, j] = value if value > _ZERO else _ZERO
    return out


def sketch(rng: np.random.Generator, small: Float32[np.ndarray, "h w c"], horizon: float) -> Sketch:
    """A plausible depth: ground under a sky, a slope, or an alley; things that stand in it; what the photograph gives away.

    Args:
      rng: source of the scene.
      small: the photograph, linear, on its grid.
      horizon: where the horizon is, if the photograph shows no sky.
    """
    h, w = small.shape[:2]
    y = np.linspace(0, 1, h, dtype=np.float32)[:, None]
    x = np.linspace(0, 1, w, dtype=np.float32)[None]
    kind, trusted, cue = rng.random(), rng.random() < 0.7, rng.uniform(0, 0.3)
    tilt, camera, angle = rng.normal(0, 0.05), rng.uniform(0.03, 0.3), rng.uniform(-0.6, 0.6)
    (left, top), rough = rng.uniform(0.3, 0.7, 2).tolist(), rng.uniform(0.05, 0.3)
    above, pale, detail = signs(small)
    share = float(above.mean())
    seen = trusted and 0.04 < share < 0.75
    if seen:
        horizon = min(0.9, share + 0.02)  # the mean height of the skyline
    if kind < 0.65 or seen:
        d = camera / (camera + np.maximum(y - horizon - tilt * (x - 0.5), 0))  # (1)
    elif kind < 0.85:
        d = 1 - y * math.cos(angle) - (x - 0.5) * math.sin(angle)
    else:
        d = 1 - np.sqrt((x - left) ** 2 + (y - top) ** 2)
    d = d + rough * (fields.fractal_noise(rng, (h, w), 0.5, 4) - 0.5)
    d += np.float32(cue) * pale
    d = _standing(rng, d, y, horizon, detail)
    if seen:
        d = np.maximum(d, above * d.max())
    low, high, _, _ = cv2.minMaxLoc(d)
    return Sketch((d - np.float32(low)) / np.float32(max(high - low, 1e-6)), horizon)


def signs(small: Float32[np.ndarray, "h w c"]) -> tuple[Field, Field, Field]:
    """What a photograph itself says of depth.

    Args:
      small: linear, on its grid.

    Returns:
      Where sky may be, in [0, 1]: bright, smooth, not warm, and nothing else above it. Brightness less saturation, in
      [-1, 1], a weak sign of distance even in clear air (Zhu, Mai & Shao 2015). Where there is detail, in [0, 1]: something
      may stand there.
    """
    above, pale, change = _signs(cv2.blur(np.sqrt(np.clip(small, 0, 1)), (3, 3)))
    return (
        cv2.blur(above, (3, 3)),
        cv2.blur(pale, (5, 5)),
        np.clip(25 * cv2.blur(change, (9, 9)) - np.float32(0.2), 0, 1),
    )


@_compiled
def _signs(root: kernels.Image) -> tuple[kernels.Plane, kernels.Plane, kernels.Plane]:
    """The pixel loop of `signs`, on the square root of light."""
    h, w = root.shape[:2]
    above, pale, change = np.zeros((h, w), np.float32), np.empty((h, w), np.float32), np.empty((h, w), np.float32)
    value = np.empty((h, w), np.float32)
    for i in range(h):
        for j in range(w):
            red, green, blue = root[i, j, 0], root[i, j, 1], root[i, j, 2]
            value[i, j] = max(red, green, blue)
            pale[i, j] = value[i, j] - _ONE + (min(red, green, blue) / max(value[i, j], np.float32(1e-3))) ** 2
            up, left = value[max(i - 1, 0), j], value[i, max(j - 1, 0)]
            change[i, j] = abs(value[i, j] - up) + abs(value[i, j] - left)
            bright = value[i, j] > np.float32(0.55) and blue > np.float32(0.9) * red
            if bright and (i == 0 or (above[i - 1, j] > 0 and change[i, j] < np.float32(0.06))):
                above[i, j] = _ONE
    return above, pale, change


def _standing(
    rng: np.random.Generator, d: Field, y: Float32[np.ndarray, "h 1"], horizon: float, detail: Field
) -> Field:
    """Sets columns to the depth at their foot, where there is detail, as trees, houses and people stand on the ground."""
    h, w = d.shape
    for foot in np.sort(rng.uniform(horizon, 1.05, int(rng.integers(0, 5)))):  # from far to near
        top, left, width = rng.uniform(0, 0.9) * foot, rng.uniform(-0.1, 0.9), rng.uniform(0.04, 0.25)
        columns = slice(max(0, int(left * w)), max(1, min(w, int((left + width) * w) + 1)))
        lattice = rng.random((1, 24), np.float32) + 0.5 * rng.random((1, 24), np.float32)
        outline = np.float32(top) + np.float32(0.15) * (cv2.resize(lattice, (w, 1))[:, columns] - np.float32(0.75))
        part = d[:, columns]
        near = d[min(int(foot * h), h - 1)].mean()
        part -= np.where((y > outline) & (y < foot), detail[:, columns] * np.maximum(part - near, 0), 0)
    return d
