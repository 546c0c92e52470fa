"""Whole runs, tiny: they log, save, continue exactly, and refuse mistakes in one line."""

import gzip
import inspect
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import logging

from tests import processes
from uniser_jax import config as schema
from uniser_jax import locks, pretrained, status, train
from uniser_jax.checkpoint import Checkpoints, has_checkpoint, newest_run
from uniser_jax.metrics import CLOCK, log_to_terminal
from uniser_jax.step import make_step
from uniser_jax.watchdog import Watchdog

ROOT = pathlib.Path(__file__).parent.parent
TINY = [
    "--config.steps=6",
    "--config.batch_size=8",
    "--config.log_every=2",
    "--config.sample_every=4",
    "--config.checkpoint.every=2",
    "--config.data.size=24",
    "--config.mesh.data=8",
    "--config.model.prompt_length=2",
    "--config.evaluation.count=1",
]


def config_of(*overrides: str):
    return schema.read(str(ROOT / "configs/tiny.py"), [*TINY, *overrides])


@pytest.fixture(scope="module")
def steps() -> list:
    """The compiled steps of `run`."""
    return []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, steps: list) -> pathlib.Path:
    """An uninterrupted run of six steps."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_step", lambda *given: steps.append(make_step(*given)) or steps[-1])
        train.train(config_of(), workdir)
    return workdir


def logged(workdir: pathlib.Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines}


def digests_of(workdir: pathlib.Path) -> dict:
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.record()["digests"]


def wait_until(true: Callable[[], object], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not true():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)


def test_a_run_leaves_what_it_should(run: pathlib.Path) -> None:
    metrics = logged(run)
    assert list(metrics) == [2, 4, 6]
    for name in (
        "loss",
        "grad_norm",
        "lr",
        "steps_per_second",
        "images_per_second",
        "data_wait",
        "step_seconds",
        "tflops_per_chip",
        "goodput",
        "loss/t=0.9",
        "held_out_loss",
    ):
        assert np.isfinite(metrics[6][name])
    assert any(key.startswith("loss/effect=") for key in metrics[6])
    assert (run / "samples/step_000004.png").stat().st_size > 1_000
    assert list((run / "tensorboard").iterdir())
    with Checkpoints(run) as checkpoints:
        assert checkpoints.latest() == 6
        record = checkpoints.record()
    assert record["step"] == 6
    assert schema.from_json(json.dumps(record["config"])) == config_of()
    assert newest_run(run.parent) == run


def test_a_run_starts_with_the_average_of_another_and_needs_it_no_more(
    run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / "first")
    steps: list = []
    monkeypatch.setattr(train, "make_step", lambda *given: steps.append(make_step(*given)) or steps[-1])
    settings = ["--config.steps=2", "--config.optim.lr=1e-12", f"--config.init_from={tmp_path / 'first'}"]
    state = train.train(config_of(*settings), tmp_path / "second")
    assert int(state.step) == 2
    assert steps[0]._cache_size() == 1
    with Checkpoints(run) as checkpoints:
        average = checkpoints.weights(state.ema)
    for item in (state.params, state.ema):
        jax.tree.map(lambda ours, given: np.testing.assert_allclose(ours, given, rtol=0, atol=1e-8), item, average)
    shutil.rmtree(tmp_path / "first")
    assert int(train.train(config_of(*settings, "--config.steps=3"), tmp_path / "second").step) == 3


@pytest.mark.parametrize(
    ("of", "settings", "message"),
    [
        ("nowhere", [], "init_from = .*nowhere'?: expected the folder of a run with a checkpoint"),
        ("whole", ["--config.model.preset=s"], "does not fit this model"),
        (
            "whole",
            ["--config.flow.prediction=velocity"],
            "prediction = 'velocity', and .*whole' was trained with 'residual'",
        ),
    ],
)
def test_a_run_that_cannot_be_started_with_is_one_line(run: pathlib.Path, tmp_path, of, settings, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        train.train(config_of(*settings, f"--config.init_from={run.with_name(of)}"), tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "new").exists() == (of == "whole")  # a folder is made last
    assert status.ended(tmp_path / "new") == ("failed" if of == "whole" else None)


def test_a_base_that_is_not_there_is_one_line_and_leaves_no_folder(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="nowhere' is no converted base"):
        train.train(config_of("--config.model.base=nowhere"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("key", "there", "here"),
    [
        ("flow.prediction", "residual", "velocity"),
        ("model.codec", "pixels", "latents"),
        ("model.mask_scale", 1, 2),
        ("lora.alpha", 16.0, 8.0),
    ],
)
def test_a_run_starts_with_no_parameters_that_mean_something_else(key: str, there, here) -> None:
    before, now = schema.defaults(), schema.defaults()
    for config, value in ((before, there), (now, here)):
        config.lora.rank = 4
        config.update_from_flattened_dict({key: value})
    record = json.loads(json.dumps({"config": before.to_dict()}))
    pretrained.check_meaning(record, before)
    with pytest.raises(ValueError, match=re.escape(f"config.{key} = {here!r}, and config.init_from = ")) as caught:
        pretrained.check_meaning(record, now)
    assert f"was trained with {there!r}: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_that_a_record_lacks_had_its_default() -> None:
    config, record = schema.defaults(), {"config": schema.defaults().to_dict()}
    del record["config"]["model"]["mask_scale"]
    pretrained.check_meaning(record, config)
    config.model.mask_scale = 2
    with pytest.raises(ValueError, match="was trained with 1: its parameters mean something else"):
        pretrained.check_meaning(record, config)


def test_alpha_means_nothing_without_adapters() -> None:
    config, record = schema.defaults(), {"config": schema.defaults().to_dict()}
    config.lora.alpha = 8.0
    pretrained.check_meaning(record, config)


def test_a_run_of_which_only_damage_is_left_does_not_start_anew(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    workdir = tmp_path / "again"
    shutil.copytree(run, workdir)
    before = (workdir / "metrics.jsonl").read_bytes()
    previous = config_of("--config.checkpoint.on_corrupt=previous")
    for step in (2, 4):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    shutil.rmtree(workdir / "checkpoints/6/params")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"checkpoints/6 .*; there is no earlier step to take: "):
            train.train(previous, workdir)
    (workdir / "checkpoints").rename(workdir / "checkpoints.damaged")
    with pytest.raises(ValueError, match=r"checkpoints\.damaged has damaged ones: put a whole one back, or") as caught:
        train.train(previous, workdir)
    assert "\n" not in str(caught.value)
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_a_run_compiles_its_step_once(run: pathlib.Path, steps: list) -> None:
    assert [step._cache_size() for step in steps] == [1]


def test_a_run_tells_what_it_is(run: pathlib.Path) -> None:
    found = status.read(run)
    assert (found.state, found.step, found.steps, found.checkpoint, found.restarts) == ("finished", 6, 6, 6, 0)
    manifest = status.read_manifest(run)
    assert schema.from_json(json.dumps(manifest["config"])) == config_of()
    assert (manifest["mesh"]["data"], manifest["photographs"]["count"], manifest["from_step"]) == (8, 8, 0)
    assert '"stalled": false' in (run / "watchdog/process_00000.txt").read_text()


def test_a_continued_run_equals_an_uninterrupted_one(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(run, tmp_path / "again")
    for step in ("6", "4"):  # dies after step 4 was logged, before it was saved
        shutil.rmtree(tmp_path / "again/checkpoints" / step)
    again = train.train(config_of(), tmp_path / "again")
    with Checkpoints(run) as checkpoints, jax.set_mesh(again.step.sharding.mesh):
        whole = checkpoints.restore(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), again)
        )
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(whole))
    losses = [{step: line["loss"] for step, line in logged(folder).items()} for folder in (run, tmp_path / "again")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_run_that_is_stopped_or_killed_ends_as_an_uninterrupted_one(
    sent, run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """SIGTERM saves and exits with 0; SIGKILL does not; the same command then gives the same bits and the same log."""
    command = [
        sys.executable,
        "-m",
        "uniser_jax.train",
        f"--config={ROOT}/configs/tiny.py",
        f"--workdir={tmp_path}",
        *TINY,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT)
    try:
        wait_until(lambda: (tmp_path / "metrics.jsonl").exists(), process)  # before the first step
        process.send_signal(sent)
        _, error = process.communicate(timeout=240)
    finally:
        process.kill()
    if sent == signal.SIGTERM:
        assert process.returncode == 0, error.decode()
        assert b"asked to stop: saved step" in error or has_checkpoint(tmp_path)
        assert status.read(tmp_path).state in ("stopped", "finished")
    else:
        assert process.returncode == -signal.SIGKILL
        assert status.read(tmp_path).state in ("running", "finished")  # nobody was left to say
    train.train(config_of(), tmp_path)
    assert digests_of(tmp_path) == digests_of(run)
    lines = [
        {step: {k: v for k, v in line.items() if k not in CLOCK} for step, line in logged(folder).items()}
        for folder in (run, tmp_path)
    ]
    assert lines[0] == lines[1]


def test_a_second_start_compiles_nothing_again_and_traces_its_own_steps(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "uniser_jax.train", f"--config={ROOT}/configs/tiny.py", f"--workdir={tmp_path}"]
    few = [flag for flag in TINY if "mesh" not in flag and "steps" not in flag]
    command += [*few, "--config.steps=4", "--config.profile_steps=2,3", "--config.sample_every=0"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"JAX_LOG_COMPILES": "1", "XLA_FLAGS": processes.xla_flags(1)}
    # A fast machine compiles a step this small in less than the second from which jax keeps programs.
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

    def start() -> tuple[bool, list[int]]:
        """Whether the step came from the cache, and the steps of the newest trace."""
        done = subprocess.run(command, stderr=subprocess.PIPE, cwd=ROOT, env=environment, text=True)
        assert done.returncode == 0, done.stderr
        newest = max(tmp_path.glob("profile/plugins/profile/*/*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
        events = json.loads(gzip.decompress(newest.read_bytes()))["traceEvents"]
        steps = sorted({int(event["args"]["step_num"]) for event in events if event.get("name") == "train"})
        return "Persistent compilation cache hit for 'jit_step'" in done.stderr, steps

    assert start() == (False, [2, 3])
    assert list((tmp_path / "compilation_cache").glob("jit_step-*"))
    shutil.rmtree(tmp_path / "checkpoints/4")
    assert start() == (True, [3])


def test_a_continued_run_says_what_changed(run: pathlib.Path, tmp_path: pathlib.Path, caplog, monkeypatch) -> None:
    shutil.copytree(run, tmp_path / "again")
    monkeypatch.setattr(train.manifest, "describe", lambda photos: {"count": 8, "fingerprint": "other"})
    with caplog.at_level("WARNING", "absl"):
        train.train(config_of("--config.optim.lr=0.5", "--config.edit.mixture.strength_min=0.5"), tmp_path / "again")
    assert "config.optim.lr was 0.002 in the checkpoint, now it is 0.5" in caplog.text
    assert "config.edit.mixture.strength_min was 0.25" in caplog.text
    assert "config.steps was" not in caplog.text
    assert "the photographs changed since the checkpoint" in caplog.text
    assert "the code changed" not in caplog.text


def test_a_full_disk_ends_a_run_in_one_line(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    code, error = ends_in(tmp_path, capsys)
    assert code == 1
    assert re.fullmatch(
        r"\[Errno 28\] No space left on device: 1 MiB for a checkpoint of up to 20 MiB: .*; what was saved before is kept",
        error,
    )


def test_a_folder_that_vanishes_ends_a_run_in_one_line(tmp_path, monkeypatch, capsys) -> None:
    workdir = tmp_path / "run"

    def vanish(*_) -> None:
        shutil.rmtree(workdir, ignore_errors=True)
        workdir.write_text("a file where the folder was")

    monkeypatch.setattr(Watchdog, "beat", vanish)
    code, error = ends_in(workdir, capsys)
    assert code == 1
    assert error.endswith("what was saved before is kept")
    assert str(workdir) in error


def test_a_second_run_in_a_folder_is_refused_in_one_line(tmp_path, capsys) -> None:
    holder = f"""
