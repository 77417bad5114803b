"""Steps of each Gaussian's own: they cost what they should, and every integer comes back."""

from __future__ import annotations

import format_decoder
import jax.numpy as jnp
import make_golden
import numpy as np
import pytest

from cgvq_jax.bitstream import adaptive as stream
from cgvq_jax.bitstream import boxes as mean_boxes
from cgvq_jax.bitstream import container, ordering
from cgvq_jax.bitstream.ans import Reader, Stack, Writer
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.quantize import adaptive
from cgvq_jax.rasterize.api import rasterize

HEIGHT, WIDTH = 64, 96
PRECISION = 48


def random_symbols(count=400, channels=3, seed=0, height=HEIGHT, width=WIDTH):
  """Integers of any kind that the format allows, and the means that they were told of."""
  rng = np.random.default_rng(seed)
  energy_class = rng.integers(0, adaptive.NUM_ENERGY_CLASSES, count)
  scale = np.exp(rng.normal([1.2, 0.0], 0.9, (count, 2)))
  octaves = adaptive.OCTAVE * np.log2(np.sort(scale)[:, ::-1])
  log_scale = np.rint(octaves / adaptive.log_scale_steps()[energy_class][:, None]).astype(np.int64)
  mean = rng.uniform([-9, -3], [width + 2, height + 5], (count, 2))
  low, size = stream.boxes_of(mean, height, width)
  scale = adaptive.scales(log_scale, energy_class)
  turns = adaptive.num_turns(scale, energy_class)
  rotation = rng.integers(0, turns)
  spread, shear = adaptive.spreads(scale, rotation, turns)
  cells = adaptive.num_cells(size, spread, energy_class)
  color = np.rint(2.0 ** (energy_class / 2)[:, None] * rng.normal(0, 0.6, (count, channels)))
  symbols = adaptive.AdaptiveSymbols(
    height=height,
    width=width,
    channels=channels,
    method='cgvq_rd',
    step_index=PRECISION,
    axes=adaptive.color_axes(color),
    energy_class=energy_class,
    log_scale=log_scale,
    rotation=rotation,
    low=low,
    size=size,
    cell=adaptive.nearest_cell(mean, low, size, cells, spread, shear),
    color=color.astype(np.int64),
  )
  return symbols, mean


def in_order(symbols, order):
  per_gaussian = ('energy_class', 'log_scale', 'rotation', 'low', 'size', 'cell', 'color')
  return symbols._replace(**{name: getattr(symbols, name)[order] for name in per_gaussian})


def sorted_rows(symbols):
  columns = [
    np.asarray(symbols.energy_class)[:, None],
    symbols.log_scale,
    symbols.rotation[:, None],
  ]
  columns += [symbols.low, symbols.size, symbols.cell, symbols.color]
  rows = np.concatenate(columns, axis=1)
  return rows[np.lexsort(rows.T)]


# --- steps ---


@pytest.mark.parametrize('attribute', ['mean_xy', 'log_scale', 'rotation', 'color'])
def test_rounding_any_number_costs_the_same(attribute):
  """A step s of a number with curvature H costs H s^2 / 12; here that is delta^2 / 12 for each."""
  energy_class, delta = 9, 0.05
  r = 2.0 ** (-energy_class / 2)
  s1, s2, turn = 4.0, 1.5, 0.6
  color = np.array([0.8, -0.5, 0.3])
  color *= np.sqrt(delta**2 * 2**energy_class / (np.pi * s1 * s2) / (color @ color))

  def picture(mean=(48.0, 32.0), scale=(s1, s2), rotation=turn, c=color):
    gaussian = Gaussians(
      mean_xy=jnp.array([mean], jnp.float32),
      log_scale=jnp.log(jnp.array([scale], jnp.float32)),
      rotation=jnp.array([rotation], jnp.float32),
      color=jnp.array([c], jnp.float32),
    )
    return np.asarray(rasterize(gaussian, HEIGHT, WIDTH), np.float64)

  part = 0.5  # of a step: the change is H (s/2)^2
  if attribute == 'mean_xy':
    along = np.array([np.cos(turn), np.sin(turn)]) * np.sqrt(2) * r * s1 * part
    moved = picture(mean=np.array([48.0, 32.0]) + along)
  elif attribute == 'log_scale':
    # At equal energy: colours are told by e.
    wider = s1 * np.exp(np.sqrt(2) * r * part)
    moved = picture(scale=(wider, s2), c=color * np.sqrt(s1 / wider))
  elif attribute == 'rotation':
    moved = picture(rotation=turn + 2 * r / (s1 / s2 - s2 / s1) * part)
  else:
    moved = picture(c=color + np.array([1.0, 0, 0]) * delta / np.sqrt(np.pi * s1 * s2) * part)
  change = np.sum((moved - picture()) ** 2)
  assert change == pytest.approx((delta * part) ** 2, rel=0.06)


