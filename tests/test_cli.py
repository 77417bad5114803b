"""The commands on real files, and every way to misuse them: one line and an exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from small_jobs import ROOT, call, share_programs, write_image

from cgvq_jax import __version__, cli, codec, methods
from cgvq_jax.bitstream import container
from cgvq_jax.fit.blocks import FitError
from cgvq_jax.fit.settings import PRESETS, FitSettings
from cgvq_jax.fit.stages import Progress
from cgvq_jax.io import files, images
from cgvq_jax.rate_control import Measures


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A palette image, a text file, and folders that outputs go to."""
  folder = tmp_path_factory.mktemp('cli')
  share_programs(tmp_path_factory.getbasetemp())
  with Image.open(write_image(folder / 'colour.png')) as image:
    image.convert('L').save(folder / 'grey.png')
    image.resize((80, 96)).save(folder / 'large.png')
    image.convert('P', palette=Image.Palette.ADAPTIVE).save(folder / 'photo.png')
  (folder / 'text.txt').write_text('neither an image nor a file of ours')
  (folder / 'circle.cgvq').symlink_to('circle.cgvq')
  (folder / 'astray.cgvq').symlink_to('missing/x.cgvq')
  return folder


@pytest.fixture(scope='module')
def encoded(folder):
  """A file that a new process made of the palette image, and what it said."""
  options = ['--num_gaussians', '60', '--steps', '500', '--finetune_steps', '100', '--seed', '1']
  arguments = ['cgvq_jax', 'encode', folder / 'photo.png', folder / 'photo.cgvq', '--method', 'gi']
  return folder / 'photo.cgvq', call(*arguments, *options)


def test_encode_says_what_it_did(encoded, folder):
  file, (code, out, err) = encoded
  assert code == 0, err
  converted, done = out.splitlines()
  assert converted == f'{folder / "photo.png"}: palette converted to RGB'
  data = file.read_bytes()
  pixels = images.to_bytes8(images.load(folder / 'photo.png').pixels).astype(np.float64)
  decoded = images.to_bytes8(codec.render(codec.decode(data)))
  psnr = 10 * np.log10(255**2 / np.mean((pixels - decoded) ** 2))
  rate = 8 * len(data) / (48 * 40)
  assert done.startswith(f'{file}: {len(data)} bytes, {rate:.4f} bpp, PSNR {psnr:.2f} dB, ')
  assert [line.split(',')[0] for line in err.splitlines()] == [
    'photo.png fit: 500 steps',
    'photo.png finetune: 100 steps',
  ]


def test_decode_in_a_new_process(encoded, tmp_path):
  file, _ = encoded
  code, out, err = call('cgvq_jax', 'decode', file, tmp_path / 'large.png', '--scale', '1.5')
  assert (code, out, err) == (0, '', '')
  wanted = images.to_bytes8(codec.render(codec.decode(file.read_bytes()), 1.5))
  got = images.to_bytes8(images.load(tmp_path / 'large.png').pixels)
  assert got.shape == (72, 60, 3)
  np.testing.assert_array_equal(got, wanted)


def test_a_picture_goes_where_its_name_leads(encoded, tmp_path):
  file, _ = encoded
  link, long, whole = (tmp_path / name for name in ('link.png', 251 * 'n' + '.png', 'whole.png'))
  link.symlink_to(long.name)
  with (tmp_path / 'stdout').open('wb') as out:
    command = [sys.executable, '-m', 'cgvq_jax', 'decode', file, '/dev/stdout']
    subprocess.run(command, stdout=out, check=True)
  for path in (link, whole):
    assert cli.main(['decode', str(file), str(path)]) == 0
  assert link.is_symlink() and len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_what_the_format_of_a_picture_does_not_keep_is_said(tmp_path, capsys):
  golden = Path(__file__).parent / 'golden' / 'v2_photo_alpha.cgvq'
  for name, said in (('x.ppm', 'RGBA written as RGB, without alpha\n'), ('x.png', '')):
    assert cli.main(['decode', str(golden), str(tmp_path / name)]) == 0
    assert capsys.readouterr() == (said and f'{tmp_path / name}: {said}', '')


