"""What the compiler's texts say of memory."""

import pytest

from uniser_jax import hlo


def test_the_largest_buffers_are_those_that_reach_memory() -> None:
    product = "jit(step)/transpose(jvp())/while/body/rematted_computation/dot_general"
    text = f"""HloModule jit_step, is_scheduled=true

%fused.1 (p: f32[8]) -> f32[1024,1024] {{
  ROOT %inside = f32[1024,1024]{{1,0}} broadcast(%p), metadata={{op_name="jit(step)/jvp()/inside"}}
}}

%body (c: (f32[8])) -> (f32[8]) {{
  %kept = bf16[4,256,64]{{2,1,0:T(8,128)(2,1)}} fusion(%c), kind=kLoop, calls=%fused.1, metadata={{op_name="{product}"}}
  %near = f32[512,512]{{1,0:T(8,128)S(1)}} copy(%kept)
  %far = f32[512,512]{{1,0:T(8,128)S(5)}} copy(%kept)
}}

ENTRY %main (a: f32[2048,2048]) -> f32[] {{
  %a = f32[2048,2048]{{1,0}} parameter(0)
  %sum = f32[16,16]{{1,0}} add(%a, %a), metadata={{op_name="jit(step)/jvp()/add"}}
  %again = f32[16,16]{{1,0}} add(%a, %a)
}}
"""
    assert hlo.largest_buffers(text, 5) == [
        (4 * 256 * 128 * 2, "bf16[4,256,64]", "backward, recomputed: dot_general"),
        (16 * 16 * 4, "f32[16,16]", "forward: add"),
    ]


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        ("1,0", 20 * 130),  # a GPU pads nothing
        ("1,0:T(8,128)", 24 * 256),
        ("0,1:T(8,128)", 128 * 136),
        ("1,0:T(256)", 20 * 256),
    ],
)
def test_tiles_are_filled(layout: str, size: int) -> None:
    text = f"ENTRY %main (a: f32[]) -> f32[20,130] {{\n  ROOT %b = f32[20,130]{{{layout}}} broadcast(%a)\n}}\n"
    assert hlo.largest_buffers(text, 1) == [(4 * size, "f32[20,130]", "")]


# As jax issues quote it, from a longer list.
LISTED = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 41.74G of 16.00G hbm. Exceeded by 25.74G.

  Largest program allocations in hbm:

  1. Size: 1.50G
     Operator: op_name="jit(step)/jvp(encode)/conv_general_dilated"
     Shape: bf16[8,512,512,128]{2,1,0:T(8,128)(2,1)}
     Unpadded size: 1.00G
     ==========================

  2. Size: 2.00G
     Shape: f32[8,64]{1,0}
     ==========================
"""


def test_the_errors_of_the_compiler() -> None:
    early = (
        "RESOURCE_EXHAUSTED: ... the total memory required for HLO temporaries (87.19G) exceeds available HBM (512M)."
    )
    assert hlo.shortage(early) == (87.19 * 2**30, 512 * 2**20)
    assert hlo.shortage(LISTED) == (41.74 * 2**30, 16 * 2**30)
    assert hlo.allocations(LISTED, 5) == [
        (2 * 2**30, "f32[8,64]", ""),
        (3 * 2**29, "bf16[8,512,512,128]", "encode: conv_general_dilated"),
    ]
    assert hlo.allocations(LISTED, 1) == [(2 * 2**30, "f32[8,64]", "")]


@pytest.mark.parametrize(
    "message", ["", "INTERNAL", "Used of hbm", "1. Size: 1.5.5G\n Shape: f32[", "(G) exceeds available HBM ()"]
)
def test_other_errors_say_nothing(message: str) -> None:
    assert hlo.shortage(message) is None
    assert hlo.allocations(message, 5) == []
    assert hlo.largest_buffers(message, 5) == []
