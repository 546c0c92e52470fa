"""The stream of training batches, a pure function of (seed, step).

global index -> photograph, crop, recipe -> edit -> batch -> this process's rows. No iterator has a state worth saving: any
step can be computed alone, on any number of processes and workers. `schedule` says where an index stands in a run, `buckets`
which photograph it shows, in which shape.
"""

import collections
import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import itertools
import math
import signal
import sys
import threading
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeVar

import cv2
import grain
import numpy as np
from absl import flags
from jaxtyping import Float64, Int32, Shaped, UInt8

from uniser_jax.data.buckets import Buckets
from uniser_jax.data.pairs import Entry, digest_of, load_usable
from uniser_jax.data.photos import Photo, Photos
from uniser_jax.data.schedule import Schedule
from uniser_jax.effects import edit, light, templates
from uniser_jax.effects.edit import EditSampling, Recipe, Rendering
from uniser_jax.effects.layer import Scene
from uniser_jax.types import Batch, Edit

_Made = TypeVar("_Made", np.ndarray, Photo)

_CROP, _REAL = 4, 5  # tell these uses of a seed from others
_MARGIN = 1.25  # sides of a pair that several views are cut from, over those of a view

# Of colour_matrix: stops of exposure and of each channel, saturation less 1, radians of hue.
_COLOURS = ((-1, 0.5), *3 * ((-0.5, 0.5),), (-1, 0.3), (-0.5, 0.5))

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
_SWITCH = 2e-4  # seconds for which a thread keeps Python's lock from another; 5e-3 costs two threads a twentieth


