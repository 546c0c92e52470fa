"""The FLUX.2 diffusion transformer: double-stream blocks, then parallel single-stream blocks, one modulation for all.

With d features, silu(x) = x sigmoid(x), LN a layer norm without parameters, and token order [context, image]:

  (1) e = W2 silu(W1 s(1000 t)),  s = [cos | sin](1000 t f_k),  f_k = 10000^(-k / 128)
  (2) shift, scale, gate = W silu(e), once per kind of block, shared by all layers
  (3) q, k = rope(rms(W n)),  v = W n,  n = (1 + scale) LN(x) + shift,  attention over all tokens
  (4) double: x += gate1 Wo attention;  x += gate2 Wd (silu(Wg n') * Wu n'),  each stream with its own weights
  (5) single: x += gate (Wo attention + Wd (silu(Wg n) * Wu n))
  (6) out = Wp ((1 + scale) LN(x) + shift), image tokens only

No layer has a bias. Tensor for tensor this is diffusers' `Flux2Transformer2DModel`, with fused matrices kept apart (q, k, v,
gate, up), so that each can be sharded. Kernels are [in, out], float32; blocks are stacked on a leading `layer` axis.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Float32

from uniser_jax.mesh import constrain
from uniser_jax.models.attention import KERNELS, attention
from uniser_jax.models.presets import DiTConfig

_FAN_IN = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_ZERO = nnx.initializers.zeros_init()

_POLICIES = jax.checkpoint_policies


def _offloaded(body: Callable) -> Callable:
    def named(carry: Any, layer: Any) -> Any:
        return body(jax.tree.map(lambda x: checkpoint_name(x, "block_input"), carry), layer)

    policy = _POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["block_input"],
        offload_src="device",
        offload_dst="pinned_host",
    )
    return jax.checkpoint(named, prevent_cse=False, policy=policy)


def _fused_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether this is cuDNN's forward pass: its derivative needs statistics of the softmax, which have no name from outside."""
    return primitive.name == "dot_product_attention_fwd_wrapper"


# What the backward pass of a block keeps. `dots` keeps matrix products and what attention returns, the expensive part, and
# recomputes the rest; by name, for a product is summed in float32 and kept in the dtype of activations. `full` recomputes
# all from the block's input; `offload` too, and keeps that in the host's memory.
REMAT: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda body: body,
    "dots": functools.partial(
        jax.checkpoint,
        prevent_cse=False,
        policy=_POLICIES.save_from_both_policies(
            _POLICIES.save_only_these_names("product", "attention"), _fused_attention
        ),
    ),
    "full": functools.partial(jax.checkpoint, prevent_cse=False),
    "offload": _offloaded,
}


def parameter(init: Any, shape: tuple[int, ...], axes: tuple[str | None, ...], rngs: nnx.Rngs) -> nnx.Param:
    """A float32 parameter that knows the logical names of its axes.

    Shardings are pinned by the jit that creates or updates the whole tree, not where a variable is made: hence not eager.
    """
    return nnx.Param(nnx.with_partitioning(init, axes, eager_sharding=False)(rngs.params(), shape))


def shapes_and_axes(make: Callable[[nnx.Rngs], nnx.Module]) -> tuple[nnx.GraphDef, Any, Any]:
    """The graph of a module, its parameters' shapes, and their logical axes (tuples of names), without allocating anything."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    axes = jax.tree.map(
        lambda variable: variable.get_metadata()["out_sharding"], state, is_leaf=lambda v: isinstance(v, nnx.Variable)
    )
    return graphdef, nnx.to_pure_dict(state), nnx.to_pure_dict(axes)


class Dense(nnx.Module):
    """A matrix without bias, applied in the dtype of its input.

    Args:
      shape: (in, out).
      axes: logical names of both.
      init: initializer; by default variance 1 / in.
    """

    def __init__(self, *shape: int, axes: tuple[str | None, ...], rngs: nnx.Rngs, init: Any = _FAN_IN):
        self.kernel = parameter(init, shape, axes, rngs)

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        """x W."""
        return checkpoint_name(product(x, self.kernel[...]), "product")


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis, in float32."""

    def __init__(self, dim: int, eps: float, *, rngs: nnx.Rngs):
        self.eps = eps
        self.scale = parameter(nnx.initializers.ones_init(), (dim,), ("head_dim",), rngs)

    def __call__(self, x: Float[Array, "b n h d"]) -> Float[Array, "b n h d"]:
        """The normalised heads."""
        return (rms_normalized(x.astype(jnp.float32), self.eps) * self.scale[...][None, None, None]).astype(x.dtype)


