"""What gcloud, xpk, kubectl and sbatch are asked for, against stand-ins that record it."""

import json
import pathlib
import re
import shlex
import shutil
import subprocess

import pytest

from launch import accelerators, job, slurm, tpu_vm, xpk

ROOT = pathlib.Path(__file__).parents[2]
TRAINER = ["--config=configs/tiny.py", "--workdir=/runs/a b", "--config.optim.lr=3e-4", "--config.steps=7"]
SLICE = {
    "state": "READY",
    "health": "HEALTHY",
    "networkEndpoints": [{"ipAddress": f"10.0.0.{index}"} for index in range(4)],
}
TWO_SLICES = ["--slices=2", "--config.mesh.slice=2", "--config.batch_size=32"]
LAUNCHERS = {
    "slurm": (slurm.main, ["--nodes=2", "--gpus=4", "--sbatch=--qos=high"]),
    "xpk": (xpk.main, ["--cluster=c", "--tpu=v5e:4x4", "--image=i", "--storage=runs", "--replace", "--wait"]),
    "kubectl": (
        xpk.main,
        ["--kubectl", "--gpu=h100:8", "--nodes=2", "--image=i", "--claim=runs", "--mount=/runs", "--replace"],
    ),
    "tpu_vm": (tpu_vm.main, ["--tpu-name=pod", "--zone=z", "--create=v5e:4x4", "--spot"]),
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all changes of this clone were committed."""
    monkeypatch.setattr("uniser_jax.manifest.revision", lambda: "0" * 40)


def shown(output: str) -> list[dict]:
    """The commands that a dry run printed, as the stand-ins would record them."""
    commands = []
    lines = iter(output.splitlines())
    for line in lines:
        text = None
        if line.endswith(" <<'END'"):
            line, text = line.removesuffix(" <<'END'"), ""
            while (more := next(lines)) != "END":
                text += more + "\n"
            text = text.rstrip()
        commands.append({"argv": shlex.split(line.removesuffix(" || true")), "text": text})
    return commands


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_dry_run_prints_exactly_what_runs(name, programs, capsys, monkeypatch, tmp_path) -> None:
    main, options = LAUNCHERS[name]
    programs.answer("describe", output=json.dumps(SLICE))
    options, trainer = ([word.replace("/runs", str(tmp_path)) for word in words] for words in (options, TRAINER))
    assert main([*options, *trainer, "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert programs.calls() == []
    assert main([*options, *trainer]) == 0
    ran = [{**call, "text": call["text"] and call["text"].rstrip()} for call in programs.calls()]
    archive = re.compile(r".*/(?=uniser-jax\.tar\.gz$)")  # each time in another folder
    ran = [{**call, "argv": [archive.sub("FOLDER/", word) for word in call["argv"]]} for call in ran]
    expected = [command for command in shown(dry.replace("HOSTS", "4")) if command["argv"][0] != "git"]
    assert ran == expected


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_config_is_passed_through_untouched(name, programs, capsys) -> None:
    main, options = LAUNCHERS[name]
    assert main([*options, *TRAINER, "--dry-run"]) == 0
    output = capsys.readouterr().out
    if name == "kubectl":
        manifest = json.loads(shown(output)[-1]["text"])
        command = pod(manifest)["containers"][0]["command"]
    else:
        line = next(line for line in output.splitlines() if "launch.local" in line)
        quoted = next((word for word in shlex.split(line) if "launch.local" in word and " " in word), line)
        command = shlex.split(quoted.strip("{}; "))
    start = command.index(TRAINER[0])
    assert command[start : start + len(TRAINER)] == TRAINER
    assert command[command.index("-m") : start][:2] == ["-m", "launch.local"]


@pytest.mark.parametrize(
    ("name", "extra", "message"),
    [
        ("slurm", ["--config.optim.rl=1"], "rl"),
        ("slurm", ["--nodez=2"], "unexpected argument '--nodez=2'"),
        ("slurm", ["--nodes=0"], "at least 1"),
        ("slurm", ["--name=Not_A_Name"], "a letter first"),
        ("slurm", ["--config.batch_size=12"], "= 8 devices in 1 microbatches; use a multiple of 8"),
        ("slurm", ["--config.model.attention=splash"], "needs a TPU, these devices are GPUs"),
        ("xpk", ["--tpu=v5e:16x16"], "= 256 devices in 1 microbatches; use a multiple of 256"),
        ("xpk", ["--slices=2"], "set config.mesh.slice=2"),
        ("xpk", ["--slices=0"], "--slices=0: expected at least 1"),
        ("xpk", ["--config.mesh.data=3"], "does not fit 16 devices"),
        ("kubectl", ["--config.mesh.data=2", "--config.mesh.tensor=8"], "do not divide over tensor = 8"),
        ("tpu_vm", ["--create=v5e:8x8"], "= 64 devices in 1 microbatches; use a multiple of 64"),
        ("tpu_vm", [f"--workdir={__file__}/x"], "is a file: name a folder"),
        ("xpk", ["--tpu=v5litepod-16"], "v5e:4x4"),
        ("xpk", ["--tpu=v5e:3x1"], "do not fill hosts"),
        ("xpk", ["--namespace=n"], "need --kubectl"),
        ("kubectl", ["--gpu=h100"], "h100:8"),
        ("kubectl", ["--spot"], "XPK's"),
        ("kubectl", ["--workdir=/disk/x"], "lies outside the claim, which is mounted at /runs"),
        ("tpu_vm", ["--workdir=runs/x"], ": give an absolute path"),
        ("tpu_vm", ["--workdir=gs://bucket/x"], "mount the bucket"),
        ("tpu_vm", ["--config=configs/missing.py"], "no config file"),
    ],
)
def test_mistakes_are_one_line_and_nothing_runs(name, extra, message, programs, capsys) -> None:
    main, options = LAUNCHERS[name]
    assert main([*options, *TRAINER, *extra]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert programs.calls() == []


def test_tokens_of_a_base_that_is_elsewhere_must_spread(capsys) -> None:
    klein = ["--config=configs/klein.py:base=/runs/base,photos=/runs/photos", "--workdir=/runs/klein"]
    pod = ["--kubectl", "--claim=runs", "--tpu=v5e:16x16", "--image=i", "--dry-run", *klein]
    for spread, batch_size, code in ((1, 128, 2), (1, 256, 0), (2, 128, 0), (32, 128, 2)):
        settings = [f"--config.mesh.sequence={spread}", f"--config.batch_size={batch_size}"]
        assert xpk.main([*pod, *settings]) == code
    assert "16 prompt tokens do not divide over sequence = 32" in capsys.readouterr().err


def test_nothing_is_asked_for_what_only_stops(programs) -> None:
    where = ["--tpu-name=pod", "--zone=z"]
    assert tpu_vm.main([*where, "--stop"]) == 0
    assert len(programs.calls()) == 1
    assert tpu_vm.main(where) == 2


def test_paths_outside_the_claim_are_told(capsys) -> None:
    main, options = LAUNCHERS["kubectl"]
    paths = ["--config.data.photos=array_record:/data/*.array_record", "--config.data.pairs=/runs/pairs"]
    assert main([*options, *TRAINER, *paths, "--config.init_from=/runs2/x", "--dry-run"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" = ")[0] for line in lines] == [
        "launch.xpk: config.data.photos",
        "launch.xpk: config.init_from",
    ]
    assert "'/runs2/x' lies outside the claim, which is mounted at /runs: the image must hold it" in lines[1]


@pytest.mark.parametrize(
    ("options", "told", "other"),
    [
        (["--cluster=c", "--tpu=v5e:4x4"], "--storage", "--claim=runs"),
        (["--kubectl", "--gpu=h100:8"], "--claim", "--storage=runs"),
    ],
)
def test_a_run_that_no_disk_keeps_is_refused_unless_told(options, told, other, programs, capsys) -> None:
    for given in ([], [other]):
        assert xpk.main([*options, "--image=i", *given, *TRAINER]) == 2
        error = capsys.readouterr().err
        assert f"mount a shared disk, {told}=" in error
        assert error.count("\n") == 1
        assert programs.calls() == []
    assert xpk.main([*options, "--image=i", "--no-disk", *TRAINER]) == 0


def test_a_missing_program_is_one_line(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    main, options = LAUNCHERS["kubectl"]
    assert main([*options, *TRAINER]) == 2
    assert "kubectl is not installed here" in capsys.readouterr().err


def test_nothing_to_replace_is_no_failure(programs) -> None:
    programs.answer("xpk", "delete", code=1)
    main, options = LAUNCHERS["xpk"]
    assert main([*options, *TRAINER]) == 0
    assert [call["argv"][2] for call in programs.calls()] == ["delete", "create", "list"]
    programs.answer("xpk", "create", code=1)
    assert main([*options, *TRAINER]) == 1


def test_xpk_starts_again_neither_a_mistake_nor_a_run_that_diverged(programs) -> None:
    main, options = LAUNCHERS["xpk"]
    assert main([*options, *TRAINER]) == 0
    (codes,) = [
        word for call in programs.calls() for word in call["argv"] if word.startswith("--restart-on-exit-codes=")
    ]
    assert codes == "--restart-on-exit-codes=1,75"


def test_a_slice_is_counted() -> None:
    found = accelerators.tpu("v5e:4x4")
    assert (found.device_type, found.hosts, found.chips) == ("v5litepod-16", 4, 4)
    assert accelerators.tpu("v5p:4x4x4").device_type == "v5p-128"  # cores
    assert accelerators.tpu("v5p:4x4x4").hosts == 16
    assert accelerators.tpu("v5e:1x1").hosts == 1


@pytest.mark.parametrize(
    ("options", "version"),
    [
        (["--create=v4:2x2x2"], "tpu-ubuntu2204-base"),
        (["--create=v5e:4x4"], "v2-alpha-tpuv5-lite"),
        (["--create=v5p:2x2x2"], "v2-alpha-tpuv5"),
        (["--create=v6e:4x4"], "v2-alpha-tpuv6e"),
        (["--create=v6e:4x4", "--version=mine"], "mine"),
    ],
)
def test_a_slice_gets_the_runtime_of_its_generation(options, version, capsys) -> None:
    assert tpu_vm.main(["--tpu-name=pod", "--zone=z", *options, *TRAINER, "--dry-run"]) == 0
    assert f"--version={version}" in shown(capsys.readouterr().out)[0]["argv"]


def test_hosts_without_a_python_are_refused_before_anything_is_installed(programs, capsys) -> None:
    programs.answer("describe", output=json.dumps(SLICE))
    programs.answer("for python in", code=1)
    assert tpu_vm.main(["--tpu-name=pod", "--zone=z", *TRAINER]) == 2
    error = capsys.readouterr().err
    assert "not every host has Python 3.11 with venv as python3.11 or python3.12" in error
    assert error.count("\n") == 1
    assert [call["argv"][4] for call in programs.calls()] == ["describe", "ssh"]


def test_the_first_python_that_is_new_enough_is_taken(tmp_path, monkeypatch) -> None:
    for name, code in (("python3.11", 1), ("python3.12", 0), ("my python", 0)):
        (tmp_path / name).write_text(f"#!/bin/bash\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    bash = shutil.which("bash")
    monkeypatch.setenv("PATH", str(tmp_path))

    def found(given: str | None) -> tuple[int, str]:
        ended = subprocess.run([bash, "-c", tpu_vm.has_python(given)], capture_output=True, text=True, timeout=20)
        return ended.returncode, ended.stdout.strip()

    assert found(None) == (0, str(tmp_path / "python3.12"))
    assert found(str(tmp_path / "my python")) == (0, str(tmp_path / "my python"))
    assert found("python3.11") == (1, "")
    assert found("python3.99") == (1, "")


@pytest.mark.parametrize(
    "found",
    [
        {**SLICE, "state": "CREATING"},
        {**SLICE, "health": "UNHEALTHY_TENSORFLOW"},
        {**SLICE, "networkEndpoints": [*SLICE["networkEndpoints"], {}]},
        {**SLICE, "networkEndpoints": []},
    ],
)
def test_a_slice_that_is_not_whole_is_refused(found, programs, capsys) -> None:
    programs.answer("describe", output=json.dumps(found))
    assert tpu_vm.main(["--tpu-name=pod", "--zone=z", *TRAINER]) == 2
    assert "nothing was started" in capsys.readouterr().err
    assert [call["argv"][4] for call in programs.calls()] == ["describe"]


@pytest.mark.parametrize(
    ("revision", "config", "message"),
    [
        ("abc+changes", "configs/tiny.py", "files differ from it"),
        (None, "configs/tiny.py", "this is no clone"),
        ("abc", "mine.py", "has no mine.py"),
        ("abc", f"{ROOT}/configs/tiny.py", "which has no /"),
    ],
)
def test_what_is_not_committed_is_refused(revision, config, message, programs, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("uniser_jax.manifest.revision", lambda: revision)
    if config == "mine.py":
        (tmp_path / config).write_bytes((ROOT / "configs/tiny.py").read_bytes())
        monkeypatch.chdir(tmp_path)
    assert tpu_vm.main(["--tpu-name=pod", "--zone=z", f"--config={config}", *TRAINER[1:]]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert programs.calls() == []


def test_the_archive_leaves_nothing_behind(programs, monkeypatch, tmp_path) -> None:
    programs.answer("describe", output=json.dumps(SLICE))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    assert tpu_vm.main(["--tpu-name=pod", "--zone=z", *TRAINER]) == 0
    (copied,) = [call["argv"] for call in programs.calls() if "scp" in call["argv"]]
    assert any(word.startswith(f"{tmp_path}/tmp/") for word in copied)
    assert not list((tmp_path / "tmp").iterdir())


def test_a_host_that_trains_already_is_left_alone(programs, capsys) -> None:
    programs.answer("describe", output=json.dumps(SLICE))
    programs.answer("kill -0", "test -s", code=1)
    assert tpu_vm.main(["--tpu-name=pod", "--zone=z", *TRAINER]) == 1
    assert not any("setsid" in " ".join(call["argv"]) for call in programs.calls())


def test_when_one_host_does_not_come_up_all_are_stopped(programs, capsys) -> None:
    programs.answer("describe", output=json.dumps(SLICE))
    programs.answer("sleep 10", code=1)
    assert tpu_vm.main(["--tpu-name=pod", "--zone=z", *TRAINER]) == 2
    assert "all were stopped" in capsys.readouterr().err
    assert "kill -TERM" in " ".join(programs.calls()[-1]["argv"])


def test_the_supervisor_of_a_host_outlives_its_shell_and_can_be_stopped(tmp_path, monkeypatch) -> None:
    """The very commands that ssh would run, in a shell here, with a program that saves when it is told to stop."""
    home = tmp_path / "uniser-jax"
    (home / ".venv/bin").mkdir(parents=True)
    python = home / ".venv/bin/python"
    python.write_text("#!/bin/bash\ntrap 'echo saved >saved; exit 75' TERM\nwhile :; do sleep 0.05; done\n")
    python.chmod(0o755)
    arguments, overrides = job.parse(job.parser("test", None), TRAINER)

    def shell(command: str) -> int:
        return subprocess.run(["bash", "-c", command], cwd=tmp_path, timeout=20).returncode

    assert shell(tpu_vm.idle()) == 0
    assert shell(tpu_vm.start(arguments, overrides, 1)) == 0
    assert shell(tpu_vm.idle()) != 0  # it runs, though its shell has ended
    assert shell(tpu_vm.alive().replace("sleep 10", "sleep 0.3")) == 0
    assert shell(tpu_vm.stop(10)) == 0
    assert (home / "saved").exists()
    assert shell(tpu_vm.idle()) == 0


@pytest.mark.parametrize(
    ("code", "failures", "requeued"),
    [(0, 0, False), (2, 0, False), (3, 0, False), (75, 99, True), (1, 0, True), (134, 9, True), (1, 10, False)],
)
def test_slurm_queues_again_what_can_go_on(code, failures, requeued, programs, tmp_path, monkeypatch, capsys) -> None:
    main, options = LAUNCHERS["slurm"]
    assert main([*options, TRAINER[0], f"--workdir={tmp_path}", "--dry-run"]) == 0
    script = shown(capsys.readouterr().out)[0]["text"]
    programs.answer("srun", code=code)
    counted = tmp_path / "logs/slurm_17.failures"
    counted.parent.mkdir()
    counted.write_text("1\n" * failures)
    environment = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "99"}  # time limits, mostly
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    (tmp_path / "script").write_text(script)
    ended = subprocess.run(["bash", tmp_path / "script"], timeout=20, stdin=subprocess.DEVNULL)
    assert ended.returncode == code
    names = [call["argv"][0] for call in programs.calls()]
    assert names == (["srun", "scontrol"] if requeued else ["srun"])
    if requeued:
        assert programs.calls()[-1]["argv"] == ["scontrol", "requeue", "17"]
    if code == 75:
        assert not counted.exists()  # failures count from here


def script_of(capsys, *options: str) -> str:
    assert slurm.main([*TRAINER, *options, "--dry-run"]) == 0
    return shown(capsys.readouterr().out)[0]["text"]


def test_srun_is_told_of_the_cpus_that_the_job_has(capsys) -> None:
    script = script_of(capsys, "--gpus=4", "--cpus=12")
    assert "#SBATCH --cpus-per-task=12\n" in script
    (srun,) = re.findall(r"^srun .*\\$", script, re.MULTILINE)
    assert "--cpus-per-task=12" in srun.split()


@pytest.mark.parametrize("folder", ["/runs/a b", "/runs/it's #1", '/runs/"a" \\b'])
def test_a_run_folder_of_any_name_gets_the_log_of_its_job(folder, capsys) -> None:
    """Read as sbatch does: quotes group, a backslash escapes in them, too, and a bare # begins a comment."""
    script = script_of(capsys, f"--workdir={folder}")
    (line,) = [line for line in script.splitlines() if "--output=" in line and line.startswith("#SBATCH")]
    words = shlex.shlex(line.removeprefix("#SBATCH"), posix=True, punctuation_chars=False)
    words.whitespace_split, words.escapedquotes = True, "\"'"
    assert list(words) == [f"--output={folder}/logs/slurm_%j.log"]


# The part of the published schema that a manifest of ours may touch: JobSet v1alpha2, Job v1, Pod v1. A field that is not
# here does not exist there, or is not ours to set; `!` marks those that the schema demands.
_ENV = {
    "name!": str,
    "value": str,
    "valueFrom": {"fieldRef": {"fieldPath!": str, "apiVersion": str}},
}
_CONTAINER = {
    "name!": str,
    "image": str,
    "command": [str],
    "env": [_ENV],
    "resources": {"limits": {str: int}, "requests": {str: int}},
    "volumeMounts": [{"name!": str, "mountPath!": str}],
}
_POD = {
    "restartPolicy": ("Never", "OnFailure", "Always"),
    "terminationGracePeriodSeconds": int,
    "nodeSelector": {str: str},
    "tolerations": [{"key": str, "operator": ("Exists", "Equal"), "value": str, "effect": ("NoSchedule", "NoExecute")}],
    "containers!": [_CONTAINER],
    "volumes": [
        {"name!": str, "emptyDir": {"medium": ("", "Memory")}, "persistentVolumeClaim": {"claimName!": str}},
    ],
    "subdomain": str,
    "hostNetwork": bool,
}
_METADATA = {"name": str, "labels": {str: str}, "annotations": {str: str}}
_EXIT_CODES = {"containerName": str, "operator!": ("In", "NotIn"), "values!": [int]}
_JOB = {
    "parallelism": int,
    "completions": int,
    "completionMode": ("Indexed", "NonIndexed"),
    "backoffLimit": int,
    "podFailurePolicy": {
        "rules!": [
            {
                "action!": ("FailJob", "FailIndex", "Ignore", "Count"),
                "onExitCodes": _EXIT_CODES,
                "onPodConditions": [{"type!": str, "status!": str}],
            }
        ],
    },
    "template!": {"metadata": _METADATA, "spec": _POD},
}
_RULE = {
    "name!": str,
    "action!": ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob"),
    "onJobFailureReasons": [("BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy")],
    "onJobFailureMessagePatterns": [str],
}
_JOBSET = {
    "apiVersion!": ("jobset.x-k8s.io/v1alpha2",),
    "kind!": ("JobSet",),
    "metadata!": _METADATA,
    "spec!": {
        "failurePolicy": {"maxRestarts": int, "rules": [_RULE]},
        "network": {"enableDNSHostnames": bool, "publishNotReadyAddresses": bool, "subdomain": str},
        "replicatedJobs": [{"name!": str, "replicas": int, "template!": {"metadata": _METADATA, "spec": _JOB}}],
        "ttlSecondsAfterFinished": int,
        "suspend": bool,
    },
}


def faults(value, schema, path="") -> list[str]:
    """Where a value departs from a schema: a type, a tuple of allowed values, a list, or fields."""
    if isinstance(schema, tuple):
        return [] if value in schema else [f"{path} = {value!r}"]
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{path} is no {schema.__name__}"]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{path} is no list"]
        return [fault for index, item in enumerate(value) for fault in faults(item, schema[0], f"{path}[{index}]")]
    if not isinstance(value, dict):
        return [f"{path} is no object"]
    if str in schema:
        return [fault for key, item in value.items() for fault in faults(item, schema[str], f"{path}.{key}")]
    fields = {key.rstrip("!"): kind for key, kind in schema.items()}
    missing = [f"{path}.{key[:-1]} is missing" for key in schema if key.endswith("!") and key[:-1] not in value]
    unknown = [f"{path}.{key} is unknown" for key in value if key not in fields]
    known = [key for key in value if key in fields]
    return missing + unknown + [fault for key in known for fault in faults(value[key], fields[key], f"{path}.{key}")]


