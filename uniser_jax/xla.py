"""What XLA must be told in its environment, which it reads once: before the first device is asked for."""

import importlib.metadata
import os
from collections.abc import MutableMapping

from llvmlite import binding

_ROLLED = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling=true"
_OWN_PRODUCTS = "--xla_cpu_experimental_ynn_fusion_type=reduce"
_KNOWN = "0.10."  # of jaxlib, with that flag: XLA exits over one that it does not know


def prepare(environ: MutableMapping[str, str] = os.environ) -> None:
    """Suits programs for a CPU to a transformer; those for other devices do not change, nor what XLA_FLAGS says already.

    Loops stay rolled: the train step compiles in 0.7 of the time, and runs as fast. Where the processor has no products of
    bfloat16, YNNPACK keeps sums only, and XLA multiplies itself: with YNNPACK's products, the default, a forward pass in
    float32 takes 1.3 times as long, and a step in bfloat16 1.5 times. Of the model of `benchmarks/train_step.py` with 256
    tokens, on two cores with AVX2.
    """
    wanted = [_ROLLED]
    if _multiplies_float32_only() and importlib.metadata.version("jaxlib").startswith(_KNOWN):
        wanted.append(_OWN_PRODUCTS)
    flags = environ.get("XLA_FLAGS", "")
    missing = [flag for flag in wanted if flag.partition("=")[0] not in flags]
    environ["XLA_FLAGS"] = " ".join(filter(None, (flags, *missing)))


def _multiplies_float32_only() -> bool:
    """Whether this is an x86 processor with AVX2 and without products of bfloat16."""
    has = binding.get_host_cpu_features().get
    return bool(has("avx2") and not has("avx512bf16") and not has("amx-bf16"))
