"""Version 2 of the file: every integer comes back, golden files, what does not fit."""

from __future__ import annotations

import format_decoder
import make_golden
import numpy as np
import pytest
from adaptive_symbols import HEIGHT, WIDTH, in_order, random_symbols, sorted_rows

from cgvq_jax.bitstream import container
from cgvq_jax.quantize import adaptive, boxes

# --- the boxes of means ---


@pytest.mark.parametrize('beyond', [-1.0, 0.0, 4.9995, 5.0, 5.03, 8191.9, 1e5])
def test_boxes_of_means_near_and_far_are_those_of_the_file(beyond):
  """Two means that are next to each other have boxes that do not reach the outermost edge."""
  symbols, _ = random_symbols(3)
  mean = np.array([[WIDTH + beyond, 3.0], [WIDTH + beyond - 0.07, 3.0], [-beyond, 9.0]])
  low, size = boxes.boxes_of(mean, HEIGHT, WIDTH)
  inside = np.clip(mean, -boxes.MAX_OVERHANG, [WIDTH + 8192, HEIGHT + 8192]) * boxes.UNIT
  assert np.all((low <= inside) & (inside <= low + size))
  placed = symbols._replace(low=low, size=size, cell=np.zeros((3, 2), np.int64))
  got = container.read(container.write(placed))
  np.testing.assert_array_equal(sorted_rows(got), sorted_rows(placed))


# --- the stream and the file ---


@pytest.mark.parametrize('channels', [1, 3, 4])
@pytest.mark.parametrize('count', [1, 2, 400])
def test_every_integer_comes_back(count, channels):
  symbols, _ = random_symbols(count, channels)
  data = container.write(symbols)
  got = container.read(data)
  assert got[:5] == symbols[:5]
  np.testing.assert_array_equal(got.axes, symbols.axes)
  np.testing.assert_array_equal(sorted_rows(got), sorted_rows(symbols))
  assert container.write(got) == data
  assert container.write(in_order(symbols, np.arange(count)[::-1])) == data
  about = container.describe(data)
  assert about['num_gaussians'] == count and about['version'] == 2
  assert (about['num_clusters'], about['counts'], about['order']) == (0, [], 'sorted')
  assert about['energy_classes'] == np.bincount(symbols.energy_class).tolist()
  assert sum(about['sections'].values()) == len(data)


def test_what_does_not_fit_is_named():
  symbols, _ = random_symbols()
  with pytest.raises(container.ContainerError, match=r'energy_class: wanted 0\.\.31'):
    container.write(symbols._replace(energy_class=symbols.energy_class + 1))
  with pytest.raises(container.ContainerError, match='rotation: wanted values'):
    container.write(symbols._replace(rotation=symbols.rotation + 5000))
  with pytest.raises(container.ContainerError, match='boxes: wanted those'):
    container.write(symbols._replace(low=symbols.low + 1))
  with pytest.raises(container.ContainerError, match=r'step_index: wanted 0\.\.1023'):
    container.write(symbols._replace(step_index=1024))
  with pytest.raises(ValueError, match='cell: wanted 0'):
    adaptive.dequantize(symbols._replace(cell=symbols.cell + 9999))
  with pytest.raises(ValueError, match='color axes'):
    adaptive.dequantize(symbols._replace(axes=np.ones((3, 3), np.int8)))


def test_damage_is_noticed():
  data = container.write(random_symbols(60)[0])
  for place in range(len(data)):
    with pytest.raises(container.ContainerError):
      container.read(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


# --- golden files ---


@pytest.mark.parametrize('name', make_golden.ADAPTIVE)
def test_golden_files_are_written_and_read_as_ever(name):
  symbols = make_golden.ADAPTIVE[name]()
  assert container.write(symbols) == make_golden.golden(name)
  read = container.read(make_golden.golden(name))
  np.testing.assert_array_equal(sorted_rows(read), sorted_rows(symbols))
  assert read[:5] == symbols[:5]
  np.testing.assert_array_equal(read.axes, symbols.axes)


PHOTOGRAPHS = [name for name in make_golden.PHOTOGRAPHS if name.startswith('v2')]


@pytest.mark.parametrize('name', [*make_golden.ADAPTIVE, *PHOTOGRAPHS])
def test_a_decoder_written_from_the_document_reads_golden_files(name):
  want, image = (
    container.read(make_golden.golden(name)),
    format_decoder.decode_file(make_golden.golden(name)),
  )
  assert (
    tuple(image[key] for key in ('height', 'width', 'channels', 'method', 'step_index'))
    == (want[:5])
  )
  assert image['axes'] == want.axes.ravel().tolist()
  for key in ('energy_class', 'rotation', 'cell'):
    np.testing.assert_array_equal(image[key], getattr(want, key))
  for key in ('log_scale', 'color'):
    np.testing.assert_array_equal(np.transpose(image[key]), getattr(want, key))
  low, size = (np.array(part) for part in zip(*image['boxes'], strict=True))
  np.testing.assert_array_equal(low, want.low)
  np.testing.assert_array_equal(size, want.size)
  mean, rotation, scale, color = image['gaussians']
  ours = adaptive.dequantize(want)
  np.testing.assert_allclose(ours.mean_xy, mean, rtol=1e-6, atol=1e-5)
  np.testing.assert_allclose(ours.rotation, rotation, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(np.exp(ours.log_scale), scale, rtol=1e-5)
  np.testing.assert_allclose(ours.color, color, rtol=1e-5, atol=1e-6)
