"""Photographs of real flares on black, from a folder: decoded once, in linear light, at a bounded size."""

import functools
import pathlib
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32

from uniser_jax.effects import fields, light

KEPT = 16  # templates in memory, 1.7 MB each
_LARGEST = 384  # px, the longer side
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")

Image = Float32[np.ndarray, "h w c"]


class Template(NamedTuple):
    """A flare with 1 as the mean over the ring at 5 % of the side around its source; fainter where that would lift its noise.

    Args:
      light: linear; 0 at the border.
      source: (x, y) in pixels.
    """

    light: Image
    source: tuple[float, float]


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
def read(path: str, quoted: float) -> Template:
    """Decodes a layer, takes the light of its background away, and finds its source.

    Args:
      path: of the image.
      quoted: radius of the ring, in image sides.

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
    r = np.hypot(x + 0.5 - source[0], y + 0.5 - source[1]) / fields.side((h, w))
    ring = float(flare[(r > 0.8 * quoted) & (r < 1.2 * quoted)].mean())
    return Template(flare / np.float32(max(ring, 0.1 * flare.max())), source)


def add(
    out: Image, place: np.ndarray, gain: Float32[np.ndarray, "c"], template: Template, turn: float, zoom: float
) -> None:
    """Adds a template turned (radians), scaled, its source at `place` (x, y) in pixels of `out`."""
    scale = zoom * fields.side(out.shape[:2]) / fields.side(template.light.shape[:2])
    c, s = scale * np.cos(turn), scale * np.sin(turn)
    turned = np.array([[c, -s], [s, c]])
    offset = place - 0.5 - turned @ (np.array(template.source) - 0.5)
    out += gain * cv2.warpAffine(template.light, np.column_stack([turned, offset]), out.shape[1::-1])
