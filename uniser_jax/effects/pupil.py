"""How what stands in the lens spreads the light of a point: blades, dust, scratches, wiped grease.

  (1) D = |FFT(P)|^2                                        Fraunhofer diffraction by a pupil P (Goodman; Wu et al. 2021)
  (2) D_l(x) = D(x l_green / l)                             one transform serves all wavelengths where P is the same in each
  (3) C_c(x) = sum_l response_c(l) R(x l_green / l)         R: D over its own mean at each radius, so C has form but no falloff
  (4) R(r, u) = b(u) exp(-r / reach(u))                     shimmer: fractal noise b over the angle u

Patterns cost milliseconds and are the same for every photograph: a bank of COUNT is drawn from fixed numbers, each when it is
first asked for, 1 MB each. A recipe turns, scales and mirrors one of them.
"""

import functools

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from uniser_jax.effects import light

KINDS = ("aperture", "dirt", "smear", "shimmer")  # of pattern k: KINDS[k % 4]
COUNT = 40
PEAK = 36.0  # the brightest C that is kept
REACH = 0.8  # half the width of a pattern, in image sides

Pattern = UInt8[np.ndarray, "512 512 4"]
Plane = Float32[np.ndarray, "n n"]

_SIDE, _TRANSFORM = 512, 640  # of a pattern; of its pupil, so that blue, which shrinks, still fills it
_ANGLES, _RADII = 2048, 344  # in polar coordinates: finer than pixels; as far as blue is shrunk, which starts far out
_SPECTRUM = np.linspace(0.41, 0.69, 120)  # micrometres; neighbours must lie closer than the grains of the speckle
_WIDTH = 0.04  # of a colour filter
_BLADES = (5, 9)  # at least, and below


@functools.cache
def pattern(index: int) -> Pattern:
    """C of (3) as 255 sqrt(C / PEAK), the source in the middle; `index` below COUNT.

    The fourth channel is empty: OpenCV warps four more than twice as fast as three.
    """
    rng = np.random.default_rng((2021, index))
    kind, radius = KINDS[index % len(KINDS)], _radius(_TRANSFORM)
    form = _shimmer(rng, radius) if kind == "shimmer" else _diffracted(_pupil(rng, kind), radius)
    colours = _chromatic(form)
    fade = np.clip((_SIDE / 2 - _radius(_SIDE)) / (0.35 * _SIDE / 2), 0, 1)[..., None]  # no edge where the pattern ends
    stored = np.zeros((_SIDE, _SIDE, 4), np.uint8)
    stored[..., :3] = np.round(255 * np.sqrt(np.minimum(colours / PEAK, 1) * fade))
    return stored


@functools.cache
def aperture(index: int) -> tuple[int, float]:
    """Of the one that `pattern` of this index was made by: blades, and a direction across one of them, along which rays run."""
    sides, _, start = _blades(np.random.default_rng((2021, index)), KINDS[index % len(KINDS)])
    return sides, start + np.pi / sides


def _blades(rng: np.random.Generator, kind: str) -> tuple[int, float, float]:
    """How many, how straight, and where a corner is: the first draws of a pupil."""
    sides = int(rng.integers(*_BLADES))
    return sides, rng.uniform(0.3, 1) if kind == "aperture" else rng.uniform(0, 0.3), rng.uniform(0, np.pi)


def _chromatic(form: Plane) -> Float32[np.ndarray, "512 512 3"]:
    """Equation (3) in polar coordinates, where a wavelength only stretches the radius: one matrix does for all of them."""
    half, flags = _TRANSFORM / 2, cv2.INTER_LINEAR | cv2.WARP_FILL_OUTLIERS
    polar = cv2.warpPolar(form, (_RADII, _ANGLES), (half, half), _RADII, flags)
    rays = (polar @ _spread()).reshape(_ANGLES, -1, 3)
    y, x = np.mgrid[:_SIDE, :_SIDE].astype(np.float32) - _SIDE / 2
    radius, turn = cv2.cartToPolar(x, y)
    rays = np.concatenate([rays, rays[:1]])  # a full turn
    return cv2.remap(rays, radius, turn * np.float32(_ANGLES / (2 * np.pi)), cv2.INTER_LINEAR)


