"""The laws of layers, for every family."""

import dataclasses
import itertools
import json
import math

import cv2
import numpy as np
import pytest
import skimage.data

from benchmarks import sheets
from uniser_jax.effects import edit, fields, light, masks
from uniser_jax.effects.edit import EditSampling, Recipe, Rendering
from uniser_jax.effects.gallery import square
from uniser_jax.effects.haze import Haze, HazeSampling
from uniser_jax.effects.layer import Affine, LinearLayer, Scene, compose, see, visible_change
from uniser_jax.effects.mixture import FAMILIES, Mixture, sample_effects
from uniser_jax.effects.occlusion import OcclusionSampling
from uniser_jax.effects.sensor import Sensor
from uniser_jax.types import EFFECTS, TASKS

SIZE = 64
PHOTO = square(skimage.data.astronaut(), SIZE)
OTHER = square(skimage.data.coffee(), SIZE)
SCENE = edit.scene_from_photo(PHOTO, OTHER, 2.0)
SLOPE = np.broadcast_to(np.linspace(1, 0, SIZE, dtype=np.float32)[:, None], (SIZE, SIZE))  # a depth: the ground
SEEDS = range(6)


def layer_of(effect: str, seed: int, scene: Scene = SCENE):
    return FAMILIES[effect].sample(np.random.default_rng(seed), scene).render(scene)


def recipe_of(seed: int, task: str = "remove effects", effects=EFFECTS[:4], **changes) -> Recipe:
    sampling = EditSampling(
        noise=changes.pop("noise", 1.0), tone=changes.pop("tone", 0.0), jpeg=changes.pop("jpeg", 0.0)
    )
    scene = changes.pop("scene", SCENE)
    drawn = edit.sample(np.random.default_rng(seed), scene, sampling, effects=tuple(effects), task=task)
    return dataclasses.replace(drawn, **changes)


def constant_mask(value: int) -> np.ndarray:
    return np.full((SIZE, SIZE), value, np.uint8)


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_strength_zero_is_the_identity(effect: str, seed: int) -> None:
    layer = layer_of(effect, seed)
    for zero in (0.0, np.zeros((SIZE, SIZE), np.float32)):
        np.testing.assert_array_equal(layer(SCENE.radiance, zero), SCENE.radiance)
        np.testing.assert_array_equal(layer.at(zero)(SCENE.radiance), SCENE.radiance)


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_layer_is_bounded_and_grows_with_strength(effect: str, seed: int) -> None:
    layer = layer_of(effect, seed)
    levels = [layer.at(s) for s in (0.25, 0.5, 1.0)]
    for affine in levels:
        assert np.isfinite(affine.transmission).all()
        assert (affine.transmission >= 0).all()
        assert (affine.transmission <= 1 + 1e-6).all()
        assert (affine.emission >= 0).all()
    for weak, strong in itertools.pairwise(levels):
        assert (strong.transmission <= weak.transmission + 1e-6).all()
        assert (strong.emission >= weak.emission - 1e-6).all()


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_draw_can_be_seen(effect: str, seed: int) -> None:
    layer = layer_of(effect, seed)
    assert visible_change(SCENE.radiance, layer(SCENE.radiance, 1.0)).max() > 0.2


def test_composition_is_associative_and_ordered() -> None:
    a, b, c = (layer_of(effect, 1).at(0.7) for effect in ("shadow", "haze", "reflection"))
    left, right = compose(compose(a, b), c), compose(a, compose(b, c))
    np.testing.assert_allclose(left.transmission, right.transmission, rtol=1e-5)
    np.testing.assert_allclose(left.emission, right.emission, atol=1e-6)
    np.testing.assert_allclose(left(SCENE.radiance), c(b(a(SCENE.radiance))), rtol=1e-5)
    assert np.abs(compose(a, b)(SCENE.radiance) - compose(b, a)(SCENE.radiance)).max() > 0.01
    identity = Affine(np.float32(1), np.float32(0))
    np.testing.assert_array_equal(compose(identity, a)(SCENE.radiance), a(SCENE.radiance))


def test_shadows_never_brighten() -> None:
    for seed in SEEDS:
        assert (layer_of("shadow", seed)(SCENE.radiance, 1.0) <= SCENE.radiance + 1e-6).all()


