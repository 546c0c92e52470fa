"""The stand-in networks know the answer at full size and return its reduction: what is tested is the way back up."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import skimage.data

from uniser_jax.effects import light
from uniser_jax.restore import fullres, levels
from uniser_jax.restore.fullres import restore_any_size

PATCH = 8


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    white = np.iinfo(a.dtype).max
    return float(10 * np.log10(white**2 / np.mean((a.astype(np.float64) - b) ** 2)))


def oracle(clean: np.ndarray) -> fullres.Network:
    """Returns the reduction of the clean photograph wherever the mask is not 0, whatever it is shown."""

    def network(images: np.ndarray, mask: np.ndarray) -> np.ndarray:
        assert images.shape[:3] == mask.shape
        assert images.dtype == mask.dtype == np.float32
        assert images.shape[1] % PATCH == images.shape[2] % PATCH == 0
        small = cv2.resize(levels.decode(clean), images.shape[2:0:-1], interpolation=cv2.INTER_AREA)
        return np.where(mask[..., None] > 0, levels.to_signal(small)[None], images)

    return network


def darker(images: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A network whose effect is everywhere and obeys the mask."""
    return images - np.float32(0.5) * mask[..., None]


def full_mask(photo: np.ndarray) -> np.ndarray:
    return np.full(photo.shape[:2], 255, np.uint8)


def haze(clean: np.ndarray) -> np.ndarray:
    transmission = np.exp(-np.linspace(1.6, 0.2, len(clean), dtype=np.float32))[:, None, None]
    return clean * transmission + np.float32([0.7, 0.75, 0.8]) * (1 - transmission)


def shadow(clean: np.ndarray, penumbra: float) -> np.ndarray:
    height, width = clean.shape[:2]
    corners = np.array([[0.15, 0.3], [0.55, 0.2], [0.8, 0.7], [0.45, 0.65]]) * [width, height]
    umbra = cv2.fillPoly(np.zeros((height, width), np.float32), [corners.astype(np.int32)], 1.0)
    umbra = cv2.GaussianBlur(umbra, (0, 0), penumbra * width)[..., None]
    return clean * (1 - umbra * np.float32([0.82, 0.78, 0.7]))


def flare(clean: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: clean.shape[0], : clean.shape[1]] / np.float32(clean.shape[1])
    veil = 0.02 / (np.hypot(x - 0.3, y - 0.2) + 0.05)
    return clean + veil[..., None].astype(np.float32) * np.float32([1, 0.9, 0.7])


@pytest.mark.parametrize(
    ("effect", "expected"),
    [(haze, 32), (lambda clean: shadow(clean, 0.001), 37), (lambda clean: shadow(clean, 0.02), 39), (flare, 40)],
    ids=["haze", "sharp shadow", "soft shadow", "flare"],
)
def test_a_photograph_keeps_its_detail(effect: Callable, expected: float) -> None:
    clean = skimage.data.rocket()
    seen = light.encode(effect(light.decode(clean)))
    restored = restore_any_size(seen, full_mask(seen), oracle(clean), 96, PATCH)
    assert psnr(restored, clean) > expected
    small = fullres.working_shape(clean.shape[:2], 96, PATCH)
    enlarged = cv2.resize(cv2.resize(clean, small[::-1], interpolation=cv2.INTER_AREA), clean.shape[1::-1])
    assert psnr(restored, clean) > psnr(enlarged, clean) + 5  # of what the network itself could show


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_twelve_megapixels(dtype: type) -> None:
    rng = np.random.default_rng(0)
    clean = cv2.resize(rng.integers(40, 216, (94, 125, 3), np.uint8), (4000, 3000), interpolation=cv2.INTER_CUBIC)
    clean = clean.astype(dtype) * (np.iinfo(dtype).max // 255)
    seen = levels.encode(haze(levels.decode(clean)), clean.dtype)
    restored = restore_any_size(seen, full_mask(seen), oracle(clean), 256, PATCH)
    assert (restored.shape, restored.dtype) == (seen.shape, dtype)
    assert psnr(restored, clean) > 35


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(16, 16), (17, 33), (100, 61), (300, 200)])
def test_a_network_that_changes_nothing_changes_no_bit(size: tuple[int, int], dtype: type) -> None:
    photo = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (*size, 3), dtype, endpoint=True)
    restored = restore_any_size(photo, full_mask(photo), lambda images, mask: images, 96, PATCH)
    assert restored.dtype == dtype
    np.testing.assert_array_equal(restored, photo)


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (400, 500)])
def test_without_a_mask_the_network_is_not_even_asked(size: tuple[int, int]) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)

    def never(images: np.ndarray, mask: np.ndarray) -> np.ndarray:
        raise AssertionError

    restored = restore_any_size(photo, np.zeros(size, np.uint8), never, 96, PATCH)
    np.testing.assert_array_equal(restored, photo)
    assert not np.shares_memory(restored, photo)


