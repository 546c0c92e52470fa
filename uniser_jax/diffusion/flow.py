"""Rectified flow from a photograph to noise (Liu et al. 2022; Lipman et al. 2022), conditioned on a degraded photograph.

Convention, here and everywhere: t = 0 is the clean image x0, t = 1 is noise. With noise e ~ N(0, I) and the degraded y:

  (1) x_t = (1 - t) x0 + t e                      the path
  (2) v = dx_t / dt = e - x0                      its velocity
  (3) x0 = x_t - t v,  v = (x_t - x0) / t         each from the other
  (4) x0 = y + r                                  the residual r
  (5) loss = |v' - v|^2 = |x0' - x0|^2 / t^2      mean over pixels and channels

A network predicts r, x0 or v; the loss is always (5), with t no smaller than t_min where it divides. Predicting r or x0 under
a velocity loss follows JiT (Li & He 2025): the network's target stays on the image manifold, the weighting is that of v.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

PREDICTIONS = ("residual", "x0", "velocity")
TIME_SAMPLINGS = ("logit_normal", "uniform")

Image = Float[Array, "b h w c"]
Predict = Callable[[Image, Float[Array, "b"], Image, Float[Array, "b h w"], Int[Array, "b"]], Image]


@dataclasses.dataclass(frozen=True)
class TimeSampling:
    """Draws training times.

    Args:
      kind: `uniform` on (0, 1), or `logit_normal`: sigmoid of a normal (Esser et al. 2024, section 3.1).
      mean: of that normal.
      std: of that normal.
      share_at_one: of examples that get t = 1 exactly, so that one step from pure noise is trained too.
      rounded: whether 1000 t is rounded to bfloat16, as diffusers does before it embeds the time (to 4 above 512).

    Raises:
      ValueError: for an unknown kind, a mean or std that is not finite, a negative std, or a share outside [0, 1].
    """

    kind: str = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    share_at_one: float = 0.5
    rounded: bool = False

    def __post_init__(self) -> None:
        if self.kind not in TIME_SAMPLINGS:
            raise ValueError(f"time sampling {self.kind!r} is unknown; known: {', '.join(TIME_SAMPLINGS)}")
        if not math.isfinite(self.mean):
            raise ValueError(f"flow.times.mean = {self.mean}: expected a finite number")
        if not 0 <= self.std < math.inf:
            raise ValueError(f"flow.times.std = {self.std}: expected at least 0 and finite")
        if not 0 <= self.share_at_one <= 1:
            raise ValueError(f"share_at_one = {self.share_at_one}: expected in [0, 1]")

    def __call__(self, key: jax.Array, batch: int) -> Float[Array, "b"]:
        """Times in (0, 1]."""
        draw, choose = jax.random.split(key)
        if self.kind == "uniform":
            t = jax.random.uniform(draw, (batch,))
        else:
            t = jax.nn.sigmoid(self.mean + self.std * jax.random.normal(draw, (batch,)))
        t = jnp.where(jax.random.uniform(choose, (batch,)) < self.share_at_one, 1.0, t)
        return (
            jax.lax.reduce_precision(1000 * t, 8, 7) / 1000 if self.rounded else t
        )  # a cast there and back folds away


@dataclasses.dataclass(frozen=True)
class Flow:
    """What the network predicts, and the loss.

    Args:
      prediction: one of PREDICTIONS.
      times: how training times are drawn.
      t_min: the smallest divisor in (3) and (5).

    Raises:
      ValueError: for an unknown prediction type, or t_min outside (0, 1].
    """

    prediction: str = "residual"
    times: TimeSampling = TimeSampling()
    t_min: float = 0.05

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction {self.prediction!r} is unknown; known: {', '.join(PREDICTIONS)}")
        if not 0 < self.t_min <= 1:
            raise ValueError(f"t_min = {self.t_min}: expected in (0, 1]")

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> tuple[Float[Array, "b"], Image]:
        """Times and noise for a batch of images of `shape` [b h w c]."""
        time_key, noise_key = jax.random.split(key)
        return self.times(time_key, shape[0]), jax.random.normal(noise_key, shape)

    def loss(
        self,
        predict: Predict,
        t: Float[Array, "b"],
        noise: Image,
        input: Image,
        target: Image,
        mask: Float[Array, "b h w"],
        task: Int[Array, "b"],
    ) -> Float[Array, "b"]:
        """Equation (5) for each example, before any averaging, so that callers can mask, weight and group.

        Args:
          predict: the network, (x_t, t, input, mask, task) -> prediction.
          t: times.
          noise: e.
          input: the degraded photograph y, in [-1, 1].
          target: x0, in [-1, 1].
          mask: the soft mask aM.
          task: index into TASKS.
        """
        x_t = interpolate(target, noise, t)
        x0 = self.to_x0(predict(x_t, t, input, mask, task), x_t, t, input)
        error = jnp.mean((x0 - target) ** 2, (1, 2, 3))
        return error / jnp.maximum(t, self.t_min) ** 2

    def to_x0(self, prediction: Image, x_t: Image, t: Float[Array, "b"], input: Image) -> Image:
        """The clean image that a prediction means: (3), (4)."""
        if self.prediction == "residual":
            return input + prediction
        if self.prediction == "x0":
            return prediction
        return x_t - _per_pixel(t) * prediction


def interpolate(x0: Image, noise: Image, t: Float[Array, "b"]) -> Image:
    """Equation (1)."""
    return (1 - _per_pixel(t)) * x0 + _per_pixel(t) * noise


def _per_pixel(t: Float[Array, "b"]) -> Float[Array, "b 1 1 1"]:
    return t[:, None, None, None]
