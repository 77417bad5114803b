"""The file: one image's integers as bytes, and back, with the size of every part.

`CodebookSymbols`, of codebooks, are version 1; `AdaptiveSymbols` integers, in steps of each Gaussian's own, are 2:

    'CGVQ' 1 height width channels method K counts order
    three times, for position, rotation-scale and colour:
      quantizer alphabets | tables: names, types, shapes
    one stream of coded integers: tables, then symbols
    CRC-32

    'CGVQ' 2 height width channels method precision N
    one stream of coded integers, of `bitstream.graded`
    CRC-32

Sizes are varints, the stream is of `coder`. docs/FORMAT.md tells every byte. Reading is strict:
each field is checked against its limits before it is used, and a file can ask for no more
Gaussians and table entries than its own size allows. Whether a table makes sense as a quantizer (a
float16 step that is not finite, say) is not known here; the codec checks it when it restores the
quantizer.
"""

from __future__ import annotations

import math
import os
import secrets
import stat
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from cgvq_jax.bitstream import adaptive, histograms, ordering
from cgvq_jax.bitstream import tables as stored_tables
from cgvq_jax.bitstream.ans import Reader, Stack, Writer
from cgvq_jax.bitstream.fields import ContainerError, FieldReader, FieldWriter
from cgvq_jax.quantize.adaptive import MAX_STEP_INDEX, AdaptiveSymbols
from cgvq_jax.quantize.clustered import CodebookSymbols, Stream

MAGIC = b'CGVQ'
VERSION, ADAPTIVE_VERSION = 1, 2
MAX_SIDE = 65535  # px
MAX_PIXELS = 1 << 26
CHANNELS = (1, 3, 4)
MAX_CLUSTERS = 64
MAX_GAUSSIANS = 1 << 22
MAX_COLUMNS = 16  # symbol columns of an attribute
MAX_FILE_BYTES = 1 << 30
# What a byte of a file may stand for. Real files are far below; a hostile one stays small.
GAUSSIANS_A_BYTE = 32
ENTRIES_A_BYTE = 256
ATTRIBUTES = ('position', 'rotation_scale', 'color')
SECTIONS = ('positions', 'rotation_scale', 'color', 'codebooks', 'header')  # attributes first
# The ways to order the Gaussians, the best first.
ORDERS: dict[str, ordering.Put] = {
  'sorted': ordering.put_sorted,
  'bits_back': ordering.put_bits_back,
  'none': ordering.put_plain,
}
_CRC_BYTES = 4


class _Header(NamedTuple):
  height: int
  width: int
  channels: int
  method: str
  counts: Int[np.ndarray, 'K']
  num_plain: int | None  # rows of a sequence that are plain; None where positions are sets


class _Attribute(NamedTuple):
  """What the fields tell of one attribute."""

  quantizer: str
  alphabets: tuple[int, ...]
  tables: list[stored_tables.Table]


class _Parsed(NamedTuple):
  header: _Header
  attributes: list[_Attribute]
  tables: list[dict[str, np.ndarray]]  # of each attribute
  rows: list[Int[np.ndarray, 'N S']]  # of each attribute
  sizes: dict[str, int]  # bytes of each section


def write(
  symbols: CodebookSymbols | AdaptiveSymbols, order: ordering.Put = ordering.put_sorted
) -> bytes:
  """Codes one image's integers into the bytes of a file.

  `order` is one of ORDERS; graded integers have one, which is sorted. Only `ordering.put_plain`
  keeps the order of the Gaussians in their clusters; from the others they come back sorted, and the
  file is shorter.

  Raises:
    ContainerError: a field of the symbols is outside the format's limits, or two fields disagree.
  """
  if isinstance(symbols, AdaptiveSymbols):
    return _write_graded(symbols, order)
  streams = [getattr(symbols, attribute) for attribute in ATTRIBUTES]
  counts = _checked_counts(symbols)
  tables = [
    {name: stored_tables.form(a, name, table, len(counts)) for name, table in stream.tables.items()}
    for a, stream in zip(ATTRIBUTES, streams, strict=True)
  ]
  described = FieldWriter()
  for attribute, stream, forms in zip(ATTRIBUTES, streams, tables, strict=True):
    _put_attribute(described, attribute, stream, [table for table, _ in forms.values()])
  _check_entries([table for forms in tables for table, _ in forms.values()])
  rows = [_checked_rows(*pair, counts) for pair in zip(ATTRIBUTES, streams, strict=True)]
  writer = Writer()
  for forms in tables:
    for table, array in forms.values():
      stored_tables.put(writer, table, array)
  stack, num_plain = order(writer, rows, [stream.alphabets for stream in streams], counts)

  fields = FieldWriter()
  _put_size(fields, VERSION, symbols)
  _put_header(fields, symbols, num_plain)
  data = _closed(bytes(fields.data + described.data) + stack.to_bytes())
  _check_room(len(data), counts, [table for forms in tables for table, _ in forms.values()])
  return data


