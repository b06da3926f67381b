"""How cycles are read from what the TPU's compiler writes."""

import pytest

from noah_jax.aot.kernel_cycles import bundle_cycles, kernel_calls


def test_cycles_of_a_listing():
    listing = """
     0   :  { %s1 = nothing }
   0x1 LB: > { %v1 = vld [vmem:[%s1]] }
   0x2   : > { %v2 = vadd.f32 %v1, %v1 }
   0x3 LB: >> { %1 = vmatmul.bf16.gmra.mxu0 %v2 ;; %2 = vmatmul.bf16.gmra.mxu1 %v2 }
   0x4   : >> { %3 = vmatmul.bf16.gmra.mxu1 %v2 }
   0x5 PF: > { %4 = nothing }
"""
    # One bundle outside, three in the outer loop, and two products of one unit in the inner.
    assert bundle_cycles(listing, [10, 5], 1) == 1 + 3 * 10 + 2 * 16 * 50
    assert bundle_cycles(listing, [10, 5], 2) == 1 + 3 * 10 + 2 * 8 * 50
    of_float32 = listing.replace("vmatmul.bf16", "vmatmul.f32")
    assert bundle_cycles(of_float32, [10, 5], 1) == 1 + 3 * 10 + 2 * 8 * 50


def test_what_a_branch_can_skip_counts_once():
    listing = """
     0   :  { %s1 = nothing }
   0x1 LB: > { %1 = sbr.rel (%p1) target = $region8 }
   0x2   : > { %v1 = vmatmul.bf16.gmra.mxu0 %v0 }
   0x3   : > { %v2 = vld [vmem:[%s1]] }
   0x4 PF: > { %2 = sbr.rel (%p2) target = $region80 } /* Start/End empty region 8 :: */
   0x5 LB: >> { %v3 = vld [vmem:[%s1]] }
   0x6   : >> { %3 = sbr.rel (!%p3) target = $region50 }
   0x7 PF: > { %4 = nothing } /* Start/End empty region 80 */
"""
    # Two bundles for the first step alone; the second branch skips a loop, the third ends it.
    assert bundle_cycles(listing, [10, 5], 1) == 1 + 2 + 3 * 10 + 2 * 50


@pytest.mark.parametrize("target", ["tpu_custom_call", "__gpu$xla.gpu.triton"])
def test_calls_of_the_kernels_are_counted(target):
    call = f'  %c = f32[8] custom-call(%a), custom_call_target="{target}"'
    text = f"{call}, metadata={{noah_head_forward}}\n{call}, metadata={{another_kernel}}\n"
    assert kernel_calls(text) == 1
