"""The stream is a pure function of (seed, step)."""

import dataclasses
import itertools
import pathlib
import pickle

import cv2
import numpy as np
import pytest

from uniser_jax import config as schema
from uniser_jax import train
from uniser_jax.data import pipeline
from uniser_jax.data.photos import Encoded, open_photos, split
from uniser_jax.data.pipeline import Examples, Recent, batches, colour_matrix, random_crop
from uniser_jax.data.schedule import Schedule, Stage, fixed
from uniser_jax.effects import light, templates
from uniser_jax.effects.edit import EditSampling, Recipe, Rendering
from uniser_jax.effects.flare import FlareSampling
from uniser_jax.effects.layer import Scene
from uniser_jax.effects.mixture import Families, Mixture
from uniser_jax.effects.occlusion import TEXTURES, OcclusionSampling
from uniser_jax.types import TASKS, Batch

TINY = str(pathlib.Path(__file__).parents[2] / "configs/tiny.py")
EXAMPLES = Examples(split(open_photos("samples"), 0.25)[0], EditSampling(), fixed(32, 8), seed=5, colour=0.5)


def assert_equal(a: Batch, b: Batch) -> None:
    for one, two in zip(a, b, strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


def take(count: int, **settings) -> list[Batch]:
    return list(itertools.islice(batches(EXAMPLES, **settings), count))


def test_shapes_and_types() -> None:
    batch = take(1)[0]
    assert isinstance(batch, Batch)
    assert batch.input.shape == batch.target.shape == (8, 32, 32, 3)
    assert batch.input.dtype == batch.target.dtype == batch.mask.dtype == np.uint8
    assert batch.mask.shape == (8, 32, 32)
    assert batch.task.dtype == np.int32
    assert ((batch.task >= 0) & (batch.task < len(TASKS))).all()
    assert batch.strengths.shape == (8, 5)


def test_a_continued_stream_goes_on_where_it_stopped() -> None:
    whole = take(5)
    for late, batch in zip(take(2, start_step=3), whole[3:], strict=True):
        assert_equal(late, batch)


def test_workers_draw_from_the_layers_that_the_trainer_found(tmp_path: pathlib.Path) -> None:
    layer = np.zeros((40, 60, 3), np.uint8)
    layer[15:25, 25:35] = 255
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), layer)
    (tmp_path / "c.png").write_bytes(b"no image")
    flares = Families(flare=FlareSampling(layers=str(tmp_path), real=1.0))
    examples = dataclasses.replace(EXAMPLES, sampling=EditSampling(families=flares, mixture=Mixture(flare=9.0)))
    before = examples.fingerprint()
    whole = list(itertools.islice(batches(examples), 2))
    cv2.imwrite(str(tmp_path / "0.png"), layer)  # a process that looks now finds another
    for one, two in zip(itertools.islice(batches(examples, workers=2), 2), whole, strict=True):
        assert_equal(one, two)
    templates.tell({str(tmp_path): (str(tmp_path / "a.png"),)})
    assert examples.fingerprint() != before  # as on a host with other layers
    effects = (effect for index in range(16) for effect in examples.recipe(index)[1].effects)
    assert {values["layer"] for name, values in effects if name == "flare"} == {str(tmp_path / "a.png")}


def test_a_folder_of_flares_is_looked_at_when_examples_are_opened(tmp_path: pathlib.Path, caplog) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    layers = f"--config.edit.families.flare.layers={tmp_path}"
    train.open_examples(schema.read(TINY, [layers]))  # none is drawn
    with pytest.raises(ValueError, match=r"flare.layers = .*no layer that can be used"):
        train.open_examples(schema.read(TINY, [layers, "--config.edit.families.flare.real=0.1"]))
    layer = np.zeros((40, 60, 3), np.uint8)
    layer[15:25, 25:35] = 255
    both = tmp_path / "both"
    both.mkdir()
    (both / "a.png").write_bytes(b"no image")
    cv2.imwrite(str(both / "b.png"), layer)
    train.open_examples(schema.read(TINY, [f"{layers}/both", "--config.edit.families.flare.real=0.1"]))
    assert [message for message in caplog.messages if f"{both / 'a.png'}: a flare layer that cannot be read" in message]