def test_a_reader_who_leaves_stops_no_work(encoded, folder, tmp_path):
  file, _ = encoded
  script = (
    'import sys\nfrom cgvq_jax import cli\n'
    'data = open(sys.argv[1], "rb").read()\ncli.codec.encode = lambda *a, **k: data\n'
    'sys.exit(cli.main(sys.argv[2:]))\n'
  )
  encode = ['encode', folder / 'photo.png', tmp_path / 'x.cgvq']
  for command in (encode, ['info', file]):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
      [sys.executable, '-c', script, file, *command], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b'')
  assert (tmp_path / 'x.cgvq').read_bytes() == file.read_bytes()


def test_any_name_is_printed(encoded, folder, tmp_path):
  file, _ = encoded
  name = os.fsdecode(b'caf\xe9 \xe6\x97\xa5.cgvq')
  (tmp_path / name).write_bytes(file.read_bytes())
  done = subprocess.run(
    [sys.executable, '-m', 'cgvq_jax', 'info', tmp_path / name],
    env={**os.environ, 'PYTHONIOENCODING': 'ascii'},
    capture_output=True,
  )
  assert (done.returncode, done.stderr) == (0, b'')
  assert rb'caf\udce9 \u65e5.cgvq: version 1' in done.stdout


def test_info(encoded, capsys):
  file, _ = encoded
  about = container.describe(file.read_bytes())
  assert cli.main(['info', str(file), '--json']) == 0
  assert json.loads(capsys.readouterr().out) == about
  assert cli.main(['info', str(file)]) == 0
  text = capsys.readouterr().out
  for fact in (
    'version 1',
    'method gi',
    '40 x 48 px, 3 channels',
    '60 Gaussians',
    '1 clusters',
    'sorted',
  ):
    assert fact in text
  for name, size in about['sections'].items():
    assert any(line.split()[:2] == [name, str(size)] for line in text.splitlines())


def test_options_reach_the_codec(encoded, folder, tmp_path, monkeypatch, capsys):
  seen = []

  def encode(pixels, method, settings, hooks):
    seen.append((method, settings))
    return encoded[0].read_bytes()

  monkeypatch.setattr(cli.codec, 'encode', encode)
  paths = [str(folder / 'photo.png'), str(tmp_path / 'x.cgvq')]
  assert cli.main(['encode', *paths, '--steps', '7', '--quiet']) == 0
  assert seen.pop() == (methods.cgvq_rd(), FitSettings(steps=7, finetune_steps=7))
  assert capsys.readouterr() == ('', '')
  options = (
    '--method gi --num_gaussians 5 --num_clusters 2 --order none --fit_steps 1 --finetune_steps 9'
    ' --seed 4'
  )
  assert cli.main(['encode', *paths, *options.split()]) == 0
  method = methods.gi(num_gaussians=5, num_clusters=2, order='none')
  assert seen.pop() == (method, FitSettings(steps=1, finetune_steps=9, seed=4))
  assert cli.main(['encode', *paths, '--preset', 'fast', '--num_gaussians', '8']) == 0
  assert seen.pop() == (methods.cgvq_rd(num_gaussians=8), PRESETS['fast'])


def test_quality_is_the_quantization_step(encoded, folder, tmp_path, monkeypatch):
  seen = []

  def encode(pixels, method, settings, hooks):
    seen.append(method.step_index)
    return encoded[0].read_bytes()

  monkeypatch.setattr(cli.codec, 'encode', encode)
  paths = [str(folder / 'photo.png'), str(tmp_path / 'x.cgvq')]
  for quality in ('1', '50', '100'):
    assert cli.main(['encode', *paths, '--quality', quality, '--quiet']) == 0
  assert seen == [170, 293, 418]


