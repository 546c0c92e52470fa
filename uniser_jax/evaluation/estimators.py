"""What a soft effect measures in a pair of photographs: veil and rays, umbra and penumbra, reflected energy, optical depth.

  (1) flare:      seen = clean + F
  (2) shadow:     seen = (1 - m (1 - k)) clean           coverage m, light k left in the umbra
  (3) reflection: seen = t clean + R
  (4) haze:       seen = exp(-tau) clean + A (1 - exp(-tau))

in linear light. An estimator knows the two photographs and nothing else, so that it can be held to real and to rendered pairs
alike. What the pair does not tell is NaN. Sizes are fractions of the image side, see `fields.side`.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from uniser_jax.effects import fields, light

Image = UInt8[np.ndarray, "h w c"]
Radiance = Float32[np.ndarray, "h w c"]
Plane = Float32[np.ndarray, "h w"]
Where = Bool[np.ndarray, "h w"]
Row = dict[str, float]

_CLIPPED = 0.9  # linear; above it a file, and what a blur leaves of its clipped parts, says little
_SATURATED = 0.99
_VISIBLE = 12  # of 255 levels
_NOISE = 0.01  # linear; rays below it may be noise

_SHADOW = (
    "k_g, light left in the umbra",
    "k_r / k_g",
    "k_b / k_g",
    "k_b / k_r",
    "penumbra 10-90 %, % of the side",
    "covered share",
)


class Pair(NamedTuple):
    """A view with an effect and without it, linear light."""

    seen: Radiance
    clean: Radiance


def flare(pair: Pair) -> Row:
    """Statistics of F of (1), once the drift of exposure between the two shots is divided out."""
    drift = exposure_drift(pair).astype(np.float32)
    seen, clean = _smooth(Pair(pair.seen / drift, pair.clean), 0.003)
    inside = (clean.max(-1) < _CLIPPED) & (pair.seen.max(-1) < _SATURATED)
    layer = (seen - clean) * inside[..., None]
    added = light.luminance(layer)
    centre = flare_centre(added, inside)
    radius = _radius(*centre, added.shape)
    red, blue = colour(layer, added)
    return {
        "mean added light, % of white": 100 * _mean(added[inside]),
        "median of it": 100 * _quantile(added[inside], 0.5),
        "99 % quantile of it": 100 * _quantile(added[inside], 0.99),
        "mean added / mean clean light": _mean(added[inside]) / max(_mean(light.luminance(clean)[inside]), 1e-6),
        "veil at r = 5 % of the side, % of white": 100 * veil(added, radius, inside),
        "radial exponent n of r^-n": radial_exponent(added, radius, inside),
        "rays, 95 % quantile / median on rings": ray_contrast(added, radius, inside),
        "rays, width at half height, % of the side": 100 * ray_width(added, centre),
        "share changed by > 12/255": changed(seen, clean),
        "colour, red / green": red,
        "colour, blue / green": blue,
    }


def exposure_drift(pair: Pair) -> Float[np.ndarray, "c"]:
    """Gain of `seen` against `clean` per channel: the median ratio where that is bright, for there added light weighs least."""
    seen, clean = _smooth(pair, 0.01)
    lit = (clean.max(-1) < _CLIPPED) & (seen.max(-1) < _CLIPPED)
    if not lit.any():
        return np.ones(3)
    seen, clean = seen[lit], np.maximum(clean[lit], 1e-4)
    bright = clean >= np.quantile(clean, 0.75, 0)
    gains = [np.median(seen[bright[:, c], c] / clean[bright[:, c], c]) for c in range(3)]
    return np.maximum(gains, 1e-3)


def flare_centre(added: Plane, inside: Where) -> tuple[int, int]:
    """Row and column around which most light was added, for each pixel that is not clipped."""
    sigma = 0.02 * fields.side(added.shape)
    share = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), sigma)
    around = cv2.GaussianBlur(np.maximum(added, 0), (0, 0), sigma) / np.maximum(share, 0.2)
    row, column = np.unravel_index(int(around.argmax()), around.shape)
    return int(row), int(column)


def veil(added: Plane, radius: Plane, inside: Where) -> float:
    """Median added light on the ring from 4 to 6 % of the side."""
    return _quantile(added[inside & (radius > 0.04) & (radius < 0.06)], 0.5)


def radial_exponent(added: Plane, radius: Plane, inside: Where) -> float:
    """n of r^-n, fitted to the mean light of rings from 3 to 40 % of the side; 2 for the veil in an eye (CIE 146)."""
    edges = np.geomspace(0.03, 0.4, 9)
    rings = [inside & (radius >= low) & (radius < high) for low, high in itertools.pairwise(edges)]
    mean, r = np.array([_mean(added[ring]) for ring in rings]), np.sqrt(edges[:-1] * edges[1:])
    good = np.nan_to_num(mean) > 1e-3
    return -float(np.polyfit(np.log(r[good]), np.log(mean[good]), 1)[0]) if good.sum() >= 4 else np.nan


def ray_contrast(added: Plane, radius: Plane, inside: Where) -> float:
    """How much rays stand out: 95 % quantile over median on rings from 5 to 19 % of the side; near 1 for a smooth glow."""
    rings = [added[inside & (radius >= low) & (radius < low + 0.03)] for low in (0.05, 0.08, 0.12, 0.16)]
    ratios = [
        _quantile(ring, 0.95) / max(_quantile(ring, 0.5), 0.002) for ring in rings if _quantile(ring, 0.95) > _NOISE
    ]
    return float(np.median(ratios)) if ratios else np.nan


def ray_width(added: Plane, centre: tuple[int, int]) -> float:
    """Mean width of what exceeds half the maximum on circles from 6 to 25 % of the side; the median of the circles."""
    side, turn = fields.side(added.shape), np.linspace(0, 2 * np.pi, 720, endpoint=False)
    widths = []
    for radius in (0.06, 0.1, 0.15, 0.25):
        x, y = centre[1] + radius * side * np.cos(turn), centre[0] + radius * side * np.sin(turn)
        profile = cv2.remap(added, x[None].astype(np.float32), y[None].astype(np.float32), cv2.INTER_LINEAR)[0]
        above = profile > profile.max() / 2
        rays = (above & ~np.roll(above, 1)).sum()
        if profile.max() > _NOISE and rays:
            widths.append(above.mean() * 2 * np.pi * radius / rays)
    return float(np.median(widths)) if widths else np.nan


def changed(seen: Radiance, clean: Radiance) -> float:
    """Share of pixels with a channel that differs by more than 12 of 255 stored levels."""
    return float((cv2.absdiff(light.encode(clean), light.encode(seen)).max(-1) > _VISIBLE).mean())


def colour(layer: Radiance, added: Plane) -> tuple[float, float]:
    """Red and blue of an added layer against green, over its brightest twentieth."""
    red, green, blue = layer[added >= max(float(np.quantile(added, 0.95)), 0.004)].sum(0)
    return (float(red / green), float(blue / green)) if green > 0 else (np.nan, np.nan)


def shadow(pair: Pair) -> Row:
    """Statistics of m and k of (2); lit parts define 1, so the exposures may differ."""
    ratio = ratio_of_light(pair)
    dark = in_shadow(ratio[..., 1])
    if not 0.002 < dark.mean() < 0.98:
        return dict.fromkeys(_SHADOW, np.nan)
    lit = np.median(ratio[~dark], 0)
    k = umbra(ratio / lit, dark)
    covered = ratio[..., 1] / lit[1] < (1 + k[1]) / 2
    width = penumbra(Pair(pair.seen / lit, pair.clean), covered, k[1])
    values = (k[1], k[0] / k[1], k[2] / k[1], k[2] / k[0], 100 * width, covered.mean())
    return dict(zip(_SHADOW, map(float, values), strict=True))


def ratio_of_light(pair: Pair) -> Radiance:
    """`seen` over `clean`, 1 where both are clipped."""
    seen, clean = _smooth(pair, 0.004)
    ratio = np.clip((seen + 1e-4) / (clean + 1e-4), 1e-3, 2)
    ratio[(seen.max(-1) > _CLIPPED) & (clean.max(-1) > _CLIPPED)] = 1
    return ratio


def in_shadow(ratio: Plane) -> Where:
    """Where a ratio of light belongs to the darker of two groups (Otsu 1979)."""
    levels = np.round(255 * np.clip(ratio, 0, 1.2) / 1.2).astype(np.uint8)
    threshold, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return levels <= threshold


def umbra(ratio: Radiance, dark: Where) -> Float[np.ndarray, "c"]:
    """k per channel: the median ratio over the half of the shadow that lies deepest inside."""
    depth = cv2.distanceTransform(dark.astype(np.uint8), cv2.DIST_L2, 5)
    return np.median(ratio[dark & (depth >= np.median(depth[dark]))], 0)


def penumbra(pair: Pair, covered: Where, k: float) -> float:
    """Distance over which m goes from 10 to 90 % along the normal of the outline, as a fraction of the side.

    Light is summed at equal distances from the outline before a ratio is taken, so that noise and texture average out.

    Args:
      pair: lit parts equal.
      covered: where m exceeds a half.
      k: light left in the umbra, green.
    """
    inner, outer = (cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 5) for part in (covered, ~covered))
    distance = np.where(covered, inner - 0.5, 0.5 - outer)  # the transform is 1 at the first pixel across the outline
    side = fields.side(covered.shape)
    reach = round(0.12 * side)
    bins = np.floor(distance).astype(int) + reach
    near = (bins >= 0) & (bins < 2 * reach) & (pair.clean[..., 1] < _CLIPPED)
    count, place = (np.bincount(bins[near], weight, 2 * reach) for weight in (None, distance[near]))
    seen, clean = (np.bincount(bins[near], image[..., 1][near], 2 * reach) for image in pair)
    good = (count >= 8) & (clean > 0)
    profile = np.maximum.accumulate((1 - seen[good] / clean[good]) / max(1 - k, 1e-3))
    if good.sum() < 4 or profile[0] > 0.1 or profile[-1] < 0.9:
        return np.nan
    low, high = (np.interp(level, profile, place[good] / count[good]) for level in (0.1, 0.9))
    return float((high - low) / side)


def reflection(pair: Pair) -> Row:
    """Statistics of t and R of (3)."""
    seen, clean = _smooth(pair, 0.004)
    t = transmission(pair)
    layer = np.maximum(seen - t * clean, 0)
    layer[seen.max(-1) > _SATURATED] = 0
    added = light.luminance(layer)
    red, blue = colour(layer, added)
    return {
        "t, transmission and exposure": t,
        "energy, mean R / mean t clean": _mean(added) / max(t * _mean(light.luminance(clean)), 1e-6),
        "share visible by > 12/255": changed(seen, t * clean),
        "share of the frame with half of R": concentration(added),
        "sharpness of R / of the scene": sharpness(pair, t),
        "colour, red / green": red,
        "colour, blue / green": blue,
    }


def transmission(pair: Pair) -> float:
    """t: the 10 % quantile of the ratio of light, for a reflection only adds."""
    seen, clean = (light.luminance(image) for image in _smooth(pair, 0.01))
    good = (clean > 0.02) & (clean < _CLIPPED) & (seen < _CLIPPED)
    return float(np.quantile(seen[good] / clean[good], 0.1)) if good.any() else 1.0


def concentration(added: Plane) -> float:
    """Smallest share of the frame that holds half of a layer's light; 0.5 for a flat one."""
    falling = np.cumsum(np.sort(added, None)[::-1], dtype=np.float64)
    return float(np.searchsorted(falling, falling[-1] / 2) / falling.size) if falling[-1] > 0 else np.nan


