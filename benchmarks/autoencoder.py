"""What an autoencoder costs, and what compensation gives back: on a small one, trained here for about a minute.

    python -m benchmarks.autoencoder runs/autoencoder [--autoencoder-steps 400] [--steps 400]

Real weights of FLUX.2 are not needed: an autoencoder of its class is trained on the built-in photographs, written as a base
with a random transformer, and `configs/klein.py:tiny` is trained on it. Printed for held-out photographs, in dB: what the
autoencoder alone makes of the answers (`uniser evaluate --codec-only`), and restorations without and with `photo + D(z) -
D(E(photo))`.
"""

import argparse
import dataclasses
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from convert.from_diffusers import shapes_of
from convert.mapping import flatten
from uniser_jax import config as schema
from uniser_jax.checkpoint import Slice, has_checkpoint, write_base
from uniser_jax.data.photos import Photos, open_photos, split
from uniser_jax.data.pipeline import random_crop
from uniser_jax.evaluation import benchmarks
from uniser_jax.models.dit import DiT
from uniser_jax.models.presets import preset
from uniser_jax.models.vae import VAE, VAEConfig
from uniser_jax.restore.restorer import Restorer
from uniser_jax.train import train

CONFIG = VAEConfig(block_out_channels=(16, 32, 32, 64), layers_per_block=1, latent_channels=32, norm_num_groups=8)
SIDE, BATCH, RATE = 64, 16, 2e-3


def train_autoencoder(photos: Photos, steps: int) -> Any:
    """Parameters after `steps` of the mean squared error; the statistics of latents are those of the last crops."""
    graphdef, state = nnx.split(VAE(CONFIG, rngs=nnx.Rngs(params=jax.random.key(0))))
    params = nnx.to_pure_dict(state)
    statistics = params.pop("statistics")
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(RATE, steps)))
    opt_state = optimizer.init(params)

    def error(params: Any, images: Any) -> Any:
        model: Any = nnx.merge(graphdef, params | {"statistics": statistics})
        return jnp.mean((model.decode(model.encode(images)[0]) - images) ** 2)

    @jax.jit
    def step(params: Any, opt_state: Any, images: Any) -> Any:
        loss, gradient = jax.value_and_grad(error)(params, images)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    rng = np.random.default_rng(0)
    for number in range(1, steps + 1):
        crops = [random_crop(rng, photos[int(rng.integers(len(photos)))], SIDE) for _ in range(BATCH)]
        images = jnp.asarray(np.stack(crops) / np.float32(127.5) - 1)
        params, opt_state, loss = step(params, opt_state, images)
        if number % 50 == 0:
            sys.stdout.write(f"autoencoder {number}: {10 * np.log10(4 / float(loss)):.1f} dB\n")
    model: Any = nnx.merge(graphdef, params | {"statistics": statistics})
    tokens = model.pack(model.encode(images)[0])  # with mean 0 and variance 1 as yet
    found = {"mean": tokens.mean((0, 1)), "variance": tokens.var((0, 1)), "batches": jnp.asarray(1)}
    return params | {"statistics": jax.tree.map(lambda new, old: new.astype(old.dtype), found, statistics)}


def write(folder: pathlib.Path, autoencoder: Any) -> None:
    """A base as `convert.from_diffusers` writes it, with a random transformer."""
    size = dataclasses.replace(preset("tiny"), in_channels=CONFIG.token_channels, out_channels=CONFIG.token_channels)
    dit = nnx.to_pure_dict(nnx.state(DiT(size, rngs=nnx.Rngs(params=jax.random.key(1)))))
    items: dict[str, Any] = {"params": {"dit": dit}, "vae": autoencoder}
    assert jax.tree.map(jnp.shape, items["params"]) == jax.tree.map(jnp.shape, shapes_of(size))
    slices = (
        Slice(item, path, (...,), np.asarray(leaf))
        for item, tree in items.items()
        for path, leaf in flatten(tree).items()
    )
    sizes: dict[str, Any] = {"params": size, "vae": CONFIG}
    record = {item: {"dtype": "float32", "config": dataclasses.asdict(config)} for item, config in sizes.items()}
    write_base(folder, items, slices, {"base": record})


def measure(run: pathlib.Path, photos: Photos, count: int) -> None:
    """Prints the table."""
    restorers = {name: Restorer.from_checkpoint(run, compensate=name == "with") for name in ("without", "with")}
    items = list(benchmarks.rendered_edits(photos, SIDE, count, 7))
    ceiling = benchmarks.ceiling(restorers["with"].reconstruct, items)
    scores = {name: benchmarks.evaluate(restorer, items) for name, restorer in restorers.items()}
    out = sys.stdout.write
    out("| effect | input | codec only | restored, as decoded | restored, compensated |\n|---|--:|--:|--:|--:|\n")
    for effect, bound in ceiling.items():
        row = [scores[name][effect].mean()["psnr_restored"] for name in ("without", "with")]
        figures = (bound.mean()["psnr_input"], bound.mean()["psnr_restored"], *row)
        out(f"| {effect} | " + " | ".join(f"{value:.2f}" for value in figures) + " |\n")


def main() -> int:
    """Trains what is not there yet, and measures."""
    parser = argparse.ArgumentParser("benchmarks.autoencoder", description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--autoencoder-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=400, help="of the transformer")
    parser.add_argument("--count", type=int, default=8, help="photographs per effect")
    arguments = parser.parse_args()
    base, run = arguments.folder / "base", arguments.folder / "run"
    photos = open_photos("samples", SIDE)
    config = schema.read(f"configs/klein.py:tiny,base={base}", [f"--config.steps={arguments.steps}"])
    if not has_checkpoint(base):
        write(base, train_autoencoder(split(photos, config.data.holdout, "train"), arguments.autoencoder_steps))
    train(config, run)
    measure(run, split(photos, config.data.holdout, "holdout"), arguments.count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
