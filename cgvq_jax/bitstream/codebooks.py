"""Version 1 of the file: `CodebookSymbols`, cluster by cluster, with the tables of quantizers.

    height width channels method K counts order
    three times, for position, rotation-scale and colour:
      quantizer alphabets | tables: names, types, shapes
    one stream of coded integers: tables, then symbols

Sizes are varints, the stream is of `ans`. Whether a table makes sense to its quantizer (a float16
step that is not finite, say) is not known here; `clustered.dequantize` finds that out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cgvq_jax.bitstream import base, histograms, ordering, tables
from cgvq_jax.bitstream.ans import Reader, Writer
from cgvq_jax.bitstream.fields import ContainerError, FieldReader, FieldWriter
from cgvq_jax.quantize import clustered
from cgvq_jax.quantize.clustered import ATTRIBUTES, CodebookSymbols, Stream

if TYPE_CHECKING:
  from jaxtyping import Int

  from cgvq_jax.primitives.gaussians import Gaussians

MAX_CLUSTERS = 64
MAX_COLUMNS = 16  # symbol columns of an attribute
ENTRIES_A_BYTE = 256  # of tables, at most: see base.GAUSSIANS_A_BYTE
SECTIONS = ('positions', 'rotation_scale', 'color', 'codebooks', 'header')  # attributes first


class _Attribute(NamedTuple):
  """The fields of one attribute."""

  quantizer: str
  alphabets: tuple[int, ...]
  tables: list[tables.Table]


class Parsed(NamedTuple):
  """A body, and what only a look inside it shows."""

  symbols: CodebookSymbols
  num_plain: int | None  # rows of a sequence that are plain; None where positions are point sets
  sections: dict[str, int]  # bytes of each


def write(symbols: CodebookSymbols) -> bytes:
  """The symbols as a body.

  Only the order 'none' keeps the order of the Gaussians in their clusters; from the others they
  come back sorted, and the file is shorter.

  Raises:
    ContainerError: a field of the symbols is outside the format's limits, or two fields disagree.
  """
  if symbols.order not in ordering.ORDERS:
    raise ContainerError(f'order: wanted one of {[*ordering.ORDERS]}, got {symbols.order!r}')
  streams = [getattr(symbols, attribute) for attribute in ATTRIBUTES]
  counts = _checked_counts(symbols)
  forms = [
    {name: tables.form(a, name, table, len(counts)) for name, table in stream.tables.items()}
    for a, stream in zip(ATTRIBUTES, streams, strict=True)
  ]
  stored = [table for form in forms for table, _ in form.values()]
  attributes = FieldWriter()
  for attribute, stream, form in zip(ATTRIBUTES, streams, forms, strict=True):
    _put_attribute(attributes, attribute, stream, [table for table, _ in form.values()])
  _check_entries(stored)
  rows = [_checked_rows(*pair, counts) for pair in zip(ATTRIBUTES, streams, strict=True)]
  writer = Writer()
  for form in forms:
    for table, array in form.values():
      tables.put(writer, table, array)
  put = ordering.ORDERS[symbols.order]
  stack, num_plain = put(writer, rows, [stream.alphabets for stream in streams], counts)

  header = FieldWriter()
  base.put_front(header, symbols)
  _put_counts(header, symbols, num_plain)
  body = bytes(header.data + attributes.data) + stack.to_bytes()
  _check_amounts(len(body), counts, stored)
  return body


def read(body: bytes) -> CodebookSymbols:
  """The inverse of `write`: the same integers, symbols as int32, tables in their own type."""
  return parse(body).symbols


def describe(body: bytes) -> dict[str, Any]:
  symbols, _, sections = parse(body)
  return {
    'method': symbols.method,
    'height': symbols.height,
    'width': symbols.width,
    'channels': symbols.channels,
    'num_gaussians': int(symbols.counts.sum()),
    'num_clusters': len(symbols.counts),
    'counts': symbols.counts.tolist(),
    'order': symbols.order,
    'quantizers': {name: getattr(symbols, name).quantizer for name in ATTRIBUTES},
    'sections': sections,
  }


def dequantize(symbols: CodebookSymbols) -> tuple[Gaussians, Int[np.ndarray, 'N']]:
  """The Gaussians and the cluster of each. Raises ValueError as `clustered.dequantize`."""
  labels = np.repeat(np.arange(len(symbols.counts), dtype=np.int32), symbols.counts)
  return clustered.dequantize(symbols), labels


FORMAT = base.Format(CodebookSymbols.version, write, read, describe, dequantize)


def parse(body: bytes) -> Parsed:
  """Reads a body.

  Raises:
    ContainerError: the bytes are none of this version.
  """
  fields = FieldReader(body, 0, len(body), SECTIONS)
  fields.section = 'header'
  front = base.take_front(fields)
  counts, num_plain = _take_counts(fields)
  attributes = [_take_attribute(fields, name, len(counts)) for name in ATTRIBUTES]
  _check_amounts(len(body), counts, [t for attribute in attributes for t in attribute.tables])
  stream = body[fields.position :]
  try:
    entries, rows, bits = _decoded(stream, counts, num_plain, attributes)
  except ValueError as error:
    raise ContainerError(f'coded integers: {error}') from error
  streams = [
    Stream(attribute.quantizer, attribute.alphabets, stored, symbols)
    for attribute, stored, symbols in zip(attributes, entries, rows, strict=True)
  ]
  sequence = 'none' if num_plain == counts.sum() else 'bits_back'
  order = 'sorted' if num_plain is None else sequence
  position, rotation_scale, color = streams
  symbols = CodebookSymbols(*front, counts, position, rotation_scale, color, order)
  return Parsed(symbols, num_plain, base.section_bytes(fields.sizes, bits, len(stream)))


def _decoded(
  stream: bytes,
  counts: Int[np.ndarray, 'K'],
  num_plain: int | None,
  attributes: list[_Attribute],
):
  """Tables and rows of each attribute, and the bits of the stream that each section takes."""
  reader = Reader(stream, SECTIONS)
  reader.section = 'codebooks'
  entries = [{t.name: tables.take(reader, t) for t in a.tables} for a in attributes]
  alphabets = [attribute.alphabets for attribute in attributes]
  arguments = reader, alphabets, counts.astype(np.int64), SECTIONS[: len(ATTRIBUTES)]
  if num_plain is None:
    rows = ordering.take_sorted(*arguments)
  else:
    rows = ordering.take_sequence(*arguments, num_plain)
  reader.finish()
  return entries, rows, reader.bits


# --- the fields, written and read in pairs ---


def _put_counts(fields: FieldWriter, symbols: CodebookSymbols, num_plain: int | None) -> None:
  fields.varint('K', len(symbols.counts), 1, MAX_CLUSTERS)
  for count in symbols.counts:
    fields.varint('count of a cluster', count, 0, base.MAX_GAUSSIANS)
  fields.varint('order', num_plain is not None, 0, 1)
  if num_plain is not None:
    fields.varint('plain Gaussians', num_plain, 0, int(np.sum(symbols.counts)))


def _take_counts(fields: FieldReader) -> tuple[Int[np.ndarray, 'K'], int | None]:
  """Gaussians of each cluster, and how many of them are plain."""
  num_clusters = fields.varint('K', 1, MAX_CLUSTERS)
  counts = [fields.varint('count of a cluster', 0, base.MAX_GAUSSIANS) for _ in range(num_clusters)]
  _check_total(counts)
  is_sequence = fields.varint('order', 0, 1)
  num_plain = fields.varint('plain Gaussians', 0, sum(counts)) if is_sequence else None
  return np.array(counts, np.int32), num_plain


def _put_attribute(
  fields: FieldWriter, attribute: str, stream: Stream, stored: list[tables.Table]
) -> None:
  fields.name(f'{attribute} quantizer', stream.quantizer)
  fields.varint(f'{attribute} columns', len(stream.alphabets), 1, MAX_COLUMNS)
  for alphabet in stream.alphabets:
    fields.varint(f'{attribute} alphabet', alphabet, 1, histograms.MAX_ALPHABET)
  tables.put_fields(fields, attribute, stored)


def _take_attribute(fields: FieldReader, attribute: str, num_clusters: int) -> _Attribute:
  quantizer = fields.name(f'{attribute} quantizer')
  num_columns = fields.varint(f'{attribute} columns', 1, MAX_COLUMNS)
  alphabets = tuple(
    fields.varint(f'{attribute} alphabet', 1, histograms.MAX_ALPHABET) for _ in range(num_columns)
  )
  fields.section = 'codebooks'
  stored = tables.take_fields(fields, attribute, num_clusters)
  fields.section = 'header'
  return _Attribute(quantizer, alphabets, stored)


# --- limits ---


def _check_total(counts: list[int]) -> None:
  if not len(counts) <= sum(counts) <= base.MAX_GAUSSIANS:
    wanted = f'{len(counts)}..{base.MAX_GAUSSIANS}'
    raise ContainerError(f'sum of counts: wanted {wanted}, got {sum(counts)}')


def _check_entries(stored: list[tables.Table]) -> int:
  entries = sum(math.prod(table.shape) for table in stored)
  if entries > tables.MAX_ENTRIES:
    raise ContainerError(f'table entries: wanted <= {tables.MAX_ENTRIES}, got {entries}')
  return entries


def _check_amounts(
  body_bytes: int, counts: Int[np.ndarray, 'K'], stored: list[tables.Table]
) -> None:
  """Gaussians and table entries that a file of this size may have."""
  base.check_gaussians(int(counts.sum(dtype=np.int64)), body_bytes)
  num_bytes = body_bytes + base.FRAME_BYTES
  entries, most = _check_entries(stored), num_bytes * ENTRIES_A_BYTE
  if entries > most:
    raise ContainerError(f'table entries: wanted <= {most} in {num_bytes} bytes, got {entries}')


def _checked_counts(symbols: CodebookSymbols) -> Int[np.ndarray, 'K']:
  counts = np.asarray(symbols.counts)
  if counts.ndim != 1 or counts.dtype.kind not in 'iu':
    raise ContainerError(f'counts: wanted integers [K], got {counts.dtype} {counts.shape}')
  if not 1 <= counts.size <= MAX_CLUSTERS:
    raise ContainerError(f'K: wanted 1..{MAX_CLUSTERS}, got {counts.size}')
  if counts.min() < 0:
    raise ContainerError(f'count of a cluster: wanted >= 0, got {counts.min()}')
  _check_total(counts.tolist())
  return counts.astype(np.int64)


def _checked_rows(
  attribute: str, stream: Stream, counts: Int[np.ndarray, 'K']
) -> Int[np.ndarray, 'N S']:
  symbols = np.asarray(stream.symbols)
  wanted = (int(counts.sum()), len(stream.alphabets))
  if symbols.shape != wanted or symbols.dtype.kind not in 'iu':
    raise ContainerError(
      f'{attribute} symbols: wanted integers {wanted}, got {symbols.dtype} {symbols.shape}'
    )
  for index, alphabet in enumerate(stream.alphabets):
    low, high = symbols[:, index].min(), symbols[:, index].max()
    if not 0 <= low <= high < alphabet:
      wanted = f'column {index}: wanted values in 0..{alphabet - 1}'
      raise ContainerError(f'{attribute} symbols: {wanted}, got {low}..{high}')
  return symbols.astype(np.int64)
