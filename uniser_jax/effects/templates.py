"""Photographs of real flares on black, from a folder: decoded in linear light at a bounded size.

What is in a folder is found out once, and told to the processes that render: all draw from the same.
"""

import functools
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np
from absl import logging
from jaxtyping import Float32, Float64, UInt8

from uniser_jax import decoding
from uniser_jax.effects import fields, light
from uniser_jax.errors import listed, reason_of

KEPT = 16  # templates in memory, 1.7 MB each
_LARGEST = 384  # px, the longer side
_FAINTEST = 0.1  # of its brightest: the veil that a flare is measured by; a fainter one may be noise
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")

Image = Float32[np.ndarray, "h w c"]

_FOUND: dict[str, tuple[str, ...]] = {}  # in each folder that this process has looked at, or was told of
_BAD: dict[str, str] = {}  # why, of each that this process could not use


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


def paths(folder: str) -> tuple[str, ...]:
    """The images in a folder, by name.

    Raises:
      ValueError: if there is no such folder, or no image in it.
    """
    if folder not in _FOUND:
        root = pathlib.Path(folder).expanduser()
        if not root.is_dir():
            raise ValueError(f"edit.families.flare.layers = {folder!r}: there is no such folder")
        found = tuple(sorted(str(path) for path in root.iterdir() if path.suffix.lower() in _SUFFIXES))
        if not found:
            raise ValueError(f"edit.families.flare.layers = {folder!r}: no image in it ({', '.join(_SUFFIXES)})")
        _FOUND[folder] = found
    return _FOUND[folder]


def usable(folder: str, index: int) -> str:
    """The path of an image in a folder, or of the next one that can be used, with a warning that names the file.

    Raises:
      ValueError: if none can be.
    """
    found = paths(folder)
    for path in found[index:] + found[:index]:
        if path in _BAD:
            continue
        try:
            read(path)
        except ValueError as error:
            _BAD[path] = str(error)
            logging.warning("%s; the next one stands in", error)
        else:
            return path
    reasons = listed([_BAD[path] for path in found], "; ")
    raise ValueError(f"edit.families.flare.layers = {folder!r}: no layer that can be used: {reasons}")


def digest_of(folder: str) -> str:
    """Of the names of the images in a folder, in order."""
    names = (os.fsencode(os.path.basename(path)) for path in paths(folder))
    return hashlib.sha256(b"\0".join(names)).hexdigest()


def known() -> dict[str, tuple[str, ...]]:
    """By folder, what `paths` has found, for `tell` in another process."""
    return dict(_FOUND)


def tell(found: Mapping[str, tuple[str, ...]]) -> None:
    """Spares this process looking at folders again."""
    _FOUND.update(found)


@functools.lru_cache(maxsize=KEPT)
def read(path: str) -> Template:
    """Decodes a layer, takes the light of its background away, and finds its source.

    Args:
      path: of the image.

    Raises:
      ValueError: if the file cannot be read as an image, or is black.
    """
    stored = _decoded(path)
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


def _decoded(path: str) -> UInt8[np.ndarray, "h w c"]:
    if not os.path.isfile(path):  # a pipe would wait
        raise ValueError(f"{path}: a flare layer that cannot be read: not a file")
    try:
        return decoding.decode(pathlib.Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: a flare layer that cannot be read: {reason_of(error)}") from None


def add(
    out: Image, place: np.ndarray, gain: Float32[np.ndarray, "c"], template: Template, turn: float, zoom: float
) -> None:
    """Adds a template turned (radians), scaled, its source at `place` (x, y) in pixels of `out`."""
    scale = zoom * fields.side(out.shape[:2]) / fields.side(template.light.shape[:2])
    c, s = scale * np.cos(turn), scale * np.sin(turn)
    turned = np.array([[c, -s], [s, c]])
    offset = place - 0.5 - turned @ (np.array(template.source) - 0.5)
    out += gain * cv2.warpAffine(template.light, np.column_stack([turned, offset]), out.shape[1::-1])
