"""What a run takes from a converted base: its transformer to start from, and the frozen autoencoder of its latents."""

import dataclasses
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from uniser_jax import mesh as meshes
from uniser_jax.checkpoint import Checkpoints, has_checkpoint
from uniser_jax.models import vae
from uniser_jax.models.codec import LatentCodec
from uniser_jax.models.vae import VAEConfig
from uniser_jax.types import TrainState, tasks_digest


def with_base(state: TrainState, shapes: TrainState, base: str | pathlib.Path) -> TrainState:
    """A fresh state whose transformer, and prompts if the base has them, are those of a base; their averages too.

    They are read directly into their shardings.

    Raises:
      ValueError: if there is no base, or it does not fit the model.
    """
    with open_base(base) as checkpoints:
        tasks = checkpoints.record().get("base", {}).get("params", {}).get("tasks")
        if tasks not in (None, tasks_digest()):
            raise ValueError(f"{base}: its prompts were cached for another set of tasks; cache them again")
        names = ("dit",) if tasks is None else ("dit", "prompts")
        read = checkpoints.weights({name: shapes.params[name] for name in names}, ema=False)
    copy = jax.jit(lambda tree: jax.tree.map(jax.numpy.copy, tree))  # a donated state must not hold an array twice
    return state._replace(params=state.params | read, ema=state.ema | copy(read))


def latents(base: str | pathlib.Path, mesh: Mesh | None = None) -> LatentCodec:
    """The autoencoder of a base, sharded like parameters if there is a mesh.

    Raises:
      ValueError: if there is no base, or it has no autoencoder.
    """
    with open_base(base) as checkpoints:
        parts = checkpoints.record().get("base", {})
        if "vae" not in parts:
            raise ValueError(f"{base} holds no autoencoder: convert a whole pipeline, with its vae/")
        codec = latent_shapes(vae_config(parts["vae"]["config"]), mesh)
        params = checkpoints.item("vae", codec.params)
    if mesh is None:
        params = jax.tree.map(jax.numpy.asarray, params)
    return dataclasses.replace(codec, params=params)


def latent_shapes(config: VAEConfig, mesh: Mesh | None = None) -> LatentCodec:
    """An autoencoder whose parameters are shapes, sharded like parameters if there is a mesh."""
    graphdef, shapes, axes = vae.abstract(config)
    if mesh is not None:
        shapes = jax.tree.map(_placed, shapes, meshes.sharding_of(mesh, axes, shapes))
    return LatentCodec(config, graphdef, shapes)


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
    if not has_checkpoint(base):
        raise ValueError(
            f"config.model.base = {str(base)!r} is no converted base; python -m convert.from_diffusers makes one"
        )
    return Checkpoints(base)


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    # The statistics' counter and other scalars have no axis to shard.
    spec = sharding if leaf.ndim else NamedSharding(sharding.mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spec)
