from __future__ import annotations

import contextlib
import math
import os
import stat
import subprocess
import sys
import time
from typing import NamedTuple

import format_decoder
import fuzz
import make_golden
import numpy as np
import pytest
from fuzz import with_crc
from hypothesis import given, settings
from hypothesis import strategies as st

from cgvq_jax import codec
from cgvq_jax.bitstream import base, container, ordering
from cgvq_jax.bitstream.container import ContainerError, read, sections, write
from cgvq_jax.bitstream.fields import FieldReader, FieldWriter
from cgvq_jax.io import images
from cgvq_jax.primitives.gaussians import Gaussians
from cgvq_jax.quantize.adaptive import AdaptiveSymbols
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


def golden(name: str) -> bytes:
  return (make_golden.FOLDER / f'{name}.cgvq').read_bytes()


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
  assert make_golden.written(name) == golden(name)
  symbols, read_back = symbols()._replace(order=order), read(golden(name))
  if order == 'none':
    assert_same(read_back, symbols)
  else:
    assert_same(make_golden.canonical(read_back), make_golden.canonical(symbols))


def test_every_golden_file_has_a_case():
  names = {path.stem for path in make_golden.FOLDER.glob('*.cgvq')}
  assert names == {*make_golden.CASES, *make_golden.ADAPTIVE, *make_golden.PHOTOGRAPHS}


CLUSTERED = [name for name in make_golden.PHOTOGRAPHS if name.startswith('v1')]


@pytest.mark.parametrize('name', [*make_golden.CASES, *CLUSTERED])
def test_a_decoder_written_from_the_document_reads_golden_files(name):
  assert_decoded_alike(format_decoder.decode_file(golden(name)), read(golden(name)))


@pytest.mark.parametrize('name', make_golden.PHOTOGRAPHS)
def test_golden_photographs_look_as_ever_to_both_decoders(name):
  want = images.to_bytes8(images.load(make_golden.FOLDER / f'{name}.png').pixels)
  ours = images.to_bytes8(codec.render(codec.decode(golden(name))))
  theirs = format_decoder.render(format_decoder.decode_file(golden(name)))
  assert ours.shape == theirs.shape == want.shape
  for image in (ours, theirs):
    assert np.abs(image.astype(int) - want).max() <= 1
  piece = images.to_bytes8(make_golden.piece(want.shape[2]))
  assert np.abs(want.astype(int) - piece).mean() < 12  # and it is a picture of something


@pytest.mark.parametrize('order', ordering.ORDERS)
def test_orders_make_other_files_of_the_same_picture(order):
  symbols = read(golden('v1_photo_cgvq'))._replace(order=order)
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
  symbols = read(golden('v1_photo_cgvq'))
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


# --- bytes that are not a file ---


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (b'', 'magic: wanted'),
    (b'\x89PNG\r\n\x1a\n', 'magic: wanted .* got .*PNG'),
    (FILE[:6], 'file: wanted >= 9 bytes, got 6'),
    (FILE[:4] + b'\x03' + FILE[5:], 'version: wanted 1 or 2, got 3'),
    (FILE[:-1], 'CRC-32: wanted 0x'),
    (FILE + b'\0', 'CRC-32: wanted 0x'),
    (FILE[:40] + bytes([FILE[40] ^ 1]) + FILE[41:], 'CRC-32: wanted 0x'),
    (
      with_crc(FILE[:-4] + b'\0'),
      'coded integers: coded stream: wanted a last byte other than 0, got 0',
    ),
    (with_crc(FILE[:-5]), 'coded integers: histogram'),
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
  body[-1] ^= 0xFF  # the state
  with pytest.raises(ContainerError, match='coded integers: '):
    read(with_crc(bytes(body)))
  with pytest.raises(ContainerError, match='coded integers: coded stream: wanted a last byte'):
    read(with_crc(FILE[:-4] + b'\0'))


# --- mutated files: nothing but ContainerError escapes ---


def assert_valid(symbols: CodebookSymbols | AdaptiveSymbols):
  {1: assert_valid_codebooks, 2: assert_valid_adaptive}[symbols.version](symbols)


def assert_valid_adaptive(symbols: AdaptiveSymbols):
  count = len(symbols.energy_class)
  assert count >= 1 and np.all(symbols.size >= 1) and np.all(symbols.cell >= 0)
  assert all(len(getattr(symbols, name)) == count for name in ('low', 'cell', 'color'))


def assert_valid_codebooks(symbols: CodebookSymbols):
  total = symbols.counts.sum()
  assert 1 <= len(symbols.counts) <= total
  for attribute in ATTRIBUTES:
    stream = getattr(symbols, attribute)
    assert stream.symbols.shape == (total, len(stream.alphabets))
    assert np.all((stream.symbols >= 0) & (stream.symbols < stream.alphabets))
    assert all(table.shape[0] == len(symbols.counts) for table in stream.tables.values())


def test_mutated_files_are_refused_or_read_as_valid_symbols():
  refused = accepted = 0
  for data in fuzz.mutated_files(1500):
    started = time.perf_counter()
    try:
      symbols = read(data)
      accepted += 1
      assert_valid(symbols)
    except ContainerError as error:
      assert '\n' not in str(error)
      refused += 1
    assert time.perf_counter() - started < 10 * fuzz.MOST_SECONDS  # a busy machine
  assert refused > 1000
  assert accepted > 50  # the mutations do get behind the CRC


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


# --- versions by their byte ---


class Dots(NamedTuple):
  """Symbols of a version of one's own: places of equal, round, white Gaussians."""

  version = 77
  height: int
  width: int
  channels: int
  method: str
  places: np.ndarray  # [N, 2] px


