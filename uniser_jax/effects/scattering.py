"""Layers that bend or scatter the light that arrives, and the blots of which drops and stains are made.

(1) seen = x (1 - s (1 - T)) + s L(x)           L linear in the arriving light x: no light, no effect
(2) r(phi) = R (1 + sum_k a_k cos(k phi + p_k))  outline of a blot
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32

from uniser_jax.effects import fields
from uniser_jax.effects.layer import LinearLayer, Strength

Image = Float32[np.ndarray, "h w c"]
Plane = Float32[np.ndarray, "h w"]


@dataclasses.dataclass(frozen=True)
class ScatteringLayer:
    """A layer whose emission is made of the light that arrives, equation (1).

    Args:
      effect: its name.
      transmission: T, [h w c] or broadcastable.
      scatter: L, from light [h w c] to light [h w c].
      lamp: none; see `layer.Layer`.
    """

    effect: str
    transmission: Float32[np.ndarray, "..."]
    scatter: Callable[[Image], Image]
    lamp: None = None

    def __call__(self, radiance: Image, strength: Strength) -> Image:
        """Equation (1)."""
        return LinearLayer(self.effect, self.transmission, self.scatter(radiance))(radiance, strength)


class Blot(NamedTuple):
    """A drop or a spot; lengths in pixels from the corner of the frame."""

    x: float
    y: float
    radius: float
    amplitude: Float32[np.ndarray, "k"]
    phase: Float32[np.ndarray, "k"]

    @classmethod
    def draw(
        cls, rng: np.random.Generator, shape: tuple[int, int], place: tuple[float, float], radius: float, rough: float
    ) -> "Blot":
        """A blot at a place (fractions of width and height); its radius is a fraction of the side."""
        order = np.arange(1, 9)
        amplitude = rough * rng.normal(0, 1, 8) / order
        x, y = place[0] * shape[1], place[1] * shape[0]
        return cls(x, y, radius * fields.side(shape), amplitude, rng.uniform(0, 2 * np.pi, 8))

    def window(self, shape: tuple[int, int]) -> tuple[slice, slice]:
        """The part of the frame that holds it; perhaps empty."""
        reach = self.radius * (1 + float(np.abs(self.amplitude).sum())) + 2
        rows, columns = (
            slice(int(np.clip(middle - reach, 0, n)), int(np.clip(middle + reach + 1, 0, n)))
            for middle, n in ((self.y, shape[0]), (self.x, shape[1]))
        )
        return rows, columns

    def polar(self, rows: slice, columns: slice) -> tuple[Plane, Plane, Plane]:
        """Distance from the middle over r(phi) of (2), so 1 at the edge, and the unit vector (x, y) away from the middle."""
        y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(0.5 - self.y)
        x = np.arange(columns.start, columns.stop, dtype=np.float32)[None] + np.float32(0.5 - self.x)
        distance, angle = np.hypot(x, y) + np.float32(1e-3), np.arctan2(y, x)
        edge = np.ones_like(angle)
        for order, (amplitude, phase) in enumerate(zip(self.amplitude, self.phase, strict=True), 1):
            edge += np.float32(amplitude) * np.cos(np.float32(order) * angle + np.float32(phase))
        return distance / (self.radius * np.maximum(edge, 0.3)), x / distance, y / distance

    def coverage(self, u: Plane) -> Plane:
        """1 inside, 0 outside, antialiased over a pixel; u from `polar`."""
        return np.clip((1 - u) * self.radius + 0.5, 0, 1)


def disc_blur(image: np.ndarray, radius: float) -> np.ndarray:
    """Defocus: the mean over a disc, radius in pixels; a wide one on a smaller image."""
    if radius < 0.5:
        return image
    h, w = image.shape[:2]
    factor = max(1, int(radius // 4))
    small = fields.shrink(image, (-(-h // factor), -(-w // factor)))
    reach = int(np.ceil(radius / factor))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.clip(radius / factor + 0.5 - np.hypot(x, y), 0, 1).astype(np.float32)
    small = cv2.filter2D(small, -1, disc / disc.sum(), borderType=cv2.BORDER_REPLICATE)
    return np.maximum(cv2.resize(small, (w, h)), 0)


def mean_colour(radiance: Image) -> Float32[np.ndarray, "c"]:
    """The mean light of the frame."""
    return np.array(cv2.mean(radiance)[:3], np.float32)
