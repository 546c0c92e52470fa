"""From a config to the network, the initial state, and one training step: loss, gradient, update, average."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Bool, Float32, UInt8
from ml_collections import ConfigDict

from uniser_jax import config as schema
from uniser_jax import mesh as meshes
from uniser_jax import optim
from uniser_jax.diffusion.flow import Flow
from uniser_jax.models import lora, uniser
from uniser_jax.models.attention import choose
from uniser_jax.models.codec import LatentCodec, PixelCodec
from uniser_jax.models.lora import Lora
from uniser_jax.models.presets import preset
from uniser_jax.types import Batch, TrainState

Metrics = dict[str, Any]
_MASK_SEEN = 0x6D61736B  # far from 0 and 1: `fold_in` of these gives the keys that `split` does, of times and noise


class Network(NamedTuple):
    """What is fixed about a network: its graph, and the shapes and logical axes of its parameters."""

    graphdef: nnx.GraphDef
    shapes: Any  # of what is trained: nested dict of ShapeDtypeStruct
    axes: Any  # the same tree, tuples of logical axis names
    codec: PixelCodec
    init: Callable[[jax.Array], Any]  # key -> params
    base: Any = None  # of what adapters leave frozen, shapes; None: all is trained
    base_axes: Any = None


def build_network(model: ConfigDict, adapters: ConfigDict | None = None) -> Network:
    """Builds the sections `config.model` and, for the adapters, `config.lora`; allocates nothing.

    Raises:
      ValueError: for an unknown preset, dtype, kernel or remat policy, naming the known ones.
    """
    size = preset(model.preset)
    codec = (
        PixelCodec(1, size.in_channels, model.mask_scale)
        if model.codec == "latents"
        else PixelCodec(model.patch, mask_scale=model.mask_scale)
    )
    settings = {
        "prompt_length": model.prompt_length,
        "dtype": jnp.dtype(model.compute_dtype),
        "attention": model.attention,
        "remat": model.remat,
        "conditioning": model.conditioning,
    }
    if adapters is not None:
        settings["lora"] = schema.build(Lora, adapters)
    graphdef, shapes, axes = uniser.abstract(size, codec, **settings)

    def init(key: jax.Array) -> Any:
        return uniser.create(size, codec, key, **settings)[1]

    if adapters is None or not adapters.rank:
        return Network(graphdef, shapes, axes, codec, init)
    (trained, base), (trained_axes, base_axes) = lora.split(shapes), lora.split(axes)
    return Network(graphdef, trained, trained_axes, codec, lambda key: lora.split(init(key))[0], base, base_axes)


def base_shapes(network: Network, mesh: jax.sharding.Mesh) -> Any:
    """Shapes and shardings of all that a base may give: the transformer without adapters, and the prompts."""
    shapes, axes = (
        (network.shapes, network.axes)
        if network.base is None
        else (
            network.base | {"prompts": network.shapes["prompts"]},
            network.base_axes | {"prompts": network.axes["prompts"]},
        )
    )
    return jax.tree.map(_with_sharding, shapes, meshes.sharding_of(mesh, axes, shapes))


def frozen_shapes(config: ConfigDict, network: Network, mesh: jax.sharding.Mesh) -> Any:
    """What a step takes as `base`: kernels of blocks in the dtype of activations, in which they are used anyway."""
    if network.base is None:
        return None

    def kept(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        dtype = jnp.dtype(config.model.compute_dtype) if leaf.ndim == 3 else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

    return jax.tree.map(kept, {"dit": base_shapes(network, mesh)["dit"]})


def check(
    config: ConfigDict,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
    latents: LatentCodec | None = None,
    platform: str = "",
) -> None:
    """Checks that batch, width, heads, MLP and tokens spread evenly over the mesh, and that its devices have the kernel.

    Args:
      config: of the run.
      mesh: what it shall train on.
      latents: of the run, if it has any.
      platform: of the devices, tpu, gpu or cpu; by default that of those in the mesh, which an abstract one has not.

    Raises:
      ValueError: one line with the number, what it must divide by and the fix.
    """
    size, model = preset(config.model.preset), config.model
    dtype, platform = jnp.dtype(model.compute_dtype), platform or mesh.devices.flat[0].platform
    meshes.check_divides(mesh, "fsdp", features=size.width)  # or every chip would hold the whole state
    meshes.check_divides(mesh, "tensor", attention_heads=size.num_attention_heads, MLP_features=size.mlp_width)
    for batch_size, *sides in schema.batch_shapes(config):
        meshes.check_batch(mesh, batch_size, config.optim.accumulate)
        image_tokens = tokens(config, (sides[0], sides[1]), latents)
        meshes.check_divides(mesh, "sequence", image_tokens=image_tokens, prompt_tokens=model.prompt_length)
        choose(model.attention, platform, dtype, size.attention_head_dim, image_tokens + model.prompt_length)


def tokens(config: ConfigDict, shape: tuple[int, int], latents: LatentCodec | None = None) -> int:
    """Image tokens of an example of `shape` (h, w) pixels."""
    side = latents.side if latents else config.model.patch
    image, small = (
        (shape[0] // (side * scale)) * (shape[1] // (side * scale)) for scale in (1, config.model.mask_scale)
    )
    return 2 * image + small if config.model.conditioning == "references" else image


def state_shapes(network: Network, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the whole state; moments and average are sharded like their parameters."""
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shardings = meshes.sharding_of(mesh, network.axes, network.shapes)
    params = jax.tree.map(_with_sharding, network.shapes, shardings)
    opt_state = optim.per_parameter(
        lambda leaf, of: _with_sharding(leaf, meshes.sharding_like(of, leaf.shape) if of else replicated),
        jax.eval_shape(optimizer.init, network.shapes),
        params,
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    return TrainState(step, params, params, opt_state)


def init_state(network: Network, optimizer: optax.GradientTransformation, shapes: TrainState, seed: int) -> TrainState:
    """Initialises directly into the shardings of `shapes`; the values do not depend on the mesh."""

    def init() -> TrainState:
        params = network.init(jax.random.key(seed))
        return TrainState(jnp.int32(0), params, jax.tree.map(jnp.copy, params), optimizer.init(params))

    return jax.jit(init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, shapes))()


