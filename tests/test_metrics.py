import json
import pathlib

import numpy as np
import pytest
from tensorboardX import SummaryWriter  # noqa: F401  (its import must not warn)

from uniser_jax.data.schedule import fixed
from uniser_jax.metrics import MetricsWriter, Progress, duration
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


def test_progress_averages_over_the_interval() -> None:
    progress = Progress(0, 100, fixed(8, 4).indices)
    for loss in (1.0, 3.0):
        progress.add(step_metrics(loss), waited=0.0)
    scalars = progress.report(2)
    assert scalars["loss"] == 2
    assert scalars[f"loss/effect={EFFECTS[0]}"] == 2
    assert f"loss/effect={EFFECTS[1]}" not in scalars  # none was seen
    assert scalars["loss/t=0.9"] == 2
    assert scalars["images_per_second"] == 4 * scalars["steps_per_second"]
    assert scalars["data_wait"] == 0


def test_duration_reads_like_a_clock() -> None:
    assert [duration(s) for s in (5, 65, 3_665)] == ["0:05", "1:05", "1:01:05"]


def test_what_was_not_logged_when_a_run_died_is_logged_by_its_successor() -> None:
    losses = (0.1, 0.7, 0.2)
    whole, first = Progress(4, 100, fixed(8, 4).indices), Progress(4, 100, fixed(8, 4).indices)
    for loss in losses:
        whole.add(step_metrics(loss), 0.0)
    for loss in losses[:2]:
        first.add(step_metrics(loss), 0.0)
    second = Progress(6, 100, fixed(8, 4).indices, pending=json.loads(json.dumps(first.pending())))
    second.add(step_metrics(losses[2]), 0.0)
    one, two = whole.report(7), second.report(7)
    timed = ("steps_per_second", "images_per_second", "data_wait")
    assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in two.items() if k not in timed}


def test_skipped_updates_are_named_do_not_count_and_stop_a_run_that_diverged(caplog) -> None:
    progress = Progress(10, 100, fixed(8, 4).indices, max_skipped=2)
    for loss, skipped in ((1.0, False), (5.0, True), (3.0, False)):
        progress.add(step_metrics(loss, skipped), 0.0)
    scalars = progress.report(13)
    assert scalars["loss"] == 2
    assert scalars["skipped"] == 1
    assert "step 12" in caplog.text
    assert "examples 44 to 47" in caplog.text
    for _ in range(2):
        progress.add(step_metrics(1.0, True), 0.0)
    assert np.isnan(progress.report(15)["loss"])  # nothing counted
    progress.add(step_metrics(1.0, True), 0.0)
    with pytest.raises(FloatingPointError, match="3 updates in a row up to step 16"):
        progress.report(16)
