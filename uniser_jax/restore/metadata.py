"""What a file says about its photograph, and how it was saved: EXIF, XMP, IPTC, colour profile, resolution, quality.

Files come from strangers: whatever is read here is bounded by the size of the file, and damaged parts are left out.
"""

import contextlib
import dataclasses
import io
import itertools
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image, JpegImagePlugin
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from uniser_jax.errors import listed
from uniser_jax.restore import exif

_DEFAULTS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": False, "quality": 95, "exact": True},
    "TIFF": {"compression": "raw"},
    "PNG": {},
}

# TIFF's tags.
_STRIP_OFFSETS, _STRIP_BYTES, _PREDICTOR, _XMP, _IPTC, _PHOTOSHOP, _LAYERS = 273, 279, 317, 700, 33723, 34377, 37724
_SAMPLES = 277
_LOSSLESS = ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate")
_PREDICTED = ("tiff_lzw", "tiff_adobe_deflate")

# Of Photoshop's image resources.
_IPTC_RESOURCE = 0x0404
_STALE = {0x0409, 0x040C, 0x0422, 0x0423, 0x0424}  # thumbnails of the picture as it was; second EXIF and XMP
_PATHS = set(range(2000, 2999))

_SEGMENT = 65_533  # the longest content of a JPEG marker
_XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_MORE_HEADER = b"http://ns.adobe.com/xmp/extension/\0"
_PHOTOSHOP_HEADER = b"Photoshop 3.0\0"
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # of JPEG; not what stands within coded pixels
_INGREDIENTS = re.compile(rb"(<xmpMM:Pantry\b.*?</xmpMM:Pantry>)", re.DOTALL)  # of XMP: what other pictures' files said
# How segments begin that are read, or that go with the pixels; APP11 holds content credentials.
_KNOWN: dict[str, bytes | tuple[bytes, ...]] = {
    "APP0": (b"JFIF\0", b"JFXX\0"),
    "APP1": (exif.HEADER, _XMP_HEADER, _XMP_MORE_HEADER),
    "APP2": (b"ICC_PROFILE\0", b"MPF\0"),
    "APP11": b"JP",
    "APP13": _PHOTOSHOP_HEADER,
    "APP14": b"Adobe",
    "COM": b"",
}
_PNG_TEXTS, _PNG_COLOURS = (b"tEXt", b"zTXt", b"iTXt"), (b"cHRM", b"gAMA", b"sRGB", b"cICP", b"mDCV", b"cLLI")
_PNG_OWN = (b"XML:com.adobe.xmp\0", b"Raw profile type ")  # texts that are notes of another kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Notes:
    """What a file says about its photograph, raw; empty where it says nothing.

    Args:
      exif: block of TIFF without header; fits the upright picture, see `exif.fitted`.
      icc: colour profile.
      xmp: packet, its orientation upright.
      xmp_more: what did not fit the packet of a JPEG file; bodies of its markers.
      iptc: records of IIM: captions, copyright.
      photoshop: image resources but for IPTC and stale ones.
      comment: of a JPEG file.
      texts: chunks of a PNG file.
      colours: chunks of a PNG file that say what its colours mean beside a profile.
      dpi: horizontal and vertical.
      lost: names of what no file is written with.
    """

    exif: bytes = b""
    icc: bytes = b""
    xmp: bytes = b""
    xmp_more: tuple[bytes, ...] = ()
    iptc: bytes = b""
    photoshop: bytes = b""
    comment: bytes = b""
    texts: tuple[bytes, ...] = ()
    colours: tuple[bytes, ...] = ()
    dpi: tuple[float, float] | tuple[()] = ()
    lost: tuple[str, ...] = ()


