"""What a config's `sweep()` is made of: lists of overrides, combined.

def sweep():
    yield from product(over("optim.lr", 1e-4, 3e-4), over("seed", 0, 1))  # 4 runs
    yield from zip_(over("model.preset", "s", "b"), over("optim.lr", 4e-4, 2e-4))  # 2 runs
    yield from random_search(8, {"optim.lr": log_uniform(1e-4, 1e-2), "model.preset": choice("s", "b")})
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

Overrides = dict[str, Any]
Draw = Callable[[np.random.Generator], Any]


def over(key: str, *values: Any) -> list[Overrides]:
    """One override per value."""
    return [{key: value} for value in values]


def product(*sweeps: Iterable[Overrides]) -> Iterator[Overrides]:
    """Every combination of one element from each; the last varies fastest."""
    for parts in itertools.product(*sweeps):
        yield _merge(parts)


def zip_(*sweeps: Iterable[Overrides]) -> Iterator[Overrides]:
    """The first elements of all, then the second ones, and so on.

    Raises:
      ValueError: if they do not have the same length.
    """
    for parts in zip(*sweeps, strict=True):
        yield _merge(parts)


def random_search(count: int, draws: Mapping[str, Draw], seed: int = 0) -> Iterator[Overrides]:
    """Independent draws of all keys; a larger count adds runs and changes none."""
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        yield {key: draw(rng) for key, draw in draws.items()}


def uniform(low: float, high: float) -> Draw:
    """Uniform in [low, high), to three digits, for short names."""
    return lambda rng: _three_digits(rng.uniform(low, high))


def log_uniform(low: float, high: float) -> Draw:
    """Uniform in the logarithm, to three digits."""
    return lambda rng: _three_digits(math.exp(rng.uniform(math.log(low), math.log(high))))


def choice(*values: Any) -> Draw:
    """One of the values, each as likely."""
    return lambda rng: values[int(rng.integers(len(values)))]


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def _merge(parts: Iterable[Overrides]) -> Overrides:
    merged: Overrides = {}
    for part in parts:
        twice = merged.keys() & part.keys()
        if twice:
            raise ValueError(f"{min(twice)} is given twice in one run of the sweep")
        merged |= part
    return merged
