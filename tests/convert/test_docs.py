"""The commands and the code of docs/pytorch.md, from top to bottom, as they are written but for a base as small as `tiny`."""

import pathlib
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
from ml_collections import ConfigDict
from PIL import Image

from convert import from_diffusers, to_diffusers
from tests.convert.test_autoencoder import torch_vae
from tests.convert.test_finetune import TINY_VAE
from tests.convert.test_transformer import torch_model
from uniser_jax import config as schema
from uniser_jax import pretrained
from uniser_jax.checkpoint import Checkpoints
from uniser_jax.models.presets import preset
from uniser_jax.step import build_network
from uniser_jax.types import TrainState

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "pytorch.md"


def blocks() -> list[tuple[str, str]]:
    """Language and text of each block of the page, in order."""
    return re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)


def make_run(folder: pathlib.Path, config: ConfigDict) -> None:
    """What training would leave, without training."""
    shapes = build_network(config.model, config.lora).shapes
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), shapes)
    with Checkpoints(folder, facts={"frozen": pretrained.digests_of(config)}) as checkpoints:
        checkpoints.save(1, TrainState(jnp.int32(1), params, params, {"none": jnp.zeros(1)}), config, force=True)


def train(arguments: list[str]) -> int:
    config, workdir, *overrides = arguments
    size = config.removeprefix("--config=configs/klein.py:").replace("photos=/data/photos", "tiny")
    make_run(
        pathlib.Path(workdir.removeprefix("--workdir=")), schema.read(f"{ROOT}/configs/klein.py:{size}", overrides)
    )
    return 0


def make_base(folder: pathlib.Path) -> None:
    parts = (torch_vae(TINY_VAE), None, None, torch_model(preset("tiny")))
    Flux2KleinPipeline(FlowMatchEulerDiscreteScheduler(), *parts).save_pretrained(folder)


def test_the_page_runs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(to_diffusers, "_compare", lambda *_: None)  # other tests compare
    config = schema.defaults()
    config.model.preset, config.model.patch, config.data.size = "tiny", 8, 64
    make_run(pathlib.Path("runs/demo"), config)
    make_base(pathlib.Path("FLUX.2-klein-base-4B"))
    turned = Image.Exif()
    turned[0x0112] = 6  # as phones store portraits
    stored = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    stored.save("photo.jpg", exif=turned)
    programs = {"to_diffusers": to_diffusers.main, "from_diffusers": from_diffusers.main, "train": train}
    for language, text in blocks():
        if language == "python":
            pathlib.Path("restored.png").unlink(missing_ok=True)
            exec(text, {})
            if "restored.save" in text:
                with Image.open("restored.png") as restored:
                    assert restored.size == (64, 96)
        for command in text.splitlines() if language == "bash" else []:
            python, flag, module, *arguments = shlex.split(command)
            assert (python, flag) == ("python", "-m")
            assert programs[module.rpartition(".")[2]](arguments) == 0


def test_no_command_of_the_page_writes_where_another_did() -> None:
    commands = [line.split() for language, text in blocks() if language != "python" for line in text.splitlines()]
    folders = [words[4] if "diffusers" in words[2] else words[-1] for words in commands]
    assert len(folders) > 8
    assert len(set(folders)) == len(folders)
