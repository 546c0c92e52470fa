"""The real step, compiled for TPUs that are not here."""

import importlib.util
import json
import math
import pathlib
import re

import jax
import pytest

from uniser_jax import aot, cli, hlo, train
from uniser_jax import config as schema
from uniser_jax import mesh as meshes

ROOT = pathlib.Path(__file__).parent.parent
TINY = f"{ROOT}/configs/tiny.py"
SMALL = ["--config.batch_size=8", "--config.data.size=24", "--config.model.prompt_length=4"]


@pytest.mark.parametrize(
    ("topology", "axes"),
    [("v5e:1x1", {}), ("v5p:2x2x1", {"data": 1, "fsdp": 4}), ("v6e:2x2", {"data": 1, "fsdp": 2, "tensor": 2})],
)
def test_a_step_compiles_for_chips_that_are_not_there(topology, axes, capsys) -> None:
    arguments = ["aot", f"--config={TINY}", f"--topology={topology}", "--json", *SMALL]
    assert cli.main([*arguments, *(f"--config.mesh.{axis}={size}" for axis, size in axes.items())]) == 0
    report = json.loads(capsys.readouterr().out)
    sharded = axes.get("fsdp", 1) * axes.get("tensor", 1)
    assert report["chips"] == sharded
    assert report["mesh"] == {axis: size for axis, size in axes.items() if size > 1}
    assert report["fits"]
    assert report["tokens"] == 4 + 4
    assert 0 < report["state"] < report["arguments"] < report["peak"] < report["hbm"]
    whole = 4 * 4 * report["parameters"]  # parameters, average and two moments in float32
    assert whole / sharded <= report["state"] < 1.2 * whole / sharded  # a few parameters have no axis for `tensor`
    sizes = [size for size, _, _ in report["buffers"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes


def test_what_does_not_fit_says_by_how_much_and_what_to_change(capsys) -> None:
    large = ["--config.batch_size=4096", "--config.data.size=384", "--config.model.remat=none"]
    assert cli.main(["aot", f"--config={TINY}", "--topology=v5e:2x2", *large]) == 1
    line = capsys.readouterr().out.splitlines()[-1]
    needed, over, hbm = (float(size) for size in re.findall(r"([\d.,]+) GiB", line.replace(",", "")))
    assert line.startswith("does not fit v5e:2x2: needs ")
    assert hbm == 15.75
    assert over == pytest.approx(needed - hbm, abs=0.02)
    assert "--config.model.remat=full" in line
    assert f"--config.optim.accumulate={2 ** math.ceil(math.log2(needed / hbm))} " in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v9:2x2"], "expected one of v3, v4, v5e, v5p, v6e, tpu7x and a shape"),
        (["--topology=v5e"], "expected one of"),
        (["--topology=v5e:3x5"], "not divisible"),
        (["--topology=v5e:2x4", "--config.batch_size=12"], "multiple of 8"),
        (["--topology=v5e:2x2", "--config.mesh.data=3"], "does not fit 4 devices"),
        (["--topology=v5e:2x2", "--config.model.attention=cudnn"], "needs an NVIDIA GPU"),
        (["--topology=v5e:2x2", "--config.colour=red"], "colour"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_compiled(arguments, message, capsys) -> None:
    assert aot.main([f"--config={TINY}", *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("uniser aot:")]
    assert len(lines) == 1
    assert message in lines[0]


def test_without_the_compiler_it_says_what_to_install(monkeypatch, capsys) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else found(name))
    assert aot.main([f"--config={TINY}", "--topology=v5e:2x2"]) == 2
    assert "pip install 'uniser-jax[tpu]'" in capsys.readouterr().err


def test_a_base_need_not_be_here() -> None:
    config = schema.read(f"{ROOT}/configs/klein.py:base=/nowhere")
    latents = aot.latents_of(config, meshes.make_mesh({"fsdp": 8}))
    assert latents.side == 16
    assert sum(leaf.size for leaf in jax.tree.leaves(latents)) == 84_046_115 + 257  # AutoencoderKLFlux2, and statistics


def test_a_pod_compiles_the_shapes_that_a_run_feeds() -> None:
    config = schema.read(TINY, SMALL)
    mesh = meshes.make_mesh({"data": 8})
    examples, _ = train.open_examples(config)
    batch = next(train.batches(examples, 0, 0, 1, 0, 1))
    fed = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), meshes.to_global(mesh, batch))
    assert fed == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), aot.batch_shapes(config, mesh))


def test_of_stages_and_buckets_the_heaviest_batch_is_compiled() -> None:
    config = schema.read(TINY, [*SMALL, "--config.data.size=96"])
    config.data.stages = ((0, 48, 64), (10, 96, 8))
    assert aot.heaviest(config) == (64, 48, 48)
    config.data.buckets = ("1:1", "2:1")
    assert aot.heaviest(config) == max(
        ((n, h, w) for n, side in ((64, 48), (8, 96)) for h, w in schema.shapes(config, side)),
        key=lambda batch: batch[0] * batch[1] * batch[2],
    )


def test_the_largest_buffers_are_those_that_reach_memory() -> None:
    product = "jit(step)/transpose(jvp())/while/body/rematted_computation/dot_general"
    text = f"""HloModule jit_step, is_scheduled=true

%fused.1 (p: f32[8]) -> f32[1024,1024] {{
  ROOT %inside = f32[1024,1024]{{1,0}} broadcast(%p), metadata={{op_name="jit(step)/jvp()/inside"}}
}}

%body (c: (f32[8])) -> (f32[8]) {{
  %kept = bf16[4,256,64]{{2,1,0:T(8,128)(2,1)}} fusion(%c), kind=kLoop, calls=%fused.1, metadata={{op_name="{product}"}}
  %near = f32[512,512]{{1,0:T(8,128)S(1)}} copy(%kept)
}}

ENTRY %main (a: f32[2048,2048]) -> f32[] {{
  %a = f32[2048,2048]{{1,0}} parameter(0)
  %sum = f32[16,16]{{1,0}} add(%a, %a), metadata={{op_name="jit(step)/jvp()/add"}}
  %again = f32[16,16]{{1,0}} add(%a, %a)
}}
"""
    assert hlo.largest_buffers(text, 5) == [
        (4 * 256 * 64 * 2, "bf16[4,256,64]", "backward, recomputed: dot_general"),
        (16 * 16 * 4, "f32[16,16]", "forward: add"),
    ]
