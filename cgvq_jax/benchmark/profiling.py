"""The share of a step that each of its parts takes, by JAX's profiler."""

from __future__ import annotations

import collections
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from cgvq_jax import devices
from cgvq_jax.benchmark.scenes import SCENES, Scene, Scenes
from cgvq_jax.evaluate import tables
from cgvq_jax.fit import blocks, optimizers
from cgvq_jax.fit.settings import FitSettings
from cgvq_jax.fit.stages import BLOCK_STEPS, Stage, initial_state, plain_stage
from cgvq_jax.methods.registry import make

# Names of `jax.named_scope`s. An operation belongs to the innermost of them that it lies in.
_PARTS = (
  *('quantize', 'binning', 'sort', 'weights', 'colors', 'loss', 'gradients', 'moments', 'scatter'),
  *('exchange', 'update'),
)
_OPERATION = re.compile(r'^\s*(?:ROOT )?%([\w.-]+) = .*? ([\w-]+)\(.*?op_name="([^"]*)"')
_CONTAINERS = ('while', 'call', 'conditional')  # their time is that of the operations inside


def parts_of(program_text: str) -> dict[str, str]:
  """From a compiled program as text, {name of an operation: the part it belongs to}."""
  parts = {}
  for line in program_text.splitlines():
    match = _OPERATION.match(line)
    if match and match[2] not in _CONTAINERS:
      scopes = [word for word in re.split(r'[^\w]+', match[3]) if word in _PARTS]
      parts[match[1]] = scopes[-1] if scopes else 'other'
  return parts


def _stage(scene: Scene, target: Float[np.ndarray, 'H W C'], name: str) -> Stage:
  """Steps of the fit, for 'fit'; else the last stage of the method of this name."""
  gaussians = scene.gaussians
  if name != 'fit':
    stages = make(name, gaussians.num_channels).stages(target, FitSettings())
    return stages[-1](gaussians)
  optimizer = optimizers.adam(1000)
  start = initial_state(gaussians, (), optimizer)
  return plain_stage(start, target, BLOCK_STEPS, optimizer=optimizer)


def profile(
  scene_name: str, stages: Sequence[str], scenes: Scenes = SCENES
) -> list[dict[str, Any]]:
  """Milliseconds a step of each part, means over a block of steps and the devices."""
  scene = scenes[scene_name]()
  target = jax.random.uniform(jax.random.key(1), (scene.height, scene.width, 3))
  rows = []
  print(tables.header(['scene', 'stage', 'part', 'ms a step', 'share']))
  for stage in stages:
    lowered, arguments = blocks.lower_block(_stage(scene, np.asarray(target), stage))
    program = lowered.compile(compiler_options=devices.compiler_options())
    parts = parts_of(program.as_text() or '')
    jax.block_until_ready(program(*arguments))
    with tempfile.TemporaryDirectory() as folder:
      with jax.profiler.trace(folder):
        jax.block_until_ready(program(*arguments))
      (file,) = Path(folder).rglob('*.xplane.pb')
      events = [
        (event.name, event.duration_ns)
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes
        for line in plane.lines
        for event in line.events
      ]
    spent = collections.Counter()
    for name, nanoseconds in events:
      if name in parts:
        spent[parts[name]] += nanoseconds
    for part, nanoseconds in spent.most_common():
      step_ms = nanoseconds / 1e6 / BLOCK_STEPS / devices.mesh().size
      share = nanoseconds / spent.total()
      rows.append(
        {'scene': scene_name, 'stage': stage, 'part': part, 'step_ms': step_ms, 'share': share}
      )
      print(tables.row([scene_name, stage, part, f'{step_ms:.2f}', f'{100 * share:.0f} %']))
  return rows
