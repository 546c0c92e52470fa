"""Euler's method from noise to a photograph: (1) x_s = x_t + (s - t) v, for times t > s on an even grid from 1 to 0."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from uniser_jax.diffusion.flow import Flow, Image, Predict


def euler(
    predict: Predict,
    flow: Flow,
    key: jax.Array,
    input: Image,
    mask: Float[Array, "b h w"],
    task: Int[Array, "b"],
    steps: int = 1,
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

    Raises:
      ValueError: if steps < 1.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}: expected at least 1")
    times = jnp.linspace(1.0, 0.0, steps + 1)

    def step(x: Image, pair: tuple[Array, Array]) -> tuple[Image, None]:
        t, s = pair
        batch_t = jnp.full(x.shape[0], t)
        x0 = flow.to_x0(predict(x, batch_t, input, mask, task), x, batch_t, input)
        # (1) with v = (x - x0) / t, written as a mean of x and x0: no division is left at the last step.
        return x0 + s / t * (x - x0), None

    noise = jax.random.normal(key, input.shape, input.dtype)
    return jax.lax.scan(step, noise, (times[:-1], times[1:]))[0]
