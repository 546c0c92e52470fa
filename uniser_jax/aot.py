"""Compiles the real training step of a config for chips that are not there, and says what it needs and whether it fits.

    uniser aot --config=configs/klein.py --topology=v5e:16x16 --config.optim.accumulate=2

The compiler is that of the pod, so its answer is too: a step that does not fit fails here, in minutes and for nothing.
Exit codes: 0 it fits, 1 it does not, 2 a mistake in the command or the config.
"""

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from uniser_jax import config as schema
from uniser_jax import flops, hlo, optim, pretrained, step
from uniser_jax import mesh as meshes
from uniser_jax.checkpoint import has_checkpoint
from uniser_jax.flops import CHIPS
from uniser_jax.metrics import log_to_terminal
from uniser_jax.models.attention import choose
from uniser_jax.models.codec import LatentCodec
from uniser_jax.models.presets import preset
from uniser_jax.models.vae import VAEConfig
from uniser_jax.types import EFFECTS, Batch, TrainState

_GIB = 2**30
_TPUS = ("v3", "v4", "v5e", "v5p", "v6e", "tpu7x")
_PAIRED = ("v4", "v5p")  # two cores that run as one device
# libtpu reads these when it is loaded: there is no TPU host to ask, and two compilations may run side by side.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
_TOO_LARGE = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)")


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
      buffers: the largest, as (bytes, shape, what for).
      remedies: what to change where it does not fit.
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
    buffers: tuple[tuple[int, str, str], ...] = ()
    remedies: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the step runs in the memory of a chip."""
        return self.peak is not None and self.peak <= self.hbm


def devices_of(topology: str, slices: int = 1) -> Sequence[jax.Device]:
    """The devices of a TPU topology, as jax would show them there.

    Args:
      topology: `v5e:16x16`, `v5p:4x4x4`, ...: generation and chips along each direction of the torus.
      slices: how many of them, joined by the data-centre network.

    Raises:
      ValueError: if there is no such topology, or no compiler for it.
    """
    generation, _, shape = topology.partition(":")
    if generation not in _TPUS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise ValueError(f"topology {topology!r}: expected one of {', '.join(_TPUS)} and a shape, as in v5e:16x16")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("compiling for TPUs takes their compiler, libtpu: pip install 'uniser-jax[tpu]'")
    for name, value in _NO_TPU.items():
        os.environ.setdefault(name, value)
    sides = [int(side) for side in shape.split("x")]
    settings: dict[str, Any] = {"num_slices": slices}
    if generation in _PAIRED:
        settings |= {"chip_config_name": "megacore", "wrap": tuple(side % 4 == 0 for side in sides)}
    if math.prod(sides) == 1:
        settings["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **settings).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"topology {topology!r}: {str(error).splitlines()[0]}") from None


def compile_step(config: ConfigDict, devices: Sequence[jax.Device], topology: str = "") -> Report:
    """Compiles the step that `train` would run on these devices, from shapes alone.

    Raises:
      ValueError: before anything is compiled, if the config does not fit itself or the devices.
    """
    schema.validate(config)
    mesh = meshes.make_mesh(config.mesh.to_dict(), devices)
    latents = latents_of(config, mesh)
    step.check(config, mesh, latents)
    network, optimizer = step.build_network(config.model, config.lora), optim.optimizer(config.optim, config.steps)
    state, batch = step.state_shapes(network, optimizer, mesh), batch_shapes(config, mesh)
    arguments = state, batch, latents, step.frozen_shapes(config, network, mesh)
    report = describe(config, mesh, *arguments, topology)
    with jax.set_mesh(mesh):
        lowered = step.make_step(config, network, optimizer, state).lower(*arguments)
        began = time.monotonic(), time.process_time()
        try:
            found = _fits(lowered.compile())
        except jax.errors.JaxRuntimeError as error:
            found = _too_large(error)
    seconds, cpu_seconds = time.monotonic() - began[0], time.process_time() - began[1]
    report = dataclasses.replace(report, compile_seconds=seconds, compile_cpu_seconds=cpu_seconds, **found)
    if report.fits:
        return report
    needed = report.needed or report.peak or 0
    return dataclasses.replace(report, needed=needed, remedies=remedies(config, mesh, report, needed))


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
    batch_size, height, width, _ = batch.input.shape
    tokens = step.tokens(config, (height, width), latents) + config.model.prompt_length
    dtype, head_dim = jnp.dtype(config.model.compute_dtype), preset(config.model.preset).attention_head_dim
    device, counted = mesh.devices.flat[0], flops.of_step(config, state, batch, latents, base)
    return Report(
        topology=topology,
        chip=device.device_kind,
        chips=mesh.size,
        mesh={axis: length for axis, length in mesh.shape.items() if length > 1},
        batch_size=batch_size,
        accumulate=config.optim.accumulate,
        attention=choose(config.model.attention, device.platform, dtype, head_dim, tokens),
        remat=config.model.remat,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        frozen=sum(leaf.size for leaf in jax.tree.leaves((latents, base))),
        tokens=tokens,
        flops=counted.model,
        encode_flops=counted.encode,
        hbm=CHIPS[device.device_kind].hbm if device.device_kind in CHIPS else math.inf,
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


def remedies(config: ConfigDict, mesh: Mesh, report: Report, needed: float) -> tuple[str, ...]:
    """Overrides that make a step smaller than the bytes that it needs, those that cost least first."""
    found = []
    copies = mesh.shape["slice"] * mesh.shape["data"]
    whole = f"--config.mesh.data=1 --config.mesh.fsdp=-1 (one copy of the state over all chips, not {copies})"
    if mesh.shape["data"] > 1 and report.state > report.hbm / 4:
        found.append(whole)
    if report.attention == "xla" and report.tokens > 256:
        chosen = "chunked" if config.model.attention == "auto" else "auto"
        found.append(f"--config.model.attention={chosen} (never holds all weights of attention)")
    if config.model.remat in ("none", "dots"):
        found.append("--config.model.remat=full (computes each block again: a third more FLOPs)")
    per_chip = report.batch_size // (meshes.rows_of(mesh) * config.optim.accumulate)
    if per_chip > 1:
        parts = [k for k in range(2, per_chip + 1) if per_chip % k == 0]
        enough = [k for k in parts if needed <= k * report.hbm] or parts[-1:]  # activations shrink as their batch does
        found.append(f"--config.optim.accumulate={config.optim.accumulate * enough[0]} (smaller microbatches)")
    else:
        found.append("--config.mesh.sequence=2 (the tokens of an image over two chips)")
    if mesh.shape["data"] > 1 and whole not in found:
        found.append(whole)
    return (*found, "more chips, or chips with more HBM")


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
    lines.append(("compile", f"{r.compile_seconds:.0f} s, {r.compile_cpu_seconds:.0f} s of CPU"))
    lines += [("largest", f"{size / 2**20:8,.1f} MiB  {shape}  {what}".rstrip()) for size, shape, what in r.buffers]
    text = "".join(f"{name:<13} {value}\n" for name, value in lines)
    return text + verdict(report) + "\n"


def verdict(report: Report) -> str:
    """One line: it fits, or by how much it does not and what to change."""
    if report.fits or report.needed is None:
        return f"fits {report.topology}"
    over = f"{_gib(report.needed)} per chip, {_gib(report.needed - report.hbm)} more than {_gib(report.hbm)}"
    return f"does not fit {report.topology}: needs {over}; change " + ", or ".join(report.remedies)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser("uniser aot", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", required=True, help="configs/NAME.py, as for uniser train")
    parser.add_argument("--topology", required=True, help="v5e:16x16, v5p:4x4x4, v6e:16x16, ...")
    parser.add_argument("--slices", type=int, default=1, help="how many of them, on the mesh axis `slice`")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    known, overrides = parser.parse_known_args(argv)
    log_to_terminal(verbose=False)
    jax.config.update("jax_platforms", "cpu")  # whatever accelerator there is, it is not needed
    try:
        config = schema.read(known.config, overrides)
        report = compile_step(config, devices_of(known.topology, known.slices), known.topology)
    except ValueError as error:
        sys.stderr.write(f"uniser aot: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    values = dataclasses.asdict(report) | {"fits": report.fits}
    sys.stdout.write(json.dumps(values) + "\n" if known.json else to_text(report))
    return 0 if report.fits else 1


def _fits(compiled: Any) -> dict[str, Any]:
    """What a compiled program tells of its memory."""
    memory = compiled.memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
        "buffers": tuple(hlo.largest_buffers(compiled.as_text(), 6)),
    }


def _too_large(error: Exception) -> dict[str, Any]:
    """What a failed compilation tells: how much it would have needed.

    Raises:
      ValueError: if it failed for another reason.
    """
    found = _TOO_LARGE.search(str(error))
    if found is None:
        raise ValueError(f"the compiler failed: {str(error).splitlines()[0]}") from error
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    needed, hbm = (float(found[k]) * units[found[k + 1]] for k in (1, 3))
    return {"needed": needed, "hbm": hbm}


def _gib(size: float | None) -> str:
    return "?" if size is None else f"{size / _GIB:,.2f} GiB"


if __name__ == "__main__":
    sys.exit(main())
