"""A FLUX.2 checkpoint as the base of a run, without torch.

    python -m convert.from_diffusers FOLDER OUT [--vae FOLDER] [--prompts FILE]

FOLDER is a diffusers folder (a pipeline with `transformer/` and `vae/`, one in pixels that has no autoencoder, or one of the
two alone), sharded or not, or a single file in Black Forest Labs' own layout, of a transformer or of an autoencoder;
`--vae ae.safetensors` adds the latter to the former. OUT becomes a run folder whose checkpoint holds `params` (`dit/...`) and
`vae` in float32, as training keeps them. Tensors are read one at a time, so memory is that of the largest. FILE, made by
`convert.cache_prompts`, gives the embeddings of the prompt set to start from; without it they start at random.
"""

import argparse
import dataclasses
import math
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from convert import command, configs, mapping
from convert.tensorfile import Entry, open_tensors
from uniser_jax.checkpoint import Slice, write_base
from uniser_jax.models import vae
from uniser_jax.models.dit import DiT
from uniser_jax.models.presets import DiTConfig
from uniser_jax.models.vae import VAEConfig
from uniser_jax.types import TASKS, prompt_name, tasks_digest

_COUNTER = "bn.num_batches_tracked"  # no result depends on it, and some writers leave it out


class Source(NamedTuple):
    """One network of a checkpoint: its files, and where its tensors go."""

    item: str
    config: DiTConfig | VAEConfig
    shapes: Any  # of our tree
    entries: Mapping[str, Entry]
    tensors: list[mapping.Tensor]

    @property
    def dtype(self) -> str:
        """Of the files, by the largest tensor."""
        return max(self.entries.values(), key=lambda entry: math.prod(entry.shape)).dtype.name

    def exceptions(self) -> dict[str, str]:
        """Tensors, by diffusers' keys, of another dtype than that, such as norms kept in float32; counters but int64."""
        given = {
            _place(part): self.entries[t.key].dtype for t in self.tensors if t.key in self.entries for part in t.parts
        }
        rows = mapping.VAE if self.item == "vae" else mapping.TRANSFORMER
        found = {}
        for tensor in mapping.plan(rows, self.shapes.get("dit", self.shapes)):
            dtypes = [given[place] for place in map(_place, tensor.parts) if place in given]
            if dtypes:  # a counter may be missing
                found[tensor.key] = np.result_type(*dtypes).name
        return {key: name for key, name in found.items() if name != ("int64" if key == _COUNTER else self.dtype)}


def convert(
    folder: str | pathlib.Path,
    out: str | pathlib.Path,
    prompts: str | pathlib.Path | None = None,
    autoencoder: str | pathlib.Path | None = None,
) -> dict[str, Any]:
    """Converts a checkpoint, and an autoencoder that is not in it, and returns the record written beside them.

    Raises:
      ValueError: one line, before anything is written, if keys, shapes, types or configs are not what they should be;
        when it is reached, if a value is not finite, and then no checkpoint is left.
    """
    sources = open_checkpoint(pathlib.Path(folder))
    if autoencoder is not None:
        sources += open_checkpoint(pathlib.Path(autoencoder))
        if sorted(source.item for source in sources) != ["params", "vae"]:
            raise ValueError(f"{autoencoder}: expected one autoencoder, and {folder} without one")
    record: dict[str, Any] = {
        source.item: {
            "dtype": source.dtype,
            "exceptions": source.exceptions(),
            "config": dataclasses.asdict(source.config),
        }
        for source in sources
    }
    trees = {source.item: source.shapes for source in sources}
    table = np.zeros((0, 0, 0), np.float32) if prompts is None else _prompts(pathlib.Path(prompts), sources)
    if table.size:
        trees["params"] = trees["params"] | {"prompts": {"table": table}}
        record["params"]["tasks"] = tasks_digest()

    def slices() -> Iterator[Slice]:
        for source in sources:
            yield from _slices(source)
        if table.size:
            yield Slice("params", "prompts/table", (), table)

    write_base(out, trees, slices(), {"base": record})
    return record


def open_checkpoint(path: pathlib.Path) -> list[Source]:
    """Finds the networks of a checkpoint and checks that every tensor has exactly one place; reads only headers.

    Raises:
      ValueError: one line, naming keys.
    """
    if path.is_file():
        entries = open_tensors(path)
        if "encoder.conv_in.weight" not in entries:
            return [_source(path, configs.infer_transformer(_shapes(entries)), entries, mapping.TRANSFORMER_BFL)]
        config = configs.infer_vae(_shapes(entries))
        return [_source(path, config, entries, mapping.vae_bfl(len(config.block_out_channels)))]
    if (path / "model_index.json").is_file():
        index = configs.read(path / "model_index.json")
        pixels = "transformer" in index and "vae" not in index and not (path / "vae").exists()
        parts = ("transformer",) if pixels else ("transformer", "vae")
        return [source for part in parts for source in open_checkpoint(path / part)]
    table = configs.read(path / "config.json")
    kind = table.get("_class_name")
    if kind == configs.TRANSFORMER_CLASS:
        return [_source(path, configs.transformer(table), open_tensors(path), mapping.TRANSFORMER)]
    if kind == configs.VAE_CLASS:
        return [_source(path, configs.vae(table), open_tensors(path), mapping.VAE)]
    raise ValueError(f"{path}: {kind!r} is not {configs.TRANSFORMER_CLASS} or {configs.VAE_CLASS}")


