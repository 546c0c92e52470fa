"""Airlight: the light that a medium scatters into view, and the lamps that it is scattered from.

(1) A0 = L ((1 - sky) black body(T) + sky * colour of the photograph's own sky)
(2) A = A0 (1 + sun p(angle)) + glow K * sources + sum_i lamp_i k(|x - x_i|)
(3) p = ((1 - g)^2 / (1 + g^2 - 2 g cos(angle)))^1.5         Henyey & Greenstein 1941, 1 towards the sun; g = 0.8
    cos(angle) = u . v / (|u| |v|)                           u, v: rays (x, y, 1) to pixel and sun, about the middle
(4) K: three Gaussians, sum 1                                in place of the point spread of air (Narasimhan & Nayar 2003)
(5) k = 1 / (1 + (r / r0)^2), near and wide                  light falls off as the square: 2.5 radii of the glass, and 0.3

Nothing shines that has no source: the sky L, the sun, bright places of the photograph, lamps. L carries the medium's albedo.
"""

import cv2
import numpy as np
from jaxtyping import Float32

from uniser_jax.effects import depth, fields, kernels, light
from uniser_jax.effects.compiled import compiled
from uniser_jax.effects.fields import Field
from uniser_jax.effects.layer import Shine

Lamp = tuple[float, float, float, float, float]  # x, y, kelvin, power, size; places and size are fractions of the image

_ASYMMETRY = 0.8  # g of (3)
_GLOW = ((0.5, 0.03), (0.3, 0.08), (0.2, 0.2))  # of (4): weights, and sigmas as fractions of the image side
_SOURCE = 0.9  # light above which a pixel is a source
_ONE, _HALF = np.float32(1), np.float32(0.5)
SHOWN = 0.02  # share of the frame from which on a photograph shows its sky
_SHOULDER = np.float32(2)  # how much less of the night's light comes from what was bright by day, as the sky
FIELD_OF_VIEW = 1.0  # of an image side, twice the tangent of half the angle: 53 degrees


def veil(
    small: Float32[np.ndarray, "h w c"], above: Field, luminance: float, kelvin: float, tint: float, sky: float
) -> Float32[np.ndarray, "c"]:
    """Equation (1): its arguments are those of haze.Haze; `small` is the photograph on its grid, `above` where sky may be."""
    colour = light.black_body(kelvin) * np.array([1, 2**tint, 1], np.float32)
    if sky and above.mean() > SHOWN:
        own = own_sky(small, above)
        own = np.clip(own / max(float(own @ light.LUMINANCE), 1e-3), 0.6, 1.3)  # the horizon is paler than the zenith
        colour = (1 - sky) * colour / float(colour @ light.LUMINANCE) + sky * own
    return (luminance * colour / float(colour @ light.LUMINANCE)).astype(np.float32)


def own_sky(small: Float32[np.ndarray, "h w c"], above: Field) -> Float32[np.ndarray, "c"]:
    """Mean light of the sky of a photograph, white at 1; `above`: see depth.signs."""
    return np.array(cv2.mean(np.minimum(small, 1), (above > 0.5).astype(np.uint8))[:3], np.float32)


def field(
    small: Float32[np.ndarray, "h w c"],
    veil: Float32[np.ndarray, "c"],
    sun: tuple[float, ...],
    glow: float,
    lamps: tuple[Lamp, ...],
) -> Float32[np.ndarray, "..."]:
    """Equation (2): [c], or on the grid where something makes it vary; see haze.Haze for the arguments."""
    h, w = small.shape[:2]
    sources: np.ndarray = np.zeros(1, np.float32)
    if glow:
        sources = np.maximum(small - np.float32(_SOURCE), 0)
    shines = bool(sources.any())
    if not (sun or lamps or shines):
        return veil
    lit = np.broadcast_to(veil, (h, w, 3)).copy()
    if sun:
        tangent = FIELD_OF_VIEW / fields.side((h, w))  # of a pixel
        right, below = (tangent * (place - 0.5) * n for place, n in zip(sun, (w, h), strict=False))
        _shine_far(lit, right, below, tangent, sun[2])
    if lamps:
        halos = [_lamplight(lamp, 2.5 * lamp[-1] + 0.004, 1.0) for lamp in lamps]
        _shine(lit, np.array(halos + [_lamplight(lamp, 0.3, 0.015) for lamp in lamps]))
    if shines:
        for weight, sigma in _GLOW:
            lit += np.float32(glow * weight) * fields.blur(sources, sigma * fields.side((h, w)))
    return lit


def night(radiance: Float32[np.ndarray, "h w c"], dark: float, lamps: tuple[Lamp, ...]) -> Float32[np.ndarray, "h w c"]:
    """What the night adds to the scene by day, mostly less than nothing: darkness, and the light that lamps cast."""
    small = depth.reduce(radiance, depth.cell(radiance.shape[:2]))
    lit = np.zeros_like(small)
    if lamps:
        _shine(lit, np.array([_lamplight(lamp, 0.1 + 8 * lamp[-1], 0.25) for lamp in lamps]))
        above = depth.signs(small)[0][..., None]  # where there is nothing that they light but the medium
        lit *= np.maximum(1 - 2 * above, 0)  # all of the rim, too, or roofs would glow
    lit += np.float32(dark) * light.black_body(9_000)
    return _relit(np.ascontiguousarray(radiance), fields.widen(lit, radiance.shape))


