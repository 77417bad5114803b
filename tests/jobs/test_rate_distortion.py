"""A job makes what is missing and nothing else, resumes where it stopped, and reports failures."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_jobs import POINTS, ROOT, SETTINGS, call, share_programs, sources, start, write_image

from cgvq_jax import metrics
from cgvq_jax.bitstream import codebooks
from cgvq_jax.fit import initialize
from cgvq_jax.fit.settings import FitSettings
from cgvq_jax.io import images
from cgvq_jax.jobs import checkpoint, rate_distortion
from cgvq_jax.methods import registry

# fmt: off
FIELDS = [
  'image', 'method', 'setting', 'num_gaussians', 'num_clusters', 'fit_steps', 'finetune_steps',
  'bytes', 'sections', 'bpp', 'psnr', 'ssim', 'ms_ssim', 'encode_seconds', 'decode_seconds',
  'device',
]
# fmt: on


def run(folder, workdir, **changes):
  arguments = {
    'points': POINTS,
    'settings': SETTINGS,
    'baseline_codecs': ('JPEG', 'WebP'),
    **changes,
  }
  return rate_distortion.run(sources(folder), workdir, **arguments)


def rows_of(workdir):
  return json.loads((workdir / 'results.json').read_text())


def times_of(workdir):
  """When each file of a folder was last written."""
  return {path: path.stat().st_mtime_ns for path in workdir.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('photographs')
  share_programs(tmp_path_factory.getbasetemp())
  write_image(folder / 'a.png')
  write_image(folder / 'b.png', left=300)
  (folder / 'broken.png').write_bytes(b'not an image')
  return folder


@pytest.fixture(scope='module')
def finished(photographs, tmp_path_factory):
  """A finished job, to be copied before it is changed, and its outcome."""
  workdir = tmp_path_factory.mktemp('finished')
  return workdir, run(photographs, workdir)


@pytest.fixture
def workdir(finished, tmp_path):
  return shutil.copytree(finished[0], tmp_path / 'job')


def test_a_broken_image_is_reported_and_the_others_are_made(finished):
  workdir, outcome = finished
  assert (outcome.made, outcome.unchanged) == (2, 0)
  (failure,) = outcome.failures
  assert failure.startswith('broken: ImageError:') and 'unknown kind' in failure
  assert [row['image'] for row in rows_of(workdir)] == ['a', 'b']
  assert not list(workdir.rglob('broken*'))


def test_rows_say_what_the_files_hold(finished, photographs):
  workdir, _ = finished
  for row in rows_of(workdir):
    assert list(row) == FIELDS
    data = (workdir / 'gi' / '60' / f'{row["image"]}.cgvq').read_bytes()
    assert row['bytes'] == len(data) == sum(row['sections'].values())
    assert set(row['sections']) == set(codebooks.SECTIONS)
    assert row['bpp'] == 8 * len(data) / (48 * 40)
    assert (row['method'], row['num_gaussians'], row['num_clusters']) == ('gi', 60, 1)
    assert (row['fit_steps'], row['finetune_steps']) == (500, 100)
    original, decoded = (
      images.to_bytes8(images.load(folder / f'{row["image"]}.png').pixels)
      for folder in (photographs, workdir / 'gi' / '60')
    )
    assert row['psnr'] == metrics.psnr(original, decoded) > 25
    assert 0.5 < row['ssim'] < 1 and 0.5 < row['ms_ssim'] < 1
    assert 0 < row['decode_seconds'] < row['encode_seconds']
  report = (workdir / 'report.md').read_text()
  assert '| gi | 60 | 60 | 1 | 500+100 | 2 |' in report and 'JPEG' in report
  assert all((workdir / plot).is_file() for plot in rate_distortion.report.PLOTS.values())
  measured = json.loads((workdir / 'baselines.json').read_text())
  assert {(row['image'], row['method']) for row in measured} == {
    (image, codec) for image in 'ab' for codec in ('JPEG', 'WebP')
  }


def test_a_finished_job_does_nothing(finished, photographs):
  workdir, _ = finished
  before = times_of(workdir)
  outcome = run(photographs, workdir)
  assert (outcome.made, outcome.unchanged, len(outcome.failures)) == (0, 2, 1)
  assert times_of(workdir) == before


def test_a_damaged_file_is_made_again_from_the_fit_that_was_kept(workdir, photographs, capsys):
  file = workdir / 'gi' / '60' / 'a.cgvq'
  data = file.read_bytes()
  file.write_bytes(data[:-1])
  before = times_of(workdir)
  outcome = run(photographs, workdir)
  assert (outcome.made, outcome.unchanged) == (1, 1)
  assert file.read_bytes() == data
  errors = capsys.readouterr().err
  assert 'a gi N=60 K=1 finetune: 100 steps' in errors and ' fit:' not in errors
  changed = {path.name for path, when in times_of(workdir).items() if before.get(path) != when}
  # The new row has other seconds, so these may be written again.
  allowed = {'results.json', 'report.md', *rate_distortion.report.PLOTS.values()}
  assert {'a.cgvq', 'a.png', 'a.json'} <= changed <= {'a.cgvq', 'a.png', 'a.json'} | allowed
  # The fit was not run again, but its seconds count in the file's.
  folder = workdir / 'fits' / '60' / 'a' / 'fit' / '500'
  fit_seconds = json.loads((folder / 'about' / 'metadata').read_text())['seconds']
  assert rows_of(workdir)[0]['encode_seconds'] > fit_seconds > 0


def test_another_image_of_the_same_name_is_made_again(workdir, photographs, tmp_path, capsys):
  folder = tmp_path / 'others'
  folder.mkdir()
  write_image(folder / 'a.png', left=320)
  before = {row['image']: row for row in rows_of(workdir)}
  jpeg = json.loads((workdir / 'baselines.json').read_text())
  assert run(folder, workdir).made == 1
  after = {row['image']: row for row in rows_of(workdir)}
  assert after['a']['psnr'] != before['a']['psnr']
  assert after['b'] == before['b'], 'a file that this job does not name stays with its row'
  assert 'state with other settings, wanted image' in capsys.readouterr().out
  remade = json.loads((workdir / 'baselines.json').read_text())
  assert len(remade) == len(jpeg)
  assert [row for row in remade if row['image'] == 'b'] == [r for r in jpeg if r['image'] == 'b']
  assert not any(row in jpeg for row in remade if row['image'] == 'a')


def test_an_interrupted_stage_resumes_and_gives_the_same_file(
  finished, photographs, tmp_path, monkeypatch, capsys
):
  folder, workdir = tmp_path / 'one', tmp_path / 'job'
  folder.mkdir()
  shutil.copy(photographs / 'a.png', folder)
  show = checkpoint.Bars.show

  def stop_in(wanted):
    def stop(self, stage, progress):
      show(self, stage, progress)
      if (stage.name, progress.step) == (wanted, 50):
        raise KeyboardInterrupt

    return stop

  for stage, states in (('fit', 'fit'), ('finetune', 'gi/finetune')):
    monkeypatch.setattr(checkpoint.Bars, 'show', stop_in(stage))
    with pytest.raises(KeyboardInterrupt):
      run(folder, workdir)
    assert [path.name for path in (workdir / 'fits' / '60' / 'a' / states).iterdir()] == ['50']
  assert 'fit: resumes at step 50' in capsys.readouterr().out
  monkeypatch.setattr(checkpoint.Bars, 'show', show)
  assert run(folder, workdir).made == 1
  assert 'finetune: resumes at step 50' in capsys.readouterr().out
  files = [job / 'gi' / '60' / 'a.cgvq' for job in (workdir, finished[0])]
  assert files[0].read_bytes() == files[1].read_bytes()
  assert not (workdir / 'fits' / '60' / 'a' / 'gi').exists(), 'only the fit is of further use'


def test_a_killed_job_resumes_inside_its_image(finished, photographs, tmp_path):
  workdir = tmp_path / 'job'
  command = [
    'cgvq_jax.main',
    '--config=configs/quickstart.py',
    f'--workdir={workdir}',
    f'--config.data.root={photographs}',
    '--config.data.images=a',
    '--config.method=gi',
    '--config.num_gaussians=60',
    f'--config.fit.steps={SETTINGS.steps}',
    f'--config.finetune.steps={SETTINGS.finetune_steps}',
    '--config.baselines=',
  ]
  states = workdir / 'fits' / '60' / 'a' / 'fit'
  with start(*command, '--config.checkpoint_seconds=0') as process:
    while not any(path.name.isdigit() for path in states.glob('*')):
      assert process.poll() is None, process.communicate()
      time.sleep(0.01)
    process.kill()  # SIGKILL
  killed_at = max(int(path.name) for path in states.iterdir() if path.name.isdigit())
  assert 0 < killed_at < SETTINGS.steps

  with start(*command) as process:
    assert process.stdout is not None and process.stderr is not None
    resumed = process.stdout.readline()
    assert resumed == f'a gi N=60 K=1 fit: resumes at step {killed_at}\n'
    process.terminate()  # SIGTERM
    assert process.wait() == 130
    assert process.stderr.read() == 'stopped; the same command continues from here\n'

  code, out, err = call(*command)
  assert code == 0, err
  assert 'a gi N=60 K=1 fit: resumes at step ' in out
  assert f'1 files made, 0 unchanged, 0 failures; see {workdir / "report.md"}' in out
  assert [row['image'] for row in rows_of(workdir)] == ['a']
  files = [job / 'gi' / '60' / 'a.cgvq' for job in (workdir, finished[0])]
  assert files[0].read_bytes() == files[1].read_bytes()
  assert call(*command) == (0, 'nothing to do: 1 files are there and unchanged\n', '')


@pytest.mark.slow
@pytest.mark.parametrize('limit', [100, 3000, 30_000])
def test_what_is_too_large_for_the_disk_is_a_line_each(photographs, tmp_path, limit):
  # A write beyond the limit fails, as on a full disk.
  script = (
    'import resource, runpy, sys\nlimit = int(sys.argv.pop(1))\n'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n'
    'runpy.run_module("cgvq_jax.main", run_name="__main__", alter_sys=True)\n'
  )
  workdir = tmp_path / 'job'
  done = subprocess.run(
    [
      *(sys.executable, '-c', script, str(limit), '--config=configs/quickstart.py'),
      *(f'--workdir={workdir}', f'--config.data.root={photographs}', '--config.data.images=a,b'),
      *('--config.method=gi', '--config.num_gaussians=60', '--config.fit.steps=2'),
    ],
    cwd=ROOT,
    env={name: value for name, value in os.environ.items() if 'CACHE' not in name},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  lines = done.stderr.splitlines()
  for line in lines:
    assert re.match(r'failed: (a|b|results\.json|report\.md)\b|[ab] gi N=60 K=1 \w+: ', line), line
  assert 'File too large' in done.stderr and len(lines) <= 12
  assert not [
    path for path in workdir.rglob('*') if path.is_file() and path.stat().st_size >= limit
  ]
  assert not list(workdir.rglob('*.tmp'))


def test_a_fit_that_diverges_is_reported(photographs, tmp_path, monkeypatch, capsys):
  def diverging(key, image, num_gaussians):
    start = initialize.random(key, image, num_gaussians)
    return start.replace(color=start.color * jnp.nan)

  monkeypatch.setitem(initialize.INITIALIZERS, 'random', diverging)
  settings = SETTINGS._replace(initializer='random')
  outcome = run(photographs, tmp_path, settings=settings, baseline_codecs=())
  assert outcome.made == 0 and len(outcome.failures) == 3
  assert outcome.failures[0].startswith('a gi N=60 K=1: FitError: not finite at step 0')
  errors = capsys.readouterr().err
  assert f'failed: {outcome.failures[0]}' in errors and 'Traceback' not in errors
  assert rows_of(tmp_path) == [] and not (tmp_path / 'baselines.json').exists()


def test_the_grid_has_every_point_once():
  points = rate_distortion.grid(['gi', 'cgvq'], [3, 60], [None, 2, 16])
  assert [point[:3] for point in points[:4]] == [
    ('gi', 3, 1),
    ('gi', 3, 2),
    ('gi', 3, 3),
    ('cgvq', 3, 3),
  ]
  assert len(points) == len(set(points)) == 10
  points = rate_distortion.grid(
    ['gi', 'cgvq_rd', 'rd_no_rate'], [3, 60], [None, 2], [20, 50.5], order='none'
  )
  assert [(point.method, point.setting) for point in points] == [
    *(('gi', setting) for setting in ('3', '3', '60', '60')),
    ('cgvq_rd', 'q20'),
    ('rd_no_rate', 'q20'),
    ('cgvq_rd', 'q50.5'),
    ('rd_no_rate', 'q50.5'),
  ]
  assert [point.order for point in points[:5]] == 4 * ['none'] + [None]


def test_a_method_of_an_extension_has_the_options_that_it_takes(monkeypatch):
  def plain(channels=3, *, num_gaussians=7):
    return channels, num_gaussians

  monkeypatch.setitem(registry.METHODS, 'plain', plain)
  (point,) = rate_distortion.grid(['plain'], [60], [None, 4], [50], order='none')
  assert point == rate_distortion.Point('plain', 60) and point.make(1) == (1, 60)
  assert point.setting == '60'


def task_of(workdir, point=POINTS[0], **changes):
  settings = SETTINGS._replace(**changes)
  return rate_distortion.Task('a', 'digest', (40, 60, 3), point, settings, workdir)


def test_every_setting_counts_and_the_fit_depends_on_its_own_only(tmp_path):
  task = task_of(tmp_path)
  changes = {
    'steps': 1,
    'finetune_steps': 2,
    'seed': 3,
    'initializer': 'random',
    'densifier': 'none',
    'optimizer': 'adan',
    'loss': 'l1',
  }
  assert set(changes) == {*FitSettings._fields}
  for name, value in changes.items():
    other = task_of(tmp_path, **{name: value})
    assert other.settings_of_file() != task.settings_of_file()
    assert (other.settings_of_fit() == task.settings_of_fit()) == (name == 'finetune_steps')


def test_every_option_counts_and_methods_share_a_fit(tmp_path):
  task, point = task_of(tmp_path), POINTS[0]
  for options in ({'num_clusters': 4}, {'order': 'none'}, {'method': 'cgvq'}):
    other = task_of(tmp_path, point._replace(**options))
    assert other.settings_of_file() != task.settings_of_file()
    assert other.locate('fit') == task.locate('fit')
  more = task_of(tmp_path, point._replace(num_gaussians=61))
  assert more.locate('fit').folder != task.locate('fit').folder
  assert more.settings_of_fit() != task.settings_of_fit()
  tuned = task_of(tmp_path, point._replace(method='cgvq', num_clusters=4))
  assert tuned.locate('finetune').folder != task.locate('finetune').folder
  assert tuned.file == tmp_path / 'cgvq-K4' / '60' / 'a.cgvq'
  assert task.file == tmp_path / 'gi' / '60' / 'a.cgvq'


def test_methods_share_a_fit_at_one_quality_only(tmp_path):
  ours, ablated, finer = (
    task_of(tmp_path, rate_distortion.Point(method, quality=quality))
    for method, quality in (('cgvq_rd', 50), ('rd_no_rate', 50), ('cgvq_rd', 51))
  )
  assert ours.file == tmp_path / 'cgvq_rd' / 'q50' / 'a.cgvq'
  assert ours.num_gaussians == registry.cgvq_rd(quality=50).gaussian_budget(40 * 60)
  assert ours.locate('fit') == ablated.locate('fit') != finer.locate('fit')
  assert ours.settings_of_fit() != finer.settings_of_fit()
  assert ours.settings_of_fit() != task_of(tmp_path).settings_of_fit()


@pytest.mark.slow
def test_methods_share_a_fit(workdir, photographs, capsys):
  points = rate_distortion.grid(['gi', 'cgvq'], [60], [None, 4], order='sorted')
  outcome = run(photographs, workdir, points=points)
  assert (outcome.made, outcome.unchanged) == (6, 2)
  assert ' fit:' not in capsys.readouterr().err
  folders = {path.name for path in workdir.iterdir() if (path / '60' / 'a.cgvq').is_file()}
  assert folders == {'gi', 'gi-K4', 'cgvq', 'cgvq-K4'}
  assert {(row['method'], row['num_clusters']) for row in rows_of(workdir)} == {
    ('gi', 1),
    ('gi', 4),
    ('cgvq', 4),
    ('cgvq', 16),
  }
  assert np.isfinite([row['psnr'] for row in rows_of(workdir)]).all()
  assert jax.devices()[0].platform != 'cpu' or rows_of(workdir)[0]['device'].startswith('CPU')