def _write_graded(symbols: AdaptiveSymbols, order: ordering.Put) -> bytes:
  if order is not ordering.put_sorted:
    raise ContainerError('order: wanted sorted, which graded Gaussians always are, got another')
  fields = FieldWriter()
  _put_size(fields, ADAPTIVE_VERSION, symbols)
  fields.varint('step_index', symbols.step_index, 0, MAX_STEP_INDEX)
  count = fields.varint('Gaussians', len(symbols.energy_class), 1, MAX_GAUSSIANS)
  writer = Writer()
  try:
    adaptive.put(writer, symbols)
  except ValueError as error:
    raise ContainerError(str(error)) from error
  data = _closed(bytes(fields.data) + Stack(writer).to_bytes())
  _check_gaussians(len(data), count)
  return data


def _closed(body: bytes) -> bytes:
  return body + zlib.crc32(body).to_bytes(_CRC_BYTES, 'little')


def read(data: bytes) -> CodebookSymbols | AdaptiveSymbols:
  """The inverse of `write`: the same integers, symbols as int32, tables in their own type.

  The numbers behind the integers are the codec's to check: a float16 in a table may be NaN.

  Raises:
    ContainerError: the bytes are not a whole, undamaged file of this format and version.
  """
  if _version(data) == ADAPTIVE_VERSION:
    return _parse_graded(data)[0]
  parsed = _parse(data)
  streams = [
    Stream(attribute.quantizer, attribute.alphabets, tables, rows)
    for attribute, tables, rows in zip(parsed.attributes, parsed.tables, parsed.rows, strict=True)
  ]
  header = parsed.header
  return CodebookSymbols(
    header.height, header.width, header.channels, header.method, header.counts, *streams
  )


def sections(data: bytes) -> dict[str, int]:
  """Bytes of each part of a file; they add up to its size.

  `positions`, `rotation_scale` and `color` are the coded symbols with their histograms,
  `codebooks` all the quantizers' tables, `header` the rest: sizes, counts, names, CRC. The parts of
  the stream are measured in bits, and rounded to bytes together.

  Raises:
    ContainerError: as `read`.
  """
  return _parse_graded(data)[1] if _version(data) == ADAPTIVE_VERSION else _parse(data).sizes


