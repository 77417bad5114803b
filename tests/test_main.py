"""The values that a config may have, and the messages about those that it may not."""

from __future__ import annotations

import os
import runpy
import sys

import pytest
from ml_collections import ConfigDict
from small_jobs import ROOT, call, write_image

from cgvq_jax import main
from cgvq_jax.fit.settings import FitSettings
from cgvq_jax.io import images
from cgvq_jax.jobs.base import name_in_results
from cgvq_jax.jobs.config import ConfigError, extensions, rate_distortion_arguments
from cgvq_jax.jobs.rate_distortion import grid
from cgvq_jax.methods import registry

CONFIGS = {'kodak': 24, 'quickstart': 1, 'rd': 24, 'rd_ablation': 6, 'table1': 2}  # images


KNOWN = ', '.join(registry.METHODS)


def config(name: str = 'quickstart', **changes) -> ConfigDict:
  made = runpy.run_path(str(ROOT / 'configs' / f'{name}.py'))['get_config']()
  made.lock()
  with made.ignore_type():
    made.update_from_flattened_dict(changes)
  return made


@pytest.mark.parametrize('name', CONFIGS)
def test_the_configs_are_jobs(name, tmp_path, monkeypatch):
  for number in range(1, 25):
    (tmp_path / f'kodim{number:02}.png').touch()
  monkeypatch.setenv('CGVQ_KODAK', str(tmp_path))
  job = rate_distortion_arguments(config(name))
  values = config(name)
  assert {point.method for point in job['points']} == {*values.method}
  for point in job['points']:
    method = point.make(3)
    assert point.num_gaussians in values.num_gaussians or point.quality in values.quality
    assert method.gaussian_budget(400 * 600) > 1000
  assert len(job['sources']) == CONFIGS[name]
  quick = {'steps': 300, 'finetune_steps': 150} if name == 'quickstart' else {}
  assert job['settings'] == FitSettings(**quick)
  if name == 'quickstart':
    assert job['sources'][0].load().pixels.shape == (400, 600, 3)


@pytest.mark.parametrize('several', ['gi,cgvq', ('gi', 'cgvq'), ('gi,cgvq',), ['gi', 'cgvq', 'gi']])
def test_lists_may_be_written_in_several_ways(several):
  changes = {'method': several, 'num_gaussians': (50, 60), 'num_clusters': 4}
  assert rate_distortion_arguments(config(**changes))['points'] == grid(
    ['gi', 'cgvq'], [50, 60], [4], order='sorted'
  )
  both = {'method': ('gi', 'cgvq')}
  points = rate_distortion_arguments(config(**both, num_gaussians=50))['points']
  assert points == grid(['gi', 'cgvq'], [50], order='sorted')
  points = rate_distortion_arguments(config(**both, num_clusters=None))['points']
  assert points == grid(['gi', 'cgvq'], [4000], order='sorted')
  points = rate_distortion_arguments(config(quality=(20, 30.5)))['points']
  assert points == grid(['cgvq_rd'], [], [], [20, 30.5])
  both = rate_distortion_arguments(config(**both, num_clusters=(0, 2)))['points']
  assert both == grid(['gi', 'cgvq'], [4000], [None, 2], order='sorted')


def test_images_are_chosen_by_name(tmp_path):
  for name in 'xyz':
    write_image(tmp_path / f'{name}.png')
  root = {'data.root': str(tmp_path)}
  for chosen in ('z,x', ('z', 'x'), ('z,x',)):
    job = rate_distortion_arguments(config(**root, **{'data.images': chosen}))
    assert [source.name for source in job['sources']] == ['z', 'x']
  job = rate_distortion_arguments(config(**root, **{'data.images': ()}))
  assert [source.name for source in job['sources']] == ['x', 'y', 'z']
  assert job['sources'][0].load().pixels.shape == (48, 40, 3)
  with pytest.raises(images.ImageError, match='wanted one of x, y, z, got an unknown name'):
    rate_distortion_arguments(config(**root, **{'data.images': 'w'}))


def test_an_image_whose_name_cannot_be_kept_says_so(tmp_path):
  stem = os.fsdecode(b'caf\xe9')
  write_image(tmp_path / f'{stem}.png')
  job = rate_distortion_arguments(config(**{'data.root': str(tmp_path), 'data.images': stem}))
  (source,) = job['sources']
  assert source.name == name_in_results(stem) != stem
  assert source.load().notes == (f'the name in the results of {stem}.png',)


