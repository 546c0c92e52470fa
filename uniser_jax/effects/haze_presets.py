"""UniSER's haze renderer, setting by setting, so that its data can be reproduced (arXiv 2511.14183; its public scripts).

(1) tau_c = N (3.912 / V * k_c * d * D * e^(-h/H) + b)      V visibility, d relative depth, D metres at d = 1, b in [0, 0.2]
(2) h = h_max (1 - y)                                      the row stands for height: y = 0 at the top
(3) N = (1 - mix) + mix * smoke                            where a smoke texture is asked for
(4) seen = J e^-tau + A w (1 - e^(-eta tau))               A stored sRGB, made linear; w albedo

What `haze` does otherwise, and why: depth there is relative, and taken for metres; the row is no height; k = (1.1, 1, 0.9)
attenuates red most, where fine haze attenuates blue most; eta < 1 loses the light that it does not turn into a veil, where
light scattered forward is still light of the scene; nothing is blurred, and the airlight knows nothing of the photograph.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32

from uniser_jax.effects import fields, light
from uniser_jax.effects.layer import Affine, Strength, per_channel

Colour = tuple[int, int, int]

_SKY_BLUE, _WARM, _PALE, _BROWN, _COOL = (
    (172, 186, 215),  # of (153, 174, 215), with 0.7 of its saturation
    (200, 180, 140),
    (210, 210, 220),
    (190, 170, 150),
    (180, 180, 190),
)
_FOGS = ((1000, 1.0), (500, 0.95), (300, 1.0), (200, 0.95), (120, 0.9), (80, 0.85), (40, 0.5))  # visibility, eta
_VALLEYS = ((30, 30), (50, 45), (70, 60))  # visibility, scale height


class Setting(NamedTuple):
    """One of the 37; see the equations.

    Args:
      visibility: V, metres.
      airlight: A, stored values.
      reach: D, metres.
      spectrum: k.
      eta: see (4).
      albedo: w.
      height: H, metres.
      top: h_max, metres.
    """

    visibility: float
    airlight: Colour
    reach: float
    spectrum: tuple[float, float, float]
    eta: float
    albedo: float
    height: float
    top: float


@functools.cache
def settings() -> dict[str, Setting]:
    """All 37 by name: 20 of haze, 10 of fog, 7 of smoke."""
    hazes = {"sky-blue": _SKY_BLUE, "warm-urban": _WARM, "pale-gray": _PALE, "brownish-dust": _BROWN}
    smokes: list[tuple[str, int, Colour, float, float, float, float]] = [
        ("smoke-light", 250, (200, 180, 160), 0.95, 0.85, 50, 50),
        ("smoke-medium", 150, (180, 150, 120), 0.9, 0.8, 50, 50),
        ("smoke-heavy", 80, (160, 120, 90), 0.85, 0.75, 40, 60),
        *((f"smoke-cool-gray-{v}", v, _COOL, 0.92, 0.85, 50, 50) for v in (120, 200, 500, 1000)),
    ]
    white = (255, 255, 255)
    found = {
        f"haze-{name}-{v}": Setting(v, colour, 120, (1.1, 1.0, 0.9), 1.0, 1.0, 1200, 1200)
        for name, colour in hazes.items()
        for v in (100, 200, 300, 500, 1000)
    }
    found |= {f"fog-{v}": Setting(v, white, 60, (1.0, 1.0, 1.0), eta, 1.0, 100, 100) for v, eta in _FOGS}
    found |= {
        f"fog-valley-{v}": Setting(v, white, 60, (1.0, 1.0, 1.0), 0.7, 1.0, height, 120) for v, height in _VALLEYS
    }
    for name, v, colour, eta, albedo, height, top in smokes:
        found[name] = Setting(v, colour, 100, (0.9, 1.0, 1.1), eta, albedo, height, top)
    return found


@dataclasses.dataclass(frozen=True)
class UniserLayer:
    """Equation (4); strength scales tau. With eta = w = 1 it is Koschmieder's law, and light is kept.

    Args:
      effect: one of types.EFFECTS.
      optical_depth: tau, per channel.
      airlight: A w, linear.
      eta: see (4).
    """

    effect: str
    optical_depth: Float32[np.ndarray, "h w c"]
    airlight: Float32[np.ndarray, "c"]
    eta: float
    lamp: None = None

    def __call__(self, radiance: Float32[np.ndarray, "h w c"], strength: Strength) -> Float32[np.ndarray, "h w c"]:
        """Equation (4)."""
        return self.at(strength)(radiance)

    def at(self, strength: Strength) -> Affine:
        """Equation (4)."""
        s = per_channel(strength)
        tau = -s * self.optical_depth
        veil = self.airlight * (1 - cv2.exp(np.float32(self.eta) * tau))
        return Affine(cv2.exp(tau), veil)


def render(name: str, depth: fields.Field, seed: int, texture: float) -> UniserLayer:
    """One setting on one photograph.

    Args:
      name: a key of `settings`.
      depth: relative, 1 far.
      seed: of baseline, colour jitter and texture.
      texture: mix of (3); 0 is homogeneous.
    """
    setting = settings()[name]
    rng = np.random.default_rng(seed)
    baseline, jitter = rng.uniform(0, 0.2), rng.uniform(-5, 5, 3)
    height = setting.top * (1 - np.linspace(0, 1, len(depth), dtype=np.float32))[:, None]
    beta = np.float32(3.912 / setting.visibility * setting.reach) * np.exp(-height / np.float32(setting.height))
    tau = (beta * depth)[..., None] * np.array(setting.spectrum, np.float32) + np.float32(baseline)  # (1)
    if texture:
        tau *= (1 - np.float32(texture) * (1 - smoke(rng, depth.shape)))[..., None]  # (3)
    stored = np.clip((np.array(setting.airlight) + jitter) / 255, 0, 1)
    airlight = setting.albedo * light.expand(stored)
    return UniserLayer("haze", tau.astype(np.float32), airlight.astype(np.float32), setting.eta)


def smoke(rng: np.random.Generator, shape: tuple[Any, ...]) -> fields.Field:
    """A smoke texture: fractal noise with blobs of 0.09 to 0.24 of the image, half of them bent along a field of flow.

    There UniSER averages the noise over 15 to 35 steps; one displacement stands for them, and smears nothing.
    """
    noise = fields.fractal_noise(rng, shape, rng.uniform(180, 500) / 2048, int(rng.integers(5, 8)), 0.5)
    if rng.random() < 0.5:
        return noise
    flow = [fields.fractal_noise(rng, shape, rng.uniform(350, 550) / 2048, int(rng.integers(3, 6))) for _ in range(2)]
    reach = rng.uniform(15, 35) * rng.uniform(1, 2) / 2048 * fields.side(shape)  # steps x length of a step
    x, y = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape[::-1]))
    drawn = cv2.remap(
        noise, x + reach * (flow[0] - 0.5), y + reach * (flow[1] - 0.5), cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT
    )
    share = np.float32(rng.uniform(0.3, 0.7))
    return (1 - share) * noise + share * drawn
