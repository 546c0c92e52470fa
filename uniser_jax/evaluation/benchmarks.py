"""What a model is measured on: held-out renderings with frozen seeds, and real pairs."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import UInt8

from uniser_jax.data import pairs
from uniser_jax.data.photos import Photos
from uniser_jax.data.pipeline import random_crop
from uniser_jax.effects import edit
from uniser_jax.effects.edit import EditSampling, Rendering
from uniser_jax.effects.heldout import HELD_OUT
from uniser_jax.effects.layer import Scene
from uniser_jax.effects.mixture import Mixture
from uniser_jax.evaluation.protocols import UNIFORM, Protocol
from uniser_jax.types import EFFECTS

_SAMPLING = EditSampling(mixture=Mixture(strength_min=0.5))  # of every rendered edit

Image = UInt8[np.ndarray, "h w c"]
# (photograph, task, soft mask or None) -> restored photograph
Restore = Callable[[Image, str, UInt8[np.ndarray, "h w"] | None], Image]


class Item(NamedTuple):
    """One question with its answer."""

    effect: str  # the row of the table it counts for
    name: str
    task: str
    input: Image
    target: Image
    mask: UInt8[np.ndarray, "h w"] | None


@dataclasses.dataclass
class Scores:
    """Scores of the photographs of one effect, as they came and restored, by metric."""

    input: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    restored: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    count: int = 0

    def add(self, item: Item, restored: Image, protocol: Protocol = UNIFORM) -> None:
        """Counts one item."""
        for scores, image in ((self.input, item.input), (self.restored, restored)):
            for name, score in protocol.scores(item.target, image, item.mask).items():
                scores.setdefault(name, []).append(score)
        self.count += 1

    def mean(self) -> dict[str, float]:
        """`psnr_input`, `psnr_restored`, ... over the photographs that have the metric, and the count."""
        means = {
            f"{name}_{when}": float(np.mean(getattr(self, when)[name]))
            for name in self.input
            for when in ("input", "restored")
        }
        return means | {"count": self.count}


def rendered_edits(photos: Photos, size: int, count: int, seed: int) -> Iterator[Item]:
    """Edits of photographs, the same for the same seed: each effect alone, then mixtures of two to four.

    The whole effect is to be removed, everywhere; a single one is asked for by name, occlusions and mixtures generically.

    Args:
      photos: to render on.
      size: side in pixels.
      count: of edits per effect.
      seed: of everything.
    """
    for effect, name, rng, scene in _scenes((*EFFECTS, "mixture"), photos, size, count, seed):
        several = sorted(rng.choice(4, int(rng.integers(2, 5)), replace=False))
        names = tuple(EFFECTS[k] for k in several) if effect == "mixture" else (effect,)
        task = "remove effects" if effect == "mixture" else edit.task_of("remove", effect)
        recipe = edit.sample(rng, scene, _SAMPLING, effects=names, task=task)
        degraded, clean = Rendering(scene, recipe).pair(task, np.full((size, size), 255, np.uint8))
        yield Item(effect, name, task, degraded, clean, None)


def held_out_edits(photos: Photos, size: int, count: int, seed: int) -> Iterator[Item]:
    """Effects that no model is trained on, drawn as `rendered_edits` and asked for generically; the same arguments."""
    for effect, name, rng, scene in _scenes(HELD_OUT, photos, size, count, seed):
        layer = HELD_OUT[effect].sample(rng, scene).render(scene)
        strength = float(rng.uniform(_SAMPLING.mixture.strength_min, 1))
        sensor = _SAMPLING.sensor(rng)
        degraded, clean = sensor.expose(layer(scene.radiance, strength)), sensor.expose(scene.radiance, 0.0)
        yield Item(effect, name, "remove effects", degraded, clean, None)


def _scenes(
    effects: Iterable[str], photos: Photos, size: int, count: int, seed: int
) -> Iterator[tuple[str, str, np.random.Generator, Scene]]:
    """For each effect and item: the effect, the item's name, its generator, and the photograph to render on."""
    for row, effect in enumerate(effects):
        for index in range(count):
            rng = np.random.default_rng((seed, row, index))
            photo, other = (random_crop(rng, photos[(index + k) % len(photos)], size) for k in (0, 1))
            yield effect, f"{effect}_{index:04d}", rng, edit.scene_from_photo(photo, other, _SAMPLING.highlight_stops)


def real_pairs(manifest: str | pathlib.Path, crop: bool = False, left_out: list[str] | None = None) -> Iterator[Item]:
    """The pairs of a manifest, asked for by name, inside the mask where there is one.

    Args:
      manifest: see `pairs.read_manifest`.
      crop: see `pairs.load`.
      left_out: takes the names of pairs that cannot be decoded, each with a warning; None ends at the first.

    Raises:
      ValueError: for a bad manifest, or if a pair, with `left_out` every one, cannot be decoded.
    """
    entries = pairs.read_manifest(manifest)
    for entry in entries:
        try:
            pair = pairs.load(entry, crop)
        except ValueError as error:
            if left_out is None or len(left_out) + 1 == len(entries):
                raise
            left_out.append(entry.name)
            logging.warning("%s is left out: %s", entry.name, error)
            continue
        task = edit.task_of("remove", entry.effect)
        yield Item(entry.effect, entry.name, task, pair.input, pair.target, pair.mask)


def evaluate(restore: Restore, items: Iterable[Item], protocol: Protocol = UNIFORM) -> dict[str, Scores]:
    """Restores and scores items one by one; the result's keys are the effects in order of appearance.

    Raises:
      ValueError: if there is no item.
    """
    return _scored(items, lambda item: restore(item.input, item.task, item.mask), protocol)


def ceiling(
    reconstruct: Callable[[Image], Image], items: Iterable[Item], protocol: Protocol = UNIFORM
) -> dict[str, Scores]:
    """Scores what a codec makes of the answers themselves: no network behind it does better, unless what is lost is put back.

    Raises:
      ValueError: if there is no item.
    """
    return _scored(items, lambda item: reconstruct(item.target), protocol)


def _scored(items: Iterable[Item], answer: Callable[[Item], Image], protocol: Protocol) -> dict[str, Scores]:
    results: dict[str, Scores] = {}
    for number, item in enumerate(items, 1):
        restored = answer(item)
        results.setdefault(item.effect, Scores()).add(item, restored, protocol)
        logging.log_every_n_seconds(logging.INFO, "evaluated %d photographs, now %s", 10, number, item.name)
    if not results:
        raise ValueError("nothing to evaluate: the source holds no pair with a known effect")
    return results
