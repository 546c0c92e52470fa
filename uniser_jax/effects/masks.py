"""Masks as a person would draw them, and soft as UniSER's.

  (1) M = G_sigma * dilate_r(form)                dilated, then blurred by a Gaussian (UniSER's M_blur)

A form is dragged (box, ellipse), clicked or lassoed (polygon), painted (strokes, scribbles, loops, dabs), or what a person
marks who sees the effect: its support, grown and imprecise. Lengths are fractions of the image side, so that a seed draws
the same mask at any size; edges are soft, so a mask is drawn small and enlarged.
"""

import cv2
import numpy as np
from jaxtyping import Float32, Float64, Int32, UInt8

from uniser_jax.effects import fields

DRAWN = ("box", "ellipse", "polygon", "stroke")
KINDS = ("all", *DRAWN, "support")
_SIDE = 160  # pixels of the longer side, about, at which a mask is drawn
_UNSEEN = 0.02  # a change of white's square root, about 5 of 255 levels
_LARGER = 0.2  # of the largest part; who encloses passes over smaller ones
_SHIFT = 4  # OpenCV draws at fractions of a pixel, given in sixteenths

Form = UInt8[np.ndarray, "h w"]
Points = Float64[np.ndarray, "n 2"]


def draw(
    rng: np.random.Generator,
    shape: tuple[int, int],
    kind: str,
    support: Float32[np.ndarray, "a b"] | None = None,
    count: int | None = None,
) -> Float32[np.ndarray, "h w"]:
    """Draws a soft mask in [0, 1].

    Args:
      rng: source of form and place.
      shape: (h, w) in pixels.
      kind: one of KINDS.
      support: how much the effect changes, see `layer.change`, at any size, for kind `support`.
      count: of forms; by default 1 to 3.

    Raises:
      ValueError: for an unknown kind, or `support` without one.
    """
    if kind not in KINDS:
        raise ValueError(f"mask kind {kind!r} is unknown; known: {', '.join(KINDS)}")
    if kind == "all":
        return np.ones(shape, np.float32)
    reduction = max(1, round(max(shape) / _SIDE))
    hard = np.zeros((-(-shape[0] // reduction), -(-shape[1] // reduction)), np.uint8)
    size = fields.side(hard.shape)
    if kind == "support":
        if support is None:
            raise ValueError("mask kind 'support' needs the support of an effect")
        hard = _marked(rng, cv2.resize(support, hard.shape[::-1]), size)
    else:
        for _ in range(int(rng.integers(1, 4)) if count is None else count):
            _FORMS[kind](rng, hard, size)
    radius = max(1, round(rng.uniform(0.0, 0.02) * size))
    sigma = max(0.5, 0.002 * 15 ** rng.random() * size)  # hardly any to 0.03
    return cv2.resize(_soft(hard, radius, sigma), shape[::-1])


def _soft(hard: Form, radius: int, sigma: float) -> Float32[np.ndarray, "h w"]:
    """Equation (1), lengths in pixels."""
    grown = cv2.dilate(hard, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2))
    return np.clip(fields.blur(grown.astype(np.float32), sigma), 0, 1)


def _box(rng: np.random.Generator, mask: Form, size: float) -> None:
    h, w = mask.shape
    height, width = (max(1, int(rng.uniform(0.1, 0.65) * n)) for n in (h, w))
    top, left = (int(rng.uniform(-0.1, 0.9) * n) for n in (h, w))
    mask[max(top, 0) : top + height, max(left, 0) : left + width] = 1


def _ellipse(rng: np.random.Generator, mask: Form, size: float) -> None:
    h, w = mask.shape
    centre = (int(rng.uniform(0, w)), int(rng.uniform(0, h)))
    axes = tuple(int(n) for n in rng.uniform(0.06, 0.4, 2) * size)
    cv2.ellipse(mask, centre, axes, rng.uniform(0, 180), 0, 360, 1, -1)


def _polygon(rng: np.random.Generator, mask: Form, size: float) -> None:
    """Corners clicked one by one, or a lasso: an outline drawn in one go, lobed, with a tremor, its ends joined straight."""
    h, w = mask.shape
    centre, scale = rng.uniform(0.1, 0.9, 2) * (w, h), rng.uniform(0.12, 0.4) * size
    if rng.random() < 0.4:
        turn = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
        radius = rng.uniform(0.4, 1.2, len(turn))
    else:
        turn = np.linspace(0, rng.uniform(1.88, 1.98) * np.pi, 48)
        order, phase = np.arange(1, 6)[:, None], rng.uniform(0, 2 * np.pi, (5, 1))
        lobes = rng.normal(0, 0.3, (5, 1)) / order * np.cos(order * turn + phase)
        radius = np.maximum(0.8 + lobes.sum(0), 0.2) * rng.normal(1, 0.012, len(turn))
    outline = _turned(rng, radius * np.cos(turn), radius * np.sin(turn) * rng.uniform(0.4, 1))
    cv2.fillPoly(mask, [_sixteenths(centre + scale * outline)], 1, shift=_SHIFT)


def _stroke(rng: np.random.Generator, mask: Form, size: float) -> None:
    """A brush of one width: a line that wanders, a scribble to and fro, loops that move on, or a few dabs."""
    h, w = mask.shape
    manner = fields.pick(rng, (0.4, 0.3, 0.2, 0.1))
    brush, start = rng.uniform(0.02, 0.12), rng.uniform(0.15, 0.85, 2) * (w, h)
    if manner == 0:
        bend = np.cumsum(rng.normal(0, 0.08, 40)) + rng.normal(0, 0.06, 40)  # the bend itself drifts, as a wrist does
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(bend)
        path = np.cumsum(rng.uniform(0.008, 0.03) * np.stack([np.cos(heading), np.sin(heading)], -1), 0)
    elif manner == 1:
        turns = int(rng.integers(4, 10))
        reach, pace = rng.uniform(0.06, 0.22), brush * rng.uniform(0.6, 1.3)
        corners = np.stack([pace * np.arange(turns), reach * (-1.0) ** np.arange(turns)], -1)
        corners *= 1 + rng.normal(0, 0.2, (turns, 2))
        path = _turned(rng, *_rounded(corners - corners.mean(0)).T)
    elif manner == 2:
        turn = np.linspace(0, 2 * np.pi * rng.uniform(1.5, 4), 60)
        radius = rng.uniform(0.05, 0.15) * (1 + 0.25 * np.sin(turn * rng.uniform(0.2, 0.6) + rng.uniform(0, 6)))
        drift = rng.uniform(-0.03, 0.03, 2)
        path = radius[:, None] * np.stack([np.cos(turn), np.sin(turn)], -1) + turn[:, None] * drift
    else:
        for dab in rng.normal(0, 0.12, (int(rng.integers(2, 7)), 2)):
            x, y = _sixteenths(start + dab * size).tolist()
            cv2.circle(mask, (x, y), round(16 * max(1.0, 0.6 * brush * size)), 1, -1, shift=_SHIFT)
        return
    path = path + rng.normal(0, 0.0015, path.shape)  # a tremor
    cv2.polylines(mask, [_sixteenths(start + size * path)], False, 1, max(1, round(brush * size)), shift=_SHIFT)


def _marked(rng: np.random.Generator, support: Float32[np.ndarray, "h w"], size: float) -> Form:
    """What a person marks who sees an effect, where it is seen most: painted over with a coarse hand, or enclosed as a whole.

    Seen most is against nearly the most of it, and not below _UNSEEN: a veil over all of the frame is marked where it is
    thick. What nobody would see is marked by its most, since somebody asked for it.
    """
    level = max(rng.uniform(0.15, 0.5) * fields.quantile(support, 0.98), _UNSEEN)
    level = min(level, 0.5 * float(support.max()))
    seen = (support > level).astype(np.uint8)
    manner = fields.pick(rng, (0.6, 0.1, 0.15, 0.15))
    if manner == 1 or not seen.any():
        return seen
    # the outline strays by up to a few percent of the side, small parts are passed over
    coarse = fields.blur(seen.astype(np.float32), rng.uniform(0.01, 0.04) * size)
    stray = cv2.resize(rng.uniform(0.2, 0.65, (7, 7)).astype(np.float32), seen.shape[::-1])
    painted = (coarse > stray).astype(np.uint8)
    painted = painted if painted.any() else seen
    return painted if manner == 0 else _enclosed(painted, boxed=manner == 3)


def _enclosed(painted: Form, boxed: bool) -> Form:
    """A lasso or a box around each of its larger parts."""
    outlines = cv2.findContours(painted, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    areas = [cv2.contourArea(outline) for outline in outlines]
    enclosed = painted.copy()
    for outline, area in zip(outlines, areas, strict=True):
        if area < _LARGER * max(areas):
            continue
        if boxed:
            left, top, width, height = cv2.boundingRect(outline)
            enclosed[top : top + height, left : left + width] = 1
        else:
            cv2.fillConvexPoly(enclosed, cv2.convexHull(outline), 1)
    return enclosed


def _rounded(corners: Points) -> Points:
    """Corners cut twice (Chaikin 1974): a hand turns in a curve."""
    for _ in range(2):
        a, b = corners[:-1], corners[1:]
        corners = np.stack([0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b], 1).reshape(-1, 2)
    return corners


def _turned(rng: np.random.Generator, x: Float64[np.ndarray, "n"], y: Float64[np.ndarray, "n"]) -> Points:
    angle = rng.uniform(0, 2 * np.pi)
    return np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], -1)


def _sixteenths(points: Float64[np.ndarray, "*n 2"]) -> Int32[np.ndarray, "*n 2"]:
    return np.round(16 * points).astype(np.int32)


_FORMS = {"box": _box, "ellipse": _ellipse, "polygon": _polygon, "stroke": _stroke}
