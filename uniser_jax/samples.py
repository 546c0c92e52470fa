"""Held-out edits while a run trains: a grid of restorations, for eyes, and a loss, for choosing a checkpoint."""

import contextlib
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from uniser_jax import config as schema
from uniser_jax import mesh as meshes
from uniser_jax.data.pipeline import Examples, batches, stack
from uniser_jax.data.schedule import fixed
from uniser_jax.diffusion.flow import Flow
from uniser_jax.diffusion.sampler import restore
from uniser_jax.effects import gallery
from uniser_jax.models import lora, uniser
from uniser_jax.models.codec import LatentCodec
from uniser_jax.step import Network, batch_loss, draw_noise, mask_of, to_float, to_uint8
from uniser_jax.types import TASKS, Batch

_ROWS = 6


class SampleGrid:
    """The same few held-out edits, restored again at every call: input, mask, restored, target.

    Args:
      config: of the run.
      network: as built for the run.
      held_out: the stream the edits come from; its first few are used.
      latents: of the run, if it has any.
      base: of its adapters, if it has any.
    """

    def __init__(
        self,
        config: ConfigDict,
        network: Network,
        held_out: Examples,
        latents: LatentCodec | None = None,
        base: Any = None,
    ):
        self._held_out = held_out
        flow = schema.build(Flow, config.flow)

        def restored(params: Any, batch: Batch, latents: LatentCodec | None, base: Any) -> Any:
            predict = functools.partial(uniser.apply, network.graphdef, lora.join(params, base))
            key, how = jax.random.key(config.evaluation.seed), config.restore
            images, mask = to_float(batch.input), mask_of(batch)
            return to_uint8(
                restore(predict, flow, key, images, mask, batch.task, how.steps, how.shift, latents, how.compensate)
            )

        replicated = jax.sharding.PartitionSpec()
        self._frozen, self._restore = (latents, base), jax.jit(restored, out_shardings=replicated)

    @functools.cached_property
    def _batch(self) -> Batch:
        return stack([self._held_out[index] for index in range(_ROWS)])

    def __call__(self, params: Any) -> UInt8[np.ndarray, "h w c"]:
        """The grid for these parameters (replicated on every process)."""
        batch = self._batch
        restored = np.asarray(self._restore(params, jax.tree.map(jnp.asarray, batch), *self._frozen))
        rows = [
            [batch.input[row], np.repeat(batch.mask[row, ..., None], 3, -1), restored[row], batch.target[row]]
            for row in range(_ROWS)
        ]
        names = [TASKS[task] or "(nothing)" for task in batch.task]
        return gallery.grid(rows, ["input", "mask", "restored", "target"], names)

    def write(self, folder: pathlib.Path, step: int, params: Any) -> UInt8[np.ndarray, "h w c"]:
        """Writes `folder/step_000200.png` on process 0 and returns the grid."""
        image = self(params)
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            gallery.write_png(folder / f"step_{step:06d}.png", image)
        return image


class HeldOutLoss:
    """The training loss on the same held-out batch, with the same times and noise, at every call.

    Args:
      config: of the run.
      network: as built for the run.
      held_out: the stream; its first rows, as many as a microbatch has, are rendered at the first call.
      mesh: of the run.
      latents: of the run, if it has any.
      base: of its adapters, if it has any.
    """

    def __init__(
        self,
        config: ConfigDict,
        network: Network,
        held_out: Examples,
        mesh: jax.sharding.Mesh,
        latents: LatentCodec | None = None,
        base: Any = None,
    ):
        self._config, self._held_out, self._mesh, self._frozen = config, held_out, mesh, (latents, base)
        flow = schema.build(Flow, config.flow)

        def loss(params: Any, batch: Batch, latents: LatentCodec | None, base: Any) -> Any:
            t, noise = draw_noise(flow, jax.random.key(config.evaluation.seed), batch, latents)
            return batch_loss(network, flow, params, batch, t, noise, latents=latents, base=base)[0]

        self._loss = jax.jit(loss, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))

    def __call__(self, params: Any) -> float:
        """The loss of these parameters; the same on every process."""
        return float(self._loss(params, self._batch, *self._frozen))

    @functools.cached_property
    def _batch(self) -> Batch:
        rows = self._config.batch_size // self._config.optim.accumulate
        examples = dataclasses.replace(self._held_out, schedule=fixed(self._config.data.size, rows))
        part = meshes.batch_part(self._mesh, jax.process_index())
        with contextlib.closing(batches(examples, 0, *part, threads=self._config.data.threads)) as mine:
            return meshes.to_global(self._mesh, next(mine))
