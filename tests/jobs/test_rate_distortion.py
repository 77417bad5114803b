"""A job makes what is missing and nothing else, goes on where it stopped, and reports failures."""

from __future__ import annotations

import json
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_jobs import POINTS, SETTINGS, call, share_programs, sources, start, write_image

from cgvq_jax import metrics
from cgvq_jax.bitstream import codebooks
from cgvq_jax.fit import initialize
from cgvq_jax.io import images
from cgvq_jax.jobs import checkpoint, rate_distortion

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
    'classic_codecs': ('JPEG', 'WebP'),
    **changes,
  }
  return rate_distortion.run(sources(folder), workdir, **arguments)


def rows_of(workdir):
  return json.loads((workdir / 'results.json').read_text())


def state_of(workdir):
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
  """A finished job, to be copied before it is changed, and what it said of itself."""
  workdir = tmp_path_factory.mktemp('finished')
  return workdir, run(photographs, workdir)


@pytest.fixture
def workdir(finished, tmp_path):
  return shutil.copytree(finished[0], tmp_path / 'job')


def test_a_broken_image_is_reported_and_the_others_are_made(finished):
  workdir, outcome = finished
  assert (outcome.encoded, outcome.unchanged) == (2, 0)
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
  assert all((workdir / plot).is_file() for plot in rate_distortion.report.PLOTS)
  classic = json.loads((workdir / 'classic.json').read_text())
  assert {(row['image'], row['method']) for row in classic} == {
    (image, codec) for image in 'ab' for codec in ('JPEG', 'WebP')
  }


def test_a_finished_job_does_nothing(finished, photographs):
  workdir, _ = finished
  before = state_of(workdir)
  outcome = run(photographs, workdir)
  assert (outcome.encoded, outcome.unchanged, len(outcome.failures)) == (0, 2, 1)
  assert state_of(workdir) == before


def test_a_damaged_file_is_made_again_from_the_fit_that_was_kept(workdir, photographs, capsys):
  file = workdir / 'gi' / '60' / 'a.cgvq'
  data = file.read_bytes()
  file.write_bytes(data[:-1])
  before = state_of(workdir)
  outcome = run(photographs, workdir)
  assert (outcome.encoded, outcome.unchanged) == (1, 1)
  assert file.read_bytes() == data
  said = capsys.readouterr().err
  assert 'a gi N=60 K=1 finetune: 100 steps' in said and ' fit:' not in said
  changed = {path.name for path, when in state_of(workdir).items() if before.get(path) != when}
  allowed = {'results.json', 'report.md', *rate_distortion.report.PLOTS}  # its seconds are others
  assert {'a.cgvq', 'a.png', 'a.json'} <= changed <= {'a.cgvq', 'a.png', 'a.json'} | allowed
  # The fit was not done again, but its seconds are the file's too.
  folder = workdir / 'fits' / '60' / 'a' / 'fit' / '500'
  fit_seconds = json.loads((folder / 'about' / 'metadata').read_text())['seconds']
  assert rows_of(workdir)[0]['encode_seconds'] > fit_seconds > 0


def test_another_image_of_the_same_name_is_made_again(workdir, photographs, tmp_path, capsys):
  folder = tmp_path / 'others'
  folder.mkdir()
  write_image(folder / 'a.png', left=320)
  before = {row['image']: row for row in rows_of(workdir)}
  jpeg = json.loads((workdir / 'classic.json').read_text())
  assert run(folder, workdir).encoded == 1
  after = {row['image']: row for row in rows_of(workdir)}
  assert after['a']['psnr'] != before['a']['psnr']
  assert after['b'] == before['b'], 'a file that this job does not name stays with its row'
  assert 'state of other settings, wanted image' in capsys.readouterr().out
  remade = json.loads((workdir / 'classic.json').read_text())
  assert len(remade) == len(jpeg)
  assert [row for row in remade if row['image'] == 'b'] == [r for r in jpeg if r['image'] == 'b']
  assert not any(row in jpeg for row in remade if row['image'] == 'a')


