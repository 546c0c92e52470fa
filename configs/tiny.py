"""The smallest real run: 1 M parameters, 96 px, skimage's sample photographs.

    python -m uniser_jax.train --config=configs/tiny.py --workdir=runs/tiny

Hardware: two CPU cores. About 5 minutes. Metric: PSNR gain on held-out photographs, mean over effects.
"""

from ml_collections import ConfigDict

from uniser_jax import config as schema


def get_config(argument: str | None = None) -> ConfigDict:
    args = schema.parse_argument(argument, photos="samples", steps=3_000, image=96)
    config = schema.defaults()
    config.steps = args.steps
    config.batch_size = 16
    config.log_every = 20
    config.sample_every = 1_000

    config.model.preset = "tiny"
    config.model.patch = 12  # detail comes from the photograph, by local affine maps (restore.direct)
    config.model.compute_dtype = "float32"

    config.flow.times.share_at_one = 0.9  # a single step must restore after minutes of training
    config.flow.t_min = 0.3

    config.optim.lr = 2e-3
    config.optim.warmup_steps = 100
    config.optim.ema = 0.99

    config.data.photos = args.photos
    config.data.size = args.image
    config.data.holdout = 0.25
    config.data.colour = 1.0  # a dozen photographs must stand for all others
    config.data.smallest = 0.15

    config.restore.direct = 0.0

    config.checkpoint.every = 500
    return config