@dataclasses.dataclass(frozen=True)
class Examples:
    """An endless, random-access sequence of edits.

    Args:
      photos: where they come from; each epoch visits all, in a new order.
      sampling: how edits are drawn.
      schedule: how large, and how many views of a pair.
      seed: of everything.
      colour: how much exposure, white balance, hue and saturation of a photograph vary from visit to visit; 0 to 1.
      smallest: part of a photograph that an example shows, see `Crop`.
      buckets: shapes; by default squares.
      pairs: real pairs, of a manifest.
      real: share of examples that are one of them, drawn, instead of the photograph whose turn it is.
      recent: parts of photographs that were cut a moment ago.
    """

    photos: Photos
    sampling: EditSampling
    schedule: Schedule
    seed: int = 0
    colour: float = 0.0
    smallest: float = 0.35
    buckets: Buckets | None = None
    pairs: tuple[Entry, ...] = ()
    real: float = 0.0
    recent: "Recent" = dataclasses.field(default_factory=lambda: Recent(), compare=False, repr=False)

    def __getitem__(self, index: int) -> Edit:
        """The edit at a global index."""
        return self.views(index)[self.schedule.place(index).view]

    def views(self, index: int) -> list[Edit]:
        """All views of the pair that a global index shows: the edits of the same row of `reuse` batches."""
        _keep_freed_memory()
        scene, recipe = self.recipe(index)
        pair, reuse = Rendering(scene, recipe).edit(), self.schedule.reuse
        if reuse == 1:
            return [pair]
        drawn = self._drawn(index)
        rng = np.random.default_rng((self.seed, drawn.pair, 2))
        mirrored = int(rng.integers(2))  # and every second view, so that neighbours always differ
        return [cut_view(rng, pair, drawn.shape, (view + mirrored) % 2 == 1) for view in range(reuse)]

    def recipe(self, index: int) -> tuple[Scene, Recipe]:
        """What the edit at a global index is made of, for logs and replay; a real pair has its own scene."""
        drawn = self._drawn(index)
        if real := self._real(drawn):
            return real
        rng = np.random.default_rng((self.seed, drawn.pair))
        stops = float(rng.uniform(0, self.sampling.highlight_stops))
        scene = self._view(rng, drawn, drawn.photo, stops)
        recipe = edit.sample(rng, scene, self.sampling)
        if recipe.shows_another:
            # The part that the example before showed: any other would do, but this one was cut a moment ago.
            scene = scene._replace(other=self._view(rng, drawn, drawn.other, stops).radiance)
        return scene, recipe

    def _real(self, drawn: "_Drawn") -> tuple[Scene, Recipe] | None:
        """The same part of a real pair's photographs, and what is asked of it; None where the example is rendered."""
        if not self.pairs:
            return None
        rng = np.random.default_rng((self.seed, drawn.pair, _REAL))
        if rng.random() >= self.real:
            return None
        entry, pair = load_usable(self.pairs, int(rng.integers(len(self.pairs))))
        shape, smallest = self._frame(drawn)
        crop = Crop.sample(rng, smallest, shape[1] / shape[0])
        seen, clean = (light.decode(crop.cut(image, shape)) for image in (pair.input, pair.target))
        removed = None if pair.mask is None else crop.cut(pair.mask, shape)
        return Scene(clean, seen, removed=removed), edit.sample_real(rng, entry.effect, entry.name, self.sampling)

    def _frame(self, drawn: "_Drawn") -> tuple[tuple[int, int], float]:
        """(h, w) of a pair in pixels, and the smallest part of a photograph that it shows."""
        if self.schedule.reuse == 1:
            return drawn.shape, self.smallest
        # The views are smaller than the pair: they are what must show so much.
        return _enlarged(drawn.shape), min(1.0, self.smallest * _MARGIN**2)

    def _view(self, rng: np.random.Generator, drawn: "_Drawn", photo: int, stops: float) -> Scene:
        """The part of a photograph that its epoch shows, in linear light and other colours, with its depth if there is one."""
        shape, smallest = self._frame(drawn)
        crop = _crop(self.seed, drawn.epoch, photo, smallest, shape[1] / shape[0])
        part = self.recent.get((photo, crop, shape), lambda: self._part(photo, crop, shape))
        matrix = colour_matrix(rng, self.colour) if self.colour else None
        return Scene(light.expand_highlights(part.pixels, stops, matrix), depth=part.depth)

    def _part(self, photo: int, crop: "Crop", shape: tuple[int, int]) -> Photo:
        pixels, depth = self.photos.reduced(photo, lambda size: crop.reduction(size, shape))
        if depth is not None:
            depth = np.clip(crop.cut(depth, shape), 0, 1)  # cubic enlargement overshoots
        return Photo(crop.cut(pixels, shape), depth)

    def _drawn(self, index: int) -> "_Drawn":
        """Which photograph a global index shows, and in which shape."""
        place, buckets = self.schedule.place(index), self.buckets or Buckets.square(len(self.photos))
        bucket, number = buckets.find(self.seed, place, self.schedule.reuse)
        members = buckets.members[bucket]
        epoch, turn = divmod(number, len(members))
        order = _order(self.seed, epoch, len(members), bucket)
        photo, other = (int(members[order[one]]) for one in (turn, turn - 1))
        return _Drawn(place.pair, epoch, photo, other, buckets.shape(bucket, place.stage.size))

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
        """A digest of all that the stream depends on but the photographs; equal on all hosts of a healthy run."""
        digest = hashlib.sha256(f"{self.sampling} {self.schedule} {self.seed} {self.colour} {self.smallest}".encode())
        for members in self.buckets.members if self.buckets else ():
            digest.update(np.asarray(members, np.int64).tobytes() + b"\0")
        if self.pairs:
            digest.update(f"{self.real} {digest_of(self.pairs)}".encode())
        flare = self.sampling.families.flare
        if flare.real:
            digest.update(templates.digest_of(flare.layers).encode())
        return digest.hexdigest()[:16]


class _Drawn(NamedTuple):
    """What is drawn for an index before anything random: see `Examples`."""

    pair: int  # its number, the seed of all that is random about it
    epoch: int
    photo: int
    other: int  # for what a window reflects or a patch shows
    shape: tuple[int, int]  # (h, w) of the example in pixels


class Recent:
    """What was made last, by index, so that neighbouring examples share it; threads may too, processes do not.

    Args:
      limit: bytes kept, but for the very last.
      count: of what is kept.
    """

    def __init__(self, limit: int = 2**26, count: int = 8):
        self._limit, self._count, self._bytes = limit, count, 0
        self._kept: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, index: Hashable, make: Callable[[], _Made]) -> _Made:
        """What was made of an index, made if it is not kept."""
        with self._lock:
            if index in self._kept:
                return self._kept[index]
        made = make()
        with self._lock:
            self._bytes += made.nbytes if index not in self._kept else 0
            self._kept[index] = made
            while (self._bytes > self._limit and len(self._kept) > 1) or len(self._kept) > self._count:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Recent, (self._limit, self._count)


