"""Stored levels, of 8 or 16 bits, to linear light and to the network's range, and back.

(1) E = ((S + 0.055) / 1.055)^2.4, or S / 12.92 below 0.04045, S = level / full      sRGB decoding (IEC 61966-2-1)
(2) x = 2 S - 1                                                                     what the network sees
"""

import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, Shaped

from uniser_jax.effects import light

Pixels = Shaped[np.ndarray, "h w c"]  # uint8 or uint16
_STRIP = 2**20  # pixels


def full(dtype: np.dtype) -> int:
    """The level of white.

    Raises:
      ValueError: for anything but uint8 and uint16.
    """
    if dtype not in (np.uint8, np.uint16):
        raise ValueError(f"pixels of type {dtype}: expected uint8 or uint16")
    return int(np.iinfo(dtype).max)


def decode(pixels: Pixels) -> Float32[np.ndarray, "h w c"]:
    """Equation (1): stored levels to linear light in [0, 1]."""
    if pixels.dtype == np.uint8:
        return light.decode(pixels)
    return _decoded_16()[pixels]


def encode(linear: Float32[np.ndarray, "h w c"], dtype: np.dtype) -> Pixels:
    """The inverse of (1): clips to [0, 1], encodes and rounds; `encode(decode(x), x.dtype) == x`."""
    if dtype == np.uint8:
        return light.encode(linear)
    return np.round(_compress(np.clip(linear, 0, 1)) * full(dtype)).astype(dtype)


def to_signal(linear: Float32[np.ndarray, "h w c"]) -> Float32[np.ndarray, "h w c"]:
    """Linear light to (2), in [-1, 1]."""
    return 2 * _compress(np.clip(linear, 0, 1)) - 1


def from_signal(signal: Float32[np.ndarray, "h w c"]) -> Float32[np.ndarray, "h w c"]:
    """(2), clipped to [-1, 1], to linear light in [0, 1]."""
    return light.expand(np.clip((signal + 1) / 2, 0, 1)).astype(np.float32, copy=False)


def _compress(linear: np.ndarray) -> np.ndarray:
    stored = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return stored.astype(np.float32, copy=False)


@functools.cache
def _decoded_16() -> Float32[np.ndarray, "65536"]:
    return light.expand(np.arange(65_536) / 65_535).astype(np.float32)


def strips(shape: tuple[int, ...]) -> Iterator[slice]:
    """Rows of a photograph, as many at a time as make a million pixels."""
    height = max(1, _STRIP // shape[1])
    return (slice(start, min(start + height, shape[0])) for start in range(0, shape[0], height))
