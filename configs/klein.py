"""Fine-tunes FLUX.2 [klein] 4B Base (Apache-2.0): photograph and mask as references, latents of its frozen autoencoder.

    python -m convert.from_diffusers FLUX.2-klein-base-4B runs/klein_base
    python -m uniser_jax.train --config=configs/klein.py:photos=/data/photos --workdir=runs/klein
    python -m uniser_jax.train --config=configs/klein.py:lora,photos=/data/photos --workdir=runs/klein_lora
    python -m uniser_jax.train --config=configs/klein.py:stages,image=1024,photos=/data/photos --workdir=runs/klein_1024

Hardware: 16 H100 or a v5p-128 (64 chips), at 512 px and at 1024 px; with `lora`, which trains low-rank adapters of the blocks
alone, the base frozen in bfloat16, 8 H100 or a v5p-16. That is where it fits by the compiler (docs/scale.md); nobody has run it
yet. `tiny` and `tiny,lora` are the twins for two CPU cores, of a base as small, such as tests/convert/test_docs.py makes.
Metric: PSNR gain per effect on held-out photographs (`uniser evaluate`).
"""

from ml_collections import ConfigDict

from uniser_jax import config as schema


def get_config(argument: str | None = None) -> ConfigDict:
    args = schema.parse_argument(
        argument, base="runs/klein_base", image=512, photos="samples", stages=False, tiny=False, lora=False
    )
    config = schema.defaults()
    config.steps = 20_000
    config.batch_size = 128
    config.mesh.data, config.mesh.fsdp = 1, -1

    config.model.preset = "klein-4b"
    config.model.base = args.base
    config.model.codec, config.model.conditioning = "latents", "references"
    config.model.drop_mask = 0.25
    config.model.prompt_length = 16
    config.model.remat = "full"

    config.flow.prediction = "velocity"
    config.flow.times.share_at_one = 0.0
    config.flow.times.rounded = True

    config.optim.lr = 1e-5
    config.optim.warmup_steps = 500

    config.data.photos = args.photos
    config.data.size = args.image
    config.data.workers = 8

    config.restore.steps = 4
    config.restore.shift = 3.0
    if args.lora:
        config.lora.rank, config.lora.alpha = 32, 32.0
        config.lora.targets = "dit/(double|single)/.*/kernel"
        config.optim.lr = 1e-4
        config.batch_size = 32
    if args.tiny:
        config.model.preset, config.model.compute_dtype, config.model.remat = "tiny", "float32", "none"
        config.model.prompt_length = 4
        config.steps, config.batch_size, config.data.size, config.data.workers = 100, 8, 64, 0
        config.optim.lr, config.optim.warmup_steps, config.optim.ema = 1e-3, 5, 0.9
        config.log_every, config.sample_every = 10, 0
        if args.lora:
            config.lora.rank, config.lora.alpha, config.optim.lr = 4, 4.0, 1e-2
    if args.stages:  # first half at half the side, four times as many: tokens a step stay the same
        config.data.stages = (
            (0, config.data.size // 2, 4 * config.batch_size),
            (config.steps // 2, config.data.size, config.batch_size),
        )
    return config
