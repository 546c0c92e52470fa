"""Compiles the real training step of a config for chips that are not there, and says what it needs and whether it fits.

    uniser aot --config=configs/klein.py --topology=v5e:16x16 --config.batch_size=256
    uniser aot --config=configs/pixel.py:size=xl --topology=h100:8

The compiler is that of the pod, so its answer is too: a step that does not fit fails here, in minutes and for nothing.
Exit codes: 0 it fits, 1 it does not, 2 a mistake in the command or the config.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from uniser_jax import config as schema
from uniser_jax import flops, hlo, optim, pretrained, remedies, step, topologies
from uniser_jax import mesh as meshes
from uniser_jax.checkpoint import has_checkpoint
from uniser_jax.errors import reason_of
from uniser_jax.flops import CHIPS
from uniser_jax.metrics import log_to_terminal
from uniser_jax.models.attention import choose
from uniser_jax.models.codec import LatentCodec
from uniser_jax.models.presets import preset
from uniser_jax.models.vae import VAEConfig
from uniser_jax.types import EFFECTS, Batch, TrainState

_GIB = 2**30
_LARGEST = 6  # buffers in a report


@dataclasses.dataclass(frozen=True)
class Report:
    """What a step needs. Bytes are per chip, FLOPs per step over all chips; None is what a failed compilation does not tell.

    Args:
      topology: as asked for.
      chip: its `device_kind`.
      chips: how many devices.
      mesh: sizes of its axes above 1.
      batch_size: examples per step, over all chips.
      accumulate: microbatches that a step makes of them.
      attention: the kernel that runs there.
      remat: what the backward pass keeps.
      parameters: that are trained.
      frozen: parameters of the autoencoder, and of the base of adapters.
      tokens: per example, with those of the prompt.
      flops: that MFU counts.
      encode_flops: of images to latents, beside them.
      hbm: that a program may use.
      state: of the arguments, parameters, average and optimizer.
      arguments: with the batch and the frozen parameters.
      temporaries: everything between arguments and results.
      peak: at the worst moment.
      needed: the compiler's total where it does not fit.
      compile_seconds: by the clock of this machine.
      compile_cpu_seconds: of all its cores.
      host_temporaries: what `offload` keeps in the host's memory.
      buffers: the largest, as (bytes, shape, what for).
      remedies: what to change where it does not fit.
      notes: what is not as it will be on the chips.
    """

    topology: str
    chip: str
    chips: int
    mesh: dict[str, int]
    batch_size: int
    accumulate: int
    attention: str
    remat: str
    parameters: int
    frozen: int
    tokens: int
    flops: int
    encode_flops: int
    hbm: float
    state: int
    compile_seconds: float = 0.0
    compile_cpu_seconds: float = 0.0
    arguments: int | None = None
    temporaries: int | None = None
    peak: int | None = None
    needed: float | None = None
    host_temporaries: int | None = None
    buffers: tuple[tuple[int, str, str], ...] = ()
    remedies: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the step runs in the memory of a chip."""
        return self.peak is not None and self.peak <= self.hbm


def compile_step(config: ConfigDict, devices: Sequence[jax.Device], topology: str = "") -> Report:
    """Compiles the step that `train` would run on these devices, from shapes alone.

    Raises:
      ValueError: before anything is compiled, if the config does not fit itself or the devices.
    """
    schema.validate(config)
    mesh = meshes.make_mesh(config.mesh.to_dict(), devices)
    latents = latents_of(config, mesh)
    step.check(config, mesh, latents)
    config, notes = compilable(config, mesh, latents)
    network, optimizer = step.build_network(config.model, config.lora), optim.optimizer(config.optim, config.steps)
    state, batch = step.state_shapes(network, optimizer, mesh), batch_shapes(config, mesh)
    arguments = state, batch, latents, step.frozen_shapes(config, network, mesh)
    report = dataclasses.replace(describe(config, mesh, *arguments, topology), notes=notes)
    with jax.set_mesh(mesh):
        lowered = step.make_step(config, network, optimizer, state).lower(*arguments)
        began = time.monotonic(), time.process_time()
        found = _compiled(lowered, mesh.devices.flat[0].platform)
    seconds, cpu_seconds = time.monotonic() - began[0], time.process_time() - began[1]
    report = dataclasses.replace(report, compile_seconds=seconds, compile_cpu_seconds=cpu_seconds, **found)
    if report.fits:
        return report
    needed = report.needed or report.peak or 0
    total = CHIPS[report.chip].hbm if report.chip in CHIPS else report.hbm
    encoding = bool(report.buffers) and report.buffers[0][2].startswith("encode")
    short = remedies.Shortage(needed, report.hbm, report.state, report.tokens, report.attention, encoding, total)
    return dataclasses.replace(report, needed=needed, remedies=remedies.suggest(config, mesh, short))


