"""Measurements: the rasterizer, one fit step, decoding, the bitstream, and GPU kernels.

  python -m cgvq_jax.benchmark rasterize [--scenes kodim15-10k ...] [--implementations xla ...]
  python -m cgvq_jax.benchmark step
  python -m cgvq_jax.benchmark profile [--scene kodim15-10k] [--stages fit cgvq]
  python -m cgvq_jax.benchmark decode a.cgvq b.cgvq ... [--renderer jax]
  python -m cgvq_jax.benchmark renderers
  python -m cgvq_jax.benchmark bitstream a.cgvq b.cgvq ...
  python -m cgvq_jax.benchmark kernels [--devices H100 A100] [--tile 16x16]
  python -m cgvq_jax.benchmark gpu [--scene kodim15-10k] [--seconds 300]

rasterize: each scene by each implementation, in a process of its own: compile seconds, and the
minimum of several warm runs in milliseconds. An evaluated pair is one Gaussian's weight at one
pixel; it is needed where q <= ln 255 and the pixel is in the image. `evaluated` counts the pairs
of value and gradient, which evaluates each once. The floor is the time of one (forward) or two
(value and gradient) of XLA's exponentials for each evaluated pair, on data that stays in cache, on
the same devices in the same run.

step: value, gradient and update of a fit, with the binning that they need; and the same with the
reference, which evaluates every Gaussian at every pixel, on a scene that is small enough for both.

profile: the share of a step that each of its parts takes, by JAX's profiler, in a fit and in
fine-tuning with a method's quantizers. A part is a `jax.named_scope`; operations that XLA fused
count as the part of the last of them.

decode: bytes to integers (entropy decoding), to Gaussians (dequantization), to pixels, and the sum.
The files alternate, round after round, so that a drift of the machine's speed affects all equally.

renderers: seconds of whole new processes that render an image by NumPy and by JAX, which decide
the renderer of `cgvq decode`; wants Kodak's photographs.

bitstream: bytes of each file in each order of the Gaussians, and how much of log2 of the number of
orders each order saves; then the cost of each column of rotation, scale and colour with its entropy
and its cost by other models.

kernels: registers, spills and shared memory of the GPU kernels, cross-compiled: no GPU is needed,
but the compilers of launch/compilers.sh. Fails where a kernel does not compile or does not fit.

gpu: on an NVIDIA GPU, as `launch/gpu_check.sh` runs it: every implementation on batches of 1, 4
and 16 images with lower bounds measured in the same run, whole steps of a fit, and the fit of a
photograph.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cgvq_jax import devices
from cgvq_jax.benchmark import cpu, crosscompile, decoding, entropy, gpu, profiling, renderers
from cgvq_jax.benchmark.scenes import SCENES, USUAL
from cgvq_jax.io.files import write_atomically
from cgvq_jax.methods.registry import METHODS
from cgvq_jax.rasterize import tiles
from cgvq_jax.rasterize.pallas import VARIANTS

_SEVERAL: dict[str, Any] = {'nargs': '+', 'metavar': 'NAME'}


def _parser() -> argparse.ArgumentParser:
  style: dict[str, Any] = {'formatter_class': argparse.RawDescriptionHelpFormatter}
  parser = argparse.ArgumentParser('python -m cgvq_jax.benchmark', description=__doc__, **style)
  commands = parser.add_subparsers(
    required=True, metavar='rasterize|step|profile|decode|renderers|bitstream|kernels|gpu'
  )

  def add(name: str, run: Callable[[argparse.Namespace], Any], about: str):
    added = commands.add_parser(name, help=about, description=about)
    added.set_defaults(run=run)
    added.add_argument('--json', type=Path, metavar='FILE', help='also write the results there')
    return added

  command = add(
    'rasterize', lambda a: cpu.rasterize(a.scenes, a.implementations), 'The rasterizers.'
  )
  command.add_argument(
    '--scenes',
    choices=SCENES,
    default=USUAL,
    help=f'of {", ".join(SCENES)}; default: all but `largest`',
    **_SEVERAL,
  )
  command.add_argument(
    '--implementations',
    choices=cpu.IMPLEMENTATIONS,
    default=list(cpu.IMPLEMENTATIONS),
    help=f'of {", ".join(cpu.IMPLEMENTATIONS)}',
    **_SEVERAL,
  )
  add('step', lambda _: cpu.fit_steps(), 'One step of a fit.')
  command = add('profile', lambda a: profiling.profile(a.scene, a.stages), 'The parts of a step.')
  command.add_argument('--scene', choices=SCENES, default='kodim15-10k', metavar='NAME')
  stages = ['fit', *METHODS]
  command.add_argument(
    '--stages',
    choices=stages,
    default=['fit', 'gi', 'cgvq', 'cgvq_rd'],
    help=f'of {", ".join(stages)}',
    **_SEVERAL,
  )
  command = add(
    'kernels',
    lambda a: crosscompile.kernels(a.devices, a.variants, a.tile),
    'Resources that GPU kernels need.',
  )
  command.add_argument(
    '--devices', choices=crosscompile.GPUS, default=list(crosscompile.GPUS), **_SEVERAL
  )
  command.add_argument('--variants', choices=VARIANTS, help='default: all of them', **_SEVERAL)
  command.add_argument('--tile', type=crosscompile.parse_tile, default=tiles.TILE, metavar='HxW')
  command = add(
    'gpu', lambda a: gpu.gpu(a.scene, a.seconds, a.fit_steps), 'The rasterizers and fits on a GPU.'
  )
  command.add_argument('--scene', choices=SCENES, default='random-768', metavar='NAME')
  command.add_argument('--seconds', type=float, default=300, help='begin no row after these')
  command.add_argument('--fit_steps', type=int, default=5000, help='of the photograph')
  command = add('decode', lambda a: decoding.decode(a.files, a.renderer), 'Files to pixels.')
  command.add_argument('files', type=Path, nargs='+', metavar='FILE')
  command.add_argument('--renderer', metavar='NAME', help='numpy or jax (default: as cgvq decode)')
  add('renderers', lambda _: renderers.run(), 'Whole processes that render.')
  command = add('bitstream', lambda a: entropy.bitstream(a.files), 'Bits of the integers.')
  command.add_argument('files', type=Path, nargs='+', metavar='FILE')
  return parser


def main(argv: Sequence[str] | None = None) -> None:
  """Prints tables, and writes them as JSON where --json names a file."""
  arguments = _parser().parse_args(argv)
  devices.use_all()
  rows = arguments.run(arguments)
  if arguments.json:
    write_atomically(arguments.json, (json.dumps(rows, indent=1) + '\n').encode())


if __name__ == '__main__':
  main()
