"""The device mesh, and one table from logical axis names to mesh axes.

Parameters and activations name their axes by meaning (`embed`, `heads`, `tokens`); only RULES knows the mesh. Axes, from
the slowest network to the fastest:

  slice     replicates parameters over pods, which only a data-centre network joins
  data      replicates parameters within a pod
  fsdp      shards parameters, their moments and average, which are gathered layer by layer
  sequence  splits tokens; keys and values are gathered, or passed around
  tensor    splits heads and MLP width: sums of activations in every block

docs/scale.md says how to choose.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uniser_jax.types import TrainState

AXES = ("slice", "data", "fsdp", "sequence", "tensor")

# In order: an axis goes by the first rule of its name whose mesh axes no other axis of the same array has taken.
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("batch", ("slice", "data", "fsdp")),
    ("tokens", ("sequence",)),
    ("keys", ()),  # gathered over `sequence`
    ("embed", ("fsdp",)),
    ("features", ()),  # the width of an activation; parameters call theirs `embed`
    ("heads", ("tensor",)),
    ("mlp", ("tensor",)),
    ("head_dim", ()),
    ("layer", ()),
    ("patch", ()),  # channels of a token: pixels or latents
    ("task", ()),
)


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh; axes that `shape` does not name have size 1, and one axis may be -1 for all remaining devices.

    Args:
      shape: sizes by axis.
      devices: real ones, or those of a topology to compile for; by default all there are.

    Raises:
      ValueError: for an unknown axis, or when the shape does not use exactly the devices there are.
    """
    devices = jax.devices() if devices is None else devices
    slices = len({getattr(device, "slice_index", None) for device in devices}) if devices[0].platform == "tpu" else 1
    sizes = sizes_of(shape, len(devices), slices)
    # Auto: the compiler propagates shardings between our constraints. jax.make_mesh would default to Explicit.
    return Mesh(_arranged(tuple(sizes.values()), devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def sizes_of(shape: Mapping[str, int], devices: int, slices: int = 1) -> dict[str, int]:
    """The size of every axis of a mesh, see `make_mesh`, by arithmetic alone: launchers have no devices.

    Args:
      shape: sizes by axis.
      devices: how many there are.
      slices: of a TPU, that they are.

    Raises:
      ValueError: as `make_mesh`, or if TPU slices would have to share more than the `slice` axis.
    """
    unknown = set(shape) - set(AXES)
    if unknown:
        raise ValueError(f"mesh axis {sorted(unknown)[0]!r} is unknown; known: {', '.join(AXES)}")
    sizes = {axis: shape.get(axis, 1) for axis in AXES}
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or fixed < 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"mesh {dict(shape)}: expected sizes of at least 1, and -1 at most once")
    if devices % fixed or (not free and fixed != devices):
        raise ValueError(f"mesh {dict(shape)} does not fit {devices} devices; set one axis to -1 to fill it")
    if free:
        sizes[free[0]] = devices // fixed
    if slices not in (1, sizes["slice"]):
        raise ValueError(
            f"these devices are {slices} slices and mesh.slice = {sizes['slice']}; set config.mesh.slice={slices}"
        )
    return sizes


def _arranged(sizes: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices as an array, so that neighbours along an axis are neighbours in the network where it is known."""
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if slices > 1 and slices == sizes[0]:
        within, between = (1, *sizes[1:]), (slices, *(1 for _ in sizes[1:]))
        return mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)
    if devices[0].platform == "tpu":
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return np.asarray(devices).reshape(sizes)  # in the order of processes, so the last axes stay within one


def spec(*names: str | None) -> P:
    """The partition of an array whose axes have these logical names; None is never sharded.

    Raises:
      ValueError: for a name without a rule, or none that is left.
    """
    taken: set[str] = set()
    parts = []
    for name in names:
        rules = [axes for key, axes in RULES if key == name] if name is not None else [()]
        left = [axes for axes in rules if not taken & set(axes)]
        if not left:
            why = "is taken by another axis of the array" if rules else f"is missing; there are {_rule_names()}"
            raise ValueError(f"logical axes {names}: the rule of {name!r} in mesh.RULES {why}")
        taken |= set(left[0])
        parts.append(left[0] if len(left[0]) > 1 else left[0][0] if left[0] else None)
    return P(*parts)


def _rule_names() -> str:
    return ", ".join(dict(RULES))


def fitting(mesh: Mesh | AbstractMesh, names: tuple[str | None, ...], shape: tuple[int, ...]) -> P:
    """`spec(*names)`, but a dimension that its mesh axes do not divide stays whole.

    192 output channels on a mesh of 256, or six pictures on eight devices, must not stop a run; `step.check` sees to it that
    the features of blocks divide.
    """
    parts = zip(spec(*names), shape, strict=True)
    return P(*(part if size % _size(mesh, part) == 0 else None for part, size in parts))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pins an activation's sharding; without an active mesh it does nothing."""
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, spec(*names))


def sharding_of(mesh: Mesh, axes: Any, shapes: Any) -> Any:
    """Shardings for a tree of shapes, given the tree of logical axis names (tuples); see `fitting`."""
    return jax.tree.map(
        lambda names, leaf: NamedSharding(mesh, fitting(mesh, names, leaf.shape)),
        axes,
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def sharding_like(parameter: jax.ShapeDtypeStruct, shape: tuple[int, ...]) -> NamedSharding:
    """Of what an optimizer keeps for a parameter: the same, without an axis if it keeps means over one; else replicated."""
    parts = (*parameter.sharding.spec, *[None] * len(parameter.shape))[: len(parameter.shape)]
    mesh, whole = parameter.sharding.mesh, parameter.shape
    if shape == whole:
        return parameter.sharding
    for axis in reversed(range(len(whole))):
        if shape == (*whole[:axis], *whole[axis + 1 :]):
            return NamedSharding(mesh, P(*parts[:axis], *parts[axis + 1 :]))
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How a batch lies: rows over slice, data and fsdp, everything else whole."""
    return NamedSharding(mesh, spec("batch"))


def rows_of(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a mesh splits the rows of a batch."""
    return _size(mesh, spec("batch")[0])


def batch_part(mesh: Mesh, process: int) -> tuple[tuple[int, ...], int]:
    """Which of how many equal blocks of rows of each batch a process loads, in ascending order.

    They need not be neighbours: a mesh follows the wires of a pod, not the numbers of its hosts. Processes that share rows,
    because `tensor` or `sequence` reaches over them, load the same blocks.

    Raises:
      ValueError: if processes share some of their rows only.
    """
    rows = mesh.devices.reshape(rows_of(mesh), -1)
    held: dict[int, dict[int, None]] = {}  # rows of each process, in order
    for row, devices in enumerate(rows):
        for device in devices:
            held.setdefault(device.process_index, {})[row] = None
    parts = {tuple(own) for own in held.values()}
    if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) != len(rows):
        raise ValueError(
            f"mesh {dict(mesh.shape)}: processes of {mesh.size // len(held)} devices would share some of their rows only;"
            " let sequence * tensor divide the devices of a process, or be a multiple of them"
        )
    return tuple(held[process]), len(rows)


def check_batch(mesh: Mesh | AbstractMesh, batch_size: int, accumulate: int) -> None:
    """Checks that every microbatch spreads evenly over the mesh.

    Raises:
      ValueError: if it does not.
    """
    rows = rows_of(mesh)
    if batch_size % (rows * accumulate):
        raise ValueError(
            f"batch_size = {batch_size} does not divide over slice * data * fsdp = {rows} devices"
            f" in {accumulate} microbatches; use a multiple of {rows * accumulate}"
        )


def check_divides(mesh: Mesh | AbstractMesh, axis: str, **sizes: int) -> None:
    """Checks that what one mesh axis splits, by name, spreads evenly over it.

    Raises:
      ValueError: if it does not.
    """
    for name, size in sizes.items():
        if size % mesh.shape[axis]:
            fits = [
                k for k in range(1, mesh.size + 1) if mesh.size % k == 0 and all(s % k == 0 for s in sizes.values())
            ]
            raise ValueError(
                f"{size} {name.replace('_', ' ')} do not divide over {axis} = {mesh.shape[axis]} devices;"
                f" set config.mesh.{axis} to one of {', '.join(map(str, fits))}, and another axis to -1"
            )


def bytes_per_chip(tree: Any) -> int:
    """What a tree of arrays, or of shapes with shardings, takes of one device's memory."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def table(state: TrainState) -> str:
    """How a state lies on its mesh: every parameter, and what parameters, average and optimizer take of each chip.

    Blocks are stacked, so each kind of block is there once.
    """
    rows = [("parameter", "shape", "sharding", "MiB per chip")]
    for path, leaf in jax.tree.leaves_with_path(state.params):
        name, parts = jax.tree_util.keystr(path, simple=True, separator="/"), (*leaf.sharding.spec, *[None] * leaf.ndim)
        axes = ["+".join((part,) if isinstance(part, str) else part) if part else "-" for part in parts[: leaf.ndim]]
        rows.append((name, " x ".join(map(str, leaf.shape)), ", ".join(axes), f"{bytes_per_chip(leaf) / 2**20:,.2f}"))
    totals = {"parameters": state.params, "average": state.ema, "optimizer": state.opt_state, "state": state}
    for name, tree in totals.items():
        numbers = sum(leaf.size for leaf in jax.tree.leaves(tree))
        rows.append((f"all of {name}", f"{numbers:,}", "", f"{bytes_per_chip(tree) / 2**20:,.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join((*map(str.ljust, row[:-1], widths), row[-1].rjust(widths[-1]))) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def to_global(mesh: Mesh, batch: Any) -> Any:
    """Turns this process's rows (numpy) into global device arrays, without a copy through other hosts."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)


def _size(mesh: Mesh | AbstractMesh, part: tuple[str, ...] | str | None) -> int:
    axes = (part,) if isinstance(part, str) else part or ()
    return math.prod(mesh.shape[axis] for axis in axes)