def test_an_interrupted_stage_goes_on_and_gives_the_same_file(
  finished, photographs, tmp_path, monkeypatch, capsys
):
  folder, workdir = tmp_path / 'one', tmp_path / 'job'
  folder.mkdir()
  shutil.copy(photographs / 'a.png', folder)
  show = checkpoint.Bars.show

  def stop_in(wanted):
    def stop(self, stage, progress):
      show(self, stage, progress)
      if (stage, progress.step) == (wanted, 50):
        raise KeyboardInterrupt

    return stop

  for stage, states in (('fit', 'fit'), ('finetune', 'gi')):
    monkeypatch.setattr(checkpoint.Bars, 'show', stop_in(stage))
    with pytest.raises(KeyboardInterrupt):
      run(folder, workdir)
    assert [path.name for path in (workdir / 'fits' / '60' / 'a' / states).iterdir()] == ['50']
  assert 'fit: goes on from step 50' in capsys.readouterr().out
  monkeypatch.setattr(checkpoint.Bars, 'show', show)
  assert run(folder, workdir).encoded == 1
  assert 'finetune: goes on from step 50' in capsys.readouterr().out
  files = [job / 'gi' / '60' / 'a.cgvq' for job in (workdir, finished[0])]
  assert files[0].read_bytes() == files[1].read_bytes()
  assert not (workdir / 'fits' / '60' / 'a' / 'gi').exists(), 'only the fit is of further use'


def test_a_killed_job_goes_on_inside_the_image_it_was_at(finished, photographs, tmp_path):
  workdir = tmp_path / 'job'
  command = [
    'cgvq_jax.main',
    '--config=configs/quickstart.py',
    f'--workdir={workdir}',
    f'--config.data.root={photographs}',
    '--config.data.images=a',
    '--config.method=gi',
    '--config.num_gaussians=60',
    f'--config.fit.steps={SETTINGS.fit.steps}',
    f'--config.finetune.steps={SETTINGS.finetune_steps}',
    '--config.classic=',
  ]
  states = workdir / 'fits' / '60' / 'a' / 'fit'
  with start(*command, '--config.checkpoint_seconds=0') as process:
    while not any(path.name.isdigit() for path in states.glob('*')):
      assert process.poll() is None, process.communicate()
      time.sleep(0.01)
    process.kill()  # SIGKILL
  killed_at = max(int(path.name) for path in states.iterdir() if path.name.isdigit())
  assert 0 < killed_at < SETTINGS.fit.steps

  with start(*command) as process:
    assert process.stdout is not None and process.stderr is not None
    went_on = process.stdout.readline()
    assert went_on == f'a gi N=60 K=1 fit: goes on from step {killed_at}\n'
    process.terminate()  # SIGTERM
    assert process.wait() == 130
    assert process.stderr.read() == 'stopped; the same command goes on from here\n'

  code, out, err = call(*command)
  assert code == 0, err
  assert 'a gi N=60 K=1 fit: goes on from step ' in out
  assert f'1 files encoded, 0 unchanged, 0 failures; see {workdir / "report.md"}' in out
  assert [row['image'] for row in rows_of(workdir)] == ['a']
  files = [job / 'gi' / '60' / 'a.cgvq' for job in (workdir, finished[0])]
  assert files[0].read_bytes() == files[1].read_bytes()
  assert call(*command) == (0, 'nothing to do: 1 files are there and unchanged\n', '')


def test_a_fit_that_diverges_is_reported(photographs, tmp_path, monkeypatch, capsys):
  def diverging(key, image, num_gaussians):
    start = initialize.random(key, image, num_gaussians)
    return start.replace(color=start.color * jnp.nan)

  monkeypatch.setitem(initialize.INITIALIZERS, 'random', diverging)
  settings = SETTINGS._replace(fit=SETTINGS.fit._replace(initializer='random'))
  outcome = run(photographs, tmp_path, settings=settings, classic_codecs=())
  assert outcome.encoded == 0 and len(outcome.failures) == 3
  assert outcome.failures[0].startswith('a gi N=60 K=1: FitError: not finite at step 0')
  said = capsys.readouterr().err
  assert f'failed: {outcome.failures[0]}' in said and 'Traceback' not in said
  assert rows_of(tmp_path) == [] and not (tmp_path / 'classic.json').exists()