# Names for the log, and the formats that hold them. A resolution that is lost is not worth a line.
_HELD = {
    "exif": ("EXIF", ("JPEG", "PNG", "WEBP", "TIFF")),
    "icc": ("colour profile", ("JPEG", "PNG", "WEBP", "TIFF")),
    "xmp": ("XMP", ("JPEG", "PNG", "WEBP", "TIFF")),
    "xmp_more": ("extended XMP", ("JPEG",)),
    "iptc": ("IPTC", ("JPEG", "PNG", "TIFF")),
    "photoshop": ("Photoshop's resources", ("JPEG", "PNG", "TIFF")),
    "comment": ("comment", ("JPEG",)),
    "texts": ("texts", ("PNG",)),
    "colours": ("gamma and primaries", ("PNG",)),
}
# In a JPEG file.
_LONGEST = {
    "exif": _SEGMENT - len(exif.HEADER),
    "icc": 255 * (_SEGMENT - 14),
    "xmp": _SEGMENT - len(_XMP_HEADER),
    "iptc": _SEGMENT - len(_PHOTOSHOP_HEADER) - 13,
    "photoshop": _SEGMENT - len(_PHOTOSHOP_HEADER),
}


def notes_of(image: Image.Image, source: bytes, orientation: int) -> Notes:
    """What a loaded picture's file says.

    Args:
      image: not turned yet.
      source: the bytes of the file.
      orientation: how it will be turned, 1 to 8.
    """
    lost = []
    size = image.size if orientation < 5 else image.size[::-1]
    block = b""
    try:
        block = exif.of_tiff(image) if image.format == "TIFF" else image.info.get("exif") or _profile(image, "exif")
    except Exception:  # Pillow raises anything, from SyntaxError to struct.error
        lost.append("EXIF, which is damaged")
    chunks = list(_chunks(source)) if image.format == "PNG" else []
    lost += _only_for_the_old(image, source, [chunk[:4] for chunk in chunks])
    iptc, photoshop = _iptc_of(image, source, orientation > 1)
    return Notes(
        exif=exif.fitted(block, size),
        icc=image.info.get("icc_profile") or b"",
        xmp=_xmp_of(image, size),
        xmp_more=tuple(body for body in _segments(image, "APP1") if body.startswith(_XMP_MORE_HEADER)),
        iptc=iptc,
        photoshop=photoshop,
        comment=image.info.get("comment", b"") if image.format in ("JPEG", "MPO") else b"",
        texts=tuple(c for c in chunks if c[:4] in _PNG_TEXTS and not c[4:].startswith(_PNG_OWN)),
        colours=tuple(c for c in chunks if c[:4] in _PNG_COLOURS),
        dpi=_dpi_of(image),
        lost=tuple(lost),
    )


def settings_of(image: Image.Image, source: bytes) -> dict[str, Any]:
    """What makes Pillow save in the format of `image` as it was saved before."""
    if image.format in ("JPEG", "MPO"):
        return {
            # The same tables and chroma sampling: no better and no worse than the photographer chose.
            "qtables": image.quantization,  # type: ignore[attr-defined]
            "subsampling": max(JpegImagePlugin.get_sampling(image), 0),  # -1, rare samplings: keep all chroma
            "progressive": bool(image.info.get("progressive")),
        }
    if image.format == "TIFF":
        compression = image.info.get("compression")
        return {"compression": compression if compression in _LOSSLESS else "tiff_adobe_deflate"}
    if image.format == "WEBP" and _lossless_webp(source):
        return {"lossless": True, "exact": True}  # exact: with colours where alpha is 0
    return _DEFAULTS[str(image.format)]


