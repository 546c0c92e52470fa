import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uniser_jax.diffusion.flow import PREDICTIONS, Flow, TimeSampling, interpolate
from uniser_jax.diffusion.sampler import euler
from uniser_jax.models import uniser
from uniser_jax.models.codec import PixelCodec
from uniser_jax.models.presets import preset

SHAPE = (3, 8, 8, 3)
RNG = np.random.default_rng(0)
X0, NOISE, INPUT = (jnp.asarray(RNG.normal(size=SHAPE), jnp.float32) for _ in range(3))
MASK, TASK = jnp.ones(SHAPE[:3]), jnp.zeros(3, jnp.int32)
T = jnp.array([0.1, 0.5, 1.0])


def prediction_of(x0: jax.Array, kind: str, x_t: jax.Array, t: jax.Array) -> jax.Array:
    """The prediction that means this clean image."""
    return {"residual": x0 - INPUT, "x0": x0, "velocity": (x_t - x0) / t[:, None, None, None]}[kind]


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_every_prediction_means_a_clean_image(kind: str) -> None:
    x_t = interpolate(X0, NOISE, T)
    meant = Flow(prediction=kind).to_x0(prediction_of(X0, kind, x_t, T), x_t, T, INPUT)
    np.testing.assert_allclose(meant, X0, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_is_the_squared_velocity_error(prediction: str) -> None:
    flow = Flow(prediction=prediction)
    wrong = X0 + 0.3

    def predict(x_t, t, input, mask, task):
        return prediction_of(wrong, prediction, x_t, t)

    loss = flow.loss(predict, T, NOISE, INPUT, X0, MASK, TASK)
    assert loss.shape == (3,)
    np.testing.assert_allclose(loss, 0.3**2 / T**2, rtol=1e-3)


def test_small_times_are_clamped_where_they_divide() -> None:
    flow = Flow(prediction="x0", t_min=0.5)
    loss = flow.loss(lambda x_t, *_: X0 + 1, jnp.full(3, 1e-6), NOISE, INPUT, X0, MASK, TASK)
    np.testing.assert_allclose(loss, 4.0, rtol=1e-5)


@pytest.mark.parametrize("kind", ["uniform", "logit_normal"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_times_lie_in_range_with_the_share_at_one(kind: str, share: float) -> None:
    t = TimeSampling(kind, share_at_one=share)(jax.random.key(0), 20_000)
    assert float(t.min()) > 0
    assert float(t.max()) <= 1
    assert float((t == 1).mean()) == pytest.approx(share, abs=0.02)
    if share < 1:
        inside = np.sort(np.asarray(t[t < 1]))
        grid = np.linspace(0, 1, len(inside))
        middle = np.median(np.abs(inside - grid))
        assert middle < 0.02 if kind == "uniform" else middle > 0.02


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_sampler_is_exact_on_a_straight_path(prediction: str, steps: int) -> None:
    flow = Flow(prediction=prediction)

    def predict(x_t, t, input, mask, task):
        return prediction_of(X0, prediction, x_t, t)

    out = euler(predict, flow, jax.random.key(0), INPUT, MASK, TASK, steps)
    np.testing.assert_allclose(out, X0, atol=1e-5)


def test_one_step_is_the_prediction_at_time_one() -> None:
    flow = Flow(prediction="residual")

    def predict(x_t, t, input, mask, task):
        return jnp.sin(x_t) * t[:, None, None, None]

    noise = jax.random.normal(jax.random.key(3), SHAPE)
    out = euler(predict, flow, jax.random.key(3), INPUT, MASK, TASK, 1)
    np.testing.assert_allclose(out, INPUT + jnp.sin(noise), atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_an_untrained_network_returns_its_input(steps: int) -> None:
    graphdef, params = uniser.create(preset("tiny"), PixelCodec(8), jax.random.key(0))
    out = euler(
        lambda *given: uniser.apply(graphdef, params, *given), Flow(), jax.random.key(0), INPUT, MASK, TASK, steps
    )
    np.testing.assert_array_equal(out, INPUT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": "noise"}, "residual, x0, velocity"),
        ({"t_min": 0.0}, "t_min"),
        ({"times": {"kind": "cosine"}}, "logit_normal, uniform"),
        ({"times": {"share_at_one": 1.5}}, "share_at_one"),
    ],
)
def test_mistakes_are_refused(change: dict, message: str) -> None:
    def make():
        times = TimeSampling(**change.get("times", {}))
        return dataclasses.replace(Flow(), **change | {"times": times})

    with pytest.raises(ValueError, match=message):
        make()


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        euler(lambda *_: X0, Flow(), jax.random.key(0), INPUT, MASK, TASK, 0)
