import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from uniser_jax import mesh as meshes


def test_one_axis_takes_the_remaining_devices() -> None:
    assert dict(meshes.make_mesh({"data": -1, "tensor": 2}).shape) == {
        "data": 4,
        "fsdp": 1,
        "tensor": 2,
        "sequence": 1,
    }


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"data": 3}, "does not fit 8 devices"),
        ({"data": 4}, "does not fit 8 devices"),
        ({"data": -1, "tensor": 3}, "does not fit 8 devices"),
        ({"data": -1, "fsdp": -1}, "-1 at most once"),
        ({"data": 0}, "at least 1"),
        ({"rows": 8}, "known: data, fsdp, tensor, sequence"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(shape: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        meshes.make_mesh(shape)


def test_a_name_without_a_rule_is_an_error() -> None:
    assert meshes.spec("batch", None, "heads") == P(("data", "fsdp"), None, "tensor")
    with pytest.raises(KeyError, match="colour"):
        meshes.spec("batch", "colour")


def test_a_dimension_that_does_not_divide_is_replicated() -> None:
    mesh = meshes.make_mesh({"fsdp": 8})
    shapes = {"a": jax.ShapeDtypeStruct((16, 3), np.float32), "b": jax.ShapeDtypeStruct((12, 3), np.float32)}
    shardings = meshes.sharding_of(mesh, {"a": ("embed", None), "b": ("embed", None)}, shapes)
    assert shardings["a"].spec == P("fsdp", None)
    assert shardings["b"].spec == P(None, None)


def test_batches_and_heads_must_divide() -> None:
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    meshes.check_batch(mesh, 8, 2)
    with pytest.raises(ValueError, match="multiple of 8"):
        meshes.check_batch(mesh, 12, 2)
    with pytest.raises(ValueError, match="3 attention heads"):
        meshes.check_heads(mesh, 3)


def test_host_rows_become_one_global_array() -> None:
    mesh = meshes.make_mesh({"data": 4, "tensor": 2})
    rows = np.arange(16).reshape(8, 2)
    whole = meshes.to_global(mesh, {"x": rows})["x"]
    assert whole.sharding == meshes.batch_sharding(mesh)
    np.testing.assert_array_equal(whole, rows)
    assert meshes.constrain(whole, "batch", None) is not None