@pytest.mark.parametrize("kind", ["fog", "haze", "smoke", "dust"])
@pytest.mark.parametrize("sun", [0.0, 1.0])
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_haze_lies_between_scene_and_airlight_at_one_optical_depth(kind: str, sun: float, strength: float) -> None:
    """Koschmieder and Angstrom: each channel is J e^-tau_c + A (1 - e^-tau_c), tau_c of all channels one tau l_c^-a."""
    weights = dict.fromkeys(("fog", "haze", "smoke", "dust", "night"), 0.0) | {kind: 1.0}
    sampling = HazeSampling(**weights, sun=sun, glow=0.0, scatter=0.0)
    for seed in SEEDS:
        haze = Haze.sample(np.random.default_rng(seed), SCENE, sampling)
        layer = haze.render(SCENE)
        seen = layer(SCENE.radiance, strength).astype(np.float64)
        scene = SCENE.radiance.astype(np.float64)
        airlight = np.broadcast_to(cv2.resize(layer.veil(), (SIZE, SIZE)), scene.shape).astype(np.float64)
        assert (seen >= np.minimum(scene, airlight) - 1e-6).all()
        assert (seen <= np.maximum(scene, airlight) + 1e-6).all()
        away = np.abs(seen - airlight)
        clear = (np.abs(scene - airlight) > 0.02) & (
            away > 2e-3
        )  # elsewhere float32 does not tell how far along the line
        tau = np.log(np.abs(scene - airlight) / np.maximum(away, 1e-9))
        green = tau / (np.array([0.610, 0.550, 0.465]) / 0.550) ** -haze.angstrom
        expected = np.broadcast_to(strength * layer.optical_depth[..., None], green.shape)
        assert clear.mean() > 0.3
        np.testing.assert_allclose(green[clear], expected[clear], atol=2e-3)


