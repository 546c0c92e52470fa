"""What a training step computes, counted from its jaxpr, and what chips can compute: TFLOP/s per chip and MFU.

Model FLOPs utilisation (Chowdhery et al. 2022, appendix B) asks how much of a chip's peak goes into the mathematics of a step:
the products and convolutions of one forward and one backward pass. Recomputation is no progress, so the step is counted with
remat `none`, and without what is traced as `recomputed`; a kernel is counted as the products that it stands for, so with the
`xla` attention. XLA's own `cost_analysis` would not do: it counts the body of a scan once, and a custom kernel as nothing.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
from jax.interpreters import partial_eval
from ml_collections import ConfigDict

from uniser_jax import optim
from uniser_jax.models.codec import LatentCodec
from uniser_jax.step import build_network, make_step
from uniser_jax.types import Batch, TrainState


class Chip(NamedTuple):
    """One device as jax shows it: peak dense bfloat16 FLOP/s, and bytes of HBM; `topologies.memory` says how many it gives."""

    peak: float
    hbm: float


_GIB = 2**30

# By `device_kind`. TPUs: peaks from docs.cloud.google.com/tpu/docs/v3, v4, v5e, v5p-training, v6e, tpu7x, HBM as libtpu 0.0.42
# compiles for; a v3 and a TPU7x show each half as a device. GPUs: NVIDIA's data sheets, without sparsity, and HBM as their
# driver shows it. A kind that is not here has no MFU rather than another's.
CHIPS = {
    "TPU v3": Chip(123e12 / 2, 15.48 * _GIB),
    "TPU v4": Chip(275e12, 30.75 * _GIB),
    "TPU v5 lite": Chip(197e12, 15.75 * _GIB),
    "TPU v5": Chip(459e12, 95.74 * _GIB),
    "TPU v5p": Chip(459e12, 95.74 * _GIB),
    "TPU v6 lite": Chip(918e12, 31.25 * _GIB),
    "TPU7x": Chip(2307e12 / 2, 94.75 * _GIB),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 39.42 * _GIB),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 79.25 * _GIB),
    "NVIDIA H100 80GB HBM3": Chip(989.4e12, 79.11 * _GIB),
    "NVIDIA H100 PCIe": Chip(756e12, 79.11 * _GIB),
    "NVIDIA H200": Chip(989.4e12, 141.0 * _GIB),
    "NVIDIA B200": Chip(2250e12, 178.36 * _GIB),
}


class StepFlops(NamedTuple):
    """FLOPs of one step over all chips, a multiply-add being two.

    Args:
      model: forward and backward pass of the transformer: what MFU counts.
      encode: images to latents, forward only; 0 in pixel space.
      optimizer: matrix products of the update; 0 for Adam.
    """

    model: int
    encode: int
    optimizer: int


def of_step(
    config: ConfigDict, state: TrainState, batch: Batch, latents: LatentCodec | None = None, base: Any = None
) -> StepFlops:
    """Counts the real step of a config, by tracing it; nothing is compiled or allocated.

    Args:
      config: of the run.
      state: arrays or shapes.
      batch: the same, of all processes together.
      latents: of the run, if it has any; arrays or shapes.
      base: of its adapters, if it has any; the same.
    """
    plain = ConfigDict(config.to_dict())
    plain.model.remat, plain.model.attention, plain.optim.accumulate = "none", "xla", 1
    state, batch, latents, base = jax.tree.map(_shape, (state, batch, latents, base))
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):  # what a mesh computes twice counts once
        network, optimizer = build_network(plain.model, plain.lora), optim.optimizer(config.optim, config.steps)
        closed = jax.make_jaxpr(make_step(plain, network, optimizer, state))(state, batch, latents, base)
    # Gradients of what is not trained are traced too, and dropped by the compiler.
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    encode, update, again = (count(jaxpr, scope) for scope in ("encode", "optimizer", "recomputed"))
    return StepFlops(count(jaxpr) - encode - update - again, encode, update)


def counter(
    config: ConfigDict, state: TrainState, latents: LatentCodec | None = None, base: Any = None
) -> Callable[[Batch], int]:
    """`batch -> FLOPs of its step` that MFU counts; each shape of a batch is traced once."""
    shapes, known = jax.tree.map(_shape, (state, latents, base)), {}

    def flops(batch: Batch) -> int:
        if batch.input.shape not in known:
            known[batch.input.shape] = of_step(config, shapes[0], batch, *shapes[1:]).model
        return known[batch.input.shape]

    return flops


def count(jaxpr: Any, scope: str = "") -> int:
    """FLOPs of the matrix products and convolutions of a jaxpr, and of all that it calls.

    The body of a scan counts as often as it runs, of a cond the dearest branch, of a shard_map every shard, of a Pallas
    kernel every point of its grid.

    Args:
      jaxpr: open or closed.
      scope: count only what was traced in a `jax.named_scope` of this name.

    Raises:
      ValueError: for a while loop around products: how often it runs is not known.
    """
    equations = getattr(jaxpr, "jaxpr", jaxpr).eqns
    return sum(_count(one, "" if scope in str(one.source_info.name_stack) else scope) for one in equations)


def peak(kind: str) -> float | None:
    """FLOP/s of a `device_kind`; None where nobody knows."""
    return CHIPS[kind].peak if kind in CHIPS else None


def _count(equation: Any, scope: str) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general" and not scope:
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated" and not scope:
        kernel = equation.invars[1].aval.shape  # its input axis is that of a group already
        outputs = kernel[parameters["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * math.prod(kernel) // outputs
    if name == "cond":
        return max(count(branch, scope) for branch in parameters["branches"])
    inside = sum(count(jaxpr, scope) for jaxpr in _called(parameters))
    if name == "while" and inside:
        raise ValueError("a while loop around matrix products has no fixed number of FLOPs; use a scan")
    return inside * _times(name, parameters)


def _times(name: str, parameters: dict[str, Any]) -> int:
    """How often an equation runs what it calls."""
    if name == "scan":
        return parameters["length"]
    if name == "shard_map":
        return math.prod(parameters["mesh"].shape[axis] for axis in parameters["newly_manual_axes"])
    if name == "pallas_call":
        return math.prod(parameters["grid_mapping"].grid)
    return 1


def _called(parameters: dict[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (jex.Jaxpr, jex.ClosedJaxpr)):
                yield item


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))
