"""Differentiable rendering: `rasterize(gaussians, height, width)`, and its parts for a fit.

`implementation` names one of `implementations()`, which then runs or raises. With None the
environment variable CGVQ_RASTERIZER names it; without that the platform decides that the program is
lowered for: the Pallas kernels on an NVIDIA GPU, plain XLA anywhere else.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float

from cgvq_jax import devices
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize import pallas, reference, xla
from cgvq_jax.rasterize.layout import (
  Errors,
  Kernels,
  Target,
  errors_of_samples,
  gaussian_table,
  untile,
  with_inactive,
)
from cgvq_jax.rasterize.limits import validate
from cgvq_jax.rasterize.tiles import (
  TILE,
  Bins,
  Capacity,
  Size,
  TileShape,
  bin_gaussians,
  grow_until_it_fits,
  initial_capacity,
  own_share,
  round_gaussians,
  round_side,
)

REFERENCE = 'reference'
ALL_PAIRS = 'xla_all_pairs'  # every Gaussian on every tile: needs no lists, slow
_KERNELS: dict[str, Kernels] = {
  'xla': xla.KERNELS,
  ALL_PAIRS: xla.WITHOUT_LISTS,
  'pallas': pallas.KERNELS,  # the variant of the tuning table
  **{f'pallas_{name}': kernels for name, kernels in pallas.VARIANTS.items()},
}

# Pairs, 64 MiB of integers. With more, most Gaussians are on most tiles: ALL_PAIRS is as good.
MAX_CAPACITY = 1 << 24


# --- choice ---


def implementations() -> tuple[str, ...]:
  """Names that `rasterize(implementation=...)` takes."""
  return REFERENCE, *_KERNELS


def chosen(implementation: str | None = None, *, from_lists: bool = False) -> str | None:
  """The name of the implementation to use, or None where the platform decides.

  With `from_lists` it has to work from tile lists, as all but the reference do. Raises ValueError
  on an unknown name, with those that are known."""
  known = tuple(_KERNELS) if from_lists else implementations()
  variable = os.environ.get('CGVQ_RASTERIZER')
  name = implementation or variable or None
  if name and name not in known:
    got = f'{implementation=}' if implementation else f'CGVQ_RASTERIZER={variable}'
    raise ValueError(f'{got}: wanted one of {sorted(known)}')
  log_choice(name or f'by platform ({jax.default_backend()}: {_by_platform()})')
  return name


def _by_platform() -> str:
  return 'pallas' if jax.default_backend() == 'gpu' else 'xla'


@lru_cache
def log_choice(choice: str) -> None:
  logging.getLogger(__name__).info('rasterizer: %s', choice)  # cached: once for each choice


def tile_shape(implementation: str | None) -> TileShape:
  """The tuning table's tile shape where this device's GPU kernels will run, else the default."""
  if (implementation or _by_platform()) == 'pallas':
    return pallas.tuned().tile_shape
  return TILE


def _run(implementation: str | None, run: Callable, *arguments):
  """run(kernels, *arguments) with the kernels of the implementation, or of the platform."""
  if implementation:
    return run(_KERNELS[implementation], *arguments)
  return lax.platform_dependent(
    *arguments, cuda=partial(run, pallas.KERNELS), default=partial(run, xla.KERNELS)
  )


# --- from tile lists ---


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _tiles(table, bins: Bins, implementation: str | None, axis: str | None):
  """The tiles [T, C, P] of this device's share."""
  del axis
  return _run(implementation, lambda kernels, *arguments: kernels.render(*arguments), table, bins)


def _tiles_forward(table, bins, implementation, axis):
  return _tiles(table, bins, implementation, axis), (table, bins)


def _tiles_backward(implementation, axis, saved, cotangent):
  def run(kernels, *arguments):
    return kernels.backward(*arguments)

  gradient = _run(implementation, run, *saved, cotangent)
  return lax.psum(gradient, axis) if axis else gradient, None


