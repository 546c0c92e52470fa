import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from uniser_jax import config as schema
from uniser_jax import mesh as meshes
from uniser_jax import optim
from uniser_jax.step import Network, state_shapes

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


SHAPES = {"block": {"kernel": (2, 256, 128), "scale": (2, 16)}, "in": {"kernel": (128, 128)}}
AXES = {"block": {"kernel": ("layer", "embed", "mlp"), "scale": ("layer", None)}, "in": {"kernel": (None, "embed")}}


def optim_of(**values):
    section = schema.defaults().optim.copy_and_resolve_references()
    section.update({"lr": 0.03, "warmup_steps": 1, "weight_decay": 0.0, "clip_norm": 1e9} | values)
    return section


def descend(section, mesh, steps: int = 30):
    """Distances to a target, as an optimizer walks there on a mesh from zero, and its states' shapes and last state."""
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, np.float32), SHAPES, is_leaf=lambda s: isinstance(s, tuple))
    optimizer = optim.optimizer(section, 10_000)
    placed = state_shapes(Network(None, shapes, AXES, None, None), optimizer, mesh)  # type: ignore[arg-type]
    target = jax.tree.map(lambda s: np.random.default_rng(s.size).normal(size=s.shape).astype(np.float32), shapes)

    def step(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(
            lambda p: sum(
                jnp.mean((a - b) ** 2) for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(target), strict=True)
            )
        )(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), loss

    def run():
        params = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (_, state), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
        return losses, state

    shardings = jax.tree.map(lambda leaf: leaf.sharding, placed.opt_state)
    with jax.set_mesh(mesh):
        losses, state = jax.jit(run, out_shardings=(placed.step.sharding, shardings))()
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), placed.opt_state
    )
    return np.asarray(losses), placed, state


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_every_optimizer_descends_and_its_state_lies_like_the_parameters(name: str, moments: str) -> None:
    section = optim_of(name=name, moments=moments)
    losses, placed, state = descend(section, meshes.make_mesh({"fsdp": 4, "tensor": 2}))
    assert losses[-1] < 0.5 * losses[0]
    alone, _, _ = descend(section, meshes.make_mesh({}, jax.devices()[:1]))
    np.testing.assert_allclose(losses, alone, rtol=1e-4)

    specs = {}
    for path, leaf in jax.tree.leaves_with_path(placed.opt_state):
        if jax.tree_util.keystr(path).endswith("['block']['kernel']"):
            specs[leaf.shape] = leaf.sharding.spec
            assert leaf.dtype == moments
    assert specs.pop((2, 256, 128)) == P(None, "fsdp", "tensor")
    factored = {(2, 256): P(None, "fsdp"), (2, 128): P(None, "tensor"), (1,): P()}
    assert specs == (factored if name == "adafactor" else {})
    whole = {"adamw": 2, "adafactor": 1, "muon": 1}[name]  # numbers per parameter of the large kernel
    size = np.prod(SHAPES["block"]["kernel"]) * jnp.dtype(moments).itemsize
    kept = [leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.shape == SHAPES["block"]["kernel"]]
    assert sum(kept) == whole * size


@pytest.mark.parametrize("key", ["b1", "b2", "eps"])
@pytest.mark.parametrize("name", optim.NAMES)
def test_what_an_optimizer_is_said_to_ignore_moves_no_matrix_and_all_else_moves_something(name: str, key: str) -> None:
    params = {"block": {"kernel": jnp.ones((2, 4, 3)), "scale": jnp.ones((2, 3))}}

    def moved(**values):
        optimizer = optim.optimizer(optim_of(name=name, **values), 10_000)
        state, gradient = optimizer.init(params), jax.tree.map(lambda leaf: leaf * 1e-3, params)
        for size in (1.0, 2.0, -3.0):
            scaled = jax.tree.map(lambda leaf, size=size: leaf * size, gradient)
            updates, state = optimizer.update(scaled, state, params)
        return updates["block"]

    usual, other = moved(), moved(**{key: 0.5})
    same = {leaf: bool((usual[leaf] == other[leaf]).all()) for leaf in usual}
    ignored = key in optim.IGNORED.get(name, {})
    assert same["kernel"] if ignored else not all(same.values())


def test_rounding_at_random_is_right_on_average() -> None:
    x = jnp.array([1.0, 1.001, -3.003, 1e-20, 0.0], jnp.float32)
    keys = jax.random.split(jax.random.key(0), 20_000)
    rounded = jax.vmap(lambda key: optim.round_at_random(key, x))(keys).astype(jnp.float32)
    unit = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(x), 1e-30))) - 7)
    assert (np.abs(rounded - x[None]) < unit[None]).all()
    np.testing.assert_allclose(np.asarray(rounded, np.float64).mean(0), x, atol=0.02 * unit.max(), rtol=1e-4)
    assert (rounded[:, ::4] == x[None, ::4]).all()  # what bfloat16 holds stays


def test_a_slow_second_moment_does_not_stand_still_in_bfloat16() -> None:
    """With b2 = 0.999 each step moves it by at most 0.1 %, a quarter of a unit: rounded to nearest it would stay."""
    params = {"kernel": jnp.zeros(4096)}
    update = optim.in_bfloat16(optax.scale_by_adam(b2=0.999))
    state = update.init(params)
    nu = {"kernel": jnp.full(4096, 1.0, jnp.bfloat16)}
    state = state._replace(inner=state.inner._replace(nu=nu))
    step = jax.jit(lambda state: update.update({"kernel": jnp.full(4096, 2.0)}, state, params)[1])
    for _ in range(100):
        state = step(state)
    expected = 4 - 3 * 0.999**100
    assert float(state.inner.nu["kernel"].astype(jnp.float32).mean()) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("name", "sgd", "adamw, adafactor, muon"), ("moments", "int8", "float32, bfloat16")],
)
def test_unknown_optimizers_are_refused(key: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optim.optimizer(optim_of(**{key: value}), 10)


def test_adapters_are_matrices_and_norms_are_not() -> None:
    leaf = jnp.zeros((2, 4, 3))
    params = {"q": {"kernel": leaf, "lora_a": leaf, "lora_b": leaf}, "norm": {"scale": jnp.zeros((2, 4))}}
    expected = {"q": {"kernel": True, "lora_a": True, "lora_b": True}, "norm": {"scale": False}}
    assert optim.decayed(params) == expected
    assert jax.tree.map(lambda _, found: found is not None, params, optim._matrices(params)) == expected


@pytest.mark.parametrize("moments", optim.MOMENTS)
@pytest.mark.parametrize("name", optim.NAMES)
def test_the_updates_that_count_are_those_that_were_made(name: str, moments: str) -> None:
    config = schema.defaults().optim
    config.name, config.moments = name, moments
    optimizer, params = (
        optim.optimizer(config, 100),
        {"q": {"kernel": jnp.ones((2, 3, 4))}, "n": {"scale": jnp.ones(2)}},
    )
    state = optimizer.init(params)
    for made in range(3):
        assert int(optim.applied(state)) == made
        _, state = optimizer.update(params, state, params)
