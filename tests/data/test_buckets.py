"""Every batch has one shape; photographs train nearly whole, and equally often."""

import collections
import io
import itertools
import pathlib

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from uniser_jax.data.buckets import Buckets, aspect
from uniser_jax.data.photos import Files, open_photos
from uniser_jax.data.pipeline import Crop, Examples, batches
from uniser_jax.data.schedule import Schedule, Stage, fixed
from uniser_jax.effects import edit, gallery
from uniser_jax.effects.edit import EditSampling, Rendering
from uniser_jax.effects.heldout import HELD_OUT
from uniser_jax.types import EFFECTS, Batch

ASPECTS = tuple(map(aspect, ("1:1", "3:2", "2:3")))
SIZES = [(120, 80)] * 6 + [(80, 120)] * 4 + [(90, 100)] * 3  # width and height


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory):
    """Photographs whose gray level is their number."""
    root = tmp_path_factory.mktemp("photos")
    for number, size in enumerate(SIZES):
        Image.new("RGB", size, (10 * number + 20,) * 3).save(root / f"{number:02d}.png")
    return open_photos(str(root))


@pytest.fixture(scope="module")
def examples(photos) -> Examples:
    return Examples(photos, EditSampling(), fixed(48, 4), seed=3, buckets=Buckets.of(photos, ASPECTS, 8))


def take(examples: Examples, count: int, **settings) -> list[Batch]:
    stream = batches(examples, **settings)
    taken = list(itertools.islice(stream, count))
    stream.close()
    return taken


