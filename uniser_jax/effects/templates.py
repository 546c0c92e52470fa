"""Photographs of real flares on black, from a folder: decoded once, in linear light, at a bounded size."""

import functools
import pathlib
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Float64

from uniser_jax.effects import fields, light

KEPT = 16  # templates in memory, 1.7 MB each
_LARGEST = 384  # px, the longer side
_FAINTEST = 0.1  # of its brightest: the veil that a flare is measured by; a fainter one may be noise
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")

Image = Float32[np.ndarray, "h w c"]


class Template(NamedTuple):
    """A flare.

    Args:
      light: linear; 1 where it is brightest, 0 at the border.
      source: (x, y) in pixels.
      rings: sum of light and number of pixels in rings around the source, each a pixel wide.
    """

    light: Image
    source: tuple[float, float]
    rings: Float64[np.ndarray, "2 n"]

    def veil(self, radius: float) -> float:
        """Mean light over a ring around the source, its radius in image sides; no less than what may be noise."""
        pixels = radius * fields.side(self.light.shape[:2])
        total, count = self.rings[:, round(0.8 * pixels) : round(1.2 * pixels) + 1].sum(1)
        return max(total / max(count, 1), _FAINTEST)


@functools.lru_cache(maxsize=8)
def paths(folder: str) -> tuple[str, ...]:
    """The images in a folder, by name.

    Raises:
      ValueError: if there is no such folder, or no image in it.
    """
    root = pathlib.Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"edit.families.flare.layers = {folder!r}: there is no such folder")
    found = tuple(sorted(str(path) for path in root.iterdir() if path.suffix.lower() in _SUFFIXES))
    if not found:
        raise ValueError(f"edit.families.flare.layers = {folder!r}: no image in it ({', '.join(_SUFFIXES)})")
    return found


@functools.lru_cache(maxsize=KEPT)
def read(path: str) -> Template:
    """Decodes a layer, takes the light of its background away, and finds its source.

    Args:
      path: of the image.

    Raises:
      ValueError: if the file cannot be read as an image, or is black.
    """
    stored = cv2.imread(path, cv2.IMREAD_COLOR_RGB) if pathlib.Path(path).is_file() else None
    if stored is None:
        raise ValueError(f"{path}: a flare layer that cannot be read as an image")
    factor = min(1.0, _LARGEST / max(stored.shape[:2]))
    size = tuple(max(8, round(n * factor)) for n in stored.shape[1::-1])
    flare = cv2.resize(light.decode(stored), size, interpolation=cv2.INTER_AREA)
    h, w = flare.shape[:2]
    y, x = np.ogrid[:h, :w]
    margin = np.minimum(np.minimum(y, h - 1 - y) / h, np.minimum(x, w - 1 - x) / w).astype(np.float32)
    background = np.percentile(flare[margin < 0.05], 90, 0).astype(np.float32)  # sensor offset, sky glow, noise
    flare = np.maximum(flare - background, 0) * fields.smoothstep(margin, 0, 0.1)[..., None]
    bright = light.luminance(fields.blur(flare, 0.01 * fields.side((h, w)))) ** 4
    total = float(bright.sum())
    if total <= 1e-12:
        raise ValueError(f"{path}: a flare layer without light")
    source = float((bright * x).sum() / total) + 0.5, float((bright * y).sum() / total) + 0.5
    flare /= flare.max()
    ring = np.hypot(x + 0.5 - source[0], y + 0.5 - source[1]).astype(np.int64).ravel()
    sums = np.bincount(ring, flare.mean(-1).ravel())
    return Template(flare, source, np.stack([sums, np.bincount(ring)]))


def add(
    out: Image, place: np.ndarray, gain: Float32[np.ndarray, "c"], template: Template, turn: float, zoom: float
) -> None:
    """Adds a template turned (radians), scaled, its source at `place` (x, y) in pixels of `out`."""
    scale = zoom * fields.side(out.shape[:2]) / fields.side(template.light.shape[:2])
    c, s = scale * np.cos(turn), scale * np.sin(turn)
    turned = np.array([[c, -s], [s, c]])
    offset = place - 0.5 - turned @ (np.array(template.source) - 0.5)
    out += gain * cv2.warpAffine(template.light, np.column_stack([turned, offset]), out.shape[1::-1])
