"""Prompts cached from the real encoder class, and where they go."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from convert import cache_prompts, from_diffusers, to_diffusers
from tests.convert.test_transformer import SMALL, torch_model
from uniser_jax.checkpoint import Checkpoints
from uniser_jax.pretrained import read_base, with_base
from uniser_jax.types import TASKS, TrainState, prompt_name

TEMPLATE = "{% for m in messages %}user {{ m.content }} end {% endfor %}{% if add_generation_prompt %}model{% endif %}"
WIDTH = 8


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with a small random encoder of the real class, and a tokenizer that knows the words of the tasks."""
    folder = tmp_path_factory.mktemp("pipeline")
    words = ["<pad>", "<unk>", "user", "end", "model", *sorted({word for task in TASKS for word in task.split()})]
    known = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
    known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=known, pad_token="<pad>", unk_token="<unk>", chat_template=TEMPLATE, padding_side="right"
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    sizes = {"hidden_size": WIDTH, "intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1}
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=len(words), num_hidden_layers=28, head_dim=8, **sizes)
    Qwen3ForCausalLM(config).save_pretrained(folder / "text_encoder")
    return folder


def test_prompts_are_what_the_pipeline_would_compute_without_padding(
    pipeline: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "prompts.safetensors"
    assert cache_prompts.main(["--text-encoder", str(pipeline), str(out)]) == 0
    cached = load_file(out)
    assert cached.keys() == {prompt_name(task) for task in TASKS}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(pipeline / "tokenizer")
    encoder = Qwen3ForCausalLM.from_pretrained(pipeline / "text_encoder").eval()
    with torch.no_grad():
        stock = Flux2KleinPipeline._get_qwen3_prompt_embeds(encoder, tokenizer, "remove lens flare")
    assert stock.shape == (1, 512, 3 * WIDTH)
    np.testing.assert_allclose(cached["remove_lens_flare"], stock[:, :6], atol=1e-5)  # user remove lens flare end model
    assert {value.shape for value in cached.values()} == {(1, 6, 3 * WIDTH)}


def test_a_run_starts_with_them_and_a_base_keeps_them(pipeline: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = dict(SMALL.__dict__) | {"joint_attention_dim": 3 * WIDTH}
    torch_model(type(SMALL)(**config)).save_pretrained(tmp_path / "in")
    out = tmp_path / "prompts.safetensors"
    cache_prompts.main(["--text-encoder", str(pipeline), str(out)])
    assert from_diffusers.main([str(tmp_path / "in"), str(tmp_path / "base"), f"--prompts={out}"]) == 0
    shapes = from_diffusers.shapes_of(type(SMALL)(**config)) | {
        "prompts": {"table": jax.ShapeDtypeStruct((11, 6, 3 * WIDTH), jnp.float32)}
    }
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # a run knows where each leaf lies
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)
    state = TrainState(jnp.int32(0), {}, {}, None)
    state = with_base(state, read_base(tmp_path / "base", shapes))
    for tree in (state.params, state.ema):
        expected = load_file(out)["add_haze"][0]
        np.testing.assert_array_equal(tree["prompts"]["table"][TASKS.index("add haze")], expected)
    to_diffusers.export(tmp_path / "base", tmp_path / "again")
    before, after = (
        load_file(p / "diffusion_pytorch_model.safetensors") for p in (tmp_path / "in", tmp_path / "again/transformer")
    )
    assert before.keys() == after.keys()
    with Checkpoints(tmp_path / "base") as checkpoints:
        assert len(checkpoints.record()["base"]["params"]["tasks"]) == 16


def test_mistakes_are_one_line(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    assert cache_prompts.main(["--text-encoder", str(tmp_path), str(tmp_path / "x")]) == 2
    assert "text_encoder is missing" in capsys.readouterr().err
    torch_model(SMALL).save_pretrained(tmp_path / "in")
    other = tmp_path / "in" / "diffusion_pytorch_model.safetensors"
    assert from_diffusers.main([str(tmp_path / "in"), str(tmp_path / "out"), f"--prompts={other}"]) == 2
    assert "not those of this version" in capsys.readouterr().err
