"""The stream of training batches, a pure function of (seed, step).

global index -> photograph, crop, recipe -> edit -> batch -> this process's rows. No iterator has a state worth saving: any
step can be computed alone, on any number of processes and workers.
"""

import collections
import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import itertools
import math
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, Self

import cv2
import grain
import numpy as np
from absl import flags
from jaxtyping import Float64, Int32, Shaped, UInt8

from uniser_jax.data.photos import Photos
from uniser_jax.effects import edit, light
from uniser_jax.effects.edit import EditSampling, Recipe, Rendering
from uniser_jax.effects.layer import Scene
from uniser_jax.types import Batch, Edit

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


@dataclasses.dataclass(frozen=True)
class Examples:
    """An endless, random-access sequence of edits.

    Args:
      photos: where they come from; each epoch visits all, in a new order.
      sampling: how edits are drawn.
      size: side of an example in pixels.
      seed: of everything.
      colour: how much exposure, white balance, hue and saturation of a photograph vary from visit to visit; 0 to 1.
      smallest: part of a photograph that an example shows, see `Crop`.
      recent: photographs that were decoded a moment ago.
    """

    photos: Photos
    sampling: EditSampling
    size: int
    seed: int = 0
    colour: float = 0.0
    smallest: float = 0.35
    recent: "Recent" = dataclasses.field(default_factory=lambda: Recent(), compare=False, repr=False)

    def __getitem__(self, index: int) -> Edit:
        """The edit at a global index."""
        _keep_freed_memory()
        scene, recipe = self.recipe(index)
        return Rendering(scene, recipe).edit()

    def recipe(self, index: int) -> tuple[Scene, Recipe]:
        """What the edit at a global index is made of, for logs and replay."""
        rng = np.random.default_rng((self.seed, index))
        epoch, place = divmod(index, len(self.photos))
        order = _order(self.seed, epoch, len(self.photos))
        stops = float(rng.uniform(0, self.sampling.highlight_stops))
        scene = self._view(rng, int(order[place]), stops)
        recipe = edit.sample(rng, scene, self.sampling)
        if any(name == "reflection" for name, _ in recipe.effects):  # only a window needs a second photograph
            # That of the example before: any other would do, but this one was decoded a moment ago.
            scene = scene._replace(other=self._view(rng, int(order[place - 1]), stops).radiance)
        return scene, recipe

    def _view(self, rng: np.random.Generator, index: int, stops: float) -> Scene:
        """A part of a photograph, in linear light and other colours, with its depth if there is one."""
        crop = Crop.sample(rng, self.smallest)
        factor = self.photos.reduction(index, math.ceil(self.size / crop.side))
        photo = self.recent.get((index, factor), lambda key: self.photos.reduced(*key))
        depth = self.photos.depth(index)
        matrix = colour_matrix(rng, self.colour) if self.colour else None
        radiance = light.expand_highlights(crop.cut(photo, self.size), stops, matrix)
        return Scene(radiance, depth=None if depth is None else crop.cut(depth, self.size))

    def find(self, effect: str | None, count: int, limit: int = 1_000) -> list[int]:
        """The first indices whose example shows an effect, any for None.

        Raises:
          ValueError: if none of the first `limit` examples does.
        """
        shows = (
            index
            for index in range(limit)
            if effect is None or effect in [name for name, _ in self.recipe(index)[1].effects]
        )
        found = list(itertools.islice(shows, count))
        if not found:
            raise ValueError(f"none of the first {limit} examples shows {effect}: its weight in config.edit is zero")
        return found

    def fingerprint(self) -> str:
        """A digest of what the stream depends on; equal on all hosts of a healthy run."""
        names = "\n".join(self.photos.name(index) for index in range(len(self.photos)))
        text = f"{names}\n{self.sampling}\n{self.size}\n{self.seed}\n{self.colour}\n{self.smallest}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Recent:
    """What was made last, by index, so that neighbouring examples share it; threads may too, processes do not.

    Args:
      limit: bytes kept, but for the very last.
      count: of what is kept.
    """

    def __init__(self, limit: int = 2**26, count: int = 8):
        self._limit, self._count, self._bytes = limit, count, 0
        self._kept: collections.OrderedDict[Hashable, np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, index: Hashable, make: Callable[[Any], np.ndarray]) -> np.ndarray:
        """The array of an index, made if it is not kept."""
        with self._lock:
            if index in self._kept:
                return self._kept[index]
        made = make(index)
        with self._lock:
            self._bytes += made.nbytes if index not in self._kept else 0
            self._kept[index] = made
            while (self._bytes > self._limit and len(self._kept) > 1) or len(self._kept) > self._count:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Recent, (self._limit, self._count)


