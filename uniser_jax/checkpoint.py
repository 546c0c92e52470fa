"""Checkpoints of a run; the only module that imports orbax.

A step is one atomic commit of four items, each restorable alone: `params`, `ema`, `opt_state` and `record` (JSON: config,
step, versions). Restoring goes through our own abstract trees and shardings, never through what the file says, so a run
continues on any mesh.
"""

import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from absl import logging
from ml_collections import ConfigDict
from orbax.checkpoint import args
from orbax.checkpoint.checkpoint_managers import preservation_policy, save_decision_policy

from uniser_jax import __version__
from uniser_jax.types import TrainState

FORMAT_VERSION = 1
_ITEMS = ("params", "ema", "opt_state")


class Checkpoints:
    """The checkpoints of one run folder, saved asynchronously.

    Args:
      workdir: the run folder; checkpoints lie in `workdir/checkpoints/STEP`.
      every: steps between saves.
      keep: how many of the newest stay.
    """

    def __init__(self, workdir: str | pathlib.Path, every: int = 1_000, keep: int = 3):
        self._folder = pathlib.Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            save_decision_policy=save_decision_policy.FixedIntervalPolicy(every),
            preservation_policy=preservation_policy.LatestN(keep),
        )
        handlers: dict[str, Any] = {name: ocp.StandardCheckpointHandler() for name in (*_ITEMS, "vae")}
        handlers["record"] = ocp.JsonCheckpointHandler()
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        """The newest committed step; half-written ones do not count."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, config: ConfigDict, force: bool = False) -> bool:
        """Saves if the step is due (or `force`d and not there yet); returns whether it did.

        Does not wait for the disk, nor for the device when nothing is due. The state may be donated afterwards.
        """
        if step == self.latest() or not (force or self._manager.should_save(step)):
            return False
        record = {"format": FORMAT_VERSION, "step": step, "version": __version__, "config": config.to_dict()}
        items = {name: args.StandardSave(getattr(state, name)) for name in _ITEMS}
        return self._manager.save(step, args=args.Composite(**items, record=args.JsonSave(record)), force=force)

    def restore(self, abstract: TrainState) -> TrainState:
        """Reads the newest step into the shapes, dtypes and shardings of `abstract`.

        Raises:
          ValueError: if there is no checkpoint, or its parameters are not those of `abstract`.
        """
        step = self.latest()
        if step is None:
            raise ValueError(f"no checkpoint in {self._folder}: train first, or name another run")
        self._check(step, abstract.params)
        items = {name: args.StandardRestore(getattr(abstract, name)) for name in _ITEMS}
        restored = self._manager.restore(step, args=args.Composite(**items))
        number = jax.device_put(jax.numpy.int32(step), abstract.step.sharding)
        logging.info("restored step %d from %s", step, self._folder)
        return TrainState(number, restored["params"], restored["ema"], restored["opt_state"])

    def record(self) -> dict[str, Any]:
        """The JSON record of the newest step: format, step, version, config."""
        record = self._manager.restore(self.latest(), args=args.Composite(record=args.JsonRestore()))["record"]
        if record["format"] > FORMAT_VERSION:
            raise ValueError(f"{self._folder}: checkpoint format {record['format']} is newer than this version reads")
        return record

    def weights(self, abstract: Any, ema: bool = True) -> Any:
        """Reads only the parameters (their average, by default) of the newest step."""
        return self.item("ema" if ema else "params", abstract)

    def item(self, name: str, abstract: Any) -> Any:
        """Reads one item of the newest step into the shapes, dtypes and shardings of `abstract`."""
        return self._manager.restore(self.latest(), args=args.Composite(**{name: args.StandardRestore(abstract)}))[name]

    def stored(self, name: str) -> Any:
        """Shapes and dtypes of one item of the newest step, as they were saved."""
        tree = self._manager.item_metadata(self.latest())[name].tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)

    def _check(self, step: int, params: Any) -> None:
        """Compares names and shapes before anything is read: orbax's own message would fill a screen."""
        saved = _shapes(self._manager.item_metadata(step)["params"].tree)
        wanted = _shapes(params)
        for name in sorted(saved.keys() | wanted.keys()):
            if saved.get(name) != wanted.get(name):
                raise ValueError(
                    f"checkpoint {self._folder / str(step)} does not fit this model: {name} is"
                    f" {saved.get(name, 'missing')} there and {wanted.get(name, 'missing')} here"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()  # raises what an asynchronous save could not write
        self._manager.close()


class Slice(NamedTuple):
    """A part of one leaf, for `write_base`."""

    item: str
    path: str  # "a/b/c"
    where: tuple[Any, ...]  # an index into the leaf
    values: np.ndarray


def write_base(
    workdir: str | pathlib.Path, items: Mapping[str, Any], slices: Iterable[Slice], record: Mapping[str, Any]
) -> None:
    """Writes trees as step 0 of a new run folder, slice by slice: no leaf need ever be whole in memory.

    Orbax writes trees of scalars, in its plain layout of one zarr array per leaf; then each array is made anew in its true
    shape, one chunk per layer, and filled. The step appears under its name only when all is written.

    Args:
      workdir: a folder without a checkpoint.
      items: nested dicts of shapes and dtypes by item; `params` is what `Checkpoints.weights(..., ema=False)` reads.
      slices: what fills them, each element exactly once.
      record: JSON to keep beside them.

    Raises:
      ValueError: if there is a checkpoint already.
    """
    if has_checkpoint(workdir):
        raise ValueError(f"{workdir} has a checkpoint already: name a new folder")
    step = pathlib.Path(workdir).absolute() / "checkpoints" / "0"
    temporary = step.with_name("0.orbax-checkpoint-tmp")  # a name that orbax overlooks and cleans up
    shutil.rmtree(temporary, ignore_errors=True)
    arrays: dict[tuple[str, str], Any] = {}
    for item, tree in items.items():
        scalars = jax.tree.map(lambda leaf: np.zeros((), leaf.dtype), tree)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as writer:
            writer.save(temporary / item, args.PyTreeSave(scalars))
        arrays |= {(item, path): _zarr(temporary / item, path, leaf) for path, leaf in _named(tree).items()}
    for part in slices:
        arrays[part.item, part.path][part.where].write(part.values).result()
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as writer:
        writer.save(temporary / "record", args.JsonSave({"format": FORMAT_VERSION, "version": __version__, **record}))
    os.replace(temporary, step)


def has_checkpoint(workdir: str | pathlib.Path) -> bool:
    """Whether a run folder holds at least one committed step."""
    folder = pathlib.Path(workdir) / "checkpoints"
    return folder.is_dir() and bool(list(ocp.utils.checkpoint_steps(str(folder))))


def newest_run(root: str | pathlib.Path = "runs") -> pathlib.Path:
    """The run under `root` whose checkpoints changed last.

    Raises:
      ValueError: if no folder under `root` holds a checkpoint.
    """
    runs = [path for path in pathlib.Path(root).glob("*") if has_checkpoint(path)]
    if not runs:
        raise ValueError(f"no run with a checkpoint under {root}/: train one, or give --checkpoint RUN")
    return max(runs, key=lambda run: (run / "checkpoints").stat().st_mtime)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in _named(tree).items()}


def _named(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _zarr(folder: pathlib.Path, path: str, leaf: Any) -> Any:
    """A new array in the place of what orbax wrote for this leaf."""
    store = {"driver": "file", "path": str(folder / path.replace("/", ".")) + "/"}
    chunk = (1, *leaf.shape[1:]) if leaf.ndim == 3 else leaf.shape  # stacked matrices are filled a layer at a time
    metadata = {"chunks": list(chunk), "compressor": {"id": "zstd", "level": 1}}
    spec = {"driver": "zarr", "kvstore": store, "metadata": metadata}
    settings = {"dtype": np.dtype(leaf.dtype), "shape": leaf.shape}
    return tensorstore.open(spec, create=True, delete_existing=True, **settings).result()
