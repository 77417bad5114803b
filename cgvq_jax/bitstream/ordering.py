"""A set has no order: the Gaussians of a cluster are stored by position, and gaps are coded.

Sorting n of them leaves one of n! equal files, so it saves up to log2 n! bits; coding the first
position column as gaps between neighbours is how the saving reaches the file.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from cgvq_jax.types import Stream, Symbols

# A gap is coded as two columns, its low six bits apart: gaps are geometric, and the histograms of
# both parts can follow that, while a wide alphabet's low bits would be stored flat.
LOW_BITS = 6


def canonical(symbols: Symbols) -> Symbols:
  """The same image, each cluster's Gaussians sorted by position: first column, then second."""
  cluster = np.repeat(np.arange(len(symbols.counts)), symbols.counts)
  keys = (*symbols.position.symbols.T[::-1], cluster)  # lexsort's last key is its first criterion
  order = np.lexsort(keys)

  def sort(stream: Stream) -> Stream:
    return stream._replace(symbols=stream.symbols[order])

  return symbols._replace(
    position=sort(symbols.position),
    rotation_scale=sort(symbols.rotation_scale),
    color=sort(symbols.color),
  )


def _starts(counts: Int[np.ndarray, 'K']) -> Int[np.ndarray, 'G']:
  """Where each cluster that is not empty begins."""
  counts = np.asarray(counts, np.int64)
  return (np.cumsum(counts) - counts)[counts > 0]


def to_gaps(values: Int[np.ndarray, 'N'], counts: Int[np.ndarray, 'K']) -> Int[np.ndarray, 'N']:
  """Each value less the one before it in its cluster; the first of a cluster stays as it is.

  Negative where a cluster is not sorted.
  """
  gaps = np.diff(np.asarray(values, np.int64), prepend=0)
  starts = _starts(counts)
  gaps[starts] = values[starts]
  return gaps


def from_gaps(gaps: Int[np.ndarray, 'N'], counts: Int[np.ndarray, 'K']) -> Int[np.ndarray, 'N']:
  """The inverse of `to_gaps`, as int64."""
  sums = np.cumsum(np.asarray(gaps, np.int64))
  starts = _starts(counts)
  before = np.zeros(len(sums), np.int64)
  before[starts] = np.diff(sums[starts] - gaps[starts], prepend=0)
  return sums - np.cumsum(before)


def split_alphabet(alphabet: int) -> tuple[int, int]:
  """The alphabets of a gap's high and low part."""
  return ((alphabet - 1) >> LOW_BITS) + 1, min(alphabet, 1 << LOW_BITS)


def split_gaps(gaps: Int[np.ndarray, 'N']) -> tuple[Int[np.ndarray, 'N'], Int[np.ndarray, 'N']]:
  """High and low part of each gap; `(high << LOW_BITS) + low` joins them."""
  return gaps >> LOW_BITS, gaps & ((1 << LOW_BITS) - 1)
