"""A pane of glass: how much it reflects and lets through, and the layer that it makes of two scenes.

(1) seen = T J + g (f S(x) + b S(x - d))                       g the gain; f, b and T vary over the frame, see `reflection`
(2) Rs = ((cos i - n cos r) / (cos i + n cos r))^2,  Rp the same with i and r exchanged,  sin i = n sin r     Fresnel 1823
(3) R(m) = m R / (1 + (m - 1) R)                               m faces, incoherent, each polarisation on its own
(4) |d| ~ w + (1 - w) D(i) / max D,  D = sin 2i / sqrt(n^2 - sin^2 i)      n = 1 of a gap; w: two faces never quite parallel
"""

import dataclasses
import math
from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from uniser_jax.effects import kernels
from uniser_jax.effects.compiled import compiled
from uniser_jax.effects.layer import Affine, Strength, per_channel, per_pixel

Image = Float32[np.ndarray, "h w c"]
Plane = Float32[np.ndarray, "h w"]

_INDEX = 1.52  # n of window glass
_WEDGE = 0.15  # w of (4)
_CAP = 4.0  # a lamp in the glass may clip, but need not blind


@dataclasses.dataclass(frozen=True)
class PaneLayer:
    """Equation (1), strength as in (3) of `layer`; kept as its parts, since whole images of T and C cost more than to use them.

    Args:
      near: g f over a few rows and all pixels times channels of a row.
      far: g b, the same.
      through: T, the same.
      seen: S, rows of pixels times channels, wider than the photograph by a margin on each side.
      height: of the photograph, in pixels.
      margin: in pixels, at least the length of d.
      shift: d, down and right in pixels.
    """

    near: Plane
    far: Plane
    through: Plane
    seen: Plane
    height: int
    margin: int
    shift: tuple[float, float]
    lamp: None = None
    effect: ClassVar[str] = "reflection"

    def __call__(self, radiance: Image, strength: Strength) -> Image:
        """Equation (1)."""
        h, w = radiance.shape[:2]
        rows = np.ascontiguousarray(radiance).reshape(h, 3 * w)
        maps = self.near, self.far, self.through, self.seen
        return _behind_glass(rows, *maps, self.margin, *self.shift, per_pixel(strength)).reshape(h, w, 3)

    def at(self, strength: Strength) -> Affine:
        """(1) as images."""
        s = per_channel(strength)
        return Affine(1 - s * (1 - self.transmission), s * self.emission)

    @property
    def transmission(self) -> Image:
        """T, [h w c]."""
        return dataclasses.replace(self, seen=np.zeros_like(self.seen))(np.ones(self._shape, np.float32), 1.0)

    @property
    def emission(self) -> Image:
        """g (f S(x) + b S(x - d)), [h w c]."""
        return self(np.zeros(self._shape, np.float32), 1.0)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.height, self.near.shape[1] // 3, 3


def fresnel(
    cosine: Float32[np.ndarray, "*shape"],
) -> tuple[Float32[np.ndarray, "2 *shape"], Float32[np.ndarray, "*shape"]]:
    """Equation (2): reflectances s and p of one face of glass, and cos r, for the cosine of the angle of incidence."""
    inner = np.sqrt(1 - (1 - cosine * cosine) / _INDEX**2)
    s = (cosine - _INDEX * inner) / (cosine + _INDEX * inner)
    p = (inner - _INDEX * cosine) / (inner + _INDEX * cosine)
    return np.stack([s * s, p * p]), inner


def several(face: np.ndarray, count: int) -> np.ndarray:
    """Equation (3): reflectance of so many faces in one polarisation, all orders of light between them summed."""
    return count * face / (1 + (count - 1) * face)


def normal(yaw: float, pitch: float) -> tuple[float, float, float]:
    """Of a pane, of length 1; the optical axis is z, so the last is the cosine of the angle of incidence in mid-frame."""
    x, y, z = math.sin(yaw), math.sin(pitch), math.cos(yaw) * math.cos(pitch)
    length = math.hypot(x, y, z)
    return x / length, y / length, z / length


def parallax(cosine: float, index: float = _INDEX) -> float:
    """Equation (4): how far apart the images of two parallel faces are, over the most at any angle of incidence.

    Two rays that leave a plate of thickness t are t D apart (Snell); D is greatest, 2 (n - sqrt(n^2 - 1)), at 49 degrees in
    window glass, and grazing in a gap of air. Straight on they coincide, but for the wedge.

    Args:
      cosine: of the angle of incidence, above 0.
      index: n of what is between the faces, window glass or, of two panes, 1.
    """
    apart = 2 * cosine * math.sqrt((1 - cosine**2) / (index**2 - 1 + cosine**2))
    return _WEDGE + (1 - _WEDGE) * apart / (2 * (index - math.sqrt(index**2 - 1)))


@compiled
def _behind_glass(
    radiance: Plane,
    near: Plane,
    far: Plane,
    through: Plane,
    seen: Plane,
    margin: int,
    down: float,
    right: float,
    strength: Plane,
) -> Plane:
    """J (1 - s (1 - T)) + s min(f S(x) + b S(x - d), _CAP); see PaneLayer for the maps, whose rows are interpolated."""
    height, width = radiance.shape
    rows = len(near)
    out, of_row = np.empty((height, width), np.float32), np.empty(width, np.float32)
    top, left = int(np.floor(margin - down)), int(np.floor(margin - right))
    v, u = np.float32(margin - down - top), np.float32(margin - right - left)
    a, b, c, d = (1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u
    one, cap = np.float32(1), np.float32(_CAP)
    for i in range(height):
        place = min(max((i + 0.5) * rows / height - 0.5, 0.0), rows - 1.0)
        k = min(int(place), rows - 2)
        t = np.float32(place - k)
        near_0, near_1, far_0, far_1, through_0, through_1 = (
            near[k], near[k + 1], far[k], far[k + 1], through[k], through[k + 1]
        )  # fmt: skip
        first, above, below = seen[i + margin, 3 * margin :], seen[i + top, 3 * left :], seen[i + top + 1, 3 * left :]
        kernels.per_value(strength, i, of_row)
        for j in range(width):
            second = a * above[j] + b * above[j + 3] + c * below[j] + d * below[j + 3]
            f, g = near_0[j] + t * (near_1[j] - near_0[j]), far_0[j] + t * (far_1[j] - far_0[j])
            lost, s = one - (through_0[j] + t * (through_1[j] - through_0[j])), of_row[j]
            out[i, j] = radiance[i, j] * (one - s * lost) + s * min(f * first[j] + g * second, cap)
    return out
