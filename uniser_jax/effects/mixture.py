"""Which effects, in which order, how strong."""

import dataclasses
from typing import Any

import numpy as np

from uniser_jax.effects import fields
from uniser_jax.effects.flare import Flare, FlareSampling
from uniser_jax.effects.haze import Haze, HazeSampling
from uniser_jax.effects.layer import Scene
from uniser_jax.effects.occlusion import Occlusion, OcclusionSampling
from uniser_jax.effects.reflection import Reflection, ReflectionSampling
from uniser_jax.effects.shadow import Shadow, ShadowSampling
from uniser_jax.errors import check_weights
from uniser_jax.types import EFFECTS

FAMILIES: dict[str, Any] = {
    "shadow": Shadow,
    "haze": Haze,
    "reflection": Reflection,
    "flare": Flare,
    "occlusion": Occlusion,
}


@dataclasses.dataclass(frozen=True)
class Families:
    """What each family draws from; its kinds and their weights."""

    shadow: ShadowSampling = ShadowSampling()
    haze: HazeSampling = HazeSampling()
    reflection: ReflectionSampling = ReflectionSampling()
    flare: FlareSampling = FlareSampling()
    occlusion: OcclusionSampling = OcclusionSampling()


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Sampling weights of mixtures.

    Args:
      counts: probability of 0, 1, 2, 3 and 4 effects at once.
      shadow: relative weight of the effect.
      haze: the same.
      reflection: the same.
      flare: the same.
      auxiliary: share of single effects that are the auxiliary occlusion instead.
      strength_min: strengths are uniform in [strength_min, 1].

    Raises:
      ValueError: if counts do not sum to one, or a weight is out of range.
    """

    counts: tuple[float, ...] = (0.05, 0.55, 0.25, 0.10, 0.05)
    shadow: float = 1.0
    haze: float = 1.0
    reflection: float = 1.0
    flare: float = 1.0
    auxiliary: float = 0.18
    strength_min: float = 0.25

    def __post_init__(self) -> None:
        if len(self.counts) != 5 or min(self.counts) < 0 or not abs(sum(self.counts) - 1) <= 1e-6:
            raise ValueError(f"mixture.counts = {self.counts}: expected five probabilities that sum to 1")
        check_weights("mixture weights", self.weights())
        if not 0 <= self.auxiliary <= 1 or not 0 <= self.strength_min <= 1:
            raise ValueError(
                f"mixture.auxiliary = {self.auxiliary}, strength_min = {self.strength_min}: expected in [0, 1]"
            )

    def weights(self) -> tuple[float, ...]:
        """Of the four families, in physical order."""
        return self.shadow, self.haze, self.reflection, self.flare


def sample_effects(rng: np.random.Generator, mixture: Mixture) -> tuple[str, ...]:
    """Draws which effects meet, in physical order."""
    left = {name: weight for name, weight in zip(EFFECTS[:4], mixture.weights(), strict=True) if weight > 0}
    count = min(fields.pick(rng, mixture.counts), len(left))
    if count == 1 and rng.random() < mixture.auxiliary:
        return ("occlusion",)
    chosen = []
    for _ in range(count):  # without replacement
        chosen.append(list(left)[fields.pick(rng, tuple(left.values()))])
        del left[chosen[-1]]
    return tuple(name for name in EFFECTS if name in chosen)


def sample(
    rng: np.random.Generator,
    scene: Scene,
    mixture: Mixture,
    families: Families = Families(),
    effects: tuple[str, ...] | None = None,
) -> list[tuple[Any, float]]:
    """Draws parameters and a strength for each effect, in physical order.

    Args:
      rng: source of every draw.
      scene: what they will be rendered on; some ranges depend on it.
      mixture: weights.
      families: what each draws from.
      effects: names that force which; None draws them.

    Raises:
      ValueError: for an unknown effect.
    """
    names = sample_effects(rng, mixture) if effects is None else effects
    unknown = set(names) - set(EFFECTS)
    if unknown:
        raise ValueError(f"effect {sorted(unknown)[0]!r} is unknown; known: {', '.join(EFFECTS)}")
    ordered = [name for name in EFFECTS if name in names]
    drawn = []
    for name in ordered:
        drawn.append(FAMILIES[name].sample(rng, scene, getattr(families, name)))
        if name == "haze" and name != ordered[-1] and (night := drawn[-1].night(scene)) is not None:
            scene = scene._replace(radiance=night.onto(scene.radiance))  # whose lights the others are drawn for
    return [(parameters, float(rng.uniform(mixture.strength_min, 1))) for parameters in drawn]
