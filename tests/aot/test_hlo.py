"""What is read from the text of a compiled program."""

import pytest

from noah_jax.aot import hlo

ALL_REDUCE = (
    "  %all-reduce.4 = (f32[4]{0}, /*index=1*/bf16[2,3]{1,0:T(8,128)S(1)}) all-reduce(%a, %b),"
    ' replica_groups={replicas}, metadata={op_name="jit(train_step)/sum"}'
)


@pytest.mark.parametrize(
    ("replicas", "group_size"),
    [
        ("{}", 16),
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[2,8]<=[16]", 8),
        ("[8,2]<=[2,8]T(1,0)", 2),
        ("mesh['axis_0'=1,'axis_1'=16] {'axis_1'}", 16),
        ("mesh['axis_0'=16] {'axis_0':(2)4}", 4),
    ],
)
def test_groups_of_devices_are_read(replicas, group_size):
    text = ALL_REDUCE.replace("{replicas}", replicas)
    (found,) = hlo.collectives(text, 16)
    assert found == ("all-reduce", 16 + 12, "bf16, f32", group_size, "jit(train_step)/sum", 1)


def test_every_kind_is_counted_once():
    lines = [
        "  %s = f32[8]{0} all-reduce-start(%a), replica_groups={}",
        "  %d = f32[8]{0} all-reduce-done(%s)",
        "  %g = (f32[8]{0}, f32[32]{0}) all-gather-start(%a), replica_groups={{0,1,2,3}}",
        "  %p = (u8[6]{0}, u8[6]{0}, u32[], u32[]) collective-permute-start(%a),"
        " source_target_pairs={{0,1},{1,0}}",
        "  %r = pred[10]{0} reduce-scatter(%a), replica_groups=[1,4]<=[4]",
        "  ROOT %t = s32[2,2]{1,0} all-to-all(%a), replica_groups={}",
        "  %t2 = s32[2,2]{1,0} all-to-all(%a), replica_groups={}",
        "  %f = f32[8]{0} fusion(%all-reduce.1), calls=%x",
    ]
    found = hlo.collectives("\n".join(lines), 4)
    assert [(c.kind, c.bytes, c.number) for c in found] == [
        ("all-gather", 128, 1),
        ("reduce-scatter", 40, 1),
        ("all-reduce", 32, 1),
        ("all-to-all", 16, 2),
        ("collective-permute", 6, 1),
    ]


def test_collectives_in_loops_count_once_for_every_trip():
    text = """HloModule m

%inner (p: f32[8]) -> f32[8] {
  ROOT %r = f32[8]{0} all-reduce(%p), replica_groups={}
}

%outer (p: f32[8]) -> f32[8] {
  %b = f32[2]{0} all-reduce(%p), replica_groups={}
  ROOT %w = f32[8]{0} while(%p), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %w = f32[8]{0} while(%a), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %e = f32[4]{0} all-reduce(%w), replica_groups={}
}
"""  # noqa: E501
    assert [(c.bytes, c.number) for c in hlo.collectives(text, 2)] == [(32, 15), (8, 5), (16, 1)]


PROGRAM = """HloModule m, input_output_alias={ {0}: (0, {}, may-alias), {1}: (2, {}, must-alias) }

%fused (p: f32[]) -> f32[] {
  %i = f32[] add(%p, %p), backend_config={"estimated_cycles":"1000"}
}

%body.1 (p: f32[]) -> f32[] {
  %j = f32[] add(%p, %p), backend_config={"estimated_cycles":"30"}
}

%body.2 (p: f32[]) -> f32[] {
  %m = f32[] add(%p, %p), backend_config={"estimated_cycles":"9"}
}

%left (p: f32[]) -> f32[] {
  %k = f32[] add(%p, %p), backend_config={"estimated_cycles":"4"}
}

%right (p: f32[]) -> f32[] {
  %l = f32[] add(%p, %p), backend_config={"estimated_cycles":"7"}
}

ENTRY %main (a: f32[], b: f32[], c: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  %c = f32[] parameter(2)
  %f = f32[] fusion(%a), calls=%fused, backend_config={"estimated_cycles":"200"}
  %w = f32[] while(%f), condition=%cond, body=%body.1
  %v = f32[] while(%w), condition=%c, body=%body.2, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %q = f32[] conditional(%w), branch_computations={%left, %right}
}
"""


def test_cycles_and_donation_are_read():
    assert hlo.estimated_cycles(PROGRAM) == 200 + 30 + 5 * 9 + 7
    assert hlo.estimated_cycles(PROGRAM.replace("estimated_cycles", "x")) is None
    assert hlo.num_parameters(PROGRAM) == 3
    assert hlo.donated_parameters(PROGRAM) == 2
