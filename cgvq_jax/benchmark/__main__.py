"""How long the parts take: the rasterizer, one fit step, decoding files.

  python -m cgvq_jax.benchmark rasterize [--scenes kodim15-10k ...] [--implementations xla ...]
  python -m cgvq_jax.benchmark step
  python -m cgvq_jax.benchmark profile [--scene kodim15-10k] [--stages fit cgvq]
  python -m cgvq_jax.benchmark decode a.cgvq b.cgvq ...
  python -m cgvq_jax.benchmark bitstream a.cgvq b.cgvq ...
  python -m cgvq_jax.benchmark kernels [--devices H100 A100] [--tile 16x16]
  python -m cgvq_jax.benchmark gpu [--scene kodim15-10k] [--seconds 300]

rasterize: each scene by each implementation, in a process of its own; compile seconds and warm
milliseconds apart, least of several. An evaluated pair is one Gaussian's weight at one pixel; it is
needed where q <= ln 255 and the pixel is in the image. `evaluated` is of value and gradient, which
evaluates each pair once. The floor is the time of one (forward) or two (value and gradient)
exponentials of XLA's for each evaluated pair, on data that stays in cache,
on the same cores in the same run.

step: value, gradient and update of a fit with the binning it needs, and the same through the
definition, which evaluates every Gaussian at every pixel, at a size that both can do.

profile: which part of a step takes which share of it, by JAX's profiler, of fitting and of
fine-tuning through a method's quantizers. A part is a `jax.named_scope`; what XLA fused counts
where it ends.

decode: bytes to integers (entropy decoding), to Gaussians (look-ups) and to pixels, and the whole;
file after file, round after round, so that a machine whose speed drifts is fair to all of them.

bitstream: what each file's integers take in each order of the Gaussians, and how much each saves of
log2 of the number of orders; then each column of rotation, scale and colour beside its entropy and
beside other models.

kernels: registers, spills and shared memory of the GPU kernels, compiled for GPUs that need not be
here; wants the compilers of launch/compilers.sh. Fails where a kernel does not compile or fit.

gpu: on an NVIDIA GPU, which `launch/gpu_check.sh` sees to: every implementation by batches of 1, 4
and 16 images, against floors measured beside, whole steps of a fit, and the fit of a photograph.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cgvq_jax import codec, devices
from cgvq_jax.benchmark import cpu, crosscompile, entropy, profiling
from cgvq_jax.benchmark import gpu as accelerator
from cgvq_jax.benchmark.scenes import SCENES, USUAL
from cgvq_jax.bitstream import container
from cgvq_jax.io.files import write_atomically
from cgvq_jax.methods.registry import CODEBOOK_METHODS
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.quantize.clustered import CodebookSymbols
from cgvq_jax.rasterize import tiles
from cgvq_jax.rasterize.pallas import VARIANTS

# --- decode ---


def _tile_pairs(gaussians: Gaussians, height: int, width: int) -> int:
  """Entries of the tile lists: what a rendering costs, whatever it shows."""
  room = tiles.initial_capacity(gaussians.num_gaussians, height, width)
  while (needed := int(tiles.assign(gaussians, height, width, room)[-1])) > room:
    room = tiles.round_capacity(needed)
  return needed


def decode(files: Sequence[Path], rounds: int = 25) -> list[dict[str, Any]]:
  """Median warm milliseconds from each file's bytes to integers, to Gaussians and to pixels."""
  contents = {str(file): container.read_file(file) for file in files}
  seconds: dict[str, list[list[float]]] = {file: [] for file in contents}
  for _ in range(1 + rounds):
    for file, data in contents.items():
      start = time.perf_counter()
      container.read(data)
      read = time.perf_counter()
      decoded = codec.decode(data)
      thawed = time.perf_counter()
      codec.render(decoded)
      rendered = time.perf_counter()
      seconds[file].append([read - start, thawed - read, rendered - thawed])
  rows = []
  print('| file | bytes | integers ms | Gaussians ms | pixels ms | decode ms | tile pairs |')
  print(7 * '|---' + '|')
  for file, each in seconds.items():
    read, decode, render = 1e3 * np.array(each[1:]).T
    gaussians, height, width, _ = codec.decode(contents[file])
    row = {
      'file': file,
      'bytes': len(contents[file]),
      'read_ms': statistics.median(read),
      'look_up_ms': statistics.median(decode - read),
      'render_ms': statistics.median(render),
      'decode_ms': statistics.median(decode + render),
      'tile_pairs': _tile_pairs(gaussians, height, width),
    }
    rows.append(row)
    print(
      f'| {file} | {row["bytes"]} | {row["read_ms"]:.1f} | {row["look_up_ms"]:.1f} '
      f'| {row["render_ms"]:.1f} | {row["decode_ms"]:.1f} | {row["tile_pairs"]} |'
    )
  return rows


