"""Point sets: rows of integers that are stored without their order.

n rows of D integers in a box are coded by halving (`quantize.boxes`): the box is cut across its
longest side, the number of rows in its first half is coded, and both halves are cut again, until a
box holds one row, whose place in it is coded flat, or one cell. n rows in a fixed order would take
log2 n! bits more; and where rows are crowded, the counts are far from even and take few bits.

How far from even is stored for each depth: the first half's count of n rows has the beta-binomial
distribution with both parameters alpha, which is flat at 1 and binomial at infinity.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cgvq_jax.bitstream import histograms
from cgvq_jax.bitstream.ans import (
  OCTAVES,
  STEPS,
  Reader,
  Writer,
  bit_cost,
  categorical,
  frequencies,
  normalize_frequencies,
)
from cgvq_jax.quantize.boxes import Boxes, cuts, halves, kinds

if TYPE_CHECKING:
  from jaxtyping import Int

ALPHAS = (1, 2, 4, 8, 16, 32, 64, 0)  # 0: infinite
MAX_COUNT = 255  # larger counts are coded flat: they are few
_LOG_UNITS = 256  # logarithms are integers, in 1/256 octave


def put(
  writer: Writer,
  rows: Int[np.ndarray, 'n D'],
  alphabets: Sequence[int],
  counts: Sequence[int] | Int[np.ndarray, 'G'],
) -> None:
  """Codes the rows of each group, without their order.

  `counts` rows belong to each group, one after the other, their columns below `alphabets`.
  """
  rows, counts = np.asarray(rows, np.int64), np.asarray(counts, np.int64)
  if not rows.size:
    return
  top = np.zeros((len(counts), len(alphabets)), np.int64)
  starts = (np.cumsum(counts) - counts)[counts > 0]
  top[counts > 0] = np.maximum.reduceat(rows, starts)
  boxes = _outer(top, counts)
  for column, alphabet in zip(top[counts > 0].T, alphabets, strict=True):
    histograms.put_column(writer, column, histograms.Layout(alphabet, [len(column)]))
  box = np.repeat(np.arange(len(boxes.count)), boxes.count)  # of each row
  while boxes.count.size:
    one, several = kinds(boxes)
    row = np.zeros(len(one), np.int64)
    row[box] = np.arange(len(box))  # of a box, one of its rows: that of a box of one
    alone = np.flatnonzero(one)
    offsets = rows[row[alone]] - boxes.low[alone]
    writer.put_below(offsets.ravel(), boxes.size[alone].ravel())
    if not several.any():
      break
    left = np.flatnonzero(several[box])
    rows, box = rows[left], (np.cumsum(several) - 1)[box[left]]
    boxes = boxes.where(several)
    side, cut = cuts(boxes)
    behind = rows[np.arange(len(rows)), side[box]] >= cut[box]
    first = np.bincount(box[~behind], minlength=len(boxes.count))
    put_counts(writer, first, boxes.count)
    boxes, index = halves(boxes, side, cut, first)
    box = index[2 * box + behind]


def take(
  reader: Reader, alphabets: Sequence[int], counts: Sequence[int] | Int[np.ndarray, 'G']
) -> Int[np.ndarray, 'n D']:
  """The inverse of `put`: the rows of each group in lexicographic order, as int32."""
  counts = np.asarray(counts, np.int64)
  if not counts.any():
    return np.zeros((0, len(alphabets)), np.int32)
  layouts = [histograms.Layout(alphabet, [int(np.count_nonzero(counts))]) for alphabet in alphabets]
  top = np.zeros((len(counts), len(alphabets)), np.int64)
  top[counts > 0] = np.stack([histograms.take_column(reader, layout) for layout in layouts], axis=1)
  boxes = _outer(top, counts)
  groups, found = [], []
  while boxes.count.size:
    one, several = kinds(boxes)
    alone, same = boxes.where(one), boxes.where(~one & ~several)
    offsets = reader.take_below(alone.size.ravel()).reshape(alone.low.shape)
    groups += [alone.group, np.repeat(same.group, same.count)]
    found += [alone.low + offsets, np.repeat(same.low, same.count, axis=0)]
    boxes = boxes.where(several)
    if not boxes.count.size:
      break
    side, cut = cuts(boxes)
    boxes, _ = halves(boxes, side, cut, take_counts(reader, boxes.count))
  rows = np.concatenate(found)
  order = np.lexsort((*rows.T[::-1], np.concatenate(groups)))
  return rows[order].astype(np.int32)


def in_order(rows: Int[np.ndarray, 'n D'], counts: Int[np.ndarray, 'G']) -> bool:
  """Whether the rows of each group are as `take` returns them."""
  group = np.repeat(np.arange(len(counts)), counts)
  return bool(np.all(np.lexsort((*rows.T[::-1], group)) == np.arange(len(rows))))


def _outer(top: Int[np.ndarray, 'G D'], counts: Int[np.ndarray, 'G']) -> Boxes:
  """The box 0..top of each group that is not empty."""
  top, counts = top.astype(np.int32), counts.astype(np.int32)
  group = np.arange(len(counts), dtype=np.int32)
  boxes = Boxes(group, np.zeros_like(top), top + 1, counts)
  return boxes.where(counts > 0)


# --- counts ---


@functools.cache
def log_sums(size: int) -> Int[np.ndarray, 'size']:
  """F_n = sum over i = 1..n of floor(256 log2 i), for n = 0..size-1.

  The logarithm is exact: floor(256 log2 i) is one less than the number of bits of i^256.
  """
  logs = [0, *((i**_LOG_UNITS).bit_length() - 1 for i in range(1, size))]
  return np.cumsum(logs)


@functools.cache
def count_weights(alpha: int) -> Int[np.ndarray, 'n B']:
  """Row n: the weights of 0..n rows in the first half, of n; the rest is zeros."""
  n, first = np.ogrid[: MAX_COUNT + 1, : MAX_COUNT + 1]
  second = np.maximum(n - first, 0)
  sums = log_sums(MAX_COUNT + max(ALPHAS) + 1)
  # Beta-binomial: (first + alpha - 1)! / first! times the same of the second, up to a constant.
  logs = -sums[first] - sums[second]
  if alpha:
    logs = logs + sums[first + alpha - 1] + sums[second + alpha - 1]
  logs = np.where(first <= n, logs, -(1 << 40))
  logs -= logs.max(axis=1, keepdims=True)
  heights = np.maximum(OCTAVES * STEPS + logs // (_LOG_UNITS // STEPS), 0)
  weights = np.zeros_like(heights)
  for row in range(MAX_COUNT + 1):
    weights[row, : row + 1] = normalize_frequencies(frequencies(heights[row, : row + 1]))
  return weights


@functools.cache
def _count_costs(alpha: int) -> Int[np.ndarray, 'n B']:
  return bit_cost(np.maximum(count_weights(alpha), 1))


@functools.cache
def _count_model(alpha: int, count: int) -> Any:
  return categorical(count_weights(alpha)[count, : count + 1])


def _by_count(count: Int[np.ndarray, 'm']):
  """Numbers of rows up to MAX_COUNT, fewest first, with the indices of the boxes that hold them."""
  order = np.argsort(count, kind='stable')
  order = order[: np.searchsorted(count[order], MAX_COUNT, side='right')]
  numbers, starts = np.unique(count[order], return_index=True)
  bounds = itertools.pairwise([*starts.tolist(), len(order)])
  for number, (start, end) in zip(numbers.tolist(), bounds, strict=True):
    yield number, order[start:end]


def put_counts(writer: Writer, first: Int[np.ndarray, 'm'], count: Int[np.ndarray, 'm']) -> None:
  """Codes how many rows of each box are in its first half; all boxes are of one depth."""
  few = count <= MAX_COUNT
  cell = count[few] * (MAX_COUNT + 1) + first[few]
  costs = [np.take(_count_costs(alpha), cell).sum() for alpha in ALPHAS]
  choice = int(np.argmin(costs))
  writer.put_uniform(choice, len(ALPHAS))
  writer.put_below(first[~few], count[~few] + 1)
  for number, boxes in _by_count(count):
    writer.put(first[boxes], _count_model(ALPHAS[choice], number))


def take_counts(reader: Reader, count: Int[np.ndarray, 'm']) -> Int[np.ndarray, 'm']:
  """The inverse of `put_counts`."""
  alpha = ALPHAS[reader.take_uniform(len(ALPHAS), 1)[0]]
  first = np.zeros_like(count)
  many = count > MAX_COUNT
  first[many] = reader.take_below(count[many] + 1)
  for number, boxes in _by_count(count):
    first[boxes] = reader.take(_count_model(alpha, number), len(boxes))
  return first