class Projections(nnx.Module):
    """Everything a stream's tokens are multiplied with in one block: attention, MLP and their ways back."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        self.heads, self.head_dim = config.num_attention_heads, config.attention_head_dim
        d, m = config.width, config.mlp_width
        dense = functools.partial(Dense, rngs=rngs)
        self.q, self.k, self.v = (dense(d, d, axes=("embed", "heads")) for _ in range(3))
        self.q_norm, self.k_norm = (RMSNorm(self.head_dim, config.eps, rngs=rngs) for _ in range(2))
        self.out = dense(d, d, axes=("heads", "embed"))
        self.gate, self.up = (dense(d, m, axes=("embed", "mlp")) for _ in range(2))
        self.down = dense(m, d, axes=("mlp", "embed"))

    def qkv(self, n: Float[Array, "b n d"]) -> tuple[Array, Array, Array]:
        """Equation (3) without the rotation."""
        q, k, v = (w(n).reshape(*n.shape[:2], self.heads, self.head_dim) for w in (self.q, self.k, self.v))
        return self.q_norm(q), self.k_norm(k), v

    def mlp(self, n: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """The gated MLP of equations (4) and (5)."""
        return self.down(constrain(jax.nn.silu(self.gate(n)) * self.up(n), "batch", "tokens", "mlp"))


class DoubleBlock(nnx.Module):
    """Equation (4): two streams that meet in attention."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        self.eps = config.eps
        self.image, self.text = Projections(config, rngs=rngs), Projections(config, rngs=rngs)

    def __call__(self, x: Array, c: Array, image_mod: Array, text_mod: Array, attend: Callable) -> tuple[Array, Array]:
        """Updates image tokens x [b n d] and context tokens c [b l d]; each mod is [b 1 6d]."""
        streams = ((c, self.text, jnp.split(text_mod, 6, -1)), (x, self.image, jnp.split(image_mod, 6, -1)))
        heads = [w.qkv(modulate(y, mod[0], mod[1], self.eps)) for y, w, mod in streams]
        joint = attend(*(jnp.concatenate(pair, 1) for pair in zip(*heads, strict=True)))
        seen = (joint[:, : c.shape[1]], joint[:, c.shape[1] :])
        out = []
        for (y, w, mod), attended in zip(streams, seen, strict=True):
            y = y + mod[2] * w.out(attended)
            y = y + mod[5] * w.mlp(modulate(y, mod[3], mod[4], self.eps))
            out.append(constrain(y, "batch", "tokens", "features"))
        return out[1], out[0]


