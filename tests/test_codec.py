"""The whole codec: bytes that another process decodes, and every size, option and misuse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import raster_scenes

import cgvq_jax as cg
from cgvq_jax.bitstream import container
from cgvq_jax.fit.losses import l1, l2
from cgvq_jax.io.images import to_bytes8
from cgvq_jax.methods.registry import codebook_method
from cgvq_jax.metrics import psnr
from cgvq_jax.quantize import vector
from cgvq_jax.rasterize import api

# As in tests/methods/test_codebooks.py, so that what is compiled for one serves the other.
IMAGE = raster_scenes.photograph(48, 48)
small = codebook_method('small', 4, 2)
METHOD = small(3, num_gaussians=60)
SETTINGS = cg.FitSettings(steps=100, finetune_steps=100)


def encode(image=IMAGE, method=METHOD, hooks=None, **settings):
  return cg.encode(image, method, SETTINGS._replace(**settings), hooks)


@pytest.fixture(scope='module')
def encoded():
  """The bytes, and what `on_block` was given: stage's name, state, progress."""
  seen = []
  hooks = cg.Hooks(on_block=lambda stage, *block: seen.append((stage.name, *block)))
  return encode(hooks=hooks), seen


@pytest.fixture(scope='module')
def data(encoded):
  return encoded[0]


@pytest.fixture(scope='module')
def decoded(data):
  return cg.decode(data)


def pixels(decoded, scale=1.0):
  return to_bytes8(cg.render(decoded, scale))