def glass(shape: tuple[int, ...], lamp: Lamp) -> Shine:
    """The glass of a lamp, a soft disc of several times white, in an image of this shape."""
    x, y, kelvin, power, size = lamp
    h, w = shape[:2]
    radius = size * fields.side((h, w))
    left, top = (max(0, int(place * n - 2 * radius - 1)) for place, n in ((x, w), (y, h)))
    right, bottom = (min(n, int(place * n + 2 * radius) + 2) for place, n in ((x, w), (y, h)))
    rows, columns = (np.arange(max(0, n), dtype=np.float32) + 0.5 for n in (bottom - top, right - left))
    r = np.hypot(columns[None] + left - x * w, rows[:, None] + top - y * h) / radius
    disc = np.clip(1.5 - r, 0, 1) if radius > 1 else np.exp(-(r**2)) * min(1.0, radius**2)
    return Shine(top, left, (np.float32(4 * power) * disc.astype(np.float32))[..., None] * light.black_body(kelvin))


def _lamplight(lamp: Lamp, reach: float, share: float) -> Float32[np.ndarray, "6"]:
    """A lamp as `_shine` takes it: x, y, r0 of (5), and a share of its light."""
    x, y, kelvin, power, _ = lamp
    red, green, blue = (share * power * light.black_body(kelvin)).tolist()
    return np.array((x, y, reach, red, green, blue), np.float32)


@compiled
def _shine(lit: kernels.Image, lamps: Float32[np.ndarray, "n 6"]) -> None:
    """Adds (5) of each lamp; lengths are in image sides."""
    h, w = lit.shape[:2]
    near = np.empty(w, np.float32)
    for n in range(len(lamps)):
        x, y, fall = (
            lamps[n, 0] * np.float32(w),
            lamps[n, 1] * np.float32(h),
            _ONE / (lamps[n, 2] ** 2 * np.float32(h * w)),
        )
        for i in range(h):
            row, down = lit[i].reshape(-1), (np.float32(i) + _HALF - y) ** 2
            for j in range(w):
                near[j] = _ONE / (_ONE + fall * ((np.float32(j) + _HALF - x) ** 2 + down))
            for j in range(w):
                row[3 * j] += near[j] * lamps[n, 3]
                row[3 * j + 1] += near[j] * lamps[n, 4]
                row[3 * j + 2] += near[j] * lamps[n, 5]


@compiled
def _relit(radiance: kernels.Image, lit: kernels.Image) -> kernels.Image:
    """The scene in another light, less the scene.

    What is bright by day, most of all the sky, was a source of light itself: by night it is as dark as all else. A mask of the
    sky would do more to it, and leave a rim of day along every roof.
    """
    h, w = radiance.shape[:2]
    out, left, lights = np.empty((h, 3 * w), np.float32), np.empty(3 * w, np.float32), lit.reshape(len(lit), 3 * w)
    for i in range(h):
        k, below, a = kernels.between_rows(i, h, len(lit))
        scene, seen, here, next_here = radiance[i].reshape(-1), out[i], lights[k], lights[below]
        for j in range(w):
            y = (scene[3 * j] + np.float32(2) * scene[3 * j + 1] + scene[3 * j + 2]) * np.float32(0.25)
            y = y if y < _ONE else _ONE  # not min: this vectorises
            share = _ONE / (_ONE + _SHOULDER * y)
            left[3 * j] = share
            left[3 * j + 1] = share
            left[3 * j + 2] = share
        for n in range(3 * w):
            value = scene[n]
            held = value if value < _ONE else _ONE
            seen[n] = held * (left[n] * (here[n] + a * (next_here[n] - here[n]))) - value
    return out.reshape(h, w, 3)


@compiled
def _shine_far(lit: kernels.Image, right: float, below: float, tangent: float, strength: float) -> None:
    """Multiplies by what the sun adds, equation (3): its ray (right, below, 1), even outside the frame; a pixel's tangent."""
    h, w = lit.shape[:2]
    g, along = np.float32(_ASYMMETRY), np.float32(tangent)
    x, y, most = np.float32(right), np.float32(below), np.float32(strength) * (_ONE - g) ** 3
    turn = np.float32(2) * g / np.sqrt(_ONE + x * x + y * y)
    gain = np.empty(w, np.float32)
    for i in range(h):
        down, row = along * (np.float32(i) + np.float32(0.5 - h / 2)), lit[i].reshape(-1)
        for j in range(w):
            across = along * (np.float32(j) + np.float32(0.5 - w / 2))
            cosine = (_ONE + x * across + y * down) / np.sqrt(_ONE + across * across + down * down)
            rest = _ONE + g * g - turn * cosine
            gain[j] = _ONE + most / (rest * np.sqrt(rest))
        for j in range(w):
            row[3 * j] *= gain[j]
            row[3 * j + 1] *= gain[j]
            row[3 * j + 2] *= gain[j]
