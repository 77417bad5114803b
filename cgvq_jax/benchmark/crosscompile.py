"""Cross-compilation: programs for a GPU or a TPU, compiled on any machine.

  python -m cgvq_jax.benchmark.crosscompile H100 triton mosaic --tile 8x16

compiles these variants of the rasterizer's kernels (`rasterize.pallas`) and prints the resources of
a multiprocessor that each needs, as JSON. `python -m cgvq_jax.benchmark kernels` prints a table.

Lowering needs JAX alone. A binary needs the device's compiler too, from wheels that install on any
Linux machine; `launch/compilers.sh` puts them into a folder of their own, since an installed CUDA
plugin would warn of the missing driver in every process. A compiler may abort its process, so
programs that may not compile are compiled in another: `in_new_process`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from cgvq_jax.evaluate import tables
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize import layout, pallas, tiles
from cgvq_jax.rasterize.tiles import TileShape


class NoCompiler(RuntimeError):
  """The wheels of a device's compiler, which the message names, are not installed."""


class Gpu(NamedTuple):
  """What Pallas and ptxas need to know of a GPU; `file` is XLA's description of all the rest."""

  kind: str  # JAX's device_kind
  compute_capability: str
  architecture: str  # ptxas's name
  file: str


GPUS = {
  'H100': Gpu('NVIDIA H100 80GB HBM3', '9.0', 'sm_90a', 'h100.txt'),
  'A100': Gpu('NVIDIA A100-SXM4-40GB', '8.0', 'sm_80', 'a100.txt'),
}
TPU = 'v5e:2x2'  # the smallest slice that JAX describes
DEVICES = (*GPUS, 'TPU')


# --- programs ---


def lowered(function: Callable, *arguments: Any, device: str) -> jax.stages.Lowered:
  """`jax.jit(function)` lowered for a device, not compiled. Arguments may be ShapeDtypeStructs."""
  platform = 'cuda' if device in GPUS else device.lower()
  with _as_seen_from(device):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,))


def compiled(
  function: Callable, *arguments: Any, device: str, options: dict[str, Any] | None = None
) -> jax.stages.Compiled:
  """The binary program for a device. Raises NoCompiler, and what JAX raises."""
  sharding = jax.sharding.SingleDeviceSharding(_topology(device))

  def spec(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  with _as_seen_from(device):
    program = jax.jit(function, compiler_options=options)
    return program.lower(*jax.tree.map(spec, arguments)).compile()


def _as_seen_from(device: str):
  """A context in which Pallas lowers for this GPU; JAX before 0.11 does not need it."""
  if device not in GPUS or jax.__version_info__ < (0, 11):
    return contextlib.nullcontext()
  gpu = GPUS[device]

  class Described(jax.sharding.AbstractDevice):
    compute_capability = gpu.compute_capability

  described = Described(device_kind=gpu.kind, num_cores=None, platform='gpu')
  options = {'axis_types': (jax.sharding.AxisType.Auto,), 'abstract_device': described}
  return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ('device',), **options))


@lru_cache
def _topology(device: str):
  try:
    if device == 'TPU':
      return topologies.get_topology_desc(TPU, platform='tpu').devices[0]
    description = _description(device)
    options = {'platform': 'cuda', 'topology': '1x1x1', 'target_config': description}
    return topologies.get_topology_desc(**options).devices[0]
  except Exception as error:
    wheels = 'libtpu' if device == 'TPU' else 'jax-cuda12-plugin, jax-cuda12-pjrt'
    raise NoCompiler(f'{device}: wanted {wheels} (launch/compilers.sh), got: {error}') from error


def _description(device: str) -> str:
  return (resources.files('cgvq_jax.benchmark') / 'targets' / GPUS[device].file).read_text()


def compilers() -> Path:
  """Where `launch/compilers.sh` puts the wheels: CGVQ_COMPILERS, or in the virtual environment."""
  return Path(os.environ.get('CGVQ_COMPILERS') or Path(sys.prefix) / 'compilers')


def in_new_process(
  arguments: Sequence[str], **environment: str
) -> subprocess.CompletedProcess[str]:
  """Runs Python with these arguments, the compilers' wheels on its path and the CPU as device."""
  path = [str(compilers()), *filter(None, [os.environ.get('PYTHONPATH')])]
  environment = {'PYTHONPATH': os.pathsep.join(path), 'JAX_PLATFORMS': 'cpu', **environment}
  environment = {**os.environ, 'TPU_SKIP_MDS_QUERY': '1', **environment}
  command = [sys.executable, *arguments]
  return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


# --- resources of kernels ---


