"""Training on real pairs: their share, targets blended in linear light, the same stream wherever it is made."""

import dataclasses
import itertools
import os
import pathlib
import pickle

import cv2
import numpy as np
import pytest

from uniser_jax import cli, train
from uniser_jax import config as schema
from uniser_jax.data import pairs
from uniser_jax.data.buckets import Buckets
from uniser_jax.data.photos import open_photos, split
from uniser_jax.data.pipeline import Examples, batches
from uniser_jax.data.schedule import fixed
from uniser_jax.effects import light
from uniser_jax.effects.edit import EditSampling, Recipe, Rendering
from uniser_jax.effects.layer import Scene
from uniser_jax.types import EFFECTS, TASKS, Batch, Edit

TINY = str(pathlib.Path(__file__).parents[2] / "configs/tiny.py")
PHOTOS = split(open_photos("samples"), 0.25)[0]
SOFT = EditSampling(mask_all=0.2, full_strength=0.3)


def write(path: pathlib.Path, image: np.ndarray) -> None:
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Three pairs whose red is the column and whose green is the row, so that a crop tells where it was cut."""
    root = tmp_path_factory.mktemp("pairs")
    rows, columns = np.mgrid[0:180, 0:240].astype(np.uint8)
    clean = np.dstack([columns, rows, np.full_like(rows, 200)])
    hazy = np.dstack([columns, rows, (rows // 2 + 20)])
    write(root / "clean.png", clean)
    write(root / "hazy.png", hazy)
    write(root / "dark.png", clean // 3)
    write(root / "mask.png", np.where(columns < 120, 255, 0).astype(np.uint8))
    path = root / "manifest.csv"
    path.write_text(
        "effect,set,id,kind,input,gt,mask\n"
        "haze,a,1,real_pair,hazy.png,clean.png,\n"
        "shadow,a,2,real_pair,dark.png,clean.png,mask.png\n"
        "occlusion,a,3,real_pair,hazy.png,clean.png,\n"
    )
    return path


@pytest.fixture(scope="module")
def examples(manifest: pathlib.Path) -> Examples:
    return Examples(PHOTOS, SOFT, fixed(48, 8), seed=5, pairs=tuple(pairs.read_manifest(manifest)), real=0.4)


@pytest.fixture(scope="module")
def real(examples: Examples) -> list[tuple[Recipe, Edit]]:
    only = dataclasses.replace(examples, real=1.0)
    return [(only.recipe(index)[1], only[index]) for index in range(80)]


def linear(stored: np.ndarray) -> np.ndarray:
    value = stored.astype(np.float64) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def stored(light: np.ndarray) -> np.ndarray:
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def is_real(examples: Examples, index: int) -> bool:
    return bool(examples.recipe(index)[1].pair)


def assert_equal(one: Edit | Batch, two: Edit | Batch) -> None:
    for a, b in zip(one, two, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_the_share_is_that_of_the_config(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Examples, "_view", lambda *_: pytest.fail("rendered"))
    drawn = sum(examples._real(examples._drawn(index)) is not None for index in range(1_000))
    assert abs(drawn - 400) < 62  # four standard deviations
    assert all(dataclasses.replace(examples, real=0.0)._real(examples._drawn(index)) is None for index in range(20))


def test_the_rest_of_the_stream_is_what_it_is_without_pairs(examples: Examples) -> None:
    without = Examples(PHOTOS, SOFT, fixed(48, 8), seed=5)
    rendered = [index for index in range(16) if not is_real(examples, index)]
    assert 0 < len(rendered) < 16
    for index in rendered:
        assert_equal(examples[index], without[index])
    assert dataclasses.replace(examples, pairs=()).fingerprint() == without.fingerprint()


def test_the_target_is_a_blend_in_linear_light(examples: Examples) -> None:
    only = dataclasses.replace(examples, real=1.0)
    for index in range(40):
        scene, recipe = only.recipe(index)
        edit = only[index]
        whole = Rendering(scene, dataclasses.replace(recipe, mask="all", alpha=1.0))
        clean = whole.clean()
        share = edit.mask[..., None] / 255
        expected = stored(share * linear(clean) + (1 - share) * linear(edit.input))
        assert np.abs(edit.target - expected).max() < 0.51  # the nearest level, whose halves float32 may miss
        np.testing.assert_array_equal(edit.target[edit.mask == 0], edit.input[edit.mask == 0])
        np.testing.assert_array_equal(edit.target[edit.mask == 255], clean[edit.mask == 255])


def test_any_two_levels_blend_exactly_at_the_ends(examples: Examples) -> None:
    recipe = dataclasses.replace(examples, real=1.0).recipe(0)[1]
    clean, seen = (np.repeat(x.astype(np.uint8)[..., None], 3, -1) for x in np.meshgrid(range(256), range(256)))
    rendering = Rendering(Scene(light.decode(clean), light.decode(seen)), recipe)
    for level, answer in ((0, seen), (255, clean)):
        for mask in (np.full((256, 256), level, np.uint8), np.pad([[99]], (0, 255), constant_values=level)):
            before, after = rendering.pair("remove effects", mask.astype(np.uint8))
            np.testing.assert_array_equal(before, seen)
            np.testing.assert_array_equal(after[1:], answer[1:])


def test_input_target_and_mask_are_the_same_part(examples: Examples) -> None:
    only = dataclasses.replace(examples, real=1.0)
    parts, masked = set(), 0
    for index in range(60):
        scene, recipe = only.recipe(index)
        rendering = Rendering(scene, dataclasses.replace(recipe, mask="all", alpha=1.0))
        clean, seen = rendering.clean().astype(int), rendering.expose((1.0,)).astype(int)
        parts.add(clean[0, 0].tobytes())
        if recipe.effects[0][0] != "shadow":
            np.testing.assert_array_equal(seen[..., :2], clean[..., :2])
            continue
        assert np.abs(seen - clean // 3).max() <= 1
        mask, column = rendering.mask(), clean[..., 0]
        assert (mask[column < 115] == 255).all()
        assert (mask[column > 125] == 0).all()
        masked += 0 < mask.mean() < 255
    assert len(parts) > 50
    assert masked > 5


def test_requests_and_strengths(real: list[tuple[Recipe, Edit]]) -> None:
    asked = {effect: set() for effect in EFFECTS}
    for recipe, edit in real:
        effect = recipe.effects[0][0]
        asked[effect].add(TASKS[int(edit.task)])
        np.testing.assert_array_equal(edit.strengths, [float(name == effect) for name in EFFECTS])
    assert asked["haze"] == {"remove haze", "remove effects"}
    assert asked["shadow"] == {"remove shadow", "remove effects"}
    assert asked["occlusion"] == {"remove effects"}
    assert {recipe.mask for recipe, _ in real} == {"all", "box", "ellipse", "polygon", "stroke", "support"}
    assert 0.15 < np.mean([recipe.alpha == 1 for recipe, _ in real]) < 0.5


def test_an_example_replays_from_its_logged_recipe(examples: Examples) -> None:
    for index in range(12):
        scene, recipe = examples.recipe(index)
        assert_equal(Rendering(scene, Recipe.from_json(recipe.to_json())).edit(), examples[index])


@pytest.mark.parametrize("reuse", [1, 3])
def test_the_stream_is_the_same_wherever_it_is_made(examples: Examples, reuse: int) -> None:
    made = dataclasses.replace(examples, schedule=fixed(48, 4, reuse), buckets=Buckets.of(PHOTOS, (1.0, 1.5), 8))

    def take(count: int, **settings) -> list[Batch]:
        return list(itertools.islice(batches(made, **settings), count))

    assert any(is_real(made, index) for index in range(4))
    whole = take(6)
    for late, batch in zip(take(2, start_step=4), whole[4:], strict=True):
        assert_equal(late, batch)
    parts = [take(6, blocks=(block,), block_count=2) for block in range(2)]
    for batch, *halves in zip(whole, *parts, strict=True):
        assert_equal(batch, Batch(*(np.concatenate(leaves) for leaves in zip(*halves, strict=True))))
    if reuse == 1:
        for one, two in zip(take(4, workers=2), whole, strict=False):
            assert_equal(one, two)


def test_hosts_with_other_pairs_differ(examples: Examples, manifest: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert pickle.loads(pickle.dumps(examples)).fingerprint() == examples.fingerprint()
    first, *others = examples.pairs
    (tmp_path / "other.png").write_bytes(first.input.read_bytes() + b"\0")
    changes = [
        {"pairs": tuple(others)},
        {"pairs": (first._replace(input=tmp_path / "other.png"), *others)},
        {"pairs": (first._replace(input=tmp_path / "gone.png"), *others)},
        {"pairs": (first._replace(effect="flare"), *others)},
        {"real": 0.5},
    ]
    digests = {dataclasses.replace(examples, **change).fingerprint() for change in changes}
    assert len(digests | {examples.fingerprint()}) == 6


def test_the_next_pair_stands_in_for_one_that_cannot_be_decoded(
    examples: Examples, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no image")
    bad = examples.pairs[0]._replace(input=damaged, set="b", id=os.urandom(4).hex())  # a warning comes once per name
    entry, _ = pairs.load_usable((bad, *examples.pairs[1:]), 0)
    assert entry == examples.pairs[1]
    assert [str(damaged) in message and "the next one stands in" in message for message in caplog.messages] == [True]
    with pytest.raises(ValueError, match="none of 1 real pairs can be decoded") as caught:
        dataclasses.replace(examples, pairs=(bad,), real=1.0)[0]
    assert str(damaged) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_names_the_manifest(manifest: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = schema.read(TINY, [f"--config.data.pairs={manifest}", "--config.data.real=0.5"])
    training, held_out = train.open_examples(config)
    assert (len(training.pairs), training.real) == (3, 0.5)
    assert held_out.pairs == ()
    assert train.open_examples(schema.read(TINY))[0].pairs == ()
    with pytest.raises(ValueError, match="no manifest at") as caught:
        train.open_examples(schema.read(TINY, [f"--config.data.pairs={tmp_path / 'none.csv'}"]))
    assert "\n" not in str(caught.value)


def test_a_continued_run_says_that_the_pairs_changed(examples: Examples, caplog: pytest.LogCaptureFixture) -> None:
    config = schema.read(TINY)
    flares = "layers of real flares"
    record = {"config": config.to_dict(), "photographs": "p", "code": "c", "pairs": pairs.digest_of(()), flares: "a"}
    facts = record | {"pairs": pairs.digest_of(examples.pairs), flares: "b"}
    train.report_changes(record, config, facts)
    changed = "the {} changed since the checkpoint: what follows may be another stream"
    assert caplog.messages == [changed.format("pairs"), changed.format(flares)]
    del record["pairs"], record[flares]  # of a run that was saved before there were any
    train.report_changes(record, config, facts)
    assert len(caplog.messages) == 2


def test_preview_shows_real_pairs(
    manifest: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "sheet.png"
    settings = [f"--config.data.pairs={manifest}", "--config.data.real=1.0"]
    assert cli.main(["preview", "--config", TINY, "--effect", "shadow", "--count", "2", "-o", str(out), *settings]) == 0
    first, second, path = capsys.readouterr().out.splitlines()
    assert '"pair": "a/2"' in first
    assert '"pair": "a/2"' in second
    assert path == str(out)
    assert cv2.imread(str(out)).shape[0] > 2 * 96


def test_a_recipe_of_a_real_pair_needs_its_input(examples: Examples) -> None:
    scene, recipe = dataclasses.replace(examples, real=1.0).recipe(0)
    with pytest.raises(ValueError, match="expected a scene with its input"):
        Rendering(scene._replace(other=None), recipe)
