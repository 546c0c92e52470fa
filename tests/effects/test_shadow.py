"""Shadows: exact areas, the share of every light, penumbrae that widen, and casters that can be seen."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
import skimage.data

from uniser_jax.effects import canopy, casters, edit, light, mattes
from uniser_jax.effects.edit import EditSampling, Recipe, Rendering
from uniser_jax.effects.flare import FlareSampling
from uniser_jax.effects.gallery import square
from uniser_jax.effects.haze import HazeSampling
from uniser_jax.effects.layer import Scene, see
from uniser_jax.effects.mixture import Families
from uniser_jax.effects.shadow import SHAPES, Shadow, ShadowSampling

SIZE = 64
SCENE = edit.scene_from_photo(square(skimage.data.astronaut(), SIZE), None, 2.0)
SUN = ((5_300.0, 0.8, 0.0),)


def shadow_of(shape: str, seed: int = 0, **changes) -> Shadow:
    drawn = Shadow.sample(np.random.default_rng(seed), SCENE)
    given = {"shapes": (shape,), "lights": SUN, "sky_share": 0.2, "on_sky": True}
    return dataclasses.replace(drawn, **{**given, **changes})


def left_in_full_shadow(shadow: Shadow) -> np.ndarray:
    """k of equation (3)."""
    return 1 - shadow.losses().sum(0)


@pytest.mark.parametrize("seed", range(12))
def test_never_brightens_and_more_strength_never_less_shadow(seed: int) -> None:
    layer = Shadow.sample(np.random.default_rng(seed), SCENE).render(SCENE)
    before = SCENE.radiance
    for strength in (0.3, 0.7, 1.0):
        after = layer(SCENE.radiance, strength)
        assert (after <= before + 1e-6).all()
        assert (after >= 0).all()
        before = after


@pytest.mark.parametrize("seed", range(8))
def test_equals_a_float64_sum_over_lights(seed: int) -> None:
    shadow = dataclasses.replace(
        Shadow.sample(np.random.default_rng(seed), SCENE),
        lights=((3_000.0, 0.3, 0.0), (4_000.0, 0.2, 0.7), (6_000.0, 0.1, -0.9)),
        sky_share=0.4,
    )
    layer = shadow.render(SCENE)
    strength = np.random.default_rng(seed).random((SIZE, SIZE), np.float32)
    power = np.array([p * light.black_body(kelvin) for kelvin, p, _ in shadow.lights], np.float64)
    ambient = 0.4 * light.black_body(shadow.kelvin_sky) * np.exp([shadow.tint[0], 0, shadow.tint[1]])
    lit = np.einsum("nhw,nc->hwc", 1 - strength * layer.coverage.astype(np.float64), power)
    sky = (1 - (1 - shadow.sky_seen) * strength * layer.coverage[0])[..., None] * ambient
    expected = SCENE.radiance * (lit + sky) / (power.sum(0) + ambient)
    np.testing.assert_allclose(layer(SCENE.radiance, strength), expected, atol=2e-6)
    np.testing.assert_allclose(layer.at(strength)(SCENE.radiance), expected, atol=2e-6)


def test_colour_does_not_depend_on_the_scene_and_the_sky_is_blue() -> None:
    shadow = shadow_of("edge", kelvin_sky=12_000.0, tint=(0.0, 0.0), sky_seen=1.0, bend=0.0)
    k = left_in_full_shadow(shadow)
    assert k[0] < k[1] < k[2]
    assert k[1] == pytest.approx(0.2, abs=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(2):
        scene = Scene(rng.uniform(0.1, 1, (SIZE, SIZE, 3)).astype(np.float32))
        umbra = shadow.coverage((SIZE, SIZE)) == 1
        ratio = shadow.render(scene)(scene.radiance, 1.0) / scene.radiance
        np.testing.assert_allclose(ratio[umbra], np.broadcast_to(k, (umbra.sum(), 3)), rtol=1e-5)


def test_areas_are_exact_and_overlaps_count_once() -> None:
    triangle, round_ = np.array([[-0.31, -0.2], [0.35, -0.27], [0.1, 0.36]]), casters.ellipse((0.1, 0), (0.3, 0.2))
    for form in (triangle, round_):
        coarse, fine = mattes.polygons([form], (40, 60)), mattes.polygons([form], (1_280, 1_920))
        np.testing.assert_allclose(coarse, fine.reshape(40, 32, 60, 32).mean((1, 3)), atol=2e-3)
        x, y = form.T
        area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        assert coarse.sum() / coarse.size == pytest.approx(area, rel=1e-4)
    each = [mattes.polygons([form], (40, 60)) for form in (triangle, round_[::-1])]
    np.testing.assert_allclose(mattes.polygons([triangle, round_[::-1]], (40, 60)), np.minimum(sum(each), 1), atol=1e-4)
    beyond = [np.array([[-9.0, -9.0], [9.0, -8.0], [9.0, 9.0], [-9.0, 9.0]])]
    np.testing.assert_allclose(mattes.polygons(beyond, (17, 30)), 1, atol=1e-5)
    assert not mattes.polygons([casters.box(2, 2, 3, 3), casters.box(-3, 0, -2, 1)], (17, 30)).any()


@pytest.mark.parametrize("widening", [2.0, 4.0, 6.0, 8.0])
def test_the_penumbra_widens_with_the_distance_from_the_contact(widening: float) -> None:
    """By similar triangles its width is linear in that distance: midway at a widening of 6 it is 3.5 times as wide."""
    half = [np.array([[-2.0, -2.0], [0.0, -2.0], [0.0, 2.0], [-2.0, 2.0]])]
    hard = mattes.polygons(half, (256, 256))
    soft = mattes.soften(hard, np.array([0.0, -0.5]), np.array([0.0, 1.0]), 2.0, 2 * widening)
    rows = np.array([1, 64, 128, 191, 254])
    spread, x = np.abs(np.diff(soft[rows].astype(np.float64))), np.arange(255)
    middle, square = (np.average(np.tile(x**power, (5, 1)), 1, spread) for power in (1, 2))
    np.testing.assert_allclose(np.sqrt(square - middle**2), 2 * (1 + (widening - 1) * rows / 255), rtol=0.05)
    carried = (1 - soft[:, :128]).sum(1)  # across a straight edge as much is lost on one side as is won on the other
    np.testing.assert_allclose(soft[:, 128:].sum(1), carried, atol=0.1)


@pytest.mark.parametrize("sigma", [0.5, 2.0, 3.5, 7.0, 20.0])
def test_wide_blurs_on_small_images_are_gaussian(sigma: float) -> None:
    plane = np.zeros((256, 256), np.float32)
    plane[96:160, 64:192] = 1
    expected = cv2.GaussianBlur(plane, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(mattes.blur(plane, sigma), expected, atol=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_caster_is_seen_in_range_and_at_any_size(shape: str) -> None:
    photo = square(skimage.data.astronaut(), 256)
    for seed in range(4):
        shadow = shadow_of(shape, seed, bend=0.0, penumbra=0.01)
        for size in ((16, 16), (48, 100), (256, 256)):
            scene = edit.scene_from_photo(cv2.resize(photo, size[::-1], interpolation=cv2.INTER_AREA))
            layer = shadow.render(scene)
            assert layer.coverage.shape == (1, *size)
            assert layer.coverage.min() >= 0
            assert layer.coverage.max() <= 1
        if shape != "relief":  # of a scene, whose relief depends on what is resolved
            small = shadow.coverage((64, 64))
            large = cv2.resize(shadow.coverage((256, 256)), (64, 64), interpolation=cv2.INTER_AREA)
            assert np.abs(small - large).mean() < 0.03


def test_draws_take_light_and_differ() -> None:
    taken = []
    for seed in range(60):
        layer = Shadow.sample(np.random.default_rng(seed), SCENE).render(SCENE)
        taken.append(1 - float(layer(SCENE.radiance, 1.0).sum() / SCENE.radiance.sum()))
    assert np.mean(np.array(taken) > 0.01) > 0.9
    assert np.std(taken) > 0.08


@pytest.mark.parametrize("shape", SHAPES)
def test_a_recipe_of_any_caster_renders_again_bit_for_bit(shape: str) -> None:
    drawn = edit.sample(np.random.default_rng(1), SCENE, EditSampling(), effects=("shadow",))
    values = dataclasses.asdict(shadow_of(shape, 2, bend=0.01, glass=(0.1, 0.5, 0.3))) | {
        "lights": (*SUN, (3_000.0, 0.1, 0.5))
    }
    recipe = dataclasses.replace(drawn, effects=(("shadow", values),))
    again = Recipe.from_json(json.dumps(json.loads(recipe.to_json())))
    for one, two in zip(Rendering(SCENE, recipe).edit(), Rendering(SCENE, again).edit(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_glass_colours_what_it_lets_through_and_its_rim_is_darker() -> None:
    """Well within, what is left is k of (3) and t of the rest; nowhere darker than behind something opaque."""
    clear, t = (0.4, 0.7, 0.1), np.array([0.4, 0.7, 0.1])
    opaque = shadow_of("polygon", 5, size=0.9, bend=0.0, penumbra=0.003, widening=1.0)
    dark = opaque.render(SCENE).transmission
    light_through = dataclasses.replace(opaque, glass=clear).render(SCENE).transmission
    within, k = cv2.erode(opaque.render(SCENE).coverage[0], np.ones((11, 11))) > 0.999, left_in_full_shadow(opaque)
    np.testing.assert_allclose(light_through[within], np.broadcast_to(k + (1 - k) * t, (within.sum(), 3)), atol=0.02)
    assert (light_through >= dark - 1e-6).all()
    m = opaque.render(SCENE).coverage[0, ..., None]
    flat, rim = 1 - m * (1 - k) * (1 - t), (m[..., 0] > 0.5) & (m[..., 0] < 0.98)
    assert (light_through <= flat + 1e-6).all()
    assert ((flat - light_through)[rim].mean(0) > 0.05 * t).all()
    np.testing.assert_array_equal(dataclasses.replace(opaque, glass=(0.0, 0.0, 0.0)).render(SCENE).transmission, dark)


def test_some_bottles_are_of_glass_and_nothing_else_is() -> None:
    sampling = ShadowSampling(objects=3.0, glass=0.5)
    drawn = [Shadow.sample(np.random.default_rng(seed), SCENE, sampling) for seed in range(200)]
    clear = [shadow for shadow in drawn if any(shadow.glass)]
    assert {shape for shadow in clear for shape in shadow.shapes} == {"bottle", "polygon"}
    able = [shadow for shadow in drawn if set(shadow.shapes) <= {"bottle", "polygon"}]
    assert len(clear) / len(able) == pytest.approx(0.5, abs=0.15)
    assert all(0 < channel < 1 for shadow in clear for channel in shadow.glass)


def test_recipes_from_before_glass_still_load() -> None:
    values = dataclasses.asdict(shadow_of("pole"))
    del values["glass"]
    assert Shadow(**values).glass == (0, 0, 0)


def test_lamps_cast_shadows_apart_and_half_shadows_between() -> None:
    lamps = ((3_000.0, 0.4, 0.0), (3_000.0, 0.4, 1.0))
    shadow = shadow_of("pole", 3, lights=lamps, bend=0.0)
    first, second = shadow.render(SCENE).coverage
    assert np.abs(first - second).max() > 0.5
    cast = casters.FORMS["person"](np.random.default_rng(0), 0.5, 0.3)
    turned = cast.turned(0.5)
    np.testing.assert_array_equal(turned.contact, cast.contact)  # feet stay where they are
    np.testing.assert_allclose(np.arctan2(*turned.direction[::-1]), 0.8)
    one, both = shadow.losses()[0], shadow.losses().sum(0)
    assert (one < both).all()
    assert (both < 1).all()


@pytest.mark.parametrize("shapes", [("pole", "tree"), ("person", "edge"), ("window", "blob"), ("relief", "edge")])
def test_a_second_caster_hides_its_share_of_what_the_first_one_leaves(shapes: tuple[str, str]) -> None:
    shadow = shadow_of("pole", 4, shapes=shapes, bend=0.0, penumbra=0.03, widening=2.0)
    relief = shadow._relief(SCENE)
    first, second = (shadow._cast(index, (SIZE, SIZE), 0.0, relief).astype(np.float64) for index in range(2))
    both = shadow.coverage((SIZE, SIZE), 0.0, relief)
    np.testing.assert_allclose(both, np.clip(1 - (1 - first) * (1 - second), 0, 1), atol=1e-5)
    assert (both - np.maximum(first, second)).max() > 0.1  # half of a half is left where two penumbrae cross


@pytest.mark.parametrize("shape", ["blob", "dapples"])
def test_forms_without_a_contact_turn_with_the_lamp(shape: str) -> None:
    shadow = shadow_of(shape, 1, bend=0.0, widening=1.0)
    first, same, other = (shadow.coverage((96, 96), turn) for turn in (0.0, 0.0, np.pi / 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).mean() > 0.05
    np.testing.assert_allclose(np.rot90(first, -1)[8:-8, 8:-8], other[8:-8, 8:-8], atol=0.05)  # y is downwards


def test_shadows_bend_where_the_depth_does() -> None:
    depth = np.zeros((SIZE, SIZE), np.float32)
    depth[:, SIZE // 2 :] = 1
    shadow = shadow_of("edge", 1, bend=0.05, angle=np.pi / 2, penumbra=0.006)
    flat = shadow.render(SCENE._replace(depth=np.zeros_like(depth))).coverage[0]
    bent = shadow.render(SCENE._replace(depth=depth)).coverage[0]
    assert np.abs(bent[:, 4 : SIZE // 2 - 8] - bent[:, SIZE // 2 + 8 : -4]).mean() > 0
    unbent = dataclasses.replace(shadow, bend=0.0).render(SCENE).coverage[0]
    np.testing.assert_allclose(flat, unbent, atol=1e-5)
    assert np.abs(bent - flat).max() > 0.1


def test_nothing_falls_on_the_sky_unless_it_may_be_a_wall() -> None:
    sky, ground = np.float32([0.5, 0.7, 1.0]), np.float32([0.1, 0.12, 0.08])
    landscape = Scene(np.repeat(np.stack([sky, ground]), SIZE // 2, 0)[:, None].repeat(SIZE, 1))
    shadow = shadow_of("dapples", 1, on_sky=False, bend=0.0)
    everywhere = dataclasses.replace(shadow, on_sky=True).render(landscape).coverage
    seen = shadow.render(landscape).coverage
    assert everywhere[:, : SIZE // 2].mean() > 0.1
    assert seen[:, : SIZE // 2 - 2].max() < 0.01
    np.testing.assert_array_equal(seen[:, SIZE // 2 + 2 :], everywhere[:, SIZE // 2 + 2 :])
    paper = Scene(np.ones((SIZE, SIZE, 3), np.float32))
    np.testing.assert_array_equal(shadow.render(paper).coverage, everywhere)
    drawn = [Shadow.sample(np.random.default_rng(seed), paper) for seed in range(40)]
    assert all(shadow.on_sky for shadow in drawn if shadow.kelvin_sky < 4_000)  # indoors
    assert 0 < sum(not shadow.on_sky for shadow in drawn) < 40


def test_a_landscape_is_lit_by_the_sun_and_its_sky_stays_clear() -> None:
    sky, ground = np.float32([0.5, 0.7, 1.0]), np.float32([0.1, 0.12, 0.08])
    landscape = Scene(np.repeat(np.stack([sky, ground]), SIZE // 2, 0)[:, None].repeat(SIZE, 1))
    drawn = [Shadow.sample(np.random.default_rng(seed), landscape) for seed in range(60)]
    assert not any(shadow.on_sky or len(shadow.lights) > 1 or shadow.kelvin_sky < 6_000 for shadow in drawn)
    assert not {"hand", "blinds", "window"} & {shape for shadow in drawn for shape in shadow.shapes}
    room = Shadow.sample(np.random.default_rng(0), landscape, ShadowSampling(indoors=1.0))
    assert room.on_sky  # who asks for nothing else gets it


def test_under_a_wide_sky_casters_are_placed_where_there_is_ground() -> None:
    ground = slice(SIZE * 9 // 10, SIZE)
    scene = np.full((SIZE, SIZE, 3), (0.02, 0.06, 0.2), np.float32)
    scene[ground] = 0.3, 0.25, 0.2
    landscape, sampling = Scene(scene), ShadowSampling(indoors=0, on_sky=0, relief=0)
    drawn = [Shadow.sample(np.random.default_rng(seed), landscape, sampling) for seed in range(100)]
    coverage = [shadow.render(landscape).coverage for shadow in drawn]
    assert max(each[:, : SIZE // 2].max() for each in coverage) < 0.01
    assert np.mean([each[:, ground].max() > 0.2 for each in coverage]) > 0.9


def test_lamps_cast_no_trees_and_landscapes_see_no_hands() -> None:
    landscape = Scene(
        np.repeat(np.float32([[0.5, 0.7, 1.0], [0.1, 0.12, 0.08]]), SIZE // 2, 0)[:, None].repeat(SIZE, 1)
    )
    weights = {"people": 0.3, "trees": 0.3, "fences": 0.3, "objects": 0.1}
    for indoors, scene, never in (
        (1.0, SCENE, {"tree", "dapples", "photographer", "pole", "edge"}),
        (0.0, landscape, {"hand", "bottle", "blinds", "window"}),
    ):
        sampling = ShadowSampling(**weights, walls=0, dapples=0, relief=0, indoors=indoors, several=0.5)
        drawn = [Shadow.sample(np.random.default_rng(seed), scene, sampling) for seed in range(120)]
        assert not never & {shape for shadow in drawn for shape in shadow.shapes}
    only = ShadowSampling(people=0, trees=1, dapples=0, fences=0, walls=0, objects=0, relief=0, indoors=1.0)
    assert set(Shadow.sample(np.random.default_rng(0), SCENE, only).shapes) == {"tree"}


def test_attached_shading_follows_the_depth() -> None:
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j].astype(np.float32)
    ball = 1 - np.sqrt(np.clip(0.8 - x**2 - y**2, 0, None)).astype(np.float32)
    solid, found = x**2 + y**2 < 0.7, []
    for seed in range(16):
        layer = shadow_of("relief", seed, angle=0.0, bend=0.0).render(SCENE._replace(depth=ball))
        found.append(np.corrcoef(layer.coverage[0][solid], x[solid])[0, 1])
    assert min(found) > 0.5  # light travels to +x: the far side of the ball is dark, whatever the noise
    assert np.mean(found) > 0.8


def test_only_a_given_depth_is_shaded() -> None:
    """Brightness knows no outlines: shading by its slope would be stains."""
    deep, sampling = SCENE._replace(depth=np.zeros((SIZE, SIZE), np.float32)), ShadowSampling(relief=0.5)
    flat, given = (
        [Shadow.sample(np.random.default_rng(seed), scene, sampling).shapes for seed in range(60)]
        for scene in (SCENE, deep)
    )
    assert not any("relief" in shapes for shapes in flat)
    assert any("relief" in shapes for shapes in given)


def test_leaves_repeat_without_a_seam_and_dapples_are_bright_and_dark() -> None:
    tile = canopy._bank()[0][1].astype(int)
    across, within = np.abs(tile[0] - tile[-1]).mean(), np.abs(np.diff(tile, axis=0)).mean()
    assert across < 2 * within + 1
    for seed in range(5):
        m = canopy.dapples(np.random.default_rng(seed), (96, 128))
        assert m.min() == 0
        assert m.max() > 0.9
        assert 0.15 < m.mean() < 0.97


def test_weights_and_shares_are_obeyed() -> None:
    none = dict.fromkeys(("people", "trees", "dapples", "fences", "walls", "objects", "relief"), 0.0)
    only = ShadowSampling(**none | {"walls": 1.0}, several=0, indoors=0, bend=0, on_sky=0, penumbra=(0.002, 0.003))
    for seed in range(20):
        drawn = Shadow.sample(np.random.default_rng(seed), SCENE, only)
        assert drawn.shapes == ("edge",)
        assert len(drawn.lights) == 1
        assert drawn.bend == 0
        assert not drawn.on_sky
        assert 0.002 <= drawn.penumbra <= 0.003
    families = Families(shadow=only)
    recipe = edit.sample(np.random.default_rng(0), SCENE, EditSampling(families=families), effects=("shadow",))
    assert recipe.effects[0][1]["shapes"] == ("edge",)


def test_measured_ranges() -> None:
    """Daylight draws stay where real shadows are: darkness and blueness of the umbra (docs/effects/shadow.md)."""
    sampling = ShadowSampling(indoors=0.0)
    draws = [Shadow.sample(np.random.default_rng(seed), SCENE, sampling) for seed in range(150)]
    k = np.array([left_in_full_shadow(shadow) for shadow in draws])
    assert 0.1 < np.median(k[:, 1]) < 0.25
    assert 1.2 < np.median(k[:, 2] / k[:, 0]) < 1.8


def test_narrow_frames_work() -> None:
    layer = shadow_of("person", 0).render(edit.scene_from_photo(np.full((16, 64, 3), 120, np.uint8)))
    assert layer.transmission.shape == (16, 64, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShadowSampling(people=-1.0), "weights"),
        (lambda: ShadowSampling(bend=1.5), "shadow.bend = 1.5"),
        (lambda: ShadowSampling(penumbra=(0.1, 0.01)), "least, greatest"),
        (lambda: ShadowSampling(penumbra=(0.1, float("inf"))), "least, greatest"),
        (lambda: shadow_of("dragon"), "dragon"),
        (lambda: shadow_of("edge", shapes=()), "at least one"),
    ],
)
def test_mistakes_are_one_line(make, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def lit_by_lamps(seed: int) -> Rendering:
    """A shadow, and a night with lamps or a flare with lamps, on a dark photograph."""
    scene = Scene(np.full((SIZE, SIZE + 9, 3), 0.05, np.float32))
    kinds = {kind: float(kind == "night") for kind in ("fog", "haze", "smoke", "dust", "uniser", "night")}
    families = Families(flare=FlareSampling(own=0.0, outside=0.0), haze=HazeSampling(**kinds))
    effects = (("shadow", "flare"), ("shadow", "haze"), ("shadow", "haze", "flare"))[seed % 3]
    sampling = EditSampling(families=families, noise=0.0)
    return Rendering(scene, edit.sample(np.random.default_rng(seed), scene, sampling, effects, "remove shadow"))


@pytest.mark.parametrize("seed", range(9))
def test_falls_on_surfaces_and_not_on_lamps(seed: int) -> None:
    rendering = lit_by_lamps(seed)
    shadow, scene = rendering.layers[0], rendering.radiance
    own = np.zeros(scene.shape)
    for layer in rendering.layers[1:]:
        for each in layer.lamp.sources:
            own[each.where] += each.light
    assert own.max() > 1
    dimmed = shadow.coverage.max(0) > 0.2
    strength = np.random.default_rng(seed).random(scene.shape[:2], np.float32)
    left = 1 - strength[..., None] * np.einsum("nhw,nc->hwc", shadow.coverage, shadow.loss)
    np.testing.assert_allclose(shadow(scene, strength), (scene - own) * left + own, atol=1e-5)
    np.testing.assert_allclose(shadow.at(strength)(scene), shadow(scene, strength), atol=1e-5)
    before = scene
    for s in (0.3, 0.7, 1.0):
        after = see(scene, rendering.layers[:1], [s])
        assert (after <= before + 1e-5).all()
        assert (after >= own - 1e-5).all()
        before = after
    assert (after[dimmed] < scene[dimmed] - 1e-4).any()  # what the lamps light is in the shadow
    np.testing.assert_array_equal(shadow(scene, np.zeros(scene.shape[:2], np.float32)), scene)


@pytest.mark.parametrize("seed", range(3))
def test_a_shadow_is_removed_exactly_from_a_scene_with_lamps(seed: int) -> None:
    rendering = lit_by_lamps(seed)
    mask = np.zeros(rendering.radiance.shape[:2], np.uint8)
    mask[:, 20:] = 255
    before, after = rendering.pair("remove shadow", mask)
    np.testing.assert_array_equal(after[mask == 0], before[mask == 0])
    bare = [0.0, *rendering.recipe.strengths[1:]]
    if not rendering.recipe.sensor.jpeg and "haze" not in rendering.names:  # its light scatters
        np.testing.assert_array_equal(after[mask > 0], rendering.expose(bare)[mask > 0])
    whole = np.full_like(mask, 255)
    np.testing.assert_array_equal(rendering.pair("remove shadow", whole)[1], rendering.expose(bare))
    np.testing.assert_array_equal(rendering.pair("remove effects", whole)[1], rendering.clean())
