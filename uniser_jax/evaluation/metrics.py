"""How close two stored photographs are."""

import numpy as np
from jaxtyping import UInt8
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

Image = UInt8[np.ndarray, "h w c"]
_PSNR_LIMIT = 100.0  # of equal images, whose ratio is infinite; JSON has no infinity
_WINDOW = 11  # pixels of SSIM's Gaussian at sigma 1.5


def psnr(target: Image, image: Image) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels, at most 100."""
    if np.array_equal(target, image):
        return _PSNR_LIMIT
    return min(float(peak_signal_noise_ratio(target, image, data_range=255)), _PSNR_LIMIT)


def ssim(target: Image, image: Image) -> float:
    """Structural similarity (Wang et al. 2004): Gaussian window, sigma 1.5, mean over channels.

    Raises:
      ValueError: if a side is shorter than the window, 11 px.
    """
    if min(target.shape[:2]) < _WINDOW:
        raise ValueError(f"SSIM needs {_WINDOW} px a side, the image has {target.shape[1]} x {target.shape[0]}")
    settings = {"channel_axis": -1, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(target, image, data_range=255, **settings))
