"""A step that hangs says where, and which host the others wait for."""

import json
import logging
import threading
import time

import pytest

from uniser_jax.watchdog import Watchdog, behind


@pytest.fixture(autouse=True)
def _messages(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="absl")


def wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stall_logs_all_stacks_once_and_the_end_of_it(tmp_path, caplog) -> None:
    release = threading.Event()
    stuck = threading.Thread(target=lambda: release.wait(20), name="stuck")
    stuck.start()
    report = tmp_path / "process_00003.txt"
    with Watchdog(tmp_path, 0.2, process=3, processes=4, step=7) as watchdog:
        watchdog.beat(8)
        wait_for(lambda: "no report from" in caplog.text)
        time.sleep(0.3)  # and not again
        assert caplog.text.count("has made no step") == 1
        assert "process 3 on" in caplog.text
        assert "the last was 8" in caplog.text
        assert caplog.text.count("test_watchdog.py") >= 2  # the stuck thread, and this one
        assert json.loads(report.read_text().splitlines()[0])["step"] == 8
        watchdog.beat(9)
        assert "moves again, at step 9" in caplog.text
        assert report.read_text().count("\n") == 1
        wait_for(lambda: report.read_text().count("\n") > 1)  # it watches on
    release.set()
    stuck.join()


def test_a_run_that_moves_says_nothing(tmp_path, caplog) -> None:
    with Watchdog(tmp_path / "watchdog", 0.4) as watchdog:
        for step in range(12):
            time.sleep(0.05)
            watchdog.beat(step)
    assert not caplog.records
    assert json.loads((tmp_path / "watchdog/process_00000.txt").read_text())["stalled"] is False


def test_zero_never_watches(tmp_path) -> None:
    before = threading.active_count()
    with Watchdog(tmp_path / "watchdog", 0.0):
        assert threading.active_count() == before
    assert not (tmp_path / "watchdog").exists()


@pytest.mark.parametrize(
    ("steps", "busy", "processes", "expected"),
    [
        ({0: 12, 1: 12, 2: 11, 3: 12}, (), 4, "behind: process 2 on host2, at step 11; the others are at 12"),
        ({0: 12, 1: 12}, (), 2, "all 2 processes wait at step 12"),
        ({0: 12, 1: 9, 2: 12}, (1,), 3, "no report from process 1 on host1: dead, or still busy; the others wait"),
        ({0: 12, 2: 12}, (), 3, "no report from process 1: dead, or still busy; the others wait"),
        ({0: 12, 1: 12, 2: 3}, (), 2, "all 2 processes wait at step 12"),  # process 2 is of an earlier, larger run
    ],
)
def test_which_host_is_behind(steps, busy, processes, expected, tmp_path) -> None:
    for process, step in steps.items():
        who = {"process": process, "host": f"host{process}", "step": step, "stalled": process not in busy}
        (tmp_path / f"process_{process:05d}.txt").write_text(json.dumps(who) + "\nstacks\n")
    (tmp_path / "process_00009.txt").write_text('{"proce')  # is being written
    assert behind(tmp_path, processes) == expected