_tiles.defvjp(_tiles_forward, _tiles_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(share, axis: str):
  """The shares of all devices, stacked on a leading axis."""
  return lax.all_gather(share, axis)


def _gather_forward(share, axis):
  return _gather(share, axis), None


def _gather_backward(axis, saved, cotangent):
  # Every device has the same cotangent of the whole image; all_gather's transpose would sum them.
  del saved
  return (cotangent[lax.axis_index(axis)],)


_gather.defvjp(_gather_forward, _gather_backward)


def rasterize_binned(
  gaussians: Gaussians,
  bins: Bins,
  height: int,
  width: int,
  *,
  axis: str | None = None,
  implementation: str | None = None,
) -> Float[Array, 'H W C']:
  """The image from tile lists, which must be complete: the caller checks `bins.overflowed`.

  Inside a `shard_map` over `axis` each device renders the share that its bins are of (those of
  `own_share(axis)`; all other arguments are replicated), and all return the whole image and
  gradient.
  """
  tiles: Array = _tiles(gaussian_table(gaussians), bins, implementation, axis)  # pyright: ignore
  image = untile(tiles, bins.tile_shape, bins.columns)
  if axis:
    image = jnp.swapaxes(_gather(image, axis), 0, 1)  # rows interleave  # pyright: ignore
  image = image.reshape(-1, *image.shape[-2:])
  return image[:height, :width]


def mean_errors(
  errors: Errors,
  target: Target,
  gaussians: Gaussians,
  bins: Bins,
  *,
  axis: str | None = None,
  implementation: str | None = None,
) -> tuple[Float[Array, 'E'], Gaussians]:
  """The means of errors(image, target) over all samples, and the gradient of the first mean.

  `errors` is elementwise; the target is made by `layout.tile_target`. No tile may have more chunks
  than `target.block`. `axis` as in `rasterize_binned`.
  """
  table, pullback = jax.vjp(gaussian_table, gaussians)

  def run(kernels, target, table, bins):
    return (kernels.mean_errors or partial(_mean_errors_in_two_passes, kernels))(
      errors, target, table, bins
    )

  values, gradient = _run(implementation, run, target, table, bins)
  if axis:
    with jax.named_scope('exchange'):
      values, gradient = lax.psum((values, gradient), axis)
  return values, pullback(gradient)[0]


def mean_error(
  error: Callable[[Array, Array], Array], *arguments, **options
) -> tuple[Float[Array, ''], Gaussians]:
  """`mean_errors` for a single error."""
  values, gradient = mean_errors(lambda *images: (error(*images),), *arguments, **options)
  return values[0], gradient


def _mean_errors_in_two_passes(kernels: Kernels, errors, target: Target, table, bins: Bins):
  image = kernels.render(table, bins)
  pixels, inside = target.pixels[: bins.num_tiles], target.inside[: bins.num_tiles]
  with jax.named_scope('loss'):
    values, cotangent = errors_of_samples(errors, image, pixels, inside, target.num_samples)
  return values, kernels.backward(table, bins, cotangent)


# --- from Gaussians ---


def rasterize(
  gaussians: Gaussians, height: int, width: int, *, implementation: str | None = None
) -> Float[Array, 'H W C']:
  """I(p) = sum_i c_i exp(-q_i(p)), q_i <= ln 255 (see `reference`), unclamped; differentiable.

  Tile lists that overflow are made again with a larger capacity. Inside `jax.jit`, where shapes are
  fixed, an overflow evaluates all pairs instead, slowly; code that renders often bins by itself and
  calls `rasterize_binned`. Raises ValueError on an unknown name or impossible sizes.
  """
  name = chosen(implementation)
  validate(gaussians, height, width)
  if name == REFERENCE:
    return reference.rasterize(gaussians, height, width)
  if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(gaussians)):
    shape = tile_shape(name)
    capacity = initial_capacity(gaussians.num_gaussians, height, width, shape)
    return rasterize_within(
      gaussians, height=height, width=width, capacity=capacity, implementation=name, shape=shape
    )
  padded = rasterize_padded(gaussians, height, width, implementation=name)
  # Cut out by NumPy: JAX would compile a program for each size.
  return jax.device_put(np.asarray(padded)[:height, :width])


def rasterize_padded(
  gaussians: Gaussians, height: int, width: int, *, implementation: str | None = None
) -> Float[Array, 'Hp Wp C']:
  """The image in the upper left corner of one with sides of `tiles.round_side`, of any content.

  Not to be traced, and without a gradient: for code that renders many sizes, or numbers of
  Gaussians, by few programs. Raises ValueError on an unknown name.
  """
  name = chosen(implementation, from_lists=True)
  count, shape = gaussians.num_gaussians, tile_shape(name)
  gaussians = with_inactive(gaussians, round_gaussians(count))
  arguments = devices.place((gaussians, Size(np.int32(height), np.int32(width))))
  static = {'height': round_side(height), 'width': round_side(width), 'shape': shape}

  def attempt(capacity: Capacity):
    pairs, by = capacity.pairs, name
    if pairs > MAX_CAPACITY:
      pairs, by = 1, ALL_PAIRS
    image, needed = devices.call(_render, *arguments, capacity=pairs, implementation=by, **static)
    return image.addressable_data(0), Capacity(0 if by == ALL_PAIRS else int(needed))

  # A guess by the padded sizes, so that images which share these share a program.
  rows = -(-gaussians.num_gaussians // devices.mesh().size)
  first = initial_capacity(
    rows, -(-static['height'] // devices.mesh().size), static['width'], shape
  )
  return grow_until_it_fits(Capacity(first), attempt)[0]


def _render(gaussians, size, *, height, width, capacity, implementation, shape):
  """The padded image, and the number of pairs of the device that needs most."""

  def render(gaussians, size, axis):
    bins = bin_gaussians(gaussians, height, width, capacity, own_share(axis), shape, size)
    options = {'axis': axis, 'implementation': implementation}
    image = rasterize_binned(gaussians, bins, height, width, **options)
    return image, lax.pmax(bins.num_pairs, axis) if axis else bins.num_pairs

  return devices.over_devices(render)(gaussians, size)


_STATIC = ('height', 'width', 'capacity', 'implementation', 'shape')


@partial(jax.jit, static_argnames=_STATIC)
def rasterize_within(
  gaussians: Gaussians,
  *,
  height: int,
  width: int,
  capacity: int,
  implementation: str | None = None,
  shape: TileShape = TILE,
) -> Float[Array, 'H W C']:
  """From tile lists if they fit the capacity, else from all pairs, slowly."""
  bins = bin_gaussians(gaussians, height, width, capacity, tile_shape=shape)

  def by(name):
    return lambda g: rasterize_binned(g, bins, height, width, implementation=name)

  if implementation == ALL_PAIRS:
    return by(ALL_PAIRS)(gaussians)
  overflowed = _any_of(bins.overflowed)
  return lax.cond(overflowed, by(ALL_PAIRS), by(implementation), gaussians)


@custom_vmap
def _any_of(flag: Bool[Array, '']) -> Bool[Array, '']:
  """Under vmap, whether any flag of the batch is true. A condition on it stays a single one; vmap
  would replace one that differs within the batch by the evaluation of both branches."""
  return flag


@_any_of.def_vmap
def _any_of_batched(size, batched, flag):
  del size
  return (jnp.any(_any_of(flag), axis=0) if batched[0] else _any_of(flag)), False
