"""What a run tells: a progress line, `metrics.jsonl`, and TensorBoard events."""

import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from logging import WARNING
from typing import Any, Self

import jax
import numpy as np
from absl import flags, logging
from tensorboardX import SummaryWriter

from uniser_jax.types import EFFECTS


class MetricsWriter:
    """Writes scalars and images of one run; only process 0 writes.

    Args:
      workdir: the run folder; gets `metrics.jsonl` and `tensorboard/`.
      start: the step the run continues from. Later lines, left by a run that died after its last checkpoint, are
        dropped, so that no step appears twice.
    """

    def __init__(self, workdir: str | pathlib.Path, start: int = 0):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        folder = pathlib.Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        _drop_after(path, start)
        self._lines = path.open("a", buffering=1)
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1, write_to_disk=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One JSON line and one event per value; values that are not finite become null in JSON."""
        if not self._active:
            return
        finite = {key: value if np.isfinite(value) else None for key, value in values.items()}
        self._lines.write(json.dumps({"step": step, **finite}) + "\n")
        for key, value in values.items():
            self._events.add_scalar(key, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """An RGB uint8 [h w c] picture for TensorBoard."""
        if self._active:
            self._events.add_image(name, image, step, dataformats="HWC")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            self._lines.close()
            self._events.close()


class Progress:
    """Turns the metrics of the steps since the last report into means, rates and a line with the time left.

    Args:
      step: the run continues from.
      steps: of the whole run.
      indices: the examples of the global batch that a step (the first is 0) consumes.
      max_skipped: updates in a row that may be skipped because they were not finite; 0 is any number.
      pending: what `pending` gave when the run was saved, so that its next report is that of an uninterrupted run.
    """

    def __init__(
        self,
        step: int,
        steps: int,
        indices: Callable[[int], range],
        max_skipped: int = 0,
        pending: Sequence[Mapping[str, Any]] = (),
    ):
        self._steps, self._indices, self._max_skipped = steps, indices, max_skipped
        self._skipped_in_a_row = 0
        self._pending: list[Any] = [
            {key: np.asarray(value, np.float32) for key, value in metrics.items()} for metrics in pending
        ]
        self._last = step - len(pending)
        self._clock = time.monotonic()
        self._waited = 0.0
        self._inherited = len(pending)  # steps that another process has timed

    def pending(self) -> list[dict[str, Any]]:
        """The metrics of the steps since the last report, as plain data."""
        return [
            {key: np.asarray(value).tolist() for key, value in metrics.items()}
            for metrics in jax.device_get(self._pending)
        ]

    def add(self, metrics: Any, waited: float) -> None:
        """Keeps the device values of one step, so that the loop does not wait for them, and its wait for data."""
        self._pending.append(metrics)
        self._waited += waited

    def report(self, step: int) -> dict[str, float]:
        """Fetches what is pending, logs the progress line and returns all scalars.

        Raises:
          FloatingPointError: if more than `max_skipped` updates in a row were not finite.
        """
        pending = jax.device_get(self._pending)
        self._count_skipped([float(metrics["skipped"]) for metrics in pending])
        totals = jax.tree.map(lambda *values: np.sum(values, axis=0), *pending)
        seconds = time.monotonic() - self._clock
        rate = (len(pending) - self._inherited) / seconds
        images = sum(len(self._indices(done)) for done in range(self._last + self._inherited, step))
        scalars = summary(totals, len(pending)) | {
            "steps_per_second": rate,
            "images_per_second": images / seconds,
            "data_wait": self._waited / seconds,
        }
        left = (self._steps - step) / rate
        logging.info(
            "step %d/%d  loss %.4f  %.2f steps/s  %.1f images/s  %s left",
            step,
            self._steps,
            scalars["loss"],
            rate,
            scalars["images_per_second"],
            duration(left),
        )
        self._pending, self._last, self._clock, self._waited = [], step, time.monotonic(), 0.0
        self._inherited = 0
        return scalars

    def _count_skipped(self, flags: list[float]) -> None:
        """Names the examples of each skipped update, so that they can be looked at: `uniser preview --index`."""
        for step, skipped in enumerate(flags, self._last + 1):
            self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
            if skipped:
                consumed = self._indices(step - 1)
                examples = f"{consumed[0]} to {consumed[-1]}"
                logging.warning(
                    "step %d: the loss or its gradient is not finite; skipped (examples %s)", step, examples
                )
            if self._max_skipped and self._skipped_in_a_row > self._max_skipped:
                raise FloatingPointError(
                    f"{self._skipped_in_a_row} updates in a row up to step {step} were not finite; parameters are those"
                    " of the last finite one. Lower config.optim.lr, or look at the examples with uniser preview --index"
                )


def summary(totals: Mapping[str, Any], steps: int) -> dict[str, float]:
    """Means of summed step metrics: plain ones per step that counted, loss per effect and per tenth of t per example."""
    groups = {"effect": EFFECTS, "t": [f"{tenth / 10:.1f}" for tenth in range(10)]}
    skipped = float(totals["skipped"])
    counted = steps - skipped or float("nan")
    scalars = {key: float(value) / counted for key, value in totals.items() if np.ndim(value) == 0}
    scalars["skipped"] = skipped
    for group, names in groups.items():
        sums, counts = totals[f"loss_{group}_sum"], totals[f"loss_{group}_count"]
        scalars |= {
            f"loss/{group}={name}": float(total / count)
            for name, total, count in zip(names, sums, counts, strict=True)
            if count
        }
    return scalars


def log_to_terminal(verbose: bool = True) -> None:
    """Shows this library's messages, and of others' only warnings. The command line is argparse's, absl's flags are unused."""
    flags.FLAGS.mark_as_parsed()
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO if verbose else logging.WARNING)
    own = str(pathlib.Path(__file__).parent)
    handler = logging.get_absl_handler()
    handler.addFilter(lambda record: record.levelno >= WARNING or record.pathname.startswith(own))


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as `1:02:03` or `2:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _drop_after(path: pathlib.Path, step: int) -> None:
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    os.replace(temporary, path)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # a line cut short by a crash
        return float("inf")
