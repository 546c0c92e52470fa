"""Trains in processes on this machine, watches over them, and starts them again when they die.

    python -m launch.local --config=configs/tiny.py --workdir=runs/x
    python -m launch.local --processes=2 --fake-devices=4 --config=configs/tiny.py --workdir=runs/x
    python -m launch.local --processes=2 --gpus=4 --config=configs/pixel.py:size=b --workdir=runs/b

The other launchers run the first form on every host, and tell it of the others in its environment. Logs lie in
WORKDIR/logs, one per process. Exit codes: 0 finished, 75 stopped before the end, 2 a mistake in the command, 3 diverged,
1 gave up.
"""

import argparse
import contextlib
import os
import pathlib
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Sequence

from launch import job
from launch.supervise import Policy, Process, Supervisor
from uniser_jax import locks, status


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return job.launch("launch.local", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    arguments, overrides = read(argv)
    from uniser_jax import config as schema

    steps = schema.read(arguments.config, overrides).steps  # run.json may tell of an earlier, shorter run
    gpus = shown_gpus(arguments.processes * (arguments.gpus or 0))
    make = processes(arguments, [sys.executable, "-m", "uniser_jax.train", *job.trainer(arguments, overrides)], gpus)
    if arguments.dry_run:
        for process in make(1):
            variables = [f"{key}={shlex.quote(value)}" for key, value in process.environment.items()]
            print(*variables, shlex.join(process.argv), f">>{shlex.quote(str(process.log))}", "2>&1")
        return 0
    workdir = pathlib.Path(arguments.workdir)
    with lock(workdir, gpus) as descriptor:
        code = Supervisor(
            make,
            finished=lambda: status.finished(workdir, steps),
            progress=lambda: status.newest_checkpoint(workdir) or 0,
            policy=Policy(restarts=arguments.restarts, grace=arguments.grace),
            keep=(descriptor,),
        ).run()
        # What the trainer cannot tell: it was killed, or never began. A mistake is none of an earlier run, or one under way.
        if code and not (code == job.MISTAKE and (workdir / status.MANIFEST).exists()):
            status.end(workdir, failed=code != job.STOPPED)
        return code


def read(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Parses and checks a command line; returns the options and the overrides.

    Raises:
      ValueError: for a mistake.
    """
    arguments, overrides = job.parse(options(), argv)
    job.at_least_one(arguments, "processes", "fake-devices", "gpus")
    if arguments.processes > 1 and not (arguments.fake_devices or arguments.gpus):
        raise ValueError(
            "several processes must not fight for the same devices: give --gpus=M or --fake-devices=M each"
        )
    each, devices = arguments.gpus or arguments.fake_devices, None
    if each and "UNISER_PROCESSES" not in os.environ:  # else other hosts have more
        devices = job.Devices("gpu" if arguments.gpus else "cpu", arguments.processes * each)
    job.check(arguments, overrides, devices, shared=False)
    return arguments, overrides


def options() -> argparse.ArgumentParser:
    """The options of this launcher."""
    parser = job.parser("launch.local", __doc__)
    parser.add_argument("--processes", type=int, default=1)
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument("--fake-devices", type=int, help="fake CPU devices per process, to try a mesh out")
    devices.add_argument(
        "--gpus", type=int, help="GPUs per process, the first of CUDA_VISIBLE_DEVICES where that is set"
    )
    return parser


def shown_gpus(count: int) -> list[str]:
    """The first GPUs, as CUDA_VISIBLE_DEVICES names those that are ours; where it is not set, all of this host are.

    Raises:
      ValueError: if it names fewer.
    """
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(index) for index in range(count)] if shown is None else [name for name in shown.split(",") if name]
    if len(names) < count:
        raise ValueError(f"{count} GPUs were asked for, and CUDA_VISIBLE_DEVICES={shown} shows {len(names)}")
    return names[:count]


def processes(
    arguments: argparse.Namespace, argv: Sequence[str], gpus: Sequence[str] = ()
) -> Callable[[int], list[Process]]:
    """Makes the processes of each attempt, which meet at a port that is free then and share the GPUs evenly."""

    def make(attempt: int) -> list[Process]:
        port = 0 if arguments.dry_run else _free_port()
        return [
            Process(
                argv,
                _environment(arguments, index, f"127.0.0.1:{port or 'PORT'}", gpus),
                pathlib.Path(arguments.workdir) / "logs" / f"{socket.gethostname()}_{_rank(index)}.log",
            )
            for index in range(arguments.processes)
        ]

    return make


@contextlib.contextmanager
def lock(workdir: pathlib.Path, gpus: Sequence[str] = ()) -> Iterator[int]:
    """Holds the run folder, so that no two launchers on this host train in it; yields the descriptor.

    The kernel frees the lock when the last process that inherited it ends, however it ends.

    Args:
      workdir: the run folder.
      gpus: that are trained on, for `held_gpus`.

    Raises:
      ValueError: if it is held.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with _lock_file(workdir).open("a") as file:
        if not locks.take(file, tries=5):  # `held` has it for a moment
            raise ValueError(f"another launcher trains in {workdir} on this host; wait for it, or stop it")
        file.truncate(0)
        file.write(",".join(gpus))
        file.flush()
        yield file.fileno()


def held(workdir: pathlib.Path) -> bool:
    """Whether a launcher on this host trains in a run folder."""
    try:
        with _lock_file(workdir).open() as file:
            return not locks.take(file)
    except FileNotFoundError:
        return False


def held_gpus(workdir: pathlib.Path) -> list[str]:
    """The GPUs that a launcher on this host trains on in a run folder; none where none trains."""
    return [name for name in _lock_file(workdir).read_text().split(",") if name] if held(workdir) else []


def _lock_file(workdir: pathlib.Path) -> pathlib.Path:
    """One per process of a larger job: its hosts share the folder."""
    return workdir / f".lock_{socket.gethostname()}_{_rank(0)}"


def _environment(arguments: argparse.Namespace, index: int, coordinator: str, gpus: Sequence[str]) -> dict[str, str]:
    environment = {}
    if arguments.processes > 1:
        environment["UNISER_PROCESSES"] = str(arguments.processes)
        environment["UNISER_PROCESS"] = str(index)
        environment["UNISER_COORDINATOR"] = coordinator
    if arguments.fake_devices:
        flags = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={arguments.fake_devices}"
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    if arguments.gpus:
        first = index * arguments.gpus
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first : first + arguments.gpus])
    if arguments.fake_devices or arguments.gpus:
        environment["UNISER_LOCAL_DEVICES"] = str(arguments.fake_devices or arguments.gpus)
    return environment


def _rank(index: int) -> str:
    """Of a process on this host: Slurm starts one launcher per process."""
    return os.environ.get("SLURM_LOCALID", str(index))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
