"""What glass promises: Fresnel, two mirrors, light that is not made, and reflections that can be seen."""

import dataclasses

import cv2
import numpy as np
import pytest
import skimage.data

from uniser_jax.effects import edit, light, reflection
from uniser_jax.effects.edit import EditSampling, Recipe, Rendering
from uniser_jax.effects.gallery import square
from uniser_jax.effects.layer import Scene
from uniser_jax.effects.pane import fresnel, normal, parallax, several
from uniser_jax.effects.reflection import OCCLUDERS, Reflection, ReflectionSampling

PHOTO, OTHER = square(skimage.data.astronaut(), 96), square(skimage.data.coffee(), 96)
SCENE = edit.scene_from_photo(PHOTO, OTHER, 2.0)
SEEDS = range(8)


def drawn(seed: int, scene: Scene = SCENE, **changes) -> Reflection:
    return dataclasses.replace(Reflection.sample(np.random.default_rng(seed), scene), **changes)


def plain(**changes) -> Reflection:
    """A clear pane, straight on, that mirrors the second photograph as it is."""
    straight = {"yaw": 0.0, "pitch": 0.0, "ghost": 0.0, "defocus": 0.0, "contrast": 0.0, "kelvin": 6_500.0}
    whole = {"zoom": 1.0, "centre": (0.0, 0.0), "turn": (0.0, 0.0, 0.0), "mirrored": False}
    bare = {"panes": 1, "glass": (1.0, 1.0, 1.0), "lamps": 0, "occluder": "none", "direction": 0.0}
    return dataclasses.replace(drawn(0), **(straight | whole | bare | {"energy": 0.3} | changes))


def test_fresnel_agrees_with_the_textbook() -> None:
    """Window glass, n = 1.52: 4.3 % straight on, both faces 8.2, 9.8 and 15.7 % at 0, 45 and 60 degrees."""
    cosine = np.cos(np.radians(np.array([0.0, 45, 60, 70])))
    faces, inner = fresnel(cosine)
    np.testing.assert_allclose(faces.mean(0), [0.0426, 0.0528, 0.0925, 0.1750], atol=1.5e-3)
    np.testing.assert_allclose(several(faces, 2).mean(0), [0.082, 0.098, 0.157, 0.275], atol=1.5e-3)
    np.testing.assert_allclose(several(faces, 4).mean(0), [0.151, 0.168, 0.240, 0.394], atol=1.5e-3)
    np.testing.assert_allclose(np.sqrt(1 - inner**2) * 1.52, np.sqrt(1 - cosine**2), atol=1e-12)  # Snell
    np.testing.assert_allclose(fresnel(np.cos(np.arctan(1.52)))[0][1], 0, atol=1e-12)  # Brewster


@pytest.mark.parametrize("panes", [1, 2])
@pytest.mark.parametrize("seed", SEEDS)
def test_glass_makes_no_light(seed: int, panes: int) -> None:
    near, far, transmission = drawn(seed, panes=panes).glazing((33, 20))
    assert min(near.min(), far.min(), transmission.min()) > 0
    assert (near + far + transmission <= 1 + 1e-6).all()
    clear = drawn(seed, panes=panes, glass=(1.0, 1.0, 1.0)).glazing((33, 20))
    lost = 1 - sum(clear)  # to light that bounces between the mirrors again
    assert (lost >= -1e-6).all()
    assert (lost <= 0.12 * clear[0]).all()


def test_reflections_grow_with_the_angle_and_the_second_image_fades() -> None:
    near, far, transmission = plain(yaw=0.9).glazing((40, 40))
    assert near[20, 0, 0] != pytest.approx(near[20, -1, 0], rel=0.3)  # over the frame
    order = np.argsort(near[..., 0], None)
    assert (np.diff((far[..., 0] / near[..., 0]).ravel()[order]) <= 1e-6).all()
    assert (np.diff(transmission[..., 0].ravel()[order]) <= 1e-6).all()
    green = plain(glass=(0.9, 0.99, 0.92)).glazing((8, 8))
    assert (green[1][..., 1] > green[1][..., 0]).all()
    np.testing.assert_allclose(green[0], plain().glazing((8, 8))[0])  # what the first face reflects saw no glass


