"""Where the light of a flare comes from: the photograph's own highlights, lamps hung into it, lights outside the frame."""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32

from uniser_jax.effects import depth, fields, light
from uniser_jax.effects.layer import Scene

Rgb = tuple[float, float, float]
Kelvin = tuple[int, int] | None

LAMPS, SUN = (2_600, 9_000), (4_500, 6_000)  # kelvin: from candle to sky; from low to high

_SEEN_AT = 256  # px, the longer side of the image on which highlights are looked for
_BRIGHT, _RIM = 0.92, 0.4  # luminance of a highlight; of what still shows a clipped lamp's colour
_LARGEST = 0.12  # of the frame; what is larger is sky
NIGHT = 0.07  # a dark photograph's median luminance
_SKY = 0.05  # of a photograph, from which on the sun is in it or near
_CLIPPED, _CORE = 0.985, 0.16  # what is clipped; the share of a light by day where all channels are, unlike paper's
_AUREOLE = 0.6  # least luminance of the sky around the sun; a clear one has five times that at 60 degrees (ISO 15469)
_WEAKEST = 0.12  # share of a light worth drawing
_LEDS = ((1.0, 0.06, 0.04), (0.1, 1.0, 0.35), (0.15, 0.3, 1.0), (1.0, 0.55, 0.1), (0.9, 0.2, 1.0))


class Source(NamedTuple):
    """One light.

    Args:
      x: fraction of the width; outside [0, 1] it is out of frame.
      y: fraction of the height.
      share: its light against the brightest's.
      size: its radius, as a fraction of the side.
      colour: linear RGB, its brightest channel 1.
    """

    x: float
    y: float
    share: float
    size: float
    colour: Rgb


