"""Photographs from every source, and what strangers put in folders."""

import io
import logging
import os
import pathlib
import pickle
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image, UnidentifiedImageError

from tests.profiles import GAMMA_2_2, P3, SRGB, SRGB_CURVE, primaries, profile
from uniser_jax import decoding, manifest
from uniser_jax.data import photos
from uniser_jax.data.photos import open_photos, split
from uniser_jax.data.pipeline import Examples
from uniser_jax.data.schedule import fixed
from uniser_jax.decoding import decode, decode_depth, whole
from uniser_jax.effects import light
from uniser_jax.effects.edit import EditSampling

RNG = np.random.default_rng(0)


def encoded(side: int = 80, format: str = "PNG", mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(RNG.integers(0, 255, (side, side + 10, 3), dtype=np.uint8)).convert(mode)
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "deep").mkdir()
    for name in ("a.png", "deep/b.PNG", "c.png"):
        (tmp_path / name).write_bytes(encoded())
    return tmp_path


def test_a_folder_is_searched_and_bad_files_are_named_once(folder: pathlib.Path, caplog) -> None:
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("not an image")
    (folder / "thin.png").write_bytes(encoded(1))
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "notes.txt").write_text("ignored")
    with caplog.at_level(logging.WARNING, "absl"):
        opened = open_photos(str(folder))
    assert [opened.name(i).rsplit("/")[-1] for i in range(len(opened))] == ["a.png", "c.png", "b.PNG"]
    assert opened.skipped == 6
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "skipped 6" in message
    assert "and 1 more" in message
    for name in ("empty.jpg (empty)", "text.jpg (not an image)", "pipe.jpg (not a file)", "gone.jpg (missing)"):
        assert name in message
    assert "thin.png (11 x 1 px)" in message or "loop.jpg" in message


@pytest.mark.parametrize("format", ["EPS", "PPM", "GIF"])
def test_only_pictures_are_decoded_whatever_a_file_calls_itself(format: str) -> None:
    with pytest.raises(UnidentifiedImageError):  # PostScript would be run
        decode(encoded(format=format))


