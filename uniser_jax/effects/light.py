"""Light: stored sRGB to linear and back, highlights brighter than the file could hold, colours of black bodies.

(1) E = ((S + 0.055) / 1.055)^2.4, or S / 12.92 below 0.04045         sRGB decoding (IEC 61966-2-1)
(2) B(l) = l^-5 / (exp(14388 / (l T)) - 1)                            Planck's law, l in micrometres, T in kelvin
(3) X, Y, Z = sum B(l) (x, y, z)(l)                                   CIE 1931, as Wyman, Sloan & Shirley 2013 fit its curves
"""

import functools

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from uniser_jax.effects import fields, kernels
from uniser_jax.effects.kernels import Curve

_ONES, _NONE, _STILL = np.ones(3, np.float32), np.zeros(0, np.float32), np.zeros((1, 1), np.float32)

_RAMP = 0.01  # of an image side: the edge over which highlights grow
_PALE = 0.1  # share of a photograph from which on its white is no lamp

WAVELENGTHS = np.array([0.610, 0.550, 0.465])  # of red, green and blue, micrometres
LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)  # of linear Rec. 709

_TO_RGB = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])  # IEC 61966-2-1
_OBSERVER = (  # x, y, z of (3): height, middle, and width below and above, in micrometres
    ((1.056, 0.5998, 0.0379, 0.0310), (0.362, 0.4420, 0.0160, 0.0267), (-0.065, 0.5011, 0.0204, 0.0262)),
    ((0.821, 0.5688, 0.0469, 0.0405), (0.286, 0.5309, 0.0163, 0.0311)),
    ((1.217, 0.4370, 0.0118, 0.0360), (0.681, 0.4590, 0.0260, 0.0138)),
)
_WHITE, _STEP, _COLOURS = 6_500.0, 10.0, 64  # of black bodies: what looks white, in kelvin; their distance, in mired
_COLDEST = 1e6 / _WHITE - 11 * _STEP  # mired; white is one of them


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
    return kernels.encode(np.ascontiguousarray(linear, np.float32), _ONES, srgb(), _NONE, 0, 0.0, 0.0, _STILL)


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
    gain = (2**stops - 1) * (_ONES if matrix is None else matrix.sum(1))
    kernels.lift(linear, photo, inside, gain.astype(np.float32))
    return linear


def black_body(kelvin: float) -> Float32[np.ndarray, "c"]:
    """Equations (2) and (3): the colour of a black body, linear RGB with green = 1, white at 6,500 kelvin.

    sRGB has no blue for those below 2,000 kelvin: none falls below 0.02. Those beyond 1,500 and 22,800 are as at these.
    """
    place = min(max((1e6 / kelvin - _COLDEST) / _STEP, 0.0), _COLOURS - 1.001)
    k = int(place)
    colours = _black_bodies()
    return colours[k] + np.float32(place - k) * (colours[k + 1] - colours[k])


@functools.cache
def _black_bodies() -> Float32[np.ndarray, "n c"]:
    """Of temperatures even in mired, as eyes are."""
    return np.stack([_planck(1e6 / (_COLDEST + _STEP * k)) for k in range(_COLOURS)])


def _planck(kelvin: float) -> Float32[np.ndarray, "c"]:
    colours = [_TO_RGB @ _xyz(t) for t in (kelvin, _WHITE)]
    ratio = colours[0] / colours[1]
    return np.maximum(ratio / ratio[1], 0.02).astype(np.float32)


def _xyz(kelvin: float) -> Float64[np.ndarray, "3"]:
    """Equation (3)."""
    wave = np.arange(0.380, 0.781, 0.001)
    spectrum = wave**-5 / np.expm1(14_388 / (wave * kelvin))
    return np.array([sum(_lobe(wave, *lobe) for lobe in lobes) @ spectrum for lobes in _OBSERVER])


def _lobe(
    wave: Float64[np.ndarray, "n"], height: float, middle: float, below: float, above: float
) -> Float64[np.ndarray, "n"]:
    """A Gaussian with a width on either side."""
    return height * np.exp(-0.5 * ((wave - middle) / np.where(wave < middle, below, above)) ** 2)
