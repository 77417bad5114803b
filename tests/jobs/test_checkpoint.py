"""States come back as they were, the newest alone is kept, and a kill leaves a whole one."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cgvq_jax.fit import optimizers, stages
from cgvq_jax.io import files
from cgvq_jax.jobs import checkpoint
from cgvq_jax.jobs.progress import Bars
from cgvq_jax.methods import codebooks
from cgvq_jax.primitives.trees import Gaussians

SETTINGS = {'seed': 3, 'loss': 'l2'}


def make_state(count: int = 5, step: int = 0) -> stages.StageState:
  """Dataclasses, optax's named tuples, empty tuples, scalars: all that a real state has."""
  values = np.random.default_rng(step).normal(size=(4, count, 3)).astype(np.float32)
  gaussians = Gaussians(values[0, :, :2], values[1, :, :2], values[2, :, 0], values[3])
  params = codebooks.Trained(
    jax.tree.map(jnp.asarray, gaussians),
    codebooks.Rows((), {'step': jnp.arange(3, dtype=jnp.int16)}, jnp.ones((2, 2), jnp.bfloat16)),
  )
  optimizer = optimizers.adam(7)
  state = stages.FitState(params, (), optimizer.init(params.gaussians), jnp.int32(step))
  return stages.StageState(state, (state, jnp.array(-jnp.inf)))


def assert_same(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert isinstance(a, jax.Array) and a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_a_state_comes_back_as_it_was(tmp_path):
  state = make_state(step=50)
  checkpoint.save(tmp_path / 'a', 50, state, SETTINGS, seconds=1.5)
  saved = checkpoint.restore(tmp_path / 'a', make_state(), SETTINGS)
  assert saved is not None and (saved.step, saved.seconds) == (50, 1.5)
  assert_same(saved.state, state)


def test_the_newest_alone_is_kept(tmp_path):
  for step in (50, 100):
    checkpoint.save(tmp_path, step, make_state(step=step), SETTINGS)
  assert [path.name for path in tmp_path.iterdir()] == ['100']
  saved = checkpoint.restore(tmp_path, make_state(), SETTINGS)
  assert saved is not None
  assert_same(saved.state, make_state(step=100))
  with pytest.raises(ValueError, match='wanted a step after 100, got 100'):
    checkpoint.save(tmp_path, 100, make_state(), SETTINGS)


def test_nothing_there_is_none(tmp_path):
  assert checkpoint.restore(tmp_path / 'missing', make_state(), SETTINGS) is None
  assert not (tmp_path / 'missing').exists()
  assert checkpoint.restore(tmp_path, make_state(), SETTINGS) is None


def test_other_settings_and_other_shapes_are_refused(tmp_path):
  checkpoint.save(tmp_path, 50, make_state(5), SETTINGS)
  with pytest.raises(checkpoint.CheckpointError, match=r'wanted seed 4 \(got 3\)'):
    checkpoint.restore(tmp_path, make_state(5), {**SETTINGS, 'seed': 4})
  with pytest.raises(checkpoint.CheckpointError, match=r'mean_xy float32\[6, 2\] \(got float32\[5'):
    checkpoint.restore(tmp_path, make_state(6), SETTINGS)


def test_a_state_with_more_rows_comes_back(tmp_path):
  state = make_state(8, step=50)
  checkpoint.save(tmp_path, 50, state, SETTINGS)
  saved = checkpoint.restore(tmp_path, make_state(5), SETTINGS)
  assert saved is not None
  assert_same(saved.state, state)


def test_a_damaged_state_is_refused(tmp_path):
  checkpoint.save(tmp_path, 50, make_state(), SETTINGS)
  (tmp_path / '50' / 'about' / 'metadata').write_text('{"settings": ')
  with pytest.raises(checkpoint.CheckpointError, match='wanted a state of step 50'):
    checkpoint.restore(tmp_path, make_state(), SETTINGS)
  checkpoint.remove(tmp_path)
  assert checkpoint.restore(tmp_path, make_state(), SETTINGS) is None


@pytest.fixture
def limited():
  """Files of this process may have 5000 bytes: orbax fails beyond them, as on a full disk."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)

  def limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))

  yield limit
  resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_state_that_cannot_be_saved_is_a_line(limited, tmp_path, capfd):
  def error_of(folder):
    location = checkpoint.Location(folder, SETTINGS)
    saves = checkpoint.Checkpointer('image', lambda stage: location, 0.0, Bars('image', quiet=True))
    stage = SimpleNamespace(name='fit', num_steps=100)
    saves.on_block(stage, make_state(step=100), stages.Progress(100, 0.1, 30.0))
    (line,) = capfd.readouterr().err.splitlines()  # those of orbax's threads included
    assert line.startswith('image fit: state not saved: ') and str(folder) in line
    return line

  (tmp_path / 'file').touch()
  assert 'Not a directory' in error_of(tmp_path / 'file' / 'a')
  checkpoint.save(tmp_path / 'a', 50, make_state(step=50), SETTINGS)
  limited()
  assert 'File too large' in error_of(tmp_path / 'a')
  assert [path.name for path in (tmp_path / 'a').iterdir()] == ['50']
  saved = checkpoint.restore(tmp_path / 'a', make_state(), SETTINGS)
  assert saved is not None
  assert_same(saved.state, make_state(step=50))


def test_what_orbax_cannot_save_is_an_error_and_goes_with_a_later_use(
  limited, tmp_path, monkeypatch
):
  checkpoint.save(tmp_path, 50, make_state(step=50), SETTINGS)
  monkeypatch.setattr(files, 'check_room', lambda *_: None)  # the disk fills up after the check
  limited()
  with pytest.raises(OSError, match=f'{tmp_path.name}: wanted the state of step 100 saved'):
    checkpoint.save(tmp_path, 100, make_state(step=100), SETTINGS)
  deadline, left = time.monotonic() + 10, []
  while left != ['50'] and time.monotonic() < deadline:  # orbax's threads may still be writing
    saved = checkpoint.restore(tmp_path, make_state(), SETTINGS)
    assert saved is not None and saved.step == 50
    left = [path.name for path in tmp_path.iterdir()]
  assert left == ['50']


SAVES = """""
import sys
sys.path[:0] = [{tests!r}, {root!r}]
from cgvq_jax.jobs import checkpoint
from test_checkpoint import SETTINGS, make_state
for step in range(1, 10_000):
  checkpoint.save({folder!r}, step, make_state(step=step), SETTINGS)
  print(step, flush=True)
"""


def test_a_kill_leaves_the_old_state_or_the_new_one(tmp_path):
  tests = Path(__file__).parent
  script = SAVES.format(tests=str(tests), root=str(tests.parents[1]), folder=str(tmp_path))
  for delay in (0.09, 0.16):  # somewhere in the middle of one of the next saves
    checkpoint.remove(tmp_path)
    process = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, text=True)
    with process:
      assert process.stdout is not None and process.stdout.readline() == '1\n'
      time.sleep(delay)
      process.kill()
      saved_last = [1, *map(int, process.stdout.read().split())][-1]
    saved = checkpoint.restore(tmp_path, make_state(), SETTINGS)
    assert saved is not None and saved.step in (saved_last, saved_last + 1)
    assert_same(saved.state, make_state(step=saved.step))
    checkpoint.save(tmp_path, saved.step + 1, make_state(), SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == [str(saved.step + 1)]
