"""Photographs as files: read upright, written whole, with everything a photographer keeps in them.

What comes back is the same file, only better: same format and quality, bit depth, EXIF, XMP, IPTC, texts, colour
profile, resolution and alpha; what the format of the output cannot hold is named in the log. Where no pixel has changed
and the format stays, the bytes of the file are copied: encoding a JPEG again would change pixels that nobody asked to
change.
"""

import contextlib
import dataclasses
import io
import os
import pathlib
import shutil
import struct
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
from absl import logging
from jaxtyping import Shaped, UInt8
from PIL import Image, PngImagePlugin

from uniser_jax import atomic, decoding
from uniser_jax.errors import reason_of
from uniser_jax.restore import colour, exif, metadata

FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
MIN_SIDE = 16
_MAX_SIDES = {"JPEG": 65_500, "WEBP": 16_383}  # of libjpeg and of the format
MAX_PIXELS = 200_000_000
_MAX_TEXT = 2**24  # bytes of a profile or text of a PNG file: Pillow's own limit is below what editors write
_KIND, _OTHERS, _DNG = 254, 330, 50_706  # tags of TIFF: NewSubfileType, SubIFDs, DNGVersion
# What other formats have at a place in a file.
_REFUSED = (
    *((4, b"ftyp" + brand, "HEIC") for brand in (b"heic", b"heix", b"heim", b"hevc", b"mif1", b"msf1")),
    *((4, b"ftyp" + brand, "AVIF") for brand in (b"avif", b"avis")),
    *((0, mark, "camera RAW") for mark in (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"IIU\0")),
    *((4, b"ftypcrx", "camera RAW"), (0, b"GIF8", "GIF"), (0, b"BM", "BMP"), (0, b"8BPS", "Photoshop's own format")),
)
_COLOURED = 64  # levels between channels, which no gray mask has, even after JPEG

Path = str | os.PathLike[str]


class RestoreError(ValueError):
    """A mistake of the caller's, in one line."""


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photograph and what its file said about it.

    Args:
      pixels: uint8 or uint16, upright; [h w 3], or [h w] if the file is gray. They are sRGB, converted if the file has
        another profile of RGB with curves and primaries; other profiles, and a PNG's gamma, are kept but not looked at.
      own: the same as they lie in the file, in its own colours.
      space: what these mean where it is not sRGB.
      alpha: coverage, of the same type as the pixels, or None.
      notes: what the file says beside them.
      format: JPEG, PNG, WEBP or TIFF.
      settings: what Pillow needs to save in this format at the same quality.
      source: the bytes of the file.
    """

    pixels: Shaped[np.ndarray, "h w *c"]
    own: Shaped[np.ndarray, "h w *c"]
    space: colour.Space | None
    alpha: Shaped[np.ndarray, "h w"] | None
    notes: metadata.Notes
    format: str
    settings: Mapping[str, Any]
    source: bytes = dataclasses.field(repr=False)


def read_photo(path: Path) -> Photo:
    """Reads a photograph.

    Raises:
      RestoreError: if the file is missing, empty, damaged, no supported photograph, too small or too large.
    """
    source = _read_bytes(path)
    with _opened(path, source) as image:
        stored = _decode_16(image, source) if _bits(path, image, source) == 16 else _decode_8(image)
        orientation = exif.orientation_of(image)
        own, alpha = _split(decoding.upright(stored, orientation))
        notes = metadata.notes_of(image, source, orientation)
        space = colour.space_of(notes.icc, own.dtype) if own.ndim == 3 else None
        return Photo(
            pixels=own if space is None else space.to_srgb(own),
            own=own,
            space=space,
            alpha=alpha,
            notes=notes,
            format="JPEG" if image.format == "MPO" else str(image.format),
            settings=metadata.settings_of(image, source),
            source=source,
        )


def write_photo(path: Path, photo: Photo, pixels: Shaped[np.ndarray, "h w *c"]) -> None:
    """Writes `pixels` in place of those of `photo`, in the format of the suffix, whole or not at all.

    Whatever the format cannot hold is dropped: alpha, 16 bits, notes; one warning in the log names it. JPEG and lossy WebP are
    encoded again as a whole unless no pixel has changed; PNG, TIFF and lossless WebP keep every unchanged pixel.

    Args:
      path: of the output; its folder must exist.
      photo: where the pixels came from.
      pixels: restored, same shape and type as `photo.pixels`.

    Raises:
      RestoreError: for an unsupported suffix, a missing folder, pixels of another shape or too many, or a full disk.
    """
    check_output(path, photo)
    path = pathlib.Path(path)
    if pixels.shape != photo.pixels.shape or pixels.dtype != photo.pixels.dtype:
        raise RestoreError(
            f"{path}: pixels {pixels.dtype} {pixels.shape}, expected {photo.pixels.dtype} {photo.pixels.shape}"
        )
    format = FORMATS[path.suffix.lower()]
    unchanged = format == photo.format and np.array_equal(pixels, photo.pixels)
    if photo.space is not None:
        pixels = photo.space.from_srgb(photo.own, photo.pixels, pixels)
    _write_whole(path, photo.source if unchanged else _encode(path, photo, pixels, format))


def check_output(path: Path, photo: Photo | None = None) -> None:
    """Checks, before any work is done, that `photo` can be written to `path`.

    Raises:
      RestoreError: for an unsupported suffix, a folder, a missing folder, a link to a file of another format, or a photograph
        too large for the format.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise RestoreError(f"{path}: is a folder; name a file")
    if path.suffix.lower() not in FORMATS:
        raise RestoreError(f"{path}: cannot write {path.suffix or 'a file without suffix'}; use {', '.join(FORMATS)}")
    target = pathlib.Path(os.path.realpath(path))
    if FORMATS.get(target.suffix.lower(), FORMATS[path.suffix.lower()]) != FORMATS[path.suffix.lower()]:
        raise RestoreError(f"{path}: is a link to {target.name}, of another format; name a file")
    if not path.parent.is_dir():
        raise RestoreError(f"{path}: folder {path.parent} does not exist; make it first")
    format = FORMATS[path.suffix.lower()]
    if photo is not None and max(photo.pixels.shape[:2]) > _MAX_SIDES.get(format, MAX_PIXELS):
        raise RestoreError(f"{path}: {format} holds at most {_MAX_SIDES[format]} px a side; write a PNG or TIFF")


