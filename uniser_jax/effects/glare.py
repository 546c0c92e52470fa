"""Light that a lens scatters around a source: glare, the pattern of the pupil, streaks.

  (1) G(r) = (1 - b - v) ((1 + r / r0) / (1 + q / r0))^-n + b exp((q - r) / s_b) + v exp((q - r) / s_v),  q = 0.05
                                                            wings, bloom, veil; 1 at q (CIE disability glare; Flare7K)
  (2) S_c = G(r) (1 - d + d C_c(x))                         d: share of the scattered light that the pupil forms (`pupil`)
  (3) L(x) = exp(-|across| / w) (1 + |along| / l)^-1.5      a streak of cylindrical glass or of parallel scratches

r and x are in image sides, from the source. A source with a size s acts at sqrt(r^2 + s^2), and blurs C within a few s.
"""

from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Float32

from uniser_jax.effects import pupil

QUOTED = 0.05  # q: brightness is quoted at this distance from the source
FAINT = 5e-5  # of white: what is fainter is not drawn

_FARTHEST, _STEPS = 4.0, 1024  # image sides; of the table of G, even in the root of r

Image = Float32[np.ndarray, "h w c"]
Colour = Float32[np.ndarray, "c"]

_compiled = numba.njit(nogil=True, cache=True, error_model="numpy")


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

    def table(self) -> Float32[np.ndarray, "n"]:
        """G at even steps of the root of r."""
        return self(np.linspace(0, np.sqrt(_FARTHEST), _STEPS) ** 2).astype(np.float32)


class Grain(NamedTuple):
    """One pattern of the bank, as a lens holds it.

    Args:
      index: of the pattern.
      share: d of (2).
      turn: radians.
      zoom: of its size.
      mirrored: left for right.
    """

    index: int
    share: float
    turn: float
    zoom: float
    mirrored: bool

    def matrix(self) -> Float32[np.ndarray, "2 2"]:
        """From image sides to pixels of the pattern."""
        scale = len(pupil.pattern(self.index)) / (2 * pupil.REACH * self.zoom)
        c, s = np.cos(self.turn), np.sin(self.turn)
        turned = scale * np.array([[c, s], [-s, c]])
        return (np.diag([-1.0, 1.0]) @ turned if self.mirrored else turned).astype(np.float32)


def add(out: Image, place: np.ndarray, size: float, light: Colour, glare: Glare, grain: Grain, side: float) -> None:
    """Adds equation (2) for one source.

    Args:
      out: what to add to.
      place: (x, y) of the source in pixels of `out`.
      size: its radius, in image sides.
      light: its light at q.
      glare: G.
      grain: C.
      side: of the image, in pixels of `out`.
    """
    table = glare.table()
    strength = float(light.max())
    seen = np.flatnonzero(strength * table > FAINT)
    if not len(seen):
        return
    reach = side * (seen[-1] / (_STEPS - 1)) ** 2 * _FARTHEST
    h, w = out.shape[:2]
    left, right = (int(np.clip(place[0] + sign * reach, 0, w)) for sign in (-1, 1))
    top, bottom = (int(np.clip(place[1] + sign * reach, 0, h)) for sign in (-1, 1))
    origin = np.array([left + 0.5 - place[0], top + 0.5 - place[1]], np.float32)
    part = out[top : min(bottom + 1, h), left : min(right + 1, w)]
    hue = (light / strength).astype(np.float32)
    form = pupil.pattern(grain.index)
    _scatter(part, origin, 1 / side, size, strength, hue, table, form, grain.matrix(), grain.share, pupil.PEAK)


def add_streak(
    out: Image, place: np.ndarray, light: Colour, angle: float, width: float, length: float, side: float
) -> None:
    """Adds equation (3) for one source; see `add`. Angle in radians, w and l in image sides."""
    origin = (np.array([0.5, 0.5]) - place).astype(np.float32)
    _streak(out, origin, 1 / side, light, np.cos(angle), np.sin(angle), width, length)


@_compiled
def _scatter(out, origin, pixel, size, strength, hue, table, form, matrix, share, peak):
    pixel, size, strength = np.float32(pixel), np.float32(size), np.float32(strength)
    steps = np.float32((len(table) - 1) / np.sqrt(_FARTHEST))
    plain, formed = np.float32(1 - share), np.float32(share * peak / 255**2)
    middle, last = np.float32(form.shape[0] / 2 - 0.5), form.shape[0] - 1
    blurred = np.float32(9) * size * size
    even = np.float32(share)
    for i in range(out.shape[0]):
        y = (origin[1] + np.float32(i)) * pixel
        for j in range(out.shape[1]):
            x = (origin[0] + np.float32(j)) * pixel
            near = x * x + y * y
            place = min(np.sqrt(np.sqrt(near + size * size)) * steps, np.float32(len(table) - 2))
            k = np.int32(place)
            g = strength * (table[k] + (table[k + 1] - table[k]) * (place - np.float32(k))) - np.float32(FAINT)
            if g <= 0:
                continue
            u = matrix[0, 0] * x + matrix[0, 1] * y + middle
            v = matrix[1, 0] * x + matrix[1, 1] * y + middle
            sharp = near / (near + blurred) if blurred > 0 else np.float32(1)
            if u < 0 or v < 0 or u >= last or v >= last:
                for c in range(3):
                    out[i, j, c] += g * hue[c] * (plain + even * (np.float32(1) - sharp))
                continue
            a, b = np.int32(u), np.int32(v)
            fu, fv = u - np.float32(a), v - np.float32(b)
            for c in range(3):
                upper = form[b, a, c] + fu * (np.float32(form[b, a + 1, c]) - form[b, a, c])
                lower = form[b + 1, a, c] + fu * (np.float32(form[b + 1, a + 1, c]) - form[b + 1, a, c])
                code = upper + fv * (lower - upper)
                out[i, j, c] += g * hue[c] * (plain + sharp * formed * code * code + even * (np.float32(1) - sharp))


@_compiled
def _streak(out, origin, pixel, light, cos, sin, width, length):
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
