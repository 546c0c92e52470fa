import pathlib
import struct

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image

from tests.profiles import ADOBE, GAMMA_2_2, P3, SRGB, SRGB_CURVE, primaries, profile
from uniser_jax.decoding import decode
from uniser_jax.restore import colour, levels
from uniser_jax.restore.files import read_photo, write_photo
from uniser_jax.restore.metadata import Notes, with_chunks

TABLE = b"curv\0\0\0\0" + struct.pack(">I1024H", 1024, *np.round(np.linspace(0, 1, 1024) ** 1.8 * 65_535).astype(int))
PROFILES = {
    "P3": profile("Display P3", P3, SRGB_CURVE),
    "Adobe": profile("Adobe RGB (1998)", ADOBE, GAMMA_2_2),
    "table": profile("of a table", P3, TABLE),
    "linear": profile("linear sRGB", SRGB, b"curv\0\0\0\0\0\0\0\0"),
}


def pixels_of(dtype: type) -> np.ndarray:
    photo = skimage.data.chelsea()[:100, :150].copy()
    photo[:10] = (0, 255, 0)  # beyond sRGB in the wider spaces
    noise = np.random.default_rng(0).integers(0, 256, photo.shape, np.uint16)
    return photo if dtype == np.uint8 else photo.astype(np.uint16) * 256 + noise


@pytest.mark.parametrize("name", PROFILES)
def test_colours_are_those_of_little_cms(tmp_path: pathlib.Path, name: str) -> None:
    own = pixels_of(np.uint8)
    Image.fromarray(own).save(tmp_path / "in.png", icc_profile=PROFILES[name])
    space = colour.space_of(PROFILES[name], own.dtype)
    assert np.abs(space.to_srgb(own).astype(int) - decode((tmp_path / "in.png").read_bytes())).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", PROFILES)
def test_what_changes_in_srgb_changes_in_the_file(name: str, dtype: type) -> None:
    own = pixels_of(dtype)
    space = colour.space_of(PROFILES[name], own.dtype)
    before = space.to_srgb(own)
    np.testing.assert_array_equal(space.from_srgb(own, before, before), own)
    after = before.copy()
    after[20:] = levels.encode(0.7 * levels.decode(before[20:]), own.dtype)
    there = space.from_srgb(own, before, after)
    np.testing.assert_array_equal(there[:20], own[:20])
    again = space.to_srgb(there)[20:]
    tolerance = 2 if name != "linear" or dtype == np.uint16 else 14  # whose darkest levels lie 13 of sRGB's apart
    assert np.abs(again.astype(int) - after[20:]).max() <= tolerance * (1 if dtype == np.uint8 else 16)


def test_light_is_what_the_standards_say() -> None:
    space = colour.space_of(PROFILES["P3"], np.dtype(np.uint8))
    np.testing.assert_allclose(space.light[0], levels.decode(np.arange(256, dtype=np.uint8)[None])[0], atol=1e-4)
    matrix = np.linalg.inv(primaries(SRGB)) @ primaries(P3)
    np.testing.assert_allclose(space.matrix, matrix, atol=1e-3)


@pytest.mark.parametrize(
    "icc",
    [
        b"",
        b"nonsense" * 50,
        profile("sRGB IEC61966-2.1", SRGB, SRGB_CURVE),
        PROFILES["P3"][:200],
        PROFILES["P3"][:16] + b"GRAY" + PROFILES["P3"][20:],
        profile("no curve", P3, b"text\0\0\0\0" + bytes(8)),
        profile("no primaries", ((0.3, 0.3), (0.3, 0.3001), (0.3001, 0.3)), GAMMA_2_2),
        profile("too long", P3, b"curv\0\0\0\0" + b"\xff" * 4),
    ],
    ids=["none", "nonsense", "sRGB", "cut", "gray", "no curve", "no primaries", "too long"],
)
def test_other_profiles_leave_pixels_as_they_are(tmp_path: pathlib.Path, icc: bytes) -> None:
    assert colour.space_of(icc, np.dtype(np.uint8)) is None
    Image.fromarray(pixels_of(np.uint8)).save(tmp_path / "in.png", icc_profile=icc or None)
    np.testing.assert_array_equal(read_photo(tmp_path / "in.png").pixels, pixels_of(np.uint8))
    assert decode((tmp_path / "in.png").read_bytes()).shape == (100, 150, 3)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("alpha", [False, True])
def test_a_photograph_comes_back_in_its_own_space(tmp_path: pathlib.Path, bits: int, alpha: bool) -> None:
    own = pixels_of(np.uint8 if bits == 8 else np.uint16)
    stored = np.dstack([own, own[..., 0]]) if alpha else own
    bgr = [2, 1, 0, 3][: stored.shape[2]]
    data = cv2.imencode(".png", np.ascontiguousarray(stored[..., bgr]))[1].tobytes()
    (tmp_path / "in.png").write_bytes(with_chunks(data, Notes(icc=PROFILES["P3"])))
    photo = read_photo(tmp_path / "in.png")
    assert photo.pixels.dtype == own.dtype
    assert (photo.pixels != own).mean() > 0.5
    pixels = photo.pixels.copy()
    pixels[50:] = levels.encode(0.7 * levels.decode(pixels[50:]), own.dtype)
    write_photo(tmp_path / "out.png", photo, pixels)
    again = read_photo(tmp_path / "out.png")
    assert again.notes.icc == PROFILES["P3"]
    np.testing.assert_array_equal(again.own[:50], own[:50])
    assert np.abs(again.pixels.astype(int) - pixels).max() <= (2 if bits == 8 else 32)
    if alpha:
        np.testing.assert_array_equal(again.alpha, photo.alpha)
