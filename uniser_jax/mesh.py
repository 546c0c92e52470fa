"""The device mesh, and one table from logical axis names to mesh axes.

Parameters and activations name their axes by meaning (`embed`, `heads`, `tokens`); only RULES knows the mesh. Axes:
`data` replicates parameters, `fsdp` shards them, `tensor` splits heads and MLP width, `sequence` splits tokens.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor", "sequence")

RULES: dict[str, tuple[str, ...] | str | None] = {
    "batch": ("data", "fsdp"),
    "tokens": "sequence",
    "keys": None,  # keys and values are gathered over the sequence axis
    "embed": "fsdp",
    "features": None,  # the width of an activation; parameters call theirs `embed`
    "heads": "tensor",
    "mlp": "tensor",
    "head_dim": None,
    "layer": None,
    "patch": None,  # channels of a token: pixels or latents
    "task": None,
}


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh; axes that `shape` does not name have size 1, and one axis may be -1 for all remaining devices.

    Raises:
      ValueError: for an unknown axis, or when the shape does not use exactly the devices there are.
    """
    devices = jax.devices() if devices is None else devices
    unknown = set(shape) - set(AXES)
    if unknown:
        raise ValueError(f"mesh axis {sorted(unknown)[0]!r} is unknown; known: {', '.join(AXES)}")
    sizes = {axis: shape.get(axis, 1) for axis in AXES}
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or fixed < 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"mesh {dict(shape)}: expected sizes of at least 1, and -1 at most once")
    if len(devices) % fixed or (not free and fixed != len(devices)):
        raise ValueError(f"mesh {dict(shape)} does not fit {len(devices)} devices; set one axis to -1 to fill it")
    if free:
        sizes[free[0]] = len(devices) // fixed
    # Auto: the compiler propagates shardings between our constraints. jax.make_mesh would default to Explicit.
    grid = np.asarray(devices).reshape(tuple(sizes.values()))
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def spec(*names: str | None) -> P:
    """The partition of an array whose axes have these logical names; None is never sharded.

    Raises:
      KeyError: for a name without a rule.
    """
    return P(*(RULES[name] if name is not None else None for name in names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pins an activation's sharding; without an active mesh it does nothing."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, spec(*names))


def sharding_of(mesh: Mesh, axes: Any, shapes: Any) -> Any:
    """Shardings for a tree of shapes, given the tree of logical axis names (tuples).

    A dimension that its mesh axes do not divide stays replicated: 192 output channels on a mesh of 256 must not stop a run.
    """

    def one(names: tuple[str | None, ...], shape: jax.ShapeDtypeStruct) -> NamedSharding:
        parts = (
            part if size % _size(mesh, part) == 0 else None
            for part, size in zip(spec(*names), shape.shape, strict=True)
        )
        return NamedSharding(mesh, P(*parts))

    return jax.tree.map(one, axes, shapes, is_leaf=lambda node: isinstance(node, tuple))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How a batch lies: rows over data and fsdp, everything else whole."""
    return NamedSharding(mesh, spec("batch"))


def check_batch(mesh: Mesh, batch_size: int, accumulate: int) -> None:
    """Checks that every microbatch spreads evenly over the mesh.

    Raises:
      ValueError: if it does not.
    """
    rows = _size(mesh, RULES["batch"])
    if batch_size % (rows * accumulate):
        raise ValueError(
            f"batch_size = {batch_size} does not divide over data * fsdp = {rows} devices"
            f" in {accumulate} microbatches; use a multiple of {rows * accumulate}"
        )


def check_heads(mesh: Mesh, heads: int) -> None:
    """Checks that attention heads spread evenly over the tensor axis.

    Raises:
      ValueError: if they do not.
    """
    if heads % mesh.shape["tensor"]:
        raise ValueError(f"{heads} attention heads do not divide over tensor = {mesh.shape['tensor']} devices")


def to_global(mesh: Mesh, batch: Any) -> Any:
    """Turns this process's rows (numpy) into global device arrays, without a copy through other hosts."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)


def _size(mesh: Mesh, part: tuple[str, ...] | str | None) -> int:
    axes = (part,) if isinstance(part, str) else part or ()
    return math.prod(mesh.shape[axis] for axis in axes)
