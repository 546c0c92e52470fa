"""All processes of a job live or none does; it starts again, and stops in good order."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from launch import job, local, slurm
from launch.supervise import Policy, Process, Supervisor
from uniser_jax import status

ROOT = pathlib.Path(__file__).parents[2]
ENDLESS = "while true; do sleep 0.05; done"


class Job:
    """Shell scripts as the processes of a job; `done` counts as finished, `step` as the newest checkpoint."""

    def __init__(self, folder: pathlib.Path, *scripts: str, restarts: int = 3, grace: float = 5.0):
        self.folder, self.scripts = folder, scripts
        self.attempts = 0
        policy = Policy(restarts=restarts, grace=grace, pause=0.01)
        self.supervisor = Supervisor(self._processes, self._finished, self._progress, policy)

    def run(self) -> int:
        return self.supervisor.run()

    def _processes(self, attempt: int) -> list[Process]:
        self.attempts = attempt
        environment = {"ATTEMPT": str(attempt)}
        scripts = enumerate(self.scripts)
        return [Process(["bash", "-c", f"cd {self.folder}; {s}"], environment, self.log(i)) for i, s in scripts]

    def log(self, index: int) -> pathlib.Path:
        return self.folder / "logs" / f"{index}.log"

    def _finished(self) -> bool:
        return (self.folder / "done").exists()

    def _progress(self) -> int:
        step = self.folder / "step"
        return int(step.read_text()) if step.exists() else 0


def alive(pid_file: pathlib.Path) -> bool:
    """Whether a process runs, half a second after it may have been killed; a zombie does not."""
    time.sleep(0.5)
    try:
        return (
            pathlib.Path(f"/proc/{pid_file.read_text().strip()}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_finished_job_is_over(tmp_path) -> None:
    job = Job(tmp_path, "touch done", "sleep 0.3")
    assert job.run() == 0
    assert job.attempts == 1


def test_when_one_process_dies_all_end_with_their_children_and_start_again(tmp_path) -> None:
    """The first attempt dies on one side only; the other side has a data worker, which must not live on."""
    dies = "[ $ATTEMPT = 1 ] && { while [ ! -s worker ]; do sleep 0.02; done; kill -9 $$; }; touch done"
    holds = f"[ $ATTEMPT != 1 ] || {{ ({ENDLESS}) & echo $! >worker; {ENDLESS}; }}"
    job = Job(tmp_path, dies, holds)
    assert job.run() == 0
    assert job.attempts == 2
    assert not alive(tmp_path / "worker")


def test_a_process_that_cannot_start_ends_those_that_did(tmp_path) -> None:
    first = Process(["bash", "-c", f"echo $$ >{tmp_path}/pid; {ENDLESS}"], {}, tmp_path / "0.log")
    second = Process([str(tmp_path / "missing")], {}, tmp_path / "1.log")
    with pytest.raises(FileNotFoundError):
        Supervisor(lambda _: [first, second], lambda: False, lambda: 0, Policy()).run()
    assert not (tmp_path / "pid").exists() or not alive(tmp_path / "pid")


def test_it_gives_up_after_failures_without_progress(tmp_path) -> None:
    job = Job(tmp_path, "exit 4", restarts=2)
    assert job.run() == 1
    assert job.attempts == 3


def test_progress_forgives_earlier_failures(tmp_path) -> None:
    job = Job(tmp_path, "echo $ATTEMPT >step; [ $ATTEMPT = 6 ] && touch done && exit 0; exit 4", restarts=1)
    assert job.run() == 0
    assert job.attempts == 6


@pytest.mark.parametrize("code", [2, 3], ids=["mistake", "diverged"])
def test_what_would_end_alike_is_not_tried_again(tmp_path, code) -> None:
    job = Job(tmp_path, f"exit {code}", ENDLESS)
    assert job.run() == code
    assert job.attempts == 1


@pytest.mark.parametrize("name", ["INT", "QUIT"])  # number 2 and 3
def test_a_signal_is_none_of_these_codes(tmp_path, name) -> None:
    job = Job(tmp_path, f"[ $ATTEMPT = 2 ] && touch done || kill -{name} $$")
    assert job.run() == 0
    assert job.attempts == 2


def test_an_earlier_run_excuses_no_failure(tmp_path) -> None:
    (tmp_path / "done").touch()
    assert Job(tmp_path, "exit 4", restarts=1).run() == 1
    assert Job(tmp_path, "exit 2").run() == 2
    assert Job(tmp_path, "exit 0").run() == 0


def finished_run(folder: pathlib.Path, steps: int) -> pathlib.Path:
    (folder / f"checkpoints/{steps}").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"config": {"steps": steps}}))
    return folder


@pytest.mark.parametrize(("override", "code"), [("steps=5", 0), ("steps=10", 75)])
def test_finished_are_the_steps_that_were_asked_for(tmp_path, monkeypatch, override, code) -> None:
    """With a trainer that ends at once, as if it had been told to stop."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    run = finished_run(tmp_path / "run", 5)
    command = ["--config=configs/tiny.py", f"--workdir={run}", "--restarts=0"]
    assert local.main([*command, f"--config.{override}"]) == code


