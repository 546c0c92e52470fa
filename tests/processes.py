"""Several real processes of one run on this machine, each with fake devices."""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parent.parent


def run(commands: Sequence[Sequence[str]], devices: int = 4, seconds: float = 240) -> list[tuple[int, str]]:
    """Runs python with these arguments, one process each; returns their exit codes and standard errors.

    One command alone runs without the others' environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices}"
    shared = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    if len(commands) > 1:
        shared |= {"UNISER_PROCESSES": str(len(commands)), "UNISER_COORDINATOR": f"127.0.0.1:{port}"}
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | shared | {"UNISER_PROCESS": str(index)},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,  # gloo talks there
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, command in enumerate(commands)
    ]
    try:
        errors = [process.communicate(timeout=seconds)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, error) for process, error in zip(started, errors, strict=True)]
