"""The network as the flow sees it: images, a mask and a task in, an image-shaped prediction out.

Conditioning by `channels`: each token is [x_t | input | aM], so the photograph and the soft mask are seen in place, at no
extra tokens. Images are in [-1, 1], masks in [0, 1].
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from uniser_jax.models.codec import PixelCodec
from uniser_jax.models.dit import DiT
from uniser_jax.models.presets import DiTConfig
from uniser_jax.models.prompts import LearnedPrompts, text_ids


class UniSER(nnx.Module):
    """A transformer, its codec and its prompts.

    Args:
      config: sizes; channels in and out are replaced by what the codec and the conditioning need.
      codec: images to tokens.
      prompt_length: context tokens per task.
      rngs: for the initial parameters.
      dtype: of activations.
      attention: kernel, see `models.attention`.
      remat: policy, see `models.dit`.
    """

    def __init__(
        self,
        config: DiTConfig,
        codec: PixelCodec,
        *,
        prompt_length: int = 8,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        attention: str = "xla",
        remat: str = "none",
    ):
        self.codec, self.prompt_length = codec, prompt_length
        self.dit = DiT(channels_config(config, codec), rngs=rngs, dtype=dtype, kernel=attention, remat=remat)
        self.prompts = LearnedPrompts(prompt_length, config.joint_attention_dim, rngs=rngs)
        # x_t starts unseen: at t = 1 it is pure noise, and would drown the photograph in every token until it is unlearned.
        kernel = self.dit.image_in.kernel
        kernel[...] = kernel[...].at[: codec.channels].set(0)

    def __call__(
        self,
        x_t: Float[Array, "b h w c"],
        t: Float[Array, "b"],
        input: Float[Array, "b h w c"],
        mask: Float[Array, "b h w"],
        task: Int[Array, "b"],
    ) -> Float32[Array, "b h w c"]:
        """The prediction for noisy images x_t at times t, given the degraded photographs, soft masks aM and tasks."""
        h, w = x_t.shape[1:3]
        parts = (x_t, input, mask[..., None])
        tokens = jnp.concatenate([self.codec.encode(part) for part in parts], -1)
        out = self.dit(tokens, self.prompts(task), t, self.codec.ids(h, w), text_ids(self.prompt_length))
        return self.codec.decode(out, h, w)


def channels_config(config: DiTConfig, codec: PixelCodec) -> DiTConfig:
    """`config` with the channels of [x_t | input | aM] in, and of an image out."""
    inputs = 2 * codec.channels + codec.patch**2
    return dataclasses.replace(config, in_channels=inputs, out_channels=codec.channels)


def create(config: DiTConfig, codec: PixelCodec, key: jax.Array, **settings: Any) -> tuple[nnx.GraphDef, Any]:
    """Initialises a network: its graph, and its parameters as nested dicts of arrays."""
    graphdef, state = nnx.split(UniSER(config, codec, rngs=nnx.Rngs(params=key), **settings))
    return graphdef, nnx.to_pure_dict(state)


def abstract(config: DiTConfig, codec: PixelCodec, **settings: Any) -> tuple[nnx.GraphDef, Any, Any]:
    """The graph, the parameters' shapes, and their logical axes (tuples of names), without allocating anything."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: UniSER(config, codec, rngs=nnx.Rngs(0), **settings)))
    axes = jax.tree.map(
        lambda variable: variable.get_metadata()["out_sharding"], state, is_leaf=lambda v: isinstance(v, nnx.Variable)
    )
    return graphdef, nnx.to_pure_dict(state), nnx.to_pure_dict(axes)


def apply(graphdef: nnx.GraphDef, params: Any, *args: Any) -> Float32[Array, "b h w c"]:
    """Calls the network of `graphdef` with `params`; for use inside `jax.jit`."""
    return nnx.merge(graphdef, params)(*args)
