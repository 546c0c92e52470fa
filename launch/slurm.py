"""Trains on GPUs under Slurm: one process per GPU, as jax expects there.

    python -m launch.slurm --nodes=2 --gpus=8 --time=24:00:00 --config=configs/pixel.py:size=xl --workdir=/shared/runs/xl

The job gets all its nodes or does not start; when one process ends, all do. Failed or preempted, it is queued again under
the same number, up to --restarts times for failures since it last stopped in good order, as before a time limit; a
mistake in the command is not tried again, nor is a run that diverged. A second submission with the same name waits for the
first, so that no two train in one folder. Run it where the code and .venv are shared.
"""

import argparse
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

from launch import job
from launch.job import Command

# srun ends all processes soon after one has ended, not at once: when preempted, all of them save. It returns the highest of
# their exit codes. Since Slurm 22.05 it must be told of --cpus-per-task again. A requeued job keeps its number, its script and
# its place. SLURM_RESTART_COUNT is of no use: it counts every time limit, too.
_SCRIPT = """\
#!/bin/bash
{options}
cd {here}
export UNISER_PROCESSES={processes} UNISER_LOCAL_DEVICES=1
srun --nodes={nodes} --ntasks={processes} --cpus-per-task={cpus} --wait={grace} --output={logs}/slurm_%j_%t.log \\
  --open-mode=append {command}
code=$?
failures={logs}/slurm_$SLURM_JOB_ID.failures
case $code in
  0|{final}) exit $code ;;
  {stopped}) rm -f "$failures"; scontrol requeue "$SLURM_JOB_ID" ;;
  *) echo $code >>"$failures"; [ "$(wc -l <"$failures")" -le {restarts} ] && scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return job.launch("launch.slurm", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    arguments, overrides = read(argv)
    logs = pathlib.Path(arguments.workdir) / "logs"
    if not arguments.dry_run:
        logs.mkdir(parents=True, exist_ok=True)  # Slurm drops output for which there is no folder
    wait = ("--wait",) if arguments.wait else ()
    job.run_all([Command(("sbatch", "--parsable", *wait), script(arguments, overrides))], arguments.dry_run)
    return 0


def read(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Parses and checks a command line; returns the options and the overrides.

    Raises:
      ValueError: for a mistake.
    """
    arguments, overrides = job.parse(options(), argv)
    job.at_least_one(arguments, "nodes", "gpus", "cpus")
    job.check(arguments, overrides, job.Devices("gpu", arguments.nodes * arguments.gpus))
    return arguments, overrides


def options() -> argparse.ArgumentParser:
    """The options of this launcher."""
    parser = job.parser("launch.slurm", __doc__)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=8, help="per node")
    parser.add_argument("--cpus", type=int, default=8, help="per GPU")
    parser.add_argument("--time", default="24:00:00", help="limit of one go; the job is queued again when it ends")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--sbatch", action="append", default=[], help="a further option, --sbatch=--qos=high")
    parser.add_argument("--python", default=sys.executable, help="of the nodes")
    parser.add_argument("--wait", action="store_true", help="return when the job has ended, with its exit code")
    return parser


def script(arguments: argparse.Namespace, overrides: Sequence[str]) -> str:
    """The batch script."""
    logs = pathlib.Path(arguments.workdir) / "logs"
    directives = [
        f"--job-name={job.name_of(arguments)}",
        f"--nodes={arguments.nodes}",
        f"--ntasks-per-node={arguments.gpus}",
        f"--gpus-per-node={arguments.gpus}",  # not per task: each process picks its own of all by its number
        f"--cpus-per-task={arguments.cpus}",
        f"--time={arguments.time}",
        f"--signal=TERM@{arguments.grace}",  # to the processes, before the limit, in time to save
        "--requeue",
        "--open-mode=append",
        "--dependency=singleton",
        _quoted(f"--output={logs}/slurm_%j.log"),
        *([f"--partition={arguments.partition}"] if arguments.partition else []),
        *([f"--account={arguments.account}"] if arguments.account else []),
        *arguments.sbatch,
    ]
    return _SCRIPT.format(
        options="\n".join(f"#SBATCH {directive}" for directive in directives),
        here=shlex.quote(os.getcwd()),
        nodes=arguments.nodes,
        processes=arguments.nodes * arguments.gpus,
        cpus=arguments.cpus,
        grace=arguments.grace,
        logs=shlex.quote(str(logs)),
        # Slurm starts the job again, not each process by itself: they must all begin together.
        command=shlex.join(job.worker(arguments, overrides, arguments.python, restarts=0)),
        final="|".join(map(str, job.FINAL)),
        stopped=job.STOPPED,
        restarts=arguments.restarts,
    )


def _quoted(directive: str) -> str:
    """As a shell would have it, but that sbatch takes a backslash for an escape within any quotes, too."""
    return shlex.quote(directive).replace("\\", "\\\\")


if __name__ == "__main__":
    sys.exit(main())
