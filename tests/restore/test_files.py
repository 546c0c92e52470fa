import dataclasses
import io
import logging
import pathlib
import shutil
import struct
import zlib

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import ExifTags, Image, ImageOps, PngImagePlugin
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from uniser_jax.restore import exif as exif_blocks
from uniser_jax.restore import files
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


@pytest.mark.parametrize("source", [".jpg", *LOSSLESS])
@pytest.mark.parametrize("target", [".jpg", *LOSSLESS])
def test_metadata_is_kept(tmp_path: pathlib.Path, source: str, target: str) -> None:
    photo = read_photo(tagged(tmp_path / f"in{source}"))
    write_photo(tmp_path / f"out{target}", photo, changed(photo.pixels))
    with Image.open(tmp_path / f"out{target}") as image:
        image.load()
        assert image.info["icc_profile"] == ICC
        assert image.info["xmp"] == XMP.replace(b'Orientation="6"', b'Orientation="1"')
        assert image.getexif()[0x010F] == "Maker"
        assert image.getexif().get_ifd(0x8769)[0x9003] == "2025:01:02 03:04:05"
        assert image.getexif().get_ifd(0x8825)[0x0001] == "N"
        if ".webp" not in (source, target):
            assert [round(float(value)) for value in image.info["dpi"]] == [300, 300]
    again = read_photo(tmp_path / f"out{target}").notes
    if ".webp" not in (source, target):
        assert (again.iptc, again.photoshop) == (IPTC, PATH)


def tagged(path: pathlib.Path) -> pathlib.Path:
    """A photograph whose file holds whatever its format does."""
    settings = {"exif": exif(), "icc_profile": ICC, "dpi": (300, 300), "xmp": XMP}
    if path.suffix == ".jpg":
        blocks = resource(0x0404, IPTC) + resource(0x040C, b"thumbnail") + PATH
        body = b"Photoshop 3.0\0" + blocks
        settings["extra"] = struct.pack(">HH", 0xFFED, 2 + len(body)) + body
    elif path.suffix == ".tif":
        entries = ImageFileDirectory_v2()
        tags = Image.Exif()
        tags.load(exif())
        entries.update({tag: tags.get_ifd(tag) if tag > 0x8000 else tags[tag] for tag in tags})
        for tag, content in ((700, XMP), (33723, IPTC), (34377, PATH + resource(0x0409, b"thumbnail"))):
            entries.tagtype[tag] = 1
            entries[tag] = content
        settings["tiffinfo"] = entries
    elif path.suffix == ".png":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
        blocks = resource(0x0404, IPTC) + PATH
        text.add_text("Raw profile type iptc", f"\niptc\n{len(blocks):8}\n{blocks.hex()}\n", zip=True)
        settings["pnginfo"] = text
    return save(path, picture(), **settings)


def resource(number: int, content: bytes) -> bytes:
    return b"8BIM" + struct.pack(">HHI", number, 0, len(content)) + content + b"\0" * (len(content) % 2)


PATH = b"8BIM" + struct.pack(">H", 2000) + b"\6Path 1\0" + struct.pack(">I", 26) + b"p" * 26
IPTC = b"\x1c\2\x78\0\5a cat"


def test_texts_and_colours_of_a_png_file_are_kept(tmp_path: pathlib.Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Copyright", "me")
    info.add_itxt("Title", "Кот", zip=True)
    info.add(b"gAMA", struct.pack(">I", 100_000))
    info.add(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000))
    for bits in (8, 16):
        save(tmp_path / "in.png", picture(), pnginfo=info)
        if bits == 16:
            with_16_bits(tmp_path / "in.png")
        photo = read_photo(tmp_path / "in.png")
        write_photo(tmp_path / "out.png", photo, changed(photo.pixels))
        with Image.open(tmp_path / "in.png") as before, Image.open(tmp_path / "out.png") as after:
            before.load()
            after.load()
            assert after.info == before.info
            assert after.text["Title"] == "Кот"


