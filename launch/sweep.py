"""Runs what a config's `sweep()` yields, each in a folder of its own, and tells how the parameters did.

    python -m launch.sweep --config=configs/sweep.py --workdir=runs/sweep --launcher=local --parallel=2
    python -m launch.sweep --config=configs/sweep.py --workdir=/shared/sweep --launcher=slurm --parallel=8 --gpus=4

The same command again skips finished runs and continues broken ones. A sweep keeps no state but the run folders: it may
die, its runs go on, and the next one waits for them. Arguments that are not named here go to the launcher, and
`--config.optim.ema=0.99` goes to all runs. WORKDIR/sweep.md, sweep.jsonl and sweep.png are written anew whenever a run ends.
"""

import argparse
import dataclasses
import hashlib
import os
import pathlib
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import numpy as np

from launch import job, local, report, slurm, xpk
from uniser_jax import status

_LAUNCHERS: dict[str, tuple[Any, list[str]]] = {  # with what each returns when the run has ended
    "local": (local, []),
    "slurm": (slurm, ["--wait"]),
    "xpk": (xpk, ["--wait", "--replace"]),
}
_POLL = 0.5
_LONGEST = 120  # characters of a folder's name
_HOW = (  # settings of a run that do not change what it learns
    *("log_every", "sample_every", "profile_steps", "stall_seconds", "mesh.", "checkpoint.", "evaluation.", "restore."),
    *("data.workers", "data.threads", "optim.max_skipped", "model.attention", "model.remat"),
)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Args:
      overrides: what sets it apart, by config key.
      workdir: its folder.
      steps: after which it is finished.
      command: that starts it, and returns when it has ended.
      gpus: of this host that it needs.
    """

    overrides: Mapping[str, Any]
    workdir: pathlib.Path
    steps: int
    command: Sequence[str]
    gpus: int = 0

    def state(self, ended: str | None = None) -> str:
        """`finished`, `running` on this host, as it `ended`, `broken` where it can be continued, or `new`."""
        if status.finished(self.workdir, self.steps):
            return "finished"
        if local.held(self.workdir):
            return "running"
        if ended is not None:
            return ended
        return "broken" if status.newest_checkpoint(self.workdir) is not None else "new"

    @property
    def log(self) -> pathlib.Path:
        """What its launcher says."""
        return self.workdir / "logs" / "launcher.log"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 if all runs are finished, 1 if some are not, 75 if stopped."""
    return job.launch("launch.sweep", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        "launch.sweep", description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="a config file with sweep()")
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="the folder of all runs")
    parser.add_argument("--launcher", choices=_LAUNCHERS, default="local")
    parser.add_argument("--name", help="what the names of all jobs begin with")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--metric", default="loss", help="a key of metrics.jsonl")
    parser.add_argument("--best", choices=("min", "max"), default="min", help="which value of it is best")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, and run nothing")
    arguments, rest = parser.parse_known_args(argv)
    if arguments.parallel < 1:
        raise ValueError(f"--parallel={arguments.parallel}: expected at least 1")
    trials = plan(arguments.config, arguments.workdir, arguments.launcher, rest, arguments.name)
    if arguments.dry_run:
        for trial in trials:
            print(f"# {trial.workdir.name}: {trial.state()}\n{shlex.join(trial.command)}")
        return 0
    return Sweep(trials, arguments).run()


def plan(
    config: str, workdir: pathlib.Path, launcher: str, rest: Sequence[str], name: str | None = None
) -> list[Trial]:
    """All runs of a sweep, each checked as the launcher and the trainer would.

    Args:
      config: a file with `sweep()`, with or without arguments after a colon.
      workdir: the folder of all runs.
      launcher: by name.
      rest: arguments for the launcher and overrides for all runs.
      name: what the names of all jobs begin with: two of the same name would end each other, or wait for each other.

    Raises:
      ValueError: for a config without sweep(), what the launcher or the schema refuses, two runs that are the same, or one
        that was trained with other settings: its result would stand for what nobody ran.
    """
    from uniser_jax import config as schema

    shared = [argument for argument in rest if argument.startswith("--config.")]
    trials: dict[str, Trial] = {}
    for overrides in read_sweep(config):
        run = name_of(overrides)
        if run in trials:
            raise ValueError(f"{config}: sweep() yields {run} twice")
        own = [f"--config.{key}={value}" for key, value in overrides.items()]
        resolved = schema.read(config, [*shared, *own])
        steps, folder = resolved.steps, workdir / run
        if record := status.read_record(folder).get("config"):
            _check_alike(schema.recorded(record), schema.flat(resolved.to_dict()), folder)
        module, waits = _LAUNCHERS[launcher]
        command = [sys.executable, "-m", f"launch.{launcher}", *waits]
        command += [f"--name={job.made_name(name, folder)}"] if name is not None else []
        command += [f"--config={config}", f"--workdir={folder}", *rest, *own]
        given, _ = module.read(command[3:])  # after python -m launch.NAME
        gpus = given.processes * (given.gpus or 0) if launcher == "local" else 0
        trials[run] = Trial(overrides, folder, steps, command, gpus)
    return list(trials.values())


