"""Eight tiny runs: how fast to learn, and how long to remember gradients.

    python -m launch.sweep --config=configs/sweep.py --workdir=runs/sweep --parallel=2

One of them alone: python -m uniser_jax.train --config=configs/sweep.py --workdir=runs/one
Hardware: two CPU cores. About a minute a run. Metric: the loss, final and best; docs/launch.md shows the table.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from launch.sweeps import over, product
from uniser_jax import config as schema


def get_config(argument: str | None = None) -> ConfigDict:
    args = schema.parse_argument(argument, photos="samples", steps=20)
    config = schema.defaults()
    config.steps = args.steps
    config.batch_size = 8
    config.log_every = 2
    config.sample_every = 0

    config.model.preset = "tiny"
    config.model.patch = 12
    config.model.compute_dtype = "float32"

    config.flow.times.share_at_one = 0.9
    config.flow.t_min = 0.3

    config.optim.warmup_steps = 4
    config.optim.ema = 0.9

    config.data.photos = args.photos
    config.data.size = 48
    config.data.holdout = 0.25

    config.checkpoint.every = 10
    return config


def sweep() -> Iterator[dict[str, Any]]:
    yield from product(over("optim.lr", 3e-4, 1e-3, 3e-3, 1e-2), over("optim.b2", 0.95, 0.99))
