"""The closed prompt set as context tokens: a learned table, in the tensor slot of a text encoder's output."""

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32, Int

from uniser_jax.mesh import constrain
from uniser_jax.models.dit import parameter
from uniser_jax.types import TASKS


class LearnedPrompts(nnx.Module):
    """One sequence of `length` tokens per task.

    Args:
      length: tokens per prompt, l.
      dim: features of a token, as the transformer's `joint_attention_dim`.
    """

    def __init__(self, length: int, dim: int, *, rngs: nnx.Rngs):
        shape = (len(TASKS), length, dim)
        self.table = parameter(nnx.initializers.normal(1.0), shape, ("task", None, "embed"), rngs)

    def __call__(self, task: Int[Array, "b"]) -> Float32[Array, "b l j"]:
        """The context of each task index.

        The small table is gathered whole first: from a sharded one, on an (fsdp, sequence) mesh, XLA's partitioner made an
        invalid program.
        """
        table = constrain(self.table[...], "task", None, "features")
        return constrain(jax.numpy.take(table, task, axis=0), "batch", "tokens", "features")


def text_ids(length: int) -> Float32[np.ndarray, "l 4"]:
    """Rotary positions (T, H, W, L) of the context tokens: (0, 0, 0, l)."""
    ids = np.zeros((length, 4), np.float32)
    ids[:, 3] = np.arange(length)
    return ids
