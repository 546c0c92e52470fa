"""Haze: light is scattered out of the line of sight, and daylight into it.

(1) seen = J exp(-tau) + A (1 - exp(-tau))                        Koschmieder 1924; Narasimhan & Nayar 2002
(2) tau = tau_far * d^power * ((1 - mix) + mix * 2 N)             depth d in [0, 1], fractal inhomogeneity N
(3) tau_c = tau (l_c / l_green)^-a                                Angstrom 1929: a = 0 fog, 1.3 fine haze
(4) A = L * ((1 - sky) * black body(T) + sky * colour of the photograph's own sky)
"""

import dataclasses
from typing import ClassVar, Self

import cv2
import numpy as np
from jaxtyping import Float32

from uniser_jax.effects import fields, light
from uniser_jax.effects.layer import MediumLayer, Scene


@dataclasses.dataclass(frozen=True)
class HazeSampling:
    """What draws come from."""


@dataclasses.dataclass(frozen=True)
class Haze:
    """One medium.

    Args:
      optical_depth: tau_far in green, at the farthest point.
      depth_power: how depth counts; near 0 the medium is a bank of smoke that hides near and far alike.
      angstrom: exponent a.
      luminance: L of the airlight, linear, white at 1.
      kelvin: colour temperature of the airlight.
      sky: share of the photograph's own sky colour in the airlight.
      inhomogeneity: mix of (2).
      scale: of the inhomogeneity, as a fraction of the image side.
      seed: of depth and inhomogeneity.
    """

    effect: ClassVar[str] = "haze"
    optical_depth: float
    depth_power: float
    angstrom: float
    luminance: float
    kelvin: float
    sky: float
    inhomogeneity: float
    scale: float
    seed: int

    @classmethod
    def sample(cls, rng: np.random.Generator, scene: Scene, sampling: HazeSampling = HazeSampling()) -> Self:
        """Ranges of physics as measured: visibilities from kilometres to a dense tail (physics of RESIDE, NH-HAZE)."""
        dense = rng.random() < 0.15
        return cls(
            optical_depth=float(
                np.exp(rng.uniform(np.log(2.5), np.log(6)) if dense else rng.uniform(-0.7, np.log(2.5)))
            ),
            depth_power=float(rng.choice([rng.uniform(0.7, 1.6), rng.uniform(0.05, 0.4)], p=[0.85, 0.15])),
            angstrom=float(rng.uniform(0, 1.3)),
            luminance=float(rng.uniform(0.35, 0.95)),
            kelvin=float(rng.uniform(5_000, 12_000)),
            sky=float(rng.choice([0.0, rng.uniform(0.3, 1)])),
            inhomogeneity=float(rng.choice([rng.uniform(0, 0.3), rng.uniform(0.3, 0.9)], p=[0.6, 0.4])),
            scale=float(rng.uniform(0.2, 0.8)),
            seed=int(rng.integers(2**31)),
        )

    def render(self, scene: Scene) -> MediumLayer:
        """The layer on one photograph."""
        rng = np.random.default_rng(self.seed)
        brightness = np.sqrt(np.clip(light.luminance(scene.radiance), 0, 1))
        depth = fields.depth(rng, brightness)
        noise = fields.fractal_noise(rng, depth.shape, self.scale, 5, 0.55)
        density = (1 - self.inhomogeneity) + self.inhomogeneity * 2 * fields.smoothstep(noise, 0.15, 0.85)
        tau = self.optical_depth * depth**self.depth_power * density  # (2)
        spectrum = (light.WAVELENGTHS / light.WAVELENGTHS[1]) ** -self.angstrom  # (3)
        return MediumLayer("haze", tau, spectrum.astype(np.float32), self._airlight(scene))

    def _airlight(self, scene: Scene) -> Float32[np.ndarray, "c"]:
        """Equation (4)."""
        colour = light.black_body(self.kelvin)
        small = cv2.resize(np.clip(scene.radiance, 0, 1), (32, 32), interpolation=cv2.INTER_AREA)[:12].reshape(-1, 3)
        brightest = small[np.argsort(small @ light.LUMINANCE)[-40:]].mean(0)
        sky = brightest / max(float(brightest @ light.LUMINANCE), 1e-3)
        mixed = (1 - self.sky) * colour + self.sky * np.clip(sky, 0.6, 1.5)
        mixed = mixed / float(mixed @ light.LUMINANCE)
        return np.clip(self.luminance * mixed, 0, 1).astype(np.float32)
