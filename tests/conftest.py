"""Eight fake CPU devices, a compilation cache shared by all tests, and strict numerics."""

import os
import pathlib
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from absl import flags

flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl flags
