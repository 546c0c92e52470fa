"""Files appear whole or not at all."""

import pathlib

import pytest

from uniser_jax import atomic


def test_files_are_written_whole_into_folders_that_are_made(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "deep" / "table.md"
    for data, expected in (("ä", "ä".encode()), (b"\xff", b"\xff")):
        atomic.write(path, data)
        assert path.read_bytes() == expected
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def fail() -> None:
        with atomic.opened(path) as file:
            file.write(b"half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file", "before")]
