"""Images to tokens and back."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32


@dataclasses.dataclass(frozen=True)
class PixelCodec:
    """Square patches of pixels, without loss: a token holds p*p pixels, channel-major (c, dy, dx) as pixel-unshuffle.

    Args:
      patch: side p of a patch in pixels; image sides must be multiples of it.
    """

    patch: int

    @property
    def channels(self) -> int:
        """Numbers per RGB token."""
        return 3 * self.patch**2

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