def settings_for(format: str, source_format: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings to save in `format`: those of the source if it came in that format, good defaults otherwise."""
    return settings if format == source_format else _DEFAULTS[format]


def held(notes: Notes, format: str, gray: bool) -> tuple[Notes, list[str]]:
    """The notes that a file can hold, and names of the others.

    Args:
      notes: of the source.
      format: of the file.
      gray: whether its pixels have one channel of colour.
    """
    lost = {}
    for field, (name, formats) in _HELD.items():
        content = getattr(notes, field)
        if content and format not in formats:
            lost[field] = name
        elif format == "JPEG" and len(content) > _LONGEST.get(field, len(content)):
            lost[field] = f"{name} of {len(content)} bytes"
    dropped: list[str] = []
    if format == "TIFF" and notes.exif:
        found, dropped = exif.tags(notes.exif)
        if found is None:
            lost["exif"] = "EXIF, which is damaged"
    elif format == "JPEG" and "exif" in lost:
        shorter, dropped = exif.shortened(notes.exif, _LONGEST["exif"])
        if shorter:
            notes = dataclasses.replace(notes, exif=shorter)
            del lost["exif"]
    if notes.icc[16:20] == b"GRAY" and not gray:
        lost["icc"] = "colour profile of gray"
    if notes.icc or _are_srgb(notes.colours):
        lost.pop("colours", None)
    single = [f"of EXIF {listed(dropped)}"] if dropped else []
    empty = {field: type(getattr(notes, field))() for field in lost}
    return dataclasses.replace(notes, **empty), [*notes.lost, *lost.values(), *single]


def jpeg(image: Image.Image, notes: Notes, settings: Mapping[str, Any]) -> bytes:
    """A JPEG file; the notes must fit, see `held`."""
    markers = [(0xE1, _XMP_HEADER + notes.xmp)] if notes.xmp else []
    markers += [(0xE1, body) for body in notes.xmp_more]
    if notes.iptc:
        markers.append((0xED, _PHOTOSHOP_HEADER + _resource(notes.iptc)))
    if notes.photoshop:
        markers.append((0xED, _PHOTOSHOP_HEADER + notes.photoshop))
    extra = b"".join(struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body for marker, body in markers)
    block = exif.HEADER + notes.exif if notes.exif else b""
    buffer = io.BytesIO()
    common = {"exif": block, "icc_profile": notes.icc, "comment": notes.comment, "dpi": notes.dpi or (0, 0)}
    image.save(buffer, "JPEG", extra=extra, **common, **settings)
    return buffer.getvalue()


def webp(image: Image.Image, notes: Notes, settings: Mapping[str, Any]) -> bytes:
    """A WebP file."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", exif=notes.exif, icc_profile=notes.icc, xmp=notes.xmp, **settings)
    return buffer.getvalue()


def tiff(image: Image.Image, notes: Notes, settings: Mapping[str, Any]) -> bytes:
    """A TIFF file: strips as libtiff packs them behind a directory of ours, for its own holds no EXIF."""
    buffer = io.BytesIO()
    predictor = {_PREDICTOR: 2} if settings["compression"] in _PREDICTED else {}
    image.save(buffer, "TIFF", icc_profile=notes.icc, tiffinfo=predictor, **settings)
    packed = buffer.getvalue()
    directory = ImageFileDirectory_v2()
    with Image.open(buffer) as stored:
        for tag, value in stored.tag_v2.items():  # type: ignore[attr-defined]
            directory.tagtype[tag] = stored.tag_v2.tagtype[tag]  # type: ignore[attr-defined]
            directory[tag] = value
    strips = [packed[at : at + n] for at, n in zip(directory[_STRIP_OFFSETS], directory[_STRIP_BYTES], strict=True)]
    directory.tagtype[_STRIP_OFFSETS] = 4  # LONG
    directory[_STRIP_OFFSETS] = tuple(itertools.accumulate(map(len, strips[:-1]), initial=0))  # beyond the directory
    directory.update((exif.tags(notes.exif)[0] if notes.exif else None) or {})
    if notes.dpi:
        directory[282], directory[283], directory[296] = *notes.dpi, 2  # per inch
    for tag, kind, content in (
        (_XMP, 1, notes.xmp),
        (_IPTC, 7, notes.iptc),
        (_PHOTOSHOP, 1, notes.photoshop),
    ):
        if content:
            directory.tagtype[tag] = kind  # BYTE or UNDEFINED
            directory[tag] = content
    written = io.BytesIO()
    directory.save(written)
    return written.getvalue() + b"".join(strips)


def with_chunks(png: bytes, notes: Notes) -> bytes:
    """Inserts notes after the header of a PNG file (PNG, third edition, section 11.3)."""
    chunks = list(notes.colours)
    if notes.icc:
        chunks.append(b"iCCP" + b"ICC profile\0\0" + zlib.compress(notes.icc))
    if notes.dpi:
        per_metre = (round(value / 0.0254) for value in notes.dpi)
        chunks.append(b"pHYs" + struct.pack(">IIB", *per_metre, 1))
    if notes.exif:
        chunks.append(b"eXIf" + notes.exif)
    if notes.xmp:
        chunks.append(b"iTXt" + b"XML:com.adobe.xmp\0\0\0\0\0" + notes.xmp)
    resources = (_resource(notes.iptc) if notes.iptc else b"") + notes.photoshop
    if resources:  # as ImageMagick and ExifTool write it: PNG has no chunk for it
        text = b"\niptc\n%8d\n%s\n" % (len(resources), resources.hex("\n", -36).encode())
        chunks.append(b"zTXt" + b"Raw profile type iptc\0\0" + zlib.compress(text))
    chunks += notes.texts
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    header = 8 + 25  # signature, IHDR
    return png[:header] + b"".join(framed) + png[header:]