def test_a_config_that_is_refused_starts_nothing(tmp_path, capsys) -> None:
    run = finished_run(tmp_path, 5)
    assert local.main(["--config=configs/tiny.py", f"--workdir={run}", "--config.optim.rl=1"]) == 2
    assert "rl" in capsys.readouterr().err
    assert not (run / "logs").exists()


def test_exit_code_0_before_the_end_is_a_preemption_and_goes_on(tmp_path) -> None:
    job = Job(tmp_path, "echo $ATTEMPT >step; [ $ATTEMPT = 5 ] && touch done; exit 0", restarts=1)
    assert job.run() == 0
    assert job.attempts == 5


def test_a_stop_that_came_from_another_host_is_none_of_its_failures(tmp_path) -> None:
    """Its trainer saved at the step that all hosts found; a launcher that may not restart says so with 75."""
    assert Job(tmp_path, "echo 1 >step; exit 0", restarts=0).run() == 75


def test_logs_of_all_processes_and_attempts_are_kept(tmp_path, capfdbinary) -> None:
    job = Job(
        tmp_path,
        "echo first; sleep 0.2; [ $ATTEMPT = 2 ] && touch done && exit 0; exit 1",
        "echo second; sleep 0.5; [ $ATTEMPT = 2 ]",
    )
    assert job.run() == 0
    assert job.log(0).read_text().count("first\n") == 2
    assert job.log(1).read_text().count("second\n") == 2
    assert capfdbinary.readouterr().err.count(b"first\n") == 2  # process 0 is shown


def stop_when(job: Job, name: str, number: int = signal.SIGTERM) -> threading.Thread:
    """Signals this process, as a scheduler would the supervisor, once all processes have written a file."""

    def wait() -> None:
        while len(list(job.folder.glob(name))) < len(job.scripts):
            time.sleep(0.02)
        signal.raise_signal(number)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_reaches_all_and_they_may_save(tmp_path, number) -> None:
    saves = f"trap 'sleep 0.3; echo saved >saved_%d; exit 0' TERM; touch ready_%d; {ENDLESS}"
    job = Job(tmp_path, saves % (0, 0), saves % (1, 1))
    thread = stop_when(job, "ready_*", number)
    assert job.run() == 75
    thread.join()
    assert job.attempts == 1
    assert (tmp_path / "saved_0").exists()
    assert (tmp_path / "saved_1").exists()


def test_after_the_grace_period_it_kills(tmp_path) -> None:
    job = Job(tmp_path, f"trap '' TERM; echo $$ >pid; touch ready; {ENDLESS}", grace=0.5)
    thread = stop_when(job, "ready")
    start = time.monotonic()
    assert job.run() == 75
    thread.join()
    assert time.monotonic() - start < 4
    assert not alive(tmp_path / "pid")


def test_a_run_folder_has_one_launcher_even_when_that_is_killed(tmp_path, capsys) -> None:
    """The lock lives in the processes it started, too: no second trainer beside an orphan."""
    code = f"""
        import pathlib, sys
        from launch import local
        from launch.supervise import *
        run = pathlib.Path({str(tmp_path)!r})
        with local.lock(run) as held:
            work = [Process(["bash", "-c", "echo $$ >{tmp_path}/pid; {ENDLESS}"], {{}}, run / "log")]
            Supervisor(lambda _: work, lambda: False, lambda: 0, Policy(), keep=(held,)).run()
    """
    launcher = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.02)
    assert local.held(tmp_path)
    launcher.kill()
    launcher.wait()
    assert local.held(tmp_path)
    assert local.main(["--config=configs/tiny.py", f"--workdir={tmp_path}"]) == 2
    assert "another launcher trains in" in capsys.readouterr().err
    subprocess.run(["kill", "-9", (tmp_path / "pid").read_text().strip()], check=True)
    deadline = time.monotonic() + 5
    while local.held(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.02)


JOINED = """
    import sys
    from uniser_jax import hosts
    hosts.join()
    import jax, numpy as np
    from jax.experimental import multihost_utils
    ranks = multihost_utils.process_allgather(np.array([jax.process_index()])).ravel().tolist()
    assert (jax.device_count(), jax.local_device_count(), ranks) == (4, 2, [0, 1]), ranks
    open(sys.argv[1] + f"/joined_{jax.process_index()}", "w").close()
    multihost_utils.sync_global_devices("end")
"""


def local_job(workdir: pathlib.Path, code: str, *options: str) -> Supervisor:
    parser = job.parser("test", None)
    for option in ("--processes", "--fake-devices", "--gpus"):
        parser.add_argument(option, type=int)
    arguments, _ = job.parse(parser, ["--config=c", f"--workdir={workdir}", *options])
    make = local.processes(arguments, [sys.executable, "-c", textwrap.dedent(code), str(workdir)])
    return Supervisor(make, lambda: len(list(workdir.glob("joined_*"))) == 2, lambda: 0, Policy(restarts=0, grace=20))


