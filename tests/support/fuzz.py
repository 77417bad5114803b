"""Damaged and hostile files: each gives a valid image or one ContainerError, quickly.

    python tests/support/fuzz.py --files 100000

The golden files are mutated: bits flipped, cut, spliced with another, bytes doubled, deleted, put
inserted; sizes, counts, K and orders replaced by the largest, the smallest and by zero. Most get a
right checksum, so that the code behind it is reached; and some are whole files of tables and
symbols that make no sense, such as infinite steps. A file has to be decoded within a second, and
all of them within 1 GiB. The Gaussians of those that decode are checked, and rendered where the
size is that of a golden file.

Exits with 1 and the bytes of the file where one does anything else.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator

import make_golden
import numpy as np

from cgvq_jax import codec
from cgvq_jax.bitstream import base, container
from cgvq_jax.bitstream.container import ContainerError
from cgvq_jax.quantize.adaptive import AdaptiveSymbols
from cgvq_jax.quantize.clustered import ATTRIBUTES, CodebookSymbols

MOST_SECONDS = 1.0
MOST_BYTES = 1 << 30
# Half-precision bits: zeros, the least and the greatest, infinities, NaNs.
_HALVES = [0, 0x8000, 1, 0x8001, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0xFFFF]
_HOSTILE = [0, 1, 64, 65, 127, 1 << 14, 65535, 65536, 1 << 20, (1 << 22) + 1, (1 << 28) - 1]


def with_crc(body: bytes) -> bytes:
  return body + zlib.crc32(body).to_bytes(4, 'little')


def _varint(number: int) -> bytes:
  data = bytearray()
  while number >= 128:
    data.append(number & 127 | 128)
    number >>= 7
  return bytes(data + bytes([number]))


def mutate(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
  """One of: flipped bits, a cut, a splice, doubled, deleted or random bytes, a hostile number."""
  data = bytearray(data)
  place = int(rng.integers(len(data)))
  length = int(rng.integers(1, 9))
  kind = rng.integers(8)
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
  elif kind == 6:
    data[place] = int(rng.choice([0, 1, 127, 128, 255]))
  else:
    data[place : place + 1] = _varint(int(rng.choice(_HOSTILE)))
  return bytes(data)


def senseless(rng: np.random.Generator, symbols: CodebookSymbols | AdaptiveSymbols) -> bytes:
  """A whole file of these symbols, some numbers of one attribute replaced by hostile ones."""
  return {1: _senseless_codebooks, 2: _senseless_adaptive}[symbols.version](rng, symbols)


def _senseless_codebooks(rng: np.random.Generator, symbols: CodebookSymbols) -> bytes:
  attribute = ATTRIBUTES[rng.integers(3)]
  stream = getattr(symbols, attribute)
  tables = {name: table.copy() for name, table in stream.tables.items()}
  if tables and rng.integers(4):
    table = tables[list(tables)[rng.integers(len(tables))]]
    places = rng.integers(table.size, size=rng.integers(1, 5))
    table.flat[places] = rng.choice(_HALVES, len(places)).astype(table.dtype)
    return container.write(symbols._replace(**{attribute: stream._replace(tables=tables)}))
  values = stream.symbols.copy()
  rows = rng.integers(len(values), size=rng.integers(1, 5))
  values[rows] = rng.integers(np.array(stream.alphabets), size=(len(rows), values.shape[1]))
  return container.write(symbols._replace(**{attribute: stream._replace(symbols=values)}))


def _senseless_adaptive(rng: np.random.Generator, symbols: AdaptiveSymbols) -> bytes:
  """Where no file can hold the change, since other numbers depend on it, the file as it was."""
  name = rng.choice(['log_scale', 'color', 'energy_class', 'axes', 'step_index'])
  if name == 'step_index':
    return container.write(symbols._replace(step_index=int(rng.integers(1024))))
  values = getattr(symbols, name).copy()
  places = rng.integers(values.size, size=rng.integers(1, 5))
  low, high = {'energy_class': (0, 32), 'axes': (-128, 128)}.get(name, (-(1 << 15), 1 << 15))
  values.flat[places] = rng.integers(low, high, len(places))
  try:
    return container.write(symbols._replace(**{name: values}))
  except ContainerError:
    return container.write(symbols)


def mutated_files(count: int, seed: int = 0) -> Iterator[bytes]:
  rng = np.random.default_rng(seed)
  files = [path.read_bytes() for path in sorted(make_golden.FOLDER.glob('*.cgvq'))]
  symbols = [container.read(data) for data in files]
  for _ in range(count):
    data, other = files[rng.integers(len(files))], files[rng.integers(len(files))]
    where = rng.choice(5, p=[0.2, 0.25, 0.25, 0.25, 0.05])
    if where == 4:
      yield senseless(rng, symbols[rng.integers(len(symbols))])
    elif where == 0:
      yield mutate(rng, data, other)
    elif where == 1:
      yield with_crc(mutate(rng, data[:-4], other[:-4]))
    else:  # the fields stand in front: fewer than 170 bytes of a golden file
      start = 5 if where == 2 else 0
      front = data[:start] + mutate(rng, data[start:170], other[:170])
      yield with_crc(front + data[170:-4])


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


def check(data: bytes, sizes: set[tuple[int, ...]]) -> tuple[str, float]:
  """What becomes of a file, 'refused', 'decoded' or 'rendered', and the seconds of decoding it.

  Raises any other error than the one that a bad file should get.
  """
  start = time.perf_counter()
  try:
    decoded = codec.decode(data)
  except ContainerError as error:
    if '\n' in str(error) or 'wanted' not in str(error):
      raise AssertionError(f'not one clear line: {error}') from error
    return 'refused', time.perf_counter() - start
  seconds = time.perf_counter() - start
  gaussians = decoded.gaussians
  for name in ('mean_xy', 'log_scale', 'rotation', 'color'):
    assert np.all(np.isfinite(getattr(gaussians, name)))
  assert 1 <= decoded.height * decoded.width <= base.MAX_PIXELS
  assert len(decoded.labels) == gaussians.num_gaussians >= 1
  if (decoded.height, decoded.width, *gaussians.color.shape) not in sizes:
    return 'decoded', seconds
  image = codec.render(decoded)
  assert image.shape == (decoded.height, decoded.width, gaussians.num_channels)
  assert np.all((image >= 0) & (image <= 1))
  return 'rendered', seconds


def golden_sizes() -> set[tuple[int, ...]]:
  """Sizes of small golden pictures, each rendered once, so that everything is compiled."""
  sizes = set()
  for path in make_golden.FOLDER.glob('v*_photo*.cgvq'):
    decoded = codec.decode(path.read_bytes())
    codec.render(decoded)
    sizes.add((decoded.height, decoded.width, *decoded.gaussians.color.shape))
  return sizes


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--files', type=int, default=100_000, metavar='N')
  parser.add_argument('--seed', type=int, default=0, metavar='N')
  arguments = parser.parse_args()
  sizes, outcomes, longest = golden_sizes(), Counter(), 0.0
  before = _peak_bytes()
  started = printed = time.perf_counter()
  for index, data in enumerate(mutated_files(arguments.files, arguments.seed)):
    try:
      outcome, seconds = check(data, sizes)
    except Exception as error:  # whatever it is, print the file
      print(f'file {index}: {type(error).__name__}: {error}\n{data.hex()}')
      return 1
    outcomes[outcome] += 1
    longest = max(longest, seconds)
    if seconds > MOST_SECONDS or _peak_bytes() - before > MOST_BYTES:
      print(f'file {index}: {seconds:.1f} s, {_peak_bytes() - before} bytes\n{data.hex()}')
      return 1
    if time.perf_counter() - printed > 10:
      printed = time.perf_counter()
      print(f'{index + 1} files, {dict(outcomes)}', file=sys.stderr)
  seconds = time.perf_counter() - started
  more = (_peak_bytes() - before) / 2**20
  print(f'{arguments.files} files in {seconds:.0f} s: {dict(outcomes)}')
  print(f'longest {longest:.2f} s, {more:.0f} MiB more memory at most')
  return 0


def _peak_bytes() -> int:
  return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == '__main__':
  sys.exit(main())