def _dpi_of(image: Image.Image) -> tuple[float, float] | tuple[()]:
    if image.format == "TIFF" and not {282, 283} <= set(image.tag_v2):  # type: ignore[attr-defined]
        return ()  # Pillow would say 1
    dpi = [float(value) for value in image.info.get("dpi", ())]
    return (dpi[0], dpi[1]) if len(dpi) == 2 and all(0 < value < 1e5 for value in dpi) else ()


def _only_for_the_old(image: Image.Image, source: bytes, chunks: list[bytes]) -> list[str]:
    """Names of what belongs to the pixels as they were, or to other programs: no file is written with it."""
    lost = []
    more = image.format == "MPO" or any(body.startswith(b"MPF\0") for body in _segments(image, "APP2"))
    if more:
        lost.append("further pictures (preview, depth or gain map)")
    if (
        any(b"c2pa" in body for body in _segments(image, "APP11"))
        or b"caBX" in chunks
        or b"C2PA" in dict(_riff(source))
    ):
        lost.append("content credentials, which vouch for the pixels as they were")
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        lost += ["layers"] * (_LAYERS in tags)
        spare = tags.get(_SAMPLES, 1) - len(image.getbands()) + (image.mode == "RGBX")
        lost += ["further channels, such as selections"] * (spare > 0)
    if others := {name for name, body in getattr(image, "applist", ()) if not body.startswith(_KNOWN.get(name, ()))}:
        lost.append(f"data of other programs in {', '.join(sorted(others))}")
    if image.format == "JPEG" and not more and _behind(source).strip(b"\0 \t\r\n"):
        lost.append("what follows the picture, such as a video")
    return lost


def _behind(jpeg: bytes) -> bytes:
    """What follows the picture of a JPEG file."""
    at = 2
    while found := _MARKER.search(jpeg, at):
        if found[0] == b"\xff\xd9":
            return jpeg[found.end() :]
        at = found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2])  # of the segment
    return b""


def _xmp_of(image: Image.Image, size: tuple[int, int]) -> bytes:
    """The packet, for the picture as it is written: upright, of `size`, and no longer with a video behind it."""
    xmp = image.info.get("xmp") or _profile(image, "xmp")
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    if not isinstance(xmp, bytes):
        return b""
    parts = _INGREDIENTS.split(xmp)
    for names, old, new in (
        (b"tiff:Orientation", b"[2-8]", 1),
        (b"tiff:ImageWidth|exif:PixelXDimension", rb"\d+", size[0]),
        (b"tiff:ImageLength|exif:PixelYDimension", rb"\d+", size[1]),
        (b"GCamera:MotionPhoto|GCamera:MicroVideo", b"1", 0),
    ):
        pattern, changed = rb"((?:%s)(?:=[\"']|>))%s(?=[\"'<])" % (names, old), rb"\g<1>%d" % new
        parts[::2] = [re.sub(pattern, changed, part) for part in parts[::2]]
    return b"".join(parts)


def _iptc_of(image: Image.Image, source: bytes, turned: bool) -> tuple[bytes, bytes]:
    """Records of IPTC, and Photoshop's other resources that hold for the picture as it is written."""
    iptc, block = b"", b""
    if image.format == "TIFF":
        iptc, block = _tag(source, _IPTC), _tag(source, _PHOTOSHOP)
    elif image.format == "PNG":
        block = _profile(image, "iptc") or _profile(image, "8bim")
    else:
        bodies = _segments(image, "APP13")
        block = b"".join(b[len(_PHOTOSHOP_HEADER) :] for b in bodies if b.startswith(_PHOTOSHOP_HEADER))
    if block.startswith(b"\x1c"):  # records alone
        return block, b""
    others = []
    for number, content, whole in _resources(block):
        if number == _IPTC_RESOURCE:
            iptc = iptc or content
        elif number not in _STALE and not (turned and number in _PATHS):
            others.append(whole)
    return iptc, b"".join(others)


