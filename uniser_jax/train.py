"""The whole story of a run.

    python -m uniser_jax.train --config=configs/tiny.py --workdir=runs/x --config.optim.lr=3e-4

The same command continues a run from its newest checkpoint. The stream of examples is a pure function of (seed, step),
so nothing but the state is saved, and a continued run sees what an uninterrupted one would have seen.
"""

import argparse
import contextlib
import functools
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import optax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from uniser_jax import config as schema
from uniser_jax import flops, hosts, locks, manifest, optim, pretrained, status, xla
from uniser_jax import mesh as meshes
from uniser_jax.checkpoint import Checkpoints, has_checkpoint
from uniser_jax.data import pairs
from uniser_jax.data.buckets import Buckets
from uniser_jax.data.photos import open_photos, split
from uniser_jax.data.pipeline import Examples, batches
from uniser_jax.data.schedule import fixed
from uniser_jax.effects import templates
from uniser_jax.effects.edit import EditSampling
from uniser_jax.errors import reason_of
from uniser_jax.feed import Feed
from uniser_jax.metrics import Clock, MetricsWriter, Progress, log_to_terminal
from uniser_jax.profiling import Profile
from uniser_jax.samples import HeldOutLoss, SampleGrid
from uniser_jax.step import (
    Network,
    base_shapes,
    build_network,
    check,
    frozen_shapes,
    init_state,
    make_step,
    state_shapes,
)
from uniser_jax.types import TrainState
from uniser_jax.watchdog import Watchdog


def train(config: ConfigDict, workdir: str | pathlib.Path) -> TrainState:
    """Trains to `config.steps`, continuing what lies in `workdir`, and returns the final state.

    Raises:
      ValueError: before anything is compiled, if the config does not fit itself, the devices or the data, or if another
        run holds the folder.
      RuntimeError: for what fails in the midst of training.
      OSError: if a checkpoint or a log cannot be written.
      FloatingPointError: if the run diverges.
    """
    if "://" in str(workdir):
        raise ValueError(f"--workdir={workdir}: expected a folder; mount the bucket and name a folder in it")
    hosts.agree({"config": schema.to_json(config), "code": manifest.code()})
    schema.validate(config)
    status.check_folder(workdir)
    workdir = pathlib.Path(workdir)
    if not has_checkpoint(workdir):  # before a folder is made for a run that cannot start
        pretrained.check_sources(config)
    process, processes = jax.process_index(), jax.process_count()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compilation_cache"))

    mesh = meshes.make_mesh(config.mesh.to_dict())
    part = meshes.batch_part(mesh, process)
    network = build_network(config.model, config.lora)
    optimizer = optim.optimizer(config.optim, config.steps)
    shapes = state_shapes(network, optimizer, mesh)
    examples, held_out = open_examples(config)
    photographs, flare = manifest.describe(examples.photos), examples.sampling.families.flare
    hosts.agree({"set of photographs": photographs["fingerprint"], "stream": examples.fingerprint()})
    latents = pretrained.latents(config, mesh) if config.model.codec == "latents" else None
    check(config, mesh, latents)

    saving = config.checkpoint.every, config.checkpoint.keep, config.checkpoint.keep_every, config.checkpoint.best
    facts: dict[str, Any] = {
        "frozen": pretrained.digests_of(config),
        "photographs": photographs["fingerprint"],
        "pairs": pairs.digest_of(examples.pairs),
        "layers of real flares": templates.digest_of(flare.layers) if flare.real else "",
        "code": manifest.code(),
    }
    with _alone(workdir), jax.set_mesh(mesh), Checkpoints(workdir, *saving, facts, training=True) as checkpoints:
        state, base, record = start_or_continue(config, network, optimizer, mesh, shapes, checkpoints, facts)
        start = int(state.step)
        if start >= config.steps:
            logging.warning("step %d is reached already; give more --config.steps", start)
        step = make_step(config, network, optimizer, shapes)
        grid = SampleGrid(config, network, held_out, latents, base)
        held_out_loss = HeldOutLoss(config, network, held_out, mesh, latents, base)
        stream = batches(examples, start, *part, config.data.workers, config.data.threads)
        logging.info(
            "%s: %s parameters, %d photographs (%d held out), %s, from step %d",
            workdir,
            f"{sum(leaf.size for leaf in jax.tree.leaves(network.shapes)):,}",
            len(examples.photos),
            len(held_out.photos),
            dict(mesh.shape),
            start,
        )
        if process == 0:
            logging.info("what lies on each chip:\n%s", meshes.table(shapes))
        clock = Clock(manifest.write(workdir, config, mesh, photographs, start), record.get("clock"))
        peak = flops.peak(mesh.devices.flat[0].device_kind)
        earlier = config.optim.max_skipped, record.get("pending", ())
        skipped = record.get("skipped_in_a_row", 0)
        progress = Progress(start, config.steps, examples.schedule.indices, *earlier, clock, mesh.size, peak, skipped)
        flops_of = flops.counter(config, shapes, latents, base)
        watchdog = Watchdog(workdir / "watchdog", config.stall_seconds, process, processes, start)
        feed = Feed(stream, functools.partial(meshes.to_global, mesh))
        profile = Profile(workdir / "profile", config.profile_steps)
        metrics: dict[str, Any] = {}
        with _under_way(), MetricsWriter(workdir, start) as writer, watchdog, feed, profile:
            for number in range(start + 1, config.steps + 1):
                batch, waited = feed.take(metrics.get("loss"))
                with progress.step(batch.input.shape):
                    with profile.step(number):
                        state, metrics = step(state, batch, latents, base)
                    progress.add(metrics, waited, flops_of(batch))
                if profile.ends(number):
                    with progress.aside():
                        profile.stop()
                last = number == config.steps
                due, score = last or checkpoints.due(number), None
                report = progress.report(number) if last or number % config.log_every == 0 else {}
                if config.checkpoint.best and due:
                    with progress.aside():
                        report["held_out_loss"] = score = held_out_loss(state.ema)
                if report:
                    writer.scalars(number, report)
                if config.sample_every and number % config.sample_every == 0:
                    with progress.aside():
                        writer.image(number, "held out", grid.write(workdir / "samples", number, state.ema))
                stop = checkpoints.preempted(number)
                # Last of all: what a step has logged must lie before what its checkpoint continues from.
                if stop or due:
                    with progress.aside():
                        checkpoints.save(number, state, config, progress.record, score, force=True)
                if stop:
                    logging.info("asked to stop: saved step %d; the same command continues from there", number)
                    break
                watchdog.beat(number)
        if checkpoints.interrupted:
            raise KeyboardInterrupt
    return state


