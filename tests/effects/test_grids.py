"""Steps of small grids are what OpenCV does."""

import cv2
import numpy as np
import pytest

from uniser_jax.effects import grids

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(2, 2), (5, 8), (18, 18)])
@pytest.mark.parametrize("size", [(2, 9), (18, 8), (64, 50)])
def test_cubic_enlarges_as_opencv(shape: tuple[int, int], size: tuple[int, int]) -> None:
    plane = RNG.random(shape, np.float32)
    expected = cv2.resize(plane, size[::-1], interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(grids.cubic(plane, *size), expected, atol=4e-6)  # whose places are float32


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (64, 50)])
@pytest.mark.parametrize("reach", [1, 4])
def test_boxes_average_as_opencv(shape: tuple[int, int], reach: int) -> None:
    plane = RNG.random(shape, np.float32)
    expected = cv2.blur(plane, (2 * reach + 1,) * 2)
    np.testing.assert_allclose(grids.box(plane, reach), expected, atol=1e-6)