def box_averaged(image, factor):
  height, width, channels = image.shape
  blocks = image.reshape(height // factor, factor, width // factor, factor, channels)
  return blocks.mean(axis=(1, 3))


# --- a file and back ---


def test_what_is_fitted_has_no_hidden_colours():
  class Fitted(Exception):
    pass

  class Watching:
    name = 'watching'

    def check(self, channels):
      assert channels == 4

    def stages(self, target, settings):
      raise Fitted(np.asarray(target))

  image = np.random.default_rng(0).random((8, 9, 4), np.float32)
  image[..., 3] = image[..., 3] > 0.5
  seen = image[..., 3] == 1
  image[seen, :3] = 0.25, 0.5, 0.75
  with pytest.raises(Fitted) as raised:
    cg.encode(image, Watching(), SETTINGS)
  (target,) = raised.value.args
  np.testing.assert_array_equal(target[seen], image[seen])
  np.testing.assert_array_equal(target[..., 3], image[..., 3])
  np.testing.assert_allclose(target[..., :3], np.full((8, 9, 3), (0.25, 0.5, 0.75)), atol=1e-6)


def test_decoded_image_is_the_one_that_the_encoder_measured(encoded, decoded):
  _, seen = encoded
  best = float(seen[-1][1].memory.psnr)
  image = np.asarray(api.rasterize(decoded.gaussians, decoded.height, decoded.width))
  # Two programs: of 6,912 samples, one or two on the edge between two of 256 levels may fall apart.
  assert psnr(to_bytes8(IMAGE), to_bytes8(image)) == pytest.approx(best, abs=1e-3)
  assert best > 27
  assert psnr(to_bytes8(IMAGE), pixels(decoded)) == pytest.approx(best, abs=0.02)


def test_decoded_has_sizes_gaussians_and_labels(data, decoded):
  assert (decoded.height, decoded.width) == (48, 48)
  assert decoded.gaussians.num_gaussians == 60 and decoded.gaussians.num_channels == 3
  counts = container.describe(data)['counts']
  np.testing.assert_array_equal(decoded.labels, np.repeat(np.arange(4), counts))
  assert sum(counts) == 60


def test_sections_add_up_to_the_file(data):
  sections = container.sections(data)
  assert sum(sections.values()) == len(data)
  assert min(sections.values()) > 0
  assert container.describe(data)['bpp'] == 8 * len(data) / 48**2


def test_the_measures_of_a_file_are_those_of_its_pixels(data, decoded):
  measures = cg.measure(IMAGE, data)
  assert measures.bpp == 8 * len(data) / 48**2
  assert measures.psnr == psnr(to_bytes8(IMAGE), pixels(decoded))
  with pytest.raises(ValueError, match=r'decoded: wanted the shape \(47, 48, 3\), got'):
    cg.measure(IMAGE[1:], data)


def test_a_new_process_decodes_the_same_image(data, decoded, tmp_path):
  (tmp_path / 'photograph.cgvq').write_bytes(data)
  program = (
    'import numpy, cgvq_jax as cg\n'
    'from cgvq_jax.io.images import to_bytes8\n'
    'decoded = cg.decode(open("photograph.cgvq", "rb").read())\n'
    'numpy.save("pixels.npy", to_bytes8(cg.render(decoded)))\n'
  )
  root = str(Path(cg.__file__).parents[1])
  environment = os.environ | {'PYTHONPATH': root}
  subprocess.run([sys.executable, '-c', program], cwd=tmp_path, env=environment, check=True)
  np.testing.assert_array_equal(np.load(tmp_path / 'pixels.npy'), pixels(decoded))


def test_seed_decides_the_bytes(data):
  assert encode(seed=0) == data
  assert encode(seed=1) != data


def test_blocks_are_shown_in_order(encoded):
  seen = [(stage, progress.step) for stage, _, progress in encoded[1]]
  assert seen == [('fit', 50), ('fit', 100), ('finetune', 50), ('finetune', 100)]


@pytest.mark.parametrize('stopped_after', [0, 1, 2, 3])
def test_a_stopped_encode_goes_on_to_the_same_bytes(encoded, stopped_after):
  data, seen = encoded
  saved = {stage: state for stage, state, _ in seen[: stopped_after + 1]}
  later, started = [], []

  def resume(stage, start):
    started.append(stage.name)
    return saved.get(stage.name, start)

  def on_block(stage, state, progress):
    later.append((stage.name, progress.step))

  again = encode(hooks=cg.Hooks(resume, on_block))
  assert again == data and started == ['fit', 'finetune']
  assert later == [(stage, p.step) for stage, _, p in seen[stopped_after + 1 :]]


# --- any image, any number ---


@pytest.mark.parametrize(
  ('shape', 'num_gaussians', 'num_clusters'),
  [((5, 3, 1), 1, 16), pytest.param((1, 1, 4), 2, 2, marks=pytest.mark.slow)],
)
def test_small_images_of_other_channels(shape, num_gaussians, num_clusters):
  image = np.full(shape, 0.25, np.float32)
  method = small(shape[2], num_gaussians=num_gaussians, num_clusters=num_clusters)
  data = encode(image, method)
  decoded = cg.decode(data)
  assert decoded.gaussians.color.shape == (num_gaussians, shape[2])
  assert container.describe(data)['num_clusters'] == num_gaussians  # never more clusters
  assert pixels(decoded).shape == shape
  assert psnr(to_bytes8(image), pixels(decoded)) > 25


@pytest.mark.slow
def test_more_clusters_are_better_at_equal_codebooks(data):
  def quality(data):
    return psnr(to_bytes8(IMAGE), pixels(cg.decode(data)))

  one, sixteen = (encode(method=METHOD._replace(num_clusters=k)) for k in (1, 16))
  assert quality(one) < quality(data) < quality(sixteen)
  assert container.describe(sixteen)['num_clusters'] == 16


# --- other sizes ---


def test_full_size_is_the_clamped_image(decoded):
  image = np.asarray(api.rasterize(decoded.gaussians, 48, 48))
  np.testing.assert_allclose(cg.render(decoded), np.clip(image, 0, 1), atol=2e-5)


def fine_detail():
  """Small Gaussians: at half the size, most of them are no wider than a pixel."""
  gaussians, height, width = raster_scenes.random(scale=(1.0, 2.5))
  gaussians = gaussians.replace(color=0.6 * jnp.abs(gaussians.color))  # nothing is clamped
  return cg.Decoded(gaussians, height, width, np.zeros(raster_scenes.NUM_GAUSSIANS, np.int32))


def test_half_size_is_the_full_size_seen_through_larger_pixels():
  detail = fine_detail()
  half = cg.render(detail, 0.5)
  assert half.shape == (20, 28, 3)
  want = box_averaged(cg.render(detail), 2)
  assert psnr(to_bytes8(want), to_bytes8(half)) > 50


def test_double_size_averages_to_the_full_size():
  detail = fine_detail()
  double = cg.render(detail, 2.0)
  assert double.shape == (80, 112, 3)
  assert psnr(pixels(detail), to_bytes8(box_averaged(double, 2))) > 45


@pytest.mark.parametrize('scale', [1 / 2, 1 / 3])
def test_smaller_gaussians_keep_their_integral_and_gain_the_pixels_variance(scale):
  deviation = 3.0
  gaussians = raster_scenes.make([[24.0, 24.0]], [[deviation, deviation]], [0.0], [[0.5]]).gaussians
  full, small = (
    cg.render(cg.Decoded(gaussians, 48, 48, np.zeros(1, np.int32)), s)[..., 0] for s in (1, scale)
  )

  def integral_and_variance(image):
    x = np.arange(image.shape[1]) + 0.5
    across = image.sum(axis=0, dtype=np.float64)
    return across.sum(), np.sum(across * (x - image.shape[1] / 2) ** 2) / across.sum()

  (integral, variance), (less, narrower) = map(integral_and_variance, (full, small))
  assert less / scale**2 == pytest.approx(integral, rel=5e-3)
  added = (1 - scale**2) / 12
  wanted = variance * (scale**2 + added / deviation**2)  # both lack the same beyond the cutoff
  assert narrower == pytest.approx(wanted, rel=0.02)
  assert variance * scale**2 < 0.98 * wanted


@pytest.mark.parametrize('scale', [0.001, 400.0, 1e5, 1e308])
def test_scales_of_impossible_sizes(decoded, scale):
  with pytest.raises(ValueError, match=r'scale: wanted sides of 1 to 65535 px .* x 48 x 48 px'):
    cg.render(decoded, scale)


@pytest.mark.parametrize('scale', [0.0, -1.0, float('nan'), float('inf'), '2', None, True])
def test_impossible_scales(decoded, scale):
  with pytest.raises(ValueError, match='scale: wanted a finite number above 0, got'):
    cg.render(decoded, scale)


# --- one's own pieces ---


@pytest.mark.slow  # the README's example does the same, and its test runs it
def test_own_initializer_loss_and_quantizer():
  calls = []

  def initializer(key, image, num_gaussians):
    calls.append(('initializer', image.shape, num_gaussians))
    start = cg.initialize.random(key, image, num_gaussians)
    return start.replace(log_scale=start.log_scale + 1.0)

  def loss(image, target):
    calls.append(('loss',))
    return 0.5 * l1(image, target) + 0.5 * l2(image, target)

  four_colors = vector.residual(stages=1, entries=4, num_columns=3)
  method = METHOD._replace(name='mine', color=four_colors, num_clusters=2)
  data = encode(method=method, initializer=initializer, loss=loss)
  assert calls[0] == ('initializer', (48, 48, 3), 60)
  assert calls.count(('loss',)) >= 2  # in the fit and in the fine-tuning
  assert container.describe(data)['method'] == 'mine'
  decoded = cg.decode(data)
  for label in range(2):
    colors = np.asarray(decoded.gaussians.color)[decoded.labels == label]
    assert 1 < len(np.unique(colors, axis=0)) <= 4
  assert psnr(to_bytes8(IMAGE), pixels(decoded)) > 18


# --- damage ---


def test_every_damaged_byte_is_noticed(data):
  for at in np.linspace(0, len(data) - 1, 64).astype(int):
    damaged = bytearray(data)
    damaged[at] ^= 1 << at % 8
    with pytest.raises(cg.ContainerError):
      cg.decode(bytes(damaged))


@pytest.mark.parametrize('length', [0, 3, 4, 9, 100, -1])
def test_every_missing_byte_is_noticed(data, length):
  with pytest.raises(cg.ContainerError):
    cg.decode(data[:length])


def test_bytes_too_many_are_noticed(data):
  with pytest.raises(cg.ContainerError):
    cg.decode(data + b'\0')


def rewritten(data, attribute, **changes):
  """A file with a right checksum around something that no encoder writes."""
  symbols = container.read(data)
  stream = getattr(symbols, attribute)._replace(**changes)
  return container.write(symbols._replace(**{attribute: stream}))


def with_table(data, attribute, name, change):
  tables = dict(getattr(container.read(data), attribute).tables)
  tables[name] = change(tables[name])
  return rewritten(data, attribute, tables=tables)


def without_table(data, attribute, name):
  tables = getattr(container.read(data), attribute).tables
  return rewritten(data, attribute, tables={n: t for n, t in tables.items() if n != name})


INFINITY, NAN = np.uint16(0x7C00), np.uint16(0x7E00)


@pytest.mark.parametrize(
  ('rewrite', 'message'),
  [
    (
      lambda data: rewritten(data, 'color', quantizer='unknown'),
      "color quantizer: wanted one of .*, got 'unknown'",
    ),
    (
      lambda data: without_table(data, 'rotation_scale', 'step'),
      'rotation_scale: uniform: wanted tables',
    ),
    (
      lambda data: with_table(data, 'rotation_scale', 'offset', lambda t: 0 * t + NAN),
      'wanted finite values',
    ),
    (
      lambda data: with_table(data, 'color', 'step', lambda t: 0 * t + INFINITY),
      'color: wanted finite values',
    ),
  ],
)
@pytest.mark.filterwarnings('ignore:invalid value')
def test_sound_files_of_nonsense_are_noticed(data, rewrite, message):
  with pytest.raises(cg.ContainerError, match=message):
    cg.decode(rewrite(data))


def cut(data, attribute, columns):
  """A file of whose attribute the last columns are left out."""
  stream = getattr(container.read(data), attribute)
  changes = {'tables': {n: t[..., :columns] for n, t in stream.tables.items()}}
  if attribute != 'color':  # whose symbols choose rows
    changes |= {'symbols': stream.symbols[:, :columns], 'alphabets': stream.alphabets[:columns]}
  return rewritten(data, attribute, **changes)


def beyond_the_codebook(data):
  stream = container.read(data).color
  return rewritten(data, 'color', alphabets=(9, 9), symbols=0 * stream.symbols + 8)


@pytest.mark.parametrize(
  ('rewrite', 'message'),
  [
    (lambda data: cut(data, 'color', 1), 'color: wanted 3 columns, got 1'),
    (lambda data: cut(data, 'color', 2), 'color: wanted 3 columns, got 2'),
    (lambda data: cut(data, 'rotation_scale', 2), 'rotation_scale: wanted 3 columns, got 2'),
    (lambda data: cut(data, 'position', 1), 'position: wanted 2 columns, got 1'),
    (beyond_the_codebook, 'color: residual: table entries: wanted'),
  ],
)
def test_sound_files_of_wrong_shapes_are_noticed(data, rewrite, message):
  with pytest.raises(cg.ContainerError, match=message):
    cg.decode(rewrite(data))


def test_a_rendering_is_in_0_to_1():
  color = jnp.array([[2.0, -2.0, 0.5]])
  gaussians = cg.Gaussians(jnp.array([[8.0, 8.0]]), jnp.ones((1, 2)), jnp.zeros(1), color)
  image = cg.render(cg.Decoded(gaussians, 16, 16, np.zeros(1, np.int32)))
  assert image[..., 0].max() == 1 and image[..., 1].max() == image[..., 1].min() == 0
  assert 0.4 < image[..., 2].max() < 0.5


@pytest.mark.parametrize('log_scale', [-60, 60])
def test_extreme_scales_render_finite_pixels(data, log_scale):
  def with_scales(offset):
    return np.tile(np.float16([0, log_scale, log_scale]), (len(offset), 1)).view(np.uint16)

  decoded = cg.decode(with_table(data, 'rotation_scale', 'offset', with_scales))
  for scale in (1.0, 0.5, 2.0):
    assert np.all(np.isfinite(cg.render(decoded, scale)))


# --- misuse ---


def never(key, image, num_gaussians):
  raise AssertionError('the fit has begun')


@pytest.mark.parametrize(('image', 'channels'), [(IMAGE[..., :1], 3), (IMAGE, 1)])
def test_a_method_of_other_channels_is_refused_before_the_fit(image, channels):
  with pytest.raises(ValueError, match="method 'small': wanted color quantized in"):
    encode(image, small(channels, num_gaussians=60), initializer=never)


def test_a_quantizer_in_the_wrong_place_is_refused_before_the_fit():
  with pytest.raises(ValueError, match="method 'small': wanted position quantized in 2"):
    encode(method=METHOD._replace(position=METHOD.color), initializer=never)
  with pytest.raises(ValueError, match='wanted rotation_scale quantized in 3'):
    encode(method=METHOD._replace(rotation_scale=METHOD.position), initializer=never)


def test_an_initializer_of_another_number_is_refused():
  def one_more(key, image, num_gaussians):
    return cg.initialize.random(key, image, num_gaussians + 1)

  with pytest.raises(ValueError, match='initializer: wanted 60 Gaussians, got 61'):
    encode(initializer=one_more)


# tests/test_inputs.py has all the ways.
@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    ({'image': to_bytes8(IMAGE)}, 'image: wanted floating-point values in 0..1, got uint8'),
    ({'image': IMAGE.tolist()}, 'image: wanted an array'),
    ({'method': 'cgvq_rd'}, 'method: wanted a method'),
    ({'hooks': print}, 'hooks: wanted cg.Hooks'),
    ({'settings': {'steps': 100}}, 'settings: wanted cg.FitSettings'),
  ],
)
def test_impossible_arguments_are_refused_before_the_fit(wrong, message):
  arguments = {'image': IMAGE, 'method': METHOD, 'settings': SETTINGS._replace(initializer=never)}
  with pytest.raises((TypeError, ValueError), match=message):
    cg.encode(**arguments | wrong)
  image = wrong.get('image')
  if image is not None:
    with pytest.raises((TypeError, ValueError), match=message):
      cg.measure(image, b'')


