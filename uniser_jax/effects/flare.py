"""Lens flare: the lens spreads a little of a strong light over the frame.

  (1) seen = J + F,  F = sum over sources of colour * share * (l^-p scatter + streaks + ghosts) + mirror
  (2) scatter: G(r) (1 - d + d C_c(x))          glare, and what the pupil makes of it: `glare` (1, 2), `pupil` (1 to 4)
  (3) ghosts, mirror: images of aperture and lamps thrown back by pairs of surfaces: `ghosts` (1 to 4)
  (4) lamp(r) = P (1 + (r / r0)^2)^-b           a lamp hung into the scene and the lens's core: clipped within its radius
  (5) k F,  k = (2 sqrt(J) + v) v / F at a quantile      what lets so many pixels change by v in the root of light; at least 1

Brightness is quoted as the veil at 5 % of the side from the source, which is what one sees, not as the radiance of the source,
which no file holds; counted from the edge of the frame for a source beyond it. A phone's ranges are those measured on pairs of
photographs at night: F of 0.003 to 0.1 there, a third of it at 12 %, blue against the lamp (p of (1)), four times as bright in
its rays as on average. A camera's are wider. The source itself stays: the photograph's own highlights do, and a lamp is added
to the scene, not to the flare.
"""

import dataclasses
import math
from typing import Any, ClassVar, Self

import numpy as np
from jaxtyping import Float32

from uniser_jax.effects import fields, ghosts, glare, kernels, light, pupil, sources, templates
from uniser_jax.effects.compiled import compiled
from uniser_jax.effects.glare import Glare, Grain
from uniser_jax.effects.layer import Affine, Scene, Shine, Strength, per_channel, per_pixel
from uniser_jax.effects.sources import Rgb, Source

Image = Float32[np.ndarray, "h w c"]

_WHOLE = 256  # px; larger photographs get a flare of half their resolution
_PEAK, _STEEP = 30.0, 2.2  # P and b of (4)
_BRIGHTEST = 8.0
_SUN = 4  # times the veil of a lamp at night
_VISIBLE, _SHARE = 0.08, 0.02  # change of the root of light that such a share of pixels shall have at full strength
_MOST, _LOOKED_AT = 20.0, 32  # k of (5); it is looked for on every so manyth of the side
_PHONE_KINDS, _LENS_KINDS = (0.1, 0.1, 0.75, 0.05), (0.3, 0.25, 0.15, 0.3)  # weights of pupil.KINDS


@dataclasses.dataclass(frozen=True)
class FlareSampling:
    """What draws come from.

    Args:
      own: share of photographs with highlights whose flare comes from these.
      outside: share of the other flares whose sources lie out of frame.
      phone: share of flares of a small lens with finger marks: steep, with thin rays; in dark photographs at 2.5 times
        the odds.
      phone_level: lowest and highest veil of these in the dark, linear, white at 1; four times that in daylight.
      lens_level: of the others.
      ghosts: share with ghosts.
      mirror: share of phone flares with mirrored lamps.
      streaks: share with streaks, of flares of a camera; half of it of those of a phone.
      layers: folder of real flares on black; "" for none.
      real: share of flares that come from it.

    Raises:
      ValueError: for a share outside [0, 1], levels that are no range, or `real` without `layers`.
    """

    own: float = 0.7
    outside: float = 0.2
    phone: float = 0.5
    phone_level: tuple[float, ...] = (0.015, 0.1)
    lens_level: tuple[float, ...] = (0.05, 0.4)
    ghosts: float = 0.6
    mirror: float = 0.4
    streaks: float = 0.25
    layers: str = ""
    real: float = 0.0

    def __post_init__(self) -> None:
        for name in ("own", "outside", "phone", "ghosts", "mirror", "streaks", "real"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"edit.families.flare.{name} = {getattr(self, name)}: expected in [0, 1]")
        for name in ("phone_level", "lens_level"):
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1] < math.inf:
                raise ValueError(
                    f"edit.families.flare.{name} = {value}: expected lowest and highest, above 0 and finite"
                )
        if self.real and not self.layers:
            raise ValueError(f"edit.families.flare.real = {self.real}: expected a folder in edit.families.flare.layers")


