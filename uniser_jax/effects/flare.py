"""Lens flare: the lens spreads a little of a strong light over the frame.

  (1) seen = J + F,  F = glare * diffraction + streak + ghosts, per source
  (2) glare(r) = ((1 + r / r0) / (1 + 0.05 / r0))^-n              scattering wings, 1 at r = 5 % of the side
  (3) diffraction_l(x) = D(x l_green / l),  D = |FFT(pupil)|^2 over its own radial mean       blades, dust, scratches
  (4) ghost centre = c + a (source - c)                            on the line through the centre c of the frame

One transform serves all wavelengths, since for a pupil that is the same in every colour the pattern only scales (Wu et al.
2021; Goodman). Brightness is set by the veil it lays at r = 5 %, which is what one sees, not by the radiance of the source.
The source itself stays: where the photograph has no light of its own, a lamp is added to the scene, not to the flare.
"""

import dataclasses
from typing import ClassVar, Self

import cv2
import numpy as np
from jaxtyping import Float32

from uniser_jax.effects import fields, light
from uniser_jax.effects.layer import LinearLayer, Scene

_SPECTRUM = np.linspace(0.43, 0.67, 7)  # micrometres
_RESPONSE = np.exp(-(((_SPECTRUM[:, None] - light.WAVELENGTHS) / 0.045) ** 2))
_RESPONSE = (_RESPONSE / _RESPONSE.sum(0)).astype(np.float32)
_REACH = 1.4  # the diffraction pattern's half width, in image sides


@dataclasses.dataclass(frozen=True)
class FlareSampling:
    """What draws come from."""


