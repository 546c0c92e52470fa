"""Batches on their way to the devices, ahead of the steps that take them."""

import collections
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

_TICK = 0.001  # seconds between two looks at the devices
# Steps on the devices: one runs, one waits; each more would keep a batch there, and delay a stop by a step.
_UNDER_WAY = 2
_PATIENCE = 5.0  # seconds for a batch that is being made when the feed ends


class Feed:
    """Makes and places the next batches in a thread of its own while the devices are busy; a context manager.

    Args:
      stream: host batches without end; closed at the end, if it can be.
      place: starts the transfer of one, and does not wait for it.
      ahead: placed batches that wait: one may still arrive while the other is whole.
    """

    def __init__(self, stream: Iterator[Any], place: Callable[[Any], Any], ahead: int = 2):
        self._stream, self._place = stream, place
        self._placed: queue.Queue[Any] = queue.Queue(ahead)
        self._under_way: collections.deque[Any] = collections.deque()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="feed", daemon=True)

    def take(self, last: Any = None) -> tuple[Any, float]:
        """The next batch, and the seconds that the devices had nothing to do for the lack of it.

        Dispatch is asynchronous: a loop that waits for data while its last step still runs loses nothing. One that is two steps
        ahead of the devices waits for them here.

        Args:
          last: an array that the step dispatched last returns; None where there is none.

        Raises:
          Exception: whatever the stream raised, once the batches before it are taken.
        """
        if last is not None:
            self._under_way.append(last)
            if len(self._under_way) > _UNDER_WAY:
                self._under_way.popleft().block_until_ready()
        idle = time.monotonic()
        while True:
            try:
                batch = self._placed.get(timeout=_TICK)
            except queue.Empty:
                batch = None
            if last is not None and not last.is_ready():
                idle = time.monotonic()
            if isinstance(batch, BaseException):
                raise batch
            if batch is not None:
                return batch, time.monotonic() - idle

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(_PATIENCE)

    def _fill(self) -> None:
        try:
            for batch in self._stream:
                if not self._put(self._place(batch)):
                    break
            else:
                raise RuntimeError("the stream of batches has ended")
        except BaseException as error:  # the main thread raises it
            self._put(error)
        finally:
            if hasattr(self._stream, "close"):
                self._stream.close()

    def _put(self, item: Any) -> bool:
        """Waits for a place; False once nobody takes any more."""
        while not self._end.is_set():
            try:
                self._placed.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
