"""Profiles: the part of each operation, and all parts of a step."""

from __future__ import annotations

import pytest

from cgvq_jax.benchmark import profiling, scenes

TINY = {'tiny': lambda: scenes.random(60, 40, 56)}


def test_an_operation_belongs_to_its_innermost_part():
  text = """
%fused (p: f32[2]) -> f32[2] {
  ROOT %exp.1 = f32[2]{0} exponential(%p), metadata={op_name="jit(f)/binning/exp" stack_frame_id=1}
}
ENTRY %main (a: f32[2]) -> f32[2] {
  %a = f32[2]{0} parameter(0)
  %sort.7 = u32[9]{0} sort(%a), dimensions={0}, metadata={op_name="jit(f)/while/binning/sort/sort"}
  %fusion.2 = f32[2]{0} fusion(%a), metadata={op_name="jit(f)/transpose(jvp(weights))/mul"}
  %add.3 = f32[2]{0} add(%a, %a), metadata={op_name="jit(f)/add"}
  ROOT %while.9 = (f32[2]) while(%a), body=%b, metadata={op_name="jit(f)/weights/while"}
}
"""
  parts = profiling.parts_of(text)
  want = {'exp.1': 'binning', 'sort.7': 'sort', 'fusion.2': 'weights', 'add.3': 'other'}
  assert parts == want  # a loop's time is that of its body


@pytest.mark.parametrize(
  'stages', [['cgvq'], pytest.param(['fit', 'cgvq'], marks=pytest.mark.slow)]
)
def test_a_profile_has_all_parts_of_a_step(stages, capsys):
  rows = profiling.profile('tiny', stages, TINY)
  for stage in stages:
    part = {row['part']: row for row in rows if row['stage'] == stage}
    assert {'binning', 'sort', 'weights', 'colors', 'gradients', 'moments', 'update'} <= part.keys()
    assert ('quantize' in part) == (stage == 'cgvq')
    assert sum(row['share'] for row in part.values()) == pytest.approx(1)
    assert all(row['step_ms'] > 0 for row in part.values())
  assert '| tiny | cgvq | quantize |' in capsys.readouterr().out
