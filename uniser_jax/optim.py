"""Optimizers with warm-up and cosine decay, global-norm clipping, and the exponential moving average of parameters."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import BFloat16, Float32, Int32
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers, muon

NAMES = ("adamw", "adafactor", "muon")
MOMENTS = ("float32", "bfloat16")
IGNORED = {  # keys of the config that an optimizer does not follow, and what it does instead
    "adafactor": {"b2": "the decay of its second moments follows the step", "eps": "it adds 1e-30 to squares"},
    "muon": {"b1": "the momentum of its matrices is 0.95"},
}
_MATRICES = ("kernel", "lora_a", "lora_b")  # names of the leaves that are no norms or embeddings


def schedule(optim: ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate against the optimizer step: linear warm-up, then cosine down to `final_lr` of the peak."""
    warmup = min(optim.warmup_steps, max(steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(0.0, optim.lr, warmup, max(steps, warmup + 1), optim.lr * optim.final_lr)


def optimizer(optim: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Clip, then update; the learning rate means the same for all, the size of an entry's step. What each keeps of N numbers:

    `adamw` (Loshchilov & Hutter 2019): two moments, 2 N; only kernels and adapters decay, not norms and embeddings.
    `adafactor` (Shazeer & Stern 2018, with momentum as Zhai et al. 2022, without scaling by parameters): one moment, N, and
    row and column means of squares. `muon` (Jordan 2024, scaled as Liu et al. 2025) for the matrices of blocks: one moment, N;
    AdamW without decay for all else.

    Raises:
      ValueError: for an unknown optimizer or dtype of moments.
    """
    rate, decay = schedule(optim, steps), {"weight_decay": optim.weight_decay}
    if optim.name == "adamw":
        update = optax.adamw(rate, optim.b1, optim.b2, optim.eps, mask=decayed, **decay)
    elif optim.name == "adafactor":
        update = optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.ema(optim.b1, debias=False),
            optax.add_decayed_weights(mask=decayed, **decay),
            optax.scale_by_learning_rate(rate),
        )
    elif optim.name == "muon":
        adam = {"adam_b1": optim.b1, "adam_b2": optim.b2, "eps": optim.eps}
        update = muon(rate, beta=0.95, muon_weight_dimension_numbers=_matrices, consistent_rms=0.2, **adam, **decay)
    else:
        raise ValueError(f"config.optim.name = {optim.name!r}: expected one of {', '.join(NAMES)}")
    if optim.moments not in MOMENTS:
        raise ValueError(f"config.optim.moments = {optim.moments!r}: expected one of {', '.join(MOMENTS)}")
    if optim.moments == "bfloat16":
        update = in_bfloat16(update)
    return optax.chain(clipped(optim.clip_norm), update)


def applied(state: Any) -> Int32[Any, ""]:
    """How many updates an optimizer has made: where its schedule stands. Skipped ones do not count."""
    return optax.tree.get_all_with_path(state, "count")[0][1]


def clipped(limit: float) -> optax.GradientTransformation:
    """Scales the gradient down to a global norm of `limit`.

    By one factor, unlike `optax.clip_by_global_norm`: a product is computed where it is used, a quotient in a pass of its own.
    """

    def clip(gradient: Any, _: Any) -> Any:
        factor = limit / jnp.maximum(optax.tree.norm(gradient), limit)
        return jax.tree.map(lambda leaf: factor * leaf, gradient)

    return optax.stateless(clip)


def _matrices(params: Any) -> Any:
    """Which axes of a kernel Muon takes for a matrix, one per layer of stacked blocks; None leaves the leaf to AdamW."""
    stacked = MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: stacked if path[-1].key in _MATRICES and leaf.ndim == 3 else None, params
    )


class InBfloat16(NamedTuple):
    """The state of another optimizer, in fewer bits."""

    count: Int32[Any, ""]
    inner: Any


def in_bfloat16(update: optax.GradientTransformation) -> optax.GradientTransformation:
    """`update` with its moments stored in bfloat16, up or down at random, so that they are right on average.

    Rounded to nearest, a moment with 8 bits would stand still as soon as (1 - b2) of a change is less than half a unit, 0.2 %.
    """

    def init(params: Any) -> InBfloat16:
        state = per_parameter(
            lambda leaf, of: leaf if of is None else leaf.astype(jnp.bfloat16), update.init(params), params
        )
        return InBfloat16(jnp.int32(0), state)

    def step(gradient: Any, state: InBfloat16, params: Any) -> tuple[Any, InBfloat16]:
        exact = per_parameter(lambda leaf, of: leaf if of is None else leaf.astype(jnp.float32), state.inner, params)
        updates, new = update.update(gradient, exact, params)
        key = jax.random.fold_in(jax.random.key(0), state.count)
        keys = (jax.random.fold_in(key, leaf) for leaf in itertools.count())
        stored = per_parameter(lambda leaf, of: leaf if of is None else round_at_random(next(keys), leaf), new, params)
        return updates, InBfloat16(state.count + 1, stored)

    return optax.GradientTransformation(init, step)


def round_at_random(key: jax.Array, x: Float32[Any, "..."]) -> BFloat16[Any, "..."]:
    """x in bfloat16, of its two neighbours there each as often as it is near: the mean over keys is x."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32).astype(jnp.bfloat16)


def per_parameter(function: Callable[[Any, Any], Any], state: Any, params: Any) -> Any:
    """Maps `function(leaf, parameter)` over an optimizer's state; what a leaf belongs to is what its path ends with.

    The parameter is None for leaves of none, as counts are.
    """
    known = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}

    def visit(path: tuple[Any, ...], leaf: Any) -> Any:
        endings = (jax.tree_util.keystr(path[start:]) for start in range(len(path)))
        return function(leaf, next((known[name] for name in endings if name in known), None))

    return jax.tree_util.tree_map_with_path(visit, state)


def decayed(params: Any) -> Any:
    """True for the leaves that weight decay shrinks: kernels, and the adapters beside frozen ones."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in _MATRICES, params)


def ema_update(ema: Any, params: Any, decay: float, step: Int32[Any, ""]) -> Any:
    """Moves the average towards `params`; young averages move faster, so that the zero-initialised start fades.

    The decay at step n is min(decay, (1 + n) / (10 + n)), as in TensorFlow's ExponentialMovingAverage(num_updates=n).
    """
    n = step.astype(jnp.float32)
    rate: Float32[Any, ""] = 1 - jnp.minimum(decay, (1 + n) / (10 + n))
    return jax.tree.map(lambda e, p: e + rate * (p - e), ema, params)
