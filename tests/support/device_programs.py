"""The programs that must run on any accelerator: test_crosscompile lowers and compiles them.

`python tests/support/device_programs.py DEVICE NAME...` compiles the named ones, in a process that
has the compilers' wheels on its path, and prints for each: its name, the size of the compiled
program as text, and the number of float32 scatters whose order of summation is not fixed.
"""

from __future__ import annotations

import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import raster_scenes

from cgvq_jax import devices
from cgvq_jax.benchmark import crosscompile
from cgvq_jax.fit import blocks, densify, losses, optimizers
from cgvq_jax.fit.settings import FitSettings
from cgvq_jax.fit.stages import initial_state, unquantized
from cgvq_jax.methods import codebooks, registry
from cgvq_jax.quantize import kmeans
from cgvq_jax.rasterize.layout import padded_image

HEIGHT, WIDTH, CLUSTERS = 64, 96, 4


def _block(forward, optimizer, implementation=None):
  capacity = blocks.first_capacity(raster_scenes.NUM_GAUSSIANS, HEIGHT, WIDTH)
  options = {'forward': forward, 'loss': losses.l2, 'update': optimizer.update}
  return functools.partial(
    blocks.block, **options, steps=50, capacity=capacity, implementation=implementation
  )


def _fit_arguments():
  gaussians = raster_scenes.random(height=HEIGHT, width=WIDTH).gaussians
  target = padded_image(np.zeros((HEIGHT, WIDTH, 3)))
  return initial_state(gaussians, (), optimizers.adam()), None, target


def fit_block(implementation=None):
  return _block(unquantized, optimizers.adam(), implementation), _fit_arguments()


def batched_fit_block(implementation=None):
  batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), _fit_arguments())
  return jax.vmap(_block(unquantized, optimizers.adam(), implementation)), batch


def finetune_block(method='cgvq', implementation=None):
  state, _, target = _fit_arguments()
  method = registry.METHODS[method](3)
  labels = np.arange(raster_scenes.NUM_GAUSSIANS) % CLUSTERS
  context = codebooks.make_context(labels, CLUSTERS, HEIGHT, WIDTH)
  stage = codebooks.finetune_stage(
    method, jax.random.key(0), state.params, context, target.pixels[:HEIGHT, :WIDTH], FitSettings()
  )
  block = _block(stage.forward, stage.optimizer, implementation)
  return block, (stage.start.current, context, target)


def densify_relocate():
  state, _, residual = _fit_arguments()
  terms = densify.Terms(raster_scenes.NUM_GAUSSIANS, 20, 0.3, densify.MIN_GAIN)
  return densify.relocate, (state, residual.pixels, residual.size, terms.as_arrays())


def k_means():
  return functools.partial(kmeans.fit, num_clusters=CLUSTERS), (
    jax.random.key(0),
    jnp.zeros((100, 6)),
  )


PROGRAMS = {
  'fit': fit_block,
  'batch': batched_fit_block,
  'gi': functools.partial(finetune_block, 'gi'),
  'cgvq': finetune_block,
  'densify': densify_relocate,
  'k-means': k_means,
}

if __name__ == '__main__':
  device, *names = sys.argv[1:]
  options = devices.compiler_options('gpu') if device in crosscompile.GPUS else None
  for name in names:
    function, arguments = PROGRAMS[name]()
    program = crosscompile.compiled(function, *arguments, device=device, options=options)
    text = program.as_text()
    floats = re.findall(r'= f32.* scatter\(.*', text)
    print(name, len(text), sum('unique_indices=true' not in line for line in floats), flush=True)
