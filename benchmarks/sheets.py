"""The pictures of docs/effects: what each family draws, by kind, on scikit-image's photographs.

python -m benchmarks.sheets [--out docs/effects] [--side 240] [--seed 0]
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from uniser_jax.data.photos import samples
from uniser_jax.effects import edit, gallery, haze, light, masks, shadow
from uniser_jax.effects.edit import EditSampling, Rendering
from uniser_jax.effects.heldout import HELD_OUT
from uniser_jax.effects.layer import Scene, change, visible_change
from uniser_jax.effects.mixture import Families, Mixture
from uniser_jax.effects.occlusion import MATERIALS

_SHOWN = (0, 5, 3, 10)  # an astronaut, a cup of coffee, a cat, a rocket in the evening
_WINDOW = {"sharp": 1.0, "double": 0.0, "tinted": 0.0, "night": 0.0, "occluded": 0.0}


def _only(one: str, names: Iterable[str], **values: Any) -> dict[str, Any]:
    """Weights that leave one of several names."""
    return values | {name: float(name == one) for name in names}


KINDS: dict[str, dict[str, Any]] = {  # what each family draws from; by column
    "haze": {**{kind: _only(kind, haze.KINDS) for kind in haze.KINDS}, "UniSER's": {"uniser": 1.0}},
    "flare": {
        "phone": {"phone": 1.0},
        "lens": {"phone": 0.0, "ghosts": 0.0, "streaks": 0.0},
        "ghosts": {"phone": 0.0, "ghosts": 1.0},
        "streaks": {"phone": 0.0, "streaks": 1.0},
        "out of frame": {"own": 0.0, "outside": 1.0},
    },
    "shadow": {
        **{kind: _only(kind, shadow.GROUPS, indoors=0.0) for kind in shadow.GROUPS},
        "indoors": {"indoors": 1.0},
    },
    "reflection": {
        "in focus": _WINDOW,
        "out of focus": _WINDOW | {"sharp": 0.0},
        "double pane": _WINDOW | {"double": 1.0},
        "tinted": _WINDOW | {"tinted": 1.0},
        "night": _WINDOW | {"night": 1.0},
        "occluded": _WINDOW | {"occluded": 1.0},
    },
    "occlusion": {kind: {"materials": tuple(float(kind == each) for each in MATERIALS)} for kind in MATERIALS},
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser("benchmarks.sheets", description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/effects"))
    parser.add_argument("--side", type=int, default=240, help="of a picture, in pixels")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in (*KINDS, "heldout", "masks"):
        path = arguments.out / f"{name}.jpg"
        Image.fromarray(sheet(name, arguments.side, arguments.seed)).save(path, quality=80)
        sys.stdout.write(f"{path}\n")


def sheet(name: str, side: int = 240, seed: int = 0) -> gallery.Image:
    """A row per photograph: clean, then one draw of each kind of a family, or of each held-out effect; or masks."""
    if name == "masks":
        return _masks(side, seed)
    photos = [gallery.square(samples()[index], side) for index in _SHOWN]
    kinds = HELD_OUT if name == "heldout" else KINDS[name]
    rows = []
    for row, photo in enumerate(photos):
        scene = edit.scene_from_photo(photo, photos[row - 1], 2.0)
        rngs = [np.random.default_rng((seed, row, column)) for column in range(len(kinds))]
        rows.append([photo, *(_seen(name, kind, rng, scene) for kind, rng in zip(kinds, rngs, strict=True))])
    return gallery.grid(rows, ["clean", *kinds])


def _seen(name: str, kind: str, rng: np.random.Generator, scene: Scene) -> gallery.Image:
    if name == "heldout":
        return light.encode(HELD_OUT[kind].sample(rng, scene).render(scene)(scene.radiance, 1.0))
    own = getattr(Families(), name)
    families = Families(**{name: dataclasses.replace(own, **KINDS[name][kind])})
    sampling = EditSampling(mixture=Mixture(strength_min=0.7), families=families, noise=0, tone=0, jpeg=0)
    recipe = edit.sample(rng, scene, sampling, effects=(name,))
    return Rendering(scene, recipe).expose(recipe.strengths)


def _masks(side: int, seed: int) -> gallery.Image:
    """A row per photograph: what a shadow changes of it, then one draw of each form, the last as people mark that change."""
    kinds, rows = [kind for kind in masks.KINDS if kind != "all"], []
    cast = shadow.ShadowSampling(**_only("objects", shadow.GROUPS, indoors=0.0))
    for row, index in enumerate(_SHOWN):
        scene = edit.scene_from_photo(gallery.square(samples()[index], side))
        layer = shadow.Shadow.sample(np.random.default_rng((seed, row)), scene, cast).render(scene)
        views = scene.radiance, layer(scene.radiance, 1.0)
        changed, most = visible_change(*views), change(*views)
        rngs = [np.random.default_rng((seed, row, column)) for column in range(len(kinds))]
        drawn = [masks.draw(rng, changed.shape, kind, most) for rng, kind in zip(rngs, kinds, strict=True)]
        rows.append([np.repeat((255 * each).astype(np.uint8)[..., None], 3, -1) for each in (changed, *drawn)])
    return gallery.grid(rows, ["changed", *kinds])


if __name__ == "__main__":
    main()
