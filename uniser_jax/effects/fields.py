"""Random fields and draws: fractal noise, soft shapes, blurs. Sizes are fractions of the image: any resolution looks alike."""

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import TypeVar

import cv2
import numpy as np
from jaxtyping import Float32, Float64

from uniser_jax.effects import grids
from uniser_jax.effects.compiled import compiled

Field = Float32[np.ndarray, "h w"]
Shape = tuple[int, int]
T = TypeVar("T")


def side(shape: Shape) -> float:
    """The length that fractions refer to: the side of a square of the same area, in pixels."""
    return math.sqrt(shape[0] * shape[1])


def pick(rng: np.random.Generator, weights: Sequence[float]) -> int:
    """An index, as likely as its weight; a tenth of the price of `rng.choice`."""
    return bisect.bisect(list(itertools.accumulate(weights[:-1])), rng.random() * sum(weights))


def any_of(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One of several, all as likely."""
    return items[int(rng.integers(len(items)))]


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number between two, even on a logarithmic scale."""
    return low * (high / low) ** rng.random()


def fractal_noise(
    rng: np.random.Generator, shape: Shape, scale: float = 0.3, octaves: int = 5, persistence: float = 0.5
) -> Field:
    """Fractal value noise, stretched to [0, 1].

    Args:
      rng: source of the lattice values.
      shape: (h, w).
      scale: distance of the coarsest lattice's points, as a fraction of the image side: blobs are as large.
      octaves: each halves it; those finer than a pixel are drawn, for replay at any size, but not added.
      persistence: amplitude of an octave against the one before.
    """
    frame = np.array(shape) / (scale * side(shape))  # in cells of the coarsest lattice, which is larger by one at least
    rows, columns = (math.ceil(n) + 1 for n in frame.tolist())
    values = rng.random(rows * columns * (4**octaves - 1) // 3, np.float32)
    shown = max(1, sum(scale * side(shape) >= 2**octave for octave in range(octaves)))
    total = _summed(values, rows, columns, shown, persistence, frame, *shape)
    return total if total.shape == shape else cv2.resize(total, shape[::-1])


@compiled
def _summed(
    values: Float32[np.ndarray, "n"],
    rows: int,
    columns: int,
    octaves: int,
    persistence: float,
    frame: Float64[np.ndarray, "2"],
    h: int,
    w: int,
) -> Field:
    """The octaves, stretched to [0, 1]; the finest has four samples a cell, or as many as pixels: lines will do from there.

    The coarser octaves ride on each finer lattice, so that only the finest is enlarged, and of it what the frame shows.
    """
    total, start = np.zeros((rows, columns), np.float32), 0
    for octave in range(octaves):
        n = 2**octave
        size = n * rows * n * columns
        lattice = values[start : start + size].reshape(n * rows, n * columns)
        total = grids.cubic(total, n * rows, n * columns) + np.float32(persistence**octave) * lattice
        start += size
    tall, wide = n * frame[0], n * frame[1]
    total = grids.cubic_part(
        total, min(h, math.ceil(4 * tall)), min(w, math.ceil(4 * wide)), 0.5 * n, 0.5 * n, tall, wide
    )
    low = total.min()
    return (total - low) / max(total.max() - low, np.float32(1e-6))


def quantile(values: Float32[np.ndarray, "*shape"], share: float) -> float:
    """The value below which about such a share lies; a tenth of the price of `np.quantile`, which interpolates."""
    place = int(share * (values.size - 1))
    return float(np.partition(values, place, None)[place])


def smoothstep(x: Field, low: float, high: float) -> Field:
    """0 below `low`, 1 above `high`, a cubic between."""
    u = np.clip((x - low) / (high - low), 0, 1)
    return u * u * (3 - 2 * u)


def shrink(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Means over cells of a grid of so many rows and columns."""
    halved = image.ndim == 3 and image.shape[:2] == (2 * shape[0], 2 * shape[1])  # a line between two is their mean
    return cv2.resize(image, shape[1::-1], interpolation=cv2.INTER_LINEAR if halved else cv2.INTER_AREA)


def widen(small: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Enlarges a small image along its rows only; `kernels.between_rows` goes on, so that no full image is stored."""
    return small if small.shape[1] == shape[1] else cv2.resize(small, (shape[1], small.shape[0]))


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, sigma in pixels; a wide one is done on a smaller image, at a constant price."""
    if sigma < 0.3:
        return image
    factor = int(sigma // 2)  # what is left to blur is 2 pixels or more
    if factor < 2:
        return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    h, w = image.shape[:2]
    small = shrink(image, (max(2, h // factor), max(2, w // factor)))
    small = cv2.GaussianBlur(small, (0, 0), sigma / factor, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_CUBIC)


def reduction(sigma: float, shape: tuple[float, ...], most: int) -> int:
    """How many pixels make one, at most, so that a blur of sigma hides it; small images stay as they are."""
    return min(1 + int(sigma / 1.1), most) if min(shape) >= 48 else 1


def blur_reduced(image: np.ndarray, sigma: float, factor: int) -> np.ndarray:
    """What is left of a Gaussian blur on an image reduced by `factor`, sigma in pixels before that.

    Reduction and enlargement blur by themselves, with about a third of a cell each way.
    """
    left = np.sqrt(max(sigma**2 - (factor**2 / 4 if factor > 1 else 0), 0)) / factor
    if left <= 0.2:
        return image
    width = 2 * int(np.ceil(2.5 * left)) + 1
    return cv2.GaussianBlur(image, (width, width), left, borderType=cv2.BORDER_REPLICATE)


def root_change(before: np.ndarray, after: np.ndarray) -> float:
    """How much two views of a scene differ: of the root of light, white at 1, the root mean square over pixels and channels."""
    one, other = (np.sqrt(np.clip(view, 0, 1)) for view in (before, after))
    return float(cv2.norm(one, other)) / math.sqrt(one.size)
