"""The primitive as a plain dataclass, and as a pytree where JAX is used."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from cgvq_jax.primitives import gaussians, trees


def some(count=5, channels=4):
  rng = np.random.default_rng(0)
  shapes = {'mean_xy': (count, 2), 'log_scale': (count, 2), 'rotation': (count,)}
  shapes['color'] = (count, channels)
  return gaussians.Gaussians(**{name: rng.normal(size=size) for name, size in shapes.items()})


def test_counts_and_replace():
  one = some()
  assert (one.num_gaussians, one.num_channels) == (5, 4)
  other = one.replace(rotation=one.rotation + 1)
  np.testing.assert_array_equal(other.rotation, one.rotation + 1)
  assert other.color is one.color
  with pytest.raises(dataclasses.FrozenInstanceError):
    setattr(one, 'color', one.color)  # noqa: B010  (pyright knows that it is frozen)


def test_a_pytree_whose_paths_are_its_fields():
  assert trees.Gaussians is gaussians.Gaussians
  leaves, structure = jax.tree_util.tree_flatten_with_path(some())
  names = ['.mean_xy', '.log_scale', '.rotation', '.color']
  assert [jax.tree_util.keystr(path) for path, _ in leaves] == names
  again = jax.tree.unflatten(structure, [leaf for _, leaf in leaves])
  jax.tree.map(np.testing.assert_array_equal, again, some())


def test_the_plain_modules_do_not_import_jax():
  code = """
import sys, types
package = types.ModuleType('cgvq_jax')
package.__path__ = [sys.argv[1]]
sys.modules['cgvq_jax'] = package
import cgvq_jax.primitives.geometry, cgvq_jax.primitives.sensitivity
assert not {'jax', 'flax', 'jaxtyping', 'numpy'} & set(sys.modules)
"""
  folder = gaussians.__file__.rsplit('/', 2)[0]
  subprocess.run([sys.executable, '-c', code, folder], check=True)
