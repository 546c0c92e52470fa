"""The KL autoencoder of FLUX.2: an image of h x w pixels to (h / 16) (w / 16) tokens and back (at its published size).

With GN a group norm, C a 3 x 3 convolution, and images in [-1, 1]:

  (1) resnet: x + C silu(GN C silu(GN x)),  x through a 1 x 1 convolution where the channels change
  (2) encoder: C, levels of resnets, each but the last halved by a stride of 2; middle; C silu(GN x) = [mean | log variance]
  (3) middle: resnet, x + attention(GN x) with one head of all channels, resnet
  (4) decoder: C, middle, levels of resnets, each but the last doubled by repetition and C; C silu(GN x)
  (5) tokens = (z - m) / sqrt(s + eps),  z the mean in patches of 2 x 2, m and s running statistics of its channels

Tensor for tensor this is diffusers' `AutoencoderKLFlux2`. Kernels are [h, w, in, out], float32; norms and softmax stay in
float32 whatever the dtype of activations.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

from uniser_jax.errors import check_range
from uniser_jax.mesh import constrain
from uniser_jax.models.attention import attention
from uniser_jax.models.codec import PixelCodec
from uniser_jax.models.dit import parameter, shapes_and_axes

_FAN_IN = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_ZERO, _ONE = nnx.initializers.zeros_init(), nnx.initializers.ones_init()
_GROUP_EPS = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The shape of an autoencoder, in the field names of diffusers' `AutoencoderKLFlux2`.

    Raises:
      ValueError: one line, if a value is out of range, or the groups do not divide the channels.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    decoder_block_out_channels: tuple[int, ...] | None = None  # None: as the encoder's
    layers_per_block: int = 2
    latent_channels: int = 32
    norm_num_groups: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    batch_norm_eps: float = 1e-4
    patch_size: tuple[int, int] = (2, 2)

    def __post_init__(self) -> None:
        channels = self.block_out_channels + self.decoder_channels
        for name in ("in_channels", "out_channels", "layers_per_block", "latent_channels", "norm_num_groups"):
            check_range(name, getattr(self, name), 1, 10**6)
        check_range("block_out_channels", min(channels, default=0), 1, 10**6)
        check_range("block_out_channels", max(channels), 1, 10**6)
        check_range("batch_norm_eps", self.batch_norm_eps, 1e-30, 1)
        if any(c % self.norm_num_groups for c in channels):
            raise ValueError(f"norm_num_groups = {self.norm_num_groups} does not divide the channels {channels}")
        if len(self.patch_size) != 2 or len(set(self.patch_size)) > 1:
            raise ValueError(f"patch_size = {str(self.patch_size)[:40]}: expected a square")
        check_range("patch_size", self.patch_size[0], 1, 1000)

    @property
    def decoder_channels(self) -> tuple[int, ...]:
        """Channels of the decoder's levels, from the image inwards."""
        return self.decoder_block_out_channels or self.block_out_channels

    @property
    def scale(self) -> int:
        """Pixels a side of one latent."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def token_channels(self) -> int:
        """Numbers per token."""
        return self.latent_channels * self.patch_size[0] * self.patch_size[1]


class Conv(nnx.Module):
    """A square convolution with bias, applied in the dtype of its input.

    Args:
      inputs: channels in.
      outputs: channels out.
      side: of the kernel.
      stride: of the output.
      padding: zeros before and after both axes; by default the image keeps its size.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        side: int = 3,
        *,
        stride: int = 1,
        padding: tuple[int, int] | None = None,
        rngs: nnx.Rngs,
    ):
        self.stride, self.padding = stride, padding or (side // 2, side // 2)
        self.kernel = parameter(_FAN_IN, (side, side, inputs, outputs), (None, None, None, "embed"), rngs)
        self.bias = parameter(_ZERO, (outputs,), ("embed",), rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """The convolved image."""
        # Gathered here: left sharded by outputs, XLA's partitioner gathers the images instead, all rows on every device.
        kernel = constrain(self.kernel[...].astype(x.dtype), None, None, None, None)
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            (self.padding, self.padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + self.bias[...].astype(x.dtype)[None, None, None]


class Affine(nnx.Module):
    """x W + b over the last axis."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = parameter(_FAN_IN, (inputs, outputs), (None, "embed"), rngs)
        self.bias = parameter(_ZERO, (outputs,), ("embed",), rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n d"]:
        """The mapped tokens."""
        return x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)[None, None]


class GroupNorm(nnx.Module):
    """Zero mean and unit variance over each group of channels and all pixels, in float32, then scale and bias."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs):
        self.groups = groups
        self.scale = parameter(_ONE, (channels,), ("embed",), rngs)
        self.bias = parameter(_ZERO, (channels,), ("embed",), rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The normalised image."""
        y = x.astype(jnp.float32).reshape(*x.shape[:3], self.groups, -1)
        y = y - y.mean((1, 2, 4), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, (1, 2, 4), keepdims=True) + _GROUP_EPS)
        y = y.reshape(x.shape) * self.scale[...][None, None, None] + self.bias[...][None, None, None]
        return y.astype(x.dtype)


class Resnet(nnx.Module):
    """Equation (1)."""

    def __init__(self, inputs: int, outputs: int, groups: int, *, rngs: nnx.Rngs):
        self.norm1, self.conv1 = GroupNorm(inputs, groups, rngs=rngs), Conv(inputs, outputs, rngs=rngs)
        self.norm2, self.conv2 = GroupNorm(outputs, groups, rngs=rngs), Conv(outputs, outputs, rngs=rngs)
        self.shortcut = Conv(inputs, outputs, 1, rngs=rngs) if inputs != outputs else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """The image with something added."""
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class Attention(nnx.Module):
    """The attention of equation (3)."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs):
        self.norm = GroupNorm(channels, groups, rngs=rngs)
        self.q, self.k, self.v, self.out = (Affine(channels, channels, rngs=rngs) for _ in range(4))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The image with what each pixel gathers from all others."""
        tokens = self.norm(x).reshape(x.shape[0], -1, x.shape[-1])
        q, k, v = (project(tokens)[:, :, None] for project in (self.q, self.k, self.v))  # one head
        return x + self.out(attention(q, k, v)[:, :, 0]).reshape(x.shape)


class Middle(nnx.Module):
    """Equation (3)."""

    def __init__(self, channels: int, config: VAEConfig, *, rngs: nnx.Rngs):
        groups = config.norm_num_groups
        self.resnet_0, self.resnet_1 = (Resnet(channels, channels, groups, rngs=rngs) for _ in range(2))
        self.attention = Attention(channels, groups, rngs=rngs) if config.mid_block_add_attention else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The image at the smallest size."""
        x = self.resnet_0(x)
        return self.resnet_1(x if self.attention is None else self.attention(x))


class Level(nnx.Module):
    """Resnets at one size; then `resize`, where there is one, changes it."""

    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, resize: Conv | None, *, rngs: nnx.Rngs):
        self.layers, self.resize = layers, resize
        for layer in range(layers):  # named, not listed: a leaf's path is plain words all the way
            setattr(self, f"resnet_{layer}", Resnet(outputs if layer else inputs, outputs, groups, rngs=rngs))

    def __call__(self, x: Float[Array, "b h w c"], double: bool = False) -> Float[Array, "b k l d"]:
        """The image at the next size; `double` repeats pixels before `resize`."""
        for layer in range(self.layers):
            x = getattr(self, f"resnet_{layer}")(x)
        if self.resize is not None:
            x = self.resize(x.repeat(2, 1).repeat(2, 2) if double else x)
        return constrain(x, "batch", None, None, "features")


class Encoder(nnx.Module):
    """Equation (2)."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        channels, groups = config.block_out_channels, config.norm_num_groups
        self.levels = len(channels)
        self.conv_in = Conv(config.in_channels, channels[0], rngs=rngs)
        for level, (inputs, outputs) in enumerate(zip((channels[0], *channels), channels, strict=False)):
            # Zeros on the right and below only: torch pads an odd stride so, JAX's SAME does not.
            halve = Conv(outputs, outputs, stride=2, padding=(0, 1), rngs=rngs) if level < self.levels - 1 else None
            made = Level(inputs, outputs, config.layers_per_block, groups, halve, rngs=rngs)
            setattr(self, f"level_{level}", made)
        self.middle = Middle(channels[-1], config, rngs=rngs)
        self.norm_out = GroupNorm(channels[-1], groups, rngs=rngs)
        self.conv_out = Conv(channels[-1], 2 * config.latent_channels, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b k l z"]:
        """Means and log variances."""
        x = self.conv_in(x)
        for level in range(self.levels):
            x = getattr(self, f"level_{level}")(x)
        return self.conv_out(jax.nn.silu(self.norm_out(self.middle(x))))


class Decoder(nnx.Module):
    """Equation (4)."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        channels, groups = config.decoder_channels[::-1], config.norm_num_groups
        self.levels = len(channels)
        self.conv_in = Conv(config.latent_channels, channels[0], rngs=rngs)
        self.middle = Middle(channels[0], config, rngs=rngs)
        for level, (inputs, outputs) in enumerate(zip((channels[0], *channels), channels, strict=False)):
            double = Conv(outputs, outputs, rngs=rngs) if level < self.levels - 1 else None
            made = Level(inputs, outputs, config.layers_per_block + 1, groups, double, rngs=rngs)
            setattr(self, f"level_{level}", made)
        self.norm_out = GroupNorm(channels[-1], groups, rngs=rngs)
        self.conv_out = Conv(channels[-1], config.out_channels, rngs=rngs)

    def __call__(self, z: Float[Array, "b k l z"]) -> Float[Array, "b h w c"]:
        """The image of latents."""
        x = self.middle(self.conv_in(z))
        for level in range(self.levels):
            x = getattr(self, f"level_{level}")(x, double=True)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class Statistics(nnx.Module):
    """Running mean and variance of the channels of a token: measured, not trained."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        def measured(init: Any, shape: tuple[int, ...], dtype: Any) -> nnx.BatchStat:
            make = nnx.with_partitioning(init, (None,) * len(shape), eager_sharding=False)
            return nnx.BatchStat(make(rngs.params(), shape, dtype))

        self.mean = measured(_ZERO, (channels,), jnp.float32)
        self.variance = measured(_ONE, (channels,), jnp.float32)
        self.batches = measured(_ZERO, (), jnp.int32)  # how many were measured; kept for the way back to torch


class VAE(nnx.Module):
    """The autoencoder.

    Args:
      config: sizes, in diffusers' field names.
      rngs: for the initial parameters.
      dtype: of activations.
    """

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config, self.dtype = config, dtype
        z = config.latent_channels
        pointwise = functools.partial(Conv, side=1, rngs=rngs)
        self.encoder, self.decoder = Encoder(config, rngs=rngs), Decoder(config, rngs=rngs)
        self.quant = pointwise(2 * z, 2 * z) if config.use_quant_conv else None
        self.post_quant = pointwise(z, z) if config.use_post_quant_conv else None
        self.statistics = Statistics(config.token_channels, rngs=rngs)

    def encode(self, images: Float[Array, "b h w c"]) -> tuple[Float32[Array, "b k l z"], Float32[Array, "b k l z"]]:
        """Mean and log variance of the latents of images in [-1, 1].

        Raises:
          ValueError: if a side is not a multiple of the scale.
        """
        h, w = images.shape[1:3]
        if h % self.config.scale or w % self.config.scale:
            raise ValueError(f"image of {h} x {w} px: expected sides that are multiples of {self.config.scale} px")
        x = self.encoder(images.astype(self.dtype))
        mean, log_variance = jnp.split((x if self.quant is None else self.quant(x)).astype(jnp.float32), 2, -1)
        return mean, jnp.clip(log_variance, -30, 20)

    def decode(self, z: Float[Array, "b k l z"]) -> Float32[Array, "b h w c"]:
        """The images of latents, in about [-1, 1]."""
        z = z.astype(self.dtype)
        return self.decoder(z if self.post_quant is None else self.post_quant(z)).astype(jnp.float32)

    def pack(self, z: Float[Array, "b k l z"]) -> Float32[Array, "b n d"]:
        """Equation (5): row-major tokens of channels (z, dy, dx)."""
        mean, deviation = self._statistics()
        return (self._patches.encode(z.astype(jnp.float32)) - mean) / deviation

    def unpack(self, tokens: Float[Array, "b n d"], k: int, l: int) -> Float32[Array, "b k l z"]:  # noqa: E741
        """The inverse of `pack`, for k x l latents."""
        mean, deviation = self._statistics()
        return self._patches.decode(tokens.astype(jnp.float32) * deviation + mean, k, l)

    def ids(self, h: int, w: int) -> Float32[np.ndarray, "n 4"]:
        """Rotary positions (T, H, W, L) of the tokens of an image of h x w pixels, counted in tokens."""
        return PixelCodec(self.config.scale * self.config.patch_size[0]).ids(h, w)

    @property
    def _patches(self) -> PixelCodec:
        return PixelCodec(self.config.patch_size[0])

    def _statistics(self) -> tuple[Array, Array]:
        mean, variance = self.statistics.mean[...], self.statistics.variance[...]
        return mean[None, None], jnp.sqrt(variance + self.config.batch_norm_eps)[None, None]


def abstract(config: VAEConfig, **settings: Any) -> tuple[nnx.GraphDef, Any, Any]:
    """The graph, the parameters' shapes, and their logical axes; see `shapes_and_axes`."""
    return shapes_and_axes(lambda rngs: VAE(config, rngs=rngs, **settings))
