"""The autoencoder's own laws; its numbers are compared with diffusers' in tests/convert."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from uniser_jax import mesh as meshes
from uniser_jax.models.vae import VAE, VAEConfig, abstract

SMALL = VAEConfig(block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4)


def images(size: int = 2) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (size, 16, 24, 3)).astype(np.float32)


@functools.cache
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: (0.2 * rng.random(leaf.shape)).astype(leaf.dtype), abstract(SMALL)[1])


def call(method: str, *args, **settings):
    """One compiled call of a method; op by op, a network takes a minute."""
    graphdef, _, _ = abstract(SMALL, **settings)
    static = [arg for arg in args if isinstance(arg, int)]
    return jax.jit(lambda p, *a: getattr(nnx.merge(graphdef, p), method)(*a, *static))(
        params(), *args[: len(args) - len(static)]
    )


def test_shapes_tokens_and_their_inverse() -> None:
    mean, log_variance = call("encode", images())
    assert mean.shape == log_variance.shape == (2, 8, 12, 4)
    tokens = call("pack", mean)
    assert tokens.shape == (2, 24, SMALL.token_channels)
    np.testing.assert_allclose(call("unpack", tokens, 8, 12), mean, atol=1e-6)
    assert call("decode", mean).shape == images().shape


def test_the_same_on_a_mesh() -> None:
    graphdef, shapes, axes = abstract(SMALL)
    assert jax.tree.map(jnp.shape, params()) == jax.tree.map(jnp.shape, shapes)

    def reconstruct(params, x):
        vae = nnx.merge(graphdef, params)
        return vae.decode(vae.encode(x)[0])

    mesh = meshes.make_mesh({"data": 2, "fsdp": 4})
    alone = jax.jit(reconstruct)(params(), images(8))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params(), meshes.sharding_of(mesh, axes, shapes))
        spread = jax.jit(reconstruct)(placed, jax.device_put(images(8), meshes.batch_sharding(mesh)))
    np.testing.assert_allclose(spread, alone, atol=1e-5)


def test_bfloat16_stays_close_and_returns_float32() -> None:
    exact, rough = (call("encode", images(), dtype=dtype)[0] for dtype in (jnp.float32, jnp.bfloat16))
    assert rough.dtype == jnp.float32
    assert float(jnp.abs(exact - rough).mean() / jnp.abs(exact).mean()) < 0.05


def test_statistics_are_not_trained() -> None:
    vae = nnx.eval_shape(lambda: VAE(SMALL, rngs=nnx.Rngs(0)))
    assert len(jax.tree.leaves(nnx.state(vae, nnx.BatchStat))) == 3
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(vae, nnx.Param)))


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 2 px"):
        call("encode", images()[:, :15])
    with pytest.raises(ValueError, match="norm_num_groups = 3 does not divide"):
        dataclasses.replace(SMALL, norm_num_groups=3)
    with pytest.raises(ValueError, match="expected a square"):
        dataclasses.replace(SMALL, patch_size=(2, 1))


@pytest.mark.parametrize(
    "change",
    [
        {"in_channels": 0},
        {"out_channels": -1},
        {"latent_channels": 10**400},
        {"block_out_channels": (4 * 10**20, 4)},
        {"block_out_channels": (0, 4)},
        {"layers_per_block": 10**9},
        {"norm_num_groups": 0},
        {"batch_norm_eps": -1.0},
        {"patch_size": (0, 0)},
        {"patch_size": ()},
    ],
    ids=lambda change: str(change)[:30],
)
def test_senseless_values_are_named_in_one_line(change: dict) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(change))} = .{{1,40}}: expected"):
        dataclasses.replace(SMALL, **change)
