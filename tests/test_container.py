from __future__ import annotations

import contextlib
import os
import stat
import time
import zlib

import format_decoder
import make_golden
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgvq_jax.bitstream import container
from cgvq_jax.bitstream.container import ATTRIBUTES, ContainerError, read, sections, write
from cgvq_jax.types import Stream, Symbols

SMALL = make_golden.CASES['v1_clustered']()
FILE = write(SMALL)


def assert_same(got: Symbols, want: Symbols):
  assert got[:4] == want[:4]
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


def with_crc(body: bytes) -> bytes:
  return body + zlib.crc32(body).to_bytes(4, 'little')


def with_stream(attribute: str = 'color', **fields) -> Symbols:
  return SMALL._replace(**{attribute: getattr(SMALL, attribute)._replace(**fields)})


# --- the same integers come back, and the same bytes are written ---


@pytest.mark.parametrize('name', make_golden.CASES)
def test_golden_files_are_written_and_read_as_ever(name):
  data = (make_golden.FOLDER / f'{name}.cgvq').read_bytes()
  want = make_golden.CASES[name]()
  assert_same(read(data), want)
  assert write(want) == data


def test_every_golden_file_has_a_case():
  assert {path.stem for path in make_golden.FOLDER.glob('*.cgvq')} == set(make_golden.CASES)


@pytest.mark.parametrize('name', make_golden.CASES)
def test_a_decoder_written_from_the_document_reads_golden_files(name):
  want = make_golden.CASES[name]()
  image = format_decoder.decode_file((make_golden.FOLDER / f'{name}.cgvq').read_bytes())
  assert (image['height'], image['width'], image['channels'], image['method']) == want[:4]
  assert image['counts'] == want.counts.tolist()
  for attribute in ATTRIBUTES:
    stream, got = getattr(want, attribute), image[attribute]
    assert (got['quantizer'], tuple(got['alphabets'])) == (stream.quantizer, stream.alphabets)
    assert got['columns'] == stream.symbols.T.tolist()
    assert list(got['tables']) == list(stream.tables)
    for table, (shape, entries) in zip(stream.tables.values(), got['tables'].values(), strict=True):
      assert (tuple(shape), entries) == (table.shape, table.ravel().tolist())


@settings(max_examples=40, deadline=None)
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

  want = Symbols(
    data.draw(st.integers(1, 4096)),
    data.draw(st.integers(1, 65535)),
    data.draw(st.sampled_from([1, 3, 4])),
    'any',
    counts,
    stream('a'),
    stream('b'),
    stream('c'),
  )
  coded = write(want)
  assert_same(read(coded), want)
  assert sum(sections(coded).values()) == len(coded)


def test_largest_sides_are_checked_without_overflow():
  # 32-bit products of numpy integers would wrap.
  symbols = SMALL._replace(height=np.int32(65535), width=np.int32(65535))
  with pytest.raises(ContainerError, match=r'height \* width: wanted <= 268435456, got 65535'):
    write(symbols)


# --- what a file costs and tells ---


def test_sections_add_up_and_lie_where_the_bytes_are():
  sizes = sections(FILE)
  assert list(sizes) == ['positions', 'rotation_scale', 'color', 'codebooks', 'header']
  assert sum(sizes.values()) == len(FILE)
  for attribute, section in zip(ATTRIBUTES, sizes, strict=False):
    stream = getattr(SMALL, attribute)
    longer = SMALL._replace(**{attribute: stream._replace(quantizer=stream.quantizer + 'xyz')})
    assert sections(write(longer)) == sizes | {'header': sizes['header'] + 3}
    constant = SMALL._replace(**{attribute: stream._replace(symbols=0 * stream.symbols)})
    changed = sections(write(constant))
    assert changed[section] < sizes[section]
    assert changed | {section: sizes[section]} == sizes
  bare = sections(write(with_stream(tables={})))
  assert bare['codebooks'] < sizes['codebooks']
  assert bare | {'codebooks': sizes['codebooks']} == sizes