@dataclasses.dataclass(frozen=True)
class FlareLayer:
    """Equation (1), strength as in (3) of `layer`.

    Args:
      scattered: F, of all columns and as many rows or fewer, linear between them.
      height: of the photograph, in pixels.
      lamp: see layer.Layer.
    """

    effect: ClassVar[str] = "flare"
    scattered: Float32[np.ndarray, "rows w c"]
    height: int
    lamp: Shine | None = None

    def __call__(self, radiance: Image, strength: Strength) -> Image:
        """Equation (1)."""
        return _lit(np.ascontiguousarray(radiance), self.scattered, per_pixel(strength))

    @property
    def transmission(self) -> Float32[np.ndarray, "c"]:
        """All of it."""
        return np.ones(3, np.float32)

    @property
    def emission(self) -> Image:
        """F at full size."""
        return self(np.zeros((self.height, *self.scattered.shape[1:]), np.float32), 1.0)

    def at(self, strength: Strength) -> Affine:
        """The same as an affine map."""
        s = per_channel(strength)
        return Affine(self.transmission, s * self.emission)


@compiled
def _lit(radiance: Image, scattered: Image, strength: Float32[np.ndarray, "h w"]) -> Image:
    """x + s F, F between its rows."""
    h, w = radiance.shape[:2]
    out, of_row = np.empty((h, 3 * w), np.float32), np.empty(3 * w, np.float32)
    scene, light_of = radiance.reshape(h, 3 * w), scattered.reshape(len(scattered), 3 * w)
    for i in range(h):
        k, below, a = kernels.between_rows(i, h, len(light_of))
        kernels.per_value(strength, i, of_row)
        behind, seen, here, there = scene[i], out[i], light_of[k], light_of[below]
        for n in range(3 * w):
            seen[n] = behind[n] + of_row[n] * (here[n] + a * (there[n] - here[n]))
    return out.reshape(h, w, 3)


@compiled
def _needed(radiance: Image, flare: Image, half: int, step: int, change: np.float32) -> Float32[np.ndarray, "n"]:
    """k of (5) for every `step`-th pixel of a flare, a `half`-th of the photograph's size: infinite where white is too near."""
    rows, columns = (flare.shape[0] + step - 1) // step, (flare.shape[1] + step - 1) // step
    needed = np.full(rows * columns, np.inf, np.float32)
    for i in range(rows):
        for j in range(columns):
            y, x = i * step, j * step
            for c in range(3):
                root = np.sqrt(max(radiance[half * y, half * x, c], np.float32(0)))
                if root + change <= np.float32(1):
                    k = (2 * root + change) * change / flare[y, x, c]
                    needed[i * columns + j] = min(needed[i * columns + j], k)
    return needed


