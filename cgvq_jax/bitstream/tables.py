"""The tables of a file: the fields that describe them, and their entries in the stream.

A table is an array [K, ...] of uint8 or uint16. Where its blocks [..., M, D] are rows in
lexicographic order, as codebooks are, it is stored as point sets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cgvq_jax.bitstream import histograms, point_sets
from cgvq_jax.bitstream.ans import Reader, Writer
from cgvq_jax.bitstream.fields import ContainerError, FieldReader, FieldWriter

if TYPE_CHECKING:
  from jaxtyping import Int

MAX_TABLES = 16  # of an attribute
MAX_AXES = 5  # the cluster axis included
MAX_ENTRIES = 1 << 20  # of all tables of a file
MAX_POINT_COLUMNS = 4
_DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16))  # a table's type is its index here
_POINT_SETS = len(_DTYPES)  # or this, of a table of uint8 that is stored as point sets


class Table(NamedTuple):
  """The fields that describe a table."""

  name: str
  type: int
  shape: tuple[int, ...]  # [K, ...]


def form(
  attribute: str, name: str, table: np.ndarray, num_clusters: int
) -> tuple[Table, np.ndarray]:
  """How a table will be stored. Raises ContainerError where it cannot be."""
  array = np.asarray(table)
  if array.dtype not in _DTYPES:
    raise ContainerError(f'{attribute} table {name}: wanted uint8 or uint16, got {array.dtype}')
  if array.shape[:1] != (num_clusters,):
    wanted = f'wanted [K={num_clusters}, ...]'
    raise ContainerError(f'{attribute} table {name}: {wanted}, got {array.shape}')
  type_ = _POINT_SETS if _is_point_sets(array) else _DTYPES.index(array.dtype)
  return Table(name, type_, array.shape), array


def put_fields(fields: FieldWriter, attribute: str, tables: Sequence[Table]) -> None:
  fields.varint(f'{attribute} tables', len(tables), 0, MAX_TABLES)
  for table in tables:
    fields.name(f'{attribute} table name', table.name)
    fields.varint(f'{attribute} table type', table.type, 0, _POINT_SETS)
    fields.varint(f'{attribute} table axes', len(table.shape), 1, MAX_AXES)
    for size in table.shape[1:]:
      fields.varint(f'{attribute} table size', size, 1, MAX_ENTRIES)


def take_fields(fields: FieldReader, attribute: str, num_clusters: int) -> list[Table]:
  """The inverse of `put_fields`. Raises ContainerError."""
  tables = []
  for _ in range(fields.varint(f'{attribute} tables', 0, MAX_TABLES)):
    name = fields.name(f'{attribute} table name')
    type_ = fields.varint(f'{attribute} table type', 0, _POINT_SETS)
    num_axes = fields.varint(f'{attribute} table axes', 1, MAX_AXES)
    sizes = [fields.varint(f'{attribute} table size', 1, MAX_ENTRIES) for _ in range(num_axes - 1)]
    if type_ == _POINT_SETS and not _can_be_point_sets(sizes):
      raise ContainerError(f'{attribute} table {name}: wanted point sets, got sizes {sizes}')
    tables.append(Table(name, type_, (num_clusters, *sizes)))
  names = [table.name for table in tables]
  if len(set(names)) < len(names):
    raise ContainerError(f'{attribute} table names: wanted each once, got {names}')
  return tables


def put(writer: Writer, table: Table, array: np.ndarray) -> None:
  """Point sets, or a column of one group: too few entries for a histogram of each cluster."""
  if table.type == _POINT_SETS:
    rows, counts = _distinct(array)
    histograms.put_column(writer, counts - 1, _count_layout(table))
    point_sets.put(writer, rows, [1 << 8] * table.shape[-1], counts)
  else:
    layout = histograms.Layout(1 << 8 * array.dtype.itemsize, [array.size])
    histograms.put_column(writer, array.ravel(), layout)


def take(reader: Reader, table: Table) -> np.ndarray:
  """The inverse of `put`. Raises ValueError."""
  if table.type < _POINT_SETS:
    dtype = _DTYPES[table.type]
    layout = histograms.Layout(1 << 8 * dtype.itemsize, [math.prod(table.shape)])
    return histograms.take_column(reader, layout).astype(dtype).reshape(table.shape)
  counts = 1 + histograms.take_column(reader, _count_layout(table)).astype(np.int64)
  rows = point_sets.take(reader, [1 << 8] * table.shape[-1], counts)
  starts, ends = np.cumsum(counts) - counts, np.cumsum(counts) - 1
  index = np.minimum(starts[:, None] + np.arange(table.shape[-2]), ends[:, None])
  return rows[index].astype(np.uint8).reshape(table.shape)


def _can_be_point_sets(sizes: Sequence[int]) -> bool:
  return len(sizes) >= 2 and sizes[-1] <= MAX_POINT_COLUMNS and sizes[-2] <= histograms.MAX_ALPHABET


def _is_point_sets(array: np.ndarray) -> bool:
  if array.dtype != _DTYPES[0] or not array.size or not _can_be_point_sets(array.shape[1:]):
    return False
  return point_sets.in_order(*_distinct(array))


def _distinct(array: np.ndarray) -> tuple[Int[np.ndarray, 'n D'], Int[np.ndarray, 'B']]:
  """The rows of each block [..., M, D] up to where the last one repeats, and their numbers."""
  blocks = array.reshape(-1, *array.shape[-2:]).astype(np.int64)
  same = (blocks[:, 1:] == blocks[:, :-1]).all(axis=-1)
  repeats = np.cumprod(same[:, ::-1], axis=1).sum(axis=1) if same.size else 0
  counts = np.full(len(blocks), blocks.shape[1]) - repeats
  return blocks[np.arange(blocks.shape[1]) < counts[:, None]], counts


def _count_layout(table: Table) -> histograms.Layout:
  """Layout of the column of the numbers of rows of each block, less 1."""
  return histograms.Layout(table.shape[-2], [math.prod(table.shape[:-2])])