def sharpness(pair: Pair, t: float) -> float:
    """Root of gradient energy over energy of the reflection, against that of the scene.

    Taken where the scene's own gradient is below its median: two shots a fraction of a pixel apart leave edges of the scene in
    their difference.
    """
    seen, clean = (light.luminance(image) for image in _smooth(pair, 0.002))
    layer, edges = seen - t * clean, _gradient(clean)
    quiet = (edges <= np.median(edges)) & (seen < _CLIPPED) & (layer > 0)
    if quiet.sum() < 100:
        return np.nan
    reflected = np.sum(_gradient(layer)[quiet] ** 2) / max(np.sum(layer[quiet] ** 2), 1e-9)
    return float(np.sqrt(reflected / max(np.sum(edges**2) / max(np.sum(clean**2), 1e-9), 1e-9)))


def haze(pair: Pair) -> Row:
    """Statistics of (4): of stored values where the eye counts, of linear light where physics does."""
    depths = optical_depths(pair)
    airlight = brightest_haze(pair.seen)
    images = [light.encode(image) for image in pair]
    contrast, saturation, dark = (
        [_mean(of(image)) for image in images] for of in (_contrast, _saturation, _dark_channel)
    )
    return {
        "local contrast left": contrast[0] / max(contrast[1], 1e-3),
        "saturation left": saturation[0] / max(saturation[1], 1e-3),
        "rise of the dark channel, of 255": dark[0] - dark[1],
        "airlight, luminance": float(airlight @ light.LUMINANCE),
        "airlight, red / green": float(airlight[0] / airlight[1]),
        "airlight, blue / green": float(airlight[2] / airlight[1]),
        "tau, 10 % of the blocks": _quantile(depths, 0.1),
        "tau, median": _quantile(depths, 0.5),
        "tau, 90 % of the blocks": _quantile(depths, 0.9),
        "tau, 90 % - 10 %": _quantile(depths, 0.9) - _quantile(depths, 0.1),
    }


