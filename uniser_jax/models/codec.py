"""Images to tokens and back."""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

if TYPE_CHECKING:
    from uniser_jax.models.vae import VAE, VAEConfig


@dataclasses.dataclass(frozen=True)
class PixelCodec:
    """Square patches of pixels, without loss: a token holds p*p pixels, channel-major (c, dy, dx) as pixel-unshuffle.

    Args:
      patch: side p of a patch in pixels; image sides must be multiples of it.
      bands: of an image: red, green and blue, or the channels of latents.
      mask_scale: how many times smaller than the photograph a mask is shown, where it is an image of its own.
    """

    patch: int
    bands: int = 3
    mask_scale: int = 1

    @property
    def channels(self) -> int:
        """Numbers per token of an image."""
        return self.bands * self.patch**2

    def encode(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Images to row-major tokens, d = c*p*p.

        Raises:
          ValueError: if a side is not a multiple of the patch.
        """
        b, h, w, c = images.shape
        p = self.patch
        if h % p or w % p:
            raise ValueError(f"image of {h} x {w} px: expected sides that are multiples of the patch, {p} px")
        cells = images.reshape(b, h // p, p, w // p, p, c)
        return jnp.transpose(cells, (0, 1, 3, 5, 2, 4)).reshape(b, (h // p) * (w // p), c * p * p)

    def decode(self, tokens: Float[Array, "b n d"], h: int, w: int) -> Float[Array, "b h w c"]:
        """The inverse of `encode` for an image of h x w pixels."""
        b, _, d = tokens.shape
        p = self.patch
        cells = tokens.reshape(b, h // p, w // p, d // p**2, p, p)
        return jnp.transpose(cells, (0, 1, 4, 2, 5, 3)).reshape(b, h, w, d // p**2)

    def ids(self, h: int, w: int) -> Float32[np.ndarray, "n 4"]:
        """Rotary positions (T, H, W, L) of the tokens of an image of h x w pixels, counted in patches."""
        rows, columns = np.mgrid[: h // self.patch, : w // self.patch]
        zero = np.zeros(rows.size)
        return np.stack([zero, rows.ravel(), columns.ravel(), zero], -1).astype(np.float32)


def gray(mask: Float[Array, "b h w"], bands: int, scale: int = 1) -> Float[Array, "b k l c"]:
    """Masks in [0, 1] as gray images in [-1, 1], `scale` times smaller: means in 8 bits, as PIL's `Image.reduce` gives them.

    Raises:
      ValueError: if a side is not a multiple of the scale.
    """
    b, h, w = mask.shape
    if h % scale or w % scale:
        raise ValueError(
            f"mask of {h} x {w} px: expected sides that are multiples of config.model.mask_scale = {scale}"
        )
    if scale > 1:
        levels = jnp.round(255 * mask).reshape(b, h // scale, scale, w // scale, scale).sum((2, 4))
        mask = jnp.floor(levels / scale**2 + 0.5) / 255
    return jnp.repeat(2 * mask[..., None] - 1, bands, -1)


@jax.tree_util.register_dataclass  # so that a compiled step takes the frozen parameters as an argument
@dataclasses.dataclass(frozen=True)
class LatentCodec:
    """Images to what a FLUX.2 autoencoder makes of them, one pixel per token, normalised; `tokens` takes it from there.

    Args:
      config: of the autoencoder.
      graphdef: of `models.vae.VAE`.
      params: its parameters.
      mask_scale: how many times smaller than the photograph a mask is shown.
    """

    config: "VAEConfig" = dataclasses.field(metadata={"static": True})
    graphdef: nnx.GraphDef = dataclasses.field(metadata={"static": True})
    params: Any
    mask_scale: int = dataclasses.field(default=1, metadata={"static": True})

    @property
    def tokens(self) -> PixelCodec:
        """Latents to tokens: nothing is left to unshuffle."""
        return PixelCodec(1, self.config.token_channels)

    @property
    def side(self) -> int:
        """Pixels a side of one latent."""
        return self.config.scale * self.config.patch_size[0]

    def shape(self, images: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the latents of images [b h w c]."""
        return (images[0], images[1] // self.side, images[2] // self.side, self.config.token_channels)

    def encode(self, images: Float[Array, "b h w c"]) -> Float32[Array, "b k l d"]:
        """The latents of images in [-1, 1]: the mean of the posterior, without noise.

        Raises:
          ValueError: if a side is not a multiple of `side`.
        """
        h, w = images.shape[1:3]
        if h % self.side or w % self.side:
            raise ValueError(f"image of {h} x {w} px: expected sides that are multiples of {self.side} px")
        vae = self._vae()
        tokens = vae.pack(vae.encode(images)[0])
        return self.tokens.decode(tokens, h // self.side, w // self.side)

    def encode_mask(self, mask: Float[Array, "b h w"]) -> Float32[Array, "b k l d"]:
        """The latents of masks in [0, 1], as gray images."""
        return self.encode(gray(mask, 3, self.mask_scale))

    def decode(self, latents: Float[Array, "b k l d"]) -> Float32[Array, "b h w c"]:
        """The images of latents, in about [-1, 1]."""
        vae, patch = self._vae(), self.config.patch_size[0]
        k, l = (side * patch for side in latents.shape[1:3])  # noqa: E741
        return vae.decode(vae.unpack(self.tokens.encode(latents), k, l))

    def _vae(self) -> "VAE":
        return nnx.merge(self.graphdef, self.params)