@pytest.mark.parametrize("size", [(64, 80), (400, 500)], ids=["direct", "reduced"])
def test_half_a_mask(size: tuple[int, int]) -> None:
    photo = cv2.resize(skimage.data.coffee(), size[::-1], interpolation=cv2.INTER_AREA)
    mask = full_mask(photo)
    mask[:, : size[1] // 2] = 0
    everywhere = restore_any_size(photo, full_mask(photo), darker, 96, PATCH)
    restored = restore_any_size(photo, mask, darker, 96, PATCH)
    np.testing.assert_array_equal(restored[mask == 0], photo[mask == 0])
    # The edge stays where it was drawn, to the pixel.
    difference = np.abs(restored.astype(int) - everywhere)[:, size[1] // 2 :]
    assert difference.mean() < 0.3
    assert difference[:, :8].mean() < 1.5  # of about 60


@pytest.mark.parametrize("size", [(64, 80), (400, 500)], ids=["direct", "reduced"])
def test_the_network_alone_decides_how_strong_an_even_mask_is(size: tuple[int, int]) -> None:
    photo = np.full((*size, 3), 180, np.uint8)
    for value in (16, 128, 255):
        restored = restore_any_size(photo, np.full(size, value, np.uint8), darker, 96, PATCH)
        assert np.abs(restored - (180 - 0.25 * value)).max() <= 1


@pytest.mark.parametrize("size", [(64, 80), (400, 500)], ids=["direct", "reduced"])
def test_a_faint_mask_fades_out(size: tuple[int, int]) -> None:
    photo = np.full((*size, 3), 180, np.uint8)
    changes = [
        np.abs(restore_any_size(photo, np.full(size, v, np.uint8), lambda i, m: -i, 96, PATCH) - 180.0).max()
        for v in (1, 4, 8, 16)
    ]
    assert changes == sorted(changes)
    assert changes[0] < changes[-1] / 8


def test_no_overshoot_at_the_edge_of_a_shadow() -> None:
    """A photographer's halo: light or dark lines along an edge that was removed from an even surface."""
    clean = np.full((600, 800, 3), 160, np.uint8)
    seen = light.encode(shadow(light.decode(clean), 0.001))
    restored = restore_any_size(seen, full_mask(seen), oracle(clean), 96, PATCH)
    assert np.abs(restored.astype(int) - clean).max() <= 3


def test_clipped_highlights_stay_white() -> None:
    clean = np.full((600, 800, 3), 60, np.uint8)
    cv2.circle(clean, (400, 300), 60, (255, 255, 255), -1)
    seen = light.encode(np.minimum(haze(light.decode(clean)) + (clean == 255), 1).astype(np.float32))
    restored = restore_any_size(seen, full_mask(seen), oracle(clean), 96, PATCH)
    assert restored[280:320, 380:420].min() >= 252


def test_broken_networks_are_named() -> None:
    photo = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="not finite"):
        restore_any_size(photo, full_mask(photo), lambda images, mask: images * np.float32(np.nan), 96, PATCH)


def test_strips_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = skimage.data.chelsea()
    mask = np.tile(np.linspace(0, 255, photo.shape[1]).astype(np.uint8), (photo.shape[0], 1))
    whole = restore_any_size(photo, mask, darker, 96, PATCH)
    monkeypatch.setattr(levels, "_STRIP", 7 * photo.shape[1])
    np.testing.assert_array_equal(restore_any_size(photo, mask, darker, 96, PATCH), whole)


@pytest.mark.parametrize("size", [(3000, 4000), (4000, 3000), (200, 4000), (97, 96), (5000, 16)])
def test_working_shapes_keep_area_and_aspect(size: tuple[int, int]) -> None:
    height, width = fullres.working_shape(size, 256, 16)
    assert height % 16 == width % 16 == 0
    assert 0.6 * 256**2 < height * width < 1.5 * 256**2
    if max(size) < 2 * min(size):
        assert abs(np.log(height / width * size[1] / size[0])) < 0.1


def test_few_shapes_are_compiled_for_a_folder() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1000, 4000, (1000, 2))
    assert len({fullres.working_shape((h, w), 256, 16) for h, w in sizes.tolist()}) <= 25
    sides = [fullres.padded_side(side, 16) for side in range(16, 1025)]
    assert len(set(sides)) <= 24
    assert all(
        side <= padded < 1.25 * side + 16 and padded % 16 == 0
        for side, padded in zip(range(16, 1025), sides, strict=True)
    )
