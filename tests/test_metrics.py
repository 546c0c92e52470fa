import json
import pathlib

import numpy as np
from tensorboardX import SummaryWriter  # noqa: F401  (its import must not warn)

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


def test_progress_averages_over_the_interval() -> None:
    progress = Progress(0, 100, batch_size=4)
    count = np.zeros(10)
    count[9] = 4
    for loss in (1.0, 3.0):
        progress.add(
            {
                "loss": np.float32(loss),
                "loss_effect_sum": np.array([loss * 2, 0, 0, 0, 0]),
                "loss_effect_count": np.array([2, 0, 0, 0, 0]),
                "loss_t_sum": loss * count,
                "loss_t_count": count,
            },
            waited=0.0,
        )
    scalars = progress.report(2)
    assert scalars["loss"] == 2
    assert scalars[f"loss/effect={EFFECTS[0]}"] == 2
    assert f"loss/effect={EFFECTS[1]}" not in scalars  # none was seen
    assert scalars["loss/t=0.9"] == 2
    assert scalars["images_per_second"] == 4 * scalars["steps_per_second"]
    assert scalars["data_wait"] == 0


def test_duration_reads_like_a_clock() -> None:
    assert [duration(s) for s in (5, 65, 3_665)] == ["0:05", "1:05", "1:01:05"]
