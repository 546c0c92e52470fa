"""Joins the processes of one run, as the environment of a launcher describes them, and checks that they are of one mind.

UNISER_PROCESSES      how many there must be; unset, a process trains alone
UNISER_PROCESS        which of them this is, and
UNISER_COORDINATOR    where process 0 listens, host:port; both unset where jax finds them: TPU VMs, GKE, Slurm
UNISER_LOCAL_DEVICES  how many devices each must see; unset, any number
UNISER_JOIN_SECONDS   how long to wait for the others, 300 by default
"""

import collections
import hashlib
import os
import pathlib
import secrets
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from uniser_jax.errors import listed

_NAME = 64  # bytes of a host's name that travel
_SECONDS_TO_SEE = 10  # a file that another host has written
_SECONDS_TO_FOLLOW = 3  # the others, where all end alike


def join(environ: Mapping[str, str] = os.environ) -> None:
    """Connects to the other processes; without UNISER_PROCESSES it does nothing. Call it before any device is touched.

    If not all come in time, jax ends this process with a fatal message: the launcher starts all of them again.

    Raises:
      ValueError: if there are other processes or devices than the launcher promised: part of a pod must not train.
    """
    if "UNISER_PROCESSES" in environ:
        _connect(environ, int(environ["UNISER_PROCESSES"]))
    devices = environ.get("UNISER_LOCAL_DEVICES")
    if devices is not None and jax.local_device_count() != int(devices):
        raise ValueError(f"{host()} sees {jax.local_device_count()} devices and was promised {devices}")


def agree(facts: Mapping[str, str]) -> None:
    """Checks that a few texts, such as the config, are the same on all processes; every one of them must call it.

    A pod whose hosts disagree trains without an error, on a mixture that no one has asked for.

    Args:
      facts: by what to call them in the message; the same names in the same order everywhere.

    Raises:
      ValueError: the same line on every process, which says what differs, and where.
    """
    if jax.process_count() == 1:
        return
    name = np.frombuffer(host().encode()[:_NAME].ljust(_NAME, b"\0"), np.uint8)
    digests = [np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in facts.values()]
    names, found = multihost_utils.process_allgather((name, np.stack(digests)))
    where = [f"process {index} on {bytes(one).rstrip(bytes(1)).decode()}" for index, one in enumerate(names)]
    odd = {fact: _odd([bytes(one) for one in found[:, place]]) for place, fact in enumerate(facts)}
    differs = [f"{fact} of {listed([where[one] for one in those])}" for fact, those in odd.items() if those]
    if differs:
        raise ValueError(f"not all {len(names)} processes start alike: other than most is the {'; the '.join(differs)}")


def anywhere(here: bool) -> bool:
    """Whether something is so on any process; every one of them must call it."""
    return here if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.array(here))))


def largest(value: float) -> tuple[float, int]:
    """The largest of all processes' values, and whose it is; every one of them must call it."""
    if jax.process_count() == 1:
        return value, 0
    values = multihost_utils.process_allgather(np.float32(value))
    process = int(np.argmax(values))
    return float(values[process]), process


def share(folder: pathlib.Path) -> None:
    """Checks that a folder is one and the same for all processes; every one of them must call it.

    Without it a run would train up to its first checkpoint, of which each host wrote a part that the others never see.

    Raises:
      ValueError: the same line on every process, if some do not see what process 0 writes there.
    """
    if jax.process_count() == 1:
        return
    token = multihost_utils.broadcast_one_to_all(np.frombuffer(secrets.token_bytes(8), np.uint8))
    probe = folder / f".shared_{bytes(token).hex()}"
    if jax.process_index() == 0:
        probe.write_bytes(b"\n")
    anywhere(False)  # waits until it is there
    deadline = time.monotonic() + _SECONDS_TO_SEE
    while not probe.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    blind = np.flatnonzero(multihost_utils.process_allgather(np.array(not probe.exists()))).tolist()
    if jax.process_index() == 0:
        probe.unlink()
    if blind:
        those = listed([f"process {index}" for index in blind])
        raise ValueError(
            f"--workdir {folder} is not one folder for all: {those} cannot see what process 0 writes there"
        )


def leave(code: int) -> int:
    """The exit code of a process that fails or is interrupted; one of several ends here, or would wait minutes for the others.

    Process 0 a little later than others that end alike: without it jax aborts them, and their codes are lost.
    """
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stderr.flush()
        if jax.process_index() == 0:
            time.sleep(_SECONDS_TO_FOLLOW)
        os._exit(code)
    return code


def host() -> str:
    """The name of this machine, for messages."""
    return socket.gethostname()


def _odd(digests: list[bytes]) -> list[int]:
    """Where a digest is not the most frequent one; of two equally frequent ones the first counts."""
    usual = collections.Counter(digests).most_common(1)[0][0]
    return [index for index, digest in enumerate(digests) if digest != usual]


def _connect(environ: Mapping[str, str], processes: int) -> None:
    seconds = int(environ.get("UNISER_JOIN_SECONDS", "300"))
    given: dict[str, Any] = {}
    if "UNISER_PROCESS" in environ:
        given = {
            "coordinator_address": environ["UNISER_COORDINATOR"],
            "num_processes": processes,
            "process_id": int(environ["UNISER_PROCESS"]),
            "cluster_detection_method": "deactivate",
        }
    # The log of a missing host lacks this line.
    logging.info("%s waits up to %d s for all %d processes", host(), seconds, processes)
    jax.distributed.initialize(**given, initialization_timeout=seconds)
    if jax.process_count() != processes:
        raise ValueError(f"{jax.process_count()} processes joined and the launcher promised {processes}")
    logging.info("%s is process %d of %d", host(), jax.process_index(), processes)