@pytest.mark.parametrize("blocks", [((0,), (1,)), ((0, 1), (2, 3)), ((1, 2), (0, 3))], ids=str)
def test_processes_split_the_same_batches(blocks: tuple[tuple[int, ...], ...]) -> None:
    count = sum(map(len, blocks))
    parts = [take(2, start_step=1, blocks=own, block_count=count) for own in blocks]
    for whole, *mine in zip(take(2, start_step=1), *parts, strict=True):
        for own, part in zip(blocks, mine, strict=True):
            rows = [row for block in own for row in range(block * 8 // count, (block + 1) * 8 // count)]
            assert_equal(part, Batch(*(leaf[rows] for leaf in whole)))


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_change_nothing(threads: int) -> None:
    for one, two in zip(take(3), take(3, threads=threads), strict=True):
        assert_equal(one, two)


def test_worker_processes_change_nothing() -> None:
    for one, two in zip(take(4, start_step=2), take(4, start_step=2, workers=3), strict=True):
        assert_equal(one, two)


def test_rows_are_the_examples_by_global_index() -> None:
    batch = take(1, start_step=2)[0]
    edit = EXAMPLES[2 * 8 + 3]
    for row, leaf in zip(batch, edit, strict=True):
        np.testing.assert_array_equal(row[3], leaf)


def test_an_example_replays_from_its_logged_recipe() -> None:
    for index in range(12):
        scene, recipe = EXAMPLES.recipe(index)
        again = Rendering(scene, Recipe.from_json(recipe.to_json())).edit()
        for one, two in zip(again, EXAMPLES[index], strict=True):
            np.testing.assert_array_equal(one, two)


def test_every_epoch_visits_all_photographs_in_a_new_order(monkeypatch: pytest.MonkeyPatch) -> None:
    visited: list[int] = []
    count = len(EXAMPLES.photos)
    monkeypatch.setattr(
        Examples,
        "_view",
        lambda self, rng, drawn, photo, stops: visited.append(photo) or Scene(np.zeros((8, 8, 3), np.float32)),
    )
    quiet = EditSampling(mixture=Mixture(reflection=0.0, auxiliary=0.0))  # no second photographs
    examples = Examples(EXAMPLES.photos, quiet, fixed(8))
    for index in range(2 * count):
        examples.recipe(index)
    assert sorted(visited[:count]) == sorted(visited[count:]) == list(range(count))
    assert visited[:count] != visited[count:]


@pytest.mark.parametrize("effect", ["reflection", "occlusion"])
def test_a_second_photograph_is_the_one_decoded_for_the_example_before_and_the_same_alone(
    effect: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, side in enumerate((210, 260)):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), cv2.resize(EXAMPLES.photos[number], (side, side)))
    auxiliary = float(effect == "occlusion")
    mixture = Mixture(counts=(0, 1, 0, 0, 0), shadow=0, haze=0, flare=0, auxiliary=auxiliary)
    patches = OcclusionSampling(textures=tuple(float(texture == "photo") for texture in TEXTURES))
    sampling = EditSampling(mixture=mixture, families=Families(occlusion=patches))
    examples = Examples(open_photos(str(tmp_path)), sampling, fixed(96, 4), seed=0)
    assert all(examples.recipe(index)[0].other is not None for index in range(4))
    examples = dataclasses.replace(examples, recent=Recent())
    decoded: list[int] = []
    decode = Encoded.decoded
    monkeypatch.setattr(Encoded, "decoded", lambda self, *args: decoded.append(args[0]) or decode(self, *args))
    in_order = [examples[index] for index in range(12)]
    assert len(decoded) <= 12 + 6  # not 24: only the first of an epoch reflects a part that none has shown yet
    for index in range(12):
        alone = dataclasses.replace(examples, recent=Recent())[index]
        for one, two in zip(in_order[index], alone, strict=True):
            np.testing.assert_array_equal(one, two)


def test_an_enlarged_depth_stays_in_range(tmp_path: pathlib.Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), cv2.resize(EXAMPLES.photos[0], (70, 70)))
    step = np.full((70, 70), 255, np.uint8)
    step[:, ::4] = step[:, 1::4] = 1
    cv2.imwrite(str(tmp_path / "a_depth.png"), step)
    depth = Examples(open_photos(str(tmp_path)), EditSampling(), fixed(200)).recipe(0)[0].depth
    assert depth.shape == (200, 200)
    assert depth.min() == 0
    assert depth.max() == 1


def test_seeds_and_indices_differ() -> None:
    other = Examples(EXAMPLES.photos, EXAMPLES.sampling, fixed(32, 8), seed=6)
    assert (EXAMPLES[0].input != other[0].input).any()
    assert (EXAMPLES[0].input != EXAMPLES[len(EXAMPLES.photos)].input).any()
    assert EXAMPLES.fingerprint() != other.fingerprint()
    assert EXAMPLES.fingerprint() == pickle.loads(pickle.dumps(EXAMPLES)).fingerprint()


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="does not divide into 3 blocks of rows"):
        batches(EXAMPLES, block_count=3)


@pytest.mark.parametrize("shape", [(64, 200), (200, 64), (20, 20)])
def test_crops_have_the_size_asked_for(shape: tuple[int, int]) -> None:
    photo = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    for seed in range(5):
        assert random_crop(np.random.default_rng(seed), photo, 48).shape == (48, 48, 3)


