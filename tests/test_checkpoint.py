"""What is saved is what comes back, or the damage is named."""

import asyncio
import functools
import gc
import json
import os
import pathlib
import shutil
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint._src.path import temporary_paths

from tests import processes
from uniser_jax import config as schema
from uniser_jax import mesh as meshes
from uniser_jax.checkpoint import (
    Checkpoints,
    DamagedError,
    Slice,
    digests,
    has_checkpoint,
    newest_run,
    write_base,
)
from uniser_jax.types import TrainState, tasks_digest

# When a read fails, orbax drops the reads beside it unfinished, and asyncio complains when they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CONFIG = schema.defaults()
MESH = meshes.make_mesh({"data": 4, "fsdp": 2})
ROWS = P("fsdp")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What failed reads leave behind is collected here, not in another test."""
    yield
    gc.collect()


def state_at(step: int) -> TrainState:
    rng = np.random.default_rng(step)
    params = {"a": {"kernel": jnp.asarray(rng.normal(size=(64, 96)), jnp.float32)}, "scale": jnp.arange(5.0) + step}
    return TrainState(jnp.int32(step), params, jax.tree.map(lambda x: x + 1, params), (params, jnp.int32(step)))


def abstract(mesh: jax.sharding.Mesh = MESH, spec: P = ROWS) -> TrainState:
    def leaf(x: jax.Array) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, spec if x.ndim == 2 else P())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, state_at(0))


def assert_equal(a: TrainState, b: TrainState) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Steps 2, 4 and 6."""
    workdir = tmp_path_factory.mktemp("run")
    with Checkpoints(workdir, every=2) as checkpoints:
        for step in range(1, 7):
            checkpoints.save(step, state_at(step), CONFIG)
    return workdir


