"""The laws of lens flare."""

import dataclasses
import json
import os
import pathlib
import shutil
import struct
import zlib

import cv2
import numpy as np
import pytest
import skimage.data

from uniser_jax.effects import edit, fields, ghosts, glare, light, pupil, sources, templates
from uniser_jax.effects.edit import EditSampling, Recipe, Rendering
from uniser_jax.effects.flare import Flare, FlareSampling
from uniser_jax.effects.gallery import square
from uniser_jax.effects.glare import Glare, Grain
from uniser_jax.effects.layer import Scene, visible_change
from uniser_jax.effects.mixture import Families

SIZE = 128
SCENE = edit.scene_from_photo(square(skimage.data.astronaut(), SIZE), None, 2.0)
DARK = Scene(np.full((SIZE, SIZE, 3), 0.02, np.float32))
SEEDS = range(12)


def flare_of(seed: int = 0, scene: Scene = SCENE, **changes) -> Flare:
    return dataclasses.replace(Flare.sample(np.random.default_rng(seed), scene), **changes)


def plain(**changes) -> Flare:
    """One white source in the middle, bare wings."""
    bare = {
        "bloom": (0.0, 0.03),
        "veil": (0.0, 1.0),
        "streaks": (),
        "ghosts": 0,
        "mirror": 0.0,
        "lamp": 0.0,
        "visible": 0.0,
    }
    middle = {
        "sources": ((0.5, 0.5, 1.0, 0.0),),
        "colours": ((1.0, 1.0, 1.0),),
        "level": 0.2,
        "zoom": 1.0,
        "formed": 0.0,
        "spectrum": 0.0,
    }
    return flare_of(0, **(bare | middle | changes))


def radius_from_middle(h: int, w: int) -> np.ndarray:
    y, x = np.mgrid[:h, :w] + 0.5
    return np.hypot(x - w / 2, y - h / 2) / np.sqrt(h * w)


@pytest.fixture
def folder(tmp_path):
    """A warm flare on a dull background, as a camera would store it."""
    r = np.hypot(*(np.mgrid[:200, :260] - np.array([80, 130])[:, None, None]))
    linear = 0.02 + (0.9 / (1 + (r / 8) ** 2))[..., None] * np.array([1.0, 0.7, 0.4])
    cv2.imwrite(str(tmp_path / "a.png"), light.encode(linear.astype(np.float32))[..., ::-1])
    return tmp_path


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scene", [SCENE, DARK])
def test_every_draw_is_seen_and_shines_only(seed: int, scene: Scene) -> None:
    layer = flare_of(seed, scene).render(scene)
    assert np.isfinite(layer.emission).all()
    assert layer.emission.min() >= 0
    assert (layer.transmission == 1).all()
    assert visible_change(scene.radiance, layer(scene.radiance, 1.0)).max() > 0.2


def test_at_full_strength_a_fiftieth_of_the_frame_shows_a_flare() -> None:
    """Equation (5): on a bright wall a veil takes more light; where it is seen anyway, the level is as asked for."""
    rng = np.random.default_rng(0)
    wall = Scene((0.6 + 0.04 * rng.random((SIZE, SIZE, 3))).astype(np.float32))
    raised = 0
    for seed in range(40):
        flare = flare_of(seed, wall, mirror=0.0)
        layer, asked = flare.render(wall), dataclasses.replace(flare, visible=0.0).render(wall)
        before, least, after = (
            np.sqrt(np.minimum(image, 1))
            for image in (wall.radiance, asked(wall.radiance, 1.0), layer(wall.radiance, 1.0))
        )
        faint = (asked.emission > 1e-6) & (asked.emission < 8 / 20)  # nothing is brighter than 8
        k = layer.emission[faint] / asked.emission[faint]
        np.testing.assert_allclose(k, k[0], rtol=1e-4)
        changed = ((after - before).max(-1) > 0.9 * 0.08).mean()  # k is found on a quarter of the rows and columns
        assert changed > 0.014 or k[0] == pytest.approx(20, rel=1e-4), seed
        if ((least - before).max(-1) > 0.08).mean() > 0.03:
            np.testing.assert_array_equal(layer.emission, asked.emission)
        raised += k[0] > 1.001
    assert raised > 8


