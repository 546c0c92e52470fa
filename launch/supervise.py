"""Runs the processes of one job as one: all live or none does; a failed job is started again, and stops in good order."""

import dataclasses
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import NamedTuple

from launch.job import FINAL, STOPPED

_POLL = 0.1


class Process(NamedTuple):
    """One process of a job: its command, what its environment has beyond ours, and where its output goes."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    log: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Policy:
    """When to start again, and how long to wait.

    Args:
      restarts: how many attempts in a row may end early; one that got further than the last starts the count anew.
      grace: seconds between a request to stop and SIGKILL.
      pause: seconds before the first restart; doubles with each further one, up to a minute.
    """

    restarts: int = 10
    grace: float = 60.0
    pause: float = 1.0


class Supervisor:
    """Runs a job until it is finished, or cannot be.

    Args:
      processes: makes the processes of an attempt, given its number; called anew each time, for ports go stale.
      finished: whether the job's work is done, asked when all processes ended with exit code 0. That does not say so: a
        preempted process saves and exits with 0.
      progress: a number that grows as the job gets on, such as its newest checkpoint.
      policy: see Policy.
      keep: file descriptors that all processes inherit, so that a lock lives as long as any of them.
    """

    def __init__(
        self,
        processes: Callable[[int], Sequence[Process]],
        finished: Callable[[], bool],
        progress: Callable[[], int],
        policy: Policy,
        keep: Sequence[int] = (),
    ):
        self._processes, self._finished, self._progress = processes, finished, progress
        self._policy, self._keep = policy, keep
        self._asked = False  # to stop

    def run(self) -> int:
        """Returns 0 when the work is done, 75 when stopped before, here or on another host, 2 or 3 as the trainer, else 1."""
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            return self._run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self) -> int:
        attempt = failures = 0
        while True:
            attempt += 1
            reached = self._progress()
            code = self._attempt(self._processes(attempt))
            if code == 0 and self._finished():  # the work of an earlier run excuses no failure
                return 0
            if self._asked:
                return STOPPED
            if code in FINAL:
                return code
            failures = (0 if self._progress() > reached else failures) + 1
            if failures > self._policy.restarts:
                _say(f"attempt {attempt} ended with exit code {code}; gives up")
                return 1 if code else STOPPED
            pause = min(60.0, self._policy.pause * 2 ** (failures - 1))
            _say(f"attempt {attempt} ended with exit code {code}; again in {pause:.0f} s")
            self._sleep(pause)
            if self._asked:
                return STOPPED

    def _attempt(self, processes: Sequence[Process]) -> int:
        """Runs all processes once; returns the exit code of the first that failed, or 0."""
        shown = _Follow(processes[0].log)
        running: list[subprocess.Popen] = []
        try:
            for process in processes:  # one that cannot start ends those that did
                running.append(_start(process, self._keep))
            return self._watch(running, shown)
        finally:
            _kill_all(running)
            shown.close()

    def _watch(self, running: Sequence[subprocess.Popen], shown: "_Follow") -> int:
        forwarded, deadline = False, float("inf")
        while True:
            codes = [process.poll() for process in running]
            shown.copy()
            failed = [code for code in codes if code]
            if failed or None not in codes:
                return _code(failed[0]) if failed else 0
            if self._asked and not forwarded:
                for process in running:  # Ctrl-C, too, becomes SIGTERM: only that finds a step common to all
                    process.terminate()
                forwarded = True
            if (forwarded or 0 in codes) and deadline == float("inf"):
                deadline = time.monotonic() + self._policy.grace
            if time.monotonic() > deadline:
                _say(f"{codes.count(None)} of {len(running)} processes still run after {self._policy.grace} s")
                return _code(-signal.SIGKILL)
            time.sleep(_POLL)

    def _ask(self, _: int, __: FrameType | None) -> None:
        self._asked = True

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._asked and time.monotonic() < end:
            time.sleep(_POLL)


class _Follow:
    """Copies what is appended to a log to our standard error."""

    def __init__(self, path: pathlib.Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._file = path.open("rb")
        self._file.seek(0, os.SEEK_END)

    def copy(self) -> None:
        """Copies what is new."""
        sys.stderr.buffer.write(self._file.read())
        sys.stderr.flush()

    def close(self) -> None:
        """Copies the rest."""
        self.copy()
        self._file.close()


def _start(process: Process, keep: Sequence[int]) -> subprocess.Popen:
    process.log.parent.mkdir(parents=True, exist_ok=True)
    with process.log.open("ab") as log:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        log.write(f"--- {stamp} {shlex.join(process.argv)}\n".encode())
        log.flush()
        # A session of its own: its data workers die with it, and Ctrl-C comes from us alone.
        return subprocess.Popen(
            process.argv,
            env={**os.environ, **process.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=keep,
        )


def _code(ended: int) -> int:
    """As a shell says it: a signal by its number alone would pass for a code of the trainer's."""
    return ended if ended >= 0 else 128 - ended


def _kill_all(running: Sequence[subprocess.Popen]) -> None:
    """Kills whole process groups: a killed trainer leaves data workers that would live on, and hold its memory."""
    for process in running:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # all of it ended by itself
            continue
    for process in running:
        process.wait()


def _say(text: str) -> None:
    sys.stderr.write(f"launch: {text}\n")
    sys.stderr.flush()
