"""Version 1 of the file: clusters, tables and symbols, with all of their limits."""

from __future__ import annotations

import contextlib
import math

import format_decoder
import fuzz
import make_golden
import numpy as np
import pytest
from fuzz import with_crc
from hypothesis import given, settings
from hypothesis import strategies as st

from cgvq_jax.bitstream import container, ordering
from cgvq_jax.bitstream.container import ContainerError, read, sections, write
from cgvq_jax.quantize.clustered import ATTRIBUTES, CodebookSymbols, Stream

SMALL = make_golden.clustered()._replace(order='none')
FILE = write(SMALL)


def assert_same(got: CodebookSymbols, want: CodebookSymbols):
  assert got[:4] == want[:4]
  assert got.order == want.order
  assert got.counts.dtype == np.int32
  np.testing.assert_array_equal(got.counts, want.counts)
  for attribute in ATTRIBUTES:
    stream, wanted = getattr(got, attribute), getattr(want, attribute)
    assert (stream.quantizer, stream.alphabets) == (wanted.quantizer, wanted.alphabets)
    assert stream.symbols.dtype == np.int32
    np.testing.assert_array_equal(stream.symbols, wanted.symbols, strict=True)
    assert list(stream.tables) == list(wanted.tables)
    for name, table in wanted.tables.items():
      np.testing.assert_array_equal(stream.tables[name], table, strict=True)


def with_stream(attribute: str = 'color', **fields) -> CodebookSymbols:
  return SMALL._replace(**{attribute: getattr(SMALL, attribute)._replace(**fields)})


# --- the same integers come back, and the same bytes are written ---


def assert_decoded_alike(image: dict, want: CodebookSymbols):
  """What the second decoder made of a file, and the codec."""
  assert (image['height'], image['width'], image['channels'], image['method']) == want[:4]
  assert image['counts'] == want.counts.tolist()
  for attribute in ATTRIBUTES:
    stream, got = getattr(want, attribute), image[attribute]
    assert (got['quantizer'], tuple(got['alphabets'])) == (stream.quantizer, stream.alphabets)
    assert got['columns'] == stream.symbols.T.tolist()
    assert list(got['tables']) == list(stream.tables)
    for table, (shape, entries) in zip(stream.tables.values(), got['tables'].values(), strict=True):
      assert (tuple(shape), entries) == (table.shape, table.ravel().tolist())


@pytest.mark.parametrize('name', make_golden.CASES)
def test_golden_files_are_written_and_read_as_ever(name):
  symbols, order = make_golden.CASES[name]
  assert make_golden.written(name) == make_golden.golden(name)
  symbols, read_back = symbols()._replace(order=order), read(make_golden.golden(name))
  if order == 'none':
    assert_same(read_back, symbols)
  else:
    assert_same(make_golden.canonical(read_back), make_golden.canonical(symbols))


CLUSTERED = [name for name in make_golden.PHOTOGRAPHS if name.startswith('v1')]


@pytest.mark.parametrize('name', [*make_golden.CASES, *CLUSTERED])
def test_a_decoder_written_from_the_document_reads_golden_files(name):
  assert_decoded_alike(
    format_decoder.decode_file(make_golden.golden(name)), read(make_golden.golden(name))
  )


@pytest.mark.parametrize('order', ordering.ORDERS)
def test_orders_make_other_files_of_the_same_picture(order):
  symbols = read(make_golden.golden('v1_photo_cgvq'))._replace(order=order)
  data = write(symbols)
  assert container.describe(data)['order'] == order
  assert_same(make_golden.canonical(read(data)), symbols)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_symbols_round_trip(data):
  rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
  counts = np.array(data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=8)), np.int32)
  counts[0] += len(counts)
  total, num_clusters = int(counts.sum()), len(counts)

  def stream(quantizer):
    sizes = st.one_of(st.integers(1, 64), st.integers(1, 65536))
    alphabets = tuple(data.draw(st.lists(sizes, min_size=1, max_size=4)))
    symbols = np.stack([rng.integers(0, size, total) for size in alphabets], axis=1)
    tables = {}
    for index in range(data.draw(st.integers(0, 3))):
      shape = (num_clusters, *data.draw(st.lists(st.integers(1, 5), max_size=4)))
      dtype = data.draw(st.sampled_from([np.uint8, np.uint16]))
      tables[f'table{index}'] = rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    return Stream(quantizer, alphabets, tables, symbols.astype(np.int32))

  want = CodebookSymbols(
    data.draw(st.integers(1, 4096)),
    data.draw(st.integers(1, 16384)),
    data.draw(st.sampled_from([1, 3, 4])),
    'any',
    counts,
    stream('a'),
    stream('b'),
    stream('c'),
  )
  for order in ordering.ORDERS:
    want = want._replace(order=order)
    coded = write(want)
    got = read(coded)
    if order == 'bits_back' and got.order == 'none':  # of few Gaussians all are plain
      got = got._replace(order=order)
    if order == 'none':
      assert_same(got, want)
    assert_same(make_golden.canonical(got), make_golden.canonical(want))
    assert sum(sections(coded).values()) == len(coded)
  assert_decoded_alike(format_decoder.decode_file(coded), want)


