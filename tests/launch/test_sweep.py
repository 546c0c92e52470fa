"""Sweeps: their helpers, stable names, and runs that are skipped, continued, adopted and told about."""

import argparse
import dataclasses
import json
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import cv2
import pytest

from launch import report, sweep, sweeps
from launch.sweep import Sweep, Trial
from launch.sweeps import choice, log_uniform, over, product, random_search, uniform, zip_
from uniser_jax import config as schema
from uniser_jax import status

ROOT = pathlib.Path(__file__).parents[2]
SWEEP = str(ROOT / "configs/sweep.py")

# A launcher that needs no jax: it holds the folder as launch.local does, counts its starts, and trains ten steps.
LAUNCHER = """
import json, os, pathlib, sys, time
sys.path.insert(0, {root!r})
from launch import local
run, seconds, code = pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
with local.lock(run, gpus.split(",")):
    (run / "gpus").write_text(gpus)
    with (run / "starts").open("a") as file:
        file.write("x")
    time.sleep(seconds)
    with (run / "metrics.jsonl").open("a") as file:
        for step in (5, 10):
            file.write(json.dumps({{"step": step, "loss": len(run.name) / step}}) + "\\n")
    if not code:
        (run / "checkpoints/10").mkdir(parents=True)
sys.exit(code)
"""


def trials(folder: pathlib.Path, *names: str, seconds: float = 0.0, code: int = 0) -> list[Trial]:
    script = folder / "launcher.py"
    script.write_text(LAUNCHER.format(root=str(ROOT)))
    return [
        Trial(
            {"optim.lr": 0.1 * i},
            folder / n,
            10,
            [sys.executable, str(script), str(folder / n), str(seconds), str(code)],
        )
        for i, n in enumerate(names)
    ]


def run(folder: pathlib.Path, found: list[Trial], parallel: int = 2) -> int:
    arguments = argparse.Namespace(workdir=folder, parallel=parallel, metric="loss", best="min")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return Sweep(found, arguments).run()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def starts(trial: Trial) -> int:
    path = trial.workdir / "starts"
    return len(path.read_text()) if path.exists() else 0


def test_helpers_combine() -> None:
    a, b = over("a.x", 1, 2), over("b", "p", "q")
    assert list(product(a, b)) == [{"a.x": x, "b": y} for x in (1, 2) for y in ("p", "q")]
    assert list(zip_(a, b)) == [{"a.x": 1, "b": "p"}, {"a.x": 2, "b": "q"}]
    assert list(product(zip_(a, b), over("c", 0))) == [{"a.x": 1, "b": "p", "c": 0}, {"a.x": 2, "b": "q", "c": 0}]
    with pytest.raises(ValueError, match="shorter"):
        list(zip_(a, over("b", "p")))
    with pytest.raises(ValueError, match=r"a\.x is given twice"):
        list(product(a, a))


def test_random_search_grows_without_change_and_keeps_its_bounds() -> None:
    draws = {"lr": log_uniform(1e-4, 1e-2), "b2": uniform(0.9, 0.99), "preset": choice("s", "b")}
    few, many = list(random_search(5, draws)), list(random_search(200, draws))
    assert many[:5] == few
    assert list(random_search(5, draws, seed=1)) != few
    assert all(1e-4 <= one["lr"] <= 1e-2 and 0.9 <= one["b2"] <= 0.99 for one in many)
    assert {one["preset"] for one in many} == {"s", "b"}
    below = sum(one["lr"] < 1e-3 for one in many)  # half of them, on a logarithmic scale
    assert 70 < below < 130
    assert all(one["lr"] == float(f"{one['lr']:.3g}") for one in many)


def test_names_come_from_the_overrides_alone() -> None:
    assert sweep.name_of({"optim.lr": 1e-4, "optim.ema": 0.99}) == "lr=0.0001,ema=0.99"
    assert sweep.name_of({"a.seed": 1, "b.seed": 2}) == "a.seed=1,b.seed=2"
    strange = [sweep.name_of({"data.photos": path}) for path in ("/data/a b", "/data/a:b", "x" * 500, "x" * 501)]
    assert len(set(strange)) == 4
    assert all("/" not in name and len(name) < 200 for name in strange)


