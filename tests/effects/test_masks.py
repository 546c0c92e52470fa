"""What a mask promises: soft, in range, never empty, the same at any size, and on the effect where it marks one."""

import cv2
import numpy as np
import pytest

from uniser_jax.effects import masks

SEEDS = range(40)


def disc(shape: tuple[int, int], peak: float = 1.0) -> np.ndarray:
    """An effect's support: a soft disc in the upper left."""
    h, w = shape
    y, x = np.mgrid[0 : 1 : h * 1j, 0 : 1 : w * 1j]
    return (peak * np.clip(8 * (0.25 - np.hypot(x - 0.35, y - 0.35)), 0, 1)).astype(np.float32)


@pytest.mark.parametrize("kind", masks.KINDS)
@pytest.mark.parametrize("shape", [(16, 16), (64, 64), (40, 150), (300, 200)])
def test_masks_are_soft_in_range_and_never_empty(kind: str, shape: tuple[int, int]) -> None:
    between = 0
    for seed in SEEDS:
        mask = masks.draw(np.random.default_rng(seed), shape, kind, disc(shape))
        assert mask.shape == shape
        assert mask.dtype == np.float32
        assert mask.min() >= 0
        assert mask.max() <= 1
        assert mask.max() > 0.1
        between += ((mask > 0.02) & (mask < 0.98)).any()
    assert between == (0 if kind == "all" else len(SEEDS))


@pytest.mark.parametrize("kind", masks.KINDS)
def test_a_seed_draws_the_same_mask_at_any_size(kind: str) -> None:
    for seed in SEEDS:
        small, large = (
            masks.draw(np.random.default_rng(seed), (side, side), kind, disc((side, side))) for side in (96, 480)
        )
        reduced = cv2.resize(large, (96, 96), interpolation=cv2.INTER_AREA)
        assert np.abs(small - reduced).mean() < 0.05
        again = masks.draw(np.random.default_rng(seed), (96, 96), kind, disc((96, 96)))
        np.testing.assert_array_equal(small, again)


@pytest.mark.parametrize("kind", masks.DRAWN)
def test_drawn_masks_cover_some_and_seldom_all(kind: str) -> None:
    areas = [masks.draw(np.random.default_rng(seed), (96, 96), kind).mean() for seed in range(300)]
    assert 0.05 < np.median(areas) < 0.5
    assert np.quantile(areas, 0.95) < 0.9


def test_forms_are_counted() -> None:
    """More forms never uncover: the union of the same draws grows."""
    for kind in masks.DRAWN:
        one, five = (
            np.mean([masks.draw(np.random.default_rng(seed), (64, 64), kind, count=n).mean() for seed in SEEDS])
            for n in (1, 5)
        )
        assert five > 1.5 * one


@pytest.mark.parametrize("peak", [1.0, 0.2])
def test_a_marked_effect_is_covered_and_little_else(peak: float) -> None:
    support = disc((128, 128), peak)
    core, far = support > 0.7 * peak, cv2.dilate(support, np.ones((31, 31))) == 0
    marked = [masks.draw(np.random.default_rng(seed), (128, 128), "support", support) for seed in SEEDS]
    assert np.mean([mask[core].mean() for mask in marked]) > 0.97
    assert np.mean([mask[far].mean() for mask in marked]) < 0.03
    assert len({mask.tobytes() for mask in marked}) == len(marked)


def test_under_a_veil_what_stands_out_is_marked() -> None:
    """Of a change of 15 levels everywhere, more than anybody overlooks, and of 100 in a disc: the disc."""
    support = np.float32(0.06) + disc((128, 128), 0.4)
    core, far = disc((128, 128)) > 0.7, cv2.dilate(disc((128, 128)), np.ones((31, 31))) == 0
    marked = [masks.draw(np.random.default_rng(seed), (128, 128), "support", support) for seed in SEEDS]
    assert np.mean([mask[core].mean() for mask in marked]) > 0.97
    assert np.mean([mask[far].mean() for mask in marked]) < 0.03


def test_who_encloses_two_parts_draws_around_each() -> None:
    small = np.maximum(disc((128, 128), 2.0) - 1.6, 0)
    support, between = np.maximum(small, small[::-1, ::-1]), np.s_[30:42, 86:98]  # in a box around both
    marked = [masks.draw(np.random.default_rng(seed), (128, 128), "support", support) for seed in SEEDS]
    assert np.mean([mask[between].mean() for mask in marked]) < 0.01


def test_an_absent_effect_is_not_marked() -> None:
    nothing = np.zeros((64, 64), np.float32)
    for seed in SEEDS:
        assert not masks.draw(np.random.default_rng(seed), (64, 64), "support", nothing).any()


@pytest.mark.parametrize(
    ("arguments", "message"), [(("star",), "all, box, ellipse, polygon, stroke, support"), (("support",), "needs")]
)
def test_mistakes_are_one_line(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        masks.draw(np.random.default_rng(0), (8, 8), *arguments)
    assert "\n" not in str(caught.value)