@pytest.mark.parametrize("panes", [1, 2])
def test_light_loses_its_share_in_every_pane(panes: int) -> None:
    """Straight on (Beer, Lambert): once in each pane to the eye, twice in the nearer to the farther image and back."""
    dim, clear = (plain(panes=panes, glass=(a, a, a)).glazing((9, 9)) for a in (0.8, 1.0))
    near, far, through = (float((one / other)[4, 4, 0]) for one, other in zip(dim, clear, strict=True))
    np.testing.assert_allclose([near, far, through], [1, 0.8**2, 0.8**panes], rtol=1e-5)


@pytest.mark.parametrize("index", [1.52, 1.0])
def test_two_images_are_apart_as_rays_through_a_plate_are(index: float) -> None:
    """Traced: down to the second face, up again, and across to the ray that the first one reflected."""
    incident = np.radians(np.linspace(0.5, 89, 1_000))
    along = 2 * np.tan(np.arcsin(np.sin(incident) / index))  # the first face, of a plate of thickness 1
    apart = along * np.cos(incident)
    found = np.array([parallax(cosine, index) for cosine in np.cos(incident)])
    straight = parallax(1.0, index)
    np.testing.assert_allclose((found - straight) / (1 - straight), apart / apart.max(), atol=1e-3)
    assert 0 < straight < 0.2  # a wedge


def test_the_second_image_of_a_pane_seen_straight_on_hardly_parts_from_the_first() -> None:
    rng, sampling = np.random.default_rng(0), ReflectionSampling(ghost=1.0, double=0.3)
    many = [Reflection.sample(rng, SCENE, sampling) for _ in range(800)]
    for panes, least, most in ((1, 0.0008, 0.006), (2, 0.003, 0.012)):
        some = [r for r in many if r.panes == panes]
        ghost, incident = np.array([(r.ghost, np.arccos(normal(r.yaw, r.pitch)[2])) for r in some]).T
        assert np.median(ghost[incident < 0.25]) < 0.5 * np.median(ghost[incident > 0.7])
        assert 0.15 * least <= ghost.min()
        assert ghost.max() <= most


