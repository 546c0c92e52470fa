"""Batches of one shape each, in which photographs train upright or lying, and with `data.smallest = 1` nearly whole.

A photograph belongs to the bucket whose aspect is nearest to its own. A group of batches (one, without reuse) has one
bucket. Of N groups in a row, a cycle, each bucket of n photographs has n, in a drawn order, so that all photographs are seen
equally often; and each bucket goes through its own epochs, from batch to batch, so that none is left over at their ends.
"""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Sequence
from typing import Self

import numpy as np
from absl import logging
from jaxtyping import Int8

from uniser_jax.data.photos import READERS, Photos
from uniser_jax.data.schedule import Place

_PURPOSE = 3  # tells this use of a seed from others


@dataclasses.dataclass(frozen=True, eq=False)
class Buckets:
    """Aspects, and which photographs belong to each.

    Args:
      aspects: width over height.
      members: indices of the photographs of each.
      multiple: of which all sides in pixels are multiples.
    """

    aspects: tuple[float, ...]
    members: tuple[Sequence[int] | np.ndarray, ...]
    multiple: int = 1

    @classmethod
    def square(cls, count: int) -> Self:
        """One bucket for all photographs."""
        return cls((1.0,), (range(count),))

    @classmethod
    def of(cls, photos: Photos, aspects: Sequence[float], multiple: int) -> Self:
        """Reads the shape of every photograph from its header."""
        with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
            shapes = np.array(list(pool.map(photos.shape, range(len(photos)))))
        far = np.abs(np.log(shapes[:, 1] / shapes[:, 0])[:, None] - np.log(aspects))
        nearest = far.argmin(1)
        return cls(tuple(aspects), tuple(np.flatnonzero(nearest == bucket) for bucket in range(len(aspects))), multiple)

    def shape(self, bucket: int, size: int) -> tuple[int, int]:
        """(h, w) in pixels of an example: at most, and nearly, the area of a square of `size`."""
        m, root = self.multiple, self.aspects[bucket] ** 0.5
        h, w = (max(1, round(side / m)) for side in (size / root, size * root))
        while h * w * m * m > size * size:
            h, w = (h - 1, w) if h > w else (h, w - 1)
        return h * m, w * m

    def find(self, seed: int, place: Place, reuse: int) -> tuple[int, int]:
        """The bucket of an example, and how many pairs of that bucket come before its own.

        A stage starts where the bucket would be had it had its share of each batch before.
        """
        group, first = place.step // reuse, place.stage.step // reuse
        bucket = _bucket(seed, group, self._counts)
        batches = _before(seed, group, self._counts)[bucket] - _before(seed, first, self._counts)[bucket]
        start = place.first * self._counts[bucket] // sum(self._counts)
        return bucket, start + batches * place.stage.batch_size + place.row

    def report(self, size: int, batch_size: int) -> None:
        """Logs the shapes, and warns of buckets so small that a batch holds a photograph twice."""
        for bucket, members in enumerate(self.members):
            h, w = self.shape(bucket, size)
            few = 0 < len(members) < batch_size
            log, why = (
                (logging.warning, f", fewer than a batch of {batch_size}: it repeats them")
                if few
                else (logging.info, "")
            )
            log("bucket of %d x %d px (width x height): %d photographs%s", w, h, len(members), why)

    @functools.cached_property
    def _counts(self) -> tuple[int, ...]:
        return tuple(len(members) for members in self.members)


def aspect(text: str) -> float:
    """Width over height of `3:2`.

    Raises:
      ValueError: if it is no such text, or thinner than a photograph.
    """
    try:
        width, height = (float(side) for side in text.split(":"))
        ratio = width / height
    except (ValueError, ZeroDivisionError, AttributeError):
        raise ValueError(f"aspect {text!r}: expected width:height, such as '3:2'") from None
    if not 1 / 8 <= ratio <= 8:
        raise ValueError(f"aspect {text!r}: expected between 1:8 and 8:1")
    return ratio


def _bucket(seed: int, group: int, counts: tuple[int, ...]) -> int:
    if len(counts) == 1:
        return 0
    cycle, place = divmod(group, sum(counts))
    return int(_cycle(seed, cycle, counts)[place])


@functools.lru_cache(maxsize=64)
def _before(seed: int, group: int, counts: tuple[int, ...]) -> tuple[int, ...]:
    """How many of the groups before `group` each bucket has."""
    if len(counts) == 1:
        return (group,)
    cycle, place = divmod(group, sum(counts))
    rest = np.bincount(_cycle(seed, cycle, counts)[:place], minlength=len(counts))
    return tuple(int(cycle * count + more) for count, more in zip(counts, rest, strict=True))


@functools.lru_cache(maxsize=4)
def _cycle(seed: int, number: int, counts: tuple[int, ...]) -> Int8[np.ndarray, "n"]:
    """The buckets of the groups of a cycle."""
    return np.random.default_rng((seed, number, _PURPOSE)).permutation(
        np.repeat(np.arange(len(counts), dtype=np.int8), counts)
    )
