"""Photographs whose files have a colour profile of their own: to sRGB, which the network knows, and back.

(1) L = T(p)                        levels of the file to linear light, per channel: the profile's curves
(2) l = A L,  A = M_sRGB^-1 M       linear light of sRGB; M: the profile's primaries in XYZ (ICC.1:2022, annex F)
(3) p' = T^-1(L + A^-1 (l' - l))    the way back of what changed, l to l'

Of (2) sRGB keeps what it can show. By (3) the rest survives: colours beyond sRGB come back where nothing has changed, to
the bit, and move with the others elsewhere.
"""

import contextlib
import dataclasses
import struct

import numpy as np
from jaxtyping import Float, Float32, Shaped
from PIL import ImageCms

from uniser_jax.decoding import profile_of
from uniser_jax.restore import levels

_ROOTS = 2**18  # steps of the inverse of T: four to each of 16 bits at white


@dataclasses.dataclass(frozen=True, eq=False)
class Space:
    """What the levels of a file mean.

    Args:
      light: T of (1), of every level.
      matrix: A of (2).
    """

    light: Float32[np.ndarray, "c levels"]
    matrix: Float[np.ndarray, "c c"]

    def to_srgb(self, own: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "h w c"]:
        """Equations (1) and (2): pixels of the file as sRGB, of the same type."""
        out = np.empty_like(own)
        for rows in levels.strips(own.shape):
            out[rows] = levels.encode(self._linear(own[rows]) @ self.matrix.T.astype(np.float32), own.dtype)
        return out

    def from_srgb(
        self,
        own: Shaped[np.ndarray, "h w c"],
        before: Shaped[np.ndarray, "h w c"],
        after: Shaped[np.ndarray, "h w c"],
    ) -> Shaped[np.ndarray, "h w c"]:
        """Equation (3): pixels of the file, changed as their sRGB has changed from `before` to `after`."""
        out, back = np.empty_like(own), np.linalg.inv(self.matrix).T.astype(np.float32)
        inverse = self._inverse().astype(own.dtype)
        for rows in levels.strips(own.shape):
            change = levels.decode(after[rows]) - levels.decode(before[rows])
            root = np.sqrt(np.clip(self._linear(own[rows]) + change @ back, 0, 1))
            places = (root * (_ROOTS - 1) + 0.5).astype(np.int32)
            moved = np.stack([inverse[c][places[..., c]] for c in range(3)], -1)
            out[rows] = np.where((before[rows] == after[rows]).all(-1, keepdims=True), own[rows], moved)
        return out

    def _linear(self, own: Shaped[np.ndarray, "*n c"]) -> Float32[np.ndarray, "*n c"]:
        return np.stack([self.light[c][own[..., c]] for c in range(3)], -1)

    def _inverse(self) -> Float[np.ndarray, "c roots"]:
        """T^-1, by the square root of light: even steps there are fine enough in the dark."""
        light, steps = np.linspace(0, 1, _ROOTS) ** 2, np.arange(self.light.shape[1])
        return np.stack([np.round(np.interp(light, curve, steps)) for curve in self.light])


def space_of(icc: bytes, dtype: np.dtype) -> Space | None:
    """The space of pixels with this profile; None for sRGB, and for profiles of gray, of tables or damaged ones.

    Args:
      icc: the profile.
      dtype: of the pixels: uint8 or uint16.
    """
    profile = profile_of(icc)
    if profile is None or not profile.profile.is_matrix_shaper:
        return None
    with contextlib.suppress(struct.error, KeyError, ValueError, TypeError, np.linalg.LinAlgError):
        tags = _tags(icc)
        stored = np.linspace(0, 1, levels.full(dtype) + 1)
        light = np.stack([np.maximum.accumulate(_curve(tags[name], stored)) for name in (b"rTRC", b"gTRC", b"bTRC")])
        matrix = np.linalg.inv(_primaries(ImageCms.createProfile("sRGB"))) @ _primaries(profile.profile)
        if np.isfinite(light).all() and np.isfinite(matrix).all() and np.linalg.cond(matrix) < 100:
            return Space(light.astype(np.float32), matrix)
    return None


def _primaries(profile: ImageCms.core.CmsProfile) -> Float[np.ndarray, "xyz c"]:
    colorants = (profile.red_colorant, profile.green_colorant, profile.blue_colorant)
    return np.array([xyz for xyz, _ in colorants]).T  # type: ignore[misc]


def _tags(icc: bytes) -> dict[bytes, bytes]:
    (count,) = struct.unpack_from(">I", icc, 128)
    entries = (struct.unpack_from(">4sII", icc, 132 + 12 * k) for k in range(min(count, 100)))
    return {name: icc[at : at + size] for name, at, size in entries}


def _curve(tag: bytes, stored: Float[np.ndarray, "levels"]) -> Float[np.ndarray, "levels"]:
    """A tone curve in [0, 1] (ICC.1:2022, sections 10.6 and 10.18)."""
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        values = np.array(struct.unpack_from(f">{min(count, 65_536)}H", tag, 12))
        if count <= 1:
            return stored ** (values[0] / 256 if count else 1)
        return np.interp(stored, np.linspace(0, 1, len(values)), values / 65_535)
    if tag[:4] != b"para":
        raise ValueError("no curve")
    (kind,) = struct.unpack_from(">H", tag, 8)
    used = ("g", "gab", "gabc", "gabcd", "gabcdef")[min(kind, 4)]
    values = np.array(struct.unpack_from(f">{len(used)}i", tag, 12)) / 65_536
    p = dict.fromkeys("abcdef", 0.0) | {"a": 1.0} | dict(zip(used, values, strict=True))
    edge = -p["b"] / p["a"] if kind in (1, 2) else p["d"]
    above = np.maximum(p["a"] * stored + p["b"], 0) ** p["g"] + (p["c"] if kind == 2 else p["e"])
    below = p["c"] * stored + p["f"] if kind >= 3 else np.full_like(stored, p["c"])
    return np.clip(np.where(stored >= edge, above, below) if kind else above, 0, 1)
