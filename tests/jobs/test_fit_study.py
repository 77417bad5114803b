"""Studies of the fit: rows that are kept, means, the plot, and the configs that ask for them."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
from PIL import Image
from small_jobs import call, share_programs, sources, write_image

from cgvq_jax import codec, main
from cgvq_jax.fit.api import Recipe
from cgvq_jax.jobs import fit_study

FITS = {
  'all': fit_study.Fit(40, Recipe(steps=100)),
  'no_growth': fit_study.Fit(40, Recipe(steps=100, densifier='none')),
}


@pytest.fixture(scope='module')
def studied(tmp_path_factory):
  """Two photographs and a file that is none, by two recipes."""
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


def test_every_image_is_fitted_by_every_recipe(studied):
  folder, outcome = studied
  assert outcome.encoded == 4 and outcome.unchanged == 0
  assert len(outcome.failures) == 1 and outcome.failures[0].startswith('c: ImageError')
  rows = rows_of(folder / 'job')
  assert sorted(rows) == ['all/a', 'all/b', 'no_growth/a', 'no_growth/b']
  for row in rows.values():
    steps, seconds, psnr = np.array(row['curve']).T
    np.testing.assert_array_equal(steps, [50, 100])
    assert 0 < seconds[0] < seconds[1] <= row['seconds']
    assert psnr[1] == pytest.approx(row['psnr'], abs=0.1)  # which is of whole grey levels
  assert rows['no_growth/a']['num_gaussians'] == 40


def test_the_same_study_again_makes_what_is_missing(studied):
  folder, _ = studied
  job = folder / 'job'
  before = rows_of(job)
  (job / 'fits' / 'all' / 'b.json').write_text('{"damaged')
  again = fit_study.run(sources(folder / 'photographs'), job, fits=FITS)
  assert (again.encoded, again.unchanged) == (1, 3)
  assert rows_of(job)['all/b']['psnr'] == before['all/b']['psnr']
  changed = {'all': fit_study.Fit(40, Recipe(steps=100, seed=1))}
  again = fit_study.run(sources(folder / 'photographs'), job, fits=changed)
  assert (again.encoded, again.unchanged) == (2, 0)


def row(recipe, image, psnr, seconds=1.0, count=40):
  curve = [[50, seconds / 2, psnr - 1], [100, seconds, psnr]]
  about = {'recipe': recipe, 'image': image, 'num_gaussians': count}
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
  fit_study.plot([row('x', 'a', 30.0), row('y', 'a', 29.0)], tmp_path / 'plot.png')
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


def alone(recipes, field):
  return recipes['all'].recipe._replace(**{field: None})


def test_the_ablation_turns_each_lever_off(kodak):
  job = main.study_job(config('ablation'))
  recipes = job['fits']
  assert next(iter(recipes)) == 'all' and recipes['all'] == fit_study.Fit(10_000, Recipe())
  assert len(job['sources']) == 6 and job['tuned_on'] == [s.name for s in job['sources']]
  for field in ('initializer', 'densifier', 'optimizer', 'loss', 'seed'):
    alone = recipes['all'].recipe._replace(**{field: None})
    assert any(
      r.recipe._replace(**{field: None}) == alone and r != recipes['all'] for r in recipes.values()
    )


def test_the_presets_are_the_encoders(kodak):
  job = main.study_job(config('presets'))
  assert len(job['sources']) == 24
  for name, preset in codec.PRESETS.items():
    assert job['fits'][name] == fit_study.Fit(10_000, Recipe(steps=preset.fit_steps))
  assert job['fits']['papers'].recipe.optimizer == 'papers_adan'


@pytest.mark.parametrize(
  ('changes', 'wanted'),
  [
    ({'names': ('bogus',)}, 'config.names: wanted one of '),
    ({'names': ()}, 'config.names: wanted some of'),
    ({'recipes.all': {'bogus': 1}}, "config.recipes.all: wanted some of .*, got 'bogus'"),
    ({'recipes.all': {'steps': 0}}, 'config.recipes.all.steps: wanted a whole number, 1 or more'),
    ({'fit.densifier': 'x'}, 'config.fit.densifier: wanted one of matching_pursuit, none'),
  ],
)
def test_bad_recipes_are_named(kodak, changes, wanted):
  with pytest.raises(main.ConfigError, match=wanted):
    main.study_job(config('ablation', **changes))


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
  assert f'2 fitted, 0 unchanged, 0 failures; see {tmp_path / "job" / "fit_study.md"}' in out
  assert (tmp_path / 'job' / 'fit_study.png').is_file()
  assert call(*command)[:2] == (0, 'nothing to do: 2 fits are there and unchanged\n')
