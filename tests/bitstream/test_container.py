"""The file: golden files, versions by their byte, damage, decoding without JAX, files on a disk."""

from __future__ import annotations

import contextlib
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
from cgvq_jax.bitstream import base, container
from cgvq_jax.bitstream.container import ContainerError, read, sections, write
from cgvq_jax.bitstream.fields import FieldReader, FieldWriter
from cgvq_jax.io import images
from cgvq_jax.primitives.gaussians import Gaussians

SMALL = make_golden.clustered()._replace(order='none')
FILE = write(SMALL)


# --- golden files ---


def test_every_golden_file_has_a_case():
  names = {path.stem for path in make_golden.FOLDER.glob('*.cgvq')}
  assert names == {*make_golden.CASES, *make_golden.ADAPTIVE, *make_golden.PHOTOGRAPHS}


@pytest.mark.parametrize('name', make_golden.PHOTOGRAPHS)
def test_golden_photographs_look_as_ever_to_both_decoders(name):
  want = images.to_bytes8(images.load(make_golden.FOLDER / f'{name}.png').pixels)
  ours = images.to_bytes8(codec.render(codec.decode(make_golden.golden(name))))
  theirs = format_decoder.render(format_decoder.decode_file(make_golden.golden(name)))
  assert ours.shape == theirs.shape == want.shape
  for image in (ours, theirs):
    assert np.abs(image.astype(int) - want).max() <= 1
  piece = images.to_bytes8(make_golden.piece(want.shape[2]))
  assert np.abs(want.astype(int) - piece).mean() < 12  # and it is a picture of something


# --- bytes that are not a file ---

DAMAGED = 'damaged or truncated file: wanted contents of CRC-32 0x.*, got 0x'


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (b'', "not a .cgvq file: wanted one that begins with b'CGVQ', got b''"),
    (b'\x89PNG\r\n\x1a\nabc', r"not a .cgvq file: .* got b'\\x89PNG\\r\\n\\x1a\\n'$"),
    (b'CG', 'truncated file: wanted 9 bytes or more, got 2'),
    (FILE[:6], 'truncated file: wanted 9 bytes or more, got 6'),
    (FILE[:4] + b'\x03' + FILE[5:], 'version: wanted 1 or 2, got 3'),
    (FILE[:-1], DAMAGED),
    (FILE + b'\0', DAMAGED),
    (FILE[:40] + bytes([FILE[40] ^ 1]) + FILE[41:], DAMAGED),
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


def test_damage_in_coded_integers_is_named():
  body = bytearray(FILE[:-4])
  body[-1] ^= 0xFF  # the state
  with pytest.raises(ContainerError, match='coded integers: '):
    read(with_crc(bytes(body)))
  with pytest.raises(ContainerError, match='coded integers: coded stream: wanted a last byte'):
    read(with_crc(FILE[:-4] + b'\0'))


# --- mutated files: nothing but ContainerError escapes ---


def test_mutated_files_are_refused_or_read_as_valid_symbols():
  refused = accepted = 0
  for data in fuzz.mutated_files(1500):
    started = time.perf_counter()
    try:
      symbols = read(data)
      accepted += 1
      fuzz.assert_valid(symbols)
    except ContainerError as error:
      assert '\n' not in str(error)
      refused += 1
    assert time.perf_counter() - started < 10 * fuzz.MOST_SECONDS  # a busy machine
  assert refused > 1000
  assert accepted > 50  # the mutations do get behind the CRC


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_behind_a_valid_start_and_crc(body):
  with contextlib.suppress(ContainerError):
    fuzz.assert_valid(read(with_crc(FILE[:5] + body)))


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
  gaussians, labels = container.dequantize(read(make_golden.golden(name)))
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
