"""What patches promise: every affine map, forms of the asked size, and frost that spreads light but does not lose it."""

import dataclasses

import cv2
import numpy as np
import pytest
import skimage.data

from uniser_jax.effects import edit, fields, occlusion
from uniser_jax.effects.edit import EditSampling, Recipe, Rendering
from uniser_jax.effects.gallery import square
from uniser_jax.effects.layer import Scene
from uniser_jax.effects.occlusion import FORMS, MATERIALS, TEXTURES, Occlusion, OcclusionSampling, frost

PHOTO, OTHER = square(skimage.data.astronaut(), 96), square(skimage.data.coffee(), 96)
SCENE = edit.scene_from_photo(PHOTO, OTHER, 2.0)
SEEDS = range(6)


def drawn(seed: int, **changes) -> Occlusion:
    return dataclasses.replace(Occlusion.sample(np.random.default_rng(seed), SCENE), **changes)


def somewhere(seed: int) -> np.ndarray:
    strength = np.random.default_rng(seed).random(PHOTO.shape[:2], np.float32)
    strength[:20] = 0
    return strength


@pytest.mark.parametrize("material", MATERIALS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_layer_equals_a_float64_reference(material: str, seed: int) -> None:
    """Equation (1) at strengths that differ from pixel to pixel; strength 0 is the identity, bit for bit."""
    layer = drawn(seed, material=material).render(SCENE)
    strength = somewhere(seed)
    x = SCENE.radiance.astype(np.float64)
    spread = frost(SCENE.radiance, layer.sigma).astype(np.float64)
    a = (strength * layer.coverage).astype(np.float64)[..., None]
    expected = (1 - a) * x + a * (layer.filtered * spread + layer.added)
    got = layer(SCENE.radiance, strength)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got[:20], SCENE.radiance[:20])
    np.testing.assert_array_equal(layer(SCENE.radiance, 0.0), SCENE.radiance)
    np.testing.assert_allclose(layer.at(strength)(SCENE.radiance), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("material", MATERIALS)
@pytest.mark.parametrize("seed", SEEDS)
def test_change_grows_with_strength_along_a_line(material: str, seed: int) -> None:
    layer = drawn(seed, material=material).render(SCENE)
    quarter, full = (layer(SCENE.radiance, s) - SCENE.radiance for s in (0.25, 1.0))
    np.testing.assert_allclose(quarter, full / 4, rtol=1e-3, atol=1e-6)
    assert layer.coverage.min() >= 0
    assert layer.coverage.max() <= 1 + 1e-6
    assert layer.filtered.min() >= 0
    assert layer.filtered.max() <= 1
    assert np.min(layer.added) >= 0


def test_materials_span_the_affine_maps() -> None:
    maps = {}
    for material in MATERIALS:
        layer = drawn(1, material=material, texture="constant").render(SCENE)
        maps[material] = (layer.filtered.max() > 0, layer.added.max() > 0, layer.sigma > 0)
    assert maps == {
        "opaque": (False, True, False),
        "semi-transparent": (False, True, False),
        "tint": (True, False, False),
        "veil": (True, True, False),
        "film": (True, True, False),
        "frosted": (True, False, True),
    }
    film = drawn(1, material="film", texture="constant")
    assert film.filter != film.first
    covered = drawn(2, material="opaque", alpha=1.0, form="box", texture="constant").render(SCENE)
    inside = covered.coverage == 1
    assert inside.any()
    np.testing.assert_allclose(covered(SCENE.radiance, 1.0)[inside].std(0), 0, atol=1e-5)  # nothing shows through


@pytest.mark.parametrize("sigma", [0.7, 2.0, 6.0, 14.0])
@pytest.mark.parametrize("shape", [(96, 96), (90, 131)])
def test_frost_is_a_gaussian_that_loses_no_light(sigma: float, shape: tuple[int, int]) -> None:
    flat = np.full((*shape, 3), 0.37, np.float32)
    np.testing.assert_allclose(frost(flat, sigma), flat, rtol=1e-5)
    lamp = np.zeros((*shape, 3), np.float32)
    lamp[shape[0] // 2 - 1 : shape[0] // 2 + 1, shape[1] // 2 - 1 : shape[1] // 2 + 1] = 10
    spread = frost(lamp, sigma)
    assert spread.min() >= 0
    assert spread.sum() == pytest.approx(lamp.sum(), rel=0.05)
    across = spread.sum((0, 2)) / spread.sum()
    x = np.arange(shape[1])
    deviation = np.sqrt(across @ (x - across @ x) ** 2 - 0.25)  # less that of the lamp
    assert deviation == pytest.approx(sigma, rel=0.12)


@pytest.mark.parametrize(("sigma", "factor"), [(0.5, 1), (3.0, 3), (20.0, 8)])
def test_what_is_left_of_a_blur_suits_the_reduction(sigma: float, factor: int) -> None:
    assert fields.reduction(sigma, (200, 200), 8) == factor
    assert fields.reduction(sigma, (200, 40), 8) == 1
    step = np.zeros((192, 192), np.float32)
    step[:, 96:] = 1
    seen = fields.blur_reduced(fields.shrink(step, (192 // factor,) * 2), sigma, factor)
    expected = cv2.GaussianBlur(step, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(cv2.resize(seen, (192, 192)), expected, atol=0.05)


def test_frost_blurs_only_behind_the_patch() -> None:
    layer = drawn(0, material="frosted", alpha=1.0, form="ellipse", count=1, area=0.2, softness=0.0).render(SCENE)
    seen = layer(SCENE.radiance, 1.0)
    outside, inside = layer.coverage == 0, cv2.erode(layer.coverage, np.ones((9, 9))) == 1
    np.testing.assert_array_equal(seen[outside], SCENE.radiance[outside])
    detail = [np.abs(cv2.Laplacian(x, cv2.CV_32F))[inside].mean() for x in (seen, SCENE.radiance)]
    assert detail[0] < 0.5 * detail[1]
    mixed = layer(SCENE.radiance * 0.5, 1.0)  # it blurs what is behind now, not what it was rendered on
    np.testing.assert_allclose(mixed, seen * 0.5, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("area", [0.03, 0.3])
def test_forms_cover_the_area_asked_for(form: str, area: float) -> None:
    patches = [drawn(seed, alpha=1.0, form=form, area=area, count=1 + seed % 3) for seed in range(12)]
    covered = [p._coverage(np.random.default_rng(p.seed), (320, 320)).mean() for p in patches]
    least = 0.35 if form == "glyphs" else 0.5  # much text does not fit the frame
    assert least * area < np.mean(covered) < 1.3 * area
    if form == "blob":
        np.testing.assert_allclose(covered, area, atol=0.04)


def test_polygons_have_corners_at_uneven_angles(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(occlusion, "_fill", lambda canvas, outline: drawn.append(outline))
    monkeypatch.setattr(occlusion, "_place", lambda rng, canvas: 0)
    for seed in range(20):
        occlusion._polygon(np.random.default_rng(seed), None, 1.0)
    for outline in drawn:
        angle = np.sort(np.arctan2(*outline.T))
        steps = np.diff([*angle, angle[0] + 2 * np.pi]) * len(angle) / (2 * np.pi)
        assert steps.min() > 0.25
        assert steps.std() > 0.05


@pytest.mark.parametrize("softness", [0.0, 0.04])
@pytest.mark.parametrize("form", FORMS)
def test_edges_are_as_soft_as_asked_at_any_size(form: str, softness: float) -> None:
    occlusion = drawn(3, material="opaque", alpha=1.0, form=form, area=0.2, count=2, softness=softness)
    small, large = (occlusion._coverage(np.random.default_rng(0), (n, n)) for n in (160, 640))
    partial = [float(np.mean((a > 0.1) & (a < 0.9))) for a in (small, large)]
    if softness:
        assert partial[1] == pytest.approx(partial[0], rel=0.25)
    else:
        assert max(partial) < 0.1
    assert np.abs(cv2.resize(large, (160, 160), interpolation=cv2.INTER_AREA) - small).mean() < 0.03


@pytest.mark.parametrize("texture", TEXTURES)
def test_textures_are_what_they_say(texture: str) -> None:
    layer = drawn(4, material="semi-transparent", texture=texture).render(SCENE)
    if texture == "constant":
        assert layer.added.shape == (3,)
        return
    assert layer.added.shape == PHOTO.shape
    assert layer.added.std((0, 1)).max() > 0.01
    detail = np.abs(cv2.Laplacian(layer.added, cv2.CV_32F)).mean() / layer.added.std()
    assert (detail < 0.02) == (texture == "gradient")
    alone = drawn(4, material="opaque", texture="photo").render(SCENE._replace(other=None))
    assert alone.added.std() > 0  # without a second photograph there is still something


@pytest.mark.parametrize("shape", [(16, 16), (17, 40), (130, 61)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("material", MATERIALS)
def test_any_shape_renders(shape: tuple[int, int], form: str, material: str) -> None:
    rng = np.random.default_rng(0)
    scene = Scene(rng.random((*shape, 3), np.float32), rng.random((50, 70, 3), np.float32))
    for texture in TEXTURES:
        layer = drawn(1, form=form, material=material, texture=texture).render(scene)
        assert layer(scene.radiance, 0.5).shape == (*shape, 3)


def test_every_kind_is_drawn_and_seen() -> None:
    many = [Occlusion.sample(np.random.default_rng(seed), SCENE) for seed in range(150)]
    assert {p.material for p in many} == set(MATERIALS)
    assert {p.form for p in many} == set(FORMS)
    assert {p.texture for p in many} == set(TEXTURES)
    assert {p.count for p in many} == set(range(1, 7))
    changes = [np.abs(np.sqrt(p.render(SCENE)(SCENE.radiance, 1.0)) - np.sqrt(SCENE.radiance)).max() for p in many]
    assert np.mean(np.array(changes) > 0.05) > 0.97


def test_patches_lie_where_they_are_seen() -> None:
    """Frost on a plain sky shows nothing: it is drawn again, elsewhere, and what shows most is kept; kinds stay as likely."""
    photo = PHOTO.copy()
    photo[:64] = (150, 180, 220)
    scene, frosted = edit.scene_from_photo(photo), OcclusionSampling(materials=(0, 0, 0, 0, 0, 1))
    root = np.sqrt(scene.radiance)
    changes, forms = [], []
    for seed in range(100):
        drawn = Occlusion.sample(np.random.default_rng(seed), scene, frosted)
        changes.append(np.abs(np.sqrt(drawn.render(scene)(scene.radiance, 1.0)) - root).max(-1))
        forms.append(drawn.form)
    seen = np.mean([(change > 0.05).mean() > 0.005 for change in changes])
    assert seen > 0.95  # of single draws 0.73
    assert 10 < forms.count("box") + forms.count("glyphs") < 40  # of 25 that are asked for


@pytest.mark.parametrize("seed", SEEDS)
def test_a_logged_recipe_renders_again_bit_for_bit(seed: int) -> None:
    recipe = edit.sample(np.random.default_rng(seed), SCENE, EditSampling(), effects=("occlusion",))
    again = Recipe.from_json(recipe.to_json())
    for one, two in zip(Rendering(SCENE, recipe).edit(), Rendering(SCENE, again).edit(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"materials": (1.0,)}, "opaque, semi-transparent"),
        ({"forms": (0.0,) * 6}, "one above"),
        ({"area": (0.4, 0.1)}, "occlusion.area"),
        ({"most": 0}, "most = 0"),
        ({"softness": float("inf")}, "softness = inf"),
    ],
)
def test_mistakes_are_one_line(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        OcclusionSampling(**changes)
    assert "\n" not in str(caught.value)
