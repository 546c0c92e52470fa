"""A short soak: `python tests/soak.py` is the long one."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import soak

from tests import processes


def test_a_run_killed_at_random_ends_as_an_uninterrupted_one(tmp_path: pathlib.Path, monkeypatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", processes.xla_flags(1))  # one device: what is tested is the killing
    report = soak.soak(tmp_path, kills=2, steps=12)
    assert report["kills"] == 2
    assert max(report["steps_lost"]) <= 4  # never more than since the last save