def test_largest_sides_are_checked_without_overflow():
  # 32-bit products of numpy integers would wrap.
  symbols = SMALL._replace(height=np.int32(65535), width=np.int32(65535))
  with pytest.raises(ContainerError, match=r'height \* width: wanted <= 67108864, got 65535'):
    write(symbols)


# --- sizes, and what `describe` reports ---


@pytest.mark.parametrize('order', ordering.ORDERS)
def test_sections_add_up_and_lie_where_the_bytes_are(order):
  small = SMALL._replace(order=order)
  data = write(small)
  sizes = sections(data)
  assert list(sizes) == ['positions', 'rotation_scale', 'color', 'codebooks', 'header']
  assert sum(sizes.values()) == len(data)

  def assert_only(changed: dict[str, int], section: str):
    # A stream begins with a word that is not full, which belongs to whoever comes last.
    assert changed[section] < sizes[section] - 20
    for name in sizes:
      assert name == section or abs(changed[name] - sizes[name]) <= 4

  for attribute, section in list(zip(ATTRIBUTES, sizes, strict=False))[1:]:
    stream = getattr(small, attribute)
    longer = small._replace(**{attribute: stream._replace(quantizer=stream.quantizer + 'xyz')})
    assert sections(write(longer)) == sizes | {'header': sizes['header'] + 3}
    if order != 'bits_back':  # with fewer bits to choose an order by, P changes
      constant = small._replace(**{attribute: stream._replace(symbols=0 * stream.symbols)})
      assert_only(sections(write(constant)), section)
  assert_only(sections(write(with_stream(tables={})._replace(order=order))), 'codebooks')


def test_every_order_costs_less_than_the_next():
  symbols = read(make_golden.golden('v1_photo_cgvq'))
  lengths = [len(write(symbols._replace(order=order))) for order in ordering.ORDERS]
  assert lengths == sorted(set(lengths))


def test_tables_are_stored_compactly():
  entries = make_golden.table(1, (16, 2, 64, 3), np.uint8)
  symbols = SMALL._replace(counts=np.array([208] + [1] * 15))
  symbols = symbols._replace(
    rotation_scale=symbols.rotation_scale._replace(tables={}),
    color=symbols.color._replace(tables={'entries': entries}),
  )
  assert sections(write(symbols))['codebooks'] < 0.95 * entries.nbytes  # a bell: under 8 bits each
  ordered = entries.copy()
  for book in np.ndindex(entries.shape[:2]):
    ordered[book] = np.unique(entries[book], axis=0)
  sorted_rows = symbols._replace(color=symbols.color._replace(tables={'entries': ordered}))
  saved = sections(write(symbols))['codebooks'] - sections(write(sorted_rows))['codebooks']
  assert saved > 0.7 * 32 * math.lgamma(65) / math.log(2) / 8  # most of 32 orders of 64 rows
  flat = np.random.default_rng(0).integers(0, 256, entries.shape).astype(np.uint8)
  symbols = symbols._replace(color=symbols.color._replace(tables={'entries': flat}))
  assert sections(write(symbols))['codebooks'] < flat.nbytes + 30


def test_describe_reports_the_header():
  assert container.describe(FILE) == {
    'version': 1,
    'method': 'cgvq',
    'height': 512,
    'width': 768,
    'channels': 3,
    'num_gaussians': 223,
    'num_clusters': 4,
    'counts': [150, 0, 13, 60],
    'order': 'none',
    'quantizers': {'position': 'fp16', 'rotation_scale': 'uniform', 'color': 'residual_vq'},
    'sections': sections(FILE),
    'bytes': len(FILE),
    'bpp': 8 * len(FILE) / (512 * 768),
  }


# --- symbols that no file can hold ---


