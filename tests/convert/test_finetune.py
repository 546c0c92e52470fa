"""From a base in diffusers' layout, through training, to a folder that the stock pipeline restores with: the whole circle."""

import json
import pathlib
import re

import jax
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
from uniser_jax import config as schema
from uniser_jax.checkpoint import Checkpoints
from uniser_jax.models.presets import preset
from uniser_jax.models.vae import VAEConfig
from uniser_jax.restore.restorer import Restorer
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
    overrides = [f"--config.steps={steps}", "--config.log_every=5", "--config.mesh.data=2", "--config.mesh.fsdp=4"]
    return schema.read(f"configs/klein.py:tiny,base={base}", overrides)


@pytest.fixture(scope="module")
def run(base: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("finetuned")
    train(config_of(base, 20), folder)
    return folder


def test_it_starts_at_the_base_and_the_loss_falls(run: pathlib.Path, base: pathlib.Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    config = config_of(base, 1)
    config.optim.lr = 0.0
    config.optim.weight_decay = 0.0
    untouched = train(config, run.parent / "untouched")
    assert_same(
        torch_of(mapping.TRANSFORMER, jax.device_get(untouched.params["dit"])), numpy_state(torch_model(preset("tiny")))
    )


def test_its_export_restores_in_the_stock_pipeline_as_jax_does(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    assert to_diffusers.export(run, out) < 1e-4
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


def test_the_code_of_its_card_runs(run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to_diffusers.export(run, tmp_path / "out")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "photo.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code.replace('folder = "."', 'folder = "out"'), {})
    with Image.open(tmp_path / "restored.png") as restored:
        assert restored.size == (64, 64)


def test_a_missing_base_is_one_line(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="is no converted base; python -m convert"):
        train(config_of(tmp_path / "none", 1), tmp_path / "run")
