"""Codec variants. A method is a choice of functions; nothing below asks which one it is."""

from __future__ import annotations

from functools import lru_cache

from cgvq_jax.quantize import position, scalar, vector
from cgvq_jax.types import Method, Quantizer


@lru_cache  # the same functions for every image, so that programs compiled for one serve the next
def papers_method(name: str, num_clusters: int, entries: int, channels: int) -> Method:
  """The papers' quantizers: positions in half precision, rotation and log scales in 6 bits with
  learned steps and offsets, colours by two residual codebooks (CGVQ poster; GaussianImage 3.2)."""
  return Method(
    name=name,
    num_clusters=num_clusters,
    position=position.fp16(),
    rotation_scale=scalar.uniform(levels=64, num_columns=3),
    color=vector.residual(stages=2, entries=entries, num_columns=channels),
  )


def gi(channels: int = 3) -> Method:
  """GaussianImage's rotation-scale codec, the baseline: one cluster, 8 entries a stage."""
  return papers_method('gi', 1, 8, channels)


def cgvq(channels: int = 3) -> Method:
  """Cluster-guided vector quantization, the poster: 16 clusters, 64 entries a stage."""
  return papers_method('cgvq', 16, 64, channels)


METHODS = {'gi': gi, 'cgvq': cgvq}


def dequantizers(channels: int) -> dict[str, Quantizer]:
  """By name, what a file may ask the decoder for; codebook sizes are in the file's tables."""
  known = [
    position.fp16(),
    scalar.uniform(levels=64, num_columns=3),
    vector.residual(stages=2, entries=64, num_columns=channels),
  ]
  return {quantizer.name: quantizer for quantizer in known}
