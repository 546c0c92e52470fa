"""The laws of held-out effects, and that training cannot reach them."""

import ast
import dataclasses
import json
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
import skimage.data

from uniser_jax.effects import edit, fields, heldout, mixture, rain
from uniser_jax.effects.edit import EditSampling, Recipe, Rendering
from uniser_jax.effects.gallery import square
from uniser_jax.effects.heldout import HELD_OUT
from uniser_jax.effects.layer import Scene, visible_change
from uniser_jax.effects.mixture import FAMILIES, Families, Mixture, sample_effects
from uniser_jax.effects.scattering import Blot, disc_blur
from uniser_jax.effects.sensor import Sensor
from uniser_jax.types import EFFECTS, TASKS

SIZE = 96
PHOTOS = [square(photo(), 384) for photo in (skimage.data.astronaut, skimage.data.coffee, skimage.data.rocket)]
SCENES = [edit.scene_from_photo(square(photo, SIZE), None, 2.0) for photo in PHOTOS]
SCENE = SCENES[0]
SEEDS = range(6)
PACKAGE = pathlib.Path(edit.__file__).parent.parent

every_draw = pytest.mark.parametrize(("effect", "seed"), [(effect, seed) for effect in HELD_OUT for seed in SEEDS])


def drawn(effect: str, seed: int, scene: Scene = SCENE):
    return HELD_OUT[effect].sample(np.random.default_rng(seed), scene)


def scattered(effect: str, seed: int, light: np.ndarray) -> np.ndarray:
    """What the layer adds to light that it lets through, at full strength."""
    layer = drawn(effect, seed).render(SCENE)
    return layer(light, 1.0) - layer.transmission * light


# Training cannot reach them.


def test_no_name_of_a_held_out_effect_is_known_to_training() -> None:
    assert not set(HELD_OUT) & {*FAMILIES, *EFFECTS, *(field.name for field in dataclasses.fields(Families))}
    assert not any(name in task for task in TASKS for name in HELD_OUT)
    assert not set(HELD_OUT.values()) & set(FAMILIES.values())
    assert {family.effect for family in FAMILIES.values()} == set(FAMILIES) == set(EFFECTS)
    assert {family.effect for family in HELD_OUT.values()} == set(HELD_OUT)


@pytest.mark.parametrize("name", HELD_OUT)
def test_a_held_out_effect_can_be_neither_forced_nor_logged_into_training(name: str) -> None:
    with pytest.raises(ValueError, match="is unknown"):
        mixture.sample(np.random.default_rng(0), SCENE, Mixture(), effects=(name,))
    with pytest.raises(TypeError):
        Families(**{name: None})
    with pytest.raises(TypeError):
        Mixture(**{name: 1.0})
    recipe = Recipe(((name, dataclasses.asdict(drawn(name, 0))),), (1.0,), Sensor(), "remove effects")
    with pytest.raises(KeyError):
        Rendering(SCENE, recipe)


def test_whatever_the_config_training_draws_its_five_effects() -> None:
    """A config's freedom is Mixture: its corners, and weights at random."""
    rng = np.random.default_rng(0)
    corners = [
        Mixture(counts=tuple(float(n == k) for n in range(5)), auxiliary=share) for k in range(5) for share in (0, 1)
    ]
    weights = [Mixture(tuple(rng.dirichlet(np.ones(5))), *rng.random(4), rng.random()) for _ in range(40)]
    names = {name for config in corners + weights for _ in range(40) for name in sample_effects(rng, config)}
    assert names == set(EFFECTS)
    recipes = [edit.sample(np.random.default_rng(seed), SCENE, EditSampling()) for seed in range(60)]
    assert {name for recipe in recipes for name, _ in recipe.effects} <= set(EFFECTS)


def test_no_module_of_training_imports_them() -> None:
    own = {f"uniser_jax.effects.{name}" for name in ("heldout", "rain", "smudge", "scattering")}
    for path in PACKAGE.rglob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        module = ".".join(("uniser_jax", *path.relative_to(PACKAGE).with_suffix("").parts))
        allowed = module in own or module.startswith("uniser_jax.evaluation.")
        assert allowed or not names & own, f"{module} imports {names & own}"
    code = "import sys, uniser_jax.data.pipeline as p; sys.exit('uniser_jax.effects.heldout' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


