"""The GPU kernels where there is no GPU: what they lower to, and that a broken one is seen."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import pytest
import scenes

from cgvq_jax.rasterize import api, pallas

HEIGHT, WIDTH = 512, 768


def gpu():
  """Later versions of JAX want to know the device that they lower for."""
  if jax.__version_info__ < (0, 11):
    return contextlib.nullcontext()
  kind = 'NVIDIA H100 80GB HBM3'
  device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform='gpu')
  types = (jax.sharding.AxisType.Auto,)
  mesh = jax.sharding.AbstractMesh((1,), ('x',), axis_types=types, abstract_device=device)
  return jax.sharding.use_abstract_mesh(mesh)


def lowered(function, *arguments):
  with gpu():
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=('cuda',)).as_text()


@pytest.mark.parametrize('scene', ['random', 'odd_size_gray', 'one_row_with_alpha'])
def test_value_and_gradient_lower_for_an_nvidia_gpu(scene):
  gaussians = scenes.SCENES[scene]().gaussians

  def render(gaussians):
    return pallas.rasterize(gaussians, HEIGHT, WIDTH)

  def pull_back(gaussians, cotangent):
    return jax.vjp(render, gaussians)[1](cotangent)

  assert lowered(render, gaussians).count('__gpu$xla.gpu.triton') == 1
  cotangent = jnp.ones((HEIGHT, WIDTH, gaussians.num_channels))
  assert lowered(pull_back, gaussians, cotangent).count('__gpu$xla.gpu.triton') == 1


def test_a_kernel_that_no_gpu_has_does_not_lower():
  # Sizes that are not powers of two pass the interpreter and no further.
  def body(program, values, out):
    out[...] = jnp.exp(values[...]) + program

  output = jax.ShapeDtypeStruct((100,), jnp.float32)
  values = jnp.zeros(100)
  assert pallas.INTERPRETER(body, output, 1, [values]).shape == (100,)
  with pytest.raises(Exception, match='power of 2'):
    lowered(lambda values: pallas.triton_runner()(body, output, 1, [values]), values)


def test_named_kernels_run_or_raise():
  if jax.default_backend() == 'gpu':
    pytest.skip('there is a GPU: the shared suite runs them')
  scene = scenes.one_gaussian()
  with pytest.raises(ValueError, match='interpret mode'):
    api.rasterize(*scene, implementation='pallas')
