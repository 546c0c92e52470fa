"""Low-rank adapters (Hu et al. 2021): a frozen base, and beside chosen kernels two thin matrices that are trained.

  (1) y = x W + (alpha / r) (x A) B,  A [in, r] of variance 1 / in,  B [r, out] zero, so that the start is the base
  (2) merged: W + (alpha / r) A B

Adapters lie beside their kernel, `dit/double/image/q/{kernel, lora_a, lora_b}`, stacked as it is, so the scan over layers
carries them along. Each of the two is sharded by the axis that it shares with its kernel: `fsdp` splits one, `tensor` the
other. What is trained is their tree and the table of prompts, which a base may not have; the rest is an argument of the step
without a gradient, so no matrix of the size of a kernel is ever made for one.
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from uniser_jax.models.dit import Dense, parameter, product

A, B = "lora_a", "lora_b"
_ZERO = nnx.initializers.zeros_init()


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which kernels are adapted, and how.

    Args:
      rank: r in (1); 0 adapts nothing, and everything is trained.
      alpha: of (1); what is added scales with alpha / rank.
      targets: a regular expression that the whole path of a kernel must match, such as `dit/double/image/q/kernel`.

    Raises:
      ValueError: for a negative rank, an alpha that is not positive, or an expression that is none.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: str = "dit/(double|single)/.*/kernel"

    def __post_init__(self) -> None:
        if self.rank < 0 or not self.alpha > 0:
            raise ValueError(f"lora.rank = {self.rank}, lora.alpha = {self.alpha}: expected at least 0, and above 0")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(f"lora.targets = {self.targets!r} is no regular expression: {error}") from None

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / self.rank


class AdaptedDense(Dense):
    """A `Dense` with equation (1).

    Args:
      dense: what is adapted; its kernel [(layer,) in, out] is taken over.
      lora: rank and scale.
      rngs: for A.
    """

    def __init__(self, dense: Dense, lora: Lora, *, rngs: nnx.Rngs):
        self.kernel, self.scale = dense.kernel, lora.scale
        *stack, inputs, outputs = self.kernel.shape
        *layer, into, out = self.kernel.get_metadata()["out_sharding"]
        fan_in = nnx.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", batch_axis=tuple(range(len(stack)))
        )
        self.lora_a = parameter(fan_in, (*stack, inputs, lora.rank), (*layer, into, None), rngs)
        self.lora_b = parameter(_ZERO, (*stack, lora.rank, outputs), (*layer, None, out), rngs)

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        """Equation (1), in the dtype of x."""
        return super().__call__(x) + self.scale * product(product(x, self.lora_a[...]), self.lora_b[...])


def adapt(model: nnx.Module, lora: Lora, *, rngs: nnx.Rngs) -> None:
    """Puts adapters beside the kernels of a model that `lora.targets` matches.

    Raises:
      ValueError: if it matches none; names some.
    """
    kernels = {"/".join(map(str, (*path, "kernel"))): path for path, module in _matrices(model)}
    chosen = [kernels[name] for name in sorted(kernels) if re.fullmatch(lora.targets, name)]
    if not chosen:
        raise ValueError(
            f"lora.targets = {lora.targets!r} matches no kernel; there are {', '.join(sorted(kernels)[:3])}, ..."
        )
    for *parents, name in chosen:
        owner: Any = model
        for parent in parents:
            owner = getattr(owner, str(parent))
        setattr(owner, str(name), AdaptedDense(getattr(owner, str(name)), lora, rngs=rngs))


def split(params: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A tree of parameters as (what is trained, what stays): adapters and prompts, and the base."""
    leaves = flatten_dict(params)
    trained = {path: leaf for path, leaf in leaves.items() if path[-1] in (A, B) or path[0] == "prompts"}
    return unflatten_dict(trained), unflatten_dict({path: leaves[path] for path in leaves.keys() - trained.keys()})


def join(trained: Any, base: Any) -> Any:
    """The inverse of `split`; without a base, all is trained."""
    return trained if base is None else unflatten_dict(flatten_dict(base) | flatten_dict(trained))


def merge(trained: Any, base: Any, lora: Lora) -> dict[str, Any]:
    """The parameters of the network without adapters that does the same: equation (2), in float32."""
    adapters, leaves = flatten_dict(trained), flatten_dict(base)
    for path in [path for path in adapters if path[-1] == A]:
        kernel, a, b = (*path[:-1], "kernel"), adapters.pop(path), adapters.pop((*path[:-1], B))
        change = lora.scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        leaves[kernel] = jnp.asarray(leaves[kernel], jnp.float32) + change
    return unflatten_dict(leaves | adapters)


def _matrices(model: nnx.Module) -> list[tuple[tuple[Any, ...], Dense]]:
    return [(path, module) for path, module in nnx.iter_modules(model) if isinstance(module, Dense)]