# Laws.


@every_draw
def test_the_laws_of_strength(effect: str, seed: int) -> None:
    layer, x = drawn(effect, seed).render(SCENE), SCENE.radiance
    np.testing.assert_array_equal(layer(x, 0.0), x)
    np.testing.assert_array_equal(layer(x, np.zeros((SIZE, SIZE), np.float32)), x)
    assert layer.transmission.min() >= 0
    assert layer.transmission.max() <= 1
    assert scattered(effect, seed, x).min() >= -1e-5
    half, quarter, whole = (layer(x, s) for s in (0.5, 0.25, 1.0))
    np.testing.assert_allclose(half, (x + whole) / 2, rtol=1e-4, atol=1e-5)
    field = np.full((SIZE, SIZE), 0.5, np.float32)
    np.testing.assert_allclose(layer(x, field * field), quarter, rtol=1e-5, atol=1e-6)  # two halves are three quarters
    assert (np.abs(half - x) <= np.abs(whole - x) + 1e-5).all()


@every_draw
def test_only_ink_shines_in_the_dark(effect: str, seed: int) -> None:
    """All but ink scatters what arrives: twice the light, twice the picture; none, none."""
    layer, x = drawn(effect, seed).render(SCENE), SCENE.radiance
    dark = layer(np.zeros_like(x), 1.0)
    if effect == "watermark":
        assert dark.any() == (drawn(effect, seed).ink > 0)
        return
    assert not dark.any()
    y = SCENES[1].radiance
    np.testing.assert_allclose(layer(2 * x + y, 0.7), 2 * layer(x, 0.7) + layer(y, 0.7), rtol=1e-3, atol=1e-4)


@every_draw
def test_every_draw_can_be_seen_and_leaves_something(effect: str, seed: int) -> None:
    for scene in SCENES:
        seen = visible_change(scene.radiance, drawn(effect, seed, scene).render(scene)(scene.radiance, 1.0))
        assert seen.max() > 0.3
    assert drawn(effect, seed).render(SCENE).transmission.mean() > 0.3