import pathlib, sys
from uniser_jax import train
with train._alone(pathlib.Path({str(tmp_path)!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", holder], cwd=ROOT, **pipes) as first:
        try:
            assert first.stdout.readline() == b"held\n"
            code, error = ends_in(tmp_path, capsys)
        finally:
            first.kill()
    assert code == 2
    assert error == f"another run trains in {tmp_path} on this host: wait for it, or give another --workdir"
    assert not (tmp_path / "checkpoints").exists()
    for _ in range(2):  # the killed one left nothing, and each frees it at its end
        with train._alone(tmp_path):
            pass


def test_a_disk_without_locks_is_no_obstacle(tmp_path: pathlib.Path, monkeypatch) -> None:
    def unsupported(*_) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with train._alone(tmp_path), train._alone(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_ends_a_run_in_one_line(tmp_path, capsys) -> None:
    code, error = ends_in(pathlib.Path("/proc/run"), capsys)
    assert code == 1
    assert "/proc/run" in error


@pytest.mark.parametrize("inside", ["", "run"])
def test_a_file_is_no_folder(inside: str, tmp_path, capsys) -> None:
    (tmp_path / "plain.jpg").touch()
    code, error = ends_in(tmp_path / "plain.jpg" / inside, capsys)
    assert code == 2
    assert error.endswith(f": {tmp_path}/plain.jpg is a file: name a folder")


def ends_in(workdir: pathlib.Path, capsys: pytest.CaptureFixture, *overrides: str) -> tuple[int, str]:
    code = train.main(["--config", str(ROOT / "configs/tiny.py"), "--workdir", str(workdir), *TINY, *overrides])
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("uniser train: ")]
    return code, error.removeprefix("uniser train: ")


def test_batches_of_several_aspects_compile_once_each_and_neither_that_nor_a_trace_is_timed(
    tmp_path, monkeypatch
) -> None:
    steps, shapes, make, stop = [], [], train.make_step, jax.profiler.stop_trace

    def recorded(*arguments):
        step = make(*arguments)
        steps.append(step)
        return lambda state, batch, *more: shapes.append(batch.mask.shape[1:]) or step(state, batch, *more)

    monkeypatch.setattr(train, "make_step", recorded)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: time.sleep(4) or stop())
    overrides = ["--config.steps=9", "--config.log_every=1", "--config.sample_every=9", "--config.data.size=36"]
    overrides += ["--config.profile_steps=8,9", '--config.data.buckets=("1:1", "3:2")']
    state = train.train(config_of(*overrides), tmp_path)
    assert int(state.step) == 9
    assert set(shapes) == {(36, 36), (24, 48)}
    assert steps[0]._cache_size() == 2
    lines = logged(tmp_path)
    assert np.isfinite(lines[9]["loss"])
    first = sorted(shapes.index(one) + 1 for one in set(shapes))
    assert [step for step in lines if "step_seconds" not in lines[step]] == first
    assert lines[9]["step_seconds"] < 4
    assert (tmp_path / "samples/step_000009.png").exists()  # held-out examples are square


def test_a_finished_run_is_left_alone(run: pathlib.Path, tmp_path, caplog) -> None:
    shutil.copytree(run, tmp_path / "again")
    for steps in (6, 5):
        state = train.train(config_of(f"--config.steps={steps}"), tmp_path / "again")
        assert int(state.step) == 6
        assert caplog.messages.count("step 6 is reached already; give more --config.steps") == 1
        assert status.ended(tmp_path / "again") is None
        caplog.clear()
    assert (tmp_path / "again/metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()


def test_a_changed_model_is_refused_in_one_line(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(run, tmp_path / "other")
    with pytest.raises(ValueError, match="does not fit this model") as caught:
        train.train(config_of("--config.model.prompt_length=3"), tmp_path / "other")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.mesh.data=3"], "does not fit 8 devices"),
        (["--config.batch_size=12"], "multiple of 8"),
        (["--config.model.preset=huge"], "tiny, s, b"),
        (["--config.model.attention=flash"], "auto, xla, chunked"),
        (["--config.data.photos=/nowhere"], "no folder of photographs"),
        (["--config.flow.prediction=noise"], "residual, x0, velocity"),
        (["--config.mesh.data=1", "--config.mesh.tensor=8"], "4 attention heads do not divide over tensor = 8"),
        (["--config.mesh.data=2", "--config.mesh.sequence=4"], "2 prompt tokens do not divide over sequence = 4"),
        (["--config.mesh.data=1", "--config.mesh.sequence=8"], "4 image tokens do not divide over sequence = 8"),
        (["--config.model.attention=cudnn"], "needs an NVIDIA GPU, these devices are cpu"),
        (["--config.colour=red"], "colour"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(overrides, message, tmp_path, capsys) -> None:
    arguments = ["--config", str(ROOT / "configs/tiny.py"), "--workdir", str(tmp_path), *TINY, *overrides]
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert sum(line.startswith("uniser train:") for line in error.splitlines()) == 1
    assert "Traceback" not in error
    assert not has_checkpoint(tmp_path)


def test_a_bucket_is_no_folder(capsys) -> None:
    assert train.main(["--config", str(ROOT / "configs/tiny.py"), "--workdir", "gs://bucket/run"]) == 2
    assert "--workdir=gs://bucket/run: expected a folder" in capsys.readouterr().err


def test_what_fails_under_way_is_no_mistake_of_the_caller(
    run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch
) -> None:
    shutil.copytree(run, tmp_path / "again")

    def fail(*_) -> None:
        raise ValueError("a product of 3 and 4 columns")

    monkeypatch.setattr(train.Progress, "report", fail)
    shutil.rmtree(tmp_path / "again/checkpoints/6")
    with pytest.raises(RuntimeError, match="training failed: a product"):
        train.train(config_of(), tmp_path / "again")


def test_a_run_that_diverged_is_not_finished_by_restarts(tmp_path: pathlib.Path, monkeypatch, capsys) -> None:
    """Each start makes fewer steps than may be skipped; all of them together are too many. Launchers know it by its code."""

    def never_finite(*given):
        step = make_step(*given)

        def skipping(*data):
            state, metrics = step(*data)
            return state, metrics | {"skipped": jax.numpy.float32(1)}

        return skipping

    monkeypatch.setattr(train, "make_step", never_finite)
    settings = ["--config.optim.max_skipped=4", "--config.sample_every=0", "--config.checkpoint.best=0"]
    with pytest.raises(FloatingPointError, match="5 updates in a row up to step 5"):
        train.train(config_of(*settings), tmp_path)
    code, error = ends_in(tmp_path, capsys, *settings)
    assert code == 3
    assert re.fullmatch(r"5 updates in a row up to step 5 were not finite; .*; what was saved before is kept", error)
    assert status.newest_checkpoint(tmp_path) == 4
    assert status.read(tmp_path).state == "failed"


def test_an_interrupted_run_saves_and_continues(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "uniser_jax.train", f"--config={ROOT}/configs/tiny.py", f"--workdir={tmp_path}"]
    endless = [flag for flag in TINY if "steps" not in flag and "every" not in flag]
    endless += ["--config.steps=100000", "--config.checkpoint.every=100000", "--config.log_every=1"]
    process = subprocess.Popen([*command, *endless], stderr=subprocess.PIPE, cwd=ROOT)
    try:
        metrics = tmp_path / "metrics.jsonl"
        wait_until(lambda: metrics.exists() and metrics.read_text(), process)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, error.decode()
    assert status.read(tmp_path).state == "stopped"
    assert b"the same command continues" in error
    assert b"Traceback" not in error
    with Checkpoints(tmp_path) as checkpoints:
        saved = checkpoints.latest()
    assert saved is not None
    assert saved >= 1
    state = train.train(config_of(f"--config.steps={saved + 2}"), tmp_path)
    assert int(state.step) == saved + 2
    assert status.read(tmp_path).state == "finished"
    assert status.ended(tmp_path) is None


def test_every_key_of_the_schema_is_read(run: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that nobody reads is a promise that nobody keeps."""
    from uniser_jax.restore.restorer import Restorer

    source = "\n".join(path.read_text() for path in (ROOT / "uniser_jax").rglob("*.py") if path.name != "config.py")
    source += inspect.getsource(schema.schedule)
    assert Restorer.from_checkpoint(run).config == config_of()
    config = schema.defaults()
    for section in config:
        if section in ("flow", "edit", "lora"):  # made from a dataclass, every field of which its class uses
            continue
        value = config[section]
        names = [f"{section}.{key}" for key in value] if hasattr(value, "keys") else [f"config.{section}"]
        for name in names if section != "mesh" else ["config.mesh"]:
            short = name.split(".")[-1]
            assert name in source or f"data.{short}" in source or f"optim.{short}" in (source + optim_source()), name


def optim_source() -> str:
    return (ROOT / "uniser_jax/optim.py").read_text()


def test_no_run_is_one_line(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="no run with a checkpoint"):
        newest_run(tmp_path)
    with pytest.raises(ValueError, match="no checkpoint in"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(None)


def test_only_our_own_messages_are_shown(capsys: pytest.CaptureFixture) -> None:
    log_to_terminal()
    assert logging.get_verbosity() == logging.INFO