class Crop(NamedTuple):
    """A part of a photograph of any size.

    Args:
      top: 0 at the photograph's upper edge, 1 at its lower.
      left: the same, across.
      side: as a share of the largest part of its aspect.
      mirrored: whether left and right are exchanged.
      aspect: width over height.
    """

    top: float
    left: float
    side: float
    mirrored: bool
    aspect: float = 1.0

    @classmethod
    def sample(cls, rng: np.random.Generator, smallest: float = 0.35, aspect: float = 1.0) -> Self:
        """Draws a part.

        Args:
          rng: source of place and size.
          smallest: area of the part, at least, as a share of the largest of its aspect. Large parts are the rule, because
            haze and flare are recognised by the whole picture.
          aspect: of the part, width over height.
        """
        area, top, left, coin = rng.random(4).tolist()
        return cls(top, left, math.sqrt(smallest + (1 - smallest) * area), coin < 0.5, aspect)

    def reduction(self, photo: tuple[int, int], shape: tuple[int, int]) -> int:
        """How many times smaller a photograph of a shape may be decoded (1, 2, 4 or 8) and the part still fill `shape`."""
        height = self.side * _largest(photo, self.aspect)[0]
        return max(factor for factor in (1, 2, 4, 8) if factor == 1 or height // factor >= shape[0])

    def cut(self, image: Shaped[np.ndarray, "h w *c"], shape: tuple[int, int]) -> Shaped[np.ndarray, "k l *c"]:
        """The part, scaled to k x l = `shape` pixels."""
        height, width = (max(1, int(self.side * length)) for length in _largest(image.shape[:2], self.aspect))
        top, left = int(self.top * (image.shape[0] - height)), int(self.left * (image.shape[1] - width))
        part = image[top : top + height, left : left + width]
        view = cv2.resize(part, shape[::-1], interpolation=_interpolation(height / shape[0]))
        return cv2.flip(view, 1) if self.mirrored else view


def _largest(shape: tuple[int, ...], aspect: float) -> tuple[float, float]:
    """The sides (h, w) of the largest part of an aspect."""
    height = min(shape[0], shape[1] / aspect)
    return height, height * aspect


def cut_view(rng: np.random.Generator, pair: Edit, shape: tuple[int, int], mirrored: bool) -> Edit:
    """A part of a larger pair; pixels stay as they are, so the target stays exact."""
    top, left = (int(rng.integers(n - k + 1)) for n, k in zip(pair.mask.shape, shape, strict=True))
    step = -1 if mirrored else 1

    def cut(image: np.ndarray) -> np.ndarray:
        return image[top : top + shape[0], left : left + shape[1]][:, ::step]

    return pair._replace(input=cut(pair.input), target=cut(pair.target), mask=cut(pair.mask))


def _enlarged(shape: tuple[int, int]) -> tuple[int, int]:
    """Of a pair that views of a shape are cut from."""
    h, w = (round(_MARGIN * side) for side in shape)
    return h, w


def random_crop(
    rng: np.random.Generator, photo: UInt8[np.ndarray, "h w c"], size: int, smallest: float = 0.35
) -> UInt8[np.ndarray, "s s c"]:
    """A random square part of a photograph; see `Crop`."""
    return Crop.sample(rng, smallest).cut(photo, (size, size))


def _interpolation(ratio: float) -> int:
    """Of a reduction by `ratio`: averaging only where a bilinear step would skip pixels; it is four times slower."""
    return cv2.INTER_CUBIC if ratio < 1 else cv2.INTER_LINEAR if ratio <= 2 else cv2.INTER_AREA


def colour_matrix(rng: np.random.Generator, amount: float) -> Float64[np.ndarray, "c c"]:
    """Shows the same forms under another light and in other paints: a matrix for linear light.

    At amount 1: exposure from 1 stop down to 1/2 up, white balance within 1/2 stop per channel, hues
    turned by up to 1/2 radian (more, and skies are violet), saturation 0 to 1.3.
    """
    drawn = zip(_COLOURS, rng.random(6).tolist(), strict=True)
    exposure, red, green, blue, saturation, hue = (amount * (low + (high - low) * u) for (low, high), u in drawn)
    turn = [2 / 3 * (1 + saturation) * math.cos(hue + 2 / 3 * math.pi * k) for k in range(3)]  # about the gray axis
    gains = (2 ** (exposure + stops) for stops in (red, green, blue))
    return np.array([[gain * (turn[i - j] + 1 / 3) for j in range(3)] for i, gain in enumerate(gains)])


@functools.lru_cache(maxsize=64)
def _crop(seed: int, epoch: int, photo: int, smallest: float, aspect: float) -> Crop:
    """The part of a photograph that an epoch shows; the example after it may reflect the same part."""
    return Crop.sample(np.random.default_rng((seed, epoch, _CROP, photo)), smallest, aspect)


@functools.lru_cache(maxsize=16)
def _order(seed: int, epoch: int, count: int, bucket: int) -> Int32[np.ndarray, "n"]:
    """In which an epoch visits the photographs of a bucket."""
    return np.random.default_rng((seed, epoch, 1, bucket)).permutation(np.arange(count, dtype=np.int32))


@functools.cache
def _keep_freed_memory() -> None:
    """Lets glibc keep freed images for the next ones, once per process: new pages cost a fourth of the time of a pair."""
    with contextlib.suppress(OSError, AttributeError):  # another C library has other ways
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**30), (_M_TOP_PAD, 2**26)):
            mallopt(option, value)


