"""Light that a lens scatters around a source: glare, the pattern of the pupil, streaks.

  (1) G(r) = (1 - b - v) ((1 + r / r0) / (1 + q / r0))^-n + b exp((q - r) / s_b) + v exp((q - r) / s_v),  q = 0.05
                                                            wings, bloom, veil; 1 at q (CIE disability glare; Flare7K)
  (2) S_c = G(r) (1 - d + d C_c(x))                         d: share of the scattered light that the pupil forms (`pupil`)
  (3) L(x) = exp(-|across| / w) (1 + |along| / l)^-1.5      a streak of cylindrical glass or of parallel scratches

r and x are in image sides, from the source. A source with a size s acts at sqrt(r^2 + s^2), and blurs C within 2 s.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from uniser_jax.effects import pupil
from uniser_jax.effects.compiled import compiled, finite

QUOTED = 0.05  # q: brightness is quoted at this distance from the source
FAINT = 3e-4  # of white: what is fainter is not drawn

_FARTHEST, _STEPS = 4.0, 4096  # image sides; of the table of G, even in the root of r

Image = Float32[np.ndarray, "h w c"]
Colour = Float32[np.ndarray, "c"]
Falloff = Float32[np.ndarray, "n"]


class Glare(NamedTuple):
    """G of equation (1): lengths in image sides, shares of the light at q.

    Args:
      falloff: n.
      core: r0.
      bloom: b and s_b.
      veil: v and s_v.
    """

    falloff: float
    core: float
    bloom: tuple[float, float]
    veil: tuple[float, float]

    def __call__(self, r: np.ndarray) -> np.ndarray:
        """Equation (1)."""
        (b, s_b), (v, s_v) = self.bloom, self.veil
        wings = ((1 + r / self.core) / (1 + QUOTED / self.core)) ** -self.falloff
        return (1 - b - v) * wings + b * np.exp((QUOTED - r) / s_b) + v * np.exp((QUOTED - r) / s_v)

    def table(self) -> Falloff:
        """G at even steps of the root of r."""
        return self(np.linspace(0, np.sqrt(_FARTHEST), _STEPS, dtype=np.float32) ** 2).astype(np.float32)


class Grain(NamedTuple):
    """One pattern of the bank, as a lens holds it.

    Args:
      pattern: its index.
      share: d of (2).
      turn: radians.
      zoom: of its size.
      mirrored: left for right.
    """

    pattern: int
    share: float
    turn: float
    zoom: float
    mirrored: bool

    def matrix(self) -> Float64[np.ndarray, "2 2"]:
        """From image sides to pixels of the pattern."""
        scale = len(pupil.pattern(self.pattern)) / (2 * pupil.REACH * self.zoom)
        c, s = np.cos(self.turn), np.sin(self.turn)
        turned = scale * np.array([[c, s], [-s, c]])
        return np.diag([-1.0, 1.0]) @ turned if self.mirrored else turned

    def seen(self, angle: float) -> float:
        """The direction in the image of one in the pattern, radians."""
        return self.turn + (np.pi - angle if self.mirrored else angle)


def add(out: Image, place: np.ndarray, size: float, light: Colour, table: Falloff, grain: Grain, side: float) -> None:
    """Adds equation (2) for one source.

    Args:
      out: what to add to.
      place: (x, y) of the source in pixels of `out`.
      size: its radius, in image sides.
      light: its light at q.
      table: of G, see `Glare.table`.
      grain: C.
      side: of the image, in pixels of `out`.
    """
    strength = float(light.max())
    seen = np.flatnonzero(strength * table > FAINT)
    if not len(seen):
        return
    reach = side * ((seen[-1] + 1) / (_STEPS - 1)) ** 2 * _FARTHEST
    h, w = out.shape[:2]
    x, y = place.tolist()
    left, top = max(0, int(x - reach)), max(0, int(y - reach))
    right, bottom = min(w, int(x + reach + 1)), min(h, int(y + reach + 1))
    if left >= right or top >= bottom:
        return
    origin = np.array([left + 0.5, top + 0.5]) - place
    form = _warped(grain, origin, side, (right - left, bottom - top))
    hue = (light / strength).astype(np.float32)
    part, origin = out[top:bottom, left:right], origin.astype(np.float32)
    _scatter(part, origin, 1 / side, size**2, strength, hue, table, form, grain.share)


def _warped(grain: Grain, origin: np.ndarray, side: float, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 4"]:
    """The pattern as pixels of the image see it; `origin` is the first of them, from the source."""
    pattern = pupil.pattern(grain.pattern)
    to_pattern = grain.matrix() / side
    offset = to_pattern @ origin + len(pattern) / 2
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(pattern, np.column_stack([to_pattern, offset]), size, flags=flags)


def add_streak(
    out: Image, place: np.ndarray, light: Colour, angle: float, width: float, length: float, side: float
) -> None:
    """Adds equation (3) for one source; see `add`. Angle in radians, w and l in image sides."""
    origin = (np.array([0.5, 0.5]) - place).astype(np.float32)
    _streak(out, origin, 1 / side, light, np.cos(angle), np.sin(angle), width, length)


@finite
def _scatter(out, origin, pixel, size2, strength, hue, table, form, share):  # type: ignore[no-untyped-def]
    pixel, size2, strength = np.float32(pixel), np.float32(size2), np.float32(strength)
    faint, last = np.float32(FAINT), np.float32(len(table) - 1)
    steps = np.float32((len(table) - 1) / np.sqrt(_FARTHEST))
    plain, formed, blurred = np.float32(1 - share), np.float32(share), np.float32(4) * size2 + np.float32(1e-12)
    scale = np.float32(pupil.PEAK / 255**2)
    columns = out.shape[1]
    even, rays = np.empty(columns, np.float32), np.empty(columns, np.float32)
    for i in range(out.shape[0]):
        y = (origin[1] + np.float32(i)) * pixel
        for j in range(columns):
            x = (origin[0] + np.float32(j)) * pixel
            near = x * x + y * y
            g = max(
                strength * table[np.int32(min(np.sqrt(np.sqrt(near + size2)) * steps, last))] - faint, np.float32(0)
            )
            sharp = formed * near / (near + blurred)
            even[j] = g * (plain + formed - sharp)
            rays[j] = g * sharp * scale
        for j in range(columns):
            for c in range(3):
                code = np.float32(form[i, j, c])
                out[i, j, c] += hue[c] * (even[j] + rays[j] * code * code)


@compiled
def _streak(out, origin, pixel, light, cos, sin, width, length):  # type: ignore[no-untyped-def]
    pixel, cos, sin = np.float32(pixel), np.float32(cos), np.float32(sin)
    across_unit, along_unit = np.float32(1 / width), np.float32(1 / length)
    for i in range(out.shape[0]):
        y = (origin[1] + np.float32(i)) * pixel
        for j in range(out.shape[1]):
            x = (origin[0] + np.float32(j)) * pixel
            across = abs(cos * y - sin * x) * across_unit
            if across > np.float32(8):
                continue
            along = np.float32(1) + abs(cos * x + sin * y) * along_unit
            value = (np.exp(-across) - np.float32(0.000335463)) / (along * np.sqrt(along))
            for c in range(3):
                out[i, j, c] += value * light[c]
