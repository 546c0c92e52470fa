"""What a run takes from a converted base, a transformer to start from or to adapt and the frozen autoencoder of its latents, or
from another run.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from uniser_jax import config as schema
from uniser_jax import mesh as meshes
from uniser_jax.checkpoint import Checkpoints, has_checkpoint
from uniser_jax.models import lora, vae
from uniser_jax.models.codec import LatentCodec
from uniser_jax.models.lora import Lora
from uniser_jax.models.vae import VAEConfig
from uniser_jax.types import TrainState, tasks_digest

_MEANING = ("flow.prediction", "model.codec", "model.mask_scale")  # of parameters, whose shapes do not tell


def read_base(base: str | pathlib.Path, shapes: Any) -> dict[str, Any]:
    """The transformer of a base, and its prompts if it has them, read directly into the shardings of `shapes`.

    Args:
      base: a converted base.
      shapes: of `dit` and `prompts`, see `step.base_shapes`.

    Raises:
      ValueError: if there is no base, or it does not fit the model.
    """
    with open_base(base) as checkpoints:
        record = checkpoints.record()
        if "base" not in record:
            raise ValueError(
                f"{base} is the folder of a run: expected a base made by convert.from_diffusers; config.init_from takes a run"
            )
        tasks = record["base"].get("params", {}).get("tasks")
        if tasks not in (None, tasks_digest()):
            raise ValueError(f"{base}: its prompts were cached for another set of tasks; cache them again")
        names = ("dit",) if tasks is None else ("dit", "prompts")
        return checkpoints.weights({name: shapes[name] for name in names}, ema=False)


def take(config: ConfigDict, shapes: Any, frozen: Any, fresh: bool) -> tuple[dict[str, Any], Any]:
    """What a run reads of its base: what a state starts with, and what stays frozen, None without adapters.

    Args:
      config: of the run.
      shapes: see `step.base_shapes`.
      frozen: see `step.frozen_shapes`.
      fresh: whether the run starts; a continued one has the former already.

    Raises:
      ValueError: if there is no base, or it does not fit the model.
    """
    if not config.model.base or not (fresh or frozen):
        return {}, None
    given = read_base(config.model.base, shapes)
    if frozen is None:
        return given, None
    keep = jax.jit(lambda tree: jax.tree.map(lambda leaf, kept: leaf.astype(kept.dtype), tree, frozen))
    return given, keep({"dit": given.pop("dit")})


def read_average(config: ConfigDict, shapes: Any, digests: Mapping[str, str]) -> Any:
    """The averaged parameters of `config.init_from`, its newest step, read directly into the shardings of `shapes`.

    Args:
      config: of the run that starts with them.
      shapes: of its parameters.
      digests: of what it takes from its base, see `digests_of`: both runs must stand on the same one.

    Raises:
      ValueError: if there is no such run, or it does not fit the model, what its numbers mean there, or its base.
    """
    check_sources(config)
    with Checkpoints(config.init_from) as checkpoints:
        record = checkpoints.record()
        check_meaning(record, config)
        check_frozen(record, config, digests, config.init_from)
        logging.info("starts with the averaged parameters of %s, step %d", config.init_from, checkpoints.latest())
        return checkpoints.weights(shapes)


def check_sources(config: ConfigDict) -> None:
    """Checks that what a new run starts with is there.

    Raises:
      ValueError: if it is not.
    """
    if config.init_from and not has_checkpoint(config.init_from):
        raise ValueError(f"config.init_from = {config.init_from!r}: expected the folder of a run with a checkpoint")
    if config.model.base and not config.init_from:
        _check_base(config.model.base)


def check_meaning(record: Mapping[str, Any], config: ConfigDict) -> None:
    """Checks that parameters of the run of this record do in a run of `config` what they did there; shapes are not looked at.

    Raises:
      ValueError: if they would not; names the key and both values.
    """
    before, now = schema.recorded(record["config"]), schema.flat(config.to_dict())
    adapted = config.lora.rank and before["lora.rank"] == config.lora.rank
    for key in (*_MEANING, *(("lora.alpha",) if adapted else ())):
        if before[key] != now[key]:
            raise ValueError(
                f"config.{key} = {now[key]!r}, and config.init_from = {config.init_from!r} was trained with {before[key]!r}:"
                " its parameters mean something else; give the same"
            )


def with_base(state: TrainState, given: dict[str, Any]) -> TrainState:
    """A fresh state that starts with those parameters that are given; their averages too."""
    # A donated state must not hold an array twice; a sharding that is merely equal would compile the step again.
    shardings = jax.tree.map(lambda leaf: leaf.sharding, given)
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings)
    return state._replace(params=state.params | given, ema=state.ema | copy(given))


def merged(config: ConfigDict, network: Any, params: Any) -> Any:
    """The parameters of the network without adapters that does the same as `params`, those of an adapted `network`.

    Raises:
      ValueError: if the base is gone, or does not fit.
    """
    base = read_base(config.model.base, network.base | {"prompts": network.shapes["prompts"]})
    return lora.merge(params, {"dit": base["dit"]}, schema.build(Lora, config.lora))


def digests_of(config: ConfigDict) -> dict[str, str]:
    """Of what a run takes from its base and never changes, by item: kept with its checkpoints.

    Raises:
      ValueError: if there is no base.
    """
    items = ["params"] * bool(config.lora.rank) + ["vae"] * (config.model.codec == "latents")
    if not items:
        return {}
    with open_base(config.model.base) as checkpoints:
        leaves = checkpoints.record()["digests"]
    return {
        item: hashlib.sha256(json.dumps(leaves.get(item), sort_keys=True).encode()).hexdigest()[:16] for item in items
    }


def check_frozen(
    record: Mapping[str, Any], config: ConfigDict, digests: Mapping[str, str], run: str = "this run"
) -> None:
    """Checks that the base, of these digests, is the one that a checkpoint of `run` was trained with.

    Raises:
      ValueError: if it is another.
    """
    trained_with = record.get("frozen", {})
    for item, digest in digests.items():
        if trained_with.get(item, digest) != digest:
            raise ValueError(
                f"config.model.base = {config.model.base!r} is not {run}'s base: the digest of its {item} is {digest},"
                f" expected {trained_with[item]}; convert the same weights again"
            )


def latents(config: ConfigDict, mesh: Mesh | None = None) -> LatentCodec:
    """The autoencoder of a run's base, sharded like parameters if there is a mesh.

    Raises:
      ValueError: if there is no base, or it has no autoencoder.
    """
    with open_base(config.model.base) as checkpoints:
        parts = checkpoints.record().get("base", {})
        if "vae" not in parts:
            raise ValueError(f"{config.model.base} holds no autoencoder: convert a whole pipeline, with its vae/")
        codec = latent_shapes(vae_config(parts["vae"]["config"]), mesh, config.model.mask_scale)
        params = checkpoints.item("vae", codec.params)
    if mesh is None:
        params = jax.tree.map(jnp.asarray, params)
    return dataclasses.replace(codec, params=params)


def latent_shapes(config: VAEConfig, mesh: Mesh | None = None, mask_scale: int = 1) -> LatentCodec:
    """An autoencoder whose parameters are shapes, sharded like parameters if there is a mesh."""
    graphdef, shapes, axes = vae.abstract(config)
    if mesh is not None:
        shapes = jax.tree.map(_placed, shapes, meshes.sharding_of(mesh, axes, shapes))
    return LatentCodec(config, graphdef, shapes, mask_scale)


def vae_config(table: dict[str, Any]) -> VAEConfig:
    """A config as it stands in a record."""
    fields = {field.name for field in dataclasses.fields(VAEConfig)}
    values: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items() if k in fields}
    return VAEConfig(**values)


def open_base(base: str | pathlib.Path) -> Checkpoints:
    """The checkpoint of a converted base.

    Raises:
      ValueError: if there is none.
    """
    _check_base(base)
    return Checkpoints(base)


def _check_base(base: str | pathlib.Path) -> None:
    if not has_checkpoint(base):
        raise ValueError(
            f"config.model.base = {str(base)!r} is no converted base; python -m convert.from_diffusers makes one,"
            " and --base=FOLDER names one of a trained run that was moved"
        )


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    # The statistics' counter and other scalars have no axis to shard.
    spec = sharding if leaf.ndim else NamedSharding(sharding.mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spec)
