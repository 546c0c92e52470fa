"""The network as the flow sees it: images, a mask and a task in, an image-shaped prediction out.

Conditioning by `channels`: each token is [x_t | input | aM], so the photograph and the soft mask are seen in place, at no
extra tokens. By `references`: the photograph and the mask are images of their own in one sequence [x_t, input, aM], told apart
by the T of their positions, 0, 10 and 20, as FLUX.2 was trained to read them; a mask may be left out, or have its own size.
Images are in [-1, 1], or latents; masks in [0, 1].
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int

from uniser_jax.models.codec import PixelCodec, gray
from uniser_jax.models.dit import DiT, shapes_and_axes
from uniser_jax.models.lora import Lora, adapt
from uniser_jax.models.presets import DiTConfig
from uniser_jax.models.prompts import LearnedPrompts, text_ids

CONDITIONINGS = ("channels", "references")
_APART = 10  # in T, from one image of a sequence to the next


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
      conditioning: one of CONDITIONINGS.
      lora: adapters beside the transformer's kernels.

    Raises:
      ValueError: for an unknown conditioning, or targets that match nothing.
    """

    def __init__(
        self,
        config: DiTConfig,
        codec: PixelCodec,
        *,
        prompt_length: int = 8,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        attention: str = "auto",
        remat: str = "none",
        conditioning: str = "channels",
        lora: Lora | None = None,
    ):
        self.codec, self.prompt_length, self.conditioning = codec, prompt_length, conditioning
        sizes = conditioned_config(config, codec, conditioning)
        self.dit = DiT(sizes, rngs=rngs, dtype=dtype, kernel=attention, remat=remat)
        self.prompts = LearnedPrompts(prompt_length, config.joint_attention_dim, rngs=rngs)
        if conditioning == "channels":
            # x_t starts unseen: at t = 1 it is pure noise, and would drown the photograph in every token until it is unlearned.
            kernel = self.dit.image_in.kernel
            kernel[...] = kernel[...].at[: codec.channels].set(0)
        if lora is not None and lora.rank:
            adapt(self, lora, rngs=rngs)

    def __call__(
        self,
        x_t: Float[Array, "b h w c"],
        t: Float[Array, "b"],
        input: Float[Array, "b h w c"],
        mask: Float[Array, "b h w *c"] | None,
        task: Int[Array, "b"],
        mask_seen: Bool[Array, "b"] | None = None,
    ) -> Float32[Array, "b h w c"]:
        """The prediction for noisy images x_t at times t, given the degraded photographs, soft masks aM and tasks.

        By `references` a mask may also be None, or an image like the others already (latents of the gray mask); `mask_seen`
        says which examples have one at all.
        """
        context, words = self.prompts(task), text_ids(self.prompt_length)
        h, w = x_t.shape[1:3]
        if self.conditioning == "references":
            tokens, ids = sequence(self.codec, x_t, input, mask)
            last = ids[:, 0] == 2 * _APART
            seen = None if mask_seen is None else mask_seen[:, None] | ~last[None]
            out = self.dit(tokens, context, t, ids, words, seen=seen)[:, : len(self.codec.ids(h, w))]
        else:
            assert mask is not None, "a channel is always there"
            parts = (x_t, input, mask[..., None])
            tokens = jnp.concatenate([self.codec.encode(part) for part in parts], -1)
            out = self.dit(tokens, context, t, self.codec.ids(h, w), words)
        return self.codec.decode(out, h, w)


def sequence(
    codec: PixelCodec, x_t: Float[Array, "b h w c"], *references: Float[Array, "b k l *c"] | None
) -> tuple[Float[Array, "b n d"], Float32[np.ndarray, "n 4"]]:
    """The tokens of [x_t, first reference, second, ...] and their positions; None holds its T without tokens.

    A reference without a channel axis is a mask in [0, 1], and becomes a gray image of the codec's `mask_scale`; its positions
    count its own tokens, as the pipeline of FLUX.2 counts them.
    """
    tokens, ids = [], []
    for place, image in enumerate((x_t, *references)):
        if image is None:
            continue
        if image.ndim == 3:
            image = gray(image, codec.bands, codec.mask_scale)
        tokens.append(codec.encode(image))
        ids.append(codec.ids(*image.shape[1:3]) + np.array([_APART * place, 0, 0, 0], np.float32))
    return jnp.concatenate(tokens, 1), np.concatenate(ids)


def conditioned_config(config: DiTConfig, codec: PixelCodec, conditioning: str = "channels") -> DiTConfig:
    """`config` with the channels that a conditioning needs: [x_t | input | aM] in, or an image in; an image out.

    Raises:
      ValueError: for an unknown conditioning.
    """
    if conditioning not in CONDITIONINGS:
        raise ValueError(f"conditioning {conditioning!r} is unknown; known: {', '.join(CONDITIONINGS)}")
    inputs = codec.channels if conditioning == "references" else 2 * codec.channels + codec.patch**2
    return dataclasses.replace(config, in_channels=inputs, out_channels=codec.channels)


def create(config: DiTConfig, codec: PixelCodec, key: jax.Array, **settings: Any) -> tuple[nnx.GraphDef, Any]:
    """Initialises a network: its graph, and its parameters as nested dicts of arrays."""
    graphdef, state = nnx.split(UniSER(config, codec, rngs=nnx.Rngs(params=key), **settings))
    return graphdef, nnx.to_pure_dict(state)


def abstract(config: DiTConfig, codec: PixelCodec, **settings: Any) -> tuple[nnx.GraphDef, Any, Any]:
    """The graph, the parameters' shapes, and their logical axes; see `shapes_and_axes`."""
    return shapes_and_axes(lambda rngs: UniSER(config, codec, rngs=rngs, **settings))


def apply(graphdef: nnx.GraphDef, params: Any, *args: Any, **settings: Any) -> Float32[Array, "b h w c"]:
    """Calls the network of `graphdef` with `params`; for use inside `jax.jit`."""
    return nnx.merge(graphdef, params)(*args, **settings)
