"""Clean photographs by index: a folder, TFDS, ArrayRecord, or the samples that scikit-image ships.

Whatever lies in a file becomes upright 8-bit RGB in sRGB (see `decoding`). Files that are empty, unreadable or tiny are
skipped with one warning that names them. One that fails only when it is decoded is replaced by the next good one, always
the same, so a stream of examples stays a pure function of its index.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import importlib.util
import io
import itertools
import math
import os
import pathlib
import re
import stat
from collections.abc import Sequence
from typing import IO, Any, NamedTuple, Protocol

from absl import logging
from PIL import UnidentifiedImageError

from uniser_jax.decoding import ORIENTATION, Depth, Pixels, Reduction, decode, decode_depth, opened, upright, whole
from uniser_jax.errors import listed, reason_of

READERS = 32  # threads that read headers: they wait for disks
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
# Those of scikit-image's data folder that are photographs and lie in its wheel.
_SAMPLES = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "motorcycle_left.png",
    "rocket.jpg",
)

# PHOTO_depth.png beside a photograph is its depth: gray, 8 or 16 bit, larger is farther, 0 is unknown.
_DEPTH = "_depth.png"
_ASPECTS = 1.1  # a map's may differ so much from its photograph's


class Photo(NamedTuple):
    """A photograph, and how far each of its pixels is, 0 at the camera and 1 far, where that is known; sizes may differ."""

    pixels: Pixels
    depth: Depth | None = None

    @property
    def nbytes(self) -> int:
        """Of both."""
        return self.pixels.nbytes + (0 if self.depth is None else self.depth.nbytes)


class Photos(Protocol):
    """Random access to photographs; for one that cannot be decoded the next of the same set stands in."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Pixels:
        """The photograph at its full size; see `reduced`."""
        if index >= len(self):  # which ends a loop over all
            raise IndexError(f"photograph {index} of {len(self)}")
        return self.reduced(index, whole).pixels

    def reduced(self, index: int, reduction: Reduction) -> Photo:
        """The photograph, as much smaller as it may be if it can be decoded so in less time, else as it is.

        Raises:
          ValueError: if neither it nor any other can be decoded.
        """
        for offset in range(len(self)):
            candidate = (index + offset) % len(self)
            try:
                return self.decoded(candidate, reduction)
            except (OSError, ValueError, RuntimeError) as error:
                warn_once(self.name(candidate), reason_of(error))
        raise ValueError(f"none of {len(self)} photographs can be decoded")

    def decoded(self, index: int, reduction: Reduction) -> Photo:
        """This very photograph.

        Raises:
          OSError, ValueError, RuntimeError: if it cannot be decoded, or is too small.
        """
        ...

    def name(self, index: int) -> str:
        """A stable name, for splits and messages."""
        ...

    def nbytes(self, index: int) -> int:
        """How long the file is; 0 where only reading it would tell."""
        ...

    def shape(self, index: int) -> tuple[int, int]:
        """(h, w) of the photograph in pixels, from its header."""
        ...


def open_photos(spec: str, min_side: int = 64) -> Photos:
    """Opens photographs.

    Args:
      spec: `samples`, a folder (searched recursively), `tfds:NAME[:SPLIT[:KEY]]` as in `tfds:coco/2017:1.1.0:train[:90%]`, or
        `array_record:GLOB`.
      min_side: photographs with a shorter side in pixels are skipped.

    Raises:
      ValueError: if there is nothing there, or nothing usable.
    """
    kind, _, rest = spec.partition(":")
    if spec == "samples":
        return samples()
    if kind == "tfds":
        return _tfds(rest, min_side)
    if kind == "array_record":
        return _array_record(rest, min_side)
    return folder(spec, min_side)


