"""Each benchmark's scores, by hand or against another computation."""

import math
import pathlib

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from uniser_jax.data import pairs
from uniser_jax.effects.gallery import square
from uniser_jax.evaluation import benchmarks, protocols, tables
from uniser_jax.evaluation.protocols import PROTOCOLS

TARGET = square(skimage.data.astronaut(), 64)
NOISY = np.clip(TARGET + np.random.default_rng(0).normal(0, 12, TARGET.shape), 0, 255).astype(np.uint8)
HALF = np.repeat(np.uint8([0, 255]), 32)[:, None].repeat(64, 1)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_perfect_images_score_best(name: str) -> None:
    best = {"psnr": 100, "ssim": 1, "lab": 0}
    perfect = PROTOCOLS[name].scores(TARGET, TARGET.copy(), HALF)
    noisy = PROTOCOLS[name].scores(TARGET, NOISY, HALF)
    assert {"psnr", "ssim"} <= set(perfect) == set(noisy)
    for metric, score in perfect.items():
        kind = metric.split("_")[0]
        assert score == pytest.approx(best[kind])
        assert (noisy[metric] > 1) if kind == "lab" else noisy[metric] < score - 1e-3


def test_psnr_of_channels_by_hand() -> None:
    image = TARGET.copy()
    image[..., 0] ^= 1  # one level everywhere in one channel
    one = 10 * math.log10(255**2)
    assert protocols.psnr_of_channels(TARGET, image) == pytest.approx((one + 100 + 100) / 3)
    assert PROTOCOLS["sir2_rgb"].scores(TARGET, image)["psnr"] == pytest.approx(one + 10 * math.log10(3))


def test_lab_error_and_psnr_inside_by_hand() -> None:
    target, image = np.full((64, 64, 3), 255, np.uint8), np.full((64, 64, 3), 255, np.uint8)
    image[32:] = 0  # black instead of white: L falls by 100, a and b stay 0
    inside = HALF > 0
    assert protocols.lab_error(target, image) == pytest.approx(50, abs=1e-2)
    assert protocols.lab_error(target, image, inside) == pytest.approx(100, abs=1e-2)
    assert protocols.lab_error(target, image, ~inside) == pytest.approx(0, abs=1e-6)
    area = inside.mean()
    within = 10 * math.log10(255**2 / np.mean((TARGET[inside].astype(float) - NOISY[inside]) ** 2))
    assert protocols.psnr_inside(TARGET, NOISY, inside) == pytest.approx(within - 10 * math.log10(area))


def test_ssim_of_windows_that_see_black_outside_as_pytorch_computes_it() -> None:
    x, y = (torch.tensor(image / 255.0).permute(2, 0, 1)[:, None] for image in (TARGET, NOISY))
    weights = torch.exp(-((torch.arange(11.0, dtype=torch.float64) - 5) ** 2) / 4.5)
    window = (weights[:, None] * weights / weights.sum() ** 2)[None, None]

    def blur(image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(image, window, padding=5)

    a, b = blur(x), blur(y)
    spread = blur(x * x) - a * a + blur(y * y) - b * b
    maps = (2 * a * b + 1e-4) * (2 * (blur(x * y) - a * b) + 9e-4) / ((a * a + b * b + 1e-4) * (spread + 9e-4))
    assert protocols.ssim_zero_padded(TARGET, NOISY) == pytest.approx(maps.mean().item(), abs=1e-9)


def test_ssim_of_a_volume_by_hand_and_as_scikit_image_has_it_of_even_channels() -> None:
    gray, other = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (TARGET, NOISY))
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255, "full": True}
    _, expected = structural_similarity(gray, other, **settings)
    stacked = [
        np.repeat(image[..., None], 3, -1) for image in (gray, other)
    ]  # no channel differs: nothing to blur over
    got = protocols.ssim_volume(*stacked)
    assert got == pytest.approx(expected.mean(), abs=5e-3)  # the frames are continued differently
    assert protocols.ssim_volume(TARGET, NOISY) > PROTOCOLS["uniform"].scores(TARGET, NOISY)["ssim"] + 0.01


@pytest.mark.parametrize("shape", [(520, 512), (600, 777)])
def test_cells_are_those_of_adaptive_pooling(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random((*shape, 3))
    for n in (2, 3):
        given = torch.tensor(image).permute(2, 0, 1)[None]
        expected = torch.nn.functional.adaptive_avg_pool2d(given, (shape[0] // n, shape[1] // n))[0].permute(1, 2, 0)
        np.testing.assert_allclose(protocols._cells(image, n), expected.numpy(), atol=1e-12)


def test_images_and_masks_are_made_as_large_as_a_benchmark_has_them() -> None:
    large, noisy = (cv2.resize(image, (150, 90)) for image in (TARGET, NOISY))
    small, other = (np.asarray(Image.fromarray(x).resize((256, 256), Image.Resampling.BICUBIC)) for x in (large, noisy))
    scores = PROTOCOLS["shadow256"].scores(large, noisy)
    assert scores["psnr"] == PROTOCOLS["uniform"].scores(small, other)["psnr"]
    assert set(scores) == {"psnr", "ssim", "lab"}  # no mask, nothing inside
    assert set(PROTOCOLS["shadow256"].scores(large, noisy, np.full((90, 150), 255, np.uint8))) == set(scores)


def test_a_manifest_under_a_protocol(tmp_path: pathlib.Path) -> None:
    """Clear images with a border, as SOTS has them; a metric that only some photographs have."""
    bordered = cv2.copyMakeBorder(TARGET, 10, 10, 10, 10, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    for name, image in (("hazy", NOISY), ("clear", bordered), ("same", TARGET), ("mask", HALF)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), image[..., ::-1] if image.ndim == 3 else image)
    manifest, columns = tmp_path / "manifest.csv", "effect,set,id,kind,input,gt,mask\n"
    manifest.write_text(f"{columns}haze,sots,1,real_pair,hazy.png,clear.png,\n")
    with pytest.raises(ValueError, match="sizes differ"):
        list(benchmarks.real_pairs(manifest))
    (item,) = benchmarks.real_pairs(manifest, crop=True)
    np.testing.assert_array_equal(item.target, TARGET)
    entry = pairs.read_manifest(manifest)[0]
    with pytest.raises(ValueError, match="sizes differ"):  # a smaller target is no border
        pairs.load(entry._replace(input=entry.target, target=entry.input), crop=True)

    rows = "shadow,istd,{0},real_pair,hazy.png,same.png,{1}\n"
    manifest.write_text(columns + rows.format(1, "mask.png") + rows.format(2, ""))
    results = benchmarks.evaluate(
        lambda photo, task, mask: TARGET, benchmarks.real_pairs(manifest), PROTOCOLS["shadow256"]
    )
    mean = tables.to_dict(results)["mean"]
    assert mean["count"] == 2
    assert mean["lab_shadow_restored"] == 0 < mean["lab_shadow_input"]
    assert "PSNR shadow input" in tables.to_markdown(results)
