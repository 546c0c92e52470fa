"""How runs are doing, read from their folders alone: `uniser status RUN...`. Nothing here starts jax."""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import logging

MANIFEST = "run.json"
_ENDED = "ended"  # `stopped` or `failed`; a run that goes on, is finished or was killed has none
_OF_A_RUN = (MANIFEST, "logs", _ENDED)  # a converted base has checkpoints, too
_TAIL = 1 << 16  # bytes at the end of metrics.jsonl that surely hold a whole line


@dataclasses.dataclass(frozen=True)
class Status:
    """One run. Ages are in seconds; what is not known yet is None.

    Args:
      run: its folder.
      state: `finished`: the newest checkpoint holds the last step. `stopped`, `failed`: so it ended before. `running`: it
        spoke lately. `silent`: it did not; it was killed, or hangs. `new`: nothing was logged yet.
      step: the newest logged step.
      steps: how many the run will have.
      loss: the newest logged one.
      images_per_second: over the newest interval.
      steps_per_second: the same.
      tflops_per_chip: the same.
      mfu: the same, as a share of the peak; None for chips whose peak is not known, too.
      checkpoint: the newest committed step.
      checkpoint_age: since it was committed.
      age: since the run last wrote anything.
      restarts: how often it was continued.
    """

    run: str
    state: str
    step: int | None
    steps: int | None
    loss: float | None
    images_per_second: float | None
    steps_per_second: float | None
    tflops_per_chip: float | None
    mfu: float | None
    checkpoint: int | None
    checkpoint_age: float | None
    age: float | None
    restarts: int | None


def read(run: str | os.PathLike, now: float | None = None) -> Status:
    """Reads the status of a run folder."""
    folder = pathlib.Path(run)
    now = time.time() if now is None else now
    manifest, metrics = read_record(folder), last_metrics(folder)
    config = manifest.get("config", {})
    checkpoint = newest_checkpoint(folder)
    written = [folder / MANIFEST, folder / "metrics.jsonl"]
    written += [] if checkpoint is None else [folder / "checkpoints" / str(checkpoint)]
    times = [path.stat().st_mtime for path in written if path.exists()]
    age = now - max(times) if times else None
    status = Status(
        run=str(folder),
        state="new",
        step=metrics.get("step", checkpoint),
        steps=config.get("steps"),
        loss=metrics.get("loss"),
        images_per_second=metrics.get("images_per_second"),
        steps_per_second=metrics.get("steps_per_second"),
        tflops_per_chip=metrics.get("tflops_per_chip"),
        mfu=metrics.get("mfu"),
        checkpoint=checkpoint,
        checkpoint_age=None if checkpoint is None else now - times[-1],
        age=age,
        restarts=manifest.get("restarts"),
    )
    return dataclasses.replace(status, state=_state(status, config, ended(folder)))


def begin(run: str | os.PathLike) -> None:
    """Takes away what `end` has left: the run goes on."""
    (pathlib.Path(run) / _ENDED).unlink(missing_ok=True)


def end(run: str | os.PathLike, failed: bool) -> None:
    """Leaves word that a run ended before its last step; a disk that takes none is no reason to fail."""
    with contextlib.suppress(OSError):
        (pathlib.Path(run) / _ENDED).write_text("failed\n" if failed else "stopped\n")


def ended(run: str | os.PathLike) -> str | None:
    """How a run ended before its last step, `stopped` or `failed`; None if it did not, or nobody was left to say so."""
    with contextlib.suppress(OSError, ValueError):
        word = (pathlib.Path(run) / _ENDED).read_text().strip()
        return word if word in ("stopped", "failed") else None
    return None


def check_folder(run: str | os.PathLike) -> None:
    """Checks that a run folder can be there.

    Raises:
      ValueError: if it, or a folder it lies in, is a file.
    """
    files = [path for path in (pathlib.Path(run), *pathlib.Path(run).parents) if path.is_file()]
    if files:
        raise ValueError(f"--workdir={run}: {files[0]} is a file: name a folder")


