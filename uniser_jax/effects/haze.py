"""Haze: fog, haze, smoke, dust, and lamps in the night. Light is scattered out of the line of sight, and other light into it.

(1) seen: equation (2) of `medium`, for light scattered forward; Koschmieder 1924 without
(2) tau = tau_far u N                                        u path through the medium, N density
(3) u = d^p (1 - e^-q) / q,  q = d sin(elevation) / H        density falls off as e^(-height / H), in closed form; q = 0 without
(4) N = (1 - mix) + mix * plume                              plume: fractal noise carried along a flow, cut soft or sharp
(5) tau_c = tau (l_c / l_green)^-a                           Angstrom 1929: a = 0 fog and dust, 1.3 fine haze
(6) A: equations (1) and (2) of `airlight`

Lengths are in units of the farthest distance. By night the scene itself is dark and lit by its lamps, and stays so in the
target; only the medium is removed.
"""

import dataclasses
import math
from typing import ClassVar, NamedTuple, Self

import cv2
import numpy as np
from jaxtyping import Float32

from uniser_jax.effects import airlight, depth, fields, haze_presets, kernels, light
from uniser_jax.effects.airlight import Lamp
from uniser_jax.effects.compiled import compiled
from uniser_jax.effects.fields import Field
from uniser_jax.effects.haze_presets import UniserLayer
from uniser_jax.effects.layer import Scene, Shine
from uniser_jax.effects.medium import MediumLayer
from uniser_jax.effects.sources import NIGHT
from uniser_jax.errors import check_weights

KINDS = ("fog", "haze", "smoke", "dust", "night")
_NIGHTS = 3  # how much more often a photograph of a night is one of haze by night
_INDOORS, _SMOKY = 0.4, 2  # how much more often fog, haze and dust are drawn where no sky is seen, and smoke
_PLUME = 96  # side of the grid that plumes are drawn on; they have no sharper edges

Range = tuple[float, float]


class _Ranges(NamedTuple):
    """What a kind draws from; see Haze for the names."""

    optical_depth: Range
    depth_power: Range
    height: Range
    angstrom: Range
    luminance: Range
    kelvin: Range
    mix: Range
    sharpness: Range
    forward: Range


_RANGES = {
    "fog": _Ranges(  # drops of water: gray, and much of it forward
        optical_depth=(0.8, 5),
        depth_power=(0.7, 1.3),
        height=(0.1, 1.5),
        angstrom=(0, 0.2),
        luminance=(0.45, 0.95),
        kelvin=(5_500, 8_000),
        mix=(0, 0.4),
        sharpness=(0, 0.3),
        forward=(0.4, 0.75),
    ),
    "haze": _Ranges(  # fine particles: blue is scattered most
        optical_depth=(0.6, 4),
        depth_power=(0.7, 1.5),
        height=(0.3, 3),
        angstrom=(0.4, 1.5),
        luminance=(0.4, 0.95),
        kelvin=(5_300, 9_000),
        mix=(0, 0.25),
        sharpness=(0, 0.2),
        forward=(0.2, 0.5),
    ),
    "smoke": _Ranges(  # finer still, white, bluish or brown; patches that hide near and far alike
        optical_depth=(1.5, 6),
        depth_power=(0, 0.6),
        height=(0.5, 3),
        angstrom=(0.4, 1.6),
        luminance=(0.2, 0.85),
        kelvin=(5_200, 9_500),
        mix=(0.4, 0.9),
        sharpness=(0, 0.8),
        forward=(0.2, 0.5),
    ),
    "dust": _Ranges(  # coarse: nearly gray in what it hides, brown in what it adds
        optical_depth=(0.7, 4),
        depth_power=(0.6, 1.3),
        height=(0.3, 3),
        angstrom=(-0.2, 0.4),
        luminance=(0.25, 0.8),
        kelvin=(3_200, 5_200),
        mix=(0, 0.5),
        sharpness=(0, 0.3),
        forward=(0.3, 0.6),
    ),
    "night": _Ranges(  # fog or haze, lit by lamps
        optical_depth=(0.6, 3.5),
        depth_power=(0.3, 1.2),
        height=(0.3, 3),
        angstrom=(0, 0.8),
        luminance=(0.004, 0.06),
        kelvin=(2_800, 9_000),
        mix=(0, 0.4),
        sharpness=(0, 0.3),
        forward=(0.4, 0.75),
    ),
}


