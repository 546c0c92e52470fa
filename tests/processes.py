"""Several real processes of one run on this machine, each with fake devices."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO

from uniser_jax import xla

ROOT = pathlib.Path(__file__).parent.parent
# A third of the time to compile, for programs that run a few times.
_QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if xla.is_known():
    _QUICK += " --xla_cpu_use_fusion_emitters=false"


def xla_flags(devices: int) -> str:
    """XLA_FLAGS of a process with so many fake devices; alike in all that share a compilation cache."""
    environ = {"XLA_FLAGS": f"{_QUICK} --xla_force_host_platform_device_count={devices}"}
    xla.prepare(environ)  # as every command does
    return environ["XLA_FLAGS"]


def run(commands: Sequence[Sequence[str]], devices: int = 4, seconds: float = 480) -> list[tuple[int | None, str]]:
    """Runs python with these arguments, one process each; returns their exit codes and standard errors.

    One command alone runs without the others' environment. A code of None: it had to be killed, for it took too long.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices)}
    shared |= {"PYTHONPATH": str(ROOT), "UNISER_LOCAL_DEVICES": str(devices)}
    if len(commands) > 1:
        shared |= {"UNISER_PROCESSES": str(len(commands)), "UNISER_COORDINATOR": f"127.0.0.1:{port}"}
    with contextlib.ExitStack() as stack:
        errors = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in commands]
        started = [
            _start(command, shared | {"UNISER_PROCESS": str(index)}, error)
            for index, (command, error) in enumerate(zip(commands, errors, strict=True))
        ]
        deadline = time.monotonic() + seconds
        try:
            while time.monotonic() < deadline and any(process.poll() is None for process in started):
                time.sleep(0.1)
            codes = [process.poll() for process in started]  # None: too late
        finally:
            for process in started:  # with its data workers, which outlive it when it is killed
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return [(code, error.seek(0) or error.read()) for code, error in zip(codes, errors, strict=True)]


def _start(command: Sequence[str], environment: dict[str, str], error: IO[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,  # gloo talks there
        stderr=error,  # no pipe: a worker that outlives its parent would hold it open
        start_new_session=True,
    )
