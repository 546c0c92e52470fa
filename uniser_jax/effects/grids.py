"""Steps of computations on small grids, compiled by numba to be called from kernels: there they cost no call and no lock.

Each is what the OpenCV function of its docstring does, on float32.
"""

import numpy as np
from jaxtyping import Float32

from uniser_jax.effects.compiled import compiled

Plane = Float32[np.ndarray, "h w"]

_A = -0.75  # of the cubic kernel, as OpenCV has it


@compiled
def cubic(plane: Plane, h: int, w: int) -> Plane:
    """cv2.resize with INTER_CUBIC."""
    return cubic_part(plane, h, w, 0.0, 0.0, plane.shape[0], plane.shape[1])


@compiled
def cubic_part(plane: Plane, h: int, w: int, top: float, left: float, rows: float, columns: float) -> Plane:
    """The same of a part of so many rows and columns; it may begin and end between two."""
    wide = _rows(np.ascontiguousarray(plane.T), w, left, columns)
    return _rows(np.ascontiguousarray(wide.T), h, top, rows)


@compiled
def _rows(plane: Plane, h: int, start: float, length: float) -> Plane:
    """`cubic_part` along columns only, so that loops run along rows."""
    n, w = plane.shape
    if n == h and start == 0 and length == n:
        return plane
    out = np.empty((h, w), np.float32)
    for i in range(h):
        y = start + (i + 0.5) * length / h - 0.5
        k = int(np.floor(y))
        t = y - k
        s = 1 - t
        first, last = np.float32(_A * t * s * s), np.float32(_A * s * t * t)
        second = np.float32(((_A + 2) * t - (_A + 3)) * t * t + 1)
        third = np.float32(1) - first - second - last
        r0, r1 = plane[min(max(k - 1, 0), n - 1)], plane[min(max(k, 0), n - 1)]
        r2, r3 = plane[min(max(k + 1, 0), n - 1)], plane[min(max(k + 2, 0), n - 1)]
        row = out[i]
        for j in range(w):
            row[j] = first * r0[j] + second * r1[j] + third * r2[j] + last * r3[j]
    return out


@compiled
def box(plane: Plane, reach: int) -> Plane:
    """cv2.blur with squares of side 2 reach + 1."""
    h, w = plane.shape
    out, total, padded = np.empty((h, w), np.float32), np.empty(w, np.float32), np.empty(w + 2 * reach, np.float32)
    share = np.float32(1 / (2 * reach + 1) ** 2)
    for i in range(h):
        total[:] = 0
        for k in range(i - reach, i + reach + 1):
            row = plane[_mirrored(k, h)]
            for j in range(w):
                total[j] += row[j]
        padded[reach : reach + w] = total
        for j in range(reach):
            padded[j], padded[reach + w + j] = total[_mirrored(j - reach, w)], total[_mirrored(w + j, w)]
        row = out[i]
        row[:] = 0
        for k in range(2 * reach + 1):
            for j in range(w):
                row[j] += padded[k + j]
        for j in range(w):
            row[j] *= share
    return out


@compiled
def _mirrored(k: int, n: int) -> int:
    """BORDER_REFLECT_101."""
    while n > 1 and not 0 <= k < n:
        k = -k if k < 0 else 2 * (n - 1) - k
    return k if n > 1 else 0