def _tag(tiff: bytes, wanted: int) -> bytes:
    """The bytes of a tag in a TIFF file's first directory, as they lie there: Adobe once gave IPTC the type LONG."""
    order = "<" if tiff[:2] == b"II" else ">"
    with contextlib.suppress(struct.error):
        (first,) = struct.unpack_from(order + "I", tiff, 4)
        for tag, at in exif.entries(tiff, order, first):
            if tag == wanted:
                kind, count, place = struct.unpack_from(order + "HII", tiff, at + 2)
                return tiff[place : place + count * {1: 1, 4: 4, 7: 1}.get(kind, 0)]
    return b""


def _resources(block: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Photoshop's image resources: number, content, and all of it; those before the first damaged one."""
    at = 0
    while block[at : at + 4] == b"8BIM" and at + 12 <= len(block):
        number, name = struct.unpack_from(">HB", block, at + 4)
        start = at + 6 + (name + 2) // 2 * 2 + 4  # behind the name, padded to an even length, and the size
        if start > len(block):
            return
        end = start + struct.unpack_from(">I", block, start - 4)[0]
        if end > len(block):
            return
        whole = block[at:end] + b"\0" * (end % 2 != at % 2)
        yield number, block[start:end], whole
        at += len(whole)


def _resource(iptc: bytes) -> bytes:
    return b"8BIM" + struct.pack(">HHI", _IPTC_RESOURCE, 0, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)


def _segments(image: Image.Image, marker: str) -> Iterator[bytes]:
    """Bodies of the application markers of a JPEG file."""
    return (body for name, body in getattr(image, "applist", ()) if name == marker)


def _profile(image: Image.Image, kind: str) -> bytes:
    """What ImageMagick wrote into a text of a PNG file: a line of its name, one of its length, and digits."""
    text = image.info.get(f"Raw profile type {kind}", "")
    with contextlib.suppress(ValueError, AttributeError):
        return bytes.fromhex("".join(text.split("\n")[3:]))
    return b""


def _chunks(png: bytes) -> Iterator[bytes]:
    """Names and contents of a PNG file's chunks; those before the first damaged one."""
    at = 8
    while at + 12 <= len(png):
        (size,) = struct.unpack_from(">I", png, at)
        body = png[at + 4 : at + 8 + size]
        if png[at + 8 + size : at + 12 + size] != struct.pack(">I", zlib.crc32(body)):
            return
        yield body
        at += 12 + size


def _are_srgb(colours: tuple[bytes, ...]) -> bool:
    """Whether a PNG file's gamma and primaries are those of sRGB, within what writers round."""
    chunks = {chunk[:4]: chunk[4:] for chunk in colours}
    if b"cICP" in chunks:
        return chunks[b"cICP"] == bytes((1, 13, 0, 1))
    if b"sRGB" in chunks:
        return True
    expected = {b"gAMA": (45455,), b"cHRM": (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)}
    for name, values in expected.items():
        stored = chunks.get(name, struct.pack(f">{len(values)}I", *values))
        if len(stored) != 4 * len(values):
            continue
        found = struct.unpack(f">{len(values)}I", stored)
        if any(abs(a - b) > 500 for a, b in zip(found, values, strict=True)):
            return False
    return True


def _lossless_webp(source: bytes) -> bool:
    """Whether the picture's chunk of a WebP file is the lossless one."""
    return next((name for name, _ in _riff(source) if name in (b"VP8 ", b"VP8L")), b"") == b"VP8L"


def _riff(source: bytes) -> Iterator[tuple[bytes, int]]:
    """Names and sizes of the chunks of a WebP file (a RIFF container); nothing of other files."""
    offset = 12 if source[:4] == b"RIFF" else len(source)
    while offset + 8 <= len(source):
        name, size = struct.unpack_from("<4sI", source, offset)
        yield name, size
        offset += 8 + size + size % 2