def bitstream(files: Sequence[Path]) -> dict[str, Any]:
  """See `coding`."""
  orders, columns = [], []
  for file in files:
    symbols = container.read(container.read_file(file))
    if not isinstance(symbols, CodebookSymbols):
      raise ValueError(f'{file}: wanted a file of codebooks, got one of {symbols.method}')
    orders.append({'file': str(file), **entropy.orders(symbols)})
    columns += [{'file': str(file), **row} for row in entropy.columns(symbols)]
  print(f'{entropy.order_table(orders)}\n\n{entropy.column_table(columns)}')
  return {'orders': orders, 'columns': columns}


# --- GPU kernels ---


def kernels(
  devices: Sequence[str], variants: Sequence[str] | None, tile: tiles.TileShape
) -> list[dict[str, Any]]:
  """What each takes of a multiprocessor. Raises SystemExit where one does not compile or fit."""
  columns = crosscompile.Needs._fields
  print(f'| {" | ".join(columns)} |\n{len(columns) * "|---"}|')
  rows, failures = [], []
  for device in devices:
    made, failed = crosscompile.all_needs(device, variants or crosscompile.offered(device), tile)
    rows += made
    failures += failed
  for row in rows:
    print(f'| {" | ".join(map(str, row))} |')
  failures += [f'{row.device} {row.variant} {row.kernel}: too big' for row in rows if not row.fits]
  for failure in failures:
    print(f'failed: {failure}')
  if failures:
    raise SystemExit(1)
  return [row._asdict() for row in rows]


def gpu(scene: str, seconds: float, fit_steps: int) -> dict[str, Any]:
  """See `accelerator`. Raises SystemExit where there is no GPU, or nothing ran."""
  if jax.default_backend() != 'gpu':
    print(f'skipped: wanted an NVIDIA GPU, JAX has {jax.default_backend()}')
    raise SystemExit(3)
  options = {'seconds': seconds, 'fit_steps': fit_steps}
  measured = accelerator.run(scene, accelerator.candidates(), **options)
  if not measured['rows']:
    raise SystemExit(1)
  return measured


def main(argv: Sequence[str] | None = None) -> None:
  """Prints tables, and writes them as JSON where that is wanted."""
  style: dict[str, Any] = {'formatter_class': argparse.RawDescriptionHelpFormatter}
  parser = argparse.ArgumentParser('python -m cgvq_jax.benchmark', description=__doc__, **style)
  commands = parser.add_subparsers(
    required=True, metavar='rasterize|step|profile|decode|bitstream|kernels|gpu'
  )

  def add(name: str, run: Callable[[argparse.Namespace], Any], about: str):
    added = commands.add_parser(name, help=about, description=about)
    added.set_defaults(run=run)
    added.add_argument('--json', type=Path, metavar='FILE', help='write the rows there as well')
    return added

  command = add(
    'rasterize', lambda a: cpu.rasterize(a.scenes, a.implementations), 'The rasterizers.'
  )
  choice: dict[str, Any] = {'nargs': '+', 'metavar': 'NAME'}
  command.add_argument(
    '--scenes',
    choices=SCENES,
    default=USUAL,
    help=f'of {", ".join(SCENES)}; all but the last',
    **choice,
  )
  command.add_argument(
    '--implementations',
    choices=cpu.IMPLEMENTATIONS,
    default=list(cpu.IMPLEMENTATIONS),
    help=f'of {", ".join(cpu.IMPLEMENTATIONS)}',
    **choice,
  )
  add('step', lambda _: cpu.fit_steps(), 'One step of a fit.')
  command = add('profile', lambda a: profiling.profile(a.scene, a.stages), 'The parts of a step.')
  command.add_argument('--scene', choices=SCENES, default='kodim15-10k', metavar='NAME')
  stages = ['fit', *CODEBOOK_METHODS]
  command.add_argument(
    '--stages', choices=stages, default=stages, help=f'of {", ".join(stages)}', **choice
  )
  command = add(
    'kernels', lambda a: kernels(a.devices, a.variants, a.tile), 'What GPU kernels need.'
  )
  command.add_argument(
    '--devices', choices=crosscompile.GPUS, default=list(crosscompile.GPUS), **choice
  )
  command.add_argument('--variants', choices=VARIANTS, help='default: all there are', **choice)
  command.add_argument('--tile', type=crosscompile.parse_tile, default=tiles.TILE, metavar='HxW')
  command = add('gpu', lambda a: gpu(a.scene, a.seconds, a.fit_steps), 'All of it on a GPU.')
  command.add_argument('--scene', choices=SCENES, default='random-768', metavar='NAME')
  command.add_argument('--seconds', type=float, default=300, help='begin no row after so many')
  command.add_argument('--fit_steps', type=int, default=5000, help='of the photograph')
  command = add('decode', lambda a: decode(a.files), 'Files to pixels.')
  command.add_argument('files', type=Path, nargs='+', metavar='FILE')
  command = add('bitstream', lambda a: bitstream(a.files), 'What coding the integers costs.')
  command.add_argument('files', type=Path, nargs='+', metavar='FILE')
  arguments = parser.parse_args(argv)
  devices.use_all()
  rows = arguments.run(arguments)
  if arguments.json:
    write_atomically(arguments.json, (json.dumps(rows, indent=1) + '\n').encode())


if __name__ == '__main__':
  main()