def test_what_the_decoder_says_is_reported(tmp_path):
  file = tmp_path / 'bad.cgvq'
  file.write_bytes(b'CGVQ')
  with pytest.raises(
    rate_distortion.DecodeError, match=r'bad.cgvq: the decoder ended with 2 .*wanted >='
  ):
    rate_distortion._decode_in_new_process(file)


def test_a_failure_that_nobody_foresaw_is_shown_in_full(tmp_path, capsys):
  def explode():
    raise ZeroDivisionError('first line\nsecond line')

  outcome = rate_distortion.run(
    [rate_distortion.Source('x', explode)], tmp_path, points=POINTS, settings=SETTINGS
  )
  assert outcome.failures == ['x: ZeroDivisionError: first line']
  assert 'Traceback' in capsys.readouterr().err


def test_the_grid_has_every_point_once():
  points = rate_distortion.grid(['gi', 'cgvq'], [3, 60], [None, 2, 16])
  assert [point[:3] for point in points[:4]] == [
    ('gi', 3, 1),
    ('gi', 3, 2),
    ('gi', 3, 3),
    ('cgvq', 3, 3),
  ]
  assert len(points) == len(set(points)) == 10
  points = rate_distortion.grid(['gi', 'cgvq_rd', 'rd_no_rate'], [3, 60], [None, 2], [20, 50.5])
  assert [(point.method, point.setting) for point in points] == [
    *(('gi', setting) for setting in ('3', '3', '60', '60')),
    ('cgvq_rd', 'q20'),
    ('rd_no_rate', 'q20'),
    ('cgvq_rd', 'q50.5'),
    ('rd_no_rate', 'q50.5'),
  ]


def test_every_setting_counts_and_the_fit_does_not_ask_the_method(tmp_path):
  def task(point=POINTS[0], **changes):
    of_fit = {name: changes.pop(name) for name in SETTINGS.fit._fields if name in changes}
    settings = SETTINGS._replace(fit=SETTINGS.fit._replace(**of_fit), **changes)
    return rate_distortion._Task.of('a', np.zeros((40, 60, 3)), 'digest', point, settings, tmp_path)

  others = {
    'steps': 1,
    'finetune_steps': 2,
    'seed': 3,
    'initializer': 'random',
    'densifier': 'none',
    'optimizer': 'adan',
    'loss': 'l1',
    'order': 'none',
  }
  assert set(others) == {*SETTINGS.fit._fields, *SETTINGS._fields} - {'fit'}
  for name, value in others.items():
    other = task(**{name: value})
    assert other.settings_of_file() != task().settings_of_file()
    same_fit = other.settings_of_fit() == task().settings_of_fit()
    assert same_fit == (name in ('finetune_steps', 'order'))
  tuned = task(rate_distortion.Point('cgvq', 60, 4))
  assert tuned.settings_of_fit() == task().settings_of_fit()
  assert tuned.stages()['fit'].folder == task().stages()['fit'].folder
  assert tuned.stages()['finetune'].folder != task().stages()['finetune'].folder
  assert tuned.file == tmp_path / 'cgvq-K4' / '60' / 'a.cgvq'
  assert task().file == tmp_path / 'gi' / '60' / 'a.cgvq'
  # At a quality the methods share a fit too, but not that of another quality.
  ours, plain, finer = (
    task(rate_distortion.Point(*point))
    for point in (
      ('cgvq_rd', None, None, 50),
      ('rd_no_rate', None, None, 50),
      ('cgvq_rd', None, None, 51),
    )
  )
  assert ours.file == tmp_path / 'cgvq_rd' / 'q50' / 'a.cgvq'
  assert ours.num_gaussians == ours.point.make(3).num_gaussians(40 * 60)
  assert ours.stages()['fit'] == plain.stages()['fit'] != finer.stages()['fit']
  assert ours.settings_of_fit() != finer.settings_of_fit() != task().settings_of_fit()


@pytest.mark.slow
def test_methods_share_a_fit(workdir, photographs, capsys):
  points = rate_distortion.grid(['gi', 'cgvq'], [60], [None, 4])
  outcome = run(photographs, workdir, points=points)
  assert (outcome.encoded, outcome.unchanged) == (6, 2)
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
