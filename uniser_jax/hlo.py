"""The largest buffers of a compiled program, read from the text of its HLO."""

import math
import re

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_COMPUTATION = re.compile(r"^(?:ENTRY )?(%[\w.-]+) \(", re.M)
_FUSED = re.compile(r" fusion\(.*?calls=(%[\w.-]+)")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%[\w.-]+ = (\w+)\[([\d,]+)\]\{([^}]*)\} ([\w-]+)\(", re.M)
_VIEWS = ("bitcast", "get-tuple-element", "tuple", "while", "parameter")
_ON_CHIP = "S(1)"  # of a layout: VMEM


def largest_buffers(text: str, count: int) -> list[tuple[int, str, str]]:
    """(bytes, shape, where from) of the largest arrays that a program writes to memory, each shape once.

    What happens inside a fusion never reaches memory, and views are no arrays of their own. Sizes are without padding.
    """
    fused = set(_FUSED.findall(text))
    found: dict[str, tuple[int, str, str]] = {}
    starts = [*_COMPUTATION.finditer(text)]
    for start, end in zip(starts, [*(s.start() for s in starts[1:]), len(text)], strict=True):
        if start[1] in fused:
            continue
        for line in text[start.start() : end].splitlines():
            match = _INSTRUCTION.match(line)
            if match is None or match[4] in _VIEWS or match[1] not in _BYTES or _ON_CHIP in match[3]:
                continue
            shape = f"{match[1]}[{match[2]}]"
            origin = re.search(r'op_name="([^"]*)"', line)
            size = _BYTES[match[1]] * math.prod(int(side) for side in match[2].split(","))
            if shape not in found or not found[shape][2]:
                found[shape] = size, shape, _describe(origin[1]) if origin else ""
    return sorted(found.values(), reverse=True)[:count]


def _describe(name: str) -> str:
    """`jit(step)/transpose(jvp())/while/body/.../dot_general` as `backward, recomputed: dot_general`."""
    moment = "backward" if "transpose(" in name else "forward" if "jvp(" in name else ""
    moment = "optimizer" if "/optimizer" in name else "encode" if "encode" in name else moment
    again = ", recomputed" if "rematted_computation" in name else ""
    return f"{moment or 'other'}{again}: {name.rpartition('/')[2]}"