@pytest.mark.parametrize(
  ('name', 'value', 'wanted'),
  [
    ('method', 'jpeg', f"wanted one of {KNOWN}, got 'jpeg'"),
    ('method', (), f'wanted some of {KNOWN}, got none'),
    ('quality', (20, 0.5), 'wanted numbers of 1 to 100, got 0.5'),
    ('quality', 'x', "wanted numbers of 1 to 100, got 'x'"),
    ('baselines', ('JPEG', 'PNG'), "wanted one of JPEG, WebP, AVIF, JPEG 2000, got 'PNG'"),
    ('num_gaussians', 0, 'wanted a whole number, 1 to'),
    ('num_gaussians', (50, 'x'), "got 'x'"),
    ('num_gaussians', (), 'got none'),
    ('num_clusters', 65, 'wanted a whole number, 0 to 64, got 65'),
    ('fit.steps', -1, 'wanted a whole number, 0 or more, got -1'),
    ('finetune.steps', 2.5, 'wanted a whole number, 0 or more, got 2.5'),
    ('preset', 'slow', 'wanted one of fast, default, best'),
    ('fit.densifier', 'x', 'wanted one of matching_pursuit, none'),
    ('fit.optimizer', 'x', 'wanted one of adam, adam_in_pixels, adan, papers_adan'),
    ('fit.loss', 'l3', 'wanted one of clamped_l2, l2, l1, l1_ssim, feature'),
    ('fit.initializer', 'best', 'wanted one of gradient_guided, random'),
    ('seed', -1, 'wanted a whole number, 0 to'),
    ('checkpoint_seconds', -1.0, 'wanted seconds, 0 or more, got -1.0'),
  ],
)
def test_a_bad_value_is_named(name, value, wanted):
  with pytest.raises(ConfigError, match=f'config.{name}: .*{wanted}'):
    rate_distortion_arguments(config(**{name: value}))


def test_baselines_are_named_in_any_spelling():
  job = rate_distortion_arguments(config(baselines='jpeg,JPEG2000'))
  assert job['baseline_codecs'] == ['JPEG', 'JPEG 2000']


def test_extensions_are_named():
  assert extensions(config()) == []
  assert extensions(config(extensions='a.py,b')) == ['a.py', 'b']
  with pytest.raises(ConfigError, match=r'config.extensions: wanted modules or .py files, got 3'):
    extensions(config(extensions=('a.py', 3)))


def test_a_config_that_lacks_a_value_is_named():
  lacking = config()
  lacking.unlock()
  del lacking.fit.steps
  with pytest.raises(ConfigError, match=r'config.fit.steps: wanted a value, got none'):
    rate_distortion_arguments(lacking)


def test_bad_commands_are_one_line_and_2(tmp_path):
  some = ('--config=configs/quickstart.py', f'--workdir={tmp_path / "job"}')
  for arguments, wanted in (
    ((*some, '--config.fit.stepz=3'), 'unknown name in the config: \'stepz\' Did you mean "steps"'),
    (
      (*some, '--config.method=jpeg'),
      f"wanted one of {KNOWN}, got 'jpeg'",
    ),
    (
      ('--config=missing.py', some[1]),
      '--config: wanted a file such as configs/kodak.py, got missing.py: No such file or directory',
    ),
  ):
    code, out, err = call('cgvq_jax.main', *arguments)
    assert (code, out) == (2, ''), err
    assert len(err.splitlines()) == 1 and wanted in err
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('flags', 'wanted'),
  [
    (
      'quickstart.py --config.fit.steps=abc',
      "--config.fit.steps: wanted a whole number, got 'abc'",
    ),
    ('quickstart.py --config.seed=1.5', "--config.seed: wanted a whole number, got '1.5'"),
    (
      'quickstart.py --config.checkpoint_seconds=x',
      "--config.checkpoint_seconds: wanted a number, got 'x'",
    ),
    (
      'none.py --config.seed=1',
      f'--config: wanted a file such as configs/kodak.py, got {ROOT}/configs/none.py: No such file',
    ),
    (' --config.seed=1', f'kodak.py, got {ROOT}/configs/: Is a directory'),
    ('quickstart.py --workdirr=x', "Unknown command line flag 'workdirr'"),
  ],
)
@pytest.mark.filterwarnings('ignore:the load_module')
def test_bad_flags_are_one_line_and_2(flags, wanted, monkeypatch, capsys):
  argv = ['main', *f'--config={ROOT}/configs/{flags}'.split()]
  monkeypatch.setattr(sys, 'argv', argv)  # where ml_collections looks for values of the config
  with pytest.raises(SystemExit) as exit:
    main.parse_flags(argv)
  out, err = capsys.readouterr()
  assert (exit.value.code, out) == (2, '')
  assert wanted in err and err.endswith(' (see --help)\n') and err.count('\n') == 1


def test_help_teaches():
  code, out, err = call('cgvq_jax.main', '--help')
  assert (code, err) == (0, '')
  for text in ('python -m cgvq_jax.main --config=configs/kodak.py', 'CGVQ_KODAK', '--workdir'):
    assert text in out
