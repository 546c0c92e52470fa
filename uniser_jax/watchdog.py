"""Says what a run hangs on: a step that takes too long logs the stacks of all threads, and which host is behind."""

import faulthandler
import json
import pathlib
import threading
import time
from typing import Self

from absl import logging

from uniser_jax import hosts, status


class Watchdog:
    """Watches the steps of one process from a thread of its own; a context manager.

    Each process has a file, `folder/process_00000.txt`, with who and where it is on the first line. When no step comes for
    `seconds`, the stacks of all threads follow there and in the log. In a run of many processes all hang when one does, for
    they wait for its part; the folder, which all hosts see, then tells the one that is behind.

    Args:
      folder: for the reports, on a disk that all processes share.
      seconds: without a step, after which to report; compiling must take less. 0 never reports.
      process: the index of this process.
      processes: how many there are.
      step: where the run starts.
    """

    def __init__(self, folder: pathlib.Path, seconds: float, process: int = 0, processes: int = 1, step: int = 0):
        self._folder, self._seconds = folder, seconds
        self._process, self._processes = process, processes
        self._step, self._time = step, time.monotonic()
        self._reported = 0.0  # when, while it stalls
        self._path = folder / f"process_{process:05d}.txt"
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, step: int) -> None:
        """Tells that `step` was done."""
        seconds = time.monotonic() - self._time
        self._step, self._time = step, time.monotonic()
        if self._reported:
            logging.info("moves again, at step %d after %.0f s", step, seconds)
            self._write(step)
            self._reported = 0.0

    def __enter__(self) -> Self:
        if self._seconds > 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write(self._step)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        tick = min(self._seconds / 4, 15)
        compared = False
        while not self._end.wait(tick):
            now = time.monotonic()
            if not self._reported and now - self._time > self._seconds:
                self._report(now)
                compared = False
            elif self._reported and not compared and now - self._reported > 2 * tick:  # the others had time to report
                logging.error("%s", behind(self._folder, self._processes))
                compared = True

    def _report(self, now: float) -> None:
        self._write(self._step, stalled=True)
        self._reported = now
        logging.error(
            "process %d on %s has made no step for %.0f s, the last was %d; its threads:\n%s",
            self._process,
            hosts.host(),
            now - self._time,
            self._step,
            self._path.read_text().partition("\n")[2],
        )

    def _write(self, step: int, stalled: bool = False) -> None:
        with self._path.open("w") as file:
            who = {"process": self._process, "host": hosts.host(), "step": step, "stalled": stalled}
            file.write(json.dumps(who) + "\n")
            file.flush()
            if stalled:
                faulthandler.dump_traceback(file, all_threads=True)


def behind(folder: pathlib.Path, processes: int) -> str:
    """One line that says, from the files of all processes, which of them the others wait for."""
    lines = (path.read_bytes().partition(b"\n")[0] for path in sorted(folder.glob("process_*.txt")))
    files = list(status.whole(lines))  # but for those that are being written
    stalled = [one for one in files if one["stalled"] and one["process"] < processes]
    busy = {one["process"]: f"process {one['process']} on {one['host']}" for one in files if not one["stalled"]}
    silent = sorted(set(range(processes)) - {one["process"] for one in stalled})
    if silent:
        names = ", ".join(busy.get(process, f"process {process}") for process in silent)
        return f"no report from {names}: dead, or still busy; the others wait"
    first, last = min(one["step"] for one in stalled), max(one["step"] for one in stalled)
    if first == last:
        return f"all {processes} processes wait at step {first}"
    late = ", ".join(f"process {one['process']} on {one['host']}" for one in stalled if one["step"] == first)
    return f"behind: {late}, at step {first}; the others are at {last}"
