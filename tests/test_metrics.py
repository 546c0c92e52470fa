import errno
import itertools
import json
import os
import pathlib
import re
import threading

import numpy as np
import pytest
from tensorboardX import record_writer  # its import must not warn
from tensorboardX.proto import event_pb2

from tests import processes
from uniser_jax import metrics
from uniser_jax.data.schedule import fixed
from uniser_jax.metrics import CLOCK, Clock, MetricsWriter, Progress
from uniser_jax.types import EFFECTS


def lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_logs_no_step_twice(tmp_path: pathlib.Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        for step in (10, 20, 30):
            writer.scalars(step, {"loss": step / 10})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    with MetricsWriter(tmp_path, start=20) as writer:
        writer.scalars(30, {"loss": 9.0})
    assert lines(tmp_path) == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}, {"step": 30, "loss": 9.0}]


@pytest.mark.parametrize("damage", [b'{"step": 10, "lo\xff": 1}', b"\x00\xfe\x80", b'{"step": "ten"}', b"[10]"])
def test_a_damaged_line_costs_only_itself(tmp_path: pathlib.Path, damage: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 9, "loss": 1.0}\n' + damage + b'\n{"step": 11, "loss": 2.0}\n')
    with MetricsWriter(tmp_path, start=20):
        pass
    assert lines(tmp_path) == [{"step": 9, "loss": 1.0}, {"step": 11, "loss": 2.0}]


