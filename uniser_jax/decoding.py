"""Image files to pixels: whatever lies in a file becomes upright 8-bit RGB in sRGB, and depth a plane in [0, 1].

Colours are what an embedded profile of RGB says, else sRGB: profiles of gray or CMYK and a PNG's gamma are not looked at.

Files come from strangers: what is too large, cut or no image is an error of one line, and only pictures are read: Pillow would
run a program for PostScript. A plain JPEG may be decoded smaller.
"""

import contextlib
import functools
import io
import math
from collections.abc import Callable, Iterator
from typing import IO

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image, ImageCms, ImageOps

ORIENTATION = 0x0112  # EXIF
MAX_PIXELS = 150_000_000  # more is a decompression bomb, not a photograph
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
_MAX_PROFILE = 2**22  # bytes
# EXIF's eight orientations: mirror left to right, then that many quarter turns counter-clockwise.
_TURNS = {2: (True, 0), 3: (False, 2), 4: (True, 2), 5: (True, 1), 6: (False, 3), 7: (True, 3), 8: (False, 1)}
_SAME, _NAMED = 2, 24  # levels by which a profile may move colours and be sRGB: any, and one of that name
_STRIP = 2**16  # pixels that are scaled at a time
_METADATA, _PIXELS = (0xE1, 0xE2), 0xDA  # markers of JPEG: APP1 and APP2, SOS

Pixels = UInt8[np.ndarray, "h w c"]
Depth = Float32[np.ndarray, "h w"]
# From (h, w) of a photograph to how many times smaller it may be: 1, 2, 4 or 8.
Reduction = Callable[[tuple[int, int]], int]


def whole(shape: tuple[int, int]) -> int:
    """No reduction."""
    return 1


def decode(data: bytes, reduction: Reduction = whole) -> Pixels:
    """Decodes a JPEG, PNG, WebP, TIFF or BMP file to upright 8-bit RGB; the first frame of several, alpha dropped.

    Args:
      data: the file.
      reduction: makes most JPEG files so many times smaller, in less time, by fewer terms of their own cosine transform;
        others stay as they are.

    Raises:
      OSError, ValueError: if the bytes are no readable image, or too large a one.
    """
    if not data:
        raise ValueError("the file is empty")
    if _bare_jpeg(data):  # nothing that Pillow would have to look at
        with contextlib.suppress(ValueError):  # but it may still make something of it, or knows what to say
            return _decode_jpeg(data, reduction)
    with opened(io.BytesIO(data)) as image:
        icc = image.info.get("icc_profile")
        if _plain_jpeg(data, image):
            with contextlib.suppress(ValueError):
                return _to_srgb(_decode_jpeg(data, reduction), icc)
        return _to_srgb(to_rgb(ImageOps.exif_transpose(image)), icc)


def _decode_jpeg(data: bytes, reduction: Reduction) -> Pixels:
    """In a quarter of Pillow's time.

    Raises:
      ValueError: for what is damaged, too large, or neither gray nor RGB.
    """
    *shape, colours, _ = simplejpeg.decode_jpeg_header(data)
    if math.prod(shape) > MAX_PIXELS or colours not in ("Gray", "RGB", "YCbCr"):
        raise ValueError(f"{colours} of {shape} pixels")
    factor = reduction((shape[0], shape[1]))
    height, width = (-(-side // factor) for side in shape)
    return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, min_factor=factor)


def _bare_jpeg(data: bytes) -> bool:
    """A whole JPEG file without EXIF, XMP or a profile before its pixels: upright, and in sRGB."""
    if not (data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9")):
        return False
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in _METADATA:
        if data[at + 1] == _PIXELS:
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4])  # of the segment
    return False


def profile_of(icc: bytes | None) -> ImageCms.ImageCmsProfile | None:
    """A colour profile of RGB other than sRGB; None for sRGB, for other colours, and for what is no profile."""
    found = _conversion(icc)
    return found[0] if found else None


def _to_srgb(pixels: Pixels, icc: bytes | None) -> Pixels:
    found = _conversion(icc)
    return np.asarray(ImageCms.applyTransform(Image.fromarray(pixels), found[1])) if found else pixels


