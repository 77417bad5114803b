"""Named sets of Gaussians to measure with: random ones, and photographs as a fit leaves them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from cgvq_jax.fit.api import fit_image
from cgvq_jax.fit.settings import FitSettings
from cgvq_jax.io import datasets, files, images
from cgvq_jax.primitives.trees import Gaussians

FIT_STEPS = 300  # of a fitted scene: enough for the long, large shapes of a fitted photograph
_FIELDS = ('mean_xy', 'log_scale', 'rotation', 'color')


class Scene(NamedTuple):
  """The arguments of a rasterizer."""

  gaussians: Gaussians
  height: int  # px
  width: int  # px


Scenes = Mapping[str, Callable[[], Scene]]


def random(num_gaussians: int, height: int, width: int) -> Scene:
  """Uniform positions and rotations, standard deviations of 1-5 px, random colours."""
  keys = jax.random.split(jax.random.key(0), 4)
  gaussians = Gaussians(
    mean_xy=jax.random.uniform(keys[0], (num_gaussians, 2)) * jnp.array([width, height]),
    log_scale=jnp.log(jax.random.uniform(keys[1], (num_gaussians, 2), minval=1.0, maxval=5.0)),
    rotation=jnp.pi * jax.random.uniform(keys[2], (num_gaussians,)),
    color=0.3 * jax.random.normal(keys[3], (num_gaussians, 3)),
  )
  return Scene(gaussians, height, width)


def photograph(name: str) -> Float[np.ndarray, 'H W 3']:
  """A Kodak photograph by its name, or the one that comes with the package, 'sample'.

  Raises images.ImageError where the photograph is not there.
  """
  if name == 'sample':
    return datasets.sample_photograph()
  (path,) = datasets.select(datasets.find_dataset(None), [name])
  return images.load(path).pixels


def fitted(
  name: str,
  num_gaussians: int,
  *,
  steps: int = FIT_STEPS,
  load: Callable[[str], Float[np.ndarray, 'H W 3']] = photograph,
) -> Scene:
  """A photograph after `steps` steps of the default fit, with at most `num_gaussians` Gaussians.

  The fit is run once; its result is kept in the folder that CGVQ_CACHE names, ~/.cache/cgvq_jax by
  default. Raises what `load` raises.
  """
  pixels = load(name)
  height, width, _ = pixels.shape
  file = _cache() / f'{name}-{num_gaussians}-grown-{steps}.npz'
  if file.is_file():
    with np.load(file) as arrays:
      fields = {field: jnp.asarray(arrays[field]) for field in _FIELDS}
    return Scene(Gaussians(**fields), height, width)
  gaussians = fit_image(pixels, num_gaussians, FitSettings(steps=steps))
  buffer = io.BytesIO()
  arrays: dict[str, Any] = {field: np.asarray(getattr(gaussians, field)) for field in _FIELDS}
  np.savez(buffer, **arrays)
  file.parent.mkdir(parents=True, exist_ok=True)
  files.write_atomically(file, buffer.getvalue())
  return Scene(gaussians, height, width)


def _cache() -> Path:
  return Path(os.environ.get('CGVQ_CACHE') or Path.home() / '.cache' / 'cgvq_jax')


_KODAK = ('kodim15', 'kodim05')
_COUNTS = {'1k': 1_000, '10k': 10_000, '20k': 20_000, '70k': 70_000}
# Photograph sizes, and Gaussians as dense as 10,000 on 768 x 512.
_SIZES = {
  'random-256': (1_667, 256, 256),
  'random-768': (10_000, 512, 768),
  'random-2048': (71_085, 1365, 2048),
  'random-4096': (284_342, 2730, 4096),
}

RANDOM: Scenes = {
  'small': partial(random, 500, 96, 128),  # small enough for the reference
  **{name: partial(random, *sizes) for name, sizes in _SIZES.items()},
  'largest': partial(random, 500_000, 8192, 8192),
}
FITTED: Scenes = {
  **{f'{i}-{n}': partial(fitted, i, count) for i in _KODAK for n, count in _COUNTS.items()},
  'sample-10k': partial(fitted, 'sample', 10_000),
}
SCENES: Scenes = {**RANDOM, **FITTED}
USUAL = [name for name in SCENES if name != 'largest']
