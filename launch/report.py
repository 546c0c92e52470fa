"""What came out of a sweep: a table as markdown and JSONL, and a plot."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from uniser_jax import atomic, status
from uniser_jax.effects import gallery

Row = dict[str, Any]
Image = UInt8[np.ndarray, "h w c"]
Point = tuple[float, float]

_WIDTH, _HEIGHT = 480, 320  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 30, 34  # of its frame
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK, _GRID = (60, 60, 60), (225, 225, 225)


def row(run: pathlib.Path, overrides: Mapping[str, Any], state: str, metric: str, best: str) -> Row:
    """One run: its parameters, and the final and the best value of a metric.

    Args:
      run: its folder.
      overrides: its parameters.
      state: as the sweep knows it.
      metric: a key of metrics.jsonl.
      best: `min` or `max`.
    """
    curve = read_curve(run, metric)
    choose = min if best == "min" else max
    at, value = choose(curve, key=lambda point: point[1]) if curve else (None, None)
    last, final = curve[-1] if curve else (None, None)
    return {
        "run": run.name,
        "overrides": dict(overrides),
        "state": state,
        "step": last,
        "final": final,
        "best": value,
        "best_step": at,
        "curve": curve,
    }


def read_curve(run: pathlib.Path, metric: str) -> list[Point]:
    """All (step, value) of a metric that are numbers."""
    path = run / "metrics.jsonl"
    lines = status.whole(path.read_bytes().splitlines() if path.exists() else [])
    return [(line["step"], line[metric]) for line in lines if "step" in line and line.get(metric) is not None]


def write(folder: pathlib.Path, rows: Sequence[Row], metric: str, best: str) -> None:
    """Writes sweep.md, sweep.jsonl and sweep.png, each whole or not at all."""
    lines = [json.dumps({key: value for key, value in row.items() if key != "curve"}) + "\n" for row in rows]
    for name, text in (("sweep.md", markdown(rows, metric, best)), ("sweep.jsonl", "".join(lines))):
        atomic.write(folder / name, text)
    if any(row["curve"] for row in rows):
        gallery.write_png(folder / "sweep.png", plot(rows, metric, best))


def markdown(rows: Sequence[Row], metric: str, best: str) -> str:
    """The table, best runs first, those without a value last."""
    keys = list(dict.fromkeys(key for row in rows for key in row["overrides"]))
    sign = 1 if best == "min" else -1
    ranked = sorted(rows, key=lambda row: math.inf if row["best"] is None else sign * row["best"])
    head = [*keys, "state", "step", f"final {metric}", f"best {metric}", "at step"]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(['--:'] * len(head))}|"]
    for row in ranked:
        cells = [row["overrides"].get(key) for key in keys]
        cells += [row["state"], row["step"], _short(row["final"]), _short(row["best"]), row["best_step"]]
        lines.append(f"| {' | '.join('' if cell is None else str(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row], metric: str, best: str) -> Image:
    """The curves of all runs, then a panel per parameter: final values as rings, best ones as dots; a colour per run."""
    colours = _colours(len(rows))
    panels = [_curves(rows, colours, metric)]
    for key in dict.fromkeys(key for row in rows for key in row["overrides"]):
        if len({str(row["overrides"].get(key)) for row in rows}) > 1:
            panels.append(_against(rows, colours, key, f"{metric}: ring final, dot {best}"))
    blank = np.full_like(panels[0], 255)
    pairs = [panels[index : index + 2] for index in range(0, len(panels), 2)]
    return np.concatenate([np.concatenate([*pair, blank][:2], 1) for pair in pairs])


class Panel:
    """Axes in an image, logarithmic where values are positive and span a lot: data to pixels, ticks and lines."""

    def __init__(self, title: str, xs: Sequence[float], ys: Sequence[float], linear_x: bool = False):
        self.image: Image = np.full((_HEIGHT, _WIDTH, 3), 255, np.uint8)
        self._x, self._y = _Scale(xs, linear_x), _Scale(ys)
        cv2.putText(self.image, title, (_LEFT, 19), _FONT, 0.45, _INK, 1, cv2.LINE_AA)
        for share in (0.0, 0.5, 1.0):
            y = self._y.value(share)
            row = self._pixel(xs[0], y)[1]
            cv2.line(self.image, (_LEFT, row), (_WIDTH - _RIGHT, row), _GRID, 1)
            cv2.putText(self.image, f"{y:.3g}", (4, row + 4), _FONT, 0.36, _INK, 1, cv2.LINE_AA)

    def tick(self, x: float, text: str) -> None:
        """A label under the axis."""
        (wide, _), _ = cv2.getTextSize(text, _FONT, 0.36, 1)
        column = self._pixel(x, self._y.value(0))[0]
        left = min(max(2, column - wide // 2), _WIDTH - wide - 2)
        cv2.putText(self.image, text, (left, _HEIGHT - 12), _FONT, 0.36, _INK, 1, cv2.LINE_AA)

    def line(self, points: Sequence[Point], colour: tuple[int, ...]) -> None:
        """A curve."""
        pixels = np.array([self._pixel(x, y) for x, y in points], np.int32)
        cv2.polylines(self.image, [pixels], False, colour, 1, cv2.LINE_AA)

    def mark(self, x: float, y: float, colour: tuple[int, ...], filled: bool) -> None:
        """A dot or a ring."""
        cv2.circle(self.image, self._pixel(x, y), 5, colour, -1 if filled else 1, cv2.LINE_AA)

    def mark_at(self, x: float, colour: tuple[int, ...]) -> None:
        """A line across all values."""
        column = self._pixel(x, self._y.value(0))[0]
        cv2.line(self.image, (column, _TOP), (column, _HEIGHT - _BOTTOM), colour, 1)

    def _pixel(self, x: float, y: float) -> tuple[int, int]:
        inner = 10  # marks at the edge stay whole
        right = _LEFT + inner + self._x.share(x) * (_WIDTH - _LEFT - _RIGHT - 2 * inner)
        return round(right), round(
            _HEIGHT - _BOTTOM - inner - self._y.share(y) * (_HEIGHT - _TOP - _BOTTOM - 2 * inner)
        )


class _Scale:
    """Maps values to their share of an axis, and back."""

    def __init__(self, values: Sequence[float], linear: bool = False):
        self._log = not linear and min(values) > 0 and max(values) >= 8 * min(values)
        low, high = self._in(min(values)), self._in(max(values))
        self._low, self._span = (low, high - low) if high > low else (low - 0.5, 1.0)

    def share(self, value: float) -> float:
        """Of the axis, 0 at the least value and 1 at the largest."""
        return (self._in(value) - self._low) / self._span

    def value(self, share: float) -> float:
        """The inverse of `share`."""
        value = self._low + share * self._span
        return math.exp(value) if self._log else value

    def _in(self, value: float) -> float:
        return math.log(value) if self._log else value


def _curves(rows: Sequence[Row], colours: Sequence[tuple[int, ...]], metric: str) -> Image:
    points = [point for row in rows for point in row["curve"]]
    panel = Panel(f"{metric} by step", [x for x, _ in points], [y for _, y in points], linear_x=True)
    for row, colour in zip(rows, colours, strict=True):
        if row["curve"]:
            panel.line(row["curve"], colour)
    for x in sorted({min(x for x, _ in points), max(x for x, _ in points)}):
        panel.tick(x, str(x))
    return panel.image


def _against(rows: Sequence[Row], colours: Sequence[tuple[int, ...]], key: str, title: str) -> Image:
    """The metric against one parameter; values that are words stand evenly."""
    shown = [
        (row, colour) for row, colour in zip(rows, colours, strict=True) if row["curve"] and key in row["overrides"]
    ]
    values = [row["overrides"][key] for row, _ in shown]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    order: list[Any] = sorted(set(values)) if numeric else sorted(set(map(str, values)))
    place = {str(value): float(value) if numeric else index for index, value in enumerate(order)}
    xs = [place[str(value)] for value in values]
    panel = Panel(f"{title}, by {key}", xs, [row[name] for row, _ in shown for name in ("final", "best")])
    for (row, colour), x in zip(shown, xs, strict=True):
        panel.mark(x, row["final"], colour, filled=False)
        panel.mark(x, row["best"], colour, filled=True)
    labelled = order if len(order) <= 6 else [order[0], order[-1]]
    for value in labelled:
        panel.tick(place[str(value)], str(value))
    return panel.image


def _colours(count: int) -> list[tuple[int, ...]]:
    hues = np.array([[[180 * index // count, 200, 190]] for index in range(count)], np.uint8)
    return [tuple(map(int, colour)) for colour in cv2.cvtColor(hues, cv2.COLOR_HSV2RGB)[:, 0]]


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