@pytest.mark.parametrize(
  ('target', 'code', 'file', 'said'),
  [
    ('--target_psnr 31', 0, 293, 'PSNR 31.00 dB, '),
    (
      '--target_psnr 33.7',
      0,
      308,
      'PSNR 34.00 dB, 0.0 s (wanted 33.7 to 33.8 dB; this is the best',
    ),
    ('--target_bpp 9', 0, 418, 'PSNR 34.00 dB, 0.0 s (wanted 8.82 to 9 bpp; this is the best of 3'),
    (
      '--target_psnr 60',
      1,
      418,
      'PSNR 34.00 dB, 0.0 s (wanted at least 60 dB; this is the closest',
    ),
  ],
)
def test_the_best_or_the_closest_file_is_written(
  folder, tmp_path, monkeypatch, capsys, target, code, file, said
):
  """Files that are step indices: 31 dB up to 307, 34 dB above, so that no file has 33.7."""

  def measure(pixels, data):
    return Measures(int(data) / 100, 31 if int(data) < 308 else 34 + int(data) / 1e5)

  monkeypatch.setattr(cli, 'Stopwatch', lambda: SimpleNamespace(elapsed=0.0))
  monkeypatch.setattr(cli.codec, 'encode', lambda pixels, method, *_: b'%d' % method.step_index)
  monkeypatch.setattr(cli.codec, 'measure', measure)
  path = tmp_path / 'x.cgvq'
  assert cli.main(['encode', str(folder / 'colour.png'), str(path), *target.split()]) == code
  assert int(path.read_bytes()) == file
  out, err = capsys.readouterr()
  assert out.startswith('quality 50: 3 bytes, 2.9300 bpp, PSNR 31.00 dB')
  last = err if code else out
  assert f'{path}: 3 bytes, {file / 100:.4f} bpp, {said}' in last.splitlines()[-1]


@pytest.mark.slow
def test_a_target_by_the_command_is_the_file_of_its_quality(folder, tmp_path, capsys):
  image = images.load(folder / 'colour.png').pixels
  files = [str(tmp_path / name) for name in ('target.cgvq', 'quality.cgvq')]
  same = ['encode', str(folder / 'colour.png')]
  options = ['--num_gaussians', '60', '--steps', '50']
  assert cli.main([*same, files[0], *options, '--target_psnr', '28']) == 0
  out = capsys.readouterr().out.splitlines()
  data = (tmp_path / 'target.cgvq').read_bytes()
  assert 28 <= codec.measure(image, data).psnr < 28.5 and len(out) <= 9
  facts = out[-1].removeprefix(f'{files[0]}: ').split(' dB')[0]  # bytes, bpp, PSNR
  quality = next(line.split()[1].rstrip(':') for line in out[:-1] if facts in line)
  assert cli.main([*same, files[1], *options, '--quality', quality]) == 0
  assert (tmp_path / 'quality.cgvq').read_bytes() == data


@pytest.mark.parametrize(
  ('command', 'wanted'),
  [
    ('encode missing.png x.cgvq', 'missing.png: wanted an image file, got no such file'),
    ('encode text.txt x.cgvq', 'text.txt: wanted an image file, got a file of an unknown kind'),
    ('encode photo.png x.png', 'x.png: wanted a name that ends in .cgvq'),
    ('encode photo.png nowhere/x.cgvq', 'x.cgvq: wanted a folder that exists, got'),
    ('encode photo.png .', 'wanted a name for a file, got a folder'),
    (f'encode photo.png {300 * "n"}.cgvq', 'wanted a name for a file, got: File name too long'),
    ('encode photo.png circle.cgvq', 'circle.cgvq: wanted a name for a file, got: Too many levels'),
    ('encode photo.png astray.cgvq', 'astray.cgvq: wanted a folder that exists, got'),
    ('encode colour.png x.cgvq --num_gaussians 9999999', '--num_gaussians: wanted 1 to'),
    ('encode colour.png x.cgvq --method gi --num_clusters 99', 'num_clusters: wanted 1 to 64, got'),
    ('encode colour.png x.cgvq --num_clusters 9', '--num_clusters: wanted a method that has it'),
    ('encode colour.png x.cgvq --order none', "--order: wanted a method that has it, got 'none'"),
    ('encode colour.png x.cgvq --target_bpp 0', '--target_bpp: wanted a number above 0, got 0'),
    ('encode colour.png x.cgvq --target_bpp 1 --quality 2', 'not allowed with argument'),
    (
      'encode a.png x.cgvq --method gi --target_psnr 30',
      '--target_psnr: wanted a method with a quality, got gi',
    ),
    ('encode photo.png x.cgvq --steps 0', '--fit_steps/--steps: wanted 1 or more, got 0'),
    ('encode photo.png x.cgvq --seed -1', '--seed: wanted 0 to'),
    ('encode photo.png x.cgvq --method jpeg', '--method: wanted one of cgvq_rd, cgvq, gi,'),
    ('encode photo.png x.cgvq --extension no_such_module', 'extension no_such_module: wanted a'),
    (
      'encode photo.png x.cgvq --method gi --quality 50',
      '--quality: wanted a method that has it, got 50.0 for gi',
    ),
    ('encode photo.png x.cgvq --quality 0', '--quality: wanted 1 to 100, got 0'),
    ('encode photo.png', 'required: OUT'),
    ('decode missing.cgvq x.png', 'missing.cgvq: wanted a file, got No such file'),
    ('decode photo.png x.png', 'photo.png: not a .cgvq file: wanted one'),
    ('decode photo.cgvq x.xyz', 'cgvq: x.xyz: wanted a name that ends in .png'),
    (f'decode photo.cgvq {300 * "n"}.png', 'wanted a name for a file, got: File name too long'),
    ('decode photo.cgvq nowhere/x.png', 'x.png: wanted a folder that exists, got'),
    ('decode photo.cgvq x.png --scale 1e6', 'cgvq: --scale: wanted sides of 1 to'),
    ('decode photo.cgvq x.png --scale nan', '--scale: wanted a number above 0, got nan'),
    ('decode photo.cgvq x.png --renderer opengl', '--renderer: wanted one of numpy, jax, got'),
    ('info text.txt', 'text.txt: not a .cgvq file: wanted one'),
    ('compare photo.png photo.cgvq --tiles nowhere/x.png', 'wanted a folder that exists'),
    (
      'compare photo.png photo.cgvq --with PNG',
      "--with: wanted one of JPEG, WebP, AVIF, JPEG 2000, got 'PNG'",
    ),
    ('compare photo.png photo.cgvq text.txt', 'text.txt: not a .cgvq file: wanted one'),
    ('compare photo.png photo.cgvq colour.png', 'colour.png: not a .cgvq file: wanted one'),
    (
      'compare large.png photo.cgvq',
      'photo.cgvq: wanted a file of 80 x 96 px and 3 channels as the original, got one of 40 x 48',
    ),
    ('compare grey.png photo.cgvq', 'wanted a file of 40 x 48 px and 1 channel as the original'),
    ('compare photo.png', 'required: FILE'),
    ('', 'required'),
    ('view photo.cgvq', "invalid choice: 'view'"),
  ],
)
def test_a_bad_command_is_one_line_and_2(encoded, folder, command, wanted, monkeypatch, capsys):
  monkeypatch.chdir(folder)
  assert cli.main(command.split()) == 2
  out, err = capsys.readouterr()
  assert out == '' and len(err.splitlines()) == 1
  assert err.startswith('cgvq') and wanted in err
  assert not list(folder.glob('x.*')) and not list(folder.glob('.*'))


