"""Joins the processes of one run, as the environment of a launcher describes them.

UNISER_PROCESSES      how many there must be; unset, a process trains alone
UNISER_PROCESS        which of them this is, and
UNISER_COORDINATOR    where process 0 listens, host:port; both unset where jax finds them: TPU VMs, GKE, Slurm
UNISER_LOCAL_DEVICES  how many devices each must see; unset, any number
UNISER_JOIN_SECONDS   how long to wait for the others, 300 by default
"""

import os
import socket
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging


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


def host() -> str:
    """The name of this machine, for messages."""
    return socket.gethostname()


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
