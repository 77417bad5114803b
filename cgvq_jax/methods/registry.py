"""Codec variants by name. A method is a choice of functions; no code asks which one it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cgvq_jax.extensions import Registry
from cgvq_jax.inputs import check_real
from cgvq_jax.methods.base import Method
from cgvq_jax.methods.codebooks import CodebookMethod
from cgvq_jax.methods.rd import AdaptiveMethod
from cgvq_jax.quantize import adaptive, lattice, uniform, vector
from cgvq_jax.quantize.base import Quantizer
from cgvq_jax.rate_control import MAX_QUALITY, MIN_QUALITY

_LATTICE, _FP16 = lattice.lattice(), lattice.fp16()


@lru_cache  # the same functions for every image, so that programs compiled for one serve the next
def _codebook_quantizers(entries: int, channels: int, positions: Quantizer):
  return {
    'position': positions,
    'rotation_scale': uniform.uniform(levels=64, num_columns=3),
    'color': vector.residual(stages=2, entries=entries, num_columns=channels),
  }


def codebook_method(
  name: str, num_clusters: int, entries: int, positions: Quantizer = _LATTICE
) -> Callable[..., CodebookMethod]:
  """The papers' quantizers: rotation and log scales in 6 bits with learned steps and offsets,
  colours by two residual codebooks of so many entries (CGVQ poster; GaussianImage 3.2).

  Returns (channels=3, num_gaussians=10_000, num_clusters=num_clusters, order='sorted') -> method.
  """
  default_clusters = num_clusters

  def make(
    channels: int = 3,
    *,
    num_gaussians: int = 10_000,
    num_clusters: int = default_clusters,
    order: str = 'sorted',
  ) -> CodebookMethod:
    quantizers = _codebook_quantizers(entries, channels, positions)
    return CodebookMethod(name, num_gaussians, num_clusters, order=order, **quantizers)

  return make


# GaussianImage's rotation-scale codec, the baseline, and the poster, cluster-guided vector
# quantization; with positions on lattices, and in half precision as in the papers.
gi = codebook_method('gi', 1, 8)
cgvq = codebook_method('cgvq', 16, 64)
gi_fp16 = codebook_method('gi_fp16', 1, 8, _FP16)
cgvq_fp16 = codebook_method('cgvq_fp16', 16, 64, _FP16)


def cgvq_rd(
  channels: int = 3, *, quality: float = 50.0, num_gaussians: int | None = None
) -> AdaptiveMethod:
  """Ours: every number in quantization steps of its own, by its Gaussian's energy and shape.

  `quality` is 1 to 100, from about 0.1 to about 2 bits a pixel of a photograph. Colours have steps
  of 2^(2 - step_index / 64) over the square root of a Gaussian's area. See `methods.rd`.

  Raises ValueError where the quality is no number or out of range.
  """
  del channels
  check_real('quality', quality, MIN_QUALITY, MAX_QUALITY)
  return AdaptiveMethod('cgvq_rd', round(168 + 2.5 * quality), num_gaussians)


def _one_class(energy: Float[np.ndarray, 'N'], delta: float) -> Int[np.ndarray, 'N']:
  """The median class for all Gaussians, so that all have the same steps."""
  return np.full(energy.shape, np.median(adaptive.energy_classes(energy, delta)), np.int64)


def _rgb_axes(colors: Float[np.ndarray, 'N C']) -> Int[np.ndarray, 'C C']:
  return (127 * np.eye(colors.shape[1])).astype(np.int8)


def _ablated(
  changes: dict[str, Any],
  channels: int = 3,
  *,
  quality: float = 50.0,
  num_gaussians: int | None = None,
) -> AdaptiveMethod:
  method = cgvq_rd(channels, quality=quality, num_gaussians=num_gaussians)
  return method._replace(**changes)


# `cgvq_rd` with one part of it off each. Their files are as good as any, and named `cgvq_rd`.
ABLATIONS: dict[str, Callable[..., Method]] = {
  'rd_no_rate': partial(_ablated, {'lmbda': 0.0}),
  'rd_no_presence': partial(_ablated, {'presence': 0.0}),
  'rd_common_steps': partial(_ablated, {'classify': _one_class}),
  'rd_rgb_axes': partial(_ablated, {'axes': _rgb_axes}),
  'rd_one_group_each': partial(_ablated, {'groups': 1}),
}

# name -> (channels=3, **options) -> Method
METHODS: Registry[Callable[..., Method]] = Registry(
  'method',
  {'cgvq_rd': cgvq_rd, 'cgvq': cgvq, 'gi': gi, 'cgvq_fp16': cgvq_fp16, 'gi_fp16': gi_fp16}
  | ABLATIONS,
)


def options(name: str) -> tuple[str, ...]:
  """The options that a method takes, such as `quality`: the keywords of its function.

  Raises ValueError on an unknown name.
  """
  parameters = inspect.signature(METHODS.find(name)).parameters
  return tuple(option for option in parameters if option != 'channels')


def make(name: str, channels: int, **chosen: Any) -> Method:
  """A method by its name; options that are None keep their default.

  Raises ValueError on an unknown name, and on an option that the method does not have: what would
  be without effect is refused.
  """
  known = options(name)
  chosen = {option: value for option, value in chosen.items() if value is not None}
  for option, value in chosen.items():
    if option not in known:
      raise ValueError(
        f'{option}: wanted a method that has it, got {value!r} for {name}, which has'
        f' {", ".join(known) or "no options"}'
      )
  return METHODS[name](channels, **chosen)
