"""Adapters: the start is the base, merged is adapted, and nothing but adapters has a gradient."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from uniser_jax import config as schema
from uniser_jax import mesh as meshes
from uniser_jax.diffusion.flow import Flow
from uniser_jax.models import lora, uniser
from uniser_jax.models.dit import Dense, product
from uniser_jax.models.lora import AdaptedDense, Lora
from uniser_jax.step import base_shapes, batch_loss, build_network
from uniser_jax.types import Batch

SIDE = 16
TARGETS = "dit/(double/image/(q|down)|single/joint/(v|up|out)|time_in)/kernel"


def sections(rank: int = 3, targets: str = TARGETS):
    config = schema.defaults()
    config.model.preset, config.model.patch, config.model.compute_dtype = "tiny", 8, "float32"
    config.model.remat = "full"
    config.lora.rank, config.lora.alpha, config.lora.targets = rank, 6.0, targets
    return config.model, config.lora


@pytest.fixture(scope="module")
def parts():
    """An adapted network, the whole network, and parameters of both, with nothing at zero."""
    model, adapters = sections()
    network, plain = build_network(model, adapters), build_network(model)

    def draw(key: int, tree):
        leaves, structure = jax.tree.flatten(tree)
        keys = jax.random.split(jax.random.key(key), len(leaves))
        values = [0.1 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, values)

    return network, plain, draw(0, network.shapes), draw(1, network.base), schema.build(Lora, adapters)


def question():
    rng = np.random.default_rng(0)
    x, seen = (jnp.asarray(rng.normal(size=(2, SIDE, SIDE, 3)), jnp.float32) for _ in range(2))
    return x, jnp.array([0.3, 0.8]), seen, jnp.ones((2, SIDE, SIDE)), jnp.array([0, 3])


def answer(network, params):
    return jax.jit(functools.partial(uniser.apply, network.graphdef))(params, *question())


def batch() -> Batch:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 2, SIDE, SIDE, 3), dtype=np.uint8)
    return Batch(*images, np.full((2, SIDE, SIDE), 255, np.uint8), np.arange(2), np.ones((2, 5), np.float32))


def test_only_adapters_and_prompts_are_trained(parts) -> None:
    network, plain, trained, base, _ = parts
    leaves = {"/".join(path) for path in flatten_dict(network.shapes)}
    chosen = [
        "double/image/q",
        "double/image/down",
        "time_in",
        *(f"single/joint/{name}" for name in ("v", "up", "out")),
    ]
    assert leaves == {f"dit/{name}/lora_{half}" for name in chosen for half in "ab"} | {"prompts/table"}
    assert network.shapes["dit"]["single"]["joint"]["up"]["lora_a"].shape == (2, 128, 3)
    assert network.axes["dit"]["single"]["joint"]["up"]["lora_a"] == ("layer", "embed", None)
    assert network.axes["dit"]["single"]["joint"]["up"]["lora_b"] == ("layer", None, "mlp")
    whole = flatten_dict(plain.shapes).keys()
    assert flatten_dict(base).keys() == {path for path in whole if path[0] == "dit"}
    assert flatten_dict(lora.join(trained, base)).keys() == flatten_dict(trained).keys() | flatten_dict(base).keys()


def test_the_start_is_the_base_exactly(parts) -> None:
    network, plain, _, base, _ = parts
    start = jax.jit(network.init)(jax.random.key(5))
    a = start["dit"]["single"]["joint"]["up"]["lora_a"]
    assert float(a.std()) == pytest.approx(128**-0.5, rel=0.1)
    ours = answer(network, lora.join(start, base))
    np.testing.assert_array_equal(ours, answer(plain, base | {"prompts": start["prompts"]}))
    assert np.std(ours) > 0.01


def test_merged_is_adapted(parts) -> None:
    network, plain, trained, base, adapters = parts
    merged = lora.merge(trained, base, adapters)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, plain.shapes)
    adapted, expected = answer(network, lora.join(trained, base)), answer(plain, merged)
    np.testing.assert_allclose(adapted, expected, atol=2e-5 * np.abs(expected).max())
    bare = answer(plain, base | {"prompts": trained["prompts"]})
    assert np.abs(adapted - bare).max() > 0.1 * np.abs(bare).max()
    up = ("dit", "single", "joint", "up", "kernel")
    change = flatten_dict(merged)[up] - flatten_dict(base)[up]
    a, b = (flatten_dict(trained)[(*up[:-1], half)] for half in (lora.A, lora.B))
    np.testing.assert_allclose(change, 6.0 / 3 * np.einsum("lir,lro->lio", a, b), atol=1e-6)


def test_no_gradient_of_the_size_of_a_kernel_is_made(parts) -> None:
    network, plain, trained, base, _ = parts
    flow, data = Flow(), batch()
    t, noise = flow.draw(jax.random.key(1), data.target.shape)

    def products(network, params, base) -> tuple[int, int]:
        """How many of the size of an MLP's kernel there are in the compiled gradient, and how many at all."""

        def gradient(params, base):
            return jax.grad(functools.partial(batch_loss, network, flow, base=base), has_aux=True)(
                params, data, t, noise
            )[0]

        made = jax.eval_shape(gradient, params, base)
        assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, params)
        text = jax.jit(gradient).lower(params, base).compile().as_text()
        large = re.findall(r"f32\[(?:128,384|384,128)\]\S* (?:dot|custom-call)\(", text)
        return len(large), len(re.findall(r" (?:dot|custom-call)\(", text))

    large, all_of_them = products(network, trained, base)
    assert large == 0
    assert all_of_them > 20
    assert products(plain, base | {"prompts": trained["prompts"]}, None)[0] > 0


