"""The command line for single files: encode, decode, info, compare, sample."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from cgvq_jax import __version__, codec, extensions, rate_control
from cgvq_jax.bitstream import container, ordering
from cgvq_jax.console import INTERRUPTED, say
from cgvq_jax.evaluate import baselines
from cgvq_jax.evaluate.timer import Stopwatch
from cgvq_jax.fit.settings import PRESETS, FitSettings
from cgvq_jax.io import datasets, files, images
from cgvq_jax.rasterize import renderers

if TYPE_CHECKING:
  from jaxtyping import Float

# Only what every command needs is imported here: `info` and `decode` start without JAX.

_EXTENSION = '.cgvq'
_EPILOG = """example:
  cgvq encode photo.png photo.cgvq
  cgvq encode photo.png small.cgvq --quality 20
  cgvq encode photo.png small.cgvq --target_bpp 0.3
  cgvq info photo.cgvq
  cgvq decode photo.cgvq photo_again.png
  cgvq decode photo.cgvq larger.png --scale 2

exit codes: 0 done, 1 it failed on the way or no file reached the target (the closest is written),
2 a bad command or a bad file, 130 stopped by Ctrl-C
"""


class _Parser(argparse.ArgumentParser):
  """Whose errors are one line."""

  def error(self, message: str) -> NoReturn:
    self.exit(2, f'{self.prog}: {message} (see {self.prog} --help)\n')


class UsageError(ValueError):
  """What the command was given cannot work: its name, what was wanted and what was got."""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit code; errors are one line on stderr."""
  try:
    arguments = _parser().parse_args(argv)
  except SystemExit as finished:  # argparse's own, after --help or a usage error
    return int(finished.code or 0)
  try:
    extensions.load(getattr(arguments, 'extension', ()))
    arguments.command(arguments)
    return 0
  except (UsageError, images.ImageError, container.ContainerError) as error:
    return _failed(error, 2)
  except extensions.ExtensionError as error:
    return _failed(error, 2)
  except KeyboardInterrupt:
    return _failed('stopped', INTERRUPTED)
  except (RuntimeError, OSError, MemoryError) as error:  # FitError and XLA's are RuntimeErrors
    return _failed(error, 1)


def _encode(arguments: argparse.Namespace) -> None:
  """IN -> OUT, with a line for each conversion, progress, and a line about the file."""
  _check_place(arguments.output)
  if arguments.output.suffix.lower() != _EXTENSION and not files.is_special(arguments.output):
    raise UsageError(f'{arguments.output}: wanted a name that ends in {_EXTENSION}')
  _method(arguments, 3, arguments.quality)  # a wrong option is refused before any work
  _start_devices()
  say = _silent if arguments.quiet else _speaker(arguments.output)
  loaded = images.load(arguments.input)
  for note in loaded.notes:
    say(f'{arguments.input}: {note}')
  target, found = _target(arguments), None
  stopwatch = Stopwatch()
  if target:
    found = rate_control.search(_measured(arguments, loaded.pixels, say), target)
    data = found.data
  else:
    data = _encoded(arguments, loaded.pixels, arguments.quality)
  seconds = stopwatch.elapsed
  try:
    container.write_file(arguments.output, data)
  except container.ContainerError as error:  # the disk's fault and not the command's
    raise OSError(str(error)) from error
  measures = found.measures if found else codec.measure(loaded.pixels, data)
  line = f'{arguments.output}: {_facts(data, measures)}, {seconds:.1f} s'
  if target and found and not found.keeps_bound:
    raise rate_control.TargetError(
      f'{line} (wanted {target.bound}; this is the closest of {found.num_encodes} files)'
    )
  if target and found and not found.in_aim:
    line += f' (wanted {target.aim}; this is the best of {found.num_encodes} files)'
  say(line)


