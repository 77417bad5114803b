"""The tables of a report against hand-computed numbers."""

from __future__ import annotations

import math

import pytest
from PIL import Image
from report_rows import BASELINES, ROWS, baseline, row

from cgvq_jax.evaluate import plots, report


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
  table = _tables(report.markdown(ROWS, BASELINES))['Means over images']
  cells = dict(zip(table[0], table[1], strict=True))
  assert cells['method'] == 'gi' and cells['K'] == '1'
  assert cells['setting'] == cells['N'] == '1000'
  assert cells['steps'] == '500+200' and cells['images'] == '2'
  assert cells['bpp'] == '0.5000' and cells['PSNR'] == '30.00' and cells['bytes'] == '500'
  assert cells['SSIM'] == '0.9000' and cells['MS-SSIM'] == '0.9700'
  assert cells['encode s'] == '1.5' and cells['decode s'] == '0.25'
  assert [row[0] for row in table[1:]] == ['gi', 'gi', 'cgvq', 'cgvq']


def test_jpeg_rate_at_the_same_psnr():
  rows = [row(image, 'gi', 1000, 0.5, psnr) for image, psnr in (('one', 31), ('two', 33))]

  def cell(changed, baselines=BASELINES):
    return _tables(report.markdown(changed, baselines))['Means over images'][1][-1]

  assert cell(rows) == '2.0000'  # half way in dB between 1 and 4 bpp, on a log scale
  assert cell([row('one', 'gi', 1000, 0.5, 20)]) == 'below the range of JPEG'
  assert cell([row('one', 'gi', 1000, 0.5, 50)]) == 'above the range of JPEG'
  assert cell([row('three', 'gi', 1000, 0.5, 30)]) == 'no JPEG of these images'
  assert 'wanted 2 points' in cell(rows, [row for row in BASELINES if row['quality'] == 10])


def test_sections_are_mean_bytes():
  rows = [
    row('one', 'gi', 10, 1.0, 30, bytes=110, sections={'positions': 60, 'color': 50}),
    row('two', 'gi', 10, 1.0, 30, bytes=130, sections={'positions': 80, 'codebooks': 50}),
  ]
  table = _tables(report.markdown(rows, []))['Mean bytes by section of the file']
  assert table[0] == ['method', 'setting', 'K', 'positions', 'color', 'codebooks', 'whole file']
  assert table[1] == ['gi', '10', '1', '70', '25', '25', '120']


def _bd_table(rows, baselines, heading='BD-rate: change of rate at equal PSNR', **comparison):
  text = report.markdown(rows, baselines, report.Comparison('gi', **comparison))
  (table,) = (table for name, table in _tables(text).items() if name.startswith(heading))
  return table


def test_bd_rates():
  table = _bd_table(ROWS, BASELINES)
  assert table[0] == ['curve', 'images', 'against gi', 'against JPEG']
  # By hand: each image's ln rates are linear in PSNR, 4 times in 4 dB; only 1 to 1.5 bpp of JPEG
  # count. `one`: 0.9 x 0.5 against 4^(1/4) bpp at 29 dB; `two`: 1.1 x 0.5 x 4^(1/4) against 1 bpp
  # at 32 dB.
  ratios = 0.45 / 2**0.5, 0.55 * 2**0.5
  own = [100 * (sum(f * ratio for ratio in ratios) / 2 - 1) for f in (1, 0.5)]
  assert table[1] == ['gi', 'all 2', '+0.0 %, +0.0 %', f'-50.0 %, {own[0]:+.1f} %']
  assert table[2] == ['cgvq', 'all 2', '-50.0 %, -50.0 %', f'-75.0 %, {own[1]:+.1f} %']


def test_images_that_the_codec_is_tuned_on_have_means_of_their_own():
  table = _bd_table(ROWS, BASELINES, tuned_on=('one', 'elsewhere'))
  assert [row[:2] for row in table[1:]] == [
    [curve, part] for part in ('all 2', '1 tuned on', '1 others') for curve in ('gi', 'cgvq')
  ]
  # Of one image both figures are the same.
  assert table[3][3] == '-68.2 %, -68.2 %' and table[5][3] == '-22.2 %, -22.2 %'
  text = report.markdown(ROWS, BASELINES, report.Comparison(tuned_on=('one',)))
  levels = _tables(text)['Rates at equal PSNR, bpp of the mean curves']
  assert levels[0] == ['curve', 'images', '28 dB', '31 dB', '34 dB', '37 dB']
  cells = {tuple(row[:2]): row[2:] for row in levels[1:]}
  assert len(cells) == 9
  assert cells['gi', 'all 2'] == ['-', f'{0.5 * 2**0.5:.4f}', '2.0000', '-']
  assert cells['JPEG', '1 others'] == ['-', '-', '2.0000', '-']
  everything = report.markdown(ROWS, BASELINES, report.Comparison(tuned_on=('one', 'two')))
  assert 'tuned on' not in everything