def test_nothing_shines_in_the_dark_but_sources() -> None:
    dark = Scene(np.zeros((SIZE, SIZE, 3), np.float32), np.zeros((SIZE, SIZE, 3), np.float32))
    assert not layer_of("shadow", 0, dark).at(1.0)(dark.radiance).any()
    assert not layer_of("reflection", 0, dark).at(1.0)(dark.radiance).any()
    assert layer_of("flare", 0, dark).at(1.0)(dark.radiance).any()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_removing_everything_gives_the_clean_photograph(seed: int, noise: float) -> None:
    rendering = Rendering(SCENE, recipe_of(seed, noise=noise))
    _, target = rendering.pair("remove effects", constant_mask(255))
    np.testing.assert_array_equal(target, rendering.clean())
    unlit = Rendering(SCENE, recipe_of(seed, effects=("shadow", "haze", "reflection")))
    if not any(layer.lamp is not None for layer in unlit.layers):  # a night stays dark
        np.testing.assert_array_equal(unlit.pair("remove effects", constant_mask(255))[1], PHOTO)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_half_removals_are_one_of_three_quarters(seed: int) -> None:
    rendering = Rendering(SCENE, recipe_of(seed, noise=0.0))
    half = [s * 0.5 for s in rendering.recipe.strengths]
    twice = Rendering(SCENE, dataclasses.replace(rendering.recipe, strengths=tuple(half)))
    thrice = [s * 0.25 for s in rendering.recipe.strengths]
    np.testing.assert_array_equal(twice.expose([s * 0.5 for s in half]), rendering.expose(thrice))
    for layer in rendering.layers:  # and on the fields themselves
        field = np.full((SIZE, SIZE), 0.5, np.float32)
        once = layer.at(field * field)(SCENE.radiance)
        np.testing.assert_allclose(layer.at(0.25)(SCENE.radiance), once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("task", [t for t in TASKS if t])
def test_the_target_equals_the_input_outside_the_mask(seed: int, task: str) -> None:
    rendering = Rendering(SCENE, recipe_of(seed, task, mask="ellipse"))
    mask = rendering.mask()
    before, after = rendering.pair(task, mask)
    assert (mask == 0).any()
    np.testing.assert_array_equal(before[mask == 0], after[mask == 0])


def test_one_effect_is_removed_and_the_others_stay() -> None:
    recipe = recipe_of(3, "remove haze", noise=0.0)
    rendering = Rendering(SCENE, recipe)
    kept = [0.0 if name == "haze" else s for name, s in zip(rendering.names, recipe.strengths, strict=True)]
    np.testing.assert_array_equal(rendering.pair("remove haze", constant_mask(255))[1], rendering.expose(kept))


def test_the_identity_task_and_absent_effects_change_nothing() -> None:
    for task in ("", "remove reflection"):
        before, after = Rendering(SCENE, recipe_of(2, task, effects=("shadow", "haze"))).pair(task, constant_mask(255))
        np.testing.assert_array_equal(before, after)


def test_what_is_to_be_added_is_there_to_add() -> None:
    with pytest.raises(ValueError, match=r"'add reflection'.* shadow, haze"):
        Rendering(SCENE, recipe_of(2, "add reflection", effects=("shadow", "haze"))).edit()
    rng = np.random.default_rng(0)
    asked = {edit.sample(rng, SCENE, EditSampling(), effects=()).task for _ in range(200)}
    assert asked == {task for task in TASKS if not task.startswith("add")}  # of a clean photograph
    for _ in range(300):
        recipe = edit.sample(rng, SCENE, EditSampling(add=1.0))
        names = [name for name, _ in recipe.effects]
        assert not recipe.task.startswith("add") or any(edit.asked_for(recipe.task, names))


def test_adding_is_removing_backwards() -> None:
    rendering = Rendering(SCENE, recipe_of(4, noise=0.0))
    degraded, clean = rendering.pair("remove effects", constant_mask(255))
    before, after = rendering.pair("add effects", constant_mask(255))
    np.testing.assert_array_equal(before, clean)
    np.testing.assert_array_equal(after, degraded)


def light_in_float64(rendering: Rendering, strengths: list) -> np.ndarray:
    """What layers at these strengths leave of the light, from the layers' own fields."""
    x = rendering.radiance.astype(np.float64)
    for layer, strength in zip(rendering.layers, strengths, strict=True):
        s = np.broadcast_to(np.asarray(strength, np.float64), x.shape[:2])[..., None]
        if layer.effect == "haze":
            tau = s * layer.optical_depth[..., None].astype(np.float64)
            direct, reaches = (np.exp(-kept * tau * layer.spectrum) for kept in (1, 1 - layer.forward))
            soft = scattered_in_float64(x, tau, layer.spread * SIZE) if layer.forward else x
            x = direct * x + soft * (reaches - direct) + cv2.resize(layer.veil(), (SIZE, SIZE)) * (1 - reaches)
        else:
            whole = layer.at(1.0)
            x = (1 - s * (1 - whole.transmission.astype(np.float64))) * x + s * whole.emission
    return x


def scattered_in_float64(x: np.ndarray, tau: np.ndarray, sigma: float) -> np.ndarray:
    """A walk of sigma sqrt(tau) pixels, between those of a quarter and of four, where narrower than 0.3 pixels none."""
    narrow, wide = (
        cv2.GaussianBlur(x, (0, 0), width, borderType=cv2.BORDER_REPLICATE) if width >= 0.3 else x
        for width in (sigma / 2, 2 * sigma)
    )
    return narrow + np.clip((np.sqrt(tau) - 0.5) / 1.5, 0, 1) * (wide - narrow)


def stored_in_float64(x: np.ndarray, sensor: Sensor) -> np.ndarray:
    """What a camera without noise writes of this light, before rounding."""
    red, blue = sensor.balance
    x = np.clip(x * 2.0 ** np.array([sensor.exposure + red, sensor.exposure, sensor.exposure + blue]), 0, 1)
    x = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)
    x = x / ((1 / sensor.bias - 2) * (1 - x) + 1)
    steep, end = 1 / (1 - sensor.gain) - 2, 2 * np.minimum(x, 1 - x)
    half = end / (steep * (1 - end) + 1) / 2
    return 255 * np.where(x < 0.5, half, 1 - half)


