"""How inner loops are compiled: by numba, without Python's lock, kept on disk beside their file or in numba's user cache.

Products may be added without rounding in between (fused multiply-add), so the last bit can differ from one kind of processor
to another; nothing else about floating point is relaxed, but in `finite`, whose loops never meet NaN or infinity: there
minimum and maximum become vector code too.
"""

import functools

import numba

_njit = functools.partial(numba.njit, nogil=True, cache=True, error_model="numpy")

compiled = _njit(fastmath={"contract"})
finite = _njit(fastmath={"contract", "nnan", "ninf", "nsz"})
