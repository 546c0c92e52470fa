import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uniser_jax.models import uniser
from uniser_jax.models.codec import PixelCodec
from uniser_jax.models.presets import PRESETS, DiTConfig, preset
from uniser_jax.types import TASKS

PUBLISHED = {
    "tiny": 1.22e6,
    "s": 46.4e6,
    "b": 151e6,
    "l": 441e6,
    "xl": 1.39e9,
    "klein-4b": 3.876e9,
    "klein-9b": 9.079e9,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_count_what_they_say(name: str) -> None:
    config = preset(name)
    assert config.parameter_count() == pytest.approx(PUBLISHED[name], rel=5e-3)
    codec = PixelCodec(16)
    _, shapes, axes = uniser.abstract(config, codec)  # nothing is allocated
    counted = sum(leaf.size for leaf in jax.tree.leaves(shapes["dit"]))
    assert counted == uniser.conditioned_config(config, codec).parameter_count()
    jax.tree.map(lambda a, s: len(a) == len(s.shape) or pytest.fail(f"{a} {s}"), axes, shapes, is_leaf=_is_axes)


def test_bad_configs_are_refused() -> None:
    with pytest.raises(ValueError, match="tiny, s, b"):
        preset("huge")
    with pytest.raises(ValueError, match="sum to"):
        dataclasses.replace(preset("tiny"), axes_dims_rope=(8, 8, 8, 4))
    assert isinstance(preset("tiny"), DiTConfig)


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": 0},
        {"num_single_layers": -1},
        {"num_attention_heads": 10**12},
        {"in_channels": 10**400},
        {"out_channels": 0},
        {"timestep_guidance_channels": 0},
        {"mlp_ratio": 0},
        {"mlp_ratio": -1.0},
        {"mlp_ratio": 1e300},
        {"mlp_ratio": 1e-9},
        {"rope_theta": 0},
        {"rope_theta": -1},
        {"rope_theta": 10**400},
        {"eps": 0},
        {"eps": -1.0},
        {"eps": float("nan")},
        {"patch_size": 0},
        {"patch_size": 2},
        {"axes_dims_rope": (-8, 8, 16, 16)},
        {"axes_dims_rope": (10**400,) * 4},
    ],
    ids=lambda change: str(change)[:30],
)
def test_senseless_values_are_named_in_one_line(change: dict) -> None:
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match="expected") as error:
        dataclasses.replace(preset("tiny"), **change)
    assert str(error.value).startswith(f"{name} = {str(value)[:40]}")
    assert len(str(error.value)) < 200


def test_codec_round_trip_and_layout() -> None:
    codec = PixelCodec(4)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 12, 3)), jnp.float32)
    tokens = codec.encode(images)
    assert tokens.shape == (2, 6, codec.channels)
    np.testing.assert_array_equal(codec.decode(tokens, 8, 12), images)
    # Token 4 is row 1, column 1; its numbers run over channels first, then rows, then columns of the patch.
    np.testing.assert_array_equal(tokens[0, 4], images[0, 4:8, 4:8].transpose(2, 0, 1).ravel())
    np.testing.assert_array_equal(codec.ids(8, 12)[4], [0, 1, 1, 0])


def test_codec_refuses_odd_sides() -> None:
    with pytest.raises(ValueError, match="multiples of the patch, 4 px"):
        PixelCodec(4).encode(jnp.zeros((1, 8, 10, 3)))


def test_every_condition_reaches_the_output() -> None:
    """Noise, input, mask, task and time each change the prediction once no layer is zero, as after the first steps."""
    graphdef, params = uniser.create(preset("tiny"), PixelCodec(8), jax.random.key(0), prompt_length=2)
    for name, key in (("image_in", 1), ("image_out", 2)):  # the ends start at zero: the first for x_t, the last whole
        shape = params["dit"][name]["kernel"].shape
        params["dit"][name]["kernel"] = jax.random.normal(jax.random.key(key), shape) / shape[0] ** 0.5
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(1, 16, 24, 3)), jnp.float32) for _ in range(2))
    base = {"x_t": x, "t": jnp.ones(1), "input": y, "mask": jnp.ones((1, 16, 24)), "task": jnp.zeros(1, int)}
    network = jax.jit(lambda params, *given: uniser.apply(graphdef, params, *given))

    def call(given):
        return network(params, *given.values())

    out = call(base)
    assert out.shape == x.shape
    changes = {"x_t": y, "t": jnp.full(1, 0.2), "input": x, "mask": jnp.zeros((1, 16, 24)), "task": jnp.full(1, 7)}
    for key, value in changes.items():
        assert float(jnp.abs(call(base | {key: value}) - out).max()) > 1e-3, key


def test_there_is_a_prompt_for_every_task() -> None:
    _, shapes, _ = uniser.abstract(preset("tiny"), PixelCodec(8), prompt_length=3)
    assert shapes["prompts"]["table"].shape == (len(TASKS), 3, 64)


def _is_axes(node) -> bool:
    return isinstance(node, tuple)


@pytest.mark.parametrize("kernel", ["xla", "chunked"])
def test_an_unseen_mask_is_as_if_there_were_none(kernel: str) -> None:
    settings = {"prompt_length": 2, "conditioning": "references", "attention": kernel}
    graphdef, params = uniser.create(preset("tiny"), PixelCodec(8), jax.random.key(0), **settings)
    out = params["dit"]["image_out"]["kernel"]
    params["dit"]["image_out"]["kernel"] = jax.random.normal(jax.random.key(1), out.shape)
    rng = np.random.default_rng(0)
    x, photo = rng.normal(size=(2, 2, 16, 24, 3)).astype(np.float32)
    mask, task, t = rng.random((2, 16, 24), np.float32), jnp.array([1, 2]), jnp.array([0.5, 1.0])
    call = jax.jit(lambda mask, **seen: uniser.apply(graphdef, params, x, t, photo, mask, task, **seen))
    none, both, first = call(None), call(mask), call(mask, mask_seen=jnp.array([True, False]))
    assert jnp.abs(none - both).max() > 0.1
    np.testing.assert_allclose(first[0], both[0], atol=1e-4)
    np.testing.assert_allclose(first[1], none[1], atol=1e-4)


def test_an_unknown_conditioning_is_refused() -> None:
    with pytest.raises(ValueError, match="'beside' is unknown; known: channels, references"):
        uniser.abstract(preset("tiny"), PixelCodec(8), conditioning="beside")