def with_16_bits(path: pathlib.Path) -> None:
    """Exchanges the header and the pixels of a PNG file."""
    deep = cv2.imencode(".png", np.zeros((20, 20, 3), np.uint16))[1].tobytes()
    before, stored = path.read_bytes(), deep.index(b"IDAT") - 4
    notes = before[33 : before.index(b"IDAT") - 4]
    path.write_bytes(deep[:33] + notes + deep[stored:])


def test_a_comment_and_extended_xmp_of_a_jpeg_file_are_kept(tmp_path: pathlib.Path) -> None:
    more = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + struct.pack(">II", 9, 0) + b"<more xmp"
    extra = struct.pack(">HH", 0xFFE1, 2 + len(more)) + more
    photo = read_photo(save(tmp_path / "in.jpg", picture(), comment=b"a cat", xmp=XMP, extra=extra))
    write_photo(tmp_path / "out.jpg", photo, changed(photo.pixels))
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.info["comment"] == b"a cat"
        assert ("APP1", more) in image.applist


def test_one_line_names_what_is_dropped(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Copyright", "me")
    info.add(b"gAMA", struct.pack(">I", 100_000))
    info.add_itxt("XML:com.adobe.xmp", "x" * 70_000)
    photo = read_photo(save(tmp_path / "in.png", picture("RGBA"), pnginfo=info))
    with caplog.at_level(logging.WARNING, "absl"):
        write_photo(tmp_path / "out.jpg", photo, photo.pixels)
    (message,) = (record.getMessage() for record in caplog.records)
    lost = "XMP of 70000 bytes, texts, gamma and primaries, alpha"
    assert message == f"{tmp_path / 'out.jpg'}: JPEG cannot keep {lost}"
    caplog.clear()
    srgb = PngImagePlugin.PngInfo()
    srgb.add(b"gAMA", struct.pack(">I", 45_455))
    photo = read_photo(save(tmp_path / "in.png", picture(), pnginfo=srgb))
    write_photo(tmp_path / "out.jpg", photo, photo.pixels)
    photo = read_photo(save(tmp_path / "in.jpg", picture(), comment=b"a cat", dpi=(300, 300)))
    write_photo(tmp_path / "out.webp", photo, photo.pixels)
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path / 'out.webp'}: WEBP cannot keep comment"]


def test_what_belongs_to_the_old_pixels_is_named(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "phone.jpg", picture(), format="MPO", save_all=True, append_images=[picture().resize((40, 30))])
    vouched = b"JP\0\1\0\0\0\1 jumb c2pa"
    save(tmp_path / "vouched.jpg", picture(), extra=struct.pack(">HH", 0xFFEB, 2 + len(vouched)) + vouched)
    layered = ImageFileDirectory_v2()
    layered.tagtype[37724] = 7
    layered[37724] = b"Adobe Photoshop Document Data Block\0"
    save(tmp_path / "layered.tif", picture(), tiffinfo=layered)
    named = {"phone.jpg": "further pictures", "vouched.jpg": "content credentials", "layered.tif": "layers"}
    for name, lost in named.items():
        caplog.clear()
        photo = read_photo(tmp_path / name)
        write_photo(tmp_path / name, photo, changed(photo.pixels))
        (record,) = caplog.records
        assert lost in record.getMessage()


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def chunked(png: bytes, *chunks: bytes) -> bytes:
    """Chunks behind the header of a PNG file."""
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return png[:33] + b"".join(framed) + png[33:]


def encoded(format: str, image: Image.Image | None = None, **settings: object) -> bytes:
    buffer = io.BytesIO()
    (image or picture()).save(buffer, format, **settings)
    return buffer.getvalue()


def with_selection() -> bytes:
    """A TIFF file whose fourth channel is no alpha."""
    tiff = encoded("TIFF", picture("RGBA"))
    return tiff.replace(struct.pack("<HHIHH", 338, 3, 1, 2, 0), struct.pack("<HHIHH", 338, 3, 1, 0, 0))


