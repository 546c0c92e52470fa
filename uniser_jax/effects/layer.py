"""A soft effect is an affine layer in linear light, and layers compose.

  (1) seen = T * scene + C                                       per pixel and channel: transmission, emission
  (2) (T2, C2) after (T1, C1) = (T2 T1, T2 C1 + C2)              associative, not commutative
  (3) T(s) = 1 - s (1 - T),  C(s) = s C                          strength of shadow, reflection, flare, patches
  (4) T(s) = exp(-s tau),    C(s) = A (1 - T(s))                 strength of a medium (`medium`): optical depth scales
  (5) T = 1, C = seen - scene                                    a real pair, whose layers nobody knows; obeys (3)

Strength 0 is the identity. Removing a share a leaves s (1 - a), so removals compose: two halves are three quarters.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from uniser_jax.effects import depth, kernels

_SUPPORT_SIDE = 128

Strength = Float32[np.ndarray, "h w"] | float


class Scene(NamedTuple):
    """What effects are rendered on: linear light, white at 1, highlights above it."""

    radiance: Float32[np.ndarray, "h w c"]
    other: Float32[np.ndarray, "h w c"] | None = None  # a second photograph, for a window or a patch
    depth: Float32[np.ndarray, "h w"] | None = None  # 0 at the camera, 1 far, where there is one
    removed: UInt8[np.ndarray, "h w"] | None = None  # where a real pair's target lacks the effect; None is everywhere


class Shine(NamedTuple):
    """Light that the cause of an effect adds to the scene itself, in a part of the frame."""

    top: int
    left: int
    light: Float32[np.ndarray, "a b c"]
    sources: "tuple[Shine, ...]" = ()  # what of it shines by itself; all else is sent back by surfaces

    @property
    def where(self) -> tuple[slice, slice]:
        """Its part of the frame."""
        h, w = self.light.shape[:2]
        return slice(self.top, self.top + h), slice(self.left, self.left + w)

    def onto(self, radiance: Float32[np.ndarray, "h w c"]) -> Float32[np.ndarray, "h w c"]:
        """The scene with it; a new array."""
        lit = radiance.copy()
        lit[self.where] += self.light
        return lit


class Affine(NamedTuple):
    """Equation (1), arrays of shape [h w c] or broadcastable to it."""

    transmission: Any
    emission: Any

    def __call__(self, radiance: Float32[np.ndarray, "h w c"]) -> Float32[np.ndarray, "h w c"]:
        """The light behind this layer."""
        return self.transmission * radiance + self.emission


def compose(first: Affine, second: Affine) -> Affine:
    """Equation (2): light passes `first`, then `second`."""
    return Affine(second.transmission * first.transmission, second.transmission * first.emission + second.emission)


class Layer(Protocol):
    """One effect on one photograph, at any strength in [0, 1]."""

    @property
    def effect(self) -> str:
        """One of types.EFFECTS, or one held out."""
        ...

    def __call__(self, radiance: Float32[np.ndarray, "h w c"], strength: Strength) -> Float32[np.ndarray, "h w c"]:
        """The light behind the layer at a strength, one number or one per pixel; a new array."""
        ...

    def at(self, strength: Strength) -> Affine:
        """The affine map at a strength; of a layer that blurs, the map for a scene without detail."""
        ...

    @property
    def lamp(self) -> Shine | None:
        """Light that no removal takes away."""
        ...


@dataclasses.dataclass(frozen=True)
class LinearLayer:
    """A layer whose strength obeys (3).

    Args:
      effect: one of types.EFFECTS.
      transmission: T, [h w c] or broadcastable.
      emission: C, the same.
    """

    effect: str
    transmission: Float32[np.ndarray, "..."]
    emission: Float32[np.ndarray, "..."]
    lamp: None = None

    def __call__(self, radiance: Float32[np.ndarray, "h w c"], strength: Strength) -> Float32[np.ndarray, "h w c"]:
        """Equation (1)."""
        shape = radiance.shape
        maps = np.broadcast_to(self.transmission, shape), np.broadcast_to(self.emission, shape)
        return kernels.linear(radiance, *maps, per_pixel(strength))

    def at(self, strength: Strength) -> Affine:
        """Equation (3)."""
        s = per_channel(strength)
        return Affine(1 - s * (1 - self.transmission), s * self.emission)


def between(effect: str, scene: Float32[np.ndarray, "h w c"], seen: Float32[np.ndarray, "h w c"]) -> LinearLayer:
    """Equation (5): any strength of it is a blend of the two in linear light, 1 is `seen`."""
    return LinearLayer(effect, np.ones(1, np.float32), seen - scene)


def see(
    radiance: Float32[np.ndarray, "h w c"], layers: Sequence[Layer], strengths: Sequence[Strength]
) -> Float32[np.ndarray, "h w c"]:
    """Light behind all layers, the first nearest to the scene; layers of strength 0 cost nothing."""
    for layer, strength in zip(layers, strengths, strict=True):
        if isinstance(strength, np.ndarray) or strength > 0:
            radiance = layer(radiance, strength)
    return radiance


def change(before: Float32[np.ndarray, "h w c"], after: Float32[np.ndarray, "h w c"]) -> Float32[np.ndarray, "a b"]:
    """How much two views of a scene differ, in units of white's square root, 0.02 is about 5 of 255 levels.

    The channel that changes most, seen at up to about 128 px: masks are soft.
    """
    n = max(1, round(max(before.shape[:2]) / _SUPPORT_SIDE))
    one, other = (np.sqrt(np.clip(depth.reduce(radiance, n), 0, 1)) for radiance in (before, after))
    return np.maximum.reduce(cv2.split(cv2.absdiff(other, one)))


def visible_change(
    before: Float32[np.ndarray, "h w c"], after: Float32[np.ndarray, "h w c"]
) -> Float32[np.ndarray, "h w"]:
    """Where two views of a scene differ, in [0, 1]: a `change` of 0.05, about 12 of 255 levels, counts as full."""
    return cv2.resize(np.minimum(change(before, after) * np.float32(20), 1), before.shape[1::-1])


def per_pixel(strength: Strength) -> Float32[np.ndarray, "h w"]:
    """A strength as kernels take it: contiguous, or 1 x 1 for one number."""
    return (
        np.ascontiguousarray(strength, np.float32)
        if isinstance(strength, np.ndarray)
        else np.full((1, 1), strength, np.float32)
    )


def per_channel(strength: Strength) -> Any:
    """A strength as maps [h w c] take it."""
    return strength[..., None] if isinstance(strength, np.ndarray) else np.float32(strength)