def test_cells_are_as_good_as_a_lattice_in_the_gaussians_own_frame():
  symbols, mean = random_symbols(4000, height=512, width=768)
  scale = adaptive.scales(symbols.log_scale, symbols.energy_class)
  turns = adaptive.num_turns(scale, symbols.energy_class)
  spread, _ = adaptive.spreads(scale, symbols.rotation, turns)
  cells = adaptive.num_cells(symbols.size, spread, symbols.energy_class)
  several = (cells.min(axis=1) > 12) & (cells.max(axis=1) < adaptive.MAX_CELLS)
  assert several.sum() > 300
  error = np.asarray(adaptive.dequantize(symbols).mean_xy, np.float64) - mean
  angle = np.pi * symbols.rotation / turns
  along = np.cos(angle) * error[:, 0] + np.sin(angle) * error[:, 1]
  across = np.cos(angle) * error[:, 1] - np.sin(angle) * error[:, 0]
  step = np.sqrt(2) * 2.0 ** (-symbols.energy_class / 2)
  for part, deviation in ((along, scale[:, 0]), (across, scale[:, 1])):
    relative = (part / deviation / step)[several]
    assert np.mean(relative**2) == pytest.approx(1 / 12, rel=0.12)


def test_turns_are_as_fine_as_their_step():
  """pi / M is at most 2 r / (s1/s2 - s2/s1), and M - 1 turns would be too coarse."""
  scale, energy_class = np.array([[4.0, 1.5], [30.0, 1.0], [2.0, 2.0]]), np.array([9, 4, 20])
  turns = adaptive.num_turns(scale, energy_class)
  ratio = scale[:2, 0] / scale[:2, 1]
  step = 2 * 2.0 ** (-energy_class[:2] / 2) / (ratio - 1 / ratio)
  assert np.all(np.pi / turns[:2] <= step) and np.all(step < np.pi / (turns[:2] - 1))
  assert turns[2] == 1


def test_energy_classes_are_octaves_of_energy():
  delta = 0.25
  energy = delta**2 * np.array([0.1, 1, 1.3, 1.5, 2, 1000, 1e30])
  np.testing.assert_array_equal(adaptive.energy_classes(energy, delta), [0, 0, 0, 1, 1, 10, 31])


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_color_axes_are_principal_and_come_back_orthonormal(channels):
  rng = np.random.default_rng(1)
  colors = rng.normal(size=(500, channels)) @ rng.normal(size=(channels, channels))
  axes = adaptive.unit_axes(adaptive.color_axes(colors))
  np.testing.assert_allclose(axes @ axes.T, np.eye(channels), atol=1e-12)
  turned = colors @ axes.T
  moments = turned.T @ turned
  off = moments - np.diag(np.diag(moments))
  assert np.abs(off).max() < 0.02 * np.diag(moments).max()
  assert np.all(np.diff(np.diag(moments)) < 0)


# --- boxes ---


