"""Adapters in the layout of peft, which `load_lora_weights` reads: W + B A, with A [r, in] and B [out, r].

Diffusers fuses matrices that we keep apart. Where W is [W1; W2] the adapters of both are one of twice the rank, with [A1; A2]
and a block-diagonal of B1 and B2; where it is [W1 | W2], the other way round. The scale alpha / r is multiplied into B, so that
a reader that knows nothing of alpha, or takes it for the rank as most do, computes the same.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from convert import mapping
from uniser_jax.models.lora import A, B, Lora

_PREFIX = "transformer."


def to_peft(adapters: Any, kernels: Any, lora: Lora) -> dict[str, np.ndarray]:
    """Key to matrix, float32.

    Args:
      adapters: the trained tree beside the transformer, `.../{lora_a, lora_b}`.
      kernels: the shapes of the transformer's parameters.
      lora: rank and scale.
    """
    leaves = {path: np.asarray(leaf, np.float32) for path, leaf in mapping.flatten(adapters).items()}
    found: dict[str, np.ndarray] = {}
    for tensor in mapping.plan(mapping.TRANSFORMER, kernels):
        pieces = _pieces(tensor, leaves)
        if pieces:
            a, b = _fused(tensor, pieces, lora)
            module = _PREFIX + tensor.key.removesuffix(".weight")
            found |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    return found


def metadata(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """What diffusers keeps beside adapters: the rank of each module, and as much alpha, so that nothing is scaled again."""
    ranks = {
        key.removesuffix(".lora_A.weight"): v.shape[0] for key, v in tensors.items() if key.endswith("lora_A.weight")
    }
    ranks = {module.removeprefix(_PREFIX): rank for module, rank in ranks.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {module: rank for module, rank in ranks.items() if rank != usual}
    table = {"r": usual, "lora_alpha": usual, "rank_pattern": others, "alpha_pattern": others}
    table["target_modules"] = list(ranks)
    return {"lora_adapter_metadata": json.dumps({_PREFIX + key: value for key, value in table.items()}, sort_keys=True)}


def _pieces(tensor: mapping.Tensor, leaves: Mapping[str, np.ndarray]) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Of each adapted part of a fused matrix: where it begins, its A and its B as we keep them."""
    pieces, start = [], 0
    for part in tensor.parts:
        beside = part.path.rpartition("/")[0]
        if f"{beside}/{A}" in leaves:
            pieces.append((start, leaves[f"{beside}/{A}"][part.slices], leaves[f"{beside}/{B}"][part.slices]))
        start += part.shape[1 - tensor.axis] if len(part.shape) == 2 else 0
    return pieces


def _fused(tensor: mapping.Tensor, pieces: list[Any], lora: Lora) -> tuple[np.ndarray, np.ndarray]:
    outputs, inputs = tensor.shape
    down = np.zeros((len(pieces) * lora.rank, inputs), np.float32)
    up = np.zeros((outputs, len(pieces) * lora.rank), np.float32)
    for number, (start, a, b) in enumerate(pieces):
        rows = slice(number * lora.rank, (number + 1) * lora.rank)
        across = slice(start, start + a.shape[0]) if tensor.axis == 1 else slice(None)
        along = slice(start, start + b.shape[1]) if tensor.axis == 0 else slice(None)
        down[rows, across], up[along, rows] = a.T, lora.scale * b.T
    return down, up
