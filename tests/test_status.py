"""What `uniser status` reads from run folders, and how fast."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from uniser_jax import cli, status

NOW = 1_000_000.0


def make_run(
    folder: pathlib.Path,
    steps: int = 100,
    lines: int = 3,
    checkpoint: int | None = 20,
    age: float = 5.0,
    **config: float,
) -> pathlib.Path:
    """A run folder as the trainer leaves it, with everything written `age` seconds before NOW."""
    folder.mkdir()
    manifest = {"restarts": 2, "config": {"steps": steps, "log_every": 10, "stall_seconds": 60.0, **config}}
    (folder / "run.json").write_text(json.dumps(manifest))
    metrics = [
        {"step": 10 * (k + 1), "loss": 1 / (k + 1), "images_per_second": 8.0, "steps_per_second": 2.0, "mfu": 0.43}
        for k in range(lines)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    paths = [folder / "run.json", folder / "metrics.jsonl"]
    if checkpoint is not None:
        (folder / "checkpoints" / str(checkpoint)).mkdir(parents=True)
        (folder / "checkpoints" / f"{checkpoint + 10}.orbax-checkpoint-tmp").mkdir()
        paths.append(folder / "checkpoints" / str(checkpoint))
    for path in paths:
        os.utime(path, (NOW - age, NOW - age))
    return folder


def test_a_running_run(tmp_path) -> None:
    found = status.read(make_run(tmp_path / "run"), NOW)
    assert (found.state, found.step, found.steps, found.loss, found.restarts) == ("running", 30, 100, 1 / 3, 2)
    assert (found.checkpoint, found.checkpoint_age, found.age) == (20, 5.0, 5.0)
    assert (found.images_per_second, found.mfu, found.tflops_per_chip) == (8, 0.43, None)


def test_a_run_is_finished_when_its_last_step_is_saved_and_silent_when_it_does_not_speak(tmp_path) -> None:
    assert status.read(make_run(tmp_path / "a", checkpoint=100), NOW).state == "finished"
    assert status.finished(tmp_path / "a")
    assert not status.finished(tmp_path / "a", steps=200)
    assert status.read(make_run(tmp_path / "b", age=61), NOW).state == "silent"
    assert not status.finished(tmp_path / "b")
    slow = make_run(tmp_path / "c", age=61, log_every=100)  # a line every 50 s
    assert status.read(slow, NOW).state == "running"


@pytest.mark.parametrize("line", [b'{"step": 40, "lo', b'{"step": 40, "l\xff": 1}\n', b"[40]\n", b'"loss"\n'])
def test_a_line_cut_short_or_damaged_is_passed_over(line: bytes, tmp_path) -> None:
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(line)
    assert status.read(run, NOW).step == 30
    with (tmp_path / "sweep.jsonl").open("wb") as file:
        file.write(b'{"run": "run"}\n{"run": "later"}\n{"run": 7}\n' + line)
    assert status.runs_in(tmp_path) == [tmp_path / "later", run]


@pytest.mark.parametrize("left", ["", '{"restarts": 2, "config": {"st', "[]"], ids=["empty", "cut", "list"])
def test_a_manifest_that_cannot_be_read_is_passed_over_and_the_checkpoint_asked(left, tmp_path, caplog) -> None:
    run = make_run(tmp_path / "run", checkpoint=20)
    (run / "run.json").write_text(left)
    assert not status.finished(run)
    assert status.main([str(run)]) == 0
    assert len(caplog.messages) == 2  # one a call
    record = run / "checkpoints/20/record"
    record.mkdir()
    (record / "metadata").write_text(json.dumps({"config": {"steps": 20}}))
    found = status.read(run, NOW)
    assert (found.state, found.steps, found.restarts) == ("finished", 20, None)
    assert status.finished(run)


def test_how_a_run_ended_is_told_until_it_goes_on(tmp_path) -> None:
    run = make_run(tmp_path / "run")
    for failed, state in ((False, "stopped"), (True, "failed")):
        status.end(run, failed)
        assert (status.ended(run), status.read(run, NOW).state) == (state, state)
    assert status.table([status.read(run, NOW)]).splitlines()[1].split()[7] == "-"  # no time is left
    (run / "ended").write_bytes(b"\xff")  # damaged
    assert status.read(run, NOW).state == "running"
    status.begin(run)
    assert status.read(run, NOW).state == "running"
    status.end(make_run(tmp_path / "whole", checkpoint=100), failed=True)
    assert status.read(tmp_path / "whole", NOW).state == "finished"
    (tmp_path / "early").mkdir()
    status.end(tmp_path / "early", failed=True)  # before it wrote a manifest
    assert status.read(tmp_path / "early").state == "failed"
    assert status.runs_in(tmp_path) == [tmp_path / "early", run, tmp_path / "whole"]
    status.end(tmp_path / "missing", failed=True)
    assert not (tmp_path / "missing").exists()


def test_a_folder_without_a_run_is_one_line(tmp_path, capsys) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    record = tmp_path / "base/checkpoints/0/record"
    record.mkdir(parents=True)
    (record / "metadata").write_text(json.dumps({"base": {"params": {}}}))
    told = {"photos": "no run in '{}': expected a run folder, or", "base": "'{}' is a converted base, for config.model"}
    for name, text in told.items():
        assert status.main([str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("uniser status: " + text.format(tmp_path / name))
        assert error.count("\n") == 1
    (tmp_path / "sweep.jsonl").write_text('{"run": "photos"}\n')  # a sweep lists it
    assert status.runs_in(tmp_path / "photos") == [tmp_path / "photos"]
    (tmp_path / "started/checkpoints").mkdir(parents=True)  # by nobody's launcher, and compiles
    assert status.read(status.runs_in(tmp_path / "started")[0]).state == "new"


def test_long_logs_are_read_from_their_end(tmp_path) -> None:
    run = make_run(tmp_path / "run", lines=20_000)
    assert status.read(run, NOW).step == 200_000


def test_what_is_not_there_yet_is_not_told(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    found = status.read(tmp_path / "empty", NOW)
    assert found.state == "new"
    assert (found.step, found.loss, found.checkpoint, found.age) == (None, None, None, None)
    assert "empty" in status.table([found])


def test_the_table_is_aligned(tmp_path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "longer", age=3_700, checkpoint=None)]
    lines = status.table([status.read(run, NOW) for run in runs]).splitlines()
    head = "run state step loss images/s TFLOP/s MFU left checkpoint restarts"
    assert lines[0].split() == head.split()
    assert lines[1].split() == [
        str(runs[0]),
        *["running", "30/100", "0.3333", "8.0", "-", "43%", "35s", "20,", "5s", "ago", "2"],
    ]
    assert lines[2].split()[1:5] == ["silent", "for", "1h01m", "30/100"]
    assert len({line.index("30/100") for line in lines[1:]}) == 1


def test_a_folder_of_runs_shows_all_of_them(tmp_path, capsys) -> None:
    for name in ("b", "a"):
        make_run(tmp_path / name)
    (tmp_path / "sweep.md").touch()
    assert status.runs_in(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert status.runs_in(tmp_path / "a") == [tmp_path / "a"]
    assert status.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("30/100") == 2


def test_runs_of_a_sweep_that_never_started_are_not_finished(tmp_path, capsys) -> None:
    make_run(tmp_path / "a", checkpoint=100)
    (tmp_path / "base/checkpoints/0").mkdir(parents=True)  # a converted one, no run
    assert status.main(["--finished", str(tmp_path)]) == 0
    (tmp_path / "b/logs").mkdir(parents=True)  # its launcher refused it
    assert status.main(["--finished", str(tmp_path)]) == 1
    assert status.runs_in(tmp_path / "b") == [tmp_path / "b"]
    rows = [json.dumps({"run": name}) + "\n" for name in ("a", "b", "c")]
    (tmp_path / "sweep.jsonl").write_text("".join(rows))  # the third waited when the sweep was killed
    assert status.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["finished", "new", "new"]
    (tmp_path / "b/logs").rmdir()
    (tmp_path / "b").rmdir()
    assert status.main(["--finished", str(tmp_path)]) == 1


def test_durations_have_two_units() -> None:
    assert [status.duration(s) for s in (5, 70, 3_700, 200_000)] == ["5s", "1m10s", "1h01m", "2d07h"]


def test_the_command_line(tmp_path, capsys) -> None:
    run = str(make_run(tmp_path / "run"))
    assert cli.main(["status", run]) == 0
    assert "30/100" in capsys.readouterr().out
    assert cli.main(["status", run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"] == 20
    assert cli.main(["status", run, "--finished"]) == 1
    assert cli.main(["status", str(tmp_path / "missing")]) == 2
    assert capsys.readouterr().err == f"uniser status: no run folder at '{tmp_path}/missing'\n"


@pytest.mark.parametrize("module", ["uniser_jax.status", "uniser_jax.cli", "launch.local", "launch.supervise"])
def test_watching_does_not_pay_for_jax(module) -> None:
    code = f"import sys, {module}; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pathlib.Path(__file__).parent.parent)
