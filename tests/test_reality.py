"""Estimators give back what was put in, and the two sides of the table are told apart."""

import json
import pathlib

import cv2
import numpy as np
import pytest

from benchmarks import reality
from uniser_jax.data import photos
from uniser_jax.effects import edit, fields, gallery, light
from uniser_jax.evaluation import estimators
from uniser_jax.evaluation.estimators import ESTIMATORS, Pair

SIZE = 240
ASTRONAUT, COFFEE, GRAVEL, MOTORCYCLE = 0, 5, 8, 9


def scene(index: int, gain: float = 0.7) -> np.ndarray:
    return np.float32(gain) * light.decode(gallery.square(photos.samples()[index], SIZE))


def filed(seen: np.ndarray, clean: np.ndarray) -> Pair:
    """As two files hold them."""
    return Pair(*(light.decode(light.encode(image.astype(np.float32))) for image in (seen, clean)))


def from_centre() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    return x / SIZE, y / SIZE


@pytest.mark.parametrize("effect", ESTIMATORS)
@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_flat_frames_are_no_error(effect: str, level: float) -> None:
    flat = np.full((40, 60, 3), level, np.float32)
    assert all(isinstance(value, float) for value in ESTIMATORS[effect](Pair(flat, flat)).values())


def test_equal_photographs_have_no_effect() -> None:
    pair = filed(scene(COFFEE), scene(COFFEE))
    flare, haze = estimators.flare(pair), estimators.haze(pair)
    assert flare["mean added light, % of white"] == 0 == flare["share changed by > 12/255"]
    assert haze["local contrast left"] == haze["saturation left"] == 1
    assert haze["tau, median"] == 0 == haze["rise of the dark channel, of 255"]
    assert all(np.isnan(value) for value in estimators.shadow(pair).values())
    reflection = estimators.reflection(pair)
    assert reflection["t, transmission and exposure"] == 1
    assert reflection["energy, mean R / mean t clean"] == 0


@pytest.mark.parametrize("sigma", [0.004, 0.01, 0.025])
@pytest.mark.parametrize("form", ["edge", "disc"])
def test_shadow_is_measured_back(sigma: float, form: str) -> None:
    x, y = from_centre()
    hard = (x + 0.3 * y > 0.1) if form == "edge" else np.hypot(x, y) < 0.25
    m = cv2.GaussianBlur(hard.astype(np.float32), (0, 0), sigma * SIZE, borderType=cv2.BORDER_REPLICATE)
    k = np.array([0.18, 0.2, 0.27])
    clean, noise = scene(GRAVEL), np.random.default_rng(0).normal(0, 0.003, (2, SIZE, SIZE, 3))
    row = estimators.shadow(filed(0.8 * (1 - m[..., None] * (1 - k)) * clean + noise[0], clean + noise[1]))
    assert row["k_g, light left in the umbra"] == pytest.approx(0.2, abs=0.02)
    assert row["k_r / k_g"] == pytest.approx(0.9, abs=0.04)
    assert row["k_b / k_r"] == pytest.approx(1.5, abs=0.08)
    assert row["covered share"] == pytest.approx(hard.mean(), abs=0.02)
    assert row["penumbra 10-90 %, % of the side"] == pytest.approx(256 * sigma, rel=0.15, abs=0.25)


def test_a_wider_penumbra_measures_wider() -> None:
    x, _ = from_centre()
    clean = scene(GRAVEL)
    widths = []
    for sigma in (0.005, 0.01, 0.02, 0.03):
        m = cv2.GaussianBlur((x > 0).astype(np.float32), (0, 0), sigma * SIZE)[..., None]
        widths.append(estimators.shadow(filed((1 - 0.7 * m) * clean, clean))["penumbra 10-90 %, % of the side"])
    assert widths == sorted(widths)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_glow_is_measured_back_whatever_the_exposure(exponent: float) -> None:
    x, y = from_centre()
    r = np.maximum(np.hypot(x + 0.2, y - 0.1), 0.01)
    glow = 0.1 * (r / 0.05) ** -exponent
    clean = scene(MOTORCYCLE, 0.5)
    row = estimators.flare(filed(0.9 * (clean + glow[..., None] * [0.8, 1, 1.2]), clean))
    assert row["radial exponent n of r^-n"] == pytest.approx(exponent, rel=0.3)
    assert row["veil at r = 5 % of the side, % of white"] == pytest.approx(10, rel=0.15)
    assert row["colour, red / green"] == pytest.approx(0.8, abs=0.06)
    assert row["colour, blue / green"] == pytest.approx(1.2, abs=0.06)
    assert row["rays, 95 % quantile / median on rings"] < 2


def test_exposure_drift_is_found_under_a_flare() -> None:
    x, y = from_centre()
    clean = scene(ASTRONAUT)
    flare = (0.003 / (np.hypot(x, y) + 0.02))[..., None]
    drift = estimators.exposure_drift(filed((clean + flare) * [0.85, 0.9, 0.95], clean))
    np.testing.assert_allclose(drift, [0.85, 0.9, 0.95], rtol=0.06)


def test_rays_stand_out_at_their_width() -> None:
    x, y = from_centre()
    width = 0.02  # at half height
    lines = sum(np.exp(-4 * np.log(2) * (across / width) ** 2) for across in (x, y))
    row = estimators.flare(filed(scene(MOTORCYCLE, 0.3) + 0.3 * lines[..., None], scene(MOTORCYCLE, 0.3)))
    assert row["rays, 95 % quantile / median on rings"] > 10
    assert row["rays, width at half height, % of the side"] == pytest.approx(100 * width, rel=0.15)


