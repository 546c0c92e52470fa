"""The manifest tells what ran; a continued run counts on."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from uniser_jax import config as schema
from uniser_jax import manifest, status
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