def _method(arguments: argparse.Namespace, channels: int, quality: float | None) -> Any:
  """The method with the options that were given."""
  from cgvq_jax.methods import registry

  given = {name: getattr(arguments, name) for name in ('num_gaussians', 'num_clusters', 'order')}
  try:
    known = registry.options(arguments.method)
    method = registry.make(arguments.method, channels, quality=quality, **given)
    method.check(channels)
  except ValueError as error:
    raise UsageError(f'--{error}') from error
  for target in ('target_bpp', 'target_psnr'):
    if getattr(arguments, target) is not None and 'quality' not in known:
      raise UsageError(f'--{target}: wanted a method with a quality, got {arguments.method}')
  return method


def _settings(arguments: argparse.Namespace) -> FitSettings:
  """The preset with the numbers that were given."""
  preset = PRESETS[arguments.preset]
  return preset._replace(
    steps=arguments.fit_steps or preset.steps,
    finetune_steps=arguments.finetune_steps or arguments.fit_steps or preset.finetune_steps,
    seed=arguments.seed,
  )


def _facts(data: bytes, measures: rate_control.Measures) -> str:
  return f'{len(data)} bytes, {measures.bpp:.4f} bpp, PSNR {measures.psnr:.2f} dB'


def _target(arguments: argparse.Namespace) -> rate_control.Target | None:
  if arguments.target_bpp is not None:
    return rate_control.at_most_bpp(arguments.target_bpp)
  if arguments.target_psnr is not None:
    return rate_control.at_least_psnr(arguments.target_psnr)
  return None


def _measured(
  arguments: argparse.Namespace, pixels: Float[np.ndarray, 'H W C'], say: Callable[[str], None]
) -> Callable[[float], tuple[bytes, rate_control.Measures]]:
  """The file of a quality and its measures, with a line about them."""

  def encode(quality: float) -> tuple[bytes, rate_control.Measures]:
    data = _encoded(arguments, pixels, quality)
    measures = codec.measure(pixels, data)
    say(f'quality {quality:g}: {_facts(data, measures)}')
    return data, measures

  return encode


def _encoded(
  arguments: argparse.Namespace, pixels: Float[np.ndarray, 'H W C'], quality: float | None
) -> bytes:
  from cgvq_jax.fit.driver import Hooks
  from cgvq_jax.jobs.progress import Bars

  method, settings = _method(arguments, pixels.shape[2], quality), _settings(arguments)
  # Elsewhere than on a terminal, a search for a target has a line for each quality that it tries.
  searching = (arguments.target_bpp or arguments.target_psnr) and not sys.stderr.isatty()
  bars = Bars(arguments.input.name, arguments.quiet or bool(searching))

  def resume(stage: Any, state: Any) -> Any:
    bars.begin(stage)
    return state

  def on_block(stage: Any, state: Any, progress: Any) -> None:
    del state
    bars.show(stage, progress)

  try:
    return codec.encode(pixels, method, settings, Hooks(resume, on_block))
  except ValueError as error:
    raise UsageError(f'{arguments.input}: {error}') from error
  finally:
    bars.close()


def _decode(arguments: argparse.Namespace) -> None:
  """IN -> an image at OUT."""
  _check_place(arguments.output)
  if arguments.renderer and arguments.renderer not in renderers.RENDERERS:
    known = ', '.join(renderers.RENDERERS)
    raise UsageError(f'--renderer: wanted one of {known}, got {arguments.renderer!r}')
  data = container.read_file(arguments.input)
  with _naming(arguments.input):
    _check_format(arguments.output, container.describe(data)['channels'])
    decoded = codec.decode(data)
  try:
    codec.scaled_size(decoded, arguments.scale)
  except ValueError as error:
    raise UsageError(f'--{error}') from error
  with _naming(arguments.input):
    pixels = codec.render(decoded, arguments.scale, _renderer(arguments, decoded))
  try:
    notes = images.save(arguments.output, pixels)
  except images.ImageError as error:  # its format was tried: the disk, or a limit on sides
    raise OSError(str(error)) from error
  _say_notes(arguments.output, notes)