@pytest.mark.parametrize("shape", [(16, 16), (17, 301), (640, 90)])
def test_any_shape(shape: tuple[int, int]) -> None:
    scene = Scene(np.full((*shape, 3), 0.3, np.float32))
    for seed in SEEDS:
        assert flare_of(seed, scene).render(scene).emission.shape == (*shape, 3)


@pytest.mark.parametrize("shape", [(257, 64), (300, 301), (512, 200)])
def test_a_layer_kept_in_fewer_rows_is_the_same_light_at_any_strength(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    radiance, strength = rng.random((*shape, 3), np.float32), rng.random(shape, np.float32)
    layer = flare_of(3, Scene(radiance)).render(Scene(radiance))
    assert len(layer.scattered) < shape[0]
    light_of = cv2.resize(layer.scattered, shape[::-1])
    np.testing.assert_allclose(layer.emission, light_of, atol=1e-5)
    for s in (strength, 0.3):
        spread = s[..., None] if isinstance(s, np.ndarray) else s
        np.testing.assert_allclose(layer(radiance, s), radiance + spread * light_of, atol=1e-5)


def test_scatter_equals_a_float64_reference() -> None:
    wings = Glare(falloff=2.0, core=0.02, bloom=(0.2, 0.03), veil=(0.1, 0.7))
    grain = Grain(pattern=6, share=0.7, turn=0.4, zoom=1.3, mirrored=True)
    out, place, hue = np.zeros((90, 120, 3), np.float32), np.array([41.3, 27.8]), np.array([0.3, 0.2, 0.1])
    side, size = 104.0, 0.02
    glare.add(out, place, size, hue.astype(np.float32), wings.table(), grain, side)
    stored = pupil.pattern(6)[..., :3].astype(np.float64)
    for row, column in [(30, 60), (70, 20), (5, 100), (27, 45), (89, 119)]:
        offset = (np.array([column, row]) + 0.5 - place) / side
        r2 = float(offset @ offset)
        c, s = np.cos(0.4), np.sin(0.4)
        turned = np.diag([-1, 1]) @ np.array([[c, s], [-s, c]]) @ offset
        u, v = turned * 512 / (2 * pupil.REACH * 1.3) + 256
        a, b, fu, fv = int(u), int(v), u % 1, v % 1
        near = stored[b : b + 2, a : a + 2]
        code = np.einsum("i,j,ijc->c", [1 - fv, fv], [1 - fu, fu], near)
        sharp = r2 / (r2 + 4 * size**2)
        form = 0.3 + 0.7 * (sharp * pupil.PEAK * (code / 255) ** 2 + 1 - sharp)
        expected = hue * wings(np.sqrt(r2 + size**2)) * form
        np.testing.assert_allclose(out[row, column], expected, rtol=0.06, atol=2 * glare.FAINT)


def test_brightness_is_the_veil_at_five_percent() -> None:
    ring = np.abs(radius_from_middle(SIZE, SIZE) - 0.05) < 0.006
    for formed, pattern, tolerance in ((0.0, 0, 0.03), (1.0, 2, 0.25), (1.0, 3, 0.25)):
        emission = plain(formed=formed, pattern=pattern).render(DARK).emission
        assert emission[ring].mean() == pytest.approx(0.2, rel=tolerance)
    beyond = flare_of(0, sources=((0.5, -0.2, 1.0, 0.0),), colours=((1.0, 1.0, 1.0),))
    assert sources.beyond(sources.Source(*beyond.sources[0], (1.0, 1.0, 1.0)), (SIZE, SIZE)) == pytest.approx(0.2)


def test_glare_falls_with_distance_and_is_one_where_it_is_quoted() -> None:
    wings = Glare(2.0, 0.02, (0.3, 0.03), (0.2, 0.7))
    assert wings(np.array(glare.QUOTED)) == pytest.approx(1)
    assert (np.diff(wings.table()) < 0).all()


@pytest.mark.parametrize("index", range(8))
def test_patterns_have_form_but_no_falloff(index: int) -> None:
    stored = pupil.pattern(index)
    np.testing.assert_array_equal(stored, pupil.pattern.__wrapped__(index))  # the bank is made of fixed numbers
    form = pupil.PEAK * (stored[..., :3] / 255.0) ** 2
    y, x = np.mgrid[:512, :512] - 256
    r = np.hypot(x, y)
    if index % 4 != 3:
        for near, far in ((15, 40), (40, 80), (80, 150)):
            assert form[(r > near) & (r < far)].mean() == pytest.approx(1, abs=0.2)
    assert form[(r > 60) & (r < 120)].std() > 0.15


@pytest.mark.parametrize("index", [0, 2, 10])
def test_rays_are_as_smooth_as_of_a_continuous_spectrum_and_fade_out(index: int) -> None:
    """Copies of the speckle that lie farther apart than its grains would string beads on the rays."""
    rng, half = np.random.default_rng((2021, index)), pupil._TRANSFORM / 2
    form = pupil._diffracted(pupil._pupil(rng, pupil.KINDS[index % 4]), pupil._radius(pupil._TRANSFORM))
    wavelengths = np.linspace(0.41, 0.69, 90)
    response = np.exp(-(((wavelengths[:, None] - light.WAVELENGTHS) / 0.04) ** 2))
    expected = np.zeros((512, 512, 3))
    for wavelength, share in zip(wavelengths, response / response.sum(0), strict=True):
        zoom = light.WAVELENGTHS[1] / wavelength
        to_form = np.array([[zoom, 0, half - 256 * zoom], [0, zoom, half - 256 * zoom]])
        expected += cv2.warpAffine(form, to_form, (512, 512), flags=1 | cv2.WARP_INVERSE_MAP)[..., None] * share
    r = np.hypot(*(np.mgrid[:512, :512] - 256))
    kept = np.minimum(expected, pupil.PEAK) * np.clip((256 - r) / (0.35 * 256), 0, 1)[..., None]
    seen = pupil.PEAK * (pupil.pattern(index)[..., :3] / 255.0) ** 2
    rays = (r > 60) & (kept.max(-1) > 2)
    ripple = np.sqrt(np.mean((seen - kept)[rays] ** 2)) / kept[rays].mean()
    assert ripple < 0.03  # 0.01, mostly of 8 bits; of 15 wavelengths 0.05 to 0.28
    assert seen[r > 250].max() < pupil.PEAK * 6 / (0.35 * 256) * 1.05  # 8 bits


def test_red_light_spreads_farther_than_blue() -> None:
    """Equation (3): the red pattern is the blue one enlarged by the ratio of wavelengths."""
    form = pupil.PEAK * (pupil.pattern(2).astype(np.float32) / 255) ** 2
    zoom = light.WAVELENGTHS[0] / light.WAVELENGTHS[2]
    enlarged = cv2.warpAffine(
        form[..., 2], np.array([[zoom, 0, 256 * (1 - zoom)], [0, zoom, 256 * (1 - zoom)]]), (512, 512)
    )
    y, x = np.mgrid[:512, :512] - 256
    where = (np.hypot(x, y) > 25) & (np.hypot(x, y) < 140)
    same, other = (np.corrcoef(form[..., 0][where], blue[where])[0, 1] for blue in (enlarged, form[..., 2]))
    assert same > 0.9
    assert same > other


@pytest.mark.parametrize("blades", [0, 7])
def test_ghosts_lie_on_the_line_through_the_centre(blades: int) -> None:
    lens = ghosts.lens(3, 12, blades, 0.2)
    inside = 0
    source, side = np.array([40.0, 25.0]), 200.0
    for k in range(12):
        one = lens._replace(
            **{name: getattr(lens, name)[k : k + 1] for name in ("along", "radius", "tint", "softness", "rim", "cut")}
        )
        whole = one._replace(cut=np.array([[0, 0, 9]], np.float32))
        out = np.zeros((200, 200, 3), np.float32)
        ghosts.add(out, source, np.ones(3, np.float32), whole, side)
        expected = 100 + lens.along[k] * (source - 100)
        if (np.abs(expected - 100) < 60).all():
            assert out.any()
            inside += 1
            weight = out[..., 1]
            y, x = np.mgrid[:200, :200] + 0.5
            np.testing.assert_allclose(
                [(weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()], expected, atol=1
            )
    assert inside >= 3


def test_ghosts_of_a_round_aperture_are_discs() -> None:
    lens = ghosts.lens(3, 1, 0, 0.0)
    numbers = {"along": 0.0, "radius": 0.2, "tint": [1, 1, 1], "softness": 0.05, "rim": 0.0, "cut": [0, 0, 9]}
    lens = lens._replace(**{name: np.array([value], np.float32) for name, value in numbers.items()})
    out = np.zeros((200, 200, 3), np.float32)
    ghosts.add(out, np.array([150.0, 100.0]), np.ones(3, np.float32), lens, 200.0)
    r = 200 * radius_from_middle(200, 200)
    np.testing.assert_allclose(out[r < 38, 1], 1)
    assert not out[r > 43].any()


def test_coatings_are_dark_at_their_own_wavelength() -> None:
    red, green, blue = (ghosts.coating_tint(np.array([[dark, dark]]))[0] for dark in light.WAVELENGTHS)
    assert red.argmin() == 0
    assert green.argmin() == 1
    assert blue.argmin() == 2


def test_the_same_look_at_any_size() -> None:
    for seed in SEEDS:
        flare = flare_of(seed, lamp=0.0, mirror=0.0)
        small, large = (flare.render(Scene(np.full((n, n, 3), 0.2, np.float32))).emission for n in (96, 768))
        reduced = cv2.resize(large, (96, 96), interpolation=cv2.INTER_AREA)
        assert np.abs(np.sqrt(np.minimum(small, 1)) - np.sqrt(np.minimum(reduced, 1))).mean() < 0.012, seed


def test_white_things_by_day_are_no_lights() -> None:
    """Paper is bright, but the camera holds one of its channels; by night the same is a lamp behind a shade."""
    paper = (255, 253, 235)
    photo = np.full((128, 128, 3), 120, np.uint8)
    photo[50:70, 50:70] = paper
    assert not sources.highlights(sources.reduced(edit.scene_from_photo(photo)), 4)
    photo[54:62, 54:62] = 255
    assert len(sources.highlights(sources.reduced(edit.scene_from_photo(photo)), 4)) == 1
    photo = np.full((128, 128, 3), 30, np.uint8)
    photo[50:70, 50:70] = paper
    assert len(sources.highlights(sources.reduced(edit.scene_from_photo(photo)), 4)) == 1


def test_highlights_flare_where_and_in_the_colour_they_are() -> None:
    photo = np.full((200, 300, 3), 20, np.uint8)
    cv2.circle(photo, (220, 60), 9, (255, 150, 60), -1)
    cv2.circle(photo, (220, 60), 6, (255, 255, 255), -1)
    cv2.circle(photo, (50, 150), 3, (255, 255, 255), -1)
    photo[:, 280:] = 10
    found = sources.highlights(sources.reduced(edit.scene_from_photo(photo, None, 2.0)), 4)
    assert len(found) == 2
    assert (found[0].x * 300, found[0].y * 200) == pytest.approx((220.5, 60.5), abs=1.0)
    assert (found[1].x * 300, found[1].y * 200) == pytest.approx((50.5, 150.5), abs=1.0)
    assert found[0].share == 1 > found[1].share
    assert found[0].colour[0] > found[0].colour[1] > found[0].colour[2]
    overcast = photo.copy()
    overcast[:80] = 255
    assert all(each.y > 0.4 for each in sources.highlights(sources.reduced(edit.scene_from_photo(overcast)), 4))


def test_a_photograph_with_lights_gets_no_other() -> None:
    photo = np.full((100, 100, 3), 20, np.uint8)
    cv2.circle(photo, (60, 40), 4, (255, 255, 255), -1)
    scene = edit.scene_from_photo(photo, None, 2.0)
    for seed in SEEDS:
        flare = Flare.sample(np.random.default_rng(seed), scene, FlareSampling(own=1.0))
        assert flare.lamp == 0
        assert flare.sources[0][:2] == pytest.approx((0.605, 0.405), abs=0.01)


@pytest.mark.parametrize("phone", [0.0, 0.5, 1.0])
def test_dark_photographs_are_mostly_those_of_phones_but_not_all(phone: float) -> None:
    scene = edit.scene_from_photo(np.full((64, 64, 3), 20, np.uint8))
    sampling = FlareSampling(phone=phone, ghosts=0.0)
    lenses = [Flare.sample(np.random.default_rng(seed), scene, sampling).blades > 0 for seed in range(80)]
    assert np.mean(lenses) == pytest.approx({0.0: 1, 0.5: 2 / 7, 1.0: 0}[phone], abs=0.13)


def test_by_day_one_sun_stands_in_the_sky() -> None:
    photo = np.full((128, 128, 3), (150, 140, 120), np.uint8)
    photo[:70, 64:] = (190, 215, 245)
    photo[70:] = (235, 225, 200)  # brighter than the sky
    sampling = FlareSampling(own=0.0, outside=0.0)
    for seed in range(40):
        flare = Flare.sample(np.random.default_rng(seed), edit.scene_from_photo(photo), sampling)
        ((x, y, _, _),) = flare.sources
        assert x > 0.4  # beside its edge a cell is half sky
        assert y < 0.65
        red, _, blue = flare.colours[0]
        assert red == 1
        assert 0.5 < blue < 1
    out = FlareSampling(own=0.0, outside=1.0)
    assert {
        len(Flare.sample(np.random.default_rng(seed), edit.scene_from_photo(photo), out).sources) for seed in SEEDS
    } == {1}
    wall = edit.scene_from_photo(np.full((128, 128, 3), (150, 140, 120), np.uint8))
    drawn = [Flare.sample(np.random.default_rng(seed), wall, sampling) for seed in range(60)]
    assert {len(flare.sources) for flare in drawn} == {1, 2}
    distances = [sources.beyond(sources.Source(*flare.sources[0], (1.0, 1.0, 1.0)), (128, 128)) for flare in drawn]
    assert min(distances) > 0  # what is in the frame is lit, and shines not
    assert not {colour for flare in drawn for colour in flare.colours} & set(sources._LEDS)  # no signals by day


def test_lamps_stay_and_have_no_hard_edge() -> None:
    flare = plain(lamp=0.01, colours=((1.0, 0.7, 0.4),))
    scene = Scene(np.full((512, 512, 3), 0.05, np.float32))
    layer = flare.render(scene)
    lit = layer.lamp.onto(scene.radiance)
    lamp = (lit - scene.radiance)[256, 256:, 1]
    assert lamp[0] > 5
    assert (np.diff(lamp) <= 0).all()
    assert 1 < (lamp > 1).sum() < 10
    stored = light.encode(lit)[256, 256:, 1].astype(int)
    assert np.abs(np.diff(stored)).max() < 110  # a glow, no pasted disc
    assert (stored[60:] == stored[-1]).all()
    recipe = Recipe((("flare", dataclasses.asdict(flare)),), (1.0,), edit.Sensor(), "remove lens flare")
    _, target = Rendering(scene, recipe).pair("remove lens flare", np.full((512, 512), 255, np.uint8))
    np.testing.assert_array_equal(target, light.encode(lit))


def test_a_lamp_on_a_highlight_adds_nothing() -> None:
    white = Scene(np.ones((64, 64, 3), np.float32))
    assert not plain(lamp=0.02).render(white).lamp.light.any()


def test_flares_of_dark_photographs_are_small() -> None:
    """As in measured pairs of phones: little is left beyond a quarter of the side."""
    far = []
    for seed in range(40):
        flare = Flare.sample(
            np.random.default_rng(seed), DARK, FlareSampling(phone=1.0, outside=0.0, ghosts=0.0, mirror=0.0)
        )
        bare = dataclasses.replace(flare, sources=((0.5, 0.5, 1.0, 0.0),), colours=((1.0, 1.0, 1.0),), streaks=())
        emission = bare.render(DARK).emission
        far.append(emission[radius_from_middle(SIZE, SIZE) > 0.25].mean())
    assert np.median(far) < 0.01
    assert max(far) < 0.06


def test_mirrored_highlights_lie_opposite() -> None:
    radiance = np.full((120, 160, 3), 0.02, np.float32)
    radiance[20:24, 30:34] = 4
    emission = plain(sources=((0.2, 0.18, 1.0, 0.0),), level=1e-4, mirror=0.2).render(Scene(radiance)).emission
    row, column = np.unravel_index(emission.sum(-1).argmax(), (120, 160))
    assert abs(row - 97.5) < 3
    assert abs(column - 127.5) < 3


def test_recipes_replay_from_json(folder) -> None:
    kinds = EditSampling(families=Families(flare=FlareSampling(layers=str(folder), real=0.3)), noise=0.0)
    for seed in SEEDS:
        recipe = edit.sample(np.random.default_rng(seed), SCENE, kinds, effects=("flare",))
        again = Recipe.from_json(json.dumps(json.loads(recipe.to_json())))
        for one, two in zip(Rendering(SCENE, recipe).edit(), Rendering(SCENE, again).edit(), strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("zoom", [0.7, 1.0, 1.8])
def test_real_layers_lose_their_background_and_keep_their_veil(folder, zoom: float) -> None:
    sampling = FlareSampling(layers=str(folder), real=1.0)
    flare = Flare.sample(np.random.default_rng(0), DARK, sampling)
    assert flare.layer.endswith("a.png")
    alone = dataclasses.replace(
        flare, sources=((0.5, 0.5, 1.0, 0.0),), colours=((1.0, 1.0, 1.0),), level=0.2, zoom=zoom, mirror=0.0
    )
    emission = alone.render(DARK).emission
    r = radius_from_middle(SIZE, SIZE)
    assert emission[np.abs(r - 0.05) < 0.008].mean() == pytest.approx(0.2, rel=0.1)
    assert emission[r > 0.6 * zoom].max(initial=0) < 0.01
    bright = emission[r < 0.05].mean(0)
    assert bright[0] > bright[1] > bright[2]
    assert templates.read.cache_info().maxsize == templates.KEPT


def test_a_faint_veil_of_a_real_layer_is_not_lifted_to_its_noise(folder) -> None:
    template = templates.read(str(folder / "a.png"))
    assert template.light.max() == 1
    assert template.veil(0.05) > template.veil(0.07) > template.veil(0.3) == template.veil(5.0) == pytest.approx(0.1)


def test_a_bad_folder_is_one_clear_line(tmp_path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, message in ((tmp_path / "nowhere", "there is no such folder"), (empty, "no image in it")):
        with pytest.raises(ValueError, match=message) as caught:
            Flare.sample(np.random.default_rng(0), SCENE, FlareSampling(layers=str(path), real=1.0))
        assert "\n" not in str(caught.value)
    for path in (tmp_path / "broken.png", tmp_path / "gone.png"):
        with pytest.raises(ValueError, match="cannot be read") as caught:
            plain(layer=str(path)).render(SCENE)
        assert "\n" not in str(caught.value)


def spoil(folder: pathlib.Path) -> set[str]:
    """Puts layers that cannot be used beside one that can; their names."""
    for value, name in ((0, "black"), (255, "white")):
        cv2.imwrite(str(folder / f"{name}.png"), np.full((40, 40, 3), value, np.uint8))
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "empty.jpg").touch()
    os.mkfifo(folder / "pipe.png")
    return {"black.png", "white.png", "cut.png", "empty.jpg", "pipe.png"}


def test_layers_that_cannot_be_used_are_named_once_and_the_next_stand_in(folder, caplog) -> None:
    spoilt = spoil(folder)
    with open(os.path.join(os.fsencode(folder), b"\xff.png"), "wb") as file:
        file.write((folder / "a.png").read_bytes())
    sampling = FlareSampling(layers=str(folder), real=1.0)
    flares = [Flare.sample(np.random.default_rng(seed), SCENE, sampling) for seed in range(40)]
    assert {os.fsencode(flare.layer).rpartition(b"/")[2] for flare in flares} == {b"a.png", b"\xff.png"}
    named = sorted(message.partition(": ")[0].rpartition("/")[2] for message in caplog.messages)
    assert named == sorted(spoilt)


def test_a_layer_that_goes_during_a_run_ends_nothing(folder, caplog) -> None:
    shutil.copy(folder / "a.png", folder / "b.png")
    sampling = FlareSampling(layers=str(folder), real=1.0)
    before = [Flare.sample(np.random.default_rng(seed), SCENE, sampling).layer for seed in range(8)]
    assert len(set(before)) == 2
    (folder / "b.png").unlink()
    templates.read.cache_clear()  # as when sixteen others were drawn since
    for seed in range(8):
        flare = Flare.sample(np.random.default_rng(seed), SCENE, sampling)
        flare.render(SCENE)
        assert flare.layer == str(folder / "a.png")
    assert caplog.messages == [
        f"{folder / 'b.png'}: a flare layer that cannot be read: not a file; the next one stands in"
    ]


def test_a_folder_without_a_usable_layer_is_one_line(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"no layer that can be used: .*a.png") as caught:
        templates.usable(str(tmp_path), 0)
    assert "\n" not in str(caught.value)


def test_an_image_of_too_many_pixels_is_one_line(tmp_path) -> None:
    header = struct.pack(">4sIIBBBBB", b"IHDR", 2**17, 2**17, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    with pytest.raises(ValueError, match=r"bomb.png: a flare layer that cannot be read[^\n]*\Z"):
        templates.read(str(tmp_path / "bomb.png"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"own": 1.5}, "flare.own = 1.5"),
        ({"phone_level": (0.2, 0.1)}, "flare.phone_level"),
        ({"lens_level": (0.2,)}, "flare.lens_level"),
        ({"lens_level": (0.2, float("inf"))}, "flare.lens_level"),
        ({"real": 0.5}, "flare.layers"),
    ],
)
def test_mistakes_are_one_line(values, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        FlareSampling(**values)
    assert "\n" not in str(caught.value)


def test_sizes_are_fractions_of_the_side() -> None:
    assert fields.side((100, 400)) == 200
    tall, wide = (
        plain().render(Scene(np.full((h, w, 3), 0.1, np.float32))).emission for h, w in ((240, 60), (60, 240))
    )
    np.testing.assert_allclose(tall, wide.transpose(1, 0, 2), atol=1e-4)


def test_starburst_and_ghosts_are_of_one_aperture_and_phones_have_round_ones() -> None:
    drawn = [Flare.sample(np.random.default_rng(seed), SCENE) for seed in range(40)]
    assert {flare.blades for flare in drawn} > {0}
    for flare in drawn:
        assert flare.blades in (0, pupil.aperture(flare.pattern)[0])
    assert ghosts.lens(3, 4, 0, 0.0).roundness == 1


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("index", [0, 8, 12])  # straight blades: 8, 5 and 5
def test_rays_run_across_the_sides_of_ghosts(index: int, mirrored: bool) -> None:
    grain = Grain(index, share=1.0, turn=0.7, zoom=1.0, mirrored=mirrored)
    count, normal = pupil.aperture(index)
    sides = ghosts.lens(0, 3, count, grain.seen(normal)).normals
    angles = np.arctan2(sides[:, 1], sides[:, 0])
    radii = np.linspace(0.05, 0.15, 60)[:, None]

    def along(turned: float) -> float:  # of the pattern, as the image shows it
        x, y = radii * np.cos(angles + turned), radii * np.sin(angles + turned)
        u, v = np.moveaxis(np.stack([x, y], -1) @ grain.matrix().T + 256, -1, 0).astype(np.float32)
        return float(cv2.remap(pupil.pattern(index)[..., 1].astype(np.float32), u, v, cv2.INTER_LINEAR).mean())

    assert along(0.0) > 3 * max(along(np.pi / count / 2), along(-np.pi / count / 2))