@dataclasses.dataclass(frozen=True)
class Flare:
    """One lens and its light sources. Lengths are fractions of the image side.

    Args:
      sources: (x, y, share, size) of each, see `sources.Source`.
      colours: of each.
      level: the veil at 5 % of the side from the brightest source, linear, white at 1.
      falloff: n of `glare` (1).
      core: r0.
      bloom: b and s_b.
      veil: v and s_v.
      pattern: which of `pupil.COUNT`.
      formed: d of (2).
      turn: of the pattern and the aperture, radians.
      zoom: of the pattern.
      mirrored: the pattern, left for right.
      spectrum: p, scattered light goes as wavelength^-p: 0 large marks, 4 fine ones.
      streaks: (light against the level, angle in radians, width, length) of each.
      streak_colour: of them, times the source's.
      ghosts: how many.
      ghost_level: the brightest ghost's light against the level.
      blades: of the aperture; 0 is a round one, as of phones.
      mirror: brightness of mirrored highlights.
      lamp: radius of the lamps added to the scene; 0 where the photograph has its own.
      layer: path of a real flare that stands for scatter, streaks and ghosts; "" for none.
      seed: of the ghosts.
      visible: v of (5), the change that a fiftieth of the frame has at least, if need be by more light than the level says.
    """

    effect: ClassVar[str] = "flare"
    sources: tuple[tuple[float, float, float, float], ...]
    colours: tuple[Rgb, ...]
    level: float
    falloff: float
    core: float
    bloom: tuple[float, float]
    veil: tuple[float, float]
    pattern: int
    formed: float
    turn: float
    zoom: float
    mirrored: bool
    spectrum: float
    streaks: tuple[tuple[float, float, float, float], ...]
    streak_colour: Rgb
    ghosts: int
    ghost_level: float
    blades: int
    mirror: float
    lamp: float
    layer: str
    seed: int
    visible: float = 0.0

    @classmethod
    def sample(cls, rng: np.random.Generator, scene: Scene, sampling: FlareSampling = FlareSampling()) -> Self:
        """Draws lights, then a phone's lens or a camera's."""
        small = sources.reduced(scene)
        dark = sources.by_night(small)
        lights, lamp = _lights(rng, small, dark, sampling)
        odds = 2.5 if dark else 1
        phone = rng.random() * (1 + (odds - 1) * sampling.phone) < odds * sampling.phone
        bounds = sampling.phone_level if phone else sampling.lens_level
        level = fields.log_uniform(rng, *bounds) * (1 if dark or not phone else _SUN)
        body = _scatter(rng, phone) | _streaks(rng, sampling.streaks * (0.5 if phone else 1.0))
        within = Glare(body["falloff"], body["core"], body["bloom"], body["veil"])
        farthest = sources.beyond(lights[0], scene.radiance.shape[:2]) + np.hypot(glare.QUOTED, lights[0].size)
        with_ghosts, with_mirror = rng.random(2) < (sampling.ghosts, sampling.mirror * phone)
        count = int(rng.integers(1, 5 if phone else 13))
        brightest = fields.log_uniform(rng, 0.15, 1.2)
        mirror, seed = rng.uniform(0.03, 0.3), int(rng.integers(2**31))
        layer = ""
        if sampling.real and rng.random() < sampling.real:
            layer = templates.usable(sampling.layers, int(rng.integers(len(templates.paths(sampling.layers)))))
        return cls(
            sources=tuple((each.x, each.y, each.share, each.size) for each in lights),
            colours=tuple(each.colour for each in lights),
            level=float(level / max(float(within(np.array(farthest))), 0.12)),
            ghosts=count if with_ghosts else 0,
            ghost_level=float(brightest * level),
            blades=0 if phone else pupil.aperture(body["pattern"])[0],
            mirror=float(mirror) if with_mirror else 0.0,
            lamp=lamp,
            layer=layer,
            seed=seed,
            visible=_VISIBLE,
            **body,
        )

    def render(self, scene: Scene) -> FlareLayer:
        """The layer on one photograph.

        Raises:
          ValueError: if the real flare cannot be read.
        """
        h, w = scene.radiance.shape[:2]
        half = 2 if max(h, w) > _WHOLE else 1
        flare = np.zeros(((h + half - 1) // half, (w + half - 1) // half, 3), np.float32)
        self._add_template(flare) if self.layer else self._add_lens(flare)
        lamp = self._lamps((h, w), scene) if self.lamp else None
        if self.mirror:
            flare += self._mirrored(scene.radiance if lamp is None else lamp.onto(scene.radiance), flare.shape[:2])
        if self.visible:
            step = max(1, round(fields.side(flare.shape[:2]) / _LOOKED_AT))
            needed = _needed(np.ascontiguousarray(scene.radiance), flare, half, step, np.float32(self.visible))
            if (k := min(fields.quantile(needed, _SHARE), _MOST)) > 1:
                flare *= np.float32(k)
        np.minimum(flare, _BRIGHTEST, out=flare)
        return FlareLayer(fields.widen(flare, (h, w)), h, lamp)

    def _placed(self, shape: fields.Shape) -> list[tuple[np.ndarray, Any, Float32[np.ndarray, "c"]]]:
        """Of each source: where, in pixels; its parameters; its colour."""
        return [
            (np.array(source[:2]) * shape[::-1], source, np.array(colour, np.float32))
            for source, colour in zip(self.sources, self.colours, strict=True)
        ]

    def _add_lens(self, flare: Image) -> None:
        """Equations (2) and (3)."""
        side = fields.side(flare.shape[:2])
        table = Glare(self.falloff, self.core, self.bloom, self.veil).table()
        grain = Grain(self.pattern, self.formed, self.turn, self.zoom, self.mirrored)
        hue = ((light.WAVELENGTHS / light.WAVELENGTHS[1]) ** -self.spectrum).astype(np.float32)
        across = grain.seen(pupil.aperture(self.pattern)[1])
        lens = ghosts.lens(self.seed, self.ghosts, self.blades, across) if self.ghosts else None
        for place, (_, _, share, size), colour in self._placed(flare.shape[:2]):
            lit = np.float32(self.level * share) * colour
            glare.add(flare, place, size, lit * hue, table, grain, side)
            for strength, angle, width, length in self.streaks:
                line = lit * np.float32(strength) * np.array(self.streak_colour, np.float32)
                glare.add_streak(flare, place, line, angle, max(width, size), length, side)
            if lens and share > 0.1:
                ghosts.add(flare, place, np.float32(self.ghost_level * share) * colour, lens, side)

    def _add_template(self, flare: Image) -> None:
        """A real flare at every source."""
        template = templates.read(self.layer)
        level = self.level / template.veil(glare.QUOTED / self.zoom)  # the ring that zoom brings there
        for place, source, colour in self._placed(flare.shape[:2]):
            templates.add(flare, place, np.float32(level * source[2]) * colour, template, self.turn, self.zoom)

    def _mirrored(self, radiance: Image, shape: fields.Shape) -> Image:
        """`ghosts` (4), cyan to green, as the coatings of infrared filters are."""
        small = fields.shrink(radiance, shape)
        excess = np.maximum(light.luminance(small) - np.float32(0.95), 0)
        hue = np.random.default_rng(self.seed + 1).uniform((0.05, 0.7, 0.3), (0.35, 1.0, 0.9)).astype(np.float32)
        return ghosts.mirrored(np.minimum(3 * excess, 1), self.mirror * hue)

    def _lamps(self, shape: fields.Shape, scene: Scene) -> Shine:
        """Equation (4), where the photograph is not clipped already."""
        side, placed = fields.side(shape), self._placed(shape)
        reach = 8 * max(self.lamp * side, 0.7)
        low, high = (pick([place for place, _, _ in placed], 0) for pick in (np.min, np.max))
        frame = [
            int(np.clip(v, 0, n)) for v, n in zip((*(low - reach), *(high + reach + 1)), 2 * shape[::-1], strict=True)
        ]
        lamp = np.zeros((frame[3] - frame[1], frame[2] - frame[0], 3), np.float32)
        for place, source, colour in placed:
            radius = max(self.lamp * side * np.sqrt(source[2]), 0.7)
            core = radius / np.sqrt(_PEAK ** (1 / _STEEP) - 1)
            left, top = (int(np.clip(v - 8 * radius, 0, n)) for v, n in zip(place, shape[::-1], strict=True))
            right, bottom = (int(np.clip(v + 8 * radius + 1, 0, n)) for v, n in zip(place, shape[::-1], strict=True))
            if left >= right or top >= bottom:
                continue
            y, x = np.ogrid[top:bottom, left:right]
            r2 = ((x + 0.5 - place[0]) ** 2 + (y + 0.5 - place[1]) ** 2) / core**2
            column, row = (min(int(v), n - 1) for v, n in zip(place, shape[::-1], strict=True))
            missing = 1 - min(1.0, float(scene.radiance[row, column].min()))
            far = (1 + (8 * radius / core) ** 2) ** -_STEEP
            bulb = _PEAK * missing * np.maximum((1 + r2) ** -_STEEP - far, 0)
            part = lamp[top - frame[1] : bottom - frame[1], left - frame[0] : right - frame[0]]
            part += bulb[..., None].astype(np.float32) * (0.15 + 0.85 * colour)
        return Shine(frame[1], frame[0], lamp, (Shine(frame[1], frame[0], lamp),))


def _lights(rng: np.random.Generator, small: Image, dark: bool, sampling: FlareSampling) -> tuple[list[Source], float]:
    """The sources, and the radius of lamps to be added. By day there is one sun, seen where the sky is bright enough for it."""
    own, out = rng.random(2) < (sampling.own, sampling.outside)
    count = 1 + fields.pick(rng, (0.65, 0.18, 0.1, 0.07))
    found = sources.highlights(small, 4) if own else []
    if found:
        return found, 0.0
    sky = None if dark else sources.sky(small)
    count, kelvin = (count, None if dark else sources.LAMPS) if sky is None else (1, sources.SUN)
    places = sources.night_air(small) if dark else sources.by_sun(small, sky)
    if out or places is None:  # by day what is in the frame is lit, and shines not
        return sources.outside(rng, min(count, 2), kelvin), 0.0
    return sources.hung(rng, places, count, kelvin), fields.log_uniform(rng, 0.003, 0.012)


def _scatter(rng: np.random.Generator, phone: bool) -> dict[str, Any]:
    """A small lens with finger marks scatters steeply and in rays, a large one wide and evenly."""
    kind = fields.pick(rng, _PHONE_KINDS if phone else _LENS_KINDS)
    bloom, veil = (0.25, 0.03) if phone else (0.4, 0.35)
    low, high = (2.0, 3.0) if phone else (1.1, 2.3)
    return {
        "falloff": float(rng.uniform(low, high)),
        "core": float(rng.uniform(0.008, 0.04)),
        "bloom": (float(rng.uniform(0, bloom)), float(rng.uniform(0.015, 0.06))),
        "veil": (float(rng.uniform(0, veil) ** 2 / veil), fields.log_uniform(rng, 0.2, 1.5)),
        "pattern": kind + len(pupil.KINDS) * int(rng.integers(pupil.COUNT // len(pupil.KINDS))),
        "formed": float(rng.uniform(0.9 if phone else 0.3, 1)),
        "turn": float(rng.uniform(0, 2 * np.pi)),
        "zoom": fields.log_uniform(rng, 0.7, 1.8),
        "mirrored": bool(rng.random() < 0.5),
        "spectrum": float(rng.uniform(0.7, 3.2) if phone else rng.uniform(-0.5, 1)),
    }


def _streaks(rng: np.random.Generator, share: float) -> dict[str, Any]:
    """None, one anamorphic, or a few from wiped glass."""
    anamorphic = rng.random() < 0.5
    count = 1 if anamorphic else int(rng.integers(1, 4))
    start = rng.normal(0, 0.04) if anamorphic else rng.uniform(0, np.pi)
    arms = []
    for arm in range(count):
        strength, length = fields.log_uniform(rng, 0.3, 3), fields.log_uniform(rng, 0.08, 0.5)
        width = fields.log_uniform(rng, 0.0015, 0.012)
        arms.append((float(strength), float(start + arm * rng.uniform(0.5, 1.6)), float(width), float(length)))
    blue = (
        float(rng.uniform(0.15, 0.5)),
        float(rng.uniform(0.4, 0.8)),
        1.0,
    )  # coatings of cylindrical fronts shine blue
    colour = blue if anamorphic else (1.0, 1.0, 1.0)
    return {"streaks": tuple(arms) if rng.random() < share else (), "streak_colour": colour}
