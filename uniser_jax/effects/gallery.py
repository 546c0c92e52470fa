"""Contact sheets: pictures beside each other, labelled, for eyes."""

import dataclasses
import os
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from uniser_jax import atomic
from uniser_jax.effects import edit
from uniser_jax.effects.edit import EditSampling, Recipe, Rendering
from uniser_jax.effects.mixture import Mixture
from uniser_jax.types import EFFECTS, Edit

Image = UInt8[np.ndarray, "h w c"]
_GAP, _HEAD, _FONT = 4, 22, cv2.FONT_HERSHEY_SIMPLEX


def grid(rows: Sequence[Sequence[Image]], columns: Sequence[str], names: Sequence[str] = ()) -> Image:
    """Lays images out in rows, labels above the columns and, if given, above each row.

    Args:
      rows: images; all of a row have the same height, all of a column the same width.
      columns: a label per column.
      names: a label per row.
    """
    width = sum(image.shape[1] + _GAP for image in rows[0]) - _GAP
    head = np.full((_HEAD, width, 3), 255, np.uint8)
    left = 0
    for image, label in zip(rows[0], columns, strict=True):
        _write(head, label, left, image.shape[1])
        left += image.shape[1] + _GAP
    strips = [head]
    for index, row in enumerate(rows):
        if names:
            title = np.full((_HEAD, width, 3), 255, np.uint8)
            _write(title, names[index], 0, width)
            strips.append(title)
        gap = np.full((row[0].shape[0], _GAP, 3), 255, np.uint8)
        parts = [part for image in row for part in (image, gap)][:-1]
        strips += [np.concatenate(parts, 1), np.full((_GAP, width, 3), 255, np.uint8)]
    return np.concatenate(strips)


def contact_sheet(photos: Sequence[Image], seed: int = 0, side: int = 240, mixture: Mixture | None = None) -> Image:
    """One row per photograph: clean, each effect, a mixture, its mask, and the exact targets at strengths 0.25, 0.5 and 1.

    Args:
      photos: any sizes; shown as squares from their middle.
      seed: of everything drawn.
      side: of a square, in pixels.
      mixture: weights; by default all defaults.
    """
    sampling = EditSampling(mixture=mixture or Mixture(strength_min=0.6), noise=0.0)
    squares = [square(photo, side) for photo in photos]
    rows = [
        _row(squares[index], squares[(index + 1) % len(squares)], np.random.default_rng((seed, index)), sampling)
        for index in range(len(squares))
    ]
    labels = ["clean", *(name.replace("flare", "lens flare") for name in EFFECTS), "mixture", "mask"]
    return grid(rows, [*labels, "target 0.25", "target 0.5", "target 1"])


def example_sheet(examples: Sequence[tuple[int, Edit, Recipe]]) -> Image:
    """Training examples as the model gets them: input, mask, target, with index, task, effects and strengths.

    Those of other shapes stand in frames of one size.
    """
    frame = np.max([edit.mask.shape for _, edit, _ in examples], 0)
    rows = [
        [_framed(image, frame) for image in (edit.input, np.repeat(edit.mask[..., None], 3, -1), edit.target)]
        for _, edit, _ in examples
    ]
    names = []
    for index, _, recipe in examples:
        effects = [f"{name} {s:.2f}" for (name, _), s in zip(recipe.effects, recipe.strengths, strict=True)]
        shown = f"real {recipe.effects[0][0]}, {recipe.pair}" if recipe.pair else ", ".join(effects) or "clean"
        names.append(f"{index}: {recipe.task or '(nothing)'}, a = {recipe.alpha:.2f} | {shown}")
    return grid(rows, ["input", "mask", "target"], names)


def square(photo: Image, side: int) -> Image:
    """The middle of a photograph, scaled to side x side pixels."""
    h, w = photo.shape[:2]
    crop = min(h, w)
    top, left = (h - crop) // 2, (w - crop) // 2
    middle = photo[top : top + crop, left : left + crop]
    return cv2.resize(middle, (side, side), interpolation=cv2.INTER_AREA if crop > side else cv2.INTER_CUBIC)


def write_png(path: str | os.PathLike, image: Image) -> None:
    """Writes an RGB image whole or not at all."""
    done, data = cv2.imencode(".png", image[..., ::-1])
    if not done:
        raise OSError(f"{path}: the image could not be encoded")
    atomic.write(path, data.tobytes())


def _row(photo: Image, other: Image, rng: np.random.Generator, sampling: EditSampling) -> list[Image]:
    scene = edit.scene_from_photo(photo, other, 2.0)
    alone = [edit.sample(rng, scene, sampling, effects=(effect,)) for effect in EFFECTS]
    names = tuple(EFFECTS[index] for index in sorted(rng.choice(4, int(rng.integers(2, 5)), replace=False)))
    drawn = edit.sample(rng, scene, sampling, effects=names, task="remove effects")
    kind = str(rng.choice(["ellipse", "polygon", "stroke", "box"]))
    mixed = Rendering(scene, dataclasses.replace(drawn, mask=kind, alpha=1.0))
    mask = mixed.mask()
    everywhere = np.full_like(mask, 255)
    scaled = [np.round(everywhere * share).astype(np.uint8) for share in (0.25, 0.5, 1.0)]
    return [
        photo,
        *(_seen(scene, recipe) for recipe in alone),
        mixed.expose(mixed.recipe.strengths),
        np.repeat(mask[..., None], 3, -1),
        *(mixed.pair("remove effects", level)[1] for level in scaled),
    ]


def _seen(scene: edit.Scene, recipe: Recipe) -> Image:
    return Rendering(scene, recipe).expose(recipe.strengths)


def _framed(image: Image, shape: Sequence[int]) -> Image:
    """In the middle of a white frame of (h, w)."""
    h, w = (int(there) - own for there, own in zip(shape, image.shape, strict=False))
    return cv2.copyMakeBorder(image, h // 2, h - h // 2, w // 2, w - w // 2, cv2.BORDER_CONSTANT, value=(255,) * 3)


def _write(strip: Image, text: str, left: int, width: int) -> None:
    (wide, _), _ = cv2.getTextSize(text, _FONT, 0.45, 1)
    cv2.putText(strip, text, (left + max(0, (width - wide) // 2), 15), _FONT, 0.45, (30, 30, 30), 1, cv2.LINE_AA)
