"""Mattes: how much of the light is taken at each place, in [0, 1].

  (1) covered area of a pixel = sum along its row of what the edges add, |.| <= 1    signed areas, as in font rendering
  (2) matte(x) = blur of the form by sigma(x), affine in x                          penumbra, a stack of blurs interpolated
  (3) matte(x) -> matte(x + h(x) e)                                                 bent by a relief h against the light's e

Areas are exact, so a form looks the same at any size, and each pixel row is one pass without Python's lock.
"""

from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, Int64

from uniser_jax.effects import fields, kernels
from uniser_jax.effects.compiled import compiled, finite

Plane = Float32[np.ndarray, "h w"]
Points = Float32[np.ndarray, "n 2"]
Stack = Float32[np.ndarray, "n h w"]
Number = Any  # float32 in compiled code

RESAMPLING = 0.25  # variance, in pixels of the smaller image, that averaging and linear enlargement add
_ROUNDING = np.float32(1e-4)


def polygons(forms: list[np.ndarray], shape: tuple[int, int]) -> Plane:
    """The union of polygons by equation (1).

    Args:
      forms: each [n 2] or [k n 2], (x, y) in fractions of the image side from the middle of the frame.
      shape: (h, w) in pixels.
    """
    parts = [form.reshape(-1, *form.shape[-2:]) for form in forms]
    points = np.concatenate([part.reshape(-1, 2) for part in parts])
    counts = np.concatenate([np.full(len(part), part.shape[1]) for part in parts])
    pixels = points * fields.side(shape) + np.array([shape[1], shape[0]]) / 2
    return _areas(pixels.astype(np.float32), np.cumsum(counts), shape[0], shape[1])


@compiled
def _areas(points: Points, ends: Int64[np.ndarray, "k"], rows: int, columns: int) -> Plane:
    out = np.zeros((rows, columns), np.float32)
    start = 0
    for end in ends:
        area = np.float32(0)
        for i in range(start, end):
            j = i + 1 if i + 1 < end else start
            area += points[i, 0] * points[j, 1] - points[j, 0] * points[i, 1]
        sign = np.float32(1) if area > 0 else np.float32(-1)  # one sense of rotation for all, or overlaps would cancel
        for i in range(start, end):
            j = i + 1 if i + 1 < end else start
            _add_edge(out, points[i, 0], points[i, 1], points[j, 0], points[j, 1], sign)
        start = end
    for y in range(rows):
        total = np.float32(0)
        for x in range(columns):
            total += out[y, x]
            area = min(abs(total), np.float32(1))
            out[y, x] = area if area > _ROUNDING else np.float32(0)
    return out


@compiled
def _add_edge(out: Plane, x0: Number, y0: Number, x1: Number, y1: Number, sign: Number) -> None:
    """Adds, for each row, the steps of the area right of an edge."""
    if y0 == y1:
        return
    if y0 > y1:
        x0, y0, x1, y1, sign = x1, y1, x0, y0, -sign
    slope = (x1 - x0) / (y1 - y0)
    columns = out.shape[1]
    for y in range(max(0, int(np.floor(y0))), min(out.shape[0], int(np.ceil(y1)))):
        top, bottom = max(y0, np.float32(y)), min(y1, np.float32(y + 1))
        a, b = x0 + slope * (top - y0), x0 + slope * (bottom - y0)
        left, right = min(a, b), max(a, b)
        height, before = sign * (bottom - top), np.float32(0)
        for x in range(max(0, int(np.floor(left))), min(columns, max(0, int(np.ceil(right))) + 1)):
            covered = _mean_ramp(x + 1, left, right) - _mean_ramp(x, left, right)
            out[y, x] += height * (covered - before)
            before = covered


@compiled
def _mean_ramp(x: Number, left: Number, right: Number) -> Number:
    """Mean of max(x - u, 0) for u uniform in [left, right]."""
    if x <= left:
        return np.float32(0)
    if x >= right:
        return np.float32(x - (left + right) / 2)
    return np.float32((x - left) ** 2 / (2 * (right - left)))


def soften(hard: Plane, contact: np.ndarray, direction: np.ndarray, sharp: float, soft: float) -> Plane:
    """Equation (2): sharp at the contact, soft at the far end; the blurs are a ratio apart, so that steps show nowhere.

    Args:
      hard: the form.
      contact: (x, y) in fractions of the side from the middle of the frame.
      direction: from the contact to the far end, the same units.
      sharp: sigma at the contact, in pixels.
      soft: sigma at the far end, in pixels.
    """
    lowest, highest = max(sharp, 0.4), max(soft, 0.4)
    if highest < 1.2 * lowest:
        return blur(hard, highest)
    levels = 4 if highest > 2.5 * lowest else 3
    sigmas = lowest * (highest / lowest) ** (np.arange(levels) / (levels - 1))
    stack = np.empty((levels, *hard.shape), np.float32)
    for level, sigma in enumerate(sigmas):
        blur(hard, float(sigma), stack[level])
    per_pixel = direction / max(float(direction @ direction), 1e-6) / fields.side(hard.shape)
    origin = (contact * fields.side(hard.shape) + np.array(hard.shape[::-1]) / 2 - 0.5) @ per_pixel
    places = ((sigmas - lowest) / (highest - lowest)).astype(np.float32)
    return _between(stack, places, np.float32(per_pixel[0]), np.float32(per_pixel[1]), np.float32(-origin))


