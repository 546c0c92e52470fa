"""An edit: a degraded photograph, a request, and its exact answer by rendering again.

  (1) remove: s_k(x) -> s_k (1 - aM(x)) for the effects asked for, s unchanged for the others
  (2) add:    input at s_k = 0, target at s_k aM(x)
  (3) blend (UniSER): target = aM clean + (1 - aM) input in stored values; only for comparison
  (4) a real pair:    target = encode(aM decode(clean) + (1 - aM) decode(input)), (1) of its one layer

A recipe is data: it can be logged as JSON and rendered again, bit for bit. The soft mask aM is rounded to 8 bits before the
target is rendered, so the answer obeys exactly the mask that the model sees. Where (1) removes an effect it removes its
share of the noise too: a whole removal gives the clean photograph, two halves three quarters, and aM = 0 the input itself.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Self

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from uniser_jax.effects import fields, light, masks
from uniser_jax.effects.layer import Layer, Scene, between, change, see
from uniser_jax.effects.mixture import FAMILIES, Families, Mixture
from uniser_jax.effects.mixture import sample as sample_mixture
from uniser_jax.effects.sensor import QUALITY, READ, SHOT, Sensor
from uniser_jax.effects.shadow import ShadowLayer
from uniser_jax.errors import check_weights
from uniser_jax.types import EFFECTS, TASKS, Edit

TARGETS = ("exact", "blend")
_MOST_STOPS = 16  # the sun, above white
_NAMES = {"flare": "lens flare"}  # tasks speak of lens flare


@dataclasses.dataclass(frozen=True)
class EditSampling:
    """How edits are drawn.

    Args:
      mixture: which effects meet, how strong.
      families: what each family draws from.
      generic: share of removals that ask for "effects" instead of one by name.
      absent: share of requests for an effect that is not there; the answer is the input.
      add: share of requests in the reverse direction.
      mask_all: weight of the whole frame as mask; the others are relative to it.
      mask_geometric: of boxes, ellipses and polygons.
      mask_stroke: of brush strokes.
      mask_support: of the effect's own support.
      full_strength: share of requests with a = 1; the others are uniform in [0, 1].
      noise: share of photographs with sensor noise.
      shot: its lowest and highest variance per unit of light, white at 1. Night photographs of phones have ten times as much;
        but the answer to a whole removal is free of noise, so that with more a model would learn to denoise above all.
      read: lowest and highest standard deviation in the dark, white at 1; the same holds for it.
      tone: share taken with another exposure, white balance and tone curve.
      jpeg: share compressed.
      jpeg_quality: lowest and highest, 1 to 100.
      highlight_stops: clipped highlights get up to so many stops above white. The sun and lamps are two powers of ten above it
        and more; but most that clips is sky, paper and snow, a stop or two above white, and under a layer that dims more would
        show as glowing blocks. Lamps that are hung into a scene have light of their own, whatever this is.
      target: one of TARGETS.

    Raises:
      ValueError: for a share outside [0, 1], bounds that are no range, or an unknown target.
    """

    mixture: Mixture = Mixture()
    families: Families = Families()
    generic: float = 0.4
    absent: float = 0.05
    add: float = 0.1
    mask_all: float = 0.5
    mask_geometric: float = 0.2
    mask_stroke: float = 0.2
    mask_support: float = 0.1
    full_strength: float = 0.5
    noise: float = 0.5
    shot: tuple[float, ...] = SHOT
    read: tuple[float, ...] = READ
    tone: float = 0.3
    jpeg: float = 0.1
    jpeg_quality: tuple[int, ...] = QUALITY
    highlight_stops: float = 2.5
    target: str = "exact"

    def __post_init__(self) -> None:
        for name in ("generic", "absent", "add", "full_strength", "noise", "tone", "jpeg"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"edit.{name} = {getattr(self, name)}: expected in [0, 1]")
        for name in ("shot", "read"):
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1] <= 1:
                raise ValueError(f"edit.{name} = {value}: expected lowest and highest, above 0 and at most 1")
        quality = self.jpeg_quality
        if len(quality) != 2 or not set(quality) <= set(range(1, 101)) or quality[0] > quality[1]:
            raise ValueError(f"edit.jpeg_quality = {quality}: expected lowest and highest, whole, 1 to 100")
        if not 0 <= self.highlight_stops <= _MOST_STOPS:
            raise ValueError(f"edit.highlight_stops = {self.highlight_stops}: expected in [0, {_MOST_STOPS}]")
        if self.target not in TARGETS:
            raise ValueError(f"edit.target = {self.target!r}: expected one of {', '.join(TARGETS)}")
        check_weights("edit mask weights", self.mask_weights())

    def mask_weights(self) -> tuple[float, ...]:
        """In the order of masks.KINDS."""
        form = self.mask_geometric / 3
        return (self.mask_all, form, form, form, self.mask_stroke, self.mask_support)

    def sensor(self, rng: np.random.Generator) -> Sensor:
        """Draws a camera."""
        return Sensor.sample(rng, self.noise, self.tone, self.jpeg, self.shot, self.read, self.jpeg_quality)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything an edit is made of, but the photographs; plain data.

    Args:
      effects: (name, parameters) in physical order.
      strengths: of each, in [0, 1].
      sensor: the camera.
      task: one of TASKS.
      mask: one of masks.KINDS.
      mask_seed: of its form.
      alpha: a, the strength asked for.
      target: one of TARGETS.
      pair: the name of a real pair, whose effect has no parameters; empty if the effects are rendered.
    """

    effects: tuple[tuple[str, dict[str, Any]], ...]
    strengths: tuple[float, ...]
    sensor: Sensor
    task: str
    mask: str = "all"
    mask_seed: int = 0
    alpha: float = 1.0
    target: str = "exact"
    pair: str = ""

    @property
    def shows_another(self) -> bool:
        """Whether it takes a second photograph: for a window, a patch, or as the input of a real pair."""
        shown = (name == "reflection" or values.get("texture") == "photo" for name, values in self.effects)
        return bool(self.pair) or any(shown)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote."""
        values = json.loads(text)
        values["effects"] = tuple((name, _tuples(parameters)) for name, parameters in values["effects"])
        values["strengths"] = tuple(values["strengths"])
        return cls(**values | {"sensor": Sensor(**_tuples(values["sensor"]))})


class Rendering:
    """A recipe on a scene, its layers rendered once; asks any number of questions of them.

    Args:
      scene: see `scene_from_photo`; of a real pair the clean photograph, and the input as the other one.
      recipe: what to render.

    Raises:
      ValueError: for the recipe of a real pair and a scene without its input.
    """

    def __init__(self, scene: Scene, recipe: Recipe):
        self.recipe = recipe
        self.removed = scene.removed
        self.names = tuple(name for name, _ in recipe.effects)
        self.layers: list[Layer] = []
        for name, values in recipe.effects:
            layer = _given(name, scene, recipe.pair) if recipe.pair else FAMILIES[name](**values).render(scene)
            self.layers.append(layer)
            if layer.lamp is not None:  # it belongs to the scene, whatever is removed: later layers see it
                scene = scene._replace(radiance=layer.lamp.onto(scene.radiance))
        self.radiance = scene.radiance
        sources = tuple(each for layer in self.layers if layer.lamp is not None for each in layer.lamp.sources)
        for k, layer in enumerate(self.layers):
            if isinstance(layer, ShadowLayer):
                self.layers[k] = dataclasses.replace(layer, spared=sources)

    def clean(self) -> UInt8[np.ndarray, "h w c"]:
        """The photograph without any effect, as the same camera takes it without noise."""
        return self.recipe.sensor.expose(self.radiance, 0.0)

    def expose(
        self, strengths: Sequence[Float32[np.ndarray, "h w"] | float], noise: Float32[np.ndarray, "h w"] | float = 1.0
    ) -> UInt8[np.ndarray, "h w c"]:
        """The file the camera writes with the layers at these strengths and this share of the noise."""
        return self.recipe.sensor.expose(see(self.radiance, self.layers, strengths), noise)

    def pair(
        self, task: str, mask: UInt8[np.ndarray, "h w"]
    ) -> tuple[UInt8[np.ndarray, "h w c"], UInt8[np.ndarray, "h w c"]]:
        """Input and exact target of any task under any soft mask: equations (1) and (2).

        Args:
          task: one of TASKS.
          mask: aM, 255 is one.

        Raises:
          ValueError: for a task that adds an effect which the recipe does not hold: nothing here would answer it.
        """
        strengths = self.recipe.strengths
        asked, adds = asked_for(task, self.names), task.startswith("add")
        if not any(asked):
            if adds:
                there = ", ".join(self.names) or "nothing"
                raise ValueError(f"task {task!r}: expected a recipe that holds the effect, this one holds {there}")
            degraded = self.expose(strengths)
            return degraded, degraded
        first = asked.index(True)
        uneven = mask.min() < mask.max()
        a = np.arange(256) / 255

        def over_frame(share: np.ndarray) -> Any:  # jaxtyping would cost 30 us here, at each call
            """What a share that depends on aM is, at each pixel or, where all are alike, everywhere."""
            return cv2.LUT(mask, share.astype(np.float32)) if uneven else float(share[mask[0, 0]])

        without = [0.0 if ask else s for ask, s in zip(asked, strengths, strict=True)]
        if adds:
            after = [over_frame(s * a) if ask else s for ask, s in zip(asked, strengths, strict=True)]
            degraded, target = self._expose_both(first, without, after, 1.0)  # (2)
        elif self.recipe.target == "blend":
            degraded, clean = self._expose_both(first, strengths, without, 0.0)
            share = np.asarray(over_frame(a), np.float32)[..., None]
            target = np.round(share * clean + (1 - share) * degraded).astype(np.uint8)  # (3)
        else:
            left = [over_frame(s * (1 - a)) if ask else s for ask, s in zip(asked, strengths, strict=True)]
            degraded, target = self._expose_both(first, strengths, left, over_frame(1 - a))  # (1)
        if uneven:  # scattered light and JPEG blocks reach across the edge of a mask
            target = cv2.copyTo(degraded, (mask == 0).view(np.uint8), target)
        return degraded, target

    def _expose_both(
        self, first: int, before: Sequence[Any], after: Sequence[Any], noise: Float32[np.ndarray, "h w"] | float
    ) -> tuple[UInt8[np.ndarray, "h w c"], UInt8[np.ndarray, "h w c"]]:
        """Two exposures that differ from layer `first` on, the second with a share of the noise."""
        shared = see(self.radiance, self.layers[:first], before[:first])
        seen, changed = (see(shared, self.layers[first:], strengths[first:]) for strengths in (before, after))
        return self.recipe.sensor.expose(seen), self.recipe.sensor.expose(changed, noise)

    def edit(self) -> Edit:
        """The training example that the recipe describes."""
        recipe = self.recipe
        mask = self.mask()
        before, after = self.pair(recipe.task, mask)
        strengths = np.zeros(len(EFFECTS), np.float32)
        if recipe.task.startswith("add"):
            present = [0.0 if ask else 1.0 for ask in asked_for(recipe.task, self.names)]
        else:
            present = [1.0] * len(self.names)
        for name, strength, there in zip(self.names, recipe.strengths, present, strict=True):
            strengths[EFFECTS.index(name)] = strength * there
        return Edit(before, after, mask, np.array(TASKS.index(recipe.task), np.int32), strengths)

    def mask(self) -> UInt8[np.ndarray, "h w"]:
        """The recipe's soft mask aM, rounded to 8 bits; 0 where a real pair keeps its effect in both."""
        mask = self._drawn_mask()
        return mask if self.removed is None else cv2.multiply(mask, self.removed, scale=1 / 255)

    def _drawn_mask(self) -> UInt8[np.ndarray, "h w"]:
        shape = self.radiance.shape[:2]
        if self.recipe.mask == "all":
            return np.full(shape, round(255 * self.recipe.alpha), np.uint8)
        where = None
        if self.recipe.mask == "support":
            asked = asked_for(self.recipe.task, self.names)
            strengths = self.recipe.strengths
            without = [0.0 if ask else s for ask, s in zip(asked, strengths, strict=True)]
            views = (see(self.radiance, self.layers, each) for each in (strengths, without))
            where = change(*views) if any(asked) else np.ones(shape, np.float32)
        drawn = masks.draw(np.random.default_rng(self.recipe.mask_seed), shape, self.recipe.mask, where)
        return cv2.convertScaleAbs(drawn, alpha=255 * self.recipe.alpha)


