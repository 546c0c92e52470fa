"""Inner loops over pixels, compiled by numba: one pass over memory, without Python's lock, so that threads run side by side.

Loops over contiguous rows are vectorised, those over broadcast views are not; nor are min and max, which numba makes mind NaN.
Results are new arrays, float32 or uint8.
"""

import numpy as np
from jaxtyping import Float32, UInt8, UInt32

from uniser_jax.effects.compiled import compiled

Image = Float32[np.ndarray, "h w c"]
Plane = Float32[np.ndarray, "h w"]
# From light in [DARKEST, 1] to a stored level. A bin is what shares the leading bits of its float32, n in all octaves and white
# one more. Of each the lowest level in 8 bits, and above them the other bits of the light at which that ends.
Curve = UInt32[np.ndarray, "n+1"]

DARKEST = np.float32(2**-16)
OCTAVES = 16  # from there to white

_ONE, _ZERO = np.float32(1), np.float32(0)
_BITS_OF_ONE = np.uint32(0x3F800000)


@compiled
def linear(radiance: Image, transmission: Image, emission: Image, strength: Plane) -> Image:
    """x (1 - s (1 - T)) + s C: a layer whose strength obeys equation (3) of `layer`; T and C may be broadcast views."""
    out = np.empty(radiance.shape, np.float32)
    for i in range(radiance.shape[0]):
        strengths = row(strength, i, radiance.shape[1])
        for j in range(radiance.shape[1]):
            s = strengths[j]
            for c in range(3):
                out[i, j, c] = radiance[i, j, c] * (_ONE - s * (_ONE - transmission[i, j, c])) + s * emission[i, j, c]
    return out


@compiled
def row(strength: Plane, i: int, width: int) -> Float32[np.ndarray, "w"]:
    """Row i of strengths, or their only number in each place."""
    return np.full(width, strength[0, 0]) if strength.size == 1 else strength[i]


@compiled
def per_value(strength: Plane, i: int, out: Float32[np.ndarray, "3*w"]) -> None:
    """The same for each channel."""
    if strength.size == 1:
        out[:] = strength[0, 0]
    else:
        for j in range(strength.shape[1]):
            out[3 * j] = out[3 * j + 1] = out[3 * j + 2] = strength[i, j]


@compiled
def between_rows(i: int, h: int, rows: int) -> tuple[int, int, np.float32]:
    """Where row i of h lies among fewer rows, as cv2.resize has it: row above, row below, share of the latter."""
    y = max((i + 0.5) * rows / h - 0.5, 0.0)
    above = min(int(y), rows - 1)
    return above, min(above + 1, rows - 1), np.float32(y - above)


@compiled
def white_share(stored: UInt8[np.ndarray, "h w c"], n: int) -> Plane:
    """How much of each square of n pixels is 255 in every channel; the last row and column may be cut."""
    h, w = stored.shape[:2]
    rows, columns = (h + n - 1) // n, (w + n - 1) // n
    out, count = np.empty((rows, columns), np.float32), np.empty(w, np.int32)
    for i in range(rows):
        high = min(n, h - i * n)
        count[:] = 0
        for k in range(i * n, i * n + high):
            codes = stored[k].reshape(-1)
            for j in range(w):
                count[j] += (codes[3 * j] & codes[3 * j + 1] & codes[3 * j + 2]) == 255
        for j in range(columns):
            wide = min(n, w - j * n)
            out[i, j] = count[j * n : j * n + wide].sum() / np.float32(high * wide)
    return out


@compiled
def lift(radiance: Image, stored: UInt8[np.ndarray, "h w c"], inside: Plane, gain: Float32[np.ndarray, "c"]) -> None:
    """Adds gain max(2 inside - 1, 0)^2 where all channels are 255, in place; rows of `inside` are interpolated.

    `inside` is their blurred share: 1/2 at a straight edge, where nothing is added; a step would show under any shadow.
    """
    h = len(stored)
    half, two = np.float32(0.5), np.float32(2)
    grows = np.zeros(len(inside), np.bool_)
    for k in range(len(inside)):
        for j in range(inside.shape[1]):
            grows[k] |= inside[k, j] > half
    for i in range(h):
        k, below, a = between_rows(i, h, len(inside))
        if not (grows[k] or grows[below]):
            continue
        for j in range(stored.shape[1]):
            share = inside[k, j] + a * (inside[below, j] - inside[k, j])
            if share > half and (stored[i, j, 0] & stored[i, j, 1] & stored[i, j, 2]) == 255:
                share = two * share - _ONE
                for c in range(3):
                    radiance[i, j, c] += gain[c] * share * share


