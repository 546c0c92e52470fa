"""safetensors files, read and written one tensor at a time.

A file is eight bytes with the length of a header, a JSON header {name: {dtype, shape, data_offsets}}, and the data, which
the offsets must tile without a gap. Files come from strangers: everything is checked against the size of the file before a
byte of data is read. bfloat16 is ml_dtypes', so torch is not needed.
"""

import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from uniser_jax import atomic

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MOST_HEADER = 100_000_000  # bytes, as the reference reader
_MOST_AXES = 16
_INDEX = ".safetensors.index.json"


class Entry(NamedTuple):
    """Where one tensor lies."""

    path: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int  # bytes from the start of the file

    def read(self) -> np.ndarray:
        """The values; the only call that touches data."""
        count = math.prod(self.shape)
        values = np.fromfile(self.path, self.dtype, count, offset=self.start)
        if values.size != count:
            raise ValueError(f"{self.path} was cut short while it was read")
        return values.reshape(self.shape)


def open_tensors(path: str | pathlib.Path) -> dict[str, Entry]:
    """All tensors of a file, or of a folder with one file or with shards and their index; reads only headers.

    Raises:
      ValueError: one line, for anything that is not so.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return read_header(path)
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder")
    indices = sorted(path.glob(f"*{_INDEX}"))
    if len(indices) == 1:
        return _shards(indices[0])
    files = sorted(path.glob("*.safetensors"))
    if indices or len(files) != 1:
        names = ", ".join(file.name for file in indices or files) or "none"
        raise ValueError(f"{path}: expected one .safetensors file, or shards with one index; found {names}")
    return read_header(files[0])


def read_header(path: pathlib.Path) -> dict[str, Entry]:
    """The tensors of one file.

    Raises:
      ValueError: one line, if the header is not true of the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8 or length > _MOST_HEADER:
            raise ValueError(f"{path}: a header of {length} bytes does not fit a file of {size} bytes")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: the header is not JSON with distinct names") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: the header is not a table of tensors")
    header.pop("__metadata__", None)
    spans = {name: _span(path, name, entry, size) for name, entry in header.items()}
    end = 0
    for name, (_, _, start, stop) in sorted(spans.items(), key=lambda item: item[1][2:]):
        if start != end:
            raise ValueError(f"{path}: the data of {name[:80]!r} overlaps another tensor or leaves a gap")
        end = stop
    if 8 + length + end != size:
        raise ValueError(
            f"{path}: tensors take {end} bytes, the file has {size - 8 - length}: truncated or appended to"
        )
    return {name: Entry(path, dtype, shape, 8 + length + start) for name, (dtype, shape, start, _) in spans.items()}


def write(
    path: pathlib.Path,
    tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    values: Callable[[str], np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a file, asking for one tensor after the other; it appears under its name only when it is whole.

    Args:
      path: of the file.
      tensors: dtype and shape of each, in the order they are asked for.
      values: name to array.
      metadata: words to keep in the header.

    Raises:
      ValueError: if an array is not of the dtype and shape announced.
    """
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt", **(metadata or {})}
    }  # transformers refuses files without
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic.opened(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, shape) in tensors.items():
            array = np.asarray(values(name), order="C")  # the memory of a transposed view is not what its shape says
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(f"{name} is {array.dtype} {array.shape}, announced as {dtype} {shape}")
            array.tofile(file)


def _span(path: pathlib.Path, name: str, entry: Any, size: int) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Type, shape, start and stop of a tensor in a file of `size` bytes; products are taken of few and small numbers alone."""
    try:
        dtype, shape, (start, stop) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        sound = all(type(number) is int and 0 <= number <= size for number in (*shape, start, stop))
        sound = sound and len(shape) <= _MOST_AXES
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound or stop - start != math.prod(shape) * dtype.itemsize:
        known = ", ".join(DTYPES)
        raise ValueError(f"{path}: {name[:80]!r} is not a tensor of a known type ({known}) whose shape fills its bytes")
    return dtype, shape, start, stop


def _shards(index: pathlib.Path) -> dict[str, Entry]:
    try:
        files = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(files.values()))
        inside = all(pathlib.Path(name).name == name for name in names)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        inside = False
    if not inside:
        raise ValueError(f"{index}: expected a weight_map from tensors to files beside it")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ValueError(f"{index}: {missing[0]} is missing")
    entries: dict[str, Entry] = {}
    for name in names:
        found = read_header(index.parent / name)
        listed = {key for key, file in files.items() if file == name}
        if found.keys() != listed:
            odd = sorted(found.keys() ^ listed)[0]
            raise ValueError(f"{index}: the index and {name} disagree on {odd[:80]!r}")
        entries |= found
    return entries


def _without_twins(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table
