"""Which devices share an image: as many as there are cores, up to eight."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from cgvq_jax import devices


@pytest.mark.parametrize(('usable', 'wanted'), [(1, '1'), (3, '3'), (64, '8')])
def test_each_usable_core_becomes_a_device_up_to_eight(usable, wanted):
  program = (
    'import os, jax\n'
    f'os.sched_getaffinity = lambda pid: set(range({usable}))\n'
    'from cgvq_jax import devices\n'
    'devices.use_all()\n'
    'print(devices.mesh().size)\n'
    'devices.use_all()  # too late to have an effect, and no error\n'
  )
  assert in_new_process(program) == wanted


def test_where_the_system_has_no_affinity_all_cores_are_used():
  program = (
    'import os\ndel os.sched_getaffinity\nos.cpu_count = lambda: 3\n'
    'from cgvq_jax import devices\ndevices.use_all()\nprint(devices.mesh().size)\n'
  )
  assert in_new_process(program) == '3'


def test_a_number_that_the_user_has_set_stays():
  program = 'from cgvq_jax import devices\ndevices.use_all()\nprint(devices.mesh().size)\n'
  assert in_new_process(program, JAX_NUM_CPU_DEVICES='3') == '3'


def in_new_process(program, **variables):
  root = str(Path(devices.__file__).parents[1])
  environment = os.environ | {'PYTHONPATH': root, 'JAX_PLATFORMS': 'cpu'} | variables
  command = [sys.executable, '-c', program]
  done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
  return done.stdout.strip()


def test_programs_are_cleared_before_they_fill_the_memory_mappings(tmp_path):
  calls = []

  @jax.jit
  def program(x):
    calls.append(1)  # once for each compilation
    return 2 * x

  limit, mappings = tmp_path / 'limit', tmp_path / 'mappings'
  limit.write_text('100')
  mappings.write_text(49 * 'a mapping\n')
  program(1.0)
  assert not devices.clear_programs_if_many(limit, mappings)
  program(2.0)
  assert len(calls) == 1
  mappings.write_text(50 * 'a mapping\n')
  assert devices.clear_programs_if_many(limit, mappings)
  assert float(program(3.0)) == 6 and len(calls) == 2
  assert not devices.clear_programs_if_many(limit, tmp_path / 'no Linux')


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='wants /proc')
def test_the_mappings_of_this_process_are_counted(tmp_path):
  limit = tmp_path / 'limit'
  limit.write_text('1')
  assert devices.clear_programs_if_many(limit)
  limit.write_text('10000000')
  assert not devices.clear_programs_if_many(limit)