@functools.lru_cache(maxsize=64)
def _conversion(icc: bytes | None) -> tuple[ImageCms.ImageCmsProfile, ImageCms.ImageCmsTransform] | None:
    """A profile and the way from it to sRGB; None where pixels stay as they are, for it is sRGB by what it does to colours.

    A name alone says little: linear profiles have that of sRGB in theirs. But those of that name may differ in the dark.
    """
    if not icc or len(icc) > _MAX_PROFILE or icc[16:20] != b"RGB ":
        return None
    with contextlib.suppress(OSError, ValueError, ImageCms.PyCMSError):
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        transform = ImageCms.buildTransform(
            profile, ImageCms.createProfile("sRGB"), "RGB", "RGB", renderingIntent=intent
        )
        steps = np.linspace(0, 255, 9).astype(np.uint8)
        colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
        moved = cv2.absdiff(np.asarray(ImageCms.applyTransform(Image.fromarray(colours), transform)), colours)
        if moved.max() > (_NAMED if "sRGB" in ImageCms.getProfileDescription(profile) else _SAME):
            return profile, transform
    return None


@contextlib.contextmanager
def opened(file: str | IO[bytes]) -> Iterator[Image.Image]:
    """An image whose header promises a size that fits in memory; its pixels are not read yet.

    Raises:
      OSError, ValueError: then, or while it is used, if it is no readable image, or too large a one.
    """
    try:
        with Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} px is more than {MAX_PIXELS // 10**6} megapixels")
            yield image
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # Pillow raises anything for damaged headers, from SyntaxError to struct.error
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _plain_jpeg(data: bytes, image: Image.Image) -> bool:
    """Upright, gray or RGB, and whole."""
    uncut = data.endswith(b"\xff\xd9") and image.format == "JPEG" and image.mode in ("L", "RGB")
    return uncut and image.getexif().get(ORIENTATION, 1) == 1


def decode_depth(data: bytes) -> Depth:
    """Decodes a gray depth map, 8 or 16 bit, to [0, 1]; unknown pixels (0) take the value of the nearest known one.

    In units of its 99.5th percentile, and 0 stays at the camera: the air before the nearest thing counts. Relative maps begin
    near 0.

    Raises:
      OSError, ValueError: if the bytes are no such image, too large a one, or hold no depth.
    """
    with opened(io.BytesIO(data)) as image:
        if image.mode != "L" and not image.mode.startswith("I"):  # I;16 and its byte orders
            raise ValueError(f"{image.mode} image: expected a gray depth map")
        values = np.asarray(image, np.float32)
    unknown = (values <= 0).astype(np.uint8)
    if unknown.all():
        raise ValueError("the depth map is empty")
    if unknown.any():
        _, nearest = cv2.distanceTransformWithLabels(unknown, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
        by_label = np.zeros(nearest.max() + 1, np.float32)
        known = unknown == 0
        by_label[nearest[known]] = values[known]
        values = by_label[nearest]
    return np.minimum(values / np.float32(np.percentile(values, 99.5)), 1)


def upright(stored: Shaped[np.ndarray, "h w *c"], orientation: int) -> Shaped[np.ndarray, "k l *c"]:
    """What lies as a photograph of this EXIF orientation, 1 to 8, is stored, upright."""
    mirrored, turns = _TURNS.get(orientation, (False, 0))
    return np.ascontiguousarray(np.rot90(stored[:, ::-1] if mirrored else stored, turns))


def to_rgb(image: Image.Image) -> Pixels:
    """Any Pillow mode to 8-bit RGB; 16 bit is scaled, floating point in [0, 1] or [0, 255] too, NaN is black."""
    if image.mode.startswith(("I", "F")):
        return _gray_to_rgb(image)
    # A palette may hold transparency: RGBA first, so that its colours are resolved.
    rgba = image.convert("RGBA") if image.mode == "P" else image
    return np.asarray(rgba.convert("RGB"))


def _gray_to_rgb(image: Image.Image) -> Pixels:
    """By strips, for double precision takes eight times the room of a level."""
    rows = max(1, _STRIP // image.width)
    boxes = [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]

    def finite(box: tuple[int, int, int, int]) -> np.ndarray:
        return np.nan_to_num(np.asarray(image.crop(box), np.float64), posinf=0, neginf=0)

    fractions = image.mode == "F" and all(finite(box).max() <= 1 for box in boxes)
    top = 65_535 if image.mode.startswith("I") else 1.0 if fractions else 255
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for box in boxes:
        gray = np.round(np.clip(finite(box) / top, 0, 1) * 255)
        pixels[box[1] : box[3]] = gray.astype(np.uint8)[..., None]
    return pixels
