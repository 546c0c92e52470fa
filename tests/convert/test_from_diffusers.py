"""Folders and files that the real classes save, as checkpoints."""

import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.torch
import tensorstore
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

from convert import from_diffusers, mapping
from tests.convert.state import assert_same, numpy_state, ours_of, torch_of
from tests.convert.test_autoencoder import SMALL as SMALL_VAE
from tests.convert.test_autoencoder import torch_vae
from tests.convert.test_transformer import CONFIGS, SMALL, graph_and_shapes, torch_model
from uniser_jax import mesh as meshes
from uniser_jax.checkpoint import Checkpoints, DamagedError
from uniser_jax.models import vae
from uniser_jax.models.vae import VAEConfig

GROUPS_OF_32 = VAEConfig(block_out_channels=(32, 32, 64), layers_per_block=1, latent_channels=4)


def weights(run: pathlib.Path, item: str, shapes):
    with Checkpoints(run) as checkpoints:
        return checkpoints.item(item, shapes)


def test_a_pipeline_folder_in_bfloat16_shards(tmp_path: pathlib.Path) -> None:
    transformer, autoencoder = torch_model(SMALL).bfloat16(), torch_vae(SMALL_VAE)
    Flux2KleinPipeline(FlowMatchEulerDiscreteScheduler(), autoencoder, None, None, transformer).save_pretrained(
        tmp_path / "in", max_shard_size="200KB"
    )
    assert len(list((tmp_path / "in" / "transformer").glob("*.safetensors"))) > 3
    assert from_diffusers.main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0

    shapes = {"dit": graph_and_shapes(SMALL)[1]}
    params = weights(tmp_path / "out", "params", shapes)
    state = {key: value.float().numpy() for key, value in transformer.state_dict().items()}
    assert_same(torch_of(mapping.TRANSFORMER, params["dit"]), state)

    tree = weights(tmp_path / "out", "vae", vae.abstract(SMALL_VAE)[1])
    assert_same(torch_of(mapping.VAE, tree), numpy_state(autoencoder))
    with Checkpoints(tmp_path / "out") as checkpoints:
        base = checkpoints.record()["base"]
    assert (base["params"]["dtype"], base["vae"]["dtype"]) == ("bfloat16", "float32")
    assert base["params"]["config"]["num_attention_heads"] == SMALL.num_attention_heads
    assert base["vae"]["config"]["block_out_channels"] == list(SMALL_VAE.block_out_channels)


def test_a_converted_base_lands_on_the_mesh(tmp_path: pathlib.Path) -> None:
    torch_model(SMALL).save_pretrained(tmp_path / "in")
    from_diffusers.convert(tmp_path / "in", tmp_path / "out")
    mesh = meshes.make_mesh({"fsdp": 4, "tensor": 2})
    shapes = {"dit": graph_and_shapes(SMALL)[1]}
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=jax.NamedSharding(mesh, jax.P(None, "fsdp") if leaf.ndim == 3 else jax.P())
        ),
        shapes,
    )
    params = weights(tmp_path / "out", "params", placed)
    jax.tree.map(lambda leaf, wanted: leaf.sharding == wanted.sharding or pytest.fail("misplaced"), params, placed)
    assert_same(torch_of(mapping.TRANSFORMER, params["dit"]), numpy_state(torch_model(SMALL)))


def test_a_changed_byte_is_found(tmp_path: pathlib.Path) -> None:
    torch_vae(SMALL_VAE).save_pretrained(tmp_path / "in")
    from_diffusers.convert(tmp_path / "in", tmp_path / "out")
    shapes = vae.abstract(SMALL_VAE)[1]
    weights(tmp_path / "out", "vae", shapes)
    folder = tmp_path / "out/checkpoints/0/vae/quant.bias"
    array = tensorstore.open({"driver": "zarr", "kvstore": f"file://{folder}/"}).result()
    array[3].write(np.float32(1)).result()
    with pytest.raises(DamagedError, match="vae/quant/bias is not what was saved"):
        weights(tmp_path / "out", "vae", shapes)


@pytest.mark.parametrize("config", [CONFIGS["guidance"], CONFIGS["another MLP"]], ids=["guidance", "another MLP"])
def test_a_single_file_needs_no_config(config, tmp_path: pathlib.Path) -> None:
    state = numpy_state(torch_model(config))
    ours = ours_of(mapping.TRANSFORMER, graph_and_shapes(config)[1], state)
    single = {key: torch.tensor(value) for key, value in torch_of(mapping.TRANSFORMER_BFL, ours).items()}
    safetensors.torch.save_file(single, tmp_path / "klein.safetensors")
    (source,) = from_diffusers.open_checkpoint(tmp_path / "klein.safetensors")
    for field in ("num_layers", "num_single_layers", "attention_head_dim", "num_attention_heads", "guidance_embeds"):
        assert getattr(source.config, field) == getattr(config, field)
    from_diffusers.convert(tmp_path / "klein.safetensors", tmp_path / "out")
    params = weights(tmp_path / "out", "params", {"dit": graph_and_shapes(config)[1]})
    assert_same(torch_of(mapping.TRANSFORMER, params["dit"]), state)


def test_types_of_a_single_file_are_kept_by_the_names_of_diffusers(tmp_path: pathlib.Path) -> None:
    """There q, k, v are one tensor; in diffusers' folders they are three."""
    ours = ours_of(mapping.TRANSFORMER, graph_and_shapes(SMALL)[1], numpy_state(torch_model(SMALL)))
    wide = ("double_blocks.0.img_attn.qkv.weight", "final_layer.adaLN_modulation.1.weight")
    single = {
        key: torch.tensor(value, dtype=torch.float32 if key in wide else torch.bfloat16)
        for key, value in torch_of(mapping.TRANSFORMER_BFL, ours).items()
    }
    safetensors.torch.save_file(single, tmp_path / "klein.safetensors")
    (source,) = from_diffusers.open_checkpoint(tmp_path / "klein.safetensors")
    keys = ("norm_out.linear.weight", *(f"transformer_blocks.0.attn.to_{name}.weight" for name in "qkv"))
    assert (source.dtype, source.exceptions()) == ("bfloat16", dict.fromkeys(keys, "float32"))