def assert_targets_equal_the_reference(rendering: Rendering, form: np.ndarray) -> None:
    """Every strength asked for and request, over the whole frame and under a mask."""
    strengths, sensor = rendering.recipe.strengths, rendering.recipe.sensor
    for alpha, soft in itertools.product((0.25, 0.5, 1.0), (np.ones_like(form), form)):
        mask = np.round(255 * alpha * soft).astype(np.uint8)
        a = mask.astype(np.float64) / 255
        for task in [t for t in TASKS if t]:
            asked = edit.asked_for(task, rendering.names)
            adds = task.startswith("add")
            if adds and not any(asked):
                continue
            before = [0.0 if adds and ask else s for s, ask in zip(strengths, asked, strict=True)]
            after = [s * (a if adds else 1 - a) if ask else s for s, ask in zip(strengths, asked, strict=True)]
            noise = 1 - a if any(asked) and not adds else np.ones_like(a)
            for got, at, share in zip(
                rendering.pair(task, mask), (before, after), (np.ones_like(a), noise), strict=True
            ):
                x = light_in_float64(rendering, at)
                if sensor.shot or sensor.read:  # the same grain; levels may meet elsewhere by float32
                    unlike = np.abs(
                        got.astype(int) - sensor.expose(x.astype(np.float32), share.astype(np.float32))
                    ).max(-1)
                    unlike[mask == 0] = 0
                    assert unlike.max() <= 1, (task, alpha)
                    assert unlike.mean() < 0.01, (task, alpha)
                else:
                    unlike = np.abs(got - stored_in_float64(x, sensor)).max(-1)
                    unlike[mask == 0] = 0  # there input and target are equal, whatever is scattered over the edge
                    assert unlike.max() <= 0.5 + 1e-2, (task, alpha)  # rounding to 8 bits, and float32


SUBSETS = [names for count in range(1, 5) for names in itertools.combinations(EFFECTS[:4], count)]


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
@pytest.mark.parametrize("seed", [5, 11])
def test_every_target_equals_a_float64_reference(names: tuple[str, ...], seed: int) -> None:
    """Every subset, strength asked for, mask and request."""
    rendering = Rendering(SCENE, recipe_of(seed, effects=names, noise=0.0))
    assert_targets_equal_the_reference(rendering, masks.draw(np.random.default_rng(seed), (SIZE, SIZE), "ellipse"))


RARE = {  # what few draws hold: which effects, and whether these do
    "a shadow and light scattered forward": (
        ("shadow", "haze"),
        lambda shadow, haze: haze["forward"] > 0 and haze["kind"] != "night",
    ),
    "a night and its lamps": (("haze", "reflection", "flare"), lambda haze, *_: haze["kind"] == "night"),
    "a sun in the medium": (
        ("shadow", "haze", "flare"),
        lambda shadow, haze, flare: haze["sun"] and haze["forward"] > 0,
    ),
    "dapples": (("shadow", "haze"), lambda shadow, haze: "dapples" in shadow["shapes"] and haze["forward"] > 0),
    "relief": (("shadow", "reflection"), lambda shadow, _: "relief" in shadow["shapes"]),
    "two casters under several lamps": (
        ("shadow", "flare"),
        lambda shadow, _: len(shadow["shapes"]) > 1 and len(shadow["lights"]) > 1,
    ),
}


@pytest.mark.parametrize("held", RARE)
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_rare_recipes_under_strokes_and_other_cameras_equal_it_too(held: str, noise: float) -> None:
    """With a tone curve, exposure and balance, and with noise, of which a removal takes its share."""
    names, holds = RARE[held]
    scene = SCENE._replace(depth=SLOPE) if held == "relief" else SCENE
    drawn = (
        recipe_of(seed, effects=names, scene=scene, noise=noise, tone=1.0, mask="stroke", mask_seed=1, alpha=1.0)
        for seed in range(2_000)
    )
    recipe = next(each for each in drawn if holds(*(values for _, values in each.effects)))
    assert recipe.sensor.exposure
    assert bool(recipe.sensor.shot) == bool(noise)
    rendering = Rendering(scene, recipe)
    form = rendering.mask().astype(np.float64) / 255
    assert (form == 0).any()
    assert (form == 1).any()
    assert_targets_equal_the_reference(rendering, form)


def test_the_blend_target_is_an_approximation() -> None:
    recipe = recipe_of(5, effects=("haze",), noise=0.0)
    exact = Rendering(SCENE, recipe).pair("remove haze", constant_mask(128))[1]
    blended = Rendering(SCENE, dataclasses.replace(recipe, target="blend"))
    assert np.abs(exact.astype(int) - blended.pair("remove haze", constant_mask(128))[1]).max() > 3
    full = blended.pair("remove haze", constant_mask(255))[1]
    np.testing.assert_array_equal(full, PHOTO)


