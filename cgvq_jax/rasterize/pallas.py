"""GPU kernels: one program per tile, with its pixels as one vector and a loop over its list.

A variant combines a kernel body (`pallas_kernels`), a backend of Pallas that runs it, and a way to
sum the gradients of pairs into those of Gaussians. `VARIANTS` names the combinations that are
measured; `tuned` selects the one for a device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array

from cgvq_jax.rasterize import pallas_kernels
from cgvq_jax.rasterize.layout import Kernels, Table, Tiles
from cgvq_jax.rasterize.tiles import TILE, Bins, TileShape

# --- runners ---

# run(name, body, output, number of programs, arguments) calls `body(program, *refs)` for each
# program. With `zeroed` the output is initialized to 0, else it is undefined.
Runner = Callable[..., Array]


def triton_runner(*, warps: int = 4, interpret: bool = False) -> Runner:
  """Triton (compute capability 8.0 and later), 32 threads per warp, or Pallas's interpreter."""

  def run(name: str, body, output, size: int, arguments: Sequence[Array], *, zeroed: bool = False):
    zeros = [jnp.zeros(output.shape, output.dtype)] if zeroed else []
    anywhere, count = pl.BlockSpec(memory_space=pl.ANY), len(arguments)
    call = pl.pallas_call(
      lambda *refs: body(pl.program_id(0), *refs[:count], refs[-1]),
      out_shape=output,
      grid=(size,),
      in_specs=[anywhere] * (count + len(zeros)),
      out_specs=anywhere,
      input_output_aliases={count: 0} if zeroed else {},
      compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
      interpret=interpret,
      name=name,
    )
    return call(*arguments, *zeros)

  return run


def mosaic_runner(*, interpret: bool = False) -> Runner:
  """Mosaic GPU (compute capability 9.0 and later; with JAX 0.11 also 8.0), 128 threads per program,
  or its interpreter, which needs JAX 0.11."""

  def run(name: str, body, output, size: int, arguments: Sequence[Array], *, zeroed: bool = False):
    if zeroed:
      raise NotImplementedError('Mosaic GPU kernels have no atomic sums')
    from jax.experimental.pallas import mosaic_gpu  # imported here: it takes a third of a second

    semantics = mosaic_gpu.LoweringSemantics.Warpgroup
    call = mosaic_gpu.kernel(
      lambda *refs: body(lax.axis_index('program'), *refs),
      out_type=output,
      grid=(size,),
      grid_names=('program',),
      compiler_params=mosaic_gpu.CompilerParams(lowering_semantics=semantics),
      interpret=mosaic_gpu.InterpretGPUParams() if interpret else None,  # pyright: ignore
      kernel_name=name,
    )
    return call(*arguments)

  return run


# --- the operation ---


def _lists(bins: Bins) -> tuple[Array, Array, Array]:
  corner = jnp.stack(bins.corner(jnp.arange(bins.num_tiles)), axis=-1) + 0.5
  return bins.tile_start, corner, bins.pair_gaussian


def _render(table: Table, bins: Bins, *, run: Runner, body) -> Tiles:
  channels, pixels = table.shape[-1] - 5, bins.tile_shape.num_pixels
  output = jax.ShapeDtypeStruct((bins.num_tiles, channels, pixels), jnp.float32)
  body = partial(body, shape=bins.tile_shape)
  return run('render', body, output, bins.num_tiles, (*_lists(bins), table))


def _by_rows(table: Table, bins: Bins, cotangent: Tiles, *, run: Runner, body) -> Table:
  """The kernel writes a row of gradients for each pair; a scatter sums them by Gaussian."""
  output = jax.ShapeDtypeStruct((bins.pair_gaussian.size, table.shape[-1]), jnp.float32)
  body = partial(body, shape=bins.tile_shape)
  arguments = (*_lists(bins), table, cotangent)
  rows = run('backward', body, output, bins.num_tiles, arguments)
  # Rows after the last pair were never written.
  listed = jnp.arange(rows.shape[0]) < bins.tile_start[-1]
  rows = jnp.where(listed[:, None], rows, 0.0)
  with jax.named_scope('scatter'):
    return jnp.zeros_like(table).at[bins.pair_gaussian].add(rows)


