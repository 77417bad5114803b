"""The table and the pictures of one file, on a file of fixed integers."""

from __future__ import annotations

import make_golden
import numpy as np
import pytest
from PIL import Image

from cgvq_jax import codec, metrics
from cgvq_jax.bitstream import container
from cgvq_jax.evaluate import baselines, compare, similarity
from cgvq_jax.io.images import to_bytes8

HEIGHT, WIDTH = 192, 200


@pytest.fixture(scope='module')
def data():
  symbols = make_golden.clustered()
  # Colours about 0.03, of which some fifteen overlap.
  ends = {
    'low': np.full((4, 2, 3), -0.04, np.float16),
    'step': np.full((4, 3), 4e-4, np.float16),
  }
  tables = symbols.color.tables | {name: table.view(np.uint16) for name, table in ends.items()}
  color = symbols.color._replace(quantizer='residual', tables=tables)
  return container.write(symbols._replace(height=HEIGHT, width=WIDTH, color=color))


@pytest.fixture(scope='module')
def decoded(data):
  return to_bytes8(codec.render(codec.decode(data)))


@pytest.fixture(scope='module')
def compared(original, data):
  return compare.compare(original, 'photo.cgvq', data, ('JPEG', 'WebP'))


@pytest.fixture(scope='module')
def original(decoded):
  """What was decoded, with an error of 3 at every pixel, in blocks of random sign: 38.59 dB."""
  sign = np.random.default_rng(0).choice([-3, 3], (HEIGHT // 4, WIDTH // 4, 1))
  sign = np.kron(sign, np.ones((4, 4, 1), int))
  error = np.where((decoded < 3) | (decoded > 252), np.where(decoded < 128, 3, -3), sign)
  return (decoded + error).astype(np.uint8)


def columns(table):
  """Row name -> column name -> text."""
  header, *lines = table.replace('PSNR dB', 'PSNR').replace('code s', 'code').splitlines()
  return {
    line.split()[0]: dict(zip(header.split(), line.split()[1:], strict=True)) for line in lines
  }


def test_table_holds_the_measures_of_the_file(data, original, decoded, compared):
  row = columns(compare.table(original, [compared], encode_seconds=12.3))['photo.cgvq']
  assert int(row['bytes']) == len(data)
  assert float(row['bpp']) == pytest.approx(8 * len(data) / (HEIGHT * WIDTH), abs=5e-5)
  assert float(row['PSNR']) == pytest.approx(20 * np.log10(255 / 3), abs=5e-3)
  assert float(row['MS-SSIM']) == pytest.approx(similarity.ms_ssim(original, decoded), abs=5e-5)
  assert row['encode'] == '12'
  assert 0 < float(row['decode']) < 60


def test_several_files_are_one_table(original, compared):
  second = compared._replace(name='a longer name.cgvq', others={'AVIF': 'cannot'})
  lines = compare.table(original, [compared, second]).splitlines()
  names = [line[:18].rstrip() for line in lines]
  assert names == ['', 'photo.cgvq', '  JPEG', '  WebP', 'a longer name.cgvq', '  AVIF']
  assert lines[-1].endswith(' cannot')
  # Unmeasured seconds are a dash, and all cells end where their titles do.
  assert lines[1].split()[-2] == lines[2].split()[-2] == '-'
  assert len({len(line) for line in lines[:-1]}) == 1


@pytest.mark.parametrize('codec', ['JPEG', 'WebP'])
def test_baselines_are_the_best_files_that_are_no_larger(data, original, compared, codec):
  row = columns(compare.table(original, [compared]))[codec]
  file, pixels = baselines.at_bytes(original, codec, len(data))
  assert 0.8 * len(data) < int(row['bytes']) == len(file) <= len(data)
  assert float(row['PSNR']) == pytest.approx(metrics.psnr(original, pixels), abs=5e-3)


def test_a_codec_without_a_file_says_why(original, data, monkeypatch):
  monkeypatch.setattr(compare, 'check', lambda *arguments: None)
  translucent = np.concatenate([original, original[..., :1]], axis=-1)
  others = compare.compare(translucent, '', data, ('JPEG', 'WebP')).others
  assert [*others] == ['JPEG', 'WebP'] and others['JPEG'] == 'cannot store transparency'
  monkeypatch.setattr(compare.baselines, 'at_bytes', lambda *arguments: None)
  others = compare.compare(original, '', data, ('JPEG',)).others
  assert others == {'JPEG': f'no file of at most {len(data)} bytes'}


def test_seconds_are_the_median_without_the_first_call(data):
  # The first call, which may compile, and five more: the clock is read before and after each.
  readings = iter([0, 100, 100, 105, 105, 106, 106, 109, 109, 111, 111, 115])
  assert compare.warm_decode_seconds(data, clock=lambda: next(readings)) == 3
  assert next(readings, None) is None


@pytest.mark.parametrize(
  ('part', 'size'),
  [(np.s_[1:], '200 x 191 px and 3 channels'), (np.s_[..., :1], '200 x 192 px and 1 channel')],
)
def test_other_sizes_and_channels_are_refused(data, original, part, size):
  with pytest.raises(ValueError, match=rf'of {size} as .*, got one of 200 x 192 px and 3 channels'):
    compare.compare(original[part], '', data, ())


def test_picture_shows_original_decoded_error_and_gaussians(original, compared, tmp_path):
  path = tmp_path / 'picture.png'
  compare.save_side_by_side(original, compared, path)
  with Image.open(path) as picture:
    pixels = np.asarray(picture.convert('RGB')).astype(int)
  height, width, _ = pixels.shape
  error = pixels[height // 2 :, : width // 2]
  gaussians = pixels[height // 2 :, width // 2 :]
  # The error is 3 x 4 everywhere: one nearly black gray fills most of its panel.
  assert np.mean(np.all(error == 12, axis=-1)) > 0.5
  assert len(np.unique(gaussians.reshape(-1, 3), axis=0)) > 100  # ellipses of three colours


def test_tiles_are_named_after_their_files(original, compared, tmp_path):
  paths = tmp_path / 'all.png', tmp_path / 'alone.png'
  compare.save_worst_tiles(original, compared, paths[0])
  compare.save_worst_tiles(original, compared._replace(others={}), paths[1])
  with Image.open(paths[0]) as several, Image.open(paths[1]) as alone:
    # A column for each of original, ours, JPEG and WebP, against original and ours.
    assert several.size[0] == 2 * alone.size[0] and several.size[1] == alone.size[1]