def samples() -> Photos:
    """scikit-image's photographs, read from its wheel; nothing is downloaded."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise ValueError("the sample photographs need scikit-image: pip install scikit-image")
    root = pathlib.Path(found.origin).parent / "data"
    return Files(paths=tuple(str(root / name) for name in _SAMPLES), cached=True)


def folder(path: str, min_side: int = 64) -> Photos:
    """All photographs under a folder; headers are read now, pixels when asked for.

    Raises:
      ValueError: if the folder does not exist or holds no usable photograph.
    """
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"no folder of photographs at {path!r}; give a folder, samples, tfds:NAME or array_record:GLOB"
        )
    found = [file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES]
    stems = {file.with_suffix("") for file in found}
    depths = frozenset(str(file) for file in found if _is_depth_of(file, stems))
    files = sorted({str(file) for file in found} - depths)
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        reasons = pool.map(_unusable, files, itertools.repeat(min_side))
    bad = {file: reason for file, reason in zip(files, reasons, strict=True) if reason}
    if bad:
        _warn_skipped([f"{pathlib.Path(file).name} ({reason})" for file, reason in bad.items()])
    good = tuple(file for file in files if file not in bad)
    if not good:
        raise ValueError(f"{path!r} holds no photograph of at least {min_side} px ({len(files)} files looked at)")
    return Files(paths=good, depths=depths, min_side=min_side, skipped=len(bad))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded(Photos):
    """Photographs that lie encoded in records; the base of all sources here.

    Args:
      min_side: shorter ones count as unusable.
      skipped: how many were left out at opening.
    """

    min_side: int = 64
    skipped: int = 0

    def __len__(self) -> int:
        raise TypeError("a subclass knows its length")

    def name(self, index: int) -> str:
        """The index itself."""
        return f"{index:09d}"

    def nbytes(self, index: int) -> int:
        """0: records tell their length when they are read."""
        return 0

    def shape(self, index: int) -> tuple[int, int]:
        """(h, w) in pixels, upright; (1, 1) of what cannot be read, for another will stand in for it."""
        try:
            with self.open(index) as file, opened(file) as image:
                turned = image.getexif().get(ORIENTATION, 1) >= 5
                return image.size if turned else image.size[::-1]
        except (OSError, ValueError, RuntimeError):
            return 1, 1

    def open(self, index: int) -> IO[bytes]:
        """The encoded image as a file."""
        return io.BytesIO(self.read(index))

    def read(self, index: int) -> bytes:
        """The encoded image."""
        raise TypeError("a subclass knows its records")

    def orientation(self, index: int) -> int:
        """Of the stored image, by EXIF; 1 is upright.

        Raises:
          OSError, ValueError: if it cannot be read.
        """
        with self.open(index) as file, opened(file) as image:
            return image.getexif().get(ORIENTATION, 1)

    def depth(self, index: int, shape: tuple[int, ...]) -> Depth | None:
        """Of this very image, which is (h, w) when upright, see Photo; None: records hold no depth."""
        return None

    def decoded(self, index: int, reduction: Reduction) -> Photo:
        """See Photos."""
        pixels = decode(self.read(index), reduction)
        if min(pixels.shape[:2]) < self.min_side:
            if reduction is not whole:
                return self.decoded(index, whole)  # only the whole tells whether it is too small
            raise ValueError(f"{pixels.shape[1]} x {pixels.shape[0]} px")
        return Photo(pixels, self.depth(index, pixels.shape[:2]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files(Encoded):
    """Photographs in files.

    Args:
      min_side: see Encoded.
      skipped: see Encoded.
      paths: of the files.
      depths: of the maps that lie beside them.
      cached: whether decoded photographs stay in memory; for a handful.
    """

    paths: tuple[str, ...]
    depths: frozenset[str] = frozenset()
    cached: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The last two parts of the path."""
        return "/".join(self.paths[index].split(os.sep)[-2:])

    def nbytes(self, index: int) -> int:
        """Of the file; 0 if it has gone."""
        try:
            return pathlib.Path(self.paths[index]).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def open(self, index: int) -> IO[bytes]:
        """The file."""
        return pathlib.Path(self.paths[index]).open("rb")

    def read(self, index: int) -> bytes:
        """The file."""
        with open(self.paths[index], "rb") as file:
            return file.read()

    def decoded(self, index: int, reduction: Reduction) -> Photo:
        """See Encoded; what stays in memory is not decoded again."""
        return _cached(self, index) if self.cached else super().decoded(index, reduction)

    def depth(self, index: int, shape: tuple[int, ...]) -> Depth | None:
        """From the file beside the photograph; one unreadable or of another shape counts as missing, with a warning."""
        path = os.path.splitext(self.paths[index])[0] + _DEPTH
        if path not in self.depths:
            return None
        try:
            if not os.path.isfile(path):
                raise ValueError("not a file")
            depth = decode_depth(pathlib.Path(path).read_bytes())
            if _alike(depth.shape, shape):
                return depth
            if _alike(depth.shape[::-1], shape) and (orientation := self.orientation(index)) in (5, 6, 7, 8):
                return upright(depth, orientation)  # it lies as the photograph was stored
            raise ValueError(f"{depth.shape[1]} x {depth.shape[0]} px of one that is {shape[1]} x {shape[0]}")
        except (OSError, ValueError) as error:
            warn_once(os.path.basename(path), reason_of(error), "a procedural depth stands in")
            return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records(Encoded):
    """Photographs in a random-access source whose elements are encoded bytes, or dicts that hold them.

    Args:
      min_side: see Encoded.
      skipped: see Encoded.
      source: of the elements.
      key: of the image in an element, None where the element is the image.
    """

    source: Any
    key: str | None = None

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> bytes:
        """The encoded image of an element."""
        element = self.source[index]
        return element if self.key is None else element[self.key]


@dataclasses.dataclass(frozen=True)
class Subset(Photos):
    """Some photographs of a source, in a given order."""

    photos: Photos
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def decoded(self, index: int, reduction: Reduction) -> Photo:
        """As in the source."""
        return self.photos.decoded(self.indices[index], reduction)

    def name(self, index: int) -> str:
        """As in the source."""
        return self.photos.name(self.indices[index])

    def nbytes(self, index: int) -> int:
        """As in the source."""
        return self.photos.nbytes(self.indices[index])

    def shape(self, index: int) -> tuple[int, int]:
        """As in the source."""
        return self.photos.shape(self.indices[index])