def test_bd_rates_at_equal_ms_ssim():
  levels = {'1000': 0.9, '4000': 0.99, '10': 0.9, '90': 0.99}  # 10 and 20 dB of each

  def at(row):
    return row | {'ms_ssim': levels[str(row.get('setting', row.get('quality')))]}

  rows, baselines = [at(row) for row in ROWS], [at(row) for row in BASELINES]
  table = _bd_table(rows, baselines, 'BD-rate at equal MS-SSIM')
  assert table[0] == ['curve', 'images', 'against gi', 'against JPEG']
  assert table[1] == ['gi', 'all 2', '+0.0 %, +0.0 %', '-50.0 %, -50.0 %']  # 0.9 and 1.1 of half
  assert table[2] == ['cgvq', 'all 2', '-50.0 %, -50.0 %', '-75.0 %, -75.0 %']
  without = _bd_table(ROWS, BASELINES, 'BD-rate at equal MS-SSIM')
  assert without[1][3] == 'none: one point is no curve'  # one MS-SSIM for all


def test_bd_rates_of_each_image():
  table = _bd_table(ROWS, BASELINES, 'BD-rate of each image')
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
  # A third image, of which there is no JPEG, must not enter the comparison with JPEG.
  rows = [*ROWS, row('three', 'gi', 1000, 9.0, 30), row('three', 'gi', 4000, 19.0, 34)]
  assert _bd_table(rows, BASELINES)[1][3].startswith('-50.0 %, ')


def test_a_missing_bd_rate_has_a_reason():
  single = [row for row in ROWS if row['num_gaussians'] == 1000]
  assert _bd_table(single, BASELINES)[1][3] == 'none: one point is no curve'
  assert _bd_table(ROWS, [])[0] == ['curve', 'images', 'against gi']
  others = [baseline('three', 10, 1, 30), baseline('three', 90, 4, 34)]
  assert _bd_table(ROWS, others)[1][3] == 'none: no image in common'
  cgvq = [row for row in ROWS if row['method'] == 'cgvq']
  assert _bd_table(cgvq, BASELINES)[0][2:] == ['against JPEG']
  far = [row | {'bpp': 100 * row['bpp']} for row in BASELINES]
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
    row('one', 'cgvq', 1000, 0.5, 30, num_clusters=4),
    row('one', 'cgvq', 1000, 0.5, 30, fit_steps=900),
  ]
  names = [row[0] for row in _bd_table([*ROWS, *more], BASELINES)[1:]]
  assert names == [
    'gi',
    'cgvq K=16 500+200 steps',
    'cgvq K=4 500+200 steps',
    'cgvq K=16 900+200 steps',
  ]


def test_every_image_and_baseline_point_is_listed():
  text = report.markdown([*ROWS, row('a|b', 'gi', 1000, 0.5, math.inf)], BASELINES)
  tables = _tables(text)
  assert len(tables['Each image']) == 1 + len(ROWS) + 1
  assert tables['Each image'][2][:3] == ['one', 'gi', '1000'] and 'a\\|b' in text
  codecs = tables['Baseline codecs, means over images']
  assert codecs[1] == ['JPEG', '10', '2', '1.0000', '30.00', '0.8000', '0.9000', '0.5', '0.125']
  assert 'Baseline codecs, means over images' not in _tables(report.markdown(ROWS, []))
  assert '3 images, encoded on a machine' in text


@pytest.mark.parametrize('make', [report.markdown, plots.rate_distortion])
@pytest.mark.parametrize(
  ('rows', 'baselines', 'message'),
  [
    ([], BASELINES, 'got none'),
    ([*ROWS, ROWS[0]], BASELINES, "several at .*'gi'"),
    (ROWS, [*BASELINES, BASELINES[0]], "several at .*'JPEG'"),
  ],
)
def test_bad_rows(make, rows, baselines, message):
  with pytest.raises(ValueError, match=message):
    make(rows, baselines)


def test_a_report_with_its_plots_is_written(tmp_path):
  folder = tmp_path / 'new' / 'run'
  report.write(folder, ROWS, BASELINES)
  names = ['rate_distortion.png', 'rate_ms_ssim.png', 'report.md']
  assert sorted(path.name for path in folder.iterdir()) == names
  text = (folder / 'report.md').read_text(encoding='utf-8')
  assert text.startswith('# Results') and '(rate_distortion.png)' in text
  with Image.open(folder / 'rate_distortion.png') as image:
    assert image.format == 'PNG' and image.size[0] > 1000