def test_a_config_is_planned_and_checked(tmp_path) -> None:
    found = sweep.plan(SWEEP, tmp_path, "local", ["--config.steps=7", "--fake-devices=2"])
    assert len(found) == 8
    assert len({trial.workdir for trial in found}) == 8
    assert all(trial.steps == 7 for trial in found)
    command = list(found[0].command)
    assert command[1:3] == ["-m", "launch.local"]
    assert command[3:] == [
        f"--config={SWEEP}",
        f"--workdir={tmp_path}/lr=0.0003,b2=0.95",
        "--config.steps=7",
        "--fake-devices=2",
        "--config.optim.lr=0.0003",
        "--config.optim.b2=0.95",
    ]
    assert "--wait" in sweep.plan(SWEEP, tmp_path, "slurm", [])[0].command
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("launcher", ["slurm", "xpk"])
def test_jobs_of_a_sweep_share_a_prefix_and_no_name(launcher, tmp_path, capsys) -> None:
    """A job ends what has its name (XPK), or waits for it (Slurm)."""
    options = ["--cluster=c", "--tpu=v5e:2x4", "--image=i", "--storage=runs"] if launcher == "xpk" else []
    command = [f"--config={SWEEP}", f"--workdir={tmp_path}", f"--launcher={launcher}", "--dry-run", *options]
    assert sweep.main([*command, "--name=trial"]) == 0
    names = re.findall(r"--name=(\S+)", capsys.readouterr().out)
    assert len(set(names)) == 8
    assert all(re.fullmatch(r"trial-lr-[-0-9]+b2-[-0-9]+-[0-9a-f]{8}", name) and len(name) <= 40 for name in names)
    assert sweep.main([*command, "--name=Trial"]) == 2
    assert "--name=Trial: expected at most 40" in capsys.readouterr().err


@pytest.mark.parametrize("checkpoint", [7, 5, None], ids=["finished", "broken", "new"])
def test_a_run_stands_only_for_what_it_was_trained_with(checkpoint, tmp_path) -> None:
    flags = ["--config.steps=7", "--config.log_every=5"]
    folder = sweep.plan(SWEEP, tmp_path, "local", flags)[0].workdir
    folder.mkdir()
    if checkpoint is not None:
        (folder / f"checkpoints/{checkpoint}").mkdir(parents=True)
    trained = schema.read(SWEEP, [*flags, "--config.optim.lr=0.0003", "--config.optim.b2=0.95"])
    (folder / status.MANIFEST).write_text(json.dumps({"config": trained.to_dict()}))
    assert sweep.plan(SWEEP, tmp_path, "local", ["--config.steps=7"])  # it only logged otherwise
    assert sweep.plan(SWEEP, tmp_path, "local", ["--config.steps=9"])[0].state() != "finished"  # and goes on
    others = ["--config.optim.weight_decay=5.0", "--config.seed=3", "--config.steps=9"]
    message = (
        f"{re.escape(str(folder))} was trained with optim.weight_decay = 0.01, not 5.0; seed = 0, not 3: name another"
    )
    with pytest.raises(ValueError, match=message):
        sweep.plan(SWEEP, tmp_path, "local", [*flags, *others])
    with pytest.raises(ValueError, match="with steps = 7, not 6: name another --workdir, or delete this run"):
        sweep.plan(SWEEP, tmp_path, "local", ["--config.steps=6"])


def test_a_run_that_lost_its_manifest_stands_for_what_its_checkpoint_tells(tmp_path) -> None:
    trial = sweep.plan(SWEEP, tmp_path, "local", [])[0]
    record = trial.workdir / "checkpoints/5/record/metadata"
    record.parent.mkdir(parents=True)
    config = schema.read(SWEEP, [f"--config.{key}={value}" for key, value in trial.overrides.items()])
    config.seed = 4
    record.write_text(schema.to_json(config).join(('{"config": ', "}")))
    with pytest.raises(ValueError, match="was trained with seed = 4, not 0: name another"):
        sweep.plan(SWEEP, tmp_path, "local", [])