@compiled
def encode(
    radiance: Image,
    gain: Float32[np.ndarray, "c"],
    curve: Curve,
    normal: Float32[np.ndarray, "m"],
    offset: int,
    shot: float,
    read: float,
    scale: Plane,
) -> UInt8[np.ndarray, "h w c"]:
    """The level of gain x + k sigma e, sigma^2 = shot * clip(gain x) + read^2, of a contiguous image.

    A row at a time, values first: flat loops without look-ups are vectorised, and the one look-up has no branch; curve and
    rows stay in the nearest cache. Indices are unsigned, because numba lets signed ones count from the end, and pays for it.

    Args:
      radiance: x.
      gain: of each channel.
      curve: from light to levels.
      normal: e, a table of normal numbers longer than a row; empty for no noise.
      offset: into the table.
      shot: see above.
      read: see above.
      scale: k of each pixel, or of all.
    """
    height, width = radiance.shape[0], 3 * radiance.shape[1]
    out = np.empty(radiance.shape, np.uint8)
    gains, values, spread = _repeated(gain, width), np.empty(width, np.float32), np.empty(width, np.float32)
    bits, entries = values.view(np.uint32), np.empty(width, np.uint32)
    variance, slope = np.float32(read * read), np.float32(shot)
    cut = np.uint32(23 + np.log2(OCTAVES / (len(curve) - 1)))  # of 23 bits of a float32, those within a bin
    first, within = (_BITS_OF_ONE >> cut) - np.uint32(len(curve) - 1), (np.uint32(1) << cut) - np.uint32(1)
    for i in range(height):
        light, stored = radiance[i].reshape(-1), out[i].reshape(-1)
        if len(normal):
            start = (offset + i * width) % (len(normal) - width)
            noise = normal[start : start + width]
            per_value(scale, i, spread)
            for j in range(width):
                x = light[j] * gains[j]
                x += spread[j] * np.sqrt(slope * _clipped(x, _ZERO) + variance) * noise[j]
                values[j] = _clipped(x, DARKEST)
        else:
            for j in range(width):
                values[j] = _clipped(light[j] * gains[j], DARKEST)
        for j in range(width):
            entries[j] = curve[(bits[j] >> cut) - first]
        for j in range(width):
            ended = (bits[j] & within) > (entries[j] >> np.uint32(8))
            stored[j] = np.uint8((entries[j] & np.uint32(255)) + np.uint32(ended))
    return out


@compiled
def _clipped(x: np.float32, lowest: np.float32) -> np.float32:
    """To [lowest, 1]; NaN to the lowest."""
    x = x if x > lowest else lowest
    return x if x < _ONE else _ONE


@compiled
def decode(
    stored: UInt8[np.ndarray, "h w c"], table: Float32[np.ndarray, "256"], matrix: Float32[np.ndarray, "c c"]
) -> tuple[Image, bool]:
    """matrix * table[stored], nothing below 0, and whether any pixel is white in every channel."""
    h, w = stored.shape[:2]
    out, values, white = np.empty((h, 3 * w), np.float32), np.empty(3 * w, np.float32), False
    m00, m01, m02 = matrix[0]
    m10, m11, m12 = matrix[1]
    m20, m21, m22 = matrix[2]
    for i in range(h):
        codes, mixed = stored[i].reshape(-1), out[i]
        for n in range(3 * w):
            values[n] = table[codes[n]]
        for j in range(w):
            x, y, z = values[3 * j], values[3 * j + 1], values[3 * j + 2]
            red, green, blue = m00 * x + m01 * y + m02 * z, m10 * x + m11 * y + m12 * z, m20 * x + m21 * y + m22 * z
            mixed[3 * j] = red if red > _ZERO else _ZERO
            mixed[3 * j + 1] = green if green > _ZERO else _ZERO
            mixed[3 * j + 2] = blue if blue > _ZERO else _ZERO
        for j in range(w):
            white |= (codes[3 * j] & codes[3 * j + 1] & codes[3 * j + 2]) == 255
    return out.reshape(h, w, 3), white


@compiled
def _repeated(gain: Float32[np.ndarray, "c"], width: int) -> Float32[np.ndarray, "w"]:
    out = np.empty(width, np.float32)
    for j in range(width):
        out[j] = gain[j % 3]
    return out
