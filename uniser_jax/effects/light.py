"""Light: stored sRGB to linear and back, highlights brighter than the file could hold, colours of black bodies.

(1) E = ((S + 0.055) / 1.055)^2.4, or S / 12.92 below 0.04045         sRGB decoding (IEC 61966-2-1)
(2) B(l) = l^-5 / (exp(14388 / (l T)) - 1)                            Planck's law, l in micrometres, T in kelvin
"""

import functools

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from uniser_jax.effects import fields, kernels
from uniser_jax.effects.kernels import Curve

_WHITE, _NONE, _STILL = np.ones(3, np.float32), np.zeros(0, np.float32), np.zeros((1, 1), np.float32)

_RAMP = 0.01  # of an image side: the edge over which highlights grow
_PALE = 0.1  # share of a photograph from which on its white is no lamp

WAVELENGTHS = np.array([0.610, 0.550, 0.465])  # of red, green and blue, micrometres
LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)  # of linear Rec. 709


def to_curve(halves: Float64[np.ndarray, "255"]) -> Curve:
    """The curve whose levels k and k + 1 meet at the linear light halves[k], ascending in (0, 1): exact in float32.

    A bin holds the end of one level at most; only where levels are closer than a 2^15th of their light is one passed over.
    """
    ends = np.maximum(halves, kernels.DARKEST).astype(np.float32).view(np.uint32)
    cut = 16
    while cut > 8 and (np.diff(ends >> cut) == 0).any():
        cut -= 1
    bin_of_end = (ends >> cut) - (kernels.DARKEST.view(np.uint32) >> cut)
    level = np.searchsorted(bin_of_end, np.arange((kernels.OCTAVES << 23 - cut) + 1))
    end = np.full(len(level), 2**cut - 1)
    end[bin_of_end] = ends & (2**cut - 1)
    return (end << 8 | level).astype(np.uint32)


def expand(stored: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """Equation (1)."""
    return np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)


@functools.cache
def srgb() -> Curve:
    """The inverse of (1), rounded to 8 bits."""
    return to_curve(expand((np.arange(255) + 0.5) / 255))


@functools.cache
def _decoded() -> Float32[np.ndarray, "256"]:
    return expand(np.arange(256) / 255).astype(np.float32)


def decode(srgb: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Equation (1): stored values to linear light in [0, 1]."""
    return _decoded()[srgb] if srgb.ndim == 1 else cv2.LUT(srgb, _decoded()).reshape(srgb.shape)


def encode(linear: Float32[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
    """The inverse of (1): clips to [0, 1], encodes and rounds, exactly; `encode(decode(x)) == x`."""
    return kernels.encode(np.ascontiguousarray(linear, np.float32), _WHITE, srgb(), _NONE, 0, 0.0, 0.0, _STILL)


def luminance(linear: Float32[np.ndarray, "h w c"]) -> Float32[np.ndarray, "h w"]:
    """Relative luminance, linear."""
    return cv2.transform(linear, LUMINANCE[None])


def expand_highlights(
    photo: UInt8[np.ndarray, "h w c"], stops: float, matrix: Float32[np.ndarray, "c c"] | None = None
) -> Float32[np.ndarray, "h w c"]:
    """Decodes a photograph and gives its clipped highlights back some of the light that the file could not hold.

    Only pixels that are clipped in every channel grow, most in the middle of a clipped area, so that encoding the result
    gives the photograph back bit for bit. (Channels clipped alone would turn into false colours under a shadow.)

    Args:
      photo: stored values.
      stops: how much brighter than white the brightest becomes, in powers of two, where little is white. Where much is, as of
        snow, paper and sky, it is hardly brighter than white, and is not lifted: any shadow would show its grain.
      matrix: mixes the channels afterwards, for other colours; nothing falls below 0. None leaves them.
    """
    photo = np.ascontiguousarray(photo)
    if matrix is None:
        linear, white = decode(photo), stops > 0
    else:
        linear, white = kernels.decode(photo, _decoded(), matrix.astype(np.float32))
    if stops <= 0 or not white:
        return linear
    sigma = _RAMP * fields.side(photo.shape[:2])
    n = max(1, int(sigma / 1.25))  # so soft a mask is as good on cells of n pixels
    share = kernels.white_share(photo, n)
    stops *= max(0.0, 1 - float(share.mean()) / _PALE)
    inside = fields.widen(fields.blur(share, sigma / n), photo.shape)
    gain = (2**stops - 1) * (_WHITE if matrix is None else matrix.sum(1))
    kernels.lift(linear, photo, inside, gain.astype(np.float32))
    return linear


def black_body(kelvin: float, white: float = 6_500.0) -> Float32[np.ndarray, "c"]:
    """Equation (2): the colour of a black body, linear RGB with green = 1, white at `white` kelvin."""
    exponents = 14_388 / WAVELENGTHS
    ratio = np.expm1(exponents / white) / np.expm1(exponents / kelvin)  # l^-5 cancels
    return (ratio / ratio[1]).astype(np.float32)
