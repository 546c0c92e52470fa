"""Scores as each benchmark's own code computes them: numbers of different protocols must not stand side by side.

The same photographs score up to 3 dB and 0.06 of SSIM higher under one protocol than under another. Every score is that of one
photograph; a table is their mean. LPIPS is left out: its network's weights would have to be downloaded. So are the scores of
Flare7K inside glare and streaks, which need its masks of three colours.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float64, UInt8
from PIL import Image as Pillow
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.metrics import structural_similarity

from uniser_jax.evaluation.metrics import Image, psnr, ssim

Mask = UInt8[np.ndarray, "h w"]
Inside = Bool[np.ndarray, "h w"]

_WINDOW = 11  # pixels of the Gaussian of SSIM, sigma 1.5
_C1, _C2 = 0.01**2, 0.03**2  # of SSIM, for light in [0, 1]


class Protocol(NamedTuple):
    """How one benchmark measures.

    Args:
      metrics: of a target and an image, by name.
      masked: of these and a mask, where there is one that covers a part of the photograph.
      side: both images and the mask are made squares of this side first; 0 leaves them as they are.
      filter: of that.
      crop: whether a target with a border is cut to the size of its photograph.
    """

    metrics: Mapping[str, Callable[[Image, Image], float]]
    masked: Mapping[str, Callable[[Image, Image, Inside], float]] = {}
    side: int = 0
    filter: Pillow.Resampling = Pillow.Resampling.BICUBIC
    crop: bool = False

    def scores(self, target: Image, image: Image, mask: Mask | None = None) -> dict[str, float]:
        """All metrics of one photograph."""
        target, image = self._sized(target), self._sized(image)
        scores = {name: metric(target, image) for name, metric in self.metrics.items()}
        inside = None if mask is None else self._sized(mask) > 127
        if inside is not None and inside.any() and not inside.all():
            scores |= {name: metric(target, image, inside) for name, metric in self.masked.items()}
        return scores

    def _sized(self, image: np.ndarray) -> np.ndarray:
        if not self.side or image.shape[:2] == (self.side, self.side):
            return image
        return np.asarray(Pillow.fromarray(image).resize((self.side, self.side), self.filter))


def psnr_of_channels(target: Image, image: Image) -> float:
    """Mean of the PSNR of each channel, never below that of all of them."""
    return float(np.mean([psnr(target[..., c], image[..., c]) for c in range(3)]))


def ssim_uniform(target: Image, image: Image) -> float:
    """SSIM in squares of 7 px that weigh alike, mean over channels: scikit-image's own default."""
    return float(structural_similarity(target, image, channel_axis=-1, data_range=255))


def ssim_gray(target: Image, image: Image) -> float:
    """`ssim_uniform` of luma."""
    gray = (cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (target, image))
    return float(structural_similarity(*gray, data_range=255))


def ssim_zero_padded(target: Image, image: Image) -> float:
    """SSIM with Gaussian windows that reach over the frame, where they see black."""
    return float(_similarity(_unit(target), _unit(image), functools.partial(_gaussian, mode="constant")).mean())


def ssim_volume(target: Image, image: Image) -> float:
    """MATLAB's `ssim` of an array of three axes: the channels are slices of a volume, and the window blurs over them, too."""
    blur = functools.partial(_gaussian, mode="nearest", axes=(0, 1, 2))
    return float(_similarity(_unit(target), _unit(image), blur).mean())


def ssim_reduced(target: Image, image: Image) -> float:
    """SSIM of images made smaller, so that the short side is about 256 px, by means over cells."""
    n = max(1, round(min(target.shape[:2]) / 256))
    maps = _similarity(_cells(_unit(target), n), _cells(_unit(image), n), functools.partial(_gaussian, mode="constant"))
    edge = _WINDOW // 2
    return float(maps[edge:-edge, edge:-edge].mean())


def lab_error(target: Image, image: Image, inside: Inside | None = None) -> float:
    """Mean over pixels, of a mask or all, of |dL| + |da| + |db|, which shadow papers call RMSE."""
    return float(np.abs(rgb2lab(target) - rgb2lab(image)).sum(-1)[... if inside is None else inside].mean())


def psnr_inside(target: Image, image: Image, inside: Inside) -> float:
    """PSNR over the whole frame with zeros outside: 10 log10(1 / area) dB above that of the area."""
    return psnr(target * inside[..., None], image * inside[..., None])


def _unit(image: Image) -> Float64[np.ndarray, "h w c"]:
    return image / 255.0


def _gaussian(image: np.ndarray, mode: str, axes: tuple[int, ...] = (0, 1)) -> np.ndarray:
    return ndimage.gaussian_filter(image, 1.5, mode=mode, radius=_WINDOW // 2, axes=axes)


def _similarity(x: np.ndarray, y: np.ndarray, blur: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """SSIM of every pixel (Wang et al. 2004, equation 13)."""
    mean_x, mean_y = blur(x), blur(y)
    xx, yy, xy = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    return (2 * mean_x * mean_y + _C1) * (2 * xy + _C2) / ((mean_x**2 + mean_y**2 + _C1) * (xx + yy + _C2))


def _cells(image: Float64[np.ndarray, "h w c"], n: int) -> Float64[np.ndarray, "a b c"]:
    """Means over about n x n pixels; cells overlap by a row or column where n does not divide a side."""
    for axis in (0, 1):
        side = image.shape[axis]
        count = side // n
        first, last = np.arange(count) * side // count, -(-np.arange(1, count + 1) * side // count)
        sums = np.concatenate([np.zeros_like(image.take([0], axis)), image.cumsum(axis)], axis)
        lengths = (last - first).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        image = (sums.take(last, axis) - sums.take(first, axis)) / lengths
    return image


UNIFORM = Protocol({"psnr": psnr, "ssim": ssim})

# By name: our own for everything, then those of Flare7K (Dai et al. 2022); of ShadowFormer's MATLAB script, which most shadow
# papers took over, and of its Python test; of SOTS as FFA-Net (Qin et al. 2020) and DehazeFormer (Song et al. 2023) read it;
# of SIR2 as ERRNet (Wei et al. 2019) and WindowSeat (2025) read it.
PROTOCOLS = {
    "uniform": UNIFORM,
    "flare7k": Protocol({"psnr": psnr, "ssim": ssim_uniform}, side=512, filter=Pillow.Resampling.BILINEAR),
    "shadow256": Protocol(
        {"psnr": psnr, "ssim": ssim_volume, "lab": lab_error},
        masked={
            "psnr_shadow": psnr_inside,
            "psnr_lit": lambda target, image, inside: psnr_inside(target, image, ~inside),
            "lab_shadow": lab_error,
            "lab_lit": lambda target, image, inside: lab_error(target, image, ~inside),
        },
        side=256,
    ),
    "shadow": Protocol({"psnr": psnr, "ssim": ssim_gray}),
    "sots": Protocol({"psnr": psnr, "ssim": ssim_zero_padded}, crop=True),
    "sots_reduced": Protocol({"psnr": psnr, "ssim": ssim_reduced}, crop=True),
    "sir2": Protocol({"psnr": psnr_of_channels, "ssim": ssim_uniform}),
    "sir2_rgb": Protocol({"psnr": psnr, "ssim": ssim_uniform}),
}