def describe(data: bytes) -> dict[str, Any]:
  """What a file says of itself: sizes, counts, quantizers, sections.

  `bpp` is 8 times the bytes of the file over its pixels.

  Raises:
    ContainerError: as `read`.
  """
  if _version(data) == ADAPTIVE_VERSION:
    header, sizes = _parse_graded(data)
    counts = np.array([len(header.energy_class)])
    quantizers, order = dict.fromkeys(ATTRIBUTES, 'graded'), 'sorted'
  else:
    header, attributes, _, _, sizes = _parse(data)
    counts = header.counts
    quantizers = {
      name: attribute.quantizer for name, attribute in zip(ATTRIBUTES, attributes, strict=True)
    }
    sequence = 'none' if header.num_plain == counts.sum() else 'bits_back'
    order = 'sorted' if header.num_plain is None else sequence
  return {
    'version': _version(data),
    'method': header.method,
    'height': header.height,
    'width': header.width,
    'channels': header.channels,
    'num_gaussians': int(counts.sum()),
    'num_clusters': len(counts),
    'counts': counts.tolist(),
    'order': order,
    'quantizers': quantizers,
    'sections': sizes,
    'bytes': len(data),
    'bpp': 8 * len(data) / (header.height * header.width),
  }


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
  """Puts a file in its place in one step: a reader sees the old bytes or the new, never a part.

  Raises:
    ContainerError: the file cannot be written there.
  """
  path = Path(path)
  temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.tmp')
  try:
    try:
      with temporary.open('xb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)
  except OSError as error:
    raise ContainerError(f'{path}: wanted a place for a file, got {error.strerror}') from error


def read_file(path: str | os.PathLike[str]) -> bytes:
  """The bytes of a file, for `read`.

  Raises:
    ContainerError: it is missing, not a regular file, unreadable or above MAX_FILE_BYTES.
  """
  try:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
      kind = 'a directory' if stat.S_ISDIR(status.st_mode) else 'something else'
      raise ContainerError(f'{path}: wanted a file, got {kind}')
    if status.st_size > MAX_FILE_BYTES:
      raise ContainerError(f'{path}: wanted <= {MAX_FILE_BYTES} bytes, got {status.st_size}')
    return Path(path).read_bytes()
  except OSError as error:
    raise ContainerError(f'{path}: wanted a file, got {error.strerror}') from error


# --- the fields, written and read in pairs ---


def _put_size(
  fields: FieldWriter, version: int, symbols: CodebookSymbols | AdaptiveSymbols
) -> None:
  fields.data += MAGIC + bytes([version])
  height = fields.varint('height', symbols.height, 1, MAX_SIDE)
  width = fields.varint('width', symbols.width, 1, MAX_SIDE)
  channels = fields.varint('channels', symbols.channels, 1, max(CHANNELS))
  _check_size(height, width, channels)
  fields.name('method', symbols.method)


def _take_size(fields: FieldReader) -> tuple[int, int, int, str]:
  height = fields.varint('height', 1, MAX_SIDE)
  width = fields.varint('width', 1, MAX_SIDE)
  channels = fields.varint('channels', 1, max(CHANNELS))
  _check_size(height, width, channels)
  return height, width, channels, fields.name('method')


def _put_header(fields: FieldWriter, symbols: CodebookSymbols, num_plain: int | None) -> None:
  fields.varint('K', len(symbols.counts), 1, MAX_CLUSTERS)
  for count in symbols.counts:
    fields.varint('count of a cluster', count, 0, MAX_GAUSSIANS)
  fields.varint('order', num_plain is not None, 0, 1)
  if num_plain is not None:
    fields.varint('plain Gaussians', num_plain, 0, int(np.sum(symbols.counts)))


def _take_header(fields: FieldReader) -> _Header:
  size = _take_size(fields)
  num_clusters = fields.varint('K', 1, MAX_CLUSTERS)
  counts = [fields.varint('count of a cluster', 0, MAX_GAUSSIANS) for _ in range(num_clusters)]
  _check_total(counts)
  is_sequence = fields.varint('order', 0, 1)
  num_plain = fields.varint('plain Gaussians', 0, sum(counts)) if is_sequence else None
  return _Header(*size, np.array(counts, np.int32), num_plain)


def _check_size(height: int, width: int, channels: int) -> None:
  if height * width > MAX_PIXELS:
    raise ContainerError(f'height * width: wanted <= {MAX_PIXELS}, got {height} * {width}')
  if channels not in CHANNELS:
    raise ContainerError(f'channels: wanted one of {CHANNELS}, got {channels}')


def _check_total(counts: list[int]) -> None:
  if not len(counts) <= sum(counts) <= MAX_GAUSSIANS:
    raise ContainerError(f'sum of counts: wanted {len(counts)}..{MAX_GAUSSIANS}, got {sum(counts)}')


def _check_entries(tables: list[stored_tables.Table]) -> int:
  entries = sum(math.prod(table.shape) for table in tables)
  if entries > stored_tables.MAX_ENTRIES:
    raise ContainerError(f'table entries: wanted <= {stored_tables.MAX_ENTRIES}, got {entries}')
  return entries


def _check_room(
  num_bytes: int, counts: Int[np.ndarray, 'K'], tables: list[stored_tables.Table]
) -> None:
  """What a file of this size may ask for."""
  _check_gaussians(num_bytes, int(counts.sum(dtype=np.int64)))
  entries, most = _check_entries(tables), num_bytes * ENTRIES_A_BYTE
  if entries > most:
    raise ContainerError(f'table entries: wanted <= {most} in {num_bytes} bytes, got {entries}')


def _check_gaussians(num_bytes: int, number: int) -> None:
  most = num_bytes * GAUSSIANS_A_BYTE
  if number > most:
    raise ContainerError(f'Gaussians: wanted <= {most} in {num_bytes} bytes, got {number}')


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


def _put_attribute(
  fields: FieldWriter, attribute: str, stream: Stream, tables: list[stored_tables.Table]
) -> None:
  fields.name(f'{attribute} quantizer', stream.quantizer)
  fields.varint(f'{attribute} columns', len(stream.alphabets), 1, MAX_COLUMNS)
  for alphabet in stream.alphabets:
    fields.varint(f'{attribute} alphabet', alphabet, 1, histograms.MAX_ALPHABET)
  stored_tables.put_fields(fields, attribute, tables)


def _take_attribute(fields: FieldReader, attribute: str, num_clusters: int) -> _Attribute:
  quantizer = fields.name(f'{attribute} quantizer')
  num_columns = fields.varint(f'{attribute} columns', 1, MAX_COLUMNS)
  alphabets = tuple(
    fields.varint(f'{attribute} alphabet', 1, histograms.MAX_ALPHABET) for _ in range(num_columns)
  )
  fields.section = 'codebooks'
  tables = stored_tables.take_fields(fields, attribute, num_clusters)
  fields.section = 'header'
  return _Attribute(quantizer, alphabets, tables)


# --- the whole ---


def _version(data: bytes) -> int:
  """The version of a file that is whole, as its CRC says."""
  if data[: len(MAGIC)] != MAGIC:
    raise ContainerError(f'magic: wanted {MAGIC!r}, got {data[: len(MAGIC)]!r}')
  start, end = len(MAGIC) + 1, len(data) - _CRC_BYTES
  if end < start:
    raise ContainerError(f'file: wanted >= {start + _CRC_BYTES} bytes, got {len(data)}')
  version = data[start - 1]
  if version not in (VERSION, ADAPTIVE_VERSION):
    raise ContainerError(f'version: wanted {VERSION} or {ADAPTIVE_VERSION}, got {version}')
  wanted, got = zlib.crc32(data[:end]), int.from_bytes(data[end:], 'little')
  if wanted != got:
    raise ContainerError(f'CRC-32: wanted {wanted:#010x}, got {got:#010x}')
  return version


def _parse_graded(data: bytes) -> tuple[AdaptiveSymbols, dict[str, int]]:
  """The integers, and the bytes of each section."""
  start, end = len(MAGIC) + 1, len(data) - _CRC_BYTES
  fields = FieldReader(data, start, end, adaptive.SECTIONS)
  fields.section = 'header'
  size = _take_size(fields)
  step_index = fields.varint('step_index', 0, MAX_STEP_INDEX)
  count = fields.varint('Gaussians', 1, MAX_GAUSSIANS)
  _check_gaussians(len(data), count)
  stream = data[fields.position : end]
  try:
    reader = Reader(stream, adaptive.SECTIONS)
    symbols = adaptive.take(reader, adaptive.Shape(*size, step_index, count))
    reader.finish()
  except ValueError as error:
    raise ContainerError(f'coded integers: {error}') from error
  return symbols, _with_shares(fields.sizes, reader.bits, len(stream), len(data))


def _with_shares(
  sizes: dict[str, int], bits: dict[str, int], stream_bytes: int, all_bytes: int
) -> dict[str, int]:
  """Bytes of each section: those of the fields, and shares of the stream's by its bits."""
  sizes = dict(sizes)
  ends = np.cumsum([0, *bits.values()]) * stream_bytes / max(1, sum(bits.values()))
  for name, share in zip(bits, np.diff(np.rint(ends)), strict=True):
    sizes[name] += int(share)
  sizes['header'] += all_bytes - sum(sizes.values())
  return sizes


def _parse(data: bytes) -> _Parsed:
  start, end = len(MAGIC) + 1, len(data) - _CRC_BYTES
  fields = FieldReader(data, start, end, SECTIONS)
  fields.section = 'header'
  header = _take_header(fields)
  attributes = [_take_attribute(fields, name, len(header.counts)) for name in ATTRIBUTES]
  _check_room(len(data), header.counts, [t for attribute in attributes for t in attribute.tables])
  stream = data[fields.position : end]
  try:
    tables, rows, bits = _decoded(stream, header, attributes)
  except ValueError as error:
    raise ContainerError(f'coded integers: {error}') from error
  sizes = _with_shares(fields.sizes, bits, len(stream), len(data))
  return _Parsed(header, attributes, tables, rows, sizes)


def _decoded(stream: bytes, header: _Header, attributes: list[_Attribute]):
  """Tables and rows of each attribute, and the bits that the sections took of the stream."""
  reader = Reader(stream, SECTIONS)
  reader.section = 'codebooks'
  tables = [{t.name: stored_tables.take(reader, t) for t in a.tables} for a in attributes]
  alphabets = [attribute.alphabets for attribute in attributes]
  arguments = reader, alphabets, header.counts.astype(np.int64), SECTIONS[: len(ATTRIBUTES)]
  if header.num_plain is None:
    rows = ordering.take_sorted(*arguments)
  else:
    rows = ordering.take_sequence(*arguments, header.num_plain)
  reader.finish()
  return tables, rows, reader.bits
