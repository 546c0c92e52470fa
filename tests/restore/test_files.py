import io
import pathlib
import struct
import zlib

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageOps

from uniser_jax.restore import files, metadata
from uniser_jax.restore.files import RestoreError, read_mask, read_photo, write_photo

ICC = b"a colour profile, as far as anybody here reads it" * 20
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" dc:title="cat"/></x:xmpmeta>'
LOSSLESS = (".png", ".tif", ".webp")


def exif(orientation: int = 1) -> bytes:
    tags = Image.Exif()
    tags[0x010F] = "Maker"
    tags[0x0112] = orientation
    tags.get_ifd(0x8769)[0x9003] = "2025:01:02 03:04:05"
    tags.get_ifd(0x8825)[0x0001] = "N"
    return tags.tobytes()


def picture(mode: str = "RGB") -> Image.Image:
    image = Image.fromarray(skimage.data.chelsea()[:120, :171])
    if "A" in mode:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image.convert(mode)


def save(path: pathlib.Path, image: Image.Image, **settings: object) -> pathlib.Path:
    if path.suffix == ".webp":
        settings = {"lossless": True, "exact": True} | settings
    image.save(path, **settings)
    return path


def changed(pixels: np.ndarray) -> np.ndarray:
    return pixels - (pixels > 20).astype(pixels.dtype)


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_pixels_and_alpha_round_trip(tmp_path: pathlib.Path, suffix: str, mode: str) -> None:
    photo = read_photo(save(tmp_path / f"in{suffix}", picture(mode)))
    gray = mode in ("L", "LA") and suffix != ".webp"  # WebP knows no gray
    assert photo.pixels.shape == ((120, 171) if gray else (120, 171, 3))
    pixels = changed(photo.pixels)
    write_photo(tmp_path / f"out{suffix}", photo, pixels)
    again = read_photo(tmp_path / f"out{suffix}")
    np.testing.assert_array_equal(again.pixels, pixels)
    assert (again.alpha is None) == (photo.alpha is None) == ("A" not in mode)
    if photo.alpha is not None:
        np.testing.assert_array_equal(again.alpha, photo.alpha)


@pytest.mark.parametrize("channels", [(), (3,), (4,)], ids=["gray", "colour", "alpha"])
def test_16_bits_stay_16_bits(tmp_path: pathlib.Path, channels: tuple[int, ...]) -> None:
    stored = np.random.default_rng(0).integers(0, 65_536, (40, 50, *channels), np.uint16)
    cv2.imwrite(str(tmp_path / "in.png"), stored)
    photo = read_photo(tmp_path / "in.png")
    expected = stored[..., [2, 1, 0]] if channels else stored
    np.testing.assert_array_equal(photo.pixels, expected)
    pixels = changed(photo.pixels)
    write_photo(tmp_path / "out.png", photo, pixels)
    again = read_photo(tmp_path / "out.png")
    np.testing.assert_array_equal(again.pixels, pixels)
    if channels == (4,):
        np.testing.assert_array_equal(again.alpha, stored[..., 3])
    write_photo(tmp_path / "out.jpg", photo, pixels)
    assert read_photo(tmp_path / "out.jpg").pixels.dtype == np.uint8


def test_16_bit_gray_with_alpha(tmp_path: pathlib.Path) -> None:
    rows = np.random.default_rng(0).integers(0, 65_536, (20, 20, 2), np.uint16)
    gray = cv2.imencode(".png", np.ascontiguousarray(rows[..., 0]))[1].tobytes()
    header = bytearray(gray[8:33])
    header[17] = 4  # colour type: gray and alpha
    header[21:25] = struct.pack(">I", zlib.crc32(bytes(header[4:21])))
    data = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows))
    chunks = [(b"IDAT", data), (b"IEND", b"")]
    crc = zlib.crc32
    tail = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", crc(n + d)) for n, d in chunks)
    (tmp_path / "in.png").write_bytes(gray[:8] + bytes(header) + tail)
    photo = read_photo(tmp_path / "in.png")
    np.testing.assert_array_equal(photo.pixels, rows[..., 0])
    np.testing.assert_array_equal(photo.alpha, rows[..., 1])