@pytest.mark.parametrize(
  ('symbols', 'message'),
  [
    (SMALL._replace(height=0), r'height: wanted 1\.\.65535, got 0'),
    (SMALL._replace(width=65536), r'width: wanted 1\.\.65535, got 65536'),
    (SMALL._replace(width=2.5), r'width: wanted an integer, got 2\.5'),
    (SMALL._replace(channels=2), r'channels: wanted one of \(1, 3, 4\), got 2'),
    (SMALL._replace(method='two words'), "method: wanted .*, got 'two words'"),
    (SMALL._replace(order='best'), r"order: wanted one of \['sorted', .*, got 'best'"),
    (SMALL._replace(counts=np.zeros(65, np.int32)), r'K: wanted 1\.\.64, got 65'),
    (SMALL._replace(counts=np.zeros(4, np.int32)), r'sum of counts: wanted 4\.\.4194304, got 0'),
    (SMALL._replace(counts=np.array([2, 1, 0, 0])), r'sum of counts: wanted 4\.\.4194304, got 3'),
    (SMALL._replace(counts=np.array([224, 0, 0, -1])), r'count of a cluster: wanted .*, got -1'),
    (SMALL._replace(counts=np.ones(4)), r'counts: wanted integers \[K\], got float64'),
    (SMALL._replace(counts=np.array([224, 0, 0, 0])), r'position symbols: wanted .*\(224, 2\)'),
    (with_stream(quantizer=''), 'color quantizer: wanted'),
    (with_stream(alphabets=()), r'color columns: wanted 1\.\.16, got 0'),
    (with_stream(alphabets=(8, 65537)), r'color alphabet: wanted 1\.\.65536, got 65537'),
    (with_stream(alphabets=(8, 7)), r'color symbols: column 1: wanted values in 0\.\.6'),
    (with_stream(symbols=SMALL.color.symbols - 1), r'color symbols: column 0: .* got -1\.\.'),
    (with_stream(symbols=SMALL.color.symbols * 1.0), 'color symbols: wanted integers .*float64'),
    (with_stream(tables={'a': np.ones(4)}), 'color table a: wanted uint8 or uint16, got float64'),
    (with_stream(tables={'a': np.ones(3, np.uint8)}), r'color table a: wanted \[K=4, \.\.\.\]'),
    (with_stream(tables={'a b': np.ones(4, np.uint8)}), 'color table name: wanted'),
    (with_stream(tables={'a': np.ones((4, 0), np.uint8)}), r'color table size: wanted 1\.\.'),
    (with_stream(tables={'a': np.ones([4] + [1] * 5, np.uint8)}), r'color table axes: .* got 6'),
    (
      with_stream(tables={'a': np.ones((4, 1 << 20), np.uint8), 'b': np.ones(4, np.uint8)}),
      'table entries: wanted <= 1048576, got 4194332',
    ),
  ],
)
def test_write_names_what_no_file_can_hold(symbols, message):
  with pytest.raises(ContainerError, match=message):
    write(symbols)


# --- bytes that are not a body of this version ---


def test_table_names_must_differ():
  tables = {'first': np.ones(4, np.uint8), 'other': np.ones(4, np.uint8)}
  body = write(with_stream(tables=tables))[:-4].replace(b'\x05other', b'\x05first')
  with pytest.raises(ContainerError, match='color table names: wanted each once'):
    read(with_crc(body))


def test_a_few_bytes_cannot_ask_for_much():
  header = b'CGVQ\x01' + b'\x01\x01\x03' + b'\x01x'  # 1x1 px, 3 channels, method 'x'
  attribute = b'\x01q' + b'\x02\x40\x40' + b'\x00'  # two columns of 64, no tables

  def with_count(count: bytes, more: bytes = b'') -> bytes:
    return with_crc(header + b'\x01' + count + b'\x00' + 3 * attribute + more)  # K = 1, sorted

  with pytest.raises(ContainerError, match=r'count of a cluster: wanted 0\.\.4194304, got 4194305'):
    read(with_count(b'\x81\x80\x80\x02'))
  with pytest.raises(ContainerError, match=r'Gaussians: wanted <= 1216 in 38 bytes, got 4194304'):
    read(with_count(b'\x80\x80\x80\x02'))
  with pytest.raises(ContainerError, match='coded integers: coded stream: wanted its end'):
    read(with_count(b'\xa0\x09', b'\x01'))  # 1184 may be asked for
  table = b'\x01q' + b'\x01\x40' + b'\x01' + b'\x01t\x00\x02'  # one column, a table [K, ...
  with pytest.raises(
    ContainerError, match=r'table entries: wanted <= \d+ in 42 bytes, got 1048576'
  ):
    read(with_crc(header + b'\x01\x01\x00' + 2 * attribute + table + b'\x80\x80\x40' + b'\x01'))
  few = SMALL._replace(
    counts=np.array([1]),
    **{a: Stream('x', (1,), {}, np.zeros((1, 1), np.int32)) for a in ATTRIBUTES},
  )
  tables = {'t': np.zeros((1, 1 << 18), np.uint8)}
  with pytest.raises(ContainerError, match=r'table entries: .* in \d+ bytes, got 262144'):
    write(few._replace(color=few.color._replace(tables=tables)))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_arbitrary_attributes_behind_a_valid_header(body):
  start = FILE.index(b'\x04fp16')
  with contextlib.suppress(ContainerError):
    fuzz.assert_valid(read(with_crc(FILE[:start] + body)))
