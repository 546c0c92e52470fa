"""Runs as folders that diffusers loads, and restores with as we do."""

import json
import pathlib
import re

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, Flux2Transformer2DModel
from PIL import Image
from safetensors.torch import load_file

from convert import from_diffusers, mapping, parity, pipeline, tensorfile, to_diffusers
from tests.convert.state import assert_same, numpy_state
from tests.convert.test_autoencoder import SMALL as SMALL_VAE
from tests.convert.test_autoencoder import torch_vae
from tests.convert.test_transformer import SMALL, torch_model
from uniser_jax import config as schema
from uniser_jax.checkpoint import Checkpoints
from uniser_jax.restore import fullres
from uniser_jax.restore.restorer import Restorer
from uniser_jax.step import build_network
from uniser_jax.types import TASKS, TrainState, prompt_name, tasks_digest


def make_run(
    folder: pathlib.Path, conditioning: str = "channels", mask_scale: int = 1, direct: float = 1.25
) -> pathlib.Path:
    """A run whose parameters are random, the last, zero, projection too; the average is another set."""
    config = schema.defaults()
    config.model.conditioning, config.model.mask_scale = conditioning, mask_scale
    config.model.preset, config.model.patch, config.model.prompt_length = "tiny", 8, 4
    config.model.compute_dtype, config.model.remat = "float32", "none"
    config.data.size, config.restore.steps, config.restore.direct = 64, 2, direct
    network = build_network(config.model)
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = 0.02 if leaf.ndim > 1 else 1.0
        return jnp.asarray(rng.normal(size=leaf.shape) * scale + (leaf.ndim == 2 and leaf.shape[-1] == 32), jnp.float32)

    params, ema = (jax.tree.map(draw, network.shapes) for _ in range(2))
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(7, TrainState(jnp.int32(7), params, ema, {"none": jnp.zeros(1)}), config, force=True)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def folder(run: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("export") / "folder"
    assert to_diffusers.main([str(run), str(out)]) == 0
    return out


def photo(height: int = 64, width: int = 64) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def load(folder: pathlib.Path):
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe, load_file(folder / "prompt_embeds.safetensors")


def test_the_stock_class_loads_every_tensor(folder: pathlib.Path, run: pathlib.Path) -> None:
    model, info = Flux2Transformer2DModel.from_pretrained(folder, subfolder="transformer", output_loading_info=True)
    assert not any(info.values())
    ours = Restorer.from_checkpoint(run).params["dit"]
    leaves = mapping.flatten(ours)
    written = {t.key: mapping.to_torch(t, leaves.__getitem__) for t in mapping.plan(mapping.TRANSFORMER, ours)}
    assert_same(numpy_state(model), written)


def test_the_report_and_the_card_say_how_close_it_is(folder: pathlib.Path) -> None:
    report = json.loads((folder / "parity.json").read_text())
    assert report["transformer_std"] > 0.1
    assert report["transformer"] < 1e-4
    assert report["restoration"] < 1e-4
    card = (folder / "README.md").read_text()
    assert "7 steps of 256 pairs" in card
    assert f"The prompts (set `{tasks_digest()}`)" in card
    assert f"{report['transformer']:.1e}" in card


def test_the_code_of_the_card_runs(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(photo()).save(tmp_path / "photo.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code.replace('folder = "."', f"folder = {str(folder)!r}"), {})
    with Image.open(tmp_path / "restored.png") as restored:
        assert restored.size == (64, 64)


def test_torch_restores_as_jax_does(folder: pathlib.Path, run: pathlib.Path) -> None:
    restores_as_jax_does(folder, run)


def restores_as_jax_does(folder: pathlib.Path, run: pathlib.Path) -> None:
    pipe, prompts = load(folder)
    restorer = Restorer.from_checkpoint(run)
    soft = np.zeros((64, 64), np.uint8)
    soft[8:40, 8:] = np.linspace(0, 255, 56).astype(np.uint8)
    noise = np.asarray(jax.random.normal(jax.random.key(0), (1, 64, 64, 3)))  # the restorer's own
    for task, mask, strength in (("remove haze", None, 1.0), ("remove effects", soft, 0.6)):
        ours = restorer(photo(), task=task, mask=mask, strength=strength)
        theirs = pipe(
            image=Image.fromarray(photo()),
            prompt_embeds=prompts[task.replace(" ", "_")],
            mask=None if mask is None else Image.fromarray(mask),
            strength=strength,
            latents=torch.tensor(noise.transpose(0, 3, 1, 2).copy()),
        ).images[0]
        assert np.abs(ours.astype(int) - photo()).max() > 20
        assert np.abs(ours.astype(int) - np.asarray(theirs)).max() <= 1


@pytest.mark.parametrize("mask_scale", [1, 2])
def test_references_are_read_alike(mask_scale: int, tmp_path: pathlib.Path) -> None:
    run, out = make_run(tmp_path / "run", "references", mask_scale), tmp_path / "out"
    assert to_diffusers.export(run, out) < 1e-4
    assert json.loads((out / "parity.json").read_text())["restoration"] < 1e-4
    if mask_scale == 2:
        restores_as_jax_does(out, run)


def test_photographs_of_any_size(folder: pathlib.Path) -> None:
    pipe, prompts = load(folder)
    for size in ((45, 70), (150, 201)):
        image = Image.fromarray(photo(*size))
        nothing = Image.new("L", image.size)
        restored = pipe(image=image, prompt_embeds=prompts["remove_haze"]).images[0]
        assert restored.size == image.size
        assert np.abs(np.asarray(restored).astype(int) - photo(*size)).max() > 5
        same = pipe(image=image, prompt_embeds=prompts["remove_haze"], mask=nothing).images[0]
        np.testing.assert_array_equal(same, photo(*size))
    with pytest.raises(ValueError, match="mask of 3 x 4 px: expected the photograph's 201 x 150"):
        pipe(image=image, prompt_embeds=prompts["remove_haze"], mask=Image.new("L", (3, 4)))


def test_sides_below_half_a_token(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    to_diffusers.export(make_run(tmp_path / "run", "references", 2), out)
    pipe, prompts = load(out)
    side = pipe.config.patch * pipe.config.mask_scale // 2
    image = Image.fromarray(photo(side, side))
    assert pipe(image=image, prompt_embeds=prompts["remove_haze"]).images[0].size == (side, side)


def test_what_a_pipeline_cannot_use_is_named_and_a_profile_is_kept(folder: pathlib.Path) -> None:
    pipe, prompts = load(folder)
    image, embeds = Image.fromarray(photo(32, 32)), prompts["remove_haze"]
    for given, message in (
        ({"image": "photo.jpg"}, "image of type str: expected one Image"),
        ({"image": [image]}, "image of type list: expected one Image"),
        ({"prompt_embeds": "remove haze"}, "prompt_embeds of type str: expected one Tensor"),
        ({"num_inference_steps": 0}, "num_inference_steps 0: expected at least 1"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            pipe(**{"image": image, "prompt_embeds": embeds, **given})
    image.info["icc_profile"] = b"a profile"
    assert pipe(image=image, prompt_embeds=embeds).images[0].info["icc_profile"] == b"a profile"


def strokes(height: int, width: int, *widths: int) -> np.ndarray:
    """An uneven mask at full resolution: white strokes, and a gray one that fades."""
    mask = np.zeros((height, width), np.uint8)
    for number, thickness in enumerate(widths, 1):
        column = width * number // (len(widths) + 2)
        cv2.line(mask, (column, 20), (column + 40, height - 20), 255, thickness)
    mask[height // 3 :, -60:] = np.linspace(20, 255, 60).astype(np.uint8)
    return mask


def test_a_mask_is_spread_as_jax_does() -> None:
    mask = strokes(300, 401, 2, 5, 15)
    levels = torch.tensor(mask[None, None] / np.float32(255))
    for size in ((56, 72), (48, 88)):
        expected = fullres._spread(mask, size) / 255
        np.testing.assert_allclose(pipeline._spread(levels, size)[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("width", [8, 20, 60])
def test_a_stroke_on_a_large_photograph_is_restored_as_much_as_jax_does(
    width: int, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of networks that halve what is white in the mask they see, and less where it is gray."""
    pipe, prompts = load(folder)
    monkeypatch.setattr(pipe, "_sample", lambda photo, mask, *_: photo * (1 - mask / 2))
    pipe.register_to_config(working_size=96)
    before, mask = photo(1284, 1924), strokes(1284, 1924, width)
    restored = pipe(image=Image.fromarray(before), mask=Image.fromarray(mask), prompt_embeds=prompts["nothing"])
    theirs = np.asarray(restored.images[0], int)
    ours = fullres.restore_any_size(before, mask, lambda x, m: (x + 1) * (1 - m[..., None] / 2) - 1, 96, 8).astype(int)
    changed, expected = (np.abs(after - before)[mask > 0].mean() for after in (theirs, ours))
    assert expected > 10
    assert changed == pytest.approx(expected, rel=0.1)  # means over areas gave 0.5 to 0.7 of it
    assert not (theirs - before)[mask == 0].any()


def test_a_run_that_restores_by_maps_alone_does_so_in_torch(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    assert to_diffusers.export(make_run(tmp_path / "run", direct=0.0), out) < 1e-4
    assert json.loads((out / "parity.json").read_text())["restoration"] < 1e-4
    restored = []
    for exported in (folder, out):  # the same parameters
        pipe, prompts = load(exported)
        restored.append(pipe(image=Image.fromarray(photo()), prompt_embeds=prompts["remove_haze"]).images[0])
    assert pipe.config.direct == 0
    assert np.abs(np.asarray(restored[0], int) - np.asarray(restored[1], int)).max() > 5


def test_a_generator_is_what_diffusers_takes_for_one(folder: pathlib.Path) -> None:
    """A list of them, or one of another device."""
    pipe, prompts = load(folder)

    def restored(**given) -> np.ndarray:
        return np.asarray(pipe(image=Image.fromarray(photo()), prompt_embeds=prompts["nothing"], **given).images[0])

    np.testing.assert_array_equal(restored(generator=[torch.Generator().manual_seed(0)]), restored())
    if torch.cuda.is_available():
        pipe.to("cuda")
        assert restored(generator=torch.Generator("cuda").manual_seed(0)).shape == (64, 64, 3)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_gray_of_sixteen_bits_is_restored_as_in_eight(order: str, folder: pathlib.Path) -> None:
    """As the photograph, and as the mask."""
    pipe, prompts = load(folder)
    gray = photo()[..., 0]
    eight, sixteen = Image.fromarray(gray), Image.fromarray((gray.astype(np.uint16) * 257).astype(order))
    assert sixteen.mode.startswith("I;16")
    one, other = (pipe(image=g, mask=g, prompt_embeds=prompts["nothing"]).images[0] for g in (eight, sixteen))
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    for mode in "IF":
        with pytest.raises(ValueError, match=f"mode {mode}, whose white is not known"):
            pipe(image=eight.convert(mode), prompt_embeds=prompts["nothing"])


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_out_of_range_is_refused(folder: pathlib.Path, strength: float) -> None:
    pipe, prompts = load(folder)
    with pytest.raises(ValueError, match="expected from 0"):
        pipe(image=Image.fromarray(photo()), prompt_embeds=prompts["nothing"], strength=strength)


def test_prompts_are_one_tensor_per_task(folder: pathlib.Path, run: pathlib.Path) -> None:
    prompts = load_file(folder / "prompt_embeds.safetensors")
    assert prompts.keys() == {prompt_name(task) for task in TASKS}
    table = Restorer.from_checkpoint(run).params["prompts"]["table"]
    np.testing.assert_array_equal(prompts["add_shadow"][0], table[TASKS.index("add shadow")])


def test_bfloat16_the_last_parameters_and_a_single_file(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    assert to_diffusers.main([str(run), str(out), "--dtype=bf16", "--no-ema", "--single-file"]) == 0
    entries = tensorfile.open_tensors(out / "transformer").values()
    assert {entry.dtype.name for entry in entries} == {"bfloat16"}
    model = Flux2Transformer2DModel.from_pretrained(out, subfolder="transformer", dtype=torch.bfloat16)
    single = Flux2Transformer2DModel.from_single_file(
        str(out / "uniser.safetensors"), config=str(out), subfolder="transformer", dtype=torch.bfloat16
    )
    assert_same(
        {key: value.float().numpy() for key, value in single.state_dict().items()},
        {key: value.float().numpy() for key, value in model.state_dict().items()},
    )
    pipe = DiffusionPipeline.from_pretrained(out, trust_remote_code=True, dtype=torch.bfloat16)
    prompts = load_file(out / "prompt_embeds.safetensors")
    pipe.set_progress_bar_config(disable=True)
    assert pipe(image=Image.fromarray(photo()), prompt_embeds=prompts["remove_haze"]).images[0].size == (64, 64)


@pytest.mark.parametrize("mixed", [False, True], ids=["of one type", "of mixed types"])
def test_a_base_goes_back_bit_for_bit(mixed: bool, tmp_path: pathlib.Path) -> None:
    """Mixed: norms in float32 beside bfloat16, as trainers keep them, and a counter that a cast of all has caught."""
    transformer, autoencoder = torch_model(SMALL).bfloat16(), torch_vae(SMALL_VAE)
    if mixed:
        for name, module in transformer.named_modules():
            if "norm" in name:
                module.float()
                for parameter in module.parameters():
                    parameter.data += 1e-4
        autoencoder.bn.half()
        autoencoder.bn.num_batches_tracked = autoencoder.bn.num_batches_tracked.bfloat16()
    transformer.save_pretrained(tmp_path / "in" / "transformer", max_shard_size="300KB")
    autoencoder.save_pretrained(tmp_path / "in" / "vae")
    (tmp_path / "in" / "model_index.json").write_text("{}")
    from_diffusers.convert(tmp_path / "in", tmp_path / "run")
    to_diffusers.export(tmp_path / "run", tmp_path / "out")
    for part in ("transformer", "vae"):
        before, after = (tensorfile.open_tensors(tmp_path / side / part) for side in ("in", "out"))
        assert before.keys() == after.keys()
        for key, entry in before.items():
            assert (after[key].dtype, after[key].shape) == (entry.dtype, entry.shape)
            assert after[key].read().tobytes() == entry.read().tobytes()
        assert from_diffusers.open_checkpoint(tmp_path / "out" / part)[0].config == (
            SMALL if part == "transformer" else SMALL_VAE
        )


def test_a_transformer_of_pixels_goes_back_without_an_autoencoder(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A whole pipeline of ours has none, and names none; its requests are those of a prompts file."""
    prompts = folder / "prompt_embeds.safetensors"
    assert from_diffusers.main([str(folder), str(tmp_path / "base"), f"--prompts={prompts}"]) == 0
    to_diffusers.export(tmp_path / "base", tmp_path / "out")
    before, after = (
        load_file(top / "transformer/diffusion_pytorch_model.safetensors") for top in (folder, tmp_path / "out")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_shards_have_an_index(tmp_path: pathlib.Path) -> None:
    tree = {"quant": {"kernel": np.ones((1, 1, 4, 4), np.float32), "bias": np.ones(4, np.float32)}}
    to_diffusers.write_tensors(tmp_path, "model", mapping.VAE, tree, np.dtype(np.float32), most=64)
    assert (tmp_path / "model-00002-of-00002.safetensors").is_file()
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"]["total_size"] == 80
    assert tensorfile.open_tensors(tmp_path).keys() == {"quant_conv.weight", "quant_conv.bias"}


def test_a_checkpoint_can_be_chosen(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """Two steps, of which the older has the lower held-out loss."""
    config = schema.defaults()
    config.model.preset, config.model.patch, config.model.prompt_length = "tiny", 8, 4
    shapes = build_network(config.model).shapes
    with Checkpoints(tmp_path / "run", best=1) as checkpoints:
        for number, loss in ((3, 0.1), (5, 0.2)):
            params = jax.tree.map(lambda leaf, fill=number: jnp.full(leaf.shape, fill / 100, leaf.dtype), shapes)
            state = TrainState(jnp.int32(number), params, params, {"none": jnp.zeros(1)})
            checkpoints.save(number, state, config, held_out_loss=loss, force=True)
    for name, step in (("best", 3), ("newest", 5), ("3", 3)):
        out = tmp_path / name
        assert to_diffusers.main([str(tmp_path / "run"), str(out), "--at", name]) == 0
        assert f"{step} steps of" in (out / "README.md").read_text()
        table = load_file(out / "prompt_embeds.safetensors")["remove_haze"]
        np.testing.assert_allclose(table, step / 100, rtol=1e-6)
    capsys.readouterr()
    assert to_diffusers.main([str(tmp_path / "run"), str(tmp_path / "x"), "--at", "4"]) == 2
    assert "no checkpoint of step 4; there are [3, 5] and best" in capsys.readouterr().err


def test_flags_that_would_do_nothing_are_refused(
    run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    torch_model(SMALL).save_pretrained(tmp_path / "in" / "transformer")
    torch_vae(SMALL_VAE).save_pretrained(tmp_path / "in" / "vae")
    (tmp_path / "in" / "model_index.json").write_text("{}")
    from_diffusers.convert(tmp_path / "in", tmp_path / "base")
    base = "is a base, which goes back as it came"
    for folder, flags, message in (
        (tmp_path / "base", ["--dtype=f32"], base),
        (tmp_path / "base", ["--no-ema"], base),
        (tmp_path / "base", ["--single-file"], base),
        (run, ["--lora", "--single-file"], "leave one of them out"),
    ):
        assert to_diffusers.main([str(folder), str(tmp_path / "x"), *flags]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "x").exists()


def test_a_folder_that_cannot_be_compared_is_whole_and_says_why(
    run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*_) -> None:
        raise OSError("no cache at /proc/x | y\nat all")

    monkeypatch.setattr(parity, "compare", fail)
    out = tmp_path / "out"
    assert to_diffusers.main([str(run), str(out)]) == 1
    assert (
        capsys.readouterr().err
        == f"convert.to_diffusers: {out} is written, but not compared: no cache at /proc/x | y\n"
    )
    assert "| JAX against torch | not compared: no cache at /proc/x / y |" in (out / "README.md").read_text()
    assert not (out / "parity.json").exists()
    pipe, prompts = load(out)
    assert pipe(image=Image.fromarray(photo()), prompt_embeds=prompts["remove_haze"]).images[0].size == (64, 64)


def test_mistakes_are_one_line(run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "used").write_text("")
    for argv, message in (((tmp_path, tmp_path / "x"), "no checkpoint here"), ((run, tmp_path), "not an empty folder")):
        assert to_diffusers.main([str(arg) for arg in argv]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