def test_local_processes_find_each_other(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert local_job(tmp_path, JOINED, "--processes=2", "--fake-devices=2").run() == 0


def test_processes_under_slurm_find_each_other(tmp_path, monkeypatch) -> None:
    """The batch script, with an srun that starts two tasks here and describes them as Slurm does."""
    (tmp_path / "joined.py").write_text(textwrap.dedent(JOINED.replace("(4, 2,", "(2, 1,")))
    programs = {
        "python": f'#!/bin/bash\nexec {sys.executable} {tmp_path}/joined.py {tmp_path} "$@"\n',
        "srun": "#!/bin/bash\n"
        "while [[ $1 == --* ]]; do shift; done\n"
        "export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1\n"
        'for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids+=($!); done\n'
        "code=0; for pid in ${pids[@]}; do wait $pid || code=$?; done; exit $code\n",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    python = f"--python={tmp_path}/python"
    parser = slurm.options()
    arguments, overrides = job.parse(parser, ["--nodes=1", "--gpus=2", python, "--config=c", f"--workdir={tmp_path}"])
    (tmp_path / "script").write_text(slurm.script(arguments, overrides))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(ROOT)
    assert subprocess.run(["bash", tmp_path / "script"], timeout=120).returncode == 0
    assert len(list(tmp_path.glob("joined_*"))) == 2


def test_part_of_a_pod_does_not_train(monkeypatch) -> None:
    from uniser_jax import hosts

    with pytest.raises(ValueError, match="sees 8 devices and was promised 16"):
        hosts.join({"UNISER_LOCAL_DEVICES": "16"})
    monkeypatch.setattr("jax.distributed.initialize", lambda **_: None)
    with pytest.raises(ValueError, match="1 processes joined and the launcher promised 4"):
        hosts.join({"UNISER_PROCESSES": "4"})
    hosts.join({})
    hosts.join({"UNISER_PROCESSES": "1", "UNISER_LOCAL_DEVICES": "8"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes=2"], "must not fight"),
        (["--processes=0"], "at least 1"),
        (["--conf=x"], "unexpected argument '--conf=x'"),
    ],
)
def test_mistakes_are_one_line(options, message, tmp_path, capsys) -> None:
    assert local.main(["--config=configs/tiny.py", f"--workdir={tmp_path}", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("code", "earlier", "left"),
    [(0, True, None), (1, True, "failed"), (2, False, "failed"), (2, True, None), (75, True, "stopped")],
)
def test_a_launcher_tells_what_the_trainer_cannot(code, earlier, left, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(local.Supervisor, "run", lambda _: code)
    if earlier:  # or under way: a mistake is none of its
        finished_run(tmp_path, steps=3)
    assert local.main(["--config=configs/tiny.py", f"--workdir={tmp_path}"]) == code
    assert status.ended(tmp_path) == left


def test_a_batch_that_does_not_spread_starts_nothing(tmp_path, capsys, monkeypatch) -> None:
    command = ["--config=configs/tiny.py", f"--workdir={tmp_path}/run", "--fake-devices=4", "--processes=2"]
    command += ["--config.batch_size=12", "--dry-run"]
    assert local.main(command) == 2
    assert "slice * data * fsdp = 8 devices" in capsys.readouterr().err
    monkeypatch.setenv("UNISER_PROCESSES", "4")  # this host is one of several
    assert local.main(command) == 0
    assert not (tmp_path / "run").exists()


def test_gpus_are_those_that_are_shown(tmp_path, capsys, monkeypatch) -> None:
    command = ["--processes=2", "--gpus=2", "--config=configs/tiny.py", f"--workdir={tmp_path}", "--dry-run"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-a,6,7,8")
    assert local.main(command) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "CUDA_VISIBLE_DEVICES=4,GPU-a " in first
    assert "CUDA_VISIBLE_DEVICES=6,7 " in second
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert local.main(command) == 2
    assert "4 GPUs were asked for, and CUDA_VISIBLE_DEVICES=4,5,6 shows 3" in capsys.readouterr().err


def test_a_dry_run_prints_what_each_process_gets(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setenv("SLURM_LOCALID", "0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    options = ["--processes=2", "--gpus=4", "--config=configs/tiny.py", f"--workdir={tmp_path}", "--config.steps=7"]
    assert local.main([*options, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "CUDA_VISIBLE_DEVICES=0,1,2,3" in lines[0]
    assert "CUDA_VISIBLE_DEVICES=4,5,6,7" in lines[1]
    assert all(f"uniser_jax.train --config=configs/tiny.py --workdir={tmp_path} --config.steps=7" in s for s in lines)
    assert not list(tmp_path.iterdir())
