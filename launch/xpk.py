"""Trains on GKE: TPU slices through XPK, or TPUs and GPUs as a JobSet through kubectl.

    python -m launch.xpk --cluster=pods --tpu=v5e:4x4 --storage=runs --image=IMAGE --config=CONFIG --workdir=/runs/x
    python -m launch.xpk --kubectl --gpu=h100:8 --nodes=2 --claim=runs --image=IMAGE --config=CONFIG --workdir=/runs/x

Kubernetes starts all pods or none, and all again when one fails; a mistake in the command or a run that diverged is not
tried again. The image holds this repository (Dockerfile); /runs is a disk that all pods share: --storage for XPK, --claim
for kubectl. Without one a run would lose its checkpoints with its pods, and is refused; --no-disk says that the cluster
mounts one by itself.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from launch import accelerators, job, jobset
from launch.accelerators import Accelerator
from launch.job import Command


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return job.launch("launch.xpk", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    arguments, overrides = read(argv)
    for key, path in outside(arguments, overrides).items():
        where = f"lies outside the claim, which is mounted at {arguments.mount}"
        sys.stderr.write(f"launch.xpk: config.{key} = {path!r} {where}: the image must hold it\n")
    job.run_all(plan(arguments, overrides), arguments.dry_run)
    return 0


def read(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Parses and checks a command line; returns the options and the overrides.

    Raises:
      ValueError: for a mistake.
    """
    arguments, overrides = job.parse(options(), argv)
    job.at_least_one(arguments, "slices", "nodes")
    slices = arguments.slices if arguments.tpu else 1
    job.check(arguments, overrides, _accelerator(arguments).devices(slices))
    check_disk(arguments)
    plan(arguments, overrides)  # options that do not go together are found on the way
    return arguments, overrides


def options() -> argparse.ArgumentParser:
    """The options of this launcher."""
    parser = job.parser("launch.xpk", __doc__)
    devices = parser.add_mutually_exclusive_group(required=True)
    devices.add_argument("--tpu", help="a slice: v4, v5e, v5p or v6e with its topology, v5e:4x4")
    devices.add_argument("--gpu", help="a100, h100, h100-mega, h200 or b200 with a number per node, h100:8")
    parser.add_argument("--slices", type=int, default=1, help="TPU slices")
    parser.add_argument("--nodes", type=int, default=1, help="GPU nodes")
    parser.add_argument("--image", required=True, help="a container image with this repository, see Dockerfile")
    parser.add_argument("--kubectl", action="store_true", help="apply a JobSet with kubectl, without XPK")
    disk = parser.add_mutually_exclusive_group()
    disk.add_argument("--claim", help="with --kubectl: a persistent volume claim, mounted at --mount")
    parser.add_argument("--mount", default="/runs", help="with --claim: where, with the run folder in it")
    parser.add_argument("--queue", help="with --kubectl: a local queue of Kueue")
    parser.add_argument("--namespace", help="with --kubectl")
    parser.add_argument("--cluster", help="with XPK")
    parser.add_argument("--project", help="with XPK")
    parser.add_argument("--zone", help="with XPK")
    disk.add_argument("--storage", action="append", default=[], help="with XPK: a storage of the cluster to mount")
    disk.add_argument("--no-disk", action="store_true", help="mount none: the cluster does, or nothing is to be kept")
    parser.add_argument("--priority", help="with XPK: very-low to very-high")
    parser.add_argument("--spot", action="store_true", help="with XPK: spot capacity")
    parser.add_argument("--replace", action="store_true", help="end a job of the same name first")
    parser.add_argument("--wait", action="store_true", help="return when the job has ended")
    return parser


def plan(arguments: argparse.Namespace, overrides: Sequence[str]) -> list[Command]:
    """What XPK or kubectl is asked for.

    Raises:
      ValueError: for options that do not go together.
    """
    # Kubernetes starts all pods again, not each by itself: they must begin together.
    command = job.worker(arguments, overrides, "python", restarts=0)
    return (kubectl_plan if arguments.kubectl else xpk_plan)(arguments, _accelerator(arguments), command)


def _accelerator(arguments: argparse.Namespace) -> Accelerator:
    tpu = arguments.tpu
    return accelerators.tpu(tpu) if tpu else accelerators.gpu(arguments.gpu, arguments.nodes)


