"""Colour profiles made by hand: a header, a description, primaries and curves (ICC.1:2022)."""

import struct

import numpy as np

P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
SRGB_CURVE = b"para\0\0\0\0\0\3\0\0" + struct.pack(
    ">5i", *(round(v * 65_536) for v in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
)
GAMMA_2_2 = b"curv\0\0\0\0" + struct.pack(">IH", 1, 563)

_WHITE_D65, _WHITE_D50 = np.array([0.9505, 1, 1.0891]), np.array([0.9642, 1, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def primaries(chromaticities: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Columns: XYZ of red, green and blue, of white D65, seen under D50."""
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in chromaticities]).T
    xyz = xyz * np.linalg.solve(xyz, _WHITE_D65)
    adapted = np.diag((_BRADFORD @ _WHITE_D50) / (_BRADFORD @ _WHITE_D65))
    return np.linalg.inv(_BRADFORD) @ adapted @ _BRADFORD @ xyz


def profile(name: str, chromaticities: tuple[tuple[float, float], ...], curve: bytes) -> bytes:
    """A display profile of RGB, version 4."""

    def xyz(values: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *np.round(values * 65_536).astype(int))

    text = name.encode("utf-16-be")
    tags = {b"desc": b"mluc\0\0\0\0" + struct.pack(">II4sII", 1, 12, b"enUS", len(text), 28) + text}
    tags |= {b"cprt": tags[b"desc"], b"wtpt": xyz(_WHITE_D50)}
    for letter, column in zip("rgb", primaries(chromaticities).T, strict=True):
        tags |= {f"{letter}XYZ".encode(): xyz(column), f"{letter}TRC".encode(): curve}
    table, data, at = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        table += struct.pack(">4sII", tag, at + len(data), len(content))
        data += content + b"\0" * (-len(content) % 4)
    size = at + len(data)
    header = struct.pack(
        ">I4sI4s4s4s12s4s", size, b"\0\0\0\0", 0x04300000, b"mntr", b"RGB ", b"XYZ ", bytes(12), b"acsp"
    )
    header += bytes(28) + struct.pack(">3i", *np.round(_WHITE_D50 * 65_536).astype(int))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data
