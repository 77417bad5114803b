"""Integers of clusters to Gaussians: look-ups by hand, a quantizer of one's own, bad tables."""

from __future__ import annotations

import make_golden
import numpy as np
import pytest

from cgvq_jax.bitstream import container
from cgvq_jax.quantize import clustered
from cgvq_jax.quantize.base import Dequantizer
from cgvq_jax.quantize.clustered import CodebookSymbols, Stream
from cgvq_jax.quantize.dequantizers import Grid


def bits(values) -> np.ndarray:
  return np.asarray(values, np.float16).view(np.uint16)


def some_symbols() -> CodebookSymbols:
  """Three clusters of 2, 0 and 1 Gaussians, one channel."""
  position = np.array([[0.5, -1.0], [-0.25, 0.0], [1.0, 1.0]])
  steps = {'step': bits([[1, 2, 4], [9, 9, 9], [8, 1, 1]]), 'offset': bits(np.zeros((3, 3)))}
  low = np.zeros((3, 2, 1))
  low[2] = [[0.5], [-0.25]]
  books = {
    'low': bits(low),
    'step': bits([[0.125], [0], [0.25]]),
    'entries': np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1),
  }
  return CodebookSymbols(
    height=10,
    width=20,
    channels=1,
    method='any',
    counts=np.array([2, 0, 1], np.int32),
    position=Stream('fp16', (65536, 65536), {}, bits(position).astype(np.int32)),
    rotation_scale=Stream('uniform', (4, 4, 4), steps, np.array([[0, 1, 2], [3, 3, 3], [1, 1, 1]])),
    color=Stream('residual', (2, 2), books, np.array([[0, 1], [1, 1], [1, 0]], np.int32)),
  )


def test_look_ups_by_hand():
  gaussians = clustered.dequantize(some_symbols())
  np.testing.assert_array_equal(gaussians.mean_xy, [[15, 0], [7.5, 5], [20, 10]])
  np.testing.assert_array_equal(gaussians.rotation, [0, 3, 8])
  np.testing.assert_array_equal(gaussians.log_scale, [[2, 8], [6, 12], [1, 1]])
  color = [(0 + 3) / 8, (1 + 3) / 8, 0.5 + 9 / 4 - 0.25 + 10 / 4]
  np.testing.assert_array_equal(gaussians.color[:, 0], color)
  for field in ('mean_xy', 'log_scale', 'rotation', 'color'):
    assert getattr(gaussians, field).dtype == np.float32


@pytest.mark.parametrize('bad', [0x7C00, 0xFC00, 0x7E00])
def test_numbers_that_are_not_finite_pass_quietly_to_the_container(bad):
  symbols = some_symbols()
  steps = symbols.rotation_scale.tables | {'step': np.full((3, 3), bad, np.uint16)}
  symbols = symbols._replace(rotation_scale=symbols.rotation_scale._replace(tables=steps))
  with np.errstate(all='raise'):
    assert not np.all(np.isfinite(clustered.dequantize(symbols).log_scale))
    with pytest.raises(container.ContainerError, match='log_scale: wanted finite values'):
      container.dequantize(symbols)


def _restore_doubling(tables, alphabets):
  del alphabets
  return Grid(tables['step'].astype(np.float32), tables['step'].astype(np.float32))


DOUBLING = Dequantizer(
  _restore_doubling, lambda params, symbols: params.step * np.float32(2) ** symbols
)


@pytest.fixture
def own_dequantizers():
  before = dict(clustered.DEQUANTIZERS)
  yield
  clustered.DEQUANTIZERS.clear()
  clustered.DEQUANTIZERS.update(before)


def test_a_registered_quantizer_is_found_by_its_name_in_a_file(own_dequantizers):
  symbols = some_symbols()
  stream = Stream(
    'doubling', (9,), {'step': np.array([[3], [0], [5]], np.uint8)}, np.array([[0], [1], [4]])
  )
  symbols = symbols._replace(color=stream)
  read = container.read(container.write(symbols._replace(order='none')))
  with pytest.raises(container.ContainerError, match=r"color quantizer: .*, got 'doubling'"):
    container.dequantize(read)
  clustered.DEQUANTIZERS.register('doubling', DOUBLING)
  gaussians, labels = container.dequantize(read)
  np.testing.assert_array_equal(gaussians.color[:, 0], [3, 6, 80])
  np.testing.assert_array_equal(labels, [0, 0, 2])
  clustered.DEQUANTIZERS.register('doubling', DOUBLING)  # again
  with pytest.raises(ValueError, match='wanted a new name'):
    clustered.DEQUANTIZERS.register('uniform', DOUBLING)


def test_a_quantizer_that_is_not_registered_can_be_given():
  symbols = some_symbols()
  known = {**clustered.DEQUANTIZERS, 'mine': clustered.DEQUANTIZERS['fp16']}
  symbols = symbols._replace(position=symbols.position._replace(quantizer='mine'))
  assert clustered.dequantize(symbols, known).num_gaussians == 3
  with pytest.raises(ValueError, match=r"position quantizer: wanted one of .*, got 'mine'"):
    clustered.dequantize(symbols)


def test_what_does_not_fit_is_named():
  symbols = some_symbols()
  with pytest.raises(ValueError, match=r'color: residual: wanted tables'):
    clustered.dequantize(symbols._replace(color=symbols.color._replace(tables={})))
  with pytest.raises(ValueError, match='color: wanted 3 columns, got 1'):
    clustered.dequantize(symbols._replace(channels=3))
  with pytest.raises(ValueError, match=r"color quantizer: wanted one of .*, got 'residual_vq'"):
    clustered.dequantize(make_golden.clustered())
