"""Eight fake CPU devices, a compilation cache shared by all tests, and strict numerics."""

import gc
import os
import pathlib
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from tests import processes

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {processes.xla_flags(8)}".lstrip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

from collections.abc import Callable, Iterator
from typing import Any

import jax
import pytest
from absl import flags
from jax.experimental import topologies

flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl flags


def pytest_collection_finish() -> None:
    """Compilations allocate much, and each collection walks all that jax keeps: a tenth of the time of all tests."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture
def tpu_devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Devices of a TPU topology, `tpu_devices("v5e:4x4")`, that code can be compiled for and not run on."""
    pytest.importorskip("libtpu")
    for key, value in {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():
        monkeypatch.setenv(key, value)
    # The cache takes programs for devices that are not there, and cannot give them back.
    name = "jax_persistent_cache_min_compile_time_secs"
    seconds = getattr(jax.config, name)
    jax.config.update(name, 1e9)
    yield lambda kind, **settings: topologies.get_topology_desc(platform="tpu", topology_name=kind, **settings).devices
    jax.config.update(name, seconds)
