"""Encodes a set of images by several methods, decodes the files, measures and reports.

Example, two images at two numbers of Gaussians:

  python -m cgvq_jax.main --config=configs/kodak.py --workdir=runs/kodak \\
    --config.data.images=kodim15,kodim05 --config.method=cgvq --config.num_gaussians='(5000,10000)'

The images are those of the folder config.data.root. Where it is empty they are Kodak's 24
photographs, in the folder that the environment variable CGVQ_KODAK names or else in data/kodak;
the name 'sample' is a photograph that needs no download. Each value of the config can be set as
--config.name=value; lists are (5000,10000) or gi,cgvq. Modules that register more methods, losses
and so on are loaded from config.extensions and from the environment variable CGVQ_EXTENSIONS,
separated as in PATH: see docs/EXTENDING.md.

The working folder gets <method>/<setting>/<image>.cgvq and .png, results.json, report.md and plots;
a setting is a quality or a number of Gaussians. A job that was stopped or killed continues when the
same command is run again; where all is done, the command does nothing.

A config with `fits`, such as configs/ablation.py, compares fit settings instead: nothing is
quantized, and the working folder gets fit_study.md and fit_study.png.

Exit codes: 0 all done, 1 some image failed, 2 a bad command or config, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cgvq_jax.console import INTERRUPTED, ends_on_interrupt, raise_on_interrupt, say

with ends_on_interrupt():
  from absl import app, flags, logging
  from ml_collections import config_flags

  from cgvq_jax import devices, extensions
  from cgvq_jax.io import images
  from cgvq_jax.jobs import config, fit_study, rate_distortion

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'The config file, such as configs/kodak.py.'
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'The folder for results; made if it is missing.')


_REFUSED = (
  config.ConfigError,
  extensions.ExtensionError,
  images.ImageError,
  devices.DeviceError,
  OSError,
)


def main(argv: Sequence[str]) -> int:
  """Runs the job of the flags; returns the exit code."""
  raise_on_interrupt()  # SIGTERM too, so that the state of the running stage is saved
  try:
    devices.use_all()
    devices.check()
    if len(argv) > 1:
      raise config.ConfigError(f'wanted flags only, got {argv[1]!r}')
    if not _WORKDIR.value:
      raise config.ConfigError('--workdir: wanted a folder for the results, got none')
    if _CONFIG.value is None:
      raise config.ConfigError('--config: wanted a file such as configs/kodak.py, got none')
    modules = config.extensions(_CONFIG.value)
    extensions.load(modules)
    extensions.export(modules)  # to the processes that decode
    is_study = 'fits' in _CONFIG.value
    if is_study:
      arguments = config.fit_study_arguments(_CONFIG.value)
    else:
      arguments = config.rate_distortion_arguments(_CONFIG.value)
    Path(_WORKDIR.value).mkdir(parents=True, exist_ok=True)
  except _REFUSED as error:
    say(_flag_error(error), sys.stderr)  # a missing config file is noticed here
    return 2
  try:
    run = fit_study.run if is_study else rate_distortion.run
    outcome = run(workdir=_WORKDIR.value, **arguments)
  except KeyboardInterrupt:
    _end('stopped; the same command continues from here')
  except OSError as error:
    say(f'{_WORKDIR.value}: {error}', sys.stderr)
    return 1
  what, page = ('fits', fit_study.REPORT) if is_study else ('files', 'report.md')
  if not outcome.made and not outcome.failures:
    say(f'nothing to do: {outcome.unchanged} {what} are there and unchanged')
    return 0
  say(
    f'{outcome.made} {what} made, {outcome.unchanged} unchanged, {len(outcome.failures)} failures;'
    f' see {Path(_WORKDIR.value) / page}'
  )
  return 1 if outcome.failures else 0


def parse_flags(argv: Sequence[str]) -> list[str]:
  """As absl does, but a bad flag or a bad config file is one line and exit code 2."""
  try:
    remaining = flags.FLAGS(argv)
  except SystemExit:  # --help, which absl ends with 1
    sys.exit(0)
  except Exception as error:  # absl's, ml_collections', and what a config file itself raises
    say(f'{_flag_error(error)} (see --help)', sys.stderr)
    sys.exit(2)
  if flags.FLAGS['verbosity'].using_default_value:
    flags.FLAGS.verbosity = logging.WARNING  # orbax logs every step of a save
  return remaining


_KINDS = {'int': 'a whole number', 'float': 'a number', 'bool': 'true or false'}


def _flag_error(error: BaseException) -> str:
  """One line; ml_collections wraps its error about an unknown name in another."""
  text = _one_line(error)
  # The error of opening the file stands at the end of what ml_collections says about it.
  if parts := re.fullmatch(r".* failure to load: .*\[Errno \d+\] (.*): '(.*)'", text):
    return f'--config: wanted a file such as configs/kodak.py, got {parts[2]}: {parts[1]}'
  # absl names the flag and the value, but then it says what Python's int or float says.
  if parts := re.fullmatch(r'flag --([\w.]+)=(.*): .*?(int|float|bool).*', text):
    return f'--{parts[1]}: wanted {_KINDS[parts[3]]}, got {parts[2]!r}'
  if isinstance(error, AttributeError | KeyError) and error.args:
    inner = error.args[0]
    inner = inner.args[0] if isinstance(inner, KeyError) else inner
    return _one_line(f'unknown name in the config: {inner}')
  return text


def _one_line(error: object) -> str:
  return ' '.join(str(error).split())


def _end(message: str) -> NoReturn:
  """Ends the process without Python's own end, which may crash while XLA's threads work."""
  say(message, sys.stderr)
  os._exit(INTERRUPTED)


if __name__ == '__main__':
  try:
    app.run(main, flags_parser=parse_flags)
  except KeyboardInterrupt:
    _end('stopped')
