"""AdamW with warm-up and cosine decay, global-norm clipping, and the exponential moving average of parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float32, Int32
from ml_collections import ConfigDict


def schedule(optim: ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate against the optimizer step: linear warm-up, then cosine down to `final_lr` of the peak."""
    warmup = min(optim.warmup_steps, max(steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(0.0, optim.lr, warmup, max(steps, warmup + 1), optim.lr * optim.final_lr)


def optimizer(optim: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Clip, then AdamW (Loshchilov & Hutter 2019); only kernels decay, not norms and embeddings."""
    return optax.chain(
        optax.clip_by_global_norm(optim.clip_norm),
        optax.adamw(
            schedule(optim, steps), optim.b1, optim.b2, optim.eps, weight_decay=optim.weight_decay, mask=decayed
        ),
    )


def decayed(params: Any) -> Any:
    """True for the leaves that weight decay shrinks: those named `kernel`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def ema_update(ema: Any, params: Any, decay: float, step: Int32[Any, ""]) -> Any:
    """Moves the average towards `params`; young averages move faster, so that the zero-initialised start fades.

    The decay at step n is min(decay, (1 + n) / (10 + n)), as in TensorFlow's ExponentialMovingAverage(num_updates=n).
    """
    n = step.astype(jnp.float32)
    rate: Float32[Any, ""] = 1 - jnp.minimum(decay, (1 + n) / (10 + n))
    return jax.tree.map(lambda e, p: e + rate * (p - e), ema, params)