def _by_atomics(table: Table, bins: Bins, cotangent: Tiles, *, run: Runner, body) -> Table:
  """The kernel adds atomically to the Gaussians' gradients: rounding differs from run to run."""
  output = jax.ShapeDtypeStruct(table.shape, table.dtype)
  body = partial(body, shape=bins.tile_shape, emit=pallas_kernels.to_gaussian)
  arguments = (*_lists(bins), table, cotangent)
  return run('backward', body, output, bins.num_tiles, arguments, zeroed=True)


def make_kernels(
  run: Runner, render=pallas_kernels.render, backward=pallas_kernels.backward, *, sums=_by_rows
) -> Kernels:
  """An implementation from a runner, kernel bodies, and a way to sum the gradients of pairs."""
  return Kernels(
    render=partial(_render, run=run, body=render),
    backward=partial(sums, run=run, body=backward),
  )


def _products(run: Runner, precision: lax.DotAlgorithmPreset) -> Kernels:
  bodies = pallas_kernels.render_by_products, pallas_kernels.backward_by_products
  return make_kernels(run, *(partial(body, precision=precision) for body in bodies))


def _variants(run: Runner) -> dict[str, Kernels]:
  """Every kernel body with one runner, which must be Triton's or its interpreter, by suffix."""
  return {
    '': make_kernels(run),
    '_atomics': make_kernels(run, sums=_by_atomics),
    '_chunks': make_kernels(
      run, pallas_kernels.render_in_chunks, pallas_kernels.backward_in_chunks
    ),
    '_products': _products(run, lax.DotAlgorithmPreset.F32_F32_F32),
  }


_TRITON, _INTERPRETER = triton_runner(), triton_runner(interpret=True)

VARIANTS: dict[str, Kernels] = {
  **{'triton' + suffix: kernels for suffix, kernels in _variants(_TRITON).items()},
  'triton_1_warp': make_kernels(triton_runner(warps=1)),
  'triton_chunks_8_warps': _variants(triton_runner(warps=8))['_chunks'],
  'triton_products_tf32x3': _products(_TRITON, lax.DotAlgorithmPreset.TF32_TF32_F32_X3),
  # Ten bits of mantissa: errors above the suite's 1e-5, kept to measure what that precision costs.
  'triton_products_tf32': _products(_TRITON, lax.DotAlgorithmPreset.TF32_TF32_F32),
  'mosaic': make_kernels(mosaic_runner()),
  **{'interpret' + suffix: kernels for suffix, kernels in _variants(_INTERPRETER).items()},
  'mosaic_interpret': make_kernels(mosaic_runner(interpret=True)),
}


# --- choice of a variant ---


class Tuning(NamedTuple):
  """The fastest variant and tile shape on a kind of device."""

  variant: str  # of VARIANTS
  tile_shape: TileShape = TILE


# By JAX's device_kind, from measurements by `launch/gpu_check.sh`; none has been made yet.
TUNED: dict[str, Tuning] = {}


def tuned() -> Tuning:
  """For the device that programs are compiled for: as measured, else the likely best."""
  return TUNED.get(_device_kind()) or Tuning('mosaic' if _prefers_mosaic() else 'triton')


def _prefers_mosaic() -> bool:
  # From JAX 0.11 on Pallas's Triton backend is deprecated, and Mosaic supports older GPUs too.
  return jax.__version_info__ >= (0, 11)


def _device_kind() -> str:
  device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
  return device.device_kind


def _tuned_render(table: Table, bins: Bins) -> Tiles:
  return VARIANTS[tuned().variant].render(table, bins)


def _tuned_backward(table: Table, bins: Bins, cotangent: Tiles) -> Table:
  return VARIANTS[tuned().variant].backward(table, bins, cotangent)


KERNELS = Kernels(_tuned_render, _tuned_backward)