@pytest.mark.parametrize("suffix", [".jpg", *LOSSLESS])
def test_metadata_is_kept(tmp_path: pathlib.Path, suffix: str) -> None:
    settings = {} if suffix == ".png" else {"xmp": XMP}
    path = save(tmp_path / f"in{suffix}", picture(), exif=exif(), icc_profile=ICC, dpi=(300, 300), **settings)
    photo = read_photo(path)
    write_photo(tmp_path / f"out{suffix}", photo, changed(photo.pixels))
    with Image.open(tmp_path / f"out{suffix}") as image:
        image.load()
        assert image.info["icc_profile"] == ICC
        assert image.getexif()[0x010F] == "Maker"
        assert image.getexif().get_ifd(0x8769)[0x9003] == "2025:01:02 03:04:05"
        assert image.getexif().get_ifd(0x8825)[0x0001] == "N"
        if suffix != ".webp":
            assert [round(float(value)) for value in image.info["dpi"]] == [300, 300]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_xmp_travels_between_formats(tmp_path: pathlib.Path, suffix: str) -> None:
    photo = read_photo(save(tmp_path / "in.jpg", picture(), xmp=XMP))
    write_photo(tmp_path / f"out{suffix}", photo, changed(photo.pixels))
    with Image.open(tmp_path / f"out{suffix}") as image:
        assert image.info["xmp"] == XMP.replace(b'Orientation="6"', b'Orientation="1"')


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_jpeg_keeps_its_quality(tmp_path: pathlib.Path, subsampling: int) -> None:
    path = save(tmp_path / "in.jpg", picture(), quality=83, subsampling=subsampling, progressive=True)
    photo = read_photo(path)
    write_photo(tmp_path / "out.jpg", photo, changed(photo.pixels))
    again = read_photo(tmp_path / "out.jpg")
    assert again.settings == photo.settings
    assert abs(len(again.source) / len(photo.source) - 1) < 0.05


@pytest.mark.parametrize("suffix", [".jpg", *LOSSLESS])
def test_an_unchanged_photograph_is_the_same_file(tmp_path: pathlib.Path, suffix: str) -> None:
    path = save(tmp_path / f"in{suffix}", picture(), exif=exif(6))
    photo = read_photo(path)
    write_photo(tmp_path / f"out{suffix}", photo, photo.pixels.copy())
    assert (tmp_path / f"out{suffix}").read_bytes() == path.read_bytes()
    write_photo(path, photo, photo.pixels)  # over itself
    assert path.read_bytes() == photo.source


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_photographs_come_upright_and_stay_so(tmp_path: pathlib.Path, orientation: int, suffix: str) -> None:
    path = save(tmp_path / f"in{suffix}", picture(), exif=exif(orientation))
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    photo = read_photo(path)
    np.testing.assert_array_equal(photo.pixels, upright)
    write_photo(tmp_path / "out.png", photo, changed(photo.pixels))
    with Image.open(tmp_path / "out.png") as image:
        assert image.getexif().get(0x0112, 1) == 1
        np.testing.assert_array_equal(np.asarray(image), changed(upright))


def test_only_the_orientation_changes_in_exif() -> None:
    for orientation in range(1, 9):
        before, after = exif(orientation), metadata.upright(exif(orientation))
        assert len(before) == len(after)
        assert sum(a != b for a, b in zip(before, after, strict=True)) == (orientation != 1)


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_damaged_exif_passes_as_it_came(length: int) -> None:
    assert len(metadata.upright(exif(6)[:length])) == length
    loop = b"Exif\0\0II*\0" + struct.pack("<I", 4) + b"\xff" * length
    assert metadata.upright(loop) == loop


