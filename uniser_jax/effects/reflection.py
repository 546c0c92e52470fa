"""Reflection: a pane of glass adds a second scene to the one behind it.

  (1) seen = T J + g (f S(x) + b S(x - d))                       mixed in linear light (Kee et al. 2025)
  (2) Rs = ((cos i - n cos r) / (cos i + n cos r))^2,  Rp the same with i and r exchanged,  sin i = n sin r     Fresnel 1823
  (3) R(m) = m R / (1 + (m - 1) R)                               m faces, incoherent: 2 of a pane, 4 of a double pane
  (4) f = R(m / 2),  b = f (1 - f)^2 a^(2 / cos r)               the nearer half of the faces; the farther, through it twice
  (5) T = (1 - R(m)) a^(m / (2 cos r))                           a: what a pane leaves straight on; (3) to (5) mean s and p
  (6) x' = K Q K^-1 x                                            S through another camera, turned by Q; the mirror flips it
  (7) S (1 - k + k l^2)                                          l: light around; a photograph's tone curve has compressed it
  (8) |sqrt(T J + g R) - sqrt(T J)| at a quantile                how visible g makes it; solved for g, pixel by pixel

The angle i varies over the frame, and with it f, b and T: reflections fade towards where one looks straight through. The target
is the scene without the pane, J, not attenuated.
"""

import dataclasses
import math
from typing import ClassVar, Self

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from uniser_jax.effects import fields, light
from uniser_jax.effects.compiled import compiled
from uniser_jax.effects.layer import Scene
from uniser_jax.effects.pane import PaneLayer, fresnel, normal, parallax, several
from uniser_jax.effects.sources import by_night

Image = Float32[np.ndarray, "h w c"]
Plane = Float32[np.ndarray, "h w"]

OCCLUDERS = ("none", "person", "curtain", "dark")
_GRID = 64  # cells along a side of what is smooth (angles) or only measured (light)
_VISIBLE, _OVERWHELMING = 0.08, 0.25  # changes of the square root of light, of 5 % and of half of the pixels
_MOST = 1.0  # of the transmitted light, in the mean
_BY_NIGHT, _BY_DAY = 2.5, 0.5  # how much more often a room is dark
_GRAZING = 0.17  # cosine of 80 degrees
_ANGLES = 256  # at which glass is computed; lines between them are off by 2e-5 at most


@dataclasses.dataclass(frozen=True)
class ReflectionSampling:
    """What draws come from.

    Args:
      energy: least and most mean reflected light over mean transmitted light, log-uniform.
      sharp: share in focus.
      defocus: sigma of the others, fractions of the image side, log-uniform.
      double: share of double panes.
      ghost: share of single panes thick enough to show both faces.
      tinted: share of coloured glass.
      night: share of dark rooms with a few lamps; half of it behind photographs by day, 2.5 times it behind those by night;
        1 is always.
      occluded: share partly blocked, by the photographer, a curtain, or something dark.

    Raises:
      ValueError: for a share outside [0, 1] or a range that does not ascend from above 0.
    """

    energy: tuple[float, float] = (0.04, 1.0)
    sharp: float = 0.6
    defocus: tuple[float, float] = (0.0008, 0.006)
    double: float = 0.2
    ghost: float = 0.5
    tinted: float = 0.15
    night: float = 0.2
    occluded: float = 0.4

    def __post_init__(self) -> None:
        for name in ("sharp", "double", "ghost", "tinted", "night", "occluded"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"reflection.{name} = {getattr(self, name)}: expected in [0, 1]")
        for name in ("energy", "defocus"):
            if len(getattr(self, name)) != 2 or not 0 < getattr(self, name)[0] <= getattr(self, name)[1]:
                raise ValueError(
                    f"reflection.{name} = {getattr(self, name)}: expected (least, most), 0 < least <= most"
                )


