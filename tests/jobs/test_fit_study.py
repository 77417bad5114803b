"""Studies of the fit: rows that are kept, means, the plot, and their configs."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
from PIL import Image
from small_jobs import call, share_programs, sources, write_image

from cgvq_jax.evaluate.plots import save_figure
from cgvq_jax.fit.settings import PRESETS, FitSettings
from cgvq_jax.jobs import fit_study
from cgvq_jax.jobs.config import ConfigError, fit_study_arguments

FITS = {
  'all': fit_study.Fit(40, FitSettings(steps=100)),
  'no_growth': fit_study.Fit(40, FitSettings(steps=100, densifier='none')),
}


@pytest.fixture(scope='module')
def studied(tmp_path_factory):
  """Two photographs and a file that is no image, fitted with two settings."""
  folder = tmp_path_factory.mktemp('study')
  share_programs(tmp_path_factory.getbasetemp())
  (folder / 'photographs').mkdir()
  for name, left in (('a', 200), ('b', 150)):
    write_image(folder / 'photographs' / f'{name}.png', left)
  (folder / 'photographs' / 'c.png').write_text('no image')
  outcome = fit_study.run(
    sources(folder / 'photographs'), folder / 'job', fits=FITS, tuned_on=['a']
  )
  return folder, outcome


def rows_of(job):
  return {
    path.relative_to(job / 'fits').with_suffix('').as_posix(): json.loads(path.read_text())['row']
    for path in (job / 'fits').glob('*/*.json')
  }


def test_every_image_is_fitted_with_all_settings(studied):
  folder, outcome = studied
  assert outcome.made == 4 and outcome.unchanged == 0
  assert len(outcome.failures) == 1 and outcome.failures[0].startswith('c: ImageError')
  rows = rows_of(folder / 'job')
  assert sorted(rows) == ['all/a', 'all/b', 'no_growth/a', 'no_growth/b']
  for row in rows.values():
    steps, seconds, psnr = np.array(row['curve']).T
    np.testing.assert_array_equal(steps, [50, 100])
    assert 0 < seconds[0] < seconds[1] <= row['seconds']
    assert psnr[1] == pytest.approx(row['psnr'], abs=0.1)  # `psnr` is of 8-bit values
  assert rows['no_growth/a']['num_gaussians'] == 40


def test_the_same_study_again_makes_what_is_missing(studied):
  folder, _ = studied
  job = folder / 'job'
  before = rows_of(job)
  (job / 'fits' / 'all' / 'b.json').write_text('{"damaged')
  again = fit_study.run(sources(folder / 'photographs'), job, fits=FITS)
  assert (again.made, again.unchanged) == (1, 3)
  assert rows_of(job)['all/b']['psnr'] == before['all/b']['psnr']
  changed = {'all': fit_study.Fit(40, FitSettings(steps=100, seed=1))}
  again = fit_study.run(sources(folder / 'photographs'), job, fits=changed)
  assert (again.made, again.unchanged) == (2, 0)


def row(name, image, psnr, seconds=1.0, count=40):
  curve = [[50, seconds / 2, psnr - 1], [100, seconds, psnr]]
  about = {'fit': name, 'image': image, 'num_gaussians': count}
  return {**about, 'psnr': psnr, 'seconds': seconds, 'curve': curve}


def test_the_table():
  rows = [row('x', 'a', 30.0), row('x', 'b', 34.0, 3.0), row('x', 'c', 35.0, 8.0)]
  rows += [row('y', 'a', 29.0, count=30), row('y', 'b', 33.5)]
  lines = fit_study.markdown(rows, tuned_on=['a']).splitlines()
  assert '| x | 40 | 100 | 3 | 33.00 | 34.50 | +0.00 | 3.0 |' in lines
  # Against x on a and b alone.
  assert '| y | 35 | 100 | 2 | 31.25 | 33.50 | -0.75 | 1.0 |' in lines
  assert 'not tuned on' not in fit_study.markdown(rows)
  with pytest.raises(ValueError, match='rows: wanted one or more'):
    fit_study.markdown([])


def test_the_plot(tmp_path):
  figure = fit_study.plot([row('x', 'a', 30.0), row('y', 'a', 29.0)])
  lines = {line.get_label(): line.get_xydata() for line in figure.axes[1].lines}
  np.testing.assert_allclose(lines['y'], [(0.5, 28), (1, 29)])
  save_figure(figure, tmp_path / 'plot.png')
  with Image.open(tmp_path / 'plot.png') as picture:
    assert picture.size[0] > 1000 and len(picture.convert('RGB').getcolors(1 << 24)) > 50


@pytest.fixture
def kodak(tmp_path, monkeypatch):
  for number in range(1, 25):
    (tmp_path / f'kodim{number:02}.png').touch()
  monkeypatch.setenv('CGVQ_KODAK', str(tmp_path))


def config(name, **changes):
  made = importlib.import_module(f'configs.{name}').get_config()
  with made.unlocked():
    made.update_from_flattened_dict(changes)
  return made


def test_the_ablation_replaces_each_part_alone(kodak):
  job = fit_study_arguments(config('ablation'))
  fits = job['fits']
  default = fits['all']
  assert next(iter(fits)) == 'all' and default == fit_study.Fit(10_000, FitSettings())
  assert len(job['sources']) == 6 and job['tuned_on'] == [s.name for s in job['sources']]
  alone = set()
  for fit in fits.values():
    pairs = zip(fit.settings._asdict().items(), default.settings, strict=True)
    changed = [field for (field, value), usual in pairs if value != usual]
    if len(changed) == 1:
      alone |= {*changed}
  assert alone == {'initializer', 'densifier', 'optimizer', 'loss', 'seed'}


def test_the_presets_are_the_encoders(kodak):
  job = fit_study_arguments(config('presets'))
  assert len(job['sources']) == 24
  for name, preset in PRESETS.items():
    assert job['fits'][name] == fit_study.Fit(10_000, FitSettings(steps=preset.steps))
  assert job['fits']['papers'].settings.optimizer == 'papers_adan'


@pytest.mark.parametrize(
  ('changes', 'wanted'),
  [
    ({'names': ('bogus',)}, 'config.names: wanted one of '),
    ({'names': ()}, 'config.names: wanted some of'),
    ({'fits.all': {'bogus': 1}}, "config.fits.all: wanted some of .*, got 'bogus'"),
    ({'fits.all': {'steps': 0}}, 'config.fits.all.steps: wanted a whole number, 1 or more'),
    ({'fit.densifier': 'x'}, 'config.fit.densifier: wanted one of matching_pursuit, none'),
  ],
)
def test_bad_values_are_named(kodak, changes, wanted):
  with pytest.raises(ConfigError, match=wanted):
    fit_study_arguments(config('ablation', **changes))


def test_the_command(studied, tmp_path):
  folder, _ = studied
  (folder / 'photographs' / 'c.png').unlink()
  command = [
    'cgvq_jax.main',
    '--config=configs/ablation.py',
    f'--workdir={tmp_path / "job"}',
    f'--config.data.root={folder / "photographs"}',
    '--config.data.images=a',
    '--config.names=all,no_growth',
    '--config.fit.steps=50',
    '--config.fit.num_gaussians=40',
  ]
  code, out, err = call(*command)
  assert code == 0, err
  assert f'2 fits made, 0 unchanged, 0 failures; see {tmp_path / "job" / "fit_study.md"}' in out
  assert (tmp_path / 'job' / 'fit_study.png').is_file()
  assert call(*command)[:2] == (0, 'nothing to do: 2 fits are there and unchanged\n')
