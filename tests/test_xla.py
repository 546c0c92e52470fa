"""What XLA is told in its environment."""

import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys

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
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    environ = {} if given is None else {"XLA_FLAGS": given}
    for _ in range(2):
        xla.prepare(environ)
        assert environ == {"XLA_FLAGS": expected}


@pytest.mark.parametrize(
    ("there", "told", "expected"),
    [
        ([], {}, False),
        ([], {"TPU_SKIP_MDS_QUERY": "1", "TPU_LIBRARY_PATH": "libtpu.so"}, False),
        (["vfio/vfio"], {}, False),  # the driver alone
        (["vfio/0"], {}, True),
        (["accel3"], {}, True),
        (["nvidiactl"], {}, True),
        ([], {"TPU_WORKER_ID": "0"}, True),
        ([], {"JAX_PLATFORMS": ""}, True),
    ],
)
def test_where_there_may_be_a_chip_nothing_is_said(there, told, expected, tmp_path: pathlib.Path) -> None:
    for name in there:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert xla._has_accelerator(told, tmp_path) == expected


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
@pytest.mark.parametrize("first", ["jax", "os"])
def test_libtpu_does_not_start_where_there_is_no_tpu(first: str) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_PLATFORM", "TPU_"))}
    if xla._has_accelerator(environ):
        pytest.skip("there may be one")
    code = f"import {first}; from uniser_jax import xla; xla.prepare(); import jax; print(jax.default_backend())"
    found = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("cpu\n", "")
