"""Our transformer against diffusers' `Flux2Transformer2DModel`, through the table and back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import Flux2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from flax import nnx

from convert import mapping
from tests.convert.state import assert_same, numpy_state, ours_of, torch_of
from uniser_jax.models.codec import PixelCodec
from uniser_jax.models.dit import DiT
from uniser_jax.models.presets import DiTConfig
from uniser_jax.models.prompts import text_ids

SMALL = DiTConfig(
    in_channels=12,
    num_layers=1,
    num_single_layers=2,
    attention_head_dim=32,
    num_attention_heads=4,
    joint_attention_dim=10,
    axes_dims_rope=(8, 8, 8, 8),
)
CONFIGS = {
    "1+2": SMALL,
    "3+4, heads of 16, more in than out": dataclasses.replace(
        SMALL, num_layers=3, num_single_layers=4, attention_head_dim=16, axes_dims_rope=(2, 6, 6, 2), out_channels=7
    ),
    "guidance": dataclasses.replace(SMALL, guidance_embeds=True),
    "another MLP": dataclasses.replace(SMALL, mlp_ratio=2.0, num_attention_heads=3, rope_theta=500.0),
}


def torch_model(config: DiTConfig) -> Flux2Transformer2DModel:
    """The stock class with random parameters, each of order one in effect."""
    torch.manual_seed(0)
    model = Flux2Transformer2DModel(**dataclasses.asdict(config)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model


def graph_and_shapes(config: DiTConfig):
    graphdef, state = nnx.split(nnx.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0))))
    return graphdef, nnx.to_pure_dict(state)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_equals_diffusers_forward_and_backward(config: DiTConfig) -> None:
    model = torch_model(config)
    graphdef, shapes = graph_and_shapes(config)
    params = ours_of(mapping.TRANSFORMER, shapes, numpy_state(model))
    rng = np.random.default_rng(0)
    ids = np.concatenate([PixelCodec(8).ids(24, 32) + np.float32([t, 0, 0, 0]) for t in (0, 10, 20)])
    tokens = rng.normal(size=(2, len(ids), config.in_channels)).astype(np.float32)
    context = rng.normal(size=(2, 5, config.joint_attention_dim)).astype(np.float32)
    t, guidance = np.float32([0.3, 1.0]), np.float32([3.5, 2.0]) if config.guidance_embeds else None
    weights = rng.normal(size=(2, len(ids), config.out_channels or config.in_channels)).astype(np.float32)

    def ours(tokens, context):
        out = nnx.merge(graphdef, params)(tokens, context, t, ids, text_ids(5), guidance)
        return (out * weights).mean() * out.shape[-1], out

    (_, out), gradients = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(tokens, context)

    x, c = (torch.tensor(a, requires_grad=True) for a in (tokens, context))
    expected = model(
        hidden_states=x,
        encoder_hidden_states=c,
        timestep=torch.tensor(t),
        img_ids=torch.tensor(ids),
        txt_ids=torch.tensor(text_ids(5)),
        guidance=None if guidance is None else torch.tensor(guidance),
        return_dict=False,
    )[0]
    ((expected * torch.tensor(weights)).mean() * expected.shape[-1]).backward()

    assert expected.std() > 0.3
    np.testing.assert_allclose(out, expected.detach(), atol=1e-4, rtol=0)
    for got, wanted in zip(gradients, (x.grad, c.grad), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=0)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_round_trips_are_exact(config: DiTConfig) -> None:
    state = numpy_state(torch_model(config))
    _, shapes = graph_and_shapes(config)
    params = ours_of(mapping.TRANSFORMER, shapes, state)
    again = torch_of(mapping.TRANSFORMER, params)
    assert_same(again, state)
    assert all(array.flags.c_contiguous for array in again.values())
    assert_same(mapping.flatten(ours_of(mapping.TRANSFORMER, shapes, again)), mapping.flatten(params))


def test_single_file_layout_is_what_diffusers_converts_from() -> None:
    state = numpy_state(torch_model(SMALL))
    _, shapes = graph_and_shapes(SMALL)
    single = torch_of(mapping.TRANSFORMER_BFL, ours_of(mapping.TRANSFORMER, shapes, state))
    converted = convert_flux2_transformer_checkpoint_to_diffusers({k: torch.tensor(v) for k, v in single.items()})
    assert_same({key: value.numpy() for key, value in converted.items()}, state)
    assert_same(torch_of(mapping.TRANSFORMER, ours_of(mapping.TRANSFORMER_BFL, shapes, single)), state)


def test_keys_that_do_not_match_are_named() -> None:
    _, shapes = graph_and_shapes(SMALL)
    tensors = mapping.plan(mapping.TRANSFORMER, shapes)
    found = {tensor.key: tensor.shape for tensor in tensors}
    mapping.check(tensors, found, "it")
    wrong = dict(found) | {"extra.bias": (3,), "proj_out.weight": (1, 2)}
    del wrong["x_embedder.weight"]
    with pytest.raises(ValueError, match=r"lacks x_embedder.weight; has unknown extra.bias; .*proj_out.weight is"):
        mapping.check(tensors, wrong, "it")


def test_a_table_that_does_not_fit_the_model_is_refused() -> None:
    _, shapes = graph_and_shapes(SMALL)
    with pytest.raises(ValueError, match="does not cover image_out/kernel exactly once"):
        mapping.plan(mapping.TRANSFORMER[:-1], shapes)
    with pytest.raises(ValueError, match=r"gives proj_out\.weight twice"):
        mapping.plan(mapping.TRANSFORMER + mapping.TRANSFORMER[-1:], shapes)
    with pytest.raises(ValueError, match="does not cover time_in/kernel"):
        mapping.plan((*mapping.TRANSFORMER, mapping.row("another", "time_in/kernel")), shapes)
    del shapes["double"]["image"]["up"]
    with pytest.raises(ValueError, match="needs double/image/up/kernel"):
        mapping.plan(mapping.TRANSFORMER, shapes)


def test_bfloat16_moves_without_a_change() -> None:
    _, shapes = graph_and_shapes(SMALL)
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda leaf: np.asarray(jnp.asarray(rng.normal(size=leaf.shape), jnp.bfloat16)), shapes)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), shapes)
    assert_same(
        mapping.flatten(ours_of(mapping.TRANSFORMER, shapes, torch_of(mapping.TRANSFORMER, tree))),
        mapping.flatten(tree),
    )