@dataclasses.dataclass(frozen=True)
class HazeSampling:
    """What draws come from.

    Args:
      fog: relative weight of the kind, where the photograph shows sky: elsewhere there is more smoke, and less else.
      haze: the same.
      smoke: the same.
      dust: the same.
      night: the same; more for photographs of nights.
      uniser: share of draws that are one of UniSER's 37 settings instead.
      texture: share of those with a smoke texture.
      dense: share with a denser medium than the range of its kind, where it hides the far more than the near: not by night, and
        seldom in smoke, for all would be lost.
      dense_depth: optical depth that those reach, where it is above that range.
      sky: share with the colour and the light of the photograph's own sky, of fog and haze.
      sun: share with a sun.
      glow: share in which bright places of the photograph glow.
      scatter: share with light scattered forward.

    Raises:
      ValueError: for a share outside [0, 1], weights without one above 0, or a dense_depth that is not.
    """

    fog: float = 0.3
    haze: float = 0.3
    smoke: float = 0.22
    dust: float = 0.1
    night: float = 0.08
    uniser: float = 0.0
    texture: float = 0.5
    dense: float = 0.15
    dense_depth: float = 8.0
    sky: float = 0.5
    sun: float = 0.2
    glow: float = 0.3
    scatter: float = 0.2

    def __post_init__(self) -> None:
        check_weights("haze weights", self.weights())
        for name in ("uniser", "texture", "dense", "sky", "sun", "glow", "scatter"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"haze.{name} = {getattr(self, name)}: expected in [0, 1]")
        if not 1 <= self.dense_depth <= 20:
            raise ValueError(f"haze.dense_depth = {self.dense_depth}: expected in [1, 20]")

    def weights(self) -> tuple[float, ...]:
        """In the order of KINDS."""
        return self.fog, self.haze, self.smoke, self.dust, self.night


