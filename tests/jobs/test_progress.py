"""A bar on a terminal, a line elsewhere, nothing when quiet."""

from __future__ import annotations

import io
from types import SimpleNamespace

from cgvq_jax.fit.stages import Progress
from cgvq_jax.jobs.progress import Bars

FIT, FINETUNE = (
  SimpleNamespace(name=name, num_steps=steps) for name, steps in (('fit', 100), ('finetune', 50))
)


class Terminal(io.StringIO):
  def isatty(self):
    return True


def shown(file, quiet=False):
  bars = Bars('x', quiet, file)
  bars.begin(FIT, 25)
  bars.show(FIT, Progress(50, 0.1, 31.234))
  bars.show(FIT, Progress(100, 0.1, 32.5))
  bars.begin(FINETUNE, 50)  # finished by an earlier process
  bars.close()
  return file.getvalue()


def test_a_terminal_gets_a_bar():
  text = shown(Terminal())
  assert 'x fit: 25/100' in text and 'x fit: 100/100' in text
  assert '32.50 dB' in text and 'left' in text and text.endswith('\n')
  assert 'finetune' not in text


def test_a_file_gets_a_line_a_stage():
  (line,) = shown(io.StringIO()).splitlines()
  assert line.startswith('x fit: 100 steps, 32.50 dB, ')


def test_quiet_is_quiet():
  assert shown(Terminal(), quiet=True) == shown(io.StringIO(), quiet=True) == ''
