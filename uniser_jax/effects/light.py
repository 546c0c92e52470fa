"""Light: stored sRGB to linear and back, highlights brighter than the file could hold, and the sensor.

(1) E = ((S + 0.055) / 1.055)^2.4, or S / 12.92 below 0.04045         sRGB decoding (IEC 61966-2-1)
(2) sigma^2 = shot * E + read^2                                       noise of a sensor (Foi et al. 2008)
(3) B(l) = l^-5 / (exp(14388 / (l T)) - 1)                            Planck's law, l in micrometres, T in kelvin
"""

import dataclasses
from typing import Self

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

_LEVELS = np.arange(256, dtype=np.float64) / 255
_EXACT = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4)
_DECODED = _EXACT.astype(np.float32)
# Encoding rounds in sRGB: a level ends where the decoded half level lies. Indexed by level; the last never ends.
_HALVES = (np.arange(255) + 0.5) / 255
_ENDS = np.append(np.where(_HALVES <= 0.04045, _HALVES / 12.92, ((_HALVES + 0.055) / 1.055) ** 2.4), 2.0)
_ENDS = _ENDS.astype(np.float32)
_BINS = 16_384  # narrower than any level, so a bin holds the end of at most one
_LOWEST = np.searchsorted(_ENDS[:-1], np.arange(_BINS + 1) / _BINS - 1e-6).astype(np.uint8)

WAVELENGTHS = np.array([0.610, 0.550, 0.465])  # of red, green and blue, micrometres
LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)  # of linear Rec. 709


def decode(srgb: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Equation (1): stored values to linear light in [0, 1]."""
    return _DECODED[srgb] if srgb.ndim == 1 else cv2.LUT(srgb, _DECODED).reshape(srgb.shape)


def encode(linear: Float32[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """The inverse of (1): clips to [0, 1], encodes and rounds, exactly; `encode(decode(x)) == x`."""
    clipped = np.clip(linear, 0, 1).astype(np.float32, copy=False)
    level = _LOWEST[(clipped * _BINS).astype(np.int32)]
    return level + (clipped > _ENDS[level])


def luminance(linear: Float32[np.ndarray, "h w c"]) -> Float32[np.ndarray, "h w"]:
    """Relative luminance, linear."""
    return cv2.transform(linear, LUMINANCE[None])


def expand_highlights(linear: Float32[np.ndarray, "h w c"], stops: float) -> Float32[np.ndarray, "h w c"]:
    """Gives clipped highlights back some of the light that the file could not hold.

    Only pixels that are clipped in every channel grow, most in the middle of a clipped area, so that encoding the result
    gives the photograph back bit for bit. (Channels clipped alone would turn into false colours under a shadow.)

    Args:
      linear: decoded photograph in [0, 1].
      stops: how much brighter than white the brightest becomes, in powers of two.
    """
    clipped = (linear.min(-1) >= 1).astype(np.float32)
    if stops <= 0 or not clipped.any():
        return linear
    sigma = 0.01 * np.sqrt(linear.shape[0] * linear.shape[1])
    inside = cv2.GaussianBlur(clipped, (0, 0), sigma)
    return linear + (clipped * inside**2 * np.float32(2**stops - 1))[..., None]


def black_body(kelvin: float, white: float = 6_500.0) -> Float32[np.ndarray, "c"]:
    """Equation (3): the colour of a black body, linear RGB with green = 1, white at `white` kelvin."""

    def planck(temperature: float) -> np.ndarray:
        return WAVELENGTHS**-5 / np.expm1(14_388 / (WAVELENGTHS * temperature))

    ratio = planck(kelvin) / planck(white)
    return (ratio / ratio[1]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Sensor:
    """What turns light into a file: noise, clipping, tone curve, 8 bit.

    Args:
      shot: variance per unit of light, in units of full scale.
      read: standard deviation in the dark, in units of full scale.
      seed: of the noise; the same seed and shape give the same realisation.
    """

    shot: float = 0.0
    read: float = 0.0
    seed: int = 0

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Self:
        """From nearly clean to a phone at dusk."""
        shot, read = 10 ** rng.uniform(-5, -3), 10 ** rng.uniform(-3.7, -2.5)
        return cls(float(shot), float(read), int(rng.integers(2**31)))

    def expose(
        self, radiance: Float32[np.ndarray, "h w c"], noise_scale: Float32[np.ndarray, "h w"] | float = 1.0
    ) -> UInt8[np.ndarray, "h w c"]:
        """The file a camera writes of this light: (2), then clip, encode, round.

        Args:
          radiance: linear light, white at 1; may exceed it.
          noise_scale: what remains of the noise, per pixel; 0 is a noise-free file.
        """
        if not (self.shot or self.read):
            return encode(radiance)
        noise = np.random.default_rng(self.seed).standard_normal(radiance.shape, np.float32)
        sigma = np.sqrt(np.float32(self.shot) * np.clip(radiance, 0, 1) + np.float32(self.read**2))
        scale = noise_scale[..., None] if isinstance(noise_scale, np.ndarray) else np.float32(noise_scale)
        return encode(radiance + scale * sigma * noise)
