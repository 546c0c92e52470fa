"""What all launchers share: their options, and the command of the trainer, which they pass through untouched."""

import argparse
import dataclasses
import hashlib
import os
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from ml_collections import ConfigDict

from uniser_jax import status

STOPPED = 75  # EX_TEMPFAIL: stopped before the last step; the same command continues
MISTAKE = 2  # of the caller's
DIVERGED = 3  # the trainer's word for it: the same steps would follow the same checkpoint
FINAL = (MISTAKE, DIVERGED)  # starting again does not help
_LABEL = 40  # characters of a name: Kubernetes allows 63 for what JobSet makes of it


@dataclasses.dataclass(frozen=True)
class Command:
    """A program to run.

    Args:
      argv: its arguments.
      text: its standard input, such as a manifest.
      may_fail: whether its failure is none, as when nothing is there to delete.
    """

    argv: tuple[str, ...]
    text: str | None = None
    may_fail: bool = False

    def __str__(self) -> str:
        line = shlex.join(self.argv) + (" || true" if self.may_fail else "")
        return line if self.text is None else f"{line} <<'END'\n{self.text.rstrip()}\nEND"

    def run(self, **options: Any) -> subprocess.CompletedProcess:
        """Runs it; a failure that matters raises CalledProcessError.

        Raises:
          ValueError: if there is no such program here.
        """
        try:
            return subprocess.run(self.argv, input=self.text, text=True, check=not self.may_fail, **options)
        except FileNotFoundError:
            raise ValueError(f"{self.argv[0]} is not installed here; --dry-run shows what it would be asked") from None


class Devices(NamedTuple):
    """What a launcher knows of the devices of all hosts: tpu, gpu or cpu, how many, and in how many slices."""

    platform: str
    number: int
    slices: int = 1


class _Parser(argparse.ArgumentParser):
    """Raises ValueError where argparse would print the usage and exit: also a sweep parses, for all its runs."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """An argument parser with the options of every launcher; a mistake is a ValueError."""
    made = _Parser(
        name,
        description=description,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,  # --con must not become --config
        epilog="What is not named here goes to the trainer as it is: --config.optim.lr=3e-4",
    )
    made.add_argument("--config", help="as for uniser_jax.train")
    made.add_argument("--workdir", help="the run folder, on a disk that all hosts share")
    made.add_argument("--name", help="of the job (default: from the run folder)")
    made.add_argument(
        "--restarts", type=int, default=10, help="how often to start again; docs/launch.md says what counts where"
    )
    made.add_argument("--grace", type=int, default=60, help="seconds to save in after a SIGTERM")
    made.add_argument("--dry-run", action="store_true", help="print what would run, and run nothing")
    return made


def parse(made: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Parses a launcher's own options; returns them and the overrides for the trainer, in their order.

    Raises:
      ValueError: for an argument that neither knows, or a value that does not fit.
    """
    arguments, overrides = made.parse_known_args(argv)
    for override in overrides:
        if not override.startswith("--config."):
            raise ValueError(f"unexpected argument {override!r}; overrides look like --config.optim.lr=3e-4")
    return arguments, overrides


def at_least_one(arguments: argparse.Namespace, *options: str) -> None:
    """Checks numbers; an option that is not given is none.

    Raises:
      ValueError: for one below 1.
    """
    for option in options:
        value = getattr(arguments, option.replace("-", "_"))
        if value is not None and value < 1:
            raise ValueError(f"--{option}={value}: expected at least 1")


def check(
    arguments: argparse.Namespace, overrides: Sequence[str], devices: Devices | None = None, shared: bool = True
) -> None:
    """Resolves the config here, before machines are asked for, and checks that it can run there.

    Args:
      arguments: of the launcher.
      overrides: for the trainer.
      devices: over which batch, width, heads and tokens must spread, where they are known; none is asked for.
      shared: whether the run folder must be one that hosts can share.

    Raises:
      ValueError: for what the trainer would refuse, or a relative run folder.
    """
    missing = [f"--{option}" for option in ("config", "workdir") if getattr(arguments, option) is None]
    if missing:
        raise ValueError(f"the following arguments are required: {', '.join(missing)}")
    from uniser_jax import config as schema

    config = schema.read(arguments.config, overrides)
    if shared and not pathlib.PurePath(arguments.workdir).is_absolute():
        mount = "mount the bucket and " if "://" in arguments.workdir else ""
        raise ValueError(f"--workdir={arguments.workdir}: {mount}give an absolute path on a disk that all hosts share")
    status.check_folder(arguments.workdir)
    if devices:
        _check_spread(config, devices)


def _check_spread(config: ConfigDict, devices: Devices) -> None:
    """Starts no device, nor what does, such as orbax: this process may be about to start those that need them."""
    from jax.sharding import AbstractMesh

    from uniser_jax import mesh, pretrained, step

    sizes = mesh.sizes_of(config.mesh.to_dict(), devices.number, devices.slices)
    latents = None
    if config.model.codec == "latents":
        parts = status.read_record(config.model.base).get("base", {})  # of a base that is not here FLUX.2's
        latents = pretrained.latent_shapes(pretrained.vae_config(parts.get("vae", {}).get("config", {})))
    step.check(config, AbstractMesh(tuple(sizes.values()), tuple(sizes)), latents, devices.platform)


def trainer(arguments: argparse.Namespace, overrides: Sequence[str]) -> list[str]:
    """The trainer's own arguments."""
    return [f"--config={arguments.config}", f"--workdir={arguments.workdir}", *overrides]


def worker(arguments: argparse.Namespace, overrides: Sequence[str], python: str, restarts: int) -> list[str]:
    """The command on each host: the local launcher with one process, which the environment tells of the others."""
    policy = [f"--restarts={restarts}", f"--grace={arguments.grace}"]
    return [python, "-m", "launch.local", *policy, *trainer(arguments, overrides)]


def name_of(arguments: argparse.Namespace) -> str:
    """A name that Kubernetes, Slurm and gcloud accept: the given one, or one made from the run folder, always the same.

    Raises:
      ValueError: if the given one does not fit.
    """
    return made_name("run", arguments.workdir) if arguments.name is None else _checked(arguments.name)


def made_name(prefix: str, workdir: str | os.PathLike) -> str:
    """The prefix, what can be read of a run folder, and a digest of its path, which no other folder has.

    Raises:
      ValueError: if the prefix is no name.
    """
    folder = os.path.abspath(workdir)
    digest = hashlib.sha256(folder.encode()).hexdigest()[:8]
    readable = re.sub("[^a-z0-9]+", "-", pathlib.Path(folder).name.lower()).strip("-")
    return f"{_checked(prefix)}-{readable}"[: _LABEL - len(digest) - 1].rstrip("-") + f"-{digest}"


def _checked(name: str) -> str:
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise ValueError(f"--name={name}: expected at most {_LABEL} of a-z, 0-9 and -, a letter first")
    return name


def run_all(commands: Sequence[Command], dry_run: bool) -> None:
    """Runs commands one after the other up to the first that fails, or prints them."""
    for command in commands:
        print(command, flush=True)
        if not dry_run:
            command.run()


def launch(name: str, main: Callable[[], int]) -> int:
    """Turns the errors of a launcher into one line and an exit code."""
    try:
        return main()
    except ValueError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return MISTAKE
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"{name}: {error.cmd[0]} failed with exit code {error.returncode}\n")
        return 1