def _renderer(arguments: argparse.Namespace, decoded: codec.Decoded) -> str:
  """The name given, or the choice by the work; JAX's then gets every core."""
  size = (round(side * arguments.scale) for side in (decoded.height, decoded.width))
  name = arguments.renderer or renderers.choose(decoded.gaussians.num_gaussians, *size)
  if name == 'jax':
    _start_devices()
  return name


def _start_devices() -> None:
  """Every core, or a GPU, before the work."""
  from cgvq_jax import devices

  devices.use_all()
  try:
    devices.check()
  except devices.DeviceError as error:
    raise UsageError(str(error)) from error


def _info(arguments: argparse.Namespace) -> None:
  """What is in a file."""
  data = container.read_file(arguments.input)
  with _naming(arguments.input):
    about = container.describe(data)
  if arguments.json:
    say(json.dumps(about, indent=1))
    return
  say(f'{arguments.input}: version {about["version"]}, method {about["method"]}')
  say(f'image         {about["width"]} x {about["height"]} px, {about["channels"]} channels')
  say(f'N             {about["num_gaussians"]} Gaussians')
  if about.get('num_clusters'):  # which a registered format need not have
    say(f'K             {about["num_clusters"]} clusters')
    say(f'order         {about.get("order", "-")}')
  say(f'size          {about["bytes"]} bytes, {about["bpp"]:.4f} bpp')
  for name, size in about['sections'].items():
    say(f'  {name:<15} {size:>9} bytes {100 * size / about["bytes"]:5.1f} %')


def _compare(arguments: argparse.Namespace) -> None:
  """A table of files and of other codecs at the same bytes, and pictures of the first file."""
  from cgvq_jax.evaluate import compare

  for path in filter(None, (arguments.picture, arguments.tiles)):
    _check_place(path)
    _check_format(path, 3)
  original = images.to_bytes8(images.load(arguments.input).pixels)
  given = [(path, container.read_file(path)) for path in arguments.files]
  for path, data in given:  # before the work
    with _naming(path):
      compare.check(original, data)
  compared = []
  for path, data in given:
    with _naming(path):
      compared.append(compare.compare(original, str(path), data, arguments.compare_with))
  say(compare.table(original, compared, arguments.encode_seconds))
  if arguments.picture:
    compare.save_side_by_side(original, compared[0], arguments.picture)
    say(f'{arguments.picture}: original, decoded, error, Gaussians')
  if arguments.tiles:
    compare.save_worst_tiles(original, compared[0], arguments.tiles)
    say(f'{arguments.tiles}: the worst tiles')


def _sample(arguments: argparse.Namespace) -> None:
  """The sample photograph -> an image at OUT."""
  _check_place(arguments.output)
  _check_format(arguments.output, 3)
  _say_notes(arguments.output, images.save(arguments.output, datasets.sample_photograph()))


def _speaker(output: Path) -> Callable[[str], None]:
  """Prints lines, on stderr where the standard output is what the command writes."""
  return partial(say, file=sys.stderr) if files.is_stdout(output) else say


def _say_notes(output: Path, notes: Iterable[str]) -> None:
  say = _speaker(output)
  for note in notes:
    say(f'{output}: {note}')


@contextmanager
def _naming(path: Path) -> Iterator[None]:
  """Puts the file's name before an error in what it holds."""
  try:
    yield
  except (UsageError, images.ImageError):
    raise
  except ValueError as error:
    raise UsageError(f'{path}: {error}') from error


def _check_place(path: Path) -> None:
  """Before the work: that a file can be written there."""
  try:
    target = files.target_of(path)
  except OSError as error:  # too long a name, links in a circle
    raise UsageError(f'{path}: wanted a name for a file, got: {error.strerror}') from error
  if target.is_dir():
    raise UsageError(f'{path}: wanted a name for a file, got a folder')
  if files.is_special(path):
    return
  if not target.parent.is_dir():
    raise UsageError(f'{path}: wanted a folder that exists, got {target.parent}')
  if not os.access(target.parent, os.W_OK):
    raise UsageError(f'{path}: wanted a folder that can be written, got {target.parent}')


