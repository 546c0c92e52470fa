"""From a base in diffusers' layout, through training, to a folder that the stock pipeline restores with: the whole circle."""

import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from PIL import Image
from safetensors.torch import load_file

from convert import from_diffusers, mapping, to_diffusers
from tests.convert.state import assert_same, numpy_state, torch_of
from tests.convert.test_autoencoder import torch_vae
from tests.convert.test_transformer import torch_model
from uniser_jax import cli, optim, status
from uniser_jax import config as schema
from uniser_jax import mesh as meshes
from uniser_jax.checkpoint import Checkpoints
from uniser_jax.diffusion.flow import Flow
from uniser_jax.diffusion.sampler import restore
from uniser_jax.evaluation.metrics import psnr
from uniser_jax.models.codec import PixelCodec
from uniser_jax.models.presets import preset
from uniser_jax.models.prompts import text_ids
from uniser_jax.models.vae import VAEConfig
from uniser_jax.pretrained import read_base, with_base
from uniser_jax.restore.restorer import Restorer
from uniser_jax.step import base_shapes, build_network, state_shapes
from uniser_jax.train import train

TINY_VAE = VAEConfig(block_out_channels=(8, 8, 16, 16), layers_per_block=1, latent_channels=32, norm_num_groups=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("base")
    parts = (torch_vae(TINY_VAE), None, None, torch_model(preset("tiny")))
    Flux2KleinPipeline(FlowMatchEulerDiscreteScheduler(), *parts).save_pretrained(folder / "in")
    from_diffusers.convert(folder / "in", folder / "run")
    return folder / "run"


def config_of(base: pathlib.Path, steps: int, size: str = "tiny"):
    overrides = [f"--config.steps={steps}", "--config.log_every=5", "--config.data.size=32"]
    overrides += ["--config.mesh.data=2", "--config.restore.working_size=64"]
    return schema.read(f"configs/klein.py:{size},base={base}", overrides)


@pytest.fixture(scope="module")
def run(base: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("finetuned")
    train(config_of(base, 10), folder)
    return folder


@pytest.fixture(scope="module")
def adapted(base: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of adapters with samples on the way, continued from its middle as if it had been stopped there."""
    folder, config = tmp_path_factory.mktemp("adapted"), config_of(base, 20, "tiny,lora")
    config.sample_every, config.checkpoint.every = 20, 10
    whole = train(config, folder)
    shutil.rmtree(folder / "checkpoints" / "20")
    again = train(config, folder)
    jax.tree.map(np.testing.assert_array_equal, *(jax.device_get(state.params) for state in (whole, again)))
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
    state = with_base(zeros, read_base(base, base_shapes(network, mesh)))
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


def test_adapters_are_all_that_is_trained_and_kept(base: pathlib.Path, adapted: pathlib.Path) -> None:
    lines = [json.loads(line) for line in (adapted / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert (adapted / "samples" / "step_000020.png").is_file()
    assert status.read(adapted).state == "finished"
    with Checkpoints(adapted) as checkpoints:
        for item in ("params", "ema"):
            names = {path.rpartition("/")[2] for path in mapping.flatten(checkpoints.stored(item))}
            assert names == {"lora_a", "lora_b", "table"}
        stored = checkpoints.stored("opt_state")
    assert sum(leaf.size for leaf in jax.tree.leaves(stored)) < 0.2 * preset("tiny").parameter_count()
    with Checkpoints(base) as checkpoints:  # every digest is checked: the base is as it was
        read = checkpoints.weights(from_diffusers.shapes_of(preset("tiny")), ema=False)
    assert_same(torch_of(mapping.TRANSFORMER, read["dit"]), numpy_state(torch_model(preset("tiny"))))


def test_adapters_in_the_stock_pipeline_restore_as_jax_does(
    base: pathlib.Path, adapted: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert to_diffusers.main([str(adapted), str(tmp_path / "lora"), "--lora"]) == 0
    folder = base.with_name("in")
    pipe = Flux2KleinPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
    pipe.set_progress_bar_config(disable=True)
    bare = predicted(pipe.transformer)
    pipe.load_lora_weights(tmp_path / "lora")
    theirs = predicted(pipe.transformer)
    assert to_diffusers.export(adapted, tmp_path / "merged") < 1e-4
    merged = Flux2Transformer2DModel.from_pretrained(tmp_path / "merged", subfolder="transformer")
    np.testing.assert_allclose(theirs, predicted(merged), atol=1e-4, rtol=0)
    assert np.abs(theirs - bare).max() > 1e-2

    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    ours = Restorer.from_checkpoint(adapted, compensate=False)(photo, task="remove haze")
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "lora" / "README.md").read_text(), re.DOTALL)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    noise = np.asarray(jax.random.normal(jax.random.key(0), (1, 4, 4, 128))).transpose(0, 3, 1, 2).copy()
    for before, after in (
        ('"."', repr(str(tmp_path / "lora"))),
        ('"black-forest-labs/FLUX.2-klein-base-4B"', repr(str(folder))),
        ('"photo.jpg"', repr(str(tmp_path / "photo.png"))),
        ('"remove_effects"', '"remove_haze"'),
        ("**how", "**how, latents=noise"),
        ('"restored.png"', repr(str(tmp_path / "restored.png"))),
    ):
        assert before in code
        code = code.replace(before, after)
    exec(code, {"noise": torch.tensor(noise)})
    with Image.open(tmp_path / "restored.png") as restored:
        assert np.abs(ours.astype(int) - np.asarray(restored)).max() <= 1
    half = code.replace("tokenizer=None)", "tokenizer=None, dtype=torch.bfloat16)")
    exec(half, {"noise": torch.tensor(noise).bfloat16(), "torch": torch})
    with Image.open(tmp_path / "restored.png") as restored:
        assert np.abs(ours.astype(int) - np.asarray(restored)).mean() < 3  # of 255: 8 bits of a mantissa


def predicted(model: torch.nn.Module) -> np.ndarray:
    """Of random tokens."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.tensor(PixelCodec(1).ids(2, 3))
    with torch.no_grad():
        return model(
            hidden_states=torch.randn(1, 6, model.config.in_channels, generator=draw),
            encoder_hidden_states=torch.randn(1, 4, model.config.joint_attention_dim, generator=draw),
            timestep=torch.tensor([0.7]),
            img_ids=ids,
            txt_ids=torch.tensor(text_ids(4)),
            return_dict=False,
        )[0].numpy()


def test_another_base_is_refused(
    base: pathlib.Path, adapted: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_model(preset("tiny")).bfloat16().save_pretrained(tmp_path / "in" / "transformer")
    torch_vae(TINY_VAE).save_pretrained(tmp_path / "in" / "vae")
    (tmp_path / "in" / "model_index.json").write_text("{}")
    from_diffusers.convert(tmp_path / "in", tmp_path / "other")
    shutil.copytree(adapted, tmp_path / "run")
    with pytest.raises(ValueError, match="is not this run's base: the digest of its params is") as caught:
        train(config_of(tmp_path / "other", 21, "tiny,lora"), tmp_path / "run")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="is not this run's base: the digest of its params is"):
        Restorer.from_checkpoint(tmp_path / "run", base=tmp_path / "other")
    config = config_of(tmp_path / "other", 21, "tiny,lora")
    config.init_from = str(adapted)
    with pytest.raises(ValueError, match=f"is not {adapted}'s base: the digest of its params is"):
        train(config, tmp_path / "new")


def test_a_base_that_was_moved_is_named(
    base: pathlib.Path, adapted: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    moved, run = tmp_path / "moved", tmp_path / "run"
    shutil.copytree(base, moved)
    shutil.copytree(adapted, run)
    (record,) = run.glob("checkpoints/20/record/metadata")
    record.write_text(record.read_text().replace(str(base), str(tmp_path / "gone")))
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(photo)
    restore = [cli.main, "restore", str(photo), "-o", str(tmp_path / "out.png"), "--checkpoint", str(run)]
    evaluate = [cli.main, "evaluate", "--checkpoint", str(run), "--count", "1"]
    export = [to_diffusers.main, str(run), str(tmp_path / "out")]
    for main, *command in (restore, evaluate, export):
        assert main(command) == 2
        assert "--base=FOLDER names one of a trained run that was moved" in capsys.readouterr().err
        assert main([*command, "--base", str(moved)]) == 0
    assert to_diffusers.main([str(run), str(tmp_path / "x"), "--lora", "--base", str(moved)]) == 2
    assert "reads no base" in capsys.readouterr().err


def test_a_run_without_adapters_has_none_to_write(
    run: pathlib.Path, base: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    for folder in (run, base):
        assert to_diffusers.main([str(folder), str(tmp_path / "x"), "--lora"]) == 2
        assert "this run has none" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_code_of_its_card_runs(
    out: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "photo.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    code = code.replace('folder = "."', f"folder = {str(out)!r}")
    assert code.count("tokenizer=None)") == 1
    scope = {"torch": torch}
    exec(code.replace("tokenizer=None)", f"tokenizer=None, dtype={dtype})"), scope)
    assert scope["pipe"].transformer.dtype == dtype
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