@pytest.mark.parametrize(
    ("name", "data", "lost"),
    [
        ("a.jpg", encoded("JPEG") + b"\0\0\0\x18ftypmp42", "what follows the picture"),
        ("b.jpg", encoded("JPEG", progressive=True) + b"notes of a camera", "what follows the picture"),
        (
            "c.jpg",
            encoded("JPEG", extra=segment(0xE1, b"FLIR\0") + segment(0xE4, b"0")),
            "data of other programs in APP1, APP4",
        ),
        ("d.png", chunked(encoded("PNG"), b"caBXjumb"), "content credentials"),
        ("e.webp", encoded("WEBP", exif=exif()) + b"C2PA\4\0\0\0jumb", "content credentials"),
        ("f.tif", with_selection(), "further channels"),
    ],
)
def test_what_no_file_is_written_with_is_named(tmp_path: pathlib.Path, name: str, data: bytes, lost: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert [each for each in read_photo(tmp_path / name).notes.lost if each.startswith(lost)]
    save(tmp_path / "plain.jpg", picture(), progressive=True, exif=exif(), icc_profile=ICC, comment=b"a cat")
    assert read_photo(tmp_path / "plain.jpg").notes.lost == ()


def test_xmp_fits_the_picture_as_it_is_written(tmp_path: pathlib.Path) -> None:
    described = XMP.replace(
        b"dc:title", b'tiff:ImageWidth="171" exif:PixelYDimension="120" GCamera:MotionPhoto="1" dc:title'
    ).replace(b"/></x", b"><tiff:ImageLength>120</tiff:ImageLength></rdf:Description></x")
    (tmp_path / "in.jpg").write_bytes(encoded("JPEG", exif=exif(6), xmp=described))
    xmp = read_photo(tmp_path / "in.jpg").notes.xmp
    for expected in (b'Orientation="1"', b'ImageWidth="120"', b'PixelYDimension="171"', b"h>171</", b'MotionPhoto="0"'):
        assert expected in xmp


def test_texts_of_a_tiff_file_stay_to_the_byte(tmp_path: pathlib.Path) -> None:
    name, place = "Jörg Müller © 2026".encode(), "Café".encode()
    tags = Image.Exif()
    tags[315], tags[33432] = "A" * len(name), "B" * len(name)
    tags.get_ifd(ExifTags.IFD.Exif)[42032] = "C" * len(place)  # CameraOwnerName
    block = tags.tobytes()
    for letter, text in ((b"A", name), (b"B", name), (b"C", place)):
        block = block.replace(letter * len(text), text)
    source = save(tmp_path / "in.jpg", picture(), exif=block)
    for suffix in (".tif", ".tiff", ".jpg"):
        photo = read_photo(source)
        source = tmp_path / f"out{suffix}"
        write_photo(source, photo, changed(photo.pixels))
        data = source.read_bytes()
        assert (data.count(name), data.count(place)) == (2, 1), suffix


@pytest.mark.parametrize("source", ["in.tif", "in.jpg"])
def test_a_tiff_file_keeps_every_tag_that_is_about_the_photograph(tmp_path: pathlib.Path, source: str) -> None:
    kept = {269: "a name", 18246: 4, 33550: (0.5, 0.5, 0.0), 42113: "-9999"}
    tags = Image.Exif()
    tags.update(kept)
    tags[330], tags[273] = 8, 99  # what would lead astray
    if source == "in.tif":
        directory = ImageFileDirectory_v2()
        directory.update(kept)
        save(tmp_path / source, picture(), tiffinfo=directory)
    else:
        save(tmp_path / source, picture(), exif=tags.tobytes())
    photo = read_photo(tmp_path / source)
    write_photo(tmp_path / "out.tif", photo, changed(photo.pixels))
    with Image.open(tmp_path / "out.tif") as image:
        assert {tag: image.tag_v2[tag] for tag in kept} == kept
        assert 330 not in image.tag_v2
    np.testing.assert_array_equal(read_photo(tmp_path / "out.tif").pixels, changed(photo.pixels))


def test_iptc_of_type_long(tmp_path: pathlib.Path) -> None:
    path, iptc = tagged(tmp_path / "in.tif"), IPTC + b"\0" * (-len(IPTC) % 4)
    entry, long = (struct.pack("<HHI", 33723, *of) for of in ((1, len(IPTC)), (4, len(iptc) // 4)))
    assert entry in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(entry, long))
    photo = read_photo(path)
    assert photo.notes.iptc[: len(IPTC)] == IPTC
    write_photo(tmp_path / "out.jpg", photo, changed(photo.pixels))
    assert read_photo(tmp_path / "out.jpg").notes.iptc == photo.notes.iptc


def test_a_gray_profile_is_no_profile_of_colours(tmp_path: pathlib.Path) -> None:
    gray = b"\0" * 16 + b"GRAY" + b"\0" * 108
    photo = read_photo(save(tmp_path / "in.png", picture("L"), icc_profile=gray))
    for suffix, expected in ((".png", gray), (".webp", b""), (".jpg", gray)):
        write_photo(tmp_path / f"out{suffix}", photo, changed(photo.pixels))
        assert read_photo(tmp_path / f"out{suffix}").notes.icc == expected


@pytest.mark.parametrize("compression", ["raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
@pytest.mark.parametrize("mode", ["RGB", "LA", "L"])
def test_a_tiff_file_keeps_its_compression(tmp_path: pathlib.Path, compression: str, mode: str) -> None:
    image = picture(mode).resize((700, 500))  # many strips
    photo = read_photo(save(tmp_path / "in.tif", image, compression=compression))
    photo = dataclasses.replace(photo, notes=dataclasses.replace(photo.notes, exif=exif()))
    pixels = changed(photo.pixels)
    write_photo(tmp_path / "out.tif", photo, pixels)
    again = read_photo(tmp_path / "out.tif")
    np.testing.assert_array_equal(again.pixels, pixels)
    with Image.open(tmp_path / "out.tif") as image:
        lossless = compression.removeprefix("tiff_") in ("raw", "packbits", "lzw")
        assert image.info["compression"] == (compression if lossless else "tiff_adobe_deflate")
        assert image.getexif().get_ifd(0x8769)[0x9003] == "2025:01:02 03:04:05"
    if mode != "LA":  # which this other reader does not know
        read = cv2.imread(str(tmp_path / "out.tif"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(read if mode == "L" else read[..., ::-1], pixels)


def test_lossless_webp_keeps_colours_without_coverage(tmp_path: pathlib.Path) -> None:
    image = picture()
    image.putalpha(0)
    photo = read_photo(save(tmp_path / "in.webp", image))
    pixels = changed(photo.pixels)
    write_photo(tmp_path / "out.webp", photo, pixels)
    np.testing.assert_array_equal(read_photo(tmp_path / "out.webp").pixels, pixels)
    for suffix in (".png", ".tif"):
        photo = read_photo(save(tmp_path / f"in{suffix}", image))
        write_photo(tmp_path / "out.webp", photo, photo.pixels)
        colours = read_photo(tmp_path / "out.webp").pixels
        assert np.abs(colours.astype(float) - photo.pixels).mean() < 8


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
        before = exif(orientation).removeprefix(b"Exif\0\0")
        after = exif_blocks.fitted(exif(orientation), (100, 100))
        assert len(before) == len(after)
        assert sum(a != b for a, b in zip(before, after, strict=True)) == (orientation != 1)


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_damaged_exif_passes_as_it_came(tmp_path: pathlib.Path, length: int) -> None:
    block = exif(6)[6 : 6 + length]
    assert len(exif_blocks.fitted(block, (100, 100))) == length
    loop = b"II*\0" + struct.pack("<I", 4) + b"\xff" * length
    assert len(exif_blocks.fitted(loop, (100, 100))) == len(loop)
    for damaged in (block, loop, b"nonsense"):
        photo = read_photo(save(tmp_path / "in.jpg", picture(), exif=b"Exif\0\0" + damaged))
        for suffix in (".jpg", *LOSSLESS):
            write_photo(tmp_path / f"out{suffix}", photo, changed(photo.pixels))
            assert read_photo(tmp_path / f"out{suffix}").pixels.shape == (120, 171, 3)


def block_of(order: str, *fields: bytes, own: tuple[bytes, ...] = (), thumbnail: bytes = b"") -> bytes:
    """EXIF of given entries, EXIF's own directory and a thumbnail, laid out as cameras do."""
    where = 8 + 2 + 12 * (len(fields) + 1) + 4
    after = where + 2 + 12 * len(own) + 4
    entries = [*fields, struct.pack(order + "HHII", 0x8769, 4, 1, where)]
    block = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(entries)) + b"".join(entries)
    block += struct.pack(order + "I", after if thumbnail else 0)
    block += struct.pack(order + "H", len(own)) + b"".join(own) + bytes(4)
    if thumbnail:
        data = after + 2 + 12 * 2 + 4
        block += struct.pack(order + "HHHIIHHIII", 2, 0x0201, 4, 1, data, 0x0202, 4, 1, len(thumbnail), 0) + thumbnail
    return block


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["H2x", "I", "i"], ids=["short", "long", "signed"])
@pytest.mark.parametrize("header", [b"", b"Exif\0\0"], ids=["", "doubled"])
def test_an_orientation_of_any_type_is_reset(tmp_path: pathlib.Path, order: str, kind: str, header: bytes) -> None:
    number = {"H2x": 3, "I": 4, "i": 9}[kind]
    field = struct.pack(order + "HHI" + kind, 0x0112, number, 1, 6)
    block = b"Exif\0\0" + header + block_of(order, field)
    photo = read_photo(save(tmp_path / "in.jpg", picture(), exif=block))
    assert photo.pixels.shape == (171, 120, 3)
    for suffix in (".jpg", *LOSSLESS):
        write_photo(tmp_path / f"out{suffix}", photo, changed(photo.pixels))
        with Image.open(tmp_path / f"out{suffix}") as image:
            assert image.size == (120, 171)
            assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("suffix", [".jpg", *LOSSLESS])
def test_exif_fits_the_restored_picture(tmp_path: pathlib.Path, order: str, suffix: str) -> None:
    fields = [struct.pack(order + "HHII", tag, 4, 1, side) for tag, side in ((0x0100, 171), (0x0101, 120))]
    fields.append(struct.pack(order + "HHIHH", 0x0112, 3, 1, 6, 0))
    own = tuple(struct.pack(order + "HHIHH", tag, 3, 1, side, 0) for tag, side in ((0xA002, 171), (0xA003, 120)))
    block = block_of(order, *fields, own=own, thumbnail=bytes_of(picture().resize((40, 30)), "JPEG"))
    photo = read_photo(save(tmp_path / "in.jpg", picture(), exif=b"Exif\0\0" + block))
    pixels = changed(photo.pixels)
    write_photo(tmp_path / f"out{suffix}", photo, pixels)
    np.testing.assert_allclose(read_photo(tmp_path / f"out{suffix}").pixels, pixels, atol=90)
    with Image.open(tmp_path / f"out{suffix}") as image:
        tags = image.getexif()
        assert image.size == (120, 171)
        assert (tags.get(0x0100, 120), tags.get(0x0101, 171)) == (120, 171)
        assert (tags.get_ifd(0x8769)[0xA002], tags.get_ifd(0x8769)[0xA003]) == (120, 171)
        assert tags.get_ifd(ExifTags.IFD.IFD1) == {}


def test_exif_in_a_text_of_a_png_file(tmp_path: pathlib.Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(exif(6)):8}\n{exif(6).hex()}\n", zip=True)
    photo = read_photo(save(tmp_path / "in.png", picture(), pnginfo=info))
    assert photo.pixels.shape == (171, 120, 3)
    write_photo(tmp_path / "out.png", photo, changed(photo.pixels))
    with Image.open(tmp_path / "out.png") as image:
        assert image.getexif()[0x0112] == 1
        assert image.getexif()[0x010F] == "Maker"


@pytest.mark.parametrize(("suffix", "side"), [(".webp", 16_384), (".jpg", 65_501)])
def test_too_large_for_a_format_is_said_before_any_work(tmp_path: pathlib.Path, suffix: str, side: int) -> None:
    photo = read_photo(save(tmp_path / "in.png", Image.new("L", (side, 16))))
    with pytest.raises(RestoreError, match="px a side; write a PNG or TIFF"):
        files.check_output(tmp_path / f"out{suffix}", photo)
    files.check_output(tmp_path / "out.png", photo)


@pytest.mark.parametrize("source", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("target", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_suffix_chooses_the_format(tmp_path: pathlib.Path, source: str, target: str, mode: str) -> None:
    photo = read_photo(save(tmp_path / f"in{source}", picture(mode), exif=exif(), icc_profile=ICC))
    write_photo(tmp_path / f"out{target}", photo, changed(photo.pixels))
    again = read_photo(tmp_path / f"out{target}")
    assert again.format == files.FORMATS[target]
    assert again.notes.icc == ICC
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
    "gif": (bytes_of(picture("P"), "GIF"), "GIF is not supported"),
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


@pytest.mark.parametrize(
    "entries",
    [((50_706, 1, b"\1\4\0\0"),), ((254, 4, 1), (330, 4, 8))],
    ids=["DNG", "a preview first"],
)
def test_camera_raw_is_not_taken_for_its_preview(tmp_path: pathlib.Path, entries) -> None:
    directory = ImageFileDirectory_v2()
    for tag, kind, value in entries:
        directory.tagtype[tag] = kind
        directory[tag] = value
    save(tmp_path / "in.tif", picture(), tiffinfo=directory).rename(tmp_path / "in.dng")
    with pytest.raises(RestoreError, match="camera RAW is not supported; develop it to a 16-bit PNG"):
        read_photo(tmp_path / "in.dng")


def test_bigtiff_is_named(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "in.tif", picture(), big_tiff=True)
    with pytest.raises(RestoreError, match="BigTIFF is not supported; save it as a TIFF"):
        read_photo(tmp_path / "in.tif")


def test_a_long_profile_of_a_png_file_is_read_as_it_was_written(tmp_path: pathlib.Path) -> None:
    icc = np.random.default_rng(0).bytes(3 * 2**19)
    photo = read_photo(save(tmp_path / "in.jpg", picture(), icc_profile=icc))
    write_photo(tmp_path / "out.png", photo, changed(photo.pixels))
    assert read_photo(tmp_path / "out.png").notes.icc == icc


def test_a_link_stays_one_and_a_private_file_private(tmp_path: pathlib.Path) -> None:
    real, link = save(tmp_path / "real.jpg", picture()), tmp_path / "link.jpg"
    real.chmod(0o640)
    link.symlink_to(real)
    photo = read_photo(link)
    write_photo(link, photo, changed(photo.pixels))
    assert link.is_symlink()
    assert real.read_bytes() != photo.source
    assert real.stat().st_mode & 0o777 == 0o640


def test_a_file_is_private_while_it_is_written(tmp_path: pathlib.Path, monkeypatch) -> None:
    path = save(tmp_path / "in.jpg", picture())
    path.chmod(0o600)
    modes, copymode = [], shutil.copymode
    monkeypatch.setattr(shutil, "copymode", lambda a, b: (modes.append(b.stat().st_mode & 0o777), copymode(a, b)))
    photo = read_photo(path)
    write_photo(path, photo, changed(photo.pixels))
    assert modes == [0o600]
    write_photo(tmp_path / "new.jpg", photo, changed(photo.pixels))
    (tmp_path / "plain").touch()
    assert (tmp_path / "new.jpg").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_to_another_format_or_to_itself(tmp_path: pathlib.Path) -> None:
    photo = read_photo(save(tmp_path / "in.jpg", picture()))
    (tmp_path / "link.png").symlink_to(tmp_path / "in.jpg")
    with pytest.raises(RestoreError, match=r"link.png: is a link to in.jpg, of another format; name a file"):
        files.check_output(tmp_path / "link.png")
    for one, two in ("ab", "ba"):
        (tmp_path / f"{one}.jpg").symlink_to(tmp_path / f"{two}.jpg")
    write_photo(tmp_path / "a.jpg", photo, photo.pixels)
    assert (tmp_path / "a.jpg").read_bytes() == photo.source


def test_exif_that_only_turns_is_not_damaged(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    photo = read_photo(save(tmp_path / "in.jpg", picture(), exif=tags.tobytes()))
    write_photo(tmp_path / "out.tif", photo, photo.pixels)
    assert not caplog.records


def test_a_transparent_level_of_16_bits(tmp_path: pathlib.Path) -> None:
    gray = np.full((20, 30), 300, np.uint16)
    gray[10:] = 500
    png = cv2.imencode(".png", gray)[1].tobytes()
    (tmp_path / "in.png").write_bytes(chunked(png, b"tRNS" + struct.pack(">H", 500)))
    photo = read_photo(tmp_path / "in.png")
    np.testing.assert_array_equal(photo.alpha, np.where(gray == 500, 0, 65_535))
    write_photo(tmp_path / "out.png", photo, photo.pixels - 1)
    np.testing.assert_array_equal(read_photo(tmp_path / "out.png").alpha, photo.alpha)


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


def test_where_nothing_is_painted_nothing_is_restored(tmp_path: pathlib.Path) -> None:
    Image.new("RGBA", (30, 20), (255, 255, 255, 0)).save(tmp_path / "empty.png")
    assert not read_mask(tmp_path / "empty.png", (20, 30)).any()


def test_a_mask_of_another_size_states_both(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "mask.png", picture("L"))
    with pytest.raises(RestoreError, match="mask of 171 x 120 px for a photograph of 120 x 170 px; resize the mask"):
        read_mask(path, (170, 120))


def exif_of(path: pathlib.Path) -> Image.Exif:
    with Image.open(path) as image:
        found = image.getexif()
        found.get_ifd(0x8769)  # before the file is closed
        return found


def test_an_entry_of_exif_that_cannot_be_written_takes_no_other_along(tmp_path: pathlib.Path, caplog) -> None:
    tags = Image.Exif()
    tags[0x010F] = "Camera"
    tags.get_ifd(0x8769).update({0x9003: "2026:01:02 03:04:05", 0x829A: 0.01, 0xA005: {1: "R98"}})
    block = tags.tobytes()
    assert block.count(b"\xa0\x05\0\4") == 1
    broken = block.replace(b"\xa0\x05\0\4", b"\xa0\x05\0\1")  # the pointer is of bytes
    photo = read_photo(save(tmp_path / "in.jpg", picture(), exif=broken))
    write_photo(tmp_path / "out.tif", photo, photo.pixels)
    assert caplog.messages == []
    kept = exif_of(tmp_path / "out.tif")
    assert kept[0x010F] == "Camera"
    assert kept.get_ifd(0x8769)[0x9003] == "2026:01:02 03:04:05"


def test_a_long_entry_of_a_tiff_file_takes_no_other_along_to_jpeg(tmp_path: pathlib.Path, caplog) -> None:
    directory = ImageFileDirectory_v2()
    directory.tagtype.update({0x010F: 2, 65_000: 7})
    directory.update({0x010F: "Kamera Ä".encode(), 65_000: bytes(70_000)})
    photo = read_photo(save(tmp_path / "in.tif", picture(), tiffinfo=directory))
    write_photo(tmp_path / "out.jpg", photo, photo.pixels)
    assert exif_of(tmp_path / "out.jpg")[0x010F].encode("latin-1").decode() == "Kamera Ä"
    assert caplog.messages == [f"{tmp_path / 'out.jpg'}: JPEG cannot keep of EXIF 65000"]
    write_photo(tmp_path / "out.tif", photo, changed(photo.pixels))
    assert exif_of(tmp_path / "out.tif")[65_000] == bytes(70_000)


def test_xmp_of_ingredients_stays_as_it_is(tmp_path: pathlib.Path) -> None:
    inner = b"<xmpMM:Pantry><rdf:li tiff:Orientation='6' tiff:ImageWidth='6000'/></xmpMM:Pantry>"
    xmp = b"<x tiff:ImageWidth='9'>" + inner + b"<tiff:Orientation>6</tiff:Orientation></x>"
    photo = read_photo(save(tmp_path / "in.jpg", picture(), xmp=xmp))
    width = b"%d" % photo.pixels.shape[1]
    assert photo.notes.xmp == xmp.replace(b"'9'", b"'%s'" % width).replace(b">6<", b">1<")


def test_white_space_behind_a_picture_is_no_video(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "in.jpg", picture())
    path.write_bytes(path.read_bytes() + b"\r\n \0")
    assert read_photo(path).notes.lost == ()


def test_a_resolution_that_is_not_told_is_not_made_up(tmp_path: pathlib.Path) -> None:
    photo = read_photo(save(tmp_path / "in.tif", picture()))
    assert photo.notes.dpi == ()
    write_photo(tmp_path / "out.tif", photo, changed(photo.pixels))
    with Image.open(tmp_path / "out.tif") as image:
        assert not {282, 283, 296} & set(image.tag_v2)


def test_a_mask_with_colours_is_refused(tmp_path: pathlib.Path) -> None:
    red = np.zeros((40, 60, 3), np.uint8)
    red[10:20] = 255, 0, 0
    size = red.shape[:2]
    with pytest.raises(RestoreError, match="the mask has colours; paint white on black, or anything on transparency"):
        read_mask(save(tmp_path / "red.png", Image.fromarray(red)), size)
    painted = np.dstack([red, 255 * red.any(-1, keepdims=True).astype(np.uint8)])
    mask = read_mask(save(tmp_path / "layer.png", Image.fromarray(painted)), size)
    np.testing.assert_array_equal(mask, painted[..., 3])
    white = save(tmp_path / "white.jpg", Image.fromarray(red[..., :1].repeat(3, -1)), quality=30)
    assert read_mask(white, size)[14].min() > 200


def test_a_mask_that_lies_is_to_be_turned(tmp_path: pathlib.Path) -> None:
    mask = save(tmp_path / "mask.png", Image.new("L", (60, 40)))
    with pytest.raises(RestoreError, match="mask of 60 x 40 px for a photograph of 40 x 60 px; turn it upright"):
        read_mask(mask, (60, 40))


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b"\0\0\0\x18ftypcrx ", "camera RAW"),
        (b"GIF89a", "GIF"),
    ],
)
def test_other_formats_are_named(tmp_path: pathlib.Path, start: bytes, name: str) -> None:
    (tmp_path / "in.jpg").write_bytes(start + bytes(100))
    with pytest.raises(RestoreError, match=f"in.jpg: {name} is not supported; export it as JPEG, PNG, WebP or TIFF"):
        read_photo(tmp_path / "in.jpg")


def test_a_folder_as_output_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RestoreError, match="is a folder; name a file"):
        files.check_output(tmp_path)