@pytest.mark.parametrize("source", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("target", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_suffix_chooses_the_format(tmp_path: pathlib.Path, source: str, target: str, mode: str) -> None:
    photo = read_photo(save(tmp_path / f"in{source}", picture(mode), exif=exif(), icc_profile=ICC))
    write_photo(tmp_path / f"out{target}", photo, changed(photo.pixels))
    again = read_photo(tmp_path / f"out{target}")
    assert again.format == files.FORMATS[target]
    assert again.icc == ICC
    assert again.pixels.shape[:2] == photo.pixels.shape[:2]
    assert np.abs(again.pixels.astype(float).mean() - photo.pixels.mean()) < 2


def test_palettes_bilevel_and_transparency(tmp_path: pathlib.Path) -> None:
    assert read_photo(save(tmp_path / "p.png", picture("P"))).pixels.shape == (120, 171, 3)
    assert read_photo(save(tmp_path / "1.png", picture("1"))).pixels.shape == (120, 171)
    photo = read_photo(save(tmp_path / "t.png", picture("P"), transparency=0))
    assert photo.alpha is not None
    assert set(np.unique(photo.alpha)) <= {0, 255}


def test_a_jpeg_drops_alpha(tmp_path: pathlib.Path) -> None:
    photo = read_photo(save(tmp_path / "in.png", picture("RGBA")))
    write_photo(tmp_path / "out.jpg", photo, photo.pixels)
    assert read_photo(tmp_path / "out.jpg").alpha is None


def bytes_of(image: Image.Image, format: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()


HUGE = struct.pack(">II", 20_000, 20_000)
PNG = bytes_of(picture(), "PNG")
BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"not a photograph at all", "not a photograph"),
    "gif": (bytes_of(picture("P"), "GIF"), "not a photograph"),
    "truncated jpeg": (bytes_of(picture(), "JPEG")[:3000], "damaged or truncated"),
    "truncated png": (PNG[:3000], "damaged or truncated"),
    "truncated webp": (bytes_of(picture(), "WEBP")[:900], "not a photograph|damaged or truncated"),
    "truncated tiff": (bytes_of(picture(), "TIFF")[:3000], "not a photograph|damaged or truncated"),
    "header only": (PNG[:33], "not a photograph|damaged or truncated"),
    "flipped byte": (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], "damaged or truncated"),
    "small": (bytes_of(picture().crop((0, 0, 15, 100)), "PNG"), "15 x 100 px is too small, expected at least 16"),
    "one row": (bytes_of(picture().crop((0, 0, 100, 1)), "PNG"), "100 x 1 px is too small"),
    "huge": (PNG[:16] + HUGE + PNG[24:29] + struct.pack(">I", 0) + PNG[33:], "not a photograph|too large"),
    "cmyk": (bytes_of(picture().convert("CMYK"), "JPEG"), "colour mode CMYK is not supported; convert it to RGB"),
    "float": (bytes_of(picture().convert("F"), "TIFF"), "colour mode F is not supported"),
    "animated": (bytes_of(picture(), "WEBP", save_all=True, append_images=[picture("L")]), "holds 2 pictures"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_line(tmp_path: pathlib.Path, name: str) -> None:
    content, message = BAD[name]
    (tmp_path / "in.png").write_bytes(content)
    with pytest.raises(RestoreError, match=message) as error:
        read_photo(tmp_path / "in.png")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'in.png'}: ")


def test_too_large_is_refused_before_decoding(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "in.png", picture())
    for limit in (120 * 171 - 1, 120 * 171 // 3):
        monkeypatch.setattr(files, "MAX_PIXELS", limit)
        with pytest.raises(RestoreError, match="too large, expected at most 0 megapixels"):
            read_photo(path)
    assert Image.MAX_IMAGE_PIXELS not in (files.MAX_PIXELS, None)


def test_deep_tiff_is_named(tmp_path: pathlib.Path) -> None:
    cv2.imwrite(str(tmp_path / "in.tif"), np.zeros((20, 20, 3), np.uint16))
    with pytest.raises(RestoreError, match="TIFF of more than 8 bits is not supported yet; save it as a 16-bit PNG"):
        read_photo(tmp_path / "in.tif")


def test_missing_files_and_folders(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RestoreError, match="no such file or directory"):
        read_photo(tmp_path / "none.jpg")
    with pytest.raises(RestoreError, match="is a directory"):
        read_photo(tmp_path)
    with pytest.raises(RestoreError, match=r"cannot write \.bmp; use \.jpg"):
        files.check_output(tmp_path / "out.bmp")
    with pytest.raises(RestoreError, match="cannot write a file without suffix"):
        files.check_output(tmp_path / "out")
    with pytest.raises(RestoreError, match="does not exist; make it first"):
        files.check_output(tmp_path / "none" / "out.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(RestoreError, match="is a folder"):
        files.check_output(tmp_path / "folder.png")


def test_writing_is_whole_or_not_at_all(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "in.png", picture())
    photo = read_photo(path)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full_disk)
    with pytest.raises(RestoreError, match="no space left on device"):
        write_photo(path, photo, changed(photo.pixels))
    assert path.read_bytes() == photo.source
    assert [file.name for file in tmp_path.iterdir()] == ["in.png"]


def test_pixels_of_another_shape_are_refused(tmp_path: pathlib.Path) -> None:
    photo = read_photo(save(tmp_path / "in.png", picture()))
    with pytest.raises(RestoreError, match="expected uint8"):
        write_photo(tmp_path / "out.png", photo, photo.pixels.astype(np.uint16))
    assert not (tmp_path / "out.png").exists()


def test_masks(tmp_path: pathlib.Path) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(np.stack([gray] * 3, -1)).save(tmp_path / "colour.png")
    Image.fromarray(np.dstack([np.zeros((20, 30, 3), np.uint8), gray])).save(tmp_path / "alpha.png")
    Image.fromarray(np.dstack([gray, gray, gray, np.full_like(gray, 255)])).save(tmp_path / "opaque.png")
    cv2.imwrite(str(tmp_path / "deep.png"), gray.astype(np.uint16) * 257)
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(read_mask(path, (20, 30)), gray, err_msg=path.name)


def test_a_mask_of_another_size_states_both(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "mask.png", picture("L"))
    with pytest.raises(RestoreError, match="mask of 171 x 120 px for a photograph of 120 x 171 px; resize the mask"):
        read_mask(path, (171, 120))
