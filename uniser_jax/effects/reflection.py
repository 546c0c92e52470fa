"""Reflection: a pane of glass adds a second scene to the one behind it.

  (1) seen = T J + g R * (ghost(defocus(S)))                     mixed in linear light (Kee et al. 2025)
  (2) Rs = (sin(i - r) / sin(i + r))^2, Rp = (tan(i - r) / tan(i + r))^2, sin i = n sin r        Fresnel 1823
  (3) R1 = (Rs + Rp) / 2,  R = 2 R1 / (1 + R1),  T = 1 - R       both faces of a pane, n = 1.52
  (4) ghost(S) = (S + c S(x - shift)) / (1 + c),  c = (1 - R1)^2 the second face reflects what the first let pass

The angle i varies over the frame, and with it R: reflections fade towards where one looks straight through. The target is the
scene without the pane, J, not attenuated.
"""

import dataclasses
from typing import ClassVar, Self

import cv2
import numpy as np
from jaxtyping import Float32

from uniser_jax.effects import fields, light
from uniser_jax.effects.layer import LinearLayer, Scene, mean_light

_INDEX = 1.52  # of window glass


@dataclasses.dataclass(frozen=True)
class ReflectionSampling:
    """What draws come from."""


@dataclasses.dataclass(frozen=True)
class Reflection:
    """One pane and what it reflects.

    Args:
      yaw: between the pane's normal and the optical axis, radians.
      pitch: the same, vertically.
      field_of_view: of the photograph, radians.
      energy: mean reflected light over mean transmitted light; fixes the gain g.
      defocus: sigma of the blur, as a fraction of the image side; most reflections are sharp.
      ghost: shift between the faces' images, as a fraction of the image side.
      direction: of that shift, radians.
      contrast: exponent on the reflected scene; above 1 few lamps stand out of a dark room.
      kelvin: colour of the light on the reflected side.
      mirrored: whether the reflected photograph is flipped.
      occluder: how much of the reflection something dark in front of it hides, 0 to 1.
      seed: of the occluder's form.
    """

    effect: ClassVar[str] = "reflection"
    yaw: float
    pitch: float
    field_of_view: float
    energy: float
    defocus: float
    ghost: float
    direction: float
    contrast: float
    kelvin: float
    mirrored: bool
    occluder: float
    seed: int

    @classmethod
    def sample(
        cls, rng: np.random.Generator, scene: Scene, sampling: ReflectionSampling = ReflectionSampling()
    ) -> Self:
        """Invisible and overwhelming reflections are excluded by the range of `energy`."""
        return cls(
            yaw=float(rng.uniform(-1.05, 1.05)),
            pitch=float(rng.uniform(-0.35, 0.35)),
            field_of_view=float(rng.uniform(0.6, 1.2)),
            energy=float(np.exp(rng.uniform(np.log(0.08), np.log(0.8)))),
            defocus=float(rng.choice([0.0, np.exp(rng.uniform(np.log(0.002), np.log(0.02)))], p=[0.4, 0.6])),
            ghost=float(rng.choice([0.0, rng.uniform(0.001, 0.01)], p=[0.4, 0.6])),
            direction=float(rng.uniform(0, 2 * np.pi)),
            contrast=float(rng.choice([1.0, rng.uniform(1.3, 2.5)], p=[0.6, 0.4])),
            kelvin=float(rng.uniform(3_200, 9_000)),
            mirrored=bool(rng.random() < 0.5),
            occluder=float(rng.choice([0.0, rng.uniform(0.5, 1)], p=[0.5, 0.5])),
            seed=int(rng.integers(2**31)),
        )

    def render(self, scene: Scene) -> LinearLayer:
        """The layer on one photograph; without `scene.other` the pane mirrors the photograph itself."""
        shape = scene.radiance.shape[:2]
        first, pane = self.reflectance(shape)
        transmission = (1 - pane)[..., None]
        reflected = self._reflected(scene, first) * pane[..., None]
        wanted = self.energy * mean_light(transmission * np.clip(scene.radiance, 0, 1))
        reflected = reflected * np.float32(wanted / max(mean_light(reflected), 1e-4))
        # A lamp in the glass may clip, but not everything may: overwhelming cases teach nothing.
        return LinearLayer("reflection", np.repeat(transmission, 3, -1), np.minimum(reflected, 4))

    def reflectance(self, shape: tuple[int, int]) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
        """Equations (2) and (3): of one face and of the whole pane, per pixel."""
        h, w = shape
        half = np.tan(self.field_of_view / 2)
        y, x = np.mgrid[-half : half : h * 1j, -half : half : w * 1j].astype(np.float32)
        normal = [np.sin(self.yaw), np.sin(self.pitch), np.cos(self.yaw) * np.cos(self.pitch)]
        cosine = np.abs(x * normal[0] + y * normal[1] + normal[2]) / np.sqrt(x * x + y * y + 1) / np.linalg.norm(normal)
        incident = np.arccos(np.clip(cosine, 0.12, 0.9999))
        refracted = np.arcsin(np.sin(incident) / _INDEX)
        s = (np.sin(incident - refracted) / np.sin(incident + refracted)) ** 2
        p = (np.tan(incident - refracted) / np.tan(incident + refracted)) ** 2
        first = ((s + p) / 2).astype(np.float32)
        return first, 2 * first / (1 + first)

    def _reflected(self, scene: Scene, first: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w c"]:
        """Equation (4), before Fresnel."""
        h, w = first.shape
        size = fields.side((h, w))
        other = scene.radiance[:, ::-1] if scene.other is None else scene.other
        other = np.ascontiguousarray(other[:, ::-1] if self.mirrored else other)
        other = cv2.pow(other, self.contrast) * light.black_body(self.kelvin)
        other = fields.blur(other, self.defocus * size)
        if self.ghost:
            offset = self.ghost * size * np.array([np.cos(self.direction), np.sin(self.direction)])
            shift = np.array([[1, 0, offset[0]], [0, 1, offset[1]]])
            shifted = cv2.warpAffine(other, shift, (w, h), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            c = ((1 - first) ** 2)[..., None]
            other = (other + c * shifted) / (1 + c)
        if self.occluder:
            noise = fields.fractal_noise(np.random.default_rng(self.seed), (h, w), 0.8, 3, 0.4)
            other = other * (1 - self.occluder * fields.smoothstep(noise, 0.45, 0.6))[..., None]
        return other
