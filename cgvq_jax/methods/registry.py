"""Codec variants. A method is a choice of functions; nothing below asks which one it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cgvq_jax.methods import codebooks
from cgvq_jax.methods.rd import Rounding
from cgvq_jax.quantize import adaptive, lattice, uniform, vector
from cgvq_jax.quantize.base import Quantizer

# How fitted Gaussians become a file's integers: `check(channels)` and `tell(telling)`.
Method = codebooks.Method | Rounding

_LATTICE, _FP16 = lattice.lattice(), lattice.fp16()


@lru_cache  # the same functions for every image, so that programs compiled for one serve the next
def codebook_method(
  name: str, num_clusters: int, entries: int, channels: int, positions: Quantizer = _LATTICE
) -> codebooks.Method:
  """The papers' quantizers: rotation and log scales in 6 bits with learned steps and offsets,
  colours by two residual codebooks (CGVQ poster; GaussianImage 3.2). Positions on lattices."""
  return codebooks.Method(
    name=name,
    num_clusters=num_clusters,
    position=positions,
    rotation_scale=uniform.uniform(levels=64, num_columns=3),
    color=vector.residual(stages=2, entries=entries, num_columns=channels),
  )


def gi(channels: int = 3) -> codebooks.Method:
  """GaussianImage's rotation-scale codec, the baseline: one cluster, 8 entries a stage."""
  return codebook_method('gi', 1, 8, channels)


def cgvq(channels: int = 3) -> codebooks.Method:
  """Cluster-guided vector quantization, the poster: 16 clusters, 64 entries a stage."""
  return codebook_method('cgvq', 16, 64, channels)


def gi_fp16(channels: int = 3) -> codebooks.Method:
  """`gi` with the paper's positions, in half precision."""
  return codebook_method('gi_fp16', 1, 8, channels, _FP16)


def cgvq_fp16(channels: int = 3) -> codebooks.Method:
  """`cgvq` with the poster's positions, in half precision."""
  return codebook_method('cgvq_fp16', 16, 64, channels, _FP16)


QUALITY = 50.0  # of `cgvq_rd` where nothing is said


def cgvq_rd(channels: int = 3, quality: float = QUALITY) -> Rounding:
  """Ours: every number in steps of its own, by its Gaussian's energy and shape; see `rounding`.

  `quality` is 1 to 100, from about 0.1 to about 2 bits a pixel of a photograph. Colours are told
  in steps of 2^(2 - step_index / 64) over the square root of a Gaussian's area.
  """
  del channels
  return Rounding('cgvq_rd', round(168 + 2.5 * quality))


def _alike(energy: Float[np.ndarray, 'N'], delta: float) -> Int[np.ndarray, 'N']:
  """The grade of the middle one for all: steps are everyone's."""
  return np.full(energy.shape, np.median(adaptive.energy_classes(energy, delta)), np.int64)


def _plain_axes(colors: Float[np.ndarray, 'N C']) -> Int[np.ndarray, 'C C']:
  return (127 * np.eye(colors.shape[1])).astype(np.int8)


def _without(**lever: Any) -> Callable[..., Rounding]:
  return lambda channels=3, quality=QUALITY: cgvq_rd(channels, quality)._replace(**lever)


# `cgvq_rd` with a lever off each. Their files are as good as any, and named `cgvq_rd`.
ABLATIONS = {
  'rd_no_rate': _without(weight=0.0),
  'rd_no_presence': _without(presence=0.0),
  'rd_common_steps': _without(grades=_alike),
  'rd_plain_axes': _without(axes=_plain_axes),
  'rd_one_turn_each': _without(parts=1),
}

CODEBOOK_METHODS = {'gi': gi, 'cgvq': cgvq, 'gi_fp16': gi_fp16, 'cgvq_fp16': cgvq_fp16}
METHODS = {**CODEBOOK_METHODS, 'cgvq_rd': cgvq_rd}
