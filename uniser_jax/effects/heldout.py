"""Effects held out of training: whether a model that never saw them removes them too is a benchmark.

  (1) seen = (1 - a g) J + a g P               watermark: glyphs g, opacity a, ink P

They stand in a table of their own. A recipe names its effects from `mixture.FAMILIES`, and nothing there reaches here.
"""

import dataclasses
from typing import Any, ClassVar, Self

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from uniser_jax.effects import fields, light
from uniser_jax.effects.layer import LinearLayer, Scene
from uniser_jax.effects.rain import Rain, Raindrops
from uniser_jax.effects.scattering import Plane
from uniser_jax.effects.smudge import Smudge, Stain

LAYOUTS = ("tiled", "single", "corner")
_WORDS = ("SAMPLE", "PREVIEW", "PROOF", "DRAFT", "stock photo", "DO NOT COPY", "for review only", "studio north")


@dataclasses.dataclass(frozen=True)
class Watermark:
    """Semi-transparent writing over the photograph.

    Args:
      text: one line.
      layout: one of LAYOUTS.
      extent: width of the line, as a fraction of the image side.
      angle: of the line, radians.
      opacity: a of (1).
      ink: P of (1), linear gray: the farther of black and white from what lies under the letters.
      outlined: whether only the outline of the letters is inked.
      place: of the middle of the line (or of one of the tiles), as fractions of width and height.
    """

    effect: ClassVar[str] = "watermark"
    text: str
    layout: str
    extent: float
    angle: float
    opacity: float
    ink: float
    outlined: bool
    place: tuple[float, float]

    @classmethod
    def sample(cls, rng: np.random.Generator, scene: Scene) -> Self:
        """White, or black where the light under the letters is bright."""
        layout = str(rng.choice(LAYOUTS))
        code = "".join(rng.choice(list("ABCDEFGHKLMNPRSTUVWXYZ0123456789"), 8))
        extents = {"tiled": (0.18, 0.4), "single": (0.5, 0.85), "corner": (0.3, 0.5)}
        mark = cls(
            text=str(rng.choice([*_WORDS, f"© {code}", code])),
            layout=layout,
            extent=float(rng.uniform(*extents[layout])),
            angle=0.0 if layout == "corner" else float(rng.uniform(-0.8, 0.8)),
            opacity=float(rng.uniform(0.3, 0.7)),
            ink=1.0,
            outlined=bool(rng.random() < 0.25),
            place=(0.72, 0.93)
            if layout == "corner"
            else (float(rng.uniform(0.45, 0.55)), float(rng.uniform(0.35, 0.65))),
        )
        letters = mark.glyphs(scene.radiance.shape[:2])
        under = np.average(light.luminance(np.minimum(scene.radiance, 1)), weights=letters + 1e-6)
        return dataclasses.replace(mark, ink=float(under < 0.5))

    def render(self, scene: Scene) -> LinearLayer:
        """The layer on one photograph."""
        a = np.float32(self.opacity) * self.glyphs(scene.radiance.shape[:2])[..., None]
        return LinearLayer("watermark", 1 - a, a * np.float32(self.ink))

    def glyphs(self, shape: tuple[int, int]) -> Plane:
        """g of equation (1)."""
        h, w = shape
        strip = self._line(self.extent * fields.side(shape))
        border = cv2.BORDER_WRAP if self.layout == "tiled" else cv2.BORDER_CONSTANT
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        turn = np.array([[cosine, sine], [-sine, cosine]])  # from the photograph to the strip
        middle = np.array(strip.shape[::-1]) / 2 - turn @ (np.array(self.place) * (w, h))
        matrix = np.concatenate([turn, middle[:, None]], 1)
        return cv2.warpAffine(strip, matrix, (w, h), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=border)

    def _line(self, width: float) -> Plane:
        """The text, as wide as asked for in pixels, with room around it."""
        size = 100 * width / ImageFont.load_default(100).getlength(self.text)
        font = ImageFont.load_default(max(size, 2.0))
        stroke = max(1, round(size / 30)) if self.outlined else 0
        left, top, right, bottom = font.getbbox(self.text, stroke_width=stroke)
        gap = max(2, round(0.8 * size))
        canvas = Image.new("L", (int(right - left) + 2 * gap, int(bottom - top) + 2 * gap))
        pen, at = ImageDraw.Draw(canvas), (gap - left, gap - top)
        pen.text(at, self.text, fill=255, font=font, stroke_width=stroke)
        if self.outlined:
            pen.text(at, self.text, fill=0, font=font)
        return np.asarray(canvas, np.float32) / 255


HELD_OUT: dict[str, Any] = {
    "rain": Rain,
    "raindrops": Raindrops,
    "smudge": Smudge,
    "stain": Stain,
    "watermark": Watermark,
}
