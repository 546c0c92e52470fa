"""What to change when a step does not fit: overrides to type, each with its price, the cheap ones first.

docs/scale.md has the formulas: bytes of the state per parameter, bytes of activations that a remat policy keeps per block.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from uniser_jax import mesh as meshes
from uniser_jax.models.presets import preset

_GIB = 2**30
_WORTH = 0.03  # of the HBM: what saves less is not mentioned
_GPU_SHARE = 0.92  # of a GPU's memory that jax can be given; the rest is for CUDA, NCCL and what else runs


class Shortage(NamedTuple):
    """A step that does not fit; bytes are per chip.

    Args:
      needed: by the step.
      hbm: that a program may use.
      state: of what is needed, parameters, average and optimizer.
      tokens: per example, with those of the prompt.
      attention: the kernel that runs there.
      encoding: whether what is largest encodes images to latents, which no remat policy changes.
      total: the HBM there is; above `hbm` where jax leaves some of it alone.
    """

    needed: float
    hbm: float
    state: float
    tokens: int
    attention: str
    encoding: bool
    total: float


def suggest(config: ConfigDict, mesh: Mesh, short: Shortage) -> tuple[str, ...]:
    """One line for each change: what to type, and in brackets what it does and costs."""
    state, activations = list(_of_state(config, mesh, short)), list(_of_activations(config, mesh, short))
    if short.state > short.hbm:
        activations = []  # they cannot be enough
    found = state + activations if short.state > short.needed / 2 else activations + state
    if short.needed <= _GPU_SHARE * short.total and short.hbm < _GPU_SHARE * short.total:
        left = 1 - short.hbm / short.total
        found.insert(
            0, f"XLA_CLIENT_MEM_FRACTION={_GPU_SHARE} before the command (jax leaves {left:.0%} of a GPU alone)"
        )
    return (*found, "more chips, or chips with more HBM")


def _of_state(config: ConfigDict, mesh: Mesh, short: Shortage) -> Iterator[str]:
    """Fewer copies, then fewer bytes for each parameter."""
    data, fsdp, optim, worth = mesh.shape["data"], mesh.shape["fsdp"], config.optim, _WORTH * short.hbm
    fewer = data * fsdp // math.gcd(data * fsdp, preset(config.model.preset).width)
    if fewer < data and short.state * (1 - fewer / data) > worth:
        slices = mesh.shape["slice"]
        left = "one copy" if slices * fewer == 1 else f"{slices * fewer} copies"
        yield f"--config.mesh.data={fewer} --config.mesh.fsdp=-1 ({left} of the state over all chips, not {slices * data})"
    if optim.moments == "float32" and short.state / 6 > worth:
        yield "--config.optim.moments=bfloat16 (moments in half the bytes, rounded at random)"
    if optim.name == "adamw" and short.state / 6 > worth:
        yield "--config.optim.name=adafactor (one moment instead of two; another optimizer, with its own learning rate)"


def _of_activations(config: ConfigDict, mesh: Mesh, short: Shortage) -> Iterator[str]:
    """A kernel without weights of attention, then less that is kept, then fewer rows at once, then less of each row."""
    accumulate, per_chip = config.optim.accumulate, rows_per_chip(config, mesh)
    if short.attention == "xla" and short.tokens > 256:
        chosen = "chunked" if config.model.attention == "auto" else "auto"
        yield f"--config.model.attention={chosen} (never holds all weights of attention)"
    if not short.encoding:
        yield from _remat(config, mesh, short)
    if per_chip > 1:
        parts = [k for k in range(2, per_chip + 1) if per_chip % k == 0]
        over = max(short.needed - short.state, 0) / max(
            short.hbm - short.state, 1
        )  # activations shrink as their batch does
        enough = next((k for k in parts if over <= k), parts[-1])
        yield f"--config.optim.accumulate={accumulate * enough} (smaller microbatches)"
        return
    size, prompt = preset(config.model.preset), config.model.prompt_length
    splits = {
        "sequence": ((short.tokens - prompt, prompt), "the tokens of an image over {} chips"),
        "tensor": ((size.num_attention_heads, size.mlp_width), "heads and MLP over {} chips, sums in every block"),
    }
    for axis, (sizes, what) in splits.items():
        side, rest = 2 * mesh.shape[axis], _fewer_rows(config, mesh)
        if rest is not None and all(number % side == 0 for number in sizes):
            overrides = f"--config.mesh.{axis}={side}{rest} --config.optim.accumulate={2 * accumulate}"
            yield f"{overrides} ({what.format(side)})"


def _remat(config: ConfigDict, mesh: Mesh, short: Shortage) -> Iterator[str]:
    """The next policy that keeps little enough; of `full`, `offload` where block inputs are a share of what is needed."""
    size, policy = preset(config.model.preset), config.model.remat
    numbers = (size.num_layers + size.num_single_layers) * rows_per_chip(config, mesh) * short.tokens * size.width
    inputs = 2 * numbers / mesh.shape["sequence"]  # bfloat16
    dots = inputs * (7 + 2 * size.mlp_ratio) / mesh.shape["tensor"]
    if policy == "none" and short.state + 2 * dots < short.hbm:  # as much again for gradients and the block at work
        yield "--config.model.remat=dots (keeps matrix products, computes the rest again)"
    elif policy in ("none", "dots"):
        yield "--config.model.remat=full (computes each block again: a third more FLOPs)"
    elif policy == "full" and inputs > _WORTH * short.hbm:
        yield f"--config.model.remat=offload (keeps {inputs / _GIB:,.2f} GiB of block inputs in the host's memory)"


def rows_per_chip(config: ConfigDict, mesh: Mesh) -> int:
    """Examples of a microbatch on each chip, of the batch that the config names."""
    return max(config.batch_size // (meshes.rows_of(mesh) * config.optim.accumulate), 1)


def _fewer_rows(config: ConfigDict, mesh: Mesh) -> str | None:
    """Overrides that give half of the chips along the rows to another axis; None if their number is odd."""
    free = next((axis for axis in meshes.AXES if config.mesh[axis] == -1), None)
    if free is not None:
        return "" if mesh.shape[free] % 2 == 0 else None
    axis = next((axis for axis in ("fsdp", "data") if mesh.shape[axis] % 2 == 0), None)
    return axis and f" --config.mesh.{axis}={mesh.shape[axis] // 2}"