def offered(device: str) -> list[str]:
  """The variants that the installed JAX can compile for a GPU: Mosaic's need Hopper before JAX
  0.11."""
  with_mosaic = jax.__version_info__ >= (0, 11) or float(GPUS[device].compute_capability) >= 9
  names = [name for name in pallas.VARIANTS if 'interpret' not in name]
  return [name for name in names if with_mosaic or not name.startswith('mosaic')]


_MOST_PROGRAMS = 32  # on one multiprocessor, of any GPU here


class Needs(NamedTuple):
  """The resources of a multiprocessor that one kernel needs."""

  device: str
  variant: str
  tile: str  # height x width, px
  kernel: str
  threads: int
  registers: int  # of each thread
  spilled_bytes: int  # of each thread, stored and loaded again
  shared_bytes: int  # of each program
  shared_limit: int  # bytes that the GPU gives one program at most
  programs: int  # that fit one multiprocessor at a time

  @property
  def fits(self) -> bool:
    return self.shared_bytes <= self.shared_limit and self.programs > 0


def kernel_arguments(
  *,
  num_gaussians: int = 10_000,
  height: int = 512,
  width: int = 768,
  channels: int = 3,
  tile_shape: TileShape = tiles.TILE,
):
  """Shapes of (table, bins, cotangent) of a picture."""
  gaussians = Gaussians(
    *(
      jax.ShapeDtypeStruct((num_gaussians, *shape), jnp.float32)  # pyright: ignore
      for shape in ((2,), (2,), (), (channels,))
    )
  )
  capacity = tiles.initial_capacity(num_gaussians, height, width, tile_shape)

  def make(gaussians):
    bins = tiles.bin_gaussians(gaussians, height, width, capacity, tile_shape=tile_shape)
    shape = bins.num_tiles, channels, tile_shape.num_pixels
    return layout.gaussian_table(gaussians), bins, jnp.zeros(shape)

  return jax.eval_shape(make, gaussians)


def needs(device: str, variant: str, tile_shape: TileShape, folder: Path) -> list[Needs]:
  """Compiles a variant's kernels and reads their needs from the dumps of XLA or Mosaic in `folder`.

  The environment has to make them dump there, as that of `all_needs` does, before JAX starts.
  """
  kernels = pallas.VARIANTS[variant]
  table, bins, cotangent = kernel_arguments(tile_shape=tile_shape)
  calls = {'render': (table, bins), 'backward': (table, bins, cotangent)}
  rows = []
  for name, arguments in calls.items():
    compiled(getattr(kernels, name), *arguments, device=device)
    read = _read_mosaic_dump if variant.startswith('mosaic') else _read_triton_dump
    assembler, threads, shared = read(device, name, folder)
    registers = int(_only(r'Used (\d+) registers', assembler))
    spilled = sum(map(int, re.findall(r'(\d+) bytes spill', assembler)))
    shape = f'{tile_shape.height}x{tile_shape.width}'
    limits = _limits(device)
    fitting = min(
      _MOST_PROGRAMS,
      limits['registers_per_core_limit'] // (-(-registers // 8) * 8 * threads),  # in units of 8
      limits['threads_per_core_limit'] // threads,
      limits['shared_memory_per_core'] // max(shared + 1024, 1),  # CUDA reserves 1 KiB each
    )
    limit = limits['shared_memory_per_block_optin']
    rows.append(
      Needs(device, variant, shape, name, threads, registers, spilled, shared, limit, fitting)
    )
  return rows


def _only(pattern: str, text: str) -> str:
  found = re.findall(pattern, text)
  if not found:
    raise ValueError(f'{pattern!r} is not in the output of the compiler: {text[-300:]}')
  return found[-1]


def _limits(device: str) -> dict[str, int]:
  return {name: int(n) for name, n in re.findall(r'(\w+): (\d+)\n', _description(device))}


def _read_triton_dump(device: str, kernel: str, folder: Path) -> tuple[str, int, int]:
  """(ptxas's output, threads, bytes of shared memory) of a kernel that XLA compiled."""
  source = _latest(folder, '*.ptx', containing=f'.entry {kernel}(')
  command = [_assembler(), '-v', f'--gpu-name={GPUS[device].architecture}', '-o', os.devnull]
  done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=True)
  plan = _latest(folder, '*.thunk_sequence.txt').read_text()
  launch = rf' {kernel} grid: \[\d+, 1, 1\] threads: \[(\d+), 1, 1\] +shared_memory: (\d+) bytes'
  threads, shared = _only(launch, plan)
  return done.stderr, int(threads), int(shared)


def _latest(folder: Path, pattern: str, containing: str = '') -> Path:
  files = [file for file in folder.glob(pattern) if containing in file.read_text()]
  return max(files, key=lambda file: file.stat().st_mtime_ns)