@every_draw
def test_json_gives_the_same_picture(effect: str, seed: int) -> None:
    parameters = drawn(effect, seed)
    values = json.loads(json.dumps(dataclasses.asdict(parameters)))
    again = type(parameters)(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    assert again == parameters
    one, two = (p.render(SCENE)(SCENE.radiance, 1.0) for p in (parameters, again))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("effect", HELD_OUT)
def test_the_same_look_at_any_size(effect: str) -> None:
    large = edit.scene_from_photo(PHOTOS[0])
    small = Scene(cv2.resize(large.radiance, (SIZE, SIZE), interpolation=cv2.INTER_AREA))
    for seed in SEEDS:
        changes = []
        parameters = drawn(effect, seed, small)
        if effect == "watermark":
            parameters = dataclasses.replace(parameters, outlined=False)  # no outline is thinner than a pixel
        for scene in (small, large):
            change = parameters.render(scene)(scene.radiance, 1.0) - scene.radiance
            changes.append(cv2.resize(change, (32, 32), interpolation=cv2.INTER_AREA))
        assert np.abs(changes[0] - changes[1]).mean() < 0.35 * np.abs(changes[1]).mean() + 0.002


@pytest.mark.parametrize("effect", HELD_OUT)
@pytest.mark.parametrize("shape", [(16, 16), (20, 150), (130, 70)])
def test_any_shape(effect: str, shape: tuple[int, int]) -> None:
    scene = Scene(np.random.default_rng(0).random((*shape, 3), np.float32))
    for seed in SEEDS:
        seen = drawn(effect, seed, scene).render(scene)(scene.radiance, 0.8)
        assert seen.shape == scene.radiance.shape
        assert seen.dtype == np.float32
        assert np.isfinite(seen).all()


# Numbers.


def test_rain_obeys_its_equation() -> None:
    """A flat gray scene of one depth: seen = V (1 - a) J + (1 - a) (1 - V) J + a g J."""
    gray = Scene(np.full((64, 64, 3), 0.2, np.float32), depth=np.ones((64, 64), np.float32))
    shower = dataclasses.replace(drawn("rain", 0), veil=0.5, brightness=1.6)
    a = shower.streaks(np.random.default_rng(shower.seed), (64, 64))[..., None].astype(np.float64)
    np.testing.assert_allclose(
        shower.render(gray)(gray.radiance, 1.0), 0.2 * ((1 - a) + 1.6 * a) * np.ones(3), rtol=1e-4
    )
    assert a.max() <= 1 - (1 - shower.opacity) ** 4


def test_rain_falls_along_its_angle() -> None:
    """The structure tensor of the streaks points across them."""
    for angle in (-0.4, 0.0, 0.3):
        shower = dataclasses.replace(drawn("rain", 1), angle=angle, spread=0.01, count=200)
        a = cv2.GaussianBlur(shower.streaks(np.random.default_rng(0), (256, 256)), (0, 0), 1.5)
        gy, gx = np.gradient(a)
        across = 0.5 * np.arctan2(2 * (gx * gy).mean(), (gx * gx - gy * gy).mean())
        assert across == pytest.approx(-angle, abs=0.06)


def test_a_drop_shows_the_scene_upside_down() -> None:
    one = dataclasses.replace(drawn("raindrops", 0), count=1, size=0.2, contact=0.7, defocus=0.0, trails=0.0)
    side, found = 200, None
    for seed in range(50):  # one that lies within the frame
        coverage, passed, x, y = dataclasses.replace(one, seed=seed).drops((side, side))
        rows, columns = np.nonzero(coverage > 0.99)
        if len(rows) > 900 and min(rows.min(), columns.min(), 199 - rows.max(), 199 - columns.max()) > 2:
            found = coverage, passed, x, y, rows, columns
            break
    assert found is not None
    coverage, passed, x, y, rows, columns = found
    inside = coverage > 0.99
    for place, index in ((x, columns), (y, rows)):  # further right in the drop is further left in the scene
        slope = np.polyfit(index, place[inside], 1)[0]
        assert slope < -1
    focal = side / (2 * np.tan(one.field_of_view / 2))
    steepest = np.hypot(x[inside] - columns, y[inside] - rows).max() / focal
    assert steepest <= np.tan(np.arcsin(1.33 * np.sin(0.7)) - 0.7) + 1e-3
    np.testing.assert_array_equal(x[coverage == 0], np.broadcast_to(np.arange(side), x.shape)[coverage == 0])
    assert passed[inside].max() == pytest.approx(1 - (0.33 / 2.33) ** 2, abs=1e-3)  # straight through


def test_where_drops_meet_each_shows_what_it_would_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    drops = drawn("raindrops", 0)
    one, other = (
        Blot.draw(np.random.default_rng(seed), (96, 96), (x / 96, 0.5), 20 / 96, 0.09) for seed, x in ((1, 40), (2, 52))
    )

    def places(*blots) -> tuple[np.ndarray, np.ndarray]:
        monkeypatch.setattr(type(drops), "_blots", lambda *_: blots)
        return drops.drops((96, 96))[2:]

    both, alone = places(one, other), places(other)
    inside = np.hypot(np.arange(96)[None] - 51.5, np.arange(96)[:, None] - 47.5) < 14
    for shown, expected in zip(both, alone, strict=True):
        np.testing.assert_array_equal(shown[inside], expected[inside])


def test_fresnel_against_the_angles_of_the_textbook() -> None:
    theta = np.linspace(0.01, 0.84, 50)
    out = np.arcsin(1.33 * np.sin(theta))
    s = (np.sin(out - theta) / np.sin(out + theta)) ** 2
    p = (np.tan(out - theta) / np.tan(out + theta)) ** 2
    np.testing.assert_allclose(rain._fresnel(theta), 1 - (s + p) / 2, atol=1e-9)
    assert rain._fresnel(np.array([0.9]))[0] == pytest.approx(0)  # beyond asin(1 / 1.33): total reflection


def test_dirt_returns_no_more_than_it_takes() -> None:
    for seed in range(200):
        stain = drawn("stain", seed)
        assert (np.array(stain.transmission) + stain.returned <= 1).all()
    smudge = dataclasses.replace(drawn("smudge", 0), returned=1.0)
    gray = Scene(np.full((64, 64, 3), 0.3, np.float32))
    np.testing.assert_allclose(smudge.render(gray)(gray.radiance, 1.0), 0.3, rtol=1e-3)  # b = 1 keeps an even scene


def test_streaks_run_across_the_wipe() -> None:
    for angle in (0.0, np.pi / 2):
        smudge = dataclasses.replace(drawn("smudge", 0), kind="smear", angle=angle, reach=0.2)
        lamp = np.zeros((101, 101, 3), np.float32)
        lamp[50, 50] = 100
        spread = smudge._streaks(lamp)[..., 0]
        across, along = spread[:, 50], spread[50]
        if angle:
            across, along = along, across
        assert across[30] > 20 * along[30]
        assert spread.sum() == pytest.approx(100, rel=0.05)


def test_prints_finer_than_pixels_fade_to_their_mean() -> None:
    touch = dataclasses.replace(drawn("smudge", 0), kind="fingerprint", count=1, size=0.2, defocus=0.0)
    fine, coarse = touch.film((512, 512)), touch.film((64, 64))  # ridges 8 and 1 pixel apart
    reduced = cv2.resize(fine, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(reduced - coarse).mean() < 0.3 * fine.mean()
    assert coarse.mean() == pytest.approx(fine.mean(), rel=0.1)
    ripple = [(film - cv2.GaussianBlur(film, (0, 0), 3))[film > 0.05].std() for film in (fine, coarse)]
    assert ripple[0] > 2 * ripple[1]


@pytest.mark.parametrize("layout", heldout.LAYOUTS)
def test_a_watermark_is_an_exact_blend_with_its_ink(layout: str) -> None:
    mark = dataclasses.replace(drawn("watermark", 3), layout=layout, extent=0.4, outlined=False)
    g = mark.glyphs((SIZE, SIZE))[..., None].astype(np.float64)
    expected = (1 - mark.opacity * g) * SCENE.radiance + mark.opacity * g * mark.ink
    np.testing.assert_allclose(mark.render(SCENE)(SCENE.radiance, 1.0), expected, atol=1e-5)
    assert g.max() > 0.8
    thin = dataclasses.replace(mark, outlined=True).glyphs((SIZE, SIZE))
    assert thin.any()


def test_ink_is_far_from_what_lies_under_it() -> None:
    """Of black and white: no white letters on paper, however bright or dark the rest of the photograph."""
    paper = np.full((SIZE, SIZE, 3), 0.9, np.float32)
    paper[: 3 * SIZE // 4] = 0.02
    for seed in range(30):
        mark = drawn("watermark", seed, Scene(paper))
        assert mark.ink == (mark.layout != "corner")  # corners are white, the middle is dark
        change = np.abs(np.sqrt(mark.render(Scene(paper))(paper, 1.0)) - np.sqrt(paper)).max()
        assert change > 0.05


def test_stains_are_seen_where_anything_is_bright() -> None:
    photo = np.full((SIZE, SIZE, 3), 0.01, np.float32)
    photo[: SIZE // 3] = 0.5
    for seed in range(12):
        seen = drawn("stain", seed, Scene(photo)).render(Scene(photo))(photo, 1.0)
        assert fields.root_change(photo, seen) > 0.02
    black = Scene(np.zeros((SIZE, SIZE, 3), np.float32))
    assert drawn("stain", 0, black).count  # nothing shows there: the last draw stands


def test_a_disc_blur_keeps_light_and_even_fields() -> None:
    flat = np.full((50, 70), 0.4, np.float32)
    spot = np.zeros((120, 120), np.float32)
    spot[60, 60] = 1
    for radius in (0.2, 2.0, 9.0, 20.0):
        np.testing.assert_allclose(disc_blur(flat, radius), flat, atol=1e-5)
        assert disc_blur(spot, radius).sum() == pytest.approx(1, rel=0.02)
    assert disc_blur(spot, 3.0)[60, 60] == pytest.approx(1 / (np.pi * 9), rel=0.1)