@dataclasses.dataclass(frozen=True)
class Flare:
    """One lens and its light sources.

    Args:
      sources: (x, y) of each, as fractions of width and height; outside [0, 1] is out of frame.
      kelvin: colour of the light.
      level: brightness of the veil 5 % of the side from the source, linear, white at 1.
      falloff: n of (2).
      core: r0 of (2), as a fraction of the side.
      diffraction: share of the glare that (3) shapes.
      blades: of the aperture, an even count gives as many rays, an odd one twice as many.
      dirt: specks and scratches on the lens.
      streak: brightness of an anamorphic streak against the veil; 0 for spherical lenses.
      streak_angle: its direction, radians.
      ghosts: how many.
      ghost_level: brightness of the brightest ghost against the veil.
      lamp: radius of the lamp added to the scene, as a fraction of the side; 0 where the photograph has its own.
      seed: of the lens: aperture, dirt, ghosts.
    """

    effect: ClassVar[str] = "flare"
    sources: tuple[tuple[float, float], ...]
    kelvin: float
    level: float
    falloff: float
    core: float
    diffraction: float
    blades: int
    dirt: int
    streak: float
    streak_angle: float
    ghosts: int
    ghost_level: float
    lamp: float
    seed: int

    @classmethod
    def sample(cls, rng: np.random.Generator, scene: Scene, sampling: FlareSampling = FlareSampling()) -> Self:
        """Half of the sources lie in frame, most where the photograph is bright."""
        inside = rng.random() < 0.5
        count = 1 if rng.random() < 0.75 else 2
        sources = tuple(_bright_place(rng, scene) if inside else _outside(rng) for _ in range(count))
        return cls(
            sources=sources,
            kelvin=float(rng.uniform(2_800, 8_000)),
            level=float(np.exp(rng.uniform(np.log(0.15), np.log(1.2)))),
            falloff=float(rng.uniform(0.9, 2.2)),
            core=float(rng.uniform(0.01, 0.06)),
            diffraction=float(rng.uniform(0.3, 1.0)),
            blades=int(rng.integers(5, 10)),
            dirt=int(rng.integers(0, 40)),
            streak=float(rng.choice([0.0, rng.uniform(0.2, 1)], p=[0.75, 0.25])),
            streak_angle=float(rng.normal(0, 0.05)),
            ghosts=int(rng.integers(0, 9)),
            ghost_level=float(np.exp(rng.uniform(np.log(0.1), np.log(0.8)))),
            lamp=float(rng.uniform(0.006, 0.02)) if inside else 0.0,
            seed=int(rng.integers(2**31)),
        )

    def render(self, scene: Scene) -> LinearLayer:
        """The layer on one photograph."""
        shape = scene.radiance.shape[:2]
        colour = light.black_body(self.kelvin)
        pattern = self._pattern(fields.side(shape))
        flare = np.zeros((*shape, 3), np.float32)
        lamp = np.zeros((*shape, 3), np.float32)
        for source in self.sources:
            centre = np.array(source) * shape[::-1]
            flare += self._scattered(shape, centre, pattern)
            self._add_ghosts(flare, centre)
            if self.lamp:
                lamp += self._lamp(scene, centre)[..., None] * np.clip(colour, 0.6, 1.6)
        emission = np.minimum(self.level * colour * flare, 8)
        return LinearLayer("flare", np.ones(3, np.float32), emission, lamp if self.lamp else None)

    def _scattered(self, shape: tuple[int, int], centre: np.ndarray, pattern: np.ndarray) -> np.ndarray:
        """Equations (2) and (3), and the streak."""
        size = fields.side(shape)
        x = ((np.arange(shape[1], dtype=np.float32) - centre[0]) / size)[None]
        y = ((np.arange(shape[0], dtype=np.float32) - centre[1]) / size)[:, None]
        r = cv2.sqrt(x * x + y * y)
        glare = ((1 + r / self.core) / (1 + 0.05 / self.core)) ** np.float32(-self.falloff)
        rays = np.zeros((*shape, 3), np.float32)
        half = pattern.shape[0] / 2
        for wavelength, response in zip(_SPECTRUM, _RESPONSE, strict=True):
            zoom = half / (_REACH * size) * light.WAVELENGTHS[1] / wavelength
            to_pattern = np.array([[zoom, 0, half - zoom * centre[0]], [0, zoom, half - zoom * centre[1]]])
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            plane = cv2.warpAffine(pattern, to_pattern, shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
            rays += plane[..., None] * response
        out = glare[..., None] * ((1 - self.diffraction) + self.diffraction * rays)
        if self.streak:
            c, s = np.float32(np.cos(self.streak_angle)), np.float32(np.sin(self.streak_angle))
            along, across = np.abs(c * x + s * y), np.abs(c * y - s * x)
            line = self.streak * np.exp(-across / 0.004) / (1 + along / 0.25) ** 1.5
            out += line[..., None] * np.array([0.55, 0.8, 1.3], np.float32)  # coatings of cylindrical fronts shine blue
        return out

    def _pattern(self, size: float) -> Float32[np.ndarray, "n n"]:
        """D of equation (3)."""
        n = 128 if size < 160 else 256 if size < 400 else 512
        spectrum = np.abs(np.fft.fftshift(np.fft.fft2(self._pupil(n)))).astype(np.float32)
        power = cv2.GaussianBlur(spectrum**2, (0, 0), 0.7)  # the source has a size
        y, x = np.mgrid[-n // 2 : n // 2, -n // 2 : n // 2]
        radius = np.hypot(x, y)
        index = radius.astype(np.int32)
        mean = np.bincount(index.ravel(), power.ravel()) / np.bincount(index.ravel())
        smooth = np.convolve(np.log(mean + 1e-12), np.ones(9) / 9, "same")
        ratio = power / np.exp(np.interp(radius, np.arange(len(smooth)), smooth)).astype(np.float32)
        return np.minimum(ratio, 40)

    def _pupil(self, n: int) -> Float32[np.ndarray, "n n"]:
        """The aperture with its slightly curved blades, specks and scratches; drawn at n / 2, so that D is well sampled."""
        rng = np.random.default_rng(self.seed)
        turn = np.linspace(0, 2 * np.pi, 8 * self.blades, endpoint=False)
        start, bend = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.8)
        sector = np.pi / self.blades
        chord = np.cos(sector) / np.cos((turn % (2 * sector)) - sector)
        radius = n / 4 * (bend * chord + (1 - bend)) if self.blades < 9 else np.full_like(turn, n / 4)
        points = n / 2 + radius[:, None] * np.stack([np.cos(turn + start), np.sin(turn + start)], -1)
        pupil = np.zeros((n, n), np.uint8)
        cv2.fillPoly(pupil, [(points * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
        for _ in range(self.dirt):
            place = tuple(int(v) for v in rng.uniform(n / 4, 3 * n / 4, 2))
            if rng.random() < 0.6:
                cv2.circle(pupil, place, max(1, int(rng.uniform(0.004, 0.02) * n)), int(rng.uniform(0, 160)), -1)
            else:
                end = tuple(int(p + v) for p, v in zip(place, rng.normal(0, 0.1 * n, 2), strict=True))
                cv2.line(pupil, place, end, int(rng.uniform(0, 160)), 1, cv2.LINE_AA)
        return pupil.astype(np.float32) / 255

    def _add_ghosts(self, flare: np.ndarray, source: np.ndarray) -> None:
        """Equation (4): images of the aperture, smaller ones brighter, tinted by the coatings that made them."""
        rng = np.random.default_rng(self.seed + 1)
        h, w = flare.shape[:2]
        size, centre = fields.side((h, w)), np.array([w, h]) / 2
        start = rng.uniform(0, 2 * np.pi)
        for _ in range(self.ghosts):
            place = centre + rng.uniform(-1.6, 1.4) * (source - centre)
            radius = size * np.exp(rng.uniform(np.log(0.012), np.log(0.14)))
            brightness = self.ghost_level * min(1.0, (0.03 * size / radius) ** rng.uniform(0.6, 1.4))
            coating = rng.uniform(0.38, 0.75)
            tint = np.sin(np.pi / 2 * coating / light.WAVELENGTHS) ** 2 + 0.05  # a quarter-wave layer's residual
            rim, softness, cut = rng.uniform(0, 1.5), rng.uniform(0.03, 0.3), rng.normal(0, 0.5, 2) * radius
            for channel, spread in enumerate((1.02, 1.0, 0.975)):
                self._add_ghost(
                    flare[..., channel], place, radius * spread, start, brightness * tint[channel], rim, softness, cut
                )

    def _add_ghost(
        self,
        plane: np.ndarray,
        place: np.ndarray,
        radius: float,
        start: float,
        brightness: float,
        rim: float,
        softness: float,
        cut: np.ndarray,
    ) -> None:
        """One colour of one ghost: a polygon with a caustic rim, vignetted by another lens's edge (`cut`)."""
        h, w = plane.shape
        reach = 1.3 * radius + 2
        left, right = (int(np.clip(place[0] + sign * reach, 0, w)) for sign in (-1, 1))
        top, bottom = (int(np.clip(place[1] + sign * reach, 0, h)) for sign in (-1, 1))
        if left >= right or top >= bottom:
            return
        x = ((np.arange(left, right, dtype=np.float32) - place[0]) / radius)[None]
        y = ((np.arange(top, bottom, dtype=np.float32) - place[1]) / radius)[:, None]
        blades = start + 2 * np.pi * np.arange(self.blades) / self.blades
        edge = np.max([x * np.float32(np.cos(u)) + y * np.float32(np.sin(u)) for u in blades], 0)
        edge = 0.6 * edge + 0.4 * np.sqrt(x * x + y * y)  # blades are curved, ghosts defocused
        inside = fields.smoothstep(1 - edge, 0, softness) * (1 + rim * np.exp(-(((1 - edge) / 0.12) ** 2)))
        lens = np.sqrt((x - cut[0] / radius) ** 2 + (y - cut[1] / radius) ** 2)
        plane[top:bottom, left:right] += np.float32(brightness) * inside * fields.smoothstep(1.35 - lens, 0, 0.15)

    def _lamp(self, scene: Scene, centre: np.ndarray) -> Float32[np.ndarray, "h w"]:
        """A small soft-edged disc, brighter than white, where the photograph is not already clipped."""
        h, w = scene.radiance.shape[:2]
        radius = max(self.lamp * fields.side((h, w)), 0.8)
        y, x = np.ogrid[:h, :w]
        r = np.hypot(x - centre[0], y - centre[1]).astype(np.float32) / radius
        column, row = int(np.clip(centre[0], 0, w - 1)), int(np.clip(centre[1], 0, h - 1))
        missing = 1 - min(1.0, float(scene.radiance[row, column].min()))
        return 3 * missing * fields.smoothstep(1.6 - r, 0, 0.9)


def _bright_place(rng: np.random.Generator, scene: Scene) -> tuple[float, float]:
    small = cv2.resize(light.luminance(np.clip(scene.radiance, 0, 1)), (16, 16), interpolation=cv2.INTER_AREA)
    weight = (0.02 + small**2) * np.linspace(1.5, 0.3, 16)[:, None]  # lights hang, suns stand
    cell = int(rng.choice(256, p=(weight / weight.sum()).ravel()))
    row, column = divmod(cell, 16)
    return float((column + rng.random()) / 16), float((row + rng.random()) / 16)


def _outside(rng: np.random.Generator) -> tuple[float, float]:
    distance, along = rng.uniform(0.03, 0.35), rng.uniform(0, 1)
    place = ((along, -distance), (-distance, along), (1 + distance, along), (along, 1 + distance))
    x, y = place[int(rng.choice(4, p=(0.5, 0.22, 0.22, 0.06)))]
    return float(x), float(y)
