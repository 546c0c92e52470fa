"""A run as a diffusers folder, for people who use PyTorch.

    python -m convert.to_diffusers RUN OUT [--at best] [--no-ema] [--dtype bf16] [--single-file] [--lora] [--base BASE]

OUT gets the transformer in diffusers' stock class, `prompt_embeds.safetensors` with one tensor per task, a model card, the
training config, and either `pipeline.py` or, of a run through latents, all that diffusers' own `Flux2KleinPipeline` needs.
Adapters are merged into their base; with --lora they are written alone, for `load_lora_weights`. Every tensor is read back and
compared. Where torch is installed, the exported model is run beside ours and `parity.json` holds the largest difference; where
it cannot run, the card says why and the exit code is 1. Without torch all else works the same. A base made by
`convert.from_diffusers` goes back to the folders it came from.
"""

import argparse
import importlib.util
import json
import pathlib
import shutil
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from ml_collections import ConfigDict

from convert import card, command, configs, lora, mapping, tensorfile
from convert.from_diffusers import shapes_of
from uniser_jax import config as schema
from uniser_jax.checkpoint import Checkpoints, has_checkpoint
from uniser_jax.cli import step_of
from uniser_jax.errors import reason_of
from uniser_jax.models.lora import Lora
from uniser_jax.models.presets import DiTConfig, preset
from uniser_jax.models.uniser import conditioned_config
from uniser_jax.pretrained import open_base
from uniser_jax.restore.restorer import read_run
from uniser_jax.step import Network, build_network
from uniser_jax.types import TASKS, prompt_name