def _check_format(path: Path, channels: int) -> None:
  """Before the work: that Pillow writes such files, by writing one pixel."""
  file_format = images.format_of(path)
  try:
    pixel = images.to_picture(np.zeros((1, 1, channels), np.uint8))
    pixel.save(io.BytesIO(), file_format)
  except (OSError, ValueError) as error:
    raise UsageError(f'{path}: wanted a format for {channels} channels, got: {error}') from error


def _whole(text: str) -> int:
  """A whole number from 1."""
  if (number := int(text)) < 1:
    raise argparse.ArgumentTypeError(f'wanted 1 or more, got {number}')
  return number


def _positive(text: str) -> float:
  """A finite number above 0."""
  if not 0 < (number := float(text)) < math.inf:
    raise argparse.ArgumentTypeError(f'wanted a number above 0, got {text}')
  return number


def _seed(text: str) -> int:
  if not 0 <= (number := int(text)) < 2**32:
    raise argparse.ArgumentTypeError(f'wanted 0 to {2**32 - 1}, got {number}')
  return number


def _quality(text: str) -> float:
  if not 1 <= (number := float(text)) <= 100:
    raise argparse.ArgumentTypeError(f'wanted 1 to 100, got {text}')
  return number


def _codec(text: str) -> str:
  try:
    return baselines.canonical(text)
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error).removeprefix('codec: ')) from error


