"""Images of the aperture and of the lamps that pairs of lens surfaces throw back.

  (1) centre = c + a (source - c)                       on the line through the centre c of the frame; a fixed by the pair
  (2) brightness ~ radius^-p                            the same light over a larger disc; p = 2 for equal pairs
  (3) tint = R(l; l1) R(l; l2), R = cos^2(pi l0 / 2 l)  two quarter-wave coatings, each dark at its own wavelength l0
  (4) mirror: a = -1, the size of the lamp itself       sensor to lens and back, sharp in phones (Dai et al. 2023)

Sources: Hullin et al. 2011, Lee & Eisemann 2013. A ghost is a blades-sided polygon, round where blades are open, soft where it is out
of focus, bright at the rim where rays crowd (a caustic), and cut by the edge of another lens.
"""

from typing import NamedTuple

import cv2
import numba
import numpy as np
from jaxtyping import Float32

from uniser_jax.effects import fields, light

_DISPERSION = np.array([1.025, 1.0, 0.965], np.float32)  # size of red, green and blue ghosts

Image = Float32[np.ndarray, "h w c"]
Colour = Float32[np.ndarray, "c"]

_compiled = numba.njit(nogil=True, cache=True, error_model="numpy")


class Ghost(NamedTuple):
    """One pair of surfaces; lengths in image sides.

    Args:
      along: a of (1).
      radius: of the polygon.
      tint: what (2) and (3) make of white.
      softness: of the edge, as a fraction of the radius.
      rim: brightness of the caustic against the middle.
      roundness: 0 polygon, 1 disc.
      cut: (x, y) and radius of the lens that clips it, in its own radii.
    """

    along: float
    radius: float
    tint: Colour
    softness: float
    rim: float
    roundness: float
    cut: tuple[float, float, float]


def lens(seed: int, count: int) -> list[Ghost]:
    """The `count` brightest pairs of one lens; the brightest channel of the brightest is 1."""
    rng = np.random.default_rng(seed)
    power, roundness = rng.uniform(0.5, 1.6), float(rng.choice([0.0, 0.35, 1.0], p=[0.3, 0.35, 0.35]))
    chain = rng.random() < 0.4  # some lenses string small ghosts like beads
    ghosts = []
    for _ in range(count):
        radius = float(np.exp(rng.uniform(np.log(0.006), np.log(0.03 if chain else 0.16))))
        tint = coating_tint(*rng.uniform(0.40, 0.75, 2)) * min(1.0, (0.02 / radius) ** power)
        along = rng.uniform(-1.6, 0.8) if rng.random() < 0.8 else rng.uniform(-2, 2)
        softness, rim = np.exp(rng.uniform(np.log(0.04), np.log(0.6))), max(0.0, rng.normal(0.2, 0.8))
        cut = (*(float(v) for v in rng.normal(0, 0.45, 2)), float(rng.uniform(1.0, 1.6)))
        ghosts.append(Ghost(float(along), radius, tint, float(softness), float(rim), roundness, cut))
    return ghosts


def coating_tint(first: float, second: float) -> Colour:
    """Equation (3), brightest channel 1; wavelengths in micrometres."""
    residual = [np.cos(np.pi / 2 * dark / light.WAVELENGTHS) ** 2 + 0.02 for dark in (first, second)]
    tint = residual[0] * residual[1]
    return (np.sqrt(tint / tint.max())).astype(np.float32)  # layers are many and never perfect: half as saturated


def add(out: Image, source: np.ndarray, lit: Colour, ghosts: list[Ghost], blades: int, turn: float, side: float) -> None:
    """Adds the ghosts of one source.

    Args:
      out: what to add to.
      source: (x, y) in pixels of `out`.
      lit: light of the brightest ghost, where white tint.
      ghosts: see `lens`.
      blades: of the aperture.
      turn: of the aperture, radians.
      side: of the image, in pixels of `out`.
    """
    h, w = out.shape[:2]
    centre = np.array([w, h]) / 2
    angles = turn + 2 * np.pi * np.arange(blades) / blades
    normals = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    for ghost in ghosts:
        place = centre + ghost.along * (source - centre)
        radius = max(ghost.radius * side, 0.8)
        reach = radius * 1.03 * (1 + ghost.softness) / np.cos(np.pi / blades) + 1
        left, right = (int(np.clip(place[0] + sign * reach, 0, w)) for sign in (-1, 1))
        top, bottom = (int(np.clip(place[1] + sign * reach, 0, h)) for sign in (-1, 1))
        if left < right and top < bottom:
            origin = (np.array([left, top]) + 0.5 - place).astype(np.float32)
            soft = max(ghost.softness, 0.7 / radius)  # no edge is sharper than a pixel
            cut = np.array(ghost.cut, np.float32)
            form = (1 / radius, normals, ghost.roundness, soft, ghost.rim, cut, _DISPERSION)
            _ghost(out[top:bottom, left:right], origin, lit * ghost.tint, *form)


def mirrored(bright: Float32[np.ndarray, "h w"], tint: Colour) -> Image:
    """Equation (4): the photograph's brightest light, turned about the centre of the frame.

    Args:
      bright: how far each pixel is above white, in [0, 1], at the resolution of the layer.
      tint: of the pair's coatings, times its brightness.
    """
    soft = fields.blur(bright[::-1, ::-1], 0.0025 * fields.side(bright.shape[:2]))
    return np.clip(soft, 0, 1)[..., None] * tint


@_compiled
def _ghost(out, origin, lit, unit, normals, roundness, softness, rim, cut, dispersion):
    one, unit, softness, rim = np.float32(1), np.float32(unit), np.float32(softness), np.float32(rim)
    round_share, caustic = np.float32(roundness), np.float32(1 / 0.12)
    for i in range(out.shape[0]):
        y = (origin[1] + np.float32(i)) * unit
        for j in range(out.shape[1]):
            x = (origin[0] + np.float32(j)) * unit
            r = np.sqrt(x * x + y * y)
            edge = np.float32(0)
            for k in range(normals.shape[0]):
                edge = max(edge, x * normals[k, 0] + y * normals[k, 1])
            edge += round_share * (r - edge)
            off = np.sqrt((x - cut[0]) ** 2 + (y - cut[1]) ** 2)
            passed = min(max((cut[2] - off) / (softness + np.float32(0.02)) + np.float32(0.5), np.float32(0)), one)
            for c in range(3):
                inside = one - edge / dispersion[c]
                u = min(max(inside / softness + np.float32(0.5), np.float32(0)), one)
                if u > 0:
                    crowd = max(one - abs(inside - np.float32(0.08)) * caustic, np.float32(0))
                    out[i, j, c] += lit[c] * passed * u * u * (3 - 2 * u) * (one + rim * crowd)