def optical_depths(pair: Pair) -> Float[np.ndarray, "n"]:
    """tau of blocks: -log of what is left of the standard deviation of linear green, where there was texture."""
    size = max(4, round(0.06 * fields.side(pair.clean.shape[:2])))
    before, after = (_blocks(image[..., 1], size).std(1) for image in (pair.clean, pair.seen))
    textured = before > max(0.02, float(np.median(before)) / 2)
    return -np.log(np.maximum(after[textured] / before[textured], 1e-3))


def brightest_haze(seen: Radiance) -> Float[np.ndarray, "c"]:
    """A: mean of the hundredth of the frame with the highest dark channel (He, Sun & Tang 2009)."""
    dark = _dark_channel(seen)
    return np.maximum(seen[dark >= np.quantile(dark, 0.99)].mean(0), 1e-4)


def _dark_channel(image: np.ndarray) -> np.ndarray:
    return cv2.erode(image.min(-1), np.ones((_window(image.shape),) * 2, np.uint8))


def _contrast(image: Image) -> Plane:
    """Local standard deviation of the stored gray value."""
    gray, window = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (_window(image.shape) + 2,) * 2
    return np.sqrt(np.maximum(cv2.blur(gray * gray, window) - cv2.blur(gray, window) ** 2, 0))