@dataclasses.dataclass(frozen=True)
class Haze:
    """One medium.

    Args:
      kind: one of KINDS, or "uniser".
      seed: of depth and density.
      preset: for "uniser", one of haze_presets.settings(); of the others then only `mix` is read, the texture's.
      optical_depth: tau_far in green, on a level path to the farthest point.
      depth_power: p of (3); near 0 the medium hides near and far alike.
      height: H of (3), in units of the farthest distance; 0 is no fall-off.
      horizon: its row in [0, 1], where the photograph shows no sky.
      angstrom: a of (5).
      luminance: L of `airlight`, linear, white at 1.
      kelvin: T of `airlight`.
      tint: gain of green in the airlight, in stops.
      sky: of `airlight`.
      mix: of (4).
      scale: of the plumes, as a fraction of the image side.
      coverage: share of the image that plumes cover.
      sharpness: of their edges, in [0, 1].
      forward: f of `medium`.
      spread: sigma_0 of `medium`, as a fraction of the image side.
      sun: (x, y, strength), the place in fractions of the image, possibly outside it, the strength at the angle 0; () is none.
      glow: share of the light of bright places that the medium spreads.
      lamps: see airlight.Lamp.
      dark: by night, the gain of what the lamps do not light; 1 by day.
    """

    effect: ClassVar[str] = "haze"
    kind: str
    seed: int
    preset: str = ""
    optical_depth: float = 1.0
    depth_power: float = 1.0
    height: float = 0.0
    horizon: float = 0.4
    angstrom: float = 0.0
    luminance: float = 0.8
    kelvin: float = 6_500.0
    tint: float = 0.0
    sky: float = 0.0
    mix: float = 0.0
    scale: float = 0.4
    coverage: float = 0.6
    sharpness: float = 0.0
    forward: float = 0.0
    spread: float = 0.0
    sun: tuple[float, ...] = ()
    glow: float = 0.0
    lamps: tuple[Lamp, ...] = ()
    dark: float = 1.0

    @classmethod
    def sample(cls, rng: np.random.Generator, scene: Scene, sampling: HazeSampling = HazeSampling()) -> Self:
        """Visibilities from kilometres to a dense tail (as in RESIDE, NH-HAZE, Dense-HAZE); every draw can be seen."""
        if rng.random() < sampling.uniser:
            return cls._sample_uniser(rng, sampling)
        look = _Look.at(scene)
        kind = KINDS[fields.pick(rng, look.weights(sampling))]
        ranges = _RANGES[kind]
        dense, falls, coloured, sunny, glows, scatters, patchy = (
            rng.random(7) < (sampling.dense, 0.5, sampling.sky, sampling.sun, sampling.glow, sampling.scatter, 0.5)
        ).tolist()
        night = kind == "night"
        power = rng.uniform(*ranges.depth_power)
        warm, cold = ranges.kelvin
        low, high = ranges.optical_depth
        reach = (
            (high, max(high, sampling.dense_depth)) if dense and power > 0.5 and not night else (low, high)
        )  # or all is lost
        optical_depth = fields.log_uniform(rng, *reach)
        luminance = rng.uniform(*ranges.luminance)
        return cls(
            kind=kind,
            seed=int(rng.integers(2**31)),
            optical_depth=optical_depth,
            depth_power=power,
            height=fields.log_uniform(rng, *ranges.height) if falls else 0.0,
            horizon=rng.uniform(0.15, 0.6),
            angstrom=rng.uniform(*ranges.angstrom),
            luminance=luminance if night else look.veil(rng, kind, luminance, coloured),
            kelvin=1 / rng.uniform(1 / cold, 1 / warm),  # even in mired, as eyes are
            tint=rng.normal(0, 0.04),
            sky=rng.uniform(0.3, 1) if coloured and kind in ("fog", "haze") else 0.0,
            mix=rng.uniform(*ranges.mix) if patchy or kind == "smoke" else 0.0,
            scale=rng.uniform(0.15, 0.45),
            coverage=rng.uniform(0.2, 0.9),
            sharpness=rng.uniform(*ranges.sharpness),
            forward=rng.uniform(*ranges.forward) if scatters or night else 0.0,
            spread=fields.log_uniform(rng, 0.006, 0.025),
            sun=_sample_sun(rng, look.above, optical_depth) if sunny and not night else (),
            glow=rng.uniform(0.3, 1) if glows or night else 0.0,
            lamps=_sample_lamps(rng) if night else (),
            dark=_sample_dark(rng, look.mean) if night else 1.0,
        )

    @classmethod
    def _sample_uniser(cls, rng: np.random.Generator, sampling: HazeSampling) -> Self:
        names = tuple(haze_presets.settings())
        preset, textured = fields.any_of(rng, names), rng.random() < sampling.texture
        return cls("uniser", int(rng.integers(2**31)), preset, mix=0.5 if textured else 0.0)

    def render(self, scene: Scene) -> MediumLayer | UniserLayer:
        """The layer on one photograph.

        Raises:
          ValueError: if the scene's depth has another size, or the kind or preset is unknown.
        """
        if scene.depth is not None and scene.depth.shape != scene.radiance.shape[:2]:
            raise ValueError(
                f"depth of shape {scene.depth.shape}: expected {scene.radiance.shape[:2]}, the photograph's"
            )
        rng = np.random.default_rng(self.seed)
        small = depth.reduce(scene.radiance, depth.cell(scene.radiance.shape[:2]))
        if self.kind == "uniser":
            return self._render_uniser(rng, scene, small)
        if self.kind not in KINDS:
            raise ValueError(f"haze kind {self.kind!r} is unknown; known: {', '.join(KINDS)}, uniser")
        found = depth.signs(small)
        tau = self._optical_depth(rng, scene, small, found)
        spectrum = (light.WAVELENGTHS / light.WAVELENGTHS[1]) ** -self.angstrom  # (5)
        veil = airlight.veil(small, found[0], self.luminance, self.kelvin, self.tint, self.sky)
        night = self.night(scene)
        if night is not None:  # what glows is what shines by night
            small = small + depth.reduce(night.light, depth.cell(scene.radiance.shape[:2]))
        lit = airlight.field(small, veil, self.sun, self.glow, self.lamps)
        return MediumLayer("haze", tau, spectrum.astype(np.float32), lit, self.forward, self.spread, night)

    def night(self, scene: Scene) -> Shine | None:
        """What the night adds to the scene, see `airlight.night`; None by day."""
        if self.kind != "night":
            return None
        added = airlight.night(scene.radiance, self.dark, self.lamps)
        glass = tuple(airlight.glass(scene.radiance.shape, lamp) for lamp in self.lamps)
        for each in glass:
            added[each.where] += each.light
        return Shine(0, 0, added, glass)

    def _render_uniser(
        self, rng: np.random.Generator, scene: Scene, small: Float32[np.ndarray, "h w c"]
    ) -> UniserLayer:
        if self.preset not in haze_presets.settings():
            raise ValueError(f"haze preset {self.preset!r} is unknown; known: {', '.join(haze_presets.settings())}")
        d = scene.depth
        if d is None:
            d = depth.follow_light(depth.sketch(rng, small, self.horizon).depth, small, scene.radiance)
        return haze_presets.render(self.preset, d, self.seed, self.mix)

    def _optical_depth(
        self, rng: np.random.Generator, scene: Scene, small: Float32[np.ndarray, "h w c"], found: depth.Signs
    ) -> Float32[np.ndarray, "H W"]:
        """Equation (2), at full size; without a given depth on the grid, then along the edges of the photograph."""
        if scene.depth is None:
            d, horizon = depth.sketch(rng, small, self.horizon, found)
        else:
            d, horizon = scene.depth, self.horizon
        path = np.float32(self.optical_depth) * self._path(d, horizon)
        density = None
        if self.mix:
            density = 1 - np.float32(self.mix) * (1 - self._plume(rng, scene.radiance.shape[:2]))  # (4)
        if scene.depth is None:
            return depth.follow_light(path, small, scene.radiance, density)
        return path if density is None else path * cv2.resize(density, path.shape[::-1])

    def _path(self, d: Field, horizon: float) -> Field:
        """Equation (3); tan(elevation) is the height above the horizon in image sides, times the field of view of one."""
        path = cv2.pow(d, self.depth_power) if self.depth_power != 1 else d
        if not self.height:
            return path
        tall = airlight.FIELD_OF_VIEW * len(d) / fields.side(d.shape)
        up = (horizon - (np.arange(len(d), dtype=np.float32) + np.float32(0.5)) / len(d))[:, None] * np.float32(tall)
        q = np.clip(d * (up / np.sqrt(1 + up * up)) / np.float32(self.height), -2, 20)  # a valley is at most so deep
        q = np.where(np.abs(q) < 1e-3, np.float32(1e-3), q)
        return path * (1 - cv2.exp(-q)) / q

    def _plume(self, rng: np.random.Generator, shape: tuple[int, int]) -> Field:
        """The plume of (4): noise, carried along the curl of another noise, then cut at a height that leaves `coverage`.

        Noise lies along its lattice, so that is turned; and drawn finer, for the frame must fit into it.
        """
        size = min(_PLUME, fields.side(shape))  # of a grid of its own
        h, w = (max(2, round(n * size / fields.side(shape))) for n in shape)
        angle = rng.uniform(0, np.pi / 2)
        right, down = (f(angle) / (math.cos(angle) + math.sin(angle)) for f in (math.cos, math.sin))
        noise = fields.fractal_noise(rng, (h, w), self.scale * math.hypot(right, down), 6, 0.6)
        stream = fields.fractal_noise(rng, (h, w), 0.6 * self.scale, 4, 0.35)
        reach = 0.06 * self.scale**2 * size**2  # the curl is per pixel, and 2 the gain of the difference
        x, y = _carried(stream, np.float32(reach), np.float32(right), np.float32(down))
        noise = cv2.remap(noise, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        cut = fields.quantile(noise[::4, ::4], 1 - self.coverage)
        half = 0.5 * (1 - self.sharpness) + 0.04
        return _cut_out(noise, np.float32(cut - 0.5 * half), np.float32(1.5 * half))


@compiled
def _carried(stream: Field, reach: np.float32, right: np.float32, down: np.float32) -> tuple[Field, Field]:
    """Where what each pixel shows comes from: moved along the curl of a stream, turned about the middle, and brought nearer."""
    h, w = stream.shape
    x, y = np.empty((h, w), np.float32), np.empty((h, w), np.float32)
    middle, centre = np.float32(0.5 * (w - 1)), np.float32(0.5 * (h - 1))
    for i in range(h):
        above, below = stream[max(i - 1, 0)], stream[min(i + 1, h - 1)]
        for j in range(w):
            across = np.float32(j) - middle + reach * (below[j] - above[j])
            along = np.float32(i) - centre - reach * (stream[i, min(j + 1, w - 1)] - stream[i, max(j - 1, 0)])
            x[i, j] = middle + right * across - down * along
            y[i, j] = centre + down * across + right * along
    return x, y


@compiled
def _cut_out(noise: Field, low: np.float32, width: np.float32) -> Field:
    """Noise above a height, its edge a cubic of this width, thicker where it is higher."""
    out = np.empty(noise.shape, np.float32)
    for i in range(noise.shape[0]):
        for j in range(noise.shape[1]):
            u = min(max((noise[i, j] - low) / width, np.float32(0)), np.float32(1))
            out[i, j] = u * u * (np.float32(3) - np.float32(2) * u) * (np.float32(0.4) + np.float32(0.6) * noise[i, j])
    return out


class _Look(NamedTuple):
    """What a photograph is like; luminances are linear, white at 1.

    Args:
      dark: share of it that is as dark as a night.
      mean: luminance.
      sky: mean luminance of its sky; 0 where it shows none.
      above: where sky may be, on a grid.
      luminance: on that grid.
    """

    dark: float
    mean: float
    sky: float
    above: Field
    luminance: Field

    @classmethod
    def at(cls, scene: Scene) -> Self:
        """A few pixels of a photograph, about 24 a side."""
        step = max(1, min(scene.radiance.shape[:2]) // 24)
        small = np.ascontiguousarray(scene.radiance[step // 2 :: step, step // 2 :: step])
        above = depth.signs(small)[0]
        return cls(*_looked(small, above), above, light.luminance(small))

    def weights(self, sampling: HazeSampling) -> tuple[float, ...]:
        """Of the kinds: haze of a night is for a photograph of one, and where no sky is seen smoke is likelier than fog."""
        fog, haze, smoke, dust, night = sampling.weights()
        if self.dark > 0.5:
            night *= _NIGHTS
        if not self.sky:
            fog, haze, smoke, dust = _INDOORS * fog, _INDOORS * haze, _SMOKY * smoke, _INDOORS * dust
        return fog, haze, smoke, dust, night

    def veil(self, rng: np.random.Generator, kind: str, luminance: float, coloured: bool) -> float:
        """L by day, of one drawn freely: no more than the light that falls on the scene allows.

        In fog and haze the horizon is the airlight (Koschmieder 1924): no sky is brighter. A deep blue one is darker than its
        own horizon.
        """
        bright = min(1.0, fields.quantile(self.luminance, 0.95))
        luminance = min(luminance, max(1.5 * bright, 0.05))
        if kind not in ("fog", "haze") or not self.sky:
            return luminance
        return max(self.sky, 0.6 * bright) * rng.uniform(0.85, 1.1) if coloured else max(luminance, self.sky)


@compiled
def _looked(small: kernels.Image, above: Field) -> tuple[float, float, float]:
    """`dark`, `mean` and `sky` of a look."""
    dark, total, sky, shown, share = 0, 0.0, 0.0, 0, 0.0
    for i in range(small.shape[0]):
        for j in range(small.shape[1]):
            y = 0.0
            for c in range(3):
                y += light.LUMINANCE[c] * min(small[i, j, c], np.float32(1))
            dark += y < NIGHT
            total += y
            share += above[i, j]
            if above[i, j] > np.float32(0.5):
                sky += y
                shown += 1
    return dark / above.size, total / above.size, sky / shown if shown and share > airlight.SHOWN * above.size else 0.0


def _sample_sun(rng: np.random.Generator, above: Field, optical_depth: float) -> tuple[float, ...]:
    """In the sky or out of frame; the denser the medium, the wider and weaker what is left of its aureole."""
    x, y, strength = float(rng.uniform(-0.3, 1.3)), float(rng.uniform(-0.3, 0.45)), np.exp(rng.uniform(-1, 0.5))
    h, w = above.shape
    if 0 <= x < 1 and 0 <= y < 1 and above[int(y * h), int(x * w)] < 0.5:
        y = -0.2
    return x, y, float(strength * np.exp(-optical_depth / 4))


def _sample_lamps(rng: np.random.Generator) -> tuple[Lamp, ...]:
    """One to eight, more often few, mostly of one sort, in the upper two thirds."""
    usual = 1 / rng.uniform(1 / 5_500, 1 / 2_200)
    return tuple(
        (
            float(rng.uniform(0.03, 0.97)),
            float(rng.uniform(0.05, 0.6)),
            float(usual if rng.random() < 0.7 else rng.uniform(2_200, 9_000)),
            float(np.exp(rng.uniform(-1, 0.7))),
            fields.log_uniform(rng, 0.003, 0.012),
        )
        for _ in range(int(8 * rng.random() ** 1.5) + 1)
    )


def _sample_dark(rng: np.random.Generator, mean: float) -> float:
    """The gain that takes a photograph to the light of a night, 1 if it was taken in one."""
    return float(min(1.0, fields.log_uniform(rng, 0.003, 0.05) / max(mean, 1e-3)))
