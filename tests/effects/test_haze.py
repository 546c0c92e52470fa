"""What haze promises: light is kept, nothing shines without a source, closed forms agree with sums, settings are UniSER's."""

import dataclasses

import cv2
import numpy as np
import pytest
import skimage.data

from uniser_jax.effects import airlight, depth, edit, haze, haze_presets, light
from uniser_jax.effects.edit import EditSampling, Recipe, Rendering
from uniser_jax.effects.gallery import square
from uniser_jax.effects.haze import KINDS, Haze, HazeSampling
from uniser_jax.effects.layer import Scene, visible_change
from uniser_jax.effects.medium import MediumLayer
from uniser_jax.effects.mixture import FAMILIES, Families

SIZE = 96
SCENE = edit.scene_from_photo(square(skimage.data.astronaut(), SIZE), None, 2.0)
GRAY = np.ones(3, np.float32)
EVERY = [*KINDS, "uniser"]


def only(kind: str, **changes) -> HazeSampling:
    weights = {name: float(name == kind) for name in KINDS} if kind != "uniser" else {"uniser": 1.0}
    return HazeSampling(**weights | changes)


def drawn(kind: str, seed: int = 0, scene: Scene = SCENE, **changes) -> Haze:
    return Haze.sample(np.random.default_rng(seed), scene, only(kind, **changes))


def flat(value: float, size: int = SIZE) -> np.ndarray:
    return np.full((size, size, 3), value, np.float32)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("seed", range(4))
def test_no_strength_is_the_identity_and_more_of_it_hides_more(kind: str, seed: int) -> None:
    layer = drawn(kind, seed, scatter=1.0).render(SCENE)
    for zero in (0.0, np.zeros((SIZE, SIZE), np.float32)):
        np.testing.assert_array_equal(layer(SCENE.radiance, zero), SCENE.radiance)
    seen = [layer(flat(0), s) for s in (0.2, 0.5, 1.0)]  # in front of black only the veil is left
    assert (seen[0] >= 0).all()
    assert (seen[1] >= seen[0] - 1e-6).all()
    assert (seen[2] >= seen[1] - 1e-6).all()
    assert visible_change(SCENE.radiance, layer(SCENE.radiance, 1.0)).max() > 0.1


