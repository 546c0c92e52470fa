"""What the compiler's texts say of memory: the largest buffers of a program's HLO, and by how much a program is too large."""

import math
import re

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_COMPUTATION = re.compile(r"^(?:ENTRY )?(%[\w.-]+) \(", re.M)
_FUSED = re.compile(r" fusion\(.*?calls=(%[\w.-]+)")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%[\w.-]+ = (\w+)\[([\d,]+)\]\{([^}]*)\} ([\w-]+)\(", re.M)
_VIEWS = ("bitcast", "get-tuple-element", "tuple", "while", "parameter")
_ELSEWHERE = ("S(1)", "S(5)")  # of a layout: VMEM, and the host's memory
_TILE = re.compile(r":T\(([\d,]+)\)")

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"(\d+(?:\.\d+)?)([KMGT]?)"
_SHORTAGES = (
    re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
)
_ALLOCATION = re.compile(rf"^ *\d+\. Size: {_SIZE}\n(?: +Operator: (.*)\n)? +Shape: (\w+\[[\d,]*\])", re.M)


def largest_buffers(text: str, count: int) -> list[tuple[int, str, str]]:
    """(bytes, shape, where from) of the largest arrays that a program writes to HBM, each shape once.

    What happens inside a fusion never reaches memory, and views are no arrays of their own. Sizes are those in memory: a TPU's
    last two axes fill whole tiles.
    """
    fused = set(_FUSED.findall(text))
    found: dict[str, tuple[int, str, str]] = {}
    starts = [*_COMPUTATION.finditer(text)]
    for start, end in zip(starts, [*(s.start() for s in starts[1:]), len(text)], strict=False):
        if start[1] in fused:
            continue
        for line in text[start.start() : end].splitlines():
            match = _INSTRUCTION.match(line)
            if match is None or match[4] in _VIEWS or match[1] not in _BYTES or match[3].endswith(_ELSEWHERE):
                continue
            shape = f"{match[1]}[{match[2]}]"
            size = _BYTES[match[1]] * _padded([int(side) for side in match[2].split(",")], match[3])
            origin = _origin(line)
            if shape not in found or (size, origin > "") > (found[shape][0], found[shape][2] > ""):
                found[shape] = size, shape, origin
    return sorted(found.values(), reverse=True)[:count]


def shortage(message: str) -> tuple[float, float] | None:
    """(bytes that a program needs, bytes of HBM) from the error of a TPU's compiler; None if it says nothing of the kind."""
    for pattern in _SHORTAGES:
        if found := pattern.search(message):
            return float(found[1]) * _UNITS[found[2]], float(found[3]) * _UNITS[found[4]]
    return None


def allocations(message: str, count: int) -> list[tuple[int, str, str]]:
    """The same as `largest_buffers`, from the list that some versions of the compiler add to that error; none is empty."""
    found = [
        (int(float(size) * _UNITS[unit]), shape, _origin(operator))
        for size, unit, operator, shape in _ALLOCATION.findall(message)
    ]
    return sorted({one[1]: one for one in sorted(found)}.values(), reverse=True)[:count]


def _padded(sides: list[int], layout: str) -> int:
    """Numbers that an array takes, whose layout is as `2,1,0:T(8,128)(2,1)`: its axes, innermost first, and tiles."""
    inner = [sides[int(axis)] for axis in layout.partition(":")[0].split(",")]
    if tile := _TILE.search(layout):
        whole = [int(side) for side in reversed(tile[1].split(","))]
        inner[: len(whole)] = [-(-side // unit) * unit for side, unit in zip(inner, whole, strict=False)]
    return math.prod(inner)


def _origin(line: str) -> str:
    """`op_name="jit(step)/transpose(jvp())/while/body/.../dot_general"` as `backward, recomputed: dot_general`; else "" ."""
    found = re.search(r'op_name="([^"]*)"', line)
    if found is None:
        return ""
    name = found[1]
    moment = "backward" if "transpose(" in name else "forward" if "jvp(" in name else ""
    moment = "optimizer" if "/optimizer" in name else "encode" if "encode" in name else moment
    again = ", recomputed" if "rematted_computation" in name else ""
    return f"{moment or 'other'}{again}: {name.rpartition('/')[2]}"