def test_tables_are_stored_compactly():
  entries = make_golden.table(1, (16, 2, 64, 3), np.uint8)
  symbols = SMALL._replace(counts=np.array([208] + [1] * 15))
  symbols = symbols._replace(
    rotation_scale=symbols.rotation_scale._replace(tables={}),
    color=symbols.color._replace(tables={'entries': entries}),
  )
  assert sections(write(symbols))['codebooks'] < 0.95 * entries.nbytes  # a bell: under 8 bits each
  flat = np.random.default_rng(0).integers(0, 256, entries.shape).astype(np.uint8)
  symbols = symbols._replace(color=symbols.color._replace(tables={'entries': flat}))
  assert sections(write(symbols))['codebooks'] < flat.nbytes + 30


def test_describe_tells_the_header():
  told = container.describe(FILE)
  assert told == {
    'version': 1,
    'method': 'cgvq',
    'height': 512,
    'width': 768,
    'channels': 3,
    'num_gaussians': 223,
    'num_clusters': 4,
    'counts': [150, 0, 13, 60],
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
      'color table entries: wanted <= 4194304, got 4194308',
    ),
  ],
)
def test_write_names_what_no_file_can_hold(symbols, message):
  with pytest.raises(ContainerError, match=message):
    write(symbols)


# --- bytes that are no file ---


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (b'', 'magic: wanted'),
    (b'\x89PNG\r\n\x1a\n', 'magic: wanted .* got .*PNG'),
    (FILE[:6], 'file: wanted >= 9 bytes, got 6'),
    (FILE[:4] + b'\x02' + FILE[5:], 'version: wanted 1, got 2'),
    (FILE[:-1], 'CRC-32: wanted 0x'),
    (FILE + b'\0', 'CRC-32: wanted 0x'),
    (FILE[:40] + bytes([FILE[40] ^ 1]) + FILE[41:], 'CRC-32: wanted 0x'),
    (with_crc(FILE[:-4] + b'\0'), 'file: wanted its end after the colours, got 1 more bytes'),
    (with_crc(FILE[:-5]), 'color symbols: wanted .* bytes, got'),
    (with_crc(FILE[:5]), 'height: wanted 1 bytes, got 0'),
  ],
)
def test_read_names_what_is_wrong(data, message):
  for function in (read, sections, container.describe):
    with pytest.raises(ContainerError, match=message):
      function(data)


def test_table_names_must_differ():
  tables = {'first': np.ones(4, np.uint8), 'other': np.ones(4, np.uint8)}
  body = write(with_stream(tables=tables))[:-4].replace(b'\x05other', b'\x05first')
  with pytest.raises(ContainerError, match='color table names: wanted each once'):
    read(with_crc(body))


def test_damage_in_coded_integers_is_named():
  body = bytearray(FILE[:-4])
  body[-1] ^= 0xFF  # the coder's state
  with pytest.raises(ContainerError, match='color symbols: '):
    read(with_crc(bytes(body)))
  body = bytearray(FILE[:-4])
  body[-1 - sections(FILE)['color']] ^= 0xFF  # the same, at the end of the tables
  with pytest.raises(ContainerError, match='color tables: '):
    read(with_crc(bytes(body)))


# --- mutated files: nothing but ContainerError escapes ---