def test_photographs_go_where_they_are_cropped_least(examples: Examples) -> None:
    assert [list(members) for members in examples.buckets.members] == [[10, 11, 12], [0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]


@pytest.mark.parametrize("size", [48, 96, 256, 512, 1024])
@pytest.mark.parametrize("multiple", [8, 12, 16])
def test_shapes_are_multiples_and_never_larger_than_the_square(size: int, multiple: int) -> None:
    buckets = Buckets(tuple(map(aspect, ("1:1", "4:3", "3:4", "3:2", "2:3", "16:9", "9:16"))), ((),) * 7, multiple)
    for bucket, wanted in enumerate(buckets.aspects):
        h, w = buckets.shape(bucket, size // multiple * multiple)
        assert h % multiple == w % multiple == 0
        assert h * w <= size * size
        if size // multiple > 20:
            assert h * w > 0.9 * size * size
            assert abs(np.log(w / h / wanted)) < 0.1
    assert buckets.shape(0, 48) == (48, 48)
    assert buckets.shape(1, 480) == buckets.shape(2, 480)[::-1]


def test_batches_have_one_shape_and_replay_by_index(examples: Examples) -> None:
    shapes = set()
    for step, batch in enumerate(take(examples, 8, start_step=5), 5):
        shape = batch.input.shape[1:3]
        assert batch.target.shape[1:3] == batch.mask.shape[1:] == shape
        shapes.add(shape)
        for row, leaf in zip(batch, examples[examples.schedule.indices(step)[2]], strict=True):
            np.testing.assert_array_equal(row[2], leaf)
    assert shapes == {(48, 48), (40, 56), (56, 40)}


def test_processes_and_workers_see_the_same_batches(examples: Examples) -> None:
    whole = take(examples, 5, start_step=2)
    parts = [take(examples, 5, start_step=2, blocks=(p,), block_count=2, workers=2 * p) for p in range(2)]
    for batch, *rows in zip(whole, *parts, strict=True):
        for leaf, *part in zip(batch, *rows, strict=True):
            np.testing.assert_array_equal(leaf, np.concatenate(part))


@pytest.mark.parametrize("reuse", [1, 2])
def test_all_photographs_are_seen_equally_often(photos, reuse: int) -> None:
    """A cycle of as many groups as there are photographs shows each of them once per row."""
    buckets = Buckets.of(photos, ASPECTS, 8)
    examples = Examples(photos, EditSampling(), fixed(48, 4, reuse), seed=3, buckets=buckets)
    for cycle in range(2):
        steps = range(cycle * len(SIZES) * reuse, (cycle + 1) * len(SIZES) * reuse)
        drawn = [examples._drawn(index) for step in steps for index in examples.schedule.indices(step)]
        assert collections.Counter(one.photo for one in drawn) == dict.fromkeys(range(len(SIZES)), 4 * reuse)
        for one in drawn:
            assert one.shape == buckets.shape(next(b for b in range(3) if one.photo in buckets.members[b]), 48)


def test_a_bucket_goes_on_across_stages(photos) -> None:
    schedule = Schedule((Stage(0, 48, 4), Stage(13, 64, 2)))
    examples = Examples(photos, EditSampling(), schedule, seed=3, buckets=Buckets.of(photos, ASPECTS, 8))
    alone = Examples(photos, EditSampling(), schedule, seed=3)
    for one in (examples, alone):
        drawn = [one._drawn(index) for step in range(13, 26) for index in schedule.indices(step)]
        assert collections.Counter(d.photo for d in drawn) == dict.fromkeys(range(len(SIZES)), 2)


def test_one_square_bucket_is_none(photos) -> None:
    plain, one = (
        Examples(photos, EditSampling(), fixed(32, 4), seed=3, buckets=b)
        for b in (None, Buckets.of(photos, ASPECTS[:1], 8))
    )
    for index in (0, 17, 1000):
        for a, b in zip(plain[index], one[index], strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_crop_may_show_a_whole_photograph() -> None:
    photo = np.arange(80 * 120 * 3, dtype=np.uint8).reshape(80, 120, 3)
    whole = Crop.sample(np.random.default_rng(0), 1.0, 1.5)
    np.testing.assert_array_equal(whole._replace(mirrored=False).cut(photo, (80, 120)), photo)
    for seed in range(50):
        shape = [(80, 120), (120, 80), (33, 500)][seed % 3]
        crop = Crop.sample(np.random.default_rng(seed), 0.35, 2 / 3)
        assert 0.35 - 1e-9 <= crop.side**2 <= 1
        assert 0 <= crop.top < 1
        assert 0 <= crop.left < 1
        height = int(crop.side * min(shape[0], shape[1] * 1.5))
        corners = np.zeros((*shape, 2), np.float32)
        corners[..., 0], corners[..., 1] = np.indices(shape)
        seen = crop._replace(mirrored=False).cut(
            corners, (height, int(crop.side * min(shape[0], shape[1] * 1.5) / 1.5))
        )
        assert seen[-1, -1, 0] - seen[0, 0, 0] == height - 1  # all of it lies in the photograph
        factor = crop.reduction(shape, (10, 7))
        assert factor == 1 or height // factor >= 10 > height // (2 * factor) or factor == 8


def test_headers_tell_shapes_wherever_photographs_lie(tmp_path: pathlib.Path) -> None:
    turned, plain = Image.new("RGB", (80, 160)), Image.new("RGB", (120, 90))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn to the right
    turned.save(tmp_path / "a.jpg", exif=exif)
    plain.save(tmp_path / "b.png")
    (tmp_path / "c.jpg").write_bytes(b"no image")
    files = Files(paths=tuple(str(path) for path in sorted(tmp_path.iterdir())))
    assert [files.shape(index) for index in range(3)] == [(80, 160), (90, 120), (1, 1)]
    assert files[0].shape[:2] == (80, 160)
    writer = ArrayRecordWriter(str(tmp_path / "photos.array_record"), "group_size:1")
    for image in (turned, plain):
        encoded = io.BytesIO()
        image.save(encoded, "PNG")
        writer.write(encoded.getvalue())
    writer.close()
    records = open_photos(f"array_record:{tmp_path}/photos.array_record", 8)
    assert [records.shape(index) for index in range(2)] == [(160, 80), (90, 120)]


@pytest.mark.parametrize("text", ["square", "3", "0:1", "1:0", "1:99", "1:2:3", 1.5])
def test_what_is_no_aspect_is_refused(text) -> None:
    with pytest.raises(ValueError, match="aspect"):
        aspect(text)


def test_small_buckets_are_named(examples: Examples, caplog) -> None:
    with caplog.at_level("INFO", "absl"):
        examples.buckets.report(48, 4)
    assert "bucket of 56 x 40 px (width x height): 6 photographs" in caplog.text
    assert "bucket of 48 x 48 px (width x height): 3 photographs, fewer than a batch of 4" in caplog.text


@pytest.mark.parametrize("shape", [(48, 80), (80, 48), (30, 100)])
def test_effects_fit_any_shape(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    photo, other = (np.random.default_rng(n).integers(0, 255, (*shape, 3), dtype=np.uint8) for n in (1, 2))
    scene = edit.scene_from_photo(photo, other, 2.0)
    for seed, effect in itertools.product(range(4), (*EFFECTS, "mixture")):
        rng = np.random.default_rng(seed)
        names = EFFECTS[:4] if effect == "mixture" else (effect,)
        made = Rendering(scene, edit.sample(rng, scene, EditSampling(), effects=names)).edit()
        assert made.input.shape == made.target.shape == (*shape, 3)
        assert made.mask.shape == shape
        np.testing.assert_array_equal(made.input[made.mask == 0], made.target[made.mask == 0])
    for kind in HELD_OUT.values():
        assert kind.sample(rng, scene).render(scene)(scene.radiance, 1.0).shape == (*shape, 3)


def test_a_sheet_shows_examples_of_all_shapes(examples: Examples) -> None:
    firsts = [examples.schedule.indices(step)[0] for step in range(8)]
    sheet = gallery.example_sheet([(index, examples[index], examples.recipe(index)[1]) for index in firsts])
    assert sheet.shape[1] == 3 * 56 + 2 * 4
