"""Euler's method from noise to a photograph.

(1) x_s = x_t + (s - t) v,  for times t > s on a grid from 1 to 0
(2) t' = k t / (1 + (k - 1) t)     an even grid moved towards noise by a shift k (Esser et al. 2024, eq. 23)
(3) k = e^m,  m linear in the number of tokens n and of steps, as FLUX.2 [klein] is sampled
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from uniser_jax.diffusion.flow import Flow, Image, Predict


def euler(
    predict: Predict,
    flow: Flow,
    key: jax.Array,
    input: Image,
    mask: Float[Array, "b h w"],
    task: Int[Array, "b"],
    steps: int = 1,
    shift: float = 1.0,
) -> Image:
    """Samples a restoration; exact in any number of steps where the path is straight.

    Args:
      predict: the network, (x_t, t, input, mask, task) -> prediction.
      flow: what it predicts.
      key: for the initial noise.
      input: degraded photographs in [-1, 1].
      mask: soft masks aM in [0, 1].
      task: indices into TASKS.
      steps: at least 1; a single step returns the network's x0 at t = 1.
      shift: k in (2).

    Raises:
      ValueError: if steps < 1 or shift <= 0.
    """
    grid = jnp.asarray(times(steps, shift))

    def step(x: Image, pair: tuple[Array, Array]) -> tuple[Image, None]:
        t, s = pair
        batch_t = jnp.full(x.shape[0], t)
        x0 = flow.to_x0(predict(x, batch_t, input, mask, task), x, batch_t, input)
        # (1) with v = (x - x0) / t, written as a mean of x and x0: no division is left at the last step.
        return x0 + s / t * (x - x0), None

    noise = jax.random.normal(key, input.shape, input.dtype)
    return jax.lax.scan(step, noise, (grid[:-1], grid[1:]))[0]


def restore(
    predict: Predict,
    flow: Flow,
    key: jax.Array,
    images: Image,
    mask: Float[Array, "b h w"],
    task: Int[Array, "b"],
    steps: int = 1,
    shift: float = 1.0,
    latents: Any = None,
    compensate: bool = True,
) -> Image:
    """Samples a restoration of images, through latents if there are any; arguments as those of `euler`, and:

    Args:
      predict: the network.
      flow: what it predicts.
      key: for the initial noise.
      images: degraded photographs in [-1, 1].
      mask: soft masks aM.
      task: indices into TASKS.
      steps: of `euler`.
      shift: of `euler`.
      latents: a `models.codec.LatentCodec`; None samples pixels.
      compensate: whether to return y + D(z) - D(E(y)): what the autoencoder loses of y is not lost from the result.
    """
    if latents is None:
        return euler(predict, flow, key, images, mask, task, steps, shift)
    seen = latents.encode(images)
    restored = latents.decode(euler(predict, flow, key, seen, latents.encode_mask(mask), task, steps, shift))
    return images + restored - latents.decode(seen) if compensate else restored


def times(steps: int, shift: float = 1.0) -> Float32[np.ndarray, "s"]:
    """The grid of (2): steps + 1 times from 1 to 0.

    Raises:
      ValueError: if steps < 1 or shift <= 0.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}: expected at least 1")
    if shift <= 0:
        raise ValueError(f"shift = {shift}: expected above 0")
    even = np.linspace(1.0, 0.0, steps + 1)
    return (shift * even / (1 + (shift - 1) * even)).astype(np.float32)


def klein_shift(tokens: int, steps: int) -> float:
    """Equation (3), with the constants that were fitted for FLUX.2 at 10 and at 200 steps.

    Args:
      tokens: of the image sampled, without references.
      steps: of the sampler; large images do not depend on it.
    """
    few, many = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
    slope = (many - few) / 190
    return math.exp(many if tokens > 4300 else many + slope * (steps - 200))
