"""Accelerators that are not here, by name, as devices to compile for: TPU pods, and hosts of NVIDIA GPUs.

    v5e:16x16    256 chips of a TPU v5e in a torus of 16 x 16
    h100:8       one host of eight H100; h100:4x8 is four of them

A TPU's compiler is libtpu, which knows all generations. A GPU's is the CUDA plugin of jax, which is told what the GPU is like.
Neither needs a driver.
"""

import importlib
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from uniser_jax.errors import reason_of
from uniser_jax.flops import CHIPS

_TPUS = ("v3", "v4", "v5e", "v5p", "v6e", "tpu7x")
_PAIRED = ("v4", "v5p")  # two cores that run as one device
# libtpu reads these when it is loaded: there is no TPU host to ask, and two compilations may run side by side.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


class GPU(NamedTuple):
    """What XLA chooses tiles, fusions and their order by.

    Args:
      kind: its `device_kind`.
      capability: compute capability, major and minor.
      cores: streaming multiprocessors.
      lanes: float32 units of each.
      shared: KiB of shared memory of each, of which a block may take all but 1.
      cache: KiB of L2.
      clock: GHz.
      bandwidth: of its memory, bytes per second.
    """

    kind: str
    capability: tuple[int, int]
    cores: int
    lanes: int
    shared: int
    cache: int
    clock: float
    bandwidth: float


# NVIDIA's data sheets and the table of compute capabilities in the CUDA programming guide; the SXM boards.
_GPUS = {
    "a100-40": GPU("NVIDIA A100-SXM4-40GB", (8, 0), 108, 64, 164, 40 * 1024, 1.41, 1.555e12),
    "a100": GPU("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 164, 40 * 1024, 1.41, 2.039e12),
    "h100": GPU("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 228, 50 * 1024, 1.98, 3.352e12),
    "h200": GPU("NVIDIA H200", (9, 0), 132, 128, 228, 50 * 1024, 1.98, 4.8e12),
    "b200": GPU("NVIDIA B200", (10, 0), 148, 128, 228, 129_536, 1.965, 7.672e12),
}


def devices_of(topology: str, slices: int = 1) -> Sequence[jax.Device]:
    """The devices of a topology, as jax would show them there.

    Args:
      topology: `v5e:16x16`, `v5p:4x4x4`: generation and chips along each direction of the torus; `h100:8`, `h100:4x8`: GPU,
        hosts and GPUs of each.
      slices: how many TPU pods, joined by the data-centre network.

    Raises:
      ValueError: if there is no such topology, or no compiler for it.
    """
    name, _, shape = topology.partition(":")
    sides = tuple(int(side) for side in shape.split("x")) if re.fullmatch(r"\d+(x\d+)*", shape) else ()
    if name in _TPUS and len(sides) > 1 and min(sides) > 0:
        return _tpus(topology, sides, slices)
    if name in _GPUS and 0 < len(sides) < 3 and min(sides) > 0:
        if slices > 1:
            raise ValueError(f"slices are of TPUs; for {slices} hosts of GPUs use {name}:{slices}x{sides[-1]}")
        return _gpus(_GPUS[name], math.prod(sides[:-1]), sides[-1])
    raise ValueError(
        f"topology {topology!r}: expected one of {', '.join(_TPUS)} and a shape, as in v5e:16x16, or one of"
        f" {', '.join(_GPUS)} with hosts and GPUs of each, as in h100:4x8"
    )


def memory(kind: str) -> float:
    """Bytes of HBM that a program may use on a `device_kind`; infinite where nobody knows.

    Of a GPU, jax's allocator takes three quarters, unless the environment says otherwise, here as in a run.
    """
    if kind not in CHIPS:
        return math.inf
    return CHIPS[kind].hbm * (gpu_share() if kind.startswith("NVIDIA") else 1)


def gpu_share() -> float:
    """The share of a GPU's memory that jax takes, from the environment as jax reads it."""
    names = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION")
    given = [os.environ[name] for name in names if os.environ.get(name)] or ["0.75"]
    try:
        return float(given[0])
    except ValueError:
        raise ValueError(f"XLA_CLIENT_MEM_FRACTION={given[0]!r} in the environment: expected a share, as 0.9") from None


def has_cudnn() -> bool:
    """Whether cuDNN is here: its attention cannot even be lowered without."""
    try:
        return bool(importlib.import_module(f"{_plugin()}._versions").cudnn_get_version())
    except (ImportError, RuntimeError):
        return False


def install(*missing: str) -> str:
    """The command that makes this environment compile for GPUs."""
    plugin = f"jax-cuda12-plugin=={jax.__version__} jax-cuda12-pjrt=={jax.__version__} nvidia-cuda-nvcc-cu12"
    return "pip install " + (" ".join(missing) or f"{plugin} nvidia-cudnn-cu12")


def target_config(gpu: GPU) -> str:
    """A GPU as XLA's `GpuTargetConfigProto`, in text."""
    limits = {
        "threads_per_warp": 32,
        "threads_per_block_limit": 1024,
        "threads_per_core_limit": 2048,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
        "shared_memory_per_block": 48 * 2**10,
        "shared_memory_per_block_optin": (gpu.shared - 1) * 2**10,
        "shared_memory_per_core": gpu.shared * 2**10,
        "core_count": gpu.cores,
        "fpus_per_core": gpu.lanes,
        "clock_rate_ghz": gpu.clock,
        "memory_bandwidth": int(gpu.bandwidth),
        "l2_cache_size": gpu.cache * 2**10,
        "device_memory_size": int(CHIPS[gpu.kind].hbm),
    }
    own = " feature_extension: ACCELERATED_FEATURES" if gpu.capability >= (9, 0) else ""  # sm_90a, sm_100a
    major, minor = gpu.capability
    return (
        "gpu_device_info {\n"
        + "".join(f"  {name}: {value}\n" for name, value in limits.items())
        + f"  cuda_compute_capability {{ major: {major} minor: {minor}{own} }}\n}}\n"
        + f'platform_name: "CUDA"\ndnn_version_info {{ major: 9 minor: 10 }}\ndevice_description_str: "{gpu.kind}"\n'
    )


def _tpus(topology: str, sides: tuple[int, ...], slices: int) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("compiling for TPUs takes their compiler, libtpu: pip install -c constraints.txt -e '.[tpu]'")
    for name, value in _NO_TPU.items():
        os.environ.setdefault(name, value)
    settings: dict[str, Any] = {"num_slices": slices}
    if topology.startswith(_PAIRED):
        settings |= {"chip_config_name": "megacore", "wrap": tuple(side % 4 == 0 for side in sides)}
    if math.prod(sides) == 1:
        settings["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **settings).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"topology {topology!r}: {reason_of(error)}") from None


def _gpus(gpu: GPU, hosts: int, each: int) -> Sequence[jax.Device]:
    if _plugin() is None:
        raise ValueError(f"compiling for GPUs takes the CUDA plugin of jax: {install()}")
    try:
        described: dict[str, Any] = {"target_config": target_config(gpu), "topology": f"1x{hosts}x{each}"}
        return topologies.get_topology_desc("gpu", "cuda", **described).devices
    except (NotImplementedError, jax.errors.JaxRuntimeError) as error:
        line = reason_of(error)
        raise ValueError(f"the CUDA plugin of jax does not compile for GPUs here ({line}); {install()}") from None


def _plugin() -> str | None:
    names = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    return next((name for name in names if importlib.util.find_spec(name)), None)