def _saturation(image: Image) -> Plane:
    high = image.max(-1).astype(np.float32)
    return (high - image.min(-1)) / np.maximum(high, 1)


def _window(shape: tuple[int, ...]) -> int:
    """3 % of the side, odd; the 15 px of He et al. at 512."""
    return 2 * round(0.015 * fields.side((shape[0], shape[1]))) + 1


def _blocks(plane: Plane, size: int) -> Float32[np.ndarray, "n m"]:
    rows, columns = plane.shape[0] // size, plane.shape[1] // size
    cut = plane[: rows * size, : columns * size].reshape(rows, size, columns, size)
    return cut.swapaxes(1, 2).reshape(rows * columns, size * size)


def _gradient(plane: Plane) -> Plane:
    return cv2.magnitude(*(cv2.Sobel(plane, cv2.CV_32F, dx, 1 - dx, scale=1 / 8) for dx in (1, 0)))


def _radius(row: int, column: int, shape: tuple[int, int]) -> Plane:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (np.hypot(x - column, y - row) / fields.side(shape)).astype(np.float32)


def _smooth(pair: Pair, share: float) -> Pair:
    """Blurs both by a share of the side, against noise and misalignment."""
    sigma = share * fields.side(pair.clean.shape[:2])
    return Pair(*(fields.blur(image, sigma) for image in pair))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else np.nan


def _quantile(values: np.ndarray, share: float) -> float:
    return float(np.quantile(values, share)) if values.size else np.nan


ESTIMATORS: dict[str, Callable[[Pair], Row]] = {
    "shadow": shadow,
    "haze": haze,
    "reflection": reflection,
    "flare": flare,
}