@pytest.mark.parametrize("counted", [True, False], ids=["with a counter", "without"])
def test_single_files_of_both_networks(counted: bool, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    state = {
        "klein": torch_of(
            mapping.TRANSFORMER_BFL,
            ours_of(mapping.TRANSFORMER, graph_and_shapes(SMALL)[1], numpy_state(torch_model(SMALL))),
        ),
        "ae": torch_of(
            mapping.vae_bfl(3),
            ours_of(mapping.VAE, vae.abstract(GROUPS_OF_32)[1], numpy_state(torch_vae(GROUPS_OF_32))),
        ),
    }
    if not counted:
        del state["ae"]["bn.num_batches_tracked"]
    files = {name: tmp_path / f"{name}.safetensors" for name in state}
    for name, tensors in state.items():
        safetensors.torch.save_file({key: torch.tensor(value) for key, value in tensors.items()}, files[name])
    assert from_diffusers.open_checkpoint(files["ae"])[0].config == GROUPS_OF_32
    arguments = [str(files["klein"]), str(tmp_path / "out"), f"--vae={files['ae']}"]
    assert from_diffusers.main(arguments) == 0
    assert capsys.readouterr().out.endswith("params, vae\n")
    tree = weights(tmp_path / "out", "vae", vae.abstract(GROUPS_OF_32)[1])
    assert int(tree["statistics"]["batches"]) == (7 if counted else 0)
    assert_same(torch_of(mapping.vae_bfl(3), tree), {"bn.num_batches_tracked": np.asarray(0), **state["ae"]})

    assert from_diffusers.main([str(files["ae"]), str(tmp_path / "x"), f"--vae={files['ae']}"]) == 2
    assert "expected one autoencoder" in capsys.readouterr().err
    del state["ae"]["decoder.mid.attn_1.proj_out.bias"]
    state["ae"]["decoder.new"] = np.zeros(3, np.float32)
    safetensors.torch.save_file({key: torch.tensor(value) for key, value in state["ae"].items()}, files["ae"])
    assert from_diffusers.main([str(files["ae"]), str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert "lacks decoder.mid.attn_1.proj_out.bias; has unknown decoder.new" in error
    assert not (tmp_path / "x").exists()


def test_mistakes_are_one_line_and_write_nothing(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    def refused(*argv: pathlib.Path) -> str:
        assert from_diffusers.main([str(arg) for arg in argv]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    folder, out = tmp_path / "in", tmp_path / "out"
    assert "config.json is missing" in refused(folder, out)
    torch_model(SMALL).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"num_layers": 2}, "lacks transformer_blocks.1"),
        ({"num_single_layers": 1}, "has unknown single_transformer_blocks.1"),
        ({"joint_attention_dim": 11}, "other shapes: context_embedder.weight"),
        ({"new": 1}, "'new' is unknown"),
        ({"_class_name": "UNet"}, "'UNet' is not"),
        ({"axes_dims_rope": [8, 8]}, "axes_dims_rope"),
        ({"num_layers": "many"}, "'num_layers' is 'many': expected int"),
        ({"num_layers": 1.5}, "'num_layers' is '1.5': expected int"),
        ({"num_layers": 10**9}, "num_layers = 1000000000: expected from 1 to"),
        ({"num_layers": 10**4}, "layers, the file"),
        ({"rope_theta": 10**400}, "'rope_theta' is '1000"),
        ({"rope_theta": 0}, "rope_theta = 0: expected from 1"),
        ({"eps": -1.0}, "eps = -1.0: expected from"),
        ({"mlp_ratio": 0}, "mlp_ratio = 0: expected from"),
        ({"patch_size": 0}, "patch_size = 0: expected"),
        ({"mlp_ratio": float("inf")}, "'mlp_ratio' is 'inf': expected float"),
        ({"eps": "x"}, "'eps' is 'x': expected float"),
        ({"axes_dims_rope": [8, "8"]}, "'axes_dims_rope' is"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        assert message in refused(folder, out)
    assert not out.exists()
    (folder / "config.json").write_text(json.dumps(config))
    assert from_diffusers.main([str(folder), str(tmp_path / "in" / ".." / "out")]) == 0  # tensorstore takes no ".."
    assert "has a checkpoint already" in refused(folder, out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: (50 * value).to(torch.uint8), "x_embedder.weight is of uint8: expected float32, float16 or"),
        (lambda value: value.to(torch.int64), "x_embedder.weight is of int64: expected float32"),
        (lambda value: value.bfloat16() / 0, "x_embedder.weight holds NaN or infinity"),
        (lambda value: value * float("nan"), "x_embedder.weight holds NaN or infinity"),
    ],
)
def test_tensors_of_integers_or_without_a_value_are_named(
    change, message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    torch_model(SMALL).save_pretrained(tmp_path / "in")
    file = tmp_path / "in" / "diffusion_pytorch_model.safetensors"
    state = safetensors.torch.load_file(file)
    safetensors.torch.save_file(state | {"x_embedder.weight": change(state["x_embedder.weight"])}, file)
    assert from_diffusers.main([str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not [path for path in tmp_path.glob("out/**/*") if path.is_file()]
    safetensors.torch.save_file(state, file)
    assert from_diffusers.main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