def start_or_continue(
    config: ConfigDict,
    network: Network,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    shapes: TrainState,
    checkpoints: Checkpoints,
    facts: Mapping[str, Any],
) -> tuple[TrainState, Any, dict[str, Any]]:
    """The state that a run goes on from, the base of its adapters if any, and the record of its last checkpoint.

    Resuming always wins over starting: the same command must never overwrite a run.

    Args:
      shapes: of the state, see `step.state_shapes`.
      facts: about the run, as they are kept in a record: `frozen`, see `pretrained.digests_of`, `photographs`, `pairs`
        and `code`.
    """
    fresh = checkpoints.latest() is None
    shapes_of_base = base_shapes(network, mesh), frozen_shapes(config, network, mesh)
    given, base = pretrained.take(config, *shapes_of_base, fresh and not config.init_from)
    if fresh:
        checkpoints.check_fresh()
        if config.init_from:
            given = pretrained.read_average(config, shapes.ema, facts["frozen"])
        state = init_state(network, optimizer, shapes, config.seed)
        return pretrained.with_base(state, given), base, {}
    state = checkpoints.restore(shapes, config.checkpoint.on_corrupt)
    record = checkpoints.record(int(state.step))
    pretrained.check_frozen(record, config, facts["frozen"])
    report_changes(record, config, facts)
    return state, base, record


