"""What a file says about its photograph, and how it was saved: EXIF, XMP, colour profile, resolution, quality."""

import contextlib
import re
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from PIL import Image, JpegImagePlugin

ORIENTATION = 0x0112

# What of a TIFF's first directory is about the photograph, not about how its pixels are stored.
_TIFF_KEPT = {270, 271, 272, 282, 283, 296, 305, 306, 315, 33432, 34665, 34853}
# Settings that every format understands, and those of a format that the photograph did not come in.
_COMMON = ("dpi", "xmp")
_DEFAULTS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": False, "quality": 95},
    "TIFF": {"compression": "raw"},  # where it compresses, Pillow cannot write EXIF's sub-directories
    "PNG": {},
}


def upright(exif: bytes) -> bytes:
    """Raw EXIF with the orientation of the first picture reset to 1; no other byte changes (TIFF 6.0, section 2)."""
    start = 6 if exif.startswith(b"Exif\0\0") else 0
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[start : start + 4])
    if order is None:
        return exif
    patched = bytearray(exif)
    with contextlib.suppress(struct.error):  # a damaged block is passed on as it came
        entry = start + struct.unpack_from(order + "I", exif, start + 4)[0]
        count = struct.unpack_from(order + "H", exif, entry)[0]
        for offset in range(entry + 2, entry + 2 + 12 * count, 12):
            tag, kind, length = struct.unpack_from(order + "HHI", exif, offset)
            if (tag, kind, length) == (ORIENTATION, 3, 1):
                struct.pack_into(order + "H", patched, offset + 8, 1)
    return bytes(patched)


def exif_of(image: Image.Image) -> bytes:
    """Raw EXIF of a loaded picture, with its orientation reset to upright; empty if it has none."""
    if image.format != "TIFF":
        return upright(image.info.get("exif") or b"")
    exif = image.getexif()
    for tag in set(exif) - _TIFF_KEPT:
        del exif[tag]
    return exif.tobytes() if len(exif) else b""


def settings_of(image: Image.Image, source: bytes) -> dict[str, Any]:
    """What makes Pillow save in the format of `image` as it was saved before."""
    settings: dict[str, Any] = {}
    dpi = [float(value) for value in image.info.get("dpi", ())]
    if len(dpi) == 2 and all(0 < value < 1e5 for value in dpi):
        settings["dpi"] = tuple(dpi)
    if xmp := image.info.get("xmp"):
        xmp = xmp.encode() if isinstance(xmp, str) else xmp
        settings["xmp"] = re.sub(rb"(tiff:Orientation(?:=[\"']|>))[2-8]", rb"\g<1>1", xmp)
    if image.format in ("JPEG", "MPO"):
        # The same tables and chroma sampling: no better and no worse than the photographer chose.
        settings["qtables"] = image.quantization  # type: ignore[attr-defined]
        settings["subsampling"] = max(JpegImagePlugin.get_sampling(image), 0)  # -1, rare samplings: keep all chroma
        settings["progressive"] = bool(image.info.get("progressive"))
    elif image.format == "WEBP" and _lossless_webp(source):
        settings["lossless"] = True
    return settings


def settings_for(format: str, source_format: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings to save in `format`: those of the source if it came in that format, good defaults otherwise."""
    common = {key: settings[key] for key in _COMMON if key in settings}
    if format != source_format:
        return _DEFAULTS[format] | common
    defaults = {} if "qtables" in settings else _DEFAULTS[format]
    return defaults | dict(settings)


def with_chunks(png: bytes, exif: bytes, icc: bytes, settings: Mapping[str, Any]) -> bytes:
    """Inserts metadata after the header (PNG, third edition, section 11.3)."""
    chunks = []
    if icc:
        chunks.append(b"iCCP" + b"ICC profile\0\0" + zlib.compress(icc))
    if "dpi" in settings:
        per_metre = (round(float(value) / 0.0254) for value in settings["dpi"])
        chunks.append(b"pHYs" + struct.pack(">IIB", *per_metre, 1))
    if exif:
        chunks.append(b"eXIf" + exif.removeprefix(b"Exif\0\0"))
    if "xmp" in settings:
        chunks.append(b"iTXt" + b"XML:com.adobe.xmp\0\0\0\0\0" + settings["xmp"])
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    header = 8 + 25  # signature, IHDR
    return png[:header] + b"".join(framed) + png[header:]


def _lossless_webp(source: bytes) -> bool:
    """Whether the picture's chunk of a WebP file (a RIFF container) is the lossless one."""
    offset = 12
    while offset + 8 <= len(source):
        name, size = struct.unpack_from("<4sI", source, offset)
        if name in (b"VP8 ", b"VP8L"):
            return name == b"VP8L"
        offset += 8 + size + size % 2
    return False