class Crop(NamedTuple):
    """A square part of a photograph of any size.

    Args:
      top: in [0, 1]: at its upper edge, at its lower.
      left: the same, across.
      side: as a share of the photograph's shorter one.
      mirrored: whether left and right are exchanged.
    """

    top: float
    left: float
    side: float
    mirrored: bool

    @classmethod
    def sample(cls, rng: np.random.Generator, smallest: float = 0.35) -> Self:
        """Draws a part.

        Args:
          rng: source of place and size.
          smallest: area of the part, at least, as a share of the largest square. Large parts are the rule, because haze
            and flare are recognised by the whole picture.
        """
        side = np.sqrt(rng.uniform(smallest, 1))
        top, left = rng.random(2).tolist()
        return cls(top, left, float(side), bool(rng.random() < 0.5))

    def cut(self, image: Shaped[np.ndarray, "h w *c"], size: int) -> Shaped[np.ndarray, "s s *c"]:
        """The part, scaled to size x size pixels."""
        side = max(1, int(self.side * min(image.shape[:2])))
        top, left = (int(place * (n - side)) for place, n in zip((self.top, self.left), image.shape, strict=False))
        part = image[top : top + side, left : left + side]
        view = cv2.resize(part, (size, size), interpolation=_interpolation(side / size))
        return cv2.flip(view, 1) if self.mirrored else view


def random_crop(
    rng: np.random.Generator, photo: UInt8[np.ndarray, "h w c"], size: int, smallest: float = 0.35
) -> UInt8[np.ndarray, "s s c"]:
    """A random square part of a photograph; see `Crop`."""
    return Crop.sample(rng, smallest).cut(photo, size)


def _interpolation(ratio: float) -> int:
    """Of a reduction by `ratio`: averaging only where a bilinear step would skip pixels; it is four times slower."""
    return cv2.INTER_CUBIC if ratio < 1 else cv2.INTER_LINEAR if ratio < 1.6 else cv2.INTER_AREA


def colour_matrix(rng: np.random.Generator, amount: float) -> Float64[np.ndarray, "c c"]:
    """Shows the same forms under another light and in other paints: a matrix for linear light.

    At amount 1: exposure from 1 stop down to 1/2 up, white balance within 1/2 stop per channel, any hue, saturation 0 to 1.3.
    """
    exposure = 2 ** (amount * rng.uniform(-1, 0.5))
    balance = 2 ** (amount * rng.uniform(-0.5, 0.5, 3))
    saturation = 1 + amount * rng.uniform(-1, 0.3)
    gray = np.full((3, 3), 1 / 3)
    turn = cv2.Rodrigues(amount * rng.uniform(-np.pi, np.pi) * np.full(3, 3**-0.5))[0]  # about the gray axis
    return exposure * balance[:, None] * (saturation * turn + (1 - saturation) * gray)


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> Int32[np.ndarray, "n"]:
    """In which an epoch visits the photographs."""
    return np.random.default_rng((seed, epoch, 1)).permutation(np.arange(count, dtype=np.int32))


@functools.cache
def _keep_freed_memory() -> None:
    """Lets glibc keep freed images for the next ones, once per process: new pages cost a fourth of the time of a pair."""
    with contextlib.suppress(OSError, AttributeError):  # another C library has other ways
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**30), (_M_TOP_PAD, 2**26)):
            mallopt(option, value)


def batches(
    examples: Examples,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 2,
) -> Iterator[Batch]:
    """This process's rows of the global batches from `start_step` on.

    Args:
      examples: the sequence; global batch k holds indices k * batch_size and on, rows in process order.
      batch_size: of the global batch.
      start_step: the first batch.
      process_index: which rows.
      process_count: of how many processes.
      workers: processes that render; 0 renders in `threads` threads.
      threads: per worker or in this process.

    Raises:
      ValueError: if the batch does not divide over the processes.
    """
    if batch_size % process_count:
        raise ValueError(f"batch_size = {batch_size} does not divide over {process_count} processes")
    cv2.setNumThreads(1)  # examples are rendered side by side; threads inside one would only get in their way
    rows = batch_size // process_count
    # Batch first, then take every process_count-th: a stride over single examples would tie mixtures to hosts.
    indices = grain.MapDataset.range(2**62).map(examples.__getitem__).batch(rows, batch_fn=stack)
    mine = indices[start_step * process_count + process_index :: process_count]
    stream = mine.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(stream)


def stack(edits: list[Edit]) -> Batch:
    """Edits to a batch."""
    return Batch(*(np.stack(leaves) for leaves in zip(*edits, strict=True)))
