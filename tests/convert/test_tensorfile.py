"""safetensors: the reference library reads what we write, we read what it writes, and what is not so is refused."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from convert import tensorfile


def some() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=(3, 5)).astype(np.float32),
        "b": rng.normal(size=(2, 3, 4)).astype(ml_dtypes.bfloat16),
        "count": np.array(7, np.int64),
        "empty": np.zeros((0, 4), np.float16),
    }


def write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    tensorfile.write(path, {name: (array.dtype, array.shape) for name, array in arrays.items()}, arrays.__getitem__)


def raw(path: pathlib.Path, header, data: bytes = b"", length: int | None = None) -> pathlib.Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, stop: int, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def test_the_library_reads_ours_and_we_read_the_librarys(tmp_path: pathlib.Path) -> None:
    arrays = some() | {"turned": some()["a"].T}
    write(tmp_path / "ours.safetensors", arrays)
    safetensors.numpy.save_file(some(), tmp_path / "theirs.safetensors")
    theirs = safetensors.numpy.load_file(tmp_path / "ours.safetensors")
    assert theirs.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(theirs[name], array)
        assert theirs[name].dtype == array.dtype
    ours = tensorfile.open_tensors(tmp_path / "theirs.safetensors")
    assert ours.keys() == some().keys()
    for name, array in some().items():
        np.testing.assert_array_equal(ours[name].read(), array)


def test_shards_are_one(tmp_path: pathlib.Path) -> None:
    arrays = some()
    for name, array in arrays.items():
        write(tmp_path / f"{name}.safetensors", {name: array})
    with pytest.raises(ValueError, match=r"found a\.safetensors, b\.safetensors"):
        tensorfile.open_tensors(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: f"{name}.safetensors" for name in arrays}}))
    found = tensorfile.open_tensors(tmp_path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].read(), array)
    for files, message in (
        ({"a": "a.safetensors", "z": "a.safetensors"}, "disagree on 'z'"),
        ({"a": "b.safetensors"}, "disagree on 'a'"),
        ({"a": "../a.safetensors"}, "files beside it"),
        ({"a": "none.safetensors"}, "none.safetensors is missing"),
        ([1], "files beside it"),
    ):
        index.write_text(json.dumps({"weight_map": files}))
        with pytest.raises(ValueError, match=message):
            tensorfile.open_tensors(tmp_path)


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        ({}, b"", 2**63),  # a length beyond the file
        ({}, b"", 3),
        (b"", b"", None),
        (b"[1, 2]", b"", None),
        (b"[" * 100_000, b"", None),
        (b"\xff\xfe", b"", None),
        (b'{"a": {}, "a": {}}', b"", None),
        ({"a": entry(0, 4)}, b"\0\0", None),  # truncated
        ({"a": entry(0, 4)}, b"\0" * 8, None),  # appended to
        ({"a": entry(0, 4), "b": entry(2, 6)}, b"\0" * 6, None),  # overlap
        ({"a": entry(0, 4), "b": entry(0, 4)}, b"\0" * 4, None),
        ({"a": entry(4, 8)}, b"\0" * 8, None),  # gap
        ({"a": entry(0, 4, (2**62, 2**62))}, b"\0" * 4, None),
        ({"a": entry(0, 4, (10**4000,) * 100)}, b"\0" * 4, None),  # a product nobody waits for
        ({"a": entry(0, 0, (0, 10**11))}, b"", None),
        ({"a": entry(0, 4, (1,) * 40)}, b"\0" * 4, None),
        ({"a": entry(-4, 0)}, b"", None),
        ({"a": entry(0, 4, (-1, -1))}, b"\0" * 4, None),
        ({"a": entry(0, 4, (1.0,))}, b"\0" * 4, None),
        ({"a": entry(0, 4, (True,))}, b"\0" * 4, None),
        ({"a": entry(0, 8)}, b"\0" * 8, None),  # more bytes than the shape
        ({"a": entry(0, 4, dtype="F8_E4M3")}, b"\0" * 4, None),
        ({"a": entry(0, 4, dtype=[])}, b"\0" * 4, None),
        ({"a": 3}, b"", None),
        ({"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, b"\0" * 4, None),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"\0" * 4, None),
    ],
)
def test_what_is_not_so_is_refused_in_one_line(tmp_path: pathlib.Path, header, data: bytes, length: int | None) -> None:
    path = raw(tmp_path / "bad.safetensors", header, data, length)
    with pytest.raises(ValueError, match=r"bad\.safetensors") as error:
        tensorfile.open_tensors(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300 + len(str(path))


def test_a_file_too_short_for_a_length_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"\1")
    with pytest.raises(ValueError, match="does not fit a file of 1 bytes"):
        tensorfile.open_tensors(tmp_path)


def test_a_broken_write_leaves_no_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="announced"):
        tensorfile.write(tmp_path / "x", {"a": (np.dtype(np.float32), (2,))}, lambda _: np.zeros(3, np.float32))
    assert not (tmp_path / "x").exists()
