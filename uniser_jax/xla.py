"""What jax and XLA must be told in their environment, which they read once: before the first device is asked for."""

import importlib.metadata
import importlib.util
import os
import pathlib
import sys
from collections.abc import Mapping, MutableMapping

from llvmlite import binding

_ROLLED = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling=true"
_OWN_PRODUCTS = "--xla_cpu_experimental_ynn_fusion_type=reduce"
_CHIPS = ("accel*", "vfio/[0-9]*", "nvidia*", "dxg", "kfd")  # in /dev: TPUs, GPUs, those of WSL2, AMD's
_KNOWN = "0.10."  # of jaxlib


def prepare(environ: MutableMapping[str, str] = os.environ) -> None:
    """Suits programs for a CPU to a transformer; those for other devices do not change, nor what XLA_FLAGS says already.

    Loops stay rolled: the train step compiles in 0.7 of the time, and runs as fast. Where the processor has no products of
    bfloat16, YNNPACK keeps sums only, and XLA multiplies itself: with YNNPACK's products, the default, a forward pass in
    float32 takes 1.3 times as long, and a step in bfloat16 1.5 times. Of the model of `benchmarks/train_step.py` with 256
    tokens, on two cores with AVX2.

    Where libtpu is installed, as to compile for TPUs, and there is neither TPU nor GPU, jax is told so: libtpu would start, and
    say in seven lines that it fails.
    """
    if importlib.util.find_spec("libtpu") and not _has_accelerator(environ):
        environ["JAX_PLATFORMS"] = "cpu"
        if "jax" in sys.modules:  # it has read its environment
            sys.modules["jax"].config.update("jax_platforms", "cpu")
    wanted = [_ROLLED]
    if _multiplies_float32_only() and is_known():
        wanted.append(_OWN_PRODUCTS)
    flags = environ.get("XLA_FLAGS", "")
    missing = [flag for flag in wanted if flag.partition("=")[0] not in flags]
    environ["XLA_FLAGS"] = " ".join(filter(None, (flags, *missing)))


def is_known() -> bool:
    """Whether the flags of this jaxlib's XLA are those that were tried: it exits over one that it does not know."""
    return importlib.metadata.version("jaxlib").startswith(_KNOWN)


def _has_accelerator(environ: Mapping[str, str], dev: pathlib.Path = pathlib.Path("/dev")) -> bool:
    """Whether there may be another device than the CPU, or somebody has said what jax shall take."""
    named = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_FORCE_TPU_INIT")
    told = {name for name in environ if name in named or name.startswith("TPU_")}
    told -= {"TPU_SKIP_MDS_QUERY", "TPU_LIBRARY_PATH"}  # jax and libtpu set these when they are imported
    return bool(told) or any(any(dev.glob(chip)) for chip in _CHIPS)


def _multiplies_float32_only() -> bool:
    """Whether this is an x86 processor with AVX2 and without products of bfloat16."""
    has = binding.get_host_cpu_features().get
    return bool(has("avx2") and not has("avx512bf16") and not has("amx-bf16"))
