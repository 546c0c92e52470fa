"""The real step, compiled for TPUs and GPUs that are not here."""

import importlib.util
import json
import math
import pathlib
import re

import jax
import pytest

from uniser_jax import aot, cli, topologies, train
from uniser_jax import config as schema
from uniser_jax import mesh as meshes

ROOT = pathlib.Path(__file__).parent.parent
TINY = f"{ROOT}/configs/tiny.py"
SMALL = ["--config.batch_size=8", "--config.data.size=24", "--config.model.prompt_length=4"]


class Device:
    """Stands for a device of a made-up platform and kind."""


@pytest.mark.parametrize(
    ("topology", "axes", "settings"),
    [
        ("v3:2x2", {"data": 1, "fsdp": 8}, []),
        ("v5e:1x1", {}, ["--config.model.remat=offload"]),
        ("v5p:2x2x1", {"data": 1, "fsdp": 4}, []),
        ("v6e:2x2", {"data": 1, "fsdp": 2, "tensor": 2}, []),
        ("v5e:2x2", {"slice": 2, "data": 1, "fsdp": 4}, ["--slices=2"]),
    ],
)
def test_a_step_compiles_for_chips_that_are_not_there(topology, axes, settings, capsys) -> None:
    arguments = ["aot", f"--config={TINY}", f"--topology={topology}", "--json", *SMALL, *settings]
    assert cli.main([*arguments, *(f"--config.mesh.{axis}={size}" for axis, size in axes.items())]) == 0
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # Infinity and NaN are no JSON
    sharded = axes.get("fsdp", 1) * axes.get("tensor", 1)
    assert report["chips"] == sharded * axes.get("slice", 1)
    assert report["mesh"] == {axis: size for axis, size in axes.items() if size > 1}
    assert report["fits"]
    assert report["tokens"] == 4 + 4
    assert 0 < report["state"] < report["arguments"] < report["peak"] < report["hbm"]
    whole = 4 * 4 * report["parameters"]  # parameters, average and two moments in float32
    assert whole / sharded <= report["state"] < 1.2 * whole / sharded  # a few parameters have no axis for `tensor`
    assert (report["host_temporaries"] > 0) == (report["remat"] == "offload")
    sizes = [size for size, _, _ in report["buffers"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes


def test_a_step_compiles_for_gpus_that_are_not_there(capsys) -> None:
    pytest.importorskip("jax_cuda12_plugin", reason=topologies.install())
    bfloat16 = "--config.model.compute_dtype=bfloat16"
    assert cli.main(["aot", f"--config={TINY}", "--topology=h100:1x2", "--json", *SMALL, bfloat16]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["chips"], report["chip"], report["mesh"]) == (2, "NVIDIA H100 80GB HBM3", {"data": 2})
    assert (
        0 < report["state"] < report["arguments"] < report["peak"] < report["hbm"] == topologies.memory(report["chip"])
    )
    _, note = report["notes"]
    if topologies.has_cudnn():
        assert (report["attention"], "workspace" in note) == ("cudnn", True)
    else:
        assert (report["attention"], "pip install nvidia-cudnn-cu12" in note) == ("xla", True)


def test_without_cudnn_another_kernel_is_compiled_and_named(monkeypatch) -> None:
    monkeypatch.setattr(topologies, "has_cudnn", lambda: False)
    for name, value in {"platform": "gpu", "device_kind": "NVIDIA H200"}.items():
        monkeypatch.setattr(Device, name, value, raising=False)
    config = schema.read(f"{ROOT}/configs/pixel.py:size=b,image=512")
    mesh = meshes.make_mesh({"data": 2}, [Device(), Device()])
    compiled, (_, note) = aot.compilable(config, mesh, None)
    assert (compiled.model.attention, config.model.attention) == ("chunked", "auto")
    assert note.startswith(
        "cuDNN is not here: this is attention chunked, which needs more memory than the cudnn of a run"
    )
    config.model.attention = "cudnn"
    with pytest.raises(ValueError, match="cannot be compiled without cuDNN: pip install nvidia-cudnn-cu12"):
        aot.compilable(config, mesh, None)


def test_what_does_not_fit_says_by_how_much_and_what_to_change(capsys) -> None:
    large = ["--config.batch_size=4096", "--config.data.size=384", "--config.model.remat=none"]
    assert cli.main(["aot", f"--config={TINY}", "--topology=v5e:2x2", *large]) == 1
    *lines, line = capsys.readouterr().out.splitlines()
    needed, over, hbm = (float(size) for size in re.findall(r"([\d.,]+) GiB", line.replace(",", "")))
    assert line.startswith("does not fit v5e:2x2: needs ")
    assert hbm == 15.75
    assert over == pytest.approx(needed - hbm, abs=0.02)
    largest = [line.split()[1:] for line in lines if line.startswith("largest")]
    assert len(largest) == 6
    assert largest[0][3:] == ["forward:", "dynamic_update_slice"]  # what is kept of each block
    assert float(largest[0][0].replace(",", "")) > 1024
    changes = [line.split()[1] for line in lines if line.startswith("change")]
    parts = 2 ** math.ceil(math.log2(needed / hbm))
    assert changes == ["--config.model.remat=full", f"--config.optim.accumulate={parts}", "more"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v9:2x2"], "expected one of v3, v4, v5e, v5p, v6e, tpu7x and a shape"),
        (["--topology=h100:2x2x2"], "with hosts and GPUs of each, as in h100:4x8"),
        (["--topology=h100:0"], "with hosts and GPUs of each, as in h100:4x8"),
        (["--topology=v5e:2x2", "--slices=0"], "--slices=0: expected at least 1"),
        (["--topology=a100:8", "--slices=-1"], "--slices=-1: expected at least 1"),
        (["--topology=a100:8", "--slices=4"], "for 4 hosts of GPUs use a100:4x8"),
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
    assert "pip install -c constraints.txt -e '.[tpu]'" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert aot.main([f"--config={TINY}", "--topology=h100:8"]) == 2
    line = f"pip install jax-cuda12-plugin=={jax.__version__} jax-cuda12-pjrt=={jax.__version__} nvidia-cuda-nvcc-cu12"
    assert f"{line} nvidia-cudnn-cu12\n" in capsys.readouterr().err


def test_a_base_need_not_be_here() -> None:
    config = schema.read(f"{ROOT}/configs/klein.py:base=/nowhere")
    latents = aot.latents_of(config, meshes.make_mesh({"fsdp": 8}))
    assert latents.side == 16
    assert sum(leaf.size for leaf in jax.tree.leaves(latents)) == 84_046_115 + 257  # AutoencoderKLFlux2, and statistics


def test_a_pod_compiles_the_shapes_that_a_run_feeds() -> None:
    config = schema.read(TINY, SMALL)
    mesh = meshes.make_mesh({"data": 8})
    examples, _ = train.open_examples(config)
    batch = next(train.batches(examples, threads=1))
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