def _assembler() -> str:
  file = compilers() / 'nvidia' / 'cuda_nvcc' / 'bin' / 'ptxas'
  if not file.is_file():
    raise NoCompiler(f'wanted {file} of nvidia-cuda-nvcc-cu12 (launch/compilers.sh)')
  return str(file)


def _read_mosaic_dump(device: str, kernel: str, folder: Path) -> tuple[str, int, int]:
  """(ptxas's output, threads, bytes of shared memory) of a kernel that Mosaic compiled, always with
  128 threads a program."""
  del device
  passes = _latest(folder, f'{kernel}_*.mlir-passes.log')
  assembler = passes.with_name(passes.name.replace('.mlir-passes.log', '.ptxas')).read_text()
  shared = re.findall(r'dynamic_shared_memory_size %c(\d+)', passes.read_text())
  static = re.findall(r'(\d+) bytes smem', assembler)
  return assembler, 128, sum(int(found[-1]) for found in (shared, static) if found)


Process = Callable[..., subprocess.CompletedProcess[str]]  # (arguments, **environment)


def all_needs(
  device: str,
  variants: Sequence[str],
  tile_shape: TileShape = tiles.TILE,
  run: Process = in_new_process,
) -> tuple[list[Needs], list[str]]:
  """The needs of all variants that compile, and for each of the others the reason why not.

  One process compiles one variant after another; where it fails, another takes the next ones.
  """
  rows, failures, left = [], [], list(variants)
  shape = f'{tile_shape.height}x{tile_shape.width}'
  while left:
    with tempfile.TemporaryDirectory() as folder:
      environment = {
        'XLA_FLAGS': f'--xla_dump_to={folder} --xla_dump_emitter_re=ptx',
        'MOSAIC_GPU_DUMP_TO': folder,
        'CGVQ_KERNEL_DUMPS': folder,
      }
      arguments = ['-m', 'cgvq_jax.benchmark.crosscompile', device, *left, '--tile', shape]
      done = run(arguments, **environment)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    rows += [Needs(**row) for line in lines for row in line]
    left = left[len(lines) :]
    if left:
      failures.append(f'{device} {left.pop(0)}: exit {done.returncode}: {_reason(done.stderr)}')
  return rows, failures


def _reason(stderr: str) -> str:
  """The most useful line: the first that names an error, or the last."""
  lines = [line.strip() for line in stderr.splitlines() if line.strip()]
  errors = [line for line in lines if re.search(r'LLVM ERROR|\w(Error|Compiler|exhausted):', line)]
  return (errors or lines[-1:] or [''])[0][:300]


Measure = Callable[[str, Sequence[str], TileShape], tuple[list[Needs], list[str]]]


def kernels(
  devices: Sequence[str],
  variants: Sequence[str] | None = None,
  tile_shape: TileShape = tiles.TILE,
  measure: Measure = all_needs,
) -> list[dict[str, Any]]:
  """Prints the needs of all kernels, or of `variants`, as a table.

  Raises SystemExit after it where a kernel does not compile or does not fit a multiprocessor.
  """
  columns = Needs._fields
  print(tables.header(columns))
  rows, failures = [], []
  for device in devices:
    made, failed = measure(device, variants or offered(device), tile_shape)
    rows += made
    failures += failed
  for row in rows:
    print(tables.row(row))
  failures += [f'{row.device} {row.variant} {row.kernel}: too big' for row in rows if not row.fits]
  for failure in failures:
    print(f'failed: {failure}')
  if failures:
    raise SystemExit(1)
  return [row._asdict() for row in rows]


def parse_tile(text: str) -> TileShape:
  """'8x16', height x width. Raises ValueError."""
  match = re.fullmatch(r'(\d+)x(\d+)', text)
  if not match or int(match[1]) * int(match[2]) not in (128, 256, 512):
    raise ValueError(f'tile: wanted HEIGHTxWIDTH of 128, 256 or 512 pixels, got {text!r}')
  return TileShape(int(match[1]), int(match[2]))


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('device', choices=GPUS)
  parser.add_argument('variants', nargs='+', choices=pallas.VARIANTS, metavar='VARIANT')
  parser.add_argument('--tile', type=parse_tile, default=tiles.TILE, metavar='HxW')
  arguments = parser.parse_args(argv)
  folder = Path(os.environ['CGVQ_KERNEL_DUMPS'])
  for variant in arguments.variants:
    rows = needs(arguments.device, variant, arguments.tile, folder)
    print(json.dumps([row._asdict() for row in rows]), flush=True)


if __name__ == '__main__':
  main()
