"""Checkpoints of a run; the only module that imports orbax.

A step is one atomic commit of four items, each restorable alone: `params`, `ema`, `opt_state` and `record` (JSON: config,
step, version, a digest of every leaf). Restoring goes through our own abstract trees and shardings, never through what the
file says, so a run continues on any mesh; and every leaf is checked, because files rot silently.
"""

import contextlib
import errno
import os
import pathlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint import args
from orbax.checkpoint.checkpoint_managers import preservation_policy, save_decision_policy

from uniser_jax import __version__, hosts
from uniser_jax.digest import digest_slice, digests, leaf_name
from uniser_jax.errors import reason_of
from uniser_jax.types import TrainState, tasks_digest

FORMAT_VERSION = 1
ON_CORRUPT = ("stop", "previous")
_ITEMS = ("params", "ema", "opt_state")
_FROZEN = "vae"  # beside a converted base
_SCORE = "held_out_loss"
_NO_OTHER = "there is no earlier step to take: put a copy back, or give another --workdir"


class DamagedError(ValueError):
    """A checkpoint cannot be read back as it was written; one line that names the file or the leaf."""


class Checkpoints:
    """The checkpoints of one run folder, saved asynchronously.

    Args:
      workdir: the run folder; checkpoints lie in `workdir/checkpoints/STEP`.
      every: steps between saves.
      keep: how many of the newest stay.
      keep_every: steps whose multiples stay for ever; 0 keeps none.
      best: how many with the lowest held-out loss stay, see `save`.
      facts: JSON about the run, kept in every record.
      training: whether they are open to be added to: SIGTERM and Ctrl-C ask for a stop, see `preempted`, and what an earlier
        attempt left half-written is removed.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        every: int = 1_000,
        keep: int = 3,
        keep_every: int = 0,
        best: int = 0,
        facts: Mapping[str, Any] | None = None,
        training: bool = False,
    ):
        self._folder = pathlib.Path(workdir).resolve() / "checkpoints"
        kept: list[Any] = [preservation_policy.LatestN(keep)]
        if keep_every:
            kept.append(preservation_policy.EveryNSteps(keep_every))
        if best:
            policy = preservation_policy.BestN(
                get_metric_fn=_score, reverse=True, n=best, keep_checkpoints_without_metrics=False
            )
            kept.append(policy)
        options = ocp.CheckpointManagerOptions(
            save_decision_policy=save_decision_policy.FixedIntervalPolicy(every),
            preservation_policy=preservation_policy.AnyPreservationPolicy(kept),
            best_fn=_score,
            best_mode="min",
            cleanup_tmp_directories=training,
            single_host_load_and_broadcast=True,  # shared disks show a new step to some hosts later than to others
        )
        self._facts = dict(facts or {})
        self.interrupted, self._training = False, training
        self._asked_to_stop = False
        self._handlers: dict[int, Any] = {}  # of signals, as they were
        handlers: dict[str, Any] = {name: ocp.StandardCheckpointHandler() for name in (*_ITEMS, _FROZEN)}
        handlers["record"] = ocp.JsonCheckpointHandler()
        self._manager = _Manager(self._folder, options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        """The newest committed step; half-written ones do not count."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All committed steps."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The committed step with the lowest held-out loss; the newest one if none was measured."""
        return self._manager.best_step()

    def find(self, at: int | str | None) -> int | None:
        """The committed step that is meant: a number, `best`, or None for the newest.

        Raises:
          ValueError: if there is no such step.
        """
        step = self.best() if at == "best" else self.latest() if at is None else at
        if step is not None and step not in self.steps():
            raise ValueError(f"{self._folder.parent}: no checkpoint of step {step}; there are {self.steps()} and best")
        return step

    def due(self, step: int) -> bool:
        """Whether a step is to be saved by the rhythm of the run."""
        return step != self.latest() and self._manager.should_save(step)

    def save(
        self,
        step: int,
        state: TrainState,
        config: ConfigDict,
        progress: Callable[[], dict[str, Any]] = dict,
        held_out_loss: float | None = None,
        force: bool = False,
    ) -> bool:
        """Saves if the step is due (or `force`d and not there yet); returns whether it did.

        Does not wait for the disk, nor for the device when nothing is due. The state may be donated afterwards.

        Args:
          step: of the state.
          state: to save.
          config: of the run, kept in the record.
          progress: what else to keep in the record: metrics not logged yet, the clock; only called when a save happens.
          held_out_loss: of the average of the parameters, by which the best are kept; None if it was not measured.
          force: whether the step counts as due.

        Raises:
          OSError: if the folder is gone, cannot be written, or has no room for the state.
        """
        if step == self.latest() or not (force or self.due(step)):
            return False
        self._check_folder(state)
        record = {
            "format": FORMAT_VERSION,
            "step": step,
            "version": __version__,
            "config": config.to_dict(),
            "tasks": tasks_digest(),
            **self._facts,
            **progress(),
            "digests": {name: digests(getattr(state, name)) for name in _ITEMS},
        }
        items = {name: args.StandardSave(getattr(state, name)) for name in _ITEMS}
        metrics = {_SCORE: held_out_loss} if held_out_loss is not None and np.isfinite(held_out_loss) else {}
        parts = args.Composite(**items, record=args.JsonSave(record))
        with _unwritable():  # the save before, too
            return self._manager.save(step, args=parts, metrics=metrics, force=force)

    def restore(self, abstract: TrainState, on_corrupt: str = "stop") -> TrainState:
        """Reads the newest step into the shapes, dtypes and shardings of `abstract`, and checks every leaf's digest.

        Args:
          abstract: what the run needs.
          on_corrupt: `stop`, or `previous`: take the newest step that is whole, and set damaged ones after it aside.

        Raises:
          DamagedError: if a file is missing, cut, or changed since it was written; names it, and the step before. With
            `previous` only if no step is whole; all of them stay.
          ValueError: if there is no checkpoint, or its parameters are not those of `abstract`.
        """
        if on_corrupt not in ON_CORRUPT:
            raise ValueError(f"checkpoint.on_corrupt = {on_corrupt!r}: expected one of {', '.join(ON_CORRUPT)}")
        damaged: dict[int, DamagedError] = {}
        for step in reversed(self.steps()):
            try:
                restored = self._read(step, {name: getattr(abstract, name) for name in _ITEMS})
            except DamagedError as error:
                if on_corrupt == "stop":
                    raise DamagedError(f"{error}; {self._remedy(step)}") from None
                damaged[step] = error
                continue
            self._set_aside(damaged)
            number = jax.device_put(jax.numpy.int32(step), abstract.step.sharding)
            logging.info("restored step %d from %s", step, self._folder)
            return TrainState(number, *(restored[name] for name in _ITEMS))
        if damaged:
            raise DamagedError(f"{damaged[max(damaged)]}; {_NO_OTHER}")
        raise ValueError(f"no checkpoint in {self._folder}: train first, or name another run")

    def check_fresh(self) -> None:
        """Checks, where there is no checkpoint, that none was ever set aside: starting anew would drop what is left of a run.

        Raises:
          ValueError: if one was.
        """
        aside = self._damaged_folder()
        if aside.is_dir() and any(aside.iterdir()):
            raise ValueError(
                f"{self._folder} has no checkpoint, and {aside} has damaged ones: put a whole one back, or give another"
                f" --workdir; remove {aside.name} to start from step 0"
            )

    def record(self, step: int | None = None) -> dict[str, Any]:
        """The JSON record of a step, by default the newest: format, step, version, config, prompt set, digests.

        Raises:
          DamagedError: if it cannot be read.
          ValueError: if another version wrote it, with another format or another set of prompts.
        """
        step = self.latest() if step is None else step
        try:
            # Not through the manager, whose barrier a process that fails never reaches.
            with contextlib.closing(ocp.JsonCheckpointHandler()) as reader:
                record = reader.restore(self._manager.directory / str(step) / "record", args=args.JsonRestore())
            newer = record["format"] > FORMAT_VERSION
        except Exception as error:
            raise DamagedError(f"checkpoint {self._folder / str(step)}: its record {_reason(error)}") from None
        if newer:
            raise ValueError(f"{self._folder}: checkpoint format {record['format']} is newer than this version reads")
        if record.get("tasks", tasks_digest()) != tasks_digest():  # a row of its table would stand for another request
            raise ValueError(
                f"{self._folder}: prompt set {record['tasks']}, this version's is {tasks_digest()}: use the version it was"
                f" trained with, {record['version']}"
            )
        return record

    def weights(self, abstract: Any, ema: bool = True, step: int | None = None) -> Any:
        """Reads, and checks, only the parameters (their average, by default) of a step, by default the newest."""
        return self.item("ema" if ema else "params", abstract, step)

    def item(self, name: str, abstract: Any, step: int | None = None) -> Any:
        """Reads, and checks, one item of a step, by default the newest, into the shapes and shardings of `abstract`."""
        return self._read(self.latest() if step is None else step, {name: abstract})[name]

    def stored(self, name: str) -> Any:
        """Shapes and dtypes of one item of the newest step, as they were saved."""
        with contextlib.closing(ocp.StandardCheckpointHandler()) as reader:
            tree = reader.metadata(self._manager.directory / str(self.latest()) / name).tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)

    def _read(self, step: int | None, items: dict[str, Any]) -> dict[str, Any]:
        """Items of a step, checked; what one process cannot read, none has: the others would wait for it."""
        where, failed = f"checkpoint {self._folder / str(step)}", None
        record: dict[str, Any] = {}
        restored: dict[str, Any] = {}
        try:
            record = self.record(step)
            restored = self._read_shards(step, items, record, where)
        except DamagedError as error:
            failed = error
        if hosts.anywhere(failed is not None):
            raise failed or DamagedError(f"{where} cannot be read by another process")
        for name in items:
            expected = record["digests"][name]
            for path, digest in digests(restored[name]).items():
                if digest != expected.get(path):
                    raise DamagedError(f"{where}: {name}/{path} is not what was saved, a file has changed")
        return restored

    def _read_shards(self, step: int | None, items: dict[str, Any], record: Any, where: str) -> dict[str, Any]:
        known = record.get("digests")
        if not isinstance(known, dict):
            raise DamagedError(f"{where}: its record has no digests")
        missing = [name for name in items if known.get(name) is None]
        if missing:
            raise ValueError(f"{where} has no {missing[0]}: it is a converted base, for config.model.base, and no run")
        folder = self._manager.directory / str(step)
        # Nor this through the manager, which reads the score as well.
        with contextlib.closing(ocp.StandardCheckpointHandler()) as reader:
            try:
                saved = {name: _shapes(reader.metadata(folder / name).tree) for name in items}
            except Exception as error:  # whatever orbax and tensorstore raise about a file that is gone or cut
                raise DamagedError(f"{where} {_reason(error)}") from None
            for name, abstract in items.items():
                _check_shapes(where, saved[name], _shapes(abstract))
            try:
                return {name: reader.restore(folder / name, args=args.StandardRestore(items[name])) for name in items}
            except Exception as error:
                raise DamagedError(f"{where} {_reason(error)}") from None

    def _check_folder(self, state: TrainState) -> None:
        """Finds what would fail before orbax does: then its threads, and the other processes, wait minutes for each other."""
        failed = None
        try:
            probe = self._folder / f".writable.{jax.process_index()}"
            probe.write_bytes(b"\n")
            probe.unlink()
            free, needed = shutil.disk_usage(self._folder).free, sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            if free < needed:
                text = f"{os.strerror(errno.ENOSPC)}: {free >> 20} MiB for a checkpoint of up to {needed >> 20} MiB"
                failed = OSError(errno.ENOSPC, text, str(self._folder))
        except OSError as error:
            failed = error
        if hosts.anywhere(failed is not None):
            raise failed or OSError(f"{self._folder} cannot be written by another process")

    def _remedy(self, step: int) -> str:
        before = [older for older in self._manager.all_steps() if older < step]
        if not before:
            return _NO_OTHER
        return f"step {max(before)} lies before it: --config.checkpoint.on_corrupt=previous takes it"

    def _set_aside(self, damaged: Mapping[int, DamagedError]) -> None:
        """Only what a whole step lies before: without one, the next start would begin the run anew."""
        for step, error in damaged.items():
            logging.warning("%s; set aside, a step before it is taken", error)
            if jax.process_index() == 0:
                target = self._damaged_folder() / f"{step}-{time.time_ns()}"
                target.parent.mkdir(exist_ok=True)
                (self._folder / str(step)).rename(target)
        if damaged:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
            self._manager.reload()

    def _damaged_folder(self) -> pathlib.Path:
        return self._folder.with_name("checkpoints.damaged")

    def preempted(self, step: int) -> bool:
        """Whether this run was asked to stop: by SIGTERM or Ctrl-C or, on a pod, by SIGTERM to any of its processes."""
        return self._asked_to_stop if jax.process_count() == 1 else self._manager.reached_preemption(step)

    def _stop(self, number: int, _: object) -> None:
        """Only takes a note: in the middle of a step the old state is gone and the new one not there yet."""
        if number == signal.SIGINT and self.interrupted:
            raise KeyboardInterrupt  # asked twice: at once, without saving
        self._asked_to_stop, self.interrupted = True, number == signal.SIGINT

    def __enter__(self) -> Self:
        # With several processes jax's own handler tells the others, and `reached_preemption` finds a step common to all.
        alone = jax.process_count() == 1
        if self._training and alone and threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        with _unwritable():
            self._manager.wait_until_finished()  # raises what an asynchronous save could not write
        self._manager.close()


def has_checkpoint(workdir: str | pathlib.Path) -> bool:
    """Whether a run folder holds at least one committed step."""
    folder = pathlib.Path(workdir) / "checkpoints"
    return folder.is_dir() and bool(list(ocp.utils.checkpoint_steps(str(folder))))


class Slice(NamedTuple):
    """A part of one leaf, for `write_base`."""

    item: str
    path: str  # "a/b/c"
    where: tuple[Any, ...]  # an index into the leaf, of numbers, slices and an ellipsis
    values: np.ndarray


class _Manager(ocp.CheckpointManager):
    """Orbax's, which reads all held-out losses at once: one that is no JSON would end every command."""

    def metrics(self, step: int) -> Any:
        """The held-out loss of a step; of a damaged one none, so that it does not count as the best."""
        try:
            return super().metrics(step)
        except ValueError:
            logging.warning(
                "the held-out loss of step %d in %s is damaged: it cannot be the best", step, self.directory
            )
            return None

    def close(self) -> None:
        """Waits for the removal of what is half-written, too, which only a save waits for: Python's end would break it off."""
        with contextlib.suppress(OSError):  # a save says it
            self._maybe_await_cleanup_tmp_directory()
        super().close()


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
    step = pathlib.Path(workdir).resolve() / "checkpoints" / "0"
    temporary = step.with_name("0.orbax-checkpoint-tmp")  # a name that orbax overlooks
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        found = _fill(temporary, items, slices)
        record = {"format": FORMAT_VERSION, "version": __version__, "step": 0, "digests": found, **record}
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as writer:
            writer.save(temporary / "record", args.JsonSave(record))
        os.replace(temporary, step)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # half a base is as large as a whole one