def encoded_name(photos: Photos, index: int) -> bytes:
    """A photograph's name for a digest; on disks a name is bytes, and not all are UTF-8."""
    return photos.name(index).encode("utf-8", "surrogateescape")


def split(photos: Photos, holdout: float) -> tuple[Photos, Photos]:
    """To train on, and held out: chosen by a hash of the name, so that the order and location of files do not matter.

    Args:
      photos: at least two.
      holdout: share that is held out; both parts get at least one.

    Raises:
      ValueError: for a single photograph.
    """
    if len(photos) < 2:
        raise ValueError("a single photograph cannot be split into training and held-out parts; give two or more")
    ranked = sorted(range(len(photos)), key=lambda i: hashlib.sha256(encoded_name(photos, i)).digest())
    count = min(max(1, round(holdout * len(photos))), len(photos) - 1)
    return Subset(photos, tuple(sorted(ranked[count:]))), Subset(photos, tuple(sorted(ranked[:count])))


def _tfds(rest: str, min_side: int) -> Photos:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ValueError(
            "tfds: photographs need tensorflow-datasets: pip install -c constraints.txt -e '.[tfds]'"
        ) from None
    name, part, key = _tfds_parts(rest)
    try:
        builder = tfds.builder(name)
        if key not in builder.info.features:
            raise ValueError(f"tfds:{name} has no feature {key!r}; it has {', '.join(builder.info.features)}")
        # SkipDecoding: the encoded bytes go through our decoder, as all other files do.
        source = builder.as_data_source(split=part, decoders={key: tfds.decode.SkipDecoding()})
    except (tfds.core.registered.DatasetNotFoundError, FileNotFoundError, NotImplementedError, KeyError) as error:
        raise ValueError(f"tfds:{rest} cannot be read: {reason_of(error)}; prepare it first") from None
    return _usable(Records(min_side=min_side, source=source, key=key), f"tfds:{rest}")


def _tfds_parts(rest: str) -> tuple[str, str, str]:
    """Name with its config and version, split, key, of such as `coco/2017:1.1.0:train[:90%]:image`."""
    name, *parts = re.split(r":(?![^\[]*\])", rest)  # a colon within brackets belongs to a slice
    if parts and re.fullmatch(r"[\d*]+(\.[\d*]+){2}", parts[0]):
        name = f"{name}:{parts.pop(0)}"
    if len(parts) > 2:
        raise ValueError(f"tfds:{rest} has too many parts: expected tfds:NAME[:SPLIT[:KEY]]")
    part, key = (*parts, "", "")[:2]
    return name, part or "train", key or "image"


def _array_record(pattern: str, min_side: int) -> Photos:
    import glob

    import grain

    paths = sorted(glob.glob(pattern))
    if not paths:
        raise ValueError(f"no ArrayRecord file matches {pattern!r}")
    try:
        source = grain.sources.ArrayRecordDataSource(paths)
        return _usable(Records(min_side=min_side, source=source), f"array_record:{pattern}")
    except RuntimeError as error:
        raise ValueError(f"array_record:{pattern} cannot be read: {str(error) or 'truncated or corrupt'}") from None


def _usable(photos: Records, spec: str) -> Photos:
    if not len(photos):
        raise ValueError(f"{spec} is empty")
    return photos


@functools.lru_cache(maxsize=64)
def _cached(files: Files, index: int) -> Photo:
    return Encoded.decoded(files, index, whole)


def _alike(one: tuple[int, ...], two: tuple[int, ...]) -> bool:
    """Whether two shapes have the same aspect, but for what resizing to whole patches of a network may change."""
    return abs(math.log(one[0] * two[1] / (one[1] * two[0]))) < math.log(_ASPECTS)


def _is_depth_of(file: pathlib.Path, stems: set[pathlib.Path]) -> bool:
    return file.name.endswith(_DEPTH) and file.with_name(file.name.removesuffix(_DEPTH)) in stems


def _unusable(path: str, min_side: int) -> str:
    """Why a file's header rules it out; empty when it does not. What is no file is not opened: a pipe would wait for ever."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            return "not a file"
        with opened(path) as image:
            return f"{image.width} x {image.height} px" if min(image.size) < min_side else ""
    except FileNotFoundError:  # a link to nothing
        return "missing"
    except UnidentifiedImageError:
        return "not an image" if found.st_size else "empty"
    except (OSError, ValueError) as error:
        return reason_of(error)


def _warn_skipped(named: Sequence[str]) -> None:
    logging.warning("skipped %d unusable photographs: %s", len(named), listed(named))


@functools.lru_cache(maxsize=10_000)
def warn_once(name: str, reason: str, remedy: str = "the next one stands in") -> None:
    """Says what cannot be used and what happens instead, once per process."""
    logging.warning("%s cannot be used (%s); %s", name, reason, remedy)