def _check_alike(before: Mapping[str, Any], asked: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Compares what the run of a folder was trained with; what only tells how it ran, and more steps, may differ."""
    others = []
    for key, value in asked.items():
        old = before[key]
        if old != value and not key.startswith(_HOW) and not (key == "steps" and value > old):
            others.append(f"{key} = {old}, not {value}")
    if others:
        raise ValueError(f"{folder} was trained with {'; '.join(others)}: name another --workdir, or delete this run")


def read_sweep(config: str) -> list[dict[str, Any]]:
    """What `sweep()` of a config file yields.

    Raises:
      ValueError: if there is no such file or function, or it yields nothing.
    """
    file = pathlib.Path(config.partition(":")[0])
    if not file.is_file():
        raise ValueError(f"no config file {str(file)!r}; see configs/")
    sweep = runpy.run_path(str(file)).get("sweep")
    found = [{key: _plain(value) for key, value in overrides.items()} for overrides in sweep()] if sweep else []
    if not found:
        raise ValueError(f"{file} has no sweep() that yields overrides such as {{'optim.lr': 1e-4}}")
    return found


def _plain(value: Any) -> Any:
    """Scalars of numpy as Python's: JSON knows no others."""
    return value.item() if isinstance(value, np.generic) else value


def name_of(overrides: Mapping[str, Any]) -> str:
    """The folder of a run, from its overrides alone: `lr=0.001,ema=0.99`, whatever else the sweep holds.

    A key is shortened to its last part, unless two would look the same; what a file name cannot hold, or what is too
    long, is told apart by a digest.
    """
    last = [key.rpartition(".")[2] for key in overrides]
    names = last if len(set(last)) == len(last) else list(overrides)
    readable = ",".join(f"{name}={value}" for name, value in zip(names, overrides.values(), strict=True))
    safe = re.sub(r"[^\w.,=+-]+", "_", readable)
    if safe == readable and len(safe) <= _LONGEST:
        return safe
    return f"{safe[:_LONGEST]}-{hashlib.sha256(readable.encode()).hexdigest()[:8]}"


class Sweep:
    """Keeps some runs going until all have ended.

    Args:
      trials: the runs, in the order they start.
      arguments: of the command line.
    """

    def __init__(self, trials: Sequence[Trial], arguments: argparse.Namespace):
        self._trials, self._arguments = trials, arguments
        self._gpus = local.shown_gpus(arguments.parallel * max((trial.gpus for trial in trials), default=0))
        self._given: dict[str, list[str]] = {}  # GPUs of what was started
        self._waiting: list[Trial] = []
        self._started: dict[str, subprocess.Popen] = {}
        self._adopted: set[str] = set()
        self._unfinished: dict[str, str] = {}  # what ended before its last step, and how
        self._logged: dict[str, dict[pathlib.Path, int]] = {}  # how long the logs were when a run was started
        self._asked = False  # to stop

    def run(self) -> int:
        """Returns the exit code of the sweep."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)
        self._waiting = [trial for trial in self._trials if trial.state() != "finished"]
        _say(f"{len(self._trials)} runs, {len(self._trials) - len(self._waiting)} of them finished")
        self._report()
        while self._started or ((self._waiting or self._adopted) and not self._asked):
            while self._waiting and not self._asked and self._active() < self._arguments.parallel:
                if not self._start(self._waiting[0]):
                    break
                self._waiting.pop(0)
            time.sleep(_POLL)
            ended = [self._ended(trial) for trial in self._trials]
            if any(ended):
                self._report()
        self._report()
        if self._asked:
            return job.STOPPED
        return 1 if self._unfinished else 0

    def _active(self) -> int:
        return len(self._started) + len(self._adopted)

    def _free_gpus(self) -> list[str]:
        """Those that no run is on, started by us or by an earlier sweep."""
        taken = {gpu for name in self._started for gpu in self._given[name]}
        taken |= {gpu for trial in self._trials if trial.gpus for gpu in local.held_gpus(trial.workdir)}
        return [gpu for gpu in self._gpus if gpu not in taken]

    def _start(self, trial: Trial) -> bool:
        """Starts or adopts a run; returns False if it must wait for GPUs."""
        name = trial.workdir.name
        state = trial.state()
        if state == "finished":  # by another sweep, meanwhile
            return True
        gpus = self._free_gpus()[: trial.gpus] if state != "running" else []
        if state != "running" and len(gpus) < trial.gpus:
            return False
        _say(f"{name}: {'waits for what runs there' if state == 'running' else f'starts ({state})'}")
        if state == "running":
            self._adopted.add(name)
            return True
        trial.log.parent.mkdir(parents=True, exist_ok=True)
        self._given[name] = gpus
        self._logged[name] = {path: path.stat().st_size for path in trial.log.parent.glob("*.log")}
        with trial.log.open("ab") as output:  # a session of its own: it outlives us, and Ctrl-C comes from us alone
            self._started[name] = subprocess.Popen(
                trial.command,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else None,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return True

    def _ended(self, trial: Trial) -> bool:
        """Whether a run has ended since the last look."""
        name = trial.workdir.name
        adopted = name in self._adopted
        if adopted and local.held(trial.workdir):
            return False
        if not adopted and (name not in self._started or self._started[name].poll() is None):
            return False
        self._adopted.discard(name)
        process = self._started.pop(name, None)
        if trial.state() != "finished" and not self._asked:
            if process is None:  # it broke under an earlier sweep, and this one has not tried it
                self._waiting.append(trial)
            else:
                self._unfinished[name] = "failed" if process.returncode or _left_something(trial) else "unseen"
        state = trial.state(self._unfinished.get(name))
        _say(f"{name}: {state}{self._reason(trial, state)}")
        return True

    def _reason(self, trial: Trial, state: str) -> str:
        if state == "failed":
            return f": {_last_line(trial.log.parent, self._logged[trial.workdir.name])}"
        return f": finished elsewhere? no {status.MANIFEST} in {trial.workdir}" if state == "unseen" else ""

    def _report(self) -> None:
        rows = [
            report.row(
                trial.workdir, trial.overrides, trial.state(self._unfinished.get(trial.workdir.name)), *self._metric()
            )
            for trial in self._trials
        ]
        report.write(self._arguments.workdir, rows, *self._metric())

    def _metric(self) -> tuple[str, str]:
        return self._arguments.metric, self._arguments.best

    def _ask(self, _: int, __: FrameType | None) -> None:
        """Passes the wish to stop on; what an earlier sweep started is left alone."""
        self._asked = True
        for process in self._started.values():
            process.terminate()


def _left_something(trial: Trial) -> bool:
    """Whether a run has left a manifest or a log here; one on a disk that is not mounted here has not."""
    return (trial.workdir / status.MANIFEST).exists() or len(list(trial.log.parent.glob("*.log"))) > 1


def _last_line(logs: pathlib.Path, before: Mapping[pathlib.Path, int]) -> str:
    """The last line of the trainer's newest log, or else of its launcher's, but for what only tells of attempts.

    Args:
      logs: their folder.
      before: how long they were before.
    """

    def rank(path: pathlib.Path) -> tuple[bool, float]:
        return not path.name.startswith(("launcher", "slurm")), path.stat().st_mtime

    for path in sorted(logs.glob("*.log"), key=rank, reverse=True):
        with path.open("rb") as file:
            file.seek(before.get(path, 0))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
        told = [line for line in lines if line and not line.startswith(("launch: ", "--- "))]
        if told:
            return told[-1]
    return f"see {logs}"


def _say(text: str) -> None:
    sys.stderr.write(f"sweep: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
