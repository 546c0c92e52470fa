"""Occlusion, the auxiliary effect: patches of any form and material, which only the generic task removes.

  (1) seen = J (1 - a) + a P              opaque (a = 1) and semi-transparent patches
  (2) seen = J (1 - a (1 - P))            tinted film
  (3) seen = J + a P                      a veil of stray light

Together they span the affine maps, so that "remove effects" carries over to effects that were never rendered.
"""

import dataclasses
from typing import ClassVar, Self

import numpy as np

from uniser_jax.effects import fields, masks
from uniser_jax.effects.layer import LinearLayer, Scene

MATERIALS = ("opaque", "semi-transparent", "tint", "veil")
_WEIGHTS = (0.2, 0.4, 0.2, 0.2)


@dataclasses.dataclass(frozen=True)
class OcclusionSampling:
    """What draws come from."""


@dataclasses.dataclass(frozen=True)
class Occlusion:
    """A group of patches of one material.

    Args:
      material: one of MATERIALS.
      alpha: a inside a patch.
      colour: P, linear RGB.
      texture: how much fractal noise modulates P, 0 to 1.
      kind: of form, a drawn kind of `masks`.
      count: of patches.
      seed: of forms and texture.
    """

    effect: ClassVar[str] = "occlusion"
    material: str
    alpha: float
    colour: tuple[float, float, float]
    texture: float
    kind: str
    count: int
    seed: int

    @classmethod
    def sample(cls, rng: np.random.Generator, scene: Scene, sampling: OcclusionSampling = OcclusionSampling()) -> Self:
        """Alpha from 0.2 to 1, one to four patches."""
        material = str(rng.choice(MATERIALS, p=_WEIGHTS))
        return cls(
            material=material,
            alpha=1.0 if material == "opaque" else float(rng.uniform(0.2, 0.9)),
            colour=(float(rng.random() ** 2), float(rng.random() ** 2), float(rng.random() ** 2)),
            texture=float(rng.choice([0.0, rng.uniform(0, 1)])),
            kind=str(rng.choice(masks.DRAWN)),
            count=int(rng.integers(1, 5)),
            seed=int(rng.integers(2**31)),
        )

    def render(self, scene: Scene) -> LinearLayer:
        """The layer on one photograph."""
        rng = np.random.default_rng(self.seed)
        shape = scene.radiance.shape[:2]
        a = np.max([masks.draw(rng, shape, self.kind, count=1) for _ in range(self.count)], 0) * np.float32(self.alpha)
        grain = 1 - self.texture * fields.fractal_noise(rng, shape, 0.4, 5, 0.5)
        patch = grain[..., None] * np.array(self.colour, np.float32)
        a = a[..., None]
        zero = np.zeros(3, np.float32)
        if self.material == "tint":
            return LinearLayer("occlusion", 1 - a * (1 - patch), zero)
        if self.material == "veil":
            return LinearLayer("occlusion", np.ones_like(patch), 0.5 * a * patch)
        return LinearLayer("occlusion", np.repeat(1 - a, 3, -1), a * patch)