def write_dots(symbols: Dots) -> bytes:
  fields = FieldWriter()
  base.put_front(fields, symbols)
  return bytes(fields.data) + symbols.places.astype(np.uint8).tobytes()


def read_dots(body: bytes) -> Dots:
  fields = FieldReader(body, 0, len(body), ['header'])
  front = base.take_front(fields)
  if (len(body) - fields.position) % 2:
    raise ValueError('places: wanted x and y, got an odd number of bytes')
  return Dots(*front, np.frombuffer(body[fields.position :], np.uint8).reshape(-1, 2))


def describe_dots(body: bytes) -> dict:
  symbols = read_dots(body)
  about = {**symbols._asdict(), 'num_gaussians': len(symbols.places)}
  return {**about, 'sections': {'positions': 2 * len(symbols.places), 'header': len(body) - 6}}


def dequantize_dots(symbols: Dots):
  if symbols.channels != 1:
    raise ValueError(f'channels: wanted 1, got {symbols.channels}')
  count = len(symbols.places)
  nothing = np.zeros(count, np.float32)
  gaussians = Gaussians(
    symbols.places.astype(np.float32), np.zeros((count, 2), np.float32), nothing, nothing[:, None]
  )
  return gaussians, np.zeros(count)


DOTS = Dots(9, 8, 1, 'dots', np.array([[1, 2], [3, 4], [5, 6]]))


@pytest.fixture
def dots(monkeypatch) -> base.Format:
  monkeypatch.setattr(container, 'FORMATS', dict(container.FORMATS))
  made = base.Format(Dots.version, write_dots, read_dots, describe_dots, dequantize_dots)
  container.register(made)
  return made


def test_a_registered_version_is_written_and_read_by_its_byte(dots):
  data = write(DOTS)
  assert data[:5] == b'CGVQ' + bytes([77])
  got = read(data)
  assert got[:4] == DOTS[:4]
  np.testing.assert_array_equal(got.places, DOTS.places)
  about = container.describe(data)
  assert (about['version'], about['num_gaussians'], about['bytes']) == (77, 3, len(data))
  assert sum(sections(data).values()) == len(data)
  gaussians, labels = container.dequantize(got)
  np.testing.assert_array_equal(gaussians.mean_xy, DOTS.places)
  assert labels.dtype == np.int32 and labels.shape == (3,)
  assert codec.decode(data).gaussians.num_gaussians == 3
  assert read(FILE).version == 1  # and the others are as they were


def test_errors_of_a_registered_version_are_container_errors(dots):
  with pytest.raises(ContainerError, match='places: wanted x and y'):
    read(with_crc(write(DOTS)[:-4] + b'x'))
  with pytest.raises(ContainerError, match='channels: wanted 1, got 3'):
    container.dequantize(DOTS._replace(channels=3))
  with pytest.raises(ContainerError, match='version: wanted 1 or 2 or 77, got 3'):
    read(with_crc(b'CGVQ\x03'))


def test_a_version_has_one_format(dots):
  container.register(dots)  # again
  with pytest.raises(ValueError, match='version: wanted one that is not in use, got 1'):
    container.register(dots._replace(version=1))
  with pytest.raises(ValueError, match=r'version: wanted 0\.\.255, got 256'):
    container.register(dots._replace(version=256))


def test_versions_that_nobody_registered_are_named():
  with pytest.raises(ContainerError, match='version: wanted 1 or 2, got 77'):
    write(DOTS)


# --- a decoder without JAX ---

_DECODER = """
import sys
from pathlib import Path
from cgvq_jax.bitstream import container
for path in Path(sys.argv[1]).glob('*.cgvq'):
  data = path.read_bytes()
  container.describe(data)
  symbols = container.read(data)
  if 'photo' in path.name or symbols.version == 2:
    gaussians, labels = container.dequantize(symbols)
    assert len(labels) == gaussians.num_gaussians
print(*sorted({name.partition('.')[0] for name in sys.modules}))
"""


def test_reading_and_dequantizing_import_no_jax():
  command = [sys.executable, '-c', _DECODER, str(make_golden.FOLDER)]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  modules = set(done.stdout.split())
  assert {'numpy', 'constriction', 'cgvq_jax'} <= modules
  assert not modules & {'jax', 'jaxlib', 'jaxtyping', 'flax', 'optax', 'orbax', 'scipy', 'PIL'}


@pytest.mark.parametrize('name', make_golden.PHOTOGRAPHS)
def test_dequantized_arrays_are_float32_of_numpy(name):
  gaussians, labels = container.dequantize(read(golden(name)))
  for field in ('mean_xy', 'log_scale', 'rotation', 'color'):
    array = getattr(gaussians, field)
    assert type(array) is np.ndarray and array.dtype == np.float32
    assert len(array) == len(labels) == gaussians.num_gaussians


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


_WRITER = """
import itertools, sys
from cgvq_jax.bitstream import container
print('ready', flush=True)
for letter in itertools.cycle((b'a', b'b')):
  container.write_file(sys.argv[1], 300_000 * letter)
"""


def test_killed_at_any_point_the_old_file_or_the_new_one_is_there(tmp_path):
  path = tmp_path / 'image.cgvq'
  container.write_file(path, 300_000 * b'a')
  rng = np.random.default_rng(0)
  for _ in range(3):
    command = [sys.executable, '-c', _WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
      try:
        assert process.stdout is not None and process.stdout.readline() == b'ready\n'
        for _ in range(20):
          data = path.read_bytes()
          assert len(data) == 300_000 and len(set(data)) == 1
        time.sleep(rng.uniform(0, 0.05))
      finally:  # it never ends by itself
        process.kill()
    assert path.read_bytes() in (300_000 * b'a', 300_000 * b'b')


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
