"""Codec variants. A method is a choice of functions; nothing below asks which one it is."""

from __future__ import annotations

from functools import lru_cache

from cgvq_jax import finetune
from cgvq_jax.quantize import position, scalar, vector
from cgvq_jax.rounding import Rounding
from cgvq_jax.types import Quantizer

# How fitted Gaussians become a file's integers: `check(channels)` and `tell(telling)`.
Method = finetune.Method | Rounding

_LATTICE, _FP16 = position.lattice(), position.fp16()


@lru_cache  # the same functions for every image, so that programs compiled for one serve the next
def papers_method(
  name: str, num_clusters: int, entries: int, channels: int, positions: Quantizer = _LATTICE
) -> finetune.Method:
  """The papers' quantizers: rotation and log scales in 6 bits with learned steps and offsets,
  colours by two residual codebooks (CGVQ poster; GaussianImage 3.2). Positions on lattices."""
  return finetune.Method(
    name=name,
    num_clusters=num_clusters,
    position=positions,
    rotation_scale=scalar.uniform(levels=64, num_columns=3),
    color=vector.residual(stages=2, entries=entries, num_columns=channels),
  )


def gi(channels: int = 3) -> finetune.Method:
  """GaussianImage's rotation-scale codec, the baseline: one cluster, 8 entries a stage."""
  return papers_method('gi', 1, 8, channels)


def cgvq(channels: int = 3) -> finetune.Method:
  """Cluster-guided vector quantization, the poster: 16 clusters, 64 entries a stage."""
  return papers_method('cgvq', 16, 64, channels)


def gi_fp16(channels: int = 3) -> finetune.Method:
  """`gi` with the paper's positions, in half precision."""
  return papers_method('gi_fp16', 1, 8, channels, _FP16)


def cgvq_fp16(channels: int = 3) -> finetune.Method:
  """`cgvq` with the poster's positions, in half precision."""
  return papers_method('cgvq_fp16', 16, 64, channels, _FP16)


def cgvq_rd(channels: int = 3, *, precision: int = 62) -> Rounding:
  """Ours: every number in steps of its own, by its Gaussian's energy and shape; see `rounding`.

  Colours are told in steps of 2^(2 - precision / 16) over the square root of a Gaussian's area.
  """
  del channels
  return Rounding('cgvq_rd', precision)


def precision_of(quality: float) -> int:
  """The precision of `cgvq_rd` for a quality of 1, where steps are of the size of the colours, to
  100, where they are 1/16 of that."""
  return round(30 + 0.64 * quality)


PAPERS = {'gi': gi, 'cgvq': cgvq, 'gi_fp16': gi_fp16, 'cgvq_fp16': cgvq_fp16}
METHODS = {**PAPERS, 'cgvq_rd': cgvq_rd}


def dequantizers(channels: int) -> dict[str, Quantizer]:
  """By name, what a file may ask the decoder for; codebook sizes are in the file's tables."""
  known = [
    _FP16,
    _LATTICE,
    scalar.uniform(levels=64, num_columns=3),
    vector.residual(stages=2, entries=64, num_columns=channels),
  ]
  return {quantizer.name: quantizer for quantizer in known}
