"""Images of the aperture and of the lamps that pairs of lens surfaces throw back.

  (1) centre = c + a (source - c)                       on the line through the centre c of the frame; a fixed by the pair
  (2) brightness = min(1, (0.02 / radius)^p)            of a lens; p of 0.5 to 1.6, radius in image sides
  (3) tint = R(l; l1) R(l; l2), R = cos^2(pi l0 / 2 l)  two quarter-wave coatings, each dark at its own wavelength l0
  (4) mirror: a = -1, the size of the lamp itself       sensor to lens and back, sharp in phones (Dai et al. 2023)

A ghost is a polygon with as many sides as blades, round where they are open, soft where it is out of focus, bright at the rim
where rays crowd (a caustic), and cut by the edge of another lens (Hullin et al. 2011; Lee & Eisemann 2013).

Pairs that throw back the same light would have p = 2: spread over a larger disc it is fainter. Here the total light of a ghost
grows with its radius, because the large ones that are seen are those of brighter, less coated pairs; with p = 2 one of 16 % of
the side would have a sixtieth of a small one's brightness, and teach nothing.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Float64

from uniser_jax.effects import fields, light
from uniser_jax.effects.compiled import compiled

_DISPERSION = np.array([1.025, 1.0, 0.965], np.float32)  # size of red, green and blue ghosts

Image = Float32[np.ndarray, "h w c"]
Colour = Float32[np.ndarray, "c"]
Numbers = Float32[np.ndarray, "n"]


class Lens(NamedTuple):
    """The pairs of surfaces of one lens; lengths in image sides.

    Args:
      along: a of (1).
      radius: of the polygon.
      tint: what (2) and (3) make of white.
      softness: of the edge, as a fraction of the radius.
      rim: brightness of the caustic against the middle.
      cut: (x, y) and radius of the lens that clips it, in its own radii.
      roundness: 0 polygon, 1 disc.
      normals: of the aperture's sides.
    """

    along: Numbers
    radius: Numbers
    tint: Float32[np.ndarray, "n c"]
    softness: Numbers
    rim: Numbers
    cut: Float32[np.ndarray, "n 3"]
    roundness: float
    normals: Float32[np.ndarray, "blades 2"]


def lens(seed: int, count: int, blades: int, across: float) -> Lens:
    """A lens of `count` visible pairs; the brightest channel of the brightest is at most 1.

    Args:
      seed: of the lens.
      count: of ghosts.
      blades: of the aperture; 0 is a round one.
      across: direction across one of them, radians.
    """
    rng = np.random.default_rng(seed)
    power, roundness = rng.uniform(0.5, 1.6), (0.0, 0.35, 1.0)[fields.pick(rng, (0.3, 0.35, 0.35))]
    largest = 0.03 if rng.random() < 0.4 else 0.16  # some lenses string small ghosts like beads
    radius = np.exp(rng.uniform(np.log(0.006), np.log(largest), count))
    tint = coating_tint(rng.uniform(0.40, 0.75, (count, 2))) * np.minimum(1, (0.02 / radius) ** power)[:, None]
    along = np.where(rng.random(count) < 0.8, rng.uniform(-1.6, 0.8, count), rng.uniform(-2, 2, count))
    softness, rim = np.exp(rng.uniform(np.log(0.04), np.log(0.6), count)), np.maximum(0, rng.normal(0.2, 0.8, count))
    cut = np.column_stack([rng.normal(0, 0.45, (count, 2)), rng.uniform(1.0, 1.6, count)])
    angles = across + 2 * np.pi * np.arange(max(blades, 1)) / max(blades, 1)
    return Lens(
        along=along.astype(np.float32),
        radius=radius.astype(np.float32),
        tint=tint.astype(np.float32),
        softness=softness.astype(np.float32),
        rim=rim.astype(np.float32),
        cut=cut.astype(np.float32),
        roundness=roundness if blades else 1.0,
        normals=np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32),
    )


def coating_tint(dark: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n c"]:
    """Equation (3), brightest channel 1; wavelengths in micrometres. Layers are many and not perfect: half as saturated."""
    residual = np.cos(np.pi / 2 * dark[..., None] / light.WAVELENGTHS) ** 2 + 0.02
    tint = residual.prod(1)
    return np.sqrt(tint / tint.max(-1, keepdims=True))


def add(out: Image, source: np.ndarray, lit: Colour, lens: Lens, side: float) -> None:
    """Adds the ghosts of one source.

    Args:
      out: what to add to.
      source: (x, y) in pixels of `out`.
      lit: light of the brightest ghost, where white tint.
      lens: what throws them.
      side: of the image, in pixels of `out`.
    """
    _add(out, source.astype(np.float32), lit, side, *lens, _DISPERSION)


def mirrored(bright: Float32[np.ndarray, "h w"], tint: Colour) -> Image:
    """Equation (4): the photograph's brightest light, turned about the centre of the frame.

    Args:
      bright: how far each pixel is above white, in [0, 1], at the resolution of the layer.
      tint: of the pair's coatings, times its brightness.
    """
    soft = fields.blur(bright[::-1, ::-1], 0.0025 * fields.side(bright.shape[:2]))
    soft = np.clip(soft, 0, 1)
    return cv2.merge([soft * gain for gain in tint])


@compiled
def _add(out, source, lit, side, along, radius, tint, softness, rim, cut, roundness, normals, dispersion):  # type: ignore[no-untyped-def]
    h, w = out.shape[:2]
    straight = np.cos(np.pi / len(normals)) if len(normals) > 2 else 1.0
    corner = np.float32(1 / (straight + (1 - straight) * roundness))  # farthest of the edge, in radii: of a disc all is
    for k in range(len(along)):
        x = np.float32(w / 2) + along[k] * (source[0] - np.float32(w / 2))
        y = np.float32(h / 2) + along[k] * (source[1] - np.float32(h / 2))
        pixels = max(radius[k] * np.float32(side), np.float32(0.8))
        soft = max(softness[k], np.float32(0.7) / pixels)  # no edge is sharper than a pixel
        reach = pixels * np.float32(1.03) * (np.float32(1) + soft) * corner + np.float32(1)
        left, right = max(0, int(x - reach)), min(w, int(x + reach) + 1)
        top, bottom = max(0, int(y - reach)), min(h, int(y + reach) + 1)
        if left < right and top < bottom:
            origin = (np.float32(left) + np.float32(0.5) - x, np.float32(top) + np.float32(0.5) - y)
            part = out[top:bottom, left:right]
            _ghost(part, origin, lit * tint[k], 1 / pixels, normals, roundness, soft, rim[k], cut[k], dispersion)


@compiled
def _ghost(out, origin, lit, unit, normals, roundness, softness, rim, cut, dispersion):  # type: ignore[no-untyped-def]
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
