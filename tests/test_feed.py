"""Batches arrive in order, as bytes, ahead of time; a wait counts only while the devices have nothing to do."""

import contextlib
import functools
import threading
import time

import jax
import numpy as np
import pytest

from uniser_jax import mesh as meshes
from uniser_jax.feed import Feed
from uniser_jax.types import Batch


def batch(number: int) -> Batch:
    images = np.full((8, 4, 4, 3), number, np.uint8)
    return Batch(images, images, images[..., 0], np.zeros(8, np.int32), np.zeros((8, 5), np.float32))


class Stream:
    """Numbers, at a pace; remembers how many were asked for and whether it was closed."""

    def __init__(self, seconds: float = 0.0, fails_at: int = 10**9):
        self.made, self.closed, self._seconds, self._fails_at = 0, False, seconds, fails_at

    def __iter__(self):
        return self

    def __next__(self) -> int:
        time.sleep(self._seconds)
        if self.made == self._fails_at:
            raise OSError("the disk is gone")
        self.made += 1
        return self.made

    def close(self) -> None:
        self.closed = True


class Busy:
    """A result that is ready after so many seconds."""

    def __init__(self, seconds: float):
        self._ready = time.monotonic() + seconds

    def is_ready(self) -> bool:
        return time.monotonic() >= self._ready

    def block_until_ready(self) -> None:
        self._ready = 0.0


def test_no_more_than_two_steps_are_under_way() -> None:
    steps = [Busy(3600) for _ in range(4)]
    with Feed(Stream(), int) as feed:
        for number, step in enumerate(steps):
            feed.take(step)
            assert [each.is_ready() for each in steps] == [index <= number - 2 for index in range(4)]


def test_bytes_travel_and_rows_spread_over_the_mesh() -> None:
    mesh = meshes.make_mesh({"data": 4, "fsdp": 2})
    with Feed(map(batch, range(3)), functools.partial(meshes.to_global, mesh)) as feed:
        for number in range(3):
            placed, _ = feed.take()
            assert [leaf.dtype for leaf in placed[:3]] == [np.uint8] * 3
            assert all(leaf.sharding.is_equivalent_to(meshes.batch_sharding(mesh), leaf.ndim) for leaf in placed)
            assert {shard.data.shape[0] for shard in placed.input.addressable_shards} == {1}
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(placed), batch(number))
        with pytest.raises(RuntimeError, match="has ended"):
            feed.take()


def test_it_reads_ahead_but_not_far() -> None:
    stream = Stream()
    with Feed(stream, lambda number: number, ahead=2) as feed:
        time.sleep(0.3)
        assert stream.made == 3  # two wait and one knocks
        assert [feed.take()[0] for _ in range(5)] == [1, 2, 3, 4, 5]


def test_a_wait_counts_from_when_the_devices_are_idle() -> None:
    with Feed(Stream(seconds=0.4), lambda number: number) as feed:
        start = time.monotonic()
        assert feed.take(Busy(10.0)) == (1, pytest.approx(0, abs=0.1))
        assert time.monotonic() - start > 0.3
        number, waited = feed.take(Busy(0.2))
        assert number == 2
        assert 0.1 < waited < 0.35
        number, waited = feed.take()
        assert number == 3
        assert waited > 0.3


def test_what_the_stream_raises_comes_after_the_batches_before_it() -> None:
    stream = Stream(fails_at=2)
    with Feed(stream, lambda number: number) as feed:
        assert [feed.take()[0], feed.take()[0]] == [1, 2]
        with pytest.raises(OSError, match="the disk is gone"):
            feed.take()
    assert stream.closed


def test_an_interrupt_ends_it_at_once_and_closes_the_stream() -> None:
    stream = Stream(seconds=0.05)
    start = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt), Feed(stream, lambda number: number) as feed:
        feed.take()
        time.sleep(0.3)  # full
        raise KeyboardInterrupt
    assert time.monotonic() - start < 2
    assert stream.closed
    assert not [thread for thread in threading.enumerate() if thread.name == "feed"]