@finite
def _between(stack: Stack, places: Float32[np.ndarray, "n"], along_x: Number, along_y: Number, start: Number) -> Plane:
    """Linear between blurs, each whole at its place along the shadow, from 0 to 1."""
    one, zero, levels = np.float32(1), np.float32(0), stack.shape[0]
    out = np.zeros_like(stack[0])
    for y in range(out.shape[0]):
        from_row = start + along_y * np.float32(y)
        for level in range(levels):
            own, blurred, row = places[level], stack[level, y], out[y]
            rise = one / (own - places[level - 1]) if level else zero
            fall = one / (places[level + 1] - own) if level + 1 < levels else zero
            for x in range(out.shape[1]):
                past = min(max(from_row + along_x * np.float32(np.int32(x)), zero), one) - own
                row[x] += blurred[x] * max(one + min(rise * past, -fall * past), zero)
    return out


def blur(plane: Plane, sigma: float, out: Plane | None = None) -> Plane:
    """Gaussian blur, sigma in pixels; from 2.6 on done on a smaller image, so that it costs no more than a narrow one."""
    factor = 2 ** int(np.log2(max(sigma / 1.3, 1)))
    h, w = plane.shape
    if factor == 1 or min(h, w) < 4 * factor:
        return _gaussian(plane, sigma, out)
    small = cv2.resize(plane, (-(-w // factor), -(-h // factor)), interpolation=cv2.INTER_AREA)
    left = float(np.sqrt(sigma**2 / factor**2 - RESAMPLING))
    return cv2.resize(_gaussian(small, left), (w, h), dst=out)


def _gaussian(plane: Plane, sigma: float, out: Plane | None = None) -> Plane:
    """To three sigma, where OpenCV by itself would go to four."""
    reach = (2 * int(np.ceil(3 * sigma)) + 1,) * 2
    return cv2.GaussianBlur(plane, reach, sigma, dst=out, borderType=cv2.BORDER_REPLICATE)


@finite
def bent(plane: Plane, relief: Plane, along_x: Number, along_y: Number) -> Plane:
    """Equation (3), `along` in pixels per unit of relief."""
    rows, columns = plane.shape
    out = np.empty(plane.shape, np.float32)
    for y in range(rows):
        for x in range(columns):
            u = min(max(np.float32(x) + relief[y, x] * along_x, np.float32(0)), np.float32(columns - 1))
            v = min(max(np.float32(y) + relief[y, x] * along_y, np.float32(0)), np.float32(rows - 1))
            i, j = np.uint32(v), np.uint32(u)  # unsigned: no test for places counted from the end
            a, b = v - np.float32(i), u - np.float32(j)
            below, right = min(i + np.uint32(1), np.uint32(rows - 1)), min(j + np.uint32(1), np.uint32(columns - 1))
            upper = plane[i, j] + b * (plane[i, right] - plane[i, j])
            lower = plane[below, j] + b * (plane[below, right] - plane[below, j])
            out[y, x] = upper + a * (lower - upper)
    return out


@finite
def shaded(
    radiance: Float32[np.ndarray, "h w c"],
    coverage: Stack,
    loss: Float32[np.ndarray, "n c"],
    strength: Plane,
) -> Float32[np.ndarray, "h w c"]:
    """x (1 - s sum_i m_i d_i): each light's matte takes that light's share."""
    h, w = radiance.shape[:2]
    out, one = np.empty((h, 3 * w), np.float32), np.float32(1)
    left, share = np.empty(3 * w, np.float32), np.empty(w, np.float32)
    for y in range(h):
        strengths, scene, seen = kernels.row(strength, y, w), radiance[y].reshape(-1), out[y]
        left[:] = one
        for n in range(len(coverage)):
            matte, (red, green, blue) = coverage[n, y], loss[n]
            for x in range(w):
                share[x] = strengths[x] * matte[x]
            for x in range(w):
                left[3 * x] -= share[x] * red
                left[3 * x + 1] -= share[x] * green
                left[3 * x + 2] -= share[x] * blue
        for k in range(3 * w):
            seen[k] = scene[k] * left[k]
    return out.reshape(h, w, 3)
