"""Inner loops over pixels, compiled by numba: one pass over memory, without Python's lock, so that threads run side by side.

Arrays may be broadcast views (`np.broadcast_to`): a constant then costs no memory. Results are new arrays, float32 or uint8.
Compiled code is cached on disk beside this file, or in numba's user cache where that cannot be written.
"""

import numba
import numpy as np
from jaxtyping import Bool, Float32, UInt8

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
def all_white(stored: UInt8[np.ndarray, "h w c"]) -> Bool[np.ndarray, "h w"]:
    """Where every channel of a stored image is 255."""
    out = np.empty(stored.shape[:2], np.bool_)
    for i in range(stored.shape[0]):
        for j in range(stored.shape[1]):
            out[i, j] = stored[i, j, 0] == 255 and stored[i, j, 1] == 255 and stored[i, j, 2] == 255
    return out


@_compiled
def encode(
    radiance: Image,
    gain: Float32[np.ndarray, "c"],
    lowest: UInt8[np.ndarray, "n"],
    ends: Float32[np.ndarray, "256"],
) -> UInt8[np.ndarray, "h w c"]:
    """The level of each value times its channel's gain; see `light.Curve` for the tables."""
    bins = np.float32(len(lowest) - 1)
    out = np.empty(radiance.shape, np.uint8)
    for i in range(radiance.shape[0]):
        for j in range(radiance.shape[1]):
            for c in range(3):
                value = min(max(radiance[i, j, c] * gain[c], _ZERO), _ONE)
                level = lowest[np.int32(value * bins)]
                while value > ends[level]:
                    level += np.uint8(1)
                out[i, j, c] = level
    return out


@_compiled
def with_noise(
    radiance: Image,
    gain: Float32[np.ndarray, "c"],
    normal: Float32[np.ndarray, "n"],
    offset: int,
    shot: float,
    read: float,
    scale: Plane,
) -> Image:
    """gain x + k sigma e, sigma^2 = shot * clip(gain x) + read^2, e from a table of normal numbers that is read in a ring."""
    out = np.empty(radiance.shape, np.float32)
    variance, slope = np.float32(read * read), np.float32(shot)
    place = offset % len(normal)
    for i in range(radiance.shape[0]):
        for j in range(radiance.shape[1]):
            k = scale[i, j]
            for c in range(3):
                value = radiance[i, j, c] * gain[c]
                sigma = np.sqrt(slope * min(max(value, _ZERO), _ONE) + variance)
                out[i, j, c] = value + k * sigma * normal[place]
                place += 1
                if place == len(normal):
                    place = 0
    return out