def reduced(scene: Scene) -> Float32[np.ndarray, "h w c"]:
    """The photograph at up to 256 px, where its lights are looked for."""
    h, w = scene.radiance.shape[:2]
    factor = -(-max(h, w) // _SEEN_AT)
    return fields.shrink(scene.radiance, (max(1, h // factor), max(1, w // factor)))


def by_night(small: Float32[np.ndarray, "h w c"]) -> bool:
    """Whether most of a photograph (see `reduced`) is dark."""
    dark = light.luminance(small)[::3, ::3] < NIGHT
    return bool(2 * np.count_nonzero(dark) > dark.size)


def highlights(small: Float32[np.ndarray, "h w c"], most: int) -> list[Source]:
    """The largest connected highlights of a photograph (see `reduced`): true centre, size and colour, the brightest first.

    By day white things are not lights: only what the camera could not hold in any channel counts.
    """
    brightness, day = light.luminance(small), not by_night(small)
    bright = (brightness > _BRIGHT).view(np.uint8)
    if not bright.any():
        return []
    _, _, stats, centres = cv2.connectedComponentsWithStats(bright, ltype=cv2.CV_16U)
    areas = stats[1:, cv2.CC_STAT_AREA]
    parts = [part + 1 for part in np.argsort(-areas, kind="stable") if areas[part] < _LARGEST * brightness.size]
    found = []
    for part in parts[: 4 * most]:
        left, top, wide, high, area = stats[part]
        box = np.s_[max(0, top - 2) : top + high + 2, max(0, left - 2) : left + wide + 2]
        near = brightness[box]
        if day and (small[box].min(-1)[near > _BRIGHT] > _CLIPPED).mean() < _CORE:
            continue
        rim = small[box][(near > _RIM) & (near < 1)]
        colour = _hue(rim.mean(0)) if len(rim) else (1.0, 1.0, 1.0)
        x, y = (centres[part] + 0.5) / brightness.shape[::-1]
        radius = float(np.sqrt(area / np.pi)) / fields.side(brightness.shape)
        found.append(Source(float(x), float(y), float(near[near > _BRIGHT].sum()), radius, colour))
    found = found[:most]
    brightest = max((each.share for each in found), default=1.0)
    lights = [
        each._replace(share=(each.share / brightest) ** 0.7) for each in found
    ]  # a file hides how bright: a milder law
    return sorted((each for each in lights if each.share > _WEAKEST), key=lambda each: -each.share)


def sky(small: Float32[np.ndarray, "h w c"]) -> Float32[np.ndarray, "16 16"] | None:
    """Where a photograph (see `reduced`) shows the sky; None where it hardly does."""
    above, _, _ = depth.signs(depth.reduce(small, depth.cell(small.shape[:2])))
    return fields.shrink(above, (16, 16)) if above.mean() > _SKY else None


def night_air(small: Float32[np.ndarray, "h w c"]) -> Float32[np.ndarray, "16 16"]:
    """Where lamps may hang in a dark photograph (see `reduced`): before what is black, not on what they would have lit."""
    return np.maximum(1 - _cells(small) / NIGHT, 0) + np.float32(0.01)


def by_sun(
    small: Float32[np.ndarray, "h w c"], sky: Float32[np.ndarray, "16 16"] | None
) -> Float32[np.ndarray, "16 16"] | None:
    """Where the sun may stand in a sky: where it is bright, as it is around the sun; None where it is not."""
    if sky is None:
        return None
    places = sky * (_cells(small) > _AUREOLE)
    return places if places.any() else None


def _cells(small: Float32[np.ndarray, "h w c"]) -> Float32[np.ndarray, "16 16"]:
    return light.luminance(fields.shrink(small, (16, 16)))


def hung(
    rng: np.random.Generator, places: Float32[np.ndarray, "16 16"], count: int, kelvin: Kelvin = None
) -> list[Source]:
    """Lights in the frame, rather above than below, where these weights have them; the first is the brightest."""
    weight = places * np.linspace(1, 0.1, 16)[:, None] ** 3
    cells = rng.choice(256, count, p=(weight / weight.sum()).ravel())
    first = lamp_colour(rng, kelvin)
    alike = rng.random() < 0.6  # lamps of one street
    sources: list[Source] = []
    for cell in cells:
        row, column = divmod(int(cell), 16)
        x, y = (column + rng.random()) / 16, (row + rng.random()) / 16
        share = float(rng.uniform(0.15, 1)) if sources else 1.0
        colour = first if alike or not sources else lamp_colour(rng, kelvin)
        sources.append(Source(float(x), float(y), share, 0.0, colour))
    return sources


def outside(rng: np.random.Generator, count: int, kelvin: Kelvin = None) -> list[Source]:
    """Lights that shine in from beyond the frame, most from above."""
    sources: list[Source] = []
    for _ in range(count):
        distance, along = rng.uniform(0.01, 0.2), rng.uniform(0, 1)
        places = ((along, -distance), (-distance, along), (1 + distance, along), (along, 1 + distance))
        x, y = places[fields.pick(rng, (0.5, 0.22, 0.22, 0.06))]
        share = float(rng.uniform(0.3, 1)) if sources else 1.0
        sources.append(Source(float(x), float(y), share, 0.0, lamp_colour(rng, kelvin)))
    return sources


def lamp_colour(rng: np.random.Generator, kelvin: Kelvin = None) -> Rgb:
    """Of a black body of such a temperature; of any lamp's, or now and then of a signal or an advertisement."""
    if kelvin is None and rng.random() < 0.12:
        return fields.any_of(rng, _LEDS)
    return _hue(light.black_body(float(rng.uniform(*(kelvin or LAMPS)))))


def beyond(source: Source, shape: fields.Shape) -> float:
    """How far a source lies out of the frame, in image sides; 0 within."""
    h, w = shape
    dx, dy = max(-source.x, source.x - 1, 0.0) * w, max(-source.y, source.y - 1, 0.0) * h
    return float(np.hypot(dx, dy)) / fields.side(shape)


def _hue(colour: Float32[np.ndarray, "c"]) -> Rgb:
    red, green, blue = (max(0.02, float(v)) for v in colour / max(float(colour.max()), 1e-6))
    return red, green, blue
