"""The network here is a tiny one whose last projection is not zero, so that it changes every pixel it is allowed to."""

import pathlib

import jax
import numpy as np
import pytest

from uniser_jax import config as schema
from uniser_jax.checkpoint import Checkpoints
from uniser_jax.diffusion.flow import Flow
from uniser_jax.models import uniser
from uniser_jax.models.codec import PixelCodec
from uniser_jax.models.presets import preset
from uniser_jax.restore.files import RestoreError
from uniser_jax.restore.restorer import Restorer, resolve_task
from uniser_jax.step import build_network
from uniser_jax.types import TASKS, TrainState

CODEC = PixelCodec(16)


def noisy(params: object, scale: float = 0.02) -> object:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + scale * rng.standard_normal(leaf.shape, np.float32), params)


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    graphdef, params = uniser.create(preset("tiny"), CODEC, jax.random.key(0))
    return Restorer(graphdef, noisy(params), CODEC, Flow(), working_size=64)


def photo(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


SHAPES = [(16, 16, 3), (17, 33, 3), (70, 50), (64, 64, 4), (200, 150, 3), (150, 200)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", SHAPES)
def test_shape_and_type_are_kept_and_the_network_acts(restorer: Restorer, shape: tuple, dtype: type) -> None:
    before = photo(*shape, dtype=dtype)
    after = restorer(before)
    assert (after.shape, after.dtype) == (before.shape, dtype)
    assert not np.array_equal(after, before)
    np.testing.assert_array_equal(after, restorer(before))  # the same noise every time
    if shape[2:] == (4,):
        np.testing.assert_array_equal(after[..., 3], before[..., 3])


@pytest.mark.parametrize("shape", SHAPES)
def test_strength_0_and_mask_0_change_no_bit(restorer: Restorer, shape: tuple) -> None:
    before = photo(*shape)
    np.testing.assert_array_equal(restorer(before, strength=0.0), before)
    np.testing.assert_array_equal(restorer(before, mask=np.zeros(shape[:2], np.uint8)), before)
    mask = np.zeros(shape[:2], np.float32)
    mask[: shape[0] // 2] = 0.7
    after = restorer(before, mask=mask)
    np.testing.assert_array_equal(after[mask == 0], before[mask == 0])
    assert not np.array_equal(after, before)


def test_strength_scales_the_mask(restorer: Restorer) -> None:
    before, half = photo(64, 64, 3), np.full((64, 64), 128, np.uint8)
    np.testing.assert_array_equal(restorer(before, strength=128 / 255), restorer(before, mask=half))
    np.testing.assert_array_equal(restorer(before, mask=half), restorer(before, mask=half.astype(np.float32) / 255))
    assert not np.array_equal(restorer(before, mask=half), restorer(before))


def test_task_and_steps_reach_the_network(restorer: Restorer) -> None:
    before = photo(64, 64, 3)
    assert not np.array_equal(restorer(before, "haze"), restorer(before, "shadow"))
    assert not np.array_equal(restorer(before, steps=2), restorer(before, steps=1))
    np.testing.assert_array_equal(restorer(before), restorer(before, "remove effects", steps=1))
    np.testing.assert_array_equal(restorer(before, "haze"), restorer(before, TASKS.index("remove haze")))


def test_an_untrained_network_changes_nothing() -> None:
    graphdef, params = uniser.create(preset("tiny"), CODEC, jax.random.key(0))
    fresh = Restorer(graphdef, params, CODEC, Flow(), working_size=64)
    for shape in SHAPES:
        np.testing.assert_array_equal(fresh(photo(*shape)), photo(*shape))


def test_mistakes_are_one_line(restorer: Restorer) -> None:
    image = photo(32, 32, 3)
    for arguments, message in (
        ((image, "rain"), "task 'rain' is unknown; known: remove lens flare, remove haze"),
        ((image, 11), "task 11 is unknown"),
        ((image, "haze", np.zeros((32, 31), np.uint8)), r"mask of shape \(32, 31\): expected .* \(32, 32\)"),
        ((image, "haze", np.full((32, 32), 1.1)), r"expected uint8, or float in \[0, 1\]"),
        ((image, "haze", np.full((32, 32), np.nan)), r"expected uint8, or float in \[0, 1\]"),
        ((image, "haze", np.zeros((32, 32), np.int64)), "mask of type int64"),
        ((image, "haze", None, 1.5), "strength 1.5: expected from 0"),
        ((image, "haze", None, float("nan")), "strength nan"),
        ((image, "haze", None, 1.0, 0), "steps 0: expected from 1 to 1000"),
        ((image.astype(np.float32),), "type float32: expected uint8 or uint16"),
        ((photo(32, 32, 2),), r"expected \[h w\]"),
        ((photo(1, 32, 3),), "at least 16 px a side"),
    ):
        with pytest.raises(RestoreError, match=message):
            restorer(*arguments)


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("haze", "remove haze"),
        ("Remove  Haze", "remove haze"),
        ("flare", "remove lens flare"),
        ("lens flare", "remove lens flare"),
        ("add flare", "add lens flare"),
        ("effects", "remove effects"),
        *((task, task) for task in TASKS),
    ],
)
def test_tasks_by_name(text: str, task: str) -> None:
    assert resolve_task(text) == TASKS.index(task)
    assert resolve_task(TASKS.index(task)) == TASKS.index(task)


def test_from_a_checkpoint(tmp_path: pathlib.Path) -> None:
    config = schema.defaults()
    config.model.preset, config.model.compute_dtype = "tiny", "float32"
    config.data.size, config.restore.steps = 64, 2
    network = build_network(config.model)
    params = network.init(jax.random.key(0))
    state = TrainState(jax.numpy.int32(1), noisy(params), noisy(params, 0.03), {"count": jax.numpy.int32(1)})
    with Checkpoints(tmp_path, every=1) as checkpoints:
        checkpoints.save(1, state, config, force=True)

    before = photo(64, 64, 3)
    for ema, expected in ((True, state.ema), (False, state.params)):
        loaded = Restorer.from_checkpoint(str(tmp_path), ema=ema)
        assert loaded.config.to_dict() == config.to_dict()
        direct = Restorer(network.graphdef, expected, network.codec, Flow(), 64, steps=2)
        np.testing.assert_array_equal(loaded(before), direct(before))


def test_a_missing_checkpoint_is_one_line(tmp_path: pathlib.Path) -> None:
    for run in (tmp_path, tmp_path / "none"):
        with pytest.raises(RestoreError, match="no checkpoint here; name a run folder"):
            Restorer.from_checkpoint(run)
    assert list(tmp_path.iterdir()) == []
