"""From a base in diffusers' layout, through training, to a folder that the stock pipeline restores with: the whole circle."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
from PIL import Image
from safetensors.torch import load_file

from convert import from_diffusers, mapping, to_diffusers
from tests.convert.state import assert_same, numpy_state, torch_of
from tests.convert.test_autoencoder import torch_vae
from tests.convert.test_transformer import torch_model
from uniser_jax import cli, optim
from uniser_jax import config as schema
from uniser_jax import mesh as meshes
from uniser_jax.checkpoint import Checkpoints
from uniser_jax.diffusion.flow import Flow
from uniser_jax.diffusion.sampler import restore
from uniser_jax.evaluation.metrics import psnr
from uniser_jax.models.presets import preset
from uniser_jax.models.vae import VAEConfig
from uniser_jax.pretrained import with_base
from uniser_jax.restore.restorer import Restorer
from uniser_jax.step import build_network, state_shapes
from uniser_jax.train import train

TINY_VAE = VAEConfig(block_out_channels=(8, 8, 16, 16), layers_per_block=1, latent_channels=32, norm_num_groups=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("base")
    parts = (torch_vae(TINY_VAE), None, None, torch_model(preset("tiny")))
    Flux2KleinPipeline(FlowMatchEulerDiscreteScheduler(), *parts).save_pretrained(folder / "in")
    from_diffusers.convert(folder / "in", folder / "run")
    return folder / "run"


def config_of(base: pathlib.Path, steps: int):
    overrides = [f"--config.steps={steps}", "--config.log_every=5", "--config.data.size=32"]
    overrides += ["--config.mesh.data=2", "--config.restore.working_size=64"]
    return schema.read(f"configs/klein.py:tiny,base={base}", overrides)


@pytest.fixture(scope="module")
def run(base: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("finetuned")
    train(config_of(base, 10), folder)
    return folder


@pytest.fixture(scope="module")
def out(run: pathlib.Path) -> pathlib.Path:
    assert to_diffusers.export(run, run / "diffusers") < 1e-4
    return run / "diffusers"


def test_the_loss_falls(run: pathlib.Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]


def test_a_run_starts_at_the_base(base: pathlib.Path) -> None:
    config, mesh = config_of(base, 1), meshes.make_mesh({"fsdp": 8})
    network, optimizer = build_network(config.model), optim.optimizer(config.optim, config.steps)
    shapes = state_shapes(network, optimizer, mesh)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), shapes)
    state = with_base(zeros, shapes, base)
    for tree in (state.params, state.ema):
        theirs = numpy_state(torch_model(preset("tiny")))
        assert_same(torch_of(mapping.TRANSFORMER, jax.device_get(tree["dit"])), theirs)
    placed = jax.tree.map(lambda leaf, shape: leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim), state, shapes)
    assert all(jax.tree.leaves(placed))


def test_its_export_restores_in_the_stock_pipeline_as_jax_does(run: pathlib.Path, out: pathlib.Path) -> None:
    assert json.loads((out / "parity.json").read_text())["restoration"] < 1e-3
    with Checkpoints(run) as checkpoints:
        record = checkpoints.record()
    restorer = Restorer.from_checkpoint(run)
    stock = Restorer.from_checkpoint(run, compensate=False)
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    ours = stock(photo, task="remove haze")
    assert (
        np.abs(ours.astype(int) - restorer(photo, task="remove haze")).max() > 1
    )  # the default gives back what is lost

    pipe = Flux2KleinPipeline.from_pretrained(out, text_encoder=None, tokenizer=None)
    pipe.set_progress_bar_config(disable=True)
    noise = np.asarray(jax.random.normal(jax.random.key(0), (1, 4, 4, 128)))
    theirs = pipe(
        image=[Image.fromarray(photo), Image.new("RGB", (64, 64), "white")],
        prompt_embeds=load_file(out / "prompt_embeds.safetensors")["remove_haze"],
        num_inference_steps=record["config"]["restore"]["steps"],
        latents=torch.tensor(noise.transpose(0, 3, 1, 2).copy()),
    ).images[0]
    assert np.abs(ours.astype(int) - np.asarray(theirs)).max() <= 1


def test_the_code_of_its_card_runs(out: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "photo.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code.replace('folder = "."', f"folder = {str(out)!r}"), {})
    with Image.open(tmp_path / "restored.png") as restored:
        assert restored.size == (64, 64)


def test_the_bound_that_the_autoencoder_sets(run: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    restorer = Restorer.from_checkpoint(run)
    photo = np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    seen = restorer.reconstruct(photo)
    assert seen.shape == photo.shape
    assert psnr(photo, seen) < 30  # it is not trained
    assert cli.main(["evaluate", "--checkpoint", str(run), "--codec-only", "--count", "1"]) == 0
    assert "**mean**" in capsys.readouterr().out
    # A network that changes nothing loses nothing: what the autoencoder loses is put back.
    images, mask = photo[None, :64, :64] / np.float32(127.5) - 1, np.ones((1, 64, 64), np.float32)
    still = Flow("x0")
    nothing = jax.jit(
        lambda codec: restore(
            lambda x, t, seen, mask, task: seen,
            still,
            jax.random.key(0),
            images,
            mask,
            jnp.zeros(1, int),
            1,
            1.0,
            codec,
        )
    )(restorer.latents)
    np.testing.assert_allclose(nothing, images, atol=1e-5)


def test_a_missing_base_is_one_line(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="is no converted base; python -m convert"):
        train(config_of(tmp_path / "none", 1), tmp_path / "run")
