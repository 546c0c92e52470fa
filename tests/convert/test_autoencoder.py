"""Our autoencoder against diffusers' `AutoencoderKLFlux2`."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from flax import nnx

from convert import mapping
from tests.convert.state import assert_same, numpy_state, ours_of, torch_of
from uniser_jax.models.vae import VAEConfig, abstract

SMALL = VAEConfig(block_out_channels=(16, 16, 32, 32), layers_per_block=1, latent_channels=8, norm_num_groups=8)
CONFIGS = {
    "4 levels": SMALL,
    "another decoder, nothing optional": dataclasses.replace(
        SMALL,
        block_out_channels=(8, 16, 24),
        decoder_block_out_channels=(16, 8, 16),
        layers_per_block=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    ),
}


def torch_vae(config: VAEConfig) -> AutoencoderKLFlux2:
    """The stock class with random weights and statistics, each of order one in effect."""
    torch.manual_seed(0)
    levels = len(config.block_out_channels)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    model = AutoencoderKLFlux2(**dataclasses.asdict(config), **blocks).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.5)
        else:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.bn.running_mean.normal_()
    model.bn.running_var.uniform_(0.5, 2)
    model.bn.num_batches_tracked += 7
    return model


def nchw(images: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def nhwc(images: torch.Tensor) -> np.ndarray:
    return images.detach().numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_equals_diffusers(config: VAEConfig) -> None:
    model = torch_vae(config)
    graphdef, shapes, _ = abstract(config)
    vae = nnx.merge(graphdef, ours_of(mapping.VAE, shapes, numpy_state(model)))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 48, 80, 3)).astype(np.float32)
    posterior = model.encode(nchw(images)).latent_dist
    mean, log_variance = jax.jit(lambda vae, x: vae.encode(x))(vae, images)
    assert mean.std() > 0.3
    np.testing.assert_allclose(mean, nhwc(posterior.mode()), atol=1e-4, rtol=0)
    np.testing.assert_allclose(log_variance, nhwc(posterior.logvar), atol=1e-4, rtol=0)
    decoded = jax.jit(lambda vae, z: vae.decode(z))(vae, mean)
    assert decoded.std() > 0.3
    np.testing.assert_allclose(decoded, nhwc(model.decode(posterior.mode()).sample), atol=1e-4, rtol=0)


def test_packing_equals_the_pipeline() -> None:
    model = torch_vae(SMALL)
    graphdef, shapes, _ = abstract(SMALL)
    vae = nnx.merge(graphdef, ours_of(mapping.VAE, shapes, numpy_state(model)))
    z = np.random.default_rng(0).normal(size=(2, 6, 10, 8)).astype(np.float32)
    patches = Flux2KleinPipeline._patchify_latents(nchw(z))
    deviation = (model.bn.running_var + model.bn.eps).sqrt()
    normal = (patches - model.bn.running_mean[None, :, None, None]) / deviation[None, :, None, None]
    expected = Flux2KleinPipeline._pack_latents(normal)
    np.testing.assert_allclose(vae.pack(z), expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(vae.unpack(vae.pack(z), 6, 10), z, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(vae.ids(48, 80), Flux2KleinPipeline._prepare_latent_ids(patches)[0])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_round_trips_are_exact(config: VAEConfig) -> None:
    state = numpy_state(torch_vae(config))
    _, shapes, _ = abstract(config)
    tree = ours_of(mapping.VAE, shapes, state)
    again = torch_of(mapping.VAE, tree)
    assert_same(again, state)
    assert_same(mapping.flatten(ours_of(mapping.VAE, shapes, again)), mapping.flatten(tree))


def test_single_file_layout_is_what_diffusers_converts_from() -> None:
    state = numpy_state(torch_vae(SMALL))
    _, shapes, _ = abstract(SMALL)
    single = torch_of(mapping.vae_bfl(4), ours_of(mapping.VAE, shapes, state))
    assert single["encoder.mid.attn_1.q.weight"].shape == (32, 32, 1, 1)
    moved = {"encoder.quant_conv": "quant_conv", "decoder.post_quant_conv": "post_quant_conv"}  # since older models

    def name(key: str) -> str:
        stem, _, kind = key.rpartition(".")
        return f"{moved.get(stem, stem)}.{kind}"

    older = {name(key): torch.tensor(value) for key, value in single.items()}
    levels = {"down_block_types": range(4), "up_block_types": range(4)}
    converted = {key: value.numpy() for key, value in convert_ldm_vae_checkpoint(older, levels).items()}
    assert_same(converted, {key: value for key, value in state.items() if not key.startswith("bn.")})
    assert_same(torch_of(mapping.VAE, ours_of(mapping.vae_bfl(4), shapes, single)), state)


def test_published_size() -> None:
    _, shapes, _ = abstract(VAEConfig())
    tensors = {tensor.key: tensor.shape for tensor in mapping.plan(mapping.VAE, shapes)}
    with torch.device("meta"):
        wanted = {key: tuple(value.shape) for key, value in AutoencoderKLFlux2().state_dict().items()}
    assert tensors == wanted
