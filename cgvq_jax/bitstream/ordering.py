"""The order of the Gaussians: it does not matter to the picture, so it should take no bits.

N rows in a fixed order take log2 N! bits more than the set of them. Three ways to code the columns
of all attributes, cluster by cluster, by their names in ORDERS:

    sorted     positions as point sets, everything else in the order of the positions
    bits_back  in an order chosen by bits of the stream, which a decoder gets back from the order
    none       in the order given, which is kept
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cgvq_jax.bitstream import histograms, point_sets
from cgvq_jax.bitstream.ans import Reader, Stack, Writer
from cgvq_jax.bitstream.histograms import Layout

if TYPE_CHECKING:
  from jaxtyping import Int

  # Of every attribute, positions first: rows of symbols and the alphabets of their columns.
  Rows = Sequence[Int[np.ndarray, 'N S']]
  Alphabets = Sequence[Sequence[int]]
  Counts = Int[np.ndarray, 'K']
  # (what comes first in the stream, rows, alphabets, counts) -> the stream, and how many rows are
  # plain; None where the positions are point sets.
  Put = Callable[[Writer, Rows, Alphabets, Counts], tuple[Stack, int | None]]


def canonical(rows: Rows, counts: Counts) -> list[Int[np.ndarray, 'N S']]:
  """The same rows, lexicographically sorted in each cluster: by position, then by the others."""
  cluster = np.repeat(np.arange(len(counts)), counts)
  columns = [column for array in rows for column in np.asarray(array).T]
  order = np.lexsort((*columns[::-1], cluster))  # lexsort's last key is its first criterion
  return [np.asarray(array)[order] for array in rows]


def put_sorted(
  writer: Writer, rows: Rows, alphabets: Alphabets, counts: Counts
) -> tuple[Stack, None]:
  """Positions as point sets; the columns of the other attributes in canonical order."""
  position, *others = canonical(rows, counts)
  point_sets.put(writer, position, alphabets[0], counts)
  for values, sizes in zip(others, alphabets[1:], strict=True):
    for column, alphabet in zip(values.T, sizes, strict=True):
      histograms.put_column(writer, column, Layout(alphabet, counts))
  return Stack(writer), None


def take_sorted(
  reader: Reader, alphabets: Alphabets, counts: Counts, sections: Sequence[str]
) -> list[Int[np.ndarray, 'N S']]:
  """The inverse of `put_sorted`, but for the order. Raises ValueError."""
  reader.section = sections[0]
  rows = [point_sets.take(reader, alphabets[0], counts)]
  for section, sizes in zip(sections[1:], alphabets[1:], strict=True):
    reader.section = section
    columns = [histograms.take_column(reader, Layout(alphabet, counts)) for alphabet in sizes]
    rows.append(np.stack(columns, axis=1))
  return rows


def put_plain(
  writer: Writer, rows: Rows, alphabets: Alphabets, counts: Counts
) -> tuple[Stack, int]:
  """Everything as columns, in the order given."""
  models = _put_models(writer, rows, alphabets, counts)
  _put_rows(writer, models, rows, counts)
  return Stack(writer), int(counts.sum())


def put_bits_back(
  writer: Writer, rows: Rows, alphabets: Alphabets, counts: Counts
) -> tuple[Stack, int]:
  """GaussianImage's partial bits-back coding (section 3.3, after Townsend et al. 2019).

  The first P rows are coded plainly, P the least whose bits are enough to choose an order of the
  others: sum over k <= P of R_k >= sum over clusters of log2 (rows of it that are left)!. An order
  of the other rows is decoded from these bits, which leave the stream, and the rows are coded in
  this order. A decoder that has read them knows their order, and encodes it to get the bits back.
  """
  rows, counts = canonical(rows, counts), np.asarray(counts, np.int64)
  models = _put_models(writer, rows, alphabets, counts)

  def plain_stack(num_plain: int) -> Stack:
    bottom = Writer()
    _put_rows(bottom, models, [array[:num_plain] for array in rows], split(num_plain, counts)[0])
    return Stack(bottom)

  def is_enough(num_plain: int) -> bool:
    left_counts = split(num_plain, counts)[1]
    wanted = sum(math.lgamma(count + 1) for count in left_counts) / math.log(2)
    return plain_stack(num_plain).num_bits >= wanted

  num_plain = bisect.bisect_left(range(len(rows[0])), True, key=is_enough)
  stack, left = plain_stack(num_plain), [array[num_plain:] for array in rows]
  left_counts = split(num_plain, counts)[1]
  digits = stack.pop_below(_choices(left_counts))
  order = _choose(_ranks(left, left_counts), digits, left_counts)
  before, equal = _steps(order, left_counts)
  equals = Writer()
  equals.put_below(digits - before, equal)
  equals.push(stack)
  _put_rows(writer, models, [array[order] for array in left], left_counts)
  writer.push(stack)
  return stack, num_plain


def take_sequence(
  reader: Reader, alphabets: Alphabets, counts: Counts, sections: Sequence[str], num_plain: int
) -> list[Int[np.ndarray, 'N S']]:
  """The inverse of `put_plain` and, but for the order, `put_bits_back`. Raises ValueError."""
  models = []
  for section, sizes in zip(sections, alphabets, strict=True):
    reader.section = section
    models.append([histograms.take_model(reader, Layout(alphabet, counts)) for alphabet in sizes])
  plain_counts, left_counts = split(num_plain, counts)
  left = _take_rows(reader, models, alphabets, left_counts, sections)
  if left_counts.any():
    reader.section = sections[0]
    stored, left = left, canonical(left, left_counts)
    order = _found(stored, left, left_counts)
    before, equal = _steps(order, left_counts)
    reader.give_back(before + reader.take_below(equal), _choices(left_counts))
  plain = _take_rows(reader, models, alphabets, plain_counts, sections)
  return [np.concatenate(parts) for parts in zip(plain, left, strict=True)]


# The shortest files first; only `none` keeps the order given.
ORDERS: dict[str, Put] = {'sorted': put_sorted, 'bits_back': put_bits_back, 'none': put_plain}


def split(num_plain: int, counts: Counts) -> tuple[Counts, Counts]:
  """How many of the first rows, which are plain, each cluster has, and how many of the others."""
  counts = np.asarray(counts, np.int64)
  plain = np.clip(num_plain - (np.cumsum(counts) - counts), 0, counts)
  return plain, counts - plain


# --- columns of all attributes ---


def _put_models(writer: Writer, rows: Rows, alphabets: Alphabets, counts: Counts):
  return [
    [
      histograms.put_model(writer, column, Layout(alphabet, counts))
      for column, alphabet in zip(array.T, sizes, strict=True)
    ]
    for array, sizes in zip(rows, alphabets, strict=True)
  ]


def _put_rows(writer: Writer, models, rows: Rows, counts: Counts) -> None:
  for array, columns in zip(rows, models, strict=True):
    for column, model in zip(array.T, columns, strict=True):
      histograms.put_values(writer, model, column, counts)


def _take_rows(reader: Reader, models, alphabets: Alphabets, counts: Counts, sections):
  rows = []
  for section, columns, sizes in zip(sections, models, alphabets, strict=True):
    reader.section = section
    taken = [
      histograms.take_values(reader, model, Layout(alphabet, counts))
      for model, alphabet in zip(columns, sizes, strict=True)
    ]
    rows.append(np.stack(taken, axis=1))
  return rows


# --- an order as choices: which of the remaining rows comes next ---


def _choices(counts: Counts) -> Int[np.ndarray, 'n']:
  """The number of remaining rows, for each row of each cluster: n, n - 1, ..., 1."""
  return np.repeat(np.cumsum(counts), counts) - np.arange(counts.sum())


def _ranks(rows: Rows, counts: Counts) -> Int[np.ndarray, 'n']:
  """For each of the canonical rows the index of the first row that equals it."""
  whole = np.concatenate(rows, axis=1)
  new = np.concatenate([[True], (whole[1:] != whole[:-1]).any(axis=1)])[: len(whole)]
  new[(np.cumsum(counts) - counts)[counts > 0]] = True
  return np.maximum.accumulate(np.where(new, np.arange(len(whole)), 0))


def _found(stored: Rows, rows: Rows, counts: Counts) -> Int[np.ndarray, 'n']:
  """The ranks of rows in the order in which they are stored; `rows` are the same, canonical."""
  cluster = np.repeat(np.arange(len(counts)), counts)
  columns = [column for array in stored for column in array.T]
  ranks = np.zeros(len(cluster), np.int64)
  ranks[np.lexsort((*columns[::-1], cluster))] = _ranks(rows, counts)
  return ranks


def _choose(ranks, digits, counts: Counts) -> Int[np.ndarray, 'n']:
  """The ranks in the order given by the digits, each an index among the remaining rows."""
  order = []
  for part in np.split(np.arange(len(ranks)), np.cumsum(counts)[:-1]):
    left = ranks[part].tolist()
    order += [left.pop(digit) for digit in digits[part].tolist()]
  return np.array(order, np.int64)


def _steps(order, counts: Counts) -> tuple[Int[np.ndarray, 'n'], Int[np.ndarray, 'n']]:
  """For each row in order: how many of the remaining are less than it, and how many equal it."""
  before, equal = [], []
  for part in np.split(np.asarray(order), np.cumsum(counts)[:-1]):
    left = sorted(part.tolist())
    for rank in part.tolist():
      start = bisect.bisect_left(left, rank)
      before.append(start)
      equal.append(bisect.bisect_right(left, rank, lo=start) - start)
      del left[start]
  return np.array(before, np.int64), np.array(equal, np.int64)
