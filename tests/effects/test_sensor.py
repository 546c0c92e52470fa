"""The camera: the same for input and target, exact where it rounds, repeatable where it is noisy."""

import numpy as np
import pytest
import skimage.data

from uniser_jax.effects import edit, light
from uniser_jax.effects.edit import EditSampling, Recipe, Rendering
from uniser_jax.effects.gallery import square
from uniser_jax.effects.sensor import Sensor, schlick_bias, schlick_gain

SIZE = 64
SCENE = edit.scene_from_photo(square(skimage.data.astronaut(), SIZE), square(skimage.data.coffee(), SIZE), 2.0)
X = np.linspace(0, 1, 101)


def written(radiance: np.ndarray, sensor: Sensor) -> np.ndarray:
    """Equations (1) and (3) of the module in float64, before rounding."""
    x = np.clip(radiance.astype(np.float64) * sensor.gains(), 0, 1)
    stored = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)
    return 255 * schlick_gain(schlick_bias(stored, sensor.bias), sensor.gain)


@pytest.mark.parametrize("b", [0.3, 0.5, 0.7])
def test_tone_curves_are_monotone_and_their_own_inverses(b: float) -> None:
    for curve in (schlick_bias, schlick_gain):
        assert (np.diff(curve(X, b)) > 0).all()
        np.testing.assert_allclose(curve(curve(X, b), 1 - b), X, atol=1e-12)
        np.testing.assert_allclose(curve(np.array([0.0, 1.0]), b), [0, 1])
    np.testing.assert_allclose(schlick_bias(X, 0.5), X)
    np.testing.assert_allclose(schlick_gain(X, 0.5), X)


@pytest.mark.parametrize("seed", range(4))
def test_a_camera_rounds_exactly(seed: int) -> None:
    sensor = Sensor.sample(np.random.default_rng(seed), noise=0, tone=1, jpeg=0)
    x = np.random.default_rng(seed).random((90, 120, 3), np.float32) ** 2 * 1.4
    assert sensor != Sensor(seed=sensor.seed)
    assert np.abs(sensor.expose(x) - written(x, sensor)).max() <= 0.5 + 1e-2


def test_noise_follows_its_law_and_is_the_same_for_the_same_seed() -> None:
    sensor = Sensor(shot=2e-3, read=1e-2, exposure=-1.0, seed=11)
    gray = np.full((300, 300, 3), 0.8, np.float32)
    np.testing.assert_array_equal(sensor.expose(gray), sensor.expose(gray))
    noise = light.decode(sensor.expose(gray)) - 0.4
    assert noise.std() == pytest.approx(np.sqrt(2e-3 * 0.4 + 1e-4), rel=0.02)
    assert abs(noise.mean()) < 5e-4
    half = np.zeros((300, 300), np.float32)
    half[:, 150:] = 1
    mixed = sensor.expose(gray, half)
    np.testing.assert_array_equal(mixed[:, 150:], sensor.expose(gray)[:, 150:])
    np.testing.assert_array_equal(mixed[:, :150], sensor.expose(gray, 0.0)[:, :150])


def test_white_balance_and_exposure_are_gains() -> None:
    sensor = Sensor(exposure=-1.0, balance=(0.5, -0.5))
    np.testing.assert_allclose(sensor.gains(), 2.0 ** np.array([-0.5, -1.0, -1.5]), rtol=1e-6)


def test_jpeg_stays_close_and_leaves_what_the_mask_leaves() -> None:
    sensor = Sensor(jpeg=90)
    plain = Sensor().expose(SCENE.radiance)
    error = sensor.expose(SCENE.radiance).astype(int) - plain
    assert 0 < np.abs(error).mean() < 6
    recipe = edit.sample(
        np.random.default_rng(0), SCENE, EditSampling(), effects=("shadow", "haze"), task="remove effects"
    )
    for value in (recipe, Recipe.from_json(recipe.to_json())):
        rendering = Rendering(SCENE, Recipe(**{**vars(value), "sensor": sensor, "mask": "box"}))
        mask = rendering.mask()
        before, after = rendering.pair("remove effects", mask)
        assert (mask == 0).any()
        np.testing.assert_array_equal(before[mask == 0], after[mask == 0])