@pytest.mark.parametrize("kind", EVERY)
def test_a_plane_of_strengths_is_a_strength_and_halves_compose(kind: str) -> None:
    layer = drawn(kind, 3, scatter=1.0).render(SCENE)
    half = np.full((SIZE, SIZE), 0.5, np.float32)
    np.testing.assert_allclose(layer(SCENE.radiance, half * half), layer(SCENE.radiance, 0.25), atol=2e-6)
    uneven = half.copy()
    uneven[:, : SIZE // 2] = 0
    np.testing.assert_array_equal(layer(SCENE.radiance, uneven)[:, : SIZE // 2], SCENE.radiance[:, : SIZE // 2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_a_layer_equals_its_law_in_float64(kind: str, strength: float) -> None:
    layer = drawn(kind, 5, scatter=1.0, sun=1.0, glow=1.0).render(SCENE)
    assert isinstance(layer, MediumLayer)
    tau = strength * layer.optical_depth[..., None].astype(np.float64) * layer.spectrum
    direct, reaches = np.exp(-tau), np.exp(-(1 - layer.forward) * tau)
    soft = cv2.resize(layer.scattered(SCENE.radiance, strength).astype(np.float64), (SIZE, SIZE))
    veil = cv2.resize(layer.veil().astype(np.float64), (SIZE, SIZE))
    expected = SCENE.radiance * direct + soft * (reaches - direct) + veil * (1 - reaches)
    np.testing.assert_allclose(layer(SCENE.radiance, strength), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("forward", [0.0, 0.6])
@pytest.mark.parametrize("size", [40, 300])
def test_light_is_kept(forward: float, size: int) -> None:
    """In a furnace, where the scene is as bright as the airlight, nothing can be seen of a medium that does not absorb."""
    tau = np.random.default_rng(0).uniform(0, 6, (size, size)).astype(np.float32)
    layer = MediumLayer("haze", tau, np.array([0.9, 1, 1.2], np.float32), 0.7 * GRAY, forward, 0.02)
    np.testing.assert_allclose(layer(flat(0.7, size), 0.8), 0.7, rtol=1e-5)


def test_forward_scattering_spreads_light_and_keeps_it() -> None:
    spot = flat(0, 256)
    spot[126:130, 126:130] = 900
    widths = []
    for tau in (0.5, 3.0):
        layer = MediumLayer("haze", np.full((256, 256), tau, np.float32), GRAY, 0 * GRAY, 0.6, 0.02)
        seen = layer(spot, 1.0)
        assert seen.sum(dtype=np.float64) / spot.sum(dtype=np.float64) == pytest.approx(np.exp(-0.4 * tau), rel=0.01)
        scattered = layer.scattered(spot, 1.0)[..., 0]
        x = np.arange(scattered.shape[1])
        mean = (scattered * x).sum() / scattered.sum()
        widths.append(np.sqrt((scattered * (x - mean) ** 2).sum() / scattered.sum()))
    assert widths[1] > 1.3 * widths[0]


def test_nothing_shines_without_a_source() -> None:
    black = Scene(flat(0))
    for kind in KINDS:
        unlit = dataclasses.replace(drawn(kind, 1, glow=1.0, sun=1.0), luminance=0.0, lamps=())
        assert not unlit.render(black)(black.radiance, 1.0).any()


@pytest.mark.parametrize("sun", [(0.5, 0.5), (0.9, 0.1), (1.3, -0.3), (-0.2, 0.4)])
@pytest.mark.parametrize("shape", [(48, 48), (36, 64), (64, 36)])
def test_the_sun_scatters_by_the_angle_between_two_rays(sun: tuple[float, float], shape: tuple[int, int]) -> None:
    """Henyey & Greenstein at the angle between the rays to pixel and sun, also where the sun is beside the frame."""
    h, w = shape
    frame = np.array([w, h]) / np.sqrt(h * w) * airlight.FIELD_OF_VIEW  # in tangents
    y, x = np.mgrid[0:h, 0:w] + 0.5
    rays = np.stack([(x / w - 0.5) * frame[0], (y / h - 0.5) * frame[1], np.ones(shape)], -1)
    to_sun = np.array([*(np.array(sun) - 0.5) * frame, 1])
    angle = np.arctan2(np.linalg.norm(np.cross(rays, to_sun), axis=-1), rays @ to_sun)
    expected = 0.7 + 0.7 * 1.5 * (0.2**2 / (1 + 0.8**2 - 1.6 * np.cos(angle))) ** 1.5
    lit = airlight.field(np.zeros((*shape, 3), np.float32), 0.7 * GRAY, (*sun, 1.5), 0.0, ())
    assert lit.dtype == np.float32
    np.testing.assert_allclose(lit, expected[..., None].repeat(3, -1), rtol=2e-5)


def test_glow_takes_no_more_light_than_its_source_has() -> None:
    lamp = flat(0)
    lamp[40:48, 50:58] = 6.0
    haze = Haze("fog", 0, optical_depth=9.0, depth_power=0.0, luminance=0.0, glow=1.0)
    seen = haze.render(Scene(lamp))(0 * lamp, 1.0)
    assert seen[44, 54].min() > 10 * seen[5, 5].max()  # around the lamp, not elsewhere
    assert 0.5 * lamp.sum() < seen.sum() <= lamp.sum()


@pytest.mark.parametrize("height", [0.1, 0.7, 3.0])
@pytest.mark.parametrize("shape", [(36, 36), (36, 64), (64, 36)])
def test_the_height_profile_is_the_integral_along_the_path(height: float, shape: tuple[int, int]) -> None:
    """Rows are seen as high as the frame is: a wide one spans fewer degrees than a tall one of the same area."""
    h, w = shape
    d = np.linspace(0.05, 1, h, dtype=np.float32)[:, None].repeat(w, 1)
    path = Haze("fog", 0, height=height)._path(d, 0.5)
    up = (0.5 - (np.arange(h) + 0.5) / h) * airlight.FIELD_OF_VIEW * h / np.sqrt(h * w)
    climb = np.clip(up / np.sqrt(1 + up**2) / height, -2 / d[:, 0], 20 / d[:, 0])
    steps = (np.arange(4_000) + 0.5) / 4_000
    summed = d[:, 0] * np.exp(-steps[None] * d[:, :1] * climb[:, None]).mean(1)
    np.testing.assert_allclose(path, summed[:, None].repeat(w, 1), rtol=1e-3)


def test_blue_is_scattered_most_by_fine_particles_and_fog_is_gray() -> None:
    fine, fog = (Haze("haze", 0, angstrom=a).render(SCENE).spectrum for a in (1.3, 0.0))
    np.testing.assert_allclose(fine, (np.array([0.610, 0.550, 0.465]) / 0.550) ** -1.3, rtol=1e-6)
    assert fine[0] < fine[1] < fine[2]
    np.testing.assert_array_equal(fog, 1)


@pytest.mark.parametrize("size", [96, 300])
@pytest.mark.parametrize("power", [1.0, 1.4])
def test_a_given_depth_is_followed_with_its_edges(size: int, power: float) -> None:
    d = np.linspace(0.1, 0.5, size, dtype=np.float32)[:, None].repeat(size, 1)
    d[:, size // 3 :] += 0.4
    layer = Haze("fog", 0, optical_depth=2.0, depth_power=power).render(Scene(flat(0.5, size), depth=d))
    np.testing.assert_allclose(layer.optical_depth, 2 * d**power, atol=0.04)


def test_a_field_follows_the_edges_of_a_photograph() -> None:
    photo = flat(0.04)
    photo[:, SIZE // 2 :] = 0.81
    rough = np.zeros((SIZE, SIZE), np.float32)
    rough[:, SIZE // 2 + 3 :] = 1  # misses the edge by three pixels
    found = depth.follow_light(rough, photo, photo)
    assert np.abs(np.diff(found[SIZE // 2])).argmax() == SIZE // 2 - 1
    guide, window = np.sqrt(light.luminance(photo)).astype(np.float64), (13, 13)
    mean = lambda x: cv2.blur(x, window)  # noqa: E731
    a = (mean(guide * rough) - mean(guide) * mean(rough)) / (mean(guide**2) - mean(guide) ** 2 + 4e-3)
    expected = mean(a) * guide + mean(mean(rough.astype(np.float64)) - a * mean(guide))
    np.testing.assert_allclose(found, np.maximum(expected, 0), atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_a_sketch_is_a_depth(seed: int) -> None:
    made, horizon = depth.sketch(np.random.default_rng(seed), SCENE.radiance, 0.3)
    assert made.min() == 0
    assert made.max() == pytest.approx(1)
    assert 0 <= horizon <= 1


@pytest.mark.parametrize(("above", "sky"), [((0.6, 0.7, 0.8), 1), ((0.01, 0.04, 0.14), 1), ((0.15, 0.06, 0.03), 0)])
def test_sky_is_pale_or_deep_blue_and_nothing_else_stands_above_it(above: tuple[float, ...], sky: int) -> None:
    scene = np.full((64, 64, 3), above, np.float32)
    scene[40:] = 0.1, 0.12, 0.08  # ground
    scene[8:16, 28:36] = 0.01, 0.01, 0.01  # a bird
    found = depth.signs(scene)[0]
    assert np.all(found[:38, :24] == sky)
    assert depth.signs(np.full((64, 64, 3), above, np.float32))[0].mean() == sky
    assert depth.signs(np.full((64, 64, 3), 0.7, np.float32))[0].mean() == 0  # a wall
    assert np.all(found[44:] == 0)
    assert found[12, 32] < 0.5
    np.testing.assert_array_equal(depth.signs(np.ascontiguousarray(scene[:, ::-1]))[0], found[:, ::-1])
    if above[2] < 0.2 and sky:  # deep blue reaches around it
        assert found[24:38, 28:36].mean() > 0.9


def test_open_sky_is_far() -> None:
    photo = flat(0.1)
    photo[: SIZE // 3] = (0.5, 0.6, 0.8)
    skies = [depth.sketch(np.random.default_rng(seed), photo, 0.5)[0][: SIZE // 4].mean() for seed in range(12)]
    assert np.mean(np.array(skies) > 0.95) > 0.5


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("shape", [(16, 16), (17, 70), (200, 90)])
def test_any_shape_renders(kind: str, shape: tuple[int, int]) -> None:
    scene = Scene(cv2.resize(SCENE.radiance, shape[::-1]))
    layer = drawn(kind, 2, scene, scatter=1.0, glow=1.0, sun=1.0).render(scene)
    seen = layer(scene.radiance, 0.8)
    assert seen.shape == (*shape, 3)
    assert seen.dtype == np.float32
    assert np.isfinite(seen).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_look_at_any_size(kind: str) -> None:
    photo = square(skimage.data.coffee(), 512)
    small, large = (edit.scene_from_photo(square(photo, size)) for size in (128, 512))
    haze = drawn(kind, 4, small, scatter=1.0)
    seen = [haze.render(scene) for scene in (small, large)]
    one, two = (
        layer(scene.radiance if layer.lamp is None else layer.lamp.onto(scene.radiance), 1.0)
        for layer, scene in zip(seen, (small, large), strict=True)
    )
    assert np.abs(one - cv2.resize(two, (128, 128), interpolation=cv2.INTER_AREA)).mean() < 0.01


@pytest.mark.parametrize("kind", EVERY)
def test_a_logged_recipe_renders_again_bit_for_bit(kind: str) -> None:
    sampling = EditSampling(families=Families(haze=only(kind, sun=1.0, glow=1.0)))
    recipe = edit.sample(np.random.default_rng(1), SCENE, sampling, effects=("haze",))
    again = Recipe.from_json(recipe.to_json())
    for one, two in zip(Rendering(SCENE, recipe).edit(), Rendering(SCENE, again).edit(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("seed", range(4))
def test_a_night_is_dark_has_lamps_and_stays_in_the_target(seed: int) -> None:
    haze = drawn("night", seed)
    assert 1 <= len(haze.lamps) <= 8
    layer = haze.render(SCENE)
    scene = layer.lamp.onto(SCENE.radiance)
    assert scene.min() >= -1e-5
    assert np.median(scene) < 0.6 * np.median(SCENE.radiance)
    assert scene.max() > 1
    sampling = EditSampling(families=Families(haze=only("night")), noise=0.0, tone=0.0, jpeg=0.0)
    rendering = Rendering(SCENE, edit.sample(np.random.default_rng(seed), SCENE, sampling, ("haze",), "remove haze"))
    _, target = rendering.pair("remove haze", np.full((SIZE, SIZE), 255, np.uint8))
    np.testing.assert_array_equal(target, light.encode(rendering.radiance))


def overcast() -> Scene:
    """A white sky, clipped, over gray ground."""
    photo = np.full((SIZE, SIZE, 3), 90, np.uint8)
    photo[: SIZE // 3] = 255
    return edit.scene_from_photo(photo, photo, 2.0)


def test_by_night_the_sky_is_hardly_brighter_than_what_was_dark_by_day() -> None:
    scene = np.full((32, 32, 3), 0.1, np.float32)
    scene[:16] = 0.8
    night = scene + airlight.night(scene, 0.05, ())
    ratio = night[4, 4] / night[28, 4]
    assert (ratio > 1).all()
    assert (ratio < 0.5 * 8).all()


def test_by_night_lamps_light_what_stands_there_and_no_sky() -> None:
    scene = np.full((64, 64, 3), (0.3, 0.45, 0.8), np.float32)
    scene[40:] = 0.3  # ground
    lamps = ((0.5, 0.55, 3_000.0, 0.5, 0.01),)
    lit = airlight.night(scene, 0.05, lamps) - airlight.night(scene, 0.05, ())
    assert lit[:30].max() < 1e-6
    assert lit[50:, 24:40].min() > 5e-4


def test_by_night_only_what_shines_by_night_glows() -> None:
    haze = Haze("night", 0, luminance=0.02, glow=1.0, dark=0.05)
    np.testing.assert_array_equal(
        haze.render(overcast()).veil(), dataclasses.replace(haze, glow=0.0).render(overcast()).veil()
    )
    lit = dataclasses.replace(haze, lamps=((0.5, 0.7, 3_000.0, 2.0, 0.02),))
    glow = lit.render(overcast()).veil() - dataclasses.replace(lit, glow=0.0).render(overcast()).veil()
    row, column = np.unravel_index(light.luminance(glow).argmax(), glow.shape[:2])
    assert abs((row + 0.5) / len(glow) - 0.7) < 0.03
    assert abs((column + 0.5) / glow.shape[1] - 0.5) < 0.03


@pytest.mark.parametrize("effect", ["reflection", "flare"])
@pytest.mark.parametrize("seed", range(6))
def test_later_effects_are_drawn_and_rendered_for_the_night(effect: str, seed: int) -> None:
    sampling = EditSampling(families=Families(haze=only("night")))
    recipe = edit.sample(np.random.default_rng(seed), overcast(), sampling, ("haze", effect), "remove effects")
    rendering = Rendering(overcast(), recipe)
    haze, after = (FAMILIES[name](**values) for name, values in recipe.effects)
    dark = overcast()._replace(radiance=haze.night(overcast()).onto(overcast().radiance))
    np.testing.assert_array_equal(rendering.layers[1].emission, after.render(dark).emission)
    if effect == "flare" and not after.lamp:  # its light comes from what is bright by then, or from outside
        for x, y, *_ in after.sources:
            where = min(int(y * SIZE), SIZE - 1), min(int(x * SIZE), SIZE - 1)
            assert not (0 <= x <= 1 and 0 <= y <= 1) or dark.radiance[where].max() > 0.9


def test_plumes_cover_what_they_say() -> None:
    for coverage in (0.2, 0.8):
        haze = Haze("smoke", 0, mix=1.0, coverage=coverage, sharpness=1.0)
        shares = [(haze._plume(np.random.default_rng(seed), (128, 128)) > 0).mean() for seed in range(8)]
        assert np.mean(shares) == pytest.approx(coverage, abs=0.1)


def landscape(sky: tuple[float, ...] = (0.6, 0.7, 0.8), ground: float = 0.15) -> Scene:
    photo = flat(ground)
    photo[: SIZE // 2] = sky
    return Scene(photo)


INDOORS, NIGHT = Scene(flat(0.15)), Scene(flat(0.02))


@pytest.mark.parametrize(
    ("scene", "factors"),
    [(landscape(), (1, 1, 1, 1, 1)), (INDOORS, (0.4, 0.4, 2, 0.4, 1)), (NIGHT, (0.4, 0.4, 2, 0.4, 3))],
)
def test_kinds_follow_their_weights_and_the_photograph(scene: Scene, factors: tuple[float, ...]) -> None:
    """Indoors smoke is likelier than fog, and haze by night is for photographs of nights."""
    rng = np.random.default_rng(0)
    kinds = [Haze.sample(rng, scene, HazeSampling(uniser=0.2)).kind for _ in range(1_500)]
    weights = np.array(HazeSampling().weights()) * factors
    expected = dict(zip(KINDS, weights / weights.sum() * 0.8, strict=True)) | {"uniser": 0.2}
    for kind, share in expected.items():
        assert kinds.count(kind) / len(kinds) == pytest.approx(share, abs=0.04)


def test_where_sky_fills_the_frame_it_is_hidden() -> None:
    blue = np.full((SIZE, SIZE, 3), (0.01, 0.04, 0.14), np.float32)
    for seed in range(12):
        made = depth.sketch(np.random.default_rng(seed), blue, 0.4).depth
        assert made.max() == pytest.approx(1)
        assert made.mean() > 0.3
        seen = drawn("fog", seed, Scene(blue)).render(Scene(blue))(blue, 1.0)
        assert visible_change(blue, seen).max() > 0.1


@pytest.mark.parametrize("kind", ["fog", "haze"])
@pytest.mark.parametrize("sky", [(0.8, 0.85, 0.9), (0.01, 0.04, 0.14)])
def test_fog_is_as_bright_as_the_sky_it_hides(kind: str, sky: tuple[float, ...]) -> None:
    """The horizon is the airlight. Dust and dark smoke may darken; and a deep blue sky is darker than its horizon."""
    scene, own = landscape(sky), float(np.array(sky, np.float32) @ light.LUMINANCE)
    for seed in range(40):
        haze = drawn(kind, seed, scene)
        assert haze.luminance >= 0.85 * own - 1e-6
        if haze.sky:
            assert haze.luminance == pytest.approx(max(own, 0.6 * max(own, 0.15)), rel=0.15 + 1e-6)


@pytest.mark.parametrize("kind", ["fog", "haze", "smoke", "dust"])
def test_no_veil_is_brighter_than_the_light_of_its_scene(kind: str) -> None:
    """Real ones reach 0.6 to 1.3 of what 5 % of the clean photograph exceed."""
    photo = flat(0.01)
    photo[: SIZE // 6] = 0.3, 0.2, 0.1
    bright = 0.3 * 0.2126 + 0.2 * 0.7152 + 0.1 * 0.0722
    assert max(drawn(kind, seed, Scene(photo)).luminance for seed in range(40)) <= 1.5 * bright + 1e-6


def test_a_veil_is_white_bluish_or_brown_and_never_lilac() -> None:
    """Blue over green: of 62 hazy photographs 5 % have more than 1.3. UniSER's smoke is brown in three of seven settings."""
    blues = {kind: [] for kind in ("fog", "haze", "smoke", "dust")}
    for kind, found in blues.items():
        for seed in range(60):
            red, green, blue = drawn(kind, seed, landscape(), sun=0.0, glow=0.0).render(landscape()).veil()[0, 0]
            found.append(blue / green)
            assert red / green > 0.75
        assert np.quantile(found, 0.95) < 1.32
    assert np.quantile(blues["smoke"], 0.15) < 0.9
    assert np.quantile(blues["dust"], 0.9) < 0.8


def test_a_sun_stands_in_the_sky_or_out_of_the_frame_and_drowns_in_dense_fog() -> None:
    for seed in range(120):
        x, y, strength = drawn("fog", seed, landscape(), sun=1.0).sun
        assert not (0 <= x < 1 and 0.5 <= y < 1)
        assert strength <= np.exp(0.5 - drawn("fog", seed, landscape(), sun=1.0).optical_depth / 4)
        x, y, _ = drawn("fog", seed, INDOORS, sun=1.0).sun
        assert not (0 <= x < 1 and 0 <= y < 1)


def test_lamps_shine_by_their_law_in_a_small_halo() -> None:
    """Of 8 real lamps a tenth to two thirds is left at 1.3 radii, and under a tenth at 10."""
    size, shape = 0.01, (60, 90)
    lamps = ((0.3, 0.4, 6_500.0, 0.7, size), (0.8, 0.1, 6_500.0, 0.3, 2 * size))
    lit = airlight.field(np.zeros((*shape, 3), np.float32), 0 * GRAY, (), 0.0, lamps)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]] + 0.5
    expected = np.zeros(shape)
    for left, top, _, power, radius in lamps:
        r2 = ((x - left * shape[1]) ** 2 + (y - top * shape[0]) ** 2) / (shape[0] * shape[1])
        expected += power / (1 + r2 / (2.5 * radius + 0.004) ** 2) + 0.015 * power / (1 + r2 / 0.3**2)
    np.testing.assert_allclose(lit, expected[..., None].repeat(3, -1), rtol=1e-4)
    one = airlight.field(np.zeros((400, 400, 3), np.float32), 0 * GRAY, (), 0.0, ((0.5, 0.5, 6_500.0, 1.0, size),))[
        200, :, 1
    ]
    near, far = (one[200 + round(400 * factor * size)] for factor in (1.3, 10))
    assert 0.5 < near < 0.9
    assert far < 0.15


def test_plumes_lie_in_any_direction_and_fill_the_frame() -> None:
    """What is not carried comes from a turned frame that lies within its noise."""
    still = np.zeros((40, 40), np.float32)
    for right, down in ((1.0, 0.0), (0.5, 0.5), (0.65, 0.35)):
        x, y = haze._carried(still, np.float32(1), np.float32(right), np.float32(down))
        np.testing.assert_allclose([np.diff(x), np.diff(y.T)], right, atol=1e-4)
        np.testing.assert_allclose([np.diff(y), -np.diff(x.T)], down, atol=1e-4)
        for place in (x, y):
            assert place.min() == pytest.approx(0, abs=1e-4)
            assert place.max() == pytest.approx(39, abs=1e-4)


def test_the_37_settings_are_there_and_obey_their_formula() -> None:
    names = list(haze_presets.settings())
    assert len(names) == 37
    assert [sum(name.startswith(mode) for name in names) for mode in ("haze", "fog", "smoke")] == [20, 10, 7]
    d = np.linspace(0, 1, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
    layer = haze_presets.render("smoke-heavy", d, 7, 0.0)
    rng = np.random.default_rng(7)
    baseline, jitter = rng.uniform(0, 0.2), rng.uniform(-5, 5, 3)
    height = 60 * (1 - np.linspace(0, 1, SIZE))[:, None]
    tau = (3.912 / 80 * 100 * d * np.exp(-height / 40))[..., None] * (0.9, 1.0, 1.1) + baseline
    stored = (np.array([160, 120, 90]) + jitter) / 255
    veil = 0.75 * ((stored + 0.055) / 1.055) ** 2.4 * (1 - np.exp(-0.85 * 0.6 * tau))
    expected = SCENE.radiance * np.exp(-0.6 * tau) + veil
    np.testing.assert_allclose(layer(SCENE.radiance, 0.6), expected, rtol=1e-4, atol=1e-5)


def test_a_dense_medium_is_never_thinner_than_others_of_its_kind() -> None:
    sampling = HazeSampling(fog=1, haze=0, smoke=0, dust=0, night=0, dense=1.0, dense_depth=1.0)
    assert all(
        Haze.sample(np.random.default_rng(seed), SCENE, sampling).optical_depth >= 5 - 1e-6 for seed in range(40)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HazeSampling(fog=-1.0), "haze weights"),
        (lambda: HazeSampling(fog=0, haze=0, smoke=0, dust=0, night=0), "haze weights"),
        (lambda: HazeSampling(scatter=1.5), "haze.scatter"),
        (lambda: HazeSampling(dense_depth=0.0), "haze.dense_depth"),
        (lambda: Haze("steam", 0).render(SCENE), "'steam'.*fog, haze, smoke"),
        (lambda: Haze("uniser", 0, "fog-7").render(SCENE), "'fog-7'"),
        (lambda: Haze("fog", 0).render(SCENE._replace(depth=np.zeros((3, 4), np.float32))), r"\(3, 4\)"),
    ],
)
def test_mistakes_are_one_line(make, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