def test_values_that_json_cannot_hold_become_null(tmp_path: pathlib.Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(1, {"loss": float("nan")})
    assert lines(tmp_path) == [{"step": 1, "loss": None}]


def test_tensorboard_events_are_written(tmp_path: pathlib.Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(1, {"loss": 1.0})
        writer.image(1, "grid", np.zeros((8, 8, 3), np.uint8))
    events = list((tmp_path / "tensorboard").iterdir())
    assert len(events) == 1
    assert b"grid" in events[0].read_bytes()


def test_tensorboard_shows_no_step_twice(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.time, "time", itertools.count(100).__next__)  # a file is named by its second
    for start, losses in ((0, {10: 1.0, 20: 2.0, 30: 3.0}), (20, {30: 9.0})):
        with MetricsWriter(tmp_path, start=start) as writer:
            for step, loss in losses.items():
                writer.scalars(step, {"loss": loss})
    files = sorted((tmp_path / "tensorboard").iterdir())
    events = [event for file in files for event in events_of(file)]
    assert [event.file_version for event in events if event.file_version] == ["brain.Event:2"] * 2
    assert [event.step for event in events if event.HasField("session_log")] == [1, 21]  # hides later ones before it
    shown = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
    assert shown == [(10, "loss", 1.0), (20, "loss", 2.0), (30, "loss", 3.0), (30, "loss", 9.0)]


def events_of(file: pathlib.Path) -> list[event_pb2.Event]:
    """Of a file of records: a length in eight bytes, four of its sum, the event and four of its sum."""
    data, events = file.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


full_disk = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")


@full_disk
@pytest.mark.parametrize("steps", [2, 1_000])
def test_a_full_disk_is_an_error_where_it_is_written_to(tmp_path: pathlib.Path, monkeypatch, steps: int) -> None:
    monkeypatch.setattr(record_writer, "open_file", lambda _: open("/dev/full", "wb"))  # noqa: SIM115

    errors: list[OSError] = []

    def write() -> None:
        try:
            with MetricsWriter(tmp_path) as writer:
                for step in range(steps):
                    writer.scalars(step, {"loss": 1.0})
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=write, daemon=True)  # a writer that waits for ever must not stop the tests
    thread.start()
    thread.join(20)
    assert [(error.errno, error.filename) for error in errors] == [(errno.ENOSPC, str(tmp_path))]
    assert len(lines(tmp_path)) < 1_000  # it is found under way, or at the end


@full_disk
def test_what_ends_a_run_is_not_hidden_by_a_full_disk(tmp_path: pathlib.Path, monkeypatch) -> None:
    monkeypatch.setattr(record_writer, "open_file", lambda _: open("/dev/full", "wb"))  # noqa: SIM115

    def diverge() -> None:
        with MetricsWriter(tmp_path) as writer:
            writer.scalars(1, {"loss": 1.0})
            raise FloatingPointError("diverged")

    with pytest.raises(FloatingPointError, match="diverged"):
        diverge()


def step_metrics(loss: float, skipped: bool = False) -> dict[str, np.ndarray]:
    count = np.zeros(10, np.float32)
    count[9] = 4
    metrics = {
        "loss": np.float32(loss),
        "loss_effect_sum": np.array([loss * 2, 0, 0, 0, 0], np.float32),
        "loss_effect_count": np.array([2, 0, 0, 0, 0], np.float32),
        "loss_t_sum": loss * count,
        "loss_t_count": count,
    }
    metrics = {key: value * (not skipped) for key, value in metrics.items()}
    return metrics | {"skipped": np.float32(skipped)}


def add(progress: Progress, metrics: dict[str, np.ndarray], flops: int = 0) -> None:
    with progress.step((4, 8, 8, 3)):
        progress.add(metrics, 0.0, flops)


def test_progress_averages_over_the_interval() -> None:
    progress = Progress(0, 100, fixed(8, 4).indices)
    for loss in (1.0, 3.0):
        add(progress, step_metrics(loss))
    scalars = progress.report(2)
    assert scalars["loss"] == 2
    assert scalars[f"loss/effect={EFFECTS[0]}"] == 2
    assert f"loss/effect={EFFECTS[1]}" not in scalars  # none was seen
    assert scalars["loss/t=0.9"] == 2
    assert scalars["images_per_second"] == 4 * scalars["steps_per_second"]
    assert scalars["data_wait"] == 0


def test_what_was_not_logged_when_a_run_died_is_logged_by_its_successor() -> None:
    losses = (0.1, 0.7, 0.2)
    whole, first = Progress(4, 100, fixed(8, 4).indices), Progress(4, 100, fixed(8, 4).indices)
    for loss in losses:
        add(whole, step_metrics(loss))
    for loss in losses[:2]:
        add(first, step_metrics(loss))
    second = Progress(6, 100, fixed(8, 4).indices, pending=json.loads(json.dumps(first.record()))["pending"])
    add(second, step_metrics(losses[2]))
    one, two = whole.report(7), second.report(7)
    assert {k: v for k, v in one.items() if k not in CLOCK} == {k: v for k, v in two.items() if k not in CLOCK}


def test_skipped_updates_are_named_do_not_count_and_stop_a_run_that_diverged(caplog) -> None:
    progress = Progress(10, 100, fixed(8, 4).indices, max_skipped=2)
    for loss, skipped in ((1.0, False), (5.0, True), (3.0, False)):
        add(progress, step_metrics(loss, skipped))
    scalars = progress.report(13)
    assert scalars["loss"] == 2
    assert scalars["skipped"] == 1
    assert "step 12" in caplog.text
    assert "examples 44 to 47" in caplog.text
    for _ in range(2):
        add(progress, step_metrics(1.0, True))
    assert np.isnan(progress.report(15)["loss"])  # nothing counted
    add(progress, step_metrics(1.0, True))
    with pytest.raises(FloatingPointError, match="3 updates in a row up to step 16"):
        progress.report(16)


def test_skipped_updates_in_a_row_count_on_after_a_restart() -> None:
    first = Progress(0, 100, fixed(8, 4).indices, max_skipped=3)
    for step, reported in ((1, True), (2, False)):  # the second waits for its report
        add(first, step_metrics(1.0, True))
        if reported:
            first.report(step)
    saved = json.loads(json.dumps(first.record()))
    assert saved["skipped_in_a_row"] == 1
    kept = {"pending": saved["pending"], "skipped": saved["skipped_in_a_row"]}
    second = Progress(2, 100, fixed(8, 4).indices, max_skipped=3, **kept)
    for _ in range(2):
        add(second, step_metrics(1.0, True))
    with pytest.raises(FloatingPointError, match="4 updates in a row up to step 4"):
        second.report(4)


class Time:
    """A clock that only moves when it is told to, for `uniser_jax.metrics`."""

    def __init__(self):
        self.now, self.behind = 1_000.0, 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now - self.behind


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    monkeypatch.setattr(metrics, "time", Time())
    return metrics.time


def timed(clock: Time, progress: Progress, seconds: float, waited: float = 0.0, flops: int = 0, side: int = 8) -> None:
    """A step of so many seconds behind a wait for its data."""
    clock.now += waited
    with progress.step((4, side, side, 3)):
        clock.now += seconds - waited
        progress.add(step_metrics(1.0), waited, flops)


def test_only_steps_are_timed_and_the_first_compiles(clock: Time, caplog) -> None:
    caplog.set_level("INFO", "absl")
    progress = Progress(0, 100, fixed(8, 4).indices, clock=Clock(clock.now), chips=2, peak=4e12)
    clock.now += 50  # the start
    for seconds in (30, 2, 2):
        timed(clock, progress, seconds, waited=0.5, flops=8 * 10**12)
    with progress.aside():
        clock.now += 10  # a sample
    scalars = progress.report(3)
    assert scalars["step_seconds"] == 2
    assert (scalars["steps_per_second"], scalars["images_per_second"], scalars["data_wait"]) == (0.5, 2, 0.25)
    assert (scalars["tflops_per_chip"], scalars["mfu"]) == (2, 0.5)
    assert scalars["goodput"] == 4 / 94
    line = "2.000 s/step  2.0 images/s  data wait 25%  2 TFLOP/s per chip  MFU 50.0%  goodput 4%  3m14s left"
    assert caplog.messages[-1] == f"step 3/100  loss 1.0000  {line}"


def test_the_first_step_of_each_shape_compiles_and_is_not_timed(clock: Time) -> None:
    progress = Progress(0, 100, fixed(8, 4).indices, clock=Clock(clock.now))
    for seconds, side in ((30, 8), (2, 8), (40, 12), (3, 12), (1, 8)):
        timed(clock, progress, seconds, waited=1, flops=10**12, side=side)
    assert progress.record()["clock"]["kept_seconds"] == 2 + 3 + 1
    scalars = progress.report(5)
    assert (scalars["step_seconds"], scalars["images_per_second"], scalars["data_wait"]) == (2, 2, 0.5)
    assert (scalars["tflops_per_chip"], scalars["goodput"]) == (0.5, 6 / 76)
    timed(clock, progress, 50, side=16)
    assert set(CLOCK) & set(progress.report(6)) == {"goodput"}


def test_a_chip_without_a_known_peak_has_no_mfu(clock: Time) -> None:
    progress = Progress(0, 100, fixed(8, 4).indices, clock=Clock(clock.now))
    add(progress, step_metrics(1.0), flops=5)
    assert "tflops_per_chip" not in progress.report(1)  # the first step says nothing
    clock.now += 1
    add(progress, step_metrics(1.0), flops=5)
    assert set(CLOCK) - set(progress.report(2)) == {"mfu"}


def test_goodput_counts_kept_steps_since_the_first_start(clock: Time) -> None:
    began = clock.now
    first = Progress(0, 100, fixed(8, 4).indices, clock=Clock(began))
    for _ in range(5):
        clock.now += 10
        add(first, step_metrics(1.0))
    saved = json.loads(json.dumps(first.record()))["clock"]  # 40 s of steps were kept
    clock.now += 100  # steps that die with the process, and the time until someone sees it
    second = Progress(5, 100, fixed(8, 4).indices, clock=Clock(began, saved))
    for _ in range(6):
        clock.now += 10
        add(second, step_metrics(1.0))
    assert second.report(11)["goodput"] == (40 + 50) / (50 + 100 + 60)
    assert Clock(clock.now, saved).state() == {
        "first_start": began,
        "kept_seconds": 40.0,
    }  # the folder's manifest was lost


def test_goodput_stays_a_share_where_a_clock_was_moved_back(clock: Time) -> None:
    saved = {"first_start": clock.now, "kept_seconds": 40.0}
    clock.now += 60
    clock.behind = 5_000.0
    progress = Progress(5, 100, fixed(8, 4).indices, clock=Clock(clock.time(), saved))
    for _ in range(3):
        clock.now += 10
        add(progress, step_metrics(1.0))
    assert progress.report(8)["goodput"] == (40 + 20) / (40 + 30)


SLOW = """
import os, signal, sys, time
import jax
from uniser_jax import train
from uniser_jax.data import pipeline

def batches(examples, start, *more):
    for step, batch in enumerate(pipeline.batches(examples, start, *more), start + 1):
        if jax.process_index() == 1:
            time.sleep(1)
            if step == 10:
                os.kill(os.getpid(), signal.SIGTERM)
        yield batch

train.batches = batches
sys.exit(train.main(sys.argv[1:]))
"""


def test_data_wait_is_that_of_the_slowest_process_which_all_name_until_one_is_stopped(tmp_path: pathlib.Path) -> None:
    small = ["batch_size=2", "data.size=24", "model.prompt_length=2", "mesh.data=2", "log_every=2", "sample_every=0"]
    flags = ["--config=configs/tiny.py", f"--workdir={tmp_path}", *(f"--config.{flag}" for flag in small)]
    results = processes.run([["-c", SLOW, *flags]] * 2, devices=1, seconds=240)
    for code, error in results:
        assert code == 0, error
        assert "asked to stop" in error
        waits = re.findall(r"data wait (\d+)%( on process 1)?", error)
        assert len(waits) >= 4
        # The last ones: at first batches lie there, made while the step compiled, more of them on a slower machine.
        assert all(int(share) > 40 and slowest for share, slowest in waits[-2:]), waits
    assert all(line["data_wait"] > 0.4 for line in lines(tmp_path)[-2:])
