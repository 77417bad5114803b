"""Lines reach any output, a reader who leaves is no error, and Ctrl-C at the start is one line."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cgvq_jax.console import say

ENVIRONMENT = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[1])}
LINES = 'from cgvq_jax.console import say\nfor i in range(9):\n  say("line")\n'


def in_new_process(script: str, **options) -> subprocess.CompletedProcess[bytes]:
  command = [sys.executable, '-c', script]
  return subprocess.run(command, env=ENVIRONMENT, stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize(
  ('encoding', 'wanted'),
  [
    ('ascii', rb'\u65e5\u672c caf\xe9 \udce9'),
    ('latin-1', b'\\u65e5\\u672c caf\xe9 \\udce9'),
    ('utf-8', '日本 café \\udce9'.encode()),
  ],
)
def test_what_the_encoding_lacks_is_escaped(encoding, wanted):
  written = io.BytesIO()
  stream = io.TextIOWrapper(written, encoding)
  say('日本 café \udce9', stream)
  assert written.getvalue() == wanted + b'\n'


def test_a_reader_who_leaves_is_no_error():
  reading, writing = os.pipe()
  os.close(reading)
  done = in_new_process(LINES, stdout=writing)
  os.close(writing)
  assert (done.returncode, done.stderr) == (0, b'')


def test_a_full_disk_is_one_error():
  if not Path('/dev/full').exists():
    pytest.skip('no /dev/full')
  script = (
    'import sys\nfrom cgvq_jax.console import say\n'
    'try:\n  say("line")\nexcept OSError as error:\n  sys.exit(error.strerror)\n'
  )
  with open('/dev/full', 'wb') as full:
    done = in_new_process(script, stdout=full)
  assert (done.returncode, done.stderr) == (1, b'No space left on device\n')


def test_a_closed_output_is_no_error():
  command = ['sh', '-c', 'exec "$@" >&-', '-', sys.executable, '-c', LINES]
  done = subprocess.run(command, env=ENVIRONMENT, stderr=subprocess.PIPE)
  assert (done.returncode, done.stderr) == (0, b'')


@pytest.mark.parametrize('module', ['cgvq_jax', 'cgvq_jax.main'])
def test_ctrl_c_while_modules_load_is_one_line(module, tmp_path):
  # NumPy is the first of the large modules: one that waits stands in for it.
  (tmp_path / 'numpy.py').write_text(
    'import time\nprint("loading", flush=True)\ntry:\n  time.sleep(60)\n'
    'except BaseException as error:\n  raise ImportError("as NumPy does") from error\n'
  )
  environment = {**ENVIRONMENT, 'PYTHONPATH': f'{tmp_path}:{ENVIRONMENT["PYTHONPATH"]}'}
  process = subprocess.Popen(
    [sys.executable, '-m', module, 'info', 'x.cgvq'],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout and process.stdout.readline() == 'loading\n'
  process.send_signal(signal.SIGINT)
  assert process.communicate(timeout=30)[1] == 'stopped\n'
  assert process.returncode == 130


def test_an_interrupt_that_python_drops_is_raised_again():
  script = (
    'import gc, os, signal, sys\nfrom cgvq_jax import console\n'
    'console.raise_on_interrupt()\nconsole.check_interrupt()\n'
    'gc.callbacks.append(lambda *_: os.kill(os.getpid(), signal.SIGINT))\n'
    'gc.collect()\ngc.callbacks.clear()\n'
    'try:\n  console.check_interrupt()\nexcept KeyboardInterrupt:\n  sys.exit(3)\n'
  )
  done = in_new_process(script)
  assert (done.returncode, done.stderr) == (3, b'')


def test_ctrl_c_ends_a_command_and_its_temporary_files(tmp_path):
  script = (
    'import os, sys, time\nfrom cgvq_jax import console\nfrom cgvq_jax.io import files\n'
    'def wait(descriptor):\n  print("writing", flush=True)\n  time.sleep(60)\n'
    'os.fsync = wait\n'
    'with console.ends_on_interrupt(files.remove_unfinished):\n'
    '  files.write_atomically(sys.argv[1], b"x")\n'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', script, tmp_path / 'x'],
    env=ENVIRONMENT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout and process.stdout.readline() == 'writing\n'
  assert len(list(tmp_path.iterdir())) == 1
  process.send_signal(signal.SIGINT)
  assert process.communicate(timeout=30)[1] == 'stopped\n'
  assert process.returncode == 130 and list(tmp_path.iterdir()) == []
