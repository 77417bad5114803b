"""Tables against hand-computed numbers, and pictures by their pixels."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from cgvq_jax.evaluate import report


def _row(image, method, gaussians, bpp, psnr, **changes):
  row = {
    'image': image,
    'method': method,
    'setting': str(gaussians),
    'num_gaussians': gaussians,
    'num_clusters': 1 if method == 'gi' else 16,
    'fit_steps': 500,
    'finetune_steps': 200,
    'bytes': int(1000 * bpp),
    'sections': {'positions': int(600 * bpp), 'color': int(400 * bpp)},
    'bpp': bpp,
    'psnr': psnr,
    'ssim': 0.9,
    'ms_ssim': 0.97,
    'encode_seconds': 1.5,
    'decode_seconds': 0.25,
    'device': 'a machine',
  }
  return row | changes


def _classic(image, quality, bpp, psnr, method='JPEG'):
  keys = ('image', 'method', 'quality', 'bpp', 'psnr')
  row = dict(zip(keys, (image, method, quality, bpp, psnr), strict=True))
  seconds = {'encode_seconds': 0.5, 'decode_seconds': 0.125}
  return row | seconds | {'bytes': int(1000 * bpp), 'ssim': 0.8, 'ms_ssim': 0.9}


# Two images a point. The means of gi are (0.5, 30) and (2, 34); cgvq has half the rate and
# the classic codec twice the rate at the same PSNR.
ROWS = [
  _row(image, method, gaussians, factor * bpp * (1 + sign / 10), psnr + sign)
  for image, sign in (('one', -1), ('two', 1))
  for method, factor in (('gi', 1), ('cgvq', 0.5))
  for gaussians, bpp, psnr in ((1000, 0.5, 30), (4000, 2, 34))
]
CLASSIC = [
  _classic(image, quality, bpp, psnr + sign)
  for image, sign in (('one', -2), ('two', 2))
  for quality, bpp, psnr in ((10, 1, 30), (90, 4, 34))
]


def _tables(text):
  """Every table of a report by its heading, as lists of rows of cells."""
  tables, heading = {}, None
  for line in text.splitlines():
    if line.startswith('#'):
      heading = line.lstrip('# ')
      tables[heading] = []
    elif line.startswith('| ') and not line.startswith('| ---'):
      tables[heading].append([cell.strip() for cell in line.strip('|').split('|')])
  return tables


def test_means_are_over_images():
  table = _tables(report.markdown(ROWS, CLASSIC))['Means over images']
  cells = dict(zip(table[0], table[1], strict=True))
  assert cells['method'] == 'gi' and cells['K'] == '1'
  assert cells['setting'] == cells['N'] == '1000'
  assert cells['steps'] == '500+200' and cells['images'] == '2'
  assert cells['bpp'] == '0.5000' and cells['PSNR'] == '30.00' and cells['bytes'] == '500'
  assert cells['SSIM'] == '0.9000' and cells['MS-SSIM'] == '0.9700'
  assert cells['encode s'] == '1.5' and cells['decode s'] == '0.25'
  assert [row[0] for row in table[1:]] == ['gi', 'gi', 'cgvq', 'cgvq']


def test_jpeg_rate_at_the_same_psnr():
  rows = [_row(image, 'gi', 1000, 0.5, psnr) for image, psnr in (('one', 31), ('two', 33))]

  def cell(changed, classic=CLASSIC):
    return _tables(report.markdown(changed, classic))['Means over images'][1][-1]

  assert cell(rows) == '2.0000'  # half way in dB between 1 and 4 bpp, on a log scale
  assert cell([_row('one', 'gi', 1000, 0.5, 20)]) == 'below the range of JPEG'
  assert cell([_row('one', 'gi', 1000, 0.5, 50)]) == 'above the range of JPEG'
  assert cell([_row('three', 'gi', 1000, 0.5, 30)]) == 'no JPEG of these images'
  assert 'wanted 2 points' in cell(rows, [row for row in CLASSIC if row['quality'] == 10])


def test_sections_are_mean_bytes():
  rows = [
    _row('one', 'gi', 10, 1.0, 30, bytes=110, sections={'positions': 60, 'color': 50}),
    _row('two', 'gi', 10, 1.0, 30, bytes=130, sections={'positions': 80, 'codebooks': 50}),
  ]
  table = _tables(report.markdown(rows, []))['Mean bytes by section of the file']
  assert table[0] == ['method', 'setting', 'K', 'positions', 'color', 'codebooks', 'whole file']
  assert table[1] == ['gi', '10', '1', '70', '25', '25', '120']


def _bd_table(rows, classic, heading='BD-rate: change of rate at equal PSNR', **judged):
  text = report.markdown(rows, classic, report.Judged('gi', **judged))
  (table,) = (table for name, table in _tables(text).items() if name.startswith(heading))
  return table


def test_bd_rates():
  table = _bd_table(ROWS, CLASSIC)
  assert table[0] == ['curve', 'images', 'against gi', 'against JPEG']
  # By hand: each image's ln rates are linear in PSNR, 4 times in 4 dB; only 1 to 1.5 bpp of JPEG
  # count. `one`: 0.9 x 0.5 against 4^(1/4) bpp at 29 dB; `two`: 1.1 x 0.5 x 4^(1/4) against 1 bpp
  # at 32 dB.
  ratios = 0.45 / 2**0.5, 0.55 * 2**0.5
  own = [100 * (sum(f * ratio for ratio in ratios) / 2 - 1) for f in (1, 0.5)]
  assert table[1] == ['gi', 'all 2', '+0.0 %, +0.0 %', f'-50.0 %, {own[0]:+.1f} %']
  assert table[2] == ['cgvq', 'all 2', '-50.0 %, -50.0 %', f'-75.0 %, {own[1]:+.1f} %']


def test_what_the_codec_is_tuned_on_is_told_apart():
  table = _bd_table(ROWS, CLASSIC, tuned_on=('one', 'elsewhere'))
  assert [row[:2] for row in table[1:]] == [
    [curve, part] for part in ('all 2', '1 tuned on', '1 others') for curve in ('gi', 'cgvq')
  ]
  # Of one image both figures are the same.
  assert table[3][3] == '-68.2 %, -68.2 %' and table[5][3] == '-22.2 %, -22.2 %'
  text = report.markdown(ROWS, CLASSIC, report.Judged(tuned_on=('one',)))
  levels = _tables(text)['Rates at equal PSNR, bpp of the mean curves']
  assert levels[0] == ['curve', 'images', '28 dB', '31 dB', '34 dB', '37 dB']
  cells = {tuple(row[:2]): row[2:] for row in levels[1:]}
  assert len(cells) == 9
  assert cells['gi', 'all 2'] == ['-', f'{0.5 * 2**0.5:.4f}', '2.0000', '-']
  assert cells['JPEG', '1 others'] == ['-', '-', '2.0000', '-']
  everything = report.markdown(ROWS, CLASSIC, report.Judged(tuned_on=('one', 'two')))
  assert 'tuned on' not in everything


def test_bd_rates_at_equal_ms_ssim():
  levels = {'1000': 0.9, '4000': 0.99, '10': 0.9, '90': 0.99}  # 10 and 20 dB of each

  def at(row):
    return row | {'ms_ssim': levels[str(row.get('setting', row.get('quality')))]}

  rows, classic = [at(row) for row in ROWS], [at(row) for row in CLASSIC]
  table = _bd_table(rows, classic, 'BD-rate at equal MS-SSIM')
  assert table[0] == ['curve', 'images', 'against gi', 'against JPEG']
  assert table[1] == ['gi', 'all 2', '+0.0 %, +0.0 %', '-50.0 %, -50.0 %']  # 0.9 and 1.1 of half
  assert table[2] == ['cgvq', 'all 2', '-50.0 %, -50.0 %', '-75.0 %, -75.0 %']
  without = _bd_table(ROWS, CLASSIC, 'BD-rate at equal MS-SSIM')
  assert without[1][3] == 'none: one point is no curve'  # one MS-SSIM for all


def test_bd_rates_of_each_image():
  table = _bd_table(ROWS, CLASSIC, 'BD-rate of each image')
  assert table[0] == ['image', 'curve', 'against gi', 'against JPEG']
  assert [row[:3] for row in table[1:]] == [
    ['one', 'gi', '+0.0 %'],
    ['one', 'cgvq', '-50.0 %'],
    ['two', 'gi', '+0.0 %'],
    ['two', 'cgvq', '-50.0 %'],
  ]
  # The images' own of `test_bd_rates`.
  assert [row[3] for row in table[1:]] == ['-68.2 %', '-84.1 %', '-22.2 %', '-61.1 %']


def test_bd_rate_compares_the_same_images():
  # A third, dear image that JPEG does not have must not enter the comparison with JPEG.
  rows = [*ROWS, _row('three', 'gi', 1000, 9.0, 30), _row('three', 'gi', 4000, 19.0, 34)]
  assert _bd_table(rows, CLASSIC)[1][3].startswith('-50.0 %, ')


def test_bd_rate_says_why_there_is_none():
  single = [row for row in ROWS if row['num_gaussians'] == 1000]
  assert _bd_table(single, CLASSIC)[1][3] == 'none: one point is no curve'
  assert _bd_table(ROWS, [])[0] == ['curve', 'images', 'against gi']
  others = [_classic('three', 10, 1, 30), _classic('three', 90, 4, 34)]
  assert _bd_table(ROWS, others)[1][3] == 'none: no image in common'
  cgvq = [row for row in ROWS if row['method'] == 'cgvq']
  assert _bd_table(cgvq, CLASSIC)[0][2:] == ['against JPEG']
  far = [row | {'bpp': 100 * row['bpp']} for row in CLASSIC]
  assert _bd_table(ROWS, far)[1][3].startswith('none: wanted curves that overlap in quality')


def test_images_without_a_bd_rate_are_left_out_and_counted():
  # All of cgvq's `two` is better than all of gi's; the mean curves have 32.25 to 34 dB in common.
  better = [
    row | {'psnr': row['psnr'] + 4.5} if (row['image'], row['method']) == ('two', 'cgvq') else row
    for row in ROWS
  ]
  mean, own = _bd_table(better, [])[2][2].split(', ')
  assert mean.endswith(' %') and own == '-50.0 % (1 of 2)'
  assert _bd_table(better, [], 'BD-rate of each image')[4][2].startswith('none: wanted curves')


def test_curves_differ_by_clusters_and_steps():
  more = [
    _row('one', 'cgvq', 1000, 0.5, 30, num_clusters=4),
    _row('one', 'cgvq', 1000, 0.5, 30, fit_steps=900),
  ]
  names = [row[0] for row in _bd_table([*ROWS, *more], CLASSIC)[1:]]
  assert names == [
    'gi',
    'cgvq K=16 500+200 steps',
    'cgvq K=4 500+200 steps',
    'cgvq K=16 900+200 steps',
  ]


def test_every_image_and_classic_point_is_listed():
  text = report.markdown([*ROWS, _row('a|b', 'gi', 1000, 0.5, math.inf)], CLASSIC)
  tables = _tables(text)
  assert len(tables['Each image']) == 1 + len(ROWS) + 1
  assert tables['Each image'][2][:3] == ['one', 'gi', '1000'] and 'a\\|b' in text
  classic = tables['Classic codecs, means over images']
  assert classic[1] == ['JPEG', '10', '2', '1.0000', '30.00', '0.8000', '0.9000', '0.5', '0.125']
  assert 'Classic codecs, means over images' not in _tables(report.markdown(ROWS, []))
  assert '3 images, encoded on a machine' in text


@pytest.mark.parametrize('make', [report.markdown, lambda r, c: report.plot(r, c, 'unused.png')])
@pytest.mark.parametrize(
  ('rows', 'classic', 'message'),
  [
    ([], CLASSIC, 'got none'),
    ([*ROWS, ROWS[0]], CLASSIC, "several at .*'gi'"),
    (ROWS, [*CLASSIC, CLASSIC[0]], "several at .*'JPEG'"),
  ],
)
def test_bad_rows(make, rows, classic, message):
  with pytest.raises(ValueError, match=message):
    make(rows, classic)


def _shown(monkeypatch, rows, classic, path, quality='psnr'):
  """The figure behind a plot."""
  figures = []
  monkeypatch.setattr(report, 'save_figure', lambda figure, path: figures.append(figure))
  report.plot(rows, classic, path, quality)
  return figures[0]


def test_plot_draws_every_curve(tmp_path, monkeypatch):
  classic = [*CLASSIC, *(row | {'method': 'WebP'} for row in CLASSIC)]
  partial = _row('one', 'gi', 9000, 3.0, 36)  # lacks an image, so no mean compares with the others
  figure = _shown(monkeypatch, [*ROWS[::-1], partial], classic, tmp_path / 'a.png')
  (axes,) = figure.axes
  lines = {line.get_label(): line for line in axes.lines}
  np.testing.assert_allclose(lines['gi'].get_xydata(), [(0.5, 30), (2, 34)])
  np.testing.assert_allclose(lines['cgvq'].get_xydata(), [(0.25, 30), (1, 34)])
  np.testing.assert_allclose(lines['JPEG'].get_xydata(), [(1, 30), (4, 34)])
  assert {'WebP', 'VTM', 'C3', 'GaussianImage', 'CGVQ'} <= set(lines)
  assert axes.get_xscale() == 'log' and axes.get_xlim()[1] > 4
  (legend,) = figure.legends
  names = [text.get_text() for text in legend.get_texts()]
  accounted = names.index('published, accounted: no file existed')
  published = names.index('published, mean over Kodak')
  assert names.index('gi') < published < names.index('VTM') < accounted
  assert names.index('GaussianImage') > accounted and names.index('CGVQ') > accounted


def test_plot_of_ms_ssim_is_in_decibels_and_has_nothing_published(tmp_path, monkeypatch):
  rows = [row | {'ms_ssim': 0.9 if row['setting'] == '1000' else 0.99} for row in ROWS]
  figure = _shown(monkeypatch, rows, CLASSIC, tmp_path / 'a.png', 'ms_ssim')
  (axes,) = figure.axes
  lines = {line.get_label(): line for line in axes.lines}
  assert set(lines) == {'gi', 'cgvq', 'JPEG'}
  np.testing.assert_allclose(lines['gi'].get_xydata(), [(0.5, 10), (2, 20)])
  assert 'MS-SSIM' in axes.get_ylabel()


def test_plot_without_classic_codecs_or_finite_points(tmp_path, monkeypatch):
  figure = _shown(monkeypatch, [_row('one', 'gi', 10, 20.0, math.inf)], [], tmp_path / 'a.png')
  names = [text.get_text() for text in figure.legends[0].get_texts()]
  assert 'measured on the same images' not in names and 'gi' in names


def test_write_and_write_json(tmp_path):
  folder = tmp_path / 'new' / 'run'
  report.write(folder, ROWS, CLASSIC)
  report.write_json(folder / 'results.json', ROWS)
  names = ['rate_distortion.png', 'rate_ms_ssim.png', 'report.md', 'results.json']
  assert sorted(path.name for path in folder.iterdir()) == names
  assert json.loads((folder / 'results.json').read_text()) == ROWS
  text = (folder / 'report.md').read_text(encoding='utf-8')
  assert text.startswith('# Results') and '(rate_distortion.png)' in text
  with Image.open(folder / 'rate_distortion.png') as image:
    assert image.format == 'PNG' and image.size[0] > 1000