@dataclasses.dataclass(frozen=True)
class Reflection:
    """One window and what it reflects.

    Args:
      yaw: between the pane's normal and the optical axis, radians.
      pitch: the same, vertically.
      field_of_view: of the photograph's longer side, radians.
      panes: 1 or 2.
      glass: a of (5), of one pane, linear RGB in (0, 1].
      ghost: |d|, shift between the two images, as a fraction of the image side.
      direction: of d, radians.
      energy: mean reflected light over mean transmitted light, before (8).
      defocus: sigma of the blur, as a fraction of the image side.
      contrast: k of (7), in [0, 1].
      kelvin: colour of the light on the reflected side.
      mirrored: whether the reflected photograph is flipped.
      zoom: into the reflected photograph, from 1.
      centre: of what is seen of it, x and y in [-1, 1].
      turn: angles of Q: pan, tilt and roll, radians.
      lamps: how many shine in a dark room; 0 is day.
      lamp_light: their radiance, white of the photograph is 1, whatever the gain of the room.
      lamp_kelvin: their colour.
      occluder: one of OCCLUDERS.
      cover: share of light that the occluder blocks.
      cloth: its own radiance.
      seed: of the forms of lamps and occluder.
      dim: light of the room, against what the energy asks for; below 1 where it is dark.
    """

    effect: ClassVar[str] = "reflection"
    yaw: float
    pitch: float
    field_of_view: float
    panes: int
    glass: tuple[float, float, float]
    ghost: float
    direction: float
    energy: float
    defocus: float
    contrast: float
    kelvin: float
    mirrored: bool
    zoom: float
    centre: tuple[float, float]
    turn: tuple[float, float, float]
    lamps: int
    lamp_light: float
    lamp_kelvin: float
    occluder: str
    cover: float
    cloth: float
    seed: int
    dim: float = 1.0

    @classmethod
    def sample(
        cls, rng: np.random.Generator, scene: Scene, sampling: ReflectionSampling = ReflectionSampling()
    ) -> Self:
        """Ranges: Kee et al. 2025 (most are sharp); panes of 3 to 10 mm, gaps of 12 to 20, 1 to 3 m away, (4) of `pane`."""
        dark = sampling.night
        if dark < 1:
            dark *= _BY_NIGHT if by_night(_glance(scene)) else _BY_DAY
        yaw, pitch = float(rng.uniform(-1.05, 1.05)), float(rng.uniform(-0.35, 0.35))
        double, thick, tinted, night, occluded, sharp = rng.random(6) < (
            sampling.double,
            sampling.ghost,
            sampling.tinted,
            dark,
            sampling.occluded,
            sampling.sharp,
        )
        middle = normal(yaw, pitch)[2]
        thin = fields.log_uniform(rng, 0.0008, 0.006) * parallax(middle)
        gap = fields.log_uniform(rng, 0.003, 0.012) * parallax(middle, 1.0)
        lamps, lamp_light = int(rng.integers(2, 8)), fields.log_uniform(rng, 10, 100)
        return cls(
            yaw=yaw,
            pitch=pitch,
            field_of_view=float(rng.uniform(0.6, 1.2)),
            panes=2 if double else 1,
            glass=_glass(rng, bool(tinted)),
            ghost=gap if double else thin if thick else 0.0,
            direction=float(
                np.arctan2(pitch, yaw) + rng.normal(0, 0.3)
            ),  # along the plane of incidence, but for a wedge
            energy=fields.log_uniform(rng, *sampling.energy),
            defocus=fields.log_uniform(rng, *sampling.defocus) * (not sharp),
            contrast=float(rng.uniform(0, 1)) * (not night),  # a lamp is no highlight of a photograph
            kelvin=float(rng.uniform(4_000, 9_000)),
            mirrored=bool(rng.random() < 0.5),
            zoom=float(rng.uniform(1, 1.6)),
            centre=(float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1))),
            turn=(float(rng.uniform(-0.3, 0.3)), float(rng.uniform(-0.15, 0.15)), float(rng.normal(0, 0.05))),
            lamps=lamps if night else 0,
            lamp_light=lamp_light,
            lamp_kelvin=float(rng.uniform(2_500, 5_500)),
            occluder=fields.any_of(rng, OCCLUDERS[1:]) if occluded else "none",
            cover=float(rng.uniform(0.6, 1)),
            cloth=float(rng.uniform(0, 0.08)),
            seed=int(rng.integers(2**31)),
            dim=fields.log_uniform(rng, 0.05, 0.3) if night else 1.0,
        )

    def render(self, scene: Scene) -> PaneLayer:
        """The layer on one photograph; without `scene.other` the pane mirrors the photograph itself."""
        shape = scene.radiance.shape[:2]
        grid = tuple(min(_GRID, n) for n in shape)
        near, far, transmission = self.glazing(shape, grid)
        seen, margin, lamps = self._reflected(scene)
        inside = seen[margin : margin + shape[0], margin : margin + shape[1]]
        some = inside[:: max(1, shape[0] // (4 * _GRID))]  # rows: enough for means over cells
        reflected = cv2.resize(some, grid[::-1], interpolation=cv2.INTER_AREA)
        around = np.minimum(cv2.GaussianBlur(light.luminance(reflected), (7, 7), 1.4), 2)
        tone = (1 - self.contrast + self.contrast * around * around)[..., None] * light.black_body(self.kelvin)  # (7)
        near, far = near * tone, far * tone
        behind = cv2.resize(scene.radiance, grid[::-1]) * transmission
        gain = np.float32(self._gain(light.luminance(reflected * (near + far)), light.luminance(behind)))
        if lamps is not None:  # they shine as they do: it is the room that gain and colour are of
            colour = light.black_body(self.lamp_kelvin) / light.black_body(self.kelvin)
            _shine(seen, lamps, (self.lamp_light / gain * colour).astype(np.float32))
        wide = shape[1], grid[0]  # the loop over pixels enlarges downwards itself
        near, far, through = (
            cv2.resize(field, wide).reshape(grid[0], -1) for field in (gain * near, gain * far, transmission)
        )
        step = self.ghost * fields.side(shape)
        shift = float(step * np.sin(self.direction)), float(step * np.cos(self.direction))
        return PaneLayer(near, far, through, seen.reshape(len(seen), -1), shape[0], margin, shift)

    def glazing(self, shape: tuple[int, ...], grid: tuple[int, ...] | None = None) -> tuple[Image, Image, Image]:
        """f [h w 1], b and T [h w c] of (4) and (5) over a frame of a shape, at the centres of a grid of cells or pixels."""
        faces, inner = fresnel(np.linspace(_GRAZING, 1, _ANGLES, dtype=np.float32))
        near = several(faces, self.panes)
        far, through = near * (1 - near) ** 2, 1 - several(faces, 2 * self.panes)
        once = np.exp(np.log(np.array(self.glass, np.float32)) / inner[:, None])
        near, far, through = (polarised.mean(0)[:, None] for polarised in (near, far, through))
        table = np.concatenate([near, far * (once * once), through * once**self.panes], 1)
        half = math.tan(self.field_of_view / 2) / max(shape)  # per pixel; the longer side has it all, as in (6)
        over_frame = _over_frame(
            table, normal(self.yaw, self.pitch), half * shape[0], half * shape[1], *(grid or shape)
        )
        return over_frame[..., :1], over_frame[..., 1:4], over_frame[..., 4:]

    def _gain(self, reflected: Plane, behind: Plane) -> float:
        """g of (1): the energy asked for, but no reflection that nobody sees, and none that hides the scene.

        Each pixel needs g = ((sqrt(T J) + change)^2 - T J) / R to change so much, so a quantile of these is the least g that
        changes a share of the pixels. The visible never exceeds the overwhelming: it asks less of fewer pixels.
        """
        root = np.sqrt(np.clip(behind, 0, 1)).ravel()
        light_of = np.maximum(reflected.ravel(), 1e-9)
        total = float(light_of.mean())
        if total <= 2e-9:  # nothing but lamps
            return 1.0
        visible = fields.quantile((2 * root + _VISIBLE) * _VISIBLE / light_of, 0.05)
        overwhelming = fields.quantile((2 * root + _OVERWHELMING) * _OVERWHELMING / light_of, 0.5)
        mean = max(float(behind.mean()), 1e-4) / total
        return min(max(min(self.energy, _MOST) * self.dim * mean, visible), overwhelming)

    def _reflected(self, scene: Scene) -> tuple[Image, int, Plane | None]:
        """S with a margin of so many pixels, wide enough for its second image; drawn smaller where it is out of focus.

        The lamps of a dark room, if any, apart, in the same frame.
        """
        shape = scene.radiance.shape[:2]
        side = fields.side(shape)
        sigma, step = self.defocus * side, self.ghost * side
        factor = fields.reduction(sigma, shape, 6)
        margin = factor * int(np.ceil((step + 1) / factor))
        size = tuple(-(-(n + 2 * margin) // factor) for n in shape)
        other = scene.radiance[:, ::-1] if scene.other is None else scene.other
        if factor > 1:
            other = fields.shrink(other, tuple(max(2, n // factor) for n in other.shape[:2]))
        view = self._view(other.shape[:2], tuple(n / factor for n in shape), margin / factor)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        seen = cv2.warpPerspective(other, view, size[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT_101)
        lamps = None
        if self.lamps or self.occluder != "none":
            lamps = self._dress(seen, margin // factor, side / factor)

        def spread(plane: np.ndarray) -> np.ndarray:
            """Out of focus, at full size."""
            soft = fields.blur_reduced(plane, sigma, factor)
            return cv2.resize(soft, (size[1] * factor, size[0] * factor)) if factor > 1 else soft

        return spread(seen), margin, None if lamps is None else spread(lamps)

    def _view(self, source: tuple[int, ...], frame: tuple[float, ...], margin: float) -> Float64[np.ndarray, "3 3"]:
        """Equation (6): from pixels of the frame and its margin to those of the reflected photograph, which fits at zoom 1.

        The frame stays within the photograph: beyond that it is mirrored, which is to be seen.
        """
        scale = min(source[0] / frame[0], source[1] / frame[1]) / self.zoom
        focal = max(frame) / 2 / np.tan(self.field_of_view / 2)
        turned = np.diag([focal, focal, 1]) @ _rotation(*self.turn) @ np.diag([1 / focal, 1 / focal, 1])
        turned = _shift(*(-turned[:2, 2] / turned[2, 2])) @ turned  # what is in the middle stays there
        corners = np.array([[x * frame[1] / 2, y * frame[0] / 2, 1] for x in (-1, 1) for y in (-1, 1)]) @ turned.T
        low, high = (each(corners[:, 1::-1] / corners[:, 2:], 0) for each in (np.min, np.max))
        scale = min(scale, *(n / reach for n, reach in zip(source, high - low, strict=True)))
        if self.mirrored:
            low[1], high[1] = -high[1], -low[1]
        middle = []
        for n, m, c, first, last in zip(source, frame, self.centre[::-1], scale * low, scale * high, strict=True):
            middle.append(np.clip((n - 1 + (n - m * scale) * c) / 2, -0.5 - first, n - 0.5 - last))
        onto = _shift(middle[1], middle[0]) @ np.diag([-scale if self.mirrored else scale, scale, 1])
        return onto @ turned @ _shift(*((1 - n) / 2 - margin for n in frame[::-1]))

    def _dress(self, seen: Image, margin: int, side: float) -> Plane | None:
        """The occluder, in place, and what of the lamps it leaves."""
        rng = np.random.default_rng(self.seed)
        shape = seen.shape[0] - 2 * margin, seen.shape[1] - 2 * margin
        lamps = np.zeros(shape, np.uint8)
        if self.lamps:
            _light_room(rng, lamps, side, self.lamps)
        blocked = np.zeros(shape, np.uint8) if self.occluder == "none" else _FORMS[self.occluder](rng, shape, side)
        lamps, blocked = (cv2.copyMakeBorder(plane, *4 * (margin,), cv2.BORDER_REPLICATE) for plane in (lamps, blocked))
        lit = np.empty(lamps.shape, np.float32)
        _dressed(seen, lamps, blocked, self.cover, self.cloth, lit)
        return lit if self.lamps else None


@compiled
def _over_frame(
    table: Float32[np.ndarray, "n k"], unit: tuple[float, float, float], high: float, wide: float, h: int, w: int
) -> Float32[np.ndarray, "h w k"]:
    """A table over even cosines from _GRAZING to 1, at the angles to a unit normal; the frame ends at +-high and +-wide."""
    out, place = np.empty((h, w, table.shape[1]), np.float32), np.empty(w)
    (n_x, n_y, n_z), last = unit, len(table) - 1
    for i in range(h):
        y = ((i + 0.5) * 2 / h - 1) * high
        for j in range(w):
            x = ((j + 0.5) * 2 / w - 1) * wide
            cosine = abs(x * n_x + y * n_y + n_z) / math.sqrt(x * x + y * y + 1)
            place[j] = (cosine - _GRAZING) / (1 - _GRAZING) * last
        for j in range(w):
            k = np.uint32(min(max(place[j], 0.0), last - 1.0))
            a = np.float32(max(place[j], 0.0) - k)
            for n in range(table.shape[1]):
                out[i, j, n] = table[k, n] + a * (table[k + np.uint32(1), n] - table[k, n])
    return out


@compiled
def _dressed(
    seen: Image,
    lamps: UInt8[np.ndarray, "h w"],
    blocked: UInt8[np.ndarray, "h w"],
    cover: float,
    cloth: float,
    lit: Plane,
) -> None:
    """The occluder over x, in place, and over the lamps."""
    part, hide, own = np.float32(1 / 255), np.float32(cover / 255), np.float32(cloth)
    for i in range(seen.shape[0]):
        for j in range(seen.shape[1]):
            m = hide * blocked[i, j]
            lit[i, j] = part * lamps[i, j] * (np.float32(1) - m)
            for c in range(3):
                seen[i, j, c] += m * (own - seen[i, j, c])


@compiled
def _shine(seen: Image, lamps: Plane, shine: Float32[np.ndarray, "c"]) -> None:
    """x + lamps, in place."""
    for i in range(seen.shape[0]):
        for j in range(seen.shape[1]):
            if lamps[i, j] > 0:
                for c in range(3):
                    seen[i, j, c] += lamps[i, j] * shine[c]


def _light_room(rng: np.random.Generator, plane: UInt8[np.ndarray, "h w"], side: float, count: int) -> None:
    """Bulbs, tubes or panels of one ceiling, alike and in a row that recedes, with what glass scatters around them."""
    h, w = plane.shape
    level, kind = int(rng.integers(90, 256)), int(rng.integers(3))
    place = np.array([w * rng.uniform(0.05, 0.95), h * rng.uniform(0.05, 0.5)])
    size, angle, lean = fields.log_uniform(rng, 0.004, 0.018) * side, rng.normal(0, 0.25), rng.uniform(-0.3, 0.3)
    across = ((1.0, 1.0), (rng.uniform(3, 8), 0.35), (rng.uniform(1.5, 3), rng.uniform(0.5, 1)))[kind]
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False) if kind == 0 else np.pi / 4 + np.pi / 2 * np.arange(4)
    outline = np.stack([np.cos(turn) * across[0], np.sin(turn) * across[1]], -1)
    outline[:, 0] *= 1 + lean * np.sign(outline[:, 1]) * (kind == 2)
    cosine, sine = math.cos(angle), math.sin(angle)
    outline = outline @ np.array([[cosine, sine], [-sine, cosine]])
    heading = math.pi / 2 - np.sign(place[0] - w / 2) * rng.uniform(-1.2, 0.2)  # towards a point in the middle, lower
    step = rng.uniform(2.5, 6) * max(across) * size * np.array([math.cos(heading), 0.6 * math.sin(heading)])
    farther = rng.uniform(0.7, 0.95)
    for lamp in range(count):
        nearness = farther**lamp
        points = place + outline * size * nearness
        cv2.fillPoly(plane, [np.round(points * 16 - 8).astype(np.int32)], level, cv2.LINE_AA, 4)
        place = place + step * nearness
    halo = cv2.convertScaleAbs(fields.blur(plane.astype(np.float32), 0.02 * side), alpha=0.35)
    cv2.max(cv2.GaussianBlur(plane, (0, 0), max(0.0012 * side, 0.5)), halo, dst=plane)


def _person(rng: np.random.Generator, shape: tuple[int, int], side: float) -> UInt8[np.ndarray, "h w"]:
    """The photographer: head, shoulders and arms that hold a camera before the face."""
    plane = np.zeros(shape, np.uint8)
    h, w = shape
    unit = rng.uniform(0.05, 0.13) * side  # half a head's width
    x, y = w * rng.uniform(0.3, 0.7), h - unit * rng.uniform(3, 7)
    elbow, lean = rng.uniform(1.9, 2.7), rng.normal(0, 0.15)
    right = np.array([(0.45, 1.1), (0.6, 1.6), (1.9, 2.1), (2.3, 3.0), (2.2, 12), (0, 12)])
    arm = np.array([(1.7, 2.3), (elbow, 3.3), (0.9, 0.4), (0.5, 0.2), (0.4, 0.7), (1.5, 3.5)])
    for mirror in (-1, 1):
        for part in (right, arm):
            points = np.stack([x + unit * (mirror * part[:, 0] + lean * part[:, 1]), y + unit * part[:, 1]], -1)
            cv2.fillPoly(plane, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    head = tuple(int(16 * n) for n in (x, y)), tuple(int(16 * n) for n in (0.95 * unit, 1.3 * unit))
    cv2.ellipse(plane, *head, 8 * float(lean), 0, 360, 255, -1, cv2.LINE_AA, 4)
    return plane


def _curtain(rng: np.random.Generator, shape: tuple[int, int], side: float) -> UInt8[np.ndarray, "h w"]:
    """Vertical folds from one side to an edge that hangs a little askew, or from both sides."""
    small = min(shape[0], 160), min(shape[1], 160)
    y = np.linspace(0, 1, small[0], dtype=np.float32)[:, None]
    x = np.linspace(0, 1, small[1], dtype=np.float32)[None] + np.float32(rng.normal(0, 0.03)) * y
    edges = rng.uniform(0.2, 0.6), 2.0 if rng.random() < 0.5 else rng.uniform(0.65, 0.9)
    x = 1 - x if rng.random() < 0.5 else x
    bend = x + np.float32(rng.uniform(0.005, 0.02)) * np.sin(np.float32(rng.uniform(8, 20)) * x)
    fold = np.cos(np.float32(2 * np.pi * rng.uniform(8, 22)) * bend) * np.float32(0.5) + np.float32(0.5)
    soft = np.float32(0.01)
    inside = np.maximum(np.clip((edges[0] - x) / soft, 0, 1), np.clip((x - edges[1]) / soft, 0, 1))
    return cv2.resize((255 * inside * (1 - rng.uniform(0.2, 0.6) * fold)).astype(np.uint8), shape[::-1])


def _dark(rng: np.random.Generator, shape: tuple[int, int], side: float) -> UInt8[np.ndarray, "h w"]:
    """Foliage, furniture, a wall in the shade: whatever is dark before what is bright."""
    small = min(shape[0], 128), min(shape[1], 128)
    noise = fields.fractal_noise(rng, small, 0.3, 5, 0.5)
    threshold = rng.uniform(0.35, 0.6)
    return cv2.resize((255 * fields.smoothstep(noise, threshold, threshold + 0.06)).astype(np.uint8), shape[::-1])


_FORMS = {"person": _person, "curtain": _curtain, "dark": _dark}


def _glance(scene: Scene) -> Image:
    """A few pixels of the photograph, about 36 a side."""
    step = max(1, min(scene.radiance.shape[:2]) // 36)
    return scene.radiance[::step, ::step]


def _glass(rng: np.random.Generator, tinted: bool) -> tuple[float, float, float]:
    """Clear glass absorbs 1 to 4 % per centimetre, green least; tinted is gray, bronze, green or blue."""
    shade = np.array([(1, 1, 1), (1, 0.88, 0.75), (0.78, 1, 0.85), (0.75, 0.9, 1)])[rng.integers(4)]
    depth, passes = rng.uniform(0.4, 1.5), rng.uniform(0.6, 0.95)
    left = np.exp(-depth * np.array([0.025, 0.006, 0.02]))
    red, green, blue = left * shade * passes if tinted else left
    return float(red), float(green), float(blue)


def _shift(x: float, y: float) -> Float64[np.ndarray, "3 3"]:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _rotation(pan: float, tilt: float, roll: float) -> Float64[np.ndarray, "3 3"]:
    """Q of (6)."""
    (a, b), (c, d), (e, f) = ((np.cos(t), np.sin(t)) for t in (pan, tilt, roll))
    about_y = np.array([[a, 0, b], [0, 1, 0], [-b, 0, a]])
    about_x = np.array([[1, 0, 0], [0, c, -d], [0, d, c]])
    return about_y @ about_x @ np.array([[e, -f, 0], [f, e, 0], [0, 0, 1]])
