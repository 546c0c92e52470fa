import numpy as np
import pytest

from uniser_jax.restore import levels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_level_comes_back(dtype: type) -> None:
    every = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(-1, 16, 1)
    every = np.repeat(every, 3, -1)
    linear = levels.decode(every)
    assert linear.dtype == np.float32
    assert (linear.min(), linear.max()) == (0, 1)
    np.testing.assert_array_equal(levels.encode(linear, every.dtype), every)
    np.testing.assert_array_equal(levels.encode(levels.from_signal(levels.to_signal(linear)), every.dtype), every)


def test_both_depths_mean_the_same_light() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    np.testing.assert_allclose(levels.decode(every), levels.decode(every.astype(np.uint16) * 257), rtol=1e-6)


def test_light_beyond_the_range_is_clipped() -> None:
    linear = np.array([[[-0.5, 0.5, 7.0]]], np.float32)
    for dtype in (np.dtype(np.uint8), np.dtype(np.uint16)):
        encoded = levels.encode(linear, dtype)
        assert (encoded[0, 0, 0], encoded[0, 0, 2]) == (0, np.iinfo(dtype).max)
    assert levels.from_signal(np.float32([[[-3, 0, 3]]])).tolist()[0][0][::2] == [0, 1]


def test_other_types_are_refused() -> None:
    with pytest.raises(ValueError, match="pixels of type float32: expected uint8 or uint16"):
        levels.full(np.dtype(np.float32))