def make_step(config: ConfigDict, network: Network, optimizer: optax.GradientTransformation, shapes: TrainState) -> Any:
    """The jitted `(state, batch, latents, base) -> (state, metrics)`; the old state is donated.

    The codec of latents and the base of adapters, None where there is none, stay as they are and have no gradient.
    """
    flow = schema.build(Flow, config.flow)
    learning_rate = optim.schedule(config.optim, config.steps)

    def step(
        state: TrainState, batch: Batch, latents: LatentCodec | None = None, base: Any = None
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        t, noise = draw_noise(flow, key, batch, latents)
        loss = functools.partial(batch_loss, network, flow, latents=latents, base=base)
        data: tuple[Any, ...] = (batch, t, noise)
        if config.model.drop_mask:
            data += (draw_mask_seen(key, batch.mask, config.model.drop_mask),)
        gradient, metrics = accumulated_gradient(loss, state.params, data, config.optim.accumulate)
        with jax.named_scope("optimizer"):  # profiles and `flops` tell by these names what belongs to what
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = optim.ema_update(state.ema, params, config.optim.ema, state.step)
        metrics |= {"grad_norm": optax.tree.norm(gradient), "lr": learning_rate(optim.applied(state.opt_state))}
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        # One bad batch must not end a run: it changes nothing but the step, and counts for nothing but `skipped`.
        kept = jax.tree.map(functools.partial(jnp.where, finite), (params, ema, opt_state), state[1:])
        metrics = jax.tree.map(lambda value: jnp.where(finite, value, 0), metrics)
        return TrainState(state.step + 1, *kept), metrics | {"skipped": 1 - finite.astype(jnp.float32)}

    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    replicated = shapes.step.sharding
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated))