def _fill(folder: pathlib.Path, items: Mapping[str, Any], slices: Iterable[Slice]) -> dict[str, dict[str, list[int]]]:
    """Writes trees to a folder, slice by slice; returns the digests of their leaves."""
    arrays: dict[tuple[str, str], Any] = {}
    for item, tree in items.items():
        scalars = jax.tree.map(lambda leaf: np.zeros((), leaf.dtype), tree)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as writer:
            writer.save(folder / item, args.PyTreeSave(scalars))
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        arrays |= {(item, leaf_name(path)): _zarr(folder / item, leaf_name(path), leaf) for path, leaf in leaves}
    sums = {key: np.zeros(2, np.uint32) for key in arrays}
    for part in slices:
        array = arrays[part.item, part.path]
        array[part.where].write(part.values).result()
        sums[part.item, part.path] += digest_slice(array.shape, part.where, part.values)
    return {item: {path: [int(n) for n in sums[i, path]] for i, path in sums if i == item} for item in items}


def newest_run(root: str | pathlib.Path = "runs") -> pathlib.Path:
    """The run under `root` whose checkpoints changed last; a converted base is none.

    Raises:
      ValueError: if no run under `root` has a checkpoint.
    """
    folders = [path for path in pathlib.Path(root).glob("*") if has_checkpoint(path)]
    for folder in sorted(folders, key=lambda folder: (folder / "checkpoints").stat().st_mtime, reverse=True):
        with Checkpoints(folder) as checkpoints:
            if "config" in checkpoints.record():
                return folder
    raise ValueError(f"no run with a checkpoint under {root}/: train one, or give --checkpoint RUN")