@pytest.mark.parametrize("energy", [0.1, 0.4])
def test_reflection_is_measured_back(energy: float) -> None:
    clean = scene(COFFEE, 0.5)
    x, _ = from_centre()
    layer = np.where(x[..., None] > 0.1, scene(ASTRONAUT, 0.5), 0)
    layer *= energy * 0.85 * light.luminance(clean).mean() / light.luminance(layer.astype(np.float32)).mean()
    row = estimators.reflection(filed(0.85 * clean + layer, clean))
    assert row["t, transmission and exposure"] == pytest.approx(0.85, rel=0.02)
    assert row["energy, mean R / mean t clean"] == pytest.approx(energy, rel=0.1)
    assert row["share of the frame with half of R"] < 0.2


def test_a_defocused_reflection_measures_less_sharp() -> None:
    clean, other = scene(COFFEE, 0.6), scene(MOTORCYCLE, 0.3)
    values = [
        estimators.reflection(filed(0.9 * clean + fields.blur(other, sigma), clean))["sharpness of R / of the scene"]
        for sigma in (0, 2, 6)
    ]
    assert values[0] > 1.5 * values[1] > 2 * values[2]


def test_half_of_a_flat_layer_lies_in_half_of_the_frame() -> None:
    assert estimators.concentration(np.ones((20, 20), np.float32)) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.0])
def test_haze_is_measured_back(tau: float) -> None:
    airlight, transmission = np.array([0.6, 0.65, 0.7]), np.exp(-tau)
    row = estimators.haze(filed(transmission * scene(MOTORCYCLE) + airlight * (1 - transmission), scene(MOTORCYCLE)))
    assert row["tau, median"] == pytest.approx(tau, abs=0.03)
    assert row["tau, 90 % - 10 %"] < 0.1
    assert row["local contrast left"] < 1
    assert row["saturation left"] < 1
    assert row["rise of the dark channel, of 255"] > 0


def test_dense_haze_shows_its_airlight() -> None:
    airlight = np.array([0.5, 0.6, 0.72])
    row = estimators.haze(filed(0.02 * scene(COFFEE) + airlight * 0.98, scene(COFFEE)))
    assert row["airlight, luminance"] == pytest.approx(airlight @ light.LUMINANCE, rel=0.03)
    assert row["airlight, red / green"] == pytest.approx(5 / 6, rel=0.02)
    assert row["airlight, blue / green"] == pytest.approx(1.2, rel=0.02)


def test_distance_is_that_of_the_distributions() -> None:
    values = np.arange(10.0)
    assert reality.distance(values, values[::-1]) == 0
    assert reality.distance(values, values + 20) == 1
    assert reality.distance(values, np.append(values + 5, np.nan)) == pytest.approx(0.5)
    assert reality.distance(values, np.array([np.nan])) is None


def write(path: pathlib.Path, image: np.ndarray) -> str:
    gallery.write_png(path, image)
    return path.name


@pytest.fixture
def manifest(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two pairs per effect, made by formula."""
    rows = ["effect,set,id,kind,input,gt"]
    for effect in ESTIMATORS:
        for index in (ASTRONAUT, COFFEE):
            clean = gallery.square(photos.samples()[index], 96)
            seen = clean // 2 + (0 if effect == "shadow" else 60)
            seen = np.where(np.arange(96)[None, :, None] < 48, clean, seen) if effect == "shadow" else seen
            files = [
                write(tmp_path / f"{effect}{index}{kind}.png", image) for kind, image in (("i", seen), ("t", clean))
            ]
            rows.append(f"{effect},made,{index},real_pair,{files[0]},{files[1]}")
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize("source", ["pairs", "samples"])
def test_program(manifest: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, source: str) -> None:
    out = ["--json", str(tmp_path / "out.json"), "--markdown", str(tmp_path / "out.md")]
    assert reality.main(["--pairs", str(manifest), "--photos", source, "--count", "3", *out]) == 0
    table = json.loads((tmp_path / "out.json").read_text())
    assert list(table) == list(ESTIMATORS)
    for rows in table.values():
        for row in rows.values():
            assert row["real"]["pairs"] <= 2
            assert row["rendered"]["pairs"] <= 3
    assert table["haze"]["local contrast left"]["real"]["pairs"] == 2
    assert (tmp_path / "out.md").read_text() == capsys.readouterr().out


def test_the_same_seed_renders_the_same_pairs() -> None:
    photo = gallery.square(photos.samples()[COFFEE], 64)
    first, again = (list(reality.rendered("flare", [photo], 2, 5, edit.EditSampling())) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.seen, b.seen)


def test_families_change_what_is_drawn() -> None:
    sampling = reality.sampling_with('{"flare": {"phone": 1, "phone_level": [0.02, 0.03]}}')
    assert sampling.families.flare.phone_level == (0.02, 0.03)
    assert sampling.families.haze == edit.EditSampling().families.haze


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "nowhere.csv"], "no manifest"),
        (["--pairs", "MANIFEST", "--photos", "nowhere"], "no folder of photographs"),
        (["--pairs", "MANIFEST", "--count", "0"], "--count 0"),
        (["--pairs", "MANIFEST", "--families", "flare"], "Expecting value"),
        (["--pairs", "MANIFEST", "--families", '{"flares": {}}'], "no attribute 'flares'"),
        (["--pairs", "MANIFEST", "--families", '{"flare": {"phones": 1}}'], "'phones'"),
    ],
)
def test_mistakes_are_one_line(
    manifest: pathlib.Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    assert reality.main([str(manifest) if value == "MANIFEST" else value for value in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
