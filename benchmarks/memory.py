"""Peak memory of converting a base: it must stay under twice the largest tensor plus 1 GB, whatever the size of the model.

    python -m benchmarks.memory --preset=xl

Makes a random checkpoint in diffusers' layout in a temporary folder (2.8 GB for xl in bfloat16, twice that for the
result) and converts it in a process of its own.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import ml_dtypes
import numpy as np

from convert import configs, from_diffusers, mapping, tensorfile
from uniser_jax.models.presets import PRESETS, preset

_DTYPE = np.dtype(ml_dtypes.bfloat16)


def make(folder: pathlib.Path, size: str) -> dict[str, tuple[int, ...]]:
    """Writes a transformer folder with random weights; returns the shapes."""
    config = preset(size)
    shapes = {t.key: t.shape for t in mapping.plan(mapping.TRANSFORMER, from_diffusers.shapes_of(config)["dit"])}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(configs.to_diffusers(config)))

    def values(key: str) -> np.ndarray:
        seed = np.frombuffer(key.encode(), np.uint8)
        row = np.random.default_rng(seed).normal(size=(1, *shapes[key][1:])).astype(_DTYPE)
        return np.broadcast_to(row, shapes[key])  # a row of noise: it is the size that counts

    name = folder / "diffusion_pytorch_model.safetensors"
    tensorfile.write(name, {key: (_DTYPE, shape) for key, shape in shapes.items()}, values)
    return shapes


def main() -> None:
    """Prints one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="xl", choices=PRESETS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source, out = pathlib.Path(scratch, "in"), pathlib.Path(scratch, "out")
        shapes = make(source, arguments.preset)
        start = time.monotonic()
        command = [sys.executable, "-m", "convert.from_diffusers", str(source), str(out)]
        subprocess.run(command, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    largest = max(int(np.prod(shape)) for shape in shapes.values()) * _DTYPE.itemsize
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    sys.stdout.write(
        f"{arguments.preset}: {count / 1e9:.2f} B parameters, largest tensor {largest / 1e6:.0f} MB, {seconds:.0f} s,"
        f" peak {peak / 1e9:.2f} GB, bound {(2 * largest + 1e9) / 1e9:.2f} GB\n"
    )


if __name__ == "__main__":
    main()
