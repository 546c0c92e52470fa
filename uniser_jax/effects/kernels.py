"""Inner loops over pixels, compiled by numba: one pass over memory, without Python's lock, so that threads run side by side.

Arrays may be broadcast views (`np.broadcast_to`): a constant then costs no memory. Results are new arrays, float32 or uint8.
Compiled code is cached on disk beside this file, or in numba's user cache where that cannot be written.
"""

import numba
import numpy as np
from jaxtyping import Float32, Int16, UInt8

Image = Float32[np.ndarray, "h w c"]
Plane = Float32[np.ndarray, "h w"]

_compiled = numba.njit(nogil=True, cache=True, error_model="numpy")
_ONE, _ZERO = np.float32(1), np.float32(0)


@_compiled
def linear(radiance: Image, transmission: Image, emission: Image, strength: Plane) -> Image:
    """x (1 - s (1 - T)) + s C: a layer whose strength obeys equation (3) of `layer`."""
    out = np.empty(radiance.shape, np.float32)
    for i in range(radiance.shape[0]):
        for j in range(radiance.shape[1]):
            s = strength[i, j]
            for c in range(3):
                out[i, j, c] = radiance[i, j, c] * (_ONE - s * (_ONE - transmission[i, j, c])) + s * emission[i, j, c]
    return out


@_compiled
def all_white(stored: UInt8[np.ndarray, "h w c"]) -> Plane:
    """1 where every channel of a stored image is 255, else 0."""
    out = np.empty(stored.shape[:2], np.float32)
    for i in range(stored.shape[0]):
        for j in range(stored.shape[1]):
            out[i, j] = (stored[i, j, 0] & stored[i, j, 1] & stored[i, j, 2]) == 255
    return out


@_compiled
def lift(radiance: Image, stored: UInt8[np.ndarray, "h w c"], inside: Plane, gain: Float32[np.ndarray, "c"]) -> None:
    """Adds gain max(2 inside - 1, 0)^2 where all channels are 255, in place.

    `inside` is their blurred share: 1/2 at a straight edge, where nothing is added; a step would show under any shadow.
    """
    for i in range(stored.shape[0]):
        for j in range(stored.shape[1]):
            if (stored[i, j, 0] & stored[i, j, 1] & stored[i, j, 2]) == 255 and inside[i, j] > np.float32(0.5):
                share = np.float32(2) * inside[i, j] - _ONE
                for c in range(3):
                    radiance[i, j, c] += gain[c] * share * share


@_compiled
def encode(
    radiance: Image,
    gain: Float32[np.ndarray, "c"],
    levels: Int16[np.ndarray, "n"],
    ends: Float32[np.ndarray, "256"],
    normal: Float32[np.ndarray, "m"],
    offset: int,
    shot: float,
    read: float,
    scale: Plane,
) -> UInt8[np.ndarray, "h w c"]:
    """The level of gain x + k sigma e, sigma^2 = shot * clip(gain x) + read^2, of a contiguous image.

    A row at a time, values first: flat loops without look-ups are vectorised. Indices are unsigned, because numba lets signed
    ones count from the end, and pays for it.

    Args:
      radiance: x.
      gain: of each channel.
      levels: see `light.Curve`.
      ends: see `light.Curve`.
      normal: e, a table of normal numbers longer than a row; empty for no noise.
      offset: into the table.
      shot: see above.
      read: see above.
      scale: k of each pixel.
    """
    height, width = radiance.shape[0], 3 * radiance.shape[1]
    out = np.empty(radiance.shape, np.uint8)
    gains, values, bins = _repeated(gain, width), np.empty(width, np.float32), np.empty(width, np.uint32)
    spread, variance, slope = np.empty(width, np.float32), np.float32(read * read), np.float32(shot)
    count = np.float32(len(levels) - 1)
    for i in range(height):
        row, stored = radiance[i].reshape(-1), out[i].reshape(-1)
        for j in range(width):
            values[j] = row[j] * gains[j]
        if len(normal):
            start = (offset + i * width) % (len(normal) - width)
            noise = normal[start : start + width]
            for j in range(radiance.shape[1]):
                spread[3 * j] = spread[3 * j + 1] = spread[3 * j + 2] = scale[i, j]
            for j in range(width):
                sigma = np.sqrt(slope * min(max(values[j], _ZERO), _ONE) + variance)
                values[j] += spread[j] * sigma * noise[j]
        for j in range(width):
            values[j] = min(max(values[j], _ZERO), _ONE)
            bins[j] = np.uint32(np.int32(values[j] * count))
        for j in range(width):
            level = levels[bins[j]]
            if level < 0:
                level = -level - 1
                while values[j] > ends[np.uint8(level)]:
                    level += 1
            stored[j] = np.uint8(level)
    return out


@_compiled
def decode(
    stored: UInt8[np.ndarray, "h w c"], table: Float32[np.ndarray, "256"], matrix: Float32[np.ndarray, "c c"]
) -> tuple[Image, bool]:
    """matrix * table[stored], nothing below 0, and whether any pixel is white in every channel."""
    out, white = np.empty(stored.shape, np.float32), False
    m00, m01, m02 = matrix[0]
    m10, m11, m12 = matrix[1]
    m20, m21, m22 = matrix[2]
    for i in range(stored.shape[0]):
        for j in range(stored.shape[1]):
            r, g, b = stored[i, j, 0], stored[i, j, 1], stored[i, j, 2]
            white |= (r & g & b) == 255
            x, y, z = table[r], table[g], table[b]
            out[i, j, 0] = max(m00 * x + m01 * y + m02 * z, _ZERO)
            out[i, j, 1] = max(m10 * x + m11 * y + m12 * z, _ZERO)
            out[i, j, 2] = max(m20 * x + m21 * y + m22 * z, _ZERO)
    return out, white


@_compiled
def _repeated(gain: Float32[np.ndarray, "c"], width: int) -> Float32[np.ndarray, "w"]:
    out = np.empty(width, np.float32)
    for j in range(width):
        out[j] = gain[j % 3]
    return out
