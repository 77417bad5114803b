"""The devices that work on one image together."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

# Every further core has less to do and more to gather: a photograph has some thirty rows of tiles.
_MOST = 8


def usable() -> int:
  """Cores that this process may use; all there are, where the system (macOS) cannot tell."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def use_all() -> None:
  """Makes each core that this process may use, up to eight, a JAX device to share an image.

  To be called before JAX does anything, as the commands do. A number that the user has set
  (JAX_NUM_CPU_DEVICES) stays, and so does a JAX that runs already.
  """
  if jax.config.jax_num_cpu_devices < 1:  # pyright: ignore[reportAttributeAccessIssue]
    with contextlib.suppress(RuntimeError):
      jax.config.update('jax_num_cpu_devices', min(usable(), _MOST))


def forget_programs_if_many() -> bool:
  """Lets go of what is compiled once it fills half of the memory mappings that Linux grants.

  A program for a CPU takes hundreds of them, and every picture brings some of its own sizes: a job
  of seventy files ended in a segmentation fault of the compiler. To be called between pictures;
  what is needed again is compiled again. Returns whether anything was let go.
  """
  try:
    granted = int(_GRANTED.read_text())
    with _MAPPED.open('rb') as lines:
      mapped = sum(1 for _ in lines)
  except OSError:  # no Linux
    return False
  if mapped < granted / 2:
    return False
  jax.clear_caches()
  gc.collect()
  return True


_GRANTED, _MAPPED = Path('/proc/sys/vm/max_map_count'), Path('/proc/self/maps')


@lru_cache
def mesh() -> Mesh:
  """All cores that JAX counts, else one accelerator, on an axis 'core'.

  XLA gains next to nothing from a second core inside a loop; two CPU devices, each with half of
  the blocks and its own cache, are clearly faster than one.
  """
  devices = jax.local_devices()
  return Mesh(devices if devices[0].platform == 'cpu' else devices[:1], ('core',))


_OPTIONS: dict[str, dict[str, Any]] = {
  # XLA's default of 256-bit vectors leaves a fifth of the speed behind where AVX-512 is at hand,
  # and is what it falls back to elsewhere.
  'cpu': {'xla_cpu_prefer_vector_width': 512},
  # The same seed gives the same file: a scatter sums in the order of its indices, not in whichever
  # its threads come to, and no product's order is chosen by a stopwatch. Products by Triton are out
  # because XLA, so asked, has none of a cluster's few entries (JAX 0.11.2).
  'gpu': {'xla_gpu_deterministic_ops': True, 'xla_gpu_enable_triton_gemm': False},
}


def compiler_options(platform: str | None = None) -> dict[str, Any]:
  """For `jax.jit` of programs that render, on a platform or on the one there is."""
  return _OPTIONS.get(platform or jax.default_backend(), {})


def together(function: Callable[..., Any]) -> Callable[..., Any]:
  """`function(*arguments, axis=...)`, to be jitted: by every device, with the same arguments.

  `axis` is the name over which they exchange what they have, so that all come to the same result,
  or None where there is one device only.
  """
  if mesh().size == 1:
    return partial(function, axis=None)
  run = partial(function, axis='core')
  return jax.shard_map(run, mesh=mesh(), in_specs=P(), out_specs=P(), check_vma=False)