@pytest.mark.parametrize("shape", [(80, 160), (160, 80), (90, 130)])
def test_angles_over_the_frame_are_those_of_its_aspect(shape: tuple[int, int]) -> None:
    """One camera: a frame cut from the middle of a square one sees the same angles there."""
    reflection, side = plain(yaw=0.7, pitch=0.3), max(shape)
    top, left = ((side - n) // 2 for n in shape)
    for whole, cut in zip(reflection.glazing((side, side)), reflection.glazing(shape), strict=True):
        np.testing.assert_allclose(cut, whole[top : top + shape[0], left : left + shape[1]], rtol=1e-4)
    photo = np.full((*shape, 3), 90, np.uint8)
    layer = reflection.render(edit.scene_from_photo(photo, photo))
    inner = np.s_[4:-4, 4:-4]  # the layer is linear between the centres of its cells
    np.testing.assert_allclose(layer.transmission[inner], reflection.glazing(shape)[2][inner], rtol=2e-3)


@pytest.mark.parametrize(("panes", "ghost"), [(1, 0.0), (1, 0.013), (2, 0.031)])
def test_the_layer_equals_a_float64_reference(panes: int, ghost: float) -> None:
    """Equations (1) to (5), with the gain taken from the layer: it is one number."""
    reflection = plain(panes=panes, ghost=ghost, yaw=0.5, direction=0.0, glass=(0.95, 0.99, 0.96))
    layer = reflection.render(SCENE)
    h, w = PHOTO.shape[:2]
    half = np.tan(reflection.field_of_view / 2)
    y, x = (np.mgrid[0:h, 0:w] + 0.5) * 2 / h - 1
    cosine = np.abs(x * half * np.sin(0.5) + np.cos(0.5)) / np.sqrt((x * x + y * y) * half**2 + 1)
    incident = np.arccos(cosine)
    refracted = np.arcsin(np.sin(incident) / 1.52)
    r1 = np.stack(
        [(wave(incident - refracted) / wave(incident + refracted)) ** 2 for wave in (np.sin, np.tan)]
    )  # of s and p
    passage = np.array([0.95, 0.99, 0.96]) ** (1 / np.cos(refracted)[..., None])
    one, all_faces = (m * r1 / (1 + (m - 1) * r1) for m in (panes, 2 * panes))
    f, b, through = (field.mean(0)[..., None] for field in (one, one * (1 - one) ** 2, 1 - all_faces))
    columns = np.arange(w) - ghost * 96
    shifted = np.stack([[np.interp(columns, np.arange(w), row[:, c]) for row in SCENE.other] for c in range(3)], -1)
    expected = f * SCENE.other + b * passage**2 * shifted
    inner = np.s_[8:-8, 8:-8]
    gain = layer.emission[inner].sum() / expected[inner].sum()
    expected = np.minimum(gain * expected, 4)
    np.testing.assert_allclose(layer.transmission[inner], (through * passage**panes)[inner], rtol=1e-3)
    np.testing.assert_allclose(layer.emission[inner], expected[inner], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(24))
def test_every_reflection_is_seen_and_none_hides_the_scene(seed: int) -> None:
    layer = drawn(seed).render(SCENE)
    grid = [cv2.resize(x, (64, 64), interpolation=cv2.INTER_AREA) for x in (SCENE.radiance, layer.emission)]
    behind = light.luminance(grid[0]) * light.luminance(cv2.resize(layer.transmission, (64, 64)))
    reflected = light.luminance(grid[1])
    change = np.sqrt(np.clip(behind + reflected, 0, None)) - np.sqrt(behind)
    assert np.quantile(change, 0.95) > 0.05
    assert np.median(change) < 0.3
    ratio = np.minimum(reflected, np.quantile(reflected, 0.95)).mean() / behind.mean()
    assert ratio < 1.2


@pytest.mark.parametrize("seed", range(12))
def test_a_reflection_is_seen_in_the_dark_too(seed: int) -> None:
    """A room behind a window at night: what it reflects may be brighter than what lies behind."""
    dark = SCENE._replace(radiance=SCENE.radiance * np.float32(0.01))
    layer = drawn(seed).render(dark)
    behind, seen = (
        cv2.resize(x, (64, 64), interpolation=cv2.INTER_AREA) for x in (dark.radiance, layer(dark.radiance, 1.0))
    )
    change = np.sqrt(np.clip(light.luminance(seen), 0, 1)) - np.sqrt(light.luminance(behind))
    assert np.quantile(change, 0.95) > 0.06


def test_energy_is_what_was_asked_where_that_can_be_seen() -> None:
    for energy in (0.2, 0.4):
        layer = plain(energy=energy).render(SCENE)
        ratio = light.luminance(layer.emission).mean() / light.luminance(layer.transmission * SCENE.radiance).mean()
        assert ratio == pytest.approx(energy, rel=0.1)


def test_a_faint_reflection_is_lifted_until_it_is_seen() -> None:
    faint, fainter = (plain(energy=energy).render(SCENE).emission for energy in (1e-4, 1e-6))
    np.testing.assert_array_equal(faint, fainter)
    assert faint.max() > 0.02


@pytest.mark.parametrize("seed", SEEDS)
def test_strength_is_linear_and_the_target_is_the_scene_without_the_pane(seed: int) -> None:
    rendering = Rendering(SCENE, recipe(seed))
    (layer,) = rendering.layers
    half, full = layer(SCENE.radiance, 0.5), layer(SCENE.radiance, 1.0)
    np.testing.assert_allclose(half, (SCENE.radiance + full) / 2, rtol=1e-5, atol=1e-6)
    _, target = rendering.pair("remove reflection", np.full(PHOTO.shape[:2], 255, np.uint8))
    np.testing.assert_array_equal(target, PHOTO)


def test_night_shows_few_bright_lamps_in_a_dark_room() -> None:
    sparse = plain(lamps=4, lamp_light=60.0, occluder="none").render(SCENE).emission
    day = plain().render(SCENE).emission
    assert sparse.max() > 2
    assert 0.0005 < np.mean(sparse.max(-1) > 1) < 0.2
    spread = [light.luminance(x).std() / light.luminance(x).mean() for x in (sparse, day)]
    assert spread[0] > 1.5 * spread[1]


def test_rooms_are_dark_where_it_is_night_outside() -> None:
    evening = SCENE._replace(radiance=SCENE.radiance * np.float32(0.05))
    shares = []
    for scene in (SCENE, evening):
        many = [drawn(seed, scene) for seed in range(300)]
        shares.append(np.mean([r.lamps > 0 for r in many]))
        assert all(0.05 <= r.dim <= 0.3 if r.lamps else r.dim == 1 for r in many)
    np.testing.assert_allclose(shares, [0.1, 0.5], atol=0.06)
    always = ReflectionSampling(night=1.0)
    assert all(Reflection.sample(np.random.default_rng(seed), SCENE, always).lamps for seed in range(20))


def test_lamps_shine_as_they_do_and_the_room_around_them_is_dim() -> None:
    room, dark = (plain(lamps=4, lamp_light=8.0, energy=0.6, dim=dim).render(SCENE).emission for dim in (1.0, 0.3))
    lamps = light.luminance(dark) > 0.5 * light.luminance(dark).max()
    assert np.median(light.luminance(dark)) == pytest.approx(0.3 * np.median(light.luminance(room)), rel=0.1)
    added = plain(lamps=4, lamp_light=16.0, energy=0.6, dim=0.3).render(SCENE).emission - dark
    np.testing.assert_allclose(added[lamps], (room - dark / 0.3)[lamps] / (1 - 1 / 0.3), rtol=0.02)


def test_recipes_from_before_dark_rooms_still_load() -> None:
    values = dataclasses.asdict(plain())
    del values["dim"]
    assert Reflection(**values) == plain()


@pytest.mark.parametrize("occluder", OCCLUDERS[1:])
def test_an_occluder_blocks_a_part(occluder: str) -> None:
    shares = []
    for seed in SEEDS:
        clear, blocked = (
            plain(occluder=name, cover=1.0, cloth=0.0, seed=seed)._reflected(SCENE)[0] for name in ("none", occluder)
        )
        assert (blocked <= clear + 1e-6).all()
        shares.append(float(np.mean(blocked < 0.5 * clear)))
    assert 0.03 < np.mean(shares) < 0.75
    assert len(set(shares)) == len(shares)


def test_the_mirror_flips_and_the_camera_turns() -> None:
    seen, flipped = (plain(mirrored=mirrored)._reflected(SCENE)[0] for mirrored in (False, True))
    np.testing.assert_allclose(flipped[:, ::-1], seen, atol=1e-3)
    near = plain(zoom=1.5)._reflected(SCENE)[0]
    middle = cv2.resize(seen[16:-16, 16:-16], (98, 98))
    assert np.abs(near - middle).mean() < 0.5 * np.abs(near - seen).mean()
    view = plain(turn=(0.2, 0.1, 0.0), zoom=1.3)._view((96, 96), (96, 96), 2.0)
    centre = view @ (49.5, 49.5, 1)
    np.testing.assert_allclose(centre[:2] / centre[2], 47.5)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_pane_shows_nothing_from_beyond_the_photograph(mirrored: bool) -> None:
    reflection = plain(turn=(-0.28, 0.2, 0.1), zoom=1.01, centre=(0.9, -0.8), mirrored=mirrored)
    corners = np.array([(x, y, 1) for x in (-0.5, 119.5) for y in (-0.5, 89.5)])
    seen = corners @ reflection._view((100, 140), (90.0, 120.0), 0.0).T
    x, y = (seen[:, :2] / seen[:, 2:]).T
    assert min(x.min(), y.min()) >= -0.5 - 1e-9
    assert x.max() <= 139.5 + 1e-9
    assert y.max() <= 99.5 + 1e-9


@pytest.mark.parametrize("kelvin", [4_000.0, 9_000.0])
def test_lamps_have_their_own_colour_whatever_the_room_has(kelvin: float) -> None:
    hung = {"lamps": 6, "lamp_kelvin": 2_700.0, "kelvin": kelvin}
    one, other = (plain(lamp_light=brightness, **hung).render(SCENE).emission for brightness in (4.0, 8.0))
    added = (other - one)[light.luminance(other - one) > 0.1].sum(0)
    np.testing.assert_allclose(added / added[1], light.black_body(2_700.0), rtol=0.05)


@pytest.mark.parametrize(
    "changes", [{}, {"defocus": 0.012}, {"lamps": 5, "lamp_light": 10.0}, {"occluder": "person"}, {"ghost": 0.01}]
)
def test_the_same_look_at_any_size(changes) -> None:
    photos = [square(skimage.data.astronaut(), 384), square(skimage.data.coffee(), 384)]
    large = edit.scene_from_photo(*photos)
    small = Scene(*(cv2.resize(x, (96, 96), interpolation=cv2.INTER_AREA) for x in (large.radiance, large.other)))
    reflection = plain(yaw=0.4, zoom=1.2, contrast=0.5, **changes)
    one, other = (reflection.render(scene).emission for scene in (small, large))
    reduced = cv2.resize(other, (96, 96), interpolation=cv2.INTER_AREA)
    assert np.mean(np.abs(one - reduced) < 0.05) > 0.97  # lamps are few, and near a pixel at the smaller size
    assert np.median(np.abs(one - reduced)) < 0.05 * reduced.mean()


@pytest.mark.parametrize("shape", [(16, 16), (17, 40), (130, 61)])
@pytest.mark.parametrize("seed", SEEDS)
def test_any_shape_renders(shape: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = Scene(rng.random((*shape, 3), np.float32), rng.random((50, 70, 3), np.float32))
    for candidate in (scene, scene._replace(other=None)):
        layer = drawn(seed, candidate).render(candidate)
        assert layer(candidate.radiance, 0.5).shape == (*shape, 3)
        assert np.isfinite(layer.emission).all()
        assert layer.emission.min() >= 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_logged_recipe_renders_again_bit_for_bit(seed: int) -> None:
    first = recipe(seed)
    again = Recipe.from_json(first.to_json())
    for one, two in zip(Rendering(SCENE, first).edit(), Rendering(SCENE, again).edit(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_shares_are_those_asked_for() -> None:
    rng = np.random.default_rng(0)
    sampling = ReflectionSampling(sharp=0.25, night=0.5, double=0.1, occluded=0.0)
    many = [Reflection.sample(rng, SCENE, sampling) for _ in range(600)]
    assert np.mean([r.defocus == 0 for r in many]) == pytest.approx(0.25, abs=0.06)
    assert np.mean([r.lamps > 0 for r in many]) == pytest.approx(0.25, abs=0.07)  # by day half of those asked for
    assert np.mean([r.panes == 2 for r in many]) == pytest.approx(0.1, abs=0.05)
    assert {r.occluder for r in many} == {"none"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sharp": 1.5}, "reflection.sharp = 1.5"),
        ({"energy": (0.5, 0.1)}, "reflection.energy"),
        ({"defocus": (0.0, 1.0)}, "0 <"),
    ],
)
def test_mistakes_are_one_line(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ReflectionSampling(**changes)
    assert "\n" not in str(caught.value)


def recipe(seed: int) -> Recipe:
    sampling = EditSampling(noise=0.0, tone=0.0, jpeg=0.0)
    return edit.sample(np.random.default_rng(seed), SCENE, sampling, effects=("reflection",))


def test_lamps_of_a_room_are_alike_and_glow() -> None:
    plane = np.zeros((256, 256), np.uint8)
    reflection._light_room(np.random.default_rng(1), plane, 256.0, 3)
    core = (plane > 0.7 * plane.max()).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(core)
    assert 2 <= count <= 4  # the ground, and those that fit
    areas = stats[1:, cv2.CC_STAT_AREA]
    assert areas.max() < 3 * areas.min()
    assert ((plane > 0) & (core == 0)).sum() > core.sum()
