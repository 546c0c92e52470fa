"""The sensor and what the camera makes of it: exposure, white balance, noise, clipping, tone curve, 8 bit, JPEG.

  (1) E' = g_c E                                              exposure and white balance
  (2) sigma^2 = shot * E' + read^2                            noise (Foi et al. 2008)
  (3) S = gain_g(bias_b(sRGB(clip(E' + sigma e))))            tone curve
  (4) bias_b(x) = x / ((1/b - 2) (1 - x) + 1)                 Schlick 1994; bias_(1-b) is its inverse
      gain_g(x) = bias_(1-g)(2 x) / 2 below 1/2, 1 - gain_g(1 - x) above; gain_(1-g) is its inverse

Input and target pass the same camera. Noise comes after the effects: a hazy photograph has fresh noise on an attenuated signal.
"""

import dataclasses
import functools
from typing import Self

import numpy as np
import simplejpeg
from jaxtyping import Float32, Float64, UInt8

from uniser_jax.effects import kernels, light
from uniser_jax.effects.layer import per_pixel

SHOT, READ, QUALITY = (1e-5, 1e-3), (10**-3.7, 10**-2.5), (60, 98)  # lowest and highest of draws

_NORMALS = 2**21  # of the noise table; more than the values of a 512 px photograph, so that none repeats within one


@dataclasses.dataclass(frozen=True)
class Sensor:
    """One camera's settings; the default is ideal.

    Args:
      shot: variance per unit of light, in units of full scale.
      read: standard deviation in the dark, in units of full scale.
      exposure: in stops.
      balance: gains of red and blue against green, in stops.
      bias: b of (4), 0.5 is straight; above it midtones are lighter.
      gain: g of (4), 0.5 is straight; above it contrast is lower in the midtones.
      jpeg: quality, 1 to 100; 0 stores without loss.
      seed: of the noise; the same seed and shape give the same realisation.
    """

    shot: float = 0.0
    read: float = 0.0
    exposure: float = 0.0
    balance: tuple[float, float] = (0.0, 0.0)
    bias: float = 0.5
    gain: float = 0.5
    jpeg: int = 0
    seed: int = 0

    @classmethod
    def sample(
        cls,
        rng: np.random.Generator,
        noise: float = 1.0,
        tone: float = 1.0,
        jpeg: float = 1.0,
        shot: tuple[float, ...] = SHOT,
        read: tuple[float, ...] = READ,
        quality: tuple[int, ...] = QUALITY,
    ) -> Self:
        """Draws a camera.

        Args:
          rng: source of every draw.
          noise: probability of noise; by default from nearly none to a phone at dusk.
          tone: probability of another exposure, white balance and tone curve than the photograph's own.
          jpeg: probability of JPEG compression.
          shot: lowest and highest variance per unit of light, even on a logarithmic scale.
          read: of the standard deviation in the dark, the same.
          quality: of JPEG compression, even.
        """
        per_light, in_dark = (10 ** rng.uniform(*np.log10(bounds)) for bounds in (shot, read))
        exposure, (red, blue) = rng.uniform(-0.7, 0.3), rng.uniform(-0.15, 0.15, 2)
        bias, gain = rng.uniform(0.42, 0.58), rng.uniform(0.42, 0.58)
        level = int(rng.integers(quality[0], quality[1] + 1))
        noisy, toned, lossy = rng.random(3) < (noise, tone, jpeg)
        seed = int(rng.integers(2**31))
        return cls(
            shot=float(per_light) if noisy else 0.0,
            read=float(in_dark) if noisy else 0.0,
            exposure=float(exposure) if toned else 0.0,
            balance=(float(red), float(blue)) if toned else (0.0, 0.0),
            bias=float(bias) if toned else 0.5,
            gain=float(gain) if toned else 0.5,
            jpeg=level if lossy else 0,
            seed=seed,
        )

    def expose(
        self, radiance: Float32[np.ndarray, "h w c"], noise_scale: Float32[np.ndarray, "h w"] | float = 1.0
    ) -> UInt8[np.ndarray, "h w c"]:
        """The file a camera writes of this light.

        Args:
          radiance: linear light, white at 1; may exceed it.
          noise_scale: what remains of the noise, per pixel; 0 is a noise-free file.

        Raises:
          ValueError: for noise on a picture of more than half a million columns.
        """
        curve = light.srgb() if self.bias == self.gain == 0.5 else tone_curve(self.bias, self.gain)
        noisy = (self.shot or self.read) and (isinstance(noise_scale, np.ndarray) or noise_scale > 0)
        if noisy and radiance[0].size >= _NORMALS:
            raise ValueError(
                f"{radiance.shape[1]} px wide: expected less than {_NORMALS // 3}, what there is noise for"
            )
        stored = kernels.encode(
            np.ascontiguousarray(radiance, np.float32),
            self.gains(),
            curve,
            normal=_normals() if noisy else _normals()[:0],
            offset=self.seed,
            shot=self.shot,
            read=self.read,
            scale=per_pixel(noise_scale),
        )
        return _compressed(stored, self.jpeg) if self.jpeg else stored

    def gains(self) -> Float32[np.ndarray, "c"]:
        """g of equation (1)."""
        red, blue = self.balance
        return np.exp2(np.array([self.exposure + red, self.exposure, self.exposure + blue])).astype(np.float32)


@functools.lru_cache(maxsize=8)  # input and target share it
def tone_curve(bias: float, gain: float) -> kernels.Curve:
    """Equation (3) behind the clipping, as a table."""
    halves = (np.arange(255) + 0.5) / 255
    return light.to_curve(light.expand(schlick_bias(schlick_gain(halves, 1 - gain), 1 - bias)))


def schlick_bias(x: Float64[np.ndarray, "n"], b: float) -> Float64[np.ndarray, "n"]:
    """Equation (4), x in [0, 1]."""
    return x / ((1 / b - 2) * (1 - x) + 1)


def schlick_gain(x: Float64[np.ndarray, "n"], g: float) -> Float64[np.ndarray, "n"]:
    """Equation (4), x in [0, 1]."""
    half = schlick_bias(np.minimum(x, 1 - x) * 2, 1 - g) / 2
    return np.where(x < 0.5, half, 1 - half)


@functools.cache
def _normals() -> Float32[np.ndarray, "n"]:
    return np.random.default_rng(0).standard_normal(_NORMALS, np.float32)


def _compressed(stored: UInt8[np.ndarray, "h w c"], quality: int) -> UInt8[np.ndarray, "h w c"]:
    return simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(stored, quality, "RGB", "420"), "RGB")