@pytest.mark.parametrize("seed", range(6))
def test_everything_removed_is_the_photograph_as_this_camera_takes_it(seed: int) -> None:
    recipe = edit.sample(
        np.random.default_rng(seed),
        SCENE,
        EditSampling(noise=1, tone=1, jpeg=1),
        effects=("shadow", "haze", "reflection"),
        task="remove effects",
    )
    rendering = Rendering(SCENE, recipe)
    _, target = rendering.pair("remove effects", np.full((SIZE, SIZE), 255, np.uint8))
    if all(layer.lamp is None for layer in rendering.layers):  # a lamp belongs to the photograph
        np.testing.assert_array_equal(rendering.radiance, SCENE.radiance)
    np.testing.assert_array_equal(target, recipe.sensor.expose(rendering.radiance, 0.0))
    np.testing.assert_array_equal(target, rendering.clean())


def test_shares_choose_what_a_camera_has() -> None:
    rng = np.random.default_rng(0)
    assert Sensor.sample(rng, 0, 0, 0) == Sensor(seed=Sensor.sample(np.random.default_rng(0), 0, 0, 0).seed)
    drawn = [Sensor.sample(rng, 0.5, 0.3, 0.2) for _ in range(2_000)]
    for share, has in ((0.5, lambda s: s.read > 0), (0.3, lambda s: s.exposure != 0), (0.2, lambda s: s.jpeg > 0)):
        assert np.mean([has(sensor) for sensor in drawn]) == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (0, (0.00018789852661499484, 0.000420478753913891, 97, 1566581935)),
        (1, (0.00010559497443981639, 0.00275775979374556, 70, 878748454)),
        (2, (3.335986377275545e-05, 0.0004551864988469204, 94, 118426480)),
    ],
)
def test_default_ranges_keep_the_stream_of_draws(seed: int, expected: tuple) -> None:
    sensor = EditSampling(noise=1, tone=1, jpeg=1).sensor(np.random.default_rng(seed))
    assert sensor == Sensor.sample(np.random.default_rng(seed))
    assert (sensor.shot, sensor.read, sensor.jpeg, sensor.seed) == pytest.approx(expected, rel=1e-14)


def test_noise_and_compression_stay_within_what_was_asked_for() -> None:
    sampling = EditSampling(noise=1, jpeg=1, shot=(1e-4, 1e-2), read=(5e-4, 1e-2), jpeg_quality=(30, 33))
    rng = np.random.default_rng(0)
    drawn = [edit.sample(rng, SCENE, sampling, effects=("shadow",)).sensor for _ in range(20)]
    drawn += [sampling.sensor(rng) for _ in range(500)]
    for name, (low, high) in (("shot", sampling.shot), ("read", sampling.read)):
        values = np.log10([getattr(sensor, name) for sensor in drawn])
        assert np.log10(low) <= values.min() <= values.max() <= np.log10(high)
        assert values.mean() == pytest.approx(np.log10(low * high) / 2, abs=0.1)
    assert {sensor.jpeg for sensor in drawn} == {30, 31, 32, 33}
    assert EditSampling(jpeg=1, jpeg_quality=(90, 90)).sensor(rng).jpeg == 90


def test_a_picture_wider_than_there_is_noise_for_is_refused() -> None:
    wide = np.zeros((1, 2**21 // 3 + 1, 3), np.float32)
    assert Sensor().expose(wide).shape == wide.shape
    with pytest.raises(ValueError, match="699051 px wide"):
        Sensor(shot=1e-3, read=1e-3).expose(wide)
