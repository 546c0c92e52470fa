"""How many pairs a second a host must deliver, and how many cores render them: arithmetic, no measurement of a chip.

    python benchmarks/feeding.py --rate 256=89 512=72

  pairs per second of a host = chips * peak / (FLOPs of forward and backward pass / utilisation + FLOPs of encoding / 0.3)

FLOPs are counted from the real step. `--rate` is what one core here renders at a size (benchmarks/effects.py). Utilisations are
those that the best published runs of transformers of a billion parameters reach; small models reach less, and need less.
"""

import argparse
import sys

from uniser_jax import aot, flops, optim
from uniser_jax import config as schema
from uniser_jax import mesh as meshes
from uniser_jax.flops import CHIPS
from uniser_jax.step import build_network, state_shapes

# name: device_kind, chips of a host, vCPUs of a host, utilisation assumed
HOSTS = {
    "v5e, 8 chips": ("TPU v5 lite", 8, 224, 0.50),
    "v5p, 4 chips": ("TPU v5p", 4, 208, 0.55),
    "v6e, 8 chips": ("TPU v6 lite", 8, 180, 0.45),
    "8 H100": ("NVIDIA H100 80GB HBM3", 8, 208, 0.45),
}
RUNS = (
    *((f"configs/pixel.py:size={size},image={image}", image) for size in ("s", "b", "l", "xl") for image in (256, 512)),
    ("configs/klein.py:image=512", 512),
    ("configs/klein.py:image=1024", 1024),
)
_ENCODING = 0.3  # utilisation of the autoencoder's convolutions


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rate", nargs="*", default=[], help="SIZE=pairs per second of one core")
    rates = {int(size): float(rate) for size, _, rate in (text.partition("=") for text in parser.parse_args().rate)}
    sys.stdout.write(
        "| run | TFLOP per pair | "
        + " | ".join(f"{name}, {cpus} vCPU" for name, (_, _, cpus, _) in HOSTS.items())
        + " |\n"
    )
    sys.stdout.write("|---|--:|" + "--:|" * len(HOSTS) + "\n")
    for path, size in RUNS:
        model, encode = per_pair(path)
        cells = []
        for kind, chips, _, share in HOSTS.values():
            pairs = chips * CHIPS[kind].peak / (model / share + encode / _ENCODING)
            cells.append(f"{pairs:,.0f}" + (f" ({pairs / rates[size]:,.1f})" if size in rates else ""))
        sys.stdout.write(f"| `{path}` | {(model + encode) / 1e12:.3g} | " + " | ".join(cells) + " |\n")


def per_pair(path: str) -> tuple[float, float]:
    """FLOPs of one training pair of a config: of its forward and backward pass, and of its encoding to latents."""
    config = schema.read(path)
    mesh = meshes.make_mesh({})
    network, optimizer = build_network(config.model), optim.optimizer(config.optim, config.steps)
    shapes = state_shapes(network, optimizer, mesh)
    counted = flops.of_step(config, shapes, aot.batch_shapes(config, mesh), aot.latents_of(config, mesh))
    return counted.model / config.batch_size, counted.encode / config.batch_size


if __name__ == "__main__":
    main()
