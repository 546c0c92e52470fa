"""Shadow: something stands between a surface and a light; the sky and the other lights still reach it.

  (1) seen = J (1 - sum_i m_i d_i)                   coverage m_i of light i, its share d_i of all light, per channel
  (2) d_i = E_i / (sum_j E_j + E_a), E_i = p_i b(T_i)      black bodies b: lamps, or the sun; E_a = f b(T_sky) t ambient
      d_0 += (1 - v) E_a / (sum_j E_j + E_a)               the caster hides a part of the sky, too
  (3) k = 1 - sum_i d_i = v E_a / (sum_j E_j + E_a)        left in full shadow; outdoors E_a is blue, so shadows are
  (4) penumbra = apparent size of the light * distance from what casts the shadow: sigma affine in x, as in `mattes`
  (5) attached: m = 1 - step(n . l), n the normals of depth or of a relief of brightness, the step soft
  (6) dappled: 1 - m = product over layers of leaves (1 - leaves * disc)     each gap a pinhole, each spot the sun's image
  (7) m = 0 in the sky, where there is nothing to fall on
  (8) 1 - m = product over casters (1 - m_j)         exact for (5); of two penumbrae the mean over how they may cross
  (9) what lets light through, t of it: d_i (1 - t), and at the rim d_i (1 - t + q t)       glass is seen edge-on there
 (10) J is what surfaces send back; lamps hung into the scene shine by themselves, and are seen whole

Linear in coverage because an area light is a sum of point lights, and never brighter than J. Colours of ratios do not depend
on J. Skylight is 0.1-0.25 of daylight under a clear sky, 0.3-0.6 under thin cloud; ranges of what is drawn were set beside
real pairs, see docs/effects/shadow.md. Sources: Planck's law; Barrow & Tenenbaum 1978 for (1); Minnaert 1954 for (4), (6).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar, Self

import cv2
import numpy as np
from jaxtyping import Float32

from uniser_jax.effects import canopy, casters, depth, fields, light, mattes
from uniser_jax.effects.layer import Affine, Scene, Shine, Strength, per_pixel
from uniser_jax.errors import check_weights

SHAPES = (*casters.FORMS, "blob", "dapples", "relief")
GROUPS = {  # of casters, which draws weigh
    "people": ("person", "photographer", "hand"),
    "trees": ("tree",),
    "dapples": ("dapples",),
    "fences": ("railing", "blinds", "window"),
    "walls": ("edge",),
    "objects": ("polygon", "pole", "blob", "bottle"),
    "relief": ("relief",),
}
_OUTDOORS = ("tree", "dapples", "photographer", "pole", "edge")  # no lamp of a room casts them
_INDOORS = ("hand", "bottle", "blinds", "window")  # too small, or too near, for a landscape
_FROM_BELOW = ("photographer", "hand")  # whoever holds the camera has the sun behind
_CLEAR = ("bottle", "polygon")  # what may be of glass, or of plastic
_GLASS = ((0.4, 0.7, 0.5), (0.5, 0.3, 0.12), (0.7, 0.74, 0.69))  # t of bottles: green, amber, clear
_RIM, _RIM_WIDTH = 0.7, 0.015  # q of (9); sigma as a fraction of the image side
_RELIEF_SIDE = 128  # relief is smooth
_SKY = 0.02  # share of a frame; less is none
_OPEN = 0.1  # share of sky from which on a photograph shows a landscape: no room, and no white wall
_COARSE = 1.2  # a matte is drawn at half size where its narrowest penumbra (sigma, pixels) is wider, and so on


@dataclasses.dataclass(frozen=True)
class ShadowSampling:
    """What draws come from; the first seven are relative weights of what casts the shadow.

    Args:
      people: standing in the frame, the photographer, hands.
      trees: with and without leaves.
      dapples: light through a canopy.
      fences: railings, blinds, windows.
      walls: edges of walls and roofs.
      objects: things with straight sides, poles, blobs, bottles.
      relief: the side of things that is turned from the light; where no depth is given, only if nothing else has weight.
      indoors: share of lamps and windows instead of sun and sky; on photographs that show a landscape only if it is 1.
      several: share of shadows of two different casters.
      bend: share of shadows that bend over the scene.
      on_sky: share of shadows in daylight that fall on what may be sky, too, for it may be a white wall; in a
        landscape only if it is 1. Indoors all do.
      glass: share of bottles and of things with straight sides that let light through.
      penumbra: least and greatest sigma at the contact, fractions of the image side.

    Raises:
      ValueError: for a negative weight, a share outside [0, 1], or a penumbra that is no range.
    """

    people: float = 0.3
    trees: float = 0.12
    dapples: float = 0.12
    fences: float = 0.12
    walls: float = 0.13
    objects: float = 0.14
    relief: float = 0.07
    indoors: float = 0.2
    several: float = 0.2
    bend: float = 0.4
    on_sky: float = 0.2
    glass: float = 0.25
    penumbra: tuple[float, ...] = (0.002, 0.013)

    def __post_init__(self) -> None:
        check_weights("shadow weights", [getattr(self, group) for group in GROUPS])
        for name in ("indoors", "several", "bend", "on_sky", "glass"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"shadow.{name} = {getattr(self, name)}: expected in [0, 1]")
        if len(self.penumbra) != 2 or not 0 < self.penumbra[0] <= self.penumbra[1] <= 1:
            raise ValueError(f"shadow.penumbra = {self.penumbra}: expected (least, greatest), above 0 and at most 1")

    def draw_shape(self, rng: np.random.Generator, misplaced: Sequence[str] = ()) -> str:
        """One of SHAPES, but for misplaced ones if weights leave another."""
        weights = [getattr(self, group) for group in GROUPS]
        for _ in range(64):
            shape = fields.any_of(rng, list(GROUPS.values())[fields.pick(rng, weights)])
            if shape not in misplaced:
                break
        return shape


@dataclasses.dataclass(frozen=True)
class ShadowLayer:
    """Equation (1) at any strength: each light's matte takes that light's share.

    Args:
      coverage: m_i; of glass the rims, too.
      loss: d_i.
      spared: what of the scene shines by itself: a shadow takes light from surfaces only.
    """

    effect: ClassVar[str] = "shadow"
    lamp: ClassVar[None] = None
    coverage: Float32[np.ndarray, "n h w"]
    loss: Float32[np.ndarray, "n c"]
    spared: tuple[Shine, ...] = ()

    def __call__(self, radiance: Float32[np.ndarray, "h w c"], strength: Strength) -> Float32[np.ndarray, "h w c"]:
        """The light behind the layer."""
        seen = mattes.shaded(np.ascontiguousarray(radiance), self.coverage, self.loss, per_pixel(strength))
        for each in self.spared:  # it gets back what it lost
            coverage = np.ascontiguousarray(self.coverage[:, *each.where])
            s = per_pixel(strength[each.where] if isinstance(strength, np.ndarray) else strength)
            seen[each.where] += each.light - mattes.shaded(each.light, coverage, self.loss, s)
        return seen

    @property
    def transmission(self) -> Float32[np.ndarray, "h w c"]:
        """At full strength."""
        return 1 - np.einsum("nhw,nc->hwc", self.coverage, self.loss)

    @property
    def emission(self) -> Float32[np.ndarray, "..."]:
        """At full strength: none, but what is given back to what shines by itself."""
        given = np.zeros((*self.coverage.shape[1:], 3) if self.spared else 3, np.float32)
        for each in self.spared:
            given[each.where] += each.light * (1 - self.transmission[each.where])
        return given

    def at(self, strength: Strength) -> Affine:
        """The same as an affine map."""
        s = per_pixel(strength)[..., None]
        return Affine(1 - s * (1 - self.transmission), s * self.emission)


@dataclasses.dataclass(frozen=True)
class Shadow:
    """One shadow.

    Args:
      shapes: what casts it, each one of SHAPES.
      lights: (kelvin, power p, turn) of the sun, or of each lamp: by how many radians its shadows are turned. Powers and
        sky_share sum to 1.
      sky_share: f, 0.1 under a clear sky, 0.6 under thin cloud.
      sky_seen: v.
      kelvin_sky: colour of the ambient light; above that of the sun outdoors.
      tint: t, log gains of red and blue in the ambient light: what walls and foliage add to it.
      penumbra: sigma at the contact, as a fraction of the image side.
      widening: sigma at the far end over sigma at the contact.
      angle: direction in which the shadow falls, radians, y downwards.
      size: of the caster, as a fraction of the image side.
      bend: how far relief displaces the shadow, as a fraction of the image side.
      on_sky: whether it falls on what may be sky, too.
      seed: of the caster's form and place.
      glass: t of (9), linear RGB; 0 is opaque.

    Raises:
      ValueError: for an unknown shape, or none.
    """

    effect: ClassVar[str] = "shadow"
    shapes: tuple[str, ...]
    lights: tuple[tuple[float, float, float], ...]
    sky_share: float
    sky_seen: float
    kelvin_sky: float
    tint: tuple[float, float]
    penumbra: float
    widening: float
    angle: float
    size: float
    bend: float
    on_sky: bool
    seed: int
    glass: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        unknown = [shape for shape in self.shapes if shape not in SHAPES]
        if unknown or not self.shapes:
            raise ValueError(f"shadow shapes {self.shapes}: expected at least one of {', '.join(SHAPES)}")

    @classmethod
    def sample(cls, rng: np.random.Generator, scene: Scene, sampling: ShadowSampling = ShadowSampling()) -> Self:
        """Mostly sun and sky, sometimes lamps indoors."""
        small = _glance(scene)
        sky = _sky(small)
        landscape = sky.mean() > _OPEN
        in_rooms, on_walls = (
            share if share == 1 or not landscape else 0 for share in (sampling.indoors, sampling.on_sky)
        )
        indoors, several, bends, on_sky = rng.random(4) < (in_rooms, sampling.several, sampling.bend, on_walls)
        misplaced = list(_OUTDOORS if indoors else _INDOORS if landscape else ())
        if scene.depth is None:
            misplaced.append("relief")  # brightness knows no outlines: such shading would be stains
        shapes = tuple(sampling.draw_shape(rng, misplaced) for _ in range(2 if several else 1))
        lit_from_behind = any(shape in _FROM_BELOW for shape in shapes)
        angle = rng.normal(-np.pi / 2, 0.6) if lit_from_behind else rng.uniform(0, 2 * np.pi)
        least, greatest = np.log(sampling.penumbra)
        drawn = cls(
            shapes=shapes,
            **(_lamps(rng) if indoors else _daylight(rng)),
            penumbra=float(np.exp(rng.uniform(least, greatest))),
            widening=float(np.exp(rng.uniform(0, np.log(6)))),
            angle=float(angle),
            size=float(rng.uniform(0.4, 0.95)),
            bend=float(rng.uniform(0.004, 0.02)) if bends else 0.0,
            on_sky=bool(indoors or on_sky),
            seed=int(rng.integers(2**31)),
        )
        if set(shapes) <= set(_CLEAR) and rng.random() < sampling.glass:
            drawn = dataclasses.replace(drawn, glass=_glass(rng))
        if "relief" in shapes:  # it lies on whatever is there
            return drawn
        seen = np.sqrt(np.clip(light.luminance(small), 0, 1)) + 1e-3
        reached = (1 if drawn.on_sky else 1 - sky) * seen / seen.sum()
        tries, loss = {}, float(drawn.losses().sum(0)[1])
        for _ in range(6):  # a shadow that misses the frame or its light, or takes it all, is none
            hard = dataclasses.replace(drawn, penumbra=0.0)
            share = float((hard.coverage(seen.shape) * reached).sum())
            taken = share * loss
            if taken > 0.03 and share < 0.92:
                return drawn
            tries[min(taken, 1 - share)] = drawn
            drawn = dataclasses.replace(drawn, seed=int(rng.integers(2**31)))
        return tries[max(tries)]

    def render(self, scene: Scene) -> ShadowLayer:
        """The layer on one photograph."""
        loss = self.losses()
        relief = self._relief(scene) if self.bend or "relief" in self.shapes else None
        coverage = [self.coverage(scene.radiance.shape[:2], turn, relief) for _, _, turn in self.lights]
        whole = coverage[0][None] if len(coverage) == 1 else np.stack(coverage)
        if not self.on_sky:
            small = depth.reduce(scene.radiance, depth.cell(scene.radiance.shape[:2]))
            sky = _sky(small)
            if sky.any():  # nearly all of what may be sky is: (7) is steeper than the guided field
                whole *= np.minimum(depth.follow_light(np.float32(1.2) - 2 * sky, small, scene.radiance), 1)
        if any(self.glass):
            through = np.array(self.glass, np.float32)
            loss = np.concatenate([loss * (1 - through), _RIM * loss * through])
            whole = np.concatenate([whole, [_rim(matte) for matte in whole]])
        return ShadowLayer(whole, loss)

    def losses(self) -> Float32[np.ndarray, "n c"]:
        """d_i of equation (2), their sum below 1 in every channel."""
        direct = np.array([power * light.black_body(kelvin) for kelvin, power, _ in self.lights])
        tint = np.exp([self.tint[0], 0, self.tint[1]])
        ambient = self.sky_share * light.black_body(self.kelvin_sky) * tint
        total = direct.sum(0) + ambient
        hidden = (1 - self.sky_seen) * ambient / total
        loss = direct / total + hidden * (np.arange(len(direct)) == 0)[:, None]
        return (loss * np.minimum(1, 0.98 / loss.sum(0))).astype(np.float32)

    def coverage(
        self, shape: tuple[int, int], turn: float = 0.0, relief: Float32[np.ndarray, "a b"] | None = None
    ) -> Float32[np.ndarray, "h w"]:
        """m of one light, turned against the first one's by `turn`; bent over `relief`, if any, in [-1, 1]."""
        parts = [self._cast(index, shape, turn, relief) for index in range(len(self.shapes))]
        whole = functools.reduce(lambda one, other: one + other * (1 - one), parts)  # (8)
        return np.clip(whole, 0, 1, out=whole)  # filters round

    def _cast(
        self, index: int, shape: tuple[int, int], turn: float, relief: Float32[np.ndarray, "a b"] | None
    ) -> Float32[np.ndarray, "h w"]:
        """The shadow of one caster, drawn as small as its penumbra allows; bent."""
        name, rng, angle = self.shapes[index], np.random.default_rng((self.seed, index)), self.angle + turn
        if name == "relief":
            return np.zeros(shape, np.float32) if relief is None else _attached(relief, rng, angle, shape)
        narrowest = (0.004 if name == "dapples" else self.penumbra) * fields.side(shape)
        factor = 2 ** int(np.clip(np.log2(narrowest / _COARSE) + 1, 0, 4)) if min(shape) > 64 else 1
        drawn = (-(-shape[0] // factor), -(-shape[1] // factor))
        soft = self._softened(index, rng, drawn, turn, mattes.RESAMPLING if factor > 1 else 0.0)
        if relief is not None and self.bend:
            along = self.bend * fields.side(drawn) * np.array([np.cos(angle), np.sin(angle)], np.float32)
            soft = mattes.bent(soft, cv2.resize(relief, drawn[::-1]), *along.astype(np.float32))
        return soft if factor == 1 else cv2.resize(soft, shape[::-1])

    def _softened(
        self, index: int, rng: np.random.Generator, shape: tuple[int, int], turn: float, resampling: float
    ) -> Float32[np.ndarray, "h w"]:
        """A form behind equation (4); `resampling` is the variance, in pixels, that enlargement will add."""
        name = self.shapes[index]
        if name == "dapples":
            return _turned(canopy.dapples(rng, shape), turn)
        sharp = self.penumbra * fields.side(shape)
        sigmas = [np.sqrt(max((sharp * wider) ** 2 - resampling, 0)) for wider in (1, self.widening)]
        if name == "blob":
            heading = np.array([np.cos(self.angle + turn), np.sin(self.angle + turn)])
            return mattes.soften(_turned(_blob(rng, shape, self.size), turn), -heading / 2, heading, *sigmas)
        cast = _form(name, self.seed, index, self.size, self.angle)
        cast = cast.turned(turn) if turn else cast
        soft = mattes.soften(mattes.polygons(cast.forms, shape), cast.contact, cast.direction, *sigmas)
        return 1 - soft if cast.lit else soft

    def _relief(self, scene: Scene) -> Float32[np.ndarray, "a b"]:
        """Height towards the camera, in [-1, 1]: of the depth, or of brightness, which rises and falls with things."""
        shape = scene.radiance.shape[:2]
        step = max(1, round(max(shape) / _RELIEF_SIDE))
        if scene.depth is not None:
            height = -np.ascontiguousarray(scene.depth[::step, ::step])
        else:
            height = np.sqrt(np.clip(light.luminance(np.ascontiguousarray(scene.radiance[::step, ::step])), 0, 1))
        smooth = mattes.blur(cv2.medianBlur(height, 5) if min(height.shape) > 5 else height, 1.0)
        mean, spread = cv2.meanStdDev(smooth)
        return np.clip((smooth - np.float32(mean[0, 0])) / np.float32(2 * spread[0, 0] + 1e-3), -1, 1)


def _sky(small: Float32[np.ndarray, "a b c"]) -> Float32[np.ndarray, "a b"]:
    """Where a photograph, on a grid, may show sky, in [0, 1]; none where that is a patch."""
    sky = depth.signs(small)[0]
    return sky if sky.mean() > _SKY else np.zeros_like(sky)


def _glance(scene: Scene) -> Float32[np.ndarray, "a b c"]:
    """A few pixels of the photograph, about 32 a side."""
    step = max(1, min(scene.radiance.shape[:2]) // 32)
    return np.ascontiguousarray(scene.radiance[::step, ::step])


@functools.lru_cache(maxsize=8)
def _form(name: str, seed: int, index: int, size: float, angle: float) -> casters.Cast:
    """One caster; looked at when it is drawn, and again when it is rendered, perhaps for several lamps."""
    return casters.FORMS[name](np.random.default_rng((seed, index)), size, angle)


def _daylight(rng: np.random.Generator) -> dict:
    """Sun and sky: skylight is blue, and bluer where it is scarce; now and then a thin cloud."""
    cloud = rng.random() < 0.35
    share = rng.uniform(0.3, 0.75) if cloud else fields.log_uniform(rng, 0.08, 0.3)
    return {
        "lights": ((float(rng.uniform(4_800, 5_900)), float(1 - share), 0.0),),
        "sky_share": float(share),
        "sky_seen": float(rng.uniform(0.4, 1.0)),
        "kelvin_sky": float(rng.uniform(6_000, 9_000) if cloud else fields.log_uniform(rng, 6_500, 12_000)),
        "tint": tuple(float(gain) for gain in rng.normal(0, 0.08, 2)),
    }


def _lamps(rng: np.random.Generator) -> dict:
    """One to three lamps, or a window, and what the walls send back; any tint."""
    count = 1 + fields.pick(rng, (0.5, 0.35, 0.15))
    share, kelvin = rng.uniform(0.15, 0.6), rng.uniform(2_700, 6_500)
    powers = rng.dirichlet(np.full(count, 2.0)) * (1 - share)
    turns = np.concatenate([[0], rng.choice([-1, 1], count - 1) * rng.uniform(0.3, 1.2, count - 1)])
    kelvins = kelvin * np.exp(rng.normal(0, 0.15, count))
    return {
        "lights": tuple((float(k), float(p), float(t)) for k, p, t in zip(kelvins, powers, turns, strict=True)),
        "sky_share": float(share),
        "sky_seen": float(rng.uniform(0.6, 1.0)),
        "kelvin_sky": float(kelvin * np.exp(rng.normal(0.1, 0.2))),
        "tint": tuple(float(gain) for gain in rng.normal(0, 0.1, 2)),
    }


def _glass(rng: np.random.Generator) -> tuple[float, float, float]:
    """Of a bottle, thin or thick (t to a power: Bouguer 1729), or of coloured plastic."""
    plastic = rng.random() < 0.2
    base = rng.uniform(0.1, 0.8, 3) if plastic else np.array(fields.any_of(rng, _GLASS)) ** rng.uniform(0.8, 2.0)
    red, green, blue = base.tolist()
    return red, green, blue


def _rim(matte: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """The matte near its edge, 0 well within: the edge is where a blur of the matte is a half."""
    wide = mattes.blur(matte, _RIM_WIDTH * fields.side(matte.shape))
    return matte * np.minimum(2 - 2 * wide, 1)


def _blob(rng: np.random.Generator, shape: tuple[int, int], size: float) -> Float32[np.ndarray, "h w"]:
    """Where fractal noise is high: foliage, clouds, things without a name."""
    small = (-(-shape[0] // 2), -(-shape[1] // 2))
    noise = fields.fractal_noise(rng, small, 0.2 + 0.15 * size, 5, rng.uniform(0.3, 0.6))
    level = fields.quantile(noise[::4, ::4], 1 - rng.uniform(0.2, 0.55))
    steep = cv2.resize((noise - np.float32(level)) * np.float32(0.5 * fields.side(shape) ** 0.5 + 20), shape[::-1])
    return np.clip(steep + 0.5, 0, 1, out=steep)


def _turned(plane: Float32[np.ndarray, "h w"], turn: float) -> Float32[np.ndarray, "h w"]:
    """A form without a contact in the light of another lamp: turned about the middle; what lay beyond the frame is mirrored."""
    if not turn:
        return plane
    (c, s), middle = (np.cos(turn), np.sin(turn)), (np.array(plane.shape[::-1]) - 1) / 2
    onto = np.array([[c, s], [-s, c]])
    back = np.column_stack([onto, middle - onto @ middle])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(plane, back, plane.shape[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def _attached(
    relief: Float32[np.ndarray, "a b"], rng: np.random.Generator, angle: float, shape: tuple[int, int]
) -> Float32[np.ndarray, "h w"]:
    """Equation (5): forms of the relief, made uneven by a little noise; the terminator is soft."""
    own = fields.fractal_noise(rng, relief.shape, rng.uniform(0.2, 0.35), 2, 0.4)
    own = mattes.blur(own, 0.025 * fields.side(relief.shape))  # else its slope would have the steps of its lattice
    broad = mattes.blur(relief, rng.uniform(0.006, 0.02) * fields.side(relief.shape) + 0.7)
    height = rng.uniform(0.06, 0.14) * broad + rng.uniform(0.02, 0.08) * own
    slope = np.float32(np.cos(angle)) * cv2.Sobel(height, cv2.CV_32F, 1, 0) + np.float32(np.sin(angle)) * cv2.Sobel(
        height, cv2.CV_32F, 0, 1
    )
    turned = -slope  # a surface that falls away along the light's way is turned from it
    level, spread = fields.quantile(turned, rng.uniform(0.45, 0.75)), float(turned.std()) + 1e-6
    soft = rng.uniform(0.35, 1.2) * spread
    return cv2.resize(fields.smoothstep(turned, level - soft, level + soft), shape[::-1])
