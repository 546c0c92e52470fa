"""One training step: the same on any mesh, in any number of microbatches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from uniser_jax import config as schema
from uniser_jax import mesh as meshes
from uniser_jax import optim
from uniser_jax.diffusion.flow import Flow, TimeSampling
from uniser_jax.models import uniser, vae
from uniser_jax.models.codec import LatentCodec
from uniser_jax.models.presets import preset
from uniser_jax.models.vae import VAEConfig
from uniser_jax.step import (
    Network,
    accumulated_gradient,
    batch_loss,
    build_network,
    draw_mask_seen,
    init_state,
    make_step,
    state_shapes,
)
from uniser_jax.types import EFFECTS, TASKS, Batch

MESHES = [{"data": 4, "fsdp": 2}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "tensor": 2, "sequence": 2}]


def tiny_config():
    config = schema.defaults()
    config.batch_size = 8
    config.model.preset, config.model.patch, config.model.prompt_length = "tiny", 8, 4
    config.model.compute_dtype, config.model.remat = "float32", "none"
    config.optim.warmup_steps, config.optim.lr = 1, 1e-2
    config.optim.eps = (
        1e-3  # Adam divides gradients by their size; a tiny eps would blow rounding errors up to whole steps
    )
    return config


def batch_of(size: int = 8) -> Batch:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (2, size, 16, 32, 3), dtype=np.uint8)
    mask = rng.integers(0, 255, (size, 16, 32), dtype=np.uint8)
    task = rng.integers(0, len(TASKS), size).astype(np.int32)
    return Batch(images[0], images[1], mask, task, rng.random((size, len(EFFECTS)), np.float32))


def run(config, mesh_shape, steps: int = 3, devices=None):
    """Losses and parameters of a few steps."""
    mesh = meshes.make_mesh(mesh_shape, devices)
    network, optimizer = build_network(config.model), optim.optimizer(config.optim, config.steps)
    shapes = state_shapes(network, optimizer, mesh)
    losses = []
    with jax.set_mesh(mesh):
        state = init_state(network, optimizer, shapes, config.seed)
        step = make_step(config, network, optimizer, shapes)
        for _ in range(steps):
            state, metrics = step(state, meshes.to_global(mesh, batch_of()))
            losses.append(metrics["loss"])
    assert step._cache_size() == 1  # shardings do not drift: one compilation per run
    placed = jax.tree.map(lambda leaf, shape: leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim), state, shapes)
    assert all(jax.tree.leaves(placed))
    return np.array(losses), jax.device_get(state.params), jax.device_get(state.ema)


@pytest.fixture(scope="module")
def unsharded():
    return run(tiny_config(), {}, devices=jax.devices()[:1])


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_sharded_equals_unsharded(unsharded, shape: dict[str, int]) -> None:
    losses, params, ema = run(tiny_config(), shape)
    np.testing.assert_allclose(losses, unsharded[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, unsharded[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ema, unsharded[2])


def test_gradients_are_the_same_on_any_mesh() -> None:
    config = tiny_config()
    network, flow = build_network(config.model), Flow()
    params = random_params(network)
    batch = batch_of()
    t, noise = flow.draw(jax.random.key(1), batch.target.shape)
    gradient = jax.grad(functools.partial(batch_loss, network, flow), has_aux=True)
    alone, _ = jax.jit(gradient)(params, batch, t, noise)
    mesh = meshes.make_mesh({"fsdp": 2, "tensor": 2, "sequence": 2})
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, meshes.sharding_of(mesh, network.axes, network.shapes))
        spread, _ = jax.jit(gradient)(placed, *meshes.to_global(mesh, (batch, np.asarray(t), np.asarray(noise))))
    scale = float(optax.tree.norm(alone))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), spread, alone)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_microbatches_equal_the_big_batch(parts: int) -> None:
    config = tiny_config()
    network, flow = build_network(config.model), Flow()
    params = random_params(network)
    batch = jax.tree.map(jnp.asarray, batch_of())
    data = (batch, *flow.draw(jax.random.key(1), batch.target.shape))
    loss = functools.partial(batch_loss, network, flow)
    (whole, metrics), (parted, parted_metrics) = (
        jax.jit(lambda data, n=n: accumulated_gradient(loss, params, data, n))(data) for n in (1, parts)
    )
    scale = float(optax.tree.norm(whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), parted, whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), parted_metrics, metrics)


def test_metrics_group_the_loss_by_effect_and_time() -> None:
    config = tiny_config()
    network, flow = build_network(config.model), Flow()
    batch = batch_of()._replace(strengths=np.eye(8, 5, dtype=np.float32))
    t = jnp.array([0.05, 0.15, 0.95, 1.0, 1.0, 0.5, 0.5, 0.5])
    noise = jax.random.normal(jax.random.key(0), batch.target.shape)
    loss, metrics = batch_loss(network, flow, network.init(jax.random.key(0)), batch, t, noise)
    np.testing.assert_array_equal(metrics["loss_effect_count"], np.ones(5))
    np.testing.assert_array_equal(metrics["loss_t_count"], [1, 1, 0, 0, 0, 3, 0, 0, 0, 3])
    np.testing.assert_allclose(metrics["loss_t_sum"].sum() / 8, loss, rtol=1e-5)


def test_the_same_step_draws_the_same_noise_and_another_does_not() -> None:
    flow = Flow()
    one, two, three = (flow.draw(jax.random.fold_in(jax.random.key(0), s), (4, 8, 8, 3)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one[1], two[1])
    assert (one[1] != three[1]).any()


def random_params(network):
    """Initial parameters with the last, zero, projection drawn too, so that every gradient is alive."""
    params = network.init(jax.random.key(0))
    kernel = params["dit"]["image_out"]["kernel"]
    params["dit"]["image_out"]["kernel"] = 0.05 * jax.random.normal(jax.random.key(2), kernel.shape)
    return params


def test_an_update_that_is_not_finite_changes_nothing_but_the_step() -> None:
    config = tiny_config()
    mesh = meshes.make_mesh({"data": 8})
    network, optimizer = build_network(config.model), optim.optimizer(config.optim, config.steps)
    shapes = state_shapes(network, optimizer, mesh)
    with jax.set_mesh(mesh):
        state = init_state(network, optimizer, shapes, config.seed)
        bad = jax.tree.map(lambda leaf: leaf, state.params)
        bad["dit"]["image_out"]["kernel"] = bad["dit"]["image_out"]["kernel"].at[0, 0].set(jnp.inf)
        state = jax.device_put(state._replace(params=bad), jax.tree.map(lambda leaf: leaf.sharding, shapes))
        before = jax.device_get(state)
        after, metrics = make_step(config, network, optimizer, shapes)(state, meshes.to_global(mesh, batch_of()))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after)[1:], before[1:])
    assert int(after.step) == int(before.step) + 1
    assert float(metrics["skipped"]) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(metrics)))


def test_only_white_masks_are_left_out_and_they_at_random() -> None:
    mask = np.full((4096, 2, 2), 255, np.uint8)
    mask[::2, 0, 0] = 254
    seen = np.asarray(draw_mask_seen(jax.random.key(0), mask, 0.25))
    assert seen[::2].all()
    assert 0.7 < seen[1::2].mean() < 0.8


def test_whether_a_mask_is_left_out_is_independent_of_times_and_noise() -> None:
    flow, mask = Flow(times=TimeSampling(share_at_one=0.0)), np.full((8, 4, 4), 255, np.uint8)

    @jax.vmap
    def draw(step):
        key = jax.random.fold_in(jax.random.key(0), step)
        t, noise = flow.draw(key, (8, 4, 4, 3))
        return ~draw_mask_seen(key, mask, 0.25), t, noise.reshape(-1, 8)

    left_out, t, noise = (np.asarray(drawn) for drawn in draw(jnp.arange(1_000)))
    standard = left_out - 0.25
    for values in (np.log(t / (1 - t)), *np.moveaxis(noise, 1, 0)):  # all normal, of variance 1
        correlation = (standard * values).mean() / standard.std()
        assert abs(correlation) < 4.5 / left_out.size**0.5  # in one of 150,000 draws it is larger


def test_the_autoencoder_leaves_nothing_for_the_backward_pass() -> None:
    """What a gradient keeps of a batch that is encoded inside the step is what it keeps of ready latents."""
    config = VAEConfig(block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4)
    graphdef, weights, _ = vae.abstract(config)
    latents = LatentCodec(config, graphdef, weights)
    settings = {"prompt_length": 4, "conditioning": "references"}
    graph, params, axes = uniser.abstract(preset("tiny"), latents.tokens, **settings)
    network, flow = Network(graph, params, axes, latents.tokens, None), Flow()  # type: ignore[arg-type]
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), np.uint8)
    batch = Batch(
        images,
        images,
        jax.ShapeDtypeStruct((2, 64, 64), np.uint8),
        jax.ShapeDtypeStruct((2,), np.int32),
        jax.ShapeDtypeStruct((2, len(EFFECTS)), np.float32),
    )
    t, latent = jax.ShapeDtypeStruct((2,), np.float32), jax.ShapeDtypeStruct(latents.shape(images.shape), np.float32)

    def encoded(params, latents, batch, t, noise):
        return batch_loss(network, flow, params, batch, t, noise, latents=latents)[0]

    def ready(params, latent, task, t):
        predict = functools.partial(uniser.apply, network.graphdef, params)
        return flow.loss(predict, t, latent, latent, latent, latent, task).mean()

    def kept(loss, *given) -> list:
        def residuals(params, *given):
            return jax.tree.leaves(jax.vjp(lambda p: loss(p, *given), params)[1])

        shapes = [leaf.shape for leaf in jax.eval_shape(residuals, params, *given)]
        return sorted(shape for shape in shapes if len(shape) > 2)

    inside, outside = kept(encoded, latents, batch, t, latent), kept(ready, latent, batch.task, t)
    assert len(inside) > 20
    assert inside == outside