@pytest.mark.parametrize(
    ("launcher", "options", "message"),
    [
        ("slurm", ["--gpu=4"], "unexpected argument '--gpu=4'"),
        ("slurm", ["--nodes=two"], "argument --nodes: invalid int value: 'two'"),
        ("slurm", ["--nodes=0"], "--nodes=0: expected at least 1"),
        ("slurm", ["--workdir=runs/sweep"], "give an absolute path on a disk that all hosts share"),
        ("xpk", ["--image=i", "--tpu=v5e:2x4", "--cluster=c"], "mount a shared disk"),
        ("xpk", ["--image=i", "--gpu=h100", "--kubectl", "--no-disk"], "h100:8"),
        ("xpk", ["--image=i", "--tpu=v5e:2x4", "--no-disk"], "--cluster is missing"),
        ("xpk", ["--tpu=v5e:2x4"], "the following arguments are required: --image"),
        ("local", ["--processes=2"], "must not fight for the same devices"),
    ],
)
def test_what_the_launcher_would_refuse_starts_no_run(
    launcher, options, message, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sweep.main([f"--config={SWEEP}", f"--workdir={tmp_path}/sweep", f"--launcher={launcher}", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_values_of_numpy_are_those_of_python(tmp_path) -> None:
    config = tmp_path / "config.py"
    values = "over('seed', *np.arange(2)), over('optim.lr', *np.geomspace(0.5, 1, 2)), over('data.photos', np.str_('samples'))"
    imports = "import numpy as np\nfrom launch.sweeps import over, product\nfrom uniser_jax import config as schema\n"
    defaults = "def get_config(argument=None): return schema.defaults()\n"
    config.write_text(f"{imports}{defaults}def sweep(): yield from product({values})\n")
    found = sweep.plan(str(config), tmp_path / "sweep", "local", [])
    assert found[3].workdir.name == "seed=1,lr=1.0,photos=samples"
    assert {type(value) for trial in found for value in trial.overrides.values()} == {int, float, str}
    rows = [report.row(trial.workdir, trial.overrides, "new", "loss", "min") for trial in found]
    report.write(tmp_path / "sweep", rows, "loss", "min")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "has no sweep()"),
        ("def sweep(): yield from ()", "has no sweep()"),
        ("def sweep(): yield {'optim.rl': 1}", "rl"),
        ("def sweep(): yield {'optim.lr': 'fast'}", "fast"),
        ("def sweep(): yield {'seed': 1}; yield {'seed': 1}", "seed=1 twice"),
    ],
)
def test_mistakes_are_one_line(body, message, tmp_path, capsys) -> None:
    config = tmp_path / "config.py"
    text = "from uniser_jax import config as schema\ndef get_config(argument=None): return schema.defaults()\n"
    config.write_text(text + body + "\n")
    assert sweep.main([f"--config={config}", f"--workdir={tmp_path}/sweep"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


def test_finished_runs_are_skipped_and_broken_ones_continued(tmp_path, capsys) -> None:
    done, broken, _ = found = trials(tmp_path, "done", "broken", "new")
    (done.workdir / "checkpoints/10").mkdir(parents=True)
    (broken.workdir / "checkpoints/5").mkdir(parents=True)
    (broken.workdir / "checkpoints/9.orbax-checkpoint-tmp").mkdir()  # half a save is none
    assert [trial.state() for trial in found] == ["finished", "broken", "new"]
    assert run(tmp_path, found) == 0
    assert [starts(trial) for trial in found] == [0, 1, 1]
    assert run(tmp_path, found) == 0
    assert [starts(trial) for trial in found] == [0, 1, 1]
    assert "3 runs, 3 of them finished" in capsys.readouterr().err


def test_a_failed_run_stops_no_other_and_is_tried_again_next_time(tmp_path) -> None:
    found = [*trials(tmp_path, "bad", code=1), *trials(tmp_path, "good")]
    assert run(tmp_path, found, parallel=1) == 1
    rows = [json.loads(line) for line in (tmp_path / "sweep.jsonl").read_text().splitlines()]
    assert [row["state"] for row in rows] == ["failed", "finished"]
    assert run(tmp_path, trials(tmp_path, "bad", "good")) == 0
    assert starts(found[0]) == 2
    assert starts(found[1]) == 1


def shell(folder: pathlib.Path, script: str) -> Trial:
    """A run whose launcher is a shell script in its folder."""
    return Trial({"seed": 0}, folder / "run", 10, ["bash", "-c", f"cd {folder}/run; {script}"])


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("echo; echo 'launch.slurm: no such partition'; echo", "launch.slurm: no such partition"),
        ("echo why; echo 'launch: attempt 3 ended with exit code 1; gives up'", "why"),
        ("echo late >logs/host_1.log; echo 'launch.slurm: sbatch failed' | tee logs/slurm_1.log", "late"),
        ("true", "see RUN/logs"),
    ],
)
def test_a_failed_run_says_why_on_the_terminal(script, line, tmp_path, capsys) -> None:
    trial = shell(tmp_path, f"{script}; exit 1")
    trial.log.parent.mkdir(parents=True)
    trial.log.write_text("an earlier reason\n")
    assert run(tmp_path, [trial]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == f"sweep: run: failed: {line.replace('RUN', str(trial.workdir))}"


def test_a_run_that_left_nothing_here_has_not_failed(tmp_path, capsys) -> None:
    """As one in pods whose disk is not mounted where the sweep runs."""
    trial = shell(tmp_path, "true")
    assert run(tmp_path, [trial]) == 1
    assert f"run: unseen: finished elsewhere? no run.json in {trial.workdir}\n" in capsys.readouterr().err
    assert "| 0 | unseen |" in (tmp_path / "sweep.md").read_text()
    trial = shell(tmp_path, "echo '{}' >run.json")  # its launcher only says that it has ended
    assert run(tmp_path, [trial]) == 1
    assert "run: failed" in capsys.readouterr().err


def test_a_sweep_survives_its_own_death(tmp_path) -> None:
    """Killed while two runs are under way: these go on, and the next sweep waits for them and starts the third only."""
    code = f"""
        import pathlib, sys
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests/launch")!r}]
        import test_sweep as t
        t.run(pathlib.Path({str(tmp_path)!r}), t.trials(pathlib.Path({str(tmp_path)!r}), "a", "b", "c", seconds=4))
    """
    first = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    found = trials(tmp_path, "a", "b", "c")
    deadline = time.monotonic() + 60
    while not all(starts(trial) for trial in found[:2]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    assert [trial.state() for trial in found] == ["running", "running", "new"]
    assert run(tmp_path, found) == 0
    assert [starts(trial) for trial in found] == [1, 1, 1]


def test_a_run_that_breaks_under_an_earlier_sweep_is_tried_by_the_next(tmp_path) -> None:
    earlier = trials(tmp_path, "a", seconds=2, code=1)[0]
    process = subprocess.Popen(earlier.command)
    while not starts(earlier):
        time.sleep(0.02)
    found = trials(tmp_path, "a")
    assert run(tmp_path, found) == 0
    assert starts(found[0]) == 2
    assert process.wait() == 1


def test_a_sweep_that_is_told_to_stop_tells_its_runs(tmp_path) -> None:
    found = trials(tmp_path, "a", "b", seconds=60)

    def stop() -> None:
        while not starts(found[0]):
            time.sleep(0.02)
        signal.raise_signal(signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert run(tmp_path, found, parallel=1) == 75
    thread.join()
    assert [starts(trial) for trial in found] == [1, 0]
    assert found[0].state() == "new"


def test_runs_at_a_time_share_no_gpu(tmp_path, monkeypatch) -> None:
    """Nor with one of an earlier sweep, which is adopted last."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    found = [dataclasses.replace(trial, gpus=2) for trial in trials(tmp_path, "a", "b", "c", seconds=3)]
    process = subprocess.Popen(found[2].command)
    while not starts(found[2]):
        time.sleep(0.02)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert run(tmp_path, found, parallel=2) == 0
    process.wait()
    assert [starts(trial) for trial in found] == [1, 1, 1]
    assert (found[0].workdir / "gpus").read_text() == "2,3"
    assert (found[1].workdir / "gpus").read_text() == "0,1"
    with pytest.raises(ValueError, match="6 GPUs were asked for"):
        run(tmp_path, found, parallel=3)


def test_a_plan_counts_gpus(tmp_path) -> None:
    assert sweep.plan(SWEEP, tmp_path, "local", ["--gpus=4", "--processes=2"])[0].gpus == 8
    assert sweep.plan(SWEEP, tmp_path, "local", ["--fake-devices=4"])[0].gpus == 0
    assert sweep.plan(SWEEP, tmp_path, "slurm", ["--gpus=4"])[0].gpus == 0


def rows_of(tmp_path: pathlib.Path, curves: dict[float, list[tuple[int, float]]]) -> list[dict]:
    rows = []
    for lr, curve in curves.items():
        folder = tmp_path / f"lr={lr}"
        folder.mkdir()
        lines = [json.dumps({"step": step, "loss": loss}) for step, loss in curve]
        (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 99, "lo']))
        rows.append(report.row(folder, {"optim.lr": lr, "preset": "s" if lr < 0.1 else "b"}, "finished", "loss", "min"))
    return rows


def test_the_table_ranks_by_the_best_value(tmp_path) -> None:
    rows = rows_of(tmp_path, {0.1: [(1, 3.0), (2, 2.5)], 0.01: [(1, 2.0), (2, 2.25)], 1.0: []})
    table = report.markdown(rows, "loss", "min").splitlines()
    assert table[0] == "| optim.lr | preset | state | step | final loss | best loss | at step |"
    assert table[2] == "| 0.01 | s | finished | 2 | 2.25 | 2 | 1 |"
    assert table[3] == "| 0.1 | b | finished | 2 | 2.5 | 2.5 | 2 |"
    assert table[4] == "| 1.0 | b | finished |  |  |  |  |"
    report.write(tmp_path, rows, "loss", "min")
    assert (tmp_path / "sweep.md").read_text().splitlines() == table
    saved = [json.loads(line) for line in (tmp_path / "sweep.jsonl").read_text().splitlines()]
    assert saved[1]["overrides"] == {"optim.lr": 0.01, "preset": "s"}
    assert (saved[1]["final"], saved[1]["best"], saved[1]["best_step"]) == (2.25, 2.0, 1)


def test_the_plot_has_a_panel_for_the_curves_and_one_per_parameter(tmp_path) -> None:
    rows = rows_of(tmp_path, {0.1: [(1, 3.0), (2, 2.5)], 0.01: [(1, 2.0), (2, 2.25)], 1.0: []})
    report.write(tmp_path, rows, "loss", "min")
    image = cv2.imread(str(tmp_path / "sweep.png"))
    assert image.shape == (640, 960, 3)
    panels = [image[y : y + 320, x : x + 480] for y in (0, 320) for x in (0, 480)]
    saturation = [int(cv2.cvtColor(panel, cv2.COLOR_BGR2HSV)[..., 1].max()) for panel in panels]
    assert all(value > 100 for value in saturation[:3])
    assert saturation[3] == 0  # nothing to show there
    one = rows_of(tmp_path, {5.0: [(1, 1.0)]})
    assert report.plot(one, "loss", "min").shape == (320, 960, 3)  # a single point has a range, too


def test_the_example_in_the_docstring_works() -> None:
    body = sweeps.__doc__.partition("\n\n")[2]
    scope = {
        name: getattr(sweeps, name) for name in ("over", "product", "zip_", "random_search", "log_uniform", "choice")
    }
    exec(textwrap.dedent(body), scope)
    assert len(list(scope["sweep"]())) == 14
