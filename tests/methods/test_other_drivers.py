"""Methods know nothing of who runs them: another driver writes the same files."""

from __future__ import annotations

import numpy as np
import pytest
import raster_scenes

import cgvq_jax as cg
from cgvq_jax.bitstream import container
from cgvq_jax.fit import driver

PHOTOGRAPH = raster_scenes.photograph(48, 48)
IMAGES = PHOTOGRAPH, np.ascontiguousarray(PHOTOGRAPH[:, ::-1, ::-1])
# So many that each image grows, and is quantized in several groups.
SETTINGS = cg.FitSettings(steps=250, finetune_steps=64)


def blocks_of(image, method, settings):
  """Yields after every block of an image; returns its file."""
  result = None
  for make in method.stages(image, settings):
    stage = make(result)
    state, capacity = stage.start, None
    while state.step < stage.num_steps:
      state, _, capacity = driver.advance(stage, state, capacity)
      yield
    result = stage.finish(state)
  return container.write(result)


def encode_in_turns(images, method, settings):
  """Two images in flight: one block of each, until all are done."""
  files = {}
  running = {i: blocks_of(image, method, settings) for i, image in enumerate(images)}
  while running:
    for i, image in list(running.items()):
      try:
        next(image)
      except StopIteration as finished:
        files[i] = finished.value
        del running[i]
  return [files[i] for i in range(len(images))]


@pytest.mark.parametrize(
  'method',
  [cg.methods.cgvq_rd(quality=40), cg.methods.cgvq(num_gaussians=60, num_clusters=4)],
  ids=lambda method: method.name,
)
def test_two_images_in_turns_are_the_files_of_each_alone(method):
  alone = [cg.encode(image, method, SETTINGS) for image in IMAGES]
  assert alone[0] != alone[1]
  assert encode_in_turns(IMAGES, method, SETTINGS) == alone