def runs_in(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The folder if it is a run, else the runs in it, as in the folder of a sweep; a new run is its only one.

    Those that a sweep lists or whose launcher left logs, but that never started, are among them.

    Raises:
      ValueError: if there is no such folder, nothing of a run in it, or a converted base.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no run folder at {str(folder)!r}")
    if (folder / MANIFEST).exists():
        return [folder]
    inside = {path.parent for name in _OF_A_RUN for path in folder.glob(f"*/{name}")} | _planned(folder)
    if inside:
        return sorted(inside)
    if "base" in read_record(folder):
        raise ValueError(f"{str(folder)!r} is a converted base, for config.model.base, and no run")
    of_a_run = any((folder / name).exists() for name in (*_OF_A_RUN, "checkpoints"))
    if not of_a_run and folder not in _planned(folder.parent):
        raise ValueError(f"no run in {str(folder)!r}: expected a run folder, or a folder of runs")
    return [folder]


def finished(run: str | os.PathLike, steps: int | None = None) -> bool:
    """Whether the newest checkpoint holds the last step.

    Args:
      run: the run folder.
      steps: how many the run should have; by default what its manifest says, or its checkpoint.
    """
    steps = read_record(run).get("config", {}).get("steps") if steps is None else steps
    checkpoint = newest_checkpoint(run)
    return steps is not None and checkpoint is not None and checkpoint >= steps


def newest_checkpoint(run: str | os.PathLike) -> int | None:
    """The newest committed step: a folder gets its plain number by the renaming that commits it."""
    folder = pathlib.Path(run) / "checkpoints"
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    return max(steps, default=None)


def read_manifest(run: str | os.PathLike) -> dict[str, Any]:
    """The manifest of a run folder; empty if there is none, or, with a warning, if it cannot be read."""
    return _read_json(pathlib.Path(run) / MANIFEST)


def read_record(run: str | os.PathLike) -> dict[str, Any]:
    """What is known of a run, its config above all: the manifest, or, where that is lost, the newest checkpoint's record."""
    manifest, checkpoint = read_manifest(run), newest_checkpoint(run)
    if manifest or checkpoint is None:
        return manifest
    return _read_json(pathlib.Path(run) / "checkpoints" / str(checkpoint) / "record" / "metadata")  # as orbax names it


def last_metrics(run: str | os.PathLike) -> dict[str, Any]:
    """The newest whole line of metrics.jsonl that tells of training; empty if there is none."""
    try:
        with (pathlib.Path(run) / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return {}
    return next((values for values in whole(reversed(lines)) if "loss" in values), {})


def whole(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects among the lines of a log: some may be cut short by a crash, being written, or damaged."""
    for line in lines:
        with contextlib.suppress(ValueError):
            if isinstance(found := json.loads(line), dict):
                yield found


def table(statuses: Sequence[Status]) -> str:
    """One line per run under a head, in aligned columns."""
    head = ("run", "state", "step", "loss", "images/s", "TFLOP/s", "MFU", "left", "checkpoint", "restarts")
    rows = [head, *(_row(status) for status in statuses)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in rows)


def duration(seconds: float) -> str:
    """The two largest units of a time, as `42s`, `3m10s`, `5h02m` or `2d03h`."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 2 for a mistake, and with --finished 1 where a run is unfinished."""
    parser = argparse.ArgumentParser("uniser status", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or folders of runs")
    parser.add_argument("--json", action="store_true", help="one JSON object per run")
    parser.add_argument("--finished", action="store_true", help="print nothing; exit with 0 if all are finished")
    arguments = parser.parse_args(argv)
    try:
        runs = [run for folder in arguments.runs for run in runs_in(folder)]
    except ValueError as error:
        sys.stderr.write(f"uniser status: {error}\n")
        return 2
    if arguments.finished:
        return 0 if all(finished(run) for run in runs) else 1
    statuses = [read(run) for run in runs]
    lines = "".join(json.dumps(dataclasses.asdict(status)) + "\n" for status in statuses)
    sys.stdout.write(lines if arguments.json else table(statuses))
    return 0


def _planned(folder: pathlib.Path) -> set[pathlib.Path]:
    """The runs of the sweep in a folder, if any: those that wait for their turn have no folder yet."""
    path = folder / "sweep.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return {folder / row["run"] for row in whole(lines) if isinstance(row.get("run"), str)}


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError:  # empty, cut or zeros, as a host leaves it that lost its power
        found = None
    if not isinstance(found, dict):
        logging.warning("%s cannot be read and is passed over", path)
        return {}
    return found


def _state(status: Status, config: dict[str, Any], ended: str | None) -> str:
    if status.steps is not None and (status.checkpoint or 0) >= status.steps:
        return "finished"
    if ended:
        return ended
    if status.age is None:
        return "new"
    # A slow run is not silent: it writes a line every `log_every` steps.
    interval = config.get("log_every", 1) / status.steps_per_second if status.steps_per_second else 0
    patience = max(config.get("stall_seconds") or 600, 3 * interval)
    return "running" if status.age <= patience else "silent"


def _row(status: Status) -> tuple[str, ...]:
    def known(value: Any, text: str) -> str:
        return "-" if value is None else text.format(value)

    left = "-"
    if status.state == "running" and status.steps_per_second and status.steps is not None and status.step is not None:
        left = duration((status.steps - status.step) / status.steps_per_second)
    checkpoint = "none"
    if status.checkpoint is not None and status.checkpoint_age is not None:
        checkpoint = f"{status.checkpoint}, {duration(status.checkpoint_age)} ago"
    state = status.state
    if state == "silent" and status.age is not None:
        state += f" for {duration(status.age)}"
    return (
        status.run,
        state,
        known(status.step, "{}") + known(status.steps, "/{}").replace("-", ""),
        known(status.loss, "{:.4f}"),
        known(status.images_per_second, "{:.1f}"),
        known(status.tflops_per_chip, "{:.3g}"),
        known(status.mfu, "{:.0%}"),
        left,
        checkpoint,
        known(status.restarts, "{}"),
    )


if __name__ == "__main__":
    sys.exit(main())
