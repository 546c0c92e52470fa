"""The whole of diffusers' `Flux2KleinPipeline`, step by step: photograph and mask as references, cached prompts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from PIL import Image

from convert import mapping
from tests.convert.state import numpy_state, ours_of
from tests.convert.test_autoencoder import SMALL as SMALL_VAE
from tests.convert.test_autoencoder import torch_vae
from tests.convert.test_transformer import SMALL, graph_and_shapes, torch_model
from uniser_jax.diffusion.flow import Flow
from uniser_jax.diffusion.sampler import euler, klein_shift, restore, times
from uniser_jax.models import uniser, vae
from uniser_jax.models.codec import LatentCodec
from uniser_jax.types import TASKS

# Published settings of klein's scheduler.
DYNAMIC = {"base_shift": 0.5, "max_shift": 1.15, "shift": 3.0, "use_dynamic_shifting": True}
CONFIG = dataclasses.replace(SMALL, in_channels=SMALL_VAE.token_channels)
STEPS = 4


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_times_are_the_schedulers(steps: int) -> None:
    sigmas = np.linspace(1, 1 / steps, steps)
    for shift in (1.0, 3.0):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(sigmas=sigmas)
        np.testing.assert_allclose(times(steps, shift), scheduler.sigmas, atol=1e-6)
    for tokens in (96, 1024, 4096, 9216):
        mu = compute_empirical_mu(tokens, steps)
        assert klein_shift(tokens, steps) == pytest.approx(np.exp(mu), rel=1e-6)
        scheduler = FlowMatchEulerDiscreteScheduler(**DYNAMIC)
        scheduler.set_timesteps(sigmas=sigmas, mu=mu)
        np.testing.assert_allclose(times(steps, klein_shift(tokens, steps)), scheduler.sigmas, atol=1e-6)


@functools.cache
def both():
    """The pipeline, and our network and autoencoder with its weights."""
    transformer, autoencoder = torch_model(CONFIG), torch_vae(SMALL_VAE)
    pipe = Flux2KleinPipeline(
        FlowMatchEulerDiscreteScheduler(**DYNAMIC), autoencoder, None, None, transformer, is_distilled=True
    )
    pipe.set_progress_bar_config(disable=True)
    vae_graph, vae_shapes, _ = vae.abstract(SMALL_VAE)
    codec = LatentCodec(SMALL_VAE, vae_graph, ours_of(mapping.VAE, vae_shapes, numpy_state(autoencoder)))
    prompts = np.random.default_rng(0).normal(size=(len(TASKS), 5, CONFIG.joint_attention_dim)).astype(np.float32)
    graphdef, shapes, _ = uniser.abstract(CONFIG, codec.tokens, prompt_length=5, conditioning="references")
    dit = ours_of(mapping.TRANSFORMER, graph_and_shapes(CONFIG)[1], numpy_state(transformer))
    params = {"dit": dit, "prompts": {"table": jnp.asarray(prompts)}}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    return pipe, codec, functools.partial(uniser.apply, graphdef, params), prompts


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("mask_size", [(64, 96), (64, 64), None], ids=["mask", "mask of another size", "no mask"])
def test_equals_the_pipeline_at_every_step(mask_size: tuple[int, int] | None) -> None:
    pipe, codec, network, prompts = both()
    task = TASKS.index("remove haze")
    photo, mask = picture(64, 96, 3), None if mask_size is None else picture(*mask_size)
    key, shift = jax.random.key(3), klein_shift(24, STEPS)

    @jax.jit
    def restore(photo, mask):
        latents = codec.encode(photo)
        seen = None if mask is None else codec.encode(jnp.repeat(mask[..., None], 3, -1))
        return latents, seen, euler(network, Flow("velocity"), key, latents, seen, jnp.array([task]), STEPS, shift)

    signal = [None if image is None else jnp.asarray(image[None] / np.float32(127.5) - 1) for image in (photo, mask)]
    latents, seen, restored = restore(*signal)

    steps = [jax.random.normal(key, latents.shape)]
    expected = pipe(
        image=[Image.fromarray(image) for image in (photo, mask) if image is not None],
        prompt_embeds=torch.tensor(prompts[task][None]),
        num_inference_steps=STEPS,
        latents=torch.tensor(np.asarray(steps[0]).transpose(0, 3, 1, 2).copy()),
        callback_on_step_end=lambda pipe, i, t, given: steps.append(given["latents"].numpy()) or given,
        output_type="np",
    ).images

    for index, (t, s) in enumerate(zip(times(STEPS, shift), times(STEPS, shift)[1:], strict=False)):
        x = jnp.asarray(steps[index]).reshape(latents.shape)  # from where torch was
        v = jax.jit(network)(x, jnp.full(1, t), latents, seen, jnp.array([task]))
        np.testing.assert_allclose(x + (s - t) * v, steps[index + 1].reshape(latents.shape), atol=1e-4, rtol=0)
    np.testing.assert_allclose(restored, steps[-1].reshape(latents.shape), atol=1e-3, rtol=0)
    image = np.clip((jax.jit(codec.decode)(restored) + 1) / 2, 0, 1)
    np.testing.assert_allclose(image, expected, atol=1e-3, rtol=0)
    assert expected.std() > 0.1


def test_a_mask_of_half_the_side_equals_the_pipeline() -> None:
    pipe, codec, network, prompts = both()
    codec = dataclasses.replace(codec, mask_scale=2)
    task, key, shift = TASKS.index("remove shadow"), jax.random.key(3), klein_shift(64, STEPS)
    photo, mask = picture(128, 128, 3), picture(128, 128)

    @jax.jit
    def run(photo, mask):
        return restore(
            network, Flow("velocity"), key, photo, mask, jnp.array([task]), STEPS, shift, codec, compensate=False
        )

    ours = run(photo[None] / np.float32(127.5) - 1, mask[None] / np.float32(255))
    theirs = pipe(
        image=[Image.fromarray(photo), Image.fromarray(mask).reduce(2)],
        prompt_embeds=torch.tensor(prompts[task][None]),
        num_inference_steps=STEPS,
        latents=torch.tensor(np.asarray(jax.random.normal(key, (1, 8, 8, 32))).transpose(0, 3, 1, 2).copy()),
        output_type="np",
    ).images
    np.testing.assert_allclose(np.clip((ours + 1) / 2, 0, 1), theirs, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="mask_scale = 2"):
        codec.encode_mask(jnp.zeros((1, 33, 64)))


def test_sides_that_are_no_multiples_are_refused() -> None:
    _, codec, _, _ = both()
    with pytest.raises(ValueError, match="multiples of 16 px"):
        codec.encode(jnp.zeros((1, 40, 64, 3)))