def manifest_of(capsys, *options: str) -> dict:
    assert xpk.main(["--kubectl", *options, "--image=i", *TRAINER, "--dry-run"]) == 0
    return json.loads(shown(capsys.readouterr().out)[-1]["text"])


def pod(manifest: dict) -> dict:
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_a_jobset_fits_its_schema(capsys) -> None:
    tpu = manifest_of(capsys, "--tpu=v5e:4x4", *TWO_SLICES, "--claim=runs", "--queue=q")
    gpu = manifest_of(capsys, "--gpu=h100:8", "--nodes=2", "--no-disk")
    assert faults(tpu, _JOBSET) == []
    assert faults(gpu, _JOBSET) == []
    broken = json.loads(json.dumps(gpu))
    del pod(broken)["containers"][0]["name"]
    pod(broken)["restartPolicy"] = "Sometimes"
    broken["spec"]["maxRestarts"] = 3
    assert len(faults(broken, _JOBSET)) == 3  # the schema has teeth


def test_a_jobset_starts_whole_slices_and_tells_each_pod_of_the_others(capsys) -> None:
    manifest = manifest_of(capsys, "--tpu=v5e:4x4", *TWO_SLICES, "--restarts=5", "--grace=90", "--claim=runs")
    jobs = manifest["spec"]["replicatedJobs"][0]
    assert (jobs["replicas"], jobs["template"]["spec"]["parallelism"]) == (2, 4)
    assert jobs["template"]["spec"]["backoffLimit"] == 0
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 5
    assert pod(manifest)["terminationGracePeriodSeconds"] == 90
    assert pod(manifest)["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    environment = {item["name"]: item.get("value") for item in pod(manifest)["containers"][0]["env"]}
    assert environment == {"UNISER_PROCESSES": "8", "UNISER_LOCAL_DEVICES": "4"}

    manifest = manifest_of(capsys, "--gpu=h100:8", "--nodes=2", "--name=big", "--claim=runs")
    environment = {item["name"]: item.get("value") for item in pod(manifest)["containers"][0]["env"]}
    assert environment["UNISER_COORDINATOR"] == "big-workers-0-0.big:8476"
    assert environment["UNISER_PROCESSES"] == "2"
    assert "UNISER_PROCESS" in environment


@pytest.mark.parametrize(
    ("code", "action"),
    [(75, "RestartJobSetAndIgnoreMaxRestarts"), (2, "FailJobSet"), (3, "FailJobSet"), (1, None), (137, None)],
)
def test_an_orderly_stop_is_not_counted_and_what_would_end_alike_ends_all(code, action, capsys) -> None:
    """Rules as both controllers apply them: the first that matches; no rule is a restart that counts."""
    manifest = manifest_of(capsys, "--gpu=h100:8", "--nodes=2", "--claim=runs")
    spec = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(spec["podFailurePolicy"]["rules"]):
        if code in rule["onExitCodes"]["values"]:
            reason = "PodFailurePolicy"
            message = f"Container train for pod d/p failed with exit code {code} matching FailJob rule at index {index}"
            break
    found = None
    for rule in manifest["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
            found = rule["action"]
            break
    assert found == action


def test_names_are_stable_and_fit_everywhere(capsys) -> None:
    def name(workdir: str) -> str:
        arguments, _ = job.parse(job.parser("test", None), ["--config=c", f"--workdir={workdir}"])
        return job.name_of(arguments)

    names = [name(f"/runs/{folder}") for folder in ("lr=0.001,ema=0.99", "lr=0.001,ema=0.9", "x" * 200, "Ä ö")]
    assert len(set(names)) == 4
    assert names[0] == name("/runs/lr=0.001,ema=0.99")
    assert all(len(found) <= 40 and found.replace("-", "").isalnum() and found.islower() for found in names)
