"""The file: one image's `Symbols` as bytes, and back, with the size of every part.

    'CGVQ' version height width channels method K counts
    three times, for position, rotation-scale and colour:
      quantizer alphabets order | tables: names, types, shapes, coded entries | coded symbols
    CRC-32

Sizes are varints, tables and symbols are streams of `entropy`. docs/FORMAT.md tells every byte.
Reading is strict: each field is checked against its limits before it is used, so a file can ask
for no more memory than MAX_COLUMNS * MAX_GAUSSIANS integers an attribute, whatever its bytes are.
Whether a table makes sense as a quantizer (a float16 step that is not finite, say) is not known
here; the codec checks it when it restores the quantizer.
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

from cgvq_jax.bitstream import entropy, ordering
from cgvq_jax.bitstream.fields import ContainerError, FieldReader, FieldWriter
from cgvq_jax.types import Stream, Symbols

MAGIC = b'CGVQ'
VERSION = 1
MAX_SIDE = 65535  # px
MAX_PIXELS = 1 << 28
CHANNELS = (1, 3, 4)
MAX_CLUSTERS = 64
MAX_GAUSSIANS = 1 << 22
MAX_ALPHABET = 1 << 16
MAX_COLUMNS = 16  # symbol columns of an attribute: at most 2^26 symbols with MAX_GAUSSIANS
MAX_TABLES = 16  # of an attribute
MAX_AXES = 5  # of a table, the cluster axis included
MAX_ENTRIES = 1 << 22  # of all tables of an attribute
MAX_FILE_BYTES = 1 << 30
ATTRIBUTES = ('position', 'rotation_scale', 'color')
SECTIONS = ('positions', 'rotation_scale', 'color', 'codebooks', 'header')  # attributes first
_DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16))  # a table's type is its index here
_CRC_BYTES = 4


class _Table(NamedTuple):
  name: str
  dtype: np.dtype
  shape: tuple[int, ...]  # [K, ...]


class _Header(NamedTuple):
  height: int
  width: int
  channels: int
  method: str
  counts: Int[np.ndarray, 'K']


class _Attribute(NamedTuple):
  """One attribute as parsed: everything but the coded integers is understood."""

  quantizer: str
  alphabets: tuple[int, ...]
  is_sorted: bool  # the first column is coded as gaps
  tables: list[_Table]
  coded_tables: bytes
  coded_symbols: bytes


def write(symbols: Symbols) -> bytes:
  """Codes one image's integers into the bytes of a file.

  Raises:
    ContainerError: a field of the symbols is outside the format's limits, or two fields disagree.
  """
  fields = FieldWriter()
  fields.data += MAGIC + bytes([VERSION])
  counts = _put_header(fields, symbols)
  for attribute in ATTRIBUTES:
    _put_attribute(fields, attribute, getattr(symbols, attribute), counts)
  body = bytes(fields.data)
  return body + zlib.crc32(body).to_bytes(_CRC_BYTES, 'little')


def read(data: bytes) -> Symbols:
  """The inverse of `write`: the same integers, symbols as int32, tables in their own type.

  The numbers behind the integers are the codec's to check: a float16 in a table may be NaN.

  Raises:
    ContainerError: the bytes are not a whole, undamaged file of this format and version.
  """
  header, attributes, _ = _parse(data)
  return Symbols(
    header.height,
    header.width,
    header.channels,
    header.method,
    header.counts,
    *(_decoded(name, attributes[name], header.counts) for name in ATTRIBUTES),
  )


def sections(data: bytes) -> dict[str, int]:
  """Bytes of each part of a file; they add up to its size.

  `positions`, `rotation_scale` and `color` are the coded symbols with their histograms,
  `codebooks` all the quantizers' tables, `header` the rest: sizes, counts, names, CRC.

  Raises:
    ContainerError: as `read`, except that coded integers are not looked into.
  """
  return _parse(data)[2]


def describe(data: bytes) -> dict[str, Any]:
  """What a file says of itself without being decoded: sizes, counts, quantizers, sections.

  `bpp` is 8 times the bytes of the file over its pixels.

  Raises:
    ContainerError: as `sections`.
  """
  header, attributes, sizes = _parse(data)
  return {
    'version': VERSION,
    'method': header.method,
    'height': header.height,
    'width': header.width,
    'channels': header.channels,
    'num_gaussians': int(header.counts.sum()),
    'num_clusters': len(header.counts),
    'counts': header.counts.tolist(),
    'quantizers': {name: attributes[name].quantizer for name in ATTRIBUTES},
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


def _put_header(fields: FieldWriter, symbols: Symbols) -> Int[np.ndarray, 'K']:
  height = fields.varint('height', symbols.height, 1, MAX_SIDE)
  width = fields.varint('width', symbols.width, 1, MAX_SIDE)
  channels = fields.varint('channels', symbols.channels, 1, max(CHANNELS))
  fields.name('method', symbols.method)
  counts = np.asarray(symbols.counts)
  if counts.ndim != 1 or counts.dtype.kind not in 'iu':
    raise ContainerError(f'counts: wanted integers [K], got {counts.dtype} {counts.shape}')
  fields.varint('K', len(counts), 1, MAX_CLUSTERS)
  for count in counts:
    fields.varint('count of a cluster', count, 0, MAX_GAUSSIANS)
  _check_header(height, width, channels, counts)
  return counts


def _take_header(fields: FieldReader) -> _Header:
  height = fields.varint('height', 1, MAX_SIDE)
  width = fields.varint('width', 1, MAX_SIDE)
  channels = fields.varint('channels', 1, max(CHANNELS))
  method = fields.name('method')
  num_clusters = fields.varint('K', 1, MAX_CLUSTERS)
  counts = [fields.varint('count of a cluster', 0, MAX_GAUSSIANS) for _ in range(num_clusters)]
  header = _Header(height, width, channels, method, np.array(counts, np.int32))
  _check_header(height, width, channels, header.counts)
  return header


def _check_header(height: int, width: int, channels: int, counts: Int[np.ndarray, 'K']) -> None:
  """What the fields of a header must be to each other."""
  if height * width > MAX_PIXELS:
    raise ContainerError(f'height * width: wanted <= {MAX_PIXELS}, got {height} * {width}')
  if channels not in CHANNELS:
    raise ContainerError(f'channels: wanted one of {CHANNELS}, got {channels}')
  total = int(counts.sum(dtype=np.int64))
  if not len(counts) <= total <= MAX_GAUSSIANS:
    raise ContainerError(f'sum of counts: wanted {len(counts)}..{MAX_GAUSSIANS}, got {total}')


def _put_attribute(
  fields: FieldWriter, attribute: str, stream: Stream, counts: Int[np.ndarray, 'K']
) -> None:
  fields.name(f'{attribute} quantizer', stream.quantizer)
  fields.varint(f'{attribute} columns', len(stream.alphabets), 1, MAX_COLUMNS)
  for alphabet in stream.alphabets:
    fields.varint(f'{attribute} alphabet', alphabet, 1, MAX_ALPHABET)
  symbols = np.asarray(stream.symbols)
  wanted = (int(counts.sum()), len(stream.alphabets))
  if symbols.shape != wanted or symbols.dtype.kind not in 'iu':
    raise ContainerError(
      f'{attribute} symbols: wanted integers {wanted}, got {symbols.dtype} {symbols.shape}'
    )
  columns = list(symbols.T)
  gaps = ordering.to_gaps(columns[0], counts)
  is_sorted = attribute == ATTRIBUTES[0] and bool(np.all(gaps >= 0))
  fields.varint(f'{attribute} order', is_sorted, 0, 1)
  if is_sorted:
    columns[:1] = ordering.split_gaps(gaps)
  _put_tables(fields, attribute, stream.tables, len(counts))
  layouts = _symbol_layouts(stream.alphabets, is_sorted, counts)
  try:
    fields.block(f'{attribute} symbols', entropy.encode(columns, layouts))
  except ValueError as error:
    raise ContainerError(f'{attribute} symbols: {error}') from error


def _take_attribute(fields: FieldReader, attribute: str, num_clusters: int) -> _Attribute:
  quantizer = fields.name(f'{attribute} quantizer')
  num_columns = fields.varint(f'{attribute} columns', 1, MAX_COLUMNS)
  alphabets = tuple(
    fields.varint(f'{attribute} alphabet', 1, MAX_ALPHABET) for _ in range(num_columns)
  )
  is_sorted = bool(fields.varint(f'{attribute} order', 0, 1))
  fields.section = 'codebooks'
  tables = _take_tables(fields, attribute, num_clusters)
  coded_tables = fields.block(f'{attribute} tables') if tables else b''
  fields.section = SECTIONS[ATTRIBUTES.index(attribute)]
  coded_symbols = fields.block(f'{attribute} symbols')
  fields.section = 'header'
  return _Attribute(quantizer, alphabets, is_sorted, tables, coded_tables, coded_symbols)


def _put_tables(
  fields: FieldWriter, attribute: str, tables: dict[str, np.ndarray], num_clusters: int
) -> None:
  fields.varint(f'{attribute} tables', len(tables), 0, MAX_TABLES)
  arrays = {name: np.asarray(array) for name, array in tables.items()}
  told = [_Table(name, array.dtype, array.shape) for name, array in arrays.items()]
  for name, dtype, shape in told:
    if dtype not in _DTYPES:
      raise ContainerError(f'{attribute} table {name}: wanted uint8 or uint16, got {dtype}')
    if shape[:1] != (num_clusters,):
      raise ContainerError(f'{attribute} table {name}: wanted [K={num_clusters}, ...], got {shape}')
    fields.name(f'{attribute} table name', name)
    fields.varint(f'{attribute} table type', _DTYPES.index(dtype), 0, len(_DTYPES) - 1)
    fields.varint(f'{attribute} table axes', len(shape), 1, MAX_AXES)
    for size in shape[1:]:
      fields.varint(f'{attribute} table size', size, 1, MAX_ENTRIES)
  _check_tables(attribute, told)
  if told:
    coded = entropy.encode([array.ravel() for array in arrays.values()], _table_layouts(told))
    fields.block(f'{attribute} tables', coded)


def _take_tables(fields: FieldReader, attribute: str, num_clusters: int) -> list[_Table]:
  tables = []
  for _ in range(fields.varint(f'{attribute} tables', 0, MAX_TABLES)):
    name = fields.name(f'{attribute} table name')
    dtype = _DTYPES[fields.varint(f'{attribute} table type', 0, len(_DTYPES) - 1)]
    num_axes = fields.varint(f'{attribute} table axes', 1, MAX_AXES)
    sizes = [fields.varint(f'{attribute} table size', 1, MAX_ENTRIES) for _ in range(num_axes - 1)]
    tables.append(_Table(name, dtype, (num_clusters, *sizes)))
  _check_tables(attribute, tables)
  return tables


def _check_tables(attribute: str, tables: list[_Table]) -> None:
  names = [table.name for table in tables]
  if len(set(names)) < len(names):
    raise ContainerError(f'{attribute} table names: wanted each once, got {names}')
  entries = sum(math.prod(table.shape) for table in tables)
  if entries > MAX_ENTRIES:
    raise ContainerError(f'{attribute} table entries: wanted <= {MAX_ENTRIES}, got {entries}')


def _table_layouts(tables: list[_Table]) -> list[entropy.Layout]:
  """A table is a column of one group: its entries are too few for a histogram per cluster."""
  return [
    entropy.Layout(1 << 8 * table.dtype.itemsize, (math.prod(table.shape),)) for table in tables
  ]


def _symbol_layouts(
  alphabets: tuple[int, ...], is_sorted: bool, counts: Int[np.ndarray, 'K']
) -> list[entropy.Layout]:
  """A column for each alphabet, and two for a first one that is coded as gaps."""
  if is_sorted:
    alphabets = ordering.split_alphabet(alphabets[0]) + alphabets[1:]
  return [entropy.Layout(alphabet, counts) for alphabet in alphabets]


def _joined(columns: list[np.ndarray], alphabet: int, counts: Int[np.ndarray, 'K']) -> np.ndarray:
  """The first column from the two parts of its gaps."""
  gaps = (columns[0].astype(np.int64) << ordering.LOW_BITS) + columns[1]
  values = ordering.from_gaps(gaps, counts)
  if values.size and values.max() >= alphabet:
    raise ValueError(f'column 0: wanted values in 0..{alphabet - 1}, got {values.max()}')
  return values.astype(np.int32)


def _decoded(name: str, attribute: _Attribute, counts: Int[np.ndarray, 'K']) -> Stream:
  """The integers of a parsed attribute."""
  try:
    arrays = entropy.decode(attribute.coded_tables, _table_layouts(attribute.tables))
  except ValueError as error:
    raise ContainerError(f'{name} tables: {error}') from error
  try:
    layouts = _symbol_layouts(attribute.alphabets, attribute.is_sorted, counts)
    columns = entropy.decode(attribute.coded_symbols, layouts)
    if attribute.is_sorted:
      columns[:2] = [_joined(columns, attribute.alphabets[0], counts)]
  except ValueError as error:
    raise ContainerError(f'{name} symbols: {error}') from error
  tables = {
    table.name: array.astype(table.dtype).reshape(table.shape)
    for table, array in zip(attribute.tables, arrays, strict=True)
  }
  return Stream(attribute.quantizer, attribute.alphabets, tables, np.stack(columns, axis=1))


def _parse(data: bytes) -> tuple[_Header, dict[str, _Attribute], dict[str, int]]:
  """Header, attributes with their integers still coded, and the bytes of each section."""
  if data[: len(MAGIC)] != MAGIC:
    raise ContainerError(f'magic: wanted {MAGIC!r}, got {data[: len(MAGIC)]!r}')
  start, end = len(MAGIC) + 1, len(data) - _CRC_BYTES
  if end < start:
    raise ContainerError(f'file: wanted >= {start + _CRC_BYTES} bytes, got {len(data)}')
  if data[start - 1] != VERSION:
    raise ContainerError(f'version: wanted {VERSION}, got {data[start - 1]}')
  wanted, got = zlib.crc32(data[:end]), int.from_bytes(data[end:], 'little')
  if wanted != got:
    raise ContainerError(f'CRC-32: wanted {wanted:#010x}, got {got:#010x}')
  fields = FieldReader(data, start, end, SECTIONS)
  fields.section = 'header'
  header = _take_header(fields)
  attributes = {name: _take_attribute(fields, name, len(header.counts)) for name in ATTRIBUTES}
  if fields.position != end:
    raise ContainerError(
      f'file: wanted its end after the colours, got {end - fields.position} more bytes'
    )
  fields.sizes['header'] += start + _CRC_BYTES
  return header, attributes, fields.sizes