def check_disk(arguments: argparse.Namespace) -> None:
    """Checks that the run folder outlives its pods.

    Raises:
      ValueError: if not.
    """
    option, disk = ("--claim=CLAIM", arguments.claim) if arguments.kubectl else ("--storage=NAME", arguments.storage)
    if not (disk or arguments.no_disk):
        raise ValueError(f"checkpoints would be lost with the pods: mount a shared disk, {option}; or say --no-disk")
    if arguments.claim and not pathlib.PurePath(arguments.workdir).is_relative_to(arguments.mount):
        raise ValueError(f"--workdir={arguments.workdir} lies outside the claim, which is mounted at {arguments.mount}")


def outside(arguments: argparse.Namespace, overrides: Sequence[str]) -> dict[str, str]:
    """The absolute paths in the config, by key, that lie outside the claim, if there is one."""
    from uniser_jax import config as schema

    values = schema.flat(schema.read(arguments.config, overrides).to_dict()) if arguments.claim else {}
    named = {key: value.removeprefix("array_record:") for key, value in values.items() if isinstance(value, str)}
    paths = {key: pathlib.PurePath(value) for key, value in named.items()}
    return {
        key: named[key]
        for key, path in paths.items()
        if path.is_absolute() and not path.is_relative_to(arguments.mount)
    }


def xpk_plan(arguments: argparse.Namespace, accelerator: Accelerator, command: Sequence[str]) -> list[Command]:
    """What XPK is asked for.

    Raises:
      ValueError: for GPUs, or without a cluster.
    """
    if accelerator.device_type is None:
        raise ValueError("--gpu needs --kubectl: XPK is used for TPU slices only")
    if not arguments.cluster:
        raise ValueError("--cluster is missing: the cluster that XPK made; or use --kubectl")
    if arguments.claim or arguments.queue or arguments.namespace:
        raise ValueError("--claim, --queue and --namespace need --kubectl; XPK has --storage, and a queue of its own")
    name = job.name_of(arguments)
    where = [f"--cluster={arguments.cluster}"]
    where += [f"--{key}={getattr(arguments, key)}" for key in ("project", "zone") if getattr(arguments, key)]
    create = [
        *("xpk", "workload", "create"),
        *where,
        f"--workload={name}",
        f"--tpu-type={accelerator.device_type}",
        f"--num-slices={arguments.slices}",
        f"--docker-image={arguments.image}",
        f"--env=UNISER_PROCESSES={accelerator.hosts * arguments.slices}",
        f"--env=UNISER_LOCAL_DEVICES={accelerator.chips}",
        f"--max-restarts={arguments.restarts}",
        f"--restart-on-exit-codes=1,{job.STOPPED}",  # beside those of signals; others, job.FINAL, fail for good
        f"--termination-grace-period-seconds={arguments.grace}",
        *[f"--storage={storage}" for storage in arguments.storage],
        *([f"--priority={arguments.priority}"] if arguments.priority else []),
        *(["--spot"] if arguments.spot else []),
        f"--command=exec {Command(tuple(command))}",  # exec: XPK forwards SIGTERM to its child alone
    ]
    plan = []
    if arguments.replace:
        delete = ("xpk", "workload", "delete", *where, f"--workload={name}", "--force")
        plan.append(Command(delete, may_fail=True))
    plan.append(Command(tuple(create)))
    if arguments.wait:
        plan.append(Command(("xpk", "workload", "list", *where, f"--wait-for-job-completion={name}")))
    return plan


def kubectl_plan(arguments: argparse.Namespace, accelerator: Accelerator, command: Sequence[str]) -> list[Command]:
    """What kubectl is asked for.

    Raises:
      ValueError: for options that only XPK has.
    """
    if arguments.storage or arguments.cluster or arguments.priority or arguments.spot:
        raise ValueError("--cluster, --storage, --priority and --spot are XPK's; kubectl uses its current context")
    name = job.name_of(arguments)
    made = jobset.manifest(
        name,
        arguments.image,
        command,
        accelerator,
        slices=arguments.slices if arguments.tpu else 1,
        restarts=arguments.restarts,
        grace=arguments.grace,
        claim=arguments.claim,
        mount=arguments.mount,
        labels={"kueue.x-k8s.io/queue-name": arguments.queue} if arguments.queue else None,
    )
    kubectl = ["kubectl", *([f"--namespace={arguments.namespace}"] if arguments.namespace else [])]
    plan = []
    if arguments.replace:
        plan.append(Command((*kubectl, "delete", "jobset", name, "--ignore-not-found", "--wait")))
    plan.append(Command((*kubectl, "apply", "--filename=-"), json.dumps(made, indent=2)))
    if arguments.wait:
        ended = "--for=jsonpath={.status.terminalState}"
        plan.append(Command((*kubectl, "wait", ended, f"jobset/{name}", "--timeout=-1s")))
    return plan


if __name__ == "__main__":
    sys.exit(main())