def test_boxes_hold_their_rows_alone():
  rng = np.random.default_rng(2)
  rows = np.concatenate([rng.integers(0, [90, 70], (300, 2)), [[5, 6]] * 3])
  size = np.array([90, 70])
  writer = Writer()
  order, boxes = mean_boxes.put(writer, rows, size)
  assert sorted(order) == list(range(len(rows)))
  assert np.all((boxes.low <= rows[order]) & (rows[order] < boxes.low + boxes.size))
  for low, side in zip(boxes.low[:50], boxes.size[:50], strict=True):
    inside = np.all((rows >= low) & (rows < low + side), axis=1)
    assert inside.sum() == 1 or np.all(side == 1)
  data = Stack(writer).to_bytes()
  reader = Reader(data)
  taken = mean_boxes.take(reader, len(rows), size)
  reader.finish()
  for got, want in zip(taken, boxes, strict=True):
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('beyond', [-1.0, 0.0, 4.9995, 5.0, 5.03, 8191.9, 1e5])
def test_boxes_of_means_near_and_far_are_those_of_the_file(beyond):
  """Two means that are next to each other have boxes that do not reach the outermost edge."""
  symbols, _ = random_symbols(3)
  mean = np.array([[WIDTH + beyond, 3.0], [WIDTH + beyond - 0.07, 3.0], [-beyond, 9.0]])
  low, size = stream.boxes_of(mean, HEIGHT, WIDTH)
  inside = np.clip(mean, -stream.MAX_OVERHANG, [WIDTH + 8192, HEIGHT + 8192]) * adaptive.UNIT
  assert np.all((low <= inside) & (inside <= low + size))
  placed = symbols._replace(low=low, size=size, cell=np.zeros((3, 2), np.int64))
  got = container.read(container.write(placed))
  np.testing.assert_array_equal(sorted_rows(got), sorted_rows(placed))


def test_a_set_of_places_saves_its_orders():
  """Boxes and what is left in them cost less than log2 of the places, by about log2 N!."""
  rng = np.random.default_rng(3)
  count, size = 1000, np.array([1 << 12, 1 << 12])
  rows = rng.integers(0, size, (count, 2))
  writer = Writer()
  _, boxes = mean_boxes.put(writer, rows, size)
  inside = np.sum(np.log2(np.prod(boxes.size, axis=1)))
  orders = np.sum(np.log2(np.arange(1, count + 1)))
  assert Stack(writer).num_bits + inside < 24 * count - 0.985 * orders


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
  assert sum(about['sections'].values()) == len(data)


def test_decoded_numbers_are_those_of_the_integers():
  symbols, _ = random_symbols()
  once = adaptive.dequantize(symbols)
  scale = np.exp(np.asarray(once.log_scale, np.float64))
  octaves = (
    np.log2(scale) * adaptive.OCTAVE / adaptive.log_scale_steps()[symbols.energy_class][:, None]
  )
  np.testing.assert_allclose(octaves, symbols.log_scale, atol=0.02)
  energy = np.sum(np.asarray(once.color) ** 2, axis=1) * np.pi * np.prod(scale, axis=1)
  told = np.sum((adaptive.step_of(PRECISION) * symbols.color) ** 2, axis=1)
  np.testing.assert_allclose(energy, told, rtol=1e-4)


def test_what_does_not_fit_is_named():
  symbols, _ = random_symbols()
  with pytest.raises(container.ContainerError, match='order: wanted sorted'):
    container.write(symbols, ordering.put_plain)
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


def golden(name: str) -> bytes:
  return (make_golden.FOLDER / f'{name}.cgvq').read_bytes()


@pytest.mark.parametrize('name', make_golden.GRADED)
def test_golden_files_are_written_and_read_as_ever(name):
  symbols = make_golden.GRADED[name]()
  assert container.write(symbols) == golden(name)
  read = container.read(golden(name))
  np.testing.assert_array_equal(sorted_rows(read), sorted_rows(symbols))
  assert read[:5] == symbols[:5]
  np.testing.assert_array_equal(read.axes, symbols.axes)


PHOTOGRAPHS = [name for name in make_golden.PHOTOGRAPHS if name.startswith('v2')]


@pytest.mark.parametrize('name', [*make_golden.GRADED, *PHOTOGRAPHS])
def test_a_decoder_written_from_the_document_reads_golden_files(name):
  want, image = container.read(golden(name)), format_decoder.decode_file(golden(name))
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
