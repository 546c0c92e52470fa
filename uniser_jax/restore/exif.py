"""EXIF of a photograph that was turned and changed: a block of TIFF (EXIF 2.32, section 4.5), patched in place.

Nothing moves: cameras keep offsets of their own in it, which a rewritten block would break.
"""

import contextlib
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

HEADER = b"Exif\0\0"  # in JPEG files
ORIENTATION = 0x0112

_SHORT, _LONG = 3, 4
_NO_NUMBERS = (1, 2, 7)  # bytes and text: an orientation of that type is not obeyed
_PARTS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
_WIDTHS, _HEIGHTS = (0x0100, 0xA002), (0x0101, 0xA003)  # of the picture, in the first directory and in EXIF's own
# What of a TIFF's first directory says how its pixels are stored, or is a note of another kind.
_STORAGE = {*range(254, 269), *range(273, 282), 284, *range(288, 294), 301, *range(317, 348), *range(512, 533)}
_STORAGE |= {700, 33_723, 34_377, 34_675, 37_724}  # XMP, IPTC, Photoshop's resources, profile, layers


def fitted(exif: bytes, size: tuple[int, int]) -> bytes:
    """EXIF for the picture as it is written: upright, of `size`, without the thumbnail of what it was.

    Args:
      exif: raw, with any number of `Exif` headers; damaged ones are passed on as they came.
      size: (width, height) of the upright picture.

    Returns:
      The block without a header; no other byte changes.
    """
    exif = re.sub(rb"^(Exif\0\0)+", b"", exif)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return exif
    patched = bytearray(exif)
    with contextlib.suppress(struct.error):
        (first,) = struct.unpack_from(order + "I", exif, 4)
        for tag, at in entries(exif, order, first):
            if tag == ExifTags.IFD.Exif:
                (own,) = struct.unpack_from(order + "I", exif, at + 8)
                with contextlib.suppress(struct.error):
                    for tag, at in entries(exif, order, own):
                        _fit(patched, order, tag, at, size)
            else:
                _fit(patched, order, tag, at, size)
        (count,) = struct.unpack_from(order + "H", exif, first)
        struct.pack_into(order + "I", patched, first + 2 + 12 * count, 0)  # no next directory: it is the thumbnail's
    return bytes(patched)


def orientation_of(image: Image.Image) -> int:
    """How a loaded picture is to be turned, 1 to 8: as Pillow and viewers read it, from EXIF or else XMP."""
    with contextlib.suppress(Exception):  # Pillow raises anything for a damaged block
        orientation = image.getexif().get(ORIENTATION, 1)
        return int(orientation) if orientation in range(1, 9) else 1
    return 1


def of_tiff(image: Image.Image) -> bytes:
    """EXIF of a TIFF file's photograph; its first directory without what it says about how pixels are stored.

    Raises:
      Exception: whatever Pillow raises for a damaged one.
    """
    exif = image.getexif()
    for tag in set(exif) & _STORAGE:
        del exif[tag]
    return _written(exif)


def shortened(exif: bytes, limit: int) -> tuple[bytes, list[str]]:
    """The block without the longest entries of its first directory, as many as must go, and their names.

    Returns:
      Nothing if it is damaged, or too long without them.
    """
    parsed, gone = Image.Exif(), []
    with contextlib.suppress(Exception):  # Pillow raises anything, from SyntaxError to struct.error
        parsed.load(exif)
        by_length = sorted(set(parsed) - set(_PARTS), key=lambda tag: len(_directory(tag, parsed[tag])))
        while len(block := _written(parsed).removeprefix(HEADER)) > limit:
            del parsed[by_length[-1]]
            gone.append(_name(by_length.pop()))
        return block, gone
    return b"", []


def tags(exif: bytes) -> tuple[dict[int, Any] | None, list[str]]:
    """The block as entries of a TIFF file's directory, None if it is damaged, and the names of those that cannot be written."""
    parsed, gone = Image.Exif(), []

    def writable(entries: Mapping[int, Any]) -> dict[int, Any]:
        found = {}
        for tag, value in entries.items():
            try:
                _directory(tag, value)
                found[tag] = value
            except Exception:
                gone.append(_name(tag))
        return found

    with contextlib.suppress(Exception):
        parsed.load(exif)
        parts = {tag: _as_it_lies(parsed.get_ifd(tag)) for tag in _PARTS if tag in parsed}
        if ExifTags.IFD.Interop in parts.get(ExifTags.IFD.Exif, {}):
            parts[ExifTags.IFD.Exif][ExifTags.IFD.Interop] = writable(parsed.get_ifd(ExifTags.IFD.Interop))
        whole = {tag: _as_it_lies(parsed[tag]) for tag in set(parsed) - _STORAGE - set(_PARTS)}
        return writable(whole | {tag: writable(part) for tag, part in parts.items()}), gone
    return None, []


def _written(exif: Image.Exif) -> bytes:
    """With a header; empty if there is no entry."""
    for tag in set(exif):
        if tag in _PARTS:
            exif.get_ifd(tag).update(_as_it_lies(exif.get_ifd(tag)))
        else:
            exif[tag] = _as_it_lies(exif[tag])
    return exif.tobytes() if len(exif) else b""


def _directory(tag: int, value: Any) -> bytes:
    """Of one entry, as a TIFF file holds it; raises anything for what cannot be written."""
    directory = ImageFileDirectory_v2()
    directory[tag] = value
    return directory.tobytes()


def _name(tag: int) -> str:
    return ExifTags.TAGS.get(tag, str(tag))


class _Text(str):
    """A text of a TIFF file. Pillow reads its bytes as Latin-1 and writes `?` for those above 127: these stay as they lie."""

    def encode(self, *_: str) -> bytes:
        return super().encode("latin-1")


def _as_it_lies(value: Any) -> Any:
    if isinstance(value, dict):
        return {tag: _as_it_lies(entry) for tag, entry in value.items()}
    return _Text(value) if isinstance(value, str) else value


def entries(exif: bytes, order: str, directory: int) -> Iterator[tuple[int, int]]:
    """Tags of a directory and where their entries of 12 bytes lie."""
    (count,) = struct.unpack_from(order + "H", exif, directory)
    for at in range(directory + 2, directory + 2 + 12 * count, 12):
        yield struct.unpack_from(order + "H10x", exif, at)[0], at


def _fit(exif: bytearray, order: str, tag: int, at: int, size: tuple[int, int]) -> None:
    (kind,) = struct.unpack_from(order + "H", exif, at + 2)
    if tag == ORIENTATION and kind not in _NO_NUMBERS:
        struct.pack_into(order + "HIH", exif, at + 2, _SHORT, 1, 1)
    elif tag in _WIDTHS + _HEIGHTS:
        struct.pack_into(order + "HII", exif, at + 2, _LONG, 1, size[tag in _HEIGHTS])