def draw_noise(flow: Flow, key: jax.Array, batch: Batch, latents: LatentCodec | None = None) -> tuple[Any, Any]:
    """Times and noise for a batch, or for its latents if there is a codec."""
    return flow.draw(key, latents.shape(batch.target.shape) if latents else batch.target.shape)


def draw_mask_seen(key: jax.Array, mask: UInt8[Any, "b h w"], share: float) -> Bool[Any, "b"]:
    """Which examples see their mask: of those whose mask is white, and so says nothing, `share` do not."""
    dropped = jax.random.bernoulli(jax.random.fold_in(key, _MASK_SEEN), share, mask.shape[:1])
    return ~(dropped & (mask == 255).all((1, 2)))


def batch_loss(
    network: Network,
    flow: Flow,
    params: Any,
    batch: Batch,
    t: Any,
    noise: Any,
    mask_seen: Any = None,
    latents: LatentCodec | None = None,
    base: Any = None,
) -> tuple[Any, Metrics]:
    """The mean loss of a batch, and its sums per effect and per tenth of t; of its latents, if there is a codec."""
    predict = functools.partial(uniser.apply, network.graphdef, lora.join(params, base), mask_seen=mask_seen)
    input, target, mask = to_float(batch.input), to_float(batch.target), mask_of(batch)
    if latents is not None:
        with jax.named_scope("encode"):
            input, target, mask = latents.encode(input), latents.encode(target), latents.encode_mask(mask)
    losses = flow.loss(predict, t, noise, input, target, mask, batch.task)
    present = (batch.strengths > 0).astype(jnp.float32)
    tenth = jax.nn.one_hot(jnp.clip(jnp.int32(t * 10), 0, 9), 10)
    sums = {
        "loss_effect_sum": losses @ present,
        "loss_effect_count": present.sum(0),
        "loss_t_sum": losses @ tenth,
        "loss_t_count": tenth.sum(0),
    }
    loss = losses.mean()
    return loss, {"loss": loss, **sums}


def accumulated_gradient(loss: Callable, params: Any, data: Any, parts: int) -> tuple[Any, Metrics]:
    """The mean gradient of `loss(params, *data)` over `parts` microbatches, by an explicit scan.

    Args:
      loss: returns (mean loss, metrics); scalar metrics are means, arrays are sums.
      params: what the gradient is taken of.
      data: arrays with a leading batch axis that `parts` divides. All random draws are in it, made for the whole batch,
        so that the result does not depend on `parts` but for rounding.
      parts: how many microbatches.
    """
    gradient = jax.grad(loss, has_aux=True)
    if parts == 1:
        return gradient(params, *data)

    def split(leaf: Any) -> Any:
        # Strided, not blocked: each microbatch spans every device that holds rows of the batch.
        return leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(params, *part)), None

    microbatches = jax.tree.map(split, data)
    first = jax.tree.map(lambda leaf: leaf[0], microbatches)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradient, params, *first))
    (total, metrics), _ = jax.lax.scan(add, zeros, microbatches)
    mean = jax.tree.map(lambda leaf: leaf / parts, total)
    return mean, {key: value / parts if value.ndim == 0 else value for key, value in metrics.items()}


def to_float(images: Any) -> Float32[Any, "..."]:
    """uint8 images to float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def to_uint8(images: Any) -> UInt8[Any, "..."]:
    """Images in [-1, 1] to uint8, clipped and rounded; the inverse of `to_float`."""
    return jnp.round(jnp.clip((images + 1) * 127.5, 0, 255)).astype(jnp.uint8)


def mask_of(batch: Batch) -> Float32[Any, "b h w"]:
    """The soft mask aM as float32 in [0, 1]."""
    return batch.mask.astype(jnp.float32) / 255


def _with_sharding(leaf: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