DTYPES = {"f32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16)}
_NAME = "diffusion_pytorch_model"
_MOST = 10**10  # bytes per file, as diffusers' own
_TORCH = ("torch", "diffusers", "safetensors")  # what a comparison needs


class NotComparedError(Exception):
    """The folder is whole, but the exported model did not run beside ours."""


class Run(NamedTuple):
    """What an export needs to know of a run."""

    config: ConfigDict
    transformer: DiTConfig
    params: Any  # of the whole network, or of the adapters alone
    step: int
    kernels: Any = None  # of adapters alone: the shapes of the transformer beside which they lie


def export(
    run: str | pathlib.Path,
    out: str | pathlib.Path,
    ema: bool = True,
    dtype: str | None = None,
    single_file: bool = False,
    adapters: bool = False,
    at: int | str | None = None,
    base: str | pathlib.Path | None = None,
) -> float | None:
    """Writes the folder; returns the largest difference between ours and the exported model, None without torch.

    Args:
      run: a run folder.
      out: a folder that does not exist or is empty.
      ema: whether to take the average of the parameters over training.
      dtype: of the transformer's weights, `f32` (where None is given) or `bf16`; a base keeps its own.
      single_file: whether to write Black Forest Labs' layout, for ComfyUI, beside diffusers'.
      adapters: whether to write the adapters alone, not merged into their base.
      at: which checkpoint: a step, `best` for that with the lowest held-out loss, None for the newest.
      base: where the run's base lies; None is where training found it.

    Raises:
      ValueError: one line, for a run without that checkpoint or without the adapters asked for, options that would do nothing,
        a folder in use, or a file that does not read back.
      NotComparedError: one line, why torch is installed and yet no comparison came about; the folder is written all the same.
    """
    out = pathlib.Path(out)
    if not has_checkpoint(run):
        raise ValueError(f"{run}: no checkpoint here; name a run folder that `uniser train` has written")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder: name a new one")
    if single_file and adapters:
        raise ValueError(
            "--single-file holds a whole transformer and --lora writes adapters alone: leave one of them out"
        )
    if base is not None and adapters:
        raise ValueError("--lora writes adapters alone and reads no base: leave out --base")
    with Checkpoints(run) as checkpoints:
        step = checkpoints.find(at)
        record = checkpoints.record(step)
        if "base" in record and not adapters:
            if not ema or dtype is not None or single_file or base is not None:
                raise ValueError(
                    f"{run} is a base, which goes back as it came: leave out --no-ema, --dtype, --single-file and --base"
                )
            _export_base(checkpoints, record["base"], out)
            return None
        loaded = _load_adapters(checkpoints, record, ema) if adapters else _load(checkpoints, record, ema, base)
    dtype = dtype or "f32"
    if adapters:
        _export_adapters(loaded, out, DTYPES[dtype])
    else:
        _export_run(loaded, out, DTYPES[dtype], single_file)

    def describe(difference: float | str | None) -> None:
        words = card.text(loaded.config, loaded.transformer, loaded.step, dtype, ema, difference, adapters)
        (out / "README.md").write_text(words)

    describe(None)  # what comes now may fail, or be interrupted
    compared = not adapters and all(map(importlib.util.find_spec, _TORCH))
    return _compare_or_say_why(describe, out, loaded) if compared else None


def _compare_or_say_why(describe: Callable[[float | str | None], None], out: pathlib.Path, loaded: Run) -> float:
    try:
        difference = _compare(out, loaded)
    except Exception as error:  # whatever torch and diffusers stumble on, such as a cache that cannot be written
        describe(reason_of(error))
        raise NotComparedError(f"{out} is written, but not compared: {reason_of(error)}") from error
    describe(difference)
    return difference


def _export_adapters(loaded: Run, out: pathlib.Path, dtype: np.dtype) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "pytorch_lora_weights.safetensors"
    found = lora.to_peft(loaded.params["dit"], loaded.kernels, schema.build(Lora, loaded.config.lora))
    found = {key: value.astype(dtype) for key, value in found.items()}
    announced = {key: (value.dtype, value.shape) for key, value in found.items()}
    tensorfile.write(path, announced, found.__getitem__, lora.metadata(found))
    _read_back([path], announced, found.__getitem__)
    _write_prompts(out / "prompt_embeds.safetensors", loaded.params["prompts"]["table"])
    _write_json(out / "training_config.json", loaded.config.to_dict())


def _export_run(loaded: Run, out: pathlib.Path, dtype: np.dtype, single_file: bool) -> None:
    _export_transformer(out / "transformer", loaded.transformer, loaded.params["dit"], dtype)
    if single_file:
        write_tensors(out, "uniser", mapping.TRANSFORMER_BFL, loaded.params["dit"], dtype)
    _write_prompts(out / "prompt_embeds.safetensors", loaded.params["prompts"]["table"])
    if loaded.config.model.codec == "latents":
        with open_base(loaded.config.model.base) as checkpoints:
            _export_base(checkpoints, {"vae": checkpoints.record()["base"]["vae"]}, out)
        _write_json(out / "model_index.json", _KLEIN_INDEX)
    else:
        shutil.copyfile(pathlib.Path(__file__).with_name("pipeline.py"), out / "pipeline.py")
        _write_json(out / "model_index.json", _index(loaded.config))
    _write_json(out / "scheduler" / "scheduler_config.json", _SCHEDULER | {"shift": loaded.config.restore.shift})
    _write_json(out / "training_config.json", loaded.config.to_dict())


def write_tensors(
    folder: pathlib.Path,
    name: str,
    rows: Sequence[mapping.Row],
    tree: Any,
    dtype: np.dtype,
    most: int = _MOST,
    exceptions: Mapping[str, np.dtype] = types.MappingProxyType({}),
) -> None:
    """Writes a tree under torch keys, in shards with an index if it is larger than `most` bytes, and reads it back.

    Args:
      folder: made if it is not there.
      name: of the file, without ending.
      rows: the table.
      tree: nested dicts of arrays.
      dtype: of matrices and vectors; counters are int64, as torch's.
      most: bytes per file.
      exceptions: dtypes of single tensors, by key.

    Raises:
      ValueError: if what is read back differs.
    """
    leaves = mapping.flatten(tree)
    tensors = {tensor.key: tensor for tensor in mapping.plan(rows, tree)}

    def kind(tensor: mapping.Tensor) -> np.dtype:
        own = np.dtype(leaves[tensor.parts[0].path].dtype)
        return exceptions.get(tensor.key, np.dtype(np.int64) if np.issubdtype(own, np.integer) else dtype)

    def values(key: str) -> np.ndarray:
        return mapping.to_torch(tensors[key], leaves.__getitem__).astype(kind(tensors[key]), copy=False)

    folder.mkdir(parents=True, exist_ok=True)
    announced = {key: (kind(tensor), tensor.shape) for key, tensor in tensors.items()}
    shards = _shards({key: int(np.prod(shape)) * own.itemsize for key, (own, shape) in announced.items()}, most)
    names = [f"{name}-{n:05d}-of-{len(shards):05d}" for n in range(1, len(shards) + 1)] if len(shards) > 1 else [name]
    for file, keys in zip(names, shards, strict=True):
        tensorfile.write(folder / f"{file}.safetensors", {key: announced[key] for key in keys}, values)
    if len(shards) > 1:
        places = {key: f"{file}.safetensors" for file, keys in zip(names, shards, strict=True) for key in keys}
        size = sum(int(np.prod(shape)) * own.itemsize for own, shape in announced.values())
        index = {"metadata": {"total_size": size}, "weight_map": places}
        _write_json(folder / f"{name}.safetensors.index.json", index)
    _read_back([folder / f"{file}.safetensors" for file in names], announced, values)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 1 for a folder that could not be compared, 2 for a mistake of the caller's."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser("convert.to_diffusers", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path, help="a run folder")
    parser.add_argument("out", type=pathlib.Path, help="the folder to make")
    average = argparse.BooleanOptionalAction
    parser.add_argument("--ema", action=average, default=True, help="the average of the parameters over training")
    parser.add_argument("--dtype", choices=DTYPES, help="of the transformer's weights (default: f32)")
    parser.add_argument("--at", type=step_of, help="its step, best, by the held-out loss, or newest (default)")
    parser.add_argument("--base", type=pathlib.Path, help="its converted base, where that was moved since training")
    parser.add_argument("--single-file", action="store_true", help="add uniser.safetensors in the layout of ComfyUI")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--lora", action="store_true", help="only the adapters, for `load_lora_weights`")
    how.add_argument(
        "--merge", action="store_false", dest="lora", help="adapters merged into their base, as without a flag"
    )
    arguments = parser.parse_args(argv)
    given = arguments.ema, arguments.dtype, arguments.single_file, arguments.lora, arguments.at, arguments.base

    def work() -> str:
        difference = export(arguments.run, arguments.out, *given)
        note = "" if difference is None else f", largest difference between JAX and torch {difference:.1e}"
        return f"{arguments.out}{note}"

    try:
        return command.run(parser.prog, work)
    except NotComparedError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1


def _load(
    checkpoints: Checkpoints, record: Mapping[str, Any], ema: bool, base: str | pathlib.Path | None = None
) -> Run:
    config, network, params = read_run(checkpoints, ema, record["step"], base)
    return Run(config, _transformer(config, network), params, record["step"])


def _load_adapters(checkpoints: Checkpoints, record: Mapping[str, Any], ema: bool) -> Run:
    config = schema.from_json(json.dumps(record["config"])) if "config" in record else schema.defaults()
    if not config.lora.rank or config.model.codec != "latents":
        raise ValueError("--lora is for adapters of FLUX.2 [klein]: this run has none; leave it out")
    network = build_network(config.model, config.lora)
    params = checkpoints.weights(network.shapes, ema, record["step"])
    return Run(config, _transformer(config, network), params, record["step"], network.base["dit"])


def _transformer(config: ConfigDict, network: Network) -> DiTConfig:
    return conditioned_config(preset(config.model.preset), network.codec, config.model.conditioning)


def _export_base(checkpoints: Checkpoints, base: Mapping[str, Any], out: pathlib.Path) -> None:
    """Both networks in the types they came in."""
    for item, stored in base.items():
        dtype, table = np.dtype(stored["dtype"]), stored["config"]  # numpy knows bfloat16 by ml_dtypes
        named = stored.get("exceptions", {})  # older records have none
        exceptions = {key: np.dtype(name) for key, name in named.items()}
        if item == "params":
            config = configs.transformer(table)
            shapes = shapes_of(config)
            if (
                "tasks" in stored
            ):  # a checkpoint is read whole; the prompts of a base are those of the file it was given
                shapes |= {"prompts": checkpoints.stored("params")["prompts"]}
            params = checkpoints.item("params", shapes)
            _export_transformer(out / "transformer", config, params["dit"], dtype, exceptions)
        else:
            autoencoder = configs.vae(table)
            tree = checkpoints.item("vae", shapes_of(autoencoder))
            write_tensors(out / "vae", _NAME, mapping.VAE, tree, dtype, exceptions=exceptions)
            _write_json(out / "vae" / "config.json", configs.to_diffusers(autoencoder))


def _export_transformer(
    folder: pathlib.Path,
    config: DiTConfig,
    tree: Any,
    dtype: np.dtype,
    exceptions: Mapping[str, np.dtype] = types.MappingProxyType({}),
) -> None:
    write_tensors(folder, _NAME, mapping.TRANSFORMER, tree, dtype, exceptions=exceptions)
    _write_json(folder / "config.json", configs.to_diffusers(config))


def _write_prompts(path: pathlib.Path, table: Any) -> None:
    """One tensor [1, l, j] per task, ready to be passed as `prompt_embeds`."""
    prompts = {prompt_name(task): np.asarray(table[index])[None] for index, task in enumerate(TASKS)}
    announced = {name: (value.dtype, value.shape) for name, value in prompts.items()}
    tensorfile.write(path, announced, prompts.__getitem__)
    _read_back([path], announced, prompts.__getitem__)


def _read_back(paths: list[pathlib.Path], announced: Mapping[str, Any], values: Callable[[str], np.ndarray]) -> None:
    found = {key: entry for path in paths for key, entry in tensorfile.read_header(path).items()}
    for key, announcement in announced.items():
        if (found[key].dtype, found[key].shape) != announcement or found[key].read().tobytes() != values(key).tobytes():
            raise ValueError(f"{found[key].path}: {key} does not read back as it was written")


def _compare(out: pathlib.Path, run: Run) -> float:
    from convert import parity  # torch

    report = parity.compare(out, run.config, run.params)
    _write_json(out / "parity.json", report)
    return report["transformer"]


def _index(config: ConfigDict) -> dict[str, Any]:
    return {
        "_class_name": ["pipeline", "UniSERPipeline"],
        "transformer": ["diffusers", configs.TRANSFORMER_CLASS],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "patch": config.model.patch,
        "conditioning": config.model.conditioning,
        "mask_scale": config.model.mask_scale,
        "prediction": config.flow.prediction,
        "working_size": config.restore.working_size or config.data.size,
        "steps": config.restore.steps,
        "direct": config.restore.direct,
    }


_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": False}

# Diffusers' own pipeline. Distilled here means: sampled without classifier-free guidance, so no negative prompt is needed.
_KLEIN_INDEX = {
    "_class_name": "Flux2KleinPipeline",
    "is_distilled": True,
    "transformer": ["diffusers", configs.TRANSFORMER_CLASS],
    "vae": ["diffusers", configs.VAE_CLASS],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": [None, None],
    "tokenizer": [None, None],
}


def _shards(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Keys in order, as many to a file as fit."""
    shards: list[list[str]] = [[]]
    full = 0
    for key, size in sizes.items():
        if shards[-1] and full + size > most:
            shards.append([])
            full = 0
        shards[-1].append(key)
        full += size
    return shards


def _write_json(path: pathlib.Path, table: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