def test_a_loop_over_photographs_ends(folder: pathlib.Path) -> None:
    opened = open_photos(str(folder))
    assert len(list(opened)) == len(opened)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_jpeg_decoded_smaller_is_the_mean_of_its_pixels(factor: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(skimage.data.coffee()).save(buffer, "JPEG", quality=95)
    whole, small = decode(buffer.getvalue()), decode(buffer.getvalue(), lambda shape: factor)
    size = (whole.shape[1] // factor, whole.shape[0] // factor)
    mean = cv2.resize(whole, size, interpolation=cv2.INTER_AREA)
    assert np.abs(mean.astype(int) - small).mean() < 1.5


def test_only_upright_jpeg_files_are_decoded_smaller_and_none_smaller_than_any_may_be(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(400, "JPEG"))
    (tmp_path / "b.jpg").write_bytes(encoded(400, "JPEG", exif=_turned()))
    (tmp_path / "c.png").write_bytes(encoded(400))
    opened = photos.Subset(open_photos(str(tmp_path), min_side=64), (0, 1, 2))
    sides = [min(opened.reduced(0, lambda shape, factor=factor: factor).pixels.shape[:2]) for factor in (1, 2, 4, 8)]
    assert sides == [400, 200, 100, 400]
    for index in (1, 2):
        np.testing.assert_array_equal(opened.reduced(index, lambda shape: 4).pixels, opened[index])


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_a_file_that_fails_at_decoding_has_a_stand_in(folder: pathlib.Path, caplog) -> None:
    whole = encoded(300, "JPEG")
    (folder / "b_cut.jpg").write_bytes(whole[: len(whole) // 2])  # its header is fine
    opened = open_photos(str(folder))
    index = [opened.name(i).endswith("b_cut.jpg") for i in range(len(opened))].index(True)
    with caplog.at_level(logging.WARNING, "absl"):
        stand_in = opened[index], opened[index]
    np.testing.assert_array_equal(stand_in[0], opened[index + 1])
    np.testing.assert_array_equal(stand_in[0], stand_in[1])
    assert len(caplog.records) == 1
    assert "b_cut.jpg" in caplog.records[0].getMessage()


@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [
        ("L", "PNG", {}),
        ("LA", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {"transparency": 3}),
        ("1", "PNG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "WEBP", {}),
        ("RGB", "TIFF", {}),
        ("RGB", "BMP", {}),
    ],
)
def test_every_kind_becomes_rgb(mode: str, format: str, options: dict) -> None:
    pixels = decode(encoded(70, format, mode, **options))
    assert pixels.shape == (70, 80, 3)
    assert pixels.dtype == np.uint8


def test_sixteen_bits_are_scaled_and_nan_is_black(tmp_path: pathlib.Path) -> None:
    deep = np.full((70, 70), 65_535, np.uint16)
    deep[0, 0] = 32_768
    Image.fromarray(deep).save(tmp_path / "deep.png")
    pixels = decode((tmp_path / "deep.png").read_bytes())
    assert (pixels[1, 1] == 255).all()
    assert (pixels[0, 0] == 128).all()
    real = np.full((70, 70), 0.5, np.float32)
    real[0, 0] = np.nan
    Image.fromarray(real).save(tmp_path / "real.tiff")
    pixels = decode((tmp_path / "real.tiff").read_bytes())
    assert (pixels[1, 1] == 128).all()
    assert (pixels[0, 0] == 0).all()


@pytest.mark.parametrize(("mode", "stored"), [("I;16", "<u2"), ("I;16B", ">u2"), ("I", "i4")])
def test_deep_gray_is_rounded_to_the_nearest_level(mode: str, stored: str) -> None:
    every = np.arange(2**16)
    image = Image.frombytes(mode, (512, 128), every.astype(stored).tobytes())
    expected = ((every + 128) // 257).reshape(128, 512)  # 257 levels of 16 bits are one of 8
    np.testing.assert_array_equal(decoding.to_rgb(image), np.dstack(3 * [expected]))


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_the_brightest_pixel_of_all_strips_tells_the_scale(top: float) -> None:
    values = np.linspace(0, 1, 600 * 500, dtype=np.float32).reshape(600, 500)
    values[-1, -1], values[0, 0] = 1, np.nan
    pixels = decoding.to_rgb(Image.fromarray(np.float32(top) * values))
    expected = np.round(255 * np.nan_to_num(values))
    assert np.abs(pixels - expected[..., None]).max() <= 1
    assert (pixels == expected[..., None]).mean() > 0.999


def test_deep_gray_takes_little_more_room_than_its_pixels() -> None:
    image = Image.fromarray(np.zeros((1_500, 1_000), np.uint16))
    tracemalloc.start()
    decoding.to_rgb(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 1_500_000


def test_photographs_stand_upright() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(np.zeros((70, 90, 3), np.uint8)).save(buffer, "JPEG", exif=exif)
    assert decode(buffer.getvalue()).shape == (90, 70, 3)


def test_only_a_jpeg_with_metadata_before_its_pixels_needs_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = encoded(format="JPEG", comment=b"\xff\xe1 is no marker here")
    behind = Image.Exif()
    behind[0x0112] = 6
    turned = encoded(format="JPEG", exif=behind)
    comment = b"\xff\xfe\x00\x06\xff\xda\xff\xda"  # which looks like the beginning of the pixels
    turned = turned[:2] + comment + turned[2:]
    assert decode(turned).shape == (90, 80, 3)
    monkeypatch.delattr(decoding, "opened")
    assert decode(bare).shape == (80, 90, 3)
    with pytest.raises(NameError):
        decode(turned)


@pytest.mark.parametrize("length", [17, 0x7FFF, 0xFFFF])
def test_a_jpeg_whose_first_segment_lies_about_its_length_is_one_line(length: int) -> None:
    data = encoded(format="JPEG")
    with pytest.raises(OSError, match=r"^[^\n]+$"):
        decode(data[:4] + struct.pack(">H", length) + data[6:])
    with pytest.raises(OSError, match=r"^[^\n]+$"):
        decode(data[:2] + data[-2:])


def test_a_jpeg_larger_than_memory_allows_is_refused_by_its_header() -> None:
    data = encoded(format="JPEG")
    at = data.index(b"\xff\xc0") + 5  # of the frame's height and width
    with pytest.raises(ValueError, match=r"megapixels|exceeds limit"):
        decode(data[:at] + struct.pack(">HH", 65_000, 65_000) + data[at + 4 :])


def test_the_samples_are_photographs() -> None:
    samples = open_photos("samples")
    assert len(samples) > 8
    for index in range(len(samples)):
        assert min(samples[index].shape[:2]) >= 256
    assert samples[0] is samples[0]  # decoded once


def test_a_split_is_disjoint_complete_and_independent_of_order(folder: pathlib.Path) -> None:
    samples = open_photos("samples")
    names = [{part.name(i) for i in range(len(part))} for part in split(samples, 0.3)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == len(samples)
    backwards = photos.Subset(samples, tuple(reversed(range(len(samples)))))
    again = split(backwards, 0.3)[1]
    assert {again.name(i) for i in range(len(again))} == names[1]
    assert len(split(open_photos(str(folder)), 1e-6)[1]) == 1
    assert len(split(open_photos(str(folder)), 0.999)[0]) == 1


def test_sources_travel_to_worker_processes(folder: pathlib.Path) -> None:
    opened = split(open_photos(str(folder)), 0.4)[0]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(opened))[0], opened[0])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("/nowhere/at/all", "no folder of photographs"),
        ("array_record:/nowhere/*", "no ArrayRecord file"),
        ("tfds:no_such_set", "no_such_set"),
    ],
)
def test_missing_sources_are_one_line(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        open_photos(spec)
    assert "\n" not in str(caught.value)


def test_unusable_sources_are_one_line(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="holds no photograph"):
        open_photos(str(tmp_path))
    (tmp_path / "a.png").write_bytes(encoded())
    with pytest.raises(ValueError, match="single photograph"):
        split(open_photos(str(tmp_path)), 0.5)[0]


def test_array_record(tmp_path: pathlib.Path) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    images = [encoded(70 + k) for k in range(3)]
    writer = ArrayRecordWriter(str(tmp_path / "photos.array_record"), "group_size:1")
    for image in images:
        writer.write(image)
    writer.close()
    opened = open_photos(f"array_record:{tmp_path}/*.array_record")
    assert len(opened) == 3
    for index, image in enumerate(images):
        np.testing.assert_array_equal(opened[index], decode(image))
    broken = tmp_path / "broken.array_record"
    broken.write_bytes((tmp_path / "photos.array_record").read_bytes()[:-40])
    with pytest.raises(ValueError, match="cannot be read"):
        open_photos(f"array_record:{broken}")


def test_tfds_without_tensorflow(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import tensorflow_datasets as tfds

    images = [encoded(70 + k, "JPEG") for k in range(3)]

    class TinyPhotos(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"image": tfds.features.Image(encoding_format="jpeg")})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for index, image in enumerate(images):
                yield index, {"image": io.BytesIO(image)}

    builder = TinyPhotos(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    monkeypatch.setattr(tfds, "builder", lambda name: tfds.builder_from_directory(builder.data_dir))
    opened = open_photos("tfds:tiny_photos:train")
    found = {opened[index].shape for index in range(len(opened))}
    assert found == {decode(image).shape for image in images}
    assert "tensorflow" not in sys.modules
    assert len(open_photos("tfds:tiny_photos:train[:1]")) == 1
    with pytest.raises(ValueError, match="no feature 'picture'"):
        open_photos("tfds:tiny_photos:train:picture")
    with pytest.raises(ValueError, match="Unknown split 'test'"):
        open_photos("tfds:tiny_photos:test")


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("coco", ("coco", "train", "image")),
        ("coco:train[:90%]", ("coco", "train[:90%]", "image")),
        ("coco/2017:1.1.0", ("coco/2017:1.1.0", "train", "image")),
        ("coco/2017:1.*.*:train[10%:]+test:picture", ("coco/2017:1.*.*", "train[10%:]+test", "picture")),
        ("coco::picture", ("coco", "train", "picture")),
    ],
)
def test_slices_and_versions_of_tfds_keep_their_colons(spec: str, parts: tuple[str, str, str]) -> None:
    assert photos._tfds_parts(spec) == parts
    with pytest.raises(ValueError, match="too many parts"):
        photos._tfds_parts(f"{spec}:image:more:most")


def test_a_jpeg_decodes_as_pillow_does_and_a_cut_one_is_refused() -> None:
    stream = io.BytesIO()
    Image.fromarray(skimage.data.astronaut()).save(stream, "JPEG", quality=90)
    data = stream.getvalue()
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(decode(data).astype(int) - expected).max() <= 2
    np.testing.assert_array_equal(decode(data + b"\0" * 7), expected)  # trailing bytes take the other path
    with pytest.raises(OSError, match="truncated"):
        decode(data[: len(data) // 2])


def test_depth_lies_beside_a_photograph(tmp_path: pathlib.Path, caplog) -> None:
    photo = Image.fromarray(skimage.data.astronaut()[:100, :120])
    for name in ("a", "b", "c"):
        photo.save(tmp_path / f"{name}.png")
    photo.save(tmp_path / "odd_depth.png")  # no photograph is called odd: this is one
    millimetres = np.linspace(1_000, 9_000, 12_000).reshape(100, 120).astype(np.uint16)
    millimetres[40:60, 50:70] = 0  # unknown
    Image.fromarray(millimetres).save(tmp_path / "a_depth.png")
    (tmp_path / "b_depth.png").write_bytes(b"nonsense")
    photos = open_photos(str(tmp_path))
    assert [photos.name(i).split("/")[1] for i in range(len(photos))] == ["a.png", "b.png", "c.png", "odd_depth.png"]
    depths = [photos.reduced(index, whole).depth for index in range(4)]
    depth = depths[0]
    assert depth.shape == (100, 120)
    assert (np.diff(depth[:, 0]) >= 0).all()
    assert depth[0, 0] == pytest.approx(1 / 9, rel=0.01)
    assert depth[-1, -1] == 1
    assert 0.4 < depth[50, 60] < 0.7
    assert depths[1:] == [None, None, None]
    assert "b_depth.png" in caplog.text
    parts = [part.reduced(0, whole) for part in split(photos, 0.5)]
    assert sum(part.depth is not None for part in parts) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_depth_that_lies_as_a_turned_photograph_was_stored_is_turned_likewise(
    tmp_path: pathlib.Path, orientation: int
) -> None:
    rows, columns = np.mgrid[0:100, 0:200]
    stored = np.minimum(1 + columns // 2 + rows, 160).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    seen = open_photos(str(tmp_path))[0][..., 0]
    for name, depth in (("stored", stored), ("seen", seen)):
        Image.fromarray(depth[::2, ::2]).save(tmp_path / "a_depth.png")
        found = open_photos(str(tmp_path)).reduced(0, whole).depth
        assert found.shape == (seen.shape[0] // 2, seen.shape[1] // 2)
        if orientation >= 5 or name == "seen":  # a half turn leaves the aspect as it is
            # Of each 2 x 2 pixels one is kept; which one depends on the turn.
            assert np.abs(found - seen[::2, ::2] / seen.max()).max() < 0.05


def test_depth_of_another_shape_than_its_photograph_is_named_and_left_out(tmp_path: pathlib.Path, caplog) -> None:
    sizes = {"fits": (104, 192), "turned": (200, 100), "wide": (100, 300), "square": (100, 100)}
    for name, size in sizes.items():
        Image.fromarray(np.zeros((100, 200, 3), np.uint8)).save(tmp_path / f"{name}.png")
        Image.fromarray(np.full(size, 9, np.uint8)).save(tmp_path / f"{name}_depth.png")
    opened = open_photos(str(tmp_path))
    with caplog.at_level(logging.WARNING, "absl"):
        found = {opened.name(i).split("/")[1]: opened.reduced(i, whole).depth for i in [*range(4), *range(4)]}
    assert [name for name, depth in found.items() if depth is not None] == ["fits.png"]
    assert len(caplog.records) == 3
    assert "turned_depth.png cannot be used (100 x 200 px of one that is 200 x 100)" in caplog.text


def test_a_pipe_is_no_depth(folder: pathlib.Path) -> None:
    os.mkfifo(folder / "a_depth.png")
    assert open_photos(str(folder)).reduced(0, whole).depth is None


def test_names_that_are_not_utf8_are_names(tmp_path: pathlib.Path) -> None:
    for name in (b"\xff.png", b"\xe9t\xe9.png", b"c.png"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(encoded())
    opened = open_photos(str(tmp_path))
    parts = split(opened, 0.4)
    assert sum(map(len, parts)) == 3
    assert len(manifest.fingerprint(opened)) == 16
    assert photos.encoded_name(opened, 2).endswith(b"/\xff.png")


def test_no_held_out_photograph_stands_in_for_one_to_train_on(tmp_path: pathlib.Path) -> None:
    for value in range(12):
        Image.fromarray(np.full((80, 80, 3), 20 * value, np.uint8)).save(tmp_path / f"{value}.png")
    training, held_out = split(open_photos(str(tmp_path)), 0.5)
    values = [[int(part[index].mean()) for index in range(6)] for part in (training, held_out)]
    for index in range(5):
        damaged = tmp_path / training.name(index).split("/")[1]
        damaged.write_bytes(damaged.read_bytes()[:-40])
    assert [int(training[index].mean()) for index in range(6)] == 6 * [values[0][5]]
    assert [int(held_out[index].mean()) for index in range(6)] == values[1]


def test_what_stands_in_for_a_photograph_brings_its_own_depth(tmp_path: pathlib.Path) -> None:
    photo, ramp = skimage.data.astronaut()[:100, :120], np.linspace(1, 255, 12_000).astype(np.uint8)
    for name, depth in (("a", ramp.reshape(100, 120)), ("b", ramp[::-1].reshape(100, 120)), ("c", None)):
        Image.fromarray(photo).save(tmp_path / f"{name}.png")
        if depth is not None:
            Image.fromarray(depth).save(tmp_path / f"{name}_depth.png")
    for name in ("a", "c"):  # whole headers, cut pixels
        file = tmp_path / f"{name}.png"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    opened = open_photos(str(tmp_path))
    shown = [opened.reduced(index, whole).depth for index in range(3)]
    for depth in shown:  # all are b
        assert depth[0, 0] == 1
        np.testing.assert_array_equal(depth, shown[1])
    examples = Examples(opened, EditSampling(), fixed(64), smallest=1.0)
    for index in range(3):
        scene, _ = examples.recipe(index)
        assert (scene.depth[0] > scene.depth[-1]).all()


@pytest.mark.parametrize(("least", "most"), [(4_000, 8_000), (12, 24), (1, 255)])
def test_distances_keep_their_ratios_and_begin_at_the_camera(least: int, most: int) -> None:
    """A wall at half of the farthest distance is seen through half of the air."""
    stream = io.BytesIO()
    stored = np.rint(np.linspace(least, most, 13_000)).astype(np.uint16)
    Image.fromarray(stored.reshape(100, 130)).save(stream, "PNG")
    depth = decode_depth(stream.getvalue())
    assert depth.dtype == np.float32
    assert depth.min() == pytest.approx(least / most, rel=0.01)
    assert depth.max() == 1
    assert (depth == 1).mean() < 0.1


def test_an_empty_depth_map_is_one_line() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(stream, "PNG")
    with pytest.raises(ValueError, match="empty"):
        decode_depth(stream.getvalue())


@pytest.mark.parametrize("mode", ["LA", "LAB", "RGB"])
def test_what_is_not_gray_is_no_depth(mode: str) -> None:
    stream = io.BytesIO()
    gray = Image.fromarray(RNG.integers(1, 255, (8, 9), dtype=np.uint8))
    Image.merge(mode, (gray,) * len(mode)).save(stream, "TIFF")
    with pytest.raises(ValueError, match=f"{mode} image: expected a gray depth map"):
        decode_depth(stream.getvalue())


@pytest.mark.parametrize("read", [decode, decode_depth])
def test_a_damaged_chunk_is_an_error_of_one_line(read) -> None:
    stream = io.BytesIO()
    Image.fromarray(RNG.integers(1, 255, (300, 300), dtype=np.uint8)).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    data[data.rfind(b"IDAT")] ^= 0xFF
    assert data.count(b"IDAT") >= 1  # the first is whole
    with pytest.raises(ValueError, match="broken PNG file") as caught:
        read(bytes(data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [2, 5, 12], ids=["text", "fraction", "float"])
def test_headers_that_lie_about_types_are_one_line_and_another_photograph_stands_in(
    tmp_path: pathlib.Path, kind: int
) -> None:
    """What Pillow raises for them is neither an OSError nor a ValueError."""
    good, bad = tmp_path / "b.tif", tmp_path / "a.tif"
    Image.fromarray(np.zeros((80, 90, 3), np.uint8)).save(good)
    data = bytearray(good.read_bytes())
    data[data.index(struct.pack("<H", 0x0111), int.from_bytes(data[4:8], "little")) + 2] = kind  # of StripOffsets
    bad.write_bytes(data)
    with pytest.raises(ValueError, match=r"TypeError: .* cannot be interpreted as an integer"):
        decode(bytes(data))
    files = photos.Files(paths=(str(bad), str(good)))
    assert files.shape(0) == (80, 90)
    np.testing.assert_array_equal(files[0], files[1])


@pytest.mark.parametrize("side", [13_000, 20_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_larger_than_memory_allows_is_refused_by_its_header(side: int) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    for read in (decode, decode_depth):
        with pytest.raises(ValueError, match=r"megapixels|exceeds limit") as caught:
            read(bomb)
        assert "\n" not in str(caught.value)


def test_colours_become_those_of_srgb() -> None:
    expected = np.full((80, 90, 3), (60, 200, 90), np.uint8)
    matrix = np.linalg.inv(primaries(P3)) @ primaries(SRGB)
    stored = light.encode((light.decode(expected) @ matrix.T).astype(np.float32))
    assert np.abs(stored.astype(int) - expected).max() > 40
    icc = profile("Display P3", P3, SRGB_CURVE)
    for format, tolerance in (("PNG", 1), ("TIFF", 1), ("JPEG", 3), ("WEBP", 5)):
        for options in ({}, {"exif": _turned()}):
            stream = io.BytesIO()
            Image.fromarray(stored).save(stream, format, icc_profile=icc, **options)
            found = decode(stream.getvalue())
            assert np.abs(found - expected[:1, :1].astype(int)).max() <= tolerance, format
    jpeg = encoded(400, "JPEG", icc_profile=icc)
    assert decode(jpeg, lambda shape: 4).shape == (100, 103, 3)


@pytest.mark.parametrize("name", ["sRGB-elle-V2-g10", "linear"])
def test_a_linear_profile_is_one_whatever_its_name(name: str) -> None:
    icc = profile(name, SRGB, b"curv\0\0\0\0\0\0\0\0")
    stream = io.BytesIO()
    Image.fromarray(np.full((80, 90, 3), 55, np.uint8)).save(stream, "PNG", icc_profile=icc)
    assert abs(int(decode(stream.getvalue())[0, 0, 0]) - 128) <= 1


def test_a_profile_named_srgb_that_differs_in_the_dark_is_srgb() -> None:
    assert decoding.profile_of(profile("sRGB gamma 2.2", SRGB, GAMMA_2_2)) is None
    assert decoding.profile_of(profile("gamma 2.2", SRGB, GAMMA_2_2)) is not None


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("name", ["sRGB", "broken"])
def test_what_is_srgb_or_no_profile_changes_nothing(name: str, mode: str) -> None:
    icc = profile("sRGB IEC61966-2.1", SRGB, SRGB_CURVE) if name == "sRGB" else b"not a profile of colours" * 20
    image = Image.fromarray(skimage.data.astronaut()[:80, :90]).convert(mode)
    plain, tagged = io.BytesIO(), io.BytesIO()
    image.save(plain, "JPEG")
    image.save(tagged, "JPEG", icc_profile=icc)
    np.testing.assert_array_equal(decode(tagged.getvalue()), decode(plain.getvalue()))
