"""The records that flow through the system, the closed vocabulary of tasks, and the letters of shapes.

Letters, used in every annotation:
  b batch, h height, w width, c channels (RGB), n tokens, l text tokens, d features, k effects, p patch side.

Images on the wire are uint8 sRGB; physics happens in linear light, float32, scene-referred (may exceed 1).
This module imports nothing heavy: data workers load it, and they must not pay for jax.
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

# In physical order: the shadow lies on the surface, haze in the air, the reflection on the glass, flare in the lens.
# `occlusion` is the auxiliary effect: patches that only the generic task removes.
EFFECTS = ("shadow", "haze", "reflection", "flare", "occlusion")

# The closed prompt set; a task is its index. `effects` is the generic request; "" asks for nothing (identity).
TASKS = (
    "remove lens flare",
    "remove haze",
    "remove shadow",
    "remove reflection",
    "remove effects",
    "add lens flare",
    "add haze",
    "add shadow",
    "add reflection",
    "add effects",
    "",
)


def prompt_name(task: str) -> str:
    """The name of a task in files: `remove_haze`; `nothing` for the empty request."""
    return task.replace(" ", "_") or "nothing"


def tasks_digest() -> str:
    """Of the prompt set and its order: a table of embeddings made for another must not be taken for this one's."""
    return hashlib.sha256("\n".join(TASKS).encode()).hexdigest()[:16]


class Edit(NamedTuple):
    """One training example: what the model sees, what it should return, and what was asked."""

    input: UInt8[np.ndarray, "h w c"]
    target: UInt8[np.ndarray, "h w c"]
    mask: UInt8[np.ndarray, "h w"]  # the soft mask aM; 255 asks for the whole effect, 0 for no change
    task: Int32[np.ndarray, ""]  # index into TASKS
    strengths: Float32[np.ndarray, "k"]  # of each of EFFECTS in `input`, 0 where absent


class Batch(NamedTuple):
    """Edits stacked along a leading axis, host (numpy) or device (jax) arrays."""

    input: UInt8[Any, "b h w c"]
    target: UInt8[Any, "b h w c"]
    mask: UInt8[Any, "b h w"]
    task: Int32[Any, "b"]
    strengths: Float32[Any, "b k"]


class TrainState(NamedTuple):
    """All that training changes. Trees are nested dicts of arrays, keyed by plain paths."""

    step: Int32[Any, ""]
    params: Any
    ema: Any
    opt_state: Any
