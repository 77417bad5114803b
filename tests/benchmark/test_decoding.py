"""The times of the parts of decoding."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from cgvq_jax import codec
from cgvq_jax.benchmark import decoding, scenes
from cgvq_jax.bitstream import container


def test_the_parts_of_decoding_are_timed_with_the_files_alternating(tmp_path, monkeypatch, capsys):
  clock, calls = [0.0], []

  def taking(name, seconds, result):
    def call(argument, **options):
      clock[0] += seconds
      calls.append((name, argument))
      return result

    return call

  one = replace(
    scenes.random(1, 40, 56).gaussians,
    mean_xy=jnp.array([[16.0, 8.0]]),
    log_scale=jnp.zeros((1, 2)),
  )
  decoded = codec.Decoded(one, 40, 56, np.zeros(1, np.int32))
  monkeypatch.setattr(container, 'read', taking('read', 1.0, None))
  monkeypatch.setattr(codec, 'decode', taking('decode', 3.0, decoded))
  monkeypatch.setattr(codec, 'render', taking('render', 10.0, None))
  files = [tmp_path / 'a.cgvq', tmp_path / 'b.cgvq']
  for file in files:
    container.write_file(file, file.name.encode())
  rows = decoding.decode(files, rounds=2, clock=lambda: clock[0])

  read = [argument for name, argument in calls if name == 'read']
  assert read == [b'a.cgvq', b'b.cgvq'] * 3  # once to compile, then twice
  same = {'read_ms': 1e3, 'look_up_ms': 2e3, 'render_ms': 1e4, 'decode_ms': 1.3e4, 'bytes': 6}
  # A disc of radius 3.3 px on the border of two tiles, clear of the next row.
  assert rows == [{'file': str(file), 'tile_pairs': 2, **same} for file in files]
  out = capsys.readouterr().out
  assert all(f'{file} | 6 | 1000.0 | 2000.0 | 10000.0 | 13000.0 | 2 |' in out for file in files)
