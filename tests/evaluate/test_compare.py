"""The table and the picture of one file, on a file of fixed integers."""

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
def beside(original, data):
  return compare.others(original, data, ('JPEG', 'WebP'))


@pytest.fixture(scope='module')
def original(decoded):
  """What was decoded, with an error of 3 at every pixel, in blocks of random sign: 38.59 dB."""
  sign = np.random.default_rng(0).choice([-3, 3], (HEIGHT // 4, WIDTH // 4, 1))
  sign = np.kron(sign, np.ones((4, 4, 1), int))
  error = np.where((decoded < 3) | (decoded > 252), np.where(decoded < 128, 3, -3), sign)
  return (decoded + error).astype(np.uint8)


def columns(table):
  """Row name -> column name -> text."""
  header, *lines = table.splitlines()
  names = [f'{a} {b}'.strip() if b in ('dB', 's') else a for a, b in _pairs(header.split())]
  return {line.split()[0]: dict(zip(names, line.split()[1:], strict=True)) for line in lines}


def _pairs(words):
  return [
    (word, following)
    for word, following in zip(words, [*words[1:], ''], strict=True)
    if word not in ('dB', 's')
  ]


def test_table_holds_the_measures_of_the_file(data, original, decoded):
  row = columns(compare.table(original, data, decoded, {}, encode_seconds=12.3))['cgvq']
  assert int(row['bytes']) == len(data)
  assert float(row['bpp']) == pytest.approx(8 * len(data) / (HEIGHT * WIDTH), abs=5e-5)
  assert float(row['PSNR dB']) == pytest.approx(20 * np.log10(255 / 3), abs=5e-3)
  assert float(row['MS-SSIM']) == pytest.approx(similarity.ms_ssim(original, decoded), abs=5e-5)
  assert row['encode s'] == '12'
  assert 0 < float(row['decode s']) < 60


def test_unmeasured_seconds_are_a_dash(data, original, decoded):
  assert columns(compare.table(original, data, decoded, {}))['cgvq']['encode s'] == '-'


@pytest.mark.parametrize('codec', ['JPEG', 'WebP'])
def test_others_are_the_best_that_are_no_larger(data, original, decoded, beside, codec):
  row = columns(compare.table(original, data, decoded, beside))[codec]
  file, pixels = baselines.at_bytes(original, codec, len(data))
  assert 0.8 * len(data) < int(row['bytes']) == len(file) <= len(data)
  assert float(row['PSNR dB']) == pytest.approx(metrics.psnr(original, pixels), abs=5e-3)


def test_no_line_for_a_file_that_cannot_be(original):
  assert compare.others(original, b'too few', ('JPEG',)) == {}


def test_seconds_are_the_median_without_the_first(data, monkeypatch):
  took = iter([100.0, 5.0, 1.0, 3.0, 2.0, 4.0])
  clock = {'now': 0.0}
  monkeypatch.setattr(compare.codec, 'decode', lambda data: None)
  monkeypatch.setattr(
    compare.codec, 'render', lambda decoded: clock.update(now=clock['now'] + next(took))
  )
  monkeypatch.setattr(compare.time, 'perf_counter', lambda: clock['now'])
  assert compare.warm_decode_seconds(data) == 3.0


def test_other_shapes_are_refused(data, original, decoded):
  with pytest.raises(ValueError, match='shape'):
    compare.table(original[1:], data, decoded, {})


def test_picture_shows_original_decoded_error_and_gaussians(data, original, decoded, tmp_path):
  path = tmp_path / 'picture.png'
  compare.picture(original, data, decoded, path)
  with Image.open(path) as picture:
    pixels = np.asarray(picture.convert('RGB')).astype(int)
  height, width, _ = pixels.shape
  error = pixels[height // 2 :, : width // 2]
  gaussians = pixels[height // 2 :, width // 2 :]
  # The error is 3 x 4 everywhere: one nearly black gray fills most of its panel.
  assert np.mean(np.all(error == 12, axis=-1)) > 0.5
  assert len(np.unique(gaussians.reshape(-1, 3), axis=0)) > 100  # ellipses of three colours


def test_tiles_say_whose_they_are(data, original, decoded, beside, tmp_path, monkeypatch):
  given = []
  monkeypatch.setattr(compare.pictures, 'worst_tiles', lambda *arguments: given.append(arguments))
  compare.tiles(original, data, decoded, beside, tmp_path / 'a.png')
  ((first, shown, path),) = given
  assert first is original and path == tmp_path / 'a.png'
  names = [f'cgvq, {len(data)} bytes'] + [f'{n}, {len(f)} bytes' for n, (f, _) in beside.items()]
  assert [*shown] == names and next(iter(shown.values())) is decoded
