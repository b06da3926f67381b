"""Which operations of a compiled program take its cycles, and where they come from."""

import re

from noah_jax.aot.hlo import estimated_cycles
from noah_jax.aot.operations import Operation, operations

PROGRAM = """HloModule jit_step, is_scheduled=true

FileNames
1 "/somewhere/site-packages/flax/linear.py"
2 "/here/noah_jax/nn/mlp.py"
3 "/here/noah_jax/models/base.py"

FunctionNames
1 "Linear.__call__"
2 "Mlp.__call__"
3 "Model.apply.<locals>.compute"

FileLocations
1 {file_name_id=3 function_name_id=3 line=1 end_line=1 column=1 end_column=2}
2 {file_name_id=2 function_name_id=2 line=1 end_line=1 column=1 end_column=2}
3 {file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}


%product (a: f32[8], b: f32[8]) -> f32[8] {
  %a = f32[8] parameter(0)
  %b = f32[8] parameter(1)
  ROOT %c = f32[8] convolution(%a, %b), dim_labels=bf_io->bf
}

%moving (a: f32[8]) -> f32[2,4] {
  %a.1 = f32[8] parameter(0)
  ROOT %r = f32[2,4] reshape(%a.1)
}

%body (s: f32[8]) -> f32[8] {
  %s = f32[8] parameter(0)
  ROOT %e = f32[8] exponential(%s), CYCLES=5
}

%cheap (s: f32[8]) -> f32[8] {
  ROOT %x = f32[8] negate(%s), CYCLES=1
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0:T(256)} parameter(0)
  %f = f32[8]{0:T(256)} fusion(%x.1), calls=%product, metadata={stack_frame_id=3}, CYCLES=70
  %m = f32[2,4]{1,0} fusion(%f), calls=%moving, metadata={stack_frame_id=1}, CYCLES=20
  %w = f32[8] while(%f), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %k = f32[8] conditional(%w), branch_computations={%body, %cheap}
  ROOT %y = f32[8] copy(%k), CYCLES=2
}
"""
PROGRAM = re.sub(r"CYCLES=(\d+)", r'backend_config={"estimated_cycles":"\1"}', PROGRAM)


def test_operations_of_a_program():
    assert operations(PROGRAM) == [
        Operation("product", "nn/mlp.py Mlp.__call__", "f32[8]", 70),
        Operation("move", "models/base.py Model.apply.compute", "f32[2,4]", 20),
        Operation("other", "", "f32[8]", 15),
        Operation("other", "", "f32[8]", 5),
        Operation("move", "", "f32[8]", 2),
    ]
    assert sum(each.cycles for each in operations(PROGRAM)) == estimated_cycles(PROGRAM)
