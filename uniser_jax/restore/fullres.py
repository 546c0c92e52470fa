"""Photographs of any size from a network that works at one size: no tiles, no seams, every pixel of detail kept.

Soft effects are affine layers in linear light, and so is their removal; its coefficients vary slowly, or change where
the brightness changes, as at the edge of a shadow. So a large photograph is restored small, and what happened there is
carried over by local affine maps. They live in a bilateral grid, over place and brightness (Chen et al. 2016,
"Bilateral guided upsampling"), and are fitted by ridge regression in windows (He et al. 2013, "Guided image
filtering"). For the photograph I and its reduction i, which the network restores to o, in linear light, per channel:

  (1) d = o - i                                                the change, seen small
  (2) w_k = max(0, 1 - |(K - 1) sqrt(luminance of i) - k|)     the share of a pixel in brightness level k = 0 .. K - 1
  (3) E_k[f] = mean(w_k f + u f) / mean(w_k + u)               over a window; u lends to levels without pixels there
  (4) i' = i - sum_k w_k E_k[i],  d' likewise                  detail: what differs from its surroundings of its level
  (5) a_k = (E_k[i' d'] + e a'_k) / (E_k[i' i'] + e)           slope; a' is that of a wider window, or 0
  (6) b_k = E_k[d] - a_k E_k[i]                                offset
  (7) O = I + sum_k W_k (a_k I + b_k)                          a, b interpolated; W is w of the photograph itself

Slopes come from detail alone because haze and flare have gradients of their own: over a window of even sky, i varies
with the airlight and o does not, which would read as a = -1. Where the reduction shows no detail, e treats finer detail
as the surroundings are treated; where the two sides of a shadow's edge share a level and no slope fits both, the part
of d' that no slope explains, added to e, keeps colours from running wild. Of a network that changes nothing, d = 0 and
O = I.

The mask that the network sees is spread by the reach of a window; the result is

  (8) out = I + g (O - I),   g = aM / max(spread aM, 1/16)

so the edge of a mask stays as sharp as it was drawn, g = 0 exactly where aM = 0, and g = 1 where the mask is even.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from uniser_jax.effects import light
from uniser_jax.restore import levels
from uniser_jax.restore.levels import Pixels

Image = Float32[np.ndarray, "h w c"]
Mask = UInt8[np.ndarray, "h w"]
Network = Callable[[Float32[np.ndarray, "b h w c"], Float32[np.ndarray, "b h w"]], Float32[np.ndarray, "b h w c"]]

_BINS = 8  # K in (2)
_WINDOWS = (8, 2)  # half sides of the boxes of (3), averaged twice, in pixels of the reduction; widest first
_LENT = 1e-3  # u in (3)
_RELATIVE, _ABSOLUTE = 0.01, 0.0005  # e in (5), its root: of the mean, plus of white
_UNEXPLAINED = 0.2  # e in (5): of the variance of d' that no slope explains
_SLOPES = (-1.0, 7.0)  # of (5): nothing is inverted, nothing amplified more than eightfold
_FAINT = 1 / 16  # in (8): below this aM fades out evenly, whatever the network makes of it
_TINY = 1e-9


class Grid(NamedTuple):
    """Affine maps over brightness and place: (5) and (6)."""

    slope: Float32[np.ndarray, "k h w c"]
    offset: Float32[np.ndarray, "k h w c"]


def restore_any_size(
    photo: Pixels, mask: Mask, network: Network, working_size: int, patch: int, direct: float = 1.25
) -> Pixels:
    """Restores a photograph; pixels where the mask is 0 come back bit for bit.

    Memory beyond input and output is bounded, whatever the size.

    Args:
      photo: uint8 or uint16 sRGB, at least as large as a patch.
      mask: soft mask aM.
      network: images in [-1, 1] and masks in [0, 1], batches of one, to images; sides are multiples of `patch`.
      working_size: square root of the area, in pixels, that the network sees.
      patch: what sides must be multiples of.
      direct: times the working size: up to here the pixels are the network's own, above they come by affine maps.

    Raises:
      ValueError: if the pixels are neither uint8 nor uint16.
    """
    levels.full(photo.dtype)
    if not mask.any():
        return photo.copy()
    if photo.shape[0] * photo.shape[1] <= (direct * working_size) ** 2:
        return _restore_directly(photo, mask, network, patch)
    return _restore_reduced(photo, mask, network, working_shape(photo.shape[:2], working_size, patch))


def working_shape(size: tuple[int, int], working_size: int, patch: int) -> tuple[int, int]:
    """Height and width of the reduction: of about the working area and the photograph's aspect, in whole patches.

    Rounding to patches bends the aspect by a few percent, which the network does not mind; it also makes the shapes
    few, so that a folder of photographs compiles a few times, not once each.
    """
    height, width = size
    rows = max(1, round(working_size * (height / width) ** 0.5 / patch))
    columns = max(1, round(working_size**2 / (rows * patch) / patch))
    return rows * patch, columns * patch


def padded_side(side: int, patch: int) -> int:
    """The next side on a ladder of four rungs per octave, so that odd sizes compile a few times, not once each."""
    cells = -(-side // patch)
    rung = 1 << max(0, cells.bit_length() - 3)
    return -(-cells // rung) * rung * patch


def fit(small: Image, restored: Image) -> Grid:
    """Equations (1) to (6): the affine maps that turn `small` into `restored`, both in linear light."""
    seen = np.concatenate([small, restored - small], -1)
    shares = [share[..., None] for share in _shares(small)]
    detail = seen - _level_means(seen, shares)
    squares = [np.tile(detail[..., :3], 2) * detail, detail[..., 3:] ** 2]  # i' i', i' d', d' d'
    moments = np.concatenate([np.ones_like(small[..., :1]), seen, *squares], -1)
    lent = [_LENT * _mean(moments, window) for window in _WINDOWS]
    fitted = [_fit_level(moments * share, lent) for share in shares]
    return Grid(*(np.stack(maps) for maps in zip(*fitted, strict=True)))


def _fit_level(moments: np.ndarray, lent: list[np.ndarray]) -> tuple[Image, Image]:
    """Slope and offset of one level, (5) and (6), from its share of the moments (1, i, d, i' i', i' d', d' d')."""
    slope: Any = np.float32(0)
    for window, lent_moments in zip(_WINDOWS, lent, strict=True):
        summed = _mean(moments, window) + lent_moments
        mean_i, mean_d, ii, id, dd = np.split(summed[..., 1:] / summed[..., :1], 5, -1)  # (3)
        e = (_RELATIVE * mean_i + _ABSOLUTE) ** 2
        e += _UNEXPLAINED * np.maximum(dd - id**2 / (ii + _TINY), 0)
        slope = np.clip((id + e * slope) / (ii + e), *_SLOPES)
    return slope, mean_d - slope * mean_i


def _level_means(image: np.ndarray, shares: list[np.ndarray]) -> np.ndarray:
    """The sum in (4), over the narrowest window; where a level has no pixel its share is 0, so nothing is lent."""
    total = np.zeros_like(image)
    for share in shares:
        weight = _mean(share, _WINDOWS[-1])[..., None]
        total += share * _mean(image * share, _WINDOWS[-1]) / (weight + _TINY)
    return total


def _restore_directly(photo: Pixels, mask: Mask, network: Network, patch: int) -> Pixels:
    height, width = mask.shape
    pad = [(0, padded_side(side, patch) - side) for side in (height, width)]
    signal = np.pad(levels.to_signal(levels.decode(photo)), [*pad, (0, 0)], mode="reflect")
    seen_mask = np.pad(mask, pad, mode="reflect").astype(np.float32) / 255
    restored = levels.from_signal(_finite(network(signal[None], seen_mask[None])[0, :height, :width]))
    return _composite(photo, mask, mask.astype(np.float32), restored)


def _restore_reduced(photo: Pixels, mask: Mask, network: Network, shape: tuple[int, int]) -> Pixels:
    small, spread = _reduced(photo, shape), _spread(mask, shape)
    grid = fit(small, levels.from_signal(_finite(network(levels.to_signal(small)[None], spread[None] / 255)[0])))
    out = np.empty_like(photo)
    for rows in levels.strips(photo.shape):
        linear = levels.decode(photo[rows])
        around = _interpolated(spread[..., None], rows, photo.shape)[..., 0]
        restored = linear + _sliced(grid, linear, rows, photo.shape)
        out[rows] = _composite(photo[rows], mask[rows], around, restored)
    return out


def _sliced(grid: Grid, linear: Image, rows: slice, shape: tuple[int, ...]) -> Image:
    """The sum in (7), for a strip."""
    change = np.zeros_like(linear)
    for share, slope, offset in zip(_shares(linear), *grid, strict=True):
        if share.any():
            maps = _interpolated(np.concatenate([slope, offset], -1), rows, shape)
            change += share[..., None] * (maps[..., :3] * linear + maps[..., 3:])
    return change


def _composite(photo: Pixels, mask: Mask, around: Float32[np.ndarray, "h w"], restored: Image) -> Pixels:
    """Equation (8); `around` is the mask that the network saw, in [0, 255]."""
    gate = np.minimum(mask / np.maximum(around, np.float32(255 * _FAINT)), 1)[..., None]
    linear = levels.decode(photo)
    mixed = levels.encode(linear + gate * (restored - linear), photo.dtype)
    return np.where(mask[..., None] == 0, photo, mixed)


def _reduced(photo: Pixels, shape: tuple[int, int]) -> Image:
    """Means over areas, in linear light; along rows first, strip by strip, so that little is in memory at once."""
    narrow = [
        _resized(levels.decode(photo[rows]), (rows.stop - rows.start, shape[1])) for rows in levels.strips(photo.shape)
    ]
    return _resized(np.concatenate(narrow), shape)


def _resized(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA)


def _spread(mask: Mask, shape: tuple[int, int]) -> Float32[np.ndarray, "h w"]:
    """The largest mask value within reach of a window, reduced and softened; in [0, 255]."""
    reach = 2 * _WINDOWS[-1]
    height, width = (2 * round((reach + 1) * full / small) + 1 for full, small in zip(mask.shape, shape, strict=True))
    widest = cv2.dilate(mask, np.ones((height, width), np.uint8))
    small = cv2.resize(widest, shape[::-1], interpolation=cv2.INTER_NEAREST)
    return cv2.GaussianBlur(small.astype(np.float32), (0, 0), reach / 4)


def _shares(linear: Image) -> list[Float32[np.ndarray, "h w"]]:
    """Equation (2), for each level."""
    brightness = np.sqrt(np.clip(light.luminance(linear), 0, 1)) * (_BINS - 1)
    return [np.maximum(1 - np.abs(brightness - level), 0) for level in range(_BINS)]


def _mean(image: np.ndarray, half: int) -> np.ndarray:
    """Two box means, whose cost does not grow with their width."""
    side = (2 * half + 1, 2 * half + 1)
    return cv2.blur(cv2.blur(image, side, borderType=cv2.BORDER_REPLICATE), side, borderType=cv2.BORDER_REPLICATE)


def _interpolated(maps: np.ndarray, rows: slice, shape: tuple[int, ...]) -> np.ndarray:
    """Bilinear interpolation of small maps [h w c] at the pixels of a strip of a photograph of `shape`."""
    centres = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) * maps.shape[0] / shape[0] - 0.5
    above = np.clip(np.floor(centres), 0, maps.shape[0] - 1).astype(int)
    below = np.minimum(above + 1, maps.shape[0] - 1)
    part = np.clip(centres - above, 0, 1)[:, None, None].astype(np.float32)
    tall = maps[above] * (1 - part) + maps[below] * part
    wide = cv2.resize(tall, (shape[1], len(tall)), interpolation=cv2.INTER_LINEAR)
    return wide.reshape(len(tall), shape[1], -1)


def _finite(signal: np.ndarray) -> np.ndarray:
    if not np.isfinite(signal).all():
        raise ValueError("the network returned numbers that are not finite: train again, or take an older checkpoint")
    return signal