def scene_from_photo(
    photo: UInt8[np.ndarray, "h w c"], other: UInt8[np.ndarray, "h w c"] | None = None, stops: float = 0.0
) -> Scene:
    """Decodes a photograph, and the one a window may reflect, and lifts their clipped highlights by up to `stops`."""
    return Scene(
        light.expand_highlights(photo, stops), None if other is None else light.expand_highlights(other, stops)
    )


def sample(
    rng: np.random.Generator,
    scene: Scene,
    sampling: EditSampling,
    effects: tuple[str, ...] | None = None,
    task: str | None = None,
) -> Recipe:
    """Draws a recipe for a scene.

    Args:
      rng: source of every draw.
      scene: see `scene_from_photo`.
      sampling: probabilities.
      effects: names that force which effects; None draws them.
      task: forces the request; None draws it.

    Raises:
      ValueError: for an unknown effect or task.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"task {task!r} is unknown; known: {', '.join(map(repr, TASKS))}")
    drawn = sample_mixture(rng, scene, sampling.mixture, sampling.families, effects)
    names = tuple(parameters.effect for parameters, _ in drawn)
    request = _sample_task(rng, sampling, names) if task is None else task
    kind = masks.KINDS[fields.pick(rng, sampling.mask_weights())]
    if kind == "support" and not any(asked_for(request, names)):
        kind = "all"
    return Recipe(
        effects=tuple((parameters.effect, dict(vars(parameters))) for parameters, _ in drawn),
        strengths=tuple(strength for _, strength in drawn),
        sensor=sampling.sensor(rng),
        task=request,
        mask=kind,
        mask_seed=int(rng.integers(2**31)),
        alpha=1.0 if rng.random() < sampling.full_strength else float(rng.random()),
        target=sampling.target,
    )


def sample_real(rng: np.random.Generator, effect: str, pair: str, sampling: EditSampling) -> Recipe:
    """Draws what is asked of a real pair: a removal, by name or generic, in a mask, at a strength; no camera, no noise.

    Args:
      rng: source of every draw.
      effect: one of types.EFFECTS, what its input shows.
      pair: its name.
      sampling: probabilities; `absent`, `add`, the camera and `target` are for rendered edits.
    """
    asked = "occlusion" if rng.random() < sampling.generic else effect
    return Recipe(
        effects=((effect, {}),),
        strengths=(1.0,),
        sensor=Sensor(),
        task=task_of("remove", asked),
        mask=masks.KINDS[fields.pick(rng, sampling.mask_weights())],
        mask_seed=int(rng.integers(2**31)),
        alpha=1.0 if rng.random() < sampling.full_strength else float(rng.random()),
        pair=pair,
    )


def task_of(verb: str, effect: str) -> str:
    """The task that asks to remove or add an effect; occlusion is only asked for generically."""
    return f"{verb} {'effects' if effect == 'occlusion' else _NAMES.get(effect, effect)}"


def asked_for(task: str, names: Sequence[str]) -> list[bool]:
    """Which of the present effects a task speaks of."""
    generic = task.endswith("effects")
    return [task != "" and (generic or task.endswith(_NAMES.get(name, name))) for name in names]


def _given(effect: str, scene: Scene, pair: str) -> Layer:
    """The layer of a real pair: equation (4)."""
    if scene.other is None:
        raise ValueError(
            f"the recipe of the real pair {pair!r}: expected a scene with its input as the other photograph"
        )
    return between(effect, scene.radiance, scene.other)


def _sample_task(rng: np.random.Generator, sampling: EditSampling, names: tuple[str, ...]) -> str:
    if not names:  # whatever is to be removed, the answer is the photograph; to add, there is nothing
        return fields.any_of(rng, tuple(task for task in TASKS if not task.startswith("add")))
    if rng.random() < sampling.absent:
        absent = [name for name in EFFECTS[:4] if name not in names]
        return task_of("remove", fields.any_of(rng, absent)) if absent else ""
    verb = "add" if rng.random() < sampling.add and "occlusion" not in names else "remove"
    effect = "occlusion" if rng.random() < sampling.generic else fields.any_of(rng, names)
    return task_of(verb, effect)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples; parameters have no lists."""
    return {key: _tuple(value) for key, value in values.items()}


def _tuple(value: Any) -> Any:
    return tuple(_tuple(item) for item in value) if isinstance(value, list | tuple) else value