def _parser() -> argparse.ArgumentParser:
  style: dict[str, Any] = {'formatter_class': argparse.RawDescriptionHelpFormatter}
  parser = _Parser(
    'cgvq', description='Images as 2D Gaussians in a small file, and back.', epilog=_EPILOG, **style
  )
  parser.add_argument('--version', action='version', version=f'cgvq {__version__}')
  commands = parser.add_subparsers(required=True, metavar='encode|decode|info|compare|sample')

  def add(name: str, command: Callable[..., None], about: str, example: str):
    epilog = f'example:\n  cgvq {example}'
    added = commands.add_parser(name, help=about, description=about, epilog=epilog, **style)
    added.set_defaults(command=command)
    added.add_argument('input', metavar='IN', type=Path)
    return added

  def extension(command: argparse.ArgumentParser) -> None:
    command.add_argument(
      '--extension',
      action='append',
      default=[],
      metavar='MODULE',
      help='load a module, or a .py file, that registers methods, quantizers, renderers or formats',
    )

  encode = add(
    'encode',
    _encode,
    'Compress an image (any that Pillow reads) into a .cgvq file.',
    'encode photo.png photo.cgvq --quality 70 --preset best',
  )
  encode.add_argument('output', metavar='OUT', type=Path, help='ends in .cgvq')
  number: dict[str, Any] = {'type': _whole, 'metavar': 'N'}
  encode.add_argument(
    '--method',
    default='cgvq_rd',
    metavar='NAME',
    help="%(default)s, the smallest files; the papers' cgvq, gi, cgvq_fp16, gi_fp16; cgvq_rd with a"
    ' part of it off: rd_no_rate, rd_no_presence, rd_common_steps, rd_rgb_axes, rd_one_group_each;'
    ' or one that an extension registers (default: %(default)s)',
  )
  rate = encode.add_mutually_exclusive_group()
  rate.add_argument(
    '--quality',
    type=_quality,
    metavar='Q',
    help='of cgvq_rd: 1, small, to 100, precise (default: 50)',
  )
  rate.add_argument(
    '--target_bpp',
    type=_positive,
    metavar='B',
    help='of cgvq_rd: the highest PSNR found at a rate of at most B, aiming at 98 %% of it or more;'
    ' takes about three times as long',
  )
  rate.add_argument(
    '--target_psnr',
    type=_positive,
    metavar='P',
    help='of cgvq_rd: the smallest file found that has P dB, aiming at P + 0.1 or less',
  )
  encode.add_argument(
    '--num_gaussians',
    help="at most (default: 10000 for the papers' methods, whose rate it decides; by quality for"
    ' cgvq_rd, which starts from as many and prunes)',
    **number,
  )
  encode.add_argument(
    '--num_clusters', help="of the papers' methods (default: the method's own)", **number
  )
  presets = ', '.join(
    f'{name} {preset.steps} + {preset.finetune_steps}' for name, preset in PRESETS.items()
  )
  encode.add_argument(
    '--preset',
    choices=PRESETS,
    default='default',
    help=f'steps to fit and to fine-tune: {presets}',
  )
  encode.add_argument('--fit_steps', '--steps', help="default: the preset's", **number)
  encode.add_argument(
    '--finetune_steps', help='default: as many as --fit_steps, or the preset', **number
  )
  encode.add_argument(
    '--order',
    choices=ordering.ORDERS,
    help="of the papers' methods: the order of the Gaussians in the file (default: sorted, which is"
    ' the shortest)',
  )
  encode.add_argument('--seed', type=_seed, default=0, metavar='N', help='default: %(default)s')
  extension(encode)
  encode.add_argument('--quiet', action='store_true', help='print nothing but errors')

  decode = add(
    'decode',
    _decode,
    'Make an image of a .cgvq file, at its size or any other.',
    'decode photo.cgvq photo.png --scale 2',
  )
  extension(decode)
  decode.add_argument('output', metavar='OUT', type=Path, help='ends in .png or so')
  decode.add_argument('--scale', type=_positive, default=1.0, metavar='S', help='default: 1')
  decode.add_argument(
    '--renderer',
    metavar='NAME',
    help='numpy, jax or one that an extension registers (default: by Gaussians x pixels)',
  )

  info = add('info', _info, 'Say what is in a .cgvq file.', 'info photo.cgvq --json')
  extension(info)
  info.add_argument('--json', action='store_true', help='all of it, as JSON')

  comparing = add(
    'compare',
    _compare,
    'Compare .cgvq files with their original, and with JPEG at the same bytes.',
    'compare photo.png photo.cgvq small.cgvq --with JPEG WebP AVIF --tiles tiles.png',
  )
  extension(comparing)
  comparing.add_argument(
    'files', metavar='FILE', nargs='+', type=Path, help='.cgvq files of the image IN'
  )
  comparing.add_argument(
    '--picture',
    metavar='OUT',
    type=Path,
    help='write a picture of the first file: original, decoded, error, Gaussians',
  )
  comparing.add_argument(
    '--tiles',
    metavar='OUT',
    type=Path,
    help='write a picture of the parts where the first file has the largest error',
  )
  comparing.add_argument(
    '--with',
    dest='compare_with',
    nargs='+',
    type=_codec,
    default=['JPEG'],
    metavar='CODEC',
    help=f'of {", ".join(baselines.CODECS)}, in any case, with or without spaces (default: JPEG)',
  )
  comparing.add_argument(
    '--encode_seconds', type=_positive, metavar='S', help="the first file's, for the table"
  )

  about = 'Write a photograph to try with.'
  example = 'example:\n  cgvq sample photo.png'
  sample = commands.add_parser('sample', help=about, description=about, epilog=example, **style)
  sample.add_argument('output', metavar='OUT', type=Path, help='ends in .png or so')
  sample.set_defaults(command=_sample)
  return parser


def _silent(line: str) -> None:
  del line


def _failed(error: object, code: int) -> int:
  text = str(error).strip() or type(error).__name__
  say(f'cgvq: {text.splitlines()[0]}', sys.stderr)
  return code