@pytest.fixture
def run(saved: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def data_file(run: pathlib.Path, step: int) -> pathlib.Path:
    """The largest file of the parameters: their values."""
    files = [file for file in (run / f"checkpoints/{step}/params").rglob("*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size)


def test_a_run_of_another_prompt_set_is_refused(run: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Checkpoints(run) as checkpoints:
        assert checkpoints.record()["tasks"] == tasks_digest()
        monkeypatch.setattr("uniser_jax.checkpoint.tasks_digest", lambda: "another")
        with pytest.raises(ValueError, match=f"prompt set {tasks_digest()}, this version's is another") as caught:
            checkpoints.restore(abstract())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("known", ["null", "[]", "7"])
def test_a_record_without_digests_is_damage(run: pathlib.Path, known: str) -> None:
    file = run / "checkpoints/6/record/metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"digests": json.loads(known)}))
    with Checkpoints(run) as checkpoints:
        with pytest.raises(DamagedError, match="6: its record has no digests") as caught:
            checkpoints.restore(abstract())
        assert "\n" not in str(caught.value)
        assert_equal(checkpoints.restore(abstract(), on_corrupt="previous"), state_at(4))


def test_a_state_comes_back_on_any_mesh(saved: pathlib.Path) -> None:
    with Checkpoints(saved) as checkpoints:
        assert_equal(checkpoints.restore(abstract()), state_at(6))
        assert_equal(checkpoints.restore(abstract(meshes.make_mesh({"tensor": 8}), P(None, "tensor"))), state_at(6))
        record = checkpoints.record()
        ema = checkpoints.weights(abstract().ema)
    assert record["step"] == 6
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(ema), jax.device_get(state_at(6).ema))


def test_digests_see_every_bit_and_no_mesh() -> None:
    tree = state_at(3).params
    plain = digests(tree)
    for spec in (P("data"), P(None, "fsdp"), P(("data", "fsdp"))):
        placed = {
            "a": {"kernel": jax.device_put(tree["a"]["kernel"], NamedSharding(MESH, spec))},
            "scale": tree["scale"],
        }
        assert digests(placed) == plain
    kernel = np.array(tree["a"]["kernel"])
    flipped, swapped = kernel.copy(), kernel[::-1].copy()
    flipped.view(np.uint32)[17, 40] ^= 1
    for changed in (flipped, swapped, kernel.astype(jnp.bfloat16)):
        assert digests({"a": {"kernel": jnp.asarray(changed)}})["a/kernel"] != plain["a/kernel"]


def damage(run: pathlib.Path, how: str) -> None:
    file = data_file(run, 6)
    data = bytearray(file.read_bytes())
    if how == "flipped bit":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif how == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif how == "missing":
        file.unlink()
    elif how == "foreign":
        file.write_bytes(b"not a checkpoint at all")
    elif how == "no record":
        shutil.rmtree(run / "checkpoints/6/record")


DAMAGES = ["flipped bit", "truncated", "missing", "foreign", "no record"]


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_one_line_and_the_step_before_is_offered(run: pathlib.Path, how: str) -> None:
    damage(run, how)
    with Checkpoints(run) as checkpoints, pytest.raises(DamagedError, match="checkpoints/6") as caught:
        checkpoints.restore(abstract())
    assert "\n" not in str(caught.value)
    assert "step 4 lies before it: --config.checkpoint.on_corrupt=previous" in str(caught.value)


@pytest.mark.parametrize("how", DAMAGES)
def test_the_step_before_is_taken_and_the_damaged_one_set_aside(run: pathlib.Path, how: str) -> None:
    damage(run, how)
    with Checkpoints(run, every=2) as checkpoints:
        state = checkpoints.restore(abstract(), on_corrupt="previous")
        assert_equal(state, state_at(4))
        assert checkpoints.latest() == 4
        assert checkpoints.save(6, state_at(6), CONFIG)
    with Checkpoints(run) as checkpoints:
        assert_equal(checkpoints.restore(abstract()), state_at(6))
    assert [path.name.partition("-")[0] for path in (run / "checkpoints.damaged").iterdir()] == ["6"]


ACTIONS = """
import shutil, sys, types
import jax, jax.numpy as jnp, numpy as np
import orbax.checkpoint as ocp
from etils.epath import backend
from jax.sharding import NamedSharding, PartitionSpec as P
from uniser_jax import config, hosts, mesh as meshes
from uniser_jax.checkpoint import Checkpoints, DamagedError
from uniser_jax.types import TrainState
hosts.join()
workdir, action, late = sys.argv[1:]
mesh = meshes.make_mesh({"data": 1, "fsdp": 2})
def state_at(step):
    def leaf(sharding, x):
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
    rows, whole = (NamedSharding(mesh, spec) for spec in (P("fsdp"), P()))
    tree = lambda: {"kernel": leaf(rows, np.random.default_rng(step).normal(size=(512, 256)).astype(np.float32))}
    return TrainState(leaf(whole, np.int32(step)), tree(), tree(), tree())
if action == "save":
    with Checkpoints(workdir, every=2) as checkpoints:
        for step in (2, 4):
            checkpoints.save(step, state_at(step), config.defaults())
elif action == "full":
    if jax.process_index():
        shutil.disk_usage = lambda folder: types.SimpleNamespace(free=0)
    with Checkpoints(workdir, every=2) as checkpoints:
        try:
            checkpoints.save(2, state_at(2), config.defaults())
        except OSError as error:
            sys.stderr.write(f"refused: {error}\\n")
else:
    if jax.process_index() and late == "folder":  # a shared disk that shows this process an older state
        listed = backend._OsPathBackend.listdir
        backend._OsPathBackend.listdir = lambda self, path: [name for name in listed(self, path) if name != "4"]
    if jax.process_index() and late == "record":
        read = ocp.JsonCheckpointHandler.restore
        def restore(self, folder, *more, **settings):
            if folder.parts[-2:] == ("4", "record"):
                raise OSError("stale file handle")
            return read(self, folder, *more, **settings)
        ocp.JsonCheckpointHandler.restore = restore
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_at(0))
    with Checkpoints(workdir, every=2) as checkpoints:
        try:
            state = checkpoints.restore(shapes, action)
            sys.stderr.write(f"restored {int(state.step)}\\n")
        except DamagedError as error:
            sys.stderr.write(f"refused: {error}\\n")
"""


def both(action: str, workdir: pathlib.Path, late: str = "") -> list[str]:
    """What two processes say that do something together."""
    results = processes.run([["-c", ACTIONS, str(workdir), action, late]] * 2, devices=1, seconds=120)
    assert [code for code, _ in results] == [0, 0], results
    return [line for _, error in results for line in error.splitlines() if line.startswith(("restored", "refused"))]


def test_what_one_process_cannot_write_no_process_waits_for(tmp_path: pathlib.Path) -> None:
    here, there = both("full", tmp_path)
    assert here == f"refused: {tmp_path}/checkpoints cannot be written by another process"
    assert "0 MiB for a checkpoint of up to" in there
    assert not has_checkpoint(tmp_path)


def test_what_one_process_cannot_read_no_process_takes(tmp_path: pathlib.Path) -> None:
    act = functools.partial(both, workdir=tmp_path)
    act("save")
    (shard,) = (tmp_path / "checkpoints/4/params/ocdbt.process_1/d").iterdir()
    shard.write_bytes(shard.read_bytes()[:100])
    refused = act("stop")
    assert len(refused) == 2
    assert sum("cannot be read by another process" in line for line in refused) == 1
    assert all("step 2 lies before it" in line for line in refused)
    assert act("previous") == ["restored 2"] * 2


def test_processes_take_the_same_step_though_their_disks_show_it_at_other_times(tmp_path: pathlib.Path) -> None:
    both("save", tmp_path)
    assert both("stop", tmp_path, late="folder") == ["restored 4"] * 2
    refused = both("stop", tmp_path, late="record")
    assert sorted("its record cannot be read: stale file handle" in line for line in refused) == [False, True]
    assert both("previous", tmp_path, late="record") == ["restored 2"] * 2


def test_the_newest_whole_step_is_taken_and_all_after_it_are_set_aside(run: pathlib.Path) -> None:
    for step in (4, 6):
        data_file(run, step).unlink()
    with Checkpoints(run) as checkpoints:
        assert_equal(checkpoints.restore(abstract(), on_corrupt="previous"), state_at(2))
        assert checkpoints.steps() == [2]
    assert sorted(path.name.partition("-")[0] for path in (run / "checkpoints.damaged").iterdir()) == ["4", "6"]


def test_nothing_is_set_aside_where_no_step_is_whole(run: pathlib.Path) -> None:
    for step in (2, 4, 6):
        data_file(run, step).unlink()
    for _ in range(2):  # the same command again finds the same
        with Checkpoints(run) as checkpoints:
            with pytest.raises(DamagedError, match=r"checkpoints/6 .*; there is no earlier step to take") as caught:
                checkpoints.restore(abstract(), on_corrupt="previous")
            assert checkpoints.steps() == [2, 4, 6]
        assert "\n" not in str(caught.value)
        assert not (run / "checkpoints.damaged").exists()


def test_nothing_left_is_one_line(run: pathlib.Path) -> None:
    with Checkpoints(run) as checkpoints, pytest.raises(ValueError, match="stop, previous"):
        checkpoints.restore(abstract(), on_corrupt="ignore")
    shutil.rmtree(run / "checkpoints")
    with Checkpoints(run) as checkpoints, pytest.raises(ValueError, match="no checkpoint in"):
        checkpoints.restore(abstract(), on_corrupt="previous")


def test_a_base_is_no_run_and_is_never_set_aside(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    values = np.ones((2, 3), np.float32)
    shapes = {"params": {"a": jax.ShapeDtypeStruct(values.shape, values.dtype)}}
    write_base(tmp_path / "base", shapes, [Slice("params", "a", (...,), values)], {"base": {}})
    shutil.copytree(saved, tmp_path / "run")
    os.utime(tmp_path / "run/checkpoints", (0, 0))  # the base is newer
    assert newest_run(tmp_path) == tmp_path / "run"
    with Checkpoints(tmp_path / "base") as checkpoints, pytest.raises(ValueError, match="a converted base"):
        checkpoints.restore(abstract(), on_corrupt="previous")
    assert (tmp_path / "base/checkpoints/0").is_dir()


def test_what_a_killed_save_left_goes_when_training_goes_on(run: pathlib.Path) -> None:
    half = run / "checkpoints/8.orbax-checkpoint-tmp"
    shutil.copytree(run / "checkpoints/6", half)
    with Checkpoints(run) as checkpoints:  # a reader: somebody may be writing it
        assert checkpoints.latest() == 6
    assert half.exists()
    with Checkpoints(run, training=True) as checkpoints:
        assert checkpoints.save(10, state_at(10), CONFIG, force=True)
        assert not half.exists()


def test_what_was_left_is_gone_when_a_run_ends_that_saved_nothing(run: pathlib.Path, monkeypatch) -> None:
    half, cleanup = run / "checkpoints/8.orbax-checkpoint-tmp", temporary_paths.cleanup_temporary_paths
    shutil.copytree(run / "checkpoints/6", half)

    async def late(*given, **options) -> None:
        await asyncio.sleep(0.5)
        await cleanup(*given, **options)

    monkeypatch.setattr(temporary_paths, "cleanup_temporary_paths", late)
    with pytest.raises(ValueError, match="no such base"), Checkpoints(run, training=True):
        raise ValueError("no such base")
    assert not half.exists()


def test_a_write_that_fails_later_is_no_mistake_of_the_caller(run: pathlib.Path, monkeypatch) -> None:
    checkpoints = Checkpoints(run, every=2)

    def fail() -> None:
        raise ValueError("Failed to write file\nand more")  # as tensorstore does

    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fail)
    with pytest.raises(OSError, match=r"a checkpoint cannot be written: Failed to write file$"), checkpoints:
        pass


def test_another_model_is_named(saved: pathlib.Path) -> None:
    wrong = abstract()
    wrong.params["scale"] = jax.ShapeDtypeStruct((6,), jnp.float32, sharding=NamedSharding(MESH, P()))
    with Checkpoints(saved) as checkpoints, pytest.raises(ValueError, match=r"scale is \(5,\) there and \(6,\) here"):
        checkpoints.restore(wrong)


def test_the_newest_and_every_kth_stay(tmp_path: pathlib.Path) -> None:
    with Checkpoints(tmp_path, every=1, keep=2, keep_every=3) as checkpoints:
        for step in range(1, 9):
            checkpoints.save(step, state_at(step), CONFIG)
    steps = {int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()}
    assert steps == {3, 6, 7, 8}


@pytest.mark.parametrize("damage", [b"", b'{"held_out', b"\xff"])
def test_a_damaged_score_costs_only_its_own_step(tmp_path: pathlib.Path, damage: bytes, caplog) -> None:
    with Checkpoints(tmp_path, every=1, keep=4) as checkpoints:
        for step, loss in ((1, 1.0), (2, 2.0), (3, 3.0)):
            checkpoints.save(step, state_at(step), CONFIG, held_out_loss=loss)
    (tmp_path / "checkpoints/1/metrics/metrics").write_bytes(damage)
    with Checkpoints(tmp_path, every=1, keep=4) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best(), checkpoints.latest()) == ([1, 2, 3], 2, 3)
        jax.tree.map(np.testing.assert_array_equal, checkpoints.weights(abstract().ema, step=1), state_at(1).ema)
    assert "loss of step 1 in" in caplog.text
    assert (tmp_path / "checkpoints/1/metrics/metrics").read_bytes() == damage  # whoever only looks deletes nothing


def test_the_best_stay_besides_the_newest(tmp_path: pathlib.Path) -> None:
    losses = {2: 5.0, 4: 1.0, 6: float("nan"), 8: 2.0, 10: 3.0, 12: None, 14: 4.0}
    with Checkpoints(tmp_path, every=2, keep=2, best=2) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, state_at(step), CONFIG, held_out_loss=loss)
    with Checkpoints(tmp_path, every=2, keep=2, best=2) as checkpoints:  # and after a restart
        assert checkpoints.steps() == [4, 8, 12, 14]
        checkpoints.save(16, state_at(16), CONFIG, held_out_loss=1.5)
    with Checkpoints(tmp_path, every=2, keep=2, best=2) as checkpoints:
        assert checkpoints.steps() == [4, 14, 16]
        assert (checkpoints.best(), checkpoints.latest()) == (4, 16)
        ema = checkpoints.weights(abstract().ema, step=checkpoints.best())
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(ema), jax.device_get(state_at(4).ema))
