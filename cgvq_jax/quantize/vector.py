"""Residual vector quantization with codebooks that follow their members (EMA)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from cgvq_jax.quantize import kmeans
from cgvq_jax.quantize.base import Quantized, Quantizer
from cgvq_jax.quantize.dequantizers import RESIDUAL, Codebooks
from cgvq_jax.quantize.lattice import straight_through
from cgvq_jax.quantize.tables import LARGEST_HALF, SMALLEST_NORMAL_HALF, from_half_bits, half_bits

# An entry that one member chooses has count 1. Without it the count falls by `decay` each step;
# halfway down, after 4 steps at 0.8, the entry is dead.
_DEAD_COUNT = 0.5
_LAPLACE = 1e-5
# K-means runs of the first codebooks: the best of 4 has 0.05 to 0.1 dB less error than one.
_RESTARTS = 4
# Codes of entries. The stages of a cluster share a step in each column, since an entry's error is
# the colour's error in any of them. The stage of the largest extent, the first, has 7 bits, the
# others less. The step is a normal half-precision number.
_LEVELS = 127
_LARGEST_CODE = 255  # by rounding, just above _LEVELS
_SMALLEST_STEP = SMALLEST_NORMAL_HALF


def residual(
  stages: int = 2,
  entries: int = 64,
  num_columns: int = 3,
  *,
  decay: float = 0.8,
  commitment: float = 1.0,
) -> Quantizer:
  """Codes x by one entry of each stage's codebook; a stage codes the residual of those before it.

      r_1 = x,  j_s = argmin_j |r_s - e_sj|^2,  r_{s+1} = r_s - e_{s j_s},  value = sum_s e_{s j_s}

  The gradient is straight-through: d value / d x = 1 and none to the entries. The loss is
  `commitment` * mean |x - stop_gradient(value)|^2 over the members and the D columns. Codebooks
  start as K-means centers, stage by stage, and each step moves them (van den Oord et al. 2017,
  appendix A.1) with the number n and the sum m of the residuals which chose an entry:

      count <- decay count + (1 - decay) n,  sum <- decay sum + (1 - decay) m,  entry <- sum / count

  with Laplace smoothing of the counts. An entry whose count has fallen below 0.5 stays where it
  is; and each step puts one such entry of a codebook on its worst-coded member, unless the cluster
  has no more members than the codebook has entries, so that each can have its own.

  The tables hold half-precision bits of `low` for each cluster, stage and column and of `step` for
  each cluster and column, and a code for each entry: entry = low + step * code, where the largest
  extent of the stages has 128 codes. Entries that no member chose and entries with equal codes are
  dropped and the others sorted, since a file stores them in fewer bits as a point set, without
  their order; the last one is repeated to fill the codebook. Restored codebooks differ from those
  tabulated, so rows have to be quantized again with them.

  With one stage this is plain vector quantization.

  Raises:
    ValueError: `stages` or `num_columns` below 1, `entries` outside 1..65536, `decay` outside
      [0, 1), negative `commitment`; from `init`, rows with another number of columns.
  """
  if min(stages, num_columns) < 1:
    raise ValueError(f'{stages=} and {num_columns=} must be at least 1')
  if not 1 <= entries <= 65536:
    raise ValueError(f'entries must be in 1..65536, got {entries}')
  if not 0 <= decay < 1:
    raise ValueError(f'decay must be in [0, 1), got {decay}')
  if commitment < 0:
    raise ValueError(f'commitment must not be negative, got {commitment}')
  return Quantizer(
    name='residual',
    alphabets=(entries,) * stages,
    init=functools.partial(_init, num_stages=stages, num_entries=entries, num_columns=num_columns),
    quantize=functools.partial(_quantize, decay=decay, commitment=commitment),
    tabulate=functools.partial(_tabulate, decay=decay),
    dequantizer=RESIDUAL,
  )


def _init(
  key: PRNGKeyArray,
  rows: Float[Array, 'P D'],
  mask: Bool[Array, 'P'],
  steps: Float[Array, 'P D'],
  *,
  num_stages: int,
  num_entries: int,
  num_columns: int,
) -> Codebooks:
  del steps  # codebooks have none
  if rows.shape[-1] != num_columns:
    raise ValueError(f'rows must have {num_columns} columns, got shape {rows.shape}')
  weights = mask.astype(rows.dtype)

  def stage(remainder, key):
    found = kmeans.fit(key, remainder, num_entries, weights=weights, restarts=_RESTARTS)
    counts, sums = kmeans.totals(remainder, weights, found.labels, num_entries)
    book = Codebooks(entries=found.centers, counts=counts, sums=sums)
    return remainder - _take(found.centers, found.labels), book

  return lax.scan(stage, rows, jax.random.split(key, num_stages))[1]


def _quantize(
  params: Codebooks,
  rows: Float[Array, 'P D'],
  mask: Bool[Array, 'P'],
  *,
  decay: float,
  commitment: float,
) -> Quantized:
  def stage(state, book):
    remainder, value = state
    symbols, distance = kmeans.nearest(remainder, book.entries)
    chosen = _take(book.entries, symbols)
    counts, sums = kmeans.totals(
      remainder, mask.astype(remainder.dtype), symbols, book.counts.shape[0]
    )
    book = _follow(book, counts, sums, decay)
    book = _revive(book, remainder, distance, mask)
    return (remainder - chosen, value + chosen), (symbols, book)

  x = lax.stop_gradient(rows)
  start = (x, jnp.zeros_like(x))
  (_, value), (symbols, updated) = lax.scan(stage, start, lax.stop_gradient(params), unroll=True)
  elements = jnp.maximum(jnp.sum(mask), 1) * rows.shape[-1]
  squared = jnp.where(mask[:, None], jnp.square(rows - value), 0)
  loss = commitment * jnp.sum(squared) / elements
  return Quantized(straight_through(rows, value), symbols.T, updated, loss)


def _follow(book, counts, sums, decay):
  """One step of the moving averages; entries that still have members go to their mean."""
  counts = decay * book.counts + (1 - decay) * counts
  sums = decay * book.sums + (1 - decay) * sums
  total = jnp.sum(counts)
  smoothed = (counts + _LAPLACE) / (total + counts.shape[0] * _LAPLACE) * total
  alive = counts >= _DEAD_COUNT
  means = sums / jnp.where(alive, smoothed, 1)[:, None]
  return Codebooks(jnp.where(alive[:, None], means, book.entries), counts, sums)


def _revive(book, remainder, distance, mask):
  """Puts the first dead entry on the worst-coded member, as if that one member had chosen it."""
  num_entries = book.counts.shape[0]
  worst = jnp.argmax(jnp.where(mask, distance, -1))
  useful = (jnp.sum(mask) > num_entries) & (distance[worst] > 0)
  dead = book.counts < _DEAD_COUNT
  revived = dead & (jnp.arange(num_entries) == jnp.argmax(dead)) & useful
  return Codebooks(
    entries=jnp.where(revived[:, None], remainder[worst], book.entries),
    counts=jnp.where(revived, 1, book.counts),
    sums=jnp.where(revived[:, None], remainder[worst], book.sums),
  )


def _take(entries, symbols):
  # Clipping needs no check of the bounds; symbols are in range by their alphabet.
  return jnp.take(entries, symbols, axis=0, mode='clip')


def _tabulate(params: Codebooks, *, decay: float) -> dict[str, np.ndarray]:
  entries = np.asarray(params.entries, np.float64)  # [K, S, M, D]
  # A member that chose an entry in the last step alone leaves it a count of 1 - decay.
  used = np.asarray(params.counts) > (1 - decay) / 2
  # Unused entries do not widen the range, and cost the file nothing.
  where = used[..., None]
  low = np.min(entries, axis=2, keepdims=True, where=where, initial=np.inf)
  low_bits = half_bits(np.where(np.isfinite(low), low, 0))
  low = from_half_bits(low_bits)
  extent = np.max(entries - low, axis=(1, 2), keepdims=True, where=where, initial=0)
  step_bits = half_bits(np.clip(extent / _LEVELS, _SMALLEST_STEP, LARGEST_HALF))
  codes = np.where(where, np.rint((entries - low) / from_half_bits(step_bits)), 0)
  codes = np.clip(codes, 0, _LARGEST_CODE).astype(np.uint8)
  rows = np.zeros(entries.shape, np.uint8)
  for book in np.ndindex(used.shape[:2]):
    if used[book].any():
      rows[book] = _sorted_codes(codes[book][used[book]], used.shape[2])
  return {'low': low_bits[:, :, 0], 'step': step_bits[:, 0, 0], 'entries': rows}


def _sorted_codes(codes: np.ndarray, num_entries: int) -> np.ndarray:
  """The different codes in lexicographic order, the last repeated: a point set to the file."""
  different = np.unique(codes, axis=0)
  return different[np.minimum(np.arange(num_entries), len(different) - 1)]
