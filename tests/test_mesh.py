import contextlib
import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from uniser_jax import config as schema
from uniser_jax import mesh as meshes
from uniser_jax import step
from uniser_jax.types import TrainState


def test_one_axis_takes_the_remaining_devices() -> None:
    assert dict(meshes.make_mesh({"data": -1, "tensor": 2}).shape) == {
        "slice": 1,
        "data": 4,
        "fsdp": 1,
        "sequence": 1,
        "tensor": 2,
    }


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"data": 3}, "does not fit 8 devices"),
        ({"data": 4}, "does not fit 8 devices"),
        ({"data": -1, "tensor": 3}, "does not fit 8 devices"),
        ({"data": -1, "fsdp": -1}, "-1 at most once"),
        ({"data": 0}, "at least 1"),
        ({"rows": 8}, "known: slice, data, fsdp, sequence, tensor"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(shape: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        meshes.make_mesh(shape)


def test_the_arithmetic_of_a_mesh_takes_no_devices() -> None:
    shape = {"slice": 2, "fsdp": -1, "tensor": 2}
    assert meshes.sizes_of(shape, 8) == dict(meshes.make_mesh(shape).shape)
    with pytest.raises(ValueError, match=r"4 slices and mesh.slice = 2; set config.mesh.slice=4"):
        meshes.sizes_of(shape, 16, slices=4)


def test_a_name_without_a_rule_is_an_error() -> None:
    assert meshes.spec("batch", None, "heads") == P(("slice", "data", "fsdp"), None, "tensor")
    with pytest.raises(ValueError, match=r"rule of 'colour' in mesh.RULES is missing; there are batch, tokens"):
        meshes.spec("batch", "colour")


def test_the_first_rule_whose_mesh_axes_are_free_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="taken by another axis"):
        meshes.spec("heads", "mlp")
    monkeypatch.setattr(meshes, "RULES", (*meshes.RULES, ("mlp", ("sequence",))))
    assert meshes.spec("heads", "mlp") == P("tensor", "sequence")
    assert meshes.spec("mlp", "embed") == P("tensor", "fsdp")


def test_a_dimension_that_does_not_divide_is_replicated() -> None:
    mesh = meshes.make_mesh({"fsdp": 8})
    shapes = {"a": jax.ShapeDtypeStruct((16, 3), np.float32), "b": jax.ShapeDtypeStruct((12, 3), np.float32)}
    shardings = meshes.sharding_of(mesh, {"a": ("embed", None), "b": ("embed", None)}, shapes)
    assert shardings["a"].spec == P("fsdp", None)
    assert shardings["b"].spec == P(None, None)


def test_batches_heads_and_tokens_must_divide() -> None:
    mesh = meshes.make_mesh({"slice": 2, "fsdp": 2, "tensor": 2})
    meshes.check_batch(mesh, 8, 2)
    with pytest.raises(ValueError, match=r"slice . data . fsdp = 4 devices in 2 microbatches; use a multiple of 8"):
        meshes.check_batch(mesh, 12, 2)
    meshes.check_divides(mesh, "tensor", attention_heads=4, MLP_features=384)
    with pytest.raises(
        ValueError,
        match=r"9 attention heads .* tensor = 2 devices; set config.mesh.tensor to one of 1, and another axis to -1$",
    ):
        meshes.check_divides(mesh, "tensor", attention_heads=9, MLP_features=384)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of a pod that is not there."""

    id: int
    process_index: int
    slice_index: int | None = None
    platform: str = "cpu"
    device_kind: str = "none"


def pod(processes: int, each: int, slices: int = 1, platform: str = "cpu") -> list[Any]:
    per_slice = processes * each // slices
    return [Chip(i, i // each, i // per_slice if slices > 1 else None, platform) for i in range(processes * each)]


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ({"fsdp": 8}, [((0, 1), 8), ((2, 3), 8), ((4, 5), 8), ((6, 7), 8)]),
        ({"fsdp": 4, "tensor": 2}, [((0,), 4), ((1,), 4), ((2,), 4), ((3,), 4)]),
        ({"fsdp": 2, "tensor": 4}, [((0,), 2), ((0,), 2), ((1,), 2), ((1,), 2)]),  # a tensor axis over two processes
        ({"sequence": 2, "tensor": 4}, [((0,), 1)] * 4),
    ],
)
def test_processes_that_share_rows_load_the_same(shape: dict, parts: list) -> None:
    mesh = meshes.make_mesh(shape, pod(4, 2))
    assert [meshes.batch_part(mesh, process) for process in range(4)] == parts


def test_a_process_loads_the_rows_of_its_devices_wherever_they_are() -> None:
    devices = pod(2, 2)
    mesh = meshes.make_mesh({"fsdp": 4}, [devices[i] for i in (2, 0, 3, 1)])
    assert [meshes.batch_part(mesh, process) for process in range(2)] == [((1, 3), 4), ((0, 2), 4)]


def test_processes_must_not_share_some_rows_only() -> None:
    with pytest.raises(ValueError, match="share some of their rows only"):
        meshes.batch_part(meshes.make_mesh({"data": 4, "tensor": 3}, pod(6, 2)), 0)


def test_a_width_that_does_not_divide_is_refused_not_replicated() -> None:
    config = schema.read("configs/pixel.py:size=l,image=512", ["--config.batch_size=256"])
    for sizes, fits in (({"fsdp": 256}, False), ({"data": 2, "fsdp": 128}, True)):
        mesh = meshes.make_mesh(sizes, pod(64, 4))
        with (
            contextlib.nullcontext()
            if fits
            else pytest.raises(ValueError, match=r"1152 features .* fsdp = 256 .* 128,")
        ):
            step.check(config, mesh)


def test_slices_are_the_outermost_axis() -> None:
    grid = meshes.make_mesh({"slice": 2, "fsdp": -1, "tensor": 2}, pod(4, 4, slices=2)).devices
    assert grid.shape == (2, 1, 4, 1, 2)
    assert [[chip.slice_index for chip in part.flat] for part in grid] == [[0] * 8, [1] * 8]
    with pytest.raises(ValueError, match=r"these devices are 2 slices and mesh.slice = 1; set config.mesh.slice=2"):
        meshes.make_mesh({"fsdp": -1}, pod(4, 4, slices=2, platform="tpu"))


def test_a_mesh_of_a_tpu_topology_follows_its_wires(tpu_devices) -> None:
    devices = tpu_devices("v5e:4x4", num_slices=2)
    mesh = meshes.make_mesh({"slice": 2, "fsdp": 4, "tensor": 4}, devices)
    for chips in mesh.devices.reshape(-1, 4):
        for one, next in itertools.pairwise(chips):
            assert one.slice_index == next.slice_index
            assert sum(abs(a - b) for a, b in zip(one.coords, next.coords, strict=True)) == 1


def test_the_table_adds_up_what_lies_on_each_chip() -> None:
    mesh = meshes.make_mesh({"fsdp": 4, "tensor": 2})
    kernel = jax.ShapeDtypeStruct((3, 1024, 1024), np.float32, sharding=NamedSharding(mesh, P(None, "fsdp", "tensor")))
    scale = jax.ShapeDtypeStruct((1024,), np.float32, sharding=NamedSharding(mesh, P()))
    params = {"block": {"kernel": kernel, "scale": scale}}
    lines = meshes.table(TrainState(scale, params, params, (params, params))).splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["block/kernel", "3", "x", "1024", "x", "1024", "-,", "fsdp,", "tensor", "1.50"],
        ["block/scale", "1024", "-", "0.00"],
        ["all", "of", "parameters", "3,146,752", "1.50"],
    ]
    assert lines[5].split()[-1] == "3.01"
    assert meshes.bytes_per_chip(params) == 3 * 1024 * 1024 * 4 // 8 + 4096


def test_host_rows_become_one_global_array() -> None:
    mesh = meshes.make_mesh({"data": 4, "tensor": 2})
    rows = np.arange(16).reshape(8, 2)
    whole = meshes.to_global(mesh, {"x": rows})["x"]
    assert whole.sharding == meshes.batch_sharding(mesh)
    np.testing.assert_array_equal(whole, rows)
    assert meshes.constrain(whole, "batch", None) is not None