def mutate(rng, data: bytes, other: bytes) -> bytes:
  """One of: flipped bits, a cut, a splice of two files, doubled, deleted or random bytes."""
  data = bytearray(data)
  place = int(rng.integers(len(data)))
  length = int(rng.integers(1, 9))
  kind = rng.integers(7)
  if kind == 0:
    for bit in rng.integers(8 * len(data), size=rng.integers(1, 4)):
      data[bit // 8] ^= 1 << bit % 8
  elif kind == 1:
    del data[place:]
  elif kind == 2:
    data[place:] = other[int(rng.integers(len(other))) :]
  elif kind == 3:
    data[place:place] = data[place : place + length]
  elif kind == 4:
    del data[place : place + length]
  elif kind == 5:
    data[place : place + length] = rng.bytes(length)
  else:
    data[place] = int(rng.choice([0, 1, 127, 128, 255]))
  return bytes(data)


def assert_valid(symbols: Symbols):
  total = symbols.counts.sum()
  assert 1 <= len(symbols.counts) <= total
  for attribute in ATTRIBUTES:
    stream = getattr(symbols, attribute)
    assert stream.symbols.shape == (total, len(stream.alphabets))
    assert np.all((stream.symbols >= 0) & (stream.symbols < stream.alphabets))
    assert all(table.shape[0] == len(symbols.counts) for table in stream.tables.values())


def mutated_files(count: int):
  rng = np.random.default_rng(0)
  files = [write(case()) for case in make_golden.CASES.values()]
  for index in range(count):
    data, other = files[index % len(files)], files[rng.integers(len(files))]
    if index % 2:
      yield mutate(rng, data, other)
    elif index % 4:  # most fields stand in front
      yield with_crc(mutate(rng, data[:90], other) + data[90:-4])
    else:
      yield with_crc(mutate(rng, data[:-4], other[:-4]))


def test_mutated_files_are_refused_or_read_as_valid_symbols():
  refused = accepted = 0
  for data in mutated_files(4000):
    started = time.perf_counter()
    try:
      symbols = read(data)
      accepted += 1
      assert_valid(symbols)
    except ContainerError:
      refused += 1
    assert time.perf_counter() - started < 10
  assert refused > 3000
  assert accepted > 10  # the mutations do get behind the CRC


def test_a_few_bytes_cannot_ask_for_more_than_the_limits():
  header = b'CGVQ\x01' + b'\x01\x01\x03' + b'\x01x'  # 1x1 px, 3 channels, method 'x'
  attribute = b'\x01q' + b'\x02\x40\x40' + b'\x00\x00' + b'\x01\x01'  # two columns of 64, one byte
  largest = b'\x01' + b'\x80\x80\x80\x02'  # K = 1, 2^22 Gaussians
  started = time.perf_counter()
  with pytest.raises(ContainerError, match='position symbols: coded stream: wanted its end'):
    read(with_crc(header + largest + 3 * attribute))
  assert time.perf_counter() - started < 10
  more = b'\x01' + b'\x81\x80\x80\x02'
  with pytest.raises(ContainerError, match=r'count of a cluster: wanted 0\.\.4194304, got 4194305'):
    read(with_crc(header + more + 3 * attribute))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_behind_a_valid_start_and_crc(body):
  with contextlib.suppress(ContainerError):
    assert_valid(read(with_crc(FILE[:5] + body)))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_arbitrary_attributes_behind_a_valid_header(body):
  start = FILE.index(b'\x04fp16')
  with contextlib.suppress(ContainerError):
    assert_valid(read(with_crc(FILE[:start] + body)))


# --- files on a disk ---


def test_files_round_trip(tmp_path):
  path = tmp_path / 'image.cgvq'
  container.write_file(path, FILE)
  container.write_file(str(path), FILE)
  assert container.read_file(path) == container.read_file(str(path)) == FILE
  assert os.listdir(tmp_path) == ['image.cgvq']
  (tmp_path / 'other').write_bytes(b'')
  assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / 'other').stat().st_mode)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
  path = tmp_path / 'image.cgvq'
  container.write_file(path, b'old')

  def full(descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(ContainerError, match=r'image\.cgvq: wanted .*, got No space left on device'):
    container.write_file(path, FILE)
  assert path.read_bytes() == b'old'
  assert os.listdir(tmp_path) == ['image.cgvq']


def test_unreadable_paths_are_named(tmp_path, monkeypatch):
  with pytest.raises(ContainerError, match=r'gone\.cgvq: wanted a file, got No such file'):
    container.read_file(tmp_path / 'gone.cgvq')
  with pytest.raises(ContainerError, match='wanted a file, got a directory'):
    container.read_file(tmp_path)
  with pytest.raises(ContainerError, match='wanted a file, got something else'):
    container.read_file('/dev/null')
  with pytest.raises(ContainerError, match=r'a\.cgvq: wanted .*, got No such file'):
    container.write_file(tmp_path / 'no' / 'folder' / 'a.cgvq', FILE)
  (tmp_path / 'large.cgvq').write_bytes(FILE)
  monkeypatch.setattr(container, 'MAX_FILE_BYTES', 100)
  with pytest.raises(ContainerError, match=f'wanted <= 100 bytes, got {len(FILE)}'):
    container.read_file(tmp_path / 'large.cgvq')
