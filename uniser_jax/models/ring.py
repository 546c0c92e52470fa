"""Attention over keys that no device holds whole (Liu et al. 2023, "Ring attention"): they travel, the queries stay.

For one query, scale c = 1 / sqrt(d), and blocks of keys that arrive one after the other, with m = -inf, l = 0, o = 0 at first:

  (1) s = c q k^T,  m' = max(m, max s),  p = exp(s - m')
  (2) l = l exp(m - m') + sum p,  o = o exp(m - m') + p v,  and m = m'
  (3) out = o / l,  L = m + log l

The gradient needs only out and L; dk and dv travel with their keys until they are home:

  (4) p = exp(s - L),  D = sum(dout * out)
  (5) dv += p^T dout,  ds = c p (dout v^T - D),  dq += ds k,  dk += ds^T q

Sums are float32. Queries are taken a chunk at a time, so a device holds chunk * m / ring weights, never n * m.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

_CHUNK = 512  # queries at a time
_LOW = -1e30  # of a key that is not there: -inf - -inf would be nan


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def ring(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    seen: Bool[Array, "b m"],
    axis: str | None,
) -> Float[Array, "b n h d"]:
    """Attention of this device's queries to the keys of all devices along a manual mesh axis; None is a ring of one."""
    return _forward(q, k, v, seen, axis)[0]


def _forward(q: Array, k: Array, v: Array, seen: Array, axis: str | None) -> tuple[Array, Array]:
    """Equations (1) to (3): out [b n h d] and L [c b h n], by chunks."""
    queries = to_chunks(q)
    shape = (*queries.shape[:2], queries.shape[3], queries.shape[2])  # c b h n
    sums = jnp.full(shape, _LOW), jnp.zeros(shape), jnp.zeros((*shape, q.shape[-1]))

    def absorb(sums: Any, keys: Any) -> Any:
        return jax.lax.map(lambda chunk: _merge(*chunk, *keys), (queries, *sums))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        sums, keys = carry
        return (absorb(sums, keys), _pass_on(keys, axis)), None

    (sums, keys), _ = jax.lax.scan(step, (sums, (k, v, seen)), length=_size(axis) - 1)
    m, l, o = absorb(sums, keys)  # noqa: E741
    out = jnp.swapaxes(o / l[..., None], 2, 3).astype(q.dtype)
    return from_chunks(out, q.shape[1]), m + jnp.log(l)


def _merge(q: Array, m: Array, l: Array, o: Array, k: Array, v: Array, seen: Array) -> tuple[Array, Array, Array]:  # noqa: E741
    s = _scores(q, k, seen)
    new = jnp.maximum(m, s.max(-1))
    p = jnp.where(seen[:, None, None], jnp.exp(s - new[..., None]), 0)
    shrink = jnp.exp(m - new)
    pv = jnp.einsum("bhnm,bmhd->bhnd", p.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return new, l * shrink + p.sum(-1), o * shrink[..., None] + pv


def _fwd(q: Array, k: Array, v: Array, seen: Array, axis: str | None) -> tuple[Array, Any]:
    # The name of what a rematerialising caller may keep: see REMAT of `models.dit`.
    out, L = (checkpoint_name(x, "attention") for x in _forward(q, k, v, seen, axis))
    return out, (q, k, v, seen, out, L)


def _bwd(axis: str | None, saved: Any, dout: Array) -> tuple[Array, Array, Array, None]:
    """Equations (4) and (5)."""
    q, k, v, seen, out, L = saved
    D = jnp.einsum("cbnhd,cbnhd->cbhn", *(to_chunks(x).astype(jnp.float32) for x in (dout, out)))
    queries = to_chunks(q), to_chunks(dout), L, D

    def step(carry: Any, _: None) -> tuple[Any, None]:
        dq, (k, v, seen, dk, dv) = carry
        gradients, part = jax.lax.scan(functools.partial(_pull, k=k, v=v, seen=seen), (dk, dv), queries)
        return (dq + part, _pass_on((k, v, seen, *gradients), axis)), None

    zeros = jnp.zeros(queries[0].shape), (k, v, seen, jnp.zeros(k.shape), jnp.zeros(v.shape))
    (dq, (_, _, _, dk, dv)), _ = jax.lax.scan(step, zeros, length=_size(axis))
    return from_chunks(dq, q.shape[1]).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


def _pull(carry: Any, chunk: Any, *, k: Array, v: Array, seen: Array) -> tuple[Any, Array]:
    (dk, dv), (q, dout, L, D) = carry, chunk
    product: Callable[..., Array] = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    p = jnp.where(seen[:, None, None], jnp.exp(_scores(q, k, seen) - L[..., None]), 0)
    ds = p * (product("bnhd,bmhd->bhnm", dout, v) - D[..., None]) * q.shape[-1] ** -0.5
    p, ds = p.astype(q.dtype), ds.astype(q.dtype)
    dk, dv = dk + product("bhnm,bnhd->bmhd", ds, q), dv + product("bhnm,bnhd->bmhd", p, dout)
    return (dk, dv), product("bhnm,bmhd->bnhd", ds, k)


def _scores(q: Array, k: Array, seen: Array) -> Array:
    s = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    return jnp.where(seen[:, None, None], s, _LOW)


def to_chunks(x: Array, most: int = _CHUNK) -> Array:
    """[b n h d] to the fewest equal chunks [c b n' h d] of at most `most`, n' a multiple of 16 if there are several.

    Padded queries are dropped by `from_chunks`, and no gradient comes from there.
    """
    b, n = x.shape[:2]
    chunks = -(-n // most)
    chunk = n if chunks == 1 else -(-n // (16 * chunks)) * 16
    padded = jnp.pad(x, ((0, 0), (0, -n % chunk), (0, 0), (0, 0)))
    return jnp.moveaxis(padded.reshape(b, -1, chunk, *x.shape[2:]), 1, 0)


def from_chunks(x: Array, n: int) -> Array:
    """The inverse, for n queries."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :n]


def _size(axis: str | None) -> int:
    return 1 if axis is None else jax.lax.axis_size(axis)


def _pass_on(keys: Any, axis: str | None) -> Any:
    """To the next device of the ring, while this one works: nothing here waits for what was just computed from them."""
    size = _size(axis)
    if axis is None or size == 1:
        return keys
    return jax.lax.ppermute(keys, axis, [(i, (i + 1) % size) for i in range(size)])


ring.defvjp(_fwd, _bwd)
