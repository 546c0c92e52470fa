"""Masks as a person would draw them: boxes, ellipses, polygons, brush strokes, and the support of an effect.

Edges are soft: a drawn form is dilated and blurred, as UniSER's M_blur.
"""

import cv2
import numpy as np
from jaxtyping import Float32

from uniser_jax.effects import fields

DRAWN = ("box", "ellipse", "polygon", "stroke")
_SIDE = 192
KINDS = ("all", *DRAWN, "support")


def draw(
    rng: np.random.Generator,
    shape: tuple[int, int],
    kind: str,
    support: Float32[np.ndarray, "h w"] | None = None,
    count: int | None = None,
) -> Float32[np.ndarray, "h w"]:
    """Draws a soft mask in [0, 1].

    Args:
      rng: source of form and place.
      shape: (h, w) in pixels.
      kind: one of KINDS.
      support: where the effect is, for kind `support`.
      count: of forms; by default 1 to 3.

    Raises:
      ValueError: for an unknown kind, or `support` without one.
    """
    if kind not in KINDS:
        raise ValueError(f"mask kind {kind!r} is unknown; known: {', '.join(KINDS)}")
    if kind == "all":
        return np.ones(shape, np.float32)
    reduction = max(1, max(shape) // _SIDE)  # edges are soft: a mask is drawn small, and enlarged
    drawn = (-(-shape[0] // reduction), -(-shape[1] // reduction))
    size = fields.side(drawn)
    if kind == "support":
        if support is None:
            raise ValueError("mask kind 'support' needs the support of an effect")
        hard = (cv2.resize(support, drawn[::-1], interpolation=cv2.INTER_AREA) > 0.2).astype(np.uint8)
    else:
        hard = np.zeros(drawn, np.uint8)
        for _ in range(int(rng.integers(1, 4)) if count is None else count):
            _FORMS[kind](rng, hard, size)
    grow = max(1, round(rng.uniform(0.0, 0.02) * size))
    grown = cv2.dilate(hard, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * grow + 1,) * 2))
    soft = np.clip(fields.blur(grown.astype(np.float32), max(0.5, rng.uniform(0.002, 0.03) * size)), 0, 1)
    return cv2.resize(soft, shape[::-1]) if reduction > 1 else soft


def _box(rng: np.random.Generator, mask: np.ndarray, size: float) -> None:
    h, w = mask.shape
    height, width = (rng.uniform(0.15, 0.6, 2) * (h, w)).astype(int)
    top, left = (rng.uniform(-0.1, 0.9, 2) * (h, w)).astype(int)
    mask[max(top, 0) : top + height, max(left, 0) : left + width] = 1


def _ellipse(rng: np.random.Generator, mask: np.ndarray, size: float) -> None:
    h, w = mask.shape
    centre = (int(rng.uniform(0, w)), int(rng.uniform(0, h)))
    axes = tuple(int(n) for n in rng.uniform(0.08, 0.4, 2) * size)
    cv2.ellipse(mask, centre, axes, rng.uniform(0, 180), 0, 360, 1, -1)


def _polygon(rng: np.random.Generator, mask: np.ndarray, size: float) -> None:
    h, w = mask.shape
    turn = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
    radius = rng.uniform(0.1, 0.4, len(turn)) * size
    points = rng.uniform(0.1, 0.9, 2) * (w, h) + radius[:, None] * np.stack([np.cos(turn), np.sin(turn)], -1)
    cv2.fillPoly(mask, [points.astype(np.int32)], 1)


def _stroke(rng: np.random.Generator, mask: np.ndarray, size: float) -> None:
    """A brush that wanders: its direction drifts, its width stays."""
    h, w = mask.shape
    steps = int(rng.integers(6, 25))
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.45, steps))
    length = rng.uniform(0.02, 0.08) * size
    path = rng.uniform(0.1, 0.9, 2) * (w, h) + np.cumsum(length * np.stack([np.cos(heading), np.sin(heading)], -1), 0)
    cv2.polylines(mask, [path.astype(np.int32)], False, 1, max(1, round(rng.uniform(0.03, 0.15) * size)))


_FORMS = {"box": _box, "ellipse": _ellipse, "polygon": _polygon, "stroke": _stroke}
