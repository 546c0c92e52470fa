"""Dappled light: what a canopy lets through.

  (1) light = product over layers (1 - leaves_i * disc_i)            each gap is a pinhole that draws the sun's disc

A layer higher up has smaller leaves, to the eye on the ground, and larger discs. Layers are drawn once per process, as tiles
that repeat without a seam, each softened by three discs; a draw turns, scales and shifts some of them.
"""

import functools
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from uniser_jax.effects import casters, fields, mattes
from uniser_jax.effects.compiled import compiled

_TILE, _TILES = 512, 3
_GLANCE = 48  # pixels; of a smaller image only the mean is of use
_DISCS = (3, 8, 16)  # radii in pixels of a tile


def dapples(rng: np.random.Generator, shape: tuple[int, int]) -> Float32[np.ndarray, "h w"]:
    """How much of the sun one to three layers of leaves take, in [0, 1]."""
    count = 1 + fields.pick(rng, (0.35, 0.45, 0.2))
    zoom, disc = rng.uniform(0.7, 2.2), int(rng.integers(0, 2))
    finer = max(
        1, round(_TILE / (2 * zoom * min(shape)))
    )  # a small image sees each leaf in few pixels: average, not skip
    if min(shape) < _GLANCE:
        finer = min(finer, 3)
    drawn = (shape[0] * finer, shape[1] * finer)
    through: Any = np.ones(drawn, np.float32)
    for layer in range(count):
        tile = _bank()[int(rng.integers(_TILES))][min(disc + layer, len(_DISCS) - 1)]
        _pass(through, tile, _placed(rng, drawn, zoom * rng.uniform(0.8, 1.2)))
        zoom *= 0.75
    glance = cv2.resize(through, (32, 32), interpolation=cv2.INTER_AREA)
    brightest = max(fields.quantile(glance, 0.98), 0.3)  # a canopy with no gap at all would be no dapple
    if finer > 1:
        through = cv2.resize(through, shape[::-1], interpolation=cv2.INTER_AREA)
    return np.maximum(1 - through * np.float32(1 / brightest), 0)


def _placed(rng: np.random.Generator, shape: tuple[int, int], zoom: float) -> Float32[np.ndarray, "2 3"]:
    """From pixels to those of a tile: a random rotation, squeeze and shift; a tile's side is `zoom` image sides."""
    turn, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.0)
    scale = _TILE / (zoom * fields.side(shape))
    c, s = np.cos(turn) * scale, np.sin(turn) * scale
    shift = rng.uniform(0, _TILE, 2) + 64 * _TILE  # far from negative places, where rounding turns round
    return np.array([[c, -s / squeeze, shift[0]], [s, c / squeeze, shift[1]]], np.float32)


@compiled
def _pass(light: Float32[np.ndarray, "h w"], tile: UInt8[np.ndarray, "n n"], place: Float32[np.ndarray, "2 3"]) -> None:
    """Takes from the light, in place, what a tile of leaves holds back; tiles repeat, linearly interpolated."""
    wrap, one = np.uint32(tile.shape[0] - 1), np.float32(1)
    for y in range(light.shape[0]):
        left = place[0, 1] * np.float32(y) + place[0, 2]
        top = place[1, 1] * np.float32(y) + place[1, 2]
        for x in range(light.shape[1]):
            u, v = left + place[0, 0] * np.float32(x), top + place[1, 0] * np.float32(x)
            j, i = np.uint32(u), np.uint32(v)  # unsigned: no test for places counted from the end
            a, b = v - np.float32(i), u - np.float32(j)
            above, below, here, right = i & wrap, (i + np.uint32(1)) & wrap, j & wrap, (j + np.uint32(1)) & wrap
            upper = np.float32(tile[above, here]) * (one - b) + np.float32(tile[above, right]) * b
            lower = np.float32(tile[below, here]) * (one - b) + np.float32(tile[below, right]) * b
            light[y, x] *= one - (upper * (one - a) + lower * a) * np.float32(1 / 255)


@functools.cache
def _bank() -> list[list[UInt8[np.ndarray, "n n"]]]:
    """Tiles of leaves, each softened by every disc; 2.4 MB."""
    return [[_softened(leaves, radius) for radius in _DISCS] for leaves in map(_leaves, range(_TILES))]


def _leaves(seed: int) -> Float32[np.ndarray, "n n"]:
    """Leaves on twigs, dense but for gaps, on a torus."""
    rng = np.random.default_rng((2_024, seed))
    twigs = rng.uniform(0, 1, (40, 2))
    count = 420 + 120 * seed
    centres = twigs[rng.integers(0, len(twigs), count)] + rng.normal(0, 0.075, (count, 2))
    length, turn = rng.uniform(0.022, 0.05, count)[:, None, None], rng.uniform(0, 2 * np.pi, count)
    forward = np.stack([np.cos(turn), np.sin(turn)], -1)[:, None]
    side = forward[..., ::-1] * [-1, 1]
    around = np.linspace(0, 2 * np.pi, 12, endpoint=False)[None, :, None]
    outline = length * (np.cos(around) * forward + 0.42 * np.sin(around) * (1 - 0.35 * np.cos(around)) * side)
    leaves = centres[:, None] % 1 + outline - 0.5
    copies = [leaves + [dx, dy] for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    return mattes.polygons(copies, (_TILE, _TILE))


def _softened(leaves: Float32[np.ndarray, "n n"], radius: int) -> UInt8[np.ndarray, "n n"]:
    disc = mattes.polygons([casters.ellipse((0, 0), (0.5, 0.5), 48)], (2 * radius + 1,) * 2)
    wrapped = cv2.copyMakeBorder(leaves, *(radius,) * 4, cv2.BORDER_WRAP)
    soft = cv2.filter2D(wrapped, -1, disc / disc.sum())[radius:-radius, radius:-radius]
    return np.round(255 * np.clip(soft, 0, 1)).astype(np.uint8)
