"""The commands and the code of docs/pytorch.md, as they are written."""

import pathlib
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from convert import from_diffusers, to_diffusers
from tests.convert.test_autoencoder import SMALL as SMALL_VAE
from tests.convert.test_autoencoder import torch_vae
from tests.convert.test_transformer import SMALL, torch_model
from uniser_jax import config as schema
from uniser_jax.checkpoint import Checkpoints
from uniser_jax.step import build_network
from uniser_jax.types import TrainState

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "pytorch.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def make_run(folder: pathlib.Path) -> None:
    config = schema.defaults()
    config.model.preset, config.model.patch, config.data.size = "tiny", 8, 64
    shapes = build_network(config.model).shapes
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), shapes)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, TrainState(jnp.int32(1), params, params, {"none": jnp.zeros(1)}), config, force=True)


def make_base(folder: pathlib.Path) -> None:
    torch_model(SMALL).save_pretrained(folder / "transformer")
    torch_vae(SMALL_VAE).save_pretrained(folder / "vae")
    (folder / "model_index.json").write_text("{}")


def test_the_page_runs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(pathlib.Path("runs/demo"))
    make_base(pathlib.Path("FLUX.2-klein-base-4B"))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save("photo.jpg")
    modules = {"convert.to_diffusers": to_diffusers, "convert.from_diffusers": from_diffusers}
    for command in blocks("bash"):
        python, flag, module, *arguments = shlex.split(command)
        assert (python, flag) == ("python", "-m")
        assert modules[module].main(arguments) == 0
    for code in blocks("python"):
        exec(code, {})
    with Image.open("restored.png") as restored:
        assert restored.size == (64, 64)
