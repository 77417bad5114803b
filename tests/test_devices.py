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


@pytest.mark.parametrize('platform', ['cuda', 'nonsense'])
def test_a_platform_that_is_not_there_is_one_line(platform):
  if platform == 'cuda' and jax.default_backend() == 'gpu':
    pytest.skip('there is a GPU')
  program = (
    'from cgvq_jax import devices\ntry:\n  devices.check()\n'
    'except devices.DeviceError as error:\n  print(error)\n'
  )
  said = in_new_process(program, JAX_PLATFORMS=platform)
  assert said.startswith(f'JAX_PLATFORMS={platform}: wanted a platform that there is here, such as')
  assert len(said.splitlines()) == 1


def test_the_own_configuration_lasts_as_long_as_its_context():
  with jax.enable_x64(True), jax.numpy_rank_promotion('raise'):
    with devices.own_configuration():
      assert jax.numpy.zeros(3).dtype == 'float32'
      assert (jax.numpy.zeros((2, 3)) + jax.numpy.zeros(3)).shape == (2, 3)
    assert jax.numpy.zeros(3).dtype == 'float64'


TYPES = {'enable_x64': True, 'numpy_dtype_promotion': 'strict', 'numpy_rank_promotion': 'raise'}
RANDOM = {'threefry_partitionable': False, 'default_prng_impl': 'rbg'}
DEBUG = {'debug_nans': True, 'debug_infs': True, 'default_matmul_precision': 'highest'}
STARTED = "jax.config.update('jax_default_device', jax.devices()[1])\njax.numpy.ones(3).sum()"
START = """
import hashlib, jax, numpy as np
import cgvq_jax as cg
image = np.random.default_rng(0).random((16, 24, 3), np.float32)
settings = cg.FitSettings(steps=2, finetune_steps=2)
def tell(*arrays):
  print(*(hashlib.sha256(np.asarray(array).tobytes()).hexdigest() for array in arrays))
"""
FIT = """
gaussians = cg.fit_image(image, 20, settings)
tell(gaussians.mean_xy, gaussians.log_scale, gaussians.rotation, gaussians.color)
"""
CODEC = """
from cgvq_jax.evaluate import similarity
for method in (cg.methods.cgvq_rd(), cg.methods.cgvq(num_gaussians=20, num_clusters=2)):
  data = cg.encode(image, method, settings)
  shown = cg.images.to_bytes8(cg.render(cg.decode(data), renderer='jax'))
  tell(np.frombuffer(data, np.uint8), shown)
  print(similarity.ssim(cg.images.to_bytes8(image), shown))
"""


def told(script, configuration, more=''):
  """What a script tells in a process that has configured JAX."""
  configured = {'num_cpu_devices': 2, **configuration}
  lines = [f'jax.config.update({"jax_" + n!r}, {v!r})' for n, v in configured.items()]
  return in_new_process('\n'.join(['import jax', *lines, more, START, script]))


def test_a_file_is_the_same_whatever_the_types_of_the_process():
  script = (
    "import jax\njax.config.update('jax_disable_most_optimizations', True)  # compiles faster\n"
    f'before = {{name: getattr(jax.config, "jax_" + name) for name in {list(TYPES)}}}\n'
    f'{START}\nimage = image[:, :16]\nsettings = cg.FitSettings(steps=3, finetune_steps=3)\n'
    f'for configuration in ({TYPES}, before):\n'
    '  for name, value in configuration.items():\n'
    '    jax.config.update("jax_" + name, value)\n'
    '  data = cg.encode(image, cg.methods.cgvq_rd(), settings)\n'
    '  tell(np.frombuffer(data, np.uint8), cg.render(cg.decode(data), renderer="jax"))\n'
  )
  configured, plain = in_new_process(script).splitlines()
  assert configured == plain


@pytest.mark.slow
def test_a_fit_is_the_same_in_a_process_that_has_configured_jax(capsys):
  exec(START + FIT, {})
  here = capsys.readouterr().out.strip()
  assert told(FIT, TYPES | RANDOM | DEBUG, STARTED) == here


@pytest.fixture(scope='module')
def plainly_told():
  return told(CODEC, {})


@pytest.mark.slow
@pytest.mark.parametrize(
  ('configuration', 'more'), [(TYPES, ''), (RANDOM, ''), (DEBUG, ''), ({}, STARTED)]
)
def test_files_are_the_same_in_a_process_that_has_configured_jax(plainly_told, configuration, more):
  assert told(CODEC, configuration, more) == plainly_told
