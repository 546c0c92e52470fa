"""What a run tells: a progress line, `metrics.jsonl`, and TensorBoard events."""

import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from logging import WARNING
from typing import Any, Self

import jax
import numpy as np
from absl import flags, logging

from uniser_jax import atomic, hosts
from uniser_jax.status import duration
from uniser_jax.types import EFFECTS

# Scalars of the clock, which two runs of the same bits do not share; those of the progress line as it shows them.
CLOCK = (
    *("step_seconds", "steps_per_second", "images_per_second", "data_wait"),
    *("tflops_per_chip", "mfu", "goodput"),
)
_LINE = {
    "step_seconds": "{:.3f} s/step",
    "images_per_second": "{:.1f} images/s",
    "data_wait": "data wait {:.0%}",
    "tflops_per_chip": "{:.3g} TFLOP/s per chip",
    "mfu": "MFU {:.1%}",
    "goodput": "goodput {:.0%}",
}
_WAITS = 0.01  # share of time without data, above which a process is named
_FLUSH_SECONDS = 120  # between those moments at which events are surely on the disk


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
        self._folder = pathlib.Path(workdir)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "metrics.jsonl"
        _drop_after(path, start)
        self._lines = path.open("a", buffering=1)
        self._events = _Events(self._folder / "tensorboard", start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One JSON line and one event per value; values that are not finite become null in JSON."""
        if not self._active:
            return
        finite = {key: value if np.isfinite(value) else None for key, value in values.items()}
        with self._named():
            self._lines.write(json.dumps({"step": step, **finite}) + "\n")
            self._events.scalars(step, values)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """An RGB uint8 [h w c] picture for TensorBoard."""
        if self._active:
            with self._named():
                self._events.image(step, name, image)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Says where: the error of a write to an open file does not."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._folder)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._active:
            # What ended the run is more than that its log could not be written to the end.
            with contextlib.suppress(*[OSError] if kind else ()), self._named(), contextlib.closing(self._events):
                self._lines.close()


class _Events:
    """A file for TensorBoard, written where it is called: what cannot be written is an OSError there.

    tensorboardX's own writer has a thread behind a queue. A full disk ends the thread, and then the queue takes no more.

    Args:
      folder: of the files, one per start.
      start: the step that a run continues from; TensorBoard hides what earlier files say of later ones.
    """

    def __init__(self, folder: pathlib.Path, start: int):
        # Imports torch where that is installed: seconds that only a run needs.
        from tensorboardX import record_writer, summary
        from tensorboardX.proto import event_pb2

        self._summary, self._event = summary, event_pb2.Event
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{hosts.host()}"
        self._records = record_writer.RecordWriter(str(folder / name))
        self._flushed = time.monotonic()
        begins = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write({"file_version": "brain.Event:2"}, {"step": start + 1, "session_log": begins})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One event per value."""
        self._write(*({"step": step, "summary": self._summary.scalar(key, value)} for key, value in values.items()))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """An RGB uint8 [h w c] picture."""
        self._write({"step": step, "summary": self._summary.image(name, image, dataformats="HWC")})

    def _write(self, *events: dict[str, Any]) -> None:
        for event in events:
            self._records.write(self._event(wall_time=time.time(), **event).SerializeToString())
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._records.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Leaves all of it on the disk."""
        with contextlib.closing(self._records):
            self._records.flush()


class Clock:
    """Times steps, and nothing else: not the start of a run, the first step of each shape of a batch, which compiles, or what
    happens `aside`.

    Goodput is the share of the time since the run was first started that made steps that were kept. Lost are starts,
    compilations, evaluation, samples and saves, the time between a death and the next start, and the steps after the last
    checkpoint before a death, which are made again. Seconds of kept steps are saved with every checkpoint, so a restored
    clock has forgotten the steps that were lost.

    Args:
      first_start: of the run, by the wall clock.
      saved: what `state` gave when the run was saved.
    """

    def __init__(self, first_start: float, saved: Mapping[str, float] | None = None):
        saved = saved or {"first_start": first_start, "kept_seconds": 0.0}
        self._first_start, self._kept = min(first_start, saved["first_start"]), saved["kept_seconds"]
        self._began = time.monotonic() - self._kept  # the latest moment at which the run can have started
        self._since: float | None = None  # of the newest interval; None before the first step is done

    def start(self) -> None:
        """Begins the first interval, unless there is one."""
        if self._since is None:
            self._since = time.monotonic()

    def stand(self, seconds: float) -> None:
        """Takes time out of the interval that runs."""
        if self._since is not None:
            self._since += seconds

    def interval(self) -> float:
        """Seconds of steps since the last interval; begins the next."""
        assert self._since is not None, "a first step was added"
        seconds, self._since = time.monotonic() - self._since, time.monotonic()
        self._kept += seconds
        return seconds

    def goodput(self) -> float:
        """In [0, 1], up to the last interval; of what this process knows to have passed if a wall clock was moved back."""
        passed = max(time.time() - self._first_start, time.monotonic() - self._began, 1e-9)
        return min(self._kept / passed, 1.0)

    def state(self) -> dict[str, float]:
        """For the record of a checkpoint."""
        running = 0.0 if self._since is None else time.monotonic() - self._since
        return {"first_start": self._first_start, "kept_seconds": self._kept + running}


class Progress:
    """Turns the metrics of the steps since the last report into means, rates and a line with the time left.

    Args:
      step: the run continues from.
      steps: of the whole run.
      indices: the examples of the global batch that a step (the first is 0) consumes.
      max_skipped: updates in a row that may be skipped because they were not finite; 0 is any number.
      pending: what `record` gave when the run was saved, so that its next report is that of an uninterrupted run.
      clock: of the run.
      chips: how many share the work.
      peak: FLOP/s of one of them; None where nobody knows.
      skipped: updates in a row before those of `pending`, as `record` gave it: a restart is no finite update.
    """

    def __init__(
        self,
        step: int,
        steps: int,
        indices: Callable[[int], range],
        max_skipped: int = 0,
        pending: Sequence[Mapping[str, Any]] = (),
        clock: Clock | None = None,
        chips: int = 1,
        peak: float | None = None,
        skipped: int = 0,
    ):
        self._steps, self._indices, self._max_skipped = steps, indices, max_skipped
        self._chips, self._peak = chips, peak
        self._skipped_in_a_row = skipped
        self._pending: list[Any] = [
            {key: np.asarray(value, np.float32) for key, value in metrics.items()} for metrics in pending
        ]
        self._last = step - len(pending)
        self._shapes: set[tuple[int, ...]] = set()  # whose step is compiled
        self._compiles = False
        self._clock = clock or Clock(time.time())
        self._begin()

    def _begin(self) -> None:
        """Of an interval: its steps that were timed, their images and FLOPs, and the seconds without data."""
        self._timed, self._images, self._flops, self._waited = 0, 0, 0, 0.0

    def record(self) -> dict[str, Any]:
        """For the record of a checkpoint, plain data: what the next report will count, what the last one did, the clock."""
        pending = [
            {key: np.asarray(value).tolist() for key, value in metrics.items()}
            for metrics in jax.device_get(self._pending)
        ]
        return {"pending": pending, "skipped_in_a_row": self._skipped_in_a_row, "clock": self._clock.state()}

    @contextlib.contextmanager
    def step(self, shape: tuple[int, ...]) -> Iterator[None]:
        """Around one step and its `add`. The first of each shape of a batch compiles: that one is waited for, and not timed."""
        self._compiles = shape not in self._shapes
        self._shapes.add(shape)
        with self.aside() if self._compiles else contextlib.nullcontext():
            yield
            if self._compiles:
                jax.block_until_ready(self._pending)
        self._clock.start()

    def add(self, metrics: Any, waited: float, flops: int = 0) -> None:
        """Keeps the device values of one step, so that the loop does not wait for them, its wait for data and its FLOPs."""
        images = len(self._indices(self._last + len(self._pending)))
        self._pending.append(metrics)
        if self._compiles:
            self._clock.stand(waited)
        else:
            self._timed, self._images = self._timed + 1, self._images + images
            self._waited, self._flops = self._waited + waited, self._flops + flops

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Around what is no step: waits for the steps so far; then the clock stands."""
        jax.block_until_ready(self._pending)
        began = time.monotonic()
        yield
        self._clock.stand(time.monotonic() - began)

    def report(self, step: int) -> dict[str, float]:
        """Fetches what is pending, logs the progress line and returns all scalars.

        All processes must call it at the same steps.

        Raises:
          FloatingPointError: if more than `max_skipped` updates in a row were not finite.
        """
        pending = jax.device_get(self._pending)
        self._count_skipped([float(metrics["skipped"]) for metrics in pending])
        totals = jax.tree.map(lambda *values: np.sum(values, axis=0), *pending)
        rates, slowest = self._rates()
        scalars = summary(totals, len(pending)) | rates
        shown = {key: form.format(rates[key]) for key, form in _LINE.items() if key in rates}
        if slowest is not None:
            shown["data_wait"] += f" on process {slowest}"
        text = "".join(f"  {one}" for one in shown.values())
        if "step_seconds" in rates:
            text += f"  {duration((self._steps - step) * rates['step_seconds'])} left"
        logging.info("step %d/%d  loss %.4f%s", step, self._steps, scalars["loss"], text)
        self._pending, self._last = [], step
        return scalars

    def _rates(self) -> tuple[dict[str, float], int | None]:
        """What the clock says of the steps of this interval that it timed, only goodput if it timed none, and which process
        waits most for data, if there are several and it is worth a word; begins the next interval."""
        seconds, steps, images = self._clock.interval(), self._timed, self._images
        waited, flops = self._waited, self._flops
        self._begin()
        if not steps:
            return {"goodput": self._clock.goodput()}, None
        with self.aside():
            # While one process waits for its data, the devices of the others wait for it inside the step, and seem busy.
            data_wait, process = hosts.largest(waited / seconds)
        slowest = process if jax.process_count() > 1 and data_wait > _WAITS else None
        per_chip = flops / seconds / self._chips
        rates = {
            "step_seconds": seconds / steps,
            "steps_per_second": steps / seconds,
            "images_per_second": images / seconds,
            "data_wait": data_wait,
            "tflops_per_chip": per_chip / 1e12,
        }
        if self._peak is not None:
            rates["mfu"] = per_chip / self._peak
        return rates | {"goodput": self._clock.goodput()}, slowest

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


def _drop_after(path: pathlib.Path, step: int) -> None:
    if not path.exists():
        return
    kept = [line for line in path.read_bytes().splitlines() if _step_of(line) <= step]
    atomic.write(path, b"".join(line + b"\n" for line in kept))


def _step_of(line: bytes) -> float:
    """Infinity for what is no line of a log: cut short by a crash, or damaged."""
    try:
        step = json.loads(line.decode())["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
    return step if isinstance(step, int) else float("inf")