def test_gradients_are_the_same_on_any_mesh(parts) -> None:
    network, _, trained, base, _ = parts
    flow, data = Flow(), batch()
    t, noise = flow.draw(jax.random.key(1), data.target.shape)

    def gradient(params, base, *data):
        return jax.grad(functools.partial(batch_loss, network, flow, base=base), has_aux=True)(params, *data)[0]

    alone = jax.jit(gradient)(trained, base, data, t, noise)
    mesh = meshes.make_mesh({"fsdp": 2, "tensor": 2, "sequence": 2})
    with jax.set_mesh(mesh):
        shardings = meshes.sharding_of(mesh, network.axes, network.shapes)
        frozen = jax.tree.map(lambda leaf: leaf.sharding, {"dit": base_shapes(network, mesh)["dit"]})
        placed = jax.device_put(trained, shardings), jax.device_put(base, frozen)
        spread = jax.jit(gradient)(*placed, *meshes.to_global(mesh, (data, np.asarray(t), np.asarray(noise))))
    up = spread["dit"]["single"]["joint"]["up"]
    assert placed[0]["dit"]["single"]["joint"]["up"]["lora_b"].sharding.spec == jax.P(None, None, "tensor")
    assert up["lora_b"].shape == (2, 3, 384)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(alone))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * largest), spread, alone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": "dit/encoder/.*"}, "matches no kernel; there are dit/double/image/down/kernel"),
        ({"targets": "("}, "no regular expression"),
        ({"rank": -1}, "expected at least 0"),
        ({"alpha": 0.0}, "above 0"),
    ],
)
def test_mistakes_are_one_line(change, message: str) -> None:
    model, adapters = sections()
    adapters.update(change)
    with pytest.raises(ValueError, match=message) as caught:
        build_network(model, adapters)
    assert "\n" not in str(caught.value)


def test_adapters_need_a_base() -> None:
    config = schema.defaults()
    config.lora.rank = 4
    with pytest.raises(ValueError, match=r"config\.lora\.rank = 4 adapts a base"):
        schema.validate(config)


def test_adapters_learn_from_sums_that_are_not_rounded() -> None:
    rng, rngs = np.random.default_rng(0), nnx.Rngs(0)
    layer = AdaptedDense(Dense(24, 16, axes=("embed", "heads"), rngs=rngs), Lora(rank=4, alpha=4.0), rngs=rngs)
    layer.lora_b[...] = jnp.asarray(rng.normal(size=(4, 16)), jnp.float32)
    x, g = (jnp.asarray(rng.normal(size=(2, 40, width)), jnp.bfloat16) for width in (24, 16))
    graphdef, state = nnx.split(layer)
    pull = jax.vjp(lambda state: nnx.merge(graphdef, state)(x), state)[1]
    learned = nnx.to_pure_dict(pull(g)[0])
    into = np.asarray(product(x, layer.lora_a[...]), np.float64)
    back = np.asarray(product(g, layer.lora_b[...].T), np.float64)
    exact = {
        "lora_a": np.einsum("bni,bnr->ir", np.asarray(x, np.float64), back),
        "lora_b": np.einsum("bnr,bno->ro", into, np.asarray(g, np.float64)),
    }
    for name, value in exact.items():
        assert learned[name].dtype == jnp.float32
        np.testing.assert_allclose(learned[name], value, atol=1e-5 * np.abs(value).max())
