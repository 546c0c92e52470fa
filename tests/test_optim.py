import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uniser_jax import config as schema
from uniser_jax import optim

OPTIM = schema.defaults().optim


def test_schedule_warms_up_to_the_peak_and_ends_at_the_final_rate() -> None:
    rate = optim.schedule(OPTIM, 10_000)
    assert rate(0) == 0
    assert rate(OPTIM.warmup_steps) == pytest.approx(OPTIM.lr)
    assert rate(10_000) == pytest.approx(OPTIM.lr * OPTIM.final_lr)


def test_schedule_of_a_run_shorter_than_its_warmup() -> None:
    assert np.isfinite([float(optim.schedule(OPTIM, 1)(step)) for step in range(3)]).all()


def test_only_kernels_decay() -> None:
    params = {"attn": {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}}
    optimizer = optim.optimizer(OPTIM, 10_000)
    state = optimizer.init(params)
    zero = jax.tree.map(jnp.zeros_like, params)
    for _ in range(2):  # the rate is zero at step 0
        updates, state = optimizer.update(zero, state, params)
    assert (updates["attn"]["kernel"] < 0).all()
    assert (updates["attn"]["scale"] == 0).all()


def test_ema_starts_fast_and_approaches_its_decay() -> None:
    ema, params = {"a": jnp.zeros(())}, {"a": jnp.ones(())}
    young = optim.ema_update(ema, params, 0.99, jnp.int32(0))["a"]
    old = optim.ema_update(ema, params, 0.99, jnp.int32(100_000))["a"]
    np.testing.assert_allclose([young, old], [0.9, 0.01], rtol=1e-4)
