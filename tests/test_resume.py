"""A run that dies goes on anywhere: with other workers, processes and mesh, across a stage, on exactly the same data."""

import collections
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from tests import processes
from uniser_jax import config as schema
from uniser_jax import mesh as meshes
from uniser_jax import optim, train
from uniser_jax.checkpoint import Checkpoints
from uniser_jax.step import build_network, state_shapes

STEPS = 8
FLAGS = [
    f"--config.steps={STEPS}",
    "--config.batch_size=8",
    "--config.log_every=2",
    "--config.sample_every=0",
    "--config.stall_seconds=120",  # a run that hangs tells where
    "--config.checkpoint.every=2",
    "--config.data.size=36",
    "--config.data.stages=((0, 24, 16), (4, 36, 8))",
    "--config.data.reuse=2",
    "--config.model.prompt_length=2",
    "--config.optim.warmup_steps=1",
    "--config.optim.eps=1e-3",  # a tiny one would blow rounding errors up to whole steps
]
HERE = ["--config.mesh.data=8"]
ELSEWHERE = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2", "--config.data.workers=2"]
TOGETHER = ["--config.mesh.data=8"]  # groups of devices of several kinds may wait for each other, where cores are few


def run(workdir: pathlib.Path, *flags: str, dies_after: int = 0, count: int = 1) -> None:
    workdir.mkdir(exist_ok=True)
    data = workdir.with_name(workdir.name + "_data")
    data.mkdir(exist_ok=True)
    arguments = ["--config=configs/tiny.py", f"--workdir={workdir}", *FLAGS, *flags]
    command = ["-m", "tests.recorded", str(data), str(dies_after), *arguments]
    for code, error in processes.run([command] * count, devices=8 // count):
        assert code == (-9 if dies_after else 0), error


def rows_of(workdir: pathlib.Path) -> dict[tuple[int, int], set[str]]:
    """The digests of every (step, row) that was made, by whichever attempt and process."""
    found = collections.defaultdict(set)
    for path in workdir.with_name(workdir.name + "_data").iterdir():
        for line in path.read_text().splitlines():
            step, row, digest = line.split()
            found[int(step), int(row)].add(digest)
    return found


def state_of(workdir: pathlib.Path):
    config = schema.read("configs/tiny.py", [*FLAGS, *HERE])
    mesh = meshes.make_mesh(config.mesh.to_dict())
    network, optimizer = build_network(config.model), optim.optimizer(config.optim, config.steps)
    with jax.set_mesh(mesh), Checkpoints(workdir) as checkpoints:
        assert checkpoints.latest() == STEPS
        return jax.device_get(checkpoints.restore(state_shapes(network, optimizer, mesh)))


def losses_of(workdir: pathlib.Path) -> list[float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Never interrupted, one process."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    run(workdir, *HERE)
    return workdir


@pytest.fixture(scope="module")
def died(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The same, killed in its first stage."""
    workdir = tmp_path_factory.mktemp("runs") / "died"
    run(workdir, *HERE, dies_after=2)
    return workdir


def test_killed_in_one_stage_it_ends_in_the_next_bit_for_bit(whole, died, tmp_path) -> None:
    shutil.copytree(died, tmp_path / "again")
    state = train.train(schema.read("configs/tiny.py", [*FLAGS, *HERE]), tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), state_of(whole))
    assert losses_of(tmp_path / "again") == losses_of(whole)


def test_it_goes_on_with_other_workers_processes_and_mesh(whole, died) -> None:
    """The data are equal to the byte, the parameters to f32 rounding."""
    run(died, *ELSEWHERE, dies_after=6)
    run(died, *TOGETHER, count=2)
    expected, seen = rows_of(whole), rows_of(died)
    needed = [(step, row) for step in range(STEPS) for row in range(16 if step < 4 else 8)]
    assert all(len(expected[place]) == 1 and seen[place] == expected[place] for place in needed)
    assert len({next(iter(expected[place])) for place in needed}) == len(needed)  # no two rows are alike
    assert [path.name for path in sorted(died.with_name("died_data").iterdir())] == [
        "0_0.txt",
        "2_0.txt",
        "6_0.txt",
        "6_4.txt",
    ]
    one, other = state_of(whole), state_of(died)
    for name in ("params", "ema", "opt_state"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), getattr(other, name), getattr(one, name))
    np.testing.assert_allclose(losses_of(died), losses_of(whole), rtol=1e-5)