@functools.cache
def _spread() -> Float32[np.ndarray, "344 771"]:
    """What of R at each radius, in pixels, is seen at each radius of each channel: the sum of (3), R linear between pixels."""
    response = np.exp(-(((_SPECTRUM[:, None] - light.WAVELENGTHS) / _WIDTH) ** 2))
    radius = np.arange(_SIDE // 2 + 1)
    spread = np.zeros((_RADII, len(radius), 3))
    for wavelength, share in zip(_SPECTRUM, response / response.sum(0), strict=True):
        from_radius = radius * light.WAVELENGTHS[1] / wavelength
        near = np.maximum(1 - np.abs(np.arange(_RADII)[:, None] - from_radius), 0)
        spread += near[..., None] * share
    return spread.reshape(_RADII, -1).astype(np.float32)


def _diffracted(pupil: Plane, radius: Plane) -> Plane:
    """R of (3), from (1)."""
    transform = np.fft.fftshift(np.fft.fft2(pupil))
    power = cv2.GaussianBlur(
        (transform.real**2 + transform.imag**2).astype(np.float32), (0, 0), 0.7
    )  # the source has a size
    ring = radius.astype(np.int32)
    mean = np.bincount(ring.ravel(), power.ravel()) / np.bincount(ring.ravel())
    smooth = np.convolve(np.pad(np.log(mean + 1e-12), 4, "edge"), np.ones(9) / 9, "valid")
    ratio = power / np.exp(np.interp(radius, np.arange(len(smooth)), smooth)).astype(np.float32)
    return (1 + (ratio - 1) * np.clip(radius / 4, 0, 1)).astype(np.float32)  # the lamp's own image has no form


def _shimmer(rng: np.random.Generator, radius: Plane) -> Plane:
    """Equation (4)."""
    y, x = np.mgrid[: len(radius), : len(radius)] - len(radius) / 2
    turn = ((np.arctan2(y, x) / (2 * np.pi)) % 1).astype(np.float32)
    rays = _fractal(rng, int(rng.integers(16, 60)), 3) ** rng.uniform(1, 4)
    reach = 0.1 + 0.5 * _fractal(rng, int(rng.integers(12, 60)), 2)
    place = turn * len(rays)
    b, ends = (np.interp(place, np.arange(len(v) + 1), np.append(v, v[0])) for v in (rays / rays.mean(), reach))
    form = b * np.exp(-radius / (_SIDE * ends / REACH))
    return (1 + (form - 1) * np.clip(radius / 12, 0, 1)).astype(np.float32)


def _fractal(rng: np.random.Generator, cells: int, octaves: int) -> Float64[np.ndarray, "2048"]:
    """Periodic value noise in [0, 1]."""
    place, total = np.arange(2048) / 2048, np.zeros(2048)
    for octave in range(octaves):
        values = rng.random(cells << octave)
        total += np.interp(place * len(values), np.arange(len(values) + 1), np.append(values, values[0])) / 2**octave
    return (total - total.min()) / np.ptp(total)


def _pupil(rng: np.random.Generator, kind: str) -> Plane:
    """P, at half the transform's width, so that D is well sampled."""
    n = _TRANSFORM
    pupil = np.zeros((n, n), np.float32)
    cv2.fillPoly(pupil, [_outline(*_blades(rng, kind))], 1, cv2.LINE_AA, shift=4)
    if kind == "smear":  # phones have no blades: a round edge, far below the marks in what it scatters
        return cv2.GaussianBlur(pupil, (0, 0), n / 60) * _grease(rng)
    marks = rng.integers(40, 200) if kind == "dirt" else rng.integers(0, 12)
    for _ in range(int(marks)):
        place = rng.uniform(n / 4, 3 * n / 4, 2)
        shade = float(rng.uniform(0, 0.7))
        if rng.random() < 0.6:
            cv2.circle(pupil, tuple(int(v) for v in place), max(1, int(rng.uniform(0.002, 0.014) * n)), shade, -1)
        else:
            start, end = (tuple(int(v) for v in p) for p in (place, place + rng.normal(0, 0.12 * n, 2)))
            cv2.line(pupil, start, end, shade, 1, cv2.LINE_AA)
    return pupil


def _outline(sides: int, bend: float, start: float) -> np.ndarray:
    """A polygon with curved sides: a chord at `bend` 1, a circle at 0; in sixteenths of a pixel."""
    turn = np.linspace(0, 2 * np.pi, 16 * sides, endpoint=False)
    sector = np.pi / sides
    chord = np.cos(sector) / np.cos((turn % (2 * sector)) - sector)
    radius = _TRANSFORM / 4 * (bend * chord + 1 - bend)
    points = _TRANSFORM / 2 + radius[:, None] * np.stack([np.cos(turn + start), np.sin(turn + start)], -1)
    return (points * 16).astype(np.int32)


def _grease(rng: np.random.Generator) -> Plane:
    """What a finger or cloth leaves: one to three wipes, each a field of nearly parallel ridges: a ray across them."""
    y, x = (np.mgrid[:_TRANSFORM, :_TRANSFORM] - _TRANSFORM / 2) / (_TRANSFORM / 4)
    passed, first = np.ones_like(x), rng.uniform(0, np.pi)
    for wipe in range(int(rng.integers(1, 4))):
        angle = first + wipe * rng.uniform(0.6, 1.9)
        across, along = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        bent = across + rng.normal(0, 0.04) * along**2 + rng.normal(0, 0.02) * along
        ridges = np.interp(bent % 4 * 512, np.arange(2048), _fractal(rng, int(rng.integers(40, 160)), 4))
        passed *= 1 - rng.uniform(0.35, 0.8) * ridges
    return passed.astype(np.float32)


@functools.cache
def _radius(n: int) -> Plane:
    y, x = np.ogrid[:n, :n]
    return np.hypot((x - n / 2).astype(np.float32), (y - n / 2).astype(np.float32))
