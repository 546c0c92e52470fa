"""What XLA is told in its environment."""

import importlib.metadata

import pytest
from llvmlite import binding

from uniser_jax import xla

ROLLED = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling=true"
OWN = "--xla_cpu_experimental_ynn_fusion_type=reduce"
OTHERS = "--xla_cpu_experimental_ynn_fusion_type=dot"


@pytest.mark.parametrize(
    ("given", "features", "jaxlib", "expected"),
    [
        (None, {"avx2": True, "avx512bf16": False}, "0.10.2", f"{ROLLED} {OWN}"),
        (None, {"avx2": True, "avx512bf16": True}, "0.10.2", ROLLED),
        (None, {"neon": True}, "0.10.2", ROLLED),
        (None, {"avx2": True}, "0.11.0", ROLLED),  # whose flags nobody has looked at
        ("--xla_a=1", {}, "0.10.2", f"--xla_a=1 {ROLLED}"),
        ("--xla_backend_extra_options=mine=1", {}, "0.10.2", "--xla_backend_extra_options=mine=1"),
        (f"{ROLLED} {OTHERS}", {"avx2": True}, "0.10.2", f"{ROLLED} {OTHERS}"),
    ],
)
def test_flags_are_added_and_none_is_changed(
    given: str | None, features: dict[str, bool], jaxlib: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binding, "get_host_cpu_features", lambda: features)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: jaxlib)
    environ = {} if given is None else {"XLA_FLAGS": given}
    for _ in range(2):
        xla.prepare(environ)
        assert environ == {"XLA_FLAGS": expected}
