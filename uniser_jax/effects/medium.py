"""A medium between the scene and the camera: absorbs, scatters, and scatters forward.

(1) seen = J e^-t + A (1 - e^-t)                                      Koschmieder 1924; Beer-Lambert
(2) seen = J e^-t + (G * J) (e^-(1-f)t - e^-t) + A (1 - e^-(1-f)t)    a share f is scattered nearly straight on
(3) t_c = s tau k_c                                                   strength and spectrum scale optical depth
(4) sigma = sigma_0 sqrt(t)                                           width of G: a random walk of small angles

(2) is (1) for f = 0. It splits scattering as delta-Eddington models do (Joseph, Wiscombe & Weinman 1976): what goes forward
is light of the scene, blurred, so the veil builds up at 1 - f of the rate at which detail is lost. The weights sum to one.
"""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float32

from uniser_jax.effects import depth, fields, kernels
from uniser_jax.effects.compiled import compiled
from uniser_jax.effects.layer import Affine, Shine, Strength, per_channel, per_pixel

_NARROW, _WIDE = 0.25, 4.0  # optical depths between which (4) is followed, on a stack of two blurs
_ONE, _LOG2E = np.float32(1), np.float32(1.4426950408889634)
_LOWEST = np.float32(-126)  # exponent of two that float32 has
# 2^x - 1 = C1 x + ... + C5 x^5 in [-1, 0], to 2e-7: least squares of the relative error
_C1, _C2, _C3, _C4, _C5 = map(np.float32, (0.6931434, 0.24017924, 0.05529808, 0.00920968, 0.00094749))