def shapes_of(config: DiTConfig | VAEConfig) -> Any:
    """The parameters' shapes of a transformer (under `dit`) or of an autoencoder."""
    if isinstance(config, VAEConfig):
        return vae.abstract(config)[1]
    state = nnx.state(nnx.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0))))
    return {"dit": nnx.to_pure_dict(state)}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for a mistake of the caller's."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser("convert.from_diffusers", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="a diffusers folder, or a single .safetensors file")
    parser.add_argument("out", type=pathlib.Path, help="the run folder to make")
    parser.add_argument("--vae", type=pathlib.Path, help="an autoencoder for a transformer that came alone")
    parser.add_argument("--prompts", type=pathlib.Path, help="a file made by convert.cache_prompts")
    arguments = parser.parse_args(argv)

    def work() -> str:
        record = convert(arguments.folder, arguments.out, arguments.prompts, arguments.vae)
        return f"{arguments.out}: {', '.join(record)}"

    return command.run(parser.prog, work)


def _source(
    path: pathlib.Path, config: DiTConfig | VAEConfig, entries: Mapping[str, Entry], rows: Sequence[mapping.Row]
) -> Source:
    layers = config.layers_per_block if isinstance(config, VAEConfig) else config.num_layers + config.num_single_layers
    if layers > len(entries):  # before a plan is made of so many
        raise ValueError(f"{path}: the config has {layers} layers, the file {len(entries)} tensors")
    shapes = shapes_of(config)
    tensors = mapping.plan(rows, shapes.get("dit", shapes))
    counter = {_COUNTER: ()} if isinstance(config, VAEConfig) else {}
    mapping.check(tensors, counter | _shapes(entries), path)
    _check_floats(path, entries.keys() - counter.keys(), entries)
    return Source("vae" if isinstance(config, VAEConfig) else "params", config, shapes, entries, tensors)


def _check_floats(path: pathlib.Path, names: Iterable[str], entries: Mapping[str, Entry]) -> None:
    whole = sorted(name for name in names if entries[name].dtype.kind in "iu")
    if whole:
        kind = entries[whole[0]].dtype.name
        raise ValueError(
            f"{path}: {whole[0]} is of {kind}: expected float32, float16 or bfloat16; quantised files cannot be read"
        )


def _finite(name: str, entry: Entry) -> np.ndarray:
    """The values of a tensor, which are looked at while they are in memory anyway."""
    values = entry.read()
    if not np.isfinite(values).all():
        raise ValueError(f"{entry.path}: {name} holds NaN or infinity")
    return values


def _prompts(path: pathlib.Path, sources: Sequence[Source]) -> np.ndarray:
    """The table of a run's prompts."""
    entries = open_tensors(path)
    names = [prompt_name(task) for task in TASKS]
    wrong = sorted(set(names) ^ entries.keys())
    if wrong:
        raise ValueError(f"{path}: the prompts are not those of this version: {wrong[0]!r}")
    width = next(source.config.joint_attention_dim for source in sources if isinstance(source.config, DiTConfig))
    shapes = {entries[name].shape for name in names}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 3 or (shape[0], shape[2]) != (1, width):
        raise ValueError(f"{path}: expected every prompt as [1, tokens, {width}], all alike")
    _check_floats(path, names, entries)
    return np.concatenate([np.asarray(_finite(name, entries[name]), np.float32) for name in names])


def _place(part: mapping.Part) -> tuple[str, Any]:
    """A leaf and the layer of it; halves of a leaf are always of one tensor."""
    return part.path, next((where for where in part.slices if isinstance(where, int)), None)


def _slices(source: Source) -> Iterator[Slice]:
    prefix, leaves = ("dit/", source.shapes["dit"]) if source.item == "params" else ("", source.shapes)
    kinds = {path: leaf.dtype for path, leaf in mapping.flatten(leaves).items()}
    for tensor in source.tensors:
        missing = tensor.key not in source.entries  # only the counter may be
        array = np.zeros(tensor.shape) if missing else _finite(tensor.key, source.entries[tensor.key])
        for part, values in mapping.to_ours(tensor, array):
            yield Slice(source.item, prefix + part.path, part.slices, np.asarray(values, kinds[part.path], order="C"))


def _shapes(entries: Mapping[str, Entry]) -> dict[str, tuple[int, ...]]:
    return {key: entry.shape for key, entry in entries.items()}


if __name__ == "__main__":
    sys.exit(main())
