"""The manifest tells what ran; a continued run counts on."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from uniser_jax import config as schema
from uniser_jax import manifest, status, train
from uniser_jax import mesh as meshes
from uniser_jax.data import photos

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = schema.read(str(ROOT / "configs/tiny.py"))


class Fake:
    """Two photographs of one colour each."""

    def __init__(self, *names: str, value: int = 0):
        self._names, self._value = names, value

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.full((4, 4, 3), self._value + index, np.uint8)

    def name(self, index: int) -> str:
        return self._names[index]

    def nbytes(self, index: int) -> int:
        return self._value


def write(workdir: pathlib.Path, step: int) -> dict:
    mesh = meshes.make_mesh({"data": 4, "fsdp": 2})
    manifest.write(workdir, CONFIG, mesh, manifest.describe(Fake("a", "b")), step)
    return status.read_manifest(workdir)


def test_it_holds_what_is_needed_to_run_again(tmp_path) -> None:
    found = write(tmp_path / "run", 0)
    assert schema.from_json(json.dumps(found["config"])) == CONFIG
    assert found["mesh"] == {"slice": 1, "data": 4, "fsdp": 2, "tensor": 1, "sequence": 1}
    assert found["devices"] == {"kind": "cpu", "count": 8}
    assert found["versions"]["jax"] == jax.__version__
    assert found["photographs"]["count"] == 2
    assert found["command"][0] == sys.executable
    assert list((tmp_path / "run").iterdir()) == [tmp_path / "run" / "run.json"]  # nothing half-written beside it


def test_a_continued_run_counts_its_restarts_and_keeps_its_first_start(tmp_path) -> None:
    first = write(tmp_path, 0)
    again = write(tmp_path, 40)
    assert (first["restarts"], again["restarts"], again["from_step"]) == (0, 1, 40)
    assert again["first_started"] == first["first_started"]
    assert write(tmp_path, CONFIG.steps)["restarts"] == 1  # a finished run was not continued


@pytest.mark.parametrize(
    "left", ["", '{"restarts": 4, "conf', "\0" * 64, "null"], ids=["empty", "cut", "zeros", "null"]
)
def test_one_that_cannot_be_read_counts_as_none_with_one_warning(left, tmp_path, caplog) -> None:
    (tmp_path / "run.json").write_text(left)
    assert status.read_manifest(tmp_path) == {}
    (warning,) = caplog.messages
    assert warning == f"{tmp_path}/run.json cannot be read and is passed over"
    found = write(tmp_path, 40)
    assert (found["restarts"], found["from_step"], found["first_started"]) == (1, 40, found["started"])


def test_it_lies_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch) -> None:
    done = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append("synced") or sync(file))
    monkeypatch.setattr(os, "replace", lambda *names: done.append("named") or rename(*names))
    write(tmp_path, 0)
    assert done == ["synced", "named"]


def test_a_run_that_lost_its_manifest_continues_from_its_checkpoints(tmp_path, caplog) -> None:
    short = ["--config.batch_size=8", "--config.data.size=24", "--config.mesh.data=8", "--config.evaluation.count=1"]
    settings = [*short, "--config.checkpoint.every=1", "--config.checkpoint.best=0", "--config.sample_every=0"]
    command = [f"--config={ROOT}/configs/tiny.py", f"--workdir={tmp_path}", *settings]
    assert train.main([*command, "--config.steps=1"]) == 0
    (tmp_path / "run.json").write_text("")
    assert status.finished(tmp_path)  # its checkpoint knows of how many steps
    assert train.main([*command, "--config.steps=2"]) == 0
    found = status.read_manifest(tmp_path)
    assert (found["from_step"], found["restarts"], found["config"]["steps"]) == (1, 1, 2)
    assert status.read(tmp_path).state == "finished"


def test_only_process_0_writes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert write(tmp_path, 0) == {}


@pytest.mark.parametrize("other", [Fake("a", "c"), Fake("b", "a"), Fake("a"), Fake("a", "b", value=1)])
def test_other_photographs_have_another_fingerprint(other) -> None:
    assert manifest.fingerprint(other) != manifest.fingerprint(Fake("a", "b"))
    assert manifest.fingerprint(Fake("a", "b")) == manifest.fingerprint(Fake("a", "b"))


def test_the_samples_have_a_fingerprint() -> None:
    assert len(manifest.fingerprint(photos.samples())) == 16


def test_the_revision_is_that_of_git() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (manifest.revision() or "").removesuffix("+changes") == head.strip()
