"""Failures are reported and do not stop a job; JSON files are whole; another process decodes."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from cgvq_jax.io.images import ImageError
from cgvq_jax.jobs import base


def test_an_expected_failure_is_one_line(capsys):
  failures = []
  with base.reported('x', failures):
    raise ImageError('first line\nsecond line')
  assert failures == ['x: ImageError: first line']
  assert capsys.readouterr().err == 'failed: x: ImageError: first line\n'


def test_an_unexpected_failure_has_its_traceback_too(capsys):
  failures = []
  with base.reported('x', failures):
    raise ZeroDivisionError('first line\nsecond line')
  assert failures == ['x: ZeroDivisionError: first line']
  assert 'Traceback' in capsys.readouterr().err


def test_an_interrupt_is_not_caught():
  failures = []
  with pytest.raises(KeyboardInterrupt), base.reported('x', failures):
    raise KeyboardInterrupt
  assert failures == []


def test_json_comes_back_or_the_default(tmp_path):
  path = tmp_path / 'new' / 'a.json'
  assert base.read_json(path, []) == []
  base.write_json(path, {'a': [1, 2.5]})
  assert base.read_json(path) == {'a': [1, 2.5]} == json.loads(path.read_text())
  path.write_text('{"damaged')
  assert base.read_json(path) is None and base.read_json(path, 3) == 3


def test_a_digest_depends_on_shape_and_values():
  pixels = np.zeros((2, 3, 1), np.float32)
  others = pixels.reshape(3, 2, 1), pixels + 1
  assert base.digest_of(pixels) == base.digest_of(pixels.copy())
  assert base.digest_of(pixels) not in map(base.digest_of, others)


def test_a_plain_name_stays_in_the_results():
  for stem in ('kodim01', '日本', 250 * 'n'):
    assert base.name_in_results(stem) == stem


def test_another_name_is_plain_short_and_unique():
  stems = [os.fsdecode(b'caf\xe9'), os.fsdecode(b'caf\xea'), 251 * 'n', 251 * 'm', 125 * '日']
  stems += [251 * 'n' + 'x']
  names = [base.name_in_results(stem) for stem in stems]
  assert len(set(names)) == len(names)
  assert max(len(f'{name}.cgvq'.encode()) for name in names) <= 255
  assert names[0].startswith('caf_-') and names[4].startswith(80 * '日' + '-')


def test_a_file_that_cannot_be_decoded_is_reported_with_the_reason(tmp_path):
  file = tmp_path / 'bad.cgvq'
  file.write_bytes(b'CGVQ')
  with pytest.raises(
    base.DecodeError, match=r'bad.cgvq: wanted a decoded image, got exit code 2: .*wanted 9 bytes'
  ):
    base.decode_in_new_process(file)