@contextlib.contextmanager
def _unwritable() -> Iterator[None]:
    """tensorstore calls a disk that fails a ValueError, which would pass for a mistake of the caller's."""
    try:
        yield
    except ValueError as error:
        raise OSError(f"a checkpoint cannot be written: {reason_of(error)[:200]}") from error


def _score(metrics: Mapping[str, float]) -> float:
    return metrics.get(_SCORE, float("inf"))


def _check_shapes(where: str, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compares names and shapes before anything is read: orbax's own message would fill a screen."""
    wrong = [name for name in sorted(saved.keys() | wanted.keys()) if saved.get(name) != wanted.get(name)]
    if wrong:
        name, more = wrong[0], f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(
            f"{where} does not fit this model: {name} is {saved.get(name, 'missing')} there"
            f" and {wanted.get(name, 'missing')} here{more}"
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {leaf_name(path): tuple(leaf.shape) for path, leaf in leaves}


def _reason(error: Exception) -> str:
    return f"cannot be read: {reason_of(error)[:200]}"


def _zarr(folder: pathlib.Path, path: str, leaf: Any) -> Any:
    """A new array in the place of what orbax wrote for this leaf."""
    store = {"driver": "file", "path": str(folder / path.replace("/", ".")) + "/"}
    chunk = (1, *leaf.shape[1:]) if leaf.ndim == 3 else leaf.shape  # stacked matrices are filled a layer at a time
    metadata = {"chunks": list(chunk), "compressor": {"id": "zstd", "level": 1}}
    spec = {"driver": "zarr", "kvstore": store, "metadata": metadata}
    settings = {"dtype": np.dtype(leaf.dtype), "shape": leaf.shape}
    return tensorstore.open(spec, create=True, delete_existing=True, **settings).result()
