"""From scratch in pixel space, at every size.

    python -m uniser_jax.train --config=configs/pixel.py:size=b,photos=/data/photos --workdir=runs/pixel_b

Hardware: size=s one GPU or TPU chip of 16 GB; b, l 8 chips; xl a v5e-64 or 8 H100. Metric: PSNR gain per effect on held-out
photographs (`uniser evaluate`).
"""

from ml_collections import ConfigDict

from uniser_jax import config as schema

# batch size, learning rate, steps and remat policy by preset
_SIZES = {
    "tiny": (64, 1e-3, 50_000, "none"),
    "s": (256, 4e-4, 200_000, "dots"),
    "b": (256, 2e-4, 300_000, "dots"),
    "l": (256, 1.5e-4, 400_000, "dots"),
    "xl": (256, 1e-4, 400_000, "full"),
}


def get_config(argument: str | None = None) -> ConfigDict:
    args = schema.parse_argument(argument, size="s", image=256, patch=16, photos="samples", debug=False)
    if args.size not in _SIZES:
        raise ValueError(f"size={args.size!r}: expected one of {', '.join(_SIZES)}")
    config = schema.defaults()
    config.batch_size, config.optim.lr, config.steps, config.model.remat = _SIZES[args.size]
    config.model.preset = args.size
    config.model.patch = args.patch
    config.mesh.data, config.mesh.fsdp = (1, -1) if args.size in ("l", "xl") else (-1, 1)
    config.data.photos = args.photos
    config.data.size = args.image
    config.data.workers = 8
    if args.debug:  # a few steps on any laptop
        config.batch_size, config.steps, config.log_every, config.sample_every = 8, 20, 5, 10
        config.data.workers = 0
    return config
