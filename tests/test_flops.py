"""FLOPs counted from jaxprs, against closed formulas."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from uniser_jax import config as schema
from uniser_jax import flops, optim
from uniser_jax import mesh as meshes
from uniser_jax.models import vae
from uniser_jax.models.codec import LatentCodec
from uniser_jax.models.presets import DiTConfig, preset
from uniser_jax.models.uniser import conditioned_config
from uniser_jax.models.vae import VAEConfig
from uniser_jax.step import build_network, state_shapes
from uniser_jax.types import EFFECTS, Batch


def dit_flops(config: DiTConfig, n: int, l: int) -> int:  # noqa: E741
    """Of one training example of n image and l text tokens: forward, and backward to parameters and inputs."""
    d, m, channels = config.width, config.mlp_width, config.timestep_guidance_channels
    per_token = 2 * (4 * d * d + 3 * d * m)  # q k v out, gate up down
    attention = 2 * 2 * (n + l) ** 2 * d  # q k and weights v
    blocks = (config.num_layers + config.num_single_layers) * ((n + l) * per_token + attention)
    per_example = 2 * (d * d + (6 + 6 + 3 + 2) * d * d)
    outputs = config.out_channels or config.in_channels
    ends = 2 * (l * config.joint_attention_dim * d + n * d * outputs)
    of_inputs = 2 * (
        channels * d + n * config.in_channels * d
    )  # nothing is learned behind these: no gradient of inputs
    return 3 * (blocks + per_example + ends) + 2 * of_inputs


def batch_shapes(size: int, side: int) -> Batch:
    image, mask = ((size, side, side, 3), np.uint8), ((size, side, side), np.uint8)
    shapes = (image, image, mask, ((size,), np.int32), ((size, len(EFFECTS)), np.float32))
    return Batch(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))


def counted(config, latents=None) -> flops.StepFlops:
    mesh = meshes.make_mesh({}, jax.devices()[:1])
    network, optimizer = build_network(config.model), optim.optimizer(config.optim, config.steps)
    state = state_shapes(network, optimizer, mesh)
    return flops.of_step(config, state, batch_shapes(config.batch_size, config.data.size), latents)


@pytest.mark.parametrize("size", ["tiny", "s", "b", "l", "xl"])
def test_a_step_in_pixel_space_is_the_closed_formula(size) -> None:
    config = schema.read(f"configs/pixel.py:size={size},image=512")
    config.optim.accumulate = 2  # and a remat policy of its own: neither is progress
    sizes = conditioned_config(preset(size), build_network(config.model).codec)
    expected = config.batch_size * dit_flops(sizes, 32 * 32, config.model.prompt_length)
    assert counted(config).model == pytest.approx(expected, rel=1e-6)
    assert counted(config).encode == counted(config).optimizer == 0


def test_a_mesh_changes_no_count() -> None:
    config = schema.read("configs/tiny.py")
    mesh = meshes.make_mesh({"fsdp": 2, "sequence": 2, "tensor": 2})
    network, optimizer = build_network(config.model), optim.optimizer(config.optim, config.steps)
    state, batch = state_shapes(network, optimizer, mesh), batch_shapes(config.batch_size, config.data.size)
    with jax.set_mesh(mesh):  # as in the loop of a run
        found = flops.counter(config, state)(batch)
    assert found == counted(config).model


def test_a_step_of_klein_is_the_closed_formula_and_encoding_is_its_own_figure() -> None:
    config = schema.read("configs/klein.py")
    graphdef, shapes, _ = vae.abstract(VAEConfig())
    latents = LatentCodec(VAEConfig(), graphdef, shapes)
    started = time.process_time()
    found = counted(config, latents)
    assert time.process_time() - started < 4  # a second, on a machine of its own
    expected = config.batch_size * dit_flops(preset("klein-4b"), 3 * 32 * 32, config.model.prompt_length)
    assert found.model == pytest.approx(expected, rel=1e-6)
    assert found.encode == pytest.approx(config.batch_size * 3 * encoder_flops(512), rel=1e-6)


def encoder_flops(side: int) -> int:
    """Of `VAEConfig()` for one image: convolutions of 3 x 3 and 1 x 1, and one attention."""

    def conv(pixels: int, inputs: int, outputs: int, kernel: int = 9) -> int:
        return 2 * pixels * inputs * outputs * kernel

    total, inputs, pixels = conv(side**2, 3, 128), 128, side**2
    for level, outputs in enumerate((128, 256, 512, 512)):
        total += conv(pixels, inputs, outputs) + 3 * conv(pixels, outputs, outputs)
        total += conv(pixels, inputs, outputs, 1) if inputs != outputs else 0
        inputs = outputs
        if level < 3:
            pixels //= 4
            total += conv(pixels, outputs, outputs)
    total += 4 * conv(pixels, 512, 512) + 4 * conv(pixels, 512, 512, 1) + 2 * 2 * pixels**2 * 512
    return total + conv(pixels, 512, 64) + conv(pixels, 64, 64, 1)


def test_scans_conditions_and_calls_are_counted_as_often_as_they_run() -> None:
    w, x = jnp.ones((8, 8)), jnp.ones((4, 8))
    one = 2 * 4 * 8 * 8

    def scanned(x):
        return jax.lax.scan(lambda x, _: (jax.checkpoint(jnp.tanh)(x @ w), None), x, length=5)[0]

    def branched(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x)

    def count(function) -> int:
        return flops.count(jax.make_jaxpr(function)(x))

    assert count(scanned) == count(jax.jit(scanned)) == 5 * one
    assert count(branched) == 2 * one
    assert count(jax.grad(lambda x: jnp.sum(scanned(x)))) == 2 * 5 * one  # w is a constant here
    full = jax.checkpoint(lambda x: jnp.sum(jnp.tanh(x @ w) @ w))
    assert count(jax.grad(full)) == (2 + 1 + 2) * one  # and what remat computes again
    with pytest.raises(ValueError, match="use a scan"):
        count(lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ w, x))


def test_every_shard_counts() -> None:
    mesh = meshes.make_mesh({"data": 8})
    spec = meshes.spec("batch")
    x, w = jnp.ones((16, 4)), jnp.ones((4, 4))
    shard = jax.shard_map(lambda x: x @ w, mesh=mesh, in_specs=spec, out_specs=spec)
    assert flops.count(jax.make_jaxpr(shard)(x)) == 2 * 16 * 4 * 4


def test_groups_of_a_convolution_do_not_see_each_other() -> None:
    def conv(x, w, groups):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=dims, feature_group_count=groups)

    x = jnp.ones((1, 8, 8, 6))
    for groups in (1, 3):
        jaxpr = jax.make_jaxpr(lambda x, groups=groups: conv(x, jnp.ones((3, 3, 6 // groups, 12)), groups))(x)
        assert flops.count(jaxpr) == 2 * (4 * 4 * 12) * (9 * 6 // groups)


def test_a_pallas_kernel_counts_what_its_grid_computes() -> None:
    heads, tokens, dim = 2, 512, 64
    mask = splash.splash_attention_mask.MultiHeadMask([splash.splash_attention_mask.FullMask((tokens, tokens))] * heads)
    kernel = splash.splash_attention_kernel.make_splash_mha(mask, head_shards=1, q_seq_shards=1)
    q = jnp.ones((heads, tokens, dim))
    assert flops.count(jax.make_jaxpr(kernel)(q, q, q)) == 2 * 2 * heads * tokens**2 * dim


def test_peaks_are_known_or_absent() -> None:
    assert flops.peak("TPU v5 lite") == 197e12
    assert flops.peak("TPU v3") == 123e12 / 2  # a device is one of a chip's two cores
    assert flops.peak("cpu") is None
    assert all(5e13 < chip.peak < 1e16 and 1e10 < chip.hbm < 1e12 for chip in flops.CHIPS.values())