def read_mask(path: Path, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Reads a soft mask aM: white asks for the whole effect, black for no change.

    Its alpha channel is taken if anything of it is transparent, its brightness otherwise.

    Args:
      path: of an image.
      size: (height, width) of the photograph.

    Raises:
      RestoreError: as `read_photo`, and for a mask of another size or with colours.
    """
    mask = read_photo(path)
    if mask.pixels.shape[:2] != tuple(size):
        (height, width), (expected_height, expected_width) = mask.pixels.shape[:2], size
        raise RestoreError(
            f"{path}: mask of {width} x {height} px for a photograph of {expected_width} x {expected_height} px;"
            + (" turn it upright, as the photograph is shown" if (width, height) == tuple(size) else " resize the mask")
        )
    if mask.alpha is not None and mask.alpha.min() < np.iinfo(mask.alpha.dtype).max:
        return _to_8(mask.alpha)
    pixels = _to_8(mask.pixels)
    if pixels.ndim == 3 and (np.ptp(pixels, -1) > _COLOURED).mean() > 1e-3:
        raise RestoreError(f"{path}: the mask has colours; paint white on black, or anything on transparency")
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def _read_bytes(path: Path) -> bytes:
    try:
        source = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise RestoreError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    if not source:
        raise RestoreError(f"{path}: the file is empty")
    return source


@contextlib.contextmanager
def _opened(path: Path, source: bytes) -> Iterator[Image.Image]:
    """The decoded picture of a file; whatever a decoder raises for a hostile or damaged file becomes one line."""
    try:
        with _limits(), Image.open(io.BytesIO(source), formats=["JPEG", "PNG", "WEBP", "TIFF"]) as image:
            _check(path, image, source)
            image.load()
            yield image
    except RestoreError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RestoreError(f"{path}: too large, expected at most {MAX_PIXELS // 10**6} megapixels") from None
    except Image.UnidentifiedImageError:
        name = next((name for at, mark, name in _REFUSED if source.startswith(mark, at)), "")
        found = f"{name} is not supported; export it as" if name else "not a photograph that can be read; expected"
        raise RestoreError(f"{path}: {found} JPEG, PNG, WebP or TIFF") from None
    except Exception as error:  # decoders raise anything, from SyntaxError to struct.error
        raise RestoreError(f"{path}: damaged or truncated ({_line(error)})") from None


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Makes Pillow refuse, before it decodes anything, what would fill the memory, and nothing that is smaller."""
    pixels, text = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = MAX_PIXELS, _MAX_TEXT
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = pixels, text


def _check(path: Path, image: Image.Image, source: bytes) -> None:
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise RestoreError(f"{path}: {width} x {height} px is too small, expected at least {MIN_SIDE} px a side")
    if image.mode in ("CMYK", "YCCK", "LAB", "HSV", "F", "I"):
        raise RestoreError(f"{path}: colour mode {image.mode} is not supported; convert it to RGB first")
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        # The first directory is a preview; the photograph lies in another, as sensors see it.
        if _DNG in tags or (_OTHERS in tags and tags.get(_KIND, 0) & 1):
            raise RestoreError(f"{path}: camera RAW is not supported; develop it to a 16-bit PNG")
        if b"\x2b" in source[2:4]:
            raise RestoreError(f"{path}: BigTIFF is not supported; save it as a TIFF")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a phone's JPEG with a preview or depth map behind the photograph
        raise RestoreError(f"{path}: holds {frames} pictures, expected one")


def _bits(path: Path, image: Image.Image, source: bytes) -> int:
    if image.format == "PNG":
        return source[24]  # of IHDR, the first chunk; Pillow would reduce 16 bits to 8
    if image.format == "TIFF" and max(image.tag_v2.get(258, (1,))) > 8:  # type: ignore[attr-defined]
        raise RestoreError(f"{path}: TIFF of more than 8 bits is not supported yet; save it as a 16-bit PNG")
    return 8


def _decode_8(image: Image.Image) -> UInt8[np.ndarray, "h w *c"]:
    gray = image.mode in ("1", "L", "LA", "La")
    mode = ("LA" if gray else "RGBA") if image.has_transparency_data else ("L" if gray else "RGB")
    return np.asarray(image.convert(mode))


def _decode_16(image: Image.Image, source: bytes) -> Shaped[np.ndarray, "h w *c"]:
    pixels = cv2.imdecode(np.frombuffer(source, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError("16-bit PNG cannot be decoded")
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    if source[25] == 4:  # gray and alpha, which OpenCV spreads over four channels
        pixels = pixels[..., [0, 3]]
    if pixels.ndim == 2 and "transparency" in image.info:  # a level, which OpenCV overlooks in gray
        pixels = np.dstack([pixels, np.where(pixels == image.info["transparency"], 0, 65_535).astype(np.uint16)])
    return pixels


def _split(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels [h w 3], or [h w] of a gray photograph, and alpha."""
    if stored.ndim == 2 or stored.shape[2] == 3:
        return stored, None
    colours = stored[..., 0] if stored.shape[2] == 2 else stored[..., :3]
    return np.ascontiguousarray(colours), np.ascontiguousarray(stored[..., -1])


def _encode(path: Path, photo: Photo, pixels: np.ndarray, format: str) -> bytes:
    settings = metadata.settings_for(format, photo.format, photo.settings)
    notes, lost = metadata.held(photo.notes, format, gray=pixels.ndim == 2 and format != "WEBP")
    alpha = photo.alpha
    if format == "JPEG" and alpha is not None:
        lost.append("alpha")
        alpha = None
    if format != "PNG" and pixels.dtype == np.uint16:
        lost.append("8 of 16 bits")
        pixels, alpha = _to_8(pixels), None if alpha is None else _to_8(alpha)
    if lost:
        logging.warning("%s: %s cannot keep %s", path, format, ", ".join(lost))
    try:
        if format == "PNG":
            return metadata.with_chunks(_png(pixels, alpha), notes)
        write = {"JPEG": metadata.jpeg, "TIFF": metadata.tiff, "WEBP": metadata.webp}[format]
        return write(Image.fromarray(_joined(pixels, alpha)), notes, settings)
    except (OSError, ValueError, struct.error, cv2.error) as error:
        raise RestoreError(f"{path}: cannot be written as {format} ({_line(error)})") from None


def _joined(pixels: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    return pixels if alpha is None else np.dstack([pixels, alpha])


def _png(pixels: np.ndarray, alpha: np.ndarray | None) -> bytes:
    if pixels.dtype == np.uint8:
        buffer = io.BytesIO()
        Image.fromarray(_joined(pixels, alpha)).save(buffer, "PNG")
        return buffer.getvalue()
    if pixels.ndim == 2 and alpha is not None:
        pixels = np.stack([pixels] * 3, -1)
    if pixels.ndim == 3:
        pixels = pixels[..., ::-1]
    return cv2.imencode(".png", np.ascontiguousarray(_joined(pixels, alpha)))[1].tobytes()


def _to_8(levels: np.ndarray) -> UInt8[np.ndarray, "..."]:
    return levels if levels.dtype == np.uint8 else ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _write_whole(path: pathlib.Path, data: bytes) -> None:
    """An interrupted run leaves no half photograph.

    A link stays one, and what it names is written; a file that was there is as private as before.
    """
    target = pathlib.Path(os.path.realpath(path))
    there = target.exists()
    try:
        with atomic.opened(target, 0o600 if there else 0o666) as file:
            file.write(data)
            if there:
                shutil.copymode(target, pathlib.Path(file.name))
    except OSError as error:
        raise RestoreError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def _line(error: Exception) -> str:
    return reason_of(error)[:100]