@contextlib.contextmanager
def _alone(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the run folder: two runs in it would delete each other's checkpoints. A launcher's own lock is another file.

    The kernel frees it when process 0 ends, however it ends. One file per host: a disk may keep the lock of a host that died.

    Raises:
      ValueError: on every process, if another run on the host of process 0 holds it, or if it is not one folder for all.
    """
    with contextlib.ExitStack() as stack:
        taken = True
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((workdir / f".lock_train_{hosts.host()}").open("a"))
            taken = locks.take(file, tries=10)  # a run that was just killed may take a moment to be gone
        if hosts.anywhere(not taken):
            raise ValueError(f"another run trains in {workdir} on this host: wait for it, or give another --workdir")
        hosts.share(workdir)
        with _recorded(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
            yield


@contextlib.contextmanager
def _recorded(workdir: pathlib.Path) -> Iterator[None]:
    """Leaves word of how a run ended before its last step; one that is killed leaves none."""
    status.begin(workdir)
    try:
        yield
    except BaseException as error:
        status.end(workdir, failed=not isinstance(error, KeyboardInterrupt))
        raise
    if not status.finished(workdir):
        status.end(workdir, failed=False)


@contextlib.contextmanager
def _under_way() -> Iterator[None]:
    """From here on no ValueError is a mistake of the caller's, after which launchers would not start a run again."""
    try:
        yield
    except ValueError as error:
        raise RuntimeError(f"training failed: {error}") from error


def open_examples(config: ConfigDict) -> tuple[Examples, Examples]:
    """The training and the held-out stream of a config; they share no photograph. Held-out ones are square, rendered.

    Raises:
      ValueError: if photographs, buckets, edits, layers of real flares or the manifest of real pairs cannot be had.
    """
    data = config.data
    photos = open_photos(data.photos, data.min_side)
    sampling = schema.build(EditSampling, config.edit)
    if sampling.families.flare.real:
        templates.usable(sampling.families.flare.layers, 0)  # before anything is compiled
    ours, others = split(photos, data.holdout)
    schedule, buckets = schema.schedule(config), None
    if data.buckets:
        buckets = Buckets.of(ours, schema.aspects(config), schema.multiple(config))
        buckets.report(data.size, config.batch_size)
    real = tuple(pairs.read_manifest(data.pairs)) if data.pairs else ()
    training = Examples(ours, sampling, schedule, config.seed, data.colour, data.smallest, buckets, real, data.real)
    held_out = Examples(others, sampling, fixed(data.size), config.evaluation.seed)
    return training, held_out


def report_changes(record: Mapping[str, Any], config: ConfigDict, facts: Mapping[str, Any]) -> None:
    """Says which keys of a continued run's config differ from those it was saved with, and what of data and code."""
    means_of = {
        "photographs": "another stream, and other photographs are held out",
        "pairs": "another stream",
        "layers of real flares": "another stream",
        "code": "another run",
    }
    for fact, means in means_of.items():
        if record.get(fact, facts[fact]) != facts[fact]:
            logging.warning("the %s changed since the checkpoint: what follows may be %s", fact, means)
    before, now = schema.flat(record["config"]), schema.flat(config.to_dict())
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            logging.warning("config.%s was %r in the checkpoint, now it is %r", key, before.get(key), now.get(key))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for a mistake of the caller's, 3 for a run that diverged."""
    parser = argparse.ArgumentParser("uniser train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", required=True, help="configs/NAME.py, with arguments configs/pixel.py:size=b")
    parser.add_argument("--workdir", required=True, help="the run folder")
    known, overrides = parser.parse_known_args(argv)
    xla.prepare()
    log_to_terminal()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with it ignored
    try:
        config = schema.read(known.config, overrides)
        hosts.join()
        train(config, known.workdir)
    except ValueError as error:
        sys.stderr.write(f"uniser train: {error}\n")
        return hosts.leave(2)
    except FloatingPointError as error:  # from its last checkpoint it would diverge again
        sys.stderr.write(f"uniser train: {error}; what was saved before is kept\n")
        return hosts.leave(3)
    except OSError as error:  # a full disk, a vanished folder
        sys.stderr.write(f"uniser train: {reason_of(error)}; what was saved before is kept\n")
        return hosts.leave(1)
    except KeyboardInterrupt:
        return hosts.leave(130)
    except Exception:  # of the program or a device: to be reported whole
        traceback.print_exc()
        return hosts.leave(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
