"""Checksums of trees of arrays, exact and the same on any mesh, or slice by slice on the host."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LANES = ((0, 2_654_435_761), (12_345, 2_246_822_519))  # offset and factor of the weights of a digest


def digests(tree: Any) -> dict[str, list[int]]:
    """A checksum of each leaf, by path: exact, and the same on any mesh.

    Two sums modulo 2^32 of the leaf's bits times odd weights of their positions, so that flipped bits and swapped rows show.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    sums = jax.device_get(_digest([leaf for _, leaf in leaves]))
    return {leaf_name(path): [int(n) for n in pair] for (path, _), pair in zip(leaves, sums, strict=True)}


@jax.jit
def _digest(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_digest_leaf(leaf) for leaf in leaves]


def _digest_leaf(leaf: jax.Array) -> jax.Array:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
    place, stride = jnp.zeros(leaf.shape, jnp.uint32), 1
    for axis in reversed(range(leaf.ndim)):  # not arange and reshape: each shard counts for itself
        place += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= leaf.shape[axis]
    weights = [((place + offset) * jnp.uint32(factor) ^ (place >> 15)) | 1 for offset, factor in _LANES]
    return jnp.stack([jnp.sum(bits * weight, dtype=jnp.uint32) for weight in weights])


def digest_slice(shape: tuple[int, ...], where: tuple[Any, ...], values: np.ndarray) -> np.ndarray:
    """What a slice adds to the checksum of a leaf of `shape`: the same two sums, on the host; `where` is its index."""
    gap = len(shape) - sum(index is not ... for index in where)
    start = where.index(...) if ... in where else len(where)
    where = where[:start] + (slice(None),) * gap + where[start + 1 :]
    strides = np.cumprod((1, *shape[:0:-1]), dtype=np.uint64)[::-1].astype(np.uint32)
    with np.errstate(over="ignore"):
        places = (np.arange(n, dtype=np.uint32)[i] * s for n, i, s in zip(shape, where, strides, strict=False))
        place = np.atleast_1d(functools.reduce(np.add.outer, places, np.uint32(0))).ravel()
        bits = np.atleast_1d(values).ravel().view(f"u{values.dtype.itemsize}").astype(np.uint32, copy=False)
        return np.array(
            [
                np.sum(bits * (((place + np.uint32(offset)) * np.uint32(factor) ^ (place >> 15)) | 1), dtype=np.uint32)
                for offset, factor in _LANES
            ]
        )


def leaf_name(path: Any) -> str:
    """A leaf's path as `a/b/c`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