class SingleBlock(nnx.Module):
    """Equation (5): attention and MLP side by side on all tokens."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        self.eps = config.eps
        self.joint = Projections(config, rngs=rngs)

    def __call__(self, x: Array, mod: Array, attend: Callable) -> Array:
        """Updates all tokens x [b n d]; mod is [b 1 3d]."""
        shift, scale, gate = jnp.split(mod, 3, -1)
        n = modulate(x, shift, scale, self.eps)
        # The gate's gradient needs their sum alone: kept by name, it spares both of them.
        change = checkpoint_name(self.joint.out(attend(*self.joint.qkv(n))) + self.joint.mlp(n), "product")
        return constrain(x + gate * change, "batch", "tokens", "features")


class DiT(nnx.Module):
    """Predicts one output token per image token.

    Args:
      config: sizes, in diffusers' field names.
      rngs: for the initial parameters; the last projection starts at zero, so the initial output is zero.
      dtype: of activations and products; norms, rotation and softmax stay in float32.
      kernel: of `attention`.
      remat: a key of REMAT.

    Raises:
      ValueError: for an unknown kernel or remat policy.
    """

    def __init__(
        self, config: DiTConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32, kernel: str = "auto", remat: str = "none"
    ):
        if remat not in REMAT:
            raise ValueError(f"remat policy {remat!r} is unknown; known: {', '.join(REMAT)}")
        if kernel not in KERNELS:
            raise ValueError(f"attention kernel {kernel!r} is unknown; known: {', '.join(KERNELS)}")
        self.config, self.dtype, self.attention_kernel, self.remat = config, dtype, kernel, remat
        d, frequencies = config.width, config.timestep_guidance_channels
        dense = functools.partial(Dense, rngs=rngs)
        self.time_in = dense(frequencies, d, axes=(None, "embed"))
        self.time_out = dense(d, d, axes=("embed", None))
        if config.guidance_embeds:
            self.guidance_in = dense(frequencies, d, axes=(None, "embed"))
            self.guidance_out = dense(d, d, axes=("embed", None))
        self.image_modulation = dense(d, 6 * d, axes=("embed", "mlp"))
        self.text_modulation = dense(d, 6 * d, axes=("embed", "mlp"))
        self.single_modulation = dense(d, 3 * d, axes=("embed", "mlp"))
        self.out_modulation = dense(d, 2 * d, axes=("embed", "mlp"))
        self.image_in = dense(config.in_channels, d, axes=("patch", "embed"))
        self.text_in = dense(config.joint_attention_dim, d, axes=(None, "embed"))
        self.double = _stack(DoubleBlock, config, config.num_layers, rngs)
        self.single = _stack(SingleBlock, config, config.num_single_layers, rngs)
        self.image_out = dense(d, config.out_channels or config.in_channels, axes=("embed", "patch"), init=_ZERO)

    def __call__(
        self,
        tokens: Float[Array, "b n i"],
        context: Float[Array, "b l j"],
        t: Float[Array, "b"],
        image_ids: Float32[np.ndarray, "n 4"],
        text_ids: Float32[np.ndarray, "l 4"],
        guidance: Float[Array, "b"] | None = None,
        seen: Bool[Array, "b n"] | None = None,
    ) -> Float32[Array, "b n o"]:
        """The prediction for each image token.

        Args:
          tokens: image tokens.
          context: context (text) tokens.
          t: time in [0, 1], 1 is noise.
          image_ids: rotary positions (T, H, W, L) of the image tokens; static.
          text_ids: those of the context tokens; static.
          guidance: scale, for configs with `guidance_embeds`.
          seen: image tokens that others attend to; None is all.
        """
        embedding = self._embed_time(t, guidance)
        image_mod, text_mod, single_mod, out_mod = (
            self._modulation(weights, embedding)
            for weights in (self.image_modulation, self.text_modulation, self.single_modulation, self.out_modulation)
        )
        if seen is not None:
            seen = jnp.concatenate([jnp.ones(context.shape[:2], bool), seen], 1)
        attend = self._attend(np.concatenate([text_ids, image_ids]), seen)

        x = constrain(self.image_in(tokens.astype(self.dtype)), "batch", "tokens", "features")
        c = constrain(self.text_in(context.astype(self.dtype)), "batch", "tokens", "features")
        x, c = self._scan(
            self.double, (x, c), lambda block, carry: block(carry[0], carry[1], image_mod, text_mod, attend)
        )
        x = jnp.concatenate([c, x], 1)
        x = self._scan(self.single, x, lambda block, carry: block(carry, single_mod, attend))
        scale, shift = jnp.split(out_mod, 2, -1)
        x = modulate(x[:, c.shape[1] :], shift, scale, self.config.eps)  # (6)
        return self.image_out(x.astype(jnp.float32))

    def _embed_time(self, t: Array, guidance: Array | None) -> Array:
        """Equation (1), in float32 up to the sinusoid."""
        channels = self.config.timestep_guidance_channels

        def mlp(into: Dense, out: Dense, value: Array) -> Array:
            return out(jax.nn.silu(into(sinusoid(1000 * value, channels).astype(self.dtype))))

        embedding = mlp(self.time_in, self.time_out, t)
        if self.config.guidance_embeds:
            if guidance is None:
                raise ValueError("this config embeds guidance: pass guidance [b]")
            embedding = embedding + mlp(self.guidance_in, self.guidance_out, guidance)
        return jax.nn.silu(embedding)

    def _modulation(self, weights: Dense, embedding: Array) -> Array:
        """Equation (2), [b 1 kd]. Blocks split it, so that their gradients are added up in one array.

        Pinned before that: left free on a (data, fsdp, tensor) mesh, XLA's partitioner computed a wrong loss.
        """
        return constrain(weights(embedding)[:, None], "batch", None, "features")

    def _attend(self, ids: np.ndarray, seen: Array | None) -> Callable[[Array, Array, Array], Array]:
        cos, sin = rope_tables(ids, self.config.axes_dims_rope, self.config.rope_theta)

        def attend(q: Array, k: Array, v: Array) -> Array:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            return attention(q, k, v, self.attention_kernel, seen).reshape(*q.shape[:2], -1)

        return attend

    def _scan(self, blocks: nnx.Module, carry: Any, call: Callable[[Any, Any], Any]) -> Any:
        """Runs stacked blocks one after the other: one block is compiled, whatever the depth."""
        graphdef, state = nnx.split(blocks)

        def body(carry: Any, layer: Any) -> tuple[Any, None]:
            return call(nnx.merge(graphdef, layer), carry), None

        return jax.lax.scan(REMAT[self.remat](body), carry, state)[0]


@jax.custom_vjp
def product(x: Float[Array, "*r i"], kernel: Float[Array, "i o"]) -> Float[Array, "*r o"]:
    """x W in the dtype of x; it and both gradients are summed in float32.

    Differentiated by JAX, `x @ kernel.astype(bfloat16)` rounds the kernel's gradient to bfloat16 before microbatches and
    devices are added up; here it stays in the kernel's float32. On CPUs this is also what makes bfloat16 faster than float32.
    """
    return _product_forward(x, kernel)[0]


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    y = _contract(x, kernel.astype(x.dtype), (x.ndim - 1,), (0,)).astype(x.dtype)
    return y, (x, kernel)


def _product_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    into = _contract(g, kernel.astype(x.dtype), (g.ndim - 1,), (1,)).astype(x.dtype)
    if x.dtype == jnp.float32 and jax.sharding.get_abstract_mesh().size <= 1:
        # One axis of rows: XLA transposes x for two, which on CPUs pays for bfloat16 only. A mesh may split either axis.
        x, g = (y.reshape(-1, y.shape[-1]) for y in (x, g))
    rows = tuple(range(x.ndim - 1))
    return into, _contract(x, g, rows, rows).astype(kernel.dtype)


product.defvjp(_product_forward, _product_backward)


def _contract(x: Array, y: Array, of_x: tuple[int, ...], of_y: tuple[int, ...]) -> Float32[Array, "..."]:
    return jax.lax.dot_general(x, y, ((of_x, of_y), ((), ())), preferred_element_type=jnp.float32)


def modulate(x: Array, shift: Array, scale: Array, eps: float) -> Array:
    """(1 + scale) LN(x) + shift, the norm in float32."""
    y = x.astype(jnp.float32)
    y = rms_normalized(y - y.mean(-1, keepdims=True), eps)
    return (1 + scale) * y.astype(x.dtype) + shift


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def rms_normalized(x: Float32[Array, "*r d"], eps: float) -> Float32[Array, "*r d"]:
    """x / rms(x) over the last axis.

    Its derivative in closed form takes fewer passes than through the mean and the root: less to compile, and to run.
    """
    return _rms_forward(x, eps)[0]


def _rms_forward(x: Array, eps: float) -> tuple[Array, tuple[Array, Array]]:
    inverse = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)
    y = x * inverse
    return y, (y, inverse)


def _rms_backward(_: float, saved: tuple[Array, Array], g: Array) -> tuple[Array]:
    y, inverse = saved
    return (inverse * (g - y * jnp.mean(g * y, -1, keepdims=True)),)


rms_normalized.defvjp(_rms_forward, _rms_backward)


def sinusoid(value: Float[Array, "b"], channels: int) -> Float32[Array, "b f"]:
    """[cos | sin](value f_k) of equation (1)."""
    half = channels // 2
    frequencies = jnp.exp(-math.log(10_000) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = value.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


def rope_tables(
    ids: Float32[np.ndarray, "n a"], dims: tuple[int, ...], theta: float
) -> tuple[Float32[np.ndarray, "n r"], Float32[np.ndarray, "n r"]]:
    """Cosines and sines of rotary angles (Su et al. 2021), each axis of the position with its own share of a head.

    Frequencies are float64 as in diffusers; r is half the head dimension.
    """
    angles = [ids[:, axis, None].astype(np.float64) * theta ** (-np.arange(0, d, 2) / d) for axis, d in enumerate(dims)]
    angle = np.concatenate(angles, -1)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotate(x: Float[Array, "b n h d"], cos: np.ndarray, sin: np.ndarray) -> Float[Array, "b n h d"]:
    """Rotates adjacent pairs (2k, 2k + 1) of features by the angle of their position, in float32."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    c, s = cos[None, :, None], sin[None, :, None]
    return jnp.stack([even * c - odd * s, odd * c + even * s], -1).reshape(x.shape).astype(x.dtype)


def _stack(block: Callable[..., nnx.Module], config: DiTConfig, layers: int, rngs: nnx.Rngs) -> nnx.Module:
    @nnx.split_rngs(splits=layers)
    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layer"})
    def make(rngs: nnx.Rngs) -> nnx.Module:
        return block(config, rngs=rngs)

    return make(rngs)
