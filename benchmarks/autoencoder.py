"""What an autoencoder costs, and what compensation gives back: on a small one, trained here on the built-in photographs.

    python -m benchmarks.autoencoder [--steps 600]

It is of FLUX.2's class, much smaller and with tokens of 8 px; the real weights are not needed. For held-out photographs, in
dB: a perfect network's restoration D(E(target)), which is what `uniser evaluate --codec-only` reports, and the same with
what the autoencoder loses of the photograph given back, photo + D(E(target)) - D(E(photo)).
"""

import argparse
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from uniser_jax.data.photos import Photos, open_photos, split
from uniser_jax.data.pipeline import random_crop
from uniser_jax.evaluation import benchmarks
from uniser_jax.evaluation.metrics import psnr
from uniser_jax.models import vae
from uniser_jax.models.codec import LatentCodec
from uniser_jax.models.vae import VAE, VAEConfig
from uniser_jax.step import to_float, to_uint8

CONFIG = VAEConfig(block_out_channels=(16, 16, 32), layers_per_block=1, latent_channels=32, norm_num_groups=8)
SIDE, CROP, BATCH, RATE, HOLDOUT = 64, 32, 16, 3e-3, 0.1


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
        crops = [random_crop(rng, photos[int(rng.integers(len(photos)))], CROP) for _ in range(BATCH)]
        images = to_float(np.stack(crops))
        params, opt_state, loss = step(params, opt_state, images)
        if number % 50 == 0:
            sys.stdout.write(f"autoencoder {number}: {10 * np.log10(4 / float(loss)):.1f} dB\n")
    model: Any = nnx.merge(graphdef, params | {"statistics": statistics})
    tokens = model.pack(model.encode(images)[0])  # with mean 0 and variance 1 as yet
    found = {"mean": tokens.mean((0, 1)), "variance": tokens.var((0, 1)), "batches": jnp.asarray(1)}
    return params | {"statistics": jax.tree.map(lambda new, old: new.astype(old.dtype), found, statistics)}


def measure(codec: LatentCodec, photos: Photos, count: int) -> None:
    """Prints the table."""
    through = jax.jit(lambda images: codec.decode(codec.encode(images)))

    def reconstruct(photo: np.ndarray) -> np.ndarray:
        return np.asarray(through(to_float(photo[None])))[0]

    def levels(image: np.ndarray) -> np.ndarray:
        return np.asarray(to_uint8(image))

    items = list(benchmarks.rendered_edits(photos, SIDE, count, 7))
    bound = benchmarks.ceiling(lambda photo: levels(reconstruct(photo)), items)
    sys.stdout.write("| effect | input | perfect, as decoded | perfect, compensated |\n|---|--:|--:|--:|\n")
    for effect, scores in bound.items():
        gains = [
            psnr(
                item.target,
                levels(to_float(item.input) + reconstruct(item.target) - reconstruct(item.input)),
            )
            for item in items
            if item.effect == effect
        ]
        mean = scores.mean()
        sys.stdout.write(
            f"| {effect} | {mean['psnr_input']:.1f} | {mean['psnr_restored']:.1f} | {np.mean(gains):.1f} |\n"
        )


def main() -> int:
    """Trains and measures."""
    parser = argparse.ArgumentParser("benchmarks.autoencoder", description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--count", type=int, default=8, help="photographs per effect")
    arguments = parser.parse_args()
    ours, others = split(open_photos("samples", SIDE), HOLDOUT)
    params = train_autoencoder(ours, arguments.steps)
    measure(LatentCodec(CONFIG, vae.abstract(CONFIG)[0], params), others, arguments.count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