def compilable(config: ConfigDict, mesh: Mesh, latents: LatentCodec | None) -> tuple[ConfigDict, tuple[str, ...]]:
    """The config as it can be compiled here, and what is not as it will be on the chips.

    Raises:
      ValueError: if the config insists on cuDNN, whose attention takes its library to compile, and it is missing.
    """
    model, platform = config.model, mesh.devices.flat[0].platform
    if platform != "gpu":
        return config, ()
    notes = ["products are cuBLAS's; with a GPU to time them, XLA may prefer kernels of its own"]
    kernel, install = _kernel(config, "gpu", latents), "nvidia-cudnn-cu12"
    if kernel == "cudnn" and topologies.has_cudnn():
        notes.append("cuDNN's workspace is known on a GPU only, and is not in these sizes")
    elif kernel == "cudnn":
        if model.attention == "cudnn":
            raise ValueError(
                f"attention kernel 'cudnn' cannot be compiled without cuDNN: {topologies.install(install)}"
            )
        config = config.copy_and_resolve_references()
        config.model.attention = _kernel(config, "cpu", latents)
        instead = f"attention {config.model.attention}, which needs more memory than the cudnn of a run"
        notes.append(f"cuDNN is not here: this is {instead}; {topologies.install(install)}")
    return config, tuple(notes)


def describe(
    config: ConfigDict,
    mesh: Mesh,
    state: TrainState,
    batch: Batch,
    latents: LatentCodec | None,
    base: Any,
    topology: str,
) -> Report:
    """What is known of a step before it is compiled, from the shapes of its arguments."""
    batch_size, tokens = batch.input.shape[0], _keys(config, latents)
    device, counted = mesh.devices.flat[0], flops.of_step(config, state, batch, latents, base)
    return Report(
        topology=topology,
        chip=device.device_kind,
        chips=mesh.size,
        mesh={axis: length for axis, length in mesh.shape.items() if length > 1},
        batch_size=batch_size,
        accumulate=config.optim.accumulate,
        attention=_kernel(config, device.platform, latents),
        remat=config.model.remat,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        frozen=sum(leaf.size for leaf in jax.tree.leaves((latents, base))),
        tokens=tokens,
        flops=counted.model,
        encode_flops=counted.encode,
        hbm=topologies.memory(device.device_kind),
        state=meshes.bytes_per_chip(state),
    )


def batch_shapes(config: ConfigDict, mesh: Mesh) -> Batch:
    """The shapes and shardings of the heaviest batch, of all processes together."""
    sharding, (batch_size, *sides) = meshes.batch_sharding(mesh), heaviest(config)

    def shape(dtype: Any, *sides: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *sides), dtype, sharding=sharding)

    image, mask = shape(np.uint8, *sides, 3), shape(np.uint8, *sides)
    return Batch(image, image, mask, shape(np.int32), shape(np.float32, len(EFFECTS)))


def heaviest(config: ConfigDict) -> tuple[int, int, int]:
    """Examples, height and width of the batch with the most pixels, over all stages and buckets."""
    return max(schema.batch_shapes(config), key=math.prod)


def latents_of(config: ConfigDict, mesh: Mesh) -> LatentCodec | None:
    """The shapes of the run's autoencoder: that of its base, or FLUX.2's if the base is not here."""
    if config.model.codec != "latents":
        return None
    sizes = VAEConfig()
    if has_checkpoint(config.model.base):
        with pretrained.open_base(config.model.base) as checkpoints:
            sizes = pretrained.vae_config(checkpoints.record()["base"]["vae"]["config"])
    return pretrained.latent_shapes(sizes, mesh, config.model.mask_scale)


def to_text(report: Report) -> str:
    """A report as lines of name and value."""
    r, chips = report, f"{report.chips} x {report.chip}"
    mesh = " x ".join(f"{axis} {size}" for axis, size in r.mesh.items()) or "one chip"
    parts = f" in {r.accumulate} microbatches" if r.accumulate > 1 else ""
    frozen = f", and {r.frozen / 1e6:,.0f} M frozen" if r.frozen else ""
    encode = f", and {r.encode_flops:.3g} to encode" if r.encode_flops else ""
    lines = [
        ("chips", f"{r.topology}: {chips}, {_gib(r.hbm)} each; mesh {mesh}"),
        ("step", f"batch {r.batch_size}{parts}, attention {r.attention}, remat {r.remat}"),
        ("parameters", f"{r.parameters / 1e6:,.1f} M{frozen}; state {_gib(r.state)} per chip"),
        ("tokens", f"{r.tokens:,} per example, {r.tokens * r.batch_size:,} per step"),
        ("FLOPs", f"{r.flops:.4g} per step{encode}; {(r.flops + r.encode_flops) / r.chips / 1e12:,.1f} T per chip"),
    ]
    if r.chip in CHIPS:
        seconds = (r.flops + r.encode_flops) / r.chips / CHIPS[r.chip].peak / 0.4
        lines.append(
            ("speed", f"{seconds:.2f} s per step, {r.batch_size / seconds:,.0f} images/s if 40 % of peak is met")
        )
    if r.peak is not None:
        share = f", {r.peak / r.hbm:.0%}" if r.chip in CHIPS else ""
        sizes = f"{_gib(r.arguments)} arguments, {_gib(r.temporaries)} temporaries, {_gib(r.peak)} at the peak{share}"
        lines.append(("HBM per chip", sizes))
    if r.host_temporaries:
        lines.append(("host memory", f"{_gib(r.host_temporaries)} for each chip"))
    lines.append(("compile", f"{r.compile_seconds:.0f} s, {r.compile_cpu_seconds:.0f} s of CPU"))
    lines += [("largest", f"{size / 2**20:8,.1f} MiB  {shape}  {what}".rstrip()) for size, shape, what in r.buffers]
    lines += [("note", note) for note in r.notes] + [("change", remedy) for remedy in r.remedies]
    text = "".join(f"{name:<13} {value}\n" for name, value in lines)
    return text + verdict(report) + "\n"


