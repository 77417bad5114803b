"""GPU kernels: one program a tile, its pixels one vector, a loop over the tile's list.

How a program is written (`kernels`), by which of Pallas's backends it is run, and how the gradients
of pairs become those of Gaussians are chosen apart; `VARIANTS` names the combinations that are
worth a measurement, and `tuned` says which one a device gets.
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

# run(name, body, output, number of programs, arguments): `body(program, *refs)` for each program;
# with `zeroed` the output starts at 0, else as anything.
Runner = Callable[..., Array]


def triton_runner(*, warps: int = 4, interpret: bool = False) -> Runner:
  """By Triton (compute capability 8.0 and later) with 32 threads a warp, or by the interpreter."""

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
  """By Mosaic GPU (compute capability 9.0 and later; from JAX 0.11 on 8.0 too), 128 threads; or by
  its own interpreter, which JAX has from 0.11 on."""

  def run(name: str, body, output, size: int, arguments: Sequence[Array], *, zeroed: bool = False):
    if zeroed:
      raise NotImplementedError('Mosaic GPU kernels have no atomic sums')
    from jax.experimental.pallas import mosaic_gpu  # a third of a second, for those who use it

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
  """A row of gradients for each pair, then their sums by Gaussian."""
  output = jax.ShapeDtypeStruct((bins.pair_gaussian.size, table.shape[-1]), jnp.float32)
  body = partial(body, shape=bins.tile_shape)
  arguments = (*_lists(bins), table, cotangent)
  rows = run('backward', body, output, bins.num_tiles, arguments)
  # Rows that no program wrote hold anything.
  listed = jnp.arange(rows.shape[0]) < bins.tile_start[-1]
  rows = jnp.where(listed[:, None], rows, 0.0)
  with jax.named_scope('scatter'):
    return jnp.zeros_like(table).at[bins.pair_gaussian].add(rows)


def _by_atomics(table: Table, bins: Bins, cotangent: Tiles, *, run: Runner, body) -> Table:
  """The programs add to the Gaussians' gradients: no rows, and another rounding every time."""
  output = jax.ShapeDtypeStruct(table.shape, table.dtype)
  body = partial(body, shape=bins.tile_shape, emit=pallas_kernels.to_gaussian)
  arguments = (*_lists(bins), table, cotangent)
  return run('backward', body, output, bins.num_tiles, arguments, zeroed=True)


def _made(
  run: Runner, render=pallas_kernels.render, backward=pallas_kernels.backward, *, sums=_by_rows
) -> Kernels:
  return Kernels(
    render=partial(_render, run=run, body=render),
    backward=partial(sums, run=run, body=backward),
  )


def _products(run: Runner, precision: lax.DotAlgorithmPreset) -> Kernels:
  bodies = pallas_kernels.render_by_products, pallas_kernels.backward_by_products
  return _made(run, *(partial(body, precision=precision) for body in bodies))


def _written(run: Runner) -> dict[str, Kernels]:
  """The ways to write a program, all by one runner, which has to be Triton's."""
  return {
    '': _made(run),
    '_atomics': _made(run, sums=_by_atomics),
    '_chunks': _made(run, pallas_kernels.render_in_chunks, pallas_kernels.backward_in_chunks),
    '_products': _products(run, lax.DotAlgorithmPreset.F32_F32_F32),
  }


_TRITON, _INTERPRETER = triton_runner(), triton_runner(interpret=True)

VARIANTS: dict[str, Kernels] = {
  **{'triton' + way: made for way, made in _written(_TRITON).items()},
  'triton_1_warp': _made(triton_runner(warps=1)),
  'triton_chunks_8_warps': _written(triton_runner(warps=8))['_chunks'],
  'triton_products_tf32x3': _products(_TRITON, lax.DotAlgorithmPreset.TF32_TF32_F32_X3),
  # Ten bits of mantissa: not the definition's 1e-5, and here to tell what that costs.
  'triton_products_tf32': _products(_TRITON, lax.DotAlgorithmPreset.TF32_TF32_F32),
  'mosaic': _made(mosaic_runner()),
  **{'interpret' + way: made for way, made in _written(_INTERPRETER).items()},
  'mosaic_interpret': _made(mosaic_runner(interpret=True)),
}


# --- which one ---


class Tuning(NamedTuple):
  """What a kind of device does best with."""

  variant: str  # of VARIANTS
  tile_shape: TileShape = TILE


# By JAX's device_kind. `launch/gpu_check.sh` measures what belongs here; nothing has been yet.
TUNED: dict[str, Tuning] = {}


def tuned() -> Tuning:
  """Of the device that programs are made for: measured, else what most likely suits."""
  return TUNED.get(_device_kind()) or Tuning('mosaic' if _mosaic_is_there() else 'triton')


def _mosaic_is_there() -> bool:
  # Pallas's Triton backend is on its way out from 0.11 on, where Mosaic takes older GPUs too.
  return jax.__version_info__ >= (0, 11)


def _device_kind() -> str:
  device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
  return device.device_kind


def _tuned_render(table: Table, bins: Bins) -> Tiles:
  return VARIANTS[tuned().variant].render(table, bins)


def _tuned_backward(table: Table, bins: Bins, cotangent: Tiles) -> Table:
  return VARIANTS[tuned().variant].backward(table, bins, cotangent)


KERNELS = Kernels(_tuned_render, _tuned_backward)
