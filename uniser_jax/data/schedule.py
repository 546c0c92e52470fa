"""Which step an example belongs to, how large it is, and of which pair it is a view: pure functions of its global index.

Indices count through all batches of a run: batch k holds the next `batch_size` of them. With `reuse` = K a pair is rendered
once, larger, and K views are cut from it, one for each of K batches in a row. These K batches, a group, share their pairs,
row by row: a batch never holds two views of one pair, and whoever makes a group renders each of its pairs once.
"""

import bisect
import dataclasses
import functools
import itertools
from typing import NamedTuple


class Stage(NamedTuple):
    """A part of a run: from a step on, examples of a size and batches of so many."""

    step: int
    size: int
    batch_size: int


class Place(NamedTuple):
    """Where an example stands."""

    stage: Stage
    first: int  # pair of the stage
    step: int
    row: int  # of the global batch
    pair: int  # of the run
    view: int  # of the pair, less than `reuse`


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The stages of a run.

    Args:
      stages: in order; the last has no end.
      reuse: views of each rendered pair, K.

    Raises:
      ValueError: if the stages do not start at 0, do not ascend, or cut a group of K batches.
    """

    stages: tuple[Stage, ...]
    reuse: int = 1

    def __post_init__(self) -> None:
        steps = [stage.step for stage in self.stages]
        if not steps or steps[0] != 0 or any(a >= b for a, b in itertools.pairwise(steps)):
            raise ValueError(f"stages start at steps {steps}: expected 0 first, then ascending")
        if self.reuse < 1:
            raise ValueError(f"reuse = {self.reuse}: expected at least 1")
        for stage in self.stages:
            if min(stage.size, stage.batch_size) < 1:
                raise ValueError(f"stage {tuple(stage)}: expected (first step, size, batch), the last two at least 1")
            if stage.step % self.reuse:
                raise ValueError(f"a stage starts at step {stage.step}, no multiple of reuse = {self.reuse}: move it")

    def stage(self, step: int) -> Stage:
        """That a step belongs to."""
        return self.stages[self._number(step)]

    def indices(self, step: int) -> range:
        """The examples of a step's global batch."""
        number = self._number(step)
        stage = self.stages[number]
        start = self._starts[number] + (step - stage.step) * stage.batch_size
        return range(start, start + stage.batch_size)

    def place(self, index: int) -> Place:
        """Where an example stands."""
        number = bisect.bisect_right(self._starts, index) - 1
        stage, first = self.stages[number], self._starts[number] // self.reuse
        passed, row = divmod(index - self._starts[number], stage.batch_size)
        group, view = divmod(passed, self.reuse)
        return Place(stage, first, stage.step + passed, row, first + group * stage.batch_size + row, view)

    def _number(self, step: int) -> int:
        return bisect.bisect_right(self.stages, step, key=lambda stage: stage.step) - 1

    @functools.cached_property
    def _starts(self) -> list[int]:
        """The first index of each stage."""
        counts = ((later.step - stage.step) * stage.batch_size for stage, later in itertools.pairwise(self.stages))
        return list(itertools.accumulate(counts, initial=0))


def fixed(size: int, batch_size: int = 1, reuse: int = 1) -> Schedule:
    """One stage for ever."""
    return Schedule((Stage(0, size, batch_size),), reuse)
