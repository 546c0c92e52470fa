"""Full softmax attention: one function, several kernels that agree."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

KERNELS = ("xla", "chunked")
_CHUNK = 512  # queries at a time


def attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    kernel: str = "xla",
    seen: Bool[Array, "b m"] | None = None,
) -> Float[Array, "b n h d"]:
    """softmax(q k^T / sqrt(d)) v, the softmax in float32 (Vaswani et al. 2017, eq. 1).

    Args:
      q: queries.
      k: keys.
      v: values.
      seen: keys that there are; the others are as if they were not. None is all.
      kernel: `xla` holds all n * m weights; `chunked` holds 512 * m and recomputes them for the gradient.

    Raises:
      ValueError: for an unknown kernel.
    """
    mask = None if seen is None else seen[:, None, None]
    if kernel == "xla":
        return jax.nn.dot_product_attention(q, k, v, mask=mask)
    if kernel == "chunked":
        return _chunked(q, k, v, mask)
    raise ValueError(f"attention kernel {kernel!r} is unknown; known: {', '.join(KERNELS)}")


def _chunked(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    b, n, h, d = q.shape
    chunk = min(_CHUNK, n)
    chunks = -(-n // chunk)
    padded = jnp.pad(q, ((0, 0), (0, chunks * chunk - n), (0, 0), (0, 0)))  # padded queries are dropped, keys never are
    queries = jnp.moveaxis(padded.reshape(b, chunks, chunk, h, d), 1, 0)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # a scan body is never merged with its recomputation
    def one(_: None, query: Array) -> tuple[None, Array]:
        return None, jax.nn.dot_product_attention(query, k, v, mask=mask)

    _, out = jax.lax.scan(one, None, queries)
    return jnp.moveaxis(out, 0, 1).reshape(b, chunks * chunk, h, d)[:, :n]