@pytest.mark.parametrize("seed", range(12))
def test_a_logged_recipe_renders_again_bit_for_bit(seed: int) -> None:
    recipe = edit.sample(np.random.default_rng(seed), SCENE, EditSampling())
    again = Recipe.from_json(json.dumps(json.loads(recipe.to_json())))
    for one, two in zip(Rendering(SCENE, recipe).edit(), Rendering(SCENE, again).edit(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_sampling_follows_its_weights() -> None:
    rng = np.random.default_rng(0)
    mixture = Mixture()
    drawn = [sample_effects(rng, mixture) for _ in range(4_000)]
    sizes = np.bincount([len(names) for names in drawn], minlength=5) / len(drawn)
    np.testing.assert_allclose(sizes, mixture.counts, atol=0.03)
    single = [names[0] for names in drawn if len(names) == 1]
    assert single.count("occlusion") / len(single) == pytest.approx(mixture.auxiliary, abs=0.04)
    assert all(list(names) == sorted(names, key=EFFECTS.index) for names in drawn)
    no_haze = Mixture(haze=0.0)
    assert not any("haze" in sample_effects(rng, no_haze) for _ in range(200))


def test_occlusion_is_only_asked_for_generically() -> None:
    rng = np.random.default_rng(0)
    tasks = {edit.sample(rng, SCENE, EditSampling(absent=0), effects=("occlusion",)).task for _ in range(30)}
    assert tasks == {"remove effects"}


@pytest.mark.parametrize("kind", masks.KINDS)
@pytest.mark.parametrize("shape", [(16, 16), (40, 90)])
def test_masks_are_soft_and_in_range(kind: str, shape: tuple[int, int]) -> None:
    somewhere = np.zeros(shape, np.float32)
    somewhere[:8, :8] = 1
    for seed in SEEDS:
        mask = masks.draw(np.random.default_rng(seed), shape, kind, somewhere)
        assert mask.shape == shape
        assert mask.min() >= 0
        assert mask.max() <= 1
        np.testing.assert_array_equal(mask, masks.draw(np.random.default_rng(seed), shape, kind, somewhere))
    if kind not in ("all",):
        assert ((mask > 0.02) & (mask < 0.98)).any()


def test_the_same_look_at_any_size() -> None:
    """Parameters are fractions: a shadow rendered large and reduced is the shadow rendered small."""
    for shape in ("polygon", "railing", "window", "edge", "person"):
        shadow = dataclasses.replace(
            FAMILIES["shadow"].sample(np.random.default_rng(0), SCENE), shapes=(shape,), penumbra=0.02
        )
        small, large = shadow.coverage((64, 64)), shadow.coverage((256, 256))
        reduced = large.reshape(64, 4, 64, 4).mean((1, 3))
        assert np.abs(small - reduced).mean() < 0.02, shape


def test_encoding_is_exact_and_clips() -> None:
    stored = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    np.testing.assert_array_equal(light.encode(light.decode(stored)), stored)
    x = np.random.default_rng(0).random((200, 200, 3)) ** 2
    exact = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)
    assert np.mean(light.encode(x.astype(np.float32)) != np.round(255 * exact)) < 1e-3
    np.testing.assert_array_equal(light.encode(np.array([[[-1.0, 2.0, 0.0]]], np.float32)), [[[0, 255, 0]]])


def test_expanded_highlights_encode_to_the_same_file() -> None:
    photo = np.full((64, 64, 3), 200, np.uint8)
    photo[8:20, 8:20] = 255
    photo[0, 0] = (255, 255, 0)
    expanded = light.expand_highlights(photo, 3.0)
    assert expanded.max() > 2
    np.testing.assert_array_equal(light.encode(expanded), photo)
    np.testing.assert_array_equal(expanded[0, 0], [1, 1, 0])  # one clipped channel is no highlight
    photo[40:] = 255  # snow, paper, sky: hardly brighter than white
    np.testing.assert_array_equal(light.expand_highlights(photo, 3.0), light.decode(photo))


@pytest.mark.parametrize("view", [np.s_[:, ::-1], np.s_[..., ::-1], np.s_[::2]])
def test_a_view_of_a_photograph_is_a_photograph(view) -> None:
    photo = PHOTO.copy()
    photo[20:36, 20:36] = 255
    expected = light.expand_highlights(photo[view].copy(), 2.0)
    assert expected.max() > 1
    np.testing.assert_array_equal(light.expand_highlights(photo[view], 2.0), expected)


def test_noise_is_the_same_for_the_same_seed_and_scales() -> None:
    gray = np.full((200, 200, 3), 0.5, np.float32)
    sensor = Sensor(shot=1e-3, read=1e-2, seed=7)
    np.testing.assert_array_equal(sensor.expose(gray), sensor.expose(gray))
    np.testing.assert_array_equal(sensor.expose(gray, 0.0), light.encode(gray))
    noise = light.decode(sensor.expose(gray)) - 0.5
    assert noise.std() == pytest.approx(np.sqrt(1e-3 * 0.5 + 1e-4), rel=0.03)


def test_black_bodies_run_from_red_to_blue() -> None:
    warm, white, cold = (light.black_body(t) for t in (3_000, 6_500, 12_000))
    np.testing.assert_allclose(white, 1)
    assert warm[0] > 1 > warm[2]
    assert cold[0] < 1 < cold[2]


@pytest.mark.parametrize(("kelvin", "red", "blue"), [(2_700, 2.23, 0.22), (3_200, 1.81, 0.36), (9_000, 0.86, 1.29)])
def test_black_bodies_have_the_colours_of_the_standard_observer(kelvin: float, red: float, blue: float) -> None:
    """Red and blue over green, white at 6,500 K. Three wavelengths in place of a spectrum make 2,700 K 1.73 and 0.36."""
    np.testing.assert_allclose(light.black_body(kelvin), (red, 1, blue), atol=0.006)
    assert light.black_body(1_600)[2] == np.float32(0.02)  # out of gamut
    np.testing.assert_allclose(light._xyz(2_856)[[0, 2]] / light._xyz(2_856)[1], (1.0985, 0.3558), rtol=0.006)  # CIE A


def test_picks_are_as_likely_as_their_weights() -> None:
    rng, weights = np.random.default_rng(0), (0.0, 3.0, 1.0, 0.0, 2.0)
    counts = np.bincount([fields.pick(rng, weights) for _ in range(6_000)], minlength=5)
    assert counts[0] == counts[3] == 0
    np.testing.assert_allclose(counts / 6_000, np.array(weights) / 6, atol=0.02)  # three standard deviations


def test_effects_meet_as_often_as_their_weights_say() -> None:
    rng = np.random.default_rng(0)
    mixture = Mixture(counts=(0, 1, 0, 0, 0), auxiliary=0.0, shadow=3.0, haze=0.0, reflection=1.0, flare=0.0)
    drawn = [sample_effects(rng, mixture) for _ in range(2_000)]
    assert np.mean([names == ("shadow",) for names in drawn]) == pytest.approx(0.75, abs=0.03)
    several = dataclasses.replace(mixture, counts=(0, 0, 0, 0, 1.0))  # more than there are
    assert sample_effects(rng, several) == ("shadow", "reflection")


@pytest.mark.parametrize("shape", [(32, 20), (16, 10), (7, 9)])
def test_to_shrink_is_to_average(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random((64, 40, 3), np.float32)
    expected = cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(fields.shrink(image, shape), expected, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(200, 200), (100, 400)])
@pytest.mark.parametrize("scale", [0.1, 0.2])
def test_noise_is_as_coarse_as_its_lattice_at_any_scale_and_aspect(
    scale: float, shape: tuple[int, int], axis: int
) -> None:
    """Of one octave: values two thirds of a cell apart are correlated by one half, those half a cell apart by more."""
    noises = [fields.fractal_noise(np.random.default_rng(seed), shape, scale, 1) for seed in range(60)]
    noises = [np.moveaxis(noise - noise.mean(), axis, 0) for noise in noises]

    def correlation(lag: int) -> float:
        return np.mean([(noise[lag:] * noise[:-lag]).mean() for noise in noises]) / np.mean(np.square(noises))

    cell = scale * 200
    assert correlation(round(0.5 * cell)) > 0.6 > correlation(round(0.68 * cell)) > 0.4


def test_fields_are_pure_and_in_range() -> None:
    noise = fields.fractal_noise(np.random.default_rng(0), (33, 70))
    np.testing.assert_array_equal(noise, fields.fractal_noise(np.random.default_rng(0), (33, 70)))
    flat = np.full((20, 30), 0.25, np.float32)
    for sigma in (0.1, 1.0, 30.0):
        np.testing.assert_allclose(fields.blur(flat, sigma), flat, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture(counts=(1.0, 1.0, 0, 0, 0)), "sum to 1"),
        (lambda: Mixture(haze=-1.0), "weights"),
        (lambda: Mixture(haze=math.nan), "mixture weights = .*nan.*finite"),
        (lambda: Mixture(haze=math.inf), "mixture weights = .*inf.*finite"),
        (lambda: Mixture(counts=(math.nan, 0.5, 0.5, 0, 0)), "sum to 1"),
        (lambda: EditSampling(mask_stroke=math.nan), "edit mask weights"),
        (lambda: HazeSampling(fog=math.nan), "haze weights"),
        (lambda: OcclusionSampling(forms=(math.inf, 0, 0, 0, 0, 0)), "occlusion.forms"),
        (lambda: EditSampling(generic=1.5), "edit.generic"),
        (lambda: EditSampling(target="guess"), "exact, blend"),
        (lambda: EditSampling(highlight_stops=-1.0), "edit.highlight_stops = -1.0"),
        (lambda: EditSampling(highlight_stops=float("nan")), "edit.highlight_stops = nan"),
        (lambda: edit.sample(np.random.default_rng(0), SCENE, EditSampling(), effects=("rain",)), "rain"),
        (lambda: edit.sample(np.random.default_rng(0), SCENE, EditSampling(), task="remove rain"), "remove rain"),
        (lambda: masks.draw(np.random.default_rng(0), (8, 8), "star"), "star"),
    ],
)
def test_mistakes_are_one_line(make, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_see_applies_layers_in_order() -> None:
    layers = [layer_of("shadow", 0), layer_of("haze", 0)]
    expected = layers[1](layers[0](SCENE.radiance, 0.4), 0.6)
    np.testing.assert_array_equal(see(SCENE.radiance, layers, [0.4, 0.6]), expected)


def test_a_mask_of_the_true_effect_is_where_its_removal_shows_in_the_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under dense haze a shadow does not show."""
    monkeypatch.setattr(masks, "draw", lambda rng, shape, kind, where: np.minimum(20 * where, 1))
    hidden = np.where(np.arange(SIZE)[:, None, None] < SIZE // 2, np.float32(0.999), 0) * np.ones(
        (1, SIZE, 3), np.float32
    )
    effects = ("shadow", "haze")
    recipe = recipe_of(0, "remove shadow", effects, mask="support", alpha=1.0, strengths=(1.0, 1.0))
    rendering = Rendering(SCENE, recipe)
    rendering.layers[:] = [
        LinearLayer("shadow", np.full((1, 1, 3), 0.2, np.float32), np.zeros((1, 1, 3), np.float32)),
        LinearLayer("haze", 1 - hidden, 0.9 * hidden),
    ]
    mask = rendering.mask()
    assert mask[: SIZE // 2 - 2].max() < 10
    assert mask[SIZE // 2 + 2 :].mean() > 150  # what is black stays so


@pytest.mark.parametrize("effect", ["reflection", "haze"])
def test_masks_of_what_lies_over_the_whole_frame_are_where_it_is_seen_most(effect: str) -> None:
    """A pane darkens, and a haze veils, all of a photograph; people mark what stands out."""
    shares = []
    for seed in range(40):
        recipe = recipe_of(seed, f"remove {effect}", (effect,), mask="support", alpha=1.0)
        shares.append((Rendering(SCENE, recipe).mask() > 127).mean())
    assert np.mean(np.array(shares) > 0.97) < 0.3
    assert 0.05 < np.median(shares) < 0.9


@pytest.mark.parametrize("name", [*sheets.KINDS, "heldout"])
def test_the_pictures_of_the_pages_show_every_kind(name: str) -> None:
    side, kinds = 48, sheets.HELD_OUT if name == "heldout" else sheets.KINDS[name]
    image = sheets.sheet(name, side)
    below = image[-4 * (side + 4) :].reshape(4, side + 4, -1, 3)[:, :side]  # under the labels
    clean, *drawn = (below[:, :, left : left + side].astype(int) for left in range(0, below.shape[2], side + 4))
    assert len(drawn) == len(kinds)
    assert all(np.abs(each - clean).max() > 16 for each in drawn)
