"""A trace of a few steps, for TensorBoard's profile plugin, XProf or Perfetto."""

import pathlib
from collections.abc import Sequence
from typing import Any, Self

import jax
from absl import logging


class Profile:
    """Traces the steps first to last of a run, both included; a context manager around its loop.

    Every process writes what its own chips did, to `folder/plugins/profile/TIME/HOST.*`. A continued run traces those of the
    steps that it makes itself.

    Args:
      folder: for traces.
      steps: first and last; empty traces none.
    """

    def __init__(self, folder: pathlib.Path, steps: Sequence[int] = ()):
        self._folder, self._steps = folder, tuple(steps)
        self._runs = False

    def step(self, number: int) -> Any:
        """A context for the dispatch of one step, by whose number the trace names what it causes."""
        if self._steps and not self._runs and self._steps[0] <= number <= self._steps[1]:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every Python call would drown the rest, past a viewer's limits
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._runs = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def ends(self, number: int) -> bool:
        """Whether the trace is to be stopped behind this step."""
        return self._runs and number >= self._steps[1]

    def stop(self) -> None:
        """Writes the trace, which takes a while; the devices must be done with its last step."""
        jax.profiler.stop_trace()
        self._runs = False
        logging.info("traced steps %d to %d at most: %s", *self._steps, self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._runs:  # the run ends before its last traced step
            self.stop()
