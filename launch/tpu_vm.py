"""Trains on a TPU VM slice through gcloud.

    python -m launch.tpu_vm --tpu-name=pod --zone=us-west4-a --config=configs/pixel.py:size=xl --workdir=/mnt/runs/xl
    python -m launch.tpu_vm --tpu-name=pod --zone=us-west4-a --stop

It copies the last commit to all hosts, installs it, and starts a supervisor on each, which outlives the connection and
starts its process again when any of them dies. What is not committed is refused. It starts on all hosts or on none: a slice
that is not whole and healthy is refused, or whose hosts lack Python 3.11, and if one host does not come up, the others are
stopped.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from launch import accelerators, job
from launch.job import Command
from uniser_jax import manifest

_CODE = "uniser-jax"  # the folder in the home of each host
_ROOT = pathlib.Path(__file__).parent.parent
_PID = "run.pid"  # of the supervisor, in that folder
_PYTHONS = ("python3.11", "python3.12", "python3.13", "python3")
_SUITS = shlex.quote("import ensurepip, sys; sys.exit(sys.version_info < (3, 11))")  # Debian keeps ensurepip apart


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return job.launch("launch.tpu_vm", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = job.parser("launch.tpu_vm", __doc__)
    parser.add_argument("--tpu-name", required=True, help="of the TPU VM slice")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project")
    parser.add_argument("--create", metavar="TPU", help="make the slice first: v5e:4x4")
    parser.add_argument("--version", help="with --create: of the runtime (default: by generation)")
    parser.add_argument("--spot", action="store_true", help="with --create: spot capacity")
    parser.add_argument(
        "--python", help=f"of the hosts, 3.11 or newer (default: the first such of {', '.join(_PYTHONS)})"
    )
    parser.add_argument("--stop", action="store_true", help="stop the run, in time to save, and start nothing")
    parser.set_defaults(grace=25)  # a spot VM has thirty seconds
    arguments, overrides = job.parse(parser, argv)
    if arguments.stop:
        job.run_all([_ssh(arguments, stop(arguments.grace))], arguments.dry_run)
        return 0
    job.check(arguments, overrides, accelerators.tpu(arguments.create).devices() if arguments.create else None)
    check_committed(arguments.config)
    if arguments.create:
        job.run_all([create(arguments)], arguments.dry_run)
    hosts = _hosts(arguments)
    check_python(arguments)
    with tempfile.TemporaryDirectory() as folder:
        archive = f"{'FOLDER' if arguments.dry_run else folder}/{_CODE}.tar.gz"
        job.run_all(prepare(arguments, archive), arguments.dry_run)
    job.run_all([_ssh(arguments, start(arguments, overrides, hosts))], arguments.dry_run)
    try:
        job.run_all([_ssh(arguments, alive())], arguments.dry_run)
    except subprocess.CalledProcessError:
        _ssh(arguments, stop(1)).run()
        raise ValueError("not every host came up, and all were stopped; see ~/uniser-jax/run.log there") from None
    return 0


def check_committed(config: str) -> None:
    """Checks that the last commit, which is what hosts get, is what lies here, and has the config.

    Raises:
      ValueError: if not.
    """
    revision = manifest.revision()
    if revision is None or revision.endswith("+changes"):
        raise ValueError("hosts get the last commit, and this is no clone or files differ from it: commit them first")
    file = config.partition(":")[0]
    found = subprocess.run(["git", "-C", _ROOT, "cat-file", "-e", f"HEAD:{file}"], capture_output=True)
    if found.returncode:
        raise ValueError(f"--config={config}: hosts get the last commit, which has no {file}: commit it first")


def create(arguments: argparse.Namespace) -> Command:
    """Makes the slice."""
    spot = ["--spot"] if arguments.spot else []
    tpu = accelerators.tpu(arguments.create)
    version = arguments.version or tpu.runtime
    return _gcloud(arguments, "create", f"--accelerator-type={tpu.device_type}", f"--version={version}", *spot)


def check_python(arguments: argparse.Namespace) -> None:
    """Checks that all hosts have a Python to run with.

    Raises:
      ValueError: if not.
    """
    try:
        job.run_all([_ssh(arguments, has_python(arguments.python))], arguments.dry_run)
    except subprocess.CalledProcessError:
        raise ValueError(
            f"not every host has Python 3.11 with venv as {arguments.python or ' or '.join(_PYTHONS)}: install it there"
            " (docs/launch.md) or name it, --python; nothing was started"
        ) from None


def has_python(given: str | None) -> str:
    """Prints the Python of a host to run with, the given one or the first of those known; fails where it is none."""
    named = shlex.join([given] if given else _PYTHONS)
    return f'for python in {named}; do "$python" -c {_SUITS} 2>/dev/null && command -v "$python" && exit; done; exit 1'


def prepare(arguments: argparse.Namespace, archive: str) -> list[Command]:
    """Copies and installs the last commit on all hosts, none of which may be training; `archive` is a file to make."""
    install = [
        f"mkdir -p {_CODE} && tar -xzf {_CODE}.tar.gz -C {_CODE} && cd {_CODE}",
        f'{{ .venv/bin/python -c {_SUITS} 2>/dev/null || "$({has_python(arguments.python)})" -m venv --clear .venv; }}',
        ".venv/bin/python -m pip install --quiet -c constraints.txt -e '.[tpu]'",
    ]
    copy = _gcloud(arguments, "scp", archive, f"{arguments.tpu_name}:{_CODE}.tar.gz", "--worker=all", named=False)
    return [
        _ssh(arguments, idle()),
        Command(("git", "-C", str(_ROOT), "archive", "--format=tar.gz", f"--output={archive}", "HEAD")),
        copy,
        _ssh(arguments, " && ".join(install)),
    ]


def idle() -> str:
    """Fails on a host that trains already."""
    return f"! {{ test -s {_CODE}/{_PID} && kill -0 $(cat {_CODE}/{_PID}) 2>/dev/null; }}"


def start(arguments: argparse.Namespace, overrides: Sequence[str], hosts: int | str) -> str:
    """Starts the supervisor of a host; jax finds its number and its peers itself."""
    supervisor = shlex.join(job.worker(arguments, overrides, ".venv/bin/python", arguments.restarts))
    variables = f"UNISER_PROCESSES={hosts} UNISER_REVISION={manifest.revision() or ''}"
    # setsid: it outlives the connection, and $! is its own number.
    started = f"{variables} setsid nohup {supervisor} >>run.log 2>&1 </dev/null & echo $! >{_PID}"
    return f"cd {_CODE} && {{ {started}; }}"


def alive() -> str:
    """Fails on a host whose supervisor ended within seconds."""
    return f"sleep 10 && kill -0 $(cat {_CODE}/{_PID})"


def stop(grace: int) -> str:
    """Asks the supervisor of a host to stop, and waits for it to save."""
    pid = f"$(cat {_CODE}/{_PID})"
    return f"kill -TERM {pid}; for _ in $(seq {grace}); do kill -0 {pid} 2>/dev/null || exit 0; sleep 1; done; exit 1"


def _hosts(arguments: argparse.Namespace) -> int | str:
    """How many hosts the slice has; refuses one that is not whole."""
    describe = _gcloud(arguments, "describe", "--format=json")
    if arguments.dry_run:
        print(describe)
        return "HOSTS"
    found = json.loads(describe.run(stdout=subprocess.PIPE).stdout)
    state, health = found.get("state"), found.get("health", "HEALTHY")
    endpoints = found.get("networkEndpoints", [])
    if state != "READY" or health != "HEALTHY" or not endpoints:
        raise ValueError(
            f"{arguments.tpu_name} is {state} and {health} with {len(endpoints)} hosts: nothing was started"
        )
    missing = [str(index) for index, endpoint in enumerate(endpoints) if not endpoint.get("ipAddress")]
    if missing:
        raise ValueError(
            f"{arguments.tpu_name} has no host {', '.join(missing)} of {len(endpoints)}: nothing was started"
        )
    return len(endpoints)


def _ssh(arguments: argparse.Namespace, command: str) -> Command:
    return _gcloud(arguments, "ssh", "--worker=all", f"--command={command}")


def _gcloud(arguments: argparse.Namespace, verb: str, *options: str, named: bool = True) -> Command:
    project = [f"--project={arguments.project}"] if arguments.project else []
    name = [arguments.tpu_name] if named else []
    where = [f"--zone={arguments.zone}", *project]
    return Command(("gcloud", "compute", "tpus", "tpu-vm", verb, *name, *options, *where))


if __name__ == "__main__":
    sys.exit(main())
