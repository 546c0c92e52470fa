"""Files that appear under their names when all is written, or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A file to write, with these permissions; it lies beside `path` until the block ends, and is removed if it fails.

    All is on the disk before it has its name: one that outlives a loss of power must not stand for an empty file.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # of a process of this number that was killed
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Writes a file, its folder if there is none, whole or not at all; text in UTF-8."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with opened(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)
