"""The loss and all gradients are the same on every mesh, in one process or two."""

import functools
import itertools
import pathlib
import sys

import jax
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils

from tests import processes
from uniser_jax import config as schema
from uniser_jax import hosts, optim
from uniser_jax import mesh as meshes
from uniser_jax.diffusion.flow import Flow
from uniser_jax.models import uniser
from uniser_jax.models.codec import PixelCodec
from uniser_jax.models.presets import DiTConfig
from uniser_jax.step import Network, batch_loss, init_state, make_step, state_shapes
from uniser_jax.types import EFFECTS, TASKS, Batch

NANO = DiTConfig(
    num_layers=1,
    num_single_layers=1,
    attention_head_dim=8,
    num_attention_heads=8,
    joint_attention_dim=16,
    axes_dims_rope=(2, 2, 2, 2),
    timestep_guidance_channels=16,
)
SIZES = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=len(meshes.AXES)) if np.prod(sizes) == 8]
APART = "rows of each process apart, as on most TPUs"
TWO_PROCESSES = {
    "slices": {"slice": 2, "fsdp": 2, "tensor": 2},
    "sequence and tensor over both": {"sequence": 2, "tensor": 4},
    APART: {"fsdp": 8},
}


def network_of(**settings) -> Network:
    """The smallest network that eight devices can split along every axis: 8 heads, 8 image tokens, 8 prompt tokens."""
    codec, settings = PixelCodec(8), {"prompt_length": 8} | settings
    graphdef, shapes, axes = uniser.abstract(NANO, codec, **settings)
    return Network(graphdef, shapes, axes, codec, lambda key: uniser.create(NANO, codec, key, **settings)[1])


def data_of(flow: Flow):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (2, 8, 16, 32, 3), dtype=np.uint8)
    mask = rng.integers(0, 255, (8, 16, 32), dtype=np.uint8)
    task = rng.integers(0, len(TASKS), 8).astype(np.int32)
    batch = Batch(images[0], images[1], mask, task, rng.random((8, len(EFFECTS)), np.float32))
    return (batch, *(np.asarray(x) for x in flow.draw(jax.random.key(1), images[0].shape)))


@functools.cache
def random_params():
    """Initial parameters, those that start at zero drawn too, so that every gradient is alive."""
    params = jax.device_get(network_of().init(jax.random.key(0)))
    rng = np.random.default_rng(1)
    for name in ("image_in", "image_out"):
        kernel = params["dit"][name]["kernel"]
        params["dit"][name]["kernel"] = (rng.normal(size=kernel.shape) / kernel.shape[0] ** 0.5).astype(np.float32)
    return params


def loss_and_gradient(sizes: dict[str, int] | None, network: Network | None = None, params=None, devices=None):
    """Of the same batch on a mesh; None is one device. Each process brings its rows of the batch, noise is drawn by row."""
    network, flow = network or network_of(), Flow()
    params = random_params() if params is None else params
    data = data_of(flow)
    step = jax.value_and_grad(functools.partial(batch_loss, network, flow), has_aux=True)
    if sizes is None:
        (loss, _), gradient = jax.jit(step)(params, *data)
        return loss, gradient
    mesh = meshes.make_mesh(sizes, devices)
    blocks, count = meshes.batch_part(mesh, jax.process_index())
    mine = jax.tree.map(lambda leaf: np.concatenate([np.split(leaf, count)[block] for block in blocks]), data[0])
    shardings = meshes.sharding_of(mesh, network.axes, network.shapes)
    with jax.set_mesh(mesh):
        placed = jax.tree.map(place, params, shardings)
        drawn = (place(leaf, meshes.batch_sharding(mesh)) for leaf in data[1:])
        (loss, _), gradient = jax.jit(step)(placed, meshes.to_global(mesh, mine), *drawn)
    return loss, gradient


def place(leaf: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])


def assert_equal(got, expected) -> None:
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    scale = float(optax.tree.norm(expected[1]))
    for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(expected[1]), strict=True):
        assert np.abs(b).max() > 1e-6 * scale  # every gradient is alive
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.fixture(scope="module")
def unsharded():
    return loss_and_gradient(None)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_mesh_of_eight_devices_gives_the_same_loss_and_gradients(unsharded, sizes: tuple[int, ...]) -> None:
    assert_equal(loss_and_gradient(dict(zip(meshes.AXES, sizes, strict=True))), unsharded)


def test_a_ring_gives_the_same_loss_and_gradients(unsharded) -> None:
    assert_equal(loss_and_gradient({"fsdp": 2, "sequence": 4}, network_of(attention="ring")), unsharded)


def test_two_processes_of_four_devices_give_the_same_loss_and_gradients(unsharded, tmp_path: pathlib.Path) -> None:
    for code, error in processes.run([[__file__, str(tmp_path)]] * 2, seconds=240):
        assert code == 0, error
    for name in TWO_PROCESSES:
        saved = list(np.load(tmp_path / f"{name}.npz").values())
        assert_equal((saved[0], saved[1:]), unsharded)


def main(folder: str) -> None:
    """One of several processes: writes what all of them computed together."""
    hosts.join()
    for name, sizes in TWO_PROCESSES.items():
        devices = [jax.devices()[i // 2 + i % 2 * 4] for i in range(8)] if name == APART else None
        whole = multihost_utils.process_allgather(loss_and_gradient(sizes, devices=devices), tiled=True)
        if jax.process_index() == 0:
            np.savez(pathlib.Path(folder) / f"{name}.npz", *jax.tree.leaves(whole))


@pytest.fixture(scope="module")
def stepped():
    """A state, donated, and what one step made of it on a mesh of three axes."""
    config = schema.defaults()
    config.batch_size, config.optim.warmup_steps = 8, 1
    mesh = meshes.make_mesh({"slice": 2, "fsdp": 2, "tensor": 2})
    network, optimizer = network_of(), optim.optimizer(config.optim, config.steps)
    shapes = state_shapes(network, optimizer, mesh)
    with jax.set_mesh(mesh):
        state = init_state(network, optimizer, shapes, config.seed)
        step = make_step(config, network, optimizer, shapes)
        after, _ = step(state, meshes.to_global(mesh, data_of(Flow())[0]))
    return state, after


def test_moments_and_average_lie_like_their_parameters(stepped) -> None:
    _, after = stepped
    moments = [tree for tree in jax.tree.leaves(after.opt_state, is_leaf=is_params) if is_params(tree)]
    assert len(moments) == 2
    shardings = jax.tree.map(lambda leaf: (leaf.shape, leaf.sharding), after.params)
    for tree in (after.ema, *moments):
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.sharding), tree) == shardings
    blocks = jax.tree.leaves_with_path({name: after.params["dit"][name] for name in ("double", "single")})
    kernels = [leaf for path, leaf in blocks if path[-1].key == "kernel"]
    assert len(kernels) == 21
    assert all(leaf.addressable_shards[0].data.size == leaf.size // 4 for leaf in kernels)  # not over slices


def test_the_old_state_is_donated(stepped) -> None:
    before, after = stepped
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


def is_params(tree) -> bool:
    return isinstance(tree, dict) and "dit" in tree


if __name__ == "__main__":
    main(sys.argv[1])