def test_any_buffer_is_decoded_but_not_a_path(data, decoded, tmp_path):
  for buffer in (bytearray(data), memoryview(data)):
    np.testing.assert_array_equal(cg.decode(buffer).labels, decoded.labels)
  with pytest.raises(TypeError, match=r'data: wanted the bytes of a file, .*read_bytes\(\)'):
    cg.decode(str(tmp_path))
  with pytest.raises(TypeError, match=r'decoded: wanted what cg.decode\(data\) returns, got bytes'):
    cg.render(data)
  for renderer in ('opengl', 3, [jnp]):
    with pytest.raises(ValueError, match=r'renderer: wanted one of numpy, jax.*, got'):
      cg.render(decoded, renderer=renderer)


@pytest.mark.parametrize(
  ('option', 'message'),
  [
    ({'num_gaussians': 0}, 'num_gaussians: wanted 1 to 4194304, got 0'),
    ({'num_gaussians': 2**22 + 1}, 'num_gaussians: wanted 1 to 4194304, got 4194305'),
    ({'num_gaussians': 99, 'num_clusters': 65}, 'num_clusters: wanted 1 to 64, got 65'),
    ({'num_clusters': -1}, 'num_clusters: wanted 1 to 64, got -1'),
    ({'num_clusters': 0}, 'num_clusters: wanted 1 to 64, got 0'),
    ({'order': 'random'}, "order: wanted one of sorted, bits_back, none, got 'random'"),
  ],
)
def test_impossible_options(option, message):
  with pytest.raises(ValueError, match=message):
    encode(method=METHOD._replace(**option), initializer=never)


@pytest.mark.parametrize(
  ('setting', 'message'),
  [
    ({'steps': 0}, '^steps: wanted 1 or more, got 0'),
    ({'finetune_steps': 0}, 'finetune_steps: wanted 1 or more, got 0'),
    ({'seed': -1}, 'seed: wanted 0 to 4294967295, got -1'),
    ({'steps': 2.5}, 'steps: wanted a whole number, got 2.5'),
    ({'loss': 'l3'}, "loss: wanted one of clamped_l2, .*, got 'l3'"),
  ],
)
def test_impossible_settings(setting, message):
  with pytest.raises(ValueError, match=message):
    encode(**setting)