def verdict(report: Report) -> str:
    """One line: it fits, or by how much it does not."""
    if report.fits or report.needed is None:
        return f"fits {report.topology}"
    over = f"{_gib(report.needed)} per chip, {_gib(report.needed - report.hbm)} more than {_gib(report.hbm)}"
    return f"does not fit {report.topology}: needs {over}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser("uniser aot", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", required=True, help="configs/NAME.py, as for uniser train")
    parser.add_argument("--topology", required=True, help="v5e:16x16, v5p:4x4x4, v6e:16x16, h100:8, h100:4x8, ...")
    parser.add_argument("--slices", type=int, default=1, help="how many TPU pods, on the mesh axis `slice`")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    known, overrides = parser.parse_known_args(argv)
    log_to_terminal(verbose=False)
    jax.config.update("jax_platforms", "cpu")  # whatever accelerator there is, it is not needed
    try:
        if known.slices < 1:
            raise ValueError(f"--slices={known.slices}: expected at least 1")
        config = schema.read(known.config, overrides)
        report = compile_step(config, topologies.devices_of(known.topology, known.slices), known.topology)
    except ValueError as error:
        sys.stderr.write(f"uniser aot: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    values = dataclasses.asdict(report) | {"fits": report.fits}
    sys.stdout.write(json.dumps(values) + "\n" if known.json else to_text(report))
    return 0 if report.fits else 1


def _compiled(lowered: Any, platform: str) -> dict[str, Any]:
    """What the compiler tells of a program's memory, whether it fits or not."""
    # A compilation cache takes programs for devices that are not here, and cannot give them back.
    cached = "jax_persistent_cache_min_compile_time_secs"
    seconds = getattr(jax.config, cached)
    jax.config.update(cached, math.inf)
    with tempfile.TemporaryDirectory() as folder:
        options = {
            # libtpu refuses what does not fit, and says no more than how large it is; its dump then has the program.
            "tpu": {"xla_dump_to": folder, "xla_dump_hlo_as_text": True},
            # Tiles are chosen by timing them; untimed, some products have none.
            "gpu": {"xla_gpu_enable_triton_gemm": False},
        }.get(platform, {})
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            return _too_large(error, pathlib.Path(folder))
        finally:
            jax.config.update(cached, seconds)
    memory = compiled.memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
        "host_temporaries": memory.host_temp_size_in_bytes,
        "buffers": tuple(hlo.largest_buffers(compiled.as_text(), _LARGEST)),
    }


def _too_large(error: Exception, dump: pathlib.Path) -> dict[str, Any]:
    """What a failed compilation tells: how much it would have needed, and for what.

    Raises:
      ValueError: if it failed for another reason.
    """
    found = hlo.shortage(str(error))
    if found is None:
        raise ValueError(f"the compiler failed: {reason_of(error)}") from error
    programs = sorted(dump.glob("*.after_optimizations.txt"), key=lambda path: path.stat().st_size)
    buffers = hlo.largest_buffers(programs[-1].read_text(), _LARGEST) if programs else []
    buffers = buffers or hlo.allocations(str(error), _LARGEST)
    return {"needed": found[0], "hbm": found[1], "buffers": tuple(buffers)}


def _keys(config: ConfigDict, latents: LatentCodec | None) -> int:
    """Tokens of the heaviest example, with those of the prompt."""
    _, height, width = heaviest(config)
    return step.tokens(config, (height, width), latents) + config.model.prompt_length


def _kernel(config: ConfigDict, platform: str, latents: LatentCodec | None) -> str:
    """The kernel that the config's attention is on a platform."""
    model = config.model
    dtype, head_dim = jnp.dtype(model.compute_dtype), preset(model.preset).attention_head_dim
    return choose(model.attention, platform, dtype, head_dim, _keys(config, latents))


def _gib(size: float | None) -> str:
    return "?" if size is None else f"{size / _GIB:,.2f} GiB"


if __name__ == "__main__":
    sys.exit(main())