def test_compare_is_a_table_and_pictures(encoded, folder, tmp_path, capsys):
  picture, tiles = (tmp_path / f'{name}.png' for name in ('picture', 'tiles'))
  arguments = ['compare', str(folder / 'photo.png'), str(encoded[0]), str(encoded[0])]
  options = ['--with', 'jpeg', 'JPEG-2000', '--picture', str(picture), '--tiles', str(tiles)]
  assert cli.main([*arguments, *options]) == 0
  out = capsys.readouterr().out
  width = len(str(encoded[0]))
  names = [line[:width].strip() for line in out.splitlines()[1:-2]]
  assert names == [str(encoded[0]), 'JPEG', 'JPEG 2000'] * 2
  pixels = images.load(folder / 'photo.png').pixels
  assert f' {codec.measure(pixels, encoded[0].read_bytes()).psnr:.2f} ' in out.splitlines()[1]
  assert f'{tiles}: the worst tiles' in out
  assert images.load(picture).pixels.std() > 0.1 < images.load(tiles).pixels.std()


def test_what_is_damaged_or_has_alpha_is_said(encoded, tmp_path, monkeypatch, capsys):
  data = encoded[0].read_bytes()
  (tmp_path / 'bad.cgvq').write_bytes(data[:-9] + b'x' + data[-8:])
  assert cli.main(['decode', str(tmp_path / 'bad.cgvq'), str(tmp_path / 'x.png')]) == 2
  assert (
    'bad.cgvq: damaged or truncated file: wanted contents of CRC-32 0x' in capsys.readouterr().err
  )
  monkeypatch.setattr(cli.container, 'describe', lambda data: {'channels': 4})
  assert cli.main(['decode', str(encoded[0]), str(tmp_path / 'x.jpg')]) == 2
  assert 'x.jpg: wanted a format for 4 channels, got: ' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('error', 'code', 'said'),
  [
    (FitError('not finite at step 3: gradient of color'), 1, 'cgvq: not finite at step 3'),
    (MemoryError(), 1, 'cgvq: MemoryError'),
    (KeyboardInterrupt(), 130, 'cgvq: stopped'),
  ],
)
def test_what_fails_on_the_way(folder, tmp_path, monkeypatch, capsys, error, code, said):
  def encode(*arguments):
    raise error

  monkeypatch.setattr(cli.codec, 'encode', encode)
  assert cli.main(['encode', str(folder / 'photo.png'), str(tmp_path / 'x.cgvq')]) == code
  assert capsys.readouterr().err.startswith(said)
  assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_1(encoded, folder, tmp_path, monkeypatch, capsys):
  def full(path, data):
    raise OSError(28, 'No space left on device', str(path))

  monkeypatch.setattr(images, 'write_atomically', full)
  assert cli.main(['decode', str(encoded[0]), str(tmp_path / 'x.png')]) == 1
  assert 'x.png' in (said := capsys.readouterr().err) and 'No space left' in said

  monkeypatch.setattr(files.os, 'replace', lambda a, b: full(b, a))
  monkeypatch.setattr(cli.codec, 'encode', lambda *a, **k: encoded[0].read_bytes())
  assert cli.main(['encode', str(folder / 'photo.png'), str(tmp_path / 'x.cgvq')]) == 1
  assert 'x.cgvq' in (said := capsys.readouterr().err) and 'No space left' in said
  assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_too_large_for_the_disk_is_a_line(encoded, folder, tmp_path):
  file, _ = encoded
  script = (
    'import resource, sys\nfrom cgvq_jax import cli\n'
    'data = open(sys.argv[1], "rb").read()\ncli.codec.encode = lambda *a, **k: data\n'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (99, 99))\nsys.exit(cli.main(sys.argv[2:]))\n'
  )
  for command in (['encode', folder / 'photo.png', 'x.cgvq'], ['decode', file, 'x.png']):
    done = subprocess.run(
      [sys.executable, '-c', script, file, *command], cwd=tmp_path, capture_output=True, text=True
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and 'x.' in line and 'File too large' in line
    assert list(tmp_path.iterdir()) == []


def test_a_search_has_a_line_for_each_quality(encoded, folder, tmp_path, monkeypatch, capsys):
  shown = []

  def encode(pixels, method, settings, hooks):
    shown.append(method)
    stage = SimpleNamespace(name='fit', num_steps=9)
    hooks.resume(stage, None)
    hooks.on_block(stage, None, Progress(9, 0.1, 30.0))
    return encoded[0].read_bytes()

  monkeypatch.setattr(cli.codec, 'encode', encode)
  paths = [str(folder / 'colour.png'), str(tmp_path / 'x.cgvq')]
  assert cli.main(['encode', *paths]) == 0
  assert capsys.readouterr().err.startswith('colour.png fit: 9 steps, 30.00 dB')
  shown.clear()
  assert cli.main(['encode', *paths, '--target_bpp', '0.01']) == 1
  out, err = capsys.readouterr()
  assert [line.split()[0] for line in out.splitlines()] == ['quality'] * len(shown)
  assert len(shown) > 1 and len(err.splitlines()) == 1


def test_help_teaches(capsys):
  for command in ([], ['encode'], ['decode'], ['info'], ['compare'], ['sample']):
    assert cli.main([*command, '--help']) == 0
    text = capsys.readouterr().out
    assert f'example:\n  cgvq {(command or ["encode"])[0]} photo' in text


def test_help_names_the_methods_that_an_unknown_one_is_answered_with(capsys):
  assert cli.main(['encode', '--help']) == 0
  words = re.findall(r'\w+', capsys.readouterr().out.split('--method NAME')[-1])
  assert cli.main(['encode', 'x.png', 'x.cgvq', '--method', 'nope']) == 2
  known = capsys.readouterr().err.split('wanted one of ')[1].split(', got')[0].split(', ')
  ours = known[: 5 + len(methods.ABLATIONS)]  # then those that other tests have registered
  assert len(ours) == 10 and set(ours) <= {*words}


def test_the_version_is_that_of_the_package(capsys):
  assert cli.main(['--version']) == 0
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())
  assert project['tool']['setuptools']['dynamic']['version'] == {'attr': 'cgvq_jax.__version__'}
  assert re.fullmatch(r'\d+\.\d+\.\d+', __version__)
  assert capsys.readouterr() == (f'cgvq {__version__}\n', '')
