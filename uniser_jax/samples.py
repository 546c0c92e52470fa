"""A grid of held-out restorations, for eyes, while a run trains."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from uniser_jax import config as schema
from uniser_jax.data.pipeline import Examples
from uniser_jax.diffusion.flow import Flow
from uniser_jax.diffusion.sampler import restore
from uniser_jax.effects import gallery
from uniser_jax.models import lora, uniser
from uniser_jax.models.codec import LatentCodec
from uniser_jax.step import Network, mask_of, to_float, to_uint8
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
        edits = [held_out[index] for index in range(_ROWS)]
        self._batch = Batch(*(np.stack(leaves) for leaves in zip(*edits, strict=True)))
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