def test_varied_colours_keep_grays_neutral_but_for_white_balance() -> None:
    gray, photo = np.full((8, 8, 3), 100, np.uint8), EXAMPLES.photos[0]
    np.testing.assert_allclose(colour_matrix(np.random.default_rng(0), 0.0), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(light.expand_highlights(photo, 0.0, np.eye(3)), light.decode(photo), atol=1e-6)
    for seed in range(5):
        matrix = colour_matrix(np.random.default_rng(seed), 0.5)
        pixel = light.encode(light.expand_highlights(gray, 2.0, matrix))[0, 0].astype(int)
        assert np.ptp(pixel) < 40  # within half a stop of each other, in stored values
        varied = light.expand_highlights(photo, 2.0, matrix)
        assert varied.min() >= 0
        expected = np.maximum(light.decode(photo).astype(np.float64) @ matrix.T, 0)
        plain = (photo < 255).any(-1)
        np.testing.assert_allclose(varied[plain], expected[plain], atol=1e-5)


def test_what_was_made_a_moment_ago_is_kept_within_bounds() -> None:
    recent, made = Recent(limit=100), []

    def get(recent: Recent, index: int) -> np.ndarray:
        return recent.get(index, lambda: made.append(index) or np.full(40, index, np.uint8))

    for index in (0, 1, 0, 1, 2, 1, 0):
        assert (get(recent, index) == index).all()
    assert made == [0, 1, 2, 0]
    few = Recent(count=2)
    for index in (0, 1, 2, 0):
        get(few, index)
    assert made == [0, 1, 2, 0, 0, 1, 2, 0]
    assert (recent.get(5, lambda: np.full(1_000, 5, np.uint8)) == 5).all()  # one alone may be larger
    get(pickle.loads(pickle.dumps(recent)), 7)
    assert made[-1] == 7


REUSED = Examples(EXAMPLES.photos, EXAMPLES.sampling, Schedule((Stage(0, 32, 4), Stage(6, 40, 2)), 3), seed=5)


def test_views_of_a_pair_come_in_batches_of_their_own() -> None:
    """One pair, K views, K batches; every view is a part of the pair, so its target is as exact."""
    stream = list(itertools.islice(batches(REUSED), 3))
    for row in range(4):
        pair = Rendering(*REUSED.recipe(row)).edit()
        assert pair.input.shape == (40, 40, 3)
        parts = np.lib.stride_tricks.sliding_window_view(pair.input, (32, 32), (0, 1)).transpose(0, 1, 3, 4, 2)
        masks = np.lib.stride_tricks.sliding_window_view(pair.mask, (32, 32))
        answers = np.lib.stride_tricks.sliding_window_view(pair.target, (32, 32), (0, 1)).transpose(0, 1, 3, 4, 2)
        places = set()
        for batch in stream:
            for step in (1, -1):
                found = np.argwhere((parts[:, :, :, ::step] == batch.input[row]).all((2, 3, 4)))
                places |= {(*where, step) for where in found.tolist()}
                if len(found):
                    top, left = found[0]
                    np.testing.assert_array_equal(answers[top, left][:, ::step], batch.target[row])
                    np.testing.assert_array_equal(masks[top, left][:, ::step], batch.mask[row])
            assert batch.task[row] == pair.task
            np.testing.assert_array_equal(batch.strengths[row], pair.strengths)
        assert len(places) >= 2
    assert len({tuple(batch.input[row, 16, 16]) for batch in stream for row in range(4)}) > 4


@pytest.mark.parametrize("start", [0, 1, 2, 5, 7])
def test_reuse_continues_anywhere_on_any_number_of_processes_and_workers(start: int) -> None:
    whole = list(itertools.islice(batches(REUSED), start, 9))
    late = list(itertools.islice(batches(REUSED, start, workers=2 if start == 5 else 0), 9 - start))
    parts = [list(itertools.islice(batches(REUSED, start, (p,), 2), 9 - start)) for p in range(2)]
    assert len(whole) == len(late) == 9 - start
    for step, (batch, again, *rows) in enumerate(zip(whole, late, *parts, strict=True), start):
        assert_equal(batch, again)
        assert_equal(batch, Batch(*(np.concatenate(leaves) for leaves in zip(*rows, strict=True))))
        assert batch.input.shape == ((4, 32, 32, 3) if step < 6 else (2, 40, 40, 3))
        for row, index in enumerate(REUSED.schedule.indices(step)):
            np.testing.assert_array_equal(REUSED[index].input, batch.input[row])


def test_each_pair_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = []
    recipe = Examples.recipe
    monkeypatch.setattr(Examples, "recipe", lambda self, index: rendered.append(index) or recipe(self, index))
    stream = batches(REUSED, threads=1)
    for _ in range(3):
        next(stream)
    stream.close()
    assert len(rendered) >= 4
    assert rendered == [0, 1, 2, 3, 12, 13, 14, 15][: len(rendered)]  # the next group may have begun


def test_a_stream_that_is_closed_ends_what_reads_ahead() -> None:
    class Groups:
        closed = False

        def __iter__(self):
            return iter([["one"], ["other"]])

        def close(self) -> None:
            self.closed = True

    groups = Groups()
    stream = pipeline._flat(groups, 0)
    assert next(stream) == "one"
    assert not groups.closed
    stream.close()
    assert groups.closed