def batches(
    examples: Examples,
    start_step: int = 0,
    blocks: Sequence[int] = (0,),
    block_count: int = 1,
    workers: int = 0,
    threads: int = 2,
) -> Generator[Batch]:
    """This process's rows of the global batches from `start_step` on.

    Args:
      examples: the sequence; its schedule says which indices are global batch k, row by row.
      start_step: the first batch.
      blocks: of rows that this process loads, see `mesh.batch_part`.
      block_count: of the whole batch, equal ones.
      workers: processes that render; 0 renders in `threads` threads.
      threads: per worker or in this process.

    Raises:
      ValueError: if a batch does not divide into so many blocks.
    """
    for stage in examples.schedule.stages:
        if stage.batch_size % block_count:
            raise ValueError(f"batch_size = {stage.batch_size} does not divide into {block_count} blocks of rows")
    _suit_threads()
    reuse = examples.schedule.reuse
    # Groups of batches, each whole: a stride over single examples would tie mixtures to hosts, and over batches of a
    # group would render its pairs twice.
    groups = grain.MapDataset.range(2**62).map(_Rows(examples, tuple(blocks), block_count))[start_step // reuse :]
    ahead = max(threads, 2 * threads // reuse)
    stream = groups.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
    if workers:
        start = functools.partial(_start_worker, templates.known())
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), start)
    return _flat(iter(stream), start_step % reuse)


def _start_worker(layers: Mapping[str, tuple[str, ...]], *_: int) -> None:
    """In a process of its own: Ctrl-C reaches all processes of a terminal, but it is the trainer who ends its workers.

    Args:
      layers: what the trainer found in folders of flares.
    """
    templates.tell(layers)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _suit_threads()


def _suit_threads() -> None:
    """Examples are rendered side by side: threads inside one would only get in their way, and none waits long for the lock."""
    cv2.setNumThreads(1)
    sys.setswitchinterval(_SWITCH)


def _flat(groups: Any, skipped: int) -> Generator[Batch]:
    """The batches of groups, without the first ones; closing it ends what reads ahead."""
    try:
        yield from itertools.islice(itertools.chain.from_iterable(groups), skipped, None)
    finally:
        groups.close()


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Makes one process's rows of all batches of a group."""

    examples: Examples
    blocks: tuple[int, ...]
    block_count: int

    def __call__(self, group: int) -> list[Batch]:
        reuse = self.examples.schedule.reuse
        indices = self.examples.schedule.indices(group * reuse)
        rows = len(indices) // self.block_count
        mine = [index for block in self.blocks for index in indices[block * rows :][:rows]]
        return [stack(edits) for edits in zip(*map(self.examples.views, mine), strict=True)]


def stack(edits: Sequence[Edit]) -> Batch:
    """Edits to a batch."""
    return Batch(*(np.stack(leaves) for leaves in zip(*edits, strict=True)))
