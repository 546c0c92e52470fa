"""Full softmax attention: one function, several kernels that agree.

On a mesh every kernel works on its own shard: rows over the batch axes, heads over `tensor`, queries over `sequence`. Keys and
values are gathered over `sequence` first, 2 b m h d numbers, which is little beside a block's activations; `ring` passes them
around instead, for sequences whose keys alone would not fit.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu import splash_attention
from jaxtyping import Array, Bool, Float, Float32

from uniser_jax import mesh as meshes
from uniser_jax.models.ring import from_chunks, ring, to_chunks

KERNELS = ("auto", "xla", "chunked", "splash", "cudnn", "ring")
_LONG = 1024  # keys from which n * m weights in memory cost more than tiles do; below, XLA's fusions are as good
_LONG_ON_CPU = 512  # below, a product of one head is too small for several threads
_BLOCKS = (256, 384, 512)  # sides of splash's tiles, in multiples of the TPU's 128 lanes
_PARTIAL = 16  # gradients of the queries that splash's fused backward pass may hold at once, one per tile of keys


def attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    kernel: str = "auto",
    seen: Bool[Array, "b m"] | None = None,
) -> Float[Array, "b n h d"]:
    """softmax(q k^T / sqrt(d)) v, the softmax in float32 (Vaswani et al. 2017, eq. 1).

    Args:
      q: queries.
      k: keys.
      v: values.
      kernel: `auto` takes what suits the devices, the length and the dtype;
        `xla` holds all n * m weights; `chunked` holds at most 512 * m, on CPUs at most 2048 * m of one head, and
        recomputes them for the gradient;
        `splash` (TPU; interpreted on CPU, for tests) and `cudnn` (NVIDIA, 16 bits) never let weights leave the chip;
        `ring` holds the keys of one shard of the sequence at a time.
      seen: keys that there are; the others are as if they were not. None is all. Each row must see a key.

    Raises:
      ValueError: for an unknown kernel, or one that these devices do not have.
    """
    kernel = choose(kernel, platform(), q.dtype, q.shape[-1], k.shape[1])
    if kernel == "ring":
        return _ring(q, k, v, seen)
    kernels: dict[str, Callable[..., Array]] = {"xla": _xla, "chunked": _chunked, "splash": _splash, "cudnn": _cudnn}
    return _on_shards(kernels[kernel], "keys", q, k, v, seen)


def choose(kernel: str, platform: str, dtype: jnp.dtype, head_dim: int, keys: int) -> str:
    """The kernel that runs on a platform (tpu, gpu, cpu) for queries of a dtype and head size and this many keys.

    Raises:
      ValueError: for an unknown kernel, or one that cannot run there.
    """
    if kernel not in KERNELS:
        raise ValueError(f"attention kernel {kernel!r} is unknown; known: {', '.join(KERNELS)}")
    fits_cudnn = dtype in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0 and head_dim <= 128
    if kernel == "auto":
        if platform == "gpu" and fits_cudnn:
            return "cudnn"
        if keys < (_LONG_ON_CPU if platform == "cpu" else _LONG):
            return "xla"
        return "splash" if platform == "tpu" else "chunked"
    if kernel == "splash" and platform == "gpu":
        raise ValueError("attention kernel 'splash' needs a TPU, these devices are GPUs; use 'auto' or 'cudnn'")
    if kernel == "cudnn" and platform != "gpu":
        raise ValueError(f"attention kernel 'cudnn' needs an NVIDIA GPU, these devices are {platform}; use 'auto'")
    if kernel == "cudnn" and not fits_cudnn:
        raise ValueError(
            f"attention kernel 'cudnn' takes bfloat16 or float16 and heads of 8, 16, ... 128 numbers, not {dtype} and"
            f" {head_dim}; set config.model.compute_dtype, or use 'auto'"
        )
    return kernel


def platform() -> str:
    """Of the devices that the code being traced will run on: those of the active mesh, which may be compiled for only."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def _on_shards(
    local: Callable[..., Array], keys: str, q: Array, k: Array, v: Array, seen: Array | None
) -> Float[Array, "b n h d"]:
    """Calls `local` with each device's part of the queries, and the keys as the logical axis `keys` lies."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(q, k, v, seen)
    names = [("batch", axis, "heads", "head_dim") for axis in ("tokens", keys, keys)] + [("batch", keys)]
    given = [x for x in (q, k, v, seen) if x is not None]
    specs = tuple(meshes.fitting(mesh, axes, x.shape) for axes, x in zip(names, given, strict=False))

    def call(q: Array, k: Array, v: Array, seen: Array | None = None) -> Array:
        return local(q, k, v, seen)

    return jax.shard_map(call, in_specs=specs, out_specs=specs[0], check_vma=False)(*given)


def _softmax(each: Callable[[Callable], Callable]) -> Callable[..., Array]:
    """Attention of which all products are batched over examples and heads, [b h _ _], which `each` maps them over.

    Heads before tokens: one transposition of each operand, none of the weights or their gradient. Kept for the gradient, by
    equations (4) and (5) of `ring`: the output and L, of which `dots` of models.dit keeps copies; differentiated by JAX,
    n * m weights are kept, or made again with their maxima and sums.
    """

    @jax.custom_vjp
    def attend(q: Array, k: Array, v: Array, seen: Array | None) -> Array:
        return forward(q, k, v, seen)[0]

    def forward(q: Array, k: Array, v: Array, seen: Array | None) -> tuple[Array, Any]:
        out, L = each(_forward)(*_heads_first(q, k, v, seen))
        out, L = checkpoint_name(out.swapaxes(1, 2), "attention"), checkpoint_name(L, "attention")
        return out, (q, k, v, seen, out, L)

    def backward(saved: Any, dout: Array) -> tuple[Array, Array, Array, None]:
        q, k, v, seen, out, L = saved
        D = (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1).swapaxes(1, 2)
        gradients = each(_backward)(*_heads_first(q, k, v, seen), dout.swapaxes(1, 2), L, D)
        dq, dk, dv = (gradient.swapaxes(1, 2) for gradient in gradients)
        return dq, dk, dv, None

    attend.defvjp(forward, backward)
    return attend


def _heads_first(q: Array, k: Array, v: Array, seen: Array | None) -> tuple[Array, Array, Array, Array | None]:
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return q, k, v, None if seen is None else seen[:, None]


def _forward(q: Array, k: Array, v: Array, seen: Array | None) -> tuple[Array, Array]:
    """Of q [b h n d], k and v [b h m d], seen [b 1 m]: out [b h n d] and L [b h n]."""
    logits, scale = _logits(q, k, seen), q.shape[-1] ** -0.5
    largest = logits.max(-1, keepdims=True)
    weights = jnp.exp((logits - largest) * scale)  # scaled here, in a pass that there is anyway
    total = weights.sum(-1, keepdims=True)
    out = _product(weights.astype(v.dtype), v, 3, 2) / total
    return out.astype(q.dtype), (largest * scale + jnp.log(total))[..., 0]


def _backward(
    q: Array, k: Array, v: Array, seen: Array | None, dout: Array, L: Array, D: Array
) -> tuple[Array, Array, Array]:
    scale = q.shape[-1] ** -0.5
    with jax.named_scope("recomputed"):  # no progress for `flops`
        weights = jnp.exp(_logits(q, k, seen) * scale - L[..., None])
    dv = _product(weights.astype(v.dtype), dout, 2, 2)
    ds = (weights * (_product(dout, v, 3, 3) - D[..., None])).astype(q.dtype)
    dq, dk = _product(ds, k, 3, 2) * scale, _product(ds, q, 2, 2) * scale
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def _logits(q: Array, k: Array, seen: Array | None) -> Float32[Array, "b h n m"]:
    logits = _product(q, k, 3, 3)
    return logits if seen is None else jnp.where(seen[:, :, None], logits, jnp.finfo(jnp.float32).min)


def _product(x: Array, y: Array, of_x: int, of_y: int) -> Float32[Array, "b h _ _"]:
    """Per example and head, over one axis of each."""
    return jax.lax.dot_general(x, y, (((of_x,), (of_y,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)


def _one_by_one(call: Callable) -> Callable:
    """Maps `call`, of arrays [1 1 ...], over examples and heads: on CPUs the weights of one head stay in a cache."""

    def mapped(q: Array, *others: Array | None) -> Any:
        b, h = q.shape[:2]

        def rows(x: Array) -> Array:
            return jnp.broadcast_to(x, (b, h, *x.shape[2:])).reshape(-1, 1, 1, *x.shape[2:])

        out = jax.lax.map(lambda row: call(*row), jax.tree.map(rows, (q, *others)))
        return jax.tree.map(lambda x: x.reshape(b, h, *x.shape[3:]), out)

    return mapped


_xla, _by_head = _softmax(lambda each: each), _softmax(_one_by_one)


def _chunked(q: Array, k: Array, v: Array, seen: Array | None) -> Array:
    kernel, chunk = (_by_head, 2048) if platform() == "cpu" else (_xla, 512)

    def one(_: None, query: Array) -> tuple[None, Array]:
        return None, kernel(query, k, v, seen)

    return from_chunks(jax.lax.scan(one, None, to_chunks(q, chunk))[1], q.shape[1])


def _splash(q: Array, k: Array, v: Array, seen: Array | None) -> Array:
    """The Pallas kernel, one row of the batch at a time; a key that is not seen, or padding, is of another segment."""
    b, n, h, d = q.shape
    side_q, side_k = _block(n), _block(k.shape[1])
    if seen is None and k.shape[1] % side_k:
        seen = jnp.ones(k.shape[:2], bool)
    q, k, v = (_pad(x, side).swapaxes(1, 2) for x, side in ((q * d**-0.5, side_q), (k, side_k), (v, side_k)))
    fused = k.shape[2] <= _PARTIAL * side_k  # one backward kernel of five matrix products instead of two of seven
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([splash_attention.FullMask((q.shape[2], k.shape[2]))] * h),
        block_sizes=splash_attention.BlockSizes(
            block_q=side_q,
            block_kv=side_k,
            block_q_dkv=side_q,
            block_kv_dkv=side_k,
            block_q_dq=None if fused else side_q,
            block_kv_dq=None if fused else side_k,
            use_fused_bwd_kernel=fused,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention",
        interpret=platform() != "tpu",
    )
    if seen is None:
        return jax.vmap(kernel)(q, k, v).swapaxes(1, 2)[:, :n]
    queries = jnp.ones((b, q.shape[2]), jnp.int32)
    segments = splash_attention.SegmentIds(queries, _pad(seen.astype(jnp.int32), side_k))
    return jax.vmap(kernel)(q, k, v, segments).swapaxes(1, 2)[:, :n]


def _block(length: int) -> int:
    """The side of the tiles that need the least padding; of several, the largest."""
    if length <= 128:
        return 128
    return min(_BLOCKS, key=lambda side: (-(-length // side) * side, -side))


def _cudnn(
    q: Array, k: Array, v: Array, seen: Array | None, implementation: Literal["cudnn", "xla"] = "cudnn"
) -> Array:
    call = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
    if seen is None:
        return call(q, k, v)
    # cuDNN masks by length, else by a bias of n * m numbers. The order of keys means nothing: those that are seen go first.
    order = jnp.argsort(~seen, 1)[..., None, None]
    k, v = (jnp.take_along_axis(x, order, 1) for x in (k, v))
    lengths = seen.sum(1, dtype=jnp.int32)
    return call(q, k, v, key_value_seq_lengths=lengths)


def _ring(q: Array, k: Array, v: Array, seen: Array | None) -> Array:
    mesh, n = jax.sharding.get_abstract_mesh(), q.shape[1]
    size = 1 if mesh.empty else mesh.shape["sequence"]
    seen = jnp.ones(k.shape[:2], bool) if seen is None else seen
    given = [_pad(x, size) for x in (q, k, v, seen)]
    return _on_shards(functools.partial(ring, axis="sequence" if size > 1 else None), "tokens", *given)[:, :n]


def _pad(x: Array, multiple: int) -> Array:
    """Zeros behind the second axis, to a multiple."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple)) + ((0, 0),) * (x.ndim - 2))
