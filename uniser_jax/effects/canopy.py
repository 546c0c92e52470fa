"""Dappled light: what a canopy lets through.

  (1) light = product over layers (1 - leaves_i * disc_i)            each gap is a pinhole that draws the sun's disc

A layer higher up has smaller leaves, to the eye on the ground, and larger discs. Layers are drawn once per process, as tiles
that repeat without a seam, each softened by three discs; a draw turns, scales and shifts some of them.
"""

import functools

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from uniser_jax.effects import casters, fields, mattes

_TILE, _TILES = 512, 3
_DISCS = (3, 8, 16)  # radii in pixels of a tile


def dapples(rng: np.random.Generator, shape: tuple[int, int]) -> Float32[np.ndarray, "h w"]:
    """How much of the sun two or three layers of leaves take, in [0, 1]."""
    count = int(rng.integers(2, 4))
    zoom, disc = rng.uniform(0.7, 2.2), int(rng.integers(0, 2))
    through: np.ndarray | None = None
    for layer in range(count):
        softness = min(disc + layer, len(_DISCS) - 1)
        tile = _bank()[int(rng.integers(_TILES))][softness]
        passed = 255 - _turned(rng, tile, shape, zoom * rng.uniform(0.8, 1.2))
        through = passed if through is None else cv2.multiply(through, passed, scale=1 / 255)
        zoom *= 0.75
    assert through is not None
    brightest = max(float(np.quantile(through[::8, ::8], 0.97)), 90.0)  # a canopy with no gap at all would be no dapple
    return np.clip(1 - through.astype(np.float32) * np.float32(1 / brightest), 0, 1)


def _turned(
    rng: np.random.Generator, tile: UInt8[np.ndarray, "n n"], shape: tuple[int, int], zoom: float
) -> UInt8[np.ndarray, "h w"]:
    """A tile under a random rotation, squeeze and shift; `zoom` image sides of a tile's side."""
    turn, squeeze = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.0)
    scale = _TILE / (zoom * fields.side(shape))
    c, s = np.cos(turn) * scale, np.sin(turn) * scale
    matrix = np.array([[c, -s / squeeze, rng.uniform(0, _TILE)], [s, c / squeeze, rng.uniform(0, _TILE)]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(tile, matrix, shape[::-1], flags=flags, borderMode=cv2.BORDER_WRAP)


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
    disc = cv2.resize(mattes.polygons([casters.ellipse((0, 0), (0.5, 0.5), 48)], (2 * radius + 1,) * 2), None, fx=1, fy=1)
    wrapped = cv2.copyMakeBorder(leaves, *(radius,) * 4, cv2.BORDER_WRAP)
    soft = cv2.filter2D(wrapped, -1, disc / disc.sum())[radius:-radius, radius:-radius]
    return np.round(255 * np.clip(soft, 0, 1)).astype(np.uint8)