@dataclasses.dataclass(frozen=True)
class MediumLayer:
    """A layer whose strength obeys (3).

    Args:
      effect: one of types.EFFECTS.
      optical_depth: tau in green.
      spectrum: k, tau of red, green and blue against it.
      airlight: A, [c], or [rows columns c] on any grid, linear between.
      forward: f, in [0, 1).
      spread: sigma_0, as a fraction of the image side.
      lamp: see layer.Layer.
    """

    effect: str
    optical_depth: Float32[np.ndarray, "h w"]
    spectrum: Float32[np.ndarray, "c"]
    airlight: Float32[np.ndarray, "..."]
    forward: float = 0.0
    spread: float = 0.0
    lamp: Shine | None = None

    def __call__(self, radiance: Float32[np.ndarray, "h w c"], strength: Strength) -> Float32[np.ndarray, "h w c"]:
        """Equation (2); G acts on the light that arrives at the layer."""
        radiance = np.ascontiguousarray(radiance)
        s, airlight = per_pixel(strength), fields.widen(self.veil(), radiance.shape)
        if not self.forward:
            return _through(radiance, airlight, self.optical_depth, s, self.spectrum)
        scattered = fields.widen(self.scattered(radiance, strength), radiance.shape)
        kept = np.float32(1 - self.forward)
        return _through_forward(radiance, scattered, airlight, self.optical_depth, s, self.spectrum, kept)

    def veil(self) -> Float32[np.ndarray, "rows columns c"]:
        """A as an image of any size, linear between its pixels."""
        return self.airlight.reshape(1, 1, 3) if self.airlight.ndim == 1 else self.airlight

    def at(self, strength: Strength) -> Affine:
        """Equation (2) where the scene is flat, so that G * J = J: pointwise."""
        s = per_channel(strength)
        reaches = np.exp(-np.float32(1 - self.forward) * s * self.optical_depth[..., None] * self.spectrum)
        return Affine(reaches, cv2.resize(self.veil(), self.optical_depth.shape[::-1]) * (1 - reaches))

    def scattered(self, radiance: Float32[np.ndarray, "h w c"], strength: Strength) -> Float32[np.ndarray, "h w c"]:
        """G * J on a small grid, as fine as so soft an image needs: two blurs, and between them by (4)."""
        n = max(1, depth.cell(radiance.shape[:2]) // 2)
        small = depth.reduce(radiance, n)
        s = depth.reduce(strength, n) if isinstance(strength, np.ndarray) else np.float32(strength)
        own = 0.5 if n > 1 else 0.0  # reducing and enlarging blur by half a cell
        width = self.spread * fields.side(small.shape[:2])
        narrow, wide = (fields.blur(small, np.sqrt(max(width**2 * t - own**2, 0))) for t in (_NARROW, _WIDE))
        walk = (np.sqrt(s * depth.reduce(self.optical_depth, n)) - np.float32(np.sqrt(_NARROW))) * np.float32(
            1 / (np.sqrt(_WIDE) - np.sqrt(_NARROW))
        )
        return _between(narrow, wide, walk)


@compiled
def _exp(x: np.float32) -> np.float32:
    """e^x for x <= 0 to 1e-6, exact at 0: a polynomial times a power of two, made of its bits; it becomes vector code."""
    y = x * _LOG2E
    y = y if y > _LOWEST else _LOWEST
    whole = np.int32(y)
    part = y - np.float32(whole)
    power = np.int32((whole + np.int32(127)) << np.int32(23)).view(np.float32)
    return power * (_ONE + part * (_C1 + part * (_C2 + part * (_C3 + part * (_C4 + part * _C5)))))


@compiled
def _through(
    radiance: kernels.Image,
    airlight: kernels.Image,
    optical_depth: kernels.Plane,
    strength: kernels.Plane,
    spectrum: Float32[np.ndarray, "c"],
) -> kernels.Image:
    """Equation (1). Channels lie flat in a row, so that every loop but the first is over neighbours in memory."""
    h, w = optical_depth.shape
    out = np.empty((h, 3 * w), np.float32)
    behind, veils = radiance.reshape(h, 3 * w), airlight.reshape(len(airlight), 3 * w)
    direct = np.empty(3 * w, np.float32)
    for i in range(h):
        k, below, a = kernels.between_rows(i, h, len(veils))
        _exponents(optical_depth[i], kernels.row(strength, i, w), spectrum, direct)
        scene, seen, veil, next_veil = behind[i], out[i], veils[k], veils[below]
        for n in range(3 * w):
            direct[n] = _exp(direct[n])
        for n in range(3 * w):
            seen[n] = scene[n] * direct[n] + (veil[n] + a * (next_veil[n] - veil[n])) * (_ONE - direct[n])
    return out.reshape(h, w, 3)


@compiled
def _through_forward(
    radiance: kernels.Image,
    scattered: kernels.Image,
    airlight: kernels.Image,
    optical_depth: kernels.Plane,
    strength: kernels.Plane,
    spectrum: Float32[np.ndarray, "c"],
    kept: np.float32,
) -> kernels.Image:
    """Equation (2), `kept` = 1 - f."""
    h, w = optical_depth.shape
    out = np.empty((h, 3 * w), np.float32)
    behind, veils = radiance.reshape(h, 3 * w), airlight.reshape(len(airlight), 3 * w)
    blurs = scattered.reshape(len(scattered), 3 * w)
    direct, reaches = np.empty(3 * w, np.float32), np.empty(3 * w, np.float32)
    for i in range(h):
        k, below, a = kernels.between_rows(i, h, len(veils))
        m, under, b = kernels.between_rows(i, h, len(blurs))
        _exponents(optical_depth[i], kernels.row(strength, i, w), spectrum, direct)
        scene, seen, veil, next_veil, soft, next_soft = (
            behind[i],
            out[i],
            veils[k],
            veils[below],
            blurs[m],
            blurs[under],
        )
        for n in range(3 * w):
            reaches[n] = _exp(direct[n] * kept)
        for n in range(3 * w):
            direct[n] = _exp(direct[n])
        for n in range(3 * w):
            airlit = (veil[n] + a * (next_veil[n] - veil[n])) * (_ONE - reaches[n])
            onward = (soft[n] + b * (next_soft[n] - soft[n])) * (reaches[n] - direct[n])
            seen[n] = scene[n] * direct[n] + onward + airlit
    return out.reshape(h, w, 3)


@compiled
def _exponents(
    optical_depth: Float32[np.ndarray, "w"],
    strength: Float32[np.ndarray, "w"],
    spectrum: Float32[np.ndarray, "c"],
    out: Float32[np.ndarray, "3*w"],
) -> None:
    """Equation (3), negative, for a row."""
    red, green, blue = spectrum[0], spectrum[1], spectrum[2]
    for j in range(len(optical_depth)):
        t = -optical_depth[j] * strength[j]
        out[3 * j] = t * red
        out[3 * j + 1] = t * green
        out[3 * j + 2] = t * blue


@compiled
def _between(narrow: kernels.Image, wide: kernels.Image, share: kernels.Plane) -> kernels.Image:
    """From one image, where the share is 0 or less, to another, where it is 1 or more."""
    out = np.empty(narrow.shape, np.float32)
    for i in range(narrow.shape[0]):
        for j in range(narrow.shape[1]):
            a = min(max(share[i, j], np.float32(0)), _ONE)
            for c in range(3):
                out[i, j, c] = narrow[i, j, c] + a * (wide[i, j, c] - narrow[i, j, c])
    return out
